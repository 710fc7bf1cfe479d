"""The folder of an attack on one layer: neighbors or scores, tables, results and the gallery, written at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis import one_model
from dejavu_utils.analysis.attack_files import AttackedSet, mean_ceiling, read_attack
from dejavu_utils.analysis.gallery import Attacked, save_gallery
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.report import (
    chance_in_words,
    conclusion,
    figure_in_words,
    one_model_lines,
    statistical_warnings,
    verdict,
)
from dejavu_utils.analysis.tables import (
    attack_statistics,
    ceiling,
    class_table,
    confidence_curve,
    example_table,
)
from dejavu_utils.attack.search import CEILING
from dejavu_utils.attack.target_reference import UNSEEN
from dejavu_utils.files import save_csv, save_json, save_npy
from dejavu_utils.imagenet import UNREADABLE, ImageListing
from dejavu_utils.naming import SETS, attack_path
from dejavu_utils.networks.embedder import LOGITS


@dataclass
class LayerResult:
    """What was found at one layer.

    indices: {set: int64 (n,)}, attacked images, and crops: {set: int64 (n, 4)}. For each (model, set), in one of
    nearest: int64 (n, k), image indices of the nearest public images, or scores: float32 (n, classes). ceiling: {model:
    {"top_1", "top_5": {"value", "low", "high"}}}. votes: neighbors that vote. copied: {set: int64 (m,)},
    attacked images with a near-copy elsewhere, if they are known. judged, half: {set:
    one_model.ClassifierComparison} where the references are classifiers, trained on all crops or on half of them.
    """

    indices: dict
    crops: dict
    nearest: dict
    scores: dict
    ceiling: dict
    votes: int = 0
    copied: dict | None = None
    judged: dict = field(default_factory=dict)
    half: dict = field(default_factory=dict)


def outcome_of(
    layer: str, listing: ImageListing, queries: Any, public: Any, found: Any, votes: tuple[int, int], comparison: Any
) -> LayerResult:
    """The LayerResult of what a search has SearchResult.

    queries: attack.search.Queries. public: attack.search.ImageSet. votes: (k neighbors that are kept, nearest of them
    that vote, 0 for all). comparison: attack.reference.TargetReference. Scores of classifiers are the log of their mean
    probability.
    """
    k, k_attk = votes
    among = {name: queries.among(name, found.rows) for name in queries.parts}
    rows = {name: found.rows[chosen] for name, chosen in among.items()}
    indices, crops = (
        {name: part[rows[name]] for name in queries.parts} for part in (queries.images.indices, queries.images.crops)
    )
    labels = {name: listing.labels[of_part] for name, of_part in indices.items()}

    def answers(key, name):
        array = found.arrays[key][among[name]]
        return array if key[1] == LOGITS else public.indices[queries.neighbors(rows[name], array, k)]

    def guesses(key, name):
        array = answers(key, name)
        if key[1] == LOGITS:
            return mem.predict_from_scores(array, labels[name])
        voters = listing.labels[array]
        return mem.predict_from_neighbors(voters, min(k_attk or k, voters.shape[1]), labels[name])

    def judged(references):
        keys = {name: comparison.keys(layer, names) for name, names in references.items() if comparison.classifiers}
        return {
            name: one_model.ClassifierComparison.of(
                guesses(*comparison.keys(layer, [comparison.target[name]]), name),
                [answers(key, name) for key in of_set],
                labels[name],
            )
            for name, of_set in keys.items()
        }

    of_classifiers = {"judged": judged(comparison.reference), "half": judged(comparison.half)}
    outcome = LayerResult(indices, crops, {}, {}, {}, k_attk or k, **of_classifiers)
    for name, other in zip(SETS, SETS[::-1]):
        slots = {name: comparison.keys(layer, [comparison.target[name]])}
        slots[other] = comparison.keys(layer, comparison.reference[name])
        for model, keys in slots.items():
            kind = outcome.scores if keys[0][1] == LOGITS else outcome.nearest
            found_there = [answers(key, name) for key in keys]
            joined = comparison.classifiers and model == other
            kind[model, name] = one_model.log_mean_probabilities(found_there) if joined else found_there[0]
    for model, key in zip(comparison.models, comparison.keys(layer, comparison.models)):
        outcome.ceiling[model] = ceiling(guesses(key, CEILING), labels[CEILING])
    return outcome


def counts_of(parts: dict, outcome: LayerResult, public: Any, unreadable: int, classes: int) -> dict:
    """{set: how many images were attacked, and skipped for what; "public", ...}, without images that cannot be read.

    parts: {set: data.annotations.CroppedImages}. public: how many public images there are, of which `unreadable`
    could not be read. classes: how many there are.
    """
    counts = {name: dict(part.counts) for name, part in parts.items() if name != CEILING}
    for name in counts:
        lost = counts[name]["attacked"] - len(outcome.indices[name])
        counts[name]["attacked"] -= lost
        counts[name][UNREADABLE] += lost
    return {**counts, "public": public - unreadable, f"public, {UNREADABLE}": unreadable, "classes": classes}


def write_layer(
    folder: str | Path, outcome: LayerResult, listing: ImageListing, k_attk: int, about: dict, pictures: Any
) -> dict:
    """Writes everything about one layer into `folder`, results.json last, and returns what that holds.

    outcome: LayerResult. listing: ImageListing. k_attk: neighbors that vote. about: {"counts", "settings", "warnings"}
    for results.json; what the figures themselves warn of is added. pictures: {"boxes": function of an index or None,
    "names": of classes or None}, for the gallery.
    """
    folder = Path(folder)
    for name in SETS:
        indices = outcome.indices[name]
        for model in SETS:
            arrays = {"attk_idxs": indices, "labels": listing.labels[indices, None]}
            if (model, name) in outcome.nearest:
                found = outcome.nearest[model, name]
                arrays |= {"neighb_idxs": found, "neighb_labels": listing.labels[found]}
            else:
                arrays["scores"] = outcome.scores[model, name]
            for what, values in arrays.items():
                save_npy(attack_path(folder, model, name, what), values)
    sets = read_attack(folder, k_attk)
    _save_sweeps(folder, sets)
    tables = {name: example_table(sets[name], listing) for name in SETS}
    results = {**attack_statistics(sets), "ceiling": outcome.ceiling, **about}
    if outcome.copied is not None:
        results["near_copies"] = _without_copies(sets, tables, outcome.copied)
    if outcome.judged:
        _add_one_model(results, tables, outcome)
        for name in UNSEEN.values() if len(outcome.judged) > len(SETS) else ():
            unseen = AttackedSet(outcome.indices[name], outcome.judged[name].attack)
            save_csv(folder / f"attack_{name}.csv", example_table(unseen, listing))
    for name in SETS:
        save_csv(folder / f"attack_{name}.csv", tables[name])
    save_csv(folder / "attack_classes.csv", class_table(sets, listing.classes))
    save_csv(folder / "attack_confidence.csv", confidence_curve(sets, ceiling=mean_ceiling(outcome.ceiling)))
    attacked, crops = (np.concatenate([part[name] for name in SETS]) for part in (outcome.indices, outcome.crops))
    nearest = outcome.nearest and {
        model: np.concatenate([outcome.nearest.get((model, name), _no_neighbors(outcome, name)) for name in SETS])
        for model in SETS
    }
    gallery = folder / "attack_gallery.html"
    shown = Attacked(attacked, crops, nearest or None)
    save_gallery(gallery, sets, listing, shown, pictures["boxes"], pictures["names"])
    results["warnings"] = [*about["warnings"], *statistical_warnings(results)]
    results["conclusion"], results["conclusion_in_words"] = conclusion(results)
    save_json(folder / "results.json", results)
    return results


def _no_neighbors(outcome, name):
    """-1 for each image of a set, where class scores take the neighbors' place."""
    return np.full_like(outcome.nearest[name, name], -1)


