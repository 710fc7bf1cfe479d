"""The figures: one function a kind draws a table on a figure, `save_figure` writes it.

Figures are as wide as a column of two (3.4 inches), their fonts are embedded. Colors are Okabe &
Ito's, told apart by color-blind readers, in an order in which grey print tells the first ones
apart; line styles and markers do so for all. Bands and bars are pointwise 95 % intervals. Hatched:
not interpretable, the ceiling is not above chance. A figure has one unit per axis: accuracies,
differences and distances have panels of their own.

A function that draws takes a Plot. Where nothing else is said, the first column of its table is
the axis.
"""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, MaxNLocator

from dejavu_utils.analysis.memorization import OUTCOMES
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file

STYLES = ("plain", "science")
COLORS = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
MODELS = {"target": "target", "reference": "reference"}
# of accuracies, if known: gray lines
LIMITS: dict[str, Any] = {"chance": ":", "ceiling": (0, (6, 1.5, 1, 1.5))}
X_LABELS = {
    "epoch": "epochs of training",
    "dataset": "training images per class",
    "k": "neighbors that vote, k",
    "layer": "layer that is attacked",
    "loss": "training criterion",
    "pct_confidence": "most confident examples, per cent",
}
OPEN = {"linestyle": "--", "markerfacecolor": "white"}  # of the reference
_GRAY: dict[str, Any] = {"color": "0.45", "linewidth": 1, "zorder": 0}
_ZERO: dict[str, Any] = {"color": "0.6", "linewidth": 0.7, "zorder": 0}  # of lines at 0
_HATCH: dict[str, Any] = {
    "facecolor": "none",
    "edgecolor": "0.6",
    "hatch": "////",
    "linewidth": 0,
    "zorder": 0,
}
_SIZE = (3.4, 2.5)  # inches; a second panel below takes as much again as _PANEL
_PANEL = 1.4
_AXIS = _SIZE[0] - 0.7  # inches of the width that are left for the axis
_LEGEND_WIDTH = 1.25
_DIGIT = 0.062  # inches that a digit below the axis takes
_SETTINGS: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,  # TrueType, as publishers want it
    "ps.fonttype": 42,
}


