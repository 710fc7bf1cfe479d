#!/usr/bin/env bash
# Attacks the supervised model after 50 to 1000 epochs, and every size of training set: $LOGGING_FOLDER/supervised/attack_sweeps.
#
#   ./bash_examples/attack_supervised_full_sweep.sh
#   SWEEP=epochs EPOCHS="500 1000" ATTACKS=backbone ./bash_examples/attack_supervised_full_sweep.sh --batch_size 512
#   DRY_RUN=1 ./bash_examples/attack_supervised_full_sweep.sh      only prints the commands
#
# Further arguments go to label_inference_attack.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=attack_supervised_full_sweep.sh LOSS=${LOSS:-supervised} STAGES=attack SWEEP=${SWEEP:-"epochs datasets"}
exec bash "$(dirname "$0")/sweep.sh" "$@"
