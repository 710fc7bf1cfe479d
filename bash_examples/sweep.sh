#!/usr/bin/env bash
# A published sweep from training to figures: every training, attack and probe of its points, then the figures.
#
#   ./bash_examples/sweep.sh                          VICReg against epochs and data set sizes, each point a SLURM job
#   LOSS=simclr SWEEP=temperature ./bash_examples/sweep.sh
#   LOSS=simclr ATTACKS="projector backbone" STAGES="attack plot" ./bash_examples/sweep.sh
#   LOCAL=1 ...          runs here, one after the other      DRY_RUN=1 ...     only prints the commands
#
# On SLURM attacks and probes wait for the trainings they need (--dependency), and the figures for all of them. The
# number of each job is kept beside its folder (FOLDER.job): run again, the sweep submits only what is neither finished
# nor in the queue. Anything missing is named before the first command. sbatch's own variables (SBATCH_PARTITION,
# SBATCH_ACCOUNT, ...) hold for every job.
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
# and the folders BETONS_FOLDER (train), INDEX_FOLDER, IMAGENET_DATASET_DIR, IMAGENET_BBOX_ANNOTATIONS (attack, probe),
# LOGGING_FOLDER (all).
# shellcheck disable=SC2317,SC2329  # stages and checks are called by name
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
me=${SWEEP_SCRIPT:-sweep.sh}
fail() { echo "$me: error: $*" >&2; exit 2; }
need_variable() { [ -n "${!1:-}" ] || fail "the variable $1 is not set: export $1=FOLDER"; }
need_file() { [ -f "$1" ] || fail "$1: no such file; $2"; }
need_folder() { need_variable "$1"; [ -d "${!1}" ] || fail "$1 ${!1}: no such folder"; }
words() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; } # words WORD LIST: is it one of them?
once() { # once NAME: true for the first time
  case "$seen" in *"|$1|"*) return 1 ;; esac
  seen="$seen|$1|"
}

LOSS=${LOSS:-vicreg}
STAGES=${STAGES:-train attack probe plot}
SWEEP=${SWEEP:-epochs datasets}
ATTACKS=${ATTACKS:-projector}
EPOCH=${EPOCH:-1000}
DATASET=${DATASET:-300}
PARAM_DATASET=${PARAM_DATASET:-100}
PUBLIC=${PUBLIC:-500}
K=${K:-100}
LOCAL=${LOCAL:-0}
DRY_RUN=${DRY_RUN:-0}
PYTHON=${PYTHON:-python}
CONFIG=${CONFIG:-$root/configs/${LOSS}_cfg.yaml}
model=$LOSS own_train=() own_inference=()
if [ -n "${ARCH:-}" ]; then
  [ "$ARCH" = resnet50 ] || fail "ARCH=$ARCH: only resnet50 has published names; leave it out"
  model=${LOSS}_rn50 own_train=(--model.arch resnet50) own_inference=(--resnet50)
fi
read -r -a train_flags <<<"${TRAIN_FLAGS:-}"
read -r -a attack_flags <<<"${ATTACK_FLAGS:-}"
read -r -a probe_flags <<<"${PROBE_FLAGS:-}"
read -r -a plot_flags <<<"${PLOT_FLAGS:-}"
case $STAGES in
  train) train_flags+=("$@") ;;
  attack) attack_flags+=("$@") ;;
  probe) probe_flags+=("$@") ;;
  plot) plot_flags+=("$@") ;;
  *) [ $# -eq 0 ] || fail "$1: which of the stages '$STAGES' is this for? use TRAIN_FLAGS, ATTACK_FLAGS, PROBE_FLAGS, PLOT_FLAGS" ;;
esac
for word in $STAGES; do words "$word" "train attack probe plot" || fail "STAGES: $word is not one of train attack probe plot"; done
for word in $ATTACKS; do
  words "$word" "projector backbone corner_crop logits" || fail "ATTACKS: $word is not one of projector backbone corner_crop logits"
done
if words logits "$ATTACKS" && [ "$LOSS" != supervised ]; then
  fail "ATTACKS=logits: only supervised models have them, not LOSS=$LOSS"
fi
for word in $SWEEP; do
  case $word:$LOSS:${ARCH:-} in
    epochs:* | datasets:* | temperature:simclr: | sim_coeff:vicreg: | corner_fraction:*:) ;;
    temperature:* | sim_coeff:* | corner_fraction:*) fail "SWEEP=$word LOSS=$LOSS ARCH=${ARCH:-}: has no published names" ;;
    *) fail "SWEEP: $word is not one of epochs datasets temperature sim_coeff corner_fraction" ;;
  esac
