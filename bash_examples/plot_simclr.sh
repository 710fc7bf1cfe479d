#!/usr/bin/env bash
# Draws the figures of the attacks and probes of SimCLR that are there: $LOGGING_FOLDER/simclr/plot.
#
#   ./bash_examples/plot_simclr.sh
#   ATTACKS=backbone ./bash_examples/plot_simclr.sh --style science
#   DRY_RUN=1 ./bash_examples/plot_simclr.sh      only prints the commands
#
# Further arguments go to plot_quant_results.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=plot_simclr.sh LOSS=${LOSS:-simclr} STAGES=plot SWEEP=${SWEEP:-"epochs datasets"}
exec bash "$(dirname "$0")/sweep.sh" "$@"
