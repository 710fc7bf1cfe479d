"""The published sweeps: names and flags of the commands, what is missing, SLURM's queue, and small ones run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import (
    ROOT,
    assert_one_line_error,
    debug_cluster,
    draw_alone,
    draw_tree,
    in_folder,
    kept_signals,
    ok,
    options,
    read_json,
    rows_of,
    run_example,
    run_here,
    run_process,
    script_module,
)

import label_inference_attack
import lin_probe
import plot_quant_results
import train_SSL
from dejavu_utils.data.beton import write_beton
from dejavu_utils.imagenet import list_images, load_image

EPOCHS = (50, 100, 250, 500, 750, 1000)
SIZES = (100, 200, 300, 400, 500)
TEMPERATURES = {digits: f".{digits}" for digits in "05 075 10 125 15 175 25 30 50 99".split()}
FULL = [f"300pc_{epoch}ep" for epoch in EPOCHS] + [f"{n}pc_1000ep" for n in SIZES if n != 300]
SIM_COEFFS = (10, 25, 50, 65, 80, 100)
FRACTIONS = (20, 25, 30, 35, 40, 45, 50)
KINDS = ("", "_backbone", "_w_linear_layer_activations", "_corner_crop")  # of attack


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The published input files, all empty: what a dry run looks at."""
    root = tmp_path_factory.mktemp("published folders")
    names = {
        "BETONS_FOLDER": [f"{n}_per_class_{side}.beton" for n in SIZES for side in "AB"] + ["val.beton"],
        "INDEX_FOLDER": [
            *(f"{n}_per_class/{name}.npy" for n in SIZES for name in ("bbox_A", "bbox_B", "train_A", "public")),
            "val_set.npy",
        ],
        "IMAGENET_DATASET_DIR": [],
        "IMAGENET_BBOX_ANNOTATIONS": [],
    }
    for variable, files in names.items():
        for name in [*files, "x"]:
            in_folder(root / variable.lower() / name).touch()
    return {variable: str(root / variable.lower()) for variable in names}