done

case " $SWEEP " in *" temperature "* | *" corner_fraction "*)
  for word in ${TEMPERATURES:-} ${FRACTIONS:-}; do
    case $word in .[0-9]* | 0.[0-9]*) ;; *) fail "$word: TEMPERATURES and FRACTIONS are numbers between 0 and 1 such as .15" ;; esac
  done ;;
esac
digits() { # digits VALUE: those after the point, at least two (.05 -> 05, .075 -> 075, .5 -> 50)
  local after=${1#*.}
  while [ "${after%0}" != "$after" ] && [ "${#after}" -gt 2 ]; do after=${after%0}; done
  [ "${#after}" -ge 2 ] || after=${after}0
  echo "$after"
}

each_point() { # each_point FUNCTION: calls FUNCTION SWEEP TRAINING N EPOCH NAME VALUE for each point of the sweep
  local sweep value
  for sweep in $SWEEP; do
    case $sweep in
      epochs) for value in ${EPOCHS:-50 100 250 500 750 1000}; do
        "$1" "$sweep" "${model}_dssweep_${DATASET}pc" "$DATASET" "$value" "${model}_${DATASET}pc_${value}ep" ""; done ;;
      datasets) for value in ${DATASETS:-100 200 300 400 500}; do
        "$1" "$sweep" "${model}_dssweep_${value}pc" "$value" "$EPOCH" "${model}_${value}pc_${EPOCH}ep" ""; done ;;
      temperature) for value in ${TEMPERATURES:-.05 .075 .10 .125 .15 .175 .25 .30 .50 .99}; do
        "$1" "$sweep" "simclr_tempsweep_p$(digits "$value")" "$PARAM_DATASET" "$EPOCH" \
          "simclr_p$(digits "$value")t_${EPOCH}ep" "$value"; done ;;
      sim_coeff) for value in ${SIM_COEFFS:-10 25 50 65 80 100}; do
        "$1" "$sweep" "vicreg_simsweep_sim$value" "$PARAM_DATASET" "$EPOCH" "vicreg_sim${value}_${EPOCH}ep" "$value"; done ;;
      corner_fraction) for value in ${FRACTIONS:-.20 .25 .30 .35 .40 .45 .50}; do
        "$1" "$sweep" "${model}_dssweep_${PARAM_DATASET}pc" "$PARAM_DATASET" "$EPOCH" \
          "${model}_crop_p$(digits "$value")_${EPOCH}ep" "$value"; done ;;
    esac
  done
}

kinds() { if [ "$1" = corner_fraction ]; then echo cropsize; else echo "$ATTACKS"; fi; } # the attacks of a point

attack_results() { # attack_results FOLDER: the file that an attack writes last; with --layers in the last layer's folder
  local word layer='' previous=''
  for word in ${attack_flags[@]+"${attack_flags[@]}"}; do
    if [ "$previous" = --layers ]; then layer=${word##*,}/; fi
    case $word in --layers=*) word=${word#*=} layer=${word##*,}/ ;; esac
    previous=$word
  done
  echo "$1/${layer}results.json"
}

attack_folder() { # attack_folder KIND: below the model's folder
  case $1 in
    projector) echo attack_sweeps ;;
    logits) echo attack_sweeps_w_linear_layer_activations ;;
    *) echo "attack_sweeps_$1" ;;
  esac
}

