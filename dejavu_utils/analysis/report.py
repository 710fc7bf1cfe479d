"""The sentences that results are told in: what an attack shows, and what could make it mean less
than it seems.

CONCLUSIONS lists every concluding sentence with the figures that lead to it; the first that applies
is the last line of an attack's output. WARNINGS lists what is said besides. `branch_table` prints
both for the docs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dejavu_utils.analysis.intervals import Estimate, difference, holm, p_value
from dejavu_utils.analysis.results_json import AttackResults, LevelResults
from dejavu_utils.naming import LOGITS, SETS

# of the way from chance to the ceiling: a reference above this leaves little room for a score
NEAR_CEILING = 0.8
# of what the probe has above chance: a ceiling below this was measured on other views than it was
PROBE_DROP = 0.5
PER_CENT_OF_COPIES = 1  # of the attacked images
POPULATION = (
    '"Memorized" is reliable as a population estimate; it does not identify individual images.'
)
POINTWISE = "Intervals are pointwise: each 95 % interval holds for its own point."


@dataclass(frozen=True)
class Evidence:
    """What a conclusion is drawn from: top-1, all examples, the mean of both sets.

    n: attacked images. chance: accuracy of the reference's predictions under permuted labels.
    ceiling: k-NN accuracy on whole public images, None if it is not known. margin: vote share of
    the true label, target - reference, None if there is none. sets: score of each set. delta: of
    the test of one model, the score on images that it never saw. probe: accuracy of training's own
    linear probe, if it is known. rule: whose accuracy the ceiling is.
    """

    n: int
    target: Estimate
    reference: Estimate
    score: Estimate
    chance: float
    ceiling: Estimate | None
    margin: Estimate | None
    sets: dict[str, Estimate]
    one_model: bool
    delta: Estimate | None
    probe: float | None
    rule: str

    @classmethod
    def of(cls, results: AttackResults) -> "Evidence":
        both = results.both
        figures = both.top_1.accuracy["100"]
        score = figures.score
        margin = both.vote_share.get("margin")
        delta = None
        if both.one_model:
            delta = both.one_model.delta
            score = both.one_model.score_minus_delta or both.one_model.score
            margin = both.one_model.margin_minus_delta or both.one_model.margin
        ceiling = results.mean_ceiling
        return cls(
            n=both.n,
            target=figures.target,
            reference=figures.reference,
            score=score,
            chance=figures.chance,
            ceiling=ceiling.top_1 if ceiling else None,
            margin=margin,
            sets={name: results.score(name) for name in SETS},
            one_model=both.one_model is not None,
            delta=delta,
            probe=results.probe_accuracy,
            rule="the classifier's" if results.settings.get("layer") == LOGITS else "k-NN",
        )

    @property
    def direction(self) -> int:
        """1 where score and margin of votes are above 0, -1 where both are below, 0 otherwise."""
        sides = {side(estimate) for estimate in (self.score, self.margin) if estimate}
        return sides.pop() if len(sides) == 1 else 0

    def words(self) -> dict[str, str]:
        """The fields of the sentences."""
        fields = {"n": str(self.n), "chance": per_cent(replace(self.reference, value=self.chance))}
        fields["rule"] = self.rule
        # of one model without what it shows on images that it never saw
        without_delta = " - delta" if self.one_model and self.delta else ""
        fields["score"] = f"déjà vu score{without_delta} {points(self.score)}"
        for name in ("target", "reference"):
            fields[name] = per_cent(getattr(self, name))
        fields["reference_interval"] = per_cent(self.reference, interval=True)
        fields["margin"] = (
            f"margin of votes{without_delta} {points(self.margin)}" if self.margin else ""
        )
        fields["delta"] = points(self.delta) if self.delta else ""
        if self.ceiling:
            fields["ceiling"] = per_cent(self.ceiling, interval=True)
        for name, score in self.sets.items():
            fields[f"score_{name}"] = points(score)
        fields["difference"] = points(difference(self.sets["A"], self.sets["B"]))
        if self.probe is not None:
            fields["probe"] = f"{100 * self.probe:.1f} %"
        return fields


@dataclass(frozen=True)
class Branch:
    """A sentence, and the figures that lead to it, in words for the docs and as a function."""

    name: str
    condition: str
    sentence: str
    applies: Callable[[Evidence], bool]


def clear_of_chance(ceiling: Estimate, chance: float) -> bool:
    """Do the representations separate the classes? Only then can a score be read. True where chance
    is not known."""
    return not ceiling.low <= chance


def side(estimate: Estimate) -> int:
    """1 where the interval lies above 0, -1 where it lies below, 0 where it includes 0."""
    return int(estimate.low > 0) - int(estimate.high < 0)


def _not_interpretable(evidence: Evidence) -> bool:
    return evidence.ceiling is not None and not clear_of_chance(evidence.ceiling, evidence.chance)


def _disagree(evidence: Evidence) -> bool:
    return evidence.margin is not None and side(evidence.margin) != side(evidence.score)


def _no_room(evidence: Evidence) -> bool:
    if evidence.ceiling is None:
        return False
    half_width = (evidence.score.high - evidence.score.low) / 2
    return evidence.ceiling.value - evidence.reference.value < half_width


def _sets_differ(evidence: Evidence) -> bool:
    """Does the interval of score(A) - score(B) exclude 0?"""
    return side(difference(evidence.sets["A"], evidence.sets["B"])) != 0


CONCLUSIONS = (
    Branch(
        "not interpretable",
        "the ceiling's interval is not above chance",
        "not interpretable: the ceiling, {rule} accuracy on whole public images, is {ceiling}, not above the chance "
        "level of {chance}. The representations do not separate the classes, so no score says anything about "
        "memorization.",
        _not_interpretable,
    ),
    Branch(
        "no control",
        "one model; no images that it never saw were given",
        "undecided: a model and classifiers also differ on images that the model never saw; give --unseen_idx_pth to "
        "measure by how much.",
        lambda evidence: evidence.one_model and evidence.delta is None,
    ),
    Branch(
        "disagreement",
        "of score and margin of votes, one interval includes 0 and the other does not, or they have opposite signs",
        "undecided: {score} and {margin} disagree.",
        _disagree,
    ),
    Branch(
        "memorization",
        "the intervals of score and margin of votes are above 0",
        "Significant memorization detected with {n} images: {score}.",
        lambda evidence: evidence.direction > 0,
    ),
    Branch(
        "below 0",
        "two models; the intervals of score and margin of votes are below 0",
        "The score is below 0 ({score}): are the models or the index files of A and B swapped?",
        lambda evidence: evidence.direction < 0 and not evidence.one_model,
    ),
    Branch(
        "no room",
        "the score's interval includes 0, and its half-width exceeds ceiling - reference",
        "not interpretable: the ceiling, {ceiling}, is too close to the reference, {reference}, for {n} images to "
        "resolve a score: {score}.",
        _no_room,
    ),
    Branch(
        "no memorization",
        "the score's interval includes 0 (one model: or is below 0)",
        "No significant memorization detected with {n} images: {score}.",
        lambda evidence: True,
    ),
)

WARNINGS = (
    Branch(
        "reference below chance",
        "two models; the reference's interval is below chance",
        "the reference accuracy, {reference_interval}, is below the chance level of {chance}: the score may be too "
        "large by that difference",
        lambda evidence: not evidence.one_model and evidence.reference.high < evidence.chance,
    ),
    Branch(
        "sets differ",
        "two models; the interval of score(A) - score(B) does not include 0",
        "the scores of set A, {score_A}, and set B, {score_B}, differ by {difference}: were the two models trained the "
        "same way?",
        _sets_differ,
    ),
    Branch(
        "baseline differs",
        "one model; the interval of delta does not include 0",
        "on images that the model never saw it differs from the classifiers, too, by {delta}: the score cannot be read "
        "without subtracting it",
        lambda evidence: evidence.delta is not None and side(evidence.delta) != 0,
    ),
    Branch(
        "reference near the ceiling",
        "the reference is beyond 80 % of the way from chance to a ceiling that is above chance",
        "the reference accuracy, {reference}, is close to the ceiling, {ceiling}: little room is left for a score. Do "
        "the crops show only background?",
        lambda evidence: (
            evidence.ceiling is not None
            and clear_of_chance(evidence.ceiling, evidence.chance)
            and evidence.reference.value - evidence.chance
            > NEAR_CEILING * (evidence.ceiling.value - evidence.chance)
        ),
    ),
    Branch(
        "ceiling below the probe",
        "the ceiling has less than half of what training's linear probe has above chance",
        "the ceiling, {ceiling}, is far below the accuracy of training's linear probe, {probe}: are images shown to "
        "the model as in training (--resolution)?",
        lambda evidence: (
            evidence.ceiling is not None
            and evidence.probe is not None
            and evidence.ceiling.high - evidence.chance
            < PROBE_DROP * (evidence.probe - evidence.chance)
        ),
    ),
)


def branch_table() -> str:
    """Markdown table of every concluding sentence and warning, in order, with the figures that lead
    to it."""
    rows = ["| conclusion or warning | figures | sentence |", "| --- | --- | --- |"]
    for branch in CONCLUSIONS:
        rows.append(f"| {branch.name} | {branch.condition} | {branch.sentence} |")
    for branch in WARNINGS:
        rows.append(f"| warning: {branch.name} | {branch.condition} | {branch.sentence} |")
    return "\n".join(rows)


def statistical_warnings(results: AttackResults) -> list[str]:
    """Sentences on figures that contradict what the test expects, for AttackResults.warnings; empty
    if none."""
    warnings = _near_copies(results)
    if _without_score(results):
        return warnings
    evidence = Evidence.of(results)
    for branch in WARNINGS:
        if branch.applies(evidence):
            warnings.append(branch.sentence.format(**evidence.words()))
    return warnings


def conclusion(results: AttackResults) -> tuple[str, str]:
    """(name in CONCLUSIONS or "no score", concluding sentence) of an attack."""
    if _without_score(results):
        return "no score", "No image of one of the sets was attacked: there is no score."
    evidence = Evidence.of(results)
    branch = next(branch for branch in CONCLUSIONS if branch.applies(evidence))
    return branch.name, branch.sentence.format(**evidence.words())


def verdict(results: AttackResults) -> list[str]:
    """The figures of all examples in words, the warnings, and as the last one the conclusion; a
    list of sentences."""
    _, concluding = conclusion(results)
    if _without_score(results):
        return [concluding]
    evidence = Evidence.of(results)
    words = evidence.words()
    score = points(results.score())
    memorized, misrepresented = _counts(results)
    sentences = [
        f"Target accuracy {words['target']}, reference accuracy {words['reference']}: déjà vu score {score}.",
        f"Reference accuracy (background only): {words['reference']}. Chance level of the same predictions (permuted "
        f"labels): {words['chance']}.",
    ]
    if evidence.ceiling:
        sentences.append(
            f"Ceiling ({evidence.rule} accuracy on whole, uncropped images): {words['ceiling']}."
        )
    sentences.append(memorized_by_chance(memorized, misrepresented, results.both.n))
    sentences += [f"warning: {text}" for text in results.warnings]
    return [*sentences, concluding]


def models_in_words(made_from: dict | None) -> list[str]:
    """A line per model: architecture and epoch, as far as the record says. made_from: of
    results.json."""
    lines = []
    for name, record in ((made_from or {}).get("models") or {}).items():
        known = [record["arch"]] if record.get("arch") else []
        known += [f"epoch {record['epoch']}"] if record.get("epoch") is not None else []
        if known:
            lines.append(f"Model {name}: {', '.join(known)}.")
    return lines


def header_lines(results: AttackResults) -> list[str]:
    """What a page about an attack begins with: models, layer, neighbors that vote, score and
    conclusion."""
    layer = results.settings.get("layer", "layer unknown")
    votes = (
        "" if layer == "logits" or not results.k_attk else f", k = {results.k_attk} neighbors vote"
    )
    lines = [
        *models_in_words(results.made_from),
        f"{layer}{votes}; {results.both.n} attacked images.",
    ]
    name, concluding = conclusion(results)
    score = points(results.score())
    if name != "no score" and score not in concluding:
        lines.append(f"Déjà vu score {score}.")
    return [*lines, concluding]


def conclusion_of_rows(rows: Sequence[tuple[str, Evidence]]) -> str:
    """What several attacks or points show together, all at once: Holm's method keeps the chance of
    one false statement at 5 % however many are looked at (Holm 1979). rows: (label, Evidence)."""
    readable = [(label, evidence) for label, evidence in rows if not _not_interpretable(evidence)]
    significant = holm([_p_value(evidence) for _, evidence in readable])
    above, below = [], []
    for (label, evidence), is_significant in zip(readable, significant):
        if is_significant:
            (above if evidence.score.value > 0 else below).append(label)
    parts = [f"No significant memorization in any of {len(readable)} rows"]
    if above:
        parts = [
            f"Significant memorization in {len(above)} of {len(readable)} rows: {', '.join(above)}"
        ]
    if below:
        parts.append(f"score below 0 in {', '.join(below)}")
    unreadable = [label for label, evidence in rows if _not_interpretable(evidence)]
    if unreadable:
        parts.append(f"not interpretable, the ceiling is not above chance: {', '.join(unreadable)}")
    if not readable:
        parts = parts[1:]
    simultaneous = f" (simultaneous over {len(readable)} rows, Holm)" if len(readable) > 1 else ""
    return "; ".join(parts) + simultaneous + "."


def _p_value(evidence: Evidence) -> float:
    """Of score and margin of votes together: both are to be on the same side of 0."""
    if math.isnan(evidence.score.value):
        return 1.0
    if evidence.margin is None:
        return p_value(evidence.score)
    if evidence.score.value * evidence.margin.value <= 0:
        return 1.0
    return max(p_value(evidence.score), p_value(evidence.margin))


def memorized_by_chance(memorized: int, misrepresented: int, total: int) -> str:
    """How many of those that are called memorized are expected by chance, in words. Counts of
    images."""
    if not memorized:
        return f"None of {total} images is called memorized."
    called = f"Of {total} images {memorized} {'is' if memorized == 1 else 'are'} called memorized;"
    if misrepresented >= memorized:
        return (
            f"{called} as many are expected by chance, since {misrepresented} are misrepresented."
        )
    by_chance = (
        f"about {misrepresented} of them are expected by chance, as many as are misrepresented."
    )
    return f"{called} {by_chance} {POPULATION}"


def one_model_lines(results: AttackResults) -> list[str]:
    """What results.json says of the test of one model, side by side, in lines of text."""
    both = results.both.one_model
    if both is None:
        return []
    parts = [f"score {figure_in_words(both.score)}"]
    if both.delta:
        parts.append(f"delta on images that the model never saw {figure_in_words(both.delta)}")
        parts.append(f"score - delta {figure_in_words(both.score_minus_delta)}")
    lines = ["one model, against classifiers of crops: " + ", ".join(parts)]
    if not both.delta:
        lines.append(
            "delta is missing: give --unseen_idx_pth; without it the baseline difference is unknown"
        )
    margin = "margin of the true label, vote share of the model - probability of the classifiers: "
    margin += figure_in_words(both.margin)
    if both.margin_delta:
        margin += f", on images that the model never saw {figure_in_words(both.margin_delta)}"
        margin += f", margin - that {figure_in_words(both.margin_minus_delta)}"
    lines.append(margin)
    accuracies, agreements = [], []
    for name in SETS:
        of_set = results.of(name).one_model
        by_seed = of_set and of_set.reference_accuracy_by_seed or []
        accuracies.append(f"set {name}: {', '.join(f'{value:.3f}' for value in by_seed)}")
        if of_set and of_set.reference_agreement is not None:
            agreements.append(f"set {name}: {100 * of_set.reference_agreement:.1f} %")
    lines.append("reference accuracy of each classifier: " + "; ".join(accuracies))
    if agreements:
        lines.append(
            "images for which two classifiers predict the same class: " + "; ".join(agreements)
        )
    if not both.spread_in_intervals:
        lines.append(
            "these intervals do not include the classifiers' training: give three or more, of other seeds"
        )
    confidence = both.memorization_confidence
    if confidence and confidence.corrected:
        lines.append(
            f"memorization confidence of {confidence.n} memorized images, nats: "
            f"{figure_in_words(confidence.corrected)} (published definition, above 0 without memorization: "
            f"{figure_in_words(confidence.published)})"
        )
    if both.rise:
        rises = both.rise.low > 0
        meaning = "still rising, so the score is an upper bound" if rises else "no significant rise"
        lines.append(
            f"reference accuracy with all crops - with half: {figure_in_words(both.rise)}: {meaning}"
        )
    return lines


def figure_in_words(estimate: Estimate | None) -> str:
    """An estimate as 0.400 [0.350, 0.450], with as many digits as its interval's width deserves."""
    if estimate is None or math.isnan(estimate.value):
        return "none"
    value, low, high = _rounded(estimate, 1, 3)
    return f"{value} [{low}, {high}]"


