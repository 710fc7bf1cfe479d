"""The training losses as pure functions of embeddings. With several processes: of the embeddings of
all of them."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Embeddings (or lists of them) to float32, and no autocast: it would compute the matrix
    products of a loss in half precision."""

    @functools.wraps(loss)
    def wrapped(z1: Any, z2: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(z1, Tensor):
            given = z1.float(), z2.float()
        else:
            given = [z.float() for z in z1], [z.float() for z in z2]
        with torch.autocast(given[0][0].device.type, enabled=False):
            return loss(*given, *args, **kwargs)

    return wrapped


@_in_float32
def vicreg(
    z1: Tensor,
    z2: Tensor,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
) -> Tensor:
    """VICReg (Bardes et al. 2022, arXiv 2105.04906) of two views' embeddings, float (n, d) each.

    Mean squared error; hinge on each dimension's standard deviation (mean over both views); squared
    off-diagonal covariances of both views / d. Variance and covariance divide by n - 1. Returns a
    scalar in float32.
    """
    invariance = F.mse_loss(z1, z2)
    variance = covariance = 0
    for z in (z1, z2):
        centered = (z - z.mean(dim=0)) / math.sqrt(len(z) - 1)
        variances = centered.square().sum(dim=0)
        off_diagonal = _square_of_product(centered, centered) - variances.square().sum()
        variance = variance + F.relu(1 - torch.sqrt(variances + 1e-4)).mean() / 2
        covariance = covariance + off_diagonal / z.shape[1]
    return sim_coeff * invariance + std_coeff * variance + cov_coeff * covariance


@_in_float32
def simclr(z1: Tensor, z2: Tensor, temperature: float = 0.15) -> Tensor:
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709) of two views' embeddings, float (n, d) each; a
    scalar in float32.

    Each of the 2n views is classified among the 2n - 1 others by cosine similarity / temperature.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(z1)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


@_in_float32
def barlow(z1: Tensor, z2: Tensor, lambd: float = 0.0051) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230) of batch-normalized embeddings, float
    (n, d) each.

    c = z1' z2 / n is their cross-correlation; the loss is the sum of (c_ii - 1)^2 + lambd x the sum
    of the squared off-diagonal elements, a scalar in float32.
    """
    z1, z2 = z1 / math.sqrt(len(z1)), z2 / math.sqrt(len(z2))
    diagonal = (z1 * z2).sum(dim=0)
    off_diagonal = _square_of_product(z1, z2) - diagonal.square().sum()
    return (diagonal - 1).square().sum() + lambd * off_diagonal


def _square_of_product(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the squares of a' b, for float (n, d) each.

    ||a' b||^2 = <a a', b b'>: products of n x n in place of d x d where there are fewer rows than columns, which with
    1024 embeddings of 8192 is an eighth of the work and a 64th of the memory.
    """
    if len(a) >= a.shape[1]:
        return (a.T @ b).square().sum()
    gram = a @ a.T
    return gram.square().sum() if a is b else (gram * (b @ b.T)).sum()


@_in_float32
def byol(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """BYOL (Grill et al. 2020, arXiv 2006.07733): mean over the batch of the SUM of both
    directions' 2 - 2 cos.

    predictions: the student's predictor outputs of view 1 and view 2, float (n, d) each. targets:
    the teacher's projections of view 1 and view 2; view 1 is predicted from view 2's target and the
    other way round. A scalar in float32.
    """
    loss: Any = 0
    for prediction, target in zip(predictions, reversed(targets)):
        cosine = F.cosine_similarity(prediction, target.detach(), dim=1)
        loss = loss + (2 - 2 * cosine).mean()
    return loss


@_in_float32
def dino(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    center: Tensor,
    student_temp: float,
    teacher_temp: float,
) -> Tensor:
    """DINO (Caron et al. 2021, arXiv 2104.14294): cross-entropy of the teacher's centred, sharpened
    distribution.

    students: the student's outputs of all views (two large ones first, then the small ones), float
    (n, d) each. teachers: the teacher's outputs of the two large views. center: float (d,). Mean
    over the pairs of different views, 2 (2 + s) - 2 of them with s small views. A scalar in
    float32.
    """
    loss: Any = 0
    pairs = 0
    logs = [F.log_softmax(student / student_temp, dim=1) for student in students]
    for number, teacher in enumerate(teachers):
        target = F.softmax((teacher.detach() - center) / teacher_temp, dim=1)
        for other, log in enumerate(logs):
            if other != number:
                loss = loss - (target * log).sum(dim=1).mean()
                pairs += 1
    return loss / pairs


@_in_float32
def mocov3(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    temperature: float = 1.0,
    first: int = 0,
) -> Tensor:
    """MoCo v3 (Chen et al. 2021, arXiv 2104.02057, algorithm 1): InfoNCE of both directions, x 2
    temperature each.

    queries: the student's predictor outputs of view 1 and view 2, float (n, d) each. keys: the
    teacher's projections of the whole batch, float (N, d) each; those of the queries' own images
    are the n rows from `first` on. A query of view 1 is classified among the keys of view 2 by
    cosine similarity / temperature, and the other way round. A scalar in float32, the mean over
    queries of the sum of both directions.
    """
    loss: Any = 0
    for query, key in zip(queries, reversed(keys)):
        similarity = F.normalize(query, dim=1) @ F.normalize(key.detach(), dim=1).T
        own = torch.arange(first, first + len(query), device=query.device)
        loss = loss + 2 * temperature * F.cross_entropy(similarity / temperature, own)
    return loss