def _add_one_model(results, tables, outcome):
    """The figures of the test of one model into the results, its memorization confidence into the examples' tables."""
    unseen = {name: outcome.judged[UNSEEN[name]] for name in SETS} if len(outcome.judged) > len(SETS) else None
    figures = one_model.one_model_statistics(outcome.judged, unseen, outcome.half or None)
    for name, other in zip(SETS, SETS[::-1]):
        if (name, name) in outcome.nearest:
            order = np.argsort(outcome.indices[name], kind="stable")  # of read_attack
            found = one_model.memorization_confidence(
                outcome.judged[name].attack.target, outcome.scores[other, name], outcome.votes
            )
            for kind, values in found.items():
                tables[name][f"memorization_confidence{'' if kind == 'published' else '_corrected'}"] = values[order]
    for group, of_group in figures.items():
        chosen = [tables[name] for name in (SETS if group == "both" else group)]
        results[group]["one_model"] = {**of_group, **one_model.mean_confidences(chosen)}


def _without_copies(sets, tables, copied):
    """Of each set the images that have a near-copy elsewhere, into the tables as well; figures of all others."""
    alone = {}
    for name in SETS:
        there = np.isin(sets[name].idxs, copied[name])
        tables[name]["near_copy_elsewhere"] = there.astype(int)
        alone[name] = sets[name].chosen(~there)
    counts = {name: len(sets[name].idxs) - len(alone[name].idxs) for name in SETS}
    return {**counts, "without": attack_statistics(alone)["both"]} if any(counts.values()) else counts


