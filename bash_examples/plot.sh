#!/usr/bin/env bash
# Figures of every kind of attack of a sweep, now or when its jobs have ended. Arguments go to plot_quant_results.py;
# variables: sweep.sh.
# shellcheck disable=SC2154,SC2086 # the points set variables; flags are split into words
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need LOGGING_FOLDER
lines=$(points plot)
while read -r point; do
  eval "$point" # loss model param kind attacks probes folders
  name=plot
  [ "$kind" = projector ] || name=plot_$kind
  confidences=${PCT_CONFIDENCES:-20,100}
  lin_probe=0
  [ -z "$probes" ] || lin_probe=1
  [ "$param" != vicreg.sim_coeff ] || confidences=${PCT_CONFIDENCES:-5,20}
  folder=$LOGGING_FOLDER/$model
  figures "$folder" "$folders" "$name" --model "$model" --k_neighb "${K:-100}" --epoch_sweep_dataset "${DATASET:-300}" \
    --dataset_sweep_epoch "${EPOCH:-1000}" --pct_confidences "$confidences" --attack_fname "$attacks" \
    --attk_folder_path "$folder/$attacks" --save_path "$folder/$name" ${param:+--sweep_param "$param"} \
    --plot_lin_probe "$lin_probe" ${probes:+--lin_probe_folder_path "$folder/$probes"} \
    ${PLOT_FLAGS:-} "$@"
done <<<"$lines"

# Several losses: also side by side, in the figures criteria_* and score_utility_*.
models=() attacks_of=() probes_of=() every=''
while read -r point; do
  eval "$point"
  [ "$kind:$param" = projector: ] || continue
  models+=("$model") attacks_of+=("$LOGGING_FOLDER/$model/$attacks")
  [ -z "$probes" ] || probes_of+=("$LOGGING_FOLDER/$model/$probes")
  for point in $folders; do every="$every $model/$point"; done
done <<<"$lines"
if [ "${#models[@]}" -gt 1 ]; then
  lin_probe=0
  [ "${#models[@]}" != "${#probes_of[@]}" ] || lin_probe=1
  figures "$LOGGING_FOLDER" "$every" plot_criteria --model "${models[@]}" --k_neighb "${K:-100}" \
    --epoch_sweep_dataset "${DATASET:-300}" --dataset_sweep_epoch "${EPOCH:-1000}" \
    --attk_folder_path "${attacks_of[@]}" --save_path "$LOGGING_FOLDER/plot_criteria" \
    --plot_lin_probe "$lin_probe" ${probes_of[@]:+--lin_probe_folder_path "${probes_of[@]}"} ${PLOT_FLAGS:-} "$@"
fi