def sweep(folders, logs, script="sweep.sh", *arguments, tools=None, **environment):
    """tools: a folder that comes first on the path, for instance with another squeue."""
    path = f"{tools}{os.pathsep}{os.environ['PATH']}" if tools else os.environ["PATH"]
    variables = {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PATH": path, "LOGGING_FOLDER": logs}
    return run_example(script, *arguments, **{**variables, **folders, **environment})


@pytest.fixture
def dry_run(folders, tmp_path):
    """dry_run([SCRIPT, FLAGS...], NAME=value): a sweep that prints its commands and leaves its logs in tmp_path."""

    def run(*words, **environment):
        return sweep(folders, tmp_path, *words, **{"DRY_RUN": "1", "LOCAL": "1", **environment})

    return run


def commands(result):
    """[(name of the script, its arguments)] that a dry run printed."""
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    return [(Path(words[1]).name, words[2:]) for words in lines]


def published(result, logs):
    """{script: [folder below LOGGING_FOLDER]}; every command is understood by its script's own parser."""
    found = {}
    for script, words in commands(result):
        if script == "train_SSL.py":
            named = [train_SSL.read_settings(words)[0]["logging.folder"]]
        elif script == "label_inference_attack.py":
            named = [label_inference_attack.parse_args(words).output_dir]
        elif script == "lin_probe.py":
            named = [lin_probe.parse_args(words).output_dir]
        else:
            named = plot_quant_results.parse_args(words).attk_folder_path  # of every model
        found.setdefault(script, []).extend(str(Path(folder).relative_to(logs)) for folder in named)
    return found


CASES = [
    (
        "LOSS=vicreg",
        [f"vicreg/vicreg_dssweep_{n}pc_{side}" for n in (300, 100, 200, 400, 500) for side in "AB"],
        [f"vicreg/attack_sweeps/NN_attk_vicreg_{name}" for name in FULL],
        [f"vicreg/lin_probe_sweeps_with_aug/lp_vicreg_{name}" for name in FULL],
        ["vicreg/attack_sweeps"],
    ),
    (
        "SWEEP=temperature LOSS=simclr",
        [f"simclr/simclr_tempsweep_p{digits}_{side}" for digits in TEMPERATURES for side in "AB"],
        [f"simclr/attack_sweeps/NN_attk_simclr_p{digits}t_1000ep" for digits in TEMPERATURES],
        [f"simclr/lin_probe_sweeps_with_aug/lp_simclr_p{digits}t_1000ep" for digits in TEMPERATURES],
        ["simclr/attack_sweeps"],
    ),
    (
        "SWEEP=sim_coeff",
        [f"vicreg/vicreg_simsweep_sim{value}_{side}" for value in SIM_COEFFS for side in "AB"],
        [f"vicreg/attack_sweeps/NN_attk_vicreg_sim{value}_1000ep" for value in SIM_COEFFS],
        [f"vicreg/lin_probe_sweeps_with_aug/lp_vicreg_sim{value}_1000ep" for value in SIM_COEFFS],
        ["vicreg/attack_sweeps"],
    ),
    (
        "SWEEP=corner_fraction",
        [f"vicreg/vicreg_dssweep_100pc_{side}" for side in "AB"],
        [f"vicreg/attack_sweeps_cropsize/NN_attk_vicreg_crop_p{value}_1000ep" for value in FRACTIONS],
        [],
        ["vicreg/attack_sweeps_cropsize"],
    ),
    (
        "ARCH=resnet50 LOSS=simclr SWEEP=datasets DATASETS=300",
        [f"simclr_rn50/simclr_rn50_dssweep_300pc_{side}" for side in "AB"],
        ["simclr_rn50/attack_sweeps/NN_attk_simclr_rn50_300pc_1000ep"],
        ["simclr_rn50/lin_probe_sweeps_with_aug/lp_simclr_rn50_300pc_1000ep"],
        ["simclr_rn50/attack_sweeps"],
    ),
    (
        "LOSS=supervised ATTACKS='projector backbone logits corner_crop' SWEEP=epochs EPOCHS=1000",
        [f"supervised/supervised_dssweep_300pc_{side}" for side in "AB"],
        [f"supervised/attack_sweeps{kind}/NN_attk_supervised_300pc_1000ep" for kind in KINDS],
        ["supervised/lin_probe_sweeps_with_aug/lp_supervised_300pc_1000ep"],
        [f"supervised/attack_sweeps{kind}" for kind in KINDS],
    ),
]


@pytest.mark.parametrize("environment, trainings, attacks, probes, plots", CASES)
def test_published_names(dry_run, tmp_path, environment, trainings, attacks, probes, plots):
    found = published(dry_run(**options(environment)), tmp_path)
    assert found["train_SSL.py"] == trainings and found["label_inference_attack.py"] == attacks
    assert found.get("lin_probe.py", []) == probes and found["plot_quant_results.py"] == plots


def test_flags_of_the_parameter_sweeps(dry_run):
    for script, key, values in (
        ("training_simclr_tempsweep.sh", "simclr.temperature", list(TEMPERATURES.values())),
        ("training_vicreg_simsweep.sh", "vicreg.sim_coeff", SIM_COEFFS),
    ):
        found = commands(dry_run(script, "--training.epochs", "3"))
        settings = [train_SSL.read_settings(words)[0] for _, words in found]
        assert [s[key] for s in settings] == [float(value) for value in values for _ in "AB"]
        assert {(s["training.epochs"], Path(s["data.train_dataset"]).name[:4]) for s in settings} == {(3, "100_")}
    found = commands(dry_run(SWEEP="corner_fraction"))
    attacks = [label_inference_attack.parse_args(words) for script, words in found if script.startswith("label")]
    assert [(a.use_corner_crop, a.corner_crop_frac) for a in attacks] == [(1, value / 100) for value in FRACTIONS]
    (plot,) = [plot_quant_results.parse_args(words) for script, words in found if script.startswith("plot")]
    assert plot.sweep_param == "corner_crop_frac" and not plot.plot_lin_probe


@pytest.mark.parametrize("loss", ["vicreg", "simclr", "supervised"])
def test_entry_scripts_are_single_stages(dry_run, tmp_path, loss):
    for script, stage, count in (
        (f"training_{loss}_dssweep.sh", "train_SSL.py", 10),
        (f"attack_{loss}_full_sweep.sh", "label_inference_attack.py", 10),
        (f"lin_probe_{loss}.sh", "lin_probe.py", 10),
        (f"plot_{loss}.sh", "plot_quant_results.py", 1),
    ):
        for side in "AB":
            for point in [(n, 1000) for n in SIZES] + [(300, epoch) for epoch in EPOCHS]:
                model = f"{loss}_dssweep_{point[0]}pc_{side}/model_ep{point[1]}.pth"
                in_folder(tmp_path / loss / model).touch()
        found = published(dry_run(script), tmp_path)
        assert list(found) == [stage] and len(found[stage]) == count


@rows_of(
    "environment, texts",
    """
    INDEX_FOLDER=                  -> the variable INDEX_FOLDER is not set
    IMAGENET_DATASET_DIR=ABSENT    -> IMAGENET_DATASET_DIR ABSENT: no such folder
    STAGES=attack                  -> vicreg_dssweep_300pc_A/model_ep50.pth: no such file; train the model
    DATASET="100 200" SWEEP=epochs -> DATASET: one number is needed, not '100 200'
    EPOCHS="50 x"                  -> EPOCHS: x is not a whole number
    EPOCHS=1500                    -> epoch 1500 (EPOCHS, EPOCH): the training of vicreg_dssweep_300pc has 1000 epochs
    EPOCHS=75                      -> epoch 75 (EPOCHS, EPOCH): the training of vicreg_dssweep_300pc has 1000 epochs
    SWEEP=model.arch               -> SWEEP=model.arch: VALUES is not set
    PUBLIC=600                     -> 600_per_class/public.npy: no such file
    DATASETS="100 700"             -> 700_per_class_A.beton: no such file
    LOSS=moco                      -> moco_cfg.yaml: no such file
    ATTACKS=logits                 -> ATTACKS=logits: only supervised models
    SWEEP=temperature              -> SWEEP=temperature LOSS=vicreg
    SWEEP=momentum                 -> SWEEP: momentum is not one of
    STAGES="train plots"           -> STAGES: plots is not one of
    ARCH=vit                       -> ARCH=vit
    K=ten                          -> K: ten is not a whole number from 1 on
    LOCAL=yes                      -> LOCAL: yes is not one of 0 1
    SWEEP=nothing                  -> SWEEP: nothing is not one of
""",
)
def test_what_is_missing_is_named_before_anything_is_printed(dry_run, environment, texts):
    result = dry_run(**environment)
    assert not result.stdout
    assert_one_line_error(result, *texts)


def test_what_a_later_stage_lacks_is_named_at_the_start(folders, tmp_path):
    result = sweep(folders, tmp_path, LOCAL="1", SWEEP="epochs", EPOCHS="50", PUBLIC="600")
    assert_one_line_error(result, "600_per_class/public.npy: no such file")
    assert not result.stdout and not list(tmp_path.iterdir())


def tools(folder):
    """An sbatch that numbers jobs and keeps their scripts, a squeue that lists FOLDER/queue; srun is never called."""
    folder.mkdir()
    (folder / "queue").touch()
    scripts = {
        "srun": "exit 1",
        "squeue": f'cat "{folder}/queue"',
        "sbatch": f"""number=$((100 + $(ls "{folder}" | grep -c '^job' || true)))
            echo "$@" >"{folder}/job$number"
            case "$*" in *--wrap*) ;; *) cat "${{@: -1}}" >>"{folder}/job$number" ;; esac
            echo $number >>"{folder}/queue"
            case "$*" in *--parsable*) echo $number ;; *) echo "Submitted batch job $number" ;; esac""",
    }
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.kills
def test_jobs_wait_for_each_other_and_are_not_submitted_twice(folders, tmp_path):
    """The scripts' real submission, by submitit, to an sbatch and squeue that only keep a list."""
    pytest.importorskip("submitit")
    slurm, logs = tools(tmp_path / "slurm"), tmp_path / "logs"
    size = dict(SWEEP="epochs", EPOCHS="50", TRAIN_FLAGS="--dist.ngpus 1", tools=slurm)
    ok(sweep(folders, logs, **size))
    names = ["vicreg_dssweep_300pc_A", "vicreg_dssweep_300pc_B", "NN_attk_vicreg_300pc_50ep", "lp_vicreg_300pc_50ep"]
    submitted = {name: next(logs.rglob(f"{name}.job")).read_text().strip() for name in names}
    assert list(submitted.values()) == ["100", "101", "102", "103"]
    jobs = {number: (slurm / f"job{number}").read_text() for number in range(100, 105)}
    assert "--dependency" not in jobs[100] + jobs[101]
    assert "#SBATCH --dependency=afterok:100:101\n" in jobs[102] and "--kill-on-invalid-dep=yes" in jobs[102]
    assert "#SBATCH --dependency=afterok:100\n" in jobs[103]
    assert "--dependency=afterany:102:103 " in jobs[104] and "plot_quant_results.py" in jobs[104]

    again = ok(sweep(folders, logs, **size))
    assert again.stdout.count("in the queue as job") == 5, again.stdout + again.stderr

    # Model A is trained, the attack has failed, the probe is still waiting: only the attack is submitted, and the plot.
    folder = logs / "vicreg/vicreg_dssweep_300pc_A"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("final_weights.pt", "model_ep50.pth"):
        (folder / name).touch()
    (slurm / "queue").write_text("101\n103\n")
    third = ok(sweep(folders, logs, **size))
    assert "vicreg_dssweep_300pc_A: there already" in third.stdout and "_B: in the queue as job 101" in third.stdout
    assert "#SBATCH --dependency=afterok:101\n" in (slurm / "job105").read_text()
    assert "afterany:105:103 " in (slurm / "job106").read_text() and not (slurm / "job107").exists()


def test_an_attack_of_several_layers_is_finished_with_its_last(dry_run, tmp_path):
    case = options('SWEEP=epochs EPOCHS=50 STAGES="train attack"')
    attack = tmp_path / "vicreg/attack_sweeps/NN_attk_vicreg_300pc_50ep"
    for layer, finished in (("backbone", False), ("projector.0", True)):
        (attack / layer).mkdir(parents=True)
        (attack / layer / "results.json").write_text('{"settings": {"k": 50}}')
        for separator in " =":
            result = dry_run(**case, ATTACK_FLAGS=f"--layers{separator}backbone,projector.0")
            said = f"{attack}: there already, but made with --k 50, not 100; remove {attack}/projector.0/results.json"
            assert result.returncode == 0 and (said in result.stdout) == finished, result.stderr


def test_a_missing_snapshot_is_not_to_be_trained_again(dry_run, tmp_path):
    for side in "AB":
        models = tmp_path / f"vicreg/vicreg_dssweep_300pc_{side}"
        models.mkdir(parents=True)
        settings = {"training.epochs": 4, "logging.snapshot_freq": 2, "training.base_lr": 0.4}
        (models / "params.json").write_text(json.dumps(settings))
        (models / "final_weights.pt").touch()
        (models / "model_ep4.pth").touch()
    result = dry_run(SWEEP="epochs", EPOCHS="3 4")
    assert_one_line_error(result, "has 4 epochs and a snapshot every 2; name one of these")
    case = options('SWEEP=epochs EPOCHS=4 STAGES="train attack" TRAIN_FLAGS="--training.epochs 4"')
    result = ok(dry_run(**case))
    said = "there already (4 epochs are done), but made with --training.base_lr 0.4, not 0.2"
    assert f"_A: {said}" in result.stdout and f"_B: {said}" in result.stdout
    words = ["--model_A_pth", str(models / "model_ep3.pth"), "--model_B_pth", "x", "--output_dir", str(tmp_path / "x")]
    public = ["--public_idx_pth", "x", "--imgnet_train_pth", "x"]
    assert_one_line_error(
        run_here("label_inference_attack.py", *words, *public), "4 epochs and a snapshot every 2: name one of these"
    )


def test_probes_of_another_sweep_do_not_count(dry_run, tmp_path):
    (tmp_path / "vicreg/lin_probe_sweeps_with_aug/lp_vicreg_300pc_1000ep").mkdir(parents=True)
    *_, (_, words) = commands(dry_run(SWEEP="sim_coeff", STAGES="train attack plot"))
    plot = plot_quant_results.parse_args(words)
    assert not plot.plot_lin_probe and plot.pct_confidences == [5, 20]


def test_both_ways_to_temperature_print_the_same(dry_run):
    published = dry_run(LOSS="simclr", SWEEP="temperature")
    as_setting = dry_run(LOSS="simclr", SWEEP="simclr.temperature", VALUES=" ".join(TEMPERATURES.values()))
    assert published.stdout == as_setting.stdout and commands(published)


def test_any_setting_several_losses_and_the_grid(dry_run, tmp_path):
    setting = options('SWEEP=model.arch VALUES="resnet18 timm:convnext_atto" LOSS="vicreg simclr"')
    found = published(dry_run(**setting), tmp_path)
    assert found["train_SSL.py"] == [
        f"{loss}/{loss}_archsweep_{value}_{side}"
        for loss in ("vicreg", "simclr")
        for value in ("resnet18", "timm:convnext_atto")
        for side in "AB"
    ]
    assert found["label_inference_attack.py"][-1] == "simclr/attack_sweeps/NN_attk_simclr_archtimm:convnext_atto_1000ep"
    folders_of_both = ["vicreg/attack_sweeps", "simclr/attack_sweeps"]
    assert found["plot_quant_results.py"] == folders_of_both  # of a setting each loss has its own figures
    found = published(dry_run(SWEEP="epochs", LOSS="vicreg simclr"), tmp_path)
    assert found["plot_quant_results.py"] == folders_of_both * 2  # and both in one command, side by side
    found = published(dry_run(SWEEP="grid", LOSS="supervised", ATTACKS="logits"), tmp_path)
    assert len(set(found["label_inference_attack.py"])) == 30 and len(found["train_SSL.py"]) == 10


@pytest.mark.parametrize(
    "surroundings",
    [
        {"SHELLOPTS": "noglob:noclobber:nounset", "BASHOPTS": "failglob:xpg_echo", "LC_ALL": "C", "HOME": None},
        {"BASH_FUNC_cd%%": "() { echo another cd; }", "BASH_FUNC_printf%%": "() { echo another printf; }"},
        {"CDPATH": ".:/tmp", "BASH_ENV": "odd.sh"},
    ],
)
def test_what_the_caller_has_exported_does_not_matter(folders, tmp_path, surroundings):
    (tmp_path / "odd.sh").write_text("cd() { echo an odd folder; }\nset -o noclobber\n")
    case = options("DRY_RUN=1 LOCAL=1 SWEEP=epochs EPOCHS=50")
    environment = {**os.environ, "PYTHON": sys.executable, **folders, "LOGGING_FOLDER": str(tmp_path), **case}
    expected = sweep(folders, tmp_path, **case).stdout
    for name, value in surroundings.items():
        environment[name] = str(tmp_path / value) if name == "BASH_ENV" else value
    environment = {name: value for name, value in environment.items() if value is not None}
    command = ["bash", "bash_examples/sweep.sh"]
    result = ok(subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, umask=0o077))
    assert result.stdout == expected


