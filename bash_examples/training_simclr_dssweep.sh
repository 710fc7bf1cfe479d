#!/usr/bin/env bash
# Trains SimCLR on both sets of every partition: $LOGGING_FOLDER/simclr/simclr_dssweep_{n}pc_{A,B}.
# Arguments go to train_SSL.py; variables: sweep.sh. The loop is in train.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-simclr} SWEEP=${SWEEP:-datasets}
exec bash "$(dirname -- "$0")/train.sh" "$@"
