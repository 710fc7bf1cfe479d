"""RCDM: the diffusion against closed forms and the package's numbers, training and notebook as a user runs them."""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    ROOT,
    assert_one_line_error,
    debug_cluster,
    flags,
    interrupted,
    load,
    ok,
    options,
    read_json,
    read_log,
    refused,
    rows_of,
    run_example,
    run_here,
    run_script,
    save_sets,
    save_untrained,
)
from PIL import Image
from stages import SMALL_RCDM, attack_settings
from torch.distributions import Normal, kl_divergence

import train_RCDM
from dejavu_utils.data.image_dataset import evaluation_transform
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.imagenet import load_image
from dejavu_utils.reconstruction import diffusion, unets
from dejavu_utils.reconstruction import rcdm as rec
from dejavu_utils.reconstruction import training as rcdm_training
from dejavu_utils.reconstruction.diffusion import Diffusion

# The study's own command, word by word; $ROOT stands for its environment variables.
MODEL_FLAGS_128 = (
    "--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 --image_size 128 --learn_sigma True "
    "--noise_schedule linear --num_channels 256 --num_heads 4 --num_res_blocks 2 --resblock_updown True "
    "--use_fp16 True --use_scale_shift_norm True"
)
PUBLISHED = (
    "--feat_cond --ssl_from_ckpt True --ssl_loss vicreg --ssl_arch resnet101 --mlp 8192-8192-8192 --data_dir "
    "$ROOT/images --batch_size 8 --out_dir $ROOT/rcdm_vicreg_1000ep_300pc_A --ssl_model_pth "
    "$ROOT/vicreg_dssweep_300pc_A.pth --use_supervised_activations 0 --dataset_indices $ROOT/public.npy --nodes 4 "
    f"--ngpus 8 --timeout 4320 {MODEL_FLAGS_128}"
)
SMALLER = SMALL_RCDM | options("--ssl_arch resnet18 --mlp 32-16 --lr_anneal_steps 6 --save_interval 3")