# --- what is there, in the queue, or will come ---------------------------------------------------------------------
queue=
if [ "$LOCAL" != 1 ] && [ "$STAGES" != plot ]; then
  if [ "$DRY_RUN" != 1 ] && ! command -v squeue >/dev/null; then
    fail "there is no SLURM here (squeue is not on the path): LOCAL=1 runs here"
  fi
  queue=$(squeue -h -u "$(id -un)" -o %i 2>/dev/null) || [ "$DRY_RUN" = 1 ] ||
    fail "squeue does not answer: try again, or LOCAL=1 to run here"
fi
job_of() { # job_of FOLDER: the number of its job, if that is in the queue
  local id
  [ -f "$1.job" ] || return 1
  id=$(cat "$1.job")
  words "$id" "$(echo "$queue" | tr '\n' ' ')" && echo "$id"
}
trained() { [ -f "$1/final_weights.pt" ]; }

check_training() {
  local n=$3 side
  for side in A B; do
    need_file "$BETONS_FOLDER/${n}_per_class_$side.beton" "run gen_betons.sh, or narrow the sweep (DATASETS)"
  done
}
check_checkpoint() { # check_checkpoint TRAINING EPOCH
  local folder=$LOGGING_FOLDER/$model/$1
  [ -f "$folder/model_ep$2.pth" ] && return
  if words train "$STAGES" && ! trained "$folder"; then return; fi
  job_of "$folder" >/dev/null || fail "$folder/model_ep$2.pth: no such file; train the model (STAGES=train), or narrow the sweep"
}
check_attack() {
  local kind side
  need_file "$INDEX_FOLDER/$3_per_class/bbox_A.npy" "run imagenet_partition.py"
  need_file "$INDEX_FOLDER/$3_per_class/bbox_B.npy" "run imagenet_partition.py"
  for kind in $(kinds "$1"); do
    words "$kind" "corner_crop cropsize" || need_folder IMAGENET_BBOX_ANNOTATIONS
    [ -f "$(attack_results "$LOGGING_FOLDER/$model/$(attack_folder "$kind")/NN_attk_$5")" ] && continue
    for side in A B; do check_checkpoint "$2_$side" "$4"; done
  done
}
check_probe() {
  [ "$1" = corner_fraction ] && return
  need_file "$INDEX_FOLDER/$3_per_class/train_A.npy" "run imagenet_partition.py"
  [ -f "$LOGGING_FOLDER/$model/lin_probe_sweeps_with_aug/lp_$5/results.json" ] || check_checkpoint "$2_A" "$4"
}
check_all() {
  need_variable LOGGING_FOLDER
  if words train "$STAGES"; then
    need_variable BETONS_FOLDER
    need_file "$CONFIG" "LOSS=$LOSS has no settings"
    need_file "$BETONS_FOLDER/val.beton" "run gen_val_betons.sh"
    each_point check_training
  fi
  if words attack "$STAGES" || words probe "$STAGES"; then
    need_folder IMAGENET_DATASET_DIR
    need_variable INDEX_FOLDER
  fi
  if words attack "$STAGES"; then
    need_file "$INDEX_FOLDER/${PUBLIC}_per_class/public.npy" "run imagenet_partition.py, or name another set with PUBLIC"
    each_point check_attack
  fi
  if words probe "$STAGES"; then
    need_file "$INDEX_FOLDER/val_set.npy" "run imagenet_partition.py"
    each_point check_probe
  fi
}

