"""From neighbor labels (or class scores) to predictions, confidences, the four outcomes and the
déjà vu score.

NumPy only. Definitions: Meehan et al. 2023 (arXiv 2304.13850), sections 3 and 4. "Target" is the
model that was trained on the attacked set, "reference" the model that was not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dejavu_utils.analysis.intervals import (
    Estimate,
    difference,
    fraction_of,
    mean_of_estimates,
    mean_of_proportions,
    proportion,
    wilson_interval,
)

OUTCOMES = ("memorized", "correlated", "misrepresented", "unassociated")
TOP_KS = (1, 5)  # ranks at which accuracies are given
SWEEP_FRACTIONS = np.linspace(0.1, 1.0, 100)
_ROWS_AT_ONCE = 8192  # bounds the scratch memory to a few times 8192 x k integers


@dataclass
class Predictions:
    """A model's predictions on n examples.

    top: int64 (n, 5), the predicted classes, the most likely first, -1 where there is none.
    confidence: float64 (n,), rounded to 1e-10, since the entropies of equal histograms differ in
    their last bit. vote_share: float64 (n,), the share of the votes (for scores: the softmax
    probability) of the true label; None where it was not asked for.
    """

    top: np.ndarray
    confidence: np.ndarray
    vote_share: np.ndarray | None = None

    def __post_init__(self) -> None:
        # no minus zero
        self.confidence = np.round(np.asarray(self.confidence, dtype=float), 10) + 0.0

    def chosen(self, rows: np.ndarray) -> "Predictions":
        """Those of some examples. rows: int (m,), or bool (n,)."""
        vote_share = None if self.vote_share is None else self.vote_share[rows]
        return Predictions(self.top[rows], self.confidence[rows], vote_share)

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Those of several sets, one after the other; without vote shares."""
        top = [part.top for part in parts]
        confidence = [part.confidence for part in parts]
        return cls(np.concatenate(top), np.concatenate(confidence))

    def correct(self, labels: np.ndarray, top_k: int) -> np.ndarray:
        """bool (n,): is the true label among the first top_k predictions? labels: int (n,)."""
        true = np.asarray(labels).reshape(-1, 1)
        return (self.top[:, :top_k] == true).any(axis=1)


def predict_from_neighbors(
    neighbor_labels: np.ndarray, k_attk: int = 0, labels: np.ndarray | None = None
) -> Predictions:
    """Classes by count among the first k_attk neighbors; confidence = minus the entropy (nats) of
    their histogram.

    neighbor_labels: int (n, k), nearest first. k_attk: neighbors that vote, 0 for all k. labels:
    int (n,), the true ones, for the vote share. Classes with the same count are ranked by their
    nearest member; a class without a neighbor is never predicted. ValueError if k_attk > k.
    """
    neighbor_labels = np.asarray(neighbor_labels)
    k = neighbor_labels.shape[1]
    votes = k_attk or k
    if votes > k:
        raise ValueError(f"k_attk is {votes}, but the neighbor files hold only {k} neighbors")
    return _in_blocks(_vote, neighbor_labels[:, :votes], labels)


def _in_blocks(predict: Callable, voters: np.ndarray, labels: np.ndarray | None) -> Predictions:
    """Predictions of a bounded number of rows at once. predict: (voters, labels) of some rows ->
    their top, confidence and vote share."""
    n = len(voters)
    true = np.full(n, -1) if labels is None else np.asarray(labels)
    top = np.empty((n, 5), dtype=int)
    confidence, vote_share = np.empty(n), np.empty(n)
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        top[rows], confidence[rows], vote_share[rows] = predict(voters[rows], true[rows])
    return Predictions(top, confidence, None if labels is None else vote_share)


