"""The figures: one function a kind. Each takes the numbers that are saved beside the figure and returns nothing.

Figures are as wide as a column of two (3.4 inches), their fonts are embedded. Colors are Okabe & Ito's, told apart by
color-blind readers, in an order in which grey print tells the first ones apart; line styles and markers do so for all.
Bands and bars are pointwise 95 % intervals. Hatched: not interpretable, the ceiling is not above chance. A figure has
one unit per axis: accuracies, differences and distances have panels of their own.

`path` is without suffix: path.png, path.pdf, and the same with the suffix _legend, are written. `caption` says what is
shown: model, layer, epoch, k, n.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import AutoLocator, MaxNLocator

from dejavu_utils.analysis.memorization import OUTCOMES
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file

STYLES = ("plain", "science")
COLORS = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
LIMITS = {"chance": ":", "ceiling": (0, (6, 1.5, 1, 1.5))}  # of accuracies, where they are known: gray lines
X_LABELS = {"epoch": "epochs of training", "dataset": "training images per class", "k": "neighbors that vote, k"}
_SIZE = (3.4, 2.5)  # inches; a second panel below takes as much again as _PANEL
_PANEL = 1.4
_LEGEND_WIDTH = 1.25
_DIGIT = 0.062  # inches that a digit below the axis takes
_FONTS: Any = {"pdf.fonttype": 42, "ps.fonttype": 42}  # TrueType, as publishers want it
_PLAIN: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.4,
}
_BAR: Any = {"linestyle": "none", "capsize": 2, "elinewidth": 1, "markersize": 4}


@dataclass(frozen=True)
class XAxis:
    """label: below the axis. positions: of the ticks. names: words at the ticks; None writes the positions."""

    label: str
    positions: Sequence[float]
    names: Sequence[str] | None = None


@contextmanager
def figure_style(name: str) -> Iterator[None]:
    """Within it, figures are drawn in one of STYLES, whatever the user's matplotlibrc says.

    InputError where `science` (SciencePlots) is not installed.
    """
    styles: list[Any] = [{**_PLAIN, **_FONTS}]
    if name == "science":
        try:
            import scienceplots  # noqa: F401  (adds its styles to matplotlib's)
        except ImportError:
            raise InputError("--style science: SciencePlots is not installed here: pip install SciencePlots") from None
        styles = ["science", "no-latex", *styles]
    with style.context(styles, after_reset=True):
        yield


def save_accuracy_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None, caption: str = ""
) -> None:
    """Target and reference accuracy against `x`, a color for each confidence level.

    frame: columns x, pct_confidence, {target,reference}_{acc,low,high} and, if they are known, chance and ceiling,
    drawn for the largest fraction of examples, and interpretable.
    """
    groups = list(frame.groupby("pct_confidence", sort=True))
    positions, axis = _positions(frame, x, x_label)

    def draw(axes: Axes) -> None:
        for number, (_, rows) in enumerate(groups):
            for name, line, filled in (("target", "-", True), ("reference", "--", False)):
                _band(axes, positions[rows.index], rows, name, "acc", number, linestyle=line, **_face(number, filled))
        last = groups[-1][1]
        _limits(axes, positions[last.index], last)
        _hatch(axes, positions[last.index], last)
        axes.set_ylabel(f"top-{top_k} accuracy")

    handles = _legend([_who(pct) for pct, _ in groups]) + _pair_legend() + _limit_legend(groups[-1][1])
    save_figure(path, draw, axis, handles, caption)


def save_partition_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None, caption: str = ""
) -> None:
    """The fractions of the four outcomes against `x`. frame: columns x, and for each outcome its value, {outcome}_low
    and {outcome}_high."""
    positions, axis = _positions(frame, x, x_label)

    def draw(axes: Axes) -> None:
        for number, outcome in enumerate(OUTCOMES):
            _band(axes, positions, frame, outcome, None, number, linestyle=LINES[number])
        _hatch(axes, positions, frame)
        axes.set_ylabel(f"fraction of attacked images (top-{top_k})")

    save_figure(path, draw, axis, _legend(OUTCOMES, LINES), caption)


def save_probe_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None, caption: str = ""
) -> None:
    """The linear probe's training and validation accuracy against `x`. frame: columns x, {train,val}_{acc,low,high};
    intervals may be NaN."""
    positions, axis = _positions(frame, x, x_label)

    def draw(axes: Axes) -> None:
        for number, name in enumerate(("train", "val")):
            _band(axes, positions, frame, name, "acc", number, linestyle=LINES[number])
        axes.set_ylabel(f"linear probe, top-{top_k} accuracy")

    save_figure(path, draw, axis, _legend(("training set", "validation set"), LINES), caption)


def save_gap_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None, caption: str = ""
) -> None:
    """The déjà vu score of each confidence level beside what the linear probe's accuracy falls by on new images.

    frame: columns x, pct_confidence, {score,probe_gap}, and _low and _high of both (may be NaN).
    """
    groups = list(frame.groupby("pct_confidence", sort=True))
    positions, axis = _positions(frame, x, x_label)

    def draw(axes: Axes) -> None:
        for number, (_, rows) in enumerate(groups):
            _band(axes, positions[rows.index], rows, "score", None, number, **_face(number, True))
        rows, face = groups[0][1], _face(len(groups), False)
        _band(axes, positions[rows.index], rows, "probe_gap", None, len(groups), linestyle="--", **face)
        _zero(axes)
        axes.set_ylabel(f"difference in top-{top_k} accuracy")

    names = [f"déjà vu score,\n{_who(pct)}" for pct, _ in groups]
    last = _line("probe: training\n- validation set", len(groups), linestyle="--", **_face(len(groups), False))
    save_figure(path, draw, axis, [*_legend(names), last], caption)


def save_layer_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Target and reference accuracy of each layer, in the order of the rows; in a panel below the déjà vu score.

    frame: columns layer, pct_confidence, {target,reference}_{acc,low,high}, score, score_{low,high}, and chance and
    ceiling if they are known; the rows of the largest fraction of examples are drawn.
    """
    pct = frame["pct_confidence"].max()
    rows = frame[frame["pct_confidence"] == pct]
    label = f"top-{top_k} accuracy" + ("" if pct == 100 else f",\n{_who(pct)}")
    names = XAxis("layer that is attacked", np.arange(len(rows)), rows["layer"].tolist())
    _save_above_score(path, rows, names, {"target": "target_acc", "reference": "reference_acc"}, label, caption)


