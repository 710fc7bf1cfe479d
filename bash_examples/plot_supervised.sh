#!/usr/bin/env bash
# Draws the figures of the finished attacks and probes of the supervised model: $LOGGING_FOLDER/supervised/plot.
# Arguments go to plot_quant_results.py; variables: sweep.sh. The loop is in plot.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-supervised} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/plot.sh" "$@"
