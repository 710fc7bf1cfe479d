#!/usr/bin/env bash
# Linear probes of VICReg, epochs and sizes of training set: $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug.
# Arguments go to lin_probe.py; variables: sweep.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-vicreg} STAGES=probe SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname "$0")/sweep.sh" "$@"
