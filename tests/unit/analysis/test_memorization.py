from dataclasses import replace

import numpy as np
import pytest

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.intervals import wilson_interval
from dejavu_utils.typed_json import to_json


def brute_force_prediction(labels):
    """Slow, literal reading of the rule, for one row."""
    classes = sorted(set(labels), key=lambda c: (-list(labels).count(c), list(labels).index(c)))
    p = np.array([list(labels).count(c) / len(labels) for c in classes])
    return classes[:5], float((p * np.log(p)).sum())


def test_predictions_against_a_literal_reading():
    rng = np.random.default_rng(0)
    for classes, k in ((3, 7), (40, 20), (7, 4), (1, 3)):
        neighbor_labels = rng.integers(0, classes, (200, k))
        predictions = mem.predict_from_neighbors(neighbor_labels)
        for row, top, confidence in zip(neighbor_labels, predictions.top, predictions.confidence):
            expected, entropy = brute_force_prediction(row)
            assert list(top[top >= 0]) == expected
            assert confidence == pytest.approx(entropy, abs=1e-10)


def test_scores_take_the_place_of_neighbors():
    predictions = mem.predict_from_scores(np.array([[0.1, 2.0, -1.0], [5.0, 0.0, 5.0]]))
    assert predictions.top[:, :3].tolist() == [[1, 0, 2], [0, 2, 1]]
    assert predictions.confidence.tolist() == [2.0, 5.0]


def predictions_of(right, confidence, labels, vote_share=None):
    """Predictions that are right where `right` says so: top-1 the label or the next class."""
    top = np.full((len(labels), 5), -1)
    top[:, 0] = np.where(right, labels, labels + 1)
    return mem.Predictions(top, np.asarray(confidence, dtype=float), vote_share)


def test_top_p_takes_int_p_n_examples_and_the_mean_of_the_tied():
    labels = np.arange(5)
    predictions = predictions_of([1, 1, 0, 0, 1], [0.1, 0.9, 0.5, 0.5, 0.5 + 1e-12], labels)
    sweep = mem.accuracy_sweep(predictions, labels, 1, [0.1, 0.2, 0.4, 0.6, 0.8, 1])
    assert np.isnan(sweep[0])
    # Three are tied at 0.5 (rounded to 1e-10), one of them right.
    assert sweep[1:] == pytest.approx([1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 2 / 4, 3 / 5], abs=1e-15)


def mirrored(attack, rows, relabel=lambda labels: labels):
    """The same attack with its rows in another order and other numbers for its classes."""
    models = [
        mem.Predictions(np.where(m.top < 0, -1, relabel(m.top))[rows], m.confidence[rows], m.vote_share[rows])
        for m in (attack.target, attack.reference)
    ]
    return mem.DirectedAttack(*models, relabel(attack.labels)[rows])


@pytest.mark.parametrize("k, classes", [(1, 12), (3, 12), (10, 5), (100, 1000)])
def test_neither_rows_nor_classes_decide_among_the_tied(k, classes):
    rng = np.random.default_rng(k)
    labels = np.sort(rng.integers(0, classes, 400))
    votes = [np.where(rng.random((400, k)) < 0.3, labels[:, None], rng.integers(0, classes, (400, k))) for _ in "AB"]
    attack = mem.DirectedAttack(*(mem.predict_from_neighbors(vote, labels=labels) for vote in votes), labels)
    reversed_rows = mirrored(attack, np.s_[::-1])
    other_classes = mirrored(attack, rng.permutation(400), lambda c: classes - 1 - c)
    pcts = list(range(1, 101))
    for top_k in (1, 5):
        expected = mem.summarize_levels([attack], top_k, pcts)
        assert to_json(mem.summarize_levels([reversed_rows], top_k, pcts)) == to_json(expected)
        for one, other in zip(mem.summarize_levels([other_classes], top_k, pcts), expected):
            assert one.chance == pytest.approx(other.chance, abs=1e-12)  # a sum in another order
            assert to_json(replace(one, chance=0)) == to_json(replace(other, chance=0))
        for other in (reversed_rows, other_classes):
            assert np.array_equal(*(mem.accuracy_sweep(one.target, one.labels, top_k) for one in (attack, other)))


