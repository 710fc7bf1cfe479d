"""The sentences under an attack's figures, from figures as results.json holds them."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.intervals import Estimate, holm, p_value, proportion
from dejavu_utils.analysis.report import (
    CONCLUSIONS,
    WARNINGS,
    Evidence,
    branch_table,
    conclusion,
    conclusion_of_rows,
    figure_in_words,
    header_lines,
    memorized_by_chance,
    points,
    statistical_warnings,
    verdict,
)
from dejavu_utils.analysis.results_json import (
    AttackResults,
    LevelResults,
    NearCopies,
    OneModelResults,
    SetResults,
    TopAccuracies,
    TopResults,
)
from dejavu_utils.typed_json import from_json, to_json


def estimate(value, half=0.03):
    return Estimate(value, value - half, value + half)


NOTHING = Estimate(np.nan, np.nan, np.nan)


def results_of(target, reference, chance=0.2, by_set=None, half=0.03, ceiling=None, margin=None, **others):
    """by_set: {set: score}, else that of both. ceiling: its value; its interval is 0.03 to either side."""
    results = {}
    for name in ("both", "A", "B"):
        score = target - reference if by_set is None or name == "both" else by_set[name]
        figures = {
            "target": estimate(target),
            "reference": estimate(reference),
            "score": estimate(score, half),
            "chance": chance,
        }
        shares = {"memorized": estimate(0.3), "misrepresented": estimate(0.1)}
        results[name] = {
            "n": 400 if name == "both" else 200,
            "top_1": {"accuracy": {"100": figures}, "shares": shares},
        }
    if margin is not None:
        results["both"]["vote_share"] = {"margin": margin}
    if ceiling is not None:
        results["ceiling"] = {model: {"top_1": estimate(ceiling), "top_5": estimate(1)} for model in "AB"}
    results.update(others)
    return with_warnings(from_json(AttackResults, to_json(results)))


def with_warnings(results):
    return replace(results, warnings=statistical_warnings(results))


def of_one_model(score, delta, **changes):
    results = results_of(0.4, 0.2, **changes)
    free = score if delta is None else score - delta
    for name in ("both", "A", "B"):
        figures = results.of(name).one_model = OneModelResults(estimate(score), margin=estimate(score))
        if delta is not None:
            figures.delta = estimate(delta)
            figures.score_minus_delta = figures.margin_minus_delta = estimate(free)
    return with_warnings(results)


def text_of(*arguments, **changes):
    return " ".join(verdict(results_of(*arguments, **changes)))


# What leads to each branch, and words of its sentence.
REACHED = {
    "not interpretable": (
        results_of(0.266, 0.2, ceiling=0.201),
        "not interpretable: the ceiling, k-NN accuracy on whole public images, is 20.1 % [17.1, 23.1], not above",
    ),
    "no control": (of_one_model(0.2, None), "undecided: a model and classifiers also differ"),
    "disagreement": (
        results_of(0.266, 0.2, margin=estimate(0.007, 0.008)),
        "undecided: déjà vu score 6.6 percentage points [3.6, 9.6] and margin of votes 0.70 percentage points",
    ),
    "memorization": (
        results_of(0.487, 0.216, ceiling=0.99, margin=estimate(0.2)),
        "Significant memorization detected with 400 images: déjà vu score 27.1 percentage points [24.1, 30.1].",
    ),
    "below 0": (
        results_of(0.2, 0.4),
        "below 0 (déjà vu score -20.0 percentage points [-23.0, -17.0]): are the models or",
    ),
    "no room": (results_of(0.2, 0.2, half=0.3, ceiling=0.4), "not interpretable: the ceiling, 40.0 % [37.0, 43.0], is"),
    "no memorization": (
        results_of(0.22, 0.21, ceiling=0.9),
        "No significant memorization detected with 400 images: déjà vu score 1.0 percentage points [-2.0, 4.0].",
    ),
}
WARNED = {
    "reference below chance": (
        results_of(0.216, 0.15),
        "the reference accuracy, 15.0 % [12.0, 18.0], is below the chance level of 20.0 %",
    ),
    "sets differ": (
        results_of(0.33, 0.2, by_set={"A": 0.25, "B": 0.01}),
        "set A, 25.0 percentage points [22.0, 28.0], and set B, 1.0 percentage points [-2.0, 4.0], differ by 24.0",
    ),
    "baseline differs": (of_one_model(0.2, 0.1), "it differs from the classifiers, too, by 10.0 percentage points"),
    "reference near the ceiling": (results_of(0.96, 0.89, ceiling=0.99), "little room is left for a score. Do the"),
    "ceiling below the probe": (
        results_of(0.231, 0.2, ceiling=0.3, probe_accuracy=0.8),
        "is far below the accuracy of training's linear probe, 80.0 %: are images shown to the model as in training",
    ),
}


@pytest.mark.parametrize("branch", CONCLUSIONS, ids=lambda branch: branch.name)
def test_every_conclusion_is_reached(branch):
    results, words = REACHED[branch.name]
    name, sentence = conclusion(results)
    assert name == branch.name and words in sentence
    assert verdict(results)[-1] == sentence  # right to someone who reads only the last line
    assert f"| {branch.name} | {branch.condition} | {branch.sentence} |" in branch_table()


@pytest.mark.parametrize("branch", WARNINGS, ids=lambda branch: branch.name)
def test_every_warning_is_reached_and_absent_elsewhere(branch):
    results, words = WARNED[branch.name]
    assert any(words in text for text in results.warnings)
    assert any(text.startswith("warning: ") and words in text for text in verdict(results))
    assert f"| warning: {branch.name} |" in branch_table()
    assert results_of(0.487, 0.216, ceiling=0.99, margin=estimate(0.2), probe_accuracy=0.97).warnings == []


def test_a_page_begins_with_models_layer_neighbors_and_score():
    record = {"models": {"A": {"arch": "resnet18", "epoch": 600}, "B": {"arch": None, "epoch": None}}}
    settings = {"layer": "projector", "k": 100, "k_attk": 50}
    lines = header_lines(replace(results_of(0.487, 0.216), made_from=record, settings=settings))
    assert lines[0] == "Model A: resnet18, epoch 600." and "Model B" not in " ".join(lines)
    assert lines[1] == "projector, k = 50 neighbors vote; 400 attacked images."
    assert "Significant memorization" in lines[2] and "27.1 percentage points [24.1, 30.1]" in lines[2]
    assert len(lines) == 3  # the score once
    blind = header_lines(results_of(0.487, 0.216, ceiling=0.2))
    assert blind[-2].startswith("Déjà vu score 27.1 ") and blind[-1].startswith("not interpretable")


def test_verdict_in_the_field_s_words():
    text = text_of(0.487, 0.216, ceiling=0.99)
    assert (
        "Target accuracy 48.7 %, reference accuracy 21.6 %: déjà vu score 27.1 percentage points [24.1, 30.1]." in text
    )
    assert "Chance level of the same predictions (permuted labels): 20.0 %." in text
    assert "Ceiling (k-NN accuracy on whole, uncropped images): 99.0 % [96.0, 102.0]." in text
    assert "Of 400 images 120 are called memorized; about 40 of them are expected by chance" in text
    assert "is reliable as a population estimate; it does not identify individual images." in text
    assert "warning" not in text
    assert "eiling" not in text_of(0.22, 0.21)  # nothing is known of it
    of_logits = replace(results_of(0.487, 0.216, ceiling=0.99), settings={"layer": "logits"})
    assert "Ceiling (the classifier's accuracy on whole, uncropped images): 99.0 %" in "\n".join(verdict(of_logits))


def test_one_set_above_0_and_the_other_not_is_no_difference():
    results = results_of(0.33, 0.2, by_set={"A": 0.04, "B": 0.02})  # only A's interval is above 0
    assert results.warnings == []


def test_a_low_ceiling_far_above_chance_is_no_lack_of_room():
    figures = results_of(0.012, 0.002, chance=0.001, half=0.002)
    figures.ceiling = {model: TopAccuracies(estimate(0.05, 0.004), estimate(1)) for model in "AB"}
    accuracies = figures.both.top_1.accuracy["100"]
    accuracies.target, accuracies.reference = estimate(0.012, 0.001), estimate(0.002, 0.001)
    text = " ".join(verdict(figures))
    assert "Significant memorization" in text and "not interpretable" not in text
    assert "Ceiling (k-NN accuracy on whole, uncropped images): 5.00 % [4.60, 5.40]." in text


@pytest.mark.parametrize(
    "value, half, text",
    [
        (0.4, 0.05, "0.400 [0.350, 0.450]"),
        (0.00123, 0.00043, "0.00123 [0.00080, 0.00166]"),
        (-0.0001, 0.0012, "-0.0001 [-0.0013, 0.0011]"),
        (-0.00000001, 0.02, "0.000 [-0.020, 0.020]"),
    ],
)
def test_digits_follow_the_interval(value, half, text):
    assert figure_in_words(estimate(value, half)) == text
    assert "-0.0 percentage" not in points(estimate(value, half))


def test_a_set_of_near_copies_alone_has_no_score_without_them():
    results = results_of(0.4, 0.2)
    without = SetResults(200, TopResults({"100": LevelResults(NOTHING, NOTHING, NOTHING)}))
    results.near_copies = NearCopies(200, 0, without)
    (text,) = statistical_warnings(results)
    assert text.startswith("200 of the 400 attacked images have a near-copy") and text.endswith("no score without them")


def test_no_image_no_verdict():
    results = copy.deepcopy(results_of(0.4, 0.2))
    for name in ("both", "B"):
        results.of(name).top_1.accuracy["100"].score = NOTHING
    assert statistical_warnings(results) == []
    assert verdict(results) == ["No image of one of the sets was attacked: there is no score."]
    assert conclusion(results)[0] == "no score"


@pytest.mark.parametrize(
    "memorized, misrepresented, text",
    [
        (0, 3, "None of 50 images is called memorized."),
        (1, 0, "Of 50 images 1 is called memorized; about 0 of them"),
        (9, 9, "Of 50 images 9 are called memorized; as many are expected by chance, since 9 are misrepresented."),
    ],
)
def test_memorized_by_chance(memorized, misrepresented, text):
    assert memorized_by_chance(memorized, misrepresented, 50).startswith(text)


def test_p_values_and_holm():
    assert p_value(estimate(0.03, 0.03)) == pytest.approx(0.05) and p_value(estimate(0.0)) == 1
    assert holm([0.04, 0.001, 0.02]) == [True, True, True] and holm([0.03, 0.001, 0.03]) == [False, True, False]
    assert holm([]) == []


def test_several_rows_are_concluded_at_once():
    rows = [(f"row {number}", Evidence.of(results_of(0.232, 0.2, half=0.031))) for number in range(8)]
    assert conclusion_of_rows(rows[:1]) == "Significant memorization in 1 of 1 rows: row 0."
    text = conclusion_of_rows(rows)  # each alone is significant, eight of which are looked at
    assert text == "No significant memorization in any of 8 rows (simultaneous over 8 rows, Holm)."
    rows[3] = ("plain", Evidence.of(results_of(0.4, 0.2, ceiling=0.9)))
    rows[5] = ("blind", Evidence.of(results_of(0.4, 0.2, ceiling=0.2)))
    rows[6] = ("swapped", Evidence.of(results_of(0.2, 0.4)))
    text = conclusion_of_rows(rows)
    assert text.startswith(
        "Significant memorization in 1 of 7 rows: plain; score below 0 in swapped; not interpretable"
    )
    assert "blind (simultaneous over 7 rows, Holm)" in text


CLASSES, VOTES = 5, 20


def figures_of(attacks):
    """As tables.set_statistics, of all examples and the first prediction alone."""
    summary = mem.summarize(attacks, 1)
    level = LevelResults(summary.target, summary.reference, summary.score, summary.chance)
    n, shares = sum(len(attack.labels) for attack in attacks), vars(mem.summarize_votes(attacks))
    return SetResults(n, TopResults({"100": level}), vote_share=shares)


def simulated(rng, sizes, memorized, separates):
    """results.json's figures of an attack whose truth is known.

    memorized: chance that the target's votes lean to an image's class without cause in the background. separates:
    fraction of whole public images whose votes lean to their class, beyond chance.
    """
    attacks = []
    for n in sizes:
        labels = rng.integers(0, CLASSES, n)
        models = {}
        for model, knows in (("target", memorized), ("reference", 0.0)):
            leaning = np.where(rng.random(n) < knows, labels, rng.integers(0, CLASSES, n))
            follows = rng.random((n, VOTES)) < 0.4
            voters = np.where(follows, leaning[:, None], rng.integers(0, CLASSES, (n, VOTES)))
            models[model] = mem.predict_from_neighbors(voters, 0, labels)
        attacks.append(mem.DirectedAttack(models["target"], models["reference"], labels))
    results = AttackResults(*(figures_of(chosen) for chosen in (attacks, attacks[:1], attacks[1:])))
    hits = rng.binomial(600, 1 / CLASSES + separates * (1 - 1 / CLASSES), 2)
    for model, count in zip("AB", hits):
        top = proportion(count, 600)
        results.ceiling[model] = TopAccuracies(top, top)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("looked_at", [1, 2, 8])
@pytest.mark.parametrize("sizes", [(225, 225), (100, 400)])
@pytest.mark.parametrize("separates", [0.0, 0.6])
def test_the_concluding_sentence_is_true_in_95_of_100_runs(sizes, separates, looked_at):
    """Score 0: at most 5 % of runs claim anything; score 0.2: at least 95 % say memorization, where it can be read."""
    rng = np.random.default_rng(int(1000 * separates) + looked_at + sizes[0])
    for memorized, runs in ((0.0, 300), (0.25, 60)):
        claims, named = 0, 0
        for _ in range(runs):
            rows = []
            for number in range(looked_at):
                results = simulated(rng, sizes, memorized, separates)
                rows.append((f"row {number}", Evidence.of(results)))
            text = conclusion_of_rows(rows) if looked_at > 1 else conclusion(results)[1]
            named += (
                f"Significant memorization in {looked_at} of" in text or "Significant memorization detected" in text
            )
            claims += "Significant memorization" in text or "below 0" in text
        print(
            f"sizes {sizes}, ceiling {separates}, {looked_at} points, {memorized}: {claims} claims, {named} of {runs}"
        )
        if memorized and separates:
            assert named >= 0.95 * runs
        elif not memorized:
            assert claims <= 0.05 * runs
        elif looked_at == 1:  # the representations do not separate the classes: nothing is concluded
            assert claims <= 0.05 * runs


@pytest.mark.slow
@pytest.mark.parametrize("memorized", [0.0, 0.25])
def test_equal_sets_are_called_different_in_5_of_100_runs(memorized):
    rng, runs, alarms = np.random.default_rng(7), 600, 0
    for _ in range(runs):
        warnings = statistical_warnings(simulated(rng, (225, 225), memorized, 0.6))
        alarms += any("differ by" in text for text in warnings)
    print(f"false alarms {alarms} of {runs}")
    assert alarms <= 0.05 * runs + 2 * np.sqrt(0.05 * 0.95 * runs)
