#!/usr/bin/env bash
# Trains SimCLR with ten temperatures: $LOGGING_FOLDER/simclr/simclr_tempsweep_p{15}_{A,B}.
# Arguments go to train_SSL.py; variables: sweep.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-simclr} STAGES=train SWEEP=${SWEEP:-temperature}
exec bash "$(dirname "$0")/sweep.sh" "$@"
