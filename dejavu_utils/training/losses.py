"""The training losses as pure functions of embeddings. With several processes: of the embeddings of all of them."""

import functools

import torch
import torch.nn.functional as F


def _in_float32(loss):
    """Embeddings to float32, and no autocast: it would compute the matrix products of a loss in half precision."""

    @functools.wraps(loss)
    def wrapped(z1, z2, *args, **kwargs):
        with torch.autocast(z1.device.type, enabled=False):
            return loss(z1.float(), z2.float(), *args, **kwargs)

    return wrapped


@_in_float32
def vicreg(z1, z2, sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0):
    """VICReg (Bardes et al. 2022, arXiv 2105.04906) of two views' embeddings, float (n, d) each.

    Mean squared error; hinge on each dimension's standard deviation (mean over both views); squared off-diagonal
    covariances of both views / d. Variance and covariance divide by n - 1. Returns a scalar in float32.
    """
    invariance = F.mse_loss(z1, z2)
    variance = covariance = 0
    for z in (z1, z2):
        centered = z - z.mean(dim=0)
        std = torch.sqrt(centered.square().sum(dim=0) / (len(z) - 1) + 1e-4)
        variance = variance + F.relu(1 - std).mean() / 2
        cov = centered.T @ centered / (len(z) - 1)
        # The sum of all squares less the diagonal's needs no copy of the d x d matrix.
        covariance = covariance + (cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1]
    return sim_coeff * invariance + std_coeff * variance + cov_coeff * covariance


@_in_float32
def simclr(z1, z2, temperature=0.15):
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709) of two views' embeddings, float (n, d) each; a scalar in float32.

    Each of the 2n views is classified among the 2n - 1 others by cosine similarity / temperature.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(z1)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


@_in_float32
def barlow(z1, z2, lambd=0.0051):
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230) of batch-normalized embeddings, float (n, d) each.

    c = z1' z2 / n is their cross-correlation; the loss is the sum of (c_ii - 1)^2 + lambd x the sum of the squared
    off-diagonal elements, a scalar in float32.
    """
    c = z1.T @ z2 / len(z1)
    diagonal = c.diagonal()
    return (diagonal - 1).square().sum() + lambd * (c.square().sum() - diagonal.square().sum())


def byol(predictions, targets):
    """BYOL (Grill et al. 2020, arXiv 2006.07733): mean over the batch of the SUM of both directions' 2 - 2 cos.

    predictions: the student's predictor outputs of view 1 and view 2, float (n, d) each. targets: the teacher's
    projections of view 1 and view 2; view 1 is predicted from view 2's target and the other way round. A scalar in
    float32.
    """
    loss = 0
    for prediction, target in zip(predictions, reversed(targets)):
        with torch.autocast(prediction.device.type, enabled=False):
            cosine = F.cosine_similarity(prediction.float(), target.detach().float(), dim=1)
        loss = loss + (2 - 2 * cosine).mean()
    return loss


def dino(students, teachers, center, student_temp, teacher_temp):
    """DINO (Caron et al. 2021, arXiv 2104.14294): cross-entropy of the teacher's centred, sharpened distribution.

    students: the student's outputs of all views (two large ones first, then the small ones), float (n, d) each.
    teachers: the teacher's outputs of the two large views. center: float (d,). Mean over the pairs of different views,
    2 (2 + s) - 2 of them with s small views. A scalar in float32.
    """
    loss, pairs = 0, 0
    with torch.autocast(center.device.type, enabled=False):
        sharpened = [F.softmax((t.detach().float() - center) / teacher_temp, dim=1) for t in teachers]
        logs = [F.log_softmax(s.float() / student_temp, dim=1) for s in students]
        for number, target in enumerate(sharpened):
            for other, log in enumerate(logs):
                if other != number:
                    loss = loss - (target * log).sum(dim=1).mean()
                    pairs += 1
    return loss / pairs
