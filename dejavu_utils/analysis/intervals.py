"""Estimates with 95 % intervals: proportions, differences, means, and the summary of several runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: Any, n: Any) -> tuple[Any, Any]:
    """95 % Wilson score interval (low, high) of a proportion (Wilson 1927); NaN for n = 0. Numbers or arrays."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p, z2 = np.true_divide(successes, n), Z95**2
        center = (p + z2 / (2 * np.float64(n))) / (1 + z2 / np.float64(n))
        half = Z95 * np.sqrt(p * (1 - p) / n + z2 / (4 * np.square(np.float64(n)))) / (1 + z2 / np.float64(n))
    return np.maximum(0.0, center - half), np.minimum(1.0, center + half)


def mean_of_proportions(hits: list[np.ndarray]) -> tuple[float, ...]:
    """(mean, low, high) of the mean of independent proportions, given as a list of bool arrays.

    The 95 % interval joins the Wilson intervals of the single proportions (MOVER; Newcombe 1998, Zou & Donner 2008).
    """
    hits, n = np.array([(h.sum(), len(h)) for h in hits]).T
    return tuple(float(part) for part in mean_of_estimates(fraction_of(hits, n), *wilson_interval(hits, n), least=0))


def difference(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Estimate of first - second, of two independent estimates {"value", "low", "high"} (MOVER, as above)."""
    first, second = ([estimate[name] for name in ("value", "low", "high")] for estimate in (first, second))
    return as_estimate(*(float(part) for part in paired_difference(first, second, 0.0)))


def paired_difference(first: Any, second: Any, correlation: Any) -> tuple:
    """(value, low, high) of first - second, each (value, low, high) of numbers or arrays.

    MOVER for correlated estimates: Newcombe 1998 (Statistics in Medicine 17:2635), method 10, for any two intervals.
    """

    def arm(a, b):
        return np.sqrt(np.maximum(0, a * a - 2 * correlation * a * b + b * b))

    (first, first_low, first_high), (second, second_low, second_high) = first, second
    value = first - second
    return (
        value,
        value - arm(first - first_low, second_high - second),
        value + arm(first_high - first, second - second_low),
    )


def mean_of_estimates(values: np.ndarray, lows: np.ndarray, highs: np.ndarray, least: float = -1) -> tuple:
    """(mean, low, high) along the first axis: the root of the summed squared arms / number, within [least, 1]."""
    mean = values.mean(axis=0)
    down, up = (np.sqrt(np.square(arms).sum(axis=0)) / len(values) for arms in (values - lows, highs - values))
    return mean, np.maximum(least, mean - down), np.minimum(1, mean + up)


def as_estimate(value: Any, low: Any, high: Any) -> dict:
    return {"value": value, "low": low, "high": high}


def fraction_of(part: Any, whole: Any) -> np.ndarray:
    """part / whole; NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.true_divide(part, whole), np.nan)


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
    variance = np.square(np.maximum(high - low, 1e-9) / (2 * Z95))

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


def p_value(estimate: dict[str, float]) -> float:
    """Two-sided p-value of value = 0, from the arm of the 95 % interval that points to 0, taken as normal."""
    value = estimate["value"]
    arm = value - estimate["low"] if value > 0 else estimate["high"] - value
    return math.erfc(abs(value) / max(arm, 1e-12) * Z95 / math.sqrt(2))


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several hypotheses are rejected, with at most `level` chance of one false rejection (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > level / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected
