"""The interface of an SSL method, and the forward pass that all methods share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dejavu_utils.data import augment
from dejavu_utils.errors import InputError
from dejavu_utils.training.optim import teacher_momentum

if TYPE_CHECKING:  # the settings check themselves by their methods
    from dejavu_utils.models import SSLNetwork
    from dejavu_utils.training.settings import Augment, Settings


class Method:
    """A loss, the views it wants, and what it keeps from step to step.

    settings: dejavu_utils.training.settings.Settings. network: SSLNetwork. total_steps: of the
    whole run. With several processes each calls it with its own images; the mean of their gradients
    is the gradient of the run.
    """

    small_views = False  # does it take small views?
    # parts of the network that get the embeddings of all processes: their batch norm is not synchronized
    sees_all: tuple[str, ...] = ()

    def __init__(self, settings: Settings, network: SSLNetwork, total_steps: int) -> None:
        self.settings = settings
        self.network = network
        self.total_steps = total_steps

    @classmethod
    def check(cls, settings: Settings) -> None:
        """InputError for settings that the method cannot work with."""
        if settings.training.num_small_crops and not cls.small_views:
            raise InputError(
                f"--training.num_small_crops: {settings.training.loss} has no small crops; leave it out"
            )

    @staticmethod
    def views(settings: Settings) -> list[augment.View]:
        """The views of an image, a list of augment.View; those from the third on have one size of
        their own."""
        return two_views(settings.augment)

    @staticmethod
    def embedding(network: Any, output: Tensor) -> Tensor:
        """What the loss is made of, float (n, d), from the output of the network's last layer,
        float (n, width)."""
        return output

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        """The loss, a float32 scalar. embeddings: of ViewsForward. views: list of float (n, 3, h,
        w). labels: int64 (n,). epoch: from 0."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after update number `step` (from 0) of the network."""

    def state_dict(self) -> dict:
        """What the method keeps beside the network: plain tensors."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""


class WithTeacher(Method):
    """A method with a teacher, an exponential moving average of the network's parameters; its batch
    norm trains along."""

    def __init__(self, settings: Settings, network: SSLNetwork, total_steps: int) -> None:
        super().__init__(settings, network, total_steps)
        # in training mode, as published
        self.teacher = copy.deepcopy(network).requires_grad_(False)

    def momentum(self) -> float:
        """Fraction of the old teacher that the first update keeps; it rises to 1 by a cosine."""
        raise NotImplementedError

    @torch.no_grad()
    def targets(self, views: list[Tensor]) -> list[Tensor]:
        """The teacher's projections of the first two views, float (n, d) each."""
        return [self.teacher(view)[-1] for view in views[:2]]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        momentum = teacher_momentum(step, self.total_steps, self.momentum())
        torch._foreach_lerp_(
            list(self.teacher.parameters()), list(self.network.parameters()), 1 - momentum
        )

    def state_dict(self) -> dict:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.teacher.load_state_dict(state["teacher"])


class WithPredictor(WithTeacher):
    """The network's predictor, behind the projector, is to give what the teacher gives."""

    title: str

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.model.remove_head:
            raise InputError(
                f"--model.remove_head 1: {cls.title} predicts the projector's output; leave it out"
            )

    @staticmethod
    def embedding(network: Any, output: Tensor) -> Tensor:
        return network.predictor(output)


class ViewsForward(nn.Module):
    """All views in one call, as DistributedDataParallel wants it.

    embedding: Method.embedding. forward(views): list of float (n, 3, h, w) -> (outputs of all
    layers for view 1, embeddings: float (n, d) of each view).
    """

    def __init__(self, network: SSLNetwork, embedding: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.embedding = embedding

    def forward(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        first = self.network(views[0])
        last = [first[-1]]
        for view in views[1:2]:  # supervised training has one view alone
            last.append(self.network(view)[-1])
        if len(views) > 2:  # small views have one size of their own and go through together
            small = self.network(torch.cat(views[2:]))[-1]
            last += small.chunk(len(views) - 2)
        return first, [self.embedding(self.network, output) for output in last]


def two_views(settings: Augment) -> list[augment.View]:
    """The published views 1 and 2, with the settings of the section augment."""
    common = _common(settings)
    first = replace(common, blur=bool(settings.blur))
    second = replace(common, solarize=settings.solarize)
    return [first, second]


def small_view(settings: Augment) -> augment.View:
    """DINO's small view, with the color jitter of the section augment."""
    small = augment.SMALL_VIEW
    return replace(_common(settings), area=small.area, side=small.side)


def _common(settings: Augment) -> augment.View:
    published = augment.View
    return augment.View(
        area=(settings.min_area, settings.max_area),
        brightness=settings.jitter * published.brightness,
        contrast=settings.jitter * published.contrast,
        saturation=settings.jitter * published.saturation,
        hue=settings.jitter * published.hue,
    )
