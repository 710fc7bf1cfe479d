#!/usr/bin/env bash
# Draws the figures of the attacks and probes of VICReg that are there: $LOGGING_FOLDER/vicreg/plot.
#
#   ./bash_examples/plot_vicreg.sh
#   ATTACKS=backbone ./bash_examples/plot_vicreg.sh --style science
#   DRY_RUN=1 ./bash_examples/plot_vicreg.sh      only prints the commands
#
# Further arguments go to plot_quant_results.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=plot_vicreg.sh LOSS=${LOSS:-vicreg} STAGES=plot SWEEP=${SWEEP:-"epochs datasets"}
exec bash "$(dirname "$0")/sweep.sh" "$@"
