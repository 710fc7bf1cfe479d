"""Diffusion conditioned on a representation: the noise schedule, the training loss, sampling, and
the two U-Nets.

Sources: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (cosine schedule, learned variance,
respacing, importance sampling of steps), Song et al. 2021 (DDIM), Dhariwal & Nichol 2021 (the ADM
U-Net), Bordes et al. 2021 (RCDM: a Linear of the representation is added to the time embedding).
Conventions, and so the numbers, are those of guided diffusion; the two backends differ in the U-Net
alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dejavu_utils.runtime.devices import to_device

UNet = Callable[..., Tensor]  # as reconstruction.unets builds it
PIXEL_RANGE = (0.0, 1.0)  # of the training images, as published; stored with every model
NOISE_SCHEDULES = ("linear", "cosine")


class Diffusion:
    """The forward process q(x_t | x_0) over T steps, the loss of a U-Net that reverses it, and
    sampling.

    flags: diffusion_steps (T), noise_schedule, learn_sigma, predict_xstart, use_kl,
    rescale_timesteps and rescale_learned_sigmas of the command line, as a dict. respacing: "" for
    all steps, "100" for so many steps of DDPM, "ddim50" for so many of DDIM without noise;
    ValueError where T has no such subset. The last dimensions of images are (3, side, side).
    """

    def __init__(self, flags: Mapping[str, Any], respacing: str = "") -> None:
        steps = flags["diffusion_steps"]
        self.learn_sigma = flags["learn_sigma"]
        self.predict_xstart = flags["predict_xstart"]
        self.use_kl = flags["use_kl"]
        self.rescale_learned_sigmas = flags["rescale_learned_sigmas"]
        self.time_scale = 1000.0 / steps if flags["rescale_timesteps"] else None
        self.ddim = respacing.startswith("ddim")
        self.timesteps = torch.tensor(kept_steps(steps, respacing))
        signal_of_all = np.cumprod(1.0 - betas(flags["noise_schedule"], steps))
        signal = signal_of_all[self.timesteps.numpy()]  # the paper's alpha-bar
        before = np.append(1.0, signal[:-1])
        beta = 1.0 - signal / before  # of the kept steps (Nichol & Dhariwal 2021, equation 19)
        posterior = beta * (1.0 - before) / (1.0 - signal)  # variance of q(x_{t-1} | x_t, x_0)
        # That of the first step is 0, and has no logarithm: it gets the second one's.
        first = posterior[1] if len(beta) > 1 else beta[0]
        clipped = np.append(first, posterior[1:])
        table = {
            "signal": np.sqrt(signal),
            "noise": np.sqrt(1.0 - signal),
            "mean_start": beta * np.sqrt(before) / (1.0 - signal),
            "mean_now": (1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - signal),
            "before": before,
            "log_beta": np.log(beta),
            "log_posterior": np.log(clipped),
            "log_large": np.log(np.append(clipped[0], beta[1:])),
        }
        on_cpu = {"timesteps": self.timesteps}
        for name, values in table.items():
            on_cpu[name] = torch.from_numpy(values).float()
        self._tables = {torch.device("cpu"): on_cpu}

    def __len__(self) -> int:
        """How many steps there are, after respacing."""
        return len(self.timesteps)

    def _at(self, name: str, t: Tensor) -> Tensor:
        """The schedule's value at each step of t, float32 (n, 1, 1, 1)."""
        return self._on(t.device)[name][t].view(-1, 1, 1, 1)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The tables on a device, copied there once: a GPU would be waited for."""
        if device not in self._tables:
            cpu = self._tables[torch.device("cpu")]
            self._tables[device] = {name: values.to(device) for name, values in cpu.items()}
        return self._tables[device]

    def noised(self, start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t given x_0. start, noise: float (n, 3, s, s); t: int64 (n,), positions among the kept
        steps."""
        return self._at("signal", t) * start + self._at("noise", t) * noise

    def output(self, unet: UNet, x: Tensor, t: Tensor, representation: Tensor) -> Tensor:
        """The U-Net's raw output, float32 (n, 3 or 6, s, s)."""
        steps = self._on(t.device)["timesteps"][t]
        if self.time_scale is not None:
            steps = steps.float() * self.time_scale
        return unet(x, steps, feat=representation).float()

    def reverse(
        self, output: Tensor, x: Tensor, t: Tensor, pixel_range: tuple[float, float] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x_0 as predicted, mean and log variance of p(x_{t-1} | x_t)), float (n, 3, s, s) each.

        pixel_range: (low, high) that the predicted x_0 is clipped to, if given.
        """
        if self.learn_sigma:
            # Nichol & Dhariwal 2021, equation 15: between the posterior's variance (-1) and beta
            # (1).
            output, weight = output.chunk(2, dim=1)
            weight = (weight + 1) / 2
            largest = self._at("log_beta", t)
            smallest = self._at("log_posterior", t)
            log_variance = weight * largest + (1 - weight) * smallest
        else:
            log_variance = self._at("log_large", t).expand_as(x)
        start = output
        if not self.predict_xstart:
            start = (x - self._at("noise", t) * output) / self._at("signal", t)
        if pixel_range is not None:
            start = start.clamp(*pixel_range)
        return start, self._posterior_mean(start, x, t), log_variance

    def _posterior_mean(self, start: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Of q(x_{t-1} | x_t, x_0)."""
        return self._at("mean_start", t) * start + self._at("mean_now", t) * x

    def losses(
        self, unet: UNet, start: Tensor, t: Tensor, noise: Tensor, representation: Tensor
    ) -> dict[str, Tensor]:
        """{"loss", "mse", "vb"} of each image, float32 (n,).

        vb: the step's term of the variational bound in bits per dimension, through the variance
        alone (the mean is detached); mse: of the predicted noise (or x_0). loss = mse + vb with a
        learned variance, mse without; vb x steps with use_kl. rescale_learned_sigmas weighs vb by
        steps / 1000.
        """
        x = self.noised(start, t, noise)
        output = self.output(unet, x, t, representation)
        if self.use_kl:
            vb = self._bound(output, start, x, t)
            return {"loss": vb * len(self), "vb": vb}
        mean_part = output[:, :3]
        predicted = start if self.predict_xstart else noise
        mse = (mean_part - predicted).square().flatten(1).mean(1)
        if not self.learn_sigma:
            return {"loss": mse, "mse": mse}
        through_variance = torch.cat([mean_part.detach(), output[:, 3:]], dim=1)
        vb = self._bound(through_variance, start, x, t)
        if self.rescale_learned_sigmas:
            vb = vb * (len(self) / 1000.0)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _bound(self, output: Tensor, start: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || p) in bits per dimension, the decoder's code length at the
        first step; (n,)."""
        _, mean, log_variance = self.reverse(output, x, t)
        true_mean = self._posterior_mean(start, x, t)
        true_log = self._at("log_posterior", t)
        gap = (true_mean - mean).square() * torch.exp(-log_variance)
        kl = 0.5 * (log_variance - true_log + torch.exp(true_log - log_variance) + gap - 1)
        code_length = _code_length(start, mean, 0.5 * log_variance)
        nats = torch.where(t == 0, code_length, kl.flatten(1).mean(1))
        return nats / math.log(2.0)

    @torch.no_grad()
    def sample(
        self,
        unet: UNet,
        representation: Tensor,
        side: int,
        seeds: Sequence[int],
        pixel_range: tuple[float, float] = PIXEL_RANGE,
        on_progress: Callable[[int], object] = lambda count: None,
    ) -> Tensor:
        """Images in pixel_range, float32 (n, 3, side, side), by DDPM, or DDIM where the respacing
        says so.

        representation: float (n, width). seeds: n int; an image's noise depends on its own seed
        alone, and so neither on the other images of the batch nor on the device. on_progress:
        called after each step with n.
        """
        device = representation.device
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

        def draw() -> Tensor:
            noise = [torch.randn(3, side, side, generator=generator) for generator in generators]
            return to_device(torch.stack(noise), device)

        x = draw()
        for step in reversed(range(len(self))):
            t = torch.full((len(x),), step, device=device)
            output = self.output(unet, x, t, representation)
            start, mean, log_variance = self.reverse(output, x, t, pixel_range)
            if self.ddim:
                noise = (x - self._at("signal", t) * start) / self._at("noise", t)
                before = self._at("before", t)
                x = before.sqrt() * start + (1 - before).sqrt() * noise
            elif step:
                x = mean + torch.exp(0.5 * log_variance) * draw()
            else:  # no noise at the last
                x = mean
            on_progress(len(x))
        return x.clamp(*pixel_range)


class Losses(nn.Module):
    """The diffusion's losses as a module, so that DistributedDataParallel sees the forward pass."""

    def __init__(self, unet: nn.Module, process: Diffusion) -> None:
        super().__init__()
        self.unet = unet
        self.process = process

    def forward(
        self, images: Tensor, t: Tensor, noise: Tensor, representations: Tensor
    ) -> dict[str, Tensor]:
        return self.process.losses(self.unet, images, t, noise, representations)


