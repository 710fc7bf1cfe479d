"""Membership inference: how well does a score tell images that a model was trained on from others
of the same draw?

AUC with DeLong's interval, and the true-positive rate at a low false-positive rate (Carlini et al.
2022, arXiv 2112.03570). Members and non-members must be two halves of one draw, or the score may
tell the draws apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta, rankdata

from dejavu_utils.analysis.intervals import Z95, Estimate
from dejavu_utils.analysis.memorization import DirectedAttack
from dejavu_utils.typed_json import entry

SAME_DRAW = (
    "Members and non-members: set A, set B. They must be of the same draw: partition with --seed."
)


@dataclass(frozen=True)
class Membership:
    """How well a score tells members, on which a model was trained, from non-members."""

    auc: Estimate = entry("chance that a member has the greater score; ties count half")
    tpr_at_1_percent: Estimate | None = entry(
        "fraction of members above the threshold that 1 % of the non-members exceed; null below 100 non-members"
    )
    tpr_at_01_percent: Estimate | None = entry("the same for 0.1 %; null below 1000 non-members")
    members: int = entry("images")
    non_members: int = entry("images")


def membership(members: np.ndarray, non_members: np.ndarray) -> Membership:
    """members, non_members: float (m,), (n,), greater for what looks like a member. ValueError if
    one is empty."""
    area = auc(members, non_members)
    at_1_percent = true_positive_rate(members, non_members, 0.01)
    at_01_percent = true_positive_rate(members, non_members, 0.001)
    return Membership(area, at_1_percent, at_01_percent, len(members), len(non_members))


def auc(members: np.ndarray, non_members: np.ndarray) -> Estimate:
    """Area under the ROC curve with the interval of DeLong et al. 1988, within [0, 1]."""
    m, n = len(members), len(non_members)
    if not m or not n:
        raise ValueError("membership: members and non-members are both needed")
    together = rankdata(np.concatenate([members, non_members]))
    # Of each image: the fraction of the other kind that it is on the right side of.
    of_members = (together[:m] - rankdata(members)) / n
    of_others = 1 - (together[m:] - rankdata(non_members)) / m
    value = of_members.mean()
    variance = 0.0
    for part in (of_members, of_others):
        if len(part) > 1:
            variance += part.var(ddof=1) / len(part)
    half = Z95 * np.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def true_positive_rate(
    members: np.ndarray, non_members: np.ndarray, rate: float
) -> Estimate | None:
    """Fraction of members above the threshold that at most `rate` of the non-members exceed, with
    the interval of Clopper & Pearson 1934; None for fewer than 1 / rate non-members."""
    allowed = int(rate * len(non_members) + 1e-9)  # 0.001 x 1000 may be a little below 1
    if not allowed:
        return None
    falling = np.sort(non_members)[::-1]
    threshold = falling[allowed]
    m = len(members)
    hits = int((members > threshold).sum())
    low = beta.ppf(0.025, hits, m - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, m - hits) if hits < m else 1.0
    return Estimate(hits / m, low, high)


def roc_curve(members: np.ndarray, non_members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false-positive rates, true-positive rates), float64, at every threshold, from (0, 0) to (1,
    1)."""
    thresholds = np.unique(np.concatenate([members, non_members]))[::-1]

    def positive_rates(scores: np.ndarray) -> np.ndarray:
        below = np.searchsorted(np.sort(scores), thresholds, side="left")
        return np.concatenate([[0.0], (len(scores) - below) / len(scores)])

    return positive_rates(non_members), positive_rates(members)


def roc_table(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Columns score (its name), false_positive_rate, true_positive_rate. scores: {name: (of
    members, of others)}."""
    parts = []
    for name, (members, non_members) in scores.items():
        false_positives, true_positives = roc_curve(members, non_members)
        columns = {"false_positive_rate": false_positives, "true_positive_rate": true_positives}
        parts.append(pd.DataFrame({"score": name, **columns}))
    return pd.concat(parts, ignore_index=True)


def margin_scores(attacks: Sequence[DirectedAttack]) -> tuple[np.ndarray, np.ndarray] | None:
    """(members', non-members') scores for model A: its share of the votes for the true label -
    model B's, of the images of set A and of set B. attacks: of both sets. None without votes, or
    where a set is empty."""
    margins = []
    for attack in attacks:
        target = attack.target.vote_share
        reference = attack.reference.vote_share
        if target is None or reference is None or not len(target):
            return None
        margins.append(target - reference)
    of_A, of_B = margins
    return of_A, -of_B  # on set B model A is the reference


def membership_in_words(result: Membership) -> str:
    """AUC and true-positive rates in a line."""
    parts = [f"AUC {_in_words(result.auc)}"]
    rates = {"1 %": result.tpr_at_1_percent, "0.1 %": result.tpr_at_01_percent}
    for rate, estimate in rates.items():
        if estimate is not None:
            parts.append(f"true-positive rate {_in_words(estimate)} at {rate} false positives")
    return ", ".join(parts)


def _in_words(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
