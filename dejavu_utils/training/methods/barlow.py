"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230)."""

from typing import Any

import torch
from torch import Tensor

from dejavu_utils.runtime.distributed import gather
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import Method


class BarlowTwins(Method):
    """The correlation is that of the embeddings of all processes, normalized by the network's
    `bn`."""

    sees_all = ("bn",)

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        z1, z2 = (gather(z.float()) for z in embeddings)
        with torch.autocast(z1.device.type, enabled=False):
            bn: Any = self.network.bn
            return losses.barlow(bn(z1), bn(z2), self.settings.barlow.lambd)