def test_chance_is_the_mean_over_permuted_labels():
    rng = np.random.default_rng(4)
    labels = rng.choice(4, 60, p=[0.5, 0.3, 0.1, 0.1])
    votes = rng.choice(4, (60, 5), p=[0.4, 0.4, 0.1, 0.1])
    attack = mem.DirectedAttack(*[mem.predict_from_neighbors(votes)] * 2, labels)
    for top_k, pct in ((1, 100), (2, 100), (1, 50)):
        _, edge = np.unique(attack.reference.confidence, return_inverse=True)
        level = np.sort(attack.reference.confidence)[::-1][int(0.6 * pct) - 1]
        above, tied = attack.reference.confidence > level, attack.reference.confidence == level
        part = above + tied * (int(0.6 * pct) - above.sum()) / tied.sum()
        guesses = attack.reference.top[:, :top_k]
        # All pairs of an example's prediction and another's label, each as much as both are chosen.
        hit = (guesses[:, None, :] == labels[None, :, None]).any(axis=2)
        expected = part @ hit @ part / part.sum() ** 2
        assert mem.summarize([attack], top_k, pct).chance == pytest.approx(expected, abs=1e-12)
    shuffled = []
    for _ in range(400):
        permuted = mem.DirectedAttack(attack.target, attack.reference, rng.permutation(labels))
        shuffled.append(mem.summarize([permuted], 1).reference.value)
    assert mem.summarize([attack], 1).chance == pytest.approx(np.mean(shuffled), abs=0.02)


def test_vote_shares_and_their_margin():
    labels = np.array([0, 1, 1])
    votes = mem.predict_from_neighbors(np.array([[0, 0, 1, 2], [1, 1, 1, 1], [0, 2, 2, 1]]), 3, labels)
    assert votes.vote_share == pytest.approx([2 / 3, 1, 0])
    scores = mem.predict_from_scores(np.log([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]) + 1000, labels)
    assert scores.vote_share == pytest.approx([0.7, 0.8, 0.5])
    assert mem.predict_from_scores(np.zeros((1, 2)), np.array([5])).vote_share == [0]
    summary = mem.summarize_votes([mem.DirectedAttack(votes, scores, labels)])
    assert summary.margin.value == pytest.approx(5 / 9 - 2 / 3)
    assert summary.margin.low < summary.margin.value < summary.margin.high
    assert (
        mem.summarize_votes([mem.DirectedAttack(mem.predict_from_neighbors(np.ones((3, 2))), scores, labels)]) is None
    )


def test_score_interval_is_that_of_newcombe():
    """Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635), with half an example in each cell for phi."""
    for cells in ((12, 9, 2, 14), (36, 12, 2, 0), (0, 30, 0, 0), (2, 97, 1, 0)):
        correlated, memorized, misrepresented, unassociated = cells
        n = sum(cells)
        kind = np.repeat([0, 1, 2, 3], cells)
        labels = np.zeros(n, dtype=np.int64)
        rights = kind < 2, (kind == 0) | (kind == 2)
        attack = mem.DirectedAttack(*(predictions_of(right, np.zeros(n), labels) for right in rights), labels)
        score = mem.summarize([attack], 1).score
        counts = np.array(cells) + 0.5
        a, b, c, d = counts
        phi = (a * d - b * c) / np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        (p1, l1, u1), (p2, l2, u2) = ((r.mean(), *wilson_interval(r.sum(), n)) for r in rights)
        down = np.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
        up = np.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
        expected = {"value": p1 - p2, "low": max(-1, p1 - p2 - down), "high": min(1, p1 - p2 + up)}
        assert vars(score) == pytest.approx(expected, abs=1e-12)
        table = mem.summarize_classes([attack], 1, 2)
        assert vars(table.score.at(0)) == pytest.approx(expected, abs=1e-12)
        assert np.isnan(table.score.low[1]) and table.n.tolist() == [n, 0]


def test_alignment_refuses_other_images():
    rows = mem.align_rows(np.array([5, 2, 9]), np.array([9, 5, 2]))
    assert rows[0].tolist() == [1, 0, 2] and rows[1].tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="same images"):
        mem.align_rows(np.array([1, 2]), np.array([1, 3]))
    with pytest.raises(ValueError, match="twice"):
        mem.align_rows(np.array([1, 1]), np.array([1, 1]))


def test_wilson_interval_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_the_edge_of_the_most_confident_is_in_the_intervals():
    """A target whose accuracy falls steeply with its confidence: bare Wilson intervals are too short for that."""
    rng = np.random.default_rng(0)
    labels = np.zeros(3000, dtype=np.int64)
    right = rng.random(3000) < 0.5
    target = predictions_of(right, rng.normal(size=3000) + 2 * right, labels)
    attack = mem.DirectedAttack(target, target, labels)
    summary = mem.summarize([attack], 1, 20).target
    low, high = wilson_interval(600 * summary.value, 600)
    assert summary.low < low < summary.value < high < summary.high
    everything = mem.summarize([attack], 1).target
    assert (everything.low, everything.high) == pytest.approx(wilson_interval(right.sum(), 3000), abs=1e-12)


def test_tied_examples_all_count():
    """Where all are as confident, the accuracy of the most confident is that of all, with the same interval."""
    labels = np.zeros(400, dtype=np.int64)
    for hits in (0, 100, 400):
        model = predictions_of(np.arange(400) < hits, np.zeros(400), labels)
        attack = mem.DirectedAttack(model, model, labels)
        some, everybody = (mem.summarize([attack], 1, pct).target for pct in (5, 100))
        assert some.value == everybody.value
        assert some.high - some.low == pytest.approx(everybody.high - everybody.low, rel=0.1)


