"""The chain as a user runs it: the demo in miniature (and whole, slow), and the published commands."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, ok, options, read_json, rows_of, run_example, run_here, run_process, script_module

MINIATURE = options("EPOCHS=12 PER_CLASS=20 CLASSES=4 SNAPSHOTS=2 K=10 SEED=3 PRECISION=fp32")


def demo(folder, script="demo.sh", code=0, **environment):
    """What the demo, run to its end, has printed."""
    result = run_example(script, DEMO_DIR=folder, **environment)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def folder_and_run(tmp_path, snapshots):
    folder = tmp_path / 'it\'s a "földer"'
    return folder, folder / f"seed3_4classes_20pc/simclr_12epochs_{snapshots}snapshots_10neighbors"


def test_demo_in_miniature_and_run_again(tmp_path):
    folder, run = folder_and_run(tmp_path, 1)
    case = {**MINIATURE, "SNAPSHOTS": "1", "PRECISION": "auto"}
    output = demo(folder, **case)
    for stage in range(1, 8):
        assert f"== {stage}/7" in output
    assert len(output.splitlines()) <= 80 and "Warning" not in output
    assert "epoch 12, projector: Target accuracy" in output and "epoch 12: validation: top-1" in output
    gallery = re.search(r"Examples to look at: (.*\.html)\n", output)[1]
    assert Path(gallery).is_file()
    precision = (folder / "seed3_4classes_20pc/precision.txt").read_text().strip()
    assert precision in ("fp32", "bf16") and f"precision of the training: {precision}\n" in output
    params = read_json(run / "simclr_dssweep_20pc_A/params.json")
    assert params["training.precision"] == precision and params["dist.world_size"] == 1
    summary = pd.read_csv(run / "summary.csv")
    assert summary["attack"].tolist() == ["projector", "projector", "backbone", "backbone"]
    assert summary["pct_confidence"].tolist() == [100, 20, 100, 20]
    # Of all examples classes are equally frequent; of the most confident they need not be.
    assert summary["chance"][[0, 2]].tolist() == [0.25, 0.25] and (summary["chance"] < 0.5).all()
    results = read_json(run / "attack_sweeps/NN_attk_simclr_20pc_12ep/results.json")
    assert results["counts"]["A"]["images"] == 72 and results["counts"]["public"] == 232
    table = output[output.index("== Result") :]
    for name, column in (("target", "target"), ("score", "score")):
        figure = results["both"]["top_1"]["accuracy"]["100"][name]
        assert summary[column][0] == pytest.approx(
            figure["value"], rel=1e-12
        )  # older pandas reads the last digit otherwise
        assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in table
    for name in ("attk_epochs_acc_top1_legend.png", "attk_epochs_partition_top1.pdf", "lp_epochs_top1.png"):
        assert (run / "plot" / name).stat().st_size > 5000

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    again = demo(folder, **case)
    assert again.count("there already") == 8  # data, partition, three betons, two attacks, a probe
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")} == before
    assert again[again.index("== Result") :].splitlines()[1:7] == table.splitlines()[1:7]
    output = demo(folder, "demo_rcdm.sh", code=2, **{**case, "SEED": "4"})
    assert "run bash_examples/demo.sh with the same variables first" in output


@rows_of(
    "variables, message",
    """
    EPOCHS=abc              -> demo.sh: error: EPOCHS
    PER_CLASS="40 50"       -> demo.sh: error: PER_CLASS
    LOSS=simclrr            -> demo.sh: error: LOSS
    K=0                     -> demo.sh: error: K
    PRECISION=fp8           -> demo.sh: error: PRECISION
    LOSSES="simclr simclrr" -> demo_losses.sh: error: LOSS
    MODELS=C                -> demo_one_model.sh: error: MODELS
    STEPS=1e3               -> demo_rcdm.sh: error: STEPS
    SUPERVISED=yes          -> demo_rcdm.sh: error: SUPERVISED
    SNAPSHOTS=0             -> demo_sslmem.sh: error: SNAPSHOTS
