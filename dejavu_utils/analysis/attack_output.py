"""The folder of an attack on one layer: neighbors or scores, tables, results and the gallery,
written at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis import one_model
from dejavu_utils.analysis.attack_files import (
    CLASSIFIERS,
    AttackedSet,
    Sets,
    file_digests,
    read_attack,
)
from dejavu_utils.analysis.gallery import Attacked, save_gallery
from dejavu_utils.analysis.membership import (
    SAME_DRAW,
    margin_scores,
    membership,
    membership_in_words,
)
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.one_model import ClassifierComparison
from dejavu_utils.analysis.online_probe import online_probes
from dejavu_utils.analysis.report import (
    chance_in_words,
    conclusion,
    figure_in_words,
    header_lines,
    one_model_lines,
    statistical_warnings,
    verdict,
)
from dejavu_utils.analysis.results_json import RESULTS, AttackResults, NearCopies, TopAccuracies
from dejavu_utils.analysis.tables import (
    attack_statistics,
    ceiling,
    class_table,
    confidence_curve,
    directions,
    example_table,
    set_statistics,
)
from dejavu_utils.attack.search import CEILING, Queries, SearchResult
from dejavu_utils.attack.target_reference import UNSEEN, TargetReference
from dejavu_utils.data.background_crops import CroppedImages
from dejavu_utils.files import save_csv, save_json, save_npy
from dejavu_utils.imagenet import UNREADABLE, ImageListing
from dejavu_utils.naming import LOGITS, SETS, TWIN, attack_path
from dejavu_utils.networks.embedder import ImageSet, Key
from dejavu_utils.typed_json import to_json


@dataclass
class LayerResult:
    """The outcome of the attack on one layer.

    indices: {set: int64 (n,)}, attacked images, and crops: {set: int64 (n, 4)}. For each (model,
    set), in one of nearest: int64 (n, k), image indices of the nearest public images, or scores:
    float32 (n, classes). ceiling: by model. votes: neighbors that vote. copied: {set: int64 (m,)},
    attacked images with a near-copy elsewhere, if they are known. judged, half: {set:
    ClassifierComparison} where the references are classifiers, trained on all crops or on half of
    them.
    """

    indices: dict[str, np.ndarray]
    crops: dict[str, np.ndarray]
    nearest: dict[tuple[str, str], np.ndarray]
    scores: dict[tuple[str, str], np.ndarray]
    ceiling: dict[str, TopAccuracies]
    votes: int
    copied: dict[str, np.ndarray] | None = None
    judged: dict[str, ClassifierComparison] = field(default_factory=dict)
    half: dict[str, ClassifierComparison] = field(default_factory=dict)


@dataclass
class Answers:
    """What the networks answer to the queries, part after part (the attacked sets, and the public
    images of CEILING).

    k: neighbors that are kept. votes: nearest of them that vote.
    """

    listing: ImageListing
    queries: Queries
    public: ImageSet
    searched: SearchResult
    k: int
    votes: int

    def among(self, part: str) -> np.ndarray:
        """bool (m,): which of the crops that could be read belong to a part?"""
        return self.queries.among(part, self.searched.rows)

    def rows(self, part: str) -> np.ndarray:
        """Those of a part that could be read, as positions among the queries, int64 (n,)."""
        return self.searched.rows[self.among(part)]

    def labels(self, part: str) -> np.ndarray:
        return self.listing.labels[self.queries.indices[self.rows(part)]]

    def of(self, key: Key, part: str) -> np.ndarray:
        """Image indices of the nearest public images, int64 (n, k); of LOGITS the scores, float32
        (n, classes)."""
        array = self.searched.arrays[key][self.among(part)]
        if key[1] == LOGITS:
            return array
        return self.public.indices[self.queries.neighbors(self.rows(part), array, self.k)]

    def predictions(self, key: Key, part: str) -> mem.Predictions:
        answers = self.of(key, part)
        labels = self.labels(part)
        if key[1] == LOGITS:
            return mem.predict_from_scores(answers, labels)
        voters = self.listing.labels[answers]
        return mem.predict_from_neighbors(voters, min(self.votes, voters.shape[1]), labels)


def layer_result(layer: str, answers: Answers, comparison: TargetReference) -> LayerResult:
    """What a search says of one layer. Scores of classifiers are the log of their mean
    probability."""
    queries = answers.queries
    result = LayerResult({}, {}, {}, {}, {}, answers.votes)
    for part in queries.parts:
        rows = answers.rows(part)
        result.indices[part] = queries.indices[rows]
        result.crops[part] = queries.crops[rows]
    if comparison.classifiers:
        result.judged = _compared(answers, layer, comparison, comparison.reference)
        result.half = _compared(answers, layer, comparison, comparison.half)
    for name in SETS:
        (target,) = comparison.keys(layer, [comparison.target[name]])
        references = comparison.keys(layer, comparison.reference[name])
        of_references = [answers.of(key, name) for key in references]
        reference = of_references[0]
        if comparison.classifiers:
            reference = one_model.log_mean_probabilities(of_references)
        given = {name: (target, answers.of(target, name)), TWIN[name]: (references[0], reference)}
        for model, ((_, of), array) in given.items():
            kept = result.scores if of == LOGITS else result.nearest
            kept[model, name] = array
    for model, key in zip(comparison.models, comparison.keys(layer, comparison.models)):
        result.ceiling[model] = ceiling(answers.predictions(key, CEILING), answers.labels(CEILING))
    return result


def _compared(
    answers: Answers, layer: str, comparison: TargetReference, references: dict[str, list[str]]
) -> dict[str, ClassifierComparison]:
    """{set: the model against the classifiers that are its references}."""
    compared = {}
    for name, classifiers in references.items():
        (target,) = comparison.keys(layer, [comparison.target[name]])
        logits = [answers.of(key, name) for key in comparison.keys(layer, classifiers)]
        compared[name] = ClassifierComparison.of(
            answers.predictions(target, name), logits, answers.labels(name)
        )
    return compared


def counts_of(
    parts: dict[str, CroppedImages], result: LayerResult, public: int, unreadable: int, classes: int
) -> dict[str, Any]:
    """{set: how many images were attacked, and skipped for what; "public", ...}, without images
    that cannot be read.

    public: number of public images. unreadable: number of these that could not be read. classes:
    number of classes.
    """
    counts = {}
    for name, part in parts.items():
        if name != CEILING:
            attacked = len(result.indices[name])
            lost = part.counts["attacked"] - attacked
            unread = part.counts[UNREADABLE] + lost
            counts[name] = {**part.counts, "attacked": attacked, UNREADABLE: unread}
    return {
        **counts,
        "public": public - unreadable,
        f"public, {UNREADABLE}": unreadable,
        "classes": classes,
    }


@dataclass
class Context:
    """What results.json says beside the figures, and what the gallery shows beside the images.

    boxes_of: image index -> its boxes as annotated, None without annotations. class_names: {class
    folder: name}.
    """

    counts: dict[str, Any]
    warnings: list[str]
    settings: dict[str, Any]
    made_from: dict[str, Any] | None = None
    boxes_of: Callable[[int], list] | None = None
    class_names: dict[str, str] | None = None


def write_layer(
    folder: Path, result: LayerResult, listing: ImageListing, context: Context
) -> AttackResults:
    """Writes everything about one layer into `folder`, results.json last, and returns what that
    holds.

    What the figures themselves warn of is added to the warnings.
    """
    _save_arrays(folder, result, listing)
    sets = read_attack(folder, result.votes)
    _save_sweeps(folder, sets)
    tables = {name: example_table(sets[name], listing) for name in SETS}
    results = attack_statistics(sets)
    results.ceiling = result.ceiling
    results.counts = context.counts
    results.settings = context.settings
    results.made_from = context.made_from
    if result.copied is not None:
        results.near_copies = _near_copies(sets, tables, result.copied)
    probes = online_probes(context.settings, context.made_from)
    results.probe_accuracy = probes.get(context.settings.get("layer", ""), {}).get(1)
    if result.judged:
        _add_one_model(results, tables, result)
        attacked = {name: result.judged[name] for name in SETS}
        save_csv(folder / CLASSIFIERS, one_model.classifier_agreement(attacked))
    elif scores := margin_scores(directions(sets)):
        results.membership = membership(*scores)
    for name in UNSEEN.values():
        if name in result.judged:
            unseen = AttackedSet(result.indices[name], result.judged[name].attack)
            save_csv(folder / f"attack_{name}.csv", example_table(unseen, listing))
    for name in SETS:
        save_csv(folder / f"attack_{name}.csv", tables[name])
    save_csv(folder / "attack_classes.csv", class_table(sets, listing.classes))
    save_csv(folder / "attack_confidence.csv", confidence_curve(sets, ceiling=results.mean_ceiling))
    shown = _attacked_images(result)
    page = folder / "attack_gallery.html"
    header = header_lines(results)
    save_gallery(page, sets, listing, shown, context.boxes_of, context.class_names, header=header)
    results.files = file_digests(folder)
    results.warnings = [*context.warnings, *statistical_warnings(results)]
    results.conclusion, results.conclusion_in_words = conclusion(results)
    save_json(folder / RESULTS, to_json(results))
    return results


def check_ceilings(ceilings: dict[str, TopAccuracies], chance: float) -> list[str]:
    """Warnings about two models that classify whole public images unequally well.

    ceilings: of one model or two. chance: accuracy of guessing.
    """
    if len(ceilings) < 2:
        return []
    accuracies = {model: ceiling.top_1 for model, ceiling in ceilings.items()}
    worse, better = sorted(accuracies, key=lambda model: accuracies[model].value)
    low, high = accuracies[worse], accuracies[better]
    if high.value - low.value <= 0.1 * (1 - chance) or low.high >= high.low:
        return []
    return [
        f"model {worse} classifies {100 * low.value:.1f} % of whole public images correctly, the other "
        f"{100 * high.value:.1f} %: unequal encoders, so the score is not memorization alone"
    ]


def _save_arrays(folder: Path, result: LayerResult, listing: ImageListing) -> None:
    """Indices and labels of the attacked images, and neighbors or scores, of each model on each
    set."""
    for name in SETS:
        indices = result.indices[name]
        for model in SETS:
            arrays = {"attk_idxs": indices, "labels": listing.labels[indices, None]}
            if (model, name) in result.nearest:
                nearest = result.nearest[model, name]
                arrays |= {"neighb_idxs": nearest, "neighb_labels": listing.labels[nearest]}
            else:
                arrays["scores"] = result.scores[model, name]
            for what, values in arrays.items():
                save_npy(attack_path(folder, model, name, what), values)


def _attacked_images(result: LayerResult) -> Attacked:
    """Of both sets, as the gallery takes them."""
    indices = np.concatenate([result.indices[name] for name in SETS])
    crops = np.concatenate([result.crops[name] for name in SETS])
    if not result.nearest:
        return Attacked(indices, crops)
    neighbors = {}
    for model in SETS:
        of_sets = []
        for name in SETS:
            # where classifiers' scores take the neighbors' place
            none = np.full_like(result.nearest[name, name], -1)
            of_sets.append(result.nearest.get((model, name), none))
        neighbors[model] = np.concatenate(of_sets)
    return Attacked(indices, crops, neighbors)


def _add_one_model(
    results: AttackResults, tables: dict[str, pd.DataFrame], result: LayerResult
) -> None:
    """The figures of the test of one model into the results, its memorization confidence into the
    examples' tables."""
    unseen = {name: result.judged[UNSEEN[name]] for name in SETS if UNSEEN[name] in result.judged}
    figures = one_model.one_model_statistics(result.judged, unseen, result.half)
    for name in SETS:
        if (name, name) not in result.nearest:
            continue
        target = result.judged[name].attack.target
        confidence = one_model.memorization_confidence(
            target, result.scores[TWIN[name], name], result.votes
        )
        order = np.argsort(result.indices[name], kind="stable")  # of read_attack
        tables[name]["memorization_confidence"] = confidence["published"][order]
        tables[name]["memorization_confidence_corrected"] = confidence["corrected"][order]
    for group, of_group in figures.items():
        names = SETS if group == "both" else [group]
        chosen = [tables[name] for name in names]
        of_group.memorization_confidence = one_model.mean_confidences(chosen)
        results.of(group).one_model = of_group


