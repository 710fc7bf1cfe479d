"""DINO (Caron et al. 2021, arXiv 2104.14294)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dejavu_utils.data.augment import View
from dejavu_utils.runtime.distributed import sum_over_processes, world_size
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithTeacher, small_view, two_views
from dejavu_utils.training.optim import teacher_temperature

if TYPE_CHECKING:
    from dejavu_utils.models import SSLNetwork
    from dejavu_utils.training.settings import Settings


class Dino(WithTeacher):
    """A teacher sees the two large views, the network these and small ones; the teacher's outputs
    are centred."""

    small_views = True

    def __init__(self, settings: Settings, network: SSLNetwork, total_steps: int) -> None:
        super().__init__(settings, network, total_steps)
        self.center = torch.zeros(network.projector_width, device=next(network.parameters()).device)

    def momentum(self) -> float:
        return self.settings.dino.momentum_teacher

    @staticmethod
    def views(settings: Settings) -> list[View]:
        small = [small_view(settings.augment)] * settings.training.num_small_crops
        return two_views(settings.augment) + small

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        own = self.settings.dino
        targets = self.targets(views)
        temperature = teacher_temperature(
            epoch, own.warmup_teacher_temp, own.teacher_temp, own.warmup_teacher_temp_epochs
        )
        loss = losses.dino(embeddings, targets, self.center, own.student_temp, temperature)
        self._move_center(targets)
        return loss

    def _move_center(self, targets: list[Tensor]) -> None:
        total = torch.zeros_like(self.center)
        count = 0
        for target in targets:
            total = total + target.float().sum(dim=0)
            count += len(target)
        mean = sum_over_processes(total) / (count * world_size())
        self.center.lerp_(mean, 1 - self.settings.dino.center_momentum)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "center": self.center}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.center.copy_(state["center"])
