#!/usr/bin/env bash
# Trains VICReg with six invariance coefficients: $LOGGING_FOLDER/vicreg/vicreg_simsweep_sim{25}_{A,B}.
# Arguments go to train_SSL.py; variables: sweep.sh. The loop is in train.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-vicreg} SWEEP=${SWEEP:-sim_coeff}
exec bash "$(dirname -- "$0")/train.sh" "$@"
