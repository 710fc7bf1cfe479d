#!/usr/bin/env bash
# Attacks SimCLR at all epochs and sizes: $LOGGING_FOLDER/simclr/attack_sweeps.
# Arguments go to label_inference_attack.py; variables: sweep.sh. The loop is in attack.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-simclr} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/attack.sh" "$@"