@pytest.mark.parametrize("command", [["bash", "sweep.sh"], ["bash", "demo.sh"], [sys.executable, "sweep_points.py"]])
def test_help_is_printed(command):
    result = ok(run_process(*command, "--help", cwd=ROOT / "bash_examples"))
    assert len(result.stdout.splitlines()) > 4 and not result.stderr


def test_a_dry_run_ends_with_what_it_costs(dry_run):
    """By hand: ten trainings of 100 to 500 images per class of 1000, 1000 epochs, 1700 images a second at 192 px."""
    result = dry_run(LOCAL="0", SWEEP="datasets", STAGES="train", CUDA_VISIBLE_DEVICES="")
    training, everything = result.stderr.splitlines()[-2:]
    match = re.fullmatch(r"train_SSL.py x 10: ([\d.]+) GPU hours \(H100\), ([\d.]+) GB", training)
    by_hand = 2 * 1.5e6 * 1000 / (2148 * (160 / 192) ** 2) / 3600
    assert match and 0.67 < float(match[1]) / by_hand < 1.5 and everything.startswith("in all: ")


def test_the_costs_formula_agrees_with_the_demo_within_a_half(monkeypatch):
    """Measured on one core: 252 (bf16) and 372 ms (fp32) a step of ResNet-18 with 128 views of 32 px."""
    costs = script_module("bash_examples/costs.py")
    words = ["--config-file", str(ROOT / "configs/demo_cfg.yaml"), "--training.epochs", "1"]
    flags = costs.typed_flags([*words, "--data.train_dataset", "64_per_class_A.beton"])
    seconds = (costs.training(flags, "resnet18").core_hours() * 3600 - costs.START) / costs.CLASSES
    for measured in (0.252, 0.372):
        assert 1 / 1.5 < seconds / measured < 1.5
    # And 105 s of network and 46 s of loading in 300 epochs of the demo's own, 250 images each (docs/demo.md).
    flags = costs.typed_flags([*words[:2], "--training.epochs", "300", "--data.train_dataset", "250_A.beton"])
    monkeypatch.setattr(costs, "CLASSES", 1)
    assert 1 / 1.5 < costs.training(flags, "test_resnet").core_hours() * 3600 / (105 + 46 + costs.START) < 1.5


