import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from dejavu_utils.analysis import memorization as mem

DATA = Path(__file__).parent / "data"
TRACES = json.loads((DATA / "attack_traces.json").read_text())
FOLDER = DATA / "attack" / "NN_attk_vicreg_300pc_50ep"


def load_direction(target, attacked):
    """The published neighbor files of one attacked set; rows of the two models are in different orders."""
    reference = {"A": "B", "B": "A"}[target]
    idxs = {m: np.load(FOLDER / f"{m}_attk_{attacked}_attk_idxs.npy") for m in "AB"}
    rows = dict(zip((target, reference), mem.align_rows(idxs[target], idxs[reference])))
    predictions = {
        m: mem.predict_from_neighbors(np.load(FOLDER / f"{m}_attk_{attacked}_neighb_labels.npy")[rows[m]]) for m in "AB"
    }
    labels = np.load(FOLDER / f"{target}_attk_{attacked}_labels.npy").ravel()[rows[target]]
    return mem.DirectedAttack(predictions[target], predictions[reference], labels)


@pytest.mark.parametrize("attacked", ["A", "B"])
@pytest.mark.parametrize("top_k", [1, 5])
def test_published_statistics(attacked, top_k):
    attack = load_direction(attacked, attacked)
    by_model = {attacked: attack.target, {"A": "B", "B": "A"}[attacked]: attack.reference}
    for model, predictions in by_model.items():
        for pct in (5.0, 20.0, 100.0):
            accuracy = mem.accuracy_sweep(predictions, attack.labels, top_k, [pct / 100])[0]
            assert accuracy == pytest.approx(
                TRACES[f"{model}_attk_{attacked}_top{top_k}_{pct}conf_300pc"][0], abs=1e-12
            )
    right = {m: p.right(attack.labels, top_k) for m, p in by_model.items()}
    for a in (True, False):
        for b in (True, False):
            name = f"{'yes' if a else 'no'}_A_{'yes' if b else 'no'}_B_attk_{attacked}_top{top_k}_300pc"
            assert ((right["A"] == a) & (right["B"] == b)).mean() == pytest.approx(TRACES[name][0], abs=1e-12)


def test_score_is_memorized_minus_misrepresented():
    for top_k in (1, 5):
        summary = mem.summarize([load_direction("A", "A"), load_direction("B", "B")], top_k)
        difference = summary["memorized"]["value"] - summary["misrepresented"]["value"]
        assert summary["score"]["value"] == pytest.approx(difference, abs=1e-12)
        assert sum(summary[s]["value"] for s in mem.SHARES) == pytest.approx(1, abs=1e-12)


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
            assert confidence == pytest.approx(entropy, abs=1e-12)


def test_only_the_first_k_attk_neighbors_vote():
    labels = np.array([[3, 3, 1, 1, 1]])
    assert mem.predict_from_neighbors(labels, 2).top[0, 0] == 3
    assert mem.predict_from_neighbors(labels).top[0, 0] == 1
    with pytest.raises(ValueError, match="6"):
        mem.predict_from_neighbors(labels, 6)


def test_absent_classes_are_never_predicted():
    predictions = mem.predict_from_neighbors(np.array([[2, 2, 2, 7, 7]]))
    assert predictions.top.tolist() == [[2, 7, -1, -1, -1]]
    assert not predictions.right(np.array([0]), 5)[0]


def test_scores_take_the_place_of_neighbors():
    predictions = mem.predict_from_scores(np.array([[0.1, 2.0, -1.0], [5.0, 0.0, 5.0]]))
    assert predictions.top[:, :3].tolist() == [[1, 0, 2], [0, 2, 1]]
    assert predictions.confidence.tolist() == [2.0, 5.0]


def test_top_p_takes_int_p_n_examples():
    assert list(mem.most_confident(np.array([0.1, 0.9, 0.5, 0.9]), 0.6)) == [1, 3]


def test_alignment_refuses_other_images():
    rows = mem.align_rows(np.array([5, 2, 9]), np.array([9, 5, 2]))
    assert rows[0].tolist() == [1, 0, 2] and rows[1].tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="same images"):
        mem.align_rows(np.array([1, 2]), np.array([1, 3]))
    with pytest.raises(ValueError, match="twice"):
        mem.align_rows(np.array([1, 1]), np.array([1, 1]))


def planted_attack(rng, n, classes, memorized, correlated, k=50):
    """Neighbor labels of a target that knows memorized + correlated of the labels and a reference that knows the
    correlated ones; on all other examples both vote uniformly over the wrong classes."""
    labels = rng.integers(0, classes, n)
    kind = rng.choice(3, n, p=[memorized, correlated, 1 - memorized - correlated])
    neighbors = {}
    for model, known in (("target", kind < 2), ("reference", kind == 1)):
        wrong = (labels[:, None] + rng.integers(1, classes, (n, 1))) % classes
        votes = np.where(known[:, None], labels[:, None], wrong) * np.ones((1, k), dtype=np.int64)
        noise = rng.random((n, k)) < 0.3
        neighbors[model] = np.where(noise, rng.integers(0, classes, (n, k)), votes)
    target, reference = (mem.predict_from_neighbors(neighbors[m]) for m in ("target", "reference"))
    return mem.DirectedAttack(target, reference, labels)