def save_criteria_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Target, reference and probe accuracy of each training criterion; in a panel below the déjà vu score.

    frame: columns loss, setting, value, {target,reference,probe_val,score} and _low and _high of each, chance, ceiling,
    and drawn: only rows with a 1 are.
    """
    rows = frame[frame["drawn"] == 1]
    names = rows["loss"].where(rows["setting"] != "param", rows["loss"] + " " + rows["value"].astype(str))
    columns = ["target", "reference"] + ["probe_val"] * bool(rows["probe_val"].notna().any())
    axis = XAxis("training criterion", np.arange(len(rows)), names.tolist())
    _save_above_score(path, rows, axis, dict(zip(columns, columns)), f"top-{top_k} accuracy", caption)


def save_layer_utility_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Accuracy of training's linear probe at each layer; in a panel below the déjà vu score.

    frame: columns layer, probe_val, and score, score_{low,high}.
    """
    rows = frame.assign(probe_val_low=frame["probe_val"], probe_val_high=frame["probe_val"])
    names = XAxis("layer that is attacked", np.arange(len(rows)), rows["layer"].tolist())
    _save_above_score(path, rows, names, {"probe_val": "probe_val"}, f"top-{top_k} accuracy", caption)


def _save_above_score(
    path: str | Path, rows: pd.DataFrame, x: XAxis, columns: dict[str, str], y_label: str, caption: str
) -> None:
    """Accuracies of each row side by side, in a panel below the déjà vu score. columns: {name: column of its value},
    names with columns {name}_low and {name}_high."""
    places = np.asarray(x.positions, float)

    def draw(axes: Axes, below: Axes) -> None:
        for number, (name, column) in enumerate(columns.items()):
            shift = 0.18 * (number - (len(columns) - 1) / 2)
            _bars(axes, places + shift, rows, column, name, number, name != "reference")
        for name in _known(rows):
            look = {"linestyle": LIMITS[name], "color": "0.45", "linewidth": 1}
            axes.hlines(rows[name], places - 0.4, places + 0.4, **look)
        _hatch(axes, places, rows)
        axes.set_ylabel(y_label)
        _bars(below, places, rows, "score", "score", len(columns), True)
        _hatch(below, places, rows)
        _zero(below)
        below.set_ylabel("déjà vu score")
        below.set_xlim(-0.5, len(rows) - 0.5)

    words = {"probe_val": "linear probe,\nvalidation"}
    handles = _legend([words.get(name, name) for name in [*columns, "déjà vu score"]], ["none"] * (len(columns) + 1))
    if "reference" in columns:
        handles[1].set_markerfacecolor("white")
    save_figure(path, draw, x, handles + _limit_legend(rows), caption, panels=2)


