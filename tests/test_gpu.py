"""What only a machine with GPUs can say: `bash tests/run.sh -m gpu` runs this file.

Same results as on the CPU, within what the precision allows; nothing that waits for the device where nothing may; and
every stage as a user runs it. On a machine without a GPU all of it is skipped; tests/test_fake_cuda.py has the proofs
that need none.
"""

import signal

import numpy as np
import pytest
import torch
from helpers import flags, interrupted, load, noise, ok, read_json, read_log, run_script
from parts import CLASSES, PARTS, training_run, training_settings
from stages import SCRIPTS, TRAINING, settings

from dejavu_utils.attack.neighbors import NeighborSearch
from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton, write_beton
from dejavu_utils.data.beton_loader import Batching, NativeLoader
from dejavu_utils.models import LOSSES
from dejavu_utils.runtime.devices import set_ieee_fp32

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TF32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}  # what some clusters set for everybody
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def no_waits():
    """A context in which whatever waits for the GPU is an error."""

    class NoWaits:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    yield NoWaits()
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def ieee_fp32():
    """As the scripts compute; PyTorch's own default for convolutions is TF32."""
    set_ieee_fp32()


# The parts.


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_as_on_the_cpu_and_waits_for_nothing(name, no_waits):
    expected, part = PARTS[name](CPU)(), PARTS[name](GPU)
    part()
    with no_waits:
        found = part()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-3, atol=1e-3)


# Of the first loss, and of those after updates: what GPU and CPU round differently grows in them, most with Barlow
# Twins, whose loss is made of normalized columns of 16 images.
@pytest.mark.parametrize("precision, first, later", [("fp32", 2e-3, 0.05), ("bf16", 0.05, 0.15), ("fp16", 0.02, 0.1)])
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_as_on_the_cpu_without_waiting(loss, precision, first, later, no_waits):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("no bf16")
    values = {}
    for device, name in ((CPU, "fp32"), (GPU, precision)):
        state, views, labels = training_run(training_settings(loss, **{"training.precision": name}), device)
        if name == "fp16":  # small enough that no step is skipped while it is looked for
            state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**4})
        values[device] = [state.step(views, labels, 0.01, step).item() for step in range(3)]
        assert all(torch.isfinite(p).all() for p in state.network.parameters())
        assert 0 <= state.meter.result()["top_1_layer0"] <= 1
    with no_waits:
        state.step(views, labels, 0.01, 3)
    np.testing.assert_allclose(values[GPU][0], values[CPU][0], rtol=first)
    np.testing.assert_allclose(values[GPU], values[CPU], rtol=later)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_an_overflow_in_fp16_skips_the_step(optimizer):
    changes = {"training.precision": "fp16", "training.optimizer": optimizer}
    state, views, labels = training_run(training_settings("simclr", **changes), GPU)
    state.step(views, labels, 0.01, 0)
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**120})
    before = [p.detach().clone() for p in state.network.parameters()]
    state.step(views, labels, 0.01, 1)
    assert all(torch.equal(p, q) for p, q in zip(state.network.parameters(), before))
    assert state.scaler.get_scale() < 2.0**120
    for step in range(2, 130):
        state.step(views, labels, 0.01, step)
    assert any(not torch.equal(p, q) for p, q in zip(state.network.parameters(), before))


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    images = noise((40 + i % 7, 60 - i % 5) for i in range(200))
    path = tmp_path_factory.mktemp("betons") / "train.beton"
    write_beton(path, images, np.arange(200) % CLASSES)
    return Beton(path)


def test_many_batches_of_the_loader_as_on_the_cpu(beton):
    """The buffers are used again while a slow consumer still works on earlier batches."""
    views = [augment.FIRST_VIEW, augment.SECOND_VIEW]
    loaders = [NativeLoader(beton, Batching(20, 4, device), views, 5) for device in (GPU, CPU)]
    for epoch in range(6):
        busy, found = torch.randn(2048, 2048, device=GPU), []
        for batch_views, _ in loaders[0].epoch(epoch, 64):
            for _ in range(20):
                busy = (busy @ busy).clamp_(-1, 1)
            found.append([view.clone() for view in batch_views])  # after the work on the stream
        for ours, (expected, _) in zip(found, loaders[1].epoch(epoch, 64)):
            for view, other in zip(ours, expected):
                torch.testing.assert_close(view.cpu(), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_neighbors_are_those_of_the_cpu(spread):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(400, 256)) * (spread < 1)

    def draw(n):
        return (centers[rng.integers(0, 400, n)] + spread * rng.normal(size=(n, 256))).astype(np.float32)

    queries, public, found = draw(3000), draw(20000), {}
    for device in (CPU, GPU):
        search = NeighborSearch(queries.copy(), 30, device)
        for positions in np.array_split(np.arange(len(public)), 3):
            search.add(public[positions], positions)
        found[device] = search.result()
    assert (found[CPU] == found[GPU]).mean() > 0.9999


# The stages, as a user runs them.


