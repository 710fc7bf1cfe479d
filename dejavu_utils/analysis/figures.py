"""The figures: one function a kind. Each takes the numbers that are saved beside the figure and returns nothing.

Figures are as wide as a column of two (3.4 inches), their fonts are embedded. Colors are Okabe & Ito's, told apart by
color-blind readers, in an order in which grey print tells the first ones apart; line styles and markers do so for all.
Bands and bars are 95 % intervals.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dejavu_utils.analysis.memorization import OUTCOMES
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file

STYLES = ("plain", "science")
COLORS = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
LIMITS = {"chance": ":", "ceiling": (0, (6, 1.5, 1, 1.5))}  # of accuracies, where they are known: gray lines
X_LABELS = {"epoch": "epochs of training", "dataset": "training images per class"}
_SIZE = (3.4, 2.5)  # inches
_LEGEND_WIDTH = 1.25
_DIGIT = 0.062  # inches that a digit below the axis takes
_STYLE = {"markersize": 4, "linewidth": 1.3}
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
}


@contextmanager
def figure_style(name: str) -> Iterator[None]:
    """Within it, figures are drawn in one of STYLES. InputError where `science` (SciencePlots) is not installed."""
    if name == "plain":
        with matplotlib.rc_context({**_PLAIN, **_FONTS}):
            yield
        return
    try:
        import scienceplots  # noqa: F401  (adds its styles to matplotlib's)
    except ImportError:
        raise InputError("--style science: SciencePlots is not installed here: pip install SciencePlots") from None
    with style.context(["science", "no-latex"]), matplotlib.rc_context({**_PLAIN, **_FONTS}):
        yield


def save_accuracy_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None
) -> None:
    """Target and reference accuracy against `x`, a color for each confidence level.

    path: without suffix. frame: columns x, pct_confidence, {target,reference}_{acc,low,high} and, if they are known,
    chance and ceiling, drawn for the largest fraction of examples. Writes path.png, path.pdf and the same with the
    suffix _legend.
    """
    groups = list(frame.groupby("pct_confidence", sort=True))

    def draw(axes):
        for number, (_, rows) in enumerate(groups):
            for name, line, filled in (("target", "-", True), ("reference", "--", False)):
                _band(axes, rows, x, name, "acc", number, linestyle=line, **_face(number, filled))
        _limits(axes, groups[-1][1], x)
        axes.set_ylabel(f"top-{top_k} accuracy")

    handles = _legend([_who(pct) for pct, _ in groups]) + _pair_legend() + _limit_legend(groups[-1][1])
    _save_both(path, draw, x_label or X_LABELS[x], handles, frame[x].unique())


def save_partition_figures(
    path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None
) -> None:
    """The fractions of the four outcomes against `x`.

    path: without suffix. frame: columns x, and for each outcome its value, {outcome}_low and {outcome}_high.
    """

    def draw(axes):
        for number, outcome in enumerate(OUTCOMES):
            _band(axes, frame, x, outcome, None, number, linestyle=LINES[number])
        axes.set_ylabel(f"fraction of attacked images (top-{top_k})")

    _save_both(path, draw, x_label or X_LABELS[x], _legend(OUTCOMES, LINES), frame[x].unique())


def save_probe_figures(path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None) -> None:
    """The linear probe's training and validation accuracy against `x`.

    path: without suffix. frame: columns x, {train,val}_{acc,low,high}; intervals may be NaN.
    """

    def draw(axes):
        for number, name in enumerate(("train", "val")):
            _band(axes, frame, x, name, "acc", number, linestyle=LINES[number])
        axes.set_ylabel(f"linear probe, top-{top_k} accuracy")

    _save_both(
        path, draw, x_label or X_LABELS[x], _legend(("training set", "validation set"), LINES), frame[x].unique()
    )


def save_gap_figures(path: str | Path, frame: pd.DataFrame, x: str, top_k: int, x_label: str | None = None) -> None:
    """The déjà vu score of each confidence level beside what the linear probe's accuracy falls by on new images.

    path: without suffix. frame: columns x, pct_confidence, {score,probe_gap}, and _low and _high of both (may be NaN).
    """
    groups = list(frame.groupby("pct_confidence", sort=True))

    def draw(axes):
        for number, (_, rows) in enumerate(groups):
            _band(axes, rows, x, "score", None, number, **_face(number, True))
        _band(axes, groups[0][1], x, "probe_gap", None, len(groups), linestyle="--", **_face(len(groups), False))
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_ylabel(f"difference in top-{top_k} accuracy")

    names = [f"déjà vu score,\n{_who(pct)}" for pct, _ in groups]
    last = _line("probe: training\n- validation set", len(groups), linestyle="--", **_face(len(groups), False))
    _save_both(path, draw, x_label or X_LABELS[x], [*_legend(names), last], frame[x].unique())


def save_layer_figures(path: str | Path, frame: pd.DataFrame, top_k: int) -> None:
    """Target and reference accuracy and déjà vu score of each layer, in the order of the rows.

    path: without suffix. frame: columns layer, pct_confidence, {target,reference}_{acc,low,high}, score, score_{low,
    high}, and chance and ceiling if they are known; the rows of the largest fraction of examples are drawn.
    """
    pct = frame["pct_confidence"].max()
    rows = frame[frame["pct_confidence"] == pct]
    columns = (("target", "target_acc"), ("reference", "reference_acc"), ("score", "score"))

    def draw(axes):
        for number, (name, column) in enumerate(columns):
            value = rows[column].to_numpy()
            ends = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - value)
            place = np.arange(len(rows)) + 0.18 * (number - 1)
            bar = {"linestyle": "none", "color": COLORS[number], "marker": MARKERS[number], "capsize": 2}
            axes.errorbar(place, value, ends, elinewidth=1, **bar, **_face(number, name != "reference"), markersize=4.5)
        for name in _known(rows):
            place = np.arange(len(rows))
            axes.hlines(rows[name], place - 0.4, place + 0.4, linestyle=LIMITS[name], color="0.45", linewidth=1)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        axes.set_ylabel(f"top-{top_k} accuracy" + ("" if pct == 100 else f", {_who(pct)}"))

    handles = _legend(("target", "reference", "déjà vu score"), ["none"] * 3)
    handles[1].set_markerfacecolor("white")
    handles += _limit_legend(rows)
    _save_both(path, draw, "layer that is attacked", handles, np.arange(len(rows)), rows["layer"].tolist())


def save_confidence_figures(path: str | Path, frame: pd.DataFrame, top_k: int) -> None:
    """Accuracy on the most confident examples against their fraction of all.

    path: without suffix. frame: columns pct_confidence, {target,reference}_{acc,low,high}, and chance and ceiling if
    they are known.
    """

    def draw(axes):
        for number, (name, line) in enumerate((("target", "-"), ("reference", "--"))):
            _band(axes, frame, "pct_confidence", name, "acc", number, linestyle=line, marker=None)
        _limits(axes, frame, "pct_confidence")
        axes.set_ylabel(f"top-{top_k} accuracy")

    handles = _legend(("target", "reference"), LINES)
    for handle in handles:
        handle.set_marker("")
    handles += _limit_legend(frame)
    _save_both(path, draw, "most confident examples, per cent", handles, np.arange(20, 101, 20))


def _who(pct):
    return "all examples" if pct == 100 else f"most confident {pct:g} %"


def _face(number, filled):
    return {"markerfacecolor": COLORS[number % len(COLORS)] if filled else "white"}


def _line(label, number, **changes):
    """A line of the legend."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    return Line2D([], [], label=label, **{"color": color, "marker": marker, **_STYLE, **changes})


