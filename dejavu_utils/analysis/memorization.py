"""From neighbor labels (or class scores) to predictions, confidences, the four shares and the déjà vu score.

NumPy only. Definitions: Meehan et al. 2023 (arXiv 2304.13850), sections 3 and 4. "Target" is the model that was trained
on the attacked set, "reference" the model that was not.
"""

from dataclasses import dataclass

import numpy as np

SHARES = ("memorized", "correlated", "misrepresented", "unassociated")
SWEEP_FRACTIONS = np.linspace(0.1, 1.0, 100)
_ROWS_AT_ONCE = 8192  # bounds the scratch memory to a few times 8192 x k integers
_Z95 = 1.959963984540054


@dataclass
class Predictions:
    """top: int64 (n, 5), the predicted classes in falling order, -1 where there is none. confidence: float64 (n,)."""

    top: np.ndarray
    confidence: np.ndarray

    def right(self, labels, top_k):
        """bool (n,): is the true label among the first top_k predictions? labels: int (n,)."""
        return (self.top[:, :top_k] == np.asarray(labels).reshape(-1, 1)).any(axis=1)


def predict_from_neighbors(neighbor_labels, k_attk=0):
    """Classes by count among the first k_attk neighbors; confidence = minus the entropy (nats) of their histogram.

    neighbor_labels: int (n, k), nearest first. k_attk: neighbors that vote, 0 for all k. Classes with the same count
    are ranked by their nearest member; a class without a neighbor is never predicted. ValueError if k_attk > k.
    """
    neighbor_labels = np.asarray(neighbor_labels)
    n, k = neighbor_labels.shape
    votes = k_attk or k
    if votes > k:
        raise ValueError(f"k_attk is {votes}, but the neighbor files hold only {k} neighbors")
    top = np.full((n, 5), -1, dtype=np.int64)
    confidence = np.empty(n)
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        top[rows], confidence[rows] = _vote(neighbor_labels[rows, :votes])
    return Predictions(top, confidence)


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


