"""What the figures of an attack say, in sentences: the score, and what could make it mean less than it seems."""

from dejavu_utils.analysis.attack_files import mean_ceiling
from dejavu_utils.analysis.one_model import verdict_in_words

LITTLE = 0.05  # of accuracy: less room than this above chance cannot show memory
MOST = 0.8  # of the way from chance to the ceiling: a reference beyond this leaves little to see


def statistical_warnings(results: dict) -> list[str]:
    """Sentences on scores that contradict what the test expects, for results["warnings"]; a list, empty if none.

    results: as in results.json, from results.attack_statistics.
    """
    found = _near_copies(results)
    if "one_model" in results["both"]:
        return found  # its verdict weighs the score against that of images the model never saw
    scores = {name: results[name]["top_1"]["accuracy"]["100"]["score"] for name in ("both", "A", "B")}
    if any(score["value"] is None for score in scores.values()):
        return found
    if scores["both"]["high"] < 0:
        found.append("the score is below 0: are the models or the index files of A and B swapped?")
    above = [name for name in "AB" if scores[name]["low"] > 0]
    if len(above) == 1:
        (other,) = set("AB") - set(above)
        found.append(
            f"the score is above 0 on set {above[0]} ({_points(scores[above[0]])}), not on set {other} "
            f"({_points(scores[other])}): were the two models trained the same way?"
        )
    return found


def _near_copies(results):
    """A warning where more than 1 % of the images have a near-copy that the reference has seen, or that is public."""
    copies, n = results.get("near_copies", {}), results["both"]["n"]
    count = copies.get("A", 0) + copies.get("B", 0)
    if count <= n / 100:
        return []
    score = copies["without"]["top_1"]["accuracy"]["100"]["score"]
    without = "all of one set have, so that there is no score without them"
    if score["value"] is not None:
        without = f"without them the score is {_points(score)}"
    return [
        f"{count} of the {n} attacked images have a near-copy among those that the reference was trained on, or among "
        f"the public ones: {without}"
    ]


def verdict(results: dict) -> list[str]:
    """The score of all examples in words, what it can and cannot tell, and the warnings; a list of sentences.

    results: as in results.json: "both", "A", "B" from results.attack_statistics; if there, "ceiling", of both models,
    and "warnings", a list of texts.
    """
    figures = results["both"]["top_1"]["accuracy"]["100"]
    if figures["score"]["value"] is None:
        return ["No image of one of the sets was attacked: there is no score."]
    of_one_model = results["both"].get("one_model")
    words = [_score_in_words(figures, results["both"]["n"])]
    return [
        *(verdict_in_words(figures, of_one_model) if of_one_model else words),
        *_by_chance(results),
        *_room(figures, results.get("ceiling")),
        *(f"warning: {text}" for text in results.get("warnings", ())),
    ]


def memorized_by_chance(memorized: int, misrepresented: int, total: int) -> str:
    """How many of those that are called memorized are to be expected by chance, in words. Counts of images."""
    if not memorized:
        return f"None of {total} images is called memorized."
    called = f"Of {total} images {memorized} {'is' if memorized == 1 else 'are'} called memorized;"
    if misrepresented >= memorized:
        return f"{called} as many are expected by chance, since {misrepresented} are misrepresented."
    return (
        f"{called} about {misrepresented} of them are expected by chance, as many as are misrepresented: memorized is "
        "a fraction of this population before it is a label of an image."
    )


def _score_in_words(figures, n):
    score, target, reference = (figures[name] for name in ("score", "target", "reference"))
    if score["low"] > 0:
        return (
            f"A model names the object of {_per_cent(target)} of the images it was trained on and of "
            f"{_per_cent(reference)} of those it was not, {_points(score)} more: so much is memorized."
        )
    if score["high"] < 0:
        return (
            "The model that was not trained on an image names its object more often, the score is "
            f"{_points(score)}: look for a mistake."
        )
    return (
        f"Whether a model was trained on an image makes no difference that these {n} images could show: "
        f"{_points(score)}."
    )


def _by_chance(results):
    counts = {
        share: sum(round(results[name]["n"] * results[name]["top_1"]["shares"][share]["value"]) for name in "AB")
        for share in ("memorized", "misrepresented")
    }
    return [memorized_by_chance(**counts, total=results["both"]["n"])]


def _room(figures, ceiling):
    """On chance and, if it is known, the ceiling: is there room for memory to be seen?"""
    chance, score, reference = figures["chance"], figures["score"], figures["reference"]
    names = (
        f"The background alone names {_per_cent(reference)}; these guesses would name {100 * chance:.1f} % by chance."
    )
    if not ceiling:
        return [names]
    top = mean_ceiling(ceiling)["top_1"]
    of_ceiling = f"The ceiling, what the same vote makes of whole public images, is {_per_cent(top)}"
    if top["value"] - chance < max(LITTLE, (score["high"] - score["low"]) / 2):
        if score["low"] > 0:
            return [names, f"{of_ceiling}: these representations hardly tell the classes."]
        return [
            names,
            f"{of_ceiling}: these representations hardly tell the classes, so that a score near 0 says nothing about "
            "memory.",
        ]
    if reference["value"] - chance > MOST * (top["value"] - chance):
        return [
            names,
            f"{of_ceiling}: the reference is so near it that little room is left to see memory. Do the crops show only "
            "background?",
        ]
    return [names, f"{of_ceiling}."]


def _per_cent(estimate):
    return f"{100 * estimate['value']:.1f} %"


def _points(estimate):
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} percentage points [{low:.1f}, {high:.1f}]"
