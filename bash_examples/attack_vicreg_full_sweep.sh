#!/usr/bin/env bash
# Attacks VICReg at all epochs and sizes: $LOGGING_FOLDER/vicreg/attack_sweeps.
# Arguments go to label_inference_attack.py; variables: sweep.sh. The loop is in attack.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-vicreg} SWEEP=${SWEEP:-epochs datasets}
exec bash "$(dirname -- "$0")/attack.sh" "$@"