def predict_from_scores(scores):
    """Classes by score, equals by index; confidence = the largest score. scores: float (n, classes), e.g. logits."""
    scores = np.asarray(scores)
    top = np.full((len(scores), 5), -1, dtype=np.int64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    top[:, : order.shape[1]] = order
    return Predictions(top, scores.max(axis=1).astype(np.float64))


def most_confident(confidence, fraction):
    """Indices of the int(fraction x n) most confident examples; of equals the earlier rows."""
    return np.argsort(-np.asarray(confidence), kind="stable")[: int(fraction * len(confidence))]


def accuracy_sweep(predictions, labels, top_k, fractions=SWEEP_FRACTIONS):
    """Accuracy on the most confident int(fraction x n) examples for each fraction; float64, NaN where there is none."""
    order = most_confident(predictions.confidence, 1.0)
    hits = np.concatenate([[0], np.cumsum(predictions.right(labels, top_k)[order])])
    sizes = (np.asarray(fractions) * len(order)).astype(np.int64)
    with np.errstate(invalid="ignore"):
        return hits[sizes] / np.where(sizes > 0, sizes, np.nan)


@dataclass
class DirectedAttack:
    """One attacked set: both models' predictions on the same examples, row by row. labels: int64 (n,)."""

    target: Predictions
    reference: Predictions
    labels: np.ndarray


def wilson_interval(successes, n):
    """95 % Wilson score interval (low, high) of a proportion (Wilson 1927); (nan, nan) for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    p, z2 = successes / n, _Z95**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def mean_of_proportions(hits, variance_ratios=None):
    """(mean, low, high) of the mean of independent proportions, given as a list of bool arrays.

    The 95 % interval joins the Wilson intervals of the single proportions (MOVER; Newcombe 1998, Zou & Donner 2008).
    variance_ratios: each proportion's variance / that of a binomial one; so many fewer examples give its interval.
    """
    means = np.array([h.mean() if len(h) else np.nan for h in hits])
    ratios = variance_ratios or [1] * len(hits)
    low, high = np.array([wilson_interval(h.sum() / ratio, len(h) / ratio) for h, ratio in zip(hits, ratios)]).T
    mean = means.mean()
    down = np.sqrt(((means - low) ** 2).sum()) / len(means)
    up = np.sqrt(((high - means) ** 2).sum()) / len(means)
    return float(mean), float(max(0.0, mean - down)), float(min(1.0, mean + up))  # rounding may leave [0, 1]


def difference(first, second):
    """Estimate of first - second, of two independent estimates {"value", "low", "high"} (MOVER, as above)."""
    value = first["value"] - second["value"]
    down = np.hypot(first["value"] - first["low"], second["high"] - second["value"])
    up = np.hypot(first["high"] - first["value"], second["value"] - second["low"])
    return _estimate(value, float(value - down), float(value + up))


def summarize(attacks, top_k, pct_confidence=100.0, draws=2000, seed=0):
    """Target and reference accuracy, déjà vu score and the four shares, averaged over the attacked sets.

    attacks: list of DirectedAttack, usually [set A, set B]. pct_confidence: accuracies are taken over the
    int(pct / 100 x n) examples that the model in question is most confident of; the shares always over all examples,
    so that at 100 % score = memorized - misrepresented. Returns a dict of {"target", "reference", "score", and the four
    shares}: {"value", "low", "high"} with 95 % intervals, Wilson for proportions and a paired bootstrap (`draws`
    resamplings of the examples with `seed`) for the score, and "n": attacked examples of each set.

    What an interval is for: the accuracy among the pct % of all such images that the model is most confident of. Where
    these begin depends on the sample too; the intervals hold that to first order (`_accuracy_at_the_edge`).
    """
    return summarize_levels(attacks, top_k, [pct_confidence], draws, seed)[0]


def summarize_levels(attacks, top_k, pct_confidences, draws=2000, seed=0):
    """`summarize` at several confidence levels, which share the sorting; a list, in their order."""
    prepared = [_Prepared(attack, top_k) for attack in attacks]
    shares = {
        name: _estimate(*mean_of_proportions([one.shares == code for one in prepared]))
        for code, name in enumerate(SHARES)
    }
    summaries = []
    for pct in pct_confidences:
        rng = np.random.default_rng(seed)  # for each level anew: a level's interval does not depend on the others
        fraction = pct / 100
        hits, ratios, drawn = [], [], []
        for one in prepared:
            n = len(one.shares)
            size = int(fraction * n)
            chosen = [rank < size for rank in one.ranks]
            hits.append([right[which] for right, which in zip(one.right, chosen)])
            edges = [_accuracy_at_the_edge(right, rank, fraction) for right, rank in zip(one.right, one.ranks)]
            ratios.append([_variance_ratio(of_model, edge, fraction) for of_model, edge in zip(hits[-1], edges)])
            # An example counts for each model as not chosen (0), wrong (1) or right (2). Drawing how often each of the
            # nine pairs occurs is the same as drawing the examples with replacement, and costs nothing.
            target, reference = (which * (1 + right) for which, right in zip(chosen, one.right))
            share_of_pairs = np.bincount(3 * target + reference, minlength=9) / max(n, 1)
            pairs = rng.multinomial(n, share_of_pairs, size=draws).reshape(draws, 3, 3)
            accuracies = []
            for counts, edge in zip((pairs.sum(axis=2), pairs.sum(axis=1)), edges):
                _, wrong, correct = counts.T
                with np.errstate(invalid="ignore"):  # those drawn too many or too few are as accurate as the edge
                    accuracies.append((correct - edge * (wrong + correct - size)) / size)
            drawn.append(accuracies[0] - accuracies[1])
        summary = {"n": [len(one.shares) for one in prepared]}
        for name, of_each_set, ratios_of_each in zip(("target", "reference"), zip(*hits), zip(*ratios)):
            summary[name] = _estimate(*mean_of_proportions(of_each_set, ratios_of_each))
        score = summary["target"]["value"] - summary["reference"]["value"]
        summary["score"] = _estimate(score, *_percentile_interval(np.mean(drawn, axis=0)))
        summaries.append({**summary, **shares})
    return summaries


class _Prepared:
    """What all confidence levels need of a DirectedAttack: who is right, ranks by confidence, shares."""

    def __init__(self, attack, top_k):
        models = (attack.target, attack.reference)
        self.right = [model.right(attack.labels, top_k) for model in models]
        self.shares = share_of(*self.right)
        self.ranks = [np.argsort(most_confident(model.confidence, 1.0)) for model in models]


def _accuracy_at_the_edge(right, ranks, fraction):
    """Accuracy of the examples whose rank by confidence is near that of the last chosen one; NaN without examples.

    In another sample the edge lies elsewhere, and examples of this accuracy come in or fall out: if it differs from the
    accuracy of the chosen, that varies more than a proportion of as many fixed examples. In ranks the edge has a
    standard deviation of sqrt(n p (1 - p)), p = fraction; up to two of them to either side are near.
    """
    n = len(right)
    reach = int(np.ceil(2 * np.sqrt(n * fraction * (1 - fraction)))) + 1
    near = np.abs(ranks - int(fraction * n) + 0.5) < reach
    return right[near].mean() if near.any() else np.nan


def _variance_ratio(chosen_right, edge, fraction):
    """Variance of the accuracy among the most confident / that of a binomial proportion of as many examples.

    With accuracy a, and e at the edge, it is 1 + (1 - fraction) (a - e)^2 / (a (1 - a)), from the influence function of
    a mean above a quantile. Half a hit and half a miss keep a (1 - a) from being 0 where all are right.
    """
    if not len(chosen_right):
        return 1.0
    smoothed = (chosen_right.sum() + 0.5) / (len(chosen_right) + 1)
    return 1 + (1 - fraction) * (chosen_right.mean() - edge) ** 2 / (smoothed * (1 - smoothed))


def _percentile_interval(drawn):
    drawn = drawn[np.isfinite(drawn)]
    return tuple(float(bound) for bound in np.percentile(drawn, [2.5, 97.5])) if len(drawn) else (np.nan, np.nan)


def summarize_classes(attacks, top_k, num_classes, draws=2000, seed=0):
    """Per class: examples, accuracies, score and mean confidence, over the examples of all attacked sets together.

    attacks: list of DirectedAttack. Returns {"n": int64 (num_classes,), "target", "reference", "score": {"value",
    "low", "high"} of float64 (num_classes,), "target_confidence", "reference_confidence": float64 (num_classes,)}.
    Intervals as in `summarize`; a class without examples has NaN.
    """
    labels = np.concatenate([attack.labels for attack in attacks])
    right, confidence = {}, {}
    for name in ("target", "reference"):
        models = [getattr(attack, name) for attack in attacks]
        right[name] = np.concatenate([m.right(attack.labels, top_k) for m, attack in zip(models, attacks)])
        confidence[name] = np.concatenate([m.confidence for m in models])
    n = np.bincount(labels, minlength=num_classes)
    table = {"n": n}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in right:
            hits = np.bincount(labels, right[name], minlength=num_classes)
            low, high = np.array([wilson_interval(int(h), int(m)) for h, m in zip(hits, n)]).reshape(-1, 2).T
            table[name] = {"value": hits / n, "low": low, "high": high}
            table[f"{name}_confidence"] = np.bincount(labels, confidence[name], minlength=num_classes) / n
        memorized = np.bincount(labels, right["target"] & ~right["reference"], minlength=num_classes)
        misrepresented = np.bincount(labels, right["reference"] & ~right["target"], minlength=num_classes)
        p = np.stack([memorized, misrepresented, n - memorized - misrepresented], axis=1) / np.maximum(n, 1)[:, None]
        p[n == 0] = 0, 0, 1
        drawn = np.random.default_rng(seed).multinomial(n, p, size=(draws, num_classes))
        low, high = np.percentile((drawn[..., 0] - drawn[..., 1]) / n, [2.5, 97.5], axis=0)
        table["score"] = {"value": (memorized - misrepresented) / n, "low": low, "high": high}
    return table


def share_of(target_right, reference_right):
    """Index into SHARES of each example; bool (n,), bool (n,) -> int64 (n,)."""
    return np.where(target_right, np.where(reference_right, 1, 0), np.where(reference_right, 2, 3))


def align_rows(first_idxs, second_idxs):
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
    return orders


def _estimate(value, low, high):
    return {"value": float(value), "low": low, "high": high}
