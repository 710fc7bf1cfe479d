#!/usr/bin/env bash
# Trains the supervised model on both sets of every partition: $LOGGING_FOLDER/supervised/supervised_dssweep_{n}pc_{A,B}.
# Arguments go to train_SSL.py; variables: sweep.sh. The loop is in train.sh.
export SWEEP_SCRIPT=${0##*/} LOSS=${LOSS:-supervised} SWEEP=${SWEEP:-datasets}
exec bash "$(dirname -- "$0")/train.sh" "$@"
