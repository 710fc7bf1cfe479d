"""What the training of an RCDM is made of beside its loop: flags of the model, order of images,
files of a step."""

import argparse
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dejavu_utils.checkpoint import tensor_bytes
from dejavu_utils.cli import add_flags, from_flags, positive_int, zero_or_one
from dejavu_utils.data.provenance import (
    MADE_FROM,
    ModelRecord,
    Provenance,
    TrainingImages,
    check_same,
)
from dejavu_utils.errors import InputError
from dejavu_utils.files import check_free_space, digest
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.models import Network
from dejavu_utils.networks.loading import ModelFile
from dejavu_utils.randomness import epoch_order
from dejavu_utils.reconstruction.diffusion import NOISE_SCHEDULES, Diffusion
from dejavu_utils.reconstruction.unets import choose_backend
from dejavu_utils.runtime.distributed import rank, sum_over_processes, world_size
from dejavu_utils.runtime.processes import StopSignal

# What the U-Net and the diffusion are made of, with the defaults of guided diffusion: name ->
# (default, type, help).
MODEL_FLAGS: dict[str, tuple[Any, Any, str]] = {  # default, type or choices, help
    "image_size": (64, positive_int, "side of the generated images, pixels, 32 to 256"),
    "num_channels": (128, positive_int, "channels of the U-Net's first level"),
    "num_res_blocks": (2, positive_int, "residual blocks a level"),
    "channel_mult": (
        "",
        str,
        "channels of each level / num_channels, for instance 1,2,4; empty: by image_size",
    ),
    "attention_resolutions": ("16,8", str, "sides (pixels) of the levels that have attention"),
    "num_heads": (4, positive_int, "heads of the attention"),
    "num_heads_upsample": (-1, int, "heads on the way up; -1 = num_heads"),
    "num_head_channels": (-1, int, "channels per head, instead of num_heads; -1: not given"),
    "dropout": (0.0, float, "within the residual blocks"),
    "resblock_updown": (False, zero_or_one, "residual blocks change the resolution"),
    "use_scale_shift_norm": (
        True,
        zero_or_one,
        "the condition scales and shifts the normalized features",
    ),
    "use_checkpoint": (
        False,
        zero_or_one,
        "save memory: compute activations again in the backward pass",
    ),
    "use_new_attention_order": (
        False,
        zero_or_one,
        "order of the attention's weights (rcdm backend only)",
    ),
    "learn_sigma": (False, zero_or_one, "learn the variance of the reverse process"),
    "diffusion_steps": (1000, positive_int, "steps of the diffusion"),
    "noise_schedule": ("linear", NOISE_SCHEDULES, "variances of the noise that is added"),
    "use_kl": (False, zero_or_one, "loss: the variational bound alone"),
    "predict_xstart": (False, zero_or_one, "the U-Net predicts the image, not the noise"),
    "rescale_timesteps": (False, zero_or_one, "the U-Net sees steps x 1000 / diffusion_steps"),
    "rescale_learned_sigmas": (
        False,
        zero_or_one,
        "loss: weigh the bound by diffusion_steps / 1000",
    ),
}
# A run that is resumed must have these as before: the weights would not fit, or the images come in
# another order.
SAME_WHEN_RESUMED = (
    *MODEL_FLAGS,
    "backend",
    "layers",
    "width",
    "ssl_resolution",
    "batch_size",
    "processes",
    "seed",
    "images",
    "schedule_sampler",
)
# in a folder: the file before whose SUFFIX data.provenance says which images were trained on
TRAINED_ON = "train"


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """Adds a flag for each of MODEL_FLAGS to a parser's group."""
    add_flags(group, {f"--{name}": flag for name, flag in MODEL_FLAGS.items()})


@dataclass(frozen=True)
class Job:
    """The training of an RCDM, by the flags of the same names. encoder: of the --ssl flags.
    ema_rates: of --ema_rate. settings: all flags, as the U-Net, the diffusion and params.json take
    them."""

    out_dir: str
    encoder: ModelFile
    use_supervised_activations: int
    data_dir: str
    dataset_indices: str
    skip_unreadable: bool
    workers: int
    image_size: int
    timestep_respacing: str
    batch_size: int
    microbatch: int
    lr: float
    weight_decay: float
    lr_anneal_steps: int
    ema_rates: list[float]
    schedule_sampler: str
    use_fp16: int
    precision: str
    fp16_scale_growth: float
    log_interval: int
    save_interval: int
    resume_checkpoint: str
    seed: int
    port: int
    settings: dict[str, Any]

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Job":
        """InputError for an --ema_rate or a --backend that cannot be."""
        encoder = ModelFile(
            "--ssl_model_pth",
            args.ssl_model_pth,
            args.ssl_arch,
            args.ssl_resolution,
            args.mlp,
            args.ssl_loss,
            prefix="ssl_",
        )
        settings = {**vars(args), "backend": choose_backend(args.backend)}
        return from_flags(
            cls,
            args,
            encoder=encoder,
            ema_rates=ema_rates(args.ema_rate, "--ema_rate"),
            settings=settings,
        )

    def due(self, step: int, interval: int) -> bool:
        """Is it the last step, or one after so many?"""
        return step % interval == 0 or self.is_last(step)

    def is_last(self, step: int) -> bool:
        return 0 < self.lr_anneal_steps <= step