# Coverage of the intervals. A population is a large pool of examples of which samples are drawn, so that its truth is
# known exactly, whatever the models and however many examples are tied.

POOL = 200_000
PCTS = (5, 20, 100)
TRUTHS = ((0.2, 0.2), (0.5, 0.2), (0.9, 0.88), (0.99, 0.985), (1, 1), (0.01, 0.005), (0.0005, 0.0001))


def pool_of_rates(rng, rates, dependent, gap):
    """Models that are right at these rates; the confidence is normal with deviation 1, its mean higher by `gap` if they
    are. Dependent ones are so by one draw in seven tenths of the examples, and their confidences correlate by 0.7."""
    labels = np.zeros(POOL, dtype=np.int64)
    common, own = rng.random(POOL), rng.random((2, POOL))
    together = dependent & (rng.random(POOL) < 0.7)
    noise, own_noise = rng.normal(size=POOL), rng.normal(size=(2, POOL))
    models = []
    for model in (0, 1):
        right = np.where(together, common, own[model]) < rates[model]
        confidence = np.sqrt(0.7) * noise + np.sqrt(0.3) * own_noise[model] if dependent else own_noise[model]
        models.append(predictions_of(right, confidence + gap * right, labels))
    return mem.DirectedAttack(*models, labels)


def sample_of(pool, rng, n):
    rows = rng.integers(0, POOL, n)
    models = []
    for model in (pool.target, pool.reference):
        share = None if model.vote_share is None else model.vote_share[rows]
        models.append(mem.Predictions(model.top[rows], model.confidence[rows], share))
    return mem.DirectedAttack(*models, pool.labels[rows])


def coverage(pool, rng, n, sets=1, draws=1000, most=8000):
    """{(pct, figure): how often the 95 % interval holds the truth}; a cell that looks low is drawn again up to `most`
    times, so that chance does not decide."""
    truths = mem.summarize_levels([pool], 1, PCTS)
    truth = {(pct, name): getattr(one, name).value for pct, one in zip(PCTS, truths) for name in ("target", "score")}
    covered, done = dict.fromkeys(truth, 0), 0
    while done < most:
        for _ in range(draws):
            attacks = [sample_of(pool, rng, n) for _ in range(sets)]
            found = dict(zip(PCTS, mem.summarize_levels(attacks, 1, PCTS)))
            for (pct, name), value in truth.items():
                interval = getattr(found[pct], name)
                covered[pct, name] += interval.low - 1e-12 <= value <= interval.high + 1e-12
        done += draws
        draws = done  # doubles what there is
        if min(covered[cell] for cell in covered if cell[1] != "target") / done >= 0.94:
            break
    return {cell: count / done for cell, count in covered.items()}


def check_coverage(found, what):
    for cell, share in found.items():
        print(f"{what} {cell}: {share:.4f}")
    low = {cell: share for cell, share in found.items() if share < 0.92 and cell[1] != "target"}
    assert not low, f"{what}: {low}"


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 2.0])
@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("rates", TRUTHS)
def test_intervals_cover_the_truth(rates, dependent, gap):
    rng = np.random.default_rng(11)
    pool = pool_of_rates(rng, rates, dependent, gap)
    for n in (50, 200, 1000, 5000):
        what = f"rates {rates}, {'dependent' if dependent else 'independent'}, confidence gap {gap}, n {n}"
        check_coverage(coverage(pool, rng, n), what)
    check_coverage(coverage(pool, rng, 200, sets=2), what.replace("5000", "2 x 200"))


@pytest.mark.slow
@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("rates", TRUTHS)
def test_intervals_of_classes_cover_the_truth(rates, dependent):
    """Each class is one sample, so that a table of 10 000 classes is as many draws."""
    rng = np.random.default_rng(13)
    pool = pool_of_rates(rng, rates, dependent, 0.0)
    truth = mem.summarize([pool], 1).score.value
    for n in (10, 20, 50, 200):
        labels = np.repeat(np.arange(10_000), n)
        rows = rng.integers(0, POOL, len(labels))
        rights = (model.correct(pool.labels, 1)[rows] for model in (pool.target, pool.reference))
        attack = mem.DirectedAttack(*(predictions_of(right, np.zeros(len(rows)), labels) for right in rights), labels)
        score = mem.summarize_classes([attack], 1, 10_000).score
        share = ((score.low - 1e-12 <= truth) & (truth <= score.high + 1e-12)).mean()
        print(f"class of {n}, rates {rates}, {'dependent' if dependent else 'independent'}: {share:.4f}")
        assert share >= 0.92
