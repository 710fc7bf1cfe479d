"""VICReg (Bardes et al. 2022, arXiv 2105.04906)."""

from torch import Tensor

from dejavu_utils.runtime.distributed import gather
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import Method


class VICReg(Method):
    """Variance and covariance are those of the embeddings of all processes."""

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        z1, z2 = (gather(z.float()) for z in embeddings)
        weights = self.settings.vicreg
        return losses.vicreg(z1, z2, weights.sim_coeff, weights.std_coeff, weights.cov_coeff)