def save_grid_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Heat map of the déjà vu score over data set sizes and epochs. frame: columns dataset, epoch, score."""
    matrix = frame.pivot(index="dataset", columns="epoch", values="score")
    _save_matrix(path, matrix, (X_LABELS["epoch"], X_LABELS["dataset"]), f"{caption}: déjà vu score, top-{top_k}")


def save_grid_line_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """The déjà vu score against epochs, a color for each data set size. frame: columns dataset, epoch, score,
    score_{low,high}, interpretable."""
    groups = list(frame.groupby("dataset", sort=True))
    positions, axis = _positions(frame, "epoch", None)

    def draw(axes: Axes) -> None:
        for number, (_, rows) in enumerate(groups):
            line = LINES[number % len(LINES)]
            _band(axes, positions[rows.index], rows, "score", None, number, linestyle=line)
        _zero(axes)
        _hatch(axes, positions, frame)
        axes.set_ylabel(f"déjà vu score, top-{top_k}")

    names = [f"{dataset:g} per class" for dataset, _ in groups]
    save_figure(path, draw, axis, _legend(names, LINES * len(names)), caption)


def save_roc_figure(path: str | Path, frame: pd.DataFrame, caption: str = "") -> None:
    """True-positive against false-positive rate of each score, both axes logarithmic: what counts is the left end.

    frame: columns score (a name), false_positive_rate, true_positive_rate. The axes begin at one non-member: lower
    rates cannot be told apart.
    """
    groups = list(frame.groupby("score", sort=False))
    rates = frame["false_positive_rate"].to_numpy(float)
    least = rates[rates > 0].min()

    def draw(axes: Axes) -> None:
        axes.plot([least, 1], [least, 1], linestyle=LIMITS["chance"], color="0.45", linewidth=1)
        for number, (_, rows) in enumerate(groups):
            look = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number % len(LINES)], "linewidth": 1.3}
            axes.plot(rows["false_positive_rate"], rows["true_positive_rate"], **look)
        axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1), ylabel="true-positive rate")

    handles = [_line(name, number, linestyle=LINES[number % 4], marker="") for number, (name, _) in enumerate(groups)]
    handles.append(_line("chance", 0, linestyle=LIMITS["chance"], color="0.45", marker="", linewidth=1))
    ticks = 10.0 ** np.arange(np.ceil(np.log10(least)), 0.5)
    words = [f"{tick:g}" for tick in ticks]
    save_figure(path, draw, XAxis("false-positive rate", ticks, words), handles, caption, scaled=False)


def save_entropy_figure(path: str | Path, frame: pd.DataFrame, caption: str = "") -> None:
    """How many memorized images have which memorization confidence. frame: columns published and corrected, nats."""
    definitions = [name for name in ("published", "corrected") if frame[name].notna().any()]
    values = frame[definitions].to_numpy(float)
    low, high = min(0.0, np.nanmin(values)), max(0.0, np.nanmax(values))

    def draw(axes: Axes) -> None:
        bins = np.linspace(low, high, 31)
        for number, name in enumerate(definitions):
            axes.hist(frame[name].dropna(), bins, histtype="step", color=COLORS[number], linestyle=LINES[number])
        axes.axvline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_ylabel("memorized images")

    handles = [_line(name, number, linestyle=LINES[number], marker="") for number, name in enumerate(definitions)]
    ticks = np.round(MaxNLocator(6).tick_values(low, high), 6)
    save_figure(path, draw, XAxis("memorization confidence, nats", ticks), handles, caption)


def save_one_against_two_figure(path: str | Path, frame: pd.DataFrame, caption: str = "") -> None:
    """The score of the test of one model beside that of two. frame: columns model, and for two_models, one_model, delta
    and score_minus_delta value, _low and _high."""
    names = {
        "two_models": "two models",
        "one_model": "one model",
        "delta": "delta",
        "score_minus_delta": "score - delta",
    }
    places = np.arange(len(frame))

    def draw(axes: Axes) -> None:
        for number, name in enumerate(names):
            _bars(axes, places + 0.15 * (number - 1.5), frame, name, name, number, True)
        _zero(axes)
        axes.set_xlim(-0.5, len(frame) - 0.5)
        axes.set_ylabel("difference in top-1 accuracy")

    handles = _legend(list(names.values()), ["none"] * len(names))
    save_figure(path, draw, XAxis("model", places, frame["model"].tolist()), handles, caption)


def save_confidence_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Accuracy on the most confident examples against their fraction of all.

    frame: columns pct_confidence, {target,reference}_{acc,low,high}, and chance and ceiling if they are known.
    """
    positions = frame["pct_confidence"].to_numpy(float)

    def draw(axes: Axes) -> None:
        for number, (name, line) in enumerate((("target", "-"), ("reference", "--"))):
            _band(axes, positions, frame, name, "acc", number, linestyle=line, marker=None)
        _limits(axes, positions, frame)
        _hatch(axes, positions, frame)
        axes.set_ylabel(f"top-{top_k} accuracy")

    handles = _legend(("target", "reference"), LINES)
    for handle in handles:
        handle.set_marker("")
    handles += _limit_legend(frame)
    save_figure(path, draw, XAxis("most confident examples, per cent", np.arange(20, 101, 20)), handles, caption)


