"""The test of one model: score against reference classifiers, beside the same on images that the model never saw.

Method: Kokhlikyan et al. 2024 (arXiv 2504.05651). The score is the model's accuracy minus that of classifiers that
guess the object from the background crop; delta is the same difference on images that the model never saw, where
nothing can be memorized: what the two readers of one background differ by. Score - delta is free of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.intervals import difference, t_quantile

LEAST_SEEDS = 3  # from which a spread is taken


@dataclass
class ClassifierComparison:
    """One set of images: the model's guesses, the classifiers' joint ones, and those of each classifier alone.

    attack: memorization.DirectedAttack. correct: bool (classifiers, n), top-1. shares: float64 (classifiers, n), the
    true label's probability.
    """

    attack: mem.DirectedAttack
    correct: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, target: mem.Predictions, logits: Sequence[np.ndarray], labels: np.ndarray) -> "ClassifierComparison":
        """target: Predictions. logits: float (n, classes) of each classifier. labels: int (n,)."""
        alone = [mem.predict_from_scores(one, labels) for one in logits]
        joint = mem.predict_from_scores(log_mean_probabilities(logits), labels)
        return cls(
            mem.DirectedAttack(target, joint, np.asarray(labels)),
            np.array([one.correct(labels, 1) for one in alone]),
            np.array([one.vote_share for one in alone]),
        )


def log_mean_probabilities(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the mean of the classifiers' softmax, float32 (n, most classes). logits: list of float (n, classes)."""
    total = np.zeros((len(logits[0]), max(one.shape[1] for one in logits)))
    for one in logits:
        shifted = np.exp(one.astype(np.float64) - one.max(axis=1, keepdims=True))
        total[:, : one.shape[1]] += shifted / shifted.sum(axis=1, keepdims=True)
    return np.log(np.maximum(total / len(logits), np.finfo(np.float32).tiny)).astype(np.float32)


def entropy_of_votes(probabilities: np.ndarray, votes: int, points: int = 8192) -> np.ndarray:
    """Mean entropy (nats) of the histogram of so many votes that are drawn from each row; float64 (n,).

    probabilities: float (n, classes). A class of probability p adds the mean of -v log v over v = Binomial(votes, p) /
    votes, a polynomial in p, which is tabulated in sqrt(p) at `points` places. A histogram of few votes over many
    classes has less entropy than what it is drawn from: that alone is no memory.
    """
    grid = np.linspace(0, 1, points) ** 2
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(np.arange(votes, 0, -1)) - np.log(np.arange(1, votes + 1)))])
    table = np.zeros(points)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(grid), np.log1p(-grid)
    for count in range(1, votes):  # all votes, and none, have no entropy; nor has a class of probability 0 or 1
        weight = np.exp(log_choose[count] + count * log_p[1:-1] + (votes - count) * log_q[1:-1])
        table[1:-1] -= weight * count / votes * np.log(count / votes)
    found = np.empty(len(probabilities))
    for start in range(0, len(found), 4096):
        rows = np.asarray(probabilities[start : start + 4096], dtype=np.float64)
        found[start : start + 4096] = np.interp(np.sqrt(rows), np.sqrt(grid), table).sum(axis=1)
    return found


def memorization_confidence(
    target: mem.Predictions, log_probabilities: np.ndarray, votes: int
) -> dict[str, np.ndarray]:
    """{"published", "corrected"}: float64 (n,), nats: by how much surer the model is than the reference.

    published: entropy of the reference's softmax - entropy of the votes. Its zero is not zero: votes that are drawn
    from the softmax itself have less entropy. corrected: the entropy that so many votes of it would have instead.
    target: Predictions from neighbors. log_probabilities: float (n, classes). votes: neighbors that vote.
    """
    probabilities = np.exp(log_probabilities.astype(np.float64))
    entropy = -(probabilities * log_probabilities).sum(axis=1)
    return {
        "published": entropy + target.confidence,
        "corrected": entropy_of_votes(probabilities, votes) + target.confidence,
    }