def _near_copies(
    sets: Sets, tables: dict[str, pd.DataFrame], copied: Mapping[str, np.ndarray]
) -> NearCopies:
    """Of each set the images that have a near-copy elsewhere, into the tables as well; figures of
    all others."""
    counts, others = {}, []
    for name in SETS:
        is_copied = np.isin(sets[name].idxs, copied[name])
        tables[name]["near_copy_elsewhere"] = is_copied.astype(int)
        counts[name] = int(is_copied.sum())
        others.append(sets[name].chosen(~is_copied))
    without = set_statistics(others) if any(counts.values()) else None
    return NearCopies(counts["A"], counts["B"], without)


def _save_sweeps(folder: Path, sets: Sets) -> None:
    """Writes the accuracies at 100 fractions of confidence, of each model on each set."""
    for name in SETS:
        attack = sets[name].attack
        for model, predictions in ((name, attack.target), (TWIN[name], attack.reference)):
            for top_k in TOP_KS:
                sweep = mem.accuracy_sweep(predictions, attack.labels, top_k)
                save_npy(folder / f"top_{top_k}_conf_sweep_{model}_attk_{name}.npy", sweep)


def summary_lines(layer: str, results: AttackResults) -> list[str]:
    """What results.json of a layer says, in lines of text."""
    counts = results.counts
    top_1 = results.both.top_1
    lines = [
        f"{layer}: {counts['A']['attacked']} images of set A and {counts['B']['attacked']} of set B attacked, "
        f"{counts['classes']} classes; top-1, with 95 % intervals:"
    ]
    for pct, figures in top_1.accuracy.items():
        who = "all examples" if pct == "100" else f"the most confident {pct} %"
        target = figure_in_words(figures.target)
        reference = figure_in_words(figures.reference)
        chance = chance_in_words(figures)
        score = figure_in_words(figures.score)
        lines.append(
            f"  {who}: target {target}, reference {reference}{chance}, déjà vu score {score}"
        )
    shares = [f"{outcome} {figure_in_words(top_1.shares[outcome])}" for outcome in mem.OUTCOMES]
    lines.append(f"  {', '.join(shares)}")
    ceilings = []
    for model, of_model in results.ceiling.items():
        ceilings.append(f"model {model} {figure_in_words(of_model.top_1)}")
    lines.append(f"  ceiling (the same vote on whole public images): {', '.join(ceilings)}")
    if results.near_copies and results.near_copies.without:
        without = results.near_copies.without
        score = figure_in_words(without.top_1.accuracy["100"].score)
        lines.append(
            f"  the {without.n} images without a near-copy elsewhere: déjà vu score {score}"
        )
    if results.both.one_model:
        sentences = one_model_lines(results)
    else:
        margin = figure_in_words(results.both.vote_share["margin"])
        sentences = [f"margin of the true label's share of the votes, target - reference: {margin}"]
    if results.membership:
        sentences.append(
            f"membership by that margin: {membership_in_words(results.membership)}. {SAME_DRAW}"
        )
    return lines + [f"  {sentence}" for sentence in [*sentences, *verdict(results)]]
