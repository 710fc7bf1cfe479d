"""FFCV-SSL's loader behind the interface of dejavu_utils.data.beton_loader.NativeLoader."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.beton_loader import Batches, Batching
from dejavu_utils.errors import InputError


@dataclass
class FfcvLoader:
    """The published pipelines in FFCV-SSL's loader, behind NativeLoader's interface.

    Its deviations from this project's loader: its crops are square, its hue shift is one-sided, the
    order of its color jitter is fixed, and its random numbers are not seeded, so that two runs
    differ. InputError where FFCV-SSL is not installed; ValueError if there is not one whole batch,
    or a view asks for what it does not have.
    """

    beton: Beton
    batching: Batching
    views: list[augment.View]
    seed: int

    def __post_init__(self) -> None:
        if not ffcv_is_installed():
            raise InputError(
                "--data.loader ffcv: FFCV-SSL is not installed here; install it or take native"
            )
        if any((view.flip, view.aspect) != (0.5, (3 / 4, 4 / 3)) for view in self.views):
            raise ValueError(
                "FFCV-SSL's loader flips every second image and keeps the published aspects"
            )
        self._steps = self.batching.steps(self.beton)
        self._names = ["image", *(f"image_{number}" for number in range(1, len(self.views)))]
        self._compiled: dict[int, Any] = {}  # FFCV's loaders by resolution

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def epoch(self, epoch: int, resolution: int, first_step: int = 0) -> Batches:
        """What NativeLoader.epoch yields; the steps before `first_step` are read and thrown
        away."""
        if resolution not in self._compiled:
            self._compiled[resolution] = self._compile(resolution)
        loader = self._compiled[resolution]
        loader.next_epoch = epoch
        for step, batch in enumerate(loader):
            if step == len(self):
                break
            if step >= first_step:
                named = dict(zip(loader.pipelines, batch))
                labels = named["label"].flatten().to(self.batching.device)
                yield [named[name] for name in self._names], labels

    def _compile(self, resolution: int) -> Any:
        from ffcv.fields.basics import IntDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        pipelines = {}
        for name, view in zip(self._names, self.views):
            pipelines[name] = self._pipeline(view, resolution)
        return Loader(
            self.beton.path,
            batch_size=self.batching.batch_size,
            num_workers=max(1, self.batching.num_workers),
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=True,
            seed=self.seed,
            pipelines={**pipelines, "label": [IntDecoder(), ToTensor()]},
            custom_field_mapper=dict.fromkeys(self._names[1:], "image") or None,
            distributed=self.batching.world_size > 1,
        )

    def _pipeline(self, view: augment.View, resolution: int) -> list[Any]:
        from ffcv import transforms
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from torchvision.transforms import GaussianBlur

        side = view.side or resolution
        steps = [
            RandomResizedCropRGBImageDecoder((side, side), scale=view.area, ratio=view.aspect),
            transforms.RandomHorizontalFlip(),
            transforms.RandomColorJitter(
                view.jitter, view.brightness, view.contrast, view.saturation, view.hue
            ),
            transforms.RandomGrayscale(view.grayscale),
        ]
        if view.solarize:
            steps.append(transforms.RandomSolarization(view.solarize, 128))
        if self.batching.device.type == "cpu":  # on a GPU it would need CuPy
            mean, std = (255 * np.array(values) for values in (augment.MEAN, augment.STD))
            steps += [
                transforms.NormalizeImage(mean, std, np.float32),
                transforms.ToTensor(),
                transforms.ToTorchImage(),
            ]
        else:
            steps += [
                transforms.ToTensor(),
                transforms.ToDevice(self.batching.device),
                transforms.ToTorchImage(),
                _Normalize(),
            ]
        return [*steps, GaussianBlur((5, 9), (0.1, 2.0))] if view.blur else steps


class _Normalize(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return augment.normalize(images)


def ffcv_is_installed() -> bool:
    """Is FFCV-SSL installed (FFCV itself has no second view and no color jitter)?"""
    return (
        importlib.util.find_spec("ffcv") is not None
        and importlib.util.find_spec("ffcv.transforms.colorjitter") is not None
    )