def small_data(tmp_path):
    """(environment variables, their folders filled) of a partition of 4 and 6 images per class."""
    draw_tree(tmp_path, classes=3, per_class=16, boxed=8)
    folders = {
        "IMAGENET_DATASET_DIR": str(tmp_path / "images"),
        "IMAGENET_BBOX_ANNOTATIONS": str(tmp_path / "boxes"),
        "INDEX_FOLDER": str(tmp_path / "index"),
        "BETONS_FOLDER": str(tmp_path / "betons"),
    }
    split = ["--imgnet_dir", tmp_path / "images", "--bbox_dir", tmp_path / "boxes", "--save_dir", tmp_path / "index"]
    ok(run_here("imagenet_partition.py", *split, "--per_class", 4, 6))
    return folders


SMALL_TRAINING = (
    "--model.arch resnet18 --model.mlp 16-8 --resolution.min_res 32 --resolution.max_res 32 --validation.resolution 32 "
    "--training.batch_size 4 --training.warmup_epochs 1 --data.num_workers 1"
)

# The commands of the study's README from training to figures, word by word.
README = {
    "train_SSL": "--config-file configs/vicreg_cfg.yaml --dist.use_submitit 1 --data.train_dataset "
    "$BETONS_FOLDER/300_per_class_{side}.beton --data.val_dataset $BETONS_FOLDER/val.beton --logging.folder "
    "$LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_{side} 0",
    "label_inference_attack": "--local 0 --loss vicreg --output_dir "
    "$LOGGING_FOLDER/vicreg/attack_sweeps/NN_attk_vicreg_300pc_1000ep --model_A_pth "
    "$LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth --model_B_pth "
    "$LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_B/model_ep1000.pth --bbox_A_idx_pth "
    "$INDEX_FOLDER/300_per_class/bbox_A.npy --bbox_B_idx_pth $INDEX_FOLDER/300_per_class/bbox_B.npy --public_idx_pth "
    "$INDEX_FOLDER/500_per_class/public.npy --imgnet_train_pth $IMAGENET_DATASET_DIR --imgnet_bbox_pth "
    "$IMAGENET_BBOX_ANNOTATIONS --k 100 --k_attk 100",
    "lin_probe": "--local 0 --model_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth --end_lr 0.1 "
    "--epochs 20 --loss vicreg --train_idx_pth $INDEX_FOLDER/300_per_class/train_A.npy --val_idx_pth "
    "$INDEX_FOLDER/val_set.npy --imgnet_train_pth $IMAGENET_DATASET_DIR --output_dir "
    "$LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug/lp_vicreg_300pc_1000ep",
    "plot_quant_results": "--model vicreg --epoch_sweep_dataset 300 --dataset_sweep_epoch 1000 --pct_confidences "
    "20,100 --attack_fname attack_sweeps --plot_lin_probe 1 --attk_folder_path $LOGGING_FOLDER/vicreg/attack_sweeps "
    "--lin_probe_folder_path $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug --save_path $LOGGING_FOLDER/vicreg/plot/",
}


