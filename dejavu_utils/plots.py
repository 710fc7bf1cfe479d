"""The figures: one function a kind. Each takes the numbers that are saved beside the figure and returns nothing.

Colors are Okabe & Ito's, told apart by color-blind readers; line styles and markers tell the same apart in grey print.
Bands are 95 % intervals.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dejavu_utils.files import complete_file
from dejavu_utils.memorization import SHARES

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
X_LABELS = {"epoch": "epochs of training", "dataset": "training images per class"}
_STYLE = {"markersize": 4.5, "linewidth": 1.6}


def save_accuracy_figures(path, frame, x, top_k, x_label=None):
    """Target and reference accuracy against `x`, a color for each confidence level.

    path: without suffix. frame: columns x, pct_confidence, {target,reference}_{acc,low,high}. Writes path.png, path.pdf
    and the same with the suffix _legend.
    """

    def draw(axes):
        for number, (pct, rows) in enumerate(frame.groupby("pct_confidence", sort=True)):
            who = "all" if pct == 100 else f"top {pct:g} %"
            for name, line, filled in (("target", "-", True), ("reference", "--", False)):
                style = {"linestyle": line, "markerfacecolor": COLORS[number % 7] if filled else "white"}
                _band(axes, rows, x, name, "acc", number, f"{name}, {who}", **style)
        axes.set_ylabel(f"top-{top_k} accuracy")

    _save_both(path, draw, frame[x], x_label or X_LABELS[x])


def save_partition_figures(path, frame, x, top_k, x_label=None):
    """The four shares of the attacked examples against `x`.

    path: without suffix. frame: columns x, and for each share its value, {share}_low and {share}_high.
    """

    def draw(axes):
        for number, share in enumerate(SHARES):
            _band(axes, frame, x, share, None, number, share, linestyle=("-", "--", "-.", ":")[number])
        axes.set_ylabel(f"share of attacked images (top-{top_k})")

    _save_both(path, draw, frame[x], x_label or X_LABELS[x])


def save_probe_figures(path, frame, x, top_k, x_label=None):
    """The linear probe's training and validation accuracy against `x`.

    path: without suffix. frame: columns x, {train,val}_{acc,low,high}; intervals may be NaN.
    """

    def draw(axes):
        for number, (name, words) in enumerate((("train", "training set"), ("val", "validation set"))):
            _band(axes, frame, x, name, "acc", number, words, linestyle=("-", "--")[number])
        axes.set_ylabel(f"linear probe, top-{top_k} accuracy")

    _save_both(path, draw, frame[x], x_label or X_LABELS[x])


def _band(axes, rows, x, name, value, number, label, **style):
    color = COLORS[number % len(COLORS)]
    column = f"{name}_{value}" if value else name
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(rows[x], rows[column], color=color, marker=marker, label=label, **_STYLE, **style)
    low, high = rows[f"{name}_low"], rows[f"{name}_high"]
    axes.fill_between(rows[x], low, high, color=color, alpha=0.15, linewidth=0)
    if len(rows) == 1:  # a band over one point would not be seen
        axes.vlines(rows[x], low, high, color=color, linewidth=1.2)


def _save_both(path, draw, positions, x_label):
    for suffix in ("", "_legend"):
        figure = Figure(figsize=(4.4, 3.1) if not suffix else (6.2, 3.1), layout="constrained", dpi=200)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(x_label)
        axes.margins(x=0.04)
        if np.isfinite(axes.dataLim.y1):  # else there is not one example, and nothing to draw
            axes.set_ylim(0, 1.04 * axes.dataLim.y1)
        if len(positions.unique()) <= 8:
            axes.set_xticks(sorted(positions.unique()))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if suffix:
            figure.legend(loc="outside right upper", frameon=False)
        for ending, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            with complete_file(f"{path}{suffix}.{ending}") as temporary:
                figure.savefig(temporary, metadata=metadata)
