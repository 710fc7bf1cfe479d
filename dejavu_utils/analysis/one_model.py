"""The test of one model: score against reference classifiers, beside the same on images that the
model never saw.

Method: Kokhlikyan et al. 2024 (arXiv 2504.05651). The score is the model's accuracy minus that of
classifiers that predict the object from the background crop; delta is the same difference on images
that the model never saw, where nothing can be memorized: what the two readers of one background
differ by. Score - delta is free of it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.intervals import (
    Estimate,
    difference,
    estimate_columns,
    fraction_of,
    proportion,
    t_half_width,
)
from dejavu_utils.analysis.results_json import MemorizationConfidence, OneModelResults
from dejavu_utils.naming import SETS

LEAST_SEEDS = 3  # from which a spread is taken


@dataclass
class ClassifierComparison:
    """One set of images: the model's predictions, the classifiers' joint ones, and those of each
    classifier alone.

    predicted: int64 (classifiers, n), top-1. shares: float64 (classifiers, n), the true label's
    probability.
    """

    attack: mem.DirectedAttack
    predicted: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(
        cls, target: mem.Predictions, logits: Sequence[np.ndarray], labels: np.ndarray
    ) -> "ClassifierComparison":
        """logits: float (n, classes) of each classifier. labels: int (n,)."""
        predicted, shares = [], []
        for one in logits:
            alone = mem.predict_from_scores(one, labels)
            predicted.append(alone.top[:, 0])
            shares.append(alone.vote_share)
        joint = mem.predict_from_scores(log_mean_probabilities(logits), labels)
        attack = mem.DirectedAttack(target, joint, np.asarray(labels))
        return cls(attack, np.array(predicted), np.array(shares))

    @property
    def correct(self) -> np.ndarray:
        """bool (classifiers, n)"""
        return self.predicted == self.attack.labels


def classifier_agreement(compared: dict[str, ClassifierComparison]) -> pd.DataFrame:
    """How often two classifiers of a set predict the same class, as attack_classifiers.csv holds
    it: a row per pair.

    compared: {set: ClassifierComparison}. first, second: numbers of the classifiers, from 1.
    """
    columns = ["set", "first", "second", "images", "agreement", "agreement_low", "agreement_high"]
    rows = []
    for name, of_set in compared.items():
        classifiers = range(1, len(of_set.predicted) + 1)
        for first, second in itertools.combinations(classifiers, 2):
            same = of_set.predicted[first - 1] == of_set.predicted[second - 1]
            row = {"set": name, "first": first, "second": second, "images": len(same)}
            rows.append(row | estimate_columns("agreement", proportion(same.sum(), len(same))))
    return pd.DataFrame(rows, columns=columns)


def log_mean_probabilities(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the mean of the classifiers' softmax, float32 (n, most classes). logits: list of float
    (n, classes)."""
    classes = max(one.shape[1] for one in logits)
    total = np.zeros((len(logits[0]), classes))
    for one in logits:
        total[:, : one.shape[1]] += softmax(one.astype(float), axis=1)
    mean = np.maximum(total / len(logits), np.finfo(np.float32).tiny)
    return np.log(mean).astype(np.float32)


def entropy_of_votes(probabilities: np.ndarray, votes: int) -> np.ndarray:
    """Mean entropy (nats) of the histogram of so many votes that are drawn from each row; float64
    (n,).

    probabilities: float (n, classes). A class of probability p adds the mean of -v log v over v =
    Binomial(votes, p) / votes, a polynomial in p, which is tabulated in sqrt(p).
    A histogram of few votes over many classes has less entropy than what it is drawn from, without
    any memorization.
    """
    grid = np.linspace(0, 1, 8192) ** 2
    inside = grid[1:-1]  # a class of probability 0 or 1 adds no entropy; nor do all votes, or none
    log_p = np.log(inside)
    log_q = np.log1p(-inside)
    # log of votes! / (count! (votes - count)!), from one count to the next
    steps = np.log(np.arange(votes, 0, -1)) - np.log(np.arange(1, votes + 1))
    log_choose = np.concatenate([[0.0], np.cumsum(steps)])
    table = np.zeros(len(grid))
    for count in range(1, votes):
        binomial = np.exp(log_choose[count] + count * log_p + (votes - count) * log_q)
        table[1:-1] -= binomial * count / votes * np.log(count / votes)
    entropy = np.empty(len(probabilities))
    for start in range(0, len(entropy), 4096):
        rows = slice(start, start + 4096)
        roots = np.sqrt(np.asarray(probabilities[rows], dtype=float))
        entropy[rows] = np.interp(roots, np.sqrt(grid), table).sum(axis=1)
    return entropy


