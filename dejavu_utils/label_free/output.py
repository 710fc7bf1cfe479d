"""The folder of sslmem.py: tables of images and units, results and figures, written at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dejavu_utils.analysis.figures import draw_margins, draw_means, draw_roc, draw_units, save_figure
from dejavu_utils.analysis.membership import SAME_DRAW, Membership, membership_in_words, roc_table
from dejavu_utils.analysis.report import figure_in_words, models_in_words
from dejavu_utils.data.provenance import MADE_FROM
from dejavu_utils.files import save_csv, save_json, save_npy
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.label_free import compare as instruments
from dejavu_utils.label_free import scores as sslmem
from dejavu_utils.label_free.gallery import save_sslmem_gallery
from dejavu_utils.label_free.measure import Alignment
from dejavu_utils.label_free.members import member_scores, memberships
from dejavu_utils.naming import SETS
from dejavu_utils.typed_json import from_json, to_json

CONTROLS = ("shared", "public", "unseen")
NEITHER = ("public", "unseen")  # sets that neither model trained on

Tables = dict[str, pd.DataFrame]  # {set: as sslmem_{set}.csv holds it}


@dataclass
class Measured:
    """What was measured. sets: {set: int64 (n,) image indices}, A and B, then those of CONTROLS that were given.
    alignments: of each set. layers: names, in the order of the network. margins: of the attack on the same
    images, as instruments.read_margins gives them, or None. views_of: image index -> the views as PIL images."""

    listing: ImageListing
    sets: dict[str, np.ndarray]
    alignments: dict[str, Alignment]
    layers: list[str]
    margins: dict[str, pd.DataFrame] | None
    views_of: Callable[..., list[Image.Image]]


def write_folder(folder: str | Path, measured: Measured, about: dict) -> dict:
    """Writes everything into `folder`, results.json last, and returns what that holds.

    about: {"warnings", "settings", ...} for results.json.
    """
    folder, layers = Path(folder), measured.layers
    tables = {name: _table_of(name, measured) for name in measured.sets}
    results = {
        "sets": {
            name: {
                "images": len(table),
                "unreadable": len(measured.sets[name]) - len(table),
                "layers": _statistics(name, tables, layers),
            }
            for name, table in tables.items()
        },
        **_directions(tables, layers),
    }
    if measured.margins:
        results["attack"] = {name: instruments.correlations(tables[name], layers) for name in SETS}
        for layer in layers:
            points = []
            for name in SETS:
                margins, scores = instruments.margins_and_scores(tables[name], layer)
                points.append(pd.DataFrame({"set": name, "margin": margins, "sslmem": scores}))
            caption = caption_of(layer, measured, about)
            save_figure(folder / f"sslmem_margin_{layer}", draw_margins, pd.concat(points), caption)
    for name, table in tables.items():
        save_csv(folder / f"sslmem_{name}.csv", table)
    units, summary = _units_of(measured)
    for (model, name, layer), values in units.items():
        if model == name:
            save_npy(folder / f"unitmem_{model}_{layer}.npy", values)
    save_csv(folder / "unitmem.csv", summary)
    means = []
    for name, part in results["sets"].items():
        for layer in layers:
            means.append({"set": name, "layer": layer, **part["layers"][layer]["score"]})
    caption = caption_of(", ".join(layers), measured, about)
    save_figure(folder / "sslmem_layers", draw_means, pd.DataFrame(means), caption)
    for layer in layers:
        own, others = (np.concatenate([units[a, b, layer] for a, b in pairs]) for pairs in (("AA", "BB"), ("AB", "BA")))
        of_layer = pd.DataFrame({"trained on": own, "not trained on": others})
        save_figure(folder / f"unitmem_{layer}", draw_units, of_layer, caption_of(layer, measured, about))
    results["membership"] = {}
    for layer in layers:
        members = member_scores(tables, layer)
        results["membership"][layer] = to_json(memberships(members))
        curves = roc_table(members)
        save_csv(folder / f"sslmem_membership_{layer}.csv", curves)
        save_figure(folder / f"sslmem_membership_{layer}", draw_roc, curves, caption_of(layer, measured, about))
    trained = {name: tables[name] for name in SETS}
    header = models_in_words(about.get(MADE_FROM))
    for layer in layers:
        header.append(f"Mean SSLMem of both directions, {layer}: {figure_in_words(results['both'][layer])}.")
    page = folder / "sslmem_gallery.html"
    save_sslmem_gallery(page, trained, measured.listing, layers, measured.views_of, header=header)
    results["unitmem"] = {"rest": "mean of the other images", "never active": 0}
    results = _without_nan({**results, **about})
    save_json(folder / "results.json", results)
    return results


def caption_of(layer: str, measured: Measured, about: dict) -> str:
    """Models, layer and attacked images."""
    n = " + ".join(str(len(measured.alignments[name].rows)) for name in SETS)
    models = " ".join(models_in_words(about.get(MADE_FROM)))
    return f"{models}\n{layer}, n = {n} images of sets A and B".strip()


def _table_of(name: str, measured: Measured) -> pd.DataFrame:
    """One row an image that could be read, as sslmem_{set}.csv holds them. The target is model B on set B, else A."""
    alignment, listing = measured.alignments[name], measured.listing
    indices = measured.sets[name][alignment.rows]
    columns = {"index": indices, "path": [listing.text(i) for i in indices], "label": listing.labels[indices]}
    target, reference = ("B", "A") if name == "B" else ("A", "B")
    for layer in measured.layers:
        distances = [alignment.distances[model, layer] for model in (target, reference)]
        scores = sslmem.sslmem(*distances)
        columns[f"{layer}{instruments.SCORE}"] = scores
        columns[f"{layer}_normalized"] = sslmem.range_normalized(scores)
        columns[f"{layer}_target"], columns[f"{layer}_reference"] = distances
    table = pd.DataFrame(columns)
    return instruments.with_margins(table, measured.margins[name]) if measured.margins and name in SETS else table


def _statistics(name: str, tables: Tables, layers: list[str]) -> dict[str, dict]:
    """{layer: mean score, the same minus that of the control, its change from the layer before, both distances,
    fraction of scores above 0}."""
    table = tables[name]
    statistics: dict[str, dict] = {}
    before = None
    for layer in layers:
        scores, control = instruments.scores(table, layer), _control(tables, layer)
        statistics[layer] = {
            "score": sslmem.mean_estimate(scores),
            "normalized": sslmem.mean_estimate(table[f"{layer}_normalized"].to_numpy()),
            "above_0": sslmem.fraction_above_0(scores),
            "target": sslmem.mean_estimate(table[f"{layer}_target"].to_numpy()),
            "reference": sslmem.mean_estimate(table[f"{layer}_reference"].to_numpy()),
        }
        if len(control) and name not in NEITHER:  # whose scores have model A as the target
            statistics[layer]["less_control"] = sslmem.weighted_means((1, scores), (1 if name == "B" else -1, control))
        if before is not None:  # delta LayerMem
            statistics[layer]["delta"] = sslmem.mean_estimate(scores - before)
        before = scores
    return statistics


def _control(tables: Tables, layer: str) -> np.ndarray:
    """Scores of all images that neither model trained on, model A as the target."""
    scores = [np.empty(0)]
    for name in NEITHER:
        if name in tables:
            scores.append(instruments.scores(tables[name], layer))
    return np.concatenate(scores)


def _directions(tables: Tables, layers: list[str]) -> dict[str, dict]:
    """{"both": {layer: mean score of both directions}, "control": the same of images that neither trained on, every
    second in the place of set A, the others in that of set B}: what one model aligns better everywhere is gone."""
    both, control = {}, {}
    for layer in layers:
        halves = [(0.5, instruments.scores(tables[name], layer)) for name in SETS]
        both[layer] = sslmem.weighted_means(*halves)
        of_neither = _control(tables, layer)
        if len(of_neither):
            control[layer] = sslmem.weighted_means((0.5, of_neither[::2]), (-0.5, of_neither[1::2]))
    return {"both": both, "control": control}


def _units_of(measured: Measured) -> tuple[dict[tuple[str, str, str], np.ndarray], pd.DataFrame]:
    """({(model, set, layer): UnitMem float64 (width,)}, their summary as unitmem.csv holds it)."""
    units, rows = {}, []
    for name, alignment in measured.alignments.items():
        for model in SETS:
            for layer in measured.layers:
                part = alignment.units[model, layer]
                values = sslmem.unitmem(part.largest, part.total, len(alignment.rows))
                units[model, name, layer] = values
                median, upper, most = np.quantile(values, (0.5, 0.9, 1))
                image = part.image[values.argmax()]
                rows.append(
                    {
                        "model": model,
                        "set": name,
                        "layer": layer,
                        "units": len(values),
                        "active": int((part.image >= 0).sum()),
                        "mean": values.mean(),
                        "median": median,
                        "pct90": upper,
                        "max": most,
                        "max_unit": int(values.argmax()),
                        "max_image": int(measured.sets[name][image]) if image >= 0 else -1,
                    }
                )
    return units, pd.DataFrame(rows)


def _without_nan(value: Any) -> Any:
    """The same with None for numbers that are not defined: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sslmem_in_words(results: dict) -> list[str]:
    """What results.json says, in lines of text."""
    lines = ["mean SSLMem (above 0: the target aligns an image's views better), with 95 % intervals:"]
    for name, part in results["sets"].items():
        who = f"set {name}" if name in SETS else f"{name} (control)"
        for layer, figures in part["layers"].items():
            above = f"{100 * figures['above_0']['value']:.0f} % of {part['images']} images above 0"
            less = f"; minus control {figure_in_words(figures['less_control'])}" if "less_control" in figures else ""
            lines.append(f"  {who}, {layer}: {figure_in_words(figures['score'])}{less}; {above}")
    for layer, figure in results["both"].items():
        control = ""
        if results["control"]:
            control = f"; placebo (control split in two) {figure_in_words(results['control'][layer])}"
        lines.append(f"  both directions, {layer}: {figure_in_words(figure)}{control}")
    for layer, figures in results["membership"].items():
        for who, found in figures.items():
            lines.append(f"  membership, {layer}, {who}: {membership_in_words(from_json(Membership, found))}")
    lines.append(f"  {SAME_DRAW}")
    for name, figures in results.get("attack", {}).items():
        for layer, found in figures.items():
            overall, within = (figure_in_words(found[which]) for which in ("overall", "within_classes"))
            parts = (f"{which}'s {figure_in_words(found[f'{which}_share'])}" for which in ("target", "reference"))
            lines.append(
                f"  set {name}, {layer}: rank correlation with the margin of votes {overall}, within classes {within}; "
                f"with its parts, the {', the '.join(parts)}"
            )
    return lines + [f"  warning: {text}" for text in results["warnings"]]