@dataclass(frozen=True)
class Plot:
    """A figure that is drawn from a table: the numbers that are saved beside it. An estimate has
    columns NAME (an accuracy NAME_acc), NAME_low and NAME_high."""

    figure: Figure
    frame: pd.DataFrame
    top_k: int

    def axes(self, y_label: str) -> Axes:
        """The axes of a figure of one panel."""
        axes = self.figure.subplots()
        axes.set_ylabel(y_label)
        return axes

    def panels(self, *y_labels: str, x: str | None = None) -> list["_Panel"]:
        """A panel for each label of a vertical axis, from above. x: column of their horizontal
        axis, by default the first."""
        every = self.figure.subplots(len(y_labels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, label in zip(every, y_labels):
            axes.set_ylabel(label)
        places = _x_axis(every[-1], self.frame[x or self.frame.columns[0]])
        return [_Panel(axes, places) for axes in every]


Draw = Callable[[Plot], None]


def save_figure(
    path: str | Path,
    draw: Draw,
    frame: pd.DataFrame,
    caption: str = "",
    top_k: int = 1,
    param: str = "param",
    style: str = "plain",
) -> None:
    """Writes path.png, path.pdf, and both again with the suffix _legend.

    draw: one of this module's functions. caption: what is shown: model, layer, epoch, k, n. param:
    label of an axis of the column `param`. style: one of STYLES.
    """
    with _style(style):
        for suffix in ("", "_legend"):
            figure = Figure(figsize=_SIZE, layout="constrained", dpi=300)
            draw(Plot(figure, frame, top_k))
            panels = figure.axes
            figure.set_figheight(_SIZE[1] + _PANEL * (len(panels) - 1))
            for axes in panels:
                _finish(axes)
            panels[0].set_title(caption, fontsize=6.5)
            if panels[-1].get_xlabel() == "param":
                panels[-1].set_xlabel(param)
            if suffix:
                figure.set_figwidth(_SIZE[0] + _LEGEND_WIDTH)
                _add_legend(figure)
            for ending in ("png", "pdf"):
                # without its date a pdf has the same bytes on every run
                metadata = {"CreationDate": None} if ending == "pdf" else None
                with complete_file(f"{path}{suffix}.{ending}") as temporary:
                    figure.savefig(temporary, metadata=metadata)


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Within it, figures are drawn in one of STYLES, whatever the user's matplotlibrc says.

    InputError where `science` (SciencePlots) is not installed.
    """
    used = [_SETTINGS]
    if name == "science":
        try:
            import scienceplots  # noqa: F401  (adds its styles to matplotlib's)
        except ImportError:
            raise InputError(
                "--style science: SciencePlots is not installed here: pip install SciencePlots"
            ) from None
        used = ["science", "no-latex", *used]
    with styles.context(used, after_reset=True):
        yield


def draw_accuracies(plot: Plot) -> None:
    """Target and reference accuracy, a color for each confidence level; chance and ceiling of the
    last level."""
    (panel,) = plot.panels(f"top-{plot.top_k} accuracy")
    for number, (pct, rows) in enumerate(plot.frame.groupby("pct_confidence")):
        panel.curve(rows, "target", number, label=_who(pct))
        panel.curve(rows, "reference", number, **OPEN)
    for name, changes in (("target", {}), ("reference", OPEN)):
        look = {**_look(0), "color": "0.3", "linewidth": 1.3, **changes}
        panel.axes.plot([], [], label=name, **look)
    panel.limits(rows)
    panel.hatch(rows)


def draw_partition(plot: Plot) -> None:
    """The fractions of the four outcomes."""
    (panel,) = plot.panels(f"fraction of attacked images (top-{plot.top_k})")
    panel.curves(plot.frame, {outcome: outcome for outcome in OUTCOMES})
    panel.hatch(plot.frame)


def draw_probes(plot: Plot) -> None:
    """The linear probe's training and validation accuracy."""
    (panel,) = plot.panels(f"linear probe, top-{plot.top_k} accuracy")
    panel.curves(plot.frame, {"train": "training set", "val": "validation set"})


def draw_gap(plot: Plot) -> None:
    """The déjà vu score of each confidence level beside probe_gap, the linear probe's accuracy on
    training images - that on validation images."""
    (panel,) = plot.panels(f"difference in top-{plot.top_k} accuracy")
    for number, (pct, rows) in enumerate(plot.frame.groupby("pct_confidence")):
        panel.curve(rows, "score", number, label=f"déjà vu score,\n{_who(pct)}")
    panel.curve(rows, "probe_gap", number + 1, label="probe: training\n- validation set", **OPEN)
    _zero(panel.axes)


def draw_layers(plot: Plot) -> None:
    """Target and reference accuracy of each layer, of the largest fraction of examples; below, the
    déjà vu score."""
    pct = plot.frame["pct_confidence"].max()
    rows = plot.frame[plot.frame["pct_confidence"] == pct]
    label = f"top-{plot.top_k} accuracy" + ("" if pct == 100 else f",\n{_who(pct)}")
    _draw_above_score(plot, rows, label, ["target", "reference"])


def draw_criteria(plot: Plot) -> None:
    """Target, reference and probe accuracy of each training criterion, of the rows with drawn = 1;
    below, the score."""
    rows = plot.frame[plot.frame["drawn"] == 1]
    with_value = rows["loss"] + " " + rows["value"].astype(str)
    rows = rows.assign(loss=rows["loss"].where(rows["setting"] != "param", with_value))
    names = ["target", "reference", "probe_val"]
    if rows["probe_val"].isna().all():
        names.remove("probe_val")
    _draw_above_score(plot, rows, f"top-{plot.top_k} accuracy", names)


def draw_layer_utility(plot: Plot) -> None:
    """Accuracy of training's linear probe at each layer; below, the déjà vu score."""
    rows = plot.frame.assign(
        probe_val_low=plot.frame["probe_val"], probe_val_high=plot.frame["probe_val"]
    )
    _draw_above_score(plot, rows, f"top-{plot.top_k} accuracy", ["probe_val"])


def _draw_above_score(plot: Plot, rows: pd.DataFrame, y_label: str, names: list[str]) -> None:
    """Accuracies of each row side by side, in a panel below the déjà vu score. names: of the
    estimates."""
    panel, below = replace(plot, frame=rows).panels(y_label, "déjà vu score")
    words = {"probe_val": "linear probe,\nvalidation"}
    panel.side_by_side([(words.get(name, name), rows, name) for name in names])
    for name, look in _limits_of(rows):
        panel.axes.hlines(rows[name], panel.places - 0.4, panel.places + 0.4, **look)
    below.bars(rows, "score", len(names), "déjà vu score")
    _zero(below.axes)
    panel.hatch(rows)
    below.hatch(rows)


def draw_one_against_two(plot: Plot) -> None:
    """The score of the test of one model beside that of two, a group for each model."""
    (panel,) = plot.panels(f"difference in top-{plot.top_k} accuracy")
    names = {"two_models": "two models", "one_model": "one model", "delta": "delta"}
    names["score_minus_delta"] = "score - delta"
    panel.side_by_side([(label, plot.frame, name) for name, label in names.items()])
    _zero(panel.axes)


def draw_classifiers(plot: Plot) -> None:
    """How often two classifiers of a set predict the same class; a color for each pair."""
    (panel,) = plot.panels("same prediction, fraction", x="set")
    of_pairs = plot.frame.groupby(["first", "second"], sort=False)
    groups = []
    for (first, second), rows in of_pairs:
        groups.append((f"classifiers {first}, {second}", rows, "agreement"))
    panel.side_by_side(groups)


def draw_means(plot: Plot) -> None:
    """Mean SSLMem, a color for each value of the first column, against the second. frame: value,
    low, high."""
    group, x = plot.frame.columns[:2]
    (panel,) = plot.panels("mean SSLMem", x=x)
    panel.axes.set_xlabel(f"outcome of the attack (top-{plot.top_k})" if x == "outcome" else x)
    of_groups = plot.frame.groupby(group, sort=False)
    panel.side_by_side([(name, rows, "value") for name, rows in of_groups])
    _zero(panel.axes)


def draw_epochs(plot: Plot) -> None:
    """Déjà vu score, and in a panel below mean SSLMem.

    frame: its axis, instrument ("deja_vu" or "sslmem"), of (per cent of the examples, or a layer),
    value, low, high.
    """
    above, below = plot.panels(f"déjà vu score, top-{plot.top_k}", "mean SSLMem")
    curves = plot.frame.groupby(["instrument", "of"], sort=False)
    for number, ((instrument, of), rows) in enumerate(curves):
        if instrument == "deja_vu":
            label = f"déjà vu score,\n{_who(float(of))}"
            above.curve(rows, "value", number, label=label, linestyle="-")
        else:
            below.curve(rows, "value", number, label=f"SSLMem, {of}", linestyle="--")
    _zero(above.axes)
    _zero(below.axes)


def draw_confidence(plot: Plot) -> None:
    """Accuracy on the most confident examples against their fraction of all."""
    (panel,) = plot.panels(f"top-{plot.top_k} accuracy")
    _mark_positions(panel.axes, np.arange(20, 101, 20))
    panel.curves(plot.frame, MODELS, marker="")
    panel.limits(plot.frame)
    panel.hatch(plot.frame)


def draw_votes(plot: Plot) -> None:
    """Target and reference accuracy, and in a panel below the déjà vu score, against the neighbors
    that vote."""
    frame = plot.frame
    words = replace(plot, frame=frame.astype({"k": str}))  # equal steps along the axis
    panel, below = words.panels(f"top-{plot.top_k} accuracy", "déjà vu score")
    panel.curves(frame, MODELS)
    below.curve(frame, "score", 2, label="déjà vu score")
    panel.limits(frame)
    _zero(below.axes)


def draw_grid_lines(plot: Plot) -> None:
    """The déjà vu score against epochs, a color for each data set size."""
    (panel,) = plot.panels(f"déjà vu score, top-{plot.top_k}", x="epoch")
    for number, (dataset, rows) in enumerate(plot.frame.groupby("dataset")):
        line = LINES[number % len(LINES)]
        panel.curve(rows, "score", number, label=f"{dataset:g} per class", linestyle=line)
    _zero(panel.axes)
    panel.hatch(plot.frame)


def draw_grid(plot: Plot) -> None:
    """Heat map of the déjà vu score over data set sizes and epochs."""
    matrix = plot.frame.pivot(index="dataset", columns="epoch", values="score")
    x_label = f"{X_LABELS['epoch']}; in the cells: déjà vu score, top-{plot.top_k}"
    _draw_matrix(plot, matrix, x_label, X_LABELS["dataset"])


def draw_agreement(plot: Plot) -> None:
    """Heat map of above_chance: of the images memorized in `first`, the fraction memorized in
    `second`.

    Runs have numbers, which the legend explains: names of folders are long.
    """
    runs = list(plot.frame["first"].unique())
    numbers = np.arange(1, len(runs) + 1)
    matrix = plot.frame.pivot(index="first", columns="second", values="above_chance")
    matrix = matrix.loc[runs, runs].set_axis(numbers, axis=0).set_axis(numbers, axis=1)
    _draw_matrix(plot, matrix, "also memorized in run (above chance)", "memorized in run")
    for number, name in zip(numbers, runs):
        plot.figure.axes[0].plot([], [], " ", label=textwrap.fill(f"{number}: {name}", 24))


def _draw_matrix(plot: Plot, matrix: pd.DataFrame, x_label: str, y_label: str) -> None:
    """A heat map with its numbers."""
    axes = plot.axes(y_label)
    values = matrix.to_numpy(float)
    axes.pcolormesh(values, cmap="Blues", edgecolors="white", linewidth=0.5)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            look = {"color": "white" if value > middle else "black", "fontsize": 6.5}
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", **look)
    axes.set_yticks(np.arange(len(matrix)) + 0.5, matrix.index.astype(str))
    axes.set_ylim(0, len(matrix))
    _name_places(axes, np.arange(len(matrix.columns)) + 0.5, list(matrix.columns.astype(str)))
    axes.set_xlabel(x_label)


def draw_utility(plot: Plot) -> None:
    """Déjà vu score against probe_val, a color for each model; joined: the points that no other
    beats in both."""
    frame = plot.frame
    panel = _Panel(plot.axes(f"déjà vu score, top-{plot.top_k}"), frame["probe_val"])
    for number, (model, rows) in enumerate(frame.groupby("model", sort=False)):
        panel.bars(rows, "score", number, str(model))
    axes = panel.axes
    front = frame[frame["on_front"] == 1].sort_values("probe_val")
    axes.plot(front["probe_val"], front["score"], label="Pareto front", linestyle="--", **_GRAY)
    _zero(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"linear probe, top-{plot.top_k} accuracy")


def draw_roc(plot: Plot) -> None:
    """True-positive against false-positive rate of each score, both axes logarithmic: what counts
    is the left end.

    frame: columns score (a name), false_positive_rate, true_positive_rate. The axes begin at one
    non-member: lower rates cannot be told apart.
    """
    axes = plot.axes("true-positive rate")
    rates = plot.frame["false_positive_rate"]
    least = rates[rates > 0].min()
    for number, (name, rows) in enumerate(plot.frame.groupby("score", sort=False)):
        look = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number % len(LINES)]}
        curve = rows["false_positive_rate"], rows["true_positive_rate"]
        axes.plot(*curve, label=name, linewidth=1.3, **look)
    ends = (least, 1)
    axes.plot(ends, ends, label="chance", linestyle=LIMITS["chance"], **_GRAY)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="false-positive rate")
    ticks = 10.0 ** np.arange(np.ceil(np.log10(least)), 0.5)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def draw_entropies(plot: Plot) -> None:
    """How many memorized images have which memorization confidence, by its definitions published
    and corrected."""
    axes = plot.axes("memorized images")
    values = plot.frame[["published", "corrected"]].dropna(axis="columns", how="all")
    lowest = min(0.0, values.min(axis=None))
    highest = max(0.0, values.max(axis=None))
    _histograms(axes, values, np.linspace(lowest, highest, 31))
    axes.axvline(0, **_ZERO)
    axes.set_xlabel("memorization confidence, nats")


