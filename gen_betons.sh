#!/usr/bin/env bash
# Writes the training sets as betons: INDEX_FOLDER/{n}_per_class/train_{A,B}.npy -> BETONS_FOLDER/{n}_per_class_{A,B}.beton
#
#   ./gen_betons.sh                                  every n below INDEX_FOLDER
#   DATASETS="100 300" ./gen_betons.sh               these n
#   CROPS=1 ./gen_betons.sh                          background crops for the classifiers of the test of one model:
#                                                    bbox_{A,B}.npy -> {n}_per_class_{A,B}_crops.beton
#   FORCE=1 ./gen_betons.sh --write-mode jpg         again, with options of write_ffcv_dataset.py
#
# Environment: IMAGENET_DATASET_DIR, INDEX_FOLDER, BETONS_FOLDER; with CROPS=1 also IMAGENET_BBOX_ANNOTATIONS. A finished file is skipped unless FORCE=1;
# one of other images is an error.
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
choice FORCE 0 1
choice CROPS 0 1

boxes=()
[ "${CROPS:-0}" != 1 ] || boxes=(IMAGENET_BBOX_ANNOTATIONS)
for name in IMAGENET_DATASET_DIR INDEX_FOLDER BETONS_FOLDER ${boxes[@]+"${boxes[@]}"}; do
  [ -n "${!name:-}" ] || fail "the variable $name is not set: export $name=FOLDER"
done
for name in IMAGENET_DATASET_DIR INDEX_FOLDER ${boxes[@]+"${boxes[@]}"}; do
  [ -d "${!name}" ] || fail "$name ${!name}: no such folder"
done
if [ -z "${DATASETS:-}" ]; then
  DATASETS=$(find -L "$INDEX_FOLDER" -maxdepth 1 -name '*_per_class' -type d -exec basename {} _per_class \; | sort -n)
  [ -n "$DATASETS" ] || fail "INDEX_FOLDER $INDEX_FOLDER holds no {n}_per_class folder: run imagenet_partition.py first"
fi
images=train suffix='' own=()
[ "${CROPS:-0}" != 1 ] || { images=bbox suffix=_crops own=(--bbox-path "$IMAGENET_BBOX_ANNOTATIONS"); }
mkdir -p "$BETONS_FOLDER"

for n in $DATASETS; do
  for side in A B; do
    beton=$BETONS_FOLDER/${n}_per_class_$side$suffix.beton
    keep=(--keep-finished)
    [ "${FORCE:-0}" != 1 ] || keep=()
    "${PYTHON:-python}" "$root/write_ffcv_dataset.py" --imgnet-path "$IMAGENET_DATASET_DIR" \
      --idx-path "$INDEX_FOLDER/${n}_per_class/${images}_$side.npy" --write-path "$beton" ${keep[@]+"${keep[@]}"} \
      ${own[@]+"${own[@]}"} "$@"
  done
done
