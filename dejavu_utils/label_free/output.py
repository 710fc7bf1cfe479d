"""The folder of sslmem.py: tables of images and units, results and figures, written at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dejavu_utils.analysis.figures import (
    draw_margins,
    draw_means,
    draw_roc,
    draw_units,
    save_figure,
)
from dejavu_utils.analysis.intervals import Estimate, proportion
from dejavu_utils.analysis.membership import (
    SAME_DRAW,
    Membership,
    membership,
    membership_in_words,
    roc_table,
)
from dejavu_utils.analysis.report import POINTWISE, figure_in_words, models_in_words
from dejavu_utils.analysis.results_json import RESULTS
from dejavu_utils.data.provenance import MADE_FROM
from dejavu_utils.files import save_csv, save_json, save_npy
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.label_free.compare import SCORE, attacked_rows, correlations, scores, with_margins
from dejavu_utils.label_free.gallery import save_sslmem_gallery
from dejavu_utils.label_free.measure import Alignment
from dejavu_utils.label_free.scores import (
    mean_estimate,
    range_normalized,
    sslmem,
    unitmem,
    weighted_means,
)
from dejavu_utils.naming import SETS, TWIN
from dejavu_utils.typed_json import entry, optional, to_json

CONTROLS = ("shared", "public", "unseen")
NEITHER = ("public", "unseen")  # sets that neither model trained on

Tables = dict[str, pd.DataFrame]  # {set: as sslmem_{set}.csv holds it}
ByLayer = dict[str, Estimate]
Units = dict[tuple[str, str, str], np.ndarray]  # {(model, set, layer): UnitMem float64 (units,)}


@dataclass
class Measured:
    """What was measured. sets: {set: int64 (n,) image indices}, A and B, then those of CONTROLS
    that were given. alignments: of each set. layers: names, in the order of the network. margins:
    of the attack on the same images, as compare.read_margins gives them, or None. views_of: image
    index -> the views as PIL images."""

    listing: ImageListing
    sets: dict[str, np.ndarray]
    alignments: dict[str, Alignment]
    layers: list[str]
    margins: dict[str, pd.DataFrame] | None
    views_of: Callable[..., list[Image.Image]]


@dataclass
class LayerScores:
    """Of a set at one layer. Means over its images, but for above_0: a fraction of them."""

    score: Estimate = entry("SSLMem")
    normalized: Estimate = entry("SSLMem / its range over the set")
    above_0: Estimate = entry("fraction of the images whose SSLMem is above 0")
    target: Estimate = entry("distance between an image's views under the target")
    reference: Estimate = entry("the same under the reference")
    less_control: Estimate | None = optional("SSLMem minus that of public and unseen images")
    delta: Estimate | None = optional("Delta LayerMem: SSLMem minus that of the previous layer")


@dataclass
class SetScores:
    """Of a set of images."""

    images: int = entry("images that were measured")
    unreadable: int = entry("images that could not be read")
    layers: dict[str, LayerScores] = entry("by layer")


@dataclass
class SslmemResults:
    """results.json of sslmem.py."""

    sets: dict[str, SetScores] = entry("by set")
    both: ByLayer = entry(
        "mean SSLMem of both directions: an overall advantage of one model cancels"
    )
    control: ByLayer = entry(
        "placebo: the same of public and unseen images, every second in place of set A"
    )
    attack: dict[str, dict] | None = entry(
        "by set and layer: rank correlations with the votes", absent=True
    )
    membership: dict[str, dict[str, Membership]] = entry(
        "by layer and score: AUC and true-positive rates, set A against set B"
    )
    unitmem: dict[str, Any] = entry("how UnitMem is defined")
    warnings: list[str] = entry("what could make the scores mean less than they seem")
    settings: dict[str, Any] = entry("the flags")
    views: dict[str, Any] = entry("the augmented views")
    made_from: dict[str, Any] = entry("the record, Provenance.plain")


def write_folder(folder: Path, measured: Measured, about: dict[str, Any]) -> SslmemResults:
    """Writes everything into `folder`, results.json last, and returns what that holds.

    about: {"warnings", "settings", "views", "made_from"} for results.json.
    """
    layers = measured.layers
    tables = {name: _table_of(name, measured) for name in measured.sets}
    for name, table in tables.items():
        save_csv(folder / f"sslmem_{name}.csv", table)
    units, summary = _units_of(measured)
    save_csv(folder / "unitmem.csv", summary)
    sets = {}
    for name, table in tables.items():
        unreadable = len(measured.sets[name]) - len(table)
        sets[name] = SetScores(len(table), unreadable, _statistics(name, tables, layers))
    both = {}
    placebo = {}
    memberships = {}
    for layer in layers:
        of_A = scores(tables["A"], layer)
        of_B = scores(tables["B"], layer)
        both[layer] = weighted_means((0.5, of_A), (0.5, of_B))
        control = _control(tables, layer)
        if len(control):
            placebo[layer] = weighted_means((0.5, control[::2]), (-0.5, control[1::2]))
        members = member_scores(tables, layer)
        memberships[layer] = {who: membership(*pair) for who, pair in members.items()}
    attack = None
    if measured.margins:
        attack = {name: correlations(tables[name], layers) for name in SETS}
    results = SslmemResults(
        sets=sets,
        both=both,
        control=placebo,
        attack=attack,
        membership=memberships,
        unitmem={"rest": "mean of the other images", "never active": 0},
        **about,
    )
    means = []
    for name, of_set in sets.items():
        for layer, of_layer in of_set.layers.items():
            means.append({"set": name, "layer": layer, **vars(of_layer.score)})
    caption = caption_of(", ".join(layers), measured, about)
    save_figure(folder / "sslmem_layers", draw_means, pd.DataFrame(means), caption)
    for layer in layers:
        caption = caption_of(layer, measured, about)
        _save_units(folder, units, layer, caption)
        curves = roc_table(member_scores(tables, layer))
        save_csv(folder / f"sslmem_membership_{layer}.csv", curves)
        save_figure(folder / f"sslmem_membership_{layer}", draw_roc, curves, caption)
        if measured.margins:
            attacked = pd.concat([attacked_rows(tables[name]).assign(set=name) for name in SETS])
            names = {"attack_margin": "margin", f"{layer}{SCORE}": "sslmem"}
            points = attacked.rename(columns=names)
            save_figure(folder / f"sslmem_margin_{layer}", draw_margins, points, caption)
    header = models_in_words(about.get(MADE_FROM))
    for layer, estimate in results.both.items():
        header.append(f"Mean SSLMem of both directions, {layer}: {figure_in_words(estimate)}.")
    if len(results.both) > 1:
        header.append(POINTWISE)
    trained = {name: tables[name] for name in SETS}
    page = folder / "sslmem_gallery.html"
    save_sslmem_gallery(page, trained, measured.listing, layers, measured.views_of, header=header)
    save_json(folder / RESULTS, to_json(results))
    return results


def _save_units(folder: Path, units: Units, layer: str, caption: str) -> None:
    """UnitMem of each model on its own set as files, and beside that on the other set as a figure."""
    for model in SETS:
        save_npy(folder / f"unitmem_{model}_{layer}.npy", units[model, model, layer])
    own = np.concatenate([units[model, model, layer] for model in SETS])
    others = np.concatenate([units[model, TWIN[model], layer] for model in SETS])
    of_both = pd.DataFrame({"trained on": own, "not trained on": others})
    save_figure(folder / f"unitmem_{layer}", draw_units, of_both, caption)


def caption_of(layer: str, measured: Measured, about: dict[str, Any]) -> str:
    """Models, layer and attacked images."""
    n = " + ".join(str(len(measured.alignments[name].rows)) for name in SETS)
    models = " ".join(models_in_words(about.get(MADE_FROM)))
    return f"{models}\n{layer}, n = {n} images of sets A and B".strip()


def _table_of(name: str, measured: Measured) -> pd.DataFrame:
    """One row an image that could be read, as sslmem_{set}.csv holds them. The target is model B on
    set B, else A."""
    alignment = measured.alignments[name]
    listing = measured.listing
    indices = measured.sets[name][alignment.rows]
    paths = [listing.text(index) for index in indices]
    table = pd.DataFrame({"index": indices, "path": paths, "label": listing.labels[indices]})
    target = name if name in SETS else "A"
    for layer in measured.layers:
        of_target = alignment.layers[target, layer].distance
        of_reference = alignment.layers[TWIN[target], layer].distance
        of_images = sslmem(of_target, of_reference)
        table[f"{layer}{SCORE}"] = of_images
        table[f"{layer}_normalized"] = range_normalized(of_images)
        table[f"{layer}_target"] = of_target
        table[f"{layer}_reference"] = of_reference
    if measured.margins and name in SETS:
        return with_margins(table, measured.margins[name])
    return table


def _statistics(name: str, tables: Tables, layers: list[str]) -> dict[str, LayerScores]:
    """{layer: its LayerScores} of a set."""
    table = tables[name]
    statistics = {}
    before = None
    for layer in layers:
        of_images = scores(table, layer)
        of_layer = statistics[layer] = LayerScores(
            score=mean_estimate(of_images),
            normalized=mean_estimate(table[f"{layer}_normalized"].to_numpy()),
            above_0=proportion((of_images > 0).sum(), len(of_images)),
            target=mean_estimate(table[f"{layer}_target"].to_numpy()),
            reference=mean_estimate(table[f"{layer}_reference"].to_numpy()),
        )
        control = _control(tables, layer)
        if len(control) and name not in NEITHER:
            sign = 1 if name == "B" else -1  # the control's target is model A
            of_layer.less_control = weighted_means((1, of_images), (sign, control))
        if before is not None:
            of_layer.delta = mean_estimate(of_images - before)
        before = of_images
    return statistics


def _control(tables: Tables, layer: str) -> np.ndarray:
    """Scores of all images that neither model trained on, model A as the target."""
    control = [np.empty(0)]
    for name in NEITHER:
        if name in tables:
            control.append(scores(tables[name], layer))
    return np.concatenate(control)


def member_scores(tables: Tables, layer: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{score: (of members, of non-members)}, of set A against set B: minus the mean pair distance
    of model A and of model B, and SSLMem of the twins, for model A. Where both controls are given,
    model A's on public against unseen images, too: neither was trained on, so that the AUC is 0.5.

    On set B the target is model B.
    """

    def column(name: str, what: str) -> np.ndarray:
        return tables[name][f"{layer}_{what}"].to_numpy(float)

    members = {
        "model A": (-column("A", "target"), -column("B", "reference")),
        "model B": (-column("B", "target"), -column("A", "reference")),
        "twins": (column("A", "sslmem"), -column("B", "sslmem")),
    }
    if "public" in tables and "unseen" in tables:
        members["public against unseen"] = -column("public", "target"), -column("unseen", "target")
    return {name: pair for name, pair in members.items() if len(pair[0]) and len(pair[1])}


