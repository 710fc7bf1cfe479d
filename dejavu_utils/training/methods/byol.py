"""BYOL (Grill et al. 2020, arXiv 2006.07733)."""

from dejavu_utils.errors import InputError
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithTeacher


class Byol(WithTeacher):
    """The network's predictor predicts the teacher's projection of the other view."""

    def __init__(self, settings, network, total_steps):
        super().__init__(settings, network, total_steps, settings.byol.momentum_teacher)

    @classmethod
    def check(cls, settings):
        super().check(settings)
        if settings.model.remove_head:
            raise InputError("--model.remove_head 1: BYOL predicts the projector's output; leave it out")

    @staticmethod
    def embedding(network, output):
        return network.predictor(output)

    def loss(self, embeddings, views, labels, epoch):
        return losses.byol(embeddings, self.targets(views))
