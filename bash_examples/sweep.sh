#!/usr/bin/env bash
# A sweep from training to figures: every training, attack and probe of its points, then the figures.
#
#   ./bash_examples/sweep.sh                          VICReg against epochs and data set sizes, each point a SLURM job
#   LOSS=simclr SWEEP=temperature ./bash_examples/sweep.sh
#   SWEEP=model.arch VALUES="resnet18 resnet34 resnet50" ./bash_examples/sweep.sh      any setting of train_SSL.py
#   LOSS="vicreg simclr barlow byol dino mocov3 supervised" ./bash_examples/sweep.sh   several losses
#   LOSS=simclr ATTACKS="projector backbone" STAGES="attack plot" ./bash_examples/sweep.sh
#   LOCAL=1 ...          runs here, one after the other
#   DRY_RUN=1 ...        only prints the commands, and what they cost
#
# Each stage is a loop over the points in a script of its own: train.sh, attack.sh, probe.sh, plot.sh. On SLURM a job
# waits for those that write its checkpoints, and the figures for all; job numbers are stored beside the folders
# (FOLDER.job). Rerun the same command to submit what is neither finished nor in the queue. sbatch's own variables
# (SBATCH_PARTITION, ...) apply to every job.
#
# Environment, with the published values as defaults (bash_examples/sweep_points.py):
#   STAGES   "train attack probe plot", or some of these
#   LOSS     vicreg (or others with a configs/{LOSS}_cfg.yaml); CONFIG names another YAML file
#   ARCH     resnet50: trains and reads models named {LOSS}_rn50
#   SWEEP    "epochs datasets", or grid (all sizes at all epochs), temperature, sim_coeff, corner_fraction, or a setting
#            of training such as augment.min_area, with its VALUES
#   EPOCHS   "50 100 250 500 750 1000" at DATASET (300) images per class          (SWEEP=epochs)
#   DATASETS "100 200 300 400 500" at EPOCH (1000) epochs                         (SWEEP=datasets)
#   TEMPERATURES, SIM_COEFFS, FRACTIONS, VALUES  at PARAM_DATASET (100) images per class and EPOCH epochs
#   ATTACKS  projector; or backbone, corner_crop (0.40 of each side), logits (of supervised models), each in a folder of
#            its own: attack_sweeps, attack_sweeps_backbone, ...
#   PUBLIC   500: the public set that every attack searches; K=100 neighbors
#   PCT_CONFIDENCES   of the figures: 20,100, for sim_coeff 5,20
#   TRAIN_FLAGS, ATTACK_FLAGS, PROBE_FLAGS, PLOT_FLAGS   appended to the commands; with one stage the arguments are, too
# and the folders LOGGING_FOLDER, BETONS_FOLDER (train), INDEX_FOLDER, IMAGENET_DATASET_DIR, IMAGENET_BBOX_ANNOTATIONS
# (attack, probe). Names of points and folders: dejavu_utils/naming.py.
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
export SWEEP_SCRIPT=${SWEEP_SCRIPT:-${0##*/}} STAGES=${STAGES:-train attack probe plot}
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"

for stage in $STAGES; do
  case $stage in train | attack | probe | plot) ;; *) fail "STAGES: $stage is not one of train attack probe plot" ;; esac
done
case $#:$STAGES in
  0:* | *:train | *:attack | *:probe | *:plot) ;;
  *) fail "$1: which of the stages '$STAGES' is this for? use TRAIN_FLAGS, ATTACK_FLAGS, PROBE_FLAGS, PLOT_FLAGS" ;;
esac
points train >/dev/null # wrong values are named before anything is done

for stage in train attack probe plot; do
  case " $STAGES " in *" $stage "*) "$BASH" -p "$root/bash_examples/$stage.sh" "$@" ;; esac
done
exit # a newer version of this file does not touch a sweep that runs for days