def _save_sweeps(folder, sets):
    """Writes the accuracies at 100 fractions of confidence, of each model on each set."""
    for name in SETS:
        attack_on = sets[name].attack
        for model in SETS:
            predictions = attack_on.target if model == name else attack_on.reference
            for top_k in TOP_KS:
                sweep = mem.accuracy_sweep(predictions, attack_on.labels, top_k, mem.SWEEP_FRACTIONS)
                save_npy(folder / f"top_{top_k}_conf_sweep_{model}_attk_{name}.npy", sweep)


def summary_lines(layer: str, results: dict) -> list[str]:
    """What results.json of a layer says, in lines of text."""
    counts, top_1 = results["counts"], results["both"]["top_1"]
    lines = [
        f"{layer}: {counts['A']['attacked']} images of set A and {counts['B']['attacked']} of set B attacked, "
        f"{counts['classes']} classes; top-1, with 95 % intervals:"
    ]
    for pct, figures in top_1["accuracy"].items():
        who = "all examples" if pct == "100" else f"the most confident {pct} %"
        lines.append(
            f"  {who}: target {figure_in_words(figures['target'])}, reference {figure_in_words(figures['reference'])}"
            f"{chance_in_words(figures)}, déjà vu score {figure_in_words(figures['score'])}"
        )
    lines.append("  " + ", ".join(f"{outcome} {figure_in_words(top_1['shares'][outcome])}" for outcome in mem.OUTCOMES))
    ceilings = (f"model {model} {figure_in_words(found['top_1'])}" for model, found in results["ceiling"].items())
    lines.append("  ceiling (the same vote on whole public images): " + ", ".join(ceilings))
    if "without" in results.get("near_copies", ()):
        without = results["near_copies"]["without"]
        score = without["top_1"]["accuracy"]["100"]["score"]
        lines.append(
            f"  the {without['n']} images without a near-copy elsewhere: déjà vu score {figure_in_words(score)}"
        )
    if "one_model" in results["both"]:
        return [*lines, *(f"  {line}" for line in [*one_model_lines(results), *verdict(results)])]
    margin = figure_in_words(results["both"]["vote_share"]["margin"])
    lines.append(f"  margin of the true label's share of the votes, target - reference: {margin}")
    return lines + [f"  {sentence}" for sentence in verdict(results)]
