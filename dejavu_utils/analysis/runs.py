"""Image by image: are the images memorized in one run of a training also memorized in another?"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dejavu_utils.analysis.attack_files import Sets
from dejavu_utils.analysis.intervals import Estimate, difference, estimate_columns, proportion
from dejavu_utils.analysis.memorization import OUTCOMES
from dejavu_utils.errors import InputError


def memorized_images(sets: Sets) -> pd.Series:
    """bool by (set, image index): is it memorized (top-1)? sets: of read_attack."""
    parts = []
    for name, attacked in sets.items():
        memorized = attacked.attack.outcomes(1) == OUTCOMES.index("memorized")
        keys = pd.MultiIndex.from_product([[name], attacked.idxs], names=["set", "index"])
        parts.append(pd.Series(memorized, index=keys))
    return pd.concat(parts)


def above_chance(first: np.ndarray, second: np.ndarray) -> Estimate:
    """P(memorized in the second run | in the first) - P(memorized in the second); NaN where the
    first memorizes none.

    first, second: bool (n,), which of the same images two runs memorize. The interval compares
    those memorized in the first run with all others, two independent proportions; times the
    fraction of the others, it is that of the difference to all images.
    """
    n = len(first)
    chosen = int(first.sum())
    if chosen == n:  # there are no others: nothing can lie above chance
        return Estimate(0.0, 0.0, 0.0)
    among = proportion((first & second).sum(), chosen)
    others = proportion((~first & second).sum(), n - chosen)
    gap = difference(among, others)
    fraction = 1 - chosen / n
    return Estimate(fraction * gap.value, fraction * gap.low, fraction * gap.high)


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement of bool (n,) and bool (n,), chance taken out (Cohen 1960); NaN where all are
    equal."""
    observed = (first == second).mean()
    rate = first.mean()
    other_rate = second.mean()
    expected = rate * other_rate + (1 - rate) * (1 - other_rate)
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def agreement_table(runs: dict[str, pd.Series]) -> pd.DataFrame:
    """One row per ordered pair of runs: first, second, images, above_chance,
    above_chance_{low,high}, kappa.

    runs: {name: `memorized_images`}. InputError for runs that have no attacked image in common.
    """
    rows = []
    for first, second in itertools.product(runs, repeat=2):
        common = runs[first].index.intersection(runs[second].index)
        if not len(common):
            raise InputError(f"--agreement: {first} and {second} have no attacked image in common")
        in_first = runs[first][common].to_numpy(bool)
        in_second = runs[second][common].to_numpy(bool)
        row = {"first": first, "second": second, "images": len(common)}
        row |= estimate_columns("above_chance", above_chance(in_first, in_second))
        row["kappa"] = cohens_kappa(in_first, in_second)
        rows.append(row)
    return pd.DataFrame(rows)


def agreement_in_words(table: pd.DataFrame) -> str:
    """The mean over pairs of different runs, in one sentence."""
    pairs = table[table["first"] != table["second"]]
    above = pairs["above_chance"].mean()
    kappa = pairs["kappa"].mean()
    return (
        f"Of the images memorized in one run, the fraction memorized in another is {100 * above:.1f} percentage points "
        f"above chance (mean of {len(pairs)} ordered pairs); Cohen's kappa {kappa:.3f}."
    )


def short_names(folders: Sequence[str]) -> list[str]:
    """What tells the runs' folders apart: the parts of their paths that differ, or their
    numbers."""
    parts = [str(folder).strip("/").split("/") for folder in folders]
    if len({len(part) for part in parts}) > 1:
        return [f"run {number}" for number in range(1, len(folders) + 1)]
    differs = [len(set(names)) > 1 for names in zip(*parts)]
    names = []
    for part in parts:
        differing = itertools.compress(part, differs)
        names.append("/".join(differing) or "/".join(part))
    return names