def _units_of(measured: Measured) -> tuple[Units, pd.DataFrame]:
    """(UnitMem, its summary as unitmem.csv holds it)."""
    units = {}
    rows = []
    for name, alignment in measured.alignments.items():
        for model in SETS:
            for layer in measured.layers:
                part = alignment.layers[model, layer]
                values = unitmem(part.largest, part.total, len(alignment.rows))
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


def sslmem_in_words(results: SslmemResults) -> list[str]:
    """What results.json says, in lines of text."""
    lines = [
        "mean SSLMem (above 0: the target aligns an image's views better), with 95 % intervals:"
    ]
    for name, part in results.sets.items():
        who = f"set {name}" if name in SETS else f"{name} (control)"
        for layer, figures in part.layers.items():
            above = f"{100 * figures.above_0.value:.0f} % of {part.images} images above 0"
            less = ""
            if figures.less_control:
                less = f"; minus control {figure_in_words(figures.less_control)}"
            lines.append(f"  {who}, {layer}: {figure_in_words(figures.score)}{less}; {above}")
    for layer, figure in results.both.items():
        control = ""
        if results.control:
            control = f"; placebo (control split in two) {figure_in_words(results.control[layer])}"
        lines.append(f"  both directions, {layer}: {figure_in_words(figure)}{control}")
    for layer, of_layer in results.membership.items():
        for who, result in of_layer.items():
            lines.append(f"  membership, {layer}, {who}: {membership_in_words(result)}")
    lines.append(f"  {SAME_DRAW}")
    for name, of_set in (results.attack or {}).items():
        for layer, of_layer in of_set.items():
            overall = figure_in_words(of_layer["overall"])
            within = figure_in_words(of_layer["within_classes"])
            target = figure_in_words(of_layer["target_share"])
            reference = figure_in_words(of_layer["reference_share"])
            lines.append(
                f"  set {name}, {layer}: rank correlation with the margin of votes {overall}, within classes {within}; "
                f"with its parts, the target's {target}, the reference's {reference}"
            )
    return lines + [f"  warning: {text}" for text in results.warnings]