def save_outcome_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Mean SSLMem of the images of each outcome of the attack, a color for each layer. frame: columns layer, outcome,
    value, low, high."""
    outcomes = list(frame["outcome"].unique())
    means = {layer: rows.to_dict("records") for layer, rows in frame.groupby("layer", sort=False)}
    _save_means(path, means, f"outcome of the attack (top-{top_k})", outcomes, caption)


def save_score_figure(path: str | Path, sets: dict[str, dict], layers: list[str], caption: str = "") -> None:
    """Mean SSLMem of each set at each layer. sets: {set: {layer: {"value", "low", "high"}}}."""
    means = {name: [scores[layer] for layer in layers] for name, scores in sets.items()}
    with figure_style("plain"):
        _save_means(path, means, "layer", layers, caption)


def save_epoch_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None, caption: str = ""
) -> None:
    """Déjà vu score, and in a panel below mean SSLMem, against `x`.

    frame: columns x, instrument ("deja_vu" or "sslmem"), of (per cent of the examples, or a layer), value, low, high.
    """
    positions, axis = _positions(frame, x, x_label)
    groups = list(frame.groupby(["instrument", "of"], sort=False))
    named = [f"déjà vu score,\n{_who(float(of))}" if kind == "deja_vu" else f"SSLMem, {of}" for (kind, of), _ in groups]
    lines = ["-" if kind == "deja_vu" else "--" for (kind, _), _ in groups]

    def draw(axes: Axes, below: Axes) -> None:
        for number, ((kind, _), rows) in enumerate(groups):
            panel, renamed = axes, rows.rename(columns={"low": "value_low", "high": "value_high"})
            if kind == "sslmem":
                panel = below
            _band(panel, positions[rows.index], renamed, "value", None, number, linestyle=lines[number])
        for panel in (axes, below):
            _zero(panel)
        axes.set_ylabel(f"déjà vu score, top-{top_k}")
        below.set_ylabel("mean SSLMem")

    handles = [_line(name, number, linestyle=line) for number, (name, line) in enumerate(zip(named, lines))]
    save_figure(path, draw, axis, handles, caption, panels=2)


def save_unit_figure(path: str | Path, own: np.ndarray, others: np.ndarray, layer: str, caption: str = "") -> None:
    """How many units of a layer have which UnitMem, over images that their model trained on and over others.

    own, others: float (units,), of both models.
    """
    names = ("trained on", "not trained on")

    def draw(axes: Axes) -> None:
        bins = np.linspace(0, 1, 41)
        for number, values in enumerate((own, others)):
            axes.hist(values, bins, histtype="step", color=COLORS[number], linestyle=LINES[number])
        axes.set_ylabel("units")

    handles = [_line(name, number, linestyle=LINES[number], marker="") for number, name in enumerate(names)]
    with figure_style("plain"):
        save_figure(path, draw, XAxis(f"UnitMem, {layer}", np.linspace(0, 1, 6)), handles, caption)


def save_margin_figure(
    path: str | Path, points: dict[str, tuple[np.ndarray, np.ndarray]], layer: str, caption: str = ""
) -> None:
    """SSLMem of each image against the margin of the true label's share of the votes, target - reference.

    points: {set: (margins float (n,), scores float (n,))}.
    """

    def draw(axes: Axes) -> None:
        for number, (margins, scores) in enumerate(points.values()):
            look = {"marker": MARKERS[number], "color": COLORS[number], "alpha": 0.5, "linewidths": 0}
            axes.scatter(margins, scores, s=8, **look)
        _zero(axes)
        axes.axvline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_ylabel(f"SSLMem, {layer}")

    handles = _legend([f"set {name}" for name in points], ["none"] * len(points))
    axis = XAxis("margin of votes, target - reference", np.linspace(-1, 1, 5))
    with figure_style("plain"):
        save_figure(path, draw, axis, handles, caption)


def save_vote_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Target and reference accuracy, and in a panel below the déjà vu score, against the neighbors that vote.

    frame: columns k, {target,reference,score} and _low and _high of each, chance.
    """
    words = frame.assign(k=frame["k"].astype(str))
    positions, axis = _positions(words, "k", None)

    def draw(axes: Axes, below: Axes) -> None:
        for number, name in enumerate(("target", "reference")):
            _band(axes, positions, frame, name, None, number, linestyle=LINES[number])
        _limits(axes, positions, frame)
        _band(below, positions, frame, "score", None, 2)
        _zero(below)
        axes.set_ylabel(f"top-{top_k} accuracy")
        below.set_ylabel("déjà vu score")

    handles = _legend(("target", "reference", "déjà vu score"), ("-", "--", "-")) + _limit_legend(frame)
    save_figure(path, draw, axis, handles, caption, panels=2)


