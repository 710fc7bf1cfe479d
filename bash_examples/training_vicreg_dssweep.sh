#!/usr/bin/env bash
# Trains VICReg on both sets of every partition: $LOGGING_FOLDER/vicreg/vicreg_dssweep_{n}pc_{A,B}. Finished ones are
# skipped; on SLURM each training is one job, here (LOCAL=1) one follows the other.
#
#   ./bash_examples/training_vicreg_dssweep.sh
#   DATASETS="100 300" LOCAL=1 ./bash_examples/training_vicreg_dssweep.sh --training.epochs 100
#   DRY_RUN=1 ./bash_examples/training_vicreg_dssweep.sh      only prints the commands
#
# Environment: BETONS_FOLDER, LOGGING_FOLDER; LOSS (vicreg) names another configs/{LOSS}_cfg.yaml. Further flags go to
# train_SSL.py.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
loss=${LOSS:-vicreg}

for name in BETONS_FOLDER LOGGING_FOLDER; do
  [ -n "${!name:-}" ] || { echo "training_vicreg_dssweep.sh: error: the variable $name is not set: export $name=FOLDER" >&2; exit 2; }
done
for n in ${DATASETS:-100 200 300 400 500}; do
  for beton in "${n}_per_class_A" "${n}_per_class_B" val; do
    [ -e "$BETONS_FOLDER/$beton.beton" ] || { echo "training_vicreg_dssweep.sh: error: $BETONS_FOLDER/$beton.beton:" \
      "no such file; run gen_betons.sh and gen_val_betons.sh, or narrow DATASETS" >&2; exit 2; }
  done
done

for n in ${DATASETS:-100 200 300 400 500}; do
  for side in A B; do
    folder=$LOGGING_FOLDER/$loss/${loss}_dssweep_${n}pc_$side
    if [ -e "$folder/final_weights.pt" ]; then
      echo "$folder: there already"
      continue
    fi
    command=("${PYTHON:-python}" "$root/train_SSL.py" --config-file "$root/configs/${loss}_cfg.yaml"
      --dist.use_submitit "$((1 - ${LOCAL:-0}))"
      --data.train_dataset "$BETONS_FOLDER/${n}_per_class_$side.beton" --data.val_dataset "$BETONS_FOLDER/val.beton"
      --logging.folder "$folder" "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
      printf '%q ' "${command[@]}"
      echo
    else
      "${command[@]}"
    fi
  done
done