def spread_of(values: np.ndarray | Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of the classifiers' values: t(R - 1) SD / sqrt(R); None for fewer than
    LEAST_SEEDS. values: float (R,)."""
    runs = len(values)
    return None if runs < LEAST_SEEDS else t_quantile(0.975, runs - 1) * float(np.std(values, ddof=1)) / np.sqrt(runs)


def widened(estimate: dict, halves: Sequence[float | None], least: float = -1.0, most: float = 1.0) -> dict[str, float]:
    """An estimate whose interval also holds the spread of the references: each arm is the root of the summed squares.

    estimate: {"value", "low", "high"}, a mean over len(halves) sets. halves: a `spread_of` each; None is left out.
    """
    own = np.sqrt(sum(half**2 for half in halves if half is not None)) / len(halves)
    low, high = (
        np.hypot(estimate["value"] - estimate["low"], own),
        np.hypot(estimate["high"] - estimate["value"], own),
    )
    value = estimate["value"]
    return {"value": value, "low": float(max(least, value - low)), "high": float(min(most, value + high))}


# (name, figures of attacks, what each classifier has of every image): the two ways in which readers are compared.
_READINGS = (
    ("score", lambda attacks: mem.summarize(attacks, 1)["score"], lambda judged: judged.correct),
    ("margin", lambda attacks: (mem.summarize_votes(attacks) or {})["margin"], lambda judged: judged.shares),
)


def one_model_statistics(
    seen: dict[str, ClassifierComparison],
    unseen: dict[str, ClassifierComparison] | None = None,
    half: dict[str, ClassifierComparison] | None = None,
) -> dict[str, dict]:
    """{"both", "A", "B"} -> figures of the test of one model, for results.json.

    seen, unseen, half: {"A": ClassifierComparison, "B": ClassifierComparison}; unseen: of images that the model
    never saw, judged by the same
    classifiers; half: the attacked images, judged by classifiers trained on half of the crops. Figures: "score",
    "delta", "score_minus_delta", "margin" (mean vote share of the true label - its probability), "margin_delta",
    "margin_minus_delta" and "rise" (reference accuracy with all crops - with half of them), {"value", "low", "high"}
    with 95 % intervals that hold the spread of the classifiers where there are LEAST_SEEDS of each, None where they are
    not known; "spread_in_intervals": do they?;
    "reference_accuracy_by_seed" and "reference_sd", of a set; top-1, all examples.
    """
    return {"both": _figures(list("AB"), seen, unseen, half), **{s: _figures([s], seen, unseen, half) for s in "AB"}}


def _figures(names, seen, unseen, half):
    attacks = [seen[name].attack for name in names]
    accuracies = [seen[name].correct.mean(axis=1) for name in names]
    figures = dict.fromkeys(
        ("score", "delta", "score_minus_delta", "margin", "margin_delta", "margin_minus_delta", "rise")
    )
    found = {**figures, "spread_in_intervals": all(len(of_seeds) >= LEAST_SEEDS for of_seeds in accuracies)}
    if len(names) == 1:
        found["reference_accuracy_by_seed"] = accuracies[0].tolist()
        found["reference_sd"] = float(np.std(accuracies[0], ddof=1)) if len(accuracies[0]) > 1 else None
    for name, summary, of_classifiers in _READINGS:
        prefix = "" if name == "score" else f"{name}_"
        here = summary(attacks), [of_classifiers(seen[one]).mean(axis=1) for one in names]
        found[name] = widened(here[0], [spread_of(values) for values in here[1]])
        if unseen:
            there = (
                summary([unseen[one].attack for one in names]),
                [of_classifiers(unseen[one]).mean(axis=1) for one in names],
            )
            found[f"{prefix}delta"] = widened(there[0], [spread_of(values) for values in there[1]])
            # A classifier that reads backgrounds better does so on both: its spread is that of its difference.
            both = [spread_of(first - second) for first, second in zip(here[1], there[1])]
            found[f"{name}_minus_delta"] = widened(difference(here[0], there[0]), both, -2.0, 2.0)
    if half:
        pairs = [
            mem.DirectedAttack(seen[name].attack.reference, half[name].attack.reference, seen[name].attack.labels)
            for name in names
        ]
        halves = [[spread_of(of[name].correct.mean(axis=1)) for of in (seen, half)] for name in names]
        joined = [np.sqrt(sum(h**2 for h in pair if h is not None)) for pair in halves]
        found["rise"] = widened(mem.summarize(pairs, 1)["score"], joined)
    return found


def mean_confidences(tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """{"memorization_confidence": ...} over the memorized examples of tables as attack_{A,B}.csv holds them.

    Each {"value", "low", "high"}, "published" and "corrected" (`memorization_confidence`), and "n"; None where the
    model's guesses are no votes, or where no example is memorized.
    """
    columns = {"published": "memorization_confidence", "corrected": "memorization_confidence_corrected"}
    if any(columns["published"] not in table for table in tables):
        return {"memorization_confidence": None}
    found = {}
    for kind, column in columns.items():
        values = np.concatenate([table[column][table["share"] == "memorized"] for table in tables])
        if not len(values):
            return {"memorization_confidence": None}
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
        mean = values.mean()
        found[kind] = {"value": mean, "low": mean - half, "high": mean + half} if len(values) > 1 else None
    return {"memorization_confidence": {**found, "n": len(values)}}
