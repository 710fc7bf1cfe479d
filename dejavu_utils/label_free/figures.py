"""The figures of label-free scores: by layer, UnitMem of a layer's units, and beside the déjà vu test: SSLMem against
the margin of votes, by outcome, and over the epochs of training."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dejavu_utils.analysis.figures import COLORS, MARKERS, X_LABELS, figure_style
from dejavu_utils.files import complete_file

_SIZE = (3.4, 2.5)  # inches


def save_score_figure(path: str | Path, sets: dict, layers: list[str]) -> None:
    """Mean SSLMem of each set at each layer, with 95 % intervals.

    path: without suffix. sets: {set: {layer: {"value", "low", "high"}}}. Writes path.png and path.pdf.
    """

    means = {name: [scores[layer] for layer in layers] for name, scores in sets.items()}
    _save(path, lambda axes: _draw_means(axes, means, layers))


def save_outcome_figures(path: str | Path, frame: pd.DataFrame, top_k: int) -> None:
    """Mean SSLMem of the images of each outcome of the attack, a color for each layer, with 95 % intervals.

    path: without suffix. frame: columns layer, outcome, value, low, high. Writes path.png and path.pdf.
    """
    outcomes = list(frame["outcome"].unique())
    means = {layer: rows.to_dict("records") for layer, rows in frame.groupby("layer", sort=False)}

    def draw(axes):
        _draw_means(axes, means, outcomes)
        axes.tick_params(axis="x", labelsize=6)  # the words are long
        axes.set_xlabel(f"outcome of the attack (top-{top_k})")

    _save(path, draw)


def save_epoch_figures(path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None) -> None:
    """Déjà vu score and mean SSLMem against `x`, with 95 % intervals.

    path: without suffix. frame: columns x, instrument ("deja_vu" or "sslmem"), of (per cent of the examples, or a
    layer), value, low, high. Writes path.png and path.pdf.
    """
    names = {"deja_vu": f"déjà vu score, top-{top_k}, {{}} %", "sslmem": "SSLMem, {}"}

    def draw(axes):
        for number, ((instrument, of), rows) in enumerate(frame.groupby(["instrument", "of"], sort=False)):
            look = {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)], "markersize": 4}
            line = {"linestyle": "-" if instrument == "deja_vu" else "--", "linewidth": 1.3}
            axes.plot(rows[x], rows["value"], label=names[instrument].format(of), **look, **line)
            axes.fill_between(rows[x], rows["low"], rows["high"], color=look["color"], alpha=0.15, linewidth=0)
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_xticks(sorted(frame[x].unique()))
        axes.set_xlabel(x_label or X_LABELS[x])
        axes.set_ylabel("déjà vu score, mean SSLMem")
        axes.legend(frameon=False, fontsize=6.5)

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


def _draw_means(axes, means, ticks):
    """means: {name in the legend: [{"value", "low", "high"}, ...], one for each of the ticks}."""
    for number, (name, estimates) in enumerate(means.items()):
        value, low, high = (
            np.array([estimate[part] for estimate in estimates], np.float64) for part in ("value", "low", "high")
        )
        place = np.arange(len(ticks)) + 0.12 * (number - (len(means) - 1) / 2)
        look = {"linestyle": "none", "marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)]}
        axes.errorbar(
            place, value, (value - low, high - value), capsize=2, elinewidth=1, label=name, markersize=4, **look
        )
    axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
    axes.set_xticks(np.arange(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylabel("mean SSLMem")
    axes.legend(frameon=False)


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
