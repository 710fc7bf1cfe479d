"""DINO (Caron et al. 2021, arXiv 2104.14294)."""

import torch

from dejavu_utils.runtime.distributed import sum_over_processes, world_size
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithTeacher, small_view, two_views
from dejavu_utils.training.optim import teacher_temperature


class Dino(WithTeacher):
    """A teacher sees the two large views, the network these and small ones; the teacher's outputs are centred."""

    small_views = True

    def __init__(self, settings, network, total_steps):
        super().__init__(settings, network, total_steps, settings.dino.momentum_teacher)
        self.center = torch.zeros(network.projector_width, device=next(network.parameters()).device)

    @staticmethod
    def views(settings):
        small = [small_view(settings.augment)] * settings.training.num_small_crops
        return two_views(settings.augment) + small

    def loss(self, embeddings, views, labels, epoch):
        own, targets = self.settings.dino, self.targets(views)
        temperature = teacher_temperature(
            epoch, own.warmup_teacher_temp, own.teacher_temp, own.warmup_teacher_temp_epochs
        )
        loss = losses.dino(embeddings, targets, self.center, own.student_temp, temperature)
        self._move_center(targets)
        return loss

    def _move_center(self, targets):
        total = sum(target.float().sum(dim=0) for target in targets)
        mean = sum_over_processes(total) / (sum(len(target) for target in targets) * world_size())
        self.center.lerp_(mean, 1 - self.settings.dino.center_momentum)

    def state_dict(self):
        return {**super().state_dict(), "center": self.center}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.center.copy_(state["center"])
