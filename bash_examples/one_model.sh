#!/usr/bin/env bash
# The test of one model, from index files to the figure: betons of background crops, the classifiers that replace the
# twin (three seeds for each half), the attack on a public checkpoint, the figures. docs/one_model.md has ImageNet's recipe.
#
#   MODEL_PTH=resnet50_fullckpt.pth NAME=vicreg EPOCH=1000 ./bash_examples/one_model.sh
#   LOCAL=1 ...    runs here, one after the other      DRY_RUN=1 ...    only prints the commands, and what they cost
# On SLURM each stage waits for the one before; betons are written here. Rerun to submit only unfinished stages. Environment:
#   MODEL_PTH    the model: a file, or timm:NAME or torchvision:NAME
#   NAME, EPOCH  part of the folder's name: NN_attk_{NAME}_{n}pc_{EPOCH}ep     (one_model, 1)
#   DATASET      300: n of the partition; its bbox_A.npy and bbox_B.npy are attacked
#   PUBLIC_IDX   the public images: INDEX_FOLDER/500_per_class/public.npy
#   UNSEEN_IDX   boxed images that the model never saw, for delta; none if empty
#   SEEDS="0 1 2"   of the classifiers      K=100 neighbors      CLASSIFIER_EPOCHS=90
#   LEARNING_CURVE=1   classifiers of half of the crops too: is the reference's accuracy still rising?
#   CROP_FLAGS   how crops are cut, for betons and attack alike: "--min_px 100 --crop_rule paper"
#   TRAIN_FLAGS, ATTACK_FLAGS   appended to the commands, for instance ATTACK_FLAGS="--use_backbone 1"
# and the folders LOGGING_FOLDER, BETONS_FOLDER, INDEX_FOLDER, IMAGENET_DATASET_DIR, IMAGENET_BBOX_ANNOTATIONS.
# shellcheck disable=SC2086,SC2206 # the *_FLAGS are split into words
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need LOGGING_FOLDER BETONS_FOLDER INDEX_FOLDER IMAGENET_DATASET_DIR IMAGENET_BBOX_ANNOTATIONS
[ -n "${MODEL_PTH:-}" ] || fail "the variable MODEL_PTH is not set: export MODEL_PTH=..."
whole 1 EPOCH DATASET CLASSIFIER_EPOCHS
choice LEARNING_CURVE 0 1
whole 0 SEEDS+
NAME=${NAME:-one_model} EPOCH=${EPOCH:-1} n=${DATASET:-300} epochs=${CLASSIFIER_EPOCHS:-90} index=$INDEX_FOLDER/${DATASET:-300}_per_class

train_on() { # train_on PART INDEX_FILE FLAG: a beton of these crops, and a classifier of each seed, which FLAG names
  local beton=$BETONS_FOLDER/${n}_per_class_$1_crops.beton seed folder # for the probes' validation, too: nothing is chosen by it
  [ "$DRY_RUN" = 1 ] || mkdir -p "$BETONS_FOLDER"
  [ -e "$beton" ] || run write_ffcv_dataset.py --imgnet-path "$IMAGENET_DATASET_DIR" --idx-path "$2" \
    --bbox-path "$IMAGENET_BBOX_ANNOTATIONS" --write-path "$beton" ${CROP_FLAGS:-}
  classifiers+=("$3")
  for seed in ${SEEDS:-0 1 2}; do
    folder=$LOGGING_FOLDER/crop_classifiers/${n}pc_$1_seed$seed
    run train_SSL.py --config-file "$root/configs/crop_classifier_cfg.yaml" --dist.use_submitit "$((1 - LOCAL))" \
      --training.epochs "$epochs" --data.random_seed "$seed" --data.train_dataset "$beton" --data.val_dataset "$beton" \
      --logging.folder "$folder" ${TRAIN_FLAGS:-}
    classifiers+=("$folder/model_ep$epochs.pth")
  done
}

classifiers=()
for part in A B; do train_on "$part" "$index/bbox_$part.npy" "--reference_${part}_pth"; done
if [ "${LEARNING_CURVE:-0}" = 1 ]; then
  halve='import sys, numpy; numpy.save(sys.argv[2], numpy.sort(numpy.load(sys.argv[1]))[::2])' # images are listed class by class
  for part in A B; do
    [ "$DRY_RUN" = 1 ] || "$PYTHON" -c "$halve" "$index/bbox_$part.npy" "$index/half_bbox_$part.npy"
    train_on "half_$part" "$index/half_bbox_$part.npy" "--half_reference_${part}_pth"
  done
fi

attack=attack_sweeps/NN_attk_${NAME}_${n}pc_${EPOCH}ep
run label_inference_attack.py --local "$LOCAL" --output_dir "$LOGGING_FOLDER/one_model/$attack" \
  --model_oss_pth "$MODEL_PTH" "${classifiers[@]}" --test_idx_pth "$index/bbox_A.npy" --valid_idx_pth "$index/bbox_B.npy" \
  --public_idx_pth "${PUBLIC_IDX:-$INDEX_FOLDER/500_per_class/public.npy}" --imgnet_train_pth "$IMAGENET_DATASET_DIR" \
  --imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS" --k "${K:-100}" --k_attk "${K:-100}" \
  ${UNSEEN_IDX:+--unseen_idx_pth "$UNSEEN_IDX"} ${CROP_FLAGS:-} ${ATTACK_FLAGS:-}

figures "$LOGGING_FOLDER/one_model" "$attack" plot --model "$NAME" --k_neighb "${K:-100}" --epoch_sweep_dataset "$n" \
  --dataset_sweep_epoch "$EPOCH" --attack_fname attack_sweeps --attk_folder_path "$LOGGING_FOLDER/one_model/attack_sweeps" \
  --plot_lin_probe 0 --pct_confidences 20,100 --save_path "$LOGGING_FOLDER/one_model/plot"
