"""Training with labels: the study's supervised model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from dejavu_utils.data.augment import View
from dejavu_utils.training.methods.method import Method, two_views

if TYPE_CHECKING:
    from dejavu_utils.training.settings import Settings


class Supervised(Method):
    """Cross-entropy of the class scores of view 1; `fc`, behind the projector, gives them."""

    @staticmethod
    def views(settings: Settings) -> list[View]:
        return two_views(settings.augment)[:1]

    @staticmethod
    def embedding(network: Any, output: Tensor) -> Tensor:
        return network.fc(output)

    def loss(
        self, embeddings: list[Tensor], views: list[Tensor], labels: Tensor, epoch: int
    ) -> Tensor:
        smoothing = self.settings.training.label_smoothing
        return F.cross_entropy(embeddings[0].float(), labels, label_smoothing=smoothing)
