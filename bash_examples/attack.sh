#!/usr/bin/env bash
# Attacks every point of a sweep. Arguments go to label_inference_attack.py; variables: sweep.sh.
# shellcheck disable=SC2154,SC2086 # the points set variables; flags are split into words
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need IMAGENET_DATASET_DIR INDEX_FOLDER LOGGING_FOLDER
lines=$(points attack)
while read -r point; do
  eval "$point" # loss model n epoch training kind attack flags
  boxes=
  case $kind in corner_crop | cropsize) ;; *) need IMAGENET_BBOX_ANNOTATIONS; boxes=$IMAGENET_BBOX_ANNOTATIONS ;; esac
  run label_inference_attack.py --local "$LOCAL" --loss "$loss" --output_dir "$LOGGING_FOLDER/$model/$attack" \
    --model_A_pth "$LOGGING_FOLDER/$model/${training}_A/model_ep$epoch.pth" \
    --model_B_pth "$LOGGING_FOLDER/$model/${training}_B/model_ep$epoch.pth" \
    --bbox_A_idx_pth "$INDEX_FOLDER/${n}_per_class/bbox_A.npy" --bbox_B_idx_pth "$INDEX_FOLDER/${n}_per_class/bbox_B.npy" \
    --public_idx_pth "$INDEX_FOLDER/${PUBLIC:-500}_per_class/public.npy" --imgnet_train_pth "$IMAGENET_DATASET_DIR" \
    ${boxes:+--imgnet_bbox_pth "$boxes"} --k "${K:-100}" --k_attk "${K:-100}" $flags ${ATTACK_FLAGS:-} "$@"
done <<<"$lines"
