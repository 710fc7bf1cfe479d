#!/usr/bin/env bash
# The demo with every loss, one after the other on the same data; then all of them side by side: a table, and the figures
# criteria_* and score_utility_*. Finished losses are skipped when rerun. About as long as the demo for each loss.
#
#   bash bash_examples/demo_losses.sh
#   LOSSES="simclr vicreg" EPOCHS=150 bash bash_examples/demo_losses.sh
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

rows=() models=() attacks=() probes=()
for LOSS in $losses; do
  LOSS=$LOSS bash "$root/bash_examples/demo.sh"
  # shellcheck source=bash_examples/demo_settings.sh
  source "$root/bash_examples/demo_settings.sh"
  eval "$(points projector "$EPOCHS")" # attack probe
  # shellcheck disable=SC2154 # the point sets them
  rows+=("$LOSS=$LOGGING_FOLDER/$attack") probes+=("$LOGGING_FOLDER/${probe%/*}")
  models+=("$LOSS") attacks+=("$LOGGING_FOLDER/${attack%/*}")
done

say "Losses"
python "$root/plot_quant_results.py" --model "${models[@]}" --k_neighb "$K" --epoch_sweep_dataset "$PER_CLASS" \
  --dataset_sweep_epoch "$EPOCHS" --attk_folder_path "${attacks[@]}" --plot_lin_probe 1 \
  --lin_probe_folder_path "${probes[@]}" --save_path "$run/plot_losses"
python "$root/bash_examples/summary_table.py" --save_path "$run/losses.csv" "${rows[@]}"
