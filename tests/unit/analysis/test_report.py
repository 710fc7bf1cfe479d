"""The sentences under an attack's figures, from figures as results.json holds them."""

import copy

import pytest

from dejavu_utils.analysis.report import memorized_by_chance, statistical_warnings, verdict


def estimate(value, half=0.03):
    return {"value": value, "low": value - half, "high": value + half}


def results_of(target, reference, chance=0.2, by_set=None, half=0.03, ceiling=None, warnings=()):
    """by_set: {set: score}, else that of both."""
    found = {}
    for name in ("both", "A", "B"):
        score = target - reference if by_set is None or name == "both" else by_set[name]
        figures = {
            "target": estimate(target),
            "reference": estimate(reference),
            "score": estimate(score, half),
            "chance": chance,
        }
        shares = {"memorized": estimate(0.3), "misrepresented": estimate(0.1)}
        found[name] = {
            "n": 400 if name == "both" else 200,
            "top_1": {"accuracy": {"100": figures}, "shares": shares},
        }
    if ceiling is not None:
        found["ceiling"] = {model: {"top_1": estimate(ceiling), "top_5": estimate(1)} for model in "AB"}
    return {**found, "warnings": [*statistical_warnings(found), *warnings]}


def text_of(*arguments, **changes):
    return " ".join(verdict(results_of(*arguments, **changes)))


def test_a_score_above_zero_is_memorized_in_percentage_points():
    text = text_of(0.487, 0.216, ceiling=0.99)
    assert "48.7 % of the images it was trained on and of 21.6 %" in text
    assert "27.1 percentage points [24.1, 30.1] more: so much is memorized" in text
    assert "these guesses would name 20.0 % by chance" in text and "whole public images, is 99.0 %." in text
    assert "Of 400 images 120 are called memorized; about 40 of them are expected by chance" in text
    assert "warning" not in text and "more images" not in text


def test_a_score_about_zero_makes_no_difference_that_could_be_shown():
    text = text_of(0.22, 0.21)
    assert "no difference that these 400 images could show: 1.0 percentage points [-2.0, 4.0]" in text
    assert "eiling" not in text  # nothing is known of it


def test_a_score_below_zero_is_a_mistake():
    text = text_of(0.2, 0.4)
    assert "look for a mistake" in text and "warning: the score is below 0" in text and "swapped?" in text


def test_one_direction_alone_is_a_warning():
    text = text_of(0.33, 0.2, by_set={"A": 0.25, "B": 0.01})
    assert "warning: the score is above 0 on set A (25.0 percentage points [22.0, 28.0]), not on set B" in text
    assert "warning" not in text_of(0.33, 0.2, by_set={"A": 0.25, "B": 0.1})


def test_without_room_below_the_ceiling_a_score_says_little():
    text = text_of(0.2, 0.2, ceiling=0.21)
    assert "is 21.0 %: these representations hardly tell the classes, so that a score near 0 says nothing" in text
    text = text_of(0.35, 0.2, ceiling=0.23)
    assert "hardly tell the classes." in text and "says nothing" not in text
    text = text_of(0.2, 0.2, half=0.3, ceiling=0.4)  # too few images for so little room
    assert "says nothing about memory" in text
    text = text_of(0.96, 0.89, ceiling=0.99)
    assert "little room is left to see memory. Do the crops show only background?" in text
    assert "room" not in text_of(0.4, 0.2, ceiling=0.99)


def test_warnings_of_others_are_repeated():
    assert verdict(results_of(0.4, 0.2, warnings=["model B is untrained"]))[-1] == "warning: model B is untrained"


def test_a_set_of_near_copies_alone_has_no_score_without_them():
    results = results_of(0.4, 0.2)
    nothing = {"value": None, "low": None, "high": None}
    results["near_copies"] = {"A": 200, "B": 0, "without": {"n": 200}}
    results["near_copies"]["without"]["top_1"] = {"accuracy": {"100": {"score": nothing}}}
    (text,) = statistical_warnings(results)
    assert text.startswith("200 of the 400 attacked images have a near-copy") and text.endswith("no score without them")


def test_no_image_no_verdict():
    results = copy.deepcopy(results_of(0.4, 0.2))
    for part in ("value", "low", "high"):
        for name in ("both", "B"):
            results[name]["top_1"]["accuracy"]["100"]["score"][part] = None
    assert statistical_warnings(results) == []
    assert verdict(results) == ["No image of one of the sets was attacked: there is no score."]


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
