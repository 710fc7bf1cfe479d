"""BYOL (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dejavu_utils.errors import InputError
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithTeacher

if TYPE_CHECKING:
    from dejavu_utils.models import SSLNetwork
    from dejavu_utils.training.settings import Settings


class Byol(WithTeacher):
    """The network's predictor predicts the teacher's projection of the other view."""

    def __init__(self, settings: Settings, network: SSLNetwork, total_steps: int) -> None:
        super().__init__(settings, network, total_steps, settings.byol.momentum_teacher)

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.model.remove_head:
            raise InputError(
                "--model.remove_head 1: BYOL predicts the projector's output; leave it out"
            )

    @staticmethod
    def embedding(network: Any, output: Tensor) -> Tensor:
        return network.predictor(output)

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        return losses.byol(embeddings, self.targets(views))