def save_class_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """How many classes have which déjà vu score, and the range that chance gives the class with the median n.

    frame: columns score, n, low, high, chance_low, chance_high. Filled: classes whose simultaneous interval lies
    outside what chance spreads.
    """
    apart = (frame["low"] > frame["chance_high"]) | (frame["high"] < frame["chance_low"])
    typical = frame.iloc[(frame["n"] - frame["n"].median()).abs().argmin()]

    def draw(axes: Axes) -> None:
        bins = np.linspace(min(-0.2, frame["score"].min()), max(0.2, frame["score"].max()), 21)
        axes.hist(frame["score"], bins, histtype="step", color=COLORS[0])
        axes.hist(frame["score"][apart], bins, color=COLORS[0])
        axes.axvspan(typical["chance_low"], typical["chance_high"], color="0.85", zorder=0)
        axes.axvline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel("classes")

    handles: list[Any] = [Patch(facecolor="none", edgecolor=COLORS[0], label="classes")]
    handles.append(Patch(facecolor=COLORS[0], label="outside the spread\n(simultaneous)"))
    handles.append(Patch(color="0.85", label="spread by chance\naround the mean"))
    ticks = MaxNLocator(5).tick_values(min(-0.2, frame["score"].min()), max(0.2, frame["score"].max()))
    axis = XAxis(f"déjà vu score of a class, top-{top_k}", np.round(ticks, 6))
    save_figure(path, draw, axis, handles, caption)