@pytest.mark.parametrize("memorized, correlated", [(0.3, 0.2), (0.0, 0.4), (0.1, 0.0), (0.0, 0.0)])
def test_planted_rates_are_measured(memorized, correlated):
    rng = np.random.default_rng(1)
    summary = mem.summarize([planted_attack(rng, 4000, 20, memorized, correlated) for _ in range(2)], 1)
    for name, truth in (("score", memorized), ("memorized", memorized), ("correlated", correlated)):
        estimate = summary[name]
        assert abs(estimate["value"] - truth) < 0.02
        assert estimate["low"] - 1e-9 <= estimate["value"] <= estimate["high"] + 1e-9


def test_random_neighbors_are_at_chance():
    rng = np.random.default_rng(2)
    attacks = [
        mem.DirectedAttack(
            mem.predict_from_neighbors(rng.integers(0, 10, (5000, 30))),
            mem.predict_from_neighbors(rng.integers(0, 10, (5000, 30))),
            rng.integers(0, 10, 5000),
        )
        for _ in range(2)
    ]
    summary = mem.summarize(attacks, 1, 20)
    assert abs(summary["target"]["value"] - 0.1) < 0.02 and abs(summary["reference"]["value"] - 0.1) < 0.02
    assert summary["score"]["low"] < 0 < summary["score"]["high"]


def test_wilson_interval_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert mem.wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_empty_selection_gives_no_figure_and_no_failure():
    attack = planted_attack(np.random.default_rng(3), 4, 3, 0.5, 0.1)
    summary = mem.summarize([attack], 1, pct_confidence=5)
    assert np.isnan(summary["target"]["value"])


# Coverage of the intervals: examples whose truth is known also among the most confident.


def draw_population(rng, n, shares, gap):
    """n examples of a population with these four shares, in which a right guess is more confident: the confidence of
    wrong ones is normal with mean 0, that of right ones with mean `gap`, both with deviation 1."""
    kind = rng.choice(4, n, p=shares)
    labels = rng.integers(0, 10, n)
    predictions = []
    for right in (kind < 2, (kind == 1) | (kind == 2)):
        top = np.full((n, 5), -1)
        top[:, 0] = np.where(right, labels, (labels + 1) % 10)
        predictions.append(mem.Predictions(top, rng.normal(size=n) + gap * right))
    return mem.DirectedAttack(*predictions, labels)


def population_accuracy(accuracy, gap, fraction):
    """Accuracy among the most confident `fraction` of that population, by bisection for their least confidence."""
    if fraction == 1:
        return accuracy
    normal, low, high = NormalDist(), -10.0, 10.0
    for _ in range(60):
        edge = (low + high) / 2
        right, wrong = accuracy * normal.cdf(gap - edge), (1 - accuracy) * normal.cdf(-edge)
        low, high = (edge, high) if right + wrong > fraction else (low, edge)
    return right / (right + wrong)


def test_the_edge_of_the_most_confident_is_in_the_intervals():
    """A target whose accuracy falls steeply with its confidence: bare Wilson intervals are too short for that."""
    attack = draw_population(np.random.default_rng(0), 3000, (0.3, 0.2, 0.1, 0.4), 2)
    hits = attack.target.right(attack.labels, 1)
    summary = mem.summarize([attack], 1, 20)["target"]
    low, high = mem.wilson_interval(hits[mem.most_confident(attack.target.confidence, 0.2)].sum(), 600)
    assert summary["low"] < low < summary["value"] < high < summary["high"]
    everything = mem.summarize([attack], 1)["target"]
    assert (everything["low"], everything["high"]) == pytest.approx(mem.wilson_interval(hits.sum(), 3000), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("gap, pct_confidence", [(0.0, 20), (1.0, 20), (2.0, 20), (0.0, 100)])
def test_intervals_cover_the_truth(gap, sets, pct_confidence):
    shares, draws, n = (0.3, 0.2, 0.1, 0.4), 1000, 1000
    target, reference = (population_accuracy(a, gap, pct_confidence / 100) for a in (0.5, 0.3))
    truths = {"target": target, "reference": reference, "score": target - reference}
    if pct_confidence == 100:
        truths |= dict(zip(mem.SHARES, shares))
    rng = np.random.default_rng(11)
    covered = dict.fromkeys(truths, 0)
    for _ in range(draws):
        attacks = [draw_population(rng, n, shares, gap) for _ in range(sets)]
        summary = mem.summarize(attacks, 1, pct_confidence)
        for name, truth in truths.items():
            covered[name] += summary[name]["low"] <= truth <= summary[name]["high"]
    coverage = {name: count / draws for name, count in covered.items()}
    print(f"confidence gap {gap}, {sets} sets, {pct_confidence} %: {coverage}")
    assert all(0.92 <= share <= 0.98 for share in coverage.values()), coverage
