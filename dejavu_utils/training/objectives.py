"""From a network's outputs for all views to the training loss, with what a loss keeps beside the network."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from dejavu_utils.distributed import gather, sum_over_processes, world_size
from dejavu_utils.training import losses
from dejavu_utils.training.optim import teacher_momentum, teacher_temperature

WITH_TEACHER = ("byol", "dino")


class ViewsForward(nn.Module):
    """All views in one call, as DistributedDataParallel wants it.

    forward(views): list of float (n, 3, h, w) -> (outputs of all layers for view 1, what the loss is made of: a list of
    float (n, d), one a view: the projector's outputs, BYOL's predictions, or the supervised logits of view 1).
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, views):
        first = self.network(views[0])
        if self.network.loss == "supervised":
            return first, [self.network.fc(first[-1])]
        last = [first[-1], *(self.network(view)[-1] for view in views[1:2])]
        if len(views) > 2:  # small views have one size of their own and go through together
            small = self.network(torch.cat(views[2:]))[-1]
            last += small.chunk(len(views) - 2)
        return first, [self.network.predictor(z) for z in last] if self.network.loss == "byol" else last


class Objective:
    """The loss of a training run, and BYOL's and DINO's teacher and DINO's centre.

    settings: flat {"training.loss": ..., ...}. network: SSLNetwork. total_steps: of the whole run. With several
    processes: VICReg, SimCLR and Barlow Twins act on the embeddings of all of them; the others are means over images.
    """

    def __init__(self, settings, network, total_steps):
        self.settings, self.name, self.network, self.total_steps = (
            settings,
            settings["training.loss"],
            network,
            total_steps,
        )
        self.teacher = self.center = None
        if self.name in WITH_TEACHER:
            self.teacher = copy.deepcopy(network).requires_grad_(False)  # in training mode, as published
        if self.name == "dino":
            self.center = torch.zeros(network.projector_width, device=next(network.parameters()).device)

    def __call__(self, embeddings, views, labels, epoch):
        """The loss, a float32 scalar. embeddings: of ViewsForward. views: list. labels: int64 (n,)."""
        settings = self.settings
        if self.name == "supervised":
            smoothing = settings["training.label_smoothing"]
            return F.cross_entropy(embeddings[0].float(), labels, label_smoothing=smoothing)
        if self.name in WITH_TEACHER:
            with torch.no_grad():
                targets = [self.teacher(view)[-1] for view in views[:2]]
            if self.name == "byol":
                return losses.byol(embeddings, targets)
            temperature = teacher_temperature(
                epoch,
                settings["dino.warmup_teacher_temp"],
                settings["dino.teacher_temp"],
                settings["dino.warmup_teacher_temp_epochs"],
            )
            loss = losses.dino(embeddings, targets, self.center, settings["dino.student_temp"], temperature)
            self._move_center(targets)
            return loss
        z1, z2 = (gather(z.float()) for z in embeddings)
        if self.name == "vicreg":
            return losses.vicreg(z1, z2, *(settings[f"vicreg.{n}_coeff"] for n in ("sim", "std", "cov")))
        if self.name == "simclr":
            return losses.simclr(z1, z2, settings["simclr.temperature"])
        with torch.autocast(z1.device.type, enabled=False):
            return losses.barlow(self.network.bn(z1), self.network.bn(z2), settings["barlow.lambd"])

    def _move_center(self, targets):
        total = sum(target.float().sum(dim=0) for target in targets)
        mean = sum_over_processes(total) / (sum(len(target) for target in targets) * world_size())
        self.center.lerp_(mean, 1 - self.settings["dino.center_momentum"])

    @torch.no_grad()
    def after_step(self, step):
        """Moves the teacher towards the network after update number `step` (from 0)."""
        if self.teacher is not None:
            momentum = teacher_momentum(step, self.total_steps, self.settings[f"{self.name}.momentum_teacher"])
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.network.parameters()), 1 - momentum)

    def state_dict(self):
        """Plain tensors; empty for a loss that keeps nothing."""
        state = {} if self.teacher is None else {"teacher": self.teacher.state_dict()}
        return state if self.center is None else {**state, "center": self.center}

    def load_state_dict(self, state):
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        if self.center is not None:
            self.center.copy_(state["center"])
