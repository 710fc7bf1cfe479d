#!/usr/bin/env bash
# From nothing to a measured déjà vu: draws a data set with a known answer and runs every stage on it, with the scripts
# and flags that ImageNet users use. 2 to 5 minutes on two CPU cores; finished stages are skipped when rerun.
#
#   bash bash_examples/demo.sh
#   SEED=1 DEMO_DIR=/tmp/demo bash bash_examples/demo.sh
#   LOSS=vicreg bash bash_examples/demo.sh
#   CORRELATION=0.8 bash bash_examples/demo.sh
# shellcheck disable=SC2154 # the points set variables
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
use_environment "$root"

# shellcheck source=bash_examples/demo_settings.sh
source "$root/bash_examples/demo_settings.sh"

case $LOSS in # what differs from configs/demo_cfg.yaml
  simclr) own=() ;;
  vicreg) own=(--model.mlp 256-256-256 --training.base_lr 2e-3) ;;
  barlow) own=(--model.mlp 256-256-256 --training.base_lr 4e-3) ;;
  byol) own=(--model.mlp 256-128 --training.base_lr 4e-3 --byol.momentum_teacher 0.99) ;;
  dino) own=(--model.mlp 256-256 --training.base_lr 4e-3 --dino.momentum_teacher 0.99 --dino.teacher_temp 0.04) ;;
  mocov3) own=(--model.mlp 256-128 --training.base_lr 4e-3 --mocov3.momentum_teacher 0.99 --mocov3.temperature 0.2) ;;
  supervised) own=(--training.base_lr 4e-3) ;;
esac
boxed=$((PER_CLASS - PER_CLASS / 10))   # images with a box in one training set and class; the others are in both sets
snapshots=$(points projector "$epochs")
last_backbone=$(points backbone "$EPOCHS")
eval "$last_backbone"
backbone=$attack
eval "${snapshots##*$'\n'}" # loss model n epoch training kind attack probe
projector=$attack last_probe=$probe

cd "$root"
started=$SECONDS
echo "The demo writes below $run and takes 2 to 5 minutes on two cores, 110 MB of disk. Rerun it to resume."

say "1/7 data: $run/data"
if [ -e "$run/data/demo.json" ]; then
  echo "there already"
else
  rm -rf "$run/data"
  python make_demo_dataset.py --save_dir "$run/data" --seed "$SEED" --classes "$CLASSES" --correlation "$CORRELATION" \
    --images_per_class "$((4 * PER_CLASS + 16))" --unboxed_per_class "$((4 * PER_CLASS + 16 - 2 * boxed))"
fi

say "2/7 partition: $INDEX_FOLDER"
if [ -e "$INDEX_FOLDER/partition.json" ]; then
  echo "there already"
else
  python imagenet_partition.py --save_dir "$INDEX_FOLDER" --imgnet_dir "$IMAGENET_DATASET_DIR" \
    --bbox_dir "$IMAGENET_BBOX_ANNOTATIONS" --per_class "$PER_CLASS" --near_duplicates 1
fi

say "3/7 betons: $BETONS_FOLDER"
mkdir -p "$BETONS_FOLDER"
DATASETS=$PER_CLASS ./gen_betons.sh
./gen_val_betons.sh

say "4/7 training of model A and model B, both at once, half of all the time: $LOGGING_FOLDER/train_*_log.out"
choose_precision
train() { # train A|B; takes the place of the subshell it runs in, so that killing that one kills it
  local seed=$((2 * TRAIN_SEED))
  [ "$1" = A ] || seed=$((seed + 1))
  exec python train_SSL.py --dist.world_size 1 \
    --config-file configs/demo_cfg.yaml --training.loss "$LOSS" ${own[@]+"${own[@]}"} \
    --data.train_dataset "$BETONS_FOLDER/${PER_CLASS}_per_class_$1.beton" \
    --data.val_dataset "$BETONS_FOLDER/val.beton" \
    --data.random_seed "$seed" \
    --training.epochs "$EPOCHS" --training.eval_freq "$every" --training.precision "$PRECISION" \
    --training.warmup_epochs "$((EPOCHS / 10))" \
    --logging.snapshot_freq "$every" --logging.log_level 1 \
    --logging.folder "$LOGGING_FOLDER/${training}_$1" 0
}
train_both train "$LOGGING_FOLDER" train_SSL.py
echo "both models are trained (minute $(((SECONDS - started) / 60)) of the demo)"

