#!/usr/bin/env bash
# A first test of a public checkpoint on a laptop: draws images with a known answer, trains two small classifiers of their
# background crops, and runs the test of one model. The model has never seen these images, so the score is expected to be 0.
#
#   bash bash_examples/public_checkpoint.sh
#   MODEL_PTH=resnet50_fullckpt.pth bash bash_examples/public_checkpoint.sh
#
# MODEL_PTH is a file, timm:NAME or torchvision:NAME (torchvision:resnet18); ATTACK_FLAGS choose its layer
# ("--use_backbone 1"); PUBLIC_DIR is the folder for everything (demo/public_checkpoint). docs/one_model.md explains the output.
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
use_environment "$root"

run=${PUBLIC_DIR:-$root/demo/public_checkpoint}
export IMAGENET_DATASET_DIR=$run/data/images IMAGENET_BBOX_ANNOTATIONS=$run/data/boxes
export INDEX_FOLDER=$run/index BETONS_FOLDER=$run/betons LOGGING_FOLDER=$run/logs
cd "$root"
[ -e "$run/data/demo.json" ] ||
  python make_demo_dataset.py --save_dir "$run/data" --images_per_class 200 --unboxed_per_class 80
[ -e "$INDEX_FOLDER/partition.json" ] ||
  python imagenet_partition.py --imgnet_dir "$IMAGENET_DATASET_DIR" --bbox_dir "$IMAGENET_BBOX_ANNOTATIONS" \
    --save_dir "$INDEX_FOLDER" --per_class 40
# Half of the boxed images are sets A and B, the others are unseen images for delta; none was in the model's training.
python - "$INDEX_FOLDER" <<'PY'
import sys
from pathlib import Path

import numpy as np

index = Path(sys.argv[1])
(index / "20_per_class").mkdir(exist_ok=True)
both = [np.load(index / "40_per_class" / f"bbox_{side}.npy") for side in "AB"]
for side, indices in zip("AB", both):
    np.save(index / "20_per_class" / f"bbox_{side}.npy", indices[0::2])
np.save(index / "unseen.npy", np.sort(np.concatenate([indices[1::2] for indices in both])))
PY

model=${MODEL_PTH:-torchvision:resnet18}
name=$(printf %s "${model##*/}" | tr -c 'A-Za-z0-9' -)
steps="--model.arch resnet18 --resolution.min_res 32 --resolution.max_res 32 --validation.resolution 32"
steps="$steps --augment.min_area 0.25 --augment.jitter 0 --augment.blur 0 --augment.solarize 0 --data.num_workers 1"
steps="$steps --training.optimizer adamw --training.base_lr 1e-2 --training.batch_size 32 --training.warmup_epochs 3"
MODEL_PTH=$model NAME=$name EPOCH=1 DATASET=20 K=20 SEEDS=0 CLASSIFIER_EPOCHS=30 LOCAL=1 CROP_FLAGS="--min_px 32" \
  PUBLIC_IDX=$INDEX_FOLDER/40_per_class/public.npy UNSEEN_IDX=$INDEX_FOLDER/unseen.npy \
  TRAIN_FLAGS="$steps ${TRAIN_FLAGS:-}" ATTACK_FLAGS=${ATTACK_FLAGS:---use_backbone 1} ./bash_examples/one_model.sh
