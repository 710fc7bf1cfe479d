# shellcheck shell=bash
# Sourced by the sweeps: where they run, and how a command is carried out. LOCAL=1 runs here, DRY_RUN=1 prints.
set -euo pipefail -f
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export SWEEP_SCRIPT=${SWEEP_SCRIPT:-${0##*/}} LOCAL=${LOCAL:-0} DRY_RUN=${DRY_RUN:-0} PYTHON=${PYTHON:-python}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
choice LOCAL 0 1
choice DRY_RUN 0 1
whole 1 K NODES

need() { # need VARIABLE...: folders
  local name
  for name; do
    [ -n "${!name:-}" ] || fail "the variable $name is not set: export $name=FOLDER"
    case $name in IMAGENET_*) [ -d "${!name}" ] || fail "$name ${!name}: no such folder" ;; esac
  done
}

run() { # run SCRIPT FLAGS...: what is finished or in the queue the script says itself
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$PYTHON" "$root/$1" "${@:2}"
    echo
  else
    "$PYTHON" "$root/$1" "${@:2}" </dev/null
  fi
}

points() { "$PYTHON" "$root/bash_examples/sweep_points.py" "$1"; } # points STAGE: NAME=value lines

figures() { # figures FOLDER "POINT..." NAME FLAGS...: draws them now, or in a job that waits for the points' jobs
  local job=$1/$3.job jobs='' newer='' queue='' point
  local command=(plot_quant_results.py "${@:4}")
  [ "$LOCAL:$DRY_RUN" != 0:0 ] || ! command -v squeue >/dev/null || queue=$(squeue -h -u "$(id -u)" -o %i)
  for point in $2; do
    point=$1/$point.job
    if [ ! -f "$point" ] || ! grep -qxFf "$point" <<<"$queue"; then continue; fi
    jobs=$jobs:$(cat "$point")
    [ "$point" -ot "$job" ] || newer=1
  done
  if [ -z "$jobs" ]; then
    run "${command[@]}"
  elif [ -z "$newer" ] && grep -qxFf "$job" <<<"$queue"; then
    echo "$1/$3: in the queue as job $(cat "$job")"
  else
    command=("$PYTHON" "$root/${command[0]}" "${command[@]:1}")
    sbatch --parsable "--dependency=afterany$jobs" --job-name="plot_$(basename "$1")" --output="$1/$3_%j_log.out" \
      --wrap="$(printf '%q ' "${command[@]}")" | cut -d ';' -f 1 >"$job"
    echo "$1/$3: job $(cat "$job")"
  fi
}

# All commands are checked before the first is run. A dry run prints them, and adds up what they cost.
if [ -z "${CHECKED:-}" ]; then
  export CHECKED=1
  commands=$(DRY_RUN=1 "$BASH" -p "$0" "$@") || exit $?
  [ "$DRY_RUN" = 0 ] || exec "$PYTHON" "$root/bash_examples/costs.py" <<<"$commands"
  "$PYTHON" "$root/bash_examples/costs.py" --check <<<"$commands" || exit $?
fi