# --- running ------------------------------------------------------------------------------------------------------
jobs=()      # that the figures wait for
submitted=0  # of them now
carry_out() { # carry_out FOLDER COMMAND...: prints it, runs it here, or submits it and keeps its number
  local folder=$1 id
  shift
  if [ "$DRY_RUN" = 1 ]; then
    run_or_print "$@"
    [ "$LOCAL" = 1 ] || jobs+=("JOB_OF_$(basename "$folder")")
  elif [ "$LOCAL" = 1 ]; then
    echo "== $folder"
    "$@"
  else
    id=$("$@" | tail -n 1) || exit $?
    case $id in '' | *[!0-9]*) fail "$folder: no job number, but '$id'" ;; esac
    echo "$id" >"$folder.job"
    echo "$folder: job $id"
    queue="$queue $id" submitted=$((submitted + 1))
    jobs+=("$id")
  fi
}
waiting() { # waiting FOLDER FINISHED: says so where there is nothing to do
  local id
  if [ -f "$2" ]; then
    echo "$1: there already"
  elif id=$(job_of "$1"); then
    echo "$1: in the queue as job $id"
    jobs+=("$id")
  else
    return 1
  fi
}
after() { # after EPOCH FOLDER...: afterok:... of the trainings that have not come to this epoch; nothing if all have
  local epoch=$1 folder id list=
  shift
  for folder in "$@"; do
    [ -f "$folder/model_ep$epoch.pth" ] && continue
    [ "$LOCAL" = 1 ] && continue # it has run before
    id=$(job_of "$folder" || echo "JOB_OF_$(basename "$folder")") # the latter in a dry run
    list="$list:$id"
  done
  [ -z "$list" ] || echo "afterok$list"
}

train() {
  local side folder
  for side in A B; do
    folder=$LOGGING_FOLDER/$model/$2_$side
    once "$folder" || continue
    if waiting "$folder" "$folder/final_weights.pt"; then continue; fi
    local command=("$PYTHON" "$root/train_SSL.py" --config-file "$CONFIG" --dist.use_submitit "$((1 - LOCAL))"
      --data.train_dataset "$BETONS_FOLDER/$3_per_class_$side.beton" --data.val_dataset "$BETONS_FOLDER/val.beton"
      --logging.folder "$folder" ${own_train[@]+"${own_train[@]}"})
    case $1 in
      temperature) command+=(--simclr.temperature "$6") ;;
      sim_coeff) command+=(--vicreg.sim_coeff "$6") ;;
    esac
    mkdir_for "$folder"
    carry_out "$folder" "${command[@]}" ${train_flags[@]+"${train_flags[@]}"}
  done
}
mkdir_for() { [ "$DRY_RUN" = 1 ] || mkdir -p "$(dirname "$1")"; }

attack() {
  local kind folder dependency a=$LOGGING_FOLDER/$model/$2_A b=$LOGGING_FOLDER/$model/$2_B
  for kind in $(kinds "$1"); do
    folder=$LOGGING_FOLDER/$model/$(attack_folder "$kind")/NN_attk_$5
    once "$folder" || continue
    if waiting "$folder" "$(attack_results "$folder")"; then continue; fi
    local command=("$PYTHON" "$root/label_inference_attack.py" --local "$LOCAL" --loss "$LOSS" --output_dir "$folder"
      --model_A_pth "$a/model_ep$4.pth" --model_B_pth "$b/model_ep$4.pth"
      --bbox_A_idx_pth "$INDEX_FOLDER/$3_per_class/bbox_A.npy" --bbox_B_idx_pth "$INDEX_FOLDER/$3_per_class/bbox_B.npy"
      --public_idx_pth "$INDEX_FOLDER/${PUBLIC}_per_class/public.npy" --imgnet_train_pth "$IMAGENET_DATASET_DIR"
      --k "$K" --k_attk "$K" ${own_inference[@]+"${own_inference[@]}"})
    case $kind in
      projector) command+=(--imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS") ;;
      backbone) command+=(--imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS" --use_backbone 1) ;;
      logits) command+=(--imgnet_bbox_pth "$IMAGENET_BBOX_ANNOTATIONS" --use_supervised_linear 1) ;;
      corner_crop) command+=(--use_corner_crop 1 --corner_crop_frac 0.40) ;;
      cropsize) command+=(--use_corner_crop 1 --corner_crop_frac "$6") ;;
    esac
    dependency=$(after "$4" "$a" "$b")
    [ -z "$dependency" ] || command+=(--dependency "$dependency")
    mkdir_for "$folder"
    carry_out "$folder" "${command[@]}" ${attack_flags[@]+"${attack_flags[@]}"}
  done
}

