#!/usr/bin/env bash
# Draws the figures of the finished attacks and probes of VICReg: $LOGGING_FOLDER/vicreg/plot.
# Arguments go to plot_quant_results.py; variables: sweep.sh. The loop is in plot.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-vicreg} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/plot.sh" "$@"
