#!/usr/bin/env bash
# Trains model A and model B of every point of a sweep. Arguments go to train_SSL.py; variables: sweep.sh.
# shellcheck disable=SC2154,SC2086 # the points set variables; flags are split into words
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need BETONS_FOLDER LOGGING_FOLDER
arch=
[ -z "${ARCH:-}" ] || arch="--model.arch $ARCH"
lines=$(points train)
while read -r point; do
  eval "$point" # loss model n epoch training param value
  case $param in *.*) ;; *) param= ;; esac # corner_crop_frac is the attack's
  for side in A B; do
    run train_SSL.py --config-file "${CONFIG:-$root/configs/${loss}_cfg.yaml}" --dist.use_submitit "$((1 - LOCAL))" \
      --data.train_dataset "$BETONS_FOLDER/${n}_per_class_$side.beton" --data.val_dataset "$BETONS_FOLDER/val.beton" \
      --logging.folder "$LOGGING_FOLDER/$model/${training}_$side" \
      $arch ${param:+"--$param" "$value"} ${TRAIN_FLAGS:-} "$@"
  done
done <<<"$lines"
