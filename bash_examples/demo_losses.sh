#!/usr/bin/env bash
# The demo with every loss, one after the other on the same data, and the table of docs/demo.md: target, reference and
# score of each. Finished losses are skipped when rerun. About as long as the demo for each loss.
#
#   bash bash_examples/demo_losses.sh
#   LOSSES="simclr vicreg" EPOCHS=300 bash bash_examples/demo_losses.sh
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=bash_examples/environment.sh
source "$root/bash_examples/environment.sh"
use_environment "$root"
export SNAPSHOTS=${SNAPSHOTS:-1}

losses=${LOSSES:-simclr vicreg barlow supervised byol dino mocov3}
# shellcheck source=bash_examples/demo_settings.sh
for LOSS in $losses; do source "$root/bash_examples/demo_settings.sh"; done # refuses wrong values before the first demo

rows=()
for loss in $losses; do
  LOSS=$loss bash "$root/bash_examples/demo.sh"
  # shellcheck disable=SC2016 # it is the other shell that expands
  row=$(LOSS=$loss "$BASH" -pc 'root=$1; source "$root/bash_examples/demo_settings.sh"
    eval "$(points projector "$EPOCHS")"; echo "$loss=$LOGGING_FOLDER/$attack"' demo_losses.sh "$root")
  rows+=("$row")
done
printf '\n== Losses\n'
python "$root/bash_examples/summary_table.py" --save_path "${DEMO_DIR:-$root/demo}/losses.csv" "${rows[@]}"
