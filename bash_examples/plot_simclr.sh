#!/usr/bin/env bash
# Draws the figures of the finished attacks and probes of SimCLR: $LOGGING_FOLDER/simclr/plot.
# Arguments go to plot_quant_results.py; variables: sweep.sh. The loop is in plot.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-simclr} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/plot.sh" "$@"
