#!/usr/bin/env bash
# Label-free scores of the demo's models beside the déjà vu test: sslmem.py of every snapshot, with the public images as the
# control, and the figures of both. A minute or two on two CPU cores, after demo.sh with the same variables; finished
# snapshots are skipped when rerun.
#
#   bash bash_examples/demo_sslmem.sh
#   SEED=1 DEMO_DIR=/tmp/demo bash bash_examples/demo_sslmem.sh
# shellcheck disable=SC2154 # the points set variables
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
use_environment "$root"
# shellcheck source=bash_examples/demo_settings.sh
source "$root/bash_examples/demo_settings.sh"
snapshots=$(points projector "$epochs")
index=$INDEX_FOLDER/${PER_CLASS}_per_class
cd "$root"

while read -r point <&3; do
  eval "$point" # epoch training attack sslmem
  [ -e "$LOGGING_FOLDER/$attack/results.json" ] ||
    fail "$LOGGING_FOLDER/$attack/results.json: no such file; run bash_examples/demo.sh with the same variables first"
  say "label-free scores at epoch $epoch: $LOGGING_FOLDER/$sslmem"
  if [ -e "$LOGGING_FOLDER/$sslmem/results.json" ]; then
    echo "there already"
    continue
  fi
  python sslmem.py --local 1 --output_dir "$LOGGING_FOLDER/$sslmem" --attack_dir "$LOGGING_FOLDER/$attack" \
    --model_A_pth "$LOGGING_FOLDER/${training}_A/model_ep$epoch.pth" \
    --model_B_pth "$LOGGING_FOLDER/${training}_B/model_ep$epoch.pth" \
    --bbox_A_idx_pth "$index/bbox_A.npy" --bbox_B_idx_pth "$index/bbox_B.npy" \
    --shared_idx_pth "$index/shared.npy" --public_idx_pth "$index/public.npy" \
    --imgnet_train_pth "$IMAGENET_DATASET_DIR" --layers backbone,projector.0,projector --resolution 32 \
    --num_workers "$cores"
done 3<<<"$snapshots"

say "figures of both: $LOGGING_FOLDER/plot"
python plot_quant_results.py --model "$model" --k_neighb "$K" --plot_lin_probe 0 \
  --epoch_sweep_dataset "$PER_CLASS" --dataset_sweep_epoch "$EPOCHS" --pct_confidences '20,100' \
  --attack_fname "${attack%/*}" --attk_folder_path "$LOGGING_FOLDER/${attack%/*}" --save_path "$LOGGING_FOLDER/plot"