""",
)
def test_a_wrong_variable_is_named_before_anything_is_done(tmp_path, variables, message):
    output = demo(tmp_path / "demo", message[0].partition(":")[0], code=2, **variables)
    assert len(output.splitlines()) == 1 and message[0] in output
    assert not (tmp_path / "demo").exists()


@pytest.mark.kills
def test_demo_killed_and_continued_and_reconstructions(tmp_path):
    folder, run = folder_and_run(tmp_path, 2)
    command = ["bash", ROOT / "bash_examples/demo.sh"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}  # to kill all of it
    process = subprocess.Popen(command, env={**os.environ, "DEMO_DIR": str(folder), **MINIATURE}, **options)
    deadline = time.monotonic() + 300
    log = run / "train_A_log.out"
    while not (log.exists() and "epoch 7/12" in log.read_text()):  # past the checkpoint after epoch 6
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "attack_sweeps").exists()

    demo(folder, **MINIATURE)
    assert "resumes after epoch" in log.read_text()
    assert pd.read_csv(run / "plot/attk_epochs_acc_top1.csv")["epoch"].unique().tolist() == [6, 12]
    assert pd.read_csv(run / "plot/lp_epochs_top1.csv")["epoch"].tolist() == [6, 12]

    demo(folder, "demo_rcdm.sh", STEPS="3", RESPACING="2", SUPERVISED="1", **MINIATURE)
    figures = run / "RCDM/reconstructions"
    assert (figures / "memorized/recon_supervised.png").is_file()
    assert (run / "RCDM/rcdm_simclr_12ep_20pc_B/ema_0.995_000003.pt").is_file()
    assert read_json(figures / "visualization_RCDM.ipynb")["cells"]
    assert (figures / "memorized.png").stat().st_size > 5000


def test_precisions_are_timed_and_the_faster_is_named(monkeypatch, capsys):
    script = script_module("bash_examples/faster_precision.py")
    seconds = script.step_seconds(steps=1, batch_size=2)
    assert set(seconds) == {"fp32", "bf16"} and min(seconds.values()) > 0
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["faster_precision.py"])
    for bf16, expected in ((0.5, "bf16"), (0.95, "fp32"), (1.5, "fp32")):
        monkeypatch.setattr(script, "step_seconds", lambda *_, bf16=bf16: {"fp32": 1.0, "bf16": bf16})
        script.main()
        assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.slow
def test_demo_measures_memorization_against_the_known_answer(tmp_path):
    output = demo(tmp_path, SEED="7")
    summary = pd.read_csv(tmp_path / "seed7/simclr_300epochs/summary.csv")
    for row in summary.itertuples():
        assert row.score_low > 0, output
        if row.pct_confidence == 100:
            assert abs(row.reference - row.chance) < 0.06, output
    assert summary["target"][0] > summary["chance"][0] + 0.15, output


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["vicreg", "barlow", "byol", "dino", "mocov3", "supervised"])
def test_every_loss_learns_the_demo(tmp_path, loss):
    output = demo(tmp_path, LOSS=loss, EPOCHS="300", SNAPSHOTS="1")
    (path,) = (tmp_path / "seed0").glob(f"{loss}_300epochs*/attack_sweeps_backbone/*/results.json")
    assert read_json(path)["ceiling"]["A"]["top_1"]["value"] > 0.8, output  # of whole images; chance is 0.2


@pytest.mark.slow
def test_losses_side_by_side_and_two_trainings_on_the_same_sets(tmp_path):
    case = {**MINIATURE, "SNAPSHOTS": "1"}
    demo(tmp_path, "demo_losses.sh", LOSSES="simclr supervised", **case)
    run = tmp_path / "seed3_4classes_20pc"
    table = pd.read_csv(run / "losses.csv").query("pct_confidence == 100").set_index("attack")
    criteria = pd.read_csv(run / "plot_losses/criteria_top1.csv").set_index("loss")
    for loss in ("simclr", "supervised"):
        (attack,) = (run / f"{loss}_12epochs_1snapshots_10neighbors/attack_sweeps").glob("NN_*")
        single = read_json(attack / "results.json")["both"]["top_1"]["accuracy"]["100"]
        for column in ("target", "reference", "score"):
            assert table.loc[loss, column] == criteria.loc[loss, column] == pytest.approx(single[column]["value"])
    assert (run / "plot_losses/criteria_top1_legend.png").stat().st_size > 5000

    demo(tmp_path, TRAIN_SEED="4", **case)
    runs = list(run.glob("simclr_12epochs_*/attack_sweeps/NN_*"))
    path = tmp_path / "runs.csv"
    words = ["--runs", *map(str, runs), "--agreement", "--save_path", str(path)]
    ok(run_here("bash_examples/summary_table.py", *words))
    agreement = pd.read_csv(tmp_path / "runs_agreement.csv")
    assert len(runs) == 2 and len(agreement) == 4


def test_help_shows_commands_and_missing_flags_are_named():
    for path in sorted(ROOT.glob("*.py")):
        result = ok(run_here(path.name, "--help"))
        assert f"python {path.name}" in result.stdout, path.name
        result = run_here(path.name)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, path.name
        assert re.search(r"error: .*--", result.stderr), path.name


RUN_ALL = """
import runpy, sys
path = list(sys.path)
for script in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("dejavu_utils")]:
        del sys.modules[name]
    sys.path[:] = path
    runpy.run_path(script)
"""


def test_examples_use_the_package_of_their_own_checkout(tmp_path):
    (tmp_path / "dejavu_utils.py").write_text("raise SystemExit('the package of another checkout')")
    (tmp_path / "run_all.py").write_text(RUN_ALL)  # one process for all: torch is imported once
    command = [sys.executable, tmp_path / "run_all.py", *sorted((ROOT / "bash_examples").glob("*.py"))]
    ok(run_process(*command, cwd=tmp_path, PYTHONPATH=tmp_path))
