"""The figures of sslmem.py: score by layer, UnitMem of a layer's units, SSLMem against the déjà vu test's margin."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dejavu_utils.analysis.plots import COLORS, MARKERS, figure_style
from dejavu_utils.files import complete_file

_SIZE = (3.4, 2.5)  # inches


def save_score_figure(path: str | Path, sets: dict, layers: list[str]) -> None:
    """Mean SSLMem of each set at each layer, with 95 % intervals.

    path: without suffix. sets: {set: {layer: {"value", "low", "high"}}}. Writes path.png and path.pdf.
    """

    def draw(axes):
        for number, (name, scores) in enumerate(sets.items()):
            value, low, high = (
                np.array([scores[layer][part] for layer in layers]) for part in ("value", "low", "high")
            )
            place = np.arange(len(layers)) + 0.12 * (number - (len(sets) - 1) / 2)
            look = {"linestyle": "none", "marker": MARKERS[number], "color": COLORS[number], "markersize": 4}
            axes.errorbar(place, value, (value - low, high - value), capsize=2, elinewidth=1, label=name, **look)
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_xticks(np.arange(len(layers)), layers)
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.set_ylabel("mean SSLMem")
        axes.legend(frameon=False)

    _save(path, draw)


def save_unit_figure(path: str | Path, own: np.ndarray, others: np.ndarray, layer: str) -> None:
    """How many units of a layer have which UnitMem, over images that their model trained on and over others.

    path: without suffix. own, others: float (units,), of both models. Writes path.png and path.pdf.
    """

    def draw(axes):
        bins = np.linspace(0, 1, 41)
        for number, (values, name) in enumerate(((own, "trained on"), (others, "not trained on"))):
            axes.hist(values, bins, histtype="step", color=COLORS[number], linestyle=("-", "--")[number], label=name)
        axes.set_xlabel(f"UnitMem, {layer}")
        axes.set_ylabel("units")
        axes.legend(frameon=False)

    _save(path, draw)


def save_margin_figure(path: str | Path, points: dict, layer: str) -> None:
    """SSLMem of each image against the margin of the true label's share of the votes, target - reference.

    path: without suffix. points: {set: (margins float (n,), scores float (n,))}. Writes path.png and path.pdf.
    """

    def draw(axes):
        for number, (name, (margins, scores)) in enumerate(points.items()):
            look = {"marker": MARKERS[number], "color": COLORS[number], "alpha": 0.5, "linewidths": 0}
            axes.scatter(margins, scores, s=8, label=f"set {name}", **look)
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.axvline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_xlabel("margin of votes, target - reference")
        axes.set_ylabel(f"SSLMem, {layer}")
        axes.legend(frameon=False)

    _save(path, draw)


def _save(path, draw):
    with figure_style("plain"):
        figure = Figure(figsize=_SIZE, layout="constrained", dpi=300)
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        for ending, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            with complete_file(f"{path}.{ending}") as temporary:
                figure.savefig(temporary, metadata=metadata)