def published(folder, side="A", **changes):
    words = PUBLISHED.replace("$ROOT", str(folder)).replace("300pc_A", f"300pc_{side}").split()
    return [*words, *flags({**SMALLER, **changes})]


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """36 images of 3 classes with boxes, index files, and two untrained encoders."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "boxes"):
        (folder / name).symlink_to(tiny / "data" / name)
    save_sets(folder, 12, A=(0, 4), B=(4, 8), public=(8, 12))
    for seed, side in enumerate("AB"):
        save_untrained(folder / f"vicreg_dssweep_300pc_{side}.pth", seed=seed)
    return folder


@pytest.fixture(scope="module")
def trained(data):
    """The folders of the two published trainings, uninterrupted."""
    for side in "AB":
        ok(run_here("train_RCDM.py", *published(data, side)))
    return {side: data / f"rcdm_vicreg_1000ep_300pc_{side}" for side in "AB"}


@pytest.fixture(scope="module")
def attacked(data):
    folder = data / "NN_attk_vicreg_300pc_1000ep"
    models = {f"model_{side}_pth": data / f"vicreg_dssweep_300pc_{side}.pth" for side in "AB"}
    ok(run_here("label_inference_attack.py", *flags(attack_settings(data, folder, **models, k=8, k_attk=8))))
    return folder


# The diffusion, against closed forms.

PLAIN = {name: default for name, (default, _, _) in rcdm_training.MODEL_FLAGS.items()}
TINY = {**PLAIN, "image_size": 32, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1}
TINY |= {"attention_resolutions": "16", "learn_sigma": True, "resblock_updown": True}


def test_schedules_and_respacing():
    linear, cosine = diffusion.betas("linear", 1000), diffusion.betas("cosine", 1000)
    np.testing.assert_allclose(linear[[0, -1]], [1e-4, 0.02])
    np.testing.assert_allclose(np.diff(linear), (0.02 - 1e-4) / 999)
    kept = np.cumprod(1 - cosine)
    t = np.array([1, 250, 500, 990])
    expected = np.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(kept[t - 1], expected, rtol=1e-6)
    assert cosine.max() == 0.999
    assert diffusion.kept_steps(10, "") == list(range(10))
    assert diffusion.kept_steps(1000, "ddim5") == [0, 200, 400, 600, 800]
    assert diffusion.kept_steps(10, "4") == [0, 3, 6, 9]
    assert diffusion.kept_steps(10, "2,3") == [0, 4, 5, 7, 9]
    for steps, respacing in ((10, "11"), (10, "ddim7"), (10, "x"), (10, "6,1"), (10, "0")):
        with pytest.raises(ValueError):
            diffusion.kept_steps(steps, respacing)
    whole, spaced = Diffusion(PLAIN), Diffusion(PLAIN, "10")
    t = torch.arange(10)
    assert torch.equal(spaced._at("signal", t), whole._at("signal", spaced.timesteps))


class Fixed(torch.nn.Module):
    """A U-Net that gives the same output for every input."""

    def __init__(self, output):
        super().__init__()
        self.output = torch.nn.Parameter(output)

    def forward(self, x, steps, feat):
        return self.output


def test_learned_variance_loss_is_mse_and_the_detached_bound():
    process, steps = Diffusion({**PLAIN, "learn_sigma": True}), [0, 1, 300, 999]
    torch.manual_seed(0)
    start, noise = torch.rand(4, 3, 4, 4) * 2 - 1, torch.randn(4, 3, 4, 4)
    unet = Fixed(torch.randn(4, 6, 4, 4))
    noise[0] = unet.output[0, :3].detach() + 0.3 * noise[0]  # else the first step's code length is all tails
    losses = process.losses(unet, start, torch.tensor(steps), noise, None)

    def at_steps(values):
        return torch.from_numpy(values[steps]).view(-1, 1, 1, 1)

    beta = diffusion.betas("linear", 1000)
    signal = np.cumprod(1 - beta)
    before = np.append(1.0, signal[:-1])
    posterior = beta * (1 - before) / (1 - signal)
    smallest = at_steps(np.append(posterior[1], posterior[1:]))
    beta, signal, before, posterior = map(at_steps, (beta, signal, before, posterior))
    output, weight = unet.output.detach().double().chunk(2, dim=1)
    x = signal.sqrt() * start + (1 - signal).sqrt() * noise
    x0 = (x - (1 - signal).sqrt() * output) / signal.sqrt()
    mean, true_mean = (
        (before.sqrt() * beta * s + (1 - beta).sqrt() * (1 - before) * x) / (1 - signal) for s in (x0, start.double())
    )
    part = (weight + 1) / 2
    model = Normal(mean, torch.exp(0.5 * (part * beta.log() + (1 - part) * smallest.log())))
    nats = kl_divergence(Normal(true_mean, posterior.clamp(min=1e-20).sqrt()), model)
    nats[0] = -torch.log((model.cdf(start + 1 / 255) - model.cdf(start - 1 / 255)).clamp(min=1e-12))[0]
    bits = nats.flatten(1).mean(1) / math.log(2)
    found = losses["vb"].double()
    torch.testing.assert_close(found[1:], bits[1:], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[0], bits[0], rtol=2e-2, atol=0)  # the package's normal distribution is approximate
    mse = (output - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(losses["loss"].double(), found + mse, rtol=1e-5, atol=0)
    losses["loss"].sum().backward()
    expected = 2 * (output - noise) / output[0].numel()
    torch.testing.assert_close(unet.output.grad[:, :3].double(), expected, rtol=1e-5, atol=1e-7)
    assert unet.output.grad[:, 3:].abs().max() > 0
    fixed = Fixed(unet.output.detach()[:, :3])
    plain = Diffusion(PLAIN).losses(fixed, start, torch.tensor(steps), noise, None)
    assert plain.keys() == {"loss", "mse"} and torch.equal(plain["loss"], losses["mse"])


class GaussianOracle(torch.nn.Module):
    """For pixels that are independent N(mean, scale^2): the best noise prediction, and the exact reverse variance."""

    def __init__(self, process, mean, scale):
        super().__init__()
        self.process, self.mean, self.scale = process, mean, scale

    def forward(self, x, steps, feat):
        t = torch.searchsorted(self.process.timesteps, steps)
        signal, deviation = self.process._at("signal", t), self.process._at("noise", t)
        spread = signal**2 * self.scale**2 + deviation**2
        noise = deviation * (x - signal * self.mean) / spread
        smallest, largest = self.process._at("log_posterior", t), self.process._at("log_beta", t)
        of_start = self.scale**2 * deviation**2 / spread  # the variance of x_0 given x_t
        exact = torch.log(smallest.exp() + self.process._at("mean_start", t) ** 2 * of_start)
        share = (exact - smallest) / (largest - smallest).clamp(min=1e-6)
        return torch.cat([noise, (2 * share - 1).expand_as(x)], dim=1)


@pytest.mark.parametrize("respacing", ["", "100", "ddim500"])
def test_sampling_gives_the_distribution_that_the_network_knows(respacing):
    process = Diffusion({**PLAIN, "learn_sigma": True}, respacing)
    unet = GaussianOracle(process, mean=0.4, scale=0.05)
    images = process.sample(unet, torch.zeros(16, 1), 8, range(16))
    assert abs(images.mean().item() - 0.4) < 0.004
    assert images.std().item() == pytest.approx(0.05, rel=0.06)


def test_samples_depend_on_their_own_seed_and_condition_alone():
    torch.manual_seed(0)
    unet = unets.build_unet("diffusers", TINY, 5).eval()
    x = torch.randn(2, 3, 32, 32)
    assert unet(x, torch.tensor([3, 7]), feat=torch.randn(2, 5)).abs().max() == 0  # ADM starts at zero
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    process, condition = Diffusion(TINY, "3"), torch.randn(3, 5)
    batch = process.sample(unet, condition, 32, [5, 6, 5])
    torch.testing.assert_close(process.sample(unet, condition[1:2], 32, [6]), batch[1:2], rtol=1e-4, atol=1e-5)
    assert (batch[0] - batch[2]).abs().max() > 1e-3  # same noise, another condition
    assert batch.min() >= 0 and batch.max() <= 1


def test_heads_of_the_attention_are_those_of_the_flags():
    from diffusers.models.attention_processor import Attention

    def heads(**changes):
        """{part of the U-Net and its width: heads}"""
        unet = unets.build_unet("diffusers", {**TINY, "attention_resolutions": "32,16", **changes}, 5)
        modules = [(name[5:7], m) for name, m in unet.named_modules() if isinstance(m, Attention)]
        return {f"{part}{m.inner_dim}": m.heads for part, m in modules}

    four = dict.fromkeys(("do32", "do64", "mi64", "up32", "up64"), 4)
    assert heads() == four and heads(num_heads_upsample=2) == {**four, "up32": 2, "up64": 2}
    assert heads(num_head_channels=16) == {**four, "do32": 2, "up32": 2}
    with refused("--num_head_channels 24"):
        heads(num_head_channels=24)


def test_steps_with_large_losses_are_drawn_more_often():
    sampler = diffusion.LossSecondMomentSteps(4, torch.device("cpu"))
    torch.manual_seed(0)
    assert (sampler.sample(100)[1] == 1).all()
    for _ in range(12):
        sampler.update(torch.arange(4), torch.tensor([1.0, 1.0, 1.0, 5.0]))
    t, weights = sampler.sample(4000)
    share = (t == 3).double().mean().item()
    assert share == pytest.approx(5 / 8, abs=0.03)
    assert weights[t == 3][0].item() == pytest.approx(1 / (4 * 5 / 8), rel=0.01)
    assert weights.mean().item() == pytest.approx(1, abs=0.05)


# Training, as a user runs it.


def files(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_published_commands_write_the_published_files(data, trained):
    folder = trained["A"]
    names = {f"{name}{step}.pt" for name in ("model", "ema_0.9999_", "opt") for step in ("000003", "000006")}
    assert files(folder) == names | {"samples000003.png", "samples000006.png", "params.json", "log", "train.images.npz"}
    params = read_json(folder / "params.json")
    assert params["pixel_range"] == [0, 1] and params["backend"] == "diffusers"
    assert (params["layers"], params["width"], params["use_fp16"]) == (["backbone", "projector"], 512 + 16, 1)
    records = read_log(folder / "log")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["loss"] == pytest.approx(record["mse"] + record["vb"]) for record in records)
    assert [record["lr"] for record in records] == pytest.approx([1e-4 * (1 - step / 6) for step in range(6)])
    weights, average = load(folder / "model000006.pt"), load(folder / "ema_0.9999_000006.pt")
    assert weights.keys() == average.keys() and all(torch.is_tensor(value) for value in weights.values())
    assert Image.open(folder / "samples000006.png").size == (8 * 34 + 2, 3 * 34 + 2)
    rcdm = rec.load_rcdm(folder)  # rebuilds U-Net and encoder by itself
    assert same(dict(rcdm.unet.state_dict()), average) and rcdm.network.arch == "resnet18"


@pytest.mark.kills
def test_stopped_and_killed_and_continued_equals_uninterrupted(data, trained, tmp_path):
    arguments = published(data, out_dir=tmp_path)
    code, output = interrupted("train_RCDM.py", arguments, signal.SIGTERM, "step 1/6")
    assert code == 143 and re.search(r"stopped after step \d+; rerun the same command to resume there", output)
    stopped_at = max(rcdm_training.StepFiles.step_of(path) for path in tmp_path.glob("model*.pt"))
    code, output = interrupted("train_RCDM.py", arguments, signal.SIGKILL, "step 5/6")
    assert code == -signal.SIGKILL and f"resumes after step {stopped_at}" in output
    for name in ("opt000003.pt", "model000003.pt"):
        shutil.copy(tmp_path / name, tmp_path / name.replace("3", "4"))  # a step without its average: not complete
    # Asked during the last grid, which takes all 1000 steps here: it is given up, and drawn by the same command.
    code, output = interrupted("train_RCDM.py", [*arguments, "--timestep_respacing", ""], signal.SIGTERM, "step 6/6")
    assert code == 143 and "resumes after step 3" in output and "stopped after step 6" in output
    assert not (tmp_path / "samples000006.png").exists()
    for name in ("model000006.pt", "ema_0.9999_000006.pt", "opt000006.pt"):
        ours, whole = load(tmp_path / name), load(trained["A"] / name)
        for state in (ours, whole):
            state.pop("training", None)  # holds the folder
        assert same(ours, whole), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "log").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    again = ok(run_script("train_RCDM.py", *arguments))
    assert "6 steps are done" in again.stdout
    pictures = [np.asarray(Image.open(folder / "samples000006.png")) for folder in (tmp_path, trained["A"])]
    np.testing.assert_array_equal(*pictures)
    other = run_script("train_RCDM.py", *arguments, "--batch_size", "2")
    assert_one_line_error(other, "--batch_size 2", "was made with 4", "another --out_dir")


@pytest.mark.kills
def test_two_processes_microbatches_samplers_and_another_start(data, trained, tmp_path):
    changes = options("""--world_size 2 --microbatch 1 --batch_size 2 --schedule_sampler loss-second-moment
        --ema_rate 0.9,0.99 --lr_anneal_steps 9""")
    start = trained["A"] / "model000006.pt"
    result = ok(run_script("train_RCDM.py", *published(data, out_dir=tmp_path, resume_checkpoint=start, **changes)))
    assert "(2 processes)" in result.stdout and "resumes after step 6" in result.stdout
    assert "this average starts from the weights" in result.stdout
    # The processes share the grid's samples: none is left black.
    grid = np.asarray(Image.open(tmp_path / "samples000009.png").convert("RGB"))
    assert all(grid[y : y + 32, x : x + 32].any() for y in (2, 36, 70) for x in range(2, 8 * 34, 34))
    assert {"model000009.pt", "ema_0.9_000009.pt", "ema_0.99_000009.pt", "opt000009.pt"} <= files(tmp_path)
    # Steps 7, 8 and 9, each of 2 x 2 images; every one of them was seen by the sampler.
    assert load(tmp_path / "opt000009.pt")["training"]["step_sampler"]["counts"].sum() == 12
    before, after = load(trained["A"] / "model000006.pt"), load(tmp_path / "model000009.pt")
    moved = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0 < moved < 1e-3


def test_every_image_comes_once_per_epoch(monkeypatch):
    def batches(rank, world_size, step=0):
        """Of five steps, batches of 4 images over all processes."""
        monkeypatch.setattr(rcdm_training, "rank", lambda: rank)
        monkeypatch.setattr(rcdm_training, "world_size", lambda: world_size)
        return list(itertools.islice(rcdm_training.Batches(10, 4 // world_size, 3, step), 5))

    order = sum(batches(0, 1), [])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]
    assert [*zip(batches(0, 2), batches(1, 2))] == [(step[:2], step[2:]) for step in batches(0, 1)]
    assert batches(0, 1, step=3)[0] == order[12:16]


def test_a_job_gets_the_nodes_and_gpus_of_the_flags(data, monkeypatch, capsys):
    def run(**changes):
        monkeypatch.setattr(sys, "argv", ["train_RCDM.py", *published(data, local=0, **changes)])
        train_RCDM.main()

    submitted = debug_cluster(monkeypatch, data)
    run(partition="gpu")
    assert capsys.readouterr().out.splitlines()[-1] == submitted["jobs"][-1].job_id
    asked = submitted["parameters"]
    expected = {"nodes": 4, "tasks_per_node": 8, "gpus_per_node": 8, "timeout_min": 4320, "slurm_partition": "gpu"}
    assert {name: asked[name] for name in expected} == expected
    assert asked["mem_gb"] == 480 and "slurm_additional_parameters" not in asked
    awaited = data / "not yet there.pth"
    run(ngpus=0, world_size=2, dependency="afterok:7", ssl_model_pth=awaited)
    asked = submitted["parameters"]
    assert (asked["tasks_per_node"], asked.get("gpus_per_node"), asked["mem_gb"]) == (2, None, 60)
    assert asked["slurm_additional_parameters"] == {"dependency": "afterok:7", "kill_on_invalid_dep": "yes"}


@rows_of(
    "changes, texts",
    """
    --ssl_model_pth ABSENT.pth    -> --ssl_model_pth ABSENT.pth: no such file
    --data_dir ABSENT             -> --data_dir ABSENT: no such folder
    --dataset_indices ABSENT.npy  -> --dataset_indices ABSENT.npy: no such file
    --resume_checkpoint ABSENT.pt -> --resume_checkpoint ABSENT.pt: no such file
    --ssl_from_ckpt False         -> --ssl_from_ckpt False
    --class_cond True             -> --class_cond True
    --image_size 16               -> --image_size 16: must be 32 to 256
    -channel_mult                 -> --image_size 32: needs --channel_mult
    --channel_mult 1,x            -> --channel_mult 1,x: expected
    --channel_mult 1,1,1,1,1,1,1  -> 7 levels cannot halve --image_size 32
    --ema_rate 1.5                -> --ema_rate 1.5
    --timestep_respacing 2000     -> --timestep_respacing 2000
    --lr 0                        -> --lr must be positive
