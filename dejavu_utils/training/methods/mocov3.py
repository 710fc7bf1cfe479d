"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dejavu_utils.errors import InputError
from dejavu_utils.runtime.distributed import gather, rank
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithTeacher

if TYPE_CHECKING:
    from dejavu_utils.models import SSLNetwork
    from dejavu_utils.training.settings import Settings


class MoCoV3(WithTeacher):
    """The network's predictor finds the teacher's key of the other view among those of the images
    of all processes."""

    def __init__(self, settings: Settings, network: SSLNetwork, total_steps: int) -> None:
        super().__init__(settings, network, total_steps, settings.mocov3.momentum_teacher)

    @classmethod
    def check(cls, settings: Settings) -> None:
        super().check(settings)
        if settings.model.remove_head:
            raise InputError(
                "--model.remove_head 1: MoCo v3 predicts the projector's output; leave it out"
            )

    @staticmethod
    def embedding(network: Any, output: Tensor) -> Tensor:
        return network.predictor(output)

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        keys = [gather(key.float()) for key in self.targets(views)]
        first = rank() * len(embeddings[0])
        return losses.mocov3(embeddings, keys, self.settings.mocov3.temperature, first)