probe() {
  local folder=$LOGGING_FOLDER/$model/lin_probe_sweeps_with_aug/lp_$5 a=$LOGGING_FOLDER/$model/$2_A dependency
  [ "$1" = corner_fraction ] && return
  once "$folder" || return 0
  if waiting "$folder" "$folder/results.json"; then return; fi
  local command=("$PYTHON" "$root/lin_probe.py" --local "$LOCAL" --model_pth "$a/model_ep$4.pth" --end_lr 0.1
    --epochs 20 --loss "$LOSS" --train_idx_pth "$INDEX_FOLDER/$3_per_class/train_A.npy"
    --val_idx_pth "$INDEX_FOLDER/val_set.npy" --imgnet_train_pth "$IMAGENET_DATASET_DIR" --output_dir "$folder"
    ${own_inference[@]+"${own_inference[@]}"})
  dependency=$(after "$4" "$a")
  [ -z "$dependency" ] || command+=(--dependency "$dependency")
  mkdir_for "$folder"
  carry_out "$folder" "${command[@]}" ${probe_flags[@]+"${probe_flags[@]}"}
}

plot() { # the figures of each kind of attack, now or when the jobs have ended
  local sweep kind suffix save_path id command probes=$LOGGING_FOLDER/$model/lin_probe_sweeps_with_aug
  for sweep in $SWEEP; do
    for kind in $(kinds "$sweep"); do
      suffix=
      [ "$kind" = projector ] || suffix=_$kind
      save_path=$LOGGING_FOLDER/$model/plot$suffix
      command=("$PYTHON" "$root/plot_quant_results.py" --model "$model" --k_neighb "$K"
        --epoch_sweep_dataset "$DATASET" --dataset_sweep_epoch "$EPOCH"
        --pct_confidences "${PCT_CONFIDENCES:-20,100}" --attack_fname "$(attack_folder "$kind")"
        --attk_folder_path "$LOGGING_FOLDER/$model/$(attack_folder "$kind")"
        --save_path "$save_path")
      case $sweep in
        temperature) command+=(--sweep_param simclr.temperature) ;;
        sim_coeff) command+=(--sweep_param vicreg.sim_coeff) ;;
        corner_fraction) command+=(--sweep_param corner_crop_frac) ;;
        *) once "plot of $kind" || continue ;;
      esac
      if [ "$sweep" != corner_fraction ] && { words probe "$STAGES" || [ -d "$probes" ]; }; then
        command+=(--plot_lin_probe 1 --lin_probe_folder_path "$probes")
      else
        command+=(--plot_lin_probe 0)
      fi
      command+=(${plot_flags[@]+"${plot_flags[@]}"})
      if [ ${#jobs[@]} -eq 0 ]; then
        run_or_print "${command[@]}"
        continue
      fi
      if [ "$submitted" = 0 ] && id=$(job_of "${save_path}_$sweep"); then
        echo "$save_path: in the queue as job $id"
        continue
      fi
      command=(sbatch --parsable "--dependency=afterany$(printf ':%s' "${jobs[@]}")" --job-name="plot_$model"
        --output="${save_path}_%j_log.out" --wrap="$(printf '%q ' "${command[@]}")") # of the points that are there
      id=$(run_or_print "${command[@]}") || exit $?
      if [ "$DRY_RUN" = 1 ]; then
        echo "$id"
      else
        echo "${id%%;*}" >"${save_path}_$sweep.job"
        echo "$save_path: job ${id%%;*}"
      fi
    done
  done
}
run_or_print() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

{ # read as a whole: a sweep that runs here for days is not touched by a newer version of this file
  check_all
  for stage in train attack probe; do
    seen=
    if words "$stage" "$STAGES"; then each_point "$stage"; fi
  done
  seen=
  if words plot "$STAGES"; then plot; fi
  exit
}
