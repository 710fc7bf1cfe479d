#!/usr/bin/env bash
# A published sweep from training to figures: every training, attack and probe of its points, then the figures.
#
#   ./bash_examples/sweep.sh                          VICReg against epochs and data set sizes, each point a SLURM job
#   LOSS=simclr SWEEP=temperature ./bash_examples/sweep.sh
#   LOSS=simclr ATTACKS="projector backbone" STAGES="attack plot" ./bash_examples/sweep.sh
#   LOCAL=1 ...          runs here, one after the other      DRY_RUN=1 ...     only prints the commands
#
# On SLURM attacks and probes wait for the trainings they need (--dependency), and the figures for all. The number of a
# job is kept beside its folder (FOLDER.job): run again, the sweep submits what is neither finished nor in the queue.
# Missing files are named before the first command. sbatch's own variables (SBATCH_PARTITION, ...) hold for every job.
#
# Environment, with the published values as defaults:
#   STAGES   "train attack probe plot", or some of these
#   LOSS     vicreg (or another configs/{LOSS}_cfg.yaml); CONFIG names another YAML file
#   ARCH     resnet50: trains and reads models named {LOSS}_rn50
#   SWEEP    "epochs datasets", or temperature, sim_coeff, corner_fraction
#   EPOCHS   "50 100 250 500 750 1000" at DATASET (300) images per class          (SWEEP=epochs)
#   DATASETS "100 200 300 400 500" at EPOCH (1000) epochs                         (SWEEP=datasets)
#   TEMPERATURES, SIM_COEFFS, FRACTIONS  at PARAM_DATASET (100) images per class and EPOCH epochs
#   ATTACKS  projector; or backbone, corner_crop (0.40 of each side), logits (of supervised models), each in a folder of
#            its own: attack_sweeps, attack_sweeps_backbone, ...
#   PUBLIC   500: the public set that every attack searches; K=100 neighbors; PCT_CONFIDENCES=20,100 in the figures
#   TRAIN_FLAGS, ATTACK_FLAGS, PROBE_FLAGS, PLOT_FLAGS   appended to the commands; with one stage the arguments are, too
# and the folders LOGGING_FOLDER, BETONS_FOLDER (train), INDEX_FOLDER, IMAGENET_DATASET_DIR, IMAGENET_BBOX_ANNOTATIONS
# (attack, probe). Names of points and folders: dejavu_utils/naming.py.
# shellcheck disable=SC2034,SC2154,SC2317,SC2329  # stages are called by name, with the words of a point in variables
# shellcheck disable=SC2086,SC2206                # the *_FLAGS are split into words
set -euo pipefail -f
root=$(cd "$(dirname "$0")/.." && pwd)
export SWEEP_SCRIPT=${SWEEP_SCRIPT:-sweep.sh}
fail() { echo "$SWEEP_SCRIPT: error: $*" >&2; exit 2; }
need_variable() { [ -n "${!1:-}" ] || fail "the variable $1 is not set: export $1=FOLDER"; }
need_file() { [ -f "$1" ] || fail "$1: no such file; $2"; }
need_folder() { need_variable "$1"; [ -d "${!1}" ] || fail "$1 ${!1}: no such folder"; }
need_indices() { need_folder IMAGENET_DATASET_DIR; need_variable INDEX_FOLDER; }
words() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; } # words WORD LIST: is it one of them?

export LOSS=${LOSS:-vicreg} ARCH=${ARCH:-} SWEEP=${SWEEP:-epochs datasets} ATTACKS=${ATTACKS:-projector}
export EPOCHS=${EPOCHS:-50 100 250 500 750 1000} DATASET=${DATASET:-300}
export DATASETS=${DATASETS:-100 200 300 400 500} EPOCH=${EPOCH:-1000} PARAM_DATASET=${PARAM_DATASET:-100}
export TEMPERATURES=${TEMPERATURES:-.05 .075 .10 .125 .15 .175 .25 .30 .50 .99}
export SIM_COEFFS=${SIM_COEFFS:-10 25 50 65 80 100} FRACTIONS=${FRACTIONS:-.20 .25 .30 .35 .40 .45 .50}
STAGES=${STAGES:-train attack probe plot} PUBLIC=${PUBLIC:-500} K=${K:-100} LOCAL=${LOCAL:-0} DRY_RUN=${DRY_RUN:-0}
PYTHON=${PYTHON:-python} CONFIG=${CONFIG:-$root/configs/${LOSS}_cfg.yaml} own_train='' own_inference=''
export MODEL=$LOSS
if [ -n "$ARCH" ]; then
  [ "$ARCH" = resnet50 ] || fail "ARCH=$ARCH: only resnet50 has published names; leave it out"
  MODEL=${LOSS}_rn50 own_train='--model.arch resnet50' own_inference=--resnet50