say "5/7 attack of every snapshot: $LOGGING_FOLDER/attack_log.out"
while read -r point <&3; do
  eval "$point"
  if [ -e "$LOGGING_FOLDER/$attack/results.json" ]; then
    echo "$LOGGING_FOLDER/$attack: there already"
    continue
  fi
  printf 'epoch %s, %s: ' "$epoch" "$kind"
  logged "$LOGGING_FOLDER/attack_log.out" 'Target accuracy' \
    python label_inference_attack.py --local 1 --loss "$model" --output_dir "$LOGGING_FOLDER/$attack" \
    --crop_cache "$LOGGING_FOLDER/crops.npz" \
    --model_A_pth "$LOGGING_FOLDER/${training}_A/model_ep$epoch.pth" \
    --model_B_pth "$LOGGING_FOLDER/${training}_B/model_ep$epoch.pth" \
    --bbox_A_idx_pth "$INDEX_FOLDER/${PER_CLASS}_per_class/bbox_A.npy" \
    --bbox_B_idx_pth "$INDEX_FOLDER/${PER_CLASS}_per_class/bbox_B.npy" \
    --public_idx_pth "$INDEX_FOLDER/${PER_CLASS}_per_class/public.npy" \
    --imgnet_train_pth "$IMAGENET_DATASET_DIR" --imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS" --k "$K" --k_attk "$K" \
    --use_backbone "$([ "$kind" = backbone ] && echo 1 || echo 0)" --resolution 32 --min_px 32 --num_workers "$cores"
done 3<<<"$snapshots"$'\n'"$last_backbone"

say "6/7 linear probe of every snapshot of model A: $LOGGING_FOLDER/probe_log.out"
while read -r point <&3; do
  eval "$point"
  if [ -e "$LOGGING_FOLDER/$probe/results.json" ]; then
    echo "$LOGGING_FOLDER/$probe: there already"
    continue
  fi
  printf 'epoch %s: ' "$epoch"
  logged "$LOGGING_FOLDER/probe_log.out" 'validation: ' \
    python lin_probe.py --local 1 --loss "$model" --output_dir "$LOGGING_FOLDER/$probe" \
    --model_pth "$LOGGING_FOLDER/${training}_A/model_ep$epoch.pth" \
    --train_idx_pth "$INDEX_FOLDER/${PER_CLASS}_per_class/train_A.npy" --val_idx_pth "$INDEX_FOLDER/val_set.npy" \
    --imgnet_train_pth "$IMAGENET_DATASET_DIR" --epochs 10 --start_lr 0.05 --end_lr 0.005 --resolution 32 \
    --num_workers "$cores"
done 3<<<"$snapshots"

say "7/7 figures: $LOGGING_FOLDER/plot"
python plot_quant_results.py --model "$model" --k_neighb "$K" \
  --epoch_sweep_dataset "$PER_CLASS" --dataset_sweep_epoch "$EPOCHS" --pct_confidences '20,100' \
  --attack_fname "${projector%/*}" --attk_folder_path "$LOGGING_FOLDER/${projector%/*}" \
  --plot_lin_probe 1 --lin_probe_folder_path "$LOGGING_FOLDER/${last_probe%/*}" \
  --save_path "$LOGGING_FOLDER/plot"

say "Result (after $((SECONDS - started)) s)"
echo "The reference is expected at chance. A déjà vu score whose interval lies above 0 is memorization of training images."
split=()
[ ! -e "$run/data/tied.csv" ] || split=(--split "$run/data/tied.csv")
python bash_examples/summary_table.py ${split[@]+"${split[@]}"} --save_path "$LOGGING_FOLDER/summary.csv" \
  --next "with the same variables, demo_sslmem.sh (scores without labels), demo_rcdm.sh (reconstructions)." \
  "projector=$LOGGING_FOLDER/$projector" "backbone=$LOGGING_FOLDER/$backbone"