def draw_units(plot: Plot) -> None:
    """How many units have which UnitMem, over each column's images."""
    axes = plot.axes("units")
    _histograms(axes, plot.frame, np.linspace(0, 1, 41))
    axes.set_xlabel("UnitMem")


def _histograms(axes: Axes, frame: pd.DataFrame, bins: np.ndarray) -> None:
    """The outline of a histogram of each column."""
    for number, name in enumerate(frame):
        look = {"color": COLORS[number], "linestyle": LINES[number]}
        axes.hist(frame[name].dropna(), bins, histtype="step", label=name, **look)


def draw_classes(plot: Plot) -> None:
    """How many classes have which déjà vu score, and the range that chance gives the class with the
    median n.

    frame: columns score, n, low, high, chance_low, chance_high. Filled: classes whose simultaneous
    interval lies outside what chance spreads.
    """
    frame = plot.frame
    axes = plot.axes("classes")
    scores = frame["score"]
    apart = (frame["low"] > frame["chance_high"]) | (frame["high"] < frame["chance_low"])
    from_median = (frame["n"] - frame["n"].median()).abs()
    typical = frame.iloc[from_median.argmin()]
    bins = np.linspace(min(-0.2, scores.min()), max(0.2, scores.max()), 21)
    axes.hist(scores, bins, histtype="step", color=COLORS[0], label="classes")
    axes.hist(scores[apart], bins, color=COLORS[0], label="outside the spread\n(simultaneous)")
    spread = typical["chance_low"], typical["chance_high"]
    axes.axvspan(*spread, color="0.85", zorder=0, label="spread by chance\naround the mean")
    axes.axvline(0, **_ZERO)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"déjà vu score of a class, top-{plot.top_k}")


