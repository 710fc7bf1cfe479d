"""From neighbor labels (or class scores) to predictions, confidences, the four outcomes and the déjà vu score.

NumPy only. Definitions: Meehan et al. 2023 (arXiv 2304.13850), sections 3 and 4. "Target" is the model that was trained
on the attacked set, "reference" the model that was not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dejavu_utils.analysis.intervals import (
    as_estimate,
    fraction_of,
    mean_of_estimates,
    mean_of_proportions,
    paired_difference,
    wilson_interval,
)

OUTCOMES = ("memorized", "correlated", "misrepresented", "unassociated")
TOP_KS = (1, 5)  # ranks at which accuracies are given
SWEEP_FRACTIONS = np.linspace(0.1, 1.0, 100)
_ROWS_AT_ONCE = 8192  # bounds the scratch memory to a few times 8192 x k integers


@dataclass
class Predictions:
    """A model's guesses on n examples.

    top: int64 (n, 5), the predicted classes in falling order, -1 where there is none. confidence: float64 (n,), rounded
    to 1e-10, since the entropies of equal histograms differ in their last bit. vote_share: float64 (n,), the share of
    the votes (for scores: the softmax probability) that the true label gets; None where it was not asked for.
    """

    top: np.ndarray
    confidence: np.ndarray
    vote_share: np.ndarray | None = None

    def __post_init__(self):
        self.confidence = np.round(np.asarray(self.confidence, dtype=np.float64), 10) + 0.0  # no minus zero

    def chosen(self, rows: np.ndarray) -> "Predictions":
        """Those of some examples. rows: int (m,), or bool (n,)."""
        return Predictions(
            self.top[rows], self.confidence[rows], None if self.vote_share is None else self.vote_share[rows]
        )

    def correct(self, labels: np.ndarray, top_k: int) -> np.ndarray:
        """bool (n,): is the true label among the first top_k predictions? labels: int (n,)."""
        return (self.top[:, :top_k] == np.asarray(labels).reshape(-1, 1)).any(axis=1)


def predict_from_neighbors(
    neighbor_labels: np.ndarray, k_attk: int = 0, labels: np.ndarray | None = None
) -> Predictions:
    """Classes by count among the first k_attk neighbors; confidence = minus the entropy (nats) of their histogram.

    neighbor_labels: int (n, k), nearest first. k_attk: neighbors that vote, 0 for all k. labels: int (n,), the true
    ones, for the vote share. Classes with the same count are ranked by their nearest member; a class without a neighbor
    is never predicted. ValueError if k_attk > k.
    """
    neighbor_labels = np.asarray(neighbor_labels)
    n, k = neighbor_labels.shape
    votes = k_attk or k
    if votes > k:
        raise ValueError(f"k_attk is {votes}, but the neighbor files hold only {k} neighbors")
    top = np.full((n, 5), -1, dtype=np.int64)
    confidence = np.empty(n)
    vote_share = None if labels is None else np.empty(n)
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        top[rows], confidence[rows] = _vote(neighbor_labels[rows, :votes])
        if vote_share is not None:
            vote_share[rows] = (neighbor_labels[rows, :votes] == np.asarray(labels)[rows, None]).sum(axis=1) / votes
    return Predictions(top, confidence, vote_share)


def _vote(labels):
    n, k = labels.shape
    nearest_first = np.argsort(labels, axis=1, kind="stable")
    grouped = np.take_along_axis(labels, nearest_first, axis=1)
    starts = np.ones((n, k), dtype=bool)  # where in a row of grouped labels does a new class begin?
    starts[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    flat = np.flatnonzero(starts)
    counts = np.diff(flat, append=n * k)  # every row begins a class, so no group spans two rows
    # One sortable number a class: more neighbors first, then the smaller rank of the nearest one.
    keys = np.full((n, k), -1, dtype=np.int64)
    keys.reshape(-1)[flat] = counts * k + (k - 1 - nearest_first.reshape(-1)[flat])
    p_log_p = np.zeros(n * k)
    p_log_p[flat] = counts / k * np.log(counts / k)
    order = np.argsort(-keys, axis=1, kind="stable")[:, :5]
    top = np.full((n, 5), -1, dtype=np.int64)
    top[:, : order.shape[1]] = np.where(
        np.take_along_axis(keys, order, axis=1) >= 0, np.take_along_axis(grouped, order, axis=1), -1
    )
    return top, p_log_p.reshape(n, k).sum(axis=1)


def predict_from_scores(scores: np.ndarray, labels: np.ndarray | None = None) -> Predictions:
    """Classes by score, equals by index; confidence = the largest score. scores: float (n, classes), e.g. logits.

    labels: int (n,), the true ones, for their softmax probability; 0 for a label that has no score.
    """
    scores = np.asarray(scores)
    top = np.full((len(scores), 5), -1, dtype=np.int64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    top[:, : order.shape[1]] = order
    largest = scores.max(axis=1).astype(np.float64)
    vote_share = None
    if labels is not None:
        labels = np.asarray(labels)
        known = (labels >= 0) & (labels < scores.shape[1])
        own = np.take_along_axis(scores, np.where(known, labels, 0)[:, None], axis=1)[:, 0].astype(np.float64)
        total = np.exp(scores - largest[:, None]).sum(axis=1)
        vote_share = np.where(known, np.exp(own - largest) / total, 0.0)
    return Predictions(top, largest, vote_share)


class _ConfidenceRanking:
    """Examples from the most confident to the least, equals all at once, so that no order decides among them.

    The most confident `size` examples are those of the `above` first places, and of the tied ones up to place `end` as
    much as is missing: each counts for `part` of an example. confidence: float64 (n,). sizes: int (levels,).
    """

    def __init__(self, confidence, sizes):
        n = len(confidence)
        self.order = np.argsort(-confidence, kind="stable")
        falling = confidence[self.order]
        self.groups = np.concatenate([[0], np.flatnonzero(falling[1:] != falling[:-1]) + 1, [n]])
        self.sizes = sizes
        self.above, self.end, self.part = self._places(sizes)
        # All levels cut the examples into few pieces, of which none is chosen in part but as a whole.
        self.cuts = np.unique(np.concatenate([self.above, self.end]))
        self.piece = np.empty(n, dtype=np.int64)
        self.piece[self.order] = np.searchsorted(self.cuts, np.arange(n), side="right")
        begins = np.concatenate([[-1], self.cuts])  # the first piece is whole in any case, or empty
        tied = np.where(begins == self.above[:, None], self.part[:, None], 0.0)
        self.chosen = np.where(begins < self.above[:, None], 1.0, tied)  # float64 (levels, pieces)

    def _places(self, sizes):
        group = np.clip(np.searchsorted(self.groups, sizes, side="left") - 1, 0, None)
        above, end = self.groups[group], self.groups[np.minimum(group + 1, len(self.groups) - 1)]
        return above, end, np.where(sizes > 0, (sizes - above) / np.maximum(end - above, 1), 0.0)

    def hits(self, correct, sizes=None):
        """Hits among the most confident `sizes` (all levels' own by default): of tied ones, their mean."""
        cumulated = np.concatenate([[0], np.cumsum(correct[self.order])])
        above, end, part = (self.above, self.end, self.part) if sizes is None else self._places(sizes)
        return cumulated[above] + part * (cumulated[end] - cumulated[above])


def accuracy_sweep(
    predictions: Predictions, labels: np.ndarray, top_k: int, fractions: np.ndarray = SWEEP_FRACTIONS
) -> np.ndarray:
    """Accuracy on the most confident int(fraction x n) examples for each fraction; float64, NaN where there is none.

    Of examples with the confidence of the last one, as many as fit in count with the mean of all of them.
    """
    sizes = (np.asarray(fractions) * len(predictions.confidence)).astype(np.int64)
    hits = _ConfidenceRanking(predictions.confidence, sizes).hits(predictions.correct(labels, top_k))
    return fraction_of(hits, sizes)


@dataclass
class DirectedAttack:
    """One attacked set: both models' predictions on the same examples, row by row. labels: int64 (n,)."""

    target: Predictions
    reference: Predictions
    labels: np.ndarray


def summarize(attacks: list[DirectedAttack], top_k: int, pct_confidence: float = 100.0) -> dict:
    """Target and reference accuracy, déjà vu score and the fractions of the four outcomes, averaged over the attacked
    sets.

    attacks: list of DirectedAttack, usually [set A, set B]. pct_confidence: accuracies are taken over the int(pct / 100
    x n) examples that the model in question is most confident of, of tied ones over their mean; the outcomes always
    over all examples, so that at 100 % score = memorized - misrepresented. Returns a dict of {"target", "reference",
    "score", and the four outcomes}: {"value", "low", "high"}; "chance": the reference accuracy that the same guesses
    have on average if the labels of those examples are permuted; "n": attacked examples of each set.

    95 % intervals without resampling: Wilson for proportions, and for the score, of a set, the paired MOVER of the two
    accuracies (`paired_difference`). An interval is for the accuracy among the pct % of all such images that the
    model is most confident of. Where these begin depends on the sample too; the intervals hold that to first order
    (`_ConfidenceLevels`).
    """
    return summarize_levels(attacks, top_k, [pct_confidence])[0]


def summarize_levels(attacks: list[DirectedAttack], top_k: int, pct_confidences: Sequence[float]) -> list[dict]:
    """`summarize` at several confidence levels, which share the sorting; a list, in their order."""
    fractions = np.array(pct_confidences, dtype=np.float64) / 100
    correct_of = [
        [model.correct(attack.labels, top_k) for model in (attack.target, attack.reference)] for attack in attacks
    ]
    shares = {
        name: as_estimate(*mean_of_proportions([outcomes_of(*correct) == code for correct in correct_of]))
        for code, name in enumerate(OUTCOMES)
    }
    found = {"target": [], "reference": [], "score": [], "chance": []}
    for attack, correct in zip(attacks, correct_of):
        levels = [
            _ConfidenceLevels(m.confidence, r, fractions) for m, r in zip((attack.target, attack.reference), correct)
        ]
        estimates = [one.accuracy() for one in levels]
        found["target"].append(estimates[0])
        found["reference"].append(estimates[1])
        found["score"].append(paired_difference(*estimates, _correlation(*levels)))
        found["chance"].append(levels[1].chance(attack.reference.top[:, :top_k], attack.labels))
    chance = np.mean(found.pop("chance"), axis=0)
    joined = {
        name: mean_of_estimates(*np.moveaxis(np.array(of_sets), 1, 0), least=-1 if name == "score" else 0)
        for name, of_sets in found.items()
    }
    return [
        {
            "n": [len(attack.labels) for attack in attacks],
            **{name: as_estimate(*(float(part[level]) for part in parts)) for name, parts in joined.items()},
            "chance": float(chance[level]),
            **shares,
        }
        for level in range(len(fractions))
    ]


class _ConfidenceLevels:
    """One model on one attacked set, at several levels of confidence. confidence, correct: (n,). fractions: (levels,).

    edge: accuracy of the examples whose place by confidence is near that of the last chosen one. In another sample the
    edge lies elsewhere, and examples of this accuracy come in or fall out: if it differs from the accuracy of the
    chosen, that varies more than a proportion of as many fixed examples. The place of the edge has a standard deviation
    of sqrt(n p (1 - p)), p = fraction; up to two of them to either side are near.
    """

    def __init__(self, confidence, correct, fractions):
        n = len(correct)
        self.correct, self.fractions = correct, fractions
        self.sizes = (fractions * n).astype(np.int64)
        self.falling = _ConfidenceRanking(confidence, self.sizes)
        self.hits = self.falling.hits(correct)
        reach = np.ceil(2 * np.sqrt(n * fractions * (1 - fractions))).astype(np.int64) + 1
        first, last = np.maximum(self.sizes - reach, 0), np.minimum(self.sizes + reach, n)
        self.edge = fraction_of(self.falling.hits(correct, last) - self.falling.hits(correct, first), last - first)

    def accuracy(self):
        """(value, low, high), each float64 (levels,): Wilson intervals of as many examples as hold the same variance.

        The accuracy's influence function is c (correct - e) / p, where c is the part of an example that is chosen and e
        the accuracy at the edge. Against the a (1 - a) of a proportion a its variance is larger by (1 - p) (a - e)^2,
        and smaller where c is not 0 or 1: the mean of tied examples counts all of them. Half a hit and half a miss keep
        a (1 - a) from being 0 where all are correct.
        """
        sizes, part = self.sizes, self.falling.part
        value = fraction_of(self.hits, sizes)
        above, end = self.falling.above, self.falling.end
        tied = fraction_of(self.falling.hits(self.correct, end) - self.falling.hits(self.correct, above), end - above)

        def variance(share):
            smoothed = (share * sizes + 0.5) / (sizes + 1)
            return smoothed * (1 - smoothed)

        weight = fraction_of(sizes - above, sizes)
        less = weight * (1 - part) * (variance(tied) + np.square(tied - self.edge))
        more = (1 - self.fractions) * np.square(value - self.edge)
        ratio = np.maximum(1 + (more - less) / variance(value), self.fractions)
        return (value, *wilson_interval(self.hits / ratio, sizes / ratio))

    def chance(self, guesses, labels):
        """Accuracy of these guesses, int (n, top_k), with the labels of the chosen examples permuted; (levels,)."""
        classes, labels = np.unique(labels, return_inverse=True)
        pieces = self.falling.chosen.shape[1]

        def of_classes(piece, label):
            counts = np.bincount(piece * len(classes) + label, minlength=pieces * len(classes))
            return self.falling.chosen @ counts.reshape(pieces, len(classes))

        place = np.minimum(np.searchsorted(classes, guesses), max(len(classes) - 1, 0))
        known = classes[place] == guesses if len(classes) else np.zeros(guesses.shape, dtype=bool)
        guessed = of_classes(np.broadcast_to(self.falling.piece[:, None], guesses.shape)[known], place[known])
        true = of_classes(self.falling.piece, labels.reshape(-1))
        return fraction_of((guessed * true).sum(axis=1), np.square(self.sizes))


def _correlation(first, second):
    """Correlation over all examples of c (correct - e) of two models, as in `_ConfidenceLevels.accuracy`; float64
    (levels,).

    Half an example of each of the four outcomes is added, chosen by both: without them it is 1 or -1 where one of the
    outcomes happens not to occur.
    """
    n, sides = len(first.correct), []
    for one in (first, second):
        values = one.falling.chosen[:, :, None] * (np.array([0.0, 1.0]) - one.edge[:, None, None])
        sides.append((2 * one.falling.piece + one.correct, values.reshape(len(values), -1), 1 - 2 * one.edge))
    (row, x, x_added), (column, y, y_added) = sides
    pairs = np.bincount(row * y.shape[1] + column, minlength=x.shape[1] * y.shape[1]).reshape(x.shape[1], -1)

    def spread(values, counts, added, edge):
        total = values @ counts + added
        return total, np.square(values) @ counts + edge**2 + (1 - edge) ** 2 - total**2 / (n + 2)

    x_total, x_spread = spread(x, pairs.sum(axis=1), x_added, first.edge)
    y_total, y_spread = spread(y, pairs.sum(axis=0), y_added, second.edge)
    together = ((x @ pairs) * y).sum(axis=1) + 0.5 * x_added * y_added - x_total * y_total / (n + 2)
    return together / np.sqrt(x_spread * y_spread)


def summarize_votes(attacks: list[DirectedAttack]) -> dict | None:
    """Mean vote share of the true label under target and reference, and their margin, averaged over the attacked sets.

    attacks: list of DirectedAttack. Returns {"target", "reference", "margin"}: {"value", "low", "high"}, None if the
    predictions have no vote shares. The intervals are those of accuracies and score, with the variance that the shares
    have instead of a proportion's.
    """
    found = {"target": [], "reference": [], "margin": []}
    for attack in attacks:
        shares = [attack.target.vote_share, attack.reference.vote_share]
        if any(share is None for share in shares):
            return None
        n = len(attack.labels)
        # Half an example of each of the four outcomes, all votes or none for the label under each model.
        padded = [np.concatenate([share, added]) for share, added in zip(shares, ([0, 0, 1, 1], [0, 1, 0, 1]))]
        weights = np.concatenate([np.ones(n), np.full(4, 0.5)])
        centered = [share - np.average(share, weights=weights) for share in padded]
        spreads = [np.average(np.square(share), weights=weights) for share in centered]
        correlation = np.average(centered[0] * centered[1], weights=weights) / np.sqrt(spreads[0] * spreads[1])
        estimates = []
        for share, spread in zip(padded, spreads):
            value, smoothed = fraction_of(share[:n].sum(), n), np.average(share, weights=weights)
            size = fraction_of(n * smoothed * (1 - smoothed), spread)
            estimates.append((value, *wilson_interval(value * size, size)))
        found["target"].append(estimates[0])
        found["reference"].append(estimates[1])
        found["margin"].append(paired_difference(*estimates, correlation))
    return {
        name: as_estimate(
            *(float(part) for part in mean_of_estimates(*np.array(of_sets).T, least=-1 if name == "margin" else 0))
        )
        for name, of_sets in found.items()
    }


def summarize_classes(attacks: list[DirectedAttack], top_k: int, num_classes: int) -> dict:
    """Per class: examples, accuracies, score and mean confidence, over the examples of all attacked sets together.

    attacks: list of DirectedAttack. Returns {"n": int64 (num_classes,), "target", "reference", "score": {"value",
    "low", "high"} of float64 (num_classes,), "chance", "target_confidence", "reference_confidence": float64
    (num_classes,)}. Intervals and chance as in `summarize`; a class without examples has NaN.
    """
    labels = np.concatenate([attack.labels for attack in attacks])
    n = np.bincount(labels, minlength=num_classes)
    table: dict[str, Any] = {"n": n}
    correct, estimates = [], []
    for name in ("target", "reference"):
        models = [getattr(attack, name) for attack in attacks]
        correct.append(np.concatenate([m.correct(attack.labels, top_k) for m, attack in zip(models, attacks)]))
        hits = np.bincount(labels, correct[-1], minlength=num_classes)
        estimates.append((fraction_of(hits, n), *wilson_interval(hits, n)))
        confidence = np.concatenate([m.confidence for m in models])
        table[f"{name}_confidence"] = fraction_of(np.bincount(labels, confidence, minlength=num_classes), n)
    guesses = np.concatenate([attack.reference.top[:, :top_k] for attack in attacks])
    guessed = np.bincount(guesses[(guesses >= 0) & (guesses < num_classes)], minlength=num_classes)
    table["chance"] = np.where(n > 0, fraction_of(guessed, len(labels)), np.nan)
    outcome = outcomes_of(*correct)
    memorized, correlated, misrepresented, unassociated = (
        np.bincount(labels, outcome == code, minlength=num_classes) + 0.5 for code in range(len(OUTCOMES))
    )
    of_target = (memorized + correlated) * (misrepresented + unassociated)
    of_reference = (correlated + misrepresented) * (memorized + unassociated)
    together = correlated * unassociated - memorized * misrepresented
    score, low, high = paired_difference(*estimates, together / np.sqrt(of_target * of_reference))
    estimates.append((score, np.maximum(-1, low), np.minimum(1, high)))
    for name, parts in zip(("target", "reference", "score"), estimates):
        table[name] = dict(zip(("value", "low", "high"), parts))
    return table


def outcomes_of(target_correct: np.ndarray, reference_correct: np.ndarray) -> np.ndarray:
    """Index into OUTCOMES of each example; bool (n,), bool (n,) -> int64 (n,)."""
    return np.where(target_correct, np.where(reference_correct, 1, 0), np.where(reference_correct, 2, 3))


def align_rows(first_idxs: np.ndarray, second_idxs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (in the first, in the second) that put both files' examples in the order of their image index.

    ValueError if an index occurs twice or the two files do not hold the same images.
    """
    orders = []
    for idxs in (first_idxs, second_idxs):
        order = np.argsort(idxs, kind="stable")
        if (np.diff(np.asarray(idxs)[order]) == 0).any():
            raise ValueError("an image index occurs twice among the attacked examples")
        orders.append(order)
    if not np.array_equal(np.asarray(first_idxs)[orders[0]], np.asarray(second_idxs)[orders[1]]):
        raise ValueError("the two models were not attacked with the same images")
    return orders[0], orders[1]
