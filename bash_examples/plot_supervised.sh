#!/usr/bin/env bash
# Draws the figures of the attacks and probes of the supervised model that are there: $LOGGING_FOLDER/supervised/plot.
#
#   ./bash_examples/plot_supervised.sh
#   ATTACKS=backbone ./bash_examples/plot_supervised.sh --style science
#   DRY_RUN=1 ./bash_examples/plot_supervised.sh      only prints the commands
#
# Further arguments go to plot_quant_results.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=plot_supervised.sh LOSS=${LOSS:-supervised} STAGES=plot SWEEP=${SWEEP:-"epochs datasets"}
exec bash "$(dirname "$0")/sweep.sh" "$@"