def training_words(beton, folder, **changes):
    values = {**TRAINING, "data.train_dataset": beton.path, "data.val_dataset": beton.path, "logging.folder": folder}
    values |= {"training.loss": "vicreg", "training.batch_size": 20, "training.epochs": 4, "training.eval_freq": 2}
    values |= {"logging.checkpoint_freq": 1, "dist.world_size": 1}
    return flags(values | {name.replace("__", "."): value for name, value in changes.items()})


def train(beton, folder, **changes):
    return ok(run_script("train_SSL.py", *training_words(beton, folder, **changes))).stdout


@pytest.fixture(scope="module")
def trained(beton, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert "on cuda" in train(beton, folder)
    return folder


def test_training_validates_and_is_as_on_the_cpu(beton, trained, tmp_path):
    records = read_log(trained / "log")
    assert len(records) == 4 and "top_1_val_layer0" in records[-1]
    train(beton, tmp_path, dist__ngpus=0)
    assert records[0]["train_loss"] == pytest.approx(read_log(tmp_path / "log")[0]["train_loss"], rel=0.02)


def test_resuming_comes_close_to_not_being_stopped(beton, trained, tmp_path):
    words = training_words(beton, tmp_path)
    code, _ = interrupted("train_SSL.py", words, signal.SIGTERM, "epoch 2/4")
    assert code == 128 + signal.SIGTERM
    assert "resumes after epoch" in train(beton, tmp_path)
    expected = load(trained / "final_weights.pt")
    for name, value in load(tmp_path / "final_weights.pt").items():
        if value.is_floating_point():
            assert (value - expected[name]).norm() <= 0.05 * (expected[name].norm() + 1e-6), name


def test_probes_alone_and_evaluation_alone(beton, trained, tmp_path):
    (tmp_path / "model.pth").write_bytes((trained / "model.pth").read_bytes())
    train(beton, tmp_path, training__train_probes_only=1, training__epochs=2)
    assert (tmp_path / "probes_0.pth").is_file()
    assert '"top_1_val_layer0": ' in train(beton, tmp_path, training__eval_only=1).splitlines()[-1]


def test_compiled_training_follows_the_resolution(beton, tmp_path):
    changes = {"resolution__max_res": 64, "resolution__start_ramp": 0, "resolution__end_ramp": 2}
    train(beton, tmp_path, training__compile=1, training__precision="auto", **changes)
    sides = [record["resolution"] for record in read_log(tmp_path / "log")]
    assert sides[0] == 32 and sides[-1] == 64


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("loss", LOSSES)
def test_two_gpus_equal_one(beton, tmp_path, loss):
    losses = []
    for processes in (1, 2):
        changes = {"training__batch_size": 20 // processes, "dist__world_size": processes, "training__loss": loss}
        train(beton, tmp_path / str(processes), training__epochs=2, training__optimizer="sgd", **changes)
        losses.append([record["train_loss"] for record in read_log(tmp_path / f"{processes}/log")])
    np.testing.assert_allclose(*losses, rtol=0.02)


@pytest.fixture
def on_both(tiny, tmp_path):
    """on_both(command): the folders of the stage on the CPU and on a GPU, with TF32 in the environment."""

    def run(command, **changes):
        for place in ("cpu", "gpu"):
            values = settings(command, tiny / "data", tiny / "made", tmp_path / place) | changes
            words = flags(values | ({"ngpus": 0} if place == "cpu" else {}))
            ok(run_script(SCRIPTS.get(command, ["sslmem.py"])[0], *words, **TF32))
        return tmp_path / "cpu", tmp_path / "gpu"

    return run


def test_attack_as_on_the_cpu(on_both):
    cpu, gpu = on_both("attack", resolution=64)
    for path in cpu.glob("*_attk_*_neighb_idxs.npy"):
        assert (np.load(path) == np.load(gpu / path.name)).mean() > 0.98, path.name


def test_label_free_scores_as_on_the_cpu(on_both):
    folders = on_both("sslmem", resolution=64)
    for name in "AB":
        scores = [np.loadtxt(x / f"sslmem_{name}.csv", delimiter=",", skiprows=1, usecols=3) for x in folders]
        np.testing.assert_allclose(*scores, atol=1e-4)
        np.testing.assert_allclose(*(np.load(x / f"unitmem_{name}_backbone.npy") for x in folders), atol=1e-3)


def test_probe_as_on_the_cpu(on_both):
    losses = []
    for folder in on_both("probe", start_lr=0.1, end_lr=0.01, epochs=3, batch_size=6):
        losses.append([epoch["loss"] for epoch in read_json(folder / "results.json")["epochs"]])
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_rcdm_as_on_the_cpu(on_both):
    pytest.importorskip("diffusers")
    folders = on_both("rcdm", learn_sigma="True", lr_anneal_steps=6, save_interval=3, diffusion_steps=100)
    np.testing.assert_allclose(*([record["loss"] for record in read_log(x / "log")] for x in folders), rtol=0.02)