def ema_rates(text: str, flag: str) -> list[float]:
    """ "0.999,0.9999" -> [0.999, 0.9999], fractions of the old average that an update keeps;
    InputError names flag."""
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        rates = [math.nan]
    if not all(0 <= rate < 1 for rate in rates):
        raise InputError(f"{flag} {text}: expected rates from 0 to below 1 with commas between")
    return rates


def same_when_resumed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """SAME_WHEN_RESUMED of {name: value} of a run, as `Provenance.settings`."""
    same = {}
    for name in SAME_WHEN_RESUMED:
        value = settings.get(name)
        same[name] = str(value) if isinstance(value, list) else value
    return same


def record_of(
    encoder: "Encoder", listing: ImageListing, indices: np.ndarray, settings: Mapping[str, Any]
) -> Provenance:
    """The Provenance of an RCDM. encoder: Encoder. listing, indices: its images. settings: {name:
    value} of the run."""
    return Provenance(
        models={"encoder": encoder.record},
        images=listing.fingerprint["sha256"],
        sets={"dataset_indices": digest(indices)},
        settings=same_when_resumed(settings),
    )


def check_resumed(
    record: Provenance, training: Mapping[str, Any], folder: str | Path, settings: Mapping[str, Any]
) -> list[str]:
    """Notes; InputError for the first thing that `folder` was made from and this run, of this
    record, is not.

    training: what its opt{step}.pt says. settings: {name: value} of this run.
    """
    flags = {"models.*": "ssl_model_pth", "images": "data_dir", "sets.*": "dataset_indices"}
    sources = {entry: f"--{flag} {settings[flag]}" for entry, flag in flags.items()}
    remedy = "use the same, or another --out_dir"
    # older checkpoints have these alone
    of_settings = Provenance(settings=same_when_resumed(training["settings"]))
    there = Provenance.from_plain(training.get(MADE_FROM))
    notes = check_same("rcdm", record, there, str(folder), sources, remedy)
    return notes + check_same("rcdm", record, of_settings, str(folder), sources, remedy)


def check_room(job: Job, unet: torch.nn.Module, step: int) -> None:
    """InputError if the disk has no room for the files of all saves after a step; of the next one
    in an endless run."""
    steps_left = max(0, job.lr_anneal_steps - step) if job.lr_anneal_steps else 1
    saves = math.ceil(steps_left / job.save_interval)
    copies = 1 + len(job.ema_rates) + 2  # the weights, their averages, and AdamW's two moments
    needed = saves * copies * tensor_bytes(unet.state_dict())
    check_free_space(
        Path(job.out_dir), needed, "make room, name another --out_dir, or raise --save_interval"
    )


class Encoder:
    """The frozen SSL model: its normalized images, float (n, 3, r, r) -> representations, float32
    (n, width).

    layers: whose outputs, side by side, are the representation.
    """

    def __init__(self, network: Network, layers: list[str], device: torch.device) -> None:
        self.layers = layers
        self.record = ModelRecord.of(network)
        self.network = network.to(device)
        self.width = sum(map(network.width, layers))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        of_layers = self.network.embed_layers(images, self.layers)
        return torch.cat(list(of_layers.values()), dim=1).float()

    def trained_on(self, listing: ImageListing, indices: np.ndarray) -> list[str]:
        """Warnings (list of str) about images that it was trained on: an RCDM must not see what it
        may reveal.

        listing, indices: the RCDM's images.
        """
        source = self.network.source
        images = TrainingImages.of(self.network)
        if images is None:
            return [
                f"{source} does not say which images it was trained on: that none is among these is not checked"
            ]
        if not images.is_of(listing):
            return [
                f"{source} was trained on images of another folder: that none is among these is not checked"
            ]
        seen = images.seen(indices)
        what = f"{source} was trained on {seen} of its {len(indices)} images"
        return (
            [f"{what}; train the RCDM on public images alone to show memorization"] if seen else []
        )


