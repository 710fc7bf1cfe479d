"""Memorization without labels: SSLMem of images and layers, UnitMem of units, and how SSLMem goes
with another score.

SSLMem: Wang et al. 2024, arXiv 2401.12233. LayerMem and UnitMem: Wang et al. 2024, arXiv
2409.19069.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from dejavu_utils.analysis.intervals import Z95, Estimate, t_half_width


@dataclass(frozen=True)
class CountedEstimate(Estimate):
    """An Estimate and the number of examples that it is of."""

    n: int


def sslmem(target: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Scores of images, float64 (n,): above 0 where the target, which trained on the image, aligns
    its views better.

    target, reference: float (n,), mean distance between an image's views under each.
    """
    return np.asarray(reference, float) - np.asarray(target, float)


def range_normalized(scores: np.ndarray) -> np.ndarray:
    """Scores divided by their range over the tested images, as published, float64 (n,); 0 where
    they are all equal."""
    width = np.ptp(scores) if len(scores) else 0.0
    return scores / width if width > 0 else np.zeros(len(scores))


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean with Student's 95 % interval; NaN where there are too few."""
    mean = np.mean(values) if len(values) else np.nan
    half = t_half_width(values)
    return Estimate(mean, mean - half, mean + half)


def weighted_means(*samples: tuple[float, np.ndarray]) -> Estimate:
    """A weighted sum of the means of independent samples, with Welch's 95 % interval.

    samples: (weight, values float (n,)). Degrees of freedom are Welch and Satterthwaite's, rounded
    down. NaN where a sample is too small. Scores of two sets under one pair of models share what
    one model aligns better everywhere: with weights that take it away, the rest is what training on
    an image adds.
    """
    value = variance = 0.0
    denominator = 0.0  # of Welch and Satterthwaite's degrees of freedom
    for weight, values in samples:
        n = len(values)
        value += weight * mean_estimate(values).value
        own_variance = weight**2 * np.var(values, ddof=1) / n if n > 1 else np.nan
        variance += own_variance
        denominator += own_variance**2 / max(1, n - 1)
    half = np.nan
    if np.isfinite(variance):
        degrees = int(variance**2 / denominator) if denominator > 0 else 1
        half = stdtrit(max(1, degrees), 0.975) * variance**0.5
    return Estimate(value, value - half, value + half)


def unitmem(largest: np.ndarray, total: np.ndarray, n: int) -> np.ndarray:
    """(max - rest) / (max + rest) of each unit, float64 (units,) from 0 to 1; rest: mean of the
    other images.

    largest, total: float64 (units,), maximum and sum over n images of a unit's activation, which is
    0 or more. A unit that is the same for all images has 0, one that is never active too; with one
    image all are 0.
    """
    rest = largest
    if n > 1:
        rest = np.maximum(total - largest, 0) / (n - 1)
    both = largest + rest
    lead = np.maximum(largest - rest, 0)  # rounding can make it negative
    return np.divide(lead, both, out=np.zeros(len(both)), where=both > 0)


def rank_correlation(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None
) -> CountedEstimate:
    """Spearman's rank correlation of two float (n,), equal values sharing their rank.

    groups: int (n,); ranks are then taken within each group, divided by its size + 1, and compared
    after the group's mean is taken away: what the two share within groups. 95 % interval: Fisher's
    z with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright 2000; of n, one is lost for
    each group after the first. NaN where it is not defined.
    """
    if groups is None:
        groups = np.zeros(len(x), int)
    ranks = np.zeros((2, len(x)))
    used = np.zeros(len(x), bool)
    group_count = 0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        if len(members) < 2:
            continue
        used[members] = True
        group_count += 1
        for row, values in zip(ranks, (x, y)):
            own = rankdata(values[members]) / (len(members) + 1)
            row[members] = own - own.mean()
    first, second = ranks[:, used]
    n = int(used.sum())
    scale = np.sqrt((first @ first) * (second @ second))
    if not scale > 0:
        return CountedEstimate(np.nan, np.nan, np.nan, n)
    r = np.clip(first @ second / scale, -1, 1)
    degrees = n - (group_count - 1) - 3
    if degrees <= 0:
        return CountedEstimate(r, np.nan, np.nan, n)
    half = Z95 * np.sqrt((1 + r * r / 2) / degrees)
    with np.errstate(divide="ignore"):  # infinite for r = 1
        z = np.arctanh(r)
    low, high = np.tanh([z - half, z + half])
    return CountedEstimate(r, low, high, n)