def _vote(voters: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(top int64 (n, 5), confidence and vote share float64 (n,)) of neighbors' labels, int (n, k),
    nearest first.

    Sorted by label, a row falls into one group per class; no array of n x classes is needed.
    """
    n, k = voters.shape
    # stable: each group begins with its nearest member
    nearest_first = np.argsort(voters, axis=1, kind="stable")
    grouped = np.take_along_axis(voters, nearest_first, axis=1)
    begins = np.ones((n, k), dtype=bool)
    begins[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    group_starts = np.flatnonzero(begins)
    # the first of a row always begins a group: none spans two rows
    counts = np.diff(group_starts, append=n * k)
    ranks = nearest_first.reshape(-1)[group_starts]

    # One sortable number per class: more neighbors first, then the nearer of the nearest members.
    # -1: no class here.
    keys = np.full(n * k, -1)
    keys[group_starts] = counts * k + (k - 1 - ranks)
    keys = keys.reshape(n, k)
    order = np.argsort(-keys, axis=1, kind="stable")[:, :5]
    classes = np.take_along_axis(grouped, order, axis=1)
    is_class = np.take_along_axis(keys, order, axis=1) >= 0
    top = np.full((n, 5), -1)
    top[:, : order.shape[1]] = np.where(is_class, classes, -1)

    fractions = counts / k
    p_log_p = np.zeros(n * k)
    p_log_p[group_starts] = fractions * np.log(fractions)
    vote_share = (voters == labels[:, None]).sum(axis=1) / k
    return top, p_log_p.reshape(n, k).sum(axis=1), vote_share


def predict_from_scores(scores: np.ndarray, labels: np.ndarray | None = None) -> Predictions:
    """Classes by score, ties by index; confidence = the largest score. scores: float (n, classes),
    e.g. logits.

    labels: int (n,), the true ones, for their softmax probability; 0 for a label that has no score.
    """
    return _in_blocks(_rank, np.asarray(scores), labels)


def _rank(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(top int64 (n, 5), largest score and softmax of the label float64 (n,)) of scores, float (n,
    classes)."""
    n, classes = scores.shape
    largest = scores.max(axis=1).astype(float)
    has_score = (labels >= 0) & (labels < classes)
    columns = np.where(has_score, labels, 0)[:, None]
    own = np.take_along_axis(scores, columns, axis=1)[:, 0].astype(float)
    total = np.exp(scores - largest[:, None]).sum(axis=1)
    probability = np.where(has_score, np.exp(own - largest) / total, 0.0)

    # five times the largest: much faster than sorting a thousand classes
    top = np.full((n, 5), -1)
    left = scores.copy()
    for rank in range(min(5, classes)):
        best = left.argmax(axis=1)  # the first of equals
        top[:, rank] = best
        np.put_along_axis(left, best[:, None], -np.inf, axis=1)
    return top, largest, probability


def accuracy_sweep(
    predictions: Predictions,
    labels: np.ndarray,
    top_k: int,
    fractions: np.ndarray = SWEEP_FRACTIONS,
) -> np.ndarray:
    """Accuracy on the most confident int(fraction x n) examples for each fraction; float64, NaN
    where there is none.

    Of examples tied with the last selected one, as many as are missing count, with the mean of all
    of them.
    """
    correct = predictions.correct(labels, top_k)
    levels = _ConfidenceLevels(predictions.confidence, correct, np.asarray(fractions))
    return levels.accuracy().value


@dataclass
class DirectedAttack:
    """One attacked set: both models' predictions on the same examples, row by row. labels: int64
    (n,)."""

    target: Predictions
    reference: Predictions
    labels: np.ndarray

    @classmethod
    def joined(cls, attacks: Sequence["DirectedAttack"]) -> "DirectedAttack":
        """Several attacked sets as one, without vote shares."""
        target = Predictions.joined([attack.target for attack in attacks])
        reference = Predictions.joined([attack.reference for attack in attacks])
        return cls(target, reference, np.concatenate([attack.labels for attack in attacks]))

    def correct(self, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """bool (n,) each: is the true label among the target's, and among the reference's, first
        top_k predictions?"""
        return self.target.correct(self.labels, top_k), self.reference.correct(self.labels, top_k)

    def outcomes(self, top_k: int) -> np.ndarray:
        """Index into OUTCOMES of each example, int64 (n,)."""
        target, reference = self.correct(top_k)
        if_target_correct = np.where(reference, 1, 0)
        if_target_wrong = np.where(reference, 2, 3)
        return np.where(target, if_target_correct, if_target_wrong)

    def chosen(self, rows: np.ndarray) -> "DirectedAttack":
        """Some of its examples. rows: int (m,), or bool (n,)."""
        return DirectedAttack(
            self.target.chosen(rows), self.reference.chosen(rows), self.labels[rows]
        )


@dataclass
class Summary:
    """Figures of an attack at one level of confidence.

    target, reference, score: accuracies and their difference, among the selected examples. chance:
    the reference accuracy that the same predictions have on average if the labels of those examples
    are permuted. outcomes: of each of OUTCOMES the fraction of all examples.
    """

    target: Estimate
    reference: Estimate
    score: Estimate
    chance: float
    outcomes: dict[str, Estimate]


def summarize(attacks: list[DirectedAttack], top_k: int, pct_confidence: float = 100.0) -> Summary:
    """Target and reference accuracy, déjà vu score and the fractions of the four outcomes, averaged
    over the attacked sets.

    attacks: usually [set A, set B]. pct_confidence: accuracies are taken over the int(pct / 100 x
    n) examples that the model in question is most confident of, of tied ones over their mean; the
    outcomes always over all examples, so that at 100 % score = memorized - misrepresented.

    95 % intervals without resampling: Wilson for proportions, and for the score, of a set, the
    paired MOVER of the two accuracies (`difference`). An interval is for the accuracy among the pct
    % of all such images that the model is most confident of. Where these begin depends on the
    sample too; the intervals include that to first order (`_ConfidenceLevels`).
    """
    return summarize_levels(attacks, top_k, [pct_confidence])[0]


def summarize_levels(
    attacks: list[DirectedAttack], top_k: int, pct_confidences: Sequence[float]
) -> list[Summary]:
    """`summarize` at several confidence levels, which share the sorting; in their order."""
    fractions = np.array(pct_confidences) / 100
    targets = []
    references = []
    scores = []
    chances = []
    for attack in attacks:
        target_correct, reference_correct = attack.correct(top_k)
        target = _ConfidenceLevels(attack.target.confidence, target_correct, fractions)
        reference = _ConfidenceLevels(attack.reference.confidence, reference_correct, fractions)
        target_accuracy = target.accuracy()
        reference_accuracy = reference.accuracy()
        correlation = _correlation(target, reference)
        targets.append(target_accuracy)
        references.append(reference_accuracy)
        scores.append(difference(target_accuracy, reference_accuracy, correlation))
        chances.append(reference.chance(attack.reference.top[:, :top_k], attack.labels))
    target_mean = mean_of_estimates(targets, least=0)
    reference_mean = mean_of_estimates(references, least=0)
    score_mean = mean_of_estimates(scores)
    chance = np.mean(chances, axis=0)
    outcome_of_each = [attack.outcomes(top_k) for attack in attacks]
    outcomes = {}
    for code, outcome in enumerate(OUTCOMES):
        outcomes[outcome] = mean_of_proportions([of_set == code for of_set in outcome_of_each])
    summaries = []
    for level in range(len(fractions)):
        accuracies = (target_mean.at(level), reference_mean.at(level), score_mean.at(level))
        summaries.append(Summary(*accuracies, chance[level], outcomes))
    return summaries


class _ConfidenceLevels:
    """One model on one attacked set: its most confident examples at several levels. confidence,
    correct: (n,). fractions: (levels,).

    Ties share their places, so the result does not depend on the order of the rows: at each level
    the examples at the first `above` places are selected, and of the tied ones from there up to
    place `end` as many as are missing, each of which counts for `part` of an example.

    threshold_accuracy: accuracy of the examples whose rank by confidence is near the threshold,
    that of the last selected one. In another sample the threshold moves, and examples near it enter
    or leave the selection: if their accuracy differs from that of the selected examples, this
    varies more than a proportion of as many fixed examples. The rank of the threshold has a
    standard deviation of sqrt(n p (1 - p)), p = fraction; up to two of them to either side are
    near.
    """

    def __init__(self, confidence: np.ndarray, correct: np.ndarray, fractions: np.ndarray) -> None:
        n = len(correct)
        self.correct = correct
        self.fractions = fractions
        self.sizes = (fractions * n).astype(int)
        order = np.argsort(-confidence, kind="stable")
        ranked = confidence[order]
        changes = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
        self.ties = np.concatenate([[0], changes, [n]])  # places at which the confidence changes
        self.hits_before = np.concatenate([[0], np.cumsum(correct[order])])  # of each place
        self.above, self.end, self.part = self._places(self.sizes)
        self.hits = self._hits(self.sizes)

        # up to two standard deviations of the threshold's rank to either side
        deviation = np.sqrt(n * fractions * (1 - fractions))
        reach = np.ceil(2 * deviation).astype(int) + 1
        first = np.maximum(self.sizes - reach, 0)
        last = np.minimum(self.sizes + reach, n)
        self.threshold_accuracy = fraction_of(self._hits(last) - self._hits(first), last - first)

        # Between two places of `above` or `end` all examples are selected alike at every level: few
        # pieces stand for all examples. chosen: how much of an example of each piece counts,
        # float64 (levels, pieces).
        cuts = np.unique(np.concatenate([self.above, self.end]))
        self.piece = np.empty(n, dtype=int)
        self.piece[order] = np.searchsorted(cuts, np.arange(n), side="right")
        begins = np.concatenate([[-1], cuts])  # the first piece is selected as a whole, or empty
        tied = np.where(begins == self.above[:, None], self.part[:, None], 0.0)
        self.chosen = np.where(begins < self.above[:, None], 1.0, tied)

    def _places(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(above, end, part) of selections of these sizes."""
        tied_group = np.maximum(np.searchsorted(self.ties, sizes, side="left") - 1, 0)
        above = self.ties[tied_group]
        end = self.ties[tied_group + 1]
        part = (sizes - above) / np.maximum(end - above, 1)
        return above, end, np.where(sizes > 0, part, 0.0)

    def _hits(self, sizes: np.ndarray) -> np.ndarray:
        """Hits among the most confident examples, so many of them; of ties their mean."""
        above, end, part = self._places(sizes)
        before = self.hits_before[above]
        return before + part * (self.hits_before[end] - before)

    def accuracy(self) -> Estimate:
        """Of float64 (levels,): Wilson intervals at the effective sample size n / ratio.

        The accuracy's influence function is c (correct - e) / p, where c is the part of an example
        that is selected and e the threshold accuracy. Against the a (1 - a) of a proportion a its
        variance is larger by (1 - p) (a - e)^2, and smaller where c is not 0 or 1: the mean of tied
        examples includes all of them.
        """
        sizes = self.sizes
        value = fraction_of(self.hits, sizes)
        tied_hits = self.hits_before[self.end] - self.hits_before[self.above]
        tied = fraction_of(tied_hits, self.end - self.above)

        def variance(accuracy: np.ndarray) -> np.ndarray:
            # Half a hit and half a miss keep it from being 0 where all are correct.
            smoothed = (accuracy * sizes + 0.5) / (sizes + 1)
            return smoothed * (1 - smoothed)

        of_one_tied = variance(tied) + np.square(tied - self.threshold_accuracy)
        tied_fraction = fraction_of(sizes - self.above, sizes)
        less = tied_fraction * (1 - self.part) * of_one_tied
        more = (1 - self.fractions) * np.square(value - self.threshold_accuracy)
        ratio = np.maximum(1 + (more - less) / variance(value), self.fractions)
        low, high = wilson_interval(self.hits / ratio, sizes / ratio)
        return Estimate(value, low, high)

    def chance(self, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Accuracy of these predictions, int (n, top_k), with the labels of the selected examples
        permuted; (levels,).

        That is the sum over the classes of (fraction predicted) x (fraction of that class).
        """
        predicted_often = self._count_classes(predicted, labels)
        true = self._count_classes(labels[:, None], labels)
        return fraction_of((predicted_often * true).sum(axis=1), np.square(self.sizes))

    def _count_classes(self, named: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How often the selected examples name each class that occurs in the labels, float64
        (levels, classes).

        named: int (n, k).
        """
        classes = np.unique(labels)
        piece = np.broadcast_to(self.piece[:, None], named.shape)
        is_class = np.isin(named, classes)
        class_number = np.searchsorted(classes, named[is_class])
        shape = self.chosen.shape[1], len(classes)
        cells = np.ravel_multi_index((piece[is_class], class_number), shape)
        counts = np.bincount(cells, minlength=math.prod(shape)).reshape(shape)
        return self.chosen @ counts


def _correlation(first: _ConfidenceLevels, second: _ConfidenceLevels) -> np.ndarray:
    """Correlation over all examples of c (correct - e) of two models, as in
    `_ConfidenceLevels.accuracy`; float64 (levels,).

    Half an example of each of the four outcomes is added, selected by both: without them it is 1 or
    -1 where one of the outcomes happens not to occur.
    """
    n = len(first.correct)
    # c (correct - e) takes one value per piece of the ranking and per answer: counting the examples
    # in each cell of (piece and answer under the first model) x (the same under the second) gives
    # all sums, for all levels at once.
    row, x = _influence(first)
    column, y = _influence(second)
    shape = x.shape[1], y.shape[1]
    cells = np.ravel_multi_index((row, column), shape)
    counts = np.bincount(cells, minlength=math.prod(shape)).reshape(shape)

    def total_and_spread(
        values: np.ndarray, times: np.ndarray, e: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        # The four half examples add two misses (-e) / 2 and two hits (1 - e) / 2.
        added = 1 - 2 * e
        total = values @ times + added
        squares = np.square(values) @ times + e**2 + (1 - e) ** 2
        return added, total, squares - total**2 / (n + 2)

    x_added, x_total, x_spread = total_and_spread(x, counts.sum(axis=1), first.threshold_accuracy)
    y_added, y_total, y_spread = total_and_spread(y, counts.sum(axis=0), second.threshold_accuracy)
    products = ((x @ counts) * y).sum(axis=1) + 0.5 * x_added * y_added
    return (products - x_total * y_total / (n + 2)) / np.sqrt(x_spread * y_spread)


def _influence(levels: _ConfidenceLevels) -> tuple[np.ndarray, np.ndarray]:
    """(cell int64 (n,) of each example: its piece of the ranking, and whether it is correct; c
    (correct - e) of each cell, float64 (levels, cells))."""
    miss_and_hit = np.array([0.0, 1.0]) - levels.threshold_accuracy[:, None, None]
    values = levels.chosen[:, :, None] * miss_and_hit
    return 2 * levels.piece + levels.correct, values.reshape(len(values), -1)


@dataclass
class VoteSummary:
    """Mean share of the votes that the true label gets, and the difference of the two models."""

    target: Estimate
    reference: Estimate
    margin: Estimate


def summarize_votes(attacks: list[DirectedAttack]) -> VoteSummary | None:
    """Mean vote share of the true label under target and reference, and their margin, averaged over
    the attacked sets; None if the predictions have no vote shares.

    The intervals are those of accuracies and score, with the variance of the shares instead of a
    proportion's.
    """
    targets = []
    references = []
    margins = []
    for attack in attacks:
        if attack.target.vote_share is None or attack.reference.vote_share is None:
            return None
        # Half an example of each of the four outcomes is added, all votes or none for the label
        # under each model.
        target = np.concatenate([attack.target.vote_share, [0, 0, 1, 1]])
        reference = np.concatenate([attack.reference.vote_share, [0, 1, 0, 1]])
        weights = np.concatenate([np.ones(len(attack.labels)), np.full(4, 0.5)])
        target_mean, target_residuals, target_variance = _mean_share(target, weights)
        reference_mean, residuals, variance = _mean_share(reference, weights)
        covariance = np.average(target_residuals * residuals, weights=weights)
        correlation = covariance / np.sqrt(target_variance * variance)
        targets.append(target_mean)
        references.append(reference_mean)
        margins.append(difference(target_mean, reference_mean, correlation))
    return VoteSummary(
        mean_of_estimates(targets, least=0),
        mean_of_estimates(references, least=0),
        mean_of_estimates(margins),
    )


def _mean_share(padded: np.ndarray, weights: np.ndarray) -> tuple[Estimate, np.ndarray, float]:
    """(mean share of the votes, with Wilson's interval for as many examples as give a proportion
    the shares' variance; the shares minus their mean; their variance).

    padded: the shares, and at the end the examples that `summarize_votes` adds: they count for the
    interval, not for the mean.
    """
    n = len(padded) - 4
    smoothed = np.average(padded, weights=weights)
    residuals = padded - smoothed
    variance = np.average(np.square(residuals), weights=weights)
    value = fraction_of(padded[:n].sum(), n)
    size = fraction_of(n * smoothed * (1 - smoothed), variance)
    return Estimate(value, *wilson_interval(value * size, size)), residuals, variance


@dataclass
class ClassSummary:
    """Figures per class, over the examples of all attacked sets together; NaN for a class without
    examples.

    n: int64 (classes,). Estimates of float64 (classes,). chance: fraction of the reference's
    predictions that are this class. *_confidence: mean over the class's examples.
    """

    n: np.ndarray
    target: Estimate
    reference: Estimate
    score: Estimate
    chance: np.ndarray
    target_confidence: np.ndarray
    reference_confidence: np.ndarray


def summarize_classes(attacks: list[DirectedAttack], top_k: int, num_classes: int) -> ClassSummary:
    """Accuracies, score and mean confidence of each class; intervals and chance as in
    `summarize`."""
    attack = DirectedAttack.joined(attacks)
    labels = attack.labels

    def total(values: np.ndarray | None = None) -> np.ndarray:
        """Sum of values (n,) over the examples of each class; without them their number."""
        return np.bincount(labels, values, minlength=num_classes)

    n = total()
    target_correct, reference_correct = attack.correct(top_k)
    target = proportion(total(target_correct), n)
    reference = proportion(total(reference_correct), n)

    predicted = attack.reference.top[:, :top_k]
    is_class = (predicted >= 0) & (predicted < num_classes)
    times = np.bincount(predicted[is_class], minlength=num_classes)
    chance = np.where(n > 0, fraction_of(times, len(labels)), np.nan)

    # The correlation of the two models' answers (phi), with half an example of each outcome added.
    outcome = attack.outcomes(top_k)
    counts = [total(outcome == code) + 0.5 for code in range(len(OUTCOMES))]
    memorized, correlated, misrepresented, unassociated = counts
    of_target = (memorized + correlated) * (misrepresented + unassociated)
    of_reference = (correlated + misrepresented) * (memorized + unassociated)
    together = correlated * unassociated - memorized * misrepresented
    score = difference(target, reference, together / np.sqrt(of_target * of_reference))
    score = Estimate(score.value, np.maximum(-1, score.low), np.minimum(1, score.high))

    target_confidence = fraction_of(total(attack.target.confidence), n)
    reference_confidence = fraction_of(total(attack.reference.confidence), n)
    return ClassSummary(
        n, target, reference, score, chance, target_confidence, reference_confidence
    )


def align_rows(first_idxs: np.ndarray, second_idxs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (in the first, in the second) that put both files' examples in the order of their
    image index.

    ValueError if an index occurs twice or the two files do not hold the same images.
    """
    first, first_rows = np.unique(first_idxs, return_index=True)
    second, second_rows = np.unique(second_idxs, return_index=True)
    if len(first) < len(first_idxs) or len(second) < len(second_idxs):
        raise ValueError("an image index occurs twice among the attacked examples")
    if not np.array_equal(first, second):
        raise ValueError("the two models were not attacked with the same images")
    return first_rows, second_rows
