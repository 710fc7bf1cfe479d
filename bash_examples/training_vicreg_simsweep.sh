#!/usr/bin/env bash
# Trains VICReg with six invariance coefficients: $LOGGING_FOLDER/vicreg/vicreg_simsweep_sim{25}_{A,B}.
#
#   ./bash_examples/training_vicreg_simsweep.sh
#   SIM_COEFFS="10 100" ./bash_examples/training_vicreg_simsweep.sh --training.epochs 100
#   DRY_RUN=1 ./bash_examples/training_vicreg_simsweep.sh      only prints the commands
#
# Further arguments go to train_SSL.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=training_vicreg_simsweep.sh LOSS=${LOSS:-vicreg} STAGES=train SWEEP=${SWEEP:-sim_coeff}
exec bash "$(dirname "$0")/sweep.sh" "$@"
