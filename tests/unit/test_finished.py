"""What scripts ask before they import torch: is a folder finished, with which flags, and is a job writing it?"""

import json
import os
import re
import sys
import time

import pytest
from helpers import ROOT, ok, run_process

from dejavu_utils.finished import (
    awaited_jobs,
    changed_input,
    difference,
    missing_snapshot,
    queued_job,
    typed_flags,
)

RECORD = {"k": 100, "box_margin": 0.0, "public_idx_pth": "/old/500_per_class/public.npy", "layers": None, "seed": 0}


LINES = """--k 100 --box_margin 0 --seed=0 ->
    --public_idx_pth /new/500_per_class/public.npy ->
    --public_idx_pth /old/400_per_class/public.npy -> --public_idx_pth /old/500_per_class/public.npy, not
    --k 10 --box_margin 4 -> --k 100, not 10
    --box_margin 4 -> --box_margin 0.0, not 4
    --mem_gb 3 --unknown 7 ->"""


@pytest.mark.parametrize("line", LINES.splitlines())
def test_the_first_flag_that_differs_is_named(line):
    """A tree that was moved is no difference."""
    words, text = line.split("->")
    said = difference(typed_flags(words.split()), RECORD)
    assert said.startswith(text.strip()) and bool(said) == bool(text)


def test_a_file_of_equal_name_and_other_contents_is_another(tmp_path):
    for folder, text in (("old", "a"), ("copy", "a"), ("other", "b")):
        (tmp_path / folder / "run").mkdir(parents=True)
        (tmp_path / folder / "run/A.pth").write_text(text)
    record = {"model_A_pth": str(tmp_path / "old/run/A.pth")}
    other = str(tmp_path / "other/run/A.pth")
    assert not difference({"model_A_pth": [str(tmp_path / "copy/run/A.pth")]}, record)
    assert difference({"model_A_pth": [other]}, record) == f"--model_A_pth {record['model_A_pth']}, not {other}"


@pytest.mark.parametrize("name", ["A.npy", "A.pth", "A.safetensors"])
def test_a_file_that_came_after_the_results_is_noticed_whatever_its_own_time(tmp_path, name):
    results, path, older = tmp_path / "results.json", tmp_path / name, tmp_path / "older"
    path.touch()
    time.sleep(0.02)
    results.touch()
    flags = {"input": [str(path)], "k": ["3"]}
    assert not changed_input(flags, results)
    time.sleep(0.02)
    older.touch()
    os.utime(older, (0, 0))
    os.replace(older, path)  # as cp -p and rsync leave it
    assert changed_input(flags, results) == str(path)
    os.utime(results, (1000, 1000))  # the results were copied, too: of the tree's times none tells
    assert not changed_input(flags, results)
    os.utime(path)
    assert changed_input(flags, results) == str(path)


def test_flags_of_a_yaml_file_come_before_typed_ones(tmp_path):
    (tmp_path / "c.yaml").write_text("training:\n  base_lr: 1e-3\n  epochs: 4\n")
    words = ["--config-file", str(tmp_path / "c.yaml"), "--training.epochs", "5", "0"]
    flags = typed_flags(words)
    assert flags["training.base_lr"] == ["1e-3"] and flags["training.epochs"][0] == "5"
    assert not difference(flags, {"training.base_lr": 0.001, "training.epochs": 5})
    assert difference(flags, {"training.base_lr": 0.3}) == "--training.base_lr 0.3, not 1e-3"


def queue_of(folder, *numbers):
    """A squeue that lists these jobs."""
    squeue = folder / "bin/squeue"
    squeue.parent.mkdir(exist_ok=True)
    squeue.write_text("#!/bin/sh\necho " + " ".join(numbers) + "\n")
    squeue.chmod(0o755)
    return f"{squeue.parent}{os.pathsep}{os.environ['PATH']}"


SCRIPTS = [
    ("label_inference_attack.py", "--local 0 --k 10", "--output_dir", "results.json", {"settings": {"k": 100}}),
    ("label_inference_attack.py", "--layers backbone,projector --k 10", "--output_dir", "projector/results.json", {}),
    ("lin_probe.py", "--local 1 --epochs 3", "--output_dir", "results.json", {"settings": {"epochs": 2}}),
    ("sslmem.py", "--views 4", "--output_dir", "results.json", {"settings": {"views": 10}}),
    ("train_RCDM.py", "--local 0 --lr 1 --lr_anneal_steps 20", "--out_dir", "samples000020.png", {"lr": 0.1}),
    (
        "train_SSL.py",
        "--dist.use_submitit 1 --training.epochs 3 0",
        "--logging.folder",
        "final_weights.pt",
        {"training.epochs": 2},
    ),
]


@pytest.mark.parametrize("script, line, flag, last, record", SCRIPTS)
def test_scripts_leave_what_is_finished_or_queued(tmp_path, script, line, flag, last, record):
    folder = tmp_path / "a run"
    (folder / last).parent.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(record))
    (folder / last).write_text(json.dumps(record))
    command = [sys.executable, ROOT / script, flag, folder, *line.split()]
    result = ok(run_process(*command, PYTHONPROFILEIMPORTTIME=1))
    assert "argparse" not in result.stderr and "torch" not in result.stderr
    assert result.stdout.startswith(f"{folder}: there already")
    assert ("but made with" in result.stdout) == bool(record)

    (folder / last).unlink()
    (tmp_path / "a run.job").write_text("17\n")
    submit = ["--dist.use_submitit", "1"] if script == "train_SSL.py" else ["--local", "0"]
    result = run_process(*command, *submit, PATH=queue_of(tmp_path, "16", "17"))
    assert result.stdout == f"{folder}: in the queue as job 17\n", result.stderr


def test_a_missing_checkpoint_waits_for_the_job_that_writes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", queue_of(tmp_path, "5", "12"))
    for name, number in (("A", "12"), ("B", "5"), ("C", "99")):
        (tmp_path / f"{name}.job").write_text(f"{number}\n")
    paths = [str(tmp_path / name / "model_ep2.pth") for name in "ABCD"]
    assert awaited_jobs([*paths, None, 3]) == ["5", "12"] and not queued_job(tmp_path / "C")
    (tmp_path / "A").mkdir()
    (tmp_path / "A/model_ep2.pth").touch()
    assert awaited_jobs(paths) == ["5"]


def test_a_snapshot_that_no_training_writes_is_named(tmp_path):
    settings = {"training.epochs": 1000, "logging.snapshot_freq": 50}
    (tmp_path / "params.json").write_text(json.dumps(settings))
    for epoch, never in ((50, False), (1000, False), (1500, True), (75, True)):
        assert bool(missing_snapshot(tmp_path / f"model_ep{epoch}.pth")) == never
    assert re.search("1000 epochs and a snapshot every 50", missing_snapshot(tmp_path / "model_ep1500.pth"))
    assert not missing_snapshot(tmp_path / "other.pth") and not missing_snapshot(tmp_path / "x/model_ep7.pth")
