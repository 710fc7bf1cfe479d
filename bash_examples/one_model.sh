#!/usr/bin/env bash
# The test of one model, from index files to the figure: betons of background crops, the classifiers that stand in for a twin
# (three seeds for each half), the attack on a public checkpoint, the figures. docs/one_model.md has ImageNet's recipe.
#
#   MODEL_PTH=resnet50_fullckpt.pth NAME=vicreg EPOCH=1000 ./bash_examples/one_model.sh
#   LOCAL=1 ...          runs here, one after the other      DRY_RUN=1 ...     only prints the commands
#
# On SLURM the attack waits for the classifiers (--dependency), and the figures for the attack; betons are written here. The
# number of a job is kept beside its folder (FOLDER.job): run again, it submits what is neither finished nor in the queue.
#
# Environment:
#   MODEL_PTH    the model: a file, or timm:NAME or torchvision:NAME
#   NAME, EPOCH  as its folder is to have it: NN_attk_{NAME}_{n}pc_{EPOCH}ep     (one_model, 1)
#   DATASET      300: n of the partition; its bbox_A.npy and bbox_B.npy are attacked
#   PUBLIC_IDX   the public images: INDEX_FOLDER/500_per_class/public.npy
#   UNSEEN_IDX   boxed images that the model never saw, for delta; none if empty
#   SEEDS="0 1 2"   of the classifiers      K=100 neighbors      CLASSIFIER_EPOCHS=90, as in configs/crop_classifier_cfg.yaml
#   LEARNING_CURVE=1   classifiers of half of the crops too: is the reference's accuracy still rising?
#   CROP_FLAGS   how crops are cut, for betons and attack alike: "--min_px 100 --crop_rule paper"
#   TRAIN_FLAGS, ATTACK_FLAGS   appended to the commands, for instance ATTACK_FLAGS="--use_backbone 1"
# and the folders LOGGING_FOLDER, BETONS_FOLDER, INDEX_FOLDER, IMAGENET_DATASET_DIR, IMAGENET_BBOX_ANNOTATIONS.
# shellcheck disable=SC2086,SC2206 # the *_FLAGS are split into words
set -euo pipefail -f
root=$(cd "$(dirname "$0")/.." && pwd)
fail() { echo "one_model.sh: error: $*" >&2; exit 2; }
need_file() { [ -f "$1" ] || fail "$1: no such file; $2"; }
for name in LOGGING_FOLDER BETONS_FOLDER INDEX_FOLDER IMAGENET_DATASET_DIR IMAGENET_BBOX_ANNOTATIONS MODEL_PTH; do
  [ -n "${!name:-}" ] || fail "the variable $name is not set: export $name=..."
done
NAME=${NAME:-one_model} EPOCH=${EPOCH:-1} DATASET=${DATASET:-300} SEEDS=${SEEDS:-0 1 2} K=${K:-100} LOCAL=${LOCAL:-0}
DRY_RUN=${DRY_RUN:-0} PYTHON=${PYTHON:-python} UNSEEN_IDX=${UNSEEN_IDX:-} CLASSIFIER_EPOCHS=${CLASSIFIER_EPOCHS:-90}
index=$INDEX_FOLDER/${DATASET}_per_class PUBLIC_IDX=${PUBLIC_IDX:-$INDEX_FOLDER/500_per_class/public.npy}
for file in "$index"/bbox_{A,B}.npy "$PUBLIC_IDX"; do need_file "$file" "run imagenet_partition.py"; done
[ -z "$UNSEEN_IDX" ] || need_file "$UNSEEN_IDX" "UNSEEN_IDX names it"
[ "$LOCAL:$DRY_RUN" != 0:0 ] || command -v squeue >/dev/null || fail "there is no SLURM here (squeue is not on the path): LOCAL=1 runs here"
queue=
[ "$LOCAL:$DRY_RUN" != 0:0 ] || queue=$(squeue -h -u "$(id -un)" -o %i) || fail "squeue does not answer: try again, or LOCAL=1 to run here"

jobs='' # that the attack waits for
carry_out() { # carry_out FOLDER FINISHED COMMAND...: prints, runs or submits it, unless it is finished or in the queue
  local folder=$1 finished=$2 id=''
  if [ -e "$finished" ]; then echo "$folder: there already"; return; fi
  if [ "$DRY_RUN" = 1 ]; then printf '%q ' "${@:3}"; echo; return; fi
  mkdir -p "$(dirname "$folder")"
  if [ "$LOCAL" = 1 ]; then echo "== $folder"; "${@:3}"; return; fi
  [ ! -f "$folder.job" ] || id=$(grep -Fx -f "$folder.job" <<<"$queue" || true)
  if [ -z "$id" ]; then
    id=$("${@:3}" | tail -n 1)
    id=${id%%;*}
    case $id in '' | *[!0-9]*) fail "$folder: no job number, but '$id'" ;; esac
    echo "$id" >"$folder.job"
  fi
  echo "$folder: job $id"
  jobs=$jobs:$id
}

