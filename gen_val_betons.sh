#!/usr/bin/env bash
# Writes the validation set of the online probes as a beton: INDEX_FOLDER/val_set.npy -> BETONS_FOLDER/val.beton
#
#   ./gen_val_betons.sh
#   FORCE=1 ./gen_val_betons.sh --write-mode jpg     again, with options of write_ffcv_dataset.py
#
# Environment: IMAGENET_DATASET_DIR, INDEX_FOLDER, BETONS_FOLDER. A finished file is skipped unless FORCE=1.
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
choice FORCE 0 1

for name in IMAGENET_DATASET_DIR INDEX_FOLDER BETONS_FOLDER; do
  [ -n "${!name:-}" ] || fail "the variable $name is not set: export $name=FOLDER"
done
for name in IMAGENET_DATASET_DIR INDEX_FOLDER; do
  [ -d "${!name}" ] || fail "$name ${!name}: no such folder"
done
mkdir -p "$BETONS_FOLDER"

keep=(--keep-finished)
[ "${FORCE:-0}" != 1 ] || keep=()
"${PYTHON:-python}" "$root/write_ffcv_dataset.py" --imgnet-path "$IMAGENET_DATASET_DIR" \
  --idx-path "$INDEX_FOLDER/val_set.npy" --write-path "$BETONS_FOLDER/val.beton" ${keep[@]+"${keep[@]}"} "$@"