def save_utility_figures(path: str | Path, frame: pd.DataFrame, top_k: int, caption: str = "") -> None:
    """Déjà vu score against the linear probe's validation accuracy, a color for each model; joined: the points that no
    other beats in both.

    frame: columns model, score, score_low, score_high, probe_val, on_front.
    """
    groups = list(frame.groupby("model", sort=False))

    def draw(axes: Axes) -> None:
        for number, (_, rows) in enumerate(groups):
            _bars(axes, rows["probe_val"].to_numpy(float), rows, "score", "score", number, True)
        front = frame[frame["on_front"] == 1].sort_values("probe_val")
        axes.plot(front["probe_val"], front["score"], color="0.45", linewidth=1, linestyle="--", zorder=1)
        _zero(axes)
        axes.set_ylabel(f"déjà vu score, top-{top_k}")

    handles = _legend([str(name) for name, _ in groups], ["none"] * len(groups))
    handles.append(_line("Pareto front", 0, linestyle="--", color="0.45", marker="", linewidth=1))
    ticks = MaxNLocator(5).tick_values(frame["probe_val"].min(), frame["probe_val"].max())
    save_figure(path, draw, XAxis(f"linear probe, top-{top_k} accuracy", ticks), handles, caption)


def save_agreement_figure(path: str | Path, frame: pd.DataFrame, caption: str = "") -> None:
    """Of the images memorized in one run, the fraction memorized in another above chance. frame: columns first, second,
    above_chance."""
    matrix = frame.pivot(index="first", columns="second", values="above_chance")
    _save_matrix(path, matrix, ("also memorized in (above chance)", "memorized in"), caption)


def _save_matrix(path: str | Path, matrix: pd.DataFrame, labels: tuple[str, str], caption: str) -> None:
    """A heat map with its numbers. labels: of the columns and of the rows."""
    columns, rows = ([str(name) for name in names] for names in (matrix.columns, matrix.index))

    def draw(axes: Axes) -> None:
        axes.pcolormesh(matrix.to_numpy(float), cmap="Blues", edgecolors="white", linewidth=0.5)
        for (row, column), value in np.ndenumerate(matrix.to_numpy(float)):
            if np.isfinite(value):
                dark = value > np.nanmean([np.nanmin(matrix), np.nanmax(matrix)])
                look = {"ha": "center", "va": "center", "fontsize": 6.5, "color": "white" if dark else "black"}
                axes.text(column + 0.5, row + 0.5, f"{value:.2f}", **look)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set_ylabel(labels[1])

    save_figure(path, draw, XAxis(labels[0], np.arange(len(columns)) + 0.5, columns), [], caption, scaled=False)