""",
)
def test_bad_flags_are_named_before_anything_is_read(data, changes, texts):
    args = train_RCDM.parse_args(published(data, **changes))
    with refused() as error:
        train_RCDM.check_args(args)
        train_RCDM.Job.of(args)
    assert texts[0] in str(error.value)


@rows_of(
    "changes, texts",
    """
    --local 0            -> srun ;; --local 1
    --ssl_arch resnet101 -> --ssl_arch resnet101 ;; holds resnet18
    --use_supervised_activations 1 -> --use_supervised_activations 1 ;; has no supervised head
    --batch_size 4       -> : needs about ;; make room, name another --out_dir, or raise --save_interval
""",
)
def test_bad_input_is_one_line(data, tmp_path, monkeypatch, changes, texts):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    path = os.path.dirname(sys.executable)  # without srun
    assert_one_line_error(run_here("train_RCDM.py", *published(data, out_dir=tmp_path, **changes), PATH=path), *texts)
    assert not files(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("guided_diffusion_rcdm") is not None, reason="the rcdm package is there")
def test_the_absent_package_is_named_and_auto_does_without():
    assert unets.choose_backend("auto") == "diffusers"
    with refused("--backend rcdm: guided_diffusion_rcdm is not installed"):
        unets.choose_backend("rcdm")


# Reconstruction.


def embed(rcdm, images, layer):
    with torch.no_grad():
        return rcdm.network.embed(torch.stack([evaluation_transform(32)(image) for image in images]), layer)


def crop_of(attack, index):
    return load_image(attack.listing.path(index)).crop(tuple(attack.crops(np.array([index]))[0]))


def test_condition_is_neighbors_backbone_and_crops_projector(data, trained, attacked):
    attack = rec.Attack(attacked)
    rcdm = rec.load_rcdm(trained["B"])
    source = rec.sources_of(attack, "A", rec.load_rcdm(trained["A"]), rcdm)[1]  # the reference on set A: model B
    indices = attack.tables["A"]["index"].to_numpy()[:3]
    found, neighbors = rec.conditions(source, "A", indices)
    assert neighbors.shape == (3, 5)
    row = list(np.load(attacked / "B_attk_A_attk_idxs.npy")).index(indices[1])
    assert neighbors[1].tolist() == np.load(attacked / "B_attk_A_neighb_idxs.npy")[row, :5].tolist()
    images = [load_image(attack.listing.path(index)) for index in neighbors[1]]
    mean = embed(rcdm, images, "backbone").mean(dim=0)
    crop = embed(rcdm, [crop_of(attack, indices[1])], "projector")[0]
    torch.testing.assert_close(found[1], torch.cat([mean, crop]), rtol=1e-4, atol=1e-5)


def test_a_supervised_row_is_of_a_model_of_the_same_images(data, trained, attacked, tmp_path):
    save_untrained(tmp_path / "supervised.pth", loss="supervised")
    changes = {"ssl_model_pth": tmp_path / "supervised.pth", "ssl_loss": "supervised", "use_supervised_activations": 1}
    ok(run_here("train_RCDM.py", *published(data, out_dir=tmp_path / "rcdm", lr_anneal_steps=3, **changes)))
    attack, of_logits = rec.Attack(attacked), rec.load_rcdm(tmp_path / "rcdm")
    rcdms = [rec.load_rcdm(trained[side]) for side in "AB"]
    target, reference, supervised = rec.sources_of(attack, "A", *rcdms, of_logits)
    indices = attack.tables["A"]["index"].to_numpy()[:3]
    condition, neighbors = rec.conditions(supervised, "A", indices)
    assert condition.shape == (3, 3) and neighbors.shape == (3, 0)  # of three classes
    logits = embed(of_logits, [crop_of(attack, index) for index in indices], "logits")
    torch.testing.assert_close(condition, logits, rtol=1e-4, atol=1e-5)
    params = read_json(tmp_path / "rcdm/params.json")
    assert (params["layers"], params["width"]) == (["logits"], 3)

    with refused("needs the neighbors of an attack on that model"):
        rec.sources_of(attack, "A", *rcdms, rcdms[1])
    with refused(f"RCDM of model A.*the attack {attacked}"):
        rec.sources_of(attack, "A", *rcdms, of_logits, attack)  # an attack on other models
    listing = attack.listing.fingerprint["sha256"]
    seen = {name: TrainingImages(np.sort(np.load(data / f"{name}.npy")), listing) for name in "AB"}
    of_A = replace(attack.record.models["A"], images=seen["A"].digest)
    attack.record = replace(attack.record, models={**attack.record.models, "A": of_A})
    of_logits.network.about["train_images"] = seen["A"].plain()
    assert rec.check_supervised(attack, "A", of_logits, None) == []
    of_logits.network.about["train_images"] = seen["B"].plain()
    with refused("was not trained on the images of model A"):
        rec.check_supervised(attack, "A", of_logits, None)


def test_the_notebooks_default_folder_is_the_demos():
    cells = read_json(ROOT / "visualization_RCDM.ipynb")["cells"]
    [parameters] = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    settings = (ROOT / "bash_examples/demo_settings.sh").read_text()
    epochs = re.search(r"EPOCHS:-(\d+)", settings)[1]
    assert f"demo/seed0/simclr_{epochs}epochs" in parameters and f".at({epochs}, " in parameters


def test_choosing_examples():
    table = pd.DataFrame(
        {
            "index": [10, 11, 12, 13, 14, 15],
            "label": [0, 0, 0, 1, 1, 1],
            "target_confidence": [-1.0, -0.2, -0.5, -0.1, -0.3, -0.9],
            "reference_confidence": [-1.5, -1.0, -0.6, -0.4, -0.2, -1.0],
            "target_top1_correct": [1, 1, 0, 1, 1, 0],
            "reference_top1_correct": [0, 0, 0, 1, 1, 1],
            "share": ["memorized", "memorized", "unassociated", "correlated", "correlated", "misrepresented"],
        }
    )
    assert rec.most_confident(table, 0, 2)["index"].tolist() == [11, 12]
    assert rec.most_memorized(table, 5)["index"].tolist() == [11, 10]  # leads of 0.8 and 0.5
    assert rec.most_correlated(table, 5)["index"].tolist() == [14, 13]  # smaller confidences -0.3 and -0.4
    assert rec.picked(table, [13, 10])["label"].tolist() == [1, 0]
    with refused("image 99 is not among"):
        rec.picked(table, [99])


def test_the_notebook_runs_and_saves_its_tiles(trained, attacked, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")

    variables = {"RCDM_ATTACK": attacked, "RCDM_A": trained["A"], "RCDM_B": trained["B"], "RCDM_FIGURES": tmp_path}
    for name, value in {**variables, "RCDM_RESPACING": 2, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(ROOT / "visualization_RCDM.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    for folder in (tmp_path / "most_confident", tmp_path / "by_hand"):  # four examples each
        assert files(folder) == {"samps_patches.png", "NNs_A.png", "NNs_B.png", "recon_A.png", "recon_B.png"}
        assert Image.open(folder / "recon_A.png").size == (4 * 34 + 2, 4 * 34 + 2)
        assert Image.open(folder / "NNs_B.png").size == (5 * 34 + 2, 4 * 34 + 2)
    assert (tmp_path / "memorized.png").stat().st_size > 5000


def test_the_judge_counts_what_it_sees(data, trained, attacked, tmp_path):
    judge = save_untrained(tmp_path / "judge.pth", seed=5, loss="supervised")
    settings = {"attack": attacked, "rcdm_A": trained["A"], "rcdm_B": trained["B"], "respacing": 2}
    settings |= {"judge_pth": tmp_path / "judge.pth", "unseen_idx_pth": data / "A.npy"}
    settings |= {"public_idx_pth": data / "public.npy", "save_path": tmp_path / "judged.json"}
    result = ok(run_here("bash_examples/judge_rcdm.py", *flags(settings)))
    judged = read_json(tmp_path / "judged.json")
    listing, unseen = rec.list_images(data / "images"), np.load(data / "A.npy")
    images = torch.stack([evaluation_transform(32)(load_image(listing.path(index))) for index in unseen])
    with torch.no_grad():
        right = judge.embed(images, "logits").argmax(dim=1).numpy() == listing.labels[unseen]
    assert judged["real images"]["value"] == right.mean()
    tables = rec.Attack(attacked).tables
    examples = len(tables["A"]) + len(tables["B"])
    public = sum(min(12, len(table)) for table in tables.values())
    assert judged["samples from whole images"]["public images"]["n"] == public
    assert judged["samples from whole images"]["held-out images"]["n"] == examples
    crops = judged["samples from crops"]
    assert sum(crops[share]["n"] for share in ("memorized", "correlated", "misrepresented", "unassociated")) == examples
    score = crops["all"]["target"]["value"] - crops["all"]["reference"]["value"]
    assert crops["all"]["score"]["value"] == pytest.approx(score)
    words = f"{judged['real images']['value']:.3f} [{judged['real images']['low']:.3f}"
    assert f"on 12 real images it was not trained on: {words}" in result.stdout


@pytest.mark.slow
def test_reconstructions_show_what_the_target_remembers(tmp_path):
    """The demo, its RCDMs and the judge: about half an hour on two cores."""
    for script in ("demo.sh", "demo_rcdm.sh"):
        result = ok(run_example(script, DEMO_DIR=tmp_path, SEED=7, JUDGE=1))
    folder = tmp_path / "seed7/simclr_300epochs/RCDM/reconstructions"
    judged = read_json(folder / "judged.json")
    assert judged["real images"]["value"] >= 0.95, result.stdout
    for figure in judged["samples from whole images"].values():
        assert figure["low"] > 0.4, result.stdout  # chance is 0.2
    crops = judged["samples from crops"]
    assert crops["all"]["score"]["low"] > 0 and crops["memorized"]["score"]["low"] > 0, result.stdout
    assert (folder / "visualization_RCDM.ipynb").is_file() and (folder / "memorized.png").is_file()


# The package itself, where it is installed.
rcdm_package = pytest.mark.skipif(
    not importlib.util.find_spec("guided_diffusion_rcdm"), reason="the guided_diffusion_rcdm package is not installed"
)


def package_model(model_flags, width):
    unets.build_unet("rcdm", model_flags, width)  # sets the name that the package imports
    from guided_diffusion_rcdm.script_util import create_model_and_diffusion, model_and_diffusion_defaults

    known = {name: model_flags.get(name, default) for name, default in model_and_diffusion_defaults().items()}
    return create_model_and_diffusion(**known, G_shared=True, feat_cond=True, ssl_dim=width)


@pytest.mark.rcdm
@rcdm_package
def test_checkpoints_go_both_ways(data, tmp_path):
    arguments = published(data, out_dir=tmp_path, backend="auto", lr_anneal_steps=3)
    result = ok(run_script("train_RCDM.py", *arguments))
    assert "rcdm U-Net" in result.stdout
    params = read_json(tmp_path / "params.json")
    theirs, _ = package_model(params, params["width"])
    for name in ("model000003.pt", "ema_0.9999_000003.pt"):
        theirs.load_state_dict(load(tmp_path / name), strict=True)
    optimizer = torch.optim.AdamW(theirs.parameters())
    optimizer.load_state_dict(load(tmp_path / "opt000003.pt"))
    assert len(optimizer.state) == len(list(theirs.parameters()))
    # And back: what the package saves (plain state dicts) is gone on from.
    other = tmp_path / "theirs"
    other.mkdir()
    torch.save(theirs.state_dict(), other / "model000003.pt")
    torch.save(theirs.state_dict(), other / "ema_0.9999_000003.pt")
    torch.save(optimizer.state_dict(), other / "opt000003.pt")
    result = ok(run_script("train_RCDM.py", *published(data, out_dir=other, backend="rcdm", lr_anneal_steps=4)))
    assert "resumes after step 3" in result.stdout
    assert rec.load_rcdm(other / "model000003.pt", settings=params).side == 32


@pytest.mark.rcdm
@rcdm_package
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise_schedule": "cosine", "rescale_learned_sigmas": True, "diffusion_steps": 200},
        {"learn_sigma": False, "rescale_timesteps": True, "diffusion_steps": 400},
        {"use_kl": True, "predict_xstart": True},
    ],
)
def test_losses_and_steps_are_the_packages(changes):
    model_flags = {**TINY, **changes}
    torch.manual_seed(0)
    unet, theirs = package_model(model_flags, 7)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    ours = Diffusion(model_flags)
    start, noise, feat = torch.rand(5, 3, 32, 32), torch.randn(5, 3, 32, 32), torch.randn(5, 7)
    t = torch.tensor([0, 1, 40, 120, len(ours) - 1])
    expected = theirs.training_losses(unet, start, t, model_kwargs={"feat": feat}, noise=noise)
    found = ours.losses(unet, start, t, noise, feat)
    assert found.keys() >= expected.keys()
    for name, values in expected.items():
        # With use_kl the last steps are differences of nearly equal numbers, times 1000.
        atol = 1e-3 if changes.get("use_kl") else 1e-5
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=atol)
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        theirs_now = theirs.p_mean_variance(unet, x, t, clip_denoised=True, model_kwargs={"feat": feat})
        x0, mean, log_variance = ours.reverse(ours.output(unet, x, t, feat), x, t, (-1, 1))
    for a, b in ((x0, "pred_xstart"), (mean, "mean"), (log_variance, "log_variance")):
        torch.testing.assert_close(a, theirs_now[b], rtol=1e-4, atol=1e-4)
