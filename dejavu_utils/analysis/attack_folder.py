"""The folder of an attack on one layer: neighbors or scores, tables, results and the gallery, written at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.gallery import save_gallery
from dejavu_utils.analysis.points import SETS, attack_path
from dejavu_utils.analysis.results import (
    TOP_KS,
    attack_statistics,
    ceiling,
    chance_in_words,
    class_table,
    confidence_curve,
    example_table,
    figure_in_words,
    mean_ceiling,
    read_attack,
)
from dejavu_utils.analysis.verdict import statistical_warnings, verdict
from dejavu_utils.attack.queries import CEILING
from dejavu_utils.files import save_csv, save_json, save_npy
from dejavu_utils.imagenet import UNREADABLE, ImageListing


@dataclass
class LayerOutcome:
    """What the two models found at one layer. indices: {set: int64 (n,)}, attacked images, and crops: {set: int64 (n,
    4)}. Either nearest: {(model, set): int64 (n, k)}, image indices of the nearest public images, or scores: {(model,
    set): float32 (n, classes)}. ceiling: {model: {"top_1", "top_5": {"value", "low", "high"}}}."""

    indices: dict
    crops: dict
    nearest: dict | None
    scores: dict | None
    ceiling: dict


def outcome_of(
    layer: str, listing: ImageListing, queries: Any, public: Any, found: Any, votes: tuple[int, int]
) -> LayerOutcome:
    """The LayerOutcome of what a search, or the pass for the logits, has Found.

    queries: attack.queries.Queries. public: attack.search.ImageSet. votes: (k neighbors that are kept, nearest of them
    that vote, 0 for all).
    """
    k, k_attk = votes
    among = {name: queries.among(name, found.rows) for name in queries.parts}
    rows = {name: found.rows[chosen] for name, chosen in among.items()}
    nearest, scores, ceilings = {}, {}, {}
    for model in SETS:
        array = found.arrays[model, layer]
        for name in queries.parts:
            if layer == "logits":
                scores[model, name] = array[among[name]]
            else:
                places = queries.neighbors(rows[name], array[among[name]], k)
                nearest[model, name] = public.indices[places]
        labels = listing.labels[queries.images.indices[rows[CEILING]]]
        if layer == "logits":
            predictions = mem.predict_from_scores(scores[model, CEILING])
        else:
            voters = listing.labels[nearest[model, CEILING]]
            predictions = mem.predict_from_neighbors(voters, min(k_attk or k, voters.shape[1]))
        ceilings[model] = ceiling(predictions, labels)
    indices, crops = (
        {name: part[rows[name]] for name in SETS} for part in (queries.images.indices, queries.images.crops)
    )
    return LayerOutcome(indices, crops, nearest or None, scores or None, ceilings)


def counts_of(parts: dict, outcome: LayerOutcome, public: Any, unreadable: int, classes: int) -> dict:
    """{set: how many images were attacked, and skipped for what; "public", ...}, without images that cannot be read.

    parts: {set: attack.boxes.CroppedImages}. public: how many public images there are, of which `unreadable` could not
    be read. classes: how many there are.
    """
    counts = {name: dict(parts[name].counts) for name in SETS}
    for name in SETS:
        lost = counts[name]["attacked"] - len(outcome.indices[name])
        counts[name]["attacked"] -= lost
        counts[name][UNREADABLE] += lost
    return {**counts, "public": public - unreadable, f"public, {UNREADABLE}": unreadable, "classes": classes}


def write_layer(
    folder: str | Path, outcome: LayerOutcome, listing: ImageListing, k_attk: int, about: dict, pictures: Any
) -> dict:
    """Writes everything about one layer into `folder`, results.json last, and returns what that holds.

    outcome: LayerOutcome. listing: ImageListing. k_attk: neighbors that vote. about: {"counts", "settings", "warnings"}
    for results.json; what the figures themselves warn of is added. pictures: {"boxes": function of an index or None,
    "names": of classes or None}, for the gallery.
    """
    folder = Path(folder)
    for name in SETS:
        indices = outcome.indices[name]
        for model in SETS:
            arrays = {"attk_idxs": indices, "labels": listing.labels[indices, None]}
            if outcome.nearest:
                found = outcome.nearest[model, name]
                arrays |= {"neighb_idxs": found, "neighb_labels": listing.labels[found]}
            elif outcome.scores:
                arrays["scores"] = outcome.scores[model, name]
            for what, values in arrays.items():
                save_npy(attack_path(folder, model, name, what), values)
    sets = read_attack(folder, k_attk)
    _save_sweeps(folder, sets)
    for name in SETS:
        save_csv(folder / f"attack_{name}.csv", example_table(sets[name], listing))
    save_csv(folder / "attack_classes.csv", class_table(sets, listing.classes))
    save_csv(folder / "attack_confidence.csv", confidence_curve(sets, ceiling=mean_ceiling(outcome.ceiling)))
    attacked, crops = (np.concatenate([part[name] for name in SETS]) for part in (outcome.indices, outcome.crops))
    nearest = outcome.nearest and {
        model: np.concatenate([outcome.nearest[model, name] for name in SETS]) for model in SETS
    }
    gallery = folder / "attack_gallery.html"
    save_gallery(gallery, sets, listing, attacked, crops, nearest, pictures["boxes"], pictures["names"])
    results = {**attack_statistics(sets), "ceiling": outcome.ceiling, **about}
    results["warnings"] = [*about["warnings"], *statistical_warnings(results)]
    save_json(folder / "results.json", results)
    return results


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
    margin = figure_in_words(results["both"]["vote_share"]["margin"])
    lines.append(f"  margin of the true label's share of the votes, target - reference: {margin}")
    return lines + [f"  {sentence}" for sentence in verdict(results)]
