#!/usr/bin/env bash
# Trains SimCLR with ten temperatures: $LOGGING_FOLDER/simclr/simclr_tempsweep_p{15}_{A,B}.
#
#   ./bash_examples/training_simclr_tempsweep.sh
#   TEMPERATURES=".10 .30" ./bash_examples/training_simclr_tempsweep.sh --training.epochs 100
#   DRY_RUN=1 ./bash_examples/training_simclr_tempsweep.sh      only prints the commands
#
# Further arguments go to train_SSL.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=training_simclr_tempsweep.sh LOSS=${LOSS:-simclr} STAGES=train SWEEP=${SWEEP:-temperature}
exec bash "$(dirname "$0")/sweep.sh" "$@"
