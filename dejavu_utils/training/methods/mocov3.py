"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057)."""

from dejavu_utils.errors import InputError
from dejavu_utils.runtime.distributed import gather, rank
from dejavu_utils.training import losses
from dejavu_utils.training.methods.method import WithTeacher


class MoCoV3(WithTeacher):
    """The network's predictor finds the teacher's key of the other view among those of the images of all processes."""

    def __init__(self, settings, network, total_steps):
        super().__init__(settings, network, total_steps, settings.mocov3.momentum_teacher)

    @classmethod
    def check(cls, settings):
        super().check(settings)
        if settings.model.remove_head:
            raise InputError("--model.remove_head 1: MoCo v3 predicts the projector's output; leave it out")

    @staticmethod
    def embedding(network, output):
        return network.predictor(output)

    def loss(self, embeddings, views, labels, epoch):
        keys = [gather(key.float()) for key in self.targets(views)]
        first = rank() * len(embeddings[0])
        return losses.mocov3(embeddings, keys, self.settings.mocov3.temperature, first)
