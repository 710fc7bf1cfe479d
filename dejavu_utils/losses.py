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