def test_published_commands_from_training_to_figures(tmp_path, monkeypatch):
    """submitit's debug executor in place of SLURM; only flags of size are appended."""
    figures = ("attk_datasets_partition_top1", "lp_epochs_top1", "lp_datasets_top1", "attk_confidence_top1")
    draw_alone(monkeypatch, *figures)
    folders = {**small_data(tmp_path), "LOGGING_FOLDER": str(tmp_path / "logs")}
    for n, published_n in ((4, 300), (6, 500)):
        (tmp_path / f"index/{n}_per_class").rename(tmp_path / f"index/{published_n}_per_class")
    for name, value in folders.items():
        monkeypatch.setenv(name, value)
    for name, indices in (("300_per_class_A", "300_per_class/train_A"), ("300_per_class_B", "300_per_class/train_B")):
        save_beton(tmp_path, f"{name}.beton", f"{indices}.npy")
    save_beton(tmp_path, "val.beton", "val_set.npy")
    jobs = debug_cluster(monkeypatch, tmp_path)["jobs"]
    monkeypatch.chdir(ROOT)

    def run(module, size, **fields):
        words = os.path.expandvars(README[module.__name__].format(**fields)).split()
        zero = words[-1:] if words[-1] == "0" else []
        monkeypatch.setattr(sys, "argv", [module.__name__, *words[: len(words) - len(zero)], *size.split(), *zero])
        with kept_signals():
            module.main()
            if jobs:
                jobs.pop().result()

    for side in "AB":
        run(train_SSL, f"{SMALL_TRAINING} --training.epochs 2", side=side)
        models = tmp_path / f"logs/vicreg/vicreg_dssweep_300pc_{side}"
        (models / "model_ep2.pth").rename(models / "model_ep1000.pth")  # nobody tests a thousand epochs
    run(label_inference_attack, "--k 5 --k_attk 5 --resolution 32 --min_px 5 --num_workers 0")
    run(lin_probe, "--epochs 2 --start_lr 0.1 --resolution 32 --num_workers 0")
    run(plot_quant_results, "--k_neighb 5")
    plots = tmp_path / "logs/vicreg/plot"
    assert pd.read_csv(plots / "attk_epochs_acc_top1.csv")["epoch"].tolist() == [1000, 1000]
    assert pd.read_csv(plots / "score_probe_gap_top5.csv")["probe_gap"].notna().all()
    for name in figures:
        assert (plots / f"{name}_legend.pdf").stat().st_size > 5000


