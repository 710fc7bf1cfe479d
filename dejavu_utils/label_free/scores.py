"""Memorization without labels: SSLMem of images and layers, UnitMem of units, and how SSLMem goes with another score.

SSLMem: Wang et al. 2024, arXiv 2401.12233. LayerMem and UnitMem: Wang et al. 2024, arXiv 2409.19069.
"""

import numpy as np
from scipy.special import stdtrit

from dejavu_utils.analysis.intervals import t_half_width, wilson_interval

_Z95 = 1.959963984540054


def sslmem(target: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Scores of images, float64 (n,): above 0 where the target, which trained on the image, aligns its views better.

    target, reference: float (n,), mean distance between an image's views under each.
    """
    return np.asarray(reference, np.float64) - np.asarray(target, np.float64)


def range_normalized(scores: np.ndarray) -> np.ndarray:
    """Scores divided by their range over the tested images, as published, float64 (n,); 0 where they are all equal."""
    width = np.ptp(scores) if len(scores) else 0.0
    return scores / width if width > 0 else np.zeros(len(scores))


def mean_estimate(values: np.ndarray) -> dict:
    """{"value", "low", "high"}: the mean with Student's 95 % interval; NaN where there are too few."""
    n = len(values)
    value = float(np.mean(values)) if n else np.nan
    half = t_half_width(values)
    return {"value": value, "low": value - half, "high": value + half}


def fraction_above_0(scores: np.ndarray) -> dict:
    """{"value", "low", "high"}: the fraction of scores above 0, with Wilson's 95 % interval."""
    hits, n = int((scores > 0).sum()), len(scores)
    low, high = wilson_interval(hits, n)
    return {"value": hits / n if n else np.nan, "low": float(low), "high": float(high)}


def weighted_means(*samples: tuple[float, np.ndarray]) -> dict:
    """{"value", "low", "high"}: a weighted sum of the means of independent samples, with Welch's 95 % interval.

    samples: (weight, values float (n,)). Degrees of freedom are Welch and Satterthwaite's, rounded down. NaN where a
    sample is too small. Scores of two sets under one pair of models share what one model aligns better everywhere: with
    weights that take it away, the rest is what training on an image adds.
    """
    value = sum(weight * float(np.mean(values)) if len(values) else np.nan for weight, values in samples)
    half = np.nan
    if all(len(values) > 1 for _, values in samples):
        parts = [
            (weight**2 * float(np.var(values, ddof=1)) / len(values), len(values) - 1) for weight, values in samples
        ]
        variance = sum(part for part, _ in parts)
        below = sum(part**2 / degrees for part, degrees in parts)
        degrees = int(variance**2 / below) if below > 0 else 1
        half = float(stdtrit(max(1, degrees), 0.975)) * variance**0.5
    return {"value": value, "low": value - half, "high": value + half}


def unitmem(largest: np.ndarray, total: np.ndarray, n: int) -> np.ndarray:
    """(max - rest) / (max + rest) of each unit, float64 (units,) from 0 to 1; rest: mean of the other images.

    largest, total: float (units,), maximum and sum over n images of a unit's activation, which is 0 or more. A unit
    that is the same for all images has 0, one that is never active too; with one image all are 0.
    """
    largest, total = (np.asarray(values, np.float64) for values in (largest, total))
    rest = np.maximum(total - largest, 0) / (n - 1) if n > 1 else largest
    both = largest + rest
    return np.divide(np.maximum(largest - rest, 0), both, out=np.zeros(len(both)), where=both > 0)


def rank_correlation(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> dict:
    """Spearman's rank correlation {"value", "low", "high", "n"} of two float (n,), equal values sharing their rank.

    groups: int (n,); ranks are then taken within each group, divided by its size + 1, and compared after the group's
    mean is taken away: what the two share within groups. 95 % interval: Fisher's z with the variance (1 + r^2 / 2) /
    (n - 3) of Bonett and Wright 2000; of n, one is lost for each group after the first. NaN where it is not defined.
    """
    groups = np.zeros(len(x), np.int64) if groups is None else np.asarray(groups)
    ranks, used, count = np.zeros((2, len(x))), np.zeros(len(x), bool), 0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        if len(members) > 1:
            used[members], count = True, count + 1
            for row, values in zip(ranks, (x, y)):
                own = _ranks(np.asarray(values)[members]) / (len(members) + 1)
                row[members] = own - own.mean()
    first, second = ranks[:, used]
    scale = float(np.sqrt((first @ first) * (second @ second)))
    found = {"value": np.nan, "low": np.nan, "high": np.nan, "n": int(used.sum())}
    if scale > 0:
        r = found["value"] = float(np.clip(first @ second / scale, -1, 1))
        effective = found["n"] - (count - 1) - 3
        if effective > 0:
            with np.errstate(divide="ignore"):
                z, half = np.arctanh(r), _Z95 * np.sqrt((1 + r * r / 2) / effective)
            found["low"], found["high"] = (float(np.tanh(z + sign * half)) for sign in (-1, 1))
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