def chance_in_words(figures: LevelResults) -> str:
    """ " (chance 0.200)" of a level's figures, nothing where they do not say."""
    if math.isnan(figures.chance):
        return ""
    return f" (chance {_rounded(replace(figures.reference, value=figures.chance), 1, 3)[0]})"


def per_cent(estimate: Estimate, interval: bool = False) -> str:
    """An accuracy as 48.7 %, or 48.7 % [44.1, 53.2]."""
    value, low, high = _rounded(estimate, 100, 1)
    return f"{value} % [{low}, {high}]" if interval else f"{value} %"


def points(estimate: Estimate) -> str:
    """A difference of accuracies as 27.1 percentage points [21.5, 32.3]."""
    value, low, high = _rounded(estimate, 100, 1)
    return f"{value} percentage points [{low}, {high}]"


def _rounded(estimate: Estimate, scale: float, least: int) -> list[str]:
    """Value, low and high times `scale`: two digits of the interval's half-width, at least `least`
    decimals."""
    half_width = scale * (estimate.high - estimate.low) / 2
    decimals = least
    if 0 < half_width < 1:
        decimals = max(least, 1 - math.floor(math.log10(half_width)))
    texts = []
    for part in ("value", "low", "high"):
        without_minus_zero = round(scale * getattr(estimate, part), decimals) + 0.0
        texts.append(f"{without_minus_zero:.{decimals}f}")
    return texts


def _without_score(results: AttackResults) -> bool:
    return any(math.isnan(results.score(group).value) for group in ("both", *SETS))


def _near_copies(results: AttackResults) -> list[str]:
    """A warning where more than 1 % of the images have a near-copy that the reference has seen, or
    that is public."""
    copies = results.near_copies
    n = results.both.n
    if (
        copies is None
        or copies.without is None
        or copies.A + copies.B <= n * PER_CENT_OF_COPIES / 100
    ):
        return []
    score = copies.without.top_1.accuracy["100"].score
    without = "all of one set have, so that there is no score without them"
    if not math.isnan(score.value):
        without = f"without them the score is {points(score)}"
    return [
        f"{copies.A + copies.B} of the {n} attacked images have a near-copy among those that the reference was trained "
        f"on, or among the public ones: {without}"
    ]


def _counts(results: AttackResults) -> list[int]:
    """[memorized, misrepresented] images of both sets."""
    counts = []
    for outcome in ("memorized", "misrepresented"):
        images = 0
        for of_set in (results.A, results.B):
            images += round(of_set.n * of_set.top_1.shares[outcome].value)
        counts.append(images)
    return counts
