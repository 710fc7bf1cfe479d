"""Training with labels: the study's supervised model."""

import torch.nn.functional as F

from dejavu_utils.training.methods.method import Method, two_views


class Supervised(Method):
    """Cross-entropy of the class scores of view 1; `fc`, behind the projector, gives them."""

    @staticmethod
    def views(settings):
        return two_views(settings.augment)[:1]

    @staticmethod
    def embedding(network, output):
        return network.fc(output)

    def loss(self, embeddings, views, labels, epoch):
        smoothing = self.settings.training.label_smoothing
        return F.cross_entropy(embeddings[0].float(), labels, label_smoothing=smoothing)
