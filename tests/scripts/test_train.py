"""train_SSL.py as a user runs it, on a tiny .beton: files, log, resume, errors."""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    assert_one_line_error,
    debug_cluster,
    flags,
    interrupted,
    kept_signals,
    load,
    noise,
    ok,
    one_thread,
    options,
    read_json,
    read_log,
    rows_of,
    run_here,
    run_process,
    run_script,
)
from stages import TRAINING

import train_SSL
from dejavu_utils.data.beton import Beton, write_beton
from dejavu_utils.errors import InputError
from dejavu_utils.models import HEADS, LOSSES
from dejavu_utils.networks.loading import load_network
from dejavu_utils.runtime.processes import StopSignal
from dejavu_utils.training.methods import METHODS
from dejavu_utils.training.methods.method import Method
from dejavu_utils.training.settings import Settings

SMALL = TRAINING | options("""--data.num_workers 2 --training.loss vicreg --training.batch_size 8 --training.epochs 4
    --training.eval_freq 2 --logging.snapshot_freq 2 --logging.checkpoint_freq 1 --logging.log_level 2""")


@pytest.fixture(scope="module")
def betons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("betons")
    images = noise((40 + i, 50) for i in range(30))
    for name, some in (("train", images[:20]), ("val", images[20:])):
        write_beton(folder / f"{name}.beton", some, np.arange(len(some)) % 6)
    return folder


def command(betons, folder, words="", **changes):
    """The flags of a small training. words: more of them."""
    settings = {
        **SMALL,
        "data.train_dataset": betons / "train.beton",
        "data.val_dataset": betons / "val.beton",
        "logging.folder": folder,
        **options(words),
        **{name.replace("__", "."): str(value) for name, value in changes.items()},
    }
    return [*flags(settings), "0"]


def train(betons, folder, words="", **changes):
    return run_here("train_SSL.py", *command(betons, folder, words, **changes))


def assert_same_weights(folder, other):
    weights, expected = (load(place / "final_weights.pt") for place in (folder, other))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def untimed(folder):
    """The log's records without what differs from run to run."""
    times = ("timestamp", "relative_time", "time", "images_per_second")
    return [{name: value for name, value in record.items() if name not in times} for record in read_log(folder / "log")]


