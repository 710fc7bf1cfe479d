#!/usr/bin/env bash
# Linear probes of VICReg, epochs and sizes of training set: $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug.
#
#   ./bash_examples/lin_probe_vicreg.sh
#   SWEEP=datasets LOCAL=1 ./bash_examples/lin_probe_vicreg.sh --batch_size 256
#   DRY_RUN=1 ./bash_examples/lin_probe_vicreg.sh      only prints the commands
#
# Further arguments go to lin_probe.py; all variables, with the published values as defaults, are told in sweep.sh.
set -euo pipefail
export SWEEP_SCRIPT=lin_probe_vicreg.sh LOSS=${LOSS:-vicreg} STAGES=probe SWEEP=${SWEEP:-"epochs datasets"}
exec bash "$(dirname "$0")/sweep.sh" "$@"