def draw_margins(plot: Plot) -> None:
    """sslmem of each image against margin, of the true label's share of the votes, a color for each
    set."""
    axes = plot.axes("SSLMem")
    for number, (name, rows) in enumerate(plot.frame.groupby("set")):
        look = {"marker": MARKERS[number], "color": COLORS[number], "alpha": 0.5, "linewidths": 0}
        axes.scatter(rows["margin"], rows["sslmem"], s=8, label=f"set {name}", **look)
    _zero(axes)
    axes.axvline(0, **_ZERO)
    axes.set_xticks(np.linspace(-1, 1, 5))
    axes.set_xlabel("margin of votes, target - reference")


@dataclass
class _Panel:
    """Axes, and where each row of the figure's table lies on the horizontal one. rows: of that
    table. name: of an estimate in it."""

    axes: Axes
    places: pd.Series

    def curve(self, rows: pd.DataFrame, name: str, number: int, **changes: Any) -> None:
        """A line with the band of its interval; of one point a marker with a bar."""
        places = self.places[rows.index]
        value, low, high = _estimates(rows, name)
        look = {**_look(number), "linewidth": 1.3, **changes}
        color = look["color"]
        if len(rows) == 1:
            look |= {"linestyle": "none", "marker": look["marker"] or "o"}
            self.axes.vlines(places, low, high, color=color, linewidth=1)
        self.axes.plot(places, value, **look)
        self.axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)

    def curves(self, rows: pd.DataFrame, labels: dict[str, str], **changes: Any) -> None:
        """A line for each of several estimates. labels: {name: label}."""
        for number, (name, label) in enumerate(labels.items()):
            look = {"label": label, "linestyle": LINES[number], **changes}
            self.curve(rows, name, number, **look)

    def bars(
        self, rows: pd.DataFrame, name: str, number: int, label: str, shift: float = 0.0
    ) -> None:
        """Markers with the bars of their intervals, `shift` to the right of their places."""
        value, *ends = _estimates(rows, name)
        look = {**_look(number), "linestyle": "none", "capsize": 2, "elinewidth": 1}
        if name == "reference":
            look["markerfacecolor"] = "white"
        places = self.places[rows.index] + shift
        self.axes.errorbar(places, value, np.abs(ends - value), label=label, **look)

    def side_by_side(self, groups: list[tuple[str, pd.DataFrame, str]]) -> None:
        """Markers of several estimates, shifted against each other. groups: (label, rows,
        name)."""
        for number, (label, rows, name) in enumerate(groups):
            shift = 0.15 * (number - (len(groups) - 1) / 2)
            self.bars(rows, name, number, label, shift)
        self.axes.set_xlim(-0.5, self.places.max() + 0.5)

    def limits(self, rows: pd.DataFrame) -> None:
        """Lines of chance and ceiling; from side to side where there is but one point."""
        for name, look in _limits_of(rows):
            if len(rows) == 1:
                self.axes.axhline(rows[name].iloc[0], **look)
            else:
                self.axes.plot(self.places[rows.index], rows[name], **look)

    def hatch(self, rows: pd.DataFrame) -> None:
        """Hatches the points whose column `interpretable` is 0, up to halfway to their
        neighbors."""
        if "interpretable" not in rows:
            return
        places = self.places[rows.index]
        centers = np.unique(places)
        middles = (centers[1:] + centers[:-1]) / 2
        margin = 0.04 * np.ptp(centers) or 0.5
        ends = np.concatenate([[centers[0] - margin], middles, [centers[-1] + margin]])
        for place in places[rows["interpretable"] == 0]:
            number = int(np.searchsorted(centers, place))
            self.axes.axvspan(ends[number], ends[number + 1], label="not interpretable", **_HATCH)


