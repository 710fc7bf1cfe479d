#!/usr/bin/env bash
# Linear probes of SimCLR, epochs and sizes of training set: $LOGGING_FOLDER/simclr/lin_probe_sweeps_with_aug.
#
#   ./bash_examples/lin_probe_simclr.sh
#   SWEEP=datasets LOCAL=1 ./bash_examples/lin_probe_simclr.sh --batch_size 256
#   DRY_RUN=1 ./bash_examples/lin_probe_simclr.sh      only prints the commands
#
# Further arguments go to lin_probe.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=lin_probe_simclr.sh LOSS=${LOSS:-simclr} STAGES=probe SWEEP=${SWEEP:-"epochs datasets"}
exec bash "$(dirname "$0")/sweep.sh" "$@"
