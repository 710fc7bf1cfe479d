#!/usr/bin/env bash
# The reconstructions of the study: an RCDM for model A and for model B of 300 images per class, at 128 and at 256 px, and
# one for the supervised model's logits (the row beside them). The notebook visualization_RCDM.ipynb shows them.
#
#   ./bash_examples/rcdm.sh                       each training a SLURM job of 4 nodes x 8 GPUs
#   SIDES=128 LOSS=simclr ./bash_examples/rcdm.sh
#   LOCAL=1 ...  runs here      DRY_RUN=1 ...  only prints the commands
#
# Environment: LOSS (vicreg), DATASET (300), EPOCH (1000), SIDES="128 256", SUPERVISED=1 (0: without that row), PUBLIC (500),
# NODES (4), RCDM_FLAGS (appended), and LOGGING_FOLDER, INDEX_FOLDER, IMAGENET_DATASET_DIR. A job waits for the training of
# its encoder, if that is in the queue; rerun the same command to resume. Arguments go to train_RCDM.py.
# shellcheck disable=SC2154,SC2086 # the points set variables; flags are split into words
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need IMAGENET_DATASET_DIR INDEX_FOLDER LOGGING_FOLDER
whole 1 EPOCH DATASET
choice SUPERVISED 1 0
whole 32 SIDES+

rcdm() { # rcdm LOSS SIDE FLAGS...: an RCDM for each of this loss's models
  local point set suffix='' batch=8
  [ "$2" = 128 ] || suffix=_$2px
  [ "$2" -le 128 ] || batch=4 # as many pixels at 256 px would not fit into a GPU
  point=$(LOSS=$1 SWEEP=epochs EPOCHS=${EPOCH:-1000} points train)
  eval "$point" # model training epoch rcdm
  for set in A B; do
    run train_RCDM.py --local "$LOCAL" --feat_cond --ssl_from_ckpt True --ssl_loss "$1" \
      --ssl_model_pth "$LOGGING_FOLDER/$model/${training}_$set/model_ep$epoch.pth" \
      --data_dir "$IMAGENET_DATASET_DIR" --dataset_indices "$INDEX_FOLDER/${PUBLIC:-500}_per_class/public.npy" \
      --out_dir "$LOGGING_FOLDER/RCDM/$model/${rcdm#RCDM/}${suffix}_$set" --nodes "${NODES:-4}" --ngpus 8 --timeout 4320 \
      --class_cond False --diffusion_steps 1000 --learn_sigma True --noise_schedule linear --num_channels 256 \
      --num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True \
      --image_size "$2" --batch_size "$batch" --attention_resolutions 32,16,8 --num_heads 4 "${@:3}" ${RCDM_FLAGS:-}
  done
}

for side in ${SIDES:-128 256}; do
  rcdm "${LOSS:-vicreg}" "$side" "$@"
  [ "${SUPERVISED:-1}" != 1 ] || rcdm supervised "$side" --use_supervised_activations True "$@"
done
