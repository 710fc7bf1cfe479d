"""Estimates with 95 % intervals: proportions, differences, means, and the summary of several
runs."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, stdtrit

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, NaN where no example tells it.

    Numbers; within the analysis also float64 arrays, of one figure per level of confidence or per
    class.
    """

    value: Any
    low: Any
    high: Any

    def at(self, place: int) -> "Estimate":
        """One figure of arrays of several."""
        return Estimate(self.value[place], self.low[place], self.high[place])


def wilson_interval(successes: Any, n: Any) -> tuple[Any, Any]:
    """95 % Wilson score interval (low, high) of a proportion (Wilson 1927); NaN for n = 0. Numbers
    or arrays."""
    n = np.asarray(n, dtype=float)
    z2 = Z95**2
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.true_divide(successes, n)
        scale = 1 + z2 / n
        center = (p + z2 / (2 * n)) / scale
        half = Z95 * np.sqrt(p * (1 - p) / n + z2 / (4 * np.square(n))) / scale
    return np.maximum(0.0, center - half), np.minimum(1.0, center + half)


def proportion(successes: Any, n: Any) -> Estimate:
    """successes / n with Wilson's interval; NaN for n = 0. Numbers or arrays."""
    return Estimate(fraction_of(successes, n), *wilson_interval(successes, n))


def mean_of_proportions(hits: Sequence[np.ndarray]) -> Estimate:
    """The mean of independent proportions, given as bool arrays.

    The interval joins the Wilson intervals of the single proportions (MOVER; Newcombe 1998, Zou &
    Donner 2008).
    """
    proportions = [proportion(one.sum(), len(one)) for one in hits]
    return mean_of_estimates(proportions, least=0)


def difference(first: Estimate, second: Estimate, correlation: Any = 0.0) -> Estimate:
    """first - second, of two estimates with this correlation, a number or an array.

    MOVER for correlated estimates: Newcombe 1998 (Statistics in Medicine 17:2635), method 10, for
    any two intervals.
    """

    def combined(a: Any, b: Any) -> Any:
        return np.sqrt(np.maximum(0, a * a - 2 * correlation * a * b + b * b))

    value = first.value - second.value
    down = combined(first.value - first.low, second.high - second.value)
    up = combined(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up)


def mean_of_estimates(
    estimates: Sequence[Estimate], least: float = -1, most: float = 1
) -> Estimate:
    """The mean of independent estimates, within [least, most]: each arm is the root of the summed
    squared arms / their number (MOVER)."""
    values, lows, highs = np.swapaxes([astuple(one) for one in estimates], 0, 1)
    mean = values.mean(axis=0)
    down = np.sqrt(np.square(values - lows).sum(axis=0)) / len(values)
    up = np.sqrt(np.square(highs - values).sum(axis=0)) / len(values)
    return Estimate(mean, np.maximum(least, mean - down), np.minimum(most, mean + up))


def fraction_of(part: Any, whole: Any) -> Any:
    """part / whole; NaN where the whole is 0. Numbers or arrays."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.true_divide(part, whole), np.nan)[()]


def bounds(name: str, estimate: Estimate) -> dict[str, Any]:
    """{name_low, name_high} of an estimate: columns of a table."""
    return {f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def estimate_columns(name: str, estimate: Estimate) -> dict[str, Any]:
    """{name, name_low, name_high} of an estimate: columns of a table."""
    return {name: estimate.value, **bounds(name, estimate)}


def t_half_width(values: np.ndarray | Sequence[float]) -> float:
    """Half of Student's 95 % interval of the mean of a sample, float (n,); NaN for fewer than
    two."""
    n = len(values)
    if n < 2:
        return math.nan
    return stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / n**0.5


@dataclass(frozen=True)
class RunSummary:
    """The same figure of several runs. mean, low, high: with a 95 % interval for runs like these.
    sd: standard deviation of the runs' values. tau: the part of it that the runs' own intervals do
    not account for."""

    runs: int
    mean: float
    low: float
    high: float
    sd: float
    tau: float


def combine_runs(estimates: Sequence[Estimate]) -> RunSummary:
    """Random-effects summary of the same figure of at least two runs; ValueError for fewer.

    The mean is weighted by 1 / (tau^2 + the run's own variance). Its interval is that of Hartung &
    Knapp 2001 and Sidik & Jonkman 2002 (t distribution with runs - 1 degrees of freedom), tau that
    of Paule & Mandel 1982.
    """
    runs = len(estimates)
    if runs < 2:
        raise ValueError("one run has no spread; at least two are needed")
    value = np.array([one.value for one in estimates])
    widths = np.array([one.high - one.low for one in estimates])
    variance = np.square(np.maximum(widths, 1e-9) / (2 * Z95))

    def weighted(tau_squared: float) -> tuple[float, float, float]:
        """Sum of the weights, mean, and sum of the weighted squares."""
        weights = 1 / (variance + tau_squared)
        mean = (weights * value).sum() / weights.sum()
        return weights.sum(), mean, (weights * np.square(value - mean)).sum()

    def excess(tau_squared: float) -> float:
        return weighted(tau_squared)[2] - (runs - 1)

    # The weighted squares fall with tau; they are runs - 1 at the estimate, and no more at the
    # variance between runs.
    most = float(value.var(ddof=1))
    if excess(0.0) <= 0:
        tau_squared = 0.0
    elif excess(most) >= 0:  # equal but for rounding
        tau_squared = most
    else:
        tau_squared = brentq(excess, 0.0, most, xtol=1e-18)
    weight, mean, squares = weighted(tau_squared)
    half = stdtrit(runs - 1, 0.975) * math.sqrt(squares / ((runs - 1) * weight))
    sd = value.std(ddof=1)
    tau = math.sqrt(tau_squared)
    return RunSummary(runs, mean, mean - half, mean + half, sd, tau)


def within(summary: RunSummary, least: float) -> Estimate:
    """Mean of runs with its interval in [least, 1]: the t interval on the logit scale, by the delta
    method."""
    width = 1 - least
    place = (summary.mean - least) / width
    if not 0 < place < 1:
        return Estimate(summary.mean, max(least, summary.low), min(1.0, summary.high))
    half = (summary.high - summary.low) / 2 / width / (place * (1 - place))
    center = math.log(place / (1 - place))
    low = least + width * expit(center - half)
    high = least + width * expit(center + half)
    return Estimate(summary.mean, low, high)


def p_value(estimate: Estimate) -> float:
    """Two-sided p-value of value = 0, from the arm of the 95 % interval that points to 0, taken as
    normal."""
    value = estimate.value
    arm = value - estimate.low if value > 0 else estimate.high - value
    z = abs(value) / max(arm, 1e-12) * Z95
    return math.erfc(z / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several hypotheses are rejected, with at most 5 % chance of one false rejection
    (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        not_rejected_yet = len(p_values) - rank
        if p_values[place] > 0.05 / not_rejected_yet:
            break
        rejected[place] = True
    return rejected
