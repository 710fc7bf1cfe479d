"""What only a machine with GPUs can say: `bash tests/run.sh -m gpu` runs this file and the few such tests of others.

Same results as on the CPU, within what the precision allows; nothing that waits for the device where nothing may; and
every stage as a user runs it. On a machine without a GPU all of it is skipped; tests/test_fake_cuda.py has the proofs
that need none.
"""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import draw_tree, flags, load, ok, read_json, read_log, run_script, save_untrained

import train_SSL
from dejavu_utils.attack.neighbors import NeighborSearch
from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton, write_beton
from dejavu_utils.data.beton_loader import NativeLoader
from dejavu_utils.models import LOSSES, SSLNetwork
from dejavu_utils.networks.embedder import Embedder, Inference
from dejavu_utils.randomness import uniforms
from dejavu_utils.reconstruction import diffusion
from dejavu_utils.runtime.devices import set_ieee_fp32
from dejavu_utils.training.methods import METHODS
from dejavu_utils.training.settings import Settings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CLASSES = 5
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


def training_run(loss, device, **changes):
    values = {
        "model.arch": "resnet18",
        "model.mlp": "64-32",
        "training.loss": loss,
        "training.batch_size": 16,
        "training.precision": "fp32",
        "training.optimizer": "lars",
        **changes,
    }
    if METHODS[loss].small_views:
        values["training.num_small_crops"] = 2
    torch.manual_seed(0)
    state = train_SSL.TrainingRun(Settings.from_flat(values), CLASSES, device, 100)
    state.network.train()
    return state


def batch(state, device):
    generator = torch.Generator().manual_seed(1)
    sides = [48 if view.side else 64 for view in METHODS[state.settings.training.loss].views(state.settings)]
    views = [torch.randn(16, 3, side, side, generator=generator).to(device) for side in sides]
    return views, torch.randint(0, CLASSES, (16,), generator=generator).to(device)


# Of the first loss, and of those after updates: what GPU and CPU round differently grows in them, most with Barlow
# Twins, whose loss is made of normalized columns of 16 images.
@pytest.mark.parametrize("precision, first, later", [("fp32", 2e-3, 0.05), ("bf16", 0.05, 0.15), ("fp16", 0.02, 0.1)])
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_as_on_the_cpu(loss, precision, first, later):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("no bf16")
    values = {}
    for device, name in ((CPU, "fp32"), (GPU, precision)):
        state = training_run(loss, device, **{"training.precision": name})
        if name == "fp16":  # small enough that no step is skipped while it is looked for
            state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**4})
        views, labels = batch(state, device)
        values[device] = [state.step(views, labels, 0.01, step).item() for step in range(3)]
        assert all(torch.isfinite(p).all() for p in state.network.parameters())
        result = state.meter.result()
        assert 0 <= result["top_1_layer0"] <= 1
    np.testing.assert_allclose(values[GPU][0], values[CPU][0], rtol=first)
    np.testing.assert_allclose(values[GPU], values[CPU], rtol=later)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_waits_for_nothing(loss, precision, no_waits):
    state = training_run(loss, GPU, **{"training.precision": precision})
    views, labels = batch(state, GPU)
    for step in range(2):
        state.step(views, labels, 0.01, step)
    with no_waits:
        state.step(views, labels, 0.01, 2)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_an_overflow_in_fp16_skips_the_step(optimizer):
    state = training_run("simclr", GPU, **{"training.precision": "fp16", "training.optimizer": optimizer})
    views, labels = batch(state, GPU)
    state.step(views, labels, 0.01, 0)
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**120})
    before = [p.detach().clone() for p in state.network.parameters()]
    state.step(views, labels, 0.01, 1)
    assert all(torch.equal(p, q) for p, q in zip(state.network.parameters(), before))
    assert state.scaler.get_scale() < 2.0**120
    for step in range(2, 130):
        state.step(views, labels, 0.01, step)
    assert any(not torch.equal(p, q) for p, q in zip(state.network.parameters(), before))


@pytest.mark.parametrize("view", [augment.FIRST_VIEW, augment.SECOND_VIEW])
def test_augmentation_as_on_the_cpu_without_waiting(view, no_waits):
    images = torch.randint(0, 256, (64, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    p = augment.draw_parameters(uniforms(0, 0, 0, 0, 64), view)
    on_gpu = images.to(GPU)
    augment.apply(on_gpu, p)
    with no_waits:
        found = augment.apply(on_gpu, p)
    torch.testing.assert_close(found.cpu(), augment.apply(images, p), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + i % 7, 60 - i % 5, 3), dtype=np.uint8) for i in range(200)]
    path = tmp_path_factory.mktemp("betons") / "train.beton"
    write_beton(path, images, np.arange(200) % CLASSES)
    return Beton(path)


def test_many_batches_of_the_loader_as_on_the_cpu(beton):
    """The buffers are used again while a slow consumer still works on earlier batches."""
    views = [augment.FIRST_VIEW, augment.SECOND_VIEW]
    loaders = [NativeLoader(beton, 20, views, 5, 4, device) for device in (GPU, CPU)]
    for epoch in range(6):
        busy, found = torch.randn(2048, 2048, device=GPU), []
        for batch_views, _ in loaders[0].epoch(epoch, 64):
            for _ in range(20):
                busy = (busy @ busy).clamp_(-1, 1)
            found.append([view.clone() for view in batch_views])  # after the work on the stream
        for ours, (expected, _) in zip(found, loaders[1].epoch(epoch, 64)):
            for view, other in zip(ours, expected):
                torch.testing.assert_close(view.cpu(), other, rtol=0, atol=1e-4)


def test_the_attacks_embedding_waits_once(no_waits):
    networks = {model: SSLNetwork("resnet18", "64-32", "vicreg").eval().to(GPU) for model in "AB"}
    layers = dict.fromkeys("AB", ["backbone", "projector"])
    embedder = Embedder(networks, layers, None, dict.fromkeys("AB", "x"), Inference(GPU))
    images = [torch.randn(6, 3, 64, 64).pin_memory()] * len(embedder.kinds)
    expected = embedder.embed(images)
    with no_waits, torch.inference_mode():
        outputs = embedder.outputs(images)
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key].cpu().numpy(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_neighbors_are_those_of_the_cpu(spread):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(400, 256)) * (spread < 1)
    draw = lambda n: (centers[rng.integers(0, 400, n)] + spread * rng.normal(size=(n, 256))).astype(np.float32)  # noqa: E731
    queries, public, found = draw(3000), draw(20000), {}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for device in (CPU, GPU):
            search = NeighborSearch(queries.copy(), 30, device)
            for block in np.array_split(public, 3):
                search.add(block.copy())
            found[device] = search.result()
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found[CPU] == found[GPU]).mean() > 0.9999


@pytest.mark.parametrize("respacing", ["20", "ddim20"])
def test_diffusion_as_on_the_cpu(respacing):
    values = dict(diffusion_steps=100, noise_schedule="cosine", learn_sigma=True, predict_xstart=False, use_kl=False)
    process = diffusion.Diffusion({**values, "rescale_timesteps": False, "rescale_learned_sigmas": False}, respacing)
    unet = lambda x, steps, feat: torch.cat([x.sin(), x.cos()], 1) + steps.view(-1, 1, 1, 1) / 100  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    start, noise = (torch.randn(4, 3, 16, 16, generator=generator) for _ in range(2))
    t, found = torch.tensor([0, 3, 11, 19]), {}
    for device in (CPU, GPU):
        arguments = (x.to(device) for x in (start, t, noise, torch.zeros(4, 8)))
        loss = process.losses(unet, *arguments)["loss"].cpu()
        found[device] = loss, process.sample(unet, torch.zeros(4, 8, device=device), 16, range(4)).cpu()
    for ours, other in zip(found[GPU], found[CPU]):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3)


