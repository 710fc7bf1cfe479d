"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057)."""

from torch import Tensor

from dejavu_utils.runtime.distributed import gather, rank
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithPredictor


class MoCoV3(WithPredictor):
    """The network's predictor finds the teacher's key of the other view among those of the images
    of all processes."""

    title = "MoCo v3"

    def momentum(self) -> float:
        return self.settings.mocov3.momentum_teacher

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        keys = [gather(key.float()) for key in self.targets(views)]
        first = rank() * len(embeddings[0])
        return losses.mocov3(embeddings, keys, self.settings.mocov3.temperature, first)
