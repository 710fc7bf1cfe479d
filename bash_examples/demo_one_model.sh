#!/usr/bin/env bash
# The test of one model on the demo's models: treats model A as a public checkpoint without a twin, trains the classifiers
# that replace the twin, and compares the result with the test of two models and with the planted answer. A few minutes on
# two CPU cores, after demo.sh with the same variables; finished stages are skipped when rerun.
#
#   bash bash_examples/demo_one_model.sh
#   MODELS="A B" bash bash_examples/demo_one_model.sh     model B too: both directions
#
# Half of the images that only model A was trained on are set A, the others set B of this test; those that only model B was
# trained on are unseen. Variables beside demo.sh's: MODELS, CLASSIFIERS (seeds of each, 3), CLASSIFIER_EPOCHS (60).
# shellcheck disable=SC2154 # the points set variables
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
use_environment "$root"

# shellcheck source=bash_examples/demo_settings.sh
source "$root/bash_examples/demo_settings.sh"
choice MODELS A B "A B"
whole 1 CLASSIFIERS CLASSIFIER_EPOCHS
MODELS=${MODELS:-A}
CLASSIFIERS=${CLASSIFIERS:-3}
CLASSIFIER_EPOCHS=${CLASSIFIER_EPOCHS:-60}

eval "$(points projector "$EPOCHS")" # training attack
two=$attack
for file in "$LOGGING_FOLDER/${training}_"{A,B}"/model_ep$EPOCHS.pth" "$LOGGING_FOLDER/$two/results.json"; do
  [ -e "$file" ] || fail "$file: no such file; run bash_examples/demo.sh with the same variables first"
done
cd "$root"
started=$SECONDS
choose_precision
one=$run/one_model                      # index files, betons and classifiers: the same for every model that is tested
boxed=$INDEX_FOLDER/${PER_CLASS}_per_class
steps=(--model.arch resnet18 --resolution.min_res 32 --resolution.max_res 32 --validation.resolution 32
  --augment.min_area 0.25 --augment.jitter 0 --augment.blur 0 --augment.solarize 0 --data.num_workers 1 --data.in_memory 1
  --training.optimizer adamw --training.base_lr 1e-2 --training.warmup_epochs "$((CLASSIFIER_EPOCHS / 10))"
  --training.batch_size 32 --training.epochs "$CLASSIFIER_EPOCHS" --training.eval_freq "$CLASSIFIER_EPOCHS"
  --training.precision "$PRECISION" --logging.snapshot_freq "$CLASSIFIER_EPOCHS" --logging.log_level 1 --dist.world_size 1)

crops() { # crops INDEX_FILE BETON: background crops, at the demo's size
  [ -e "$2" ] || python write_ffcv_dataset.py --imgnet-path "$IMAGENET_DATASET_DIR" --bbox-path "$IMAGENET_BBOX_ANNOTATIONS" \
    --min-px 32 --idx-path "$1" --write-path "$2"
}
train() { # train A|B, from random weights, on the crops of one half of what $tested was trained on
  local beton=$one/$tested/half_$1_crops.beton # for the probes' validation, too: nothing is chosen by it
  exec python train_SSL.py --config-file configs/crop_classifier_cfg.yaml "${steps[@]}" --data.random_seed "$seed" \
    --data.train_dataset "$beton" --data.val_dataset "$beton" \
    --logging.folder "$one/$tested/classifier_$1_seed$seed" 0
}

pairs=()
for tested in $MODELS; do
  [ "$tested" = A ] && other=B || other=A
  say "model $tested: halves of bbox_$tested.npy, and their crops: $one/$tested"
  mkdir -p "$one/$tested"
  python - "$boxed/bbox_$tested.npy" "$one/$tested" <<'PY'
import sys
import numpy as np
indices = np.sort(np.load(sys.argv[1]))  # class by class
for start, name in enumerate("AB"):
    np.save(f"{sys.argv[2]}/half_{name}.npy", indices[start::2])
PY
  for half in A B; do crops "$one/$tested/half_$half.npy" "$one/$tested/half_${half}_crops.beton"; done

  say "model $tested: $CLASSIFIERS classifiers of each half's crops"
  for seed in $(seq 0 $((CLASSIFIERS - 1))); do
    for half in A B; do
      [ -e "$one/$tested/classifier_${half}_seed$seed/final_weights.pt" ] || { train_both train "$one/$tested" train_SSL.py; break; }
    done
  done

  say "model $tested: attack against the classifiers"
  folder=$LOGGING_FOLDER/one_model_sweeps/${two##*/}_$tested
  classifiers=()
  for half in A B; do
    classifiers+=("--reference_${half}_pth")
    for seed in $(seq 0 $((CLASSIFIERS - 1))); do
      classifiers+=("$one/$tested/classifier_${half}_seed$seed/model_ep$CLASSIFIER_EPOCHS.pth")
    done
  done
  [ -e "$folder/results.json" ] || python label_inference_attack.py --local 1 --output_dir "$folder" \
    --model_oss_pth "$LOGGING_FOLDER/${training}_$tested/model_ep$EPOCHS.pth" "${classifiers[@]}" \
    --test_idx_pth "$one/$tested/half_A.npy" --valid_idx_pth "$one/$tested/half_B.npy" \
    --unseen_idx_pth "$boxed/bbox_$other.npy" --public_idx_pth "$boxed/public.npy" \
    --imgnet_train_pth "$IMAGENET_DATASET_DIR" --imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS" \
    --k "$K" --k_attk "$K" --resolution 32 --min_px 32 --num_workers "$cores"
  pairs+=("$tested=$folder")
done

say "Result"
tied=()
[ ! -e "$run/data/tied.csv" ] || tied=(--tied "$run/data/tied.csv")
python bash_examples/one_model_table.py --two_models "$LOGGING_FOLDER/$two" --chance "$(python -c "print(1 / $CLASSES)")" \
  --save_path "$LOGGING_FOLDER/one_model.csv" ${tied[@]+"${tied[@]}"} "${pairs[@]}"
echo
echo "The table is in $LOGGING_FOLDER/one_model.csv; $((SECONDS - started)) s in all."