def _legend(names, lines=("-",)):
    return [_line(name, number, linestyle=lines[number % len(lines)]) for number, name in enumerate(names)]


def _pair_legend():
    """Target and reference, whatever their color."""
    gray = {"color": "0.35", "marker": "o"}
    return [
        _line("target", 0, linestyle="-", **gray),
        _line("reference", 0, linestyle="--", markerfacecolor="white", **gray),
    ]


def _band(axes, rows, x, name, value, number, **changes):
    color = COLORS[number % len(COLORS)]
    column = f"{name}_{value}" if value else name
    line = {"color": color, "marker": MARKERS[number % len(MARKERS)], **_STYLE, **changes}
    axes.plot(rows[x], rows[column], **line)
    low, high = rows[f"{name}_low"], rows[f"{name}_high"]
    axes.fill_between(rows[x], low, high, color=color, alpha=0.15, linewidth=0)
    if len(rows) == 1:  # a band over one point would not be seen
        axes.vlines(rows[x], low, high, color=color, linewidth=1)


def _known(rows):
    """Those of LIMITS that the rows hold."""
    return [name for name in LIMITS if name in rows and rows[name].notna().any()]


def _limits(axes, rows, x):
    """Lines of chance and ceiling; from side to side where there is but one point."""
    for name in _known(rows):
        look = {"linestyle": LIMITS[name], "color": "0.45", "linewidth": 1, "zorder": 0}
        if len(rows) == 1:
            axes.axhline(rows[name].iloc[0], **look)
        else:
            axes.plot(rows[x], rows[name], **look)


def _limit_legend(rows):
    return [_line(name, 0, linestyle=LIMITS[name], color="0.45", marker="", linewidth=1) for name in _known(rows)]


def _save_both(path, draw, x_label, handles, ticks, tick_labels=None):
    for suffix in ("", "_legend"):
        width = _SIZE[0] + (_LEGEND_WIDTH if suffix else 0)
        figure = Figure(figsize=(width, _SIZE[1]), layout="constrained", dpi=300)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(x_label)
        if tick_labels is None:
            axes.margins(x=0.04)
            _mark_positions(axes, sorted(ticks))
        else:
            axes.set_xticks(ticks, tick_labels)
        low, high = axes.dataLim.y0, axes.dataLim.y1
        if np.isfinite(high):  # else there is not one example, and nothing to draw
            axes.set_ylim(min(0, 1.1 * low), 1.04 * high or 1)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", top=False, right=False)
        axes.minorticks_off()
        if suffix:
            figure.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=2.6)
        for ending, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            with complete_file(f"{path}{suffix}.{ending}") as temporary:
                figure.savefig(temporary, metadata=metadata)


def _mark_positions(axes, positions):
    """A tick at every point, numbers at those that leave room for them; a logarithmic axis for wide fractions."""
    if positions[0] > 0 and positions[-1] < 1 and positions[-1] > 10 * positions[0]:
        axes.set_xscale("log")
    places = np.log(positions) if axes.get_xscale() == "log" else np.asarray(positions, float)
    inches = (places - places[0]) / max(np.ptp(places), 1e-12) * (_SIZE[0] - 0.7)
    labels, left = [""] * len(positions), np.inf
    for number in reversed(range(len(positions))):  # the last is the point of the other sweeps
        text = f"{positions[number]:g}"
        if inches[number] + len(text) * _DIGIT / 2 < left:
            labels[number], left = text, inches[number] - (len(text) / 2 + 1) * _DIGIT
    axes.set_xticks(positions, labels)