train_on() { # train_on NAME INDEX_FILE FLAG: a beton of these crops, and a classifier of each seed, which FLAG names
  local beton=$BETONS_FOLDER/${DATASET}_per_class_$1_crops.beton seed folder # for the probes' validation, too: nothing is chosen by it
  local write=("$PYTHON" "$root/write_ffcv_dataset.py" --imgnet-path "$IMAGENET_DATASET_DIR" --bbox-path "$IMAGENET_BBOX_ANNOTATIONS"
    --idx-path "$2" --write-path "$beton" ${CROP_FLAGS:-})
  if [ -e "$beton" ]; then echo "$beton: there already"
  elif [ "$DRY_RUN" = 1 ]; then printf '%q ' "${write[@]}"; echo
  else mkdir -p "$BETONS_FOLDER"; "${write[@]}"; fi
  classifiers+=("$3")
  for seed in $SEEDS; do
    folder=$LOGGING_FOLDER/crop_classifiers/${DATASET}pc_$1_seed$seed
    carry_out "$folder" "$folder/final_weights.pt" "$PYTHON" "$root/train_SSL.py" \
      --config-file "$root/configs/crop_classifier_cfg.yaml" --dist.use_submitit "$((1 - LOCAL))" \
      --training.epochs "$CLASSIFIER_EPOCHS" --data.random_seed "$seed" \
      --data.train_dataset "$beton" --data.val_dataset "$beton" --logging.folder "$folder" ${TRAIN_FLAGS:-}
    classifiers+=("$folder/model_ep$CLASSIFIER_EPOCHS.pth")
  done
}
halve() { # halve INDEX_FILE HALF: every second image; they are listed class by class
  [ "$DRY_RUN" = 1 ] || [ -e "$2" ] || "$PYTHON" - "$1" "$2" <<'PY'
import sys
import numpy as np
np.save(sys.argv[2], np.sort(np.load(sys.argv[1]))[::2])
PY
}

classifiers=()
for part in A B; do train_on "$part" "$index/bbox_$part.npy" "--reference_${part}_pth"; done
if [ "${LEARNING_CURVE:-0}" = 1 ]; then
  for part in A B; do
    halve "$index/bbox_$part.npy" "$index/half_bbox_$part.npy"
    train_on "half_$part" "$index/half_bbox_$part.npy" "--half_reference_${part}_pth"
  done
fi

sweep=$LOGGING_FOLDER/one_model/attack_sweeps folder=$LOGGING_FOLDER/one_model/attack_sweeps/NN_attk_${NAME}_${DATASET}pc_${EPOCH}ep
own=()
[ -z "$UNSEEN_IDX" ] || own=(--unseen_idx_pth "$UNSEEN_IDX")
[ -z "$jobs" ] || own+=(--dependency "afterok$jobs")
jobs=''
carry_out "$folder" "$folder/results.json" "$PYTHON" "$root/label_inference_attack.py" --local "$LOCAL" --output_dir "$folder" \
  --model_oss_pth "$MODEL_PTH" "${classifiers[@]}" --test_idx_pth "$index/bbox_A.npy" --valid_idx_pth "$index/bbox_B.npy" \
  --public_idx_pth "$PUBLIC_IDX" --imgnet_train_pth "$IMAGENET_DATASET_DIR" --imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS" \
  --k "$K" --k_attk "$K" ${own[@]+"${own[@]}"} ${CROP_FLAGS:-} ${ATTACK_FLAGS:-}

plot=("$PYTHON" "$root/plot_quant_results.py" --model "$NAME" --k_neighb "$K" --epoch_sweep_dataset "$DATASET"
  --dataset_sweep_epoch "$EPOCH" --attack_fname attack_sweeps --attk_folder_path "$sweep" --plot_lin_probe 0
  --pct_confidences "20,100" --save_path "$LOGGING_FOLDER/one_model/plot")
if [ -n "$jobs" ]; then
  plot=(sbatch "--dependency=afterok$jobs" --job-name="plot_$NAME" --output="$LOGGING_FOLDER/one_model/plot_%j_log.out"
    --wrap="$(printf '%q ' "${plot[@]}")")
fi
if [ "$DRY_RUN" = 1 ]; then printf '%q ' "${plot[@]}"; echo; else "${plot[@]}"; fi
