"""SimCLR (Chen et al. 2020, arXiv 2002.05709)."""

from torch import Tensor

from dejavu_utils.runtime.distributed import gather
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import Method


class SimCLR(Method):
    """Each view is told apart from those of the images of all processes."""

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        z1, z2 = (gather(z.float()) for z in embeddings)
        return losses.simclr(z1, z2, self.settings.simclr.temperature)
