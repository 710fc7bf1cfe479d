"""Membership and agreement of runs, against planted truth."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from dejavu_utils.analysis.membership import (
    auc,
    margin_scores,
    membership,
    roc_curve,
    roc_table,
    true_positive_rate,
)
from dejavu_utils.analysis.memorization import DirectedAttack, Predictions
from dejavu_utils.analysis.runs import above_chance, cohens_kappa
from dejavu_utils.label_free.output import member_scores


def test_auc_is_mann_whitney_s_and_swapping_gives_one_minus_it():
    rng = np.random.default_rng(0)
    members, others = np.round(rng.normal(0.5, 1, 300), 1), np.round(rng.normal(0, 1, 400), 1)  # with ties
    value = auc(members, others)
    assert value.value == pytest.approx(mannwhitneyu(members, others).statistic / (300 * 400))
    swapped = auc(others, members)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((1 - value.value, 1 - value.high, 1 - value.low))
    false, true = roc_curve(members, others)
    assert np.trapezoid(true, false) == pytest.approx(value.value)


@pytest.mark.parametrize("apart, truth", [(1, 0.7602499389065233), (0, 0.5)])  # Phi(apart / sqrt 2) of two normals
def test_delong_s_interval_covers_the_truth(apart, truth):
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        estimate = auc(rng.normal(apart, 1, 80), rng.normal(0, 1, 120))
        covered += estimate.low <= truth <= estimate.high
    assert 0.925 * 400 <= covered <= 0.98 * 400


def test_the_same_scores_are_one_half():
    scores = np.random.default_rng(2).normal(size=2000)
    found = membership(scores, scores)
    assert found.auc.value == pytest.approx(0.5) and found.auc.low < 0.5 < found.auc.high
    assert found.tpr_at_1_percent.value == 0.01 and found.tpr_at_01_percent.value == 0.001


def test_the_threshold_comes_from_the_non_members():
    members, others = np.full(50, 2.0), np.arange(1000) / 1000
    rate = true_positive_rate(members, others, 0.001)
    assert rate.value == 1 and rate.high == 1 and rate.low == pytest.approx(0.025 ** (1 / 50))  # Clopper & Pearson
    assert true_positive_rate(members, others[:999], 0.001) is None
    with pytest.raises(ValueError, match="both needed"):
        auc(members, np.empty(0))


def test_agreement_of_the_same_run_and_of_independent_ones():
    rng = np.random.default_rng(3)
    first, second = rng.random(4000) < 0.3, rng.random(4000) < 0.25
    assert cohens_kappa(first, first) == 1 and abs(cohens_kappa(first, second)) < 0.05
    assert above_chance(first, first).value == pytest.approx(1 - first.mean())
    apart = above_chance(first, second)
    assert apart.low < 0 < apart.high and apart.value == pytest.approx(second[first].mean() - second.mean())


def test_votes_tell_members_of_a_model_that_memorizes():
    rng, labels = np.random.default_rng(4), np.zeros(1500, dtype=int)

    def attack(memorized):
        shares = rng.random((2, 1500))
        shares[0, : int(memorized * 1500)] += 1
        target, reference = (Predictions(labels[:, None], share, share) for share in shares)
        return DirectedAttack(target, reference, labels)

    found = membership(*margin_scores([attack(0.4), attack(0.4)]))
    assert found.auc.low > 0.6 and found.tpr_at_1_percent.low > 0.01 and found.tpr_at_01_percent is not None
    nothing = membership(*margin_scores([attack(0), attack(0)]))
    assert nothing.auc.low < 0.5 < nothing.auc.high
    without_votes = DirectedAttack(Predictions(labels[:, None], labels), Predictions(labels[:, None], labels), labels)
    assert margin_scores([without_votes] * 2) is None


def test_distances_of_one_model_and_of_twins():
    rng = np.random.default_rng(5)

    def table(gain):
        target, reference = rng.normal(1 - gain, 0.2, 400), rng.normal(1, 0.2, 400)
        columns = {"projector_target": target, "projector_reference": reference}
        return pd.DataFrame({**columns, "projector_sslmem": reference - target})

    tables = {"A": table(0.2), "B": table(0.2), "public": table(0), "unseen": table(0)}
    scores = member_scores(tables, "projector")
    found = {name: membership(*pair) for name, pair in scores.items()}
    assert all(found[name].auc.low > 0.6 for name in ("model A", "model B", "twins"))
    assert found["public against unseen"].auc.low < 0.5 < found["public against unseen"].auc.high
    assert found["twins"].tpr_at_01_percent is None  # fewer than 1000 non-members
    swapped = member_scores({"A": tables["B"], "B": tables["A"]}, "projector")
    assert membership(*swapped["model A"]).auc.value == found["model B"].auc.value
    table_of_curves = roc_table(scores)
    assert table_of_curves["score"].nunique() == 4 and table_of_curves.iloc[0, 1:].tolist() == [0, 0]