def _x_axis(axes: Axes, values: pd.Series) -> pd.Series:
    """Label and ticks of the axis; returns where each row lies: numbers where all are, else one
    place for each word."""
    axes.set_xlabel(X_LABELS.get(values.name, values.name))
    if pd.api.types.is_numeric_dtype(values):
        _mark_positions(axes, np.unique(values.astype(float)))
        return values.astype(float)
    words = list(values.unique())
    _name_places(axes, np.arange(len(words)), words)
    return values.map(words.index).astype(float)


def _name_places(axes: Axes, places: np.ndarray, words: list[str]) -> None:
    """Ticks with words; those that would not fit side by side are smaller, or lean."""
    axes.set_xticks(places, words)
    width = sum(len(word) + 1 for word in words) * _DIGIT
    if width > _AXIS:
        axes.tick_params(axis="x", labelsize=6)
    if width > 1.3 * _AXIS:
        axes.tick_params(axis="x", labelrotation=30)


def _mark_positions(axes: Axes, positions: np.ndarray) -> None:
    """A tick at every point, numbers at those that leave room for them; a logarithmic axis for wide
    fractions."""
    places = positions
    if positions[0] > 0 and positions[-1] < 1 and positions[-1] > 10 * positions[0]:
        axes.set_xscale("log")
        places = np.log(positions)
    inches = (places - places[0]) / max(np.ptp(places), 1e-12) * _AXIS
    labels = [""] * len(positions)
    free = np.inf  # up to here, from the left
    for number in reversed(range(len(positions))):  # the last is the point of the other sweeps
        text = f"{positions[number]:g}"
        half = len(text) * _DIGIT / 2
        if inches[number] + half < free:
            labels[number] = text
            free = inches[number] - half - _DIGIT
    axes.set_xticks(positions, labels)


