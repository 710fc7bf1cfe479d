"""The numbers of the figures of attacks and linear probes: one function a kind.

Each yields (part of the file name, function that draws, DataFrame, top_k); the DataFrame is what the csv beside the
figure holds. `x` is the column of the axis, `points` are [(its value, what was read there)].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from dejavu_utils.analysis.attack_files import AttackedSet, ProbeAccuracies, TopAccuracies
from dejavu_utils.analysis.figures import (
    save_accuracy_figures,
    save_class_figures,
    save_confidence_figures,
    save_criteria_figures,
    save_gap_figures,
    save_grid_figures,
    save_grid_line_figures,
    save_layer_figures,
    save_layer_utility_figures,
    save_partition_figures,
    save_probe_figures,
    save_utility_figures,
    save_vote_figures,
)
from dejavu_utils.analysis.intervals import Z95, Estimate, difference
from dejavu_utils.analysis.memorization import OUTCOMES, TOP_KS, Summary, summarize_classes, summarize_levels
from dejavu_utils.analysis.online_probe import Accuracies
from dejavu_utils.analysis.report import clear_of_chance
from dejavu_utils.analysis.tables import accuracy_columns, bounds, confidence_curve, directions

CURVE = range(10, 101, 2)  # per cents of the confidence curve

VOTES = (1, 2, 5, 10, 20, 50, 100, 200)  # neighbors that vote, of the figure of votes
LEAST_OF_CLASS = 5  # attacked images from which a class has an interval
PERMUTATIONS = 1000

_SHORT = {"target_acc": "target", "reference_acc": "reference"}
_UNKNOWN = Estimate(np.nan, np.nan, np.nan)

Frames = Iterator[tuple[str, Any, pd.DataFrame, int]]


@dataclass(frozen=True)
class Attack:
    """One attack at one layer. sets: of read_attack. ceiling: of read_ceiling, or None."""

    layer: str
    sets: dict[str, AttackedSet]
    ceiling: TopAccuracies | None

    @property
    def n(self) -> int:
        """Attacked images."""
        return sum(len(attacked.idxs) for attacked in self.sets.values())

    @property
    def classes(self) -> int:
        """How many classes its images and predictions have."""
        labels = [attacked.attack.labels for attacked in self.sets.values()]
        labels += [attacked.attack.target.top.ravel() for attacked in self.sets.values()]
        return len(np.setdiff1d(np.concatenate(labels), [-1]))


def columns_at(attack: Attack, pct_confidences: Sequence[float], top_k: int) -> list[tuple[dict, Summary]]:
    """[the columns of the accuracies, and memorization's Summary they are from] of each confidence level.

    interpretable: is the ceiling above chance? NaN where it is not known.
    """
    top = attack.ceiling[f"top_{top_k}"] if attack.ceiling else None
    *summaries, everybody = summarize_levels(directions(attack.sets), top_k, [*pct_confidences, 100])
    interpretable = float(clear_of_chance(top, everybody.chance)) if top else np.nan
    levels = []
    for pct, summary in zip(pct_confidences, summaries):
        columns = {"pct_confidence": pct, **accuracy_columns(summary, top), "interpretable": interpretable}
        levels.append((columns, summary))
    return levels


def attack_frames(points: Sequence[tuple], pct_confidences: Sequence[float], x: str) -> Frames:
    """Yields (part of the file name, function that draws, DataFrame, top_k) of an attack sweep."""
    for top_k in TOP_KS:
        accuracies, outcomes = [], []
        for position, attack in points:
            levels = columns_at(attack, pct_confidences, top_k)
            accuracies += [{x: position, **columns} for columns, _ in levels]
            columns, summary = levels[0]  # the fractions are of all examples at every level
            row = {x: position, **{outcome: summary[outcome]["value"] for outcome in OUTCOMES}}
            for outcome in OUTCOMES:
                row.update(bounds(outcome, summary[outcome]))
            outcomes.append({**row, "interpretable": columns["interpretable"]})
        yield "acc_", save_accuracy_figures, pd.DataFrame(accuracies), top_k
        yield "partition_", save_partition_figures, pd.DataFrame(outcomes), top_k


def layer_frames(attacks: dict[str, Attack], pct_confidences: Sequence[float]) -> Frames:
    """Yields the frames of the layers of one point. attacks: {layer: Attack}, in the network's order."""
    for top_k in TOP_KS:
        rows = []
        for layer, attack in attacks.items():
            rows += [{"layer": layer, **columns} for columns, _ in columns_at(attack, pct_confidences, top_k)]
        yield "", save_layer_figures, pd.DataFrame(rows), top_k


def confidence_frames(attack: Attack) -> Frames:
    """Yields the frames of the confidence curve of one Attack."""
    curve = confidence_curve(attack.sets, CURVE, attack.ceiling)
    for top_k in TOP_KS:
        yield "", save_confidence_figures, curve[curve["top_k"] == top_k].drop(columns="top_k"), top_k


def vote_frames(read: Callable[[int], Attack], most: int) -> Frames:
    """Yields target, reference and score against the neighbors that vote. read: the Attack in which so many vote."""
    attacks = {k: read(k) for k in sorted({k for k in VOTES if k < most} | {most})}
    for top_k in TOP_KS:
        rows = []
        for k, attack in attacks.items():
            (summary,) = summarize_levels(directions(attack.sets), top_k, [100])
            rows.append({"k": k, **accuracy_columns(summary)})
        frame = pd.DataFrame(rows).rename(columns=_SHORT)
        yield "", save_vote_figures, frame, top_k


def class_frames(attack: Attack) -> Frames:
    """Yields the score of each class, the most affected first: class (its label), n, target, reference, score, and low
    and high, which hold for all classes of at least LEAST_OF_CLASS images at once (Bonferroni).

    chance_low, chance_high: 2.5 and 97.5 % of the scores that as many images drawn from all classes have.
    """
    attacks = directions(attack.sets)
    labels = np.concatenate([one.labels for one in attacks])
    for top_k in TOP_KS:
        gains = []
        for one in attacks:
            target, reference = one.correct(top_k)
            gains.append(target.astype(float) - reference)
        summary = summarize_classes(attacks, top_k, int(labels.max()) + 1)
        rows = _class_rows(summary, np.concatenate(gains))
        frame = pd.DataFrame(rows).sort_values(["score", "class"], ascending=[False, True])
        yield "", save_class_figures, frame, top_k


def _class_rows(summary: Any, gains: np.ndarray) -> list[dict[str, float]]:
    """gains: target correct - reference correct of every attacked image."""
    large = np.flatnonzero(summary.n >= LEAST_OF_CLASS)
    wider = norm.ppf(1 - 0.025 / max(len(large), 1)) / Z95
    rng, rows = np.random.default_rng(0), []
    for label in np.flatnonzero(summary.n):
        n, score = int(summary.n[label]), summary.score.at(label)
        row = {"class": int(label), "n": n, "target": summary.target.value[label]}
        row |= {"reference": summary.reference.value[label], "score": score.value}
        drawn = gains[rng.integers(0, len(gains), (PERMUTATIONS, n))].mean(axis=1)
        row["low"] = row["high"] = np.nan
        if n >= LEAST_OF_CLASS:
            row["low"] = max(-1.0, score.value - wider * (score.value - score.low))
            row["high"] = min(1.0, score.value + wider * (score.high - score.value))
        row["chance_low"], row["chance_high"] = np.quantile(drawn, (0.025, 0.975))
        rows.append(row)
    return rows


@dataclass(frozen=True)
class ScoredPoint:
    """One point of a model's sweeps. setting, value: the column of the axis and its value there. dataset: images per
    class, None where the sweep does not say. probe: the linear probe, None without one."""

    model: str
    setting: str
    value: float | str
    epoch: int
    dataset: int | None
    attack: Attack
    probe: ProbeAccuracies | None

    def row(self, top_k: int) -> dict[str, Any]:
        """What the point adds to the accuracies: whose they are, and the probe's validation accuracy."""
        ((columns, _),) = columns_at(self.attack, [100], top_k)
        columns = {_SHORT.get(name, name): value for name, value in columns.items() if name != "pct_confidence"}
        probe = self.probe["val"][f"top_{top_k}"] if self.probe else _UNKNOWN
        about = {"setting": self.setting, "value": self.value, "epoch": self.epoch, "dataset": self.dataset}
        return {**about, "layer": self.attack.layer, **columns, "probe_val": probe.value, **bounds("probe_val", probe)}


def criteria_frames(points: Sequence[ScoredPoint], dataset: int, epoch: int) -> Frames:
    """Yields target, reference, score and probe of each training criterion, a row for each of its points.

    drawn: 1 for the points at this epoch and so many images per class, and for all of a sweep of a parameter.
    """
    first = ["loss", "epoch", "dataset", "layer", "target", "reference", "score", "probe_val"]
    for top_k in TOP_KS:
        frame = pd.DataFrame([{"loss": point.model, **point.row(top_k)} for point in points])
        frame = frame[[*first, *frame.columns.difference(first, sort=False)]]
        drawn = (frame["epoch"] == epoch) & (frame["dataset"].eq(dataset) | (frame["setting"] == "param"))
        yield "", save_criteria_figures, frame.assign(drawn=drawn.astype(int)), top_k


def utility_frames(points: Sequence[ScoredPoint]) -> Frames:
    """Yields the déjà vu score against the probe's validation accuracy of every point that has both.

    on_front: 1 where no other point has both a smaller score and a larger probe accuracy.
    """
    columns = ["model", "setting", "value", "epoch", "layer", "score", "probe_val"]
    probed = [point for point in points if point.probe]
    for top_k in TOP_KS if probed else ():
        frame = pd.DataFrame([{"model": point.model, **point.row(top_k)} for point in probed])
        frame = frame[[*columns, "score_low", "score_high"]]
        yield "", save_utility_figures, frame.assign(on_front=on_front(frame["score"], frame["probe_val"])), top_k


def layer_utility_frames(attacks: dict[str, Attack], probes: Accuracies) -> Frames:
    """Yields the déjà vu score of each layer beside training's own probe on it, of the layers that have both.

    attacks: {layer: Attack}, in the network's order. probes: of `online_probes`.
    """
    layers = [layer for layer in attacks if layer in probes]
    for top_k in TOP_KS if len(layers) > 1 else ():
        rows = []
        for layer in layers:
            ((columns, _),) = columns_at(attacks[layer], [100], top_k)
            score = {name: columns[name] for name in ("score", "score_low", "score_high", "interpretable")}
            rows.append({"layer": layer, "probe_val": probes[layer][top_k], **score})
        yield "", save_layer_utility_figures, pd.DataFrame(rows), top_k


def grid_frames(points: dict[tuple[int, int], Attack]) -> Frames:
    """Yields the frames of all data set sizes at all epochs. points: {(images per class, epoch): Attack}."""
    for top_k in TOP_KS:
        rows = []
        for (dataset, epoch), attack in points.items():
            ((columns, _),) = columns_at(attack, [100], top_k)
            rows.append({"dataset": dataset, "epoch": epoch, **columns})
        frame = pd.DataFrame(rows).rename(columns=_SHORT).drop(columns="pct_confidence")
        yield "", save_grid_figures, frame, top_k
        yield "lines_", save_grid_line_figures, frame, top_k


def on_front(scores: Sequence[float], utilities: Sequence[float]) -> np.ndarray:
    """int (n,): 1 where no other point has at most the score and at least the utility, and one of them better."""
    scores, utilities = np.asarray(scores), np.asarray(utilities)
    front = np.ones(len(scores), dtype=int)
    for place, (score, utility) in enumerate(zip(scores, utilities)):
        no_worse = (scores <= score) & (utilities >= utility)
        front[place] = not (no_worse & ((scores < score) | (utilities > utility))).any()
    return front


def gap_frames(attacks: dict, probes: dict, x: str) -> Frames:
    """Yields the frames of the déjà vu score beside the linear probe's gap, of the points that have both.

    attacks, probes: the frames of both against x, as `Output.save` returns them.
    """
    for top_k in TOP_KS:
        rows = []
        for row in probes["", top_k].to_dict("records"):
            gap = difference(accuracy_in(row, "train"), accuracy_in(row, "val"))
            rows.append({x: row[x], "probe_gap": gap["value"], **bounds("probe_gap", gap)})
        scores = attacks["acc_", top_k][[x, "pct_confidence", "score", "score_low", "score_high"]]
        frame = scores.merge(pd.DataFrame(rows), on=x)
        if len(frame):
            yield "", save_gap_figures, frame, top_k


def accuracy_in(row: dict, name: str) -> Estimate:
    """An estimate from the columns of a row."""
    return Estimate(row[f"{name}_acc"], row[f"{name}_low"], row[f"{name}_high"])


def probe_frames(points: Sequence[tuple], x: str) -> Frames:
    """Yields (part of the file name, function that draws, DataFrame, top_k) of a sweep of linear probes."""
    for top_k in TOP_KS:
        rows = []
        for position, final in points:
            train, val = (final[name][f"top_{top_k}"] for name in ("train", "val"))
            accuracies = {x: position, "train_acc": train["value"], "val_acc": val["value"]}
            rows.append({**accuracies, **bounds("train", train), **bounds("val", val)})
        yield "", save_probe_figures, pd.DataFrame(rows), top_k
