#!/usr/bin/env bash
# Trains SimCLR with ten temperatures: $LOGGING_FOLDER/simclr/simclr_tempsweep_p{15}_{A,B}.
# Arguments go to train_SSL.py; variables: sweep.sh. The loop is in train.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-simclr} SWEEP=${SWEEP:-temperature}
exec bash "$(dirname -- "$0")/train.sh" "$@"