def save_figure(
    path: str | Path,
    draw: Callable[..., None],
    x: XAxis,
    handles: list[Any],
    caption: str = "",
    panels: int = 1,
    scaled: bool = True,
) -> None:
    """Draws and writes one figure, without and with its legend. draw: function of the panels, from above. scaled: False
    leaves the axes as drawn, with words for numbers."""
    for suffix in ("", "_legend"):
        size = (_SIZE[0] + (_LEGEND_WIDTH if suffix else 0), _SIZE[1] + _PANEL * (panels - 1))
        figure = Figure(figsize=size, layout="constrained", dpi=300)
        every = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
        draw(*every)
        for axes in every if scaled else ():
            _finish(axes)
        every[-1].set_xlabel(x.label)
        if x.names is not None:
            every[-1].set_xticks(x.positions, x.names)
            _fit_words(every[-1], x.names)
        else:
            _mark_positions(every[-1], np.sort(np.asarray(x.positions, float)))
        if caption:
            every[0].set_title(caption, fontsize=6.5)
        if suffix:
            for handle in handles if len(x.positions) == 1 else ():
                if isinstance(handle, Line2D) and handle.get_marker():  # chance and ceiling have none
                    handle.set_linestyle("none")
            if any(axes.get_gid() == "hatched" for axes in every):
                handles = [*handles, Patch(facecolor="none", edgecolor="0.6", hatch="////", label="not interpretable")]
            figure.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=2.6)
        for ending, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            with complete_file(f"{path}{suffix}.{ending}") as temporary:
                figure.savefig(temporary, metadata=metadata)


def _finish(axes: Axes) -> None:
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if np.isfinite(high):  # else there is not one example, and nothing to draw
        room = 0.04 * (max(high, 0) - min(low, 0))
        axes.set_ylim(min(0, low - room), max(0, high + room) or 1)
    axes.margins(x=0.04)
    if isinstance(axes.yaxis.get_major_locator(), AutoLocator):  # matplotlib's own: the figure has set none
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", top=False, right=False)
    axes.minorticks_off()


def _save_means(path: str | Path, means: dict[str, list], label: str, ticks: list[str], caption: str) -> None:
    """means: {name in the legend: [{"value", "low", "high"}, ...], one for each of the ticks}."""
    places = np.arange(len(ticks))

    def draw(axes: Axes) -> None:
        for number, estimates in enumerate(means.values()):
            rows = pd.DataFrame([{part: one[part] for part in ("value", "low", "high")} for one in estimates])
            rows = rows.astype(float).rename(columns={"low": "value_low", "high": "value_high"})
            _bars(axes, places + 0.12 * (number - (len(means) - 1) / 2), rows, "value", "value", number, True)
        _zero(axes)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_ylabel("mean SSLMem")

    save_figure(path, draw, XAxis(label, places, ticks), _legend(list(means), ["none"] * len(means)), caption)


def _positions(frame: pd.DataFrame, x: str, label: str | None) -> tuple[pd.Series, XAxis]:
    """(where each row lies on the axis, the axis): numbers where all are, else one place for each word."""
    label = label or X_LABELS.get(x, x)
    if pd.api.types.is_numeric_dtype(frame[x]):
        return frame[x].astype(float), XAxis(label, frame[x].unique())
    words = list(frame[x].astype(str).unique())
    places = frame[x].astype(str).map(words.index)
    return places.astype(float), XAxis(label, np.arange(len(words)), words)


def _who(pct: float) -> str:
    return "all examples" if pct == 100 else f"most confident {pct:g} %"


def _face(number: int, filled: bool) -> dict[str, str]:
    return {"markerfacecolor": COLORS[number % len(COLORS)] if filled else "white"}