# The stages, as a user runs them.


TRAINING = {
    "model.arch": "resnet18",
    "model.mlp": "32-16",
    "resolution.min_res": 32,
    "resolution.max_res": 32,
    "data.num_workers": 2,
    "validation.resolution": 32,
    "training.loss": "vicreg",
    "training.batch_size": 20,
    "training.epochs": 4,
    "training.warmup_epochs": 1,
    "training.eval_freq": 2,
    "training.precision": "fp32",
    "logging.snapshot_freq": 2,
    "logging.checkpoint_freq": 1,
    "dist.world_size": 1,
}


def train(beton, folder, **changes):
    settings = {**TRAINING, "data.train_dataset": beton.path, "data.val_dataset": beton.path, "logging.folder": folder}
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    result = ok(run_script("train_SSL.py", *flags({**settings, **changes})))
    return result.stdout


def weights(folder):
    return load(folder / "final_weights.pt")


def assert_close_weights(folder, other, tolerance):
    left, right = weights(folder), weights(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        if value.is_floating_point():
            gap = (value - right[name]).norm() / (right[name].norm() + 1e-6)
            assert gap < tolerance, (name, gap)


@pytest.fixture(scope="module")
def trained(beton, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    out = train(beton, folder)
    assert "on cuda" in out
    return folder


def test_training_validates_and_is_as_on_the_cpu(beton, trained, tmp_path):
    records = read_log(trained / "log")
    assert len(records) == 4 and "top_1_val_layer0" in records[-1]
    train(beton, tmp_path, dist__ngpus=0)
    on_cpu = read_log(tmp_path / "log")
    assert records[0]["train_loss"] == pytest.approx(on_cpu[0]["train_loss"], rel=0.02)


def test_resuming_comes_close_to_not_being_stopped(beton, trained, tmp_path):
    settings = {**TRAINING, "data.train_dataset": beton.path, "data.val_dataset": beton.path}
    words = flags({**settings, "logging.folder": tmp_path})
    process = subprocess.Popen([sys.executable, train_SSL.__file__, *words], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/4"):
            process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert "resumes after epoch" in train(beton, tmp_path)
    assert_close_weights(tmp_path, trained, 0.05)


def test_probes_alone_and_evaluation_alone(beton, trained, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "model.pth").write_bytes((trained / "model.pth").read_bytes())
    train(beton, folder, training__train_probes_only=1, training__epochs=2)
    assert (folder / "probes_0.pth").is_file()
    last = train(beton, folder, training__eval_only=1).splitlines()[-1]
    assert 0 <= json.loads(last)["top_1_val_layer0"] <= 1


def test_compiled_training_follows_the_resolution(beton, tmp_path):
    changes = {"resolution__max_res": 64, "resolution__start_ramp": 0, "resolution__end_ramp": 2}
    train(beton, tmp_path, training__compile=1, training__precision="auto", **changes)
    sides = [json.loads(line)["resolution"] for line in (tmp_path / "log").read_text().splitlines()]
    assert sides[0] == 32 and sides[-1] == 64


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("loss", LOSSES)
def test_two_gpus_equal_one(beton, tmp_path, loss):
    for processes in (1, 2):
        changes = {"training__batch_size": 20 // processes, "dist__world_size": processes, "training__loss": loss}
        train(beton, tmp_path / str(processes), training__epochs=2, training__optimizer="sgd", **changes)
    records = [
        [json.loads(line)["train_loss"] for line in (tmp_path / str(n) / "log").read_text().splitlines()]
        for n in (1, 2)
    ]
    np.testing.assert_allclose(*records, rtol=0.02)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = draw_tree(tmp_path_factory.mktemp("data"))
    rank = np.arange(36) % 12
    for name, chosen in (("A", rank < 4), ("B", (rank >= 4) & (rank < 8)), ("public", rank >= 8)):
        np.save(folder / f"{name}.npy", np.flatnonzero(chosen))
    for seed, side in enumerate("AB"):
        save_untrained(folder / f"{side}.pth", seed=seed)
    return folder


def on_both(script, settings, folder):
    """Runs a script on the CPU and on a GPU, with TF32 in the environment."""
    for place, changes in (("cpu", {"ngpus": 0}), ("gpu", {})):
        output = {name: str(value).replace("PLACE", place) for name, value in settings.items()}
        ok(run_script(script, *flags({**output, **changes}), **TF32))
    return folder / "cpu", folder / "gpu"


def test_attack_as_on_the_cpu(tree, tmp_path):
    settings = {"local": 1, "output_dir": tmp_path / "PLACE", "resolution": 64, "min_px": 10, "k": 6, "k_attk": 6}
    for side in "AB":
        settings |= {f"model_{side}_pth": tree / f"{side}.pth", f"bbox_{side}_idx_pth": tree / f"{side}.npy"}
    settings |= {"public_idx_pth": tree / "public.npy", "imgnet_train_pth": tree / "images"}
    cpu, gpu = on_both("label_inference_attack.py", {**settings, "imgnet_bbox_pth": tree / "boxes"}, tmp_path)
    for path in cpu.glob("*_attk_*_neighb_idxs.npy"):
        assert (np.load(path) == np.load(gpu / path.name)).mean() > 0.98, path.name


def test_label_free_scores_as_on_the_cpu(tree, tmp_path):
    settings = {"local": 1, "output_dir": tmp_path / "PLACE", "resolution": 64, "views": 3, "num_workers": 0}
    for side in "AB":
        settings |= {f"model_{side}_pth": tree / f"{side}.pth", f"bbox_{side}_idx_pth": tree / f"{side}.npy"}
    cpu, gpu = on_both("sslmem.py", {**settings, "imgnet_train_pth": tree / "images"}, tmp_path)
    for name in "AB":
        scores = [np.loadtxt(x / f"sslmem_{name}.csv", delimiter=",", skiprows=1, usecols=3) for x in (cpu, gpu)]
        np.testing.assert_allclose(*scores, atol=1e-4)
        np.testing.assert_allclose(*(np.load(x / f"unitmem_{name}_backbone.npy") for x in (cpu, gpu)), atol=1e-3)


def test_probe_as_on_the_cpu(tree, tmp_path):
    settings = {"local": 1, "output_dir": tmp_path / "PLACE", "model_pth": tree / "A.pth", "num_workers": 0}
    settings |= {"train_idx_pth": tree / "A.npy", "val_idx_pth": tree / "public.npy", "resolution": 32}
    settings |= {"imgnet_train_pth": tree / "images", "start_lr": 0.1, "end_lr": 0.01, "epochs": 3, "batch_size": 6}
    results = [read_json(x / "results.json") for x in on_both("lin_probe.py", settings, tmp_path)]
    losses = [[epoch["loss"] for epoch in result["epochs"]] for result in results]
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_rcdm_as_on_the_cpu(tree, tmp_path):
    pytest.importorskip("diffusers")
    settings = {"local": 1, "feat_cond": "", "out_dir": tmp_path / "PLACE", "data_dir": tree / "images"}
    settings |= {"ssl_model_pth": tree / "A.pth", "dataset_indices": tree / "public.npy", "ssl_resolution": 32}
    settings |= {"image_size": 32, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "batch_size": 4}
    settings |= {"attention_resolutions": 16, "learn_sigma": "True", "lr_anneal_steps": 6, "log_interval": 1}
    settings |= {"save_interval": 3, "diffusion_steps": 100, "workers": 0, "backend": "diffusers"}
    settings["timestep_respacing"] = "5"  # the sample grids are most of the time
    logs = [
        [json.loads(line)["loss"] for line in (folder / "log").read_text().splitlines()]
        for folder in on_both("train_RCDM.py", settings, tmp_path)
    ]
    np.testing.assert_allclose(*logs, rtol=0.02)
