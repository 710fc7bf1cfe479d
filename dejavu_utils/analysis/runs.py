"""Several runs of one attack, of other seeds or partitions: what they have in common, and how far they spread."""

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054


def combine_runs(estimates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Random-effects summary of the same figure of several runs: {"runs", "mean", "low", "high", "sd", "tau"}.

    estimates: list of {"value", "low", "high"} with 95 % intervals, at least two. mean: of the runs, weighted by
    1 / (tau^2 + their own variance); low, high: its 95 % interval, for runs like these, of Hartung & Knapp 2001 and
    Sidik & Jonkman 2002 (t distribution with runs - 1 degrees of freedom). sd: standard deviation of the runs' values.
    tau: what of it the runs' own intervals do not account for, of Paule & Mandel 1982. ValueError for fewer runs.
    """
    runs = len(estimates)
    if runs < 2:
        raise ValueError("one run has no spread; at least two are needed")
    value, low, high = (np.array([estimate[name] for estimate in estimates]) for name in ("value", "low", "high"))
    variance = np.square(np.maximum(high - low, 1e-9) / (2 * _Z95))

    def at(tau_squared):
        weights = 1 / (variance + tau_squared)
        mean = (weights * value).sum() / weights.sum()
        return weights.sum(), mean, (weights * np.square(value - mean)).sum()

    # The weighted squares fall with tau; they are runs - 1 at the estimate, and no more at the runs' own variance.
    least, most = 0.0, value.var(ddof=1)
    if at(0.0)[2] <= runs - 1:
        most = 0.0
    for _ in range(100):
        middle = (least + most) / 2
        least, most = (middle, most) if at(middle)[2] > runs - 1 else (least, middle)
    weight, mean, squares = at(most)
    half = t_quantile(0.975, runs - 1) * math.sqrt(squares / ((runs - 1) * weight))
    return {
        "runs": runs,
        "mean": float(mean),
        "low": float(mean - half),
        "high": float(mean + half),
        "sd": float(value.std(ddof=1)),
        "tau": math.sqrt(most),
    }


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution with a whole number of degrees of freedom, to 1e-9 of its value.

    probability: above 0.5. From the finite series of the distribution (Abramowitz & Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, degrees) < 2 * probability - 1 else (low, angle)
    return math.sqrt(degrees) * math.tan(angle)


def _within(angle, degrees):
    """Probability that |t| <= sqrt(degrees) tan(angle)."""
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (power - 1) / power * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