@pytest.fixture(scope="module")
def whole_run(betons, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    ok(train(betons, folder))
    return folder


def test_files_and_log(whole_run):
    names = "params.json log model.pth model_ep2.pth model_ep4.pth final_weights.pt"
    assert {path.name for path in whole_run.iterdir()} == set(names.split())
    params = read_json(whole_run / "params.json")
    assert params["training.batch_size"] == 8 and params["vicreg.sim_coeff"] == 25
    records = read_log(whole_run / "log")
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    assert {"timestamp", "relative_time", "train_loss", "loss", "time"} <= records[0].keys()
    for layer in (0, 1, 2):
        assert 0 <= records[0][f"top_1_layer{layer}"] <= records[0][f"top_5_layer{layer}"] <= 1
        assert [f"loss_classif_val_layer{layer}" in r for r in records] == [False, True, False, True]


def test_checkpoint_rebuilds_the_network(whole_run):
    network = load_network(whole_run / "model_ep4.pth")
    assert (network.arch, network.mlp, network.loss, network.num_classes) == ("test_resnet", "32-16", "vicreg", 6)
    final = load(whole_run / "final_weights.pt")
    assert all(torch.equal(final[f"module.{k}"], v) for k, v in network.state_dict().items())
    checkpoint = load(whole_run / "model.pth")
    assert checkpoint["epoch"] == 4 and "module.probes.2.weight" in checkpoint["probes"]


def test_number_of_workers_and_a_second_run_change_nothing(betons, whole_run, tmp_path):
    ok(train(betons, tmp_path, "--data.num_workers 1 --data.in_memory 1"))
    assert_same_weights(tmp_path, whole_run)
    again = ok(train(betons, tmp_path))
    assert "4 epochs are done" in again.stdout
    assert len((tmp_path / "log").read_text().splitlines()) == 4


@pytest.mark.kills
@pytest.mark.parametrize("loss, epochs", [*((loss, 4) for loss in LOSSES), ("vicreg", 14)])
def test_stopped_by_signals_and_continued_equals_uninterrupted(betons, tmp_path, loss, epochs):
    """Again and again, at whatever step the signal comes; the log's figures are those of one run, too."""
    settings = dict(training__loss=loss, training__epochs=epochs, training__batch_size=4, logging__checkpoint_freq=100)
    settings |= {"training__num_small_crops": 2, "resolution__min_res": 64} if loss == "dino" else {}
    settings |= {"logging__snapshot_freq": 100, "training__eval_freq": 100, "model__arch": "resnet18"}  # slow steps
    ok(train(betons, tmp_path / "whole", **settings))
    stopped = 0
    for signum in itertools.cycle((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)):
        words = command(betons, tmp_path / "parts", **settings)
        code, output = interrupted("train_SSL.py", words, signum, "epoch ")
        if code == 0:
            break
        assert code == 128 + signum and "stopped after epoch" in output, output
        stopped += 1
    assert stopped >= (10 if epochs > 10 else 2)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


def settings_of(arguments):
    return Settings.from_flat(train_SSL.read_settings(arguments)[0])


def train_here(settings):
    """The training in this process, on one thread as in the others."""
    with kept_signals(), one_thread():
        train_SSL.train(settings)


def stopped_after_a_step(settings, monkeypatch):
    """(model.pth, its content) of a training that is asked to stop within its first step."""

    class Asked(StopSignal):
        def __init__(self):
            super().__init__()
            self.received = signal.SIGTERM

    monkeypatch.setattr(train_SSL, "StopSignal", Asked)
    with pytest.raises(SystemExit):
        train_here(settings)
    monkeypatch.undo()
    path = Path(settings.logging.folder) / "model.pth"
    return path, load(path)


# A checkpoint's entries and settings when training was first published; later ones are not in files from then.
ENTRIES_OF_BEFORE = """epoch steps_done model objective optimizer probes optimizer_probes scaler meter settings
num_classes train_set world_size""".split()
SETTINGS_OF_BEFORE = ("vicreg", "simclr", "barlow", "byol", "dino")


def test_an_older_checkpoint_is_resumed_and_attacked(betons, whole_run, tmp_path, monkeypatch):
    settings = settings_of(command(betons, tmp_path))
    path, saved = stopped_after_a_step(settings, monkeypatch)
    assert (saved["epoch"], saved["steps_done"]) == (0, 1)
    before = {name: saved[name] for name in ENTRIES_OF_BEFORE}
    common = {"model", "resolution", "data", "augment", "logging", "validation", "training", "dist"}
    known = common | set(SETTINGS_OF_BEFORE)
    before["settings"] = {key: value for key, value in saved["settings"].items() if key.split(".")[0] in known}
    del before["settings"]["model.weights"]
    assert len(before["settings"]) < len(saved["settings"])
    torch.save(before, path)
    assert load_network(path).loss == "vicreg"
    train_here(settings)
    assert_same_weights(tmp_path, whole_run)


def test_snapshots_hold_the_network_alone(betons, whole_run, tmp_path):
    whole, snapshot = (load(whole_run / f"{name}.pth") for name in ("model", "model_ep4"))
    assert whole.keys() == snapshot.keys() and whole["optimizer"]["state"] and not snapshot["optimizer"]
    assert all(torch.equal(value, snapshot["model"][name]) for name, value in whole["model"].items())
    assert snapshot["probes"].keys() == whole["probes"].keys()
    sizes = [(whole_run / f"{name}.pth").stat().st_size for name in ("model", "model_ep4")]
    assert sizes[1] < 0.4 * sizes[0]
    shutil.copy(whole_run / "model_ep2.pth", tmp_path / "model.pth")
    assert_one_line_error(train(betons, tmp_path), "model.pth: a run cannot be resumed from it (it is a snapshot")


def test_the_backbone_starts_from_a_public_checkpoint(betons, whole_run, tmp_path):
    """Any file that the attack reads; projector and head are new, and the checkpoint says what it started from."""
    public = whole_run / "model_ep4.pth"
    settings = dict(model__weights=public, model__mlp="24-8", training__epochs=1, training__warmup_epochs=0)
    ok(train(betons, tmp_path / "a", "--training.base_lr 0", **settings))
    backbone = load_network(public).net.state_dict()
    started = load_network(tmp_path / "a/model_ep1.pth")
    trained = dict(started.net.named_parameters())
    assert all(torch.equal(value, backbone[name]) for name, value in trained.items())  # at a learning rate of 0
    assert started.mlp == "24-8"
    params = read_json(tmp_path / "a/params.json")
    assert params["model.weights"] == str(public) and len(params["made_from"]["models"]["start"]["weights"]) == 64
    assert_one_line_error(
        train(betons, tmp_path / "b", "--model.arch resnet34", **settings),
        "give --model.arch test_resnet",
        "--model.weights",
    )
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    other = {**settings, "model__weights": whole_run / "model_ep2.pth", "training__base_lr": 0}
    assert_one_line_error(train(betons, tmp_path / "c", **other), "weights of model start")


class Agree(Method):
    """A seventh method: both views of an image, through a head of its own, to the same place, which moves along."""

    def __init__(self, settings, network, total_steps):
        super().__init__(settings, network, total_steps)
        self.place = torch.zeros(16)

    @staticmethod
    def embedding(network, output):
        return network.agreement(output)

    def loss(self, embeddings, views, labels, epoch):
        self.place.lerp_(embeddings[0].detach().mean(dim=0), 0.1)
        return sum((z - self.place).square().mean() for z in embeddings)

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place.copy_(state["place"])


def test_a_method_is_a_class_and_two_lines(betons, tmp_path, monkeypatch):
    head = {"agreement": lambda width, widths, classes: torch.nn.Linear(width, 16)}
    monkeypatch.setitem(METHODS, "agree", Agree)
    monkeypatch.setitem(HEADS, "agree", head)
    for folder in ("whole", "parts"):
        settings = settings_of(command(betons, tmp_path / folder, "--training.epochs 2"))
        settings.training.loss = "agree"
        if folder == "parts":
            with monkeypatch.context() as patch:
                stopped_after_a_step(settings, patch)
            assert METHODS["agree"] is Agree
        train_here(settings)
    assert load_network(tmp_path / "parts/model_ep2.pth").agreement.out_features == 16
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    states = [load(tmp_path / n / "model.pth")["objective"] for n in ("whole", "parts")]
    assert torch.equal(states[0]["place"], states[1]["place"])


@pytest.mark.parametrize(
    "ngpus, world_size, there, started",
    [(8, 0, 0, 1), (8, 0, 4, 4), (2, 0, 4, 2), (8, 3, 4, 3), (0, 0, 4, 1), (0, 2, 4, 2)],
)
def test_as_many_processes_as_asked_for(betons, tmp_path, monkeypatch, ngpus, world_size, there, started):
    words = command(betons, tmp_path, dist__ngpus=ngpus, dist__world_size=world_size)
    found = []
    monkeypatch.setattr(sys, "argv", ["train_SSL.py", *words])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(train_SSL, "start_here", lambda job, processes: found.append(processes))
    train_SSL.main()
    assert found == [started]


@pytest.mark.kills
def test_two_processes_here(betons, tmp_path):
    settings = options("--dist.ngpus 0 --dist.world_size 2 --training.batch_size 4 --training.loss barlow")
    settings["model.arch"] = "resnet18"  # whose steps are slow enough to be stopped
    result = ok(run_script("train_SSL.py", *command(betons, tmp_path, **settings)))
    assert "steps of 8 images per epoch (2 processes)" in result.stdout
    records = read_log(tmp_path / "log")
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    words = command(betons, tmp_path / "x", **settings)
    code, output = interrupted("train_SSL.py", words, signal.SIGTERM, "epoch 2/")
    assert code == 128 + signal.SIGTERM and output.count("stopped after epoch") == 1
    ok(run_script("train_SSL.py", *command(betons, tmp_path / "x", **settings)))
    assert_same_weights(tmp_path / "x", tmp_path)
    # Ctrl-C: the terminal sends it to every process.
    words = command(betons, tmp_path / "z", "--training.epochs 60", **settings)
    code, _ = interrupted("train_SSL.py", words, signal.SIGINT, "epoch 2/", os.killpg)
    assert code > 128 and (tmp_path / "z/model.pth").exists()
    assert not list((tmp_path / "z").glob(".*tmp*"))
    assert_one_line_error(
        run_script("train_SSL.py", *command(betons, tmp_path / "x", **{**settings, "dist.world_size": 1})),
        "2 processes, and so another global batch",
    )
    result = run_script("train_SSL.py", *command(betons, tmp_path / "y", **{**settings, "training.batch_size": 15}))
    assert result.returncode == 2 and "there are only 20 images" in result.stderr  # a line of each process
    assert "Traceback" not in result.stderr


@pytest.mark.kills
def test_torchrun(betons, tmp_path):
    arguments = command(betons, tmp_path, "--training.batch_size 4 --training.epochs 2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = ok(run_process(*torchrun, ROOT / "train_SSL.py", *arguments, OMP_NUM_THREADS=1))
    assert "(2 processes)" in result.stdout and len((tmp_path / "log").read_text().splitlines()) == 2


def test_eval_only_and_probes_only(betons, whole_run, tmp_path):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = ok(train(betons, folder, "--training.eval_only 1"))
    last = json.loads((folder / "log").read_text().splitlines()[-1])
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == {name: value for name, value in last.items() if "_val_" in name or name == "epoch"}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    result = ok(train(betons, folder, "--training.train_probes_only 1 --data.random_seed 7 --training.epochs 2"))
    assert len((folder / "log_probes_7").read_text().splitlines()) == 2
    probes = load(folder / "probes_7.pth")["probes"]
    trained = load(folder / "model.pth")["probes"]
    assert {k: v.shape for k, v in probes.items()} == {k: v.shape for k, v in trained.items()}
    assert not torch.equal(probes["module.probes.0.weight"], trained["module.probes.0.weight"])
    assert (folder / "model.pth").stat().st_mtime_ns == before["model.pth"]
    assert_one_line_error(
        train(betons, tmp_path / "nothing", "--training.eval_only 1"), "--training.eval_only 1: there is no"
    )


def test_an_infinite_loss_stops_and_keeps_the_last_checkpoint(betons, tmp_path):
    settings = options("--training.optimizer sgd --training.epochs 4 --training.warmup_epochs 0")
    result = train(betons, tmp_path, "--training.base_lr 1e+30", **settings)
    assert_one_line_error(result, "the loss is", "a smaller --training.base_lr")
    assert not (tmp_path / "model.pth").exists()


@rows_of(
    "changes, texts",
    """
    --data.train_dataset ABSENT.beton          -> --data.train_dataset ABSENT.beton: no such file
    --training.warmup_epochs 4                 -> --training.warmup_epochs 4: must be fewer than --training.epochs 4
    --training.batch_size 21                   -> there are only 20 images
    --model.mlp 32x16                          -> --model.mlp '32x16'
    --training.unknown 1                       -> unknown flag --training.unknown
    --training.batch_size 1                    -> --training.batch_size: 1 must be at least 2
    --logging.snapshot_freq 0                  -> --logging.snapshot_freq: 0 must be at least 1
    --model.arch resnet19                      -> model.arch resnet19
    --model.arch squeezenet1_0                 -> no linear classifier
    --model.arch vit_b_16                      -> does not take images of 32 pixels
    --training.loss byol --model.remove_head 1 -> --model.remove_head 1
    --training.num_small_crops 2               -> vicreg has no small crops
""",
)
def test_bad_settings_are_one_line(betons, tmp_path, changes, texts):
    assert_one_line_error(train(betons, tmp_path, **changes), *texts)


@pytest.mark.parametrize("name", [*LOSSES, "demo"])
def test_configs_hold_only_known_keys_and_flags_beat_them(betons, tmp_path, name):
    loss = {} if name == "demo" else {"training__loss": name}
    arguments = command(betons, tmp_path, "--training.epochs 2", **loss)
    ok(run_here("train_SSL.py", "--config-file", ROOT / f"configs/{name}_cfg.yaml", *arguments))
    params = read_json(tmp_path / "params.json")
    assert params["model.arch"] == "test_resnet" and params["training.epochs"] == 2
    assert load_network(tmp_path / "model_ep2.pth").loss == params["training.loss"]
    kept = {"byol": {"teacher"}, "mocov3": {"teacher"}, "dino": {"teacher", "center"}}
    assert set(load(tmp_path / "model.pth")["objective"]) == kept.get(name, set())


@pytest.mark.parametrize("free, fits", [(3.9, False), (5, True)])
def test_a_disk_without_room_for_the_snapshots_is_named_first(betons, whole_run, tmp_path, monkeypatch, free, fits):
    """A snapshot, the final weights, and model.pth with the state of the optimizer: four times the weights."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=int(free * weights.stat().st_size)))
    monkeypatch.setattr(train_SSL.TrainingRun, "train_epoch", lambda *_: 1 / 0)
    weights = whole_run / "final_weights.pt"
    settings = settings_of(command(betons, tmp_path))
    remedy = f"{tmp_path}: needs about .* name another --logging.folder, or raise --logging.snapshot_freq"
    with pytest.raises(ZeroDivisionError if fits else InputError, match=None if fits else remedy):
        train_here(settings)
    assert not (tmp_path / "params.json").exists() or fits


def test_a_signal_is_obeyed_within_validation(betons, whole_run, tmp_path, monkeypatch):
    """A validation can take longer than the two minutes between a cluster's signal and its end."""
    loader, seen = train_SSL.EvaluationLoader, []

    class Signalled(loader):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                if not seen.append(batch):
                    os.kill(os.getpid(), signal.SIGUSR2)

    settings = settings_of(command(betons, tmp_path, "--validation.batch_size 2"))
    monkeypatch.setattr(train_SSL, "EvaluationLoader", Signalled)
    with pytest.raises(SystemExit) as end:
        train_here(settings)
    assert end.value.code == 128 + signal.SIGUSR2 and len(seen) == 1  # of five batches
    stopped = load(tmp_path / "model.pth")
    assert (stopped["epoch"], stopped["steps_done"]) == (1, 2)  # all of the second epoch, but it is not over
    monkeypatch.setattr(train_SSL, "EvaluationLoader", loader)
    train_here(settings)
    assert_same_weights(tmp_path, whole_run)
    for ours, theirs in zip(untimed(whole_run), untimed(tmp_path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)  # other batches of validation, other rounding


def test_a_signal_is_obeyed_where_an_epoch_is_one_step(betons, tmp_path, monkeypatch):
    _, saved = stopped_after_a_step(settings_of(command(betons, tmp_path, "--training.batch_size 20")), monkeypatch)
    assert (saved["epoch"], saved["steps_done"]) == (1, 0)


def test_resuming_takes_what_does_not_touch_the_weights(betons, whole_run, tmp_path):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    moved = shutil.copy(betons / "train.beton", tmp_path / "moved.beton")
    with open(folder / "log", "a") as log:
        log.write('{"epo')  # a crash in the middle of a line
    result = ok(train(betons, folder, "--training.eval_freq 1 --validation.batch_size 3", data__train_dataset=moved))
    assert "4 epochs are done" in result.stdout
    assert len((folder / "log").read_text().splitlines()) == 4
    assert_one_line_error(
        train(betons, folder, data__train_dataset=betons / "val.beton"), "was trained with other images"
    )
    assert_one_line_error(train(betons, folder, "--training.epochs 6"), "--training.epochs 6", "no run can be extended")


def test_the_pixels_of_a_beton_are_compared(betons, whole_run, tmp_path):
    """Raw images of the same sizes and labels, written by anybody: only their pixels tell them apart."""
    shutil.copytree(whole_run, tmp_path / "run")
    other = shutil.copy(betons / "train.beton", tmp_path / "other.beton")
    image = Beton(other).read(3)
    contents = bytearray(other.read_bytes())
    place = contents.index(image.tobytes())
    contents[place] ^= 255
    other.write_bytes(contents)
    assert Beton(other).fingerprint == Beton(betons / "train.beton").fingerprint
    assert_one_line_error(train(betons, tmp_path / "run", data__train_dataset=other), f"--data.train_dataset {other}")


def test_keys_without_effect_are_accepted_with_a_notice(betons, tmp_path):
    extra = ["--attack.k", "100", "--lr.tta", "1", "--training.bn_wd=0"]
    words = command(betons, tmp_path, "--training.epochs 1 --training.warmup_epochs 0")[:-1]
    result = ok(run_here("train_SSL.py", *words, *extra, "0"))
    assert [line for line in result.stdout.splitlines() if line.startswith("note:")] == [
        "note: --attack.k has no effect here and is ignored",
        "note: --lr.tta has no effect here and is ignored",
        "note: --training.bn_wd has no effect here and is ignored",
        "note: no --config-file: trains vicreg on test_resnet for 1 epochs, by flags and defaults",
    ]


# The study's settings: SPEC of the published runs.
SHARED = """--model.arch resnet101 --training.optimizer lars --training.weight_decay 1e-6 --training.batch_size 128
    --training.epochs 1000 --training.warmup_epochs 10 --training.end_lr_ratio 0.001 --training.momentum 0.9
    --resolution.min_res 160 --resolution.start_ramp 70 --resolution.max_res 192 --resolution.end_ramp 85
    --validation.resolution 256 --logging.snapshot_freq 50 --dist.ngpus 8 --dist.nodes 1 --dist.use_submitit 1"""
OWN = {
    "vicreg": """--training.base_lr 0.2 --model.mlp 8192-8192-8192 --training.eval_freq 50
        --vicreg.sim_coeff 25 --vicreg.std_coeff 25 --vicreg.cov_coeff 1""",
    "simclr": "--training.base_lr 0.3 --model.mlp 2048-256 --training.eval_freq 100 --simclr.temperature 0.15",
    "supervised": "--training.base_lr 0.2 --model.mlp 8192-8192-8192 --training.eval_freq 25",
}


@pytest.mark.parametrize("loss", OWN)
def test_published_commands_submit_the_published_settings(betons, tmp_path, monkeypatch, loss):
    """test_sweeps.py runs such a job."""
    words = ["--config-file", f"{ROOT}/configs/{loss}_cfg.yaml", "--dist.use_submitit", "1"]
    words += ["--data.train_dataset", f"{betons}/train.beton", "--data.val_dataset", f"{betons}/val.beton"]
    words += ["--logging.folder", str(tmp_path / "run"), "0"]
    settings, notices = train_SSL.read_settings(words)
    assert settings == train_SSL.read_settings([*words[:-1], *SHARED.split(), *OWN[loss].split(), "0"])[0]
    assert settings["training.loss"] == loss and not notices
    asked = debug_cluster(monkeypatch, tmp_path)["parameters"]
    monkeypatch.setattr(sys, "argv", ["train_SSL.py", *words])
    train_SSL.main()
    assert asked["tasks_per_node"] == asked["gpus_per_node"] == 8 and asked["nodes"] == 1
    assert asked["slurm_setup"][0] == f"export PYTHONPATH={ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"
    assert asked["timeout_min"] == 2800 and asked["mem_gb"] == 480 and asked["slurm_signal_delay_s"] == 120
    assert not (tmp_path / "run/model.pth").exists()


def test_auto_resumes_on_a_device_of_another_precision(tmp_path, monkeypatch):
    """From a GPU that has bf16, whose checkpoint has no scaler, to one that takes fp16, and back."""
    values = {"model.arch": "resnet18", "model.mlp": "16-8", "training.loss": "simclr", "training.precision": "auto"}
    runs = []
    for precision in ("bf16", "fp16"):
        monkeypatch.setattr(train_SSL, "choose_precision", lambda name, device: precision)  # noqa: B023
        runs.append(train_SSL.TrainingRun(Settings.from_flat(values), 5, torch.device("cpu"), 10))
    without, scaled = runs
    assert not without.scaler.is_enabled() and scaled.scaler.is_enabled()
    scaled.restore(without.checkpoint(), tmp_path / "model.pth")
    without.restore(scaled.checkpoint(), tmp_path / "model.pth")
