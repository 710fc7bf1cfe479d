#!/usr/bin/env bash
# Linear probes of the supervised model, epochs and sizes of training set: $LOGGING_FOLDER/supervised/lin_probe_sweeps_with_aug.
# Arguments go to lin_probe.py; variables: sweep.sh. The loop is in probe.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-supervised} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/probe.sh" "$@"