def save_beton(folder, name, indices):
    listing = list_images(folder / "images")
    chosen = np.load(folder / "index" / indices)
    (folder / "betons").mkdir(exist_ok=True)
    images = [np.array(load_image(listing.path(index))) for index in chosen]
    write_beton(folder / "betons" / name, images, listing.labels[chosen].tolist())


@pytest.mark.slow
def test_small_sweeps_of_each_kind_run_here(tmp_path):
    """From images to figures, twice: the second time nothing is left to do but the figures."""
    folders = small_data(tmp_path)
    for script in ("gen_betons.sh", "gen_val_betons.sh"):
        subprocess.run([str(ROOT / script)], env={**os.environ, **folders, "PYTHON": sys.executable}, check=True)
    small = options(f"""LOCAL=1 EPOCH=4 DATASET=6 PARAM_DATASET=4 PUBLIC=6 K=3
        TRAIN_FLAGS="{SMALL_TRAINING} --training.epochs 4 --logging.snapshot_freq 2"
        ATTACK_FLAGS="--resolution 32 --min_px 5 --num_workers 0"
        PROBE_FLAGS="--resolution 32 --num_workers 0 --epochs 1 --start_lr 0.1" """)
    kinds = [
        ('EPOCHS="2 4" DATASETS="4 6" ATTACKS="projector backbone"', "attk_epochs", [2, 4]),
        ('SWEEP=temperature LOSS=simclr TEMPERATURES=".15 .5"', "attk_params", [0.15, 0.5]),
        ('SWEEP=corner_fraction FRACTIONS=".3 .40"', "attk_params", [0.3, 0.4]),
        ('LOSS=supervised ATTACKS="logits corner_crop" SWEEP=datasets DATASETS=6', "attk_datasets", [6]),
    ]
    for environment, figure, points in kinds:
        case = {**small, **options(environment)}
        ok(sweep(folders, tmp_path / "logs", **case))
        again = ok(sweep(folders, tmp_path / "logs", **case))
        assert "there already" in again.stdout and ": 4 epochs are done" not in again.stdout
        saved = re.findall(rf"(/.*{figure}_acc_top1)_legend\.png$", again.stdout, re.MULTILINE)
        assert saved and all(pd.read_csv(f"{path}.csv").iloc[:, 0].unique().tolist() == points for path in saved)
    layers = pd.read_csv(tmp_path / "logs/vicreg/plot/attk_layers_acc_top1.csv")
    assert layers["layer"].unique().tolist() == ["backbone", "projector"]
    scores = read_json(next((tmp_path / "logs/supervised").rglob("results.json")))
    assert np.isfinite(scores["both"]["top_1"]["accuracy"]["100"]["target"]["value"])
