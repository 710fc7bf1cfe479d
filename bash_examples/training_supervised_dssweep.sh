#!/usr/bin/env bash
# Trains the supervised model on both sets of every partition: $LOGGING_FOLDER/supervised/supervised_dssweep_{n}pc_{A,B}.
#
#   ./bash_examples/training_supervised_dssweep.sh
#   DATASETS="100 300" LOCAL=1 ./bash_examples/training_supervised_dssweep.sh --training.epochs 100
#   DRY_RUN=1 ./bash_examples/training_supervised_dssweep.sh      only prints the commands
#
# Further arguments go to train_SSL.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=training_supervised_dssweep.sh LOSS=${LOSS:-supervised} STAGES=train SWEEP=${SWEEP:-datasets}
exec bash "$(dirname "$0")/sweep.sh" "$@"