@torch.no_grad()
def update_averages(
    averages: dict[float, dict[str, Tensor]],
    network: torch.nn.Module,
    skipped: Tensor | None = None,
) -> None:
    """Moves {rate: state dict} towards the network's weights, in place; skipped: a scalar, where it
    is 1 by nothing."""
    weights = network.state_dict()
    for rate, average in averages.items():
        share: Any = 1 - rate
        if skipped is not None:  # on the device: nothing waits for it
            share = [share * (1 - skipped)] * len(average)
        torch._foreach_lerp_(list(average.values()), [weights[name] for name in average], share)


@dataclass
class Batches:
    """The positions of this process's images, step after step without an end, from `step` on.

    The images follow one another in an order that (seed, epoch) alone decides; a step takes the
    next batch_size of them for every process.
    """

    n: int
    batch_size: int
    seed: int
    step: int

    def __iter__(self) -> Iterator[list[int]]:
        epoch = -1
        order = np.empty(0, int)
        for step in itertools.count(self.step):
            start = (step * world_size() + rank()) * self.batch_size
            batch = []
            for position in range(start, start + self.batch_size):
                if position // self.n != epoch:
                    epoch = position // self.n
                    order = epoch_order(self.seed, epoch, self.n)
                batch.append(int(order[position % self.n]))
            yield batch


class StepFiles:
    """The files of the steps of a training in `folder`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def model(self, step: int) -> Path:
        return self.folder / f"model{step:06d}.pt"

    def average(self, rate: float, step: int) -> Path:
        return self.folder / f"ema_{rate}_{step:06d}.pt"

    def optimizer(self, step: int) -> Path:
        return self.folder / f"opt{step:06d}.pt"

    def samples(self, step: int) -> Path:
        return self.folder / f"samples{step:06d}.png"

    def last_complete(self, rates: Sequence[float], flag: str) -> int | None:
        """The last step that has all its files, or None. InputError, naming the flag of the
        averages' rates, if all steps lack the same averages."""
        steps = []
        for path in self.folder.glob("opt*.pt"):
            match = re.fullmatch(r"opt(\d+)\.pt", path.name)
            if match and self.model(int(match[1])).is_file():
                steps.append(int(match[1]))
        for step in sorted(steps, reverse=True):
            if all(self.average(rate, step).is_file() for rate in rates):
                return step
        if steps:
            raise InputError(
                f"{flag} {','.join(map(str, rates))}: {self.folder} holds no ema_*.pt of these rates; give those it "
                "was trained with, or another folder"
            )
        return None

    def refuse_others(self, step: int, flag: str) -> None:
        """InputError, naming the flag of the folder, for files of later steps there that no run of
        ours has written."""
        if (self.folder / "params.json").is_file():  # written before the first step is
            return
        for path in sorted(self.folder.glob("*.pt")):
            number = re.fullmatch(r"(?:model|ema_.*_|opt).*?(\d+)\.pt", path.name)
            if number and int(number[1]) > step:
                raise InputError(
                    f"{flag} {self.folder}: holds {path.name}, which this run did not write and would overwrite; name "
                    "another folder"
                )

    @staticmethod
    def step_of(path: str | Path) -> int:
        """The step in the name of model012345.pt; 0 where there is none, as for weights somebody
        published."""
        match = re.fullmatch(r"model(\d+)\.pt", Path(path).name)
        return int(match[1]) if match else 0


class _Stopped(Exception):
    """Raised between two steps of sampling, when this process was asked to stop."""


def shared_samples(
    process: Diffusion,
    unet: torch.nn.Module,
    representations: Tensor,
    side: int,
    stop: StopSignal,
) -> Tensor | None:
    """One sample from each representation, float32 (n, 3, side, side) on the CPU; the processes
    share the work.

    process: Diffusion. representations: float (n, width), the same in all processes. The noise of
    sample i has seed i. None is returned if any process was asked to stop meanwhile.
    """

    def check_stop(count: int) -> None:
        if stop.received is not None:
            raise _Stopped

    n = len(representations)
    device = representations.device
    own = list(range(n)[rank() :: world_size()])
    samples = torch.zeros(n, 3, side, side, device=device)
    try:
        if own:  # there may be more processes than samples
            samples[own] = process.sample(
                unet, representations[own], side, own, on_progress=check_stop
            )
    except _Stopped:
        pass  # the others may not know yet: all ask below
    if stop.asked(device):
        return None
    return sum_over_processes(samples).cpu()
