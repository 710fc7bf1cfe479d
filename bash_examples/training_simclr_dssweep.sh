#!/usr/bin/env bash
# Trains SimCLR on both sets of every partition: $LOGGING_FOLDER/simclr/simclr_dssweep_{n}pc_{A,B}.
#
#   ./bash_examples/training_simclr_dssweep.sh
#   DATASETS="100 300" LOCAL=1 ./bash_examples/training_simclr_dssweep.sh --training.epochs 100
#   DRY_RUN=1 ./bash_examples/training_simclr_dssweep.sh      only prints the commands
#
# Further arguments go to train_SSL.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=training_simclr_dssweep.sh LOSS=${LOSS:-simclr} STAGES=train SWEEP=${SWEEP:-datasets}
exec bash "$(dirname "$0")/sweep.sh" "$@"