def betas(name: str, steps: int) -> np.ndarray:
    """Variances of the forward process, float64 (steps,); name: linear (Ho et al.) or cosine
    (Nichol & Dhariwal)."""
    if name == "linear":
        return np.linspace(0.1 / steps, 20.0 / steps, steps)  # 1e-4 to 0.02 at 1000 steps
    progress = np.arange(steps + 1) / steps
    kept = np.cos((progress + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)


def kept_steps(steps: int, respacing: str) -> list[int]:
    """The steps that a respaced schedule keeps, a rising list of int below `steps`.

    "" keeps all; "ddim50": 50 at a constant whole stride from 0 on; "100": 100 evenly spread from
    the first to the last; "10,20,70": so many of each of equal sections. ValueError where that
    cannot be.
    """
    if respacing.startswith("ddim"):
        count = int(respacing.removeprefix("ddim"))
        for stride in range(1, steps + 1):
            kept = list(range(0, steps, stride))
            if len(kept) == count:
                return kept
        raise ValueError(f"no whole stride takes {count} of {steps} steps")
    counts = [int(part) for part in respacing.split(",")] if respacing else [steps]
    kept = []
    start = 0
    for section, count in enumerate(counts):
        size = steps // len(counts) + (section < steps % len(counts))  # the first ones are longer
        if not 1 <= count <= size:
            raise ValueError(f"{count} steps cannot be taken of a section of {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1
        kept += [start + round(i * stride) for i in range(count)]
        start += size
    return kept


def _code_length(start: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Minus the log-probability (nats, mean over an image) of 8-bit pixels under a discretized
    Gaussian; (n,).

    Bins are those of pixels in [-1, 1], half of 2 / 255 to each side, with open ends (Ho et al.
    2020, equation 13), and the normal distribution function is its tanh approximation, as in guided
    diffusion.
    """
    scale = torch.exp(-log_scale)
    half_bin = 1 / 255
    upper = _normal_cdf((start - mean + half_bin) * scale).clamp(min=0.0)
    lower = _normal_cdf((start - mean - half_bin) * scale).clamp(min=0.0)
    probability = torch.where(start > 0.999, 1 - lower, upper - lower)  # the bin of 1 has no end
    probability = torch.where(start < -0.999, upper, probability)
    return -torch.log(probability.clamp(min=1e-12)).flatten(1).mean(1)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class UniformSteps:
    """Draws training steps uniformly; every loss has weight 1."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps = steps
        self.device = device

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """(t int64 (n,), weights float32 (n,)) on the device, from PyTorch's global generator on
        the CPU."""
        t = to_device(torch.randint(self.steps, (n,)), self.device)
        return t, torch.ones(n, device=self.device)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Records the losses (n,) at steps t, of all processes."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class LossSecondMomentSteps(UniformSteps):
    """Draws steps by the root of their loss's second moment over the last 10, and weighs them back.

    Nichol & Dhariwal 2021, section 3.3. Uniform until every step has been seen ten times. What it
    records stays on the device, which is never waited for.
    """

    HISTORY, UNIFORM_SHARE = 10, 0.001

    def __init__(self, steps: int, device: torch.device) -> None:
        super().__init__(steps, device)
        self.history = torch.zeros(steps, self.HISTORY, dtype=torch.float64, device=device)  # rings
        self.counts = torch.zeros(steps, dtype=torch.int64, device=device)  # losses ever seen

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        moment = self.history.square().mean(dim=1).sqrt()
        share = (1 - self.UNIFORM_SHARE) * moment / moment.sum() + self.UNIFORM_SHARE / self.steps
        share = torch.where((self.counts >= self.HISTORY).all(), share, 1 / self.steps)
        ends = share.cumsum(dim=0)
        drawn = to_device(torch.rand(n, dtype=torch.float64), self.device) * ends[-1]
        t = torch.searchsorted(ends, drawn, right=True).clamp_(max=self.steps - 1)
        return t, (1 / (self.steps * share[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        same = t[:, None] == t
        before = same.tril(-1).sum(dim=1)  # losses of the same step that come before in this batch
        after = same.triu(1).sum(dim=1)
        # Those that ten later ones of the same step push out again are written into a column that
        # is dropped: of two writes to one place it is not known which is the last.
        place = (self.counts[t] + before) % self.HISTORY
        place = torch.where(after < self.HISTORY, place, self.HISTORY)
        wider = F.pad(self.history, (0, 1)).index_put_((t, place), losses.double())
        self.history = wider[:, :-1]
        self.counts = self.counts.index_add(0, t, torch.ones_like(t))

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": self.history.clone(), "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.history = state["history"].to(self.device, copy=True)
        self.counts = state["counts"].to(self.device, copy=True)


STEP_SAMPLERS = {"uniform": UniformSteps, "loss-second-moment": LossSecondMomentSteps}