def _estimates(rows: pd.DataFrame, name: str) -> np.ndarray:
    """float64 (3, rows): value, low and high of an estimate."""
    if name == "value":
        columns = ["value", "low", "high"]
    else:
        value = f"{name}_acc" if f"{name}_acc" in rows else name
        columns = [value, f"{name}_low", f"{name}_high"]
    return rows[columns].to_numpy(float).T


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
    }


def _zero(axes: Axes) -> None:
    axes.axhline(0, **_ZERO)


def _who(pct: float) -> str:
    return "all examples" if pct == 100 else f"most confident {pct:g} %"


def _limits_of(rows: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, look) of those of LIMITS that the rows hold."""
    for name, line in LIMITS.items():
        if name in rows and rows[name].notna().any():
            yield name, {"label": name, "linestyle": line, **_GRAY}


def _finish(axes: Axes) -> None:
    if not axes.get_autoscaley_on():  # the figure has set its limits itself
        return
    low, high = axes.dataLim.intervaly
    if np.isfinite(high):  # else there is not one example, and nothing to draw
        margin = 0.04 * (max(high, 0) - min(low, 0))
        axes.set_ylim(min(0, low - margin), max(0, high + margin) or 1)  # 0 is always shown
    axes.margins(x=0.04)
    # matplotlib's own: the figure has set none
    if isinstance(axes.yaxis.get_major_locator(), AutoLocator):
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", top=False, right=False)
    axes.minorticks_off()


def _add_legend(figure: Figure) -> None:
    """Beside the panels, what they have a label for, each label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries, loc="outside right upper", frameon=False, handlelength=2.6
    )
