#!/usr/bin/env bash
# Trains VICReg with six invariance coefficients: $LOGGING_FOLDER/vicreg/vicreg_simsweep_sim{25}_{A,B}.
# Arguments go to train_SSL.py; variables: sweep.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-vicreg} STAGES=train SWEEP=${SWEEP:-sim_coeff}
exec bash "$(dirname "$0")/sweep.sh" "$@"
