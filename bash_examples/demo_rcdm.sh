#!/usr/bin/env bash
# After demo.sh, with the same variables: trains a 32 px RCDM on the public images for model A and for model B, both at
# once, and renders the reconstructions by running the notebook. Under 20 minutes on two CPU cores; rerun to resume.
#
#   bash bash_examples/demo_rcdm.sh
#   JUDGE=1 bash bash_examples/demo_rcdm.sh     # and measures how often the reconstructions show the correct class
#   SUPERVISED=1 bash bash_examples/demo_rcdm.sh # and a row of the supervised model: its demo and an RCDM of its logits
# shellcheck disable=SC2154,SC2030,SC2031 # the points set variables; a subshell has names of its own
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
use_environment "$root"
# shellcheck source=bash_examples/demo_settings.sh
source "$root/bash_examples/demo_settings.sh"

whole 1 STEPS
choice JUDGE 0 1
choice SUPERVISED 0 1
STEPS=${STEPS:-1500}                    # of each RCDM's training
RESPACING=${RESPACING:-50}              # steps of the sampling; ddim25: DDIM
JUDGE=${JUDGE:-0}                       # 1: train a judge of the classes and let it judge one sample per attacked image
SUPERVISED=${SUPERVISED:-0}             # 1: run the demo with LOSS=supervised, too, and show a row of its model A

point=$(points projector "$EPOCHS")
eval "$point" # training attack rcdm
attack=$LOGGING_FOLDER/$attack rcdm=$LOGGING_FOLDER/$rcdm
public=$INDEX_FOLDER/${PER_CLASS}_per_class/public.npy
cd "$root"
started=$SECONDS
[ -e "$attack/results.json" ] || fail "$attack/results.json: no such file; run bash_examples/demo.sh with the same variables first"
for module in diffusers nbclient ipykernel; do
  python -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" ||
    fail "$module is not installed: pip install -r requirements.txt"
done

say "1/2 training of RCDM for model A and model B, both at once: $LOGGING_FOLDER/RCDM"
choose_precision
train() { # train A|B FLAGS...
  exec python train_RCDM.py --local 1 --ngpus 1 --feat_cond --ssl_from_ckpt True --ssl_loss "$LOSS" \
    --ssl_model_pth "$LOGGING_FOLDER/${training}_$1/model_ep$EPOCHS.pth" --ssl_resolution 32 \
    --data_dir "$IMAGENET_DATASET_DIR" --dataset_indices "$public" --workers 0 --seed "$SEED" \
    --image_size 32 --num_channels 32 --channel_mult 1,2,4 --num_res_blocks 1 --attention_resolutions 8 \
    --learn_sigma True --batch_size 32 --lr 1e-3 --ema_rate 0.995 --lr_anneal_steps "$STEPS" \
    --save_interval 500 --log_interval 50 --timestep_respacing 50 --precision "$PRECISION" \
    --out_dir "${rcdm}_$1" "${@:2}"
}
train_both train "$LOGGING_FOLDER/RCDM" train_RCDM.py
echo "both are trained after $((SECONDS - started)) s"

if [ "$SUPERVISED" = 1 ]; then
  say "the supervised model: its demo, then an RCDM of model A's logits: $LOGGING_FOLDER/RCDM/supervised_A"
  LOSS=supervised SNAPSHOTS=1 bash bash_examples/demo.sh
  export RCDM_SUPERVISED=$LOGGING_FOLDER/RCDM/supervised_A
  ( # in a process of its own: the supervised demo's names replace those above
    rcdm_of_logits=${RCDM_SUPERVISED%_A} log=${RCDM_SUPERVISED}_log.out
    LOSS=supervised SNAPSHOTS=1
    # shellcheck source=bash_examples/demo_settings.sh
    source "$root/bash_examples/demo_settings.sh"
    eval "$(points projector "$EPOCHS")" # training
    rcdm=$rcdm_of_logits
    export OMP_NUM_THREADS=$cores
    logged "$log" "step" train A --use_supervised_activations True
  )
fi

say "2/2 reconstructions: $LOGGING_FOLDER/RCDM/reconstructions"
export RCDM_ATTACK=$attack RCDM_RESPACING=$RESPACING RCDM_FIGURES=$LOGGING_FOLDER/RCDM/reconstructions
export RCDM_A=${rcdm}_A RCDM_B=${rcdm}_B
mkdir -p "$RCDM_FIGURES"
# ipykernel warns of its socket at each start; notebook and kernel are of one user on one machine.
OMP_NUM_THREADS=$cores jupyter execute --output="$RCDM_FIGURES/visualization_RCDM.ipynb" visualization_RCDM.ipynb \
  2> >(grep -v --line-buffered "running over TCP without encryption" >&2)
echo "The notebook with its figures: $RCDM_FIGURES/visualization_RCDM.ipynb, $((SECONDS - started)) s in all."
[ "$JUDGE" = 1 ] || exit 0

say "judge: a supervised model, trained on every second public image, tested on the others: $run/judge"
mkdir -p "$run/judge"
python - "$public" "$run/judge" <<'PY'
import sys
import numpy as np
public = np.load(sys.argv[1])
for name, start in (("train", 0), ("test", 1)):
    np.save(f"{sys.argv[2]}/{name}.npy", public[start::2])
PY
for part in train test; do
  [ -e "$run/judge/$part.beton" ] || python write_ffcv_dataset.py --imgnet-path "$IMAGENET_DATASET_DIR" \
    --idx-path "$run/judge/$part.npy" --write-path "$run/judge/$part.beton"
done
python train_SSL.py --dist.world_size 1 --config-file configs/demo_cfg.yaml --training.loss supervised --training.epochs 100 \
  --model.arch resnet18 --training.base_lr 4e-3 \
  --data.train_dataset "$run/judge/train.beton" --data.val_dataset "$run/judge/test.beton" \
  --training.precision "$PRECISION" --logging.folder "$run/judge" --logging.log_level 1
python bash_examples/judge_rcdm.py --attack "$attack" --rcdm_A "$RCDM_A" --rcdm_B "$RCDM_B" \
  --judge_pth "$run/judge/model_ep100.pth" --unseen_idx_pth "$run/judge/test.npy" --public_idx_pth "$public" \
  --save_path "$RCDM_FIGURES/judged.json"