def memorization_confidence(
    target: mem.Predictions, log_probabilities: np.ndarray, votes: int
) -> dict[str, np.ndarray]:
    """{"published", "corrected"}: float64 (n,), nats: by how much surer the model is than the
    reference.

    published: entropy of the reference's softmax - entropy of the votes. Its zero is not zero:
    votes that are drawn from the softmax itself have less entropy. corrected: the entropy that so
    many votes of it would have instead. target: Predictions from neighbors. log_probabilities:
    float (n, classes). votes: neighbors that vote.
    """
    probabilities = np.exp(log_probabilities.astype(float))
    entropy = -(probabilities * log_probabilities).sum(axis=1)
    return {
        "published": entropy + target.confidence,
        "corrected": entropy_of_votes(probabilities, votes) + target.confidence,
    }


def spread_of(values: np.ndarray | Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of the classifiers' values: t(R - 1) SD / sqrt(R); None
    for fewer than LEAST_SEEDS. values: float (R,)."""
    return None if len(values) < LEAST_SEEDS else t_half_width(values)


def widened(
    estimate: Estimate, spreads: Sequence[float | None], least: float = -1.0, most: float = 1.0
) -> Estimate:
    """An estimate whose interval also includes the spread of the references; arms add up as roots
    of summed squares.

    estimate: a mean over len(spreads) sets. spreads: a `spread_of` each; None is left out.
    """
    known = [spread for spread in spreads if spread is not None]
    own = np.sqrt(np.sum(np.square(known))) / len(spreads)
    down = np.hypot(estimate.value - estimate.low, own)
    up = np.hypot(estimate.high - estimate.value, own)
    low, high = max(least, estimate.value - down), min(most, estimate.value + up)
    return Estimate(estimate.value, low, high)


@dataclass
class _Comparison:
    """Model against classifiers on several sets, by accuracy or by margin of votes.

    estimate: of the mean over the sets. of_classifiers: float (classifiers,) of each set, the mean
    of each classifier.
    """

    estimate: Estimate
    of_classifiers: list[np.ndarray]

    def widened(self) -> Estimate:
        return widened(self.estimate, list(map(spread_of, self.of_classifiers)))

    def minus(self, other: "_Comparison") -> Estimate:
        """A classifier that reads backgrounds better does so on both: its spread is that of its
        difference."""
        gaps = map(np.subtract, self.of_classifiers, other.of_classifiers)
        spreads = list(map(spread_of, gaps))
        return widened(difference(self.estimate, other.estimate), spreads, -2.0, 2.0)


def _row_means(values: np.ndarray) -> np.ndarray:
    """float64 (classifiers,) of (classifiers, n); NaN for n = 0."""
    return fraction_of(values.sum(axis=1), values.shape[1])


def _by_accuracy(sets: Sequence[ClassifierComparison]) -> _Comparison:
    score = mem.summarize([judged.attack for judged in sets], 1).score
    return _Comparison(score, [_row_means(judged.correct) for judged in sets])


def _by_margin(sets: Sequence[ClassifierComparison]) -> _Comparison:
    votes = mem.summarize_votes([judged.attack for judged in sets])
    # classifiers have probabilities, and the model's vote shares were asked for
    assert votes is not None
    return _Comparison(votes.margin, [_row_means(judged.shares) for judged in sets])


def one_model_statistics(
    seen: dict[str, ClassifierComparison],
    unseen: dict[str, ClassifierComparison] | None = None,
    half: dict[str, ClassifierComparison] | None = None,
) -> dict[str, OneModelResults]:
    """{"both", "A", "B"} -> figures of the test of one model, top-1, all examples.

    seen: of the attacked sets "A" and "B". unseen: of images that the model never saw, judged by
    the same classifiers. half: the attacked images, judged by classifiers trained on half of the
    crops. The intervals include the spread of the classifiers where there are LEAST_SEEDS of each.
    """
    statistics = {}
    for group in ("both", *SETS):
        names = SETS if group == "both" else (group,)
        judged = [seen[name] for name in names]
        never_seen = [unseen[name] for name in names] if unseen else []
        by_half = [half[name] for name in names] if half else []
        statistics[group] = _figures(judged, never_seen, by_half)
    return statistics


def _figures(
    judged: list[ClassifierComparison],
    never_seen: list[ClassifierComparison],
    by_half: list[ClassifierComparison],
) -> OneModelResults:
    accuracy = _by_accuracy(judged)
    margin = _by_margin(judged)
    figures = OneModelResults(
        score=accuracy.widened(),
        margin=margin.widened(),
        spread_in_intervals=all(len(of_set) >= LEAST_SEEDS for of_set in accuracy.of_classifiers),
    )
    if len(judged) == 1:
        (by_seed,) = accuracy.of_classifiers
        figures.reference_accuracy_by_seed = by_seed.tolist()
        figures.reference_sd = np.std(by_seed, ddof=1) if len(by_seed) > 1 else math.nan
        pairs = classifier_agreement({"": judged[0]})
        figures.reference_agreement = pairs["agreement"].mean() if len(pairs) else None
    if never_seen:
        unseen_accuracy = _by_accuracy(never_seen)
        unseen_margin = _by_margin(never_seen)
        figures.delta = unseen_accuracy.widened()
        figures.score_minus_delta = accuracy.minus(unseen_accuracy)
        figures.margin_delta = unseen_margin.widened()
        figures.margin_minus_delta = margin.minus(unseen_margin)
    if by_half:
        figures.rise = _rise(judged, by_half)
    return figures


def _rise(
    judged: Sequence[ClassifierComparison], judged_by_half: Sequence[ClassifierComparison]
) -> Estimate:
    """Reference accuracy with all crops - with half of them."""
    pairs, spreads = [], []
    for all_crops, half_of_them in zip(judged, judged_by_half):
        attack = all_crops.attack
        pairs.append(
            mem.DirectedAttack(attack.reference, half_of_them.attack.reference, attack.labels)
        )
        spread = spread_of(all_crops.correct.mean(axis=1)) or 0.0
        spread_of_half = spread_of(half_of_them.correct.mean(axis=1)) or 0.0
        spreads.append(np.sqrt(spread**2 + spread_of_half**2))
    return widened(mem.summarize(pairs, 1).score, spreads)


def mean_confidences(tables: Sequence[pd.DataFrame]) -> MemorizationConfidence | None:
    """Over the memorized examples of tables as attack_{A,B}.csv holds them; None where the model's
    predictions are no votes, or where no example is memorized."""
    if any("memorization_confidence" not in table for table in tables):
        return None
    memorized = pd.concat([table[table["share"] == "memorized"] for table in tables])
    if memorized.empty:
        return None
    published = _mean_of_examples(memorized["memorization_confidence"])
    corrected = _mean_of_examples(memorized["memorization_confidence_corrected"])
    return MemorizationConfidence(published, corrected, len(memorized))


def _mean_of_examples(column: pd.Series) -> Estimate | None:
    values = column.to_numpy()
    if len(values) < 2:
        return None
    mean = values.mean()
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)