fi
arguments=("$@") # of the only stage
for word in $STAGES; do words "$word" "train attack probe plot" || fail "STAGES: $word is not one of train attack probe plot"; done
[[ $#:$STAGES =~ ^0:|^[0-9]+:[a-z]+$ ]] ||
  fail "$1: which of the stages '$STAGES' is this for? use TRAIN_FLAGS, ATTACK_FLAGS, PROBE_FLAGS, PLOT_FLAGS"
points=$(PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$root/bash_examples/sweep_points.py") || exit $?
queue=
if [ "$LOCAL" != 1 ] && [ "$STAGES" != plot ]; then
  [ "$DRY_RUN" = 1 ] || command -v squeue >/dev/null ||
    fail "there is no SLURM here (squeue is not on the path): LOCAL=1 runs here"
  queue=$(squeue -h -u "$(id -un)" -o %i 2>/dev/null) || [ "$DRY_RUN" = 1 ] ||
    fail "squeue does not answer: try again, or LOCAL=1 to run here"
fi
need_variable LOGGING_FOLDER
models=$LOGGING_FOLDER/$MODEL

# --- the stages, each called for every attack of every point: first only to check its input, then to do it -----------
train() {
  local side folder beton own=()
  need_variable BETONS_FOLDER
  need_file "$CONFIG" "LOSS=$LOSS has no settings"
  need_file "$BETONS_FOLDER/val.beton" "run gen_val_betons.sh"
  case $param in *.*) own=("--$param" "$value") ;; esac # a setting of train_SSL.py
  for side in A B; do
    folder=$models/${training}_$side beton=$BETONS_FOLDER/${n}_per_class_$side.beton
    need_file "$beton" "run gen_betons.sh, or narrow the sweep (DATASETS)"
    needs_work "$folder" "$folder/final_weights.pt" || continue
    carry_out "$folder" train_SSL.py --config-file "$CONFIG" --dist.use_submitit "$((1 - LOCAL))" \
      --data.train_dataset "$beton" --data.val_dataset "$BETONS_FOLDER/val.beton" --logging.folder "$folder" \
      $own_train ${own[@]+"${own[@]}"} ${TRAIN_FLAGS:-}
  done
}

last_layer='.*--layers[= ]([^ ]*,)?([^ ,]+)' # an attack of several layers writes those of the last one last
[[ "${ATTACK_FLAGS:-} ${arguments[*]-}" =~ $last_layer ]] && last_layer=${BASH_REMATCH[2]}/ || last_layer=
attack() {
  local folder=$models/$attack index public file own=()
  need_indices
  index=$INDEX_FOLDER/${n}_per_class public=$INDEX_FOLDER/${PUBLIC}_per_class/public.npy
  need_file "$public" "run imagenet_partition.py, or name another set with PUBLIC"
  for file in "$index"/bbox_{A,B}.npy; do need_file "$file" "run imagenet_partition.py"; done
  case $kind in
    corner_crop) own=(--use_corner_crop 1 --corner_crop_frac 0.40) ;;
    cropsize) own=(--use_corner_crop 1 --corner_crop_frac "$value") ;;
    *) need_folder IMAGENET_BBOX_ANNOTATIONS; own=(--imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS") ;;
  esac
  case $kind in backbone) own+=(--use_backbone 1) ;; logits) own+=(--use_supervised_linear 1) ;; esac
  needs_work "$folder" "$folder/${last_layer}results.json" "${training}_A" "${training}_B" || return 0
  carry_out "$folder" label_inference_attack.py --local "$LOCAL" --loss "$LOSS" --output_dir "$folder" \
    --model_A_pth "$models/${training}_A/model_ep$epoch.pth" --model_B_pth "$models/${training}_B/model_ep$epoch.pth" \
    --bbox_A_idx_pth "$index/bbox_A.npy" --bbox_B_idx_pth "$index/bbox_B.npy" --public_idx_pth "$public" \
    --imgnet_train_pth "$IMAGENET_DATASET_DIR" --k "$K" --k_attk "$K" $own_inference "${own[@]}" $dependency ${ATTACK_FLAGS:-}
}

probe() {
  local folder=$models/$probe train val file
  [ "$probe" != - ] || return 0
  need_indices
  train=$INDEX_FOLDER/${n}_per_class/train_A.npy val=$INDEX_FOLDER/val_set.npy
  for file in "$val" "$train"; do need_file "$file" "run imagenet_partition.py"; done
  needs_work "$folder" "$folder/results.json" "${training}_A" || return 0
  carry_out "$folder" lin_probe.py --local "$LOCAL" --model_pth "$models/${training}_A/model_ep$epoch.pth" \
    --end_lr 0.1 --epochs 20 --loss "$LOSS" --train_idx_pth "$train" --val_idx_pth "$val" \
    --imgnet_train_pth "$IMAGENET_DATASET_DIR" --output_dir "$folder" $own_inference $dependency ${PROBE_FLAGS:-}
}

