"""BYOL (Grill et al. 2020, arXiv 2006.07733)."""

from torch import Tensor

from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithPredictor


class Byol(WithPredictor):
    """The network's predictor predicts the teacher's projection of the other view."""

    title = "BYOL"

    def momentum(self) -> float:
        return self.settings.byol.momentum_teacher

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        return losses.byol(embeddings, self.targets(views))
