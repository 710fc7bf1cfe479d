#!/usr/bin/env bash
# Linear probes of VICReg, epochs and sizes of training set: $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug.
# Arguments go to lin_probe.py; variables: sweep.sh. The loop is in probe.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-vicreg} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/probe.sh" "$@"
