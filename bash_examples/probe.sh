#!/usr/bin/env bash
# Linear probes of every model A of a sweep. Arguments go to lin_probe.py; variables: sweep.sh.
# shellcheck disable=SC2154,SC2086 # the points set variables; flags are split into words
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need IMAGENET_DATASET_DIR INDEX_FOLDER LOGGING_FOLDER
arch=
[ -z "${ARCH:-}" ] || arch=--resnet50
lines=$(points probe)
[ -n "$lines" ] || exit 0 # a sweep of attacks alone
while read -r point; do
  eval "$point" # loss model n epoch training probe
  run lin_probe.py --local "$LOCAL" --model_pth "$LOGGING_FOLDER/$model/${training}_A/model_ep$epoch.pth" \
    --end_lr 0.1 --epochs 20 --loss "$loss" --train_idx_pth "$INDEX_FOLDER/${n}_per_class/train_A.npy" \
    --val_idx_pth "$INDEX_FOLDER/val_set.npy" --imgnet_train_pth "$IMAGENET_DATASET_DIR" \
    --output_dir "$LOGGING_FOLDER/$model/$probe" $arch ${PROBE_FLAGS:-} "$@"
done <<<"$lines"