plot() { # the figures of each kind of attack, now or when the jobs have ended
  local save_path=$models/plot own=() lin_probe=(--plot_lin_probe 0) command id
  [ "$checking" = 0 ] && once "$param $kind" || return 0
  [ "$kind" = projector ] || save_path=${save_path}_$kind
  [ "$probe" = - ] || ! { words probe "$STAGES" || [ -d "$models/${probe%/*}" ]; } ||
    lin_probe=(--plot_lin_probe 1 --lin_probe_folder_path "$models/${probe%/*}")
  [ "$param" = - ] || own=(--sweep_param "$param")
  command=("$PYTHON" "$root/plot_quant_results.py" --model "$MODEL" --k_neighb "$K" --epoch_sweep_dataset "$DATASET"
    --dataset_sweep_epoch "$EPOCH" --pct_confidences "${PCT_CONFIDENCES:-20,100}" --attack_fname "${attack%/*}"
    --attk_folder_path "$models/${attack%/*}" --save_path "$save_path" ${own[@]+"${own[@]}"} "${lin_probe[@]}"
    ${PLOT_FLAGS:-} ${arguments[@]+"${arguments[@]}"})
  if [ ${#jobs[@]} -eq 0 ]; then
    run_or_print "${command[@]}"
  elif [ "$submitted" = 0 ] && id=$(job_of "${save_path}_$sweep"); then
    echo "$save_path: in the queue as job $id"
  else
    command=(sbatch --parsable "--dependency=afterany$(printf ':%s' "${jobs[@]}")" --job-name="plot_$MODEL"
      --output="${save_path}_%j_log.out" --wrap="$(printf '%q ' "${command[@]}")") # of the points that are there
    [ "$DRY_RUN" = 1 ] || command=(submit "${save_path}_$sweep" "$save_path" "${command[@]}")
    run_or_print "${command[@]}"
  fi
}

# --- what is there, in the queue, or will come ----------------------------------------------------------------------
jobs=() submitted=0 # that the figures wait for; 1: some of them are new
once() { case "$seen" in *"|$1|"*) return 1 ;; esac; seen="$seen|$1|"; } # once NAME: true for the first time in a stage
job_of() { # job_of FOLDER: the number of its job, if that is in the queue
  [ -f "$1.job" ] && words "$(cat "$1.job")" "$(echo "$queue" | tr '\n' ' ')" && cat "$1.job"
}
needs_work() { # needs_work FOLDER FINISHED TRAINING...: true if the stage is to be done; sets $dependency
  local folder=$1 id training
  once "$folder" || return 1
  if [ -f "$2" ]; then
    [ "$checking" = 1 ] || echo "$folder: there already"
    return 1
  elif [ "$checking" = 0 ] && id=$(job_of "$folder"); then
    jobs+=("$id")
    echo "$folder: in the queue as job $id"
    return 1
  fi
  dependency=
  for training in "${@:3}"; do
    training=$models/$training
    if [ -f "$training/model_ep$epoch.pth" ]; then continue; fi
    id=$(job_of "$training") || id=JOB_OF_$(basename "$training") # in a dry run
    dependency=${dependency:---dependency afterok}:$id
    if [ "$checking" = 0 ] || job_of "$training" >/dev/null; then continue; fi
    { words train "$STAGES" && [ ! -f "$training/final_weights.pt" ]; } ||
      fail "$training/model_ep$epoch.pth: no such file; train the model (STAGES=train), or narrow the sweep"
  done
  [ "$LOCAL" != 1 ] || dependency= # here the trainings have run before
  [ "$checking" = 0 ]
}
submit() { # submit NAME FOLDER COMMAND...: keeps the number of its job in NAME.job, and sets $id
  id=$("${@:3}" | tail -n 1) || exit $?
  id=${id%%;*}
  case $id in '' | *[!0-9]*) fail "$2: no job number, but '$id'" ;; esac
  echo "$id" >"$1.job"
  echo "$2: job $id"
}
carry_out() { # carry_out FOLDER SCRIPT FLAGS...: prints the command, runs it here, or submits it
  local folder=$1 id command=("$PYTHON" "$root/$2" "${@:3}" ${arguments[@]+"${arguments[@]}"})
  [ "$DRY_RUN" = 1 ] || mkdir -p "$(dirname "$folder")"
  case $DRY_RUN:$LOCAL in
    1:1) run_or_print "${command[@]}" ;;
    1:*) run_or_print "${command[@]}"; jobs+=("JOB_OF_$(basename "$folder")") ;;
    *:1) echo "== $folder"; run_or_print "${command[@]}" ;;
    *) submit "$folder" "$folder" "${command[@]}"; queue="$queue $id" submitted=1 jobs+=("$id") ;;
  esac
}
run_or_print() { if [ "$DRY_RUN" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi; }
each_point() { # each_point STAGE
  seen=
  while read -r sweep param value n epoch training kind attack probe _ <&3; do "$1" 3<&-; done 3<<<"$points"
}

{ # read as a whole: a sweep that runs here for days is not touched by a newer version of this file
  for checking in 1 0; do
    for stage in train attack probe plot; do
      if words "$stage" "$STAGES"; then each_point "$stage"; fi
    done
  done
  exit
}