def _line(label: str, number: int, **changes: Any) -> Line2D:
    color = COLORS[number % len(COLORS)]
    look = {"color": color, "marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1.3, **changes}
    return Line2D([], [], label=label, **look)


def _legend(names: Sequence[str], lines: Sequence[Any] = ("-",) * 20) -> list[Line2D]:
    return [_line(name, number, linestyle=line) for number, (name, line) in enumerate(zip(names, lines))]


def _pair_legend() -> list[Line2D]:
    gray = {"color": "0.3", "markeredgecolor": "0.3"}
    target = _line("target", 0, **gray, markerfacecolor="0.3")
    return [target, _line("reference", 0, linestyle="--", **gray, markerfacecolor="white")]


def _limit_legend(rows: pd.DataFrame) -> list[Line2D]:
    return [_line(name, 0, linestyle=LIMITS[name], color="0.45", marker="", linewidth=1) for name in _known(rows)]


def _band(
    axes: Axes, places: Any, rows: pd.DataFrame, name: str, value: str | None, number: int, **changes: Any
) -> None:
    """A line with the band of its interval; of one point a marker with a bar."""
    color = COLORS[number % len(COLORS)]
    column = f"{name}_{value}" if value else name
    line = {"color": color, "marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1.3, **changes}
    low, high = rows[f"{name}_low"], rows[f"{name}_high"]
    if len(rows) == 1:
        line |= {"linestyle": "none", "marker": line["marker"] or "o"}
        axes.vlines(places, low, high, color=color, linewidth=1)
    axes.plot(places, rows[column], **line)
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)


def _bars(axes: Axes, places: Any, rows: pd.DataFrame, column: str, name: str, number: int, filled: bool) -> None:
    """Markers with the bars of their intervals."""
    value = rows[column].to_numpy(float)
    ends = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy(float).T - value)
    look = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
    axes.errorbar(places, value, ends, **_BAR, **look, **_face(number, filled))


def _zero(axes: Axes) -> None:
    axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)


def _known(rows: pd.DataFrame) -> list[str]:
    """Those of LIMITS that the rows hold."""
    return [name for name in LIMITS if name in rows and rows[name].notna().any()]


def _limits(axes: Axes, places: Any, rows: pd.DataFrame) -> None:
    """Lines of chance and ceiling; from side to side where there is but one point."""
    for name in _known(rows):
        look = {"linestyle": LIMITS[name], "color": "0.45", "linewidth": 1, "zorder": 0}
        if len(rows) == 1:
            axes.axhline(rows[name].iloc[0], **look)
        else:
            axes.plot(places, rows[name], **look)


def _hatch(axes: Axes, places: Any, rows: pd.DataFrame) -> None:
    """Hatches the points whose column `interpretable` is 0, up to halfway to their neighbors."""
    if "interpretable" not in rows or rows["interpretable"].ne(0).all():
        return
    axes.set_gid("hatched")
    centers = np.unique(np.asarray(places, float))
    middles = (centers[1:] + centers[:-1]) / 2
    margin = 0.04 * np.ptp(centers) or 0.5
    ends = np.concatenate([[centers[0] - margin], middles, [centers[-1] + margin]])
    for place in np.asarray(places, float)[rows["interpretable"].eq(0).to_numpy()]:
        number = int(np.searchsorted(centers, place))
        span = {"facecolor": "none", "edgecolor": "0.6", "hatch": "////", "linewidth": 0, "zorder": 0}
        axes.axvspan(ends[number], ends[number + 1], **span)


def _fit_words(axes: Axes, names: Sequence[str]) -> None:
    """Words that would not fit side by side are smaller, or lean."""
    width = sum(len(name) + 1 for name in names) * _DIGIT
    if width > _SIZE[0] - 0.7:
        axes.tick_params(axis="x", labelsize=6)
    if width > 1.3 * (_SIZE[0] - 0.7):
        axes.tick_params(axis="x", labelrotation=30)


def _mark_positions(axes: Axes, positions: np.ndarray) -> None:
    """A tick at every point, numbers at those that leave room for them; a logarithmic axis for wide fractions."""
    if positions[0] > 0 and positions[-1] < 1 and positions[-1] > 10 * positions[0]:
        axes.set_xscale("log")
    places = np.log(positions) if axes.get_xscale() == "log" else positions
    inches = (places - places[0]) / max(np.ptp(places), 1e-12) * (_SIZE[0] - 0.7)
    labels, left = [""] * len(positions), np.inf
    for number in reversed(range(len(positions))):  # the last is the point of the other sweeps
        text = f"{positions[number]:g}"
        if inches[number] + len(text) * _DIGIT / 2 < left:
            labels[number], left = text, inches[number] - (len(text) / 2 + 1) * _DIGIT
    axes.set_xticks(positions, labels)
