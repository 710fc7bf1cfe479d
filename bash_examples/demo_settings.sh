# shellcheck shell=bash
# Sourced by demo.sh and its followers: the variables that change the demo, its folders, and training two models at once.

whole 0 SEED TRAIN_SEED
whole 1 EPOCHS PER_CLASS CLASSES SNAPSHOTS K OMP_NUM_THREADS
choice LOSS simclr vicreg barlow byol dino mocov3 supervised
choice PRECISION auto fp32 bf16 fp16
DEMO_DIR=${DEMO_DIR:-$root/demo}        # everything is written below it
SEED=${SEED:-0}                         # of the data, and unless TRAIN_SEED says otherwise of both trainings
TRAIN_SEED=${TRAIN_SEED:-$SEED}         # other trainings on the same sets A and B
LOSS=${LOSS:-simclr}                    # or vicreg, barlow, byol, dino, mocov3, supervised
EPOCHS=${EPOCHS:-300}                   # passes over the training set
PER_CLASS=${PER_CLASS:-50}              # n of the partition: images per class that one training set holds
CLASSES=${CLASSES:-5}                   # chance is 1 / CLASSES
CORRELATION=${CORRELATION:-0}           # fraction of the images whose background is that of their class: a control
SNAPSHOTS=${SNAPSHOTS:-4}               # points of the figures of accuracy against epochs
K=${K:-50}                              # public neighbors that vote
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
threads=${OMP_NUM_THREADS:-$((cores > 2 ? cores / 2 : 1))} # of each training
PRECISION=${PRECISION:-auto}            # or fp32, bf16

case $DEMO_DIR in /*) ;; *) DEMO_DIR=$PWD/$DEMO_DIR ;; esac
run=$DEMO_DIR/seed${SEED}
[ "$CLASSES:$PER_CLASS" = 5:50 ] || run=${run}_${CLASSES}classes_${PER_CLASS}pc
[ "$CORRELATION" = 0 ] || run=${run}_correlation$CORRELATION
settings=${LOSS}_${EPOCHS}epochs
[ "$SNAPSHOTS:$K" = 4:50 ] || settings=${settings}_${SNAPSHOTS}snapshots_${K}neighbors
[ "$TRAIN_SEED" = "$SEED" ] || settings=${settings}_seed$TRAIN_SEED
export IMAGENET_DATASET_DIR=$run/data/images
export IMAGENET_BBOX_ANNOTATIONS=$run/data/boxes
export INDEX_FOLDER=$run/index
export BETONS_FOLDER=$run/betons
export LOGGING_FOLDER=$run/$settings
every=$(((EPOCHS + SNAPSHOTS - 1) / SNAPSHOTS)) # epochs from snapshot to snapshot
# shellcheck disable=SC2034
epochs=$(for i in $(seq "$SNAPSHOTS"); do echo $((i * every < EPOCHS ? i * every : EPOCHS)); done | sort -nu)
# shellcheck disable=SC2034
model=$LOSS                             # as file and folder names have it

points() { # points ATTACKS EPOCHS: the lines of sweep_points.py, NAME=value words
  env SWEEP_SCRIPT="${0##*/}" SWEEP=epochs LOSS="$LOSS" ARCH='' ATTACKS="$1" EPOCHS="$2" DATASET="$PER_CLASS" CONFIG='' \
    TRAIN_FLAGS="--training.epochs $EPOCHS --logging.snapshot_freq $every" \
    python "$root/bash_examples/sweep_points.py" attack
}

choose_precision() { # sets PRECISION, timed once, so that what is resumed keeps it
  [ "$PRECISION" = auto ] || return 0
  mkdir -p "$run"
  if [ ! -s "$run/precision.txt" ]; then
    OMP_NUM_THREADS=$threads python "$root/bash_examples/faster_precision.py" >"$run/precision.txt.new"
    mv "$run/precision.txt.new" "$run/precision.txt"
  fi
  PRECISION=$(cat "$run/precision.txt")
  echo "precision of the training: $PRECISION"
}

say() { printf '\n== %s\n' "$*"; }

logged() { # logged LOG WORDS COMMAND...: its output goes into LOG, the last line of it with these WORDS to the terminal
  local log=$1 words=$2 code=0
  shift 2
  "$@" >>"$log" 2>&1 || code=$?
  [ "$code" = 0 ] || { printf '\n' && tail -n 3 "$log" >&2 && exit "$code"; }
  grep "$words" "$log" | tail -n 1 | sed 's/^ *//' || true
}

place_of() { # place_of LOG: the last line of a training's log, short
  tail -n 1 "$1" 2>/dev/null | sed -E \
    -e 's/^(epoch [0-9]+\/[0-9]+):.*, (about .* left)$/\1, \2/' -e 's/^.*: ([0-9]+ epochs are done)$/\1/'
}

running() { [ -n "$1" ] && ps -p "$1" -o args= 2>/dev/null | grep -q "$2"; } # running PID SCRIPT

train_both() { # train_both FUNCTION FOLDER SCRIPT: FUNCTION A and FUNCTION B at once, each of which ends in `exec python SCRIPT`
  local train=$1 folder=$2 script=$3 side pid left waited
  mkdir -p "$folder"
  for side in A B; do # a training left over from a demo that was killed would write beside the new one
    left=$(cat "$folder/train_$side.pid" 2>/dev/null || true)
    waited=0
    while running "$left" "$script"; do # it finishes its step and saves; until then it has the lock
      [ "$waited" -gt 0 ] || kill "$left" 2>/dev/null || true
      if [ "$waited" -ge 60 ]; then
        echo "error: process $left, a training left over from an earlier demo, still writes into $folder after 60 s: end it (kill -9 $left), then run this again" >&2
        exit 1
      fi
      sleep 1
      waited=$((waited + 1))
    done
  done
  OMP_NUM_THREADS=$threads "$train" A >"$folder/train_A_log.out" 2>&1 &
  pid_A=$!
  OMP_NUM_THREADS=$threads "$train" B >"$folder/train_B_log.out" 2>&1 &
  pid_B=$!
  echo "$pid_A" >"$folder/train_A.pid"
  echo "$pid_B" >"$folder/train_B.pid"
  trap 'kill "$pid_A" "$pid_B" 2>/dev/null || true' EXIT
  local place shown=$SECONDS
  while kill -0 "$pid_A" 2>/dev/null && kill -0 "$pid_B" 2>/dev/null; do
    sleep 1
    place="A: $(place_of "$folder/train_A_log.out"); B: $(place_of "$folder/train_B_log.out")"
    if [ -t 1 ]; then # one line that moves
      printf '\r%s\033[K' "${place:0:79}"
    elif [ $((SECONDS - shown)) -ge 30 ]; then
      echo "$place"
      shown=$SECONDS
    fi
  done
  [ ! -t 1 ] || echo
  for side in A B; do
    pid=pid_$side
    wait "${!pid}" || { echo "error: training of model $side failed, see $folder/train_${side}_log.out:" >&2
      tail -n 3 "$folder/train_${side}_log.out" >&2; exit 1; }
  done
  trap - EXIT
}
