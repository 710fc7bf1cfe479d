"""The tables that figures of attacks and linear probes are drawn from, as the csv beside the figure
holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from dejavu_utils.analysis.attack_files import AttackedSet, read_attack
from dejavu_utils.analysis.intervals import Z95, Estimate, bounds, difference
from dejavu_utils.analysis.memorization import (
    OUTCOMES,
    TOP_KS,
    Summary,
    summarize_classes,
    summarize_levels,
)
from dejavu_utils.analysis.online_probe import Accuracies
from dejavu_utils.analysis.report import clear_of_chance
from dejavu_utils.analysis.results_json import ProbeResults, TopAccuracies, read_ceiling
from dejavu_utils.analysis.tables import accuracy_columns, confidence_curve, directions

CURVE = range(10, 101, 2)  # per cents of the confidence curve
VOTES = (1, 2, 5, 10, 20, 50, 100, 200)  # neighbors that vote, of the figure of votes
LEAST_OF_CLASS = 5  # attacked images from which a class has an interval
PERMUTATIONS = 1000

_SHORT = {"target_acc": "target", "reference_acc": "reference"}
_UNKNOWN = Estimate(np.nan, np.nan, np.nan)

Sets = dict[str, AttackedSet]


@dataclass(frozen=True)
class Attack:
    """What figures of sweeps show of one attack at one layer.

    folder: of the layer. n: attacked images. classes: how many its images and predictions have.
    levels: {top_k: {per cent: Summary}}, 100 among them. ceiling: None if it is not known.
    """

    folder: Path
    layer: str
    n: int
    classes: int
    levels: dict[int, dict[float, Summary]]
    ceiling: TopAccuracies | None

    @classmethod
    @cache
    def read(cls, folder: Path, layer: str, k: int, pct_confidences: tuple[float, ...]) -> "Attack":
        """From its files, which are read once. k: neighbors that vote. InputError names a file that
        does not fit."""
        return cls.of(
            folder, layer, read_attack(folder, k), read_ceiling(folder, k), pct_confidences
        )

    @classmethod
    def of(
        cls,
        folder: Path,
        layer: str,
        sets: Sets,
        ceiling: TopAccuracies | None,
        pct_confidences: Sequence[float] = (100,),
    ) -> "Attack":
        attacks = directions(sets)
        every = sorted({*pct_confidences, 100})
        levels = {
            top_k: dict(zip(every, summarize_levels(attacks, top_k, every))) for top_k in TOP_KS
        }
        named = []
        for attack in attacks:
            named += [attack.labels, attack.target.top.ravel()]
        classes = np.setdiff1d(np.concatenate(named), [-1])
        return cls(
            folder,
            layer,
            sum(len(attack.labels) for attack in attacks),
            len(classes),
            levels,
            ceiling,
        )

    def interpretable(self, top_k: int) -> float:
        """1 where the ceiling is above chance, 0 where it is not, NaN where it is not known."""
        if self.ceiling is None:
            return np.nan
        return float(clear_of_chance(self.ceiling.of(top_k), self.levels[top_k][100].chance))

    def columns(self, top_k: int, pct: float = 100) -> dict[str, Any]:
        """Accuracies and score of a confidence level, and `interpretable`."""
        ceiling = self.ceiling.of(top_k) if self.ceiling else None
        accuracies = accuracy_columns(self.levels[top_k][pct], ceiling)
        return {"pct_confidence": pct, **accuracies, "interpretable": self.interpretable(top_k)}


@dataclass(frozen=True)
class SweepPoint:
    """A point of a sweep. value: on the axis. path: its folder. content: Attack or ProbeResults.
    differs: how it was made otherwise than the first point, beside what the axis varies; "" where
    it was not."""

    value: Any
    path: Path
    content: Any
    differs: str = ""


def accuracy_table(
    points: Sequence[SweepPoint], pct_confidences: Sequence[float], x: str, top_k: int
) -> pd.DataFrame:
    """Accuracies of a sweep of attacks, a row for each point and confidence level. x: column of the
    axis."""
    rows = []
    for point in points:
        for pct in pct_confidences:
            rows.append(
                {x: point.value, **point.content.columns(top_k, pct), "differs": point.differs}
            )
    return pd.DataFrame(rows)


def partition_table(points: Sequence[SweepPoint], x: str, top_k: int) -> pd.DataFrame:
    """Fractions of the four outcomes, of all examples, a row for each point."""
    rows = []
    for point in points:
        outcomes = point.content.levels[top_k][100].outcomes
        row = {x: point.value, **{outcome: outcomes[outcome].value for outcome in OUTCOMES}}
        for outcome in OUTCOMES:
            row |= bounds(outcome, outcomes[outcome])
        rows.append(
            {**row, "interpretable": point.content.interpretable(top_k), "differs": point.differs}
        )
    return pd.DataFrame(rows)


def probe_table(points: Sequence[SweepPoint], x: str, top_k: int) -> pd.DataFrame:
    """Accuracies of a sweep of linear probes."""
    rows = []
    for point in points:
        final = point.content.final
        train, val = final.train.of(top_k), final.val.of(top_k)
        accuracies = {x: point.value, "train_acc": train.value, "val_acc": val.value}
        rows.append(
            {**accuracies, **bounds("train", train), **bounds("val", val), "differs": point.differs}
        )
    return pd.DataFrame(rows)


def gap_table(
    attacks: dict[int, pd.DataFrame],
    probes: dict[int, pd.DataFrame],
    positions: list,
    x: str,
    top_k: int,
) -> pd.DataFrame:
    """The déjà vu score beside the linear probe's gap, of the positions that have both.

    attacks, probes: {top_k: `accuracy_table`, `probe_table`}.
    """
    rows = []
    for row in probes[top_k].to_dict("records"):
        train = Estimate(row["train_acc"], row["train_low"], row["train_high"])
        val = Estimate(row["val_acc"], row["val_low"], row["val_high"])
        gap = difference(train, val)
        if row[x] in positions:
            rows.append({x: row[x], "probe_gap": gap.value, **bounds("probe_gap", gap)})
    scores = attacks[top_k][[x, "pct_confidence", "score", "score_low", "score_high"]]
    return scores.merge(
        pd.DataFrame(rows, columns=[x, "probe_gap", "probe_gap_low", "probe_gap_high"]), on=x
    )


def layer_table(
    attacks: dict[str, Attack],
    differs: dict[str, str],
    pct_confidences: Sequence[float],
    top_k: int,
) -> pd.DataFrame:
    """Accuracies of the layers of one point, in the network's order. attacks, differs: by layer."""
    rows = []
    for layer, attack in attacks.items():
        for pct in pct_confidences:
            rows.append({"layer": layer, **attack.columns(top_k, pct), "differs": differs[layer]})
    return pd.DataFrame(rows)


def layer_utility_table(attacks: dict[str, Attack], probes: Accuracies, top_k: int) -> pd.DataFrame:
    """The déjà vu score of each layer beside training's own probe on it, of the layers that have
    both; empty for one.

    attacks: {layer: Attack}, in the network's order. probes: of `online_probes`.
    """
    rows = []
    for layer, attack in attacks.items():
        if layer in probes:
            columns = attack.columns(top_k)
            score = {
                name: columns[name]
                for name in ("score", "score_low", "score_high", "interpretable")
            }
            rows.append({"layer": layer, "probe_val": probes[layer][top_k], **score})
    return pd.DataFrame(rows if len(rows) > 1 else [])


def grid_table(points: Sequence[SweepPoint], top_k: int) -> pd.DataFrame:
    """Accuracies of all data set sizes at all epochs. points: their values are (images per class,
    epoch)."""
    rows = []
    for point in points:
        dataset, epoch = point.value
        columns = point.content.columns(top_k)
        rows.append({"dataset": dataset, "epoch": epoch, **columns, "differs": point.differs})
    return pd.DataFrame(rows).rename(columns=_SHORT).drop(columns="pct_confidence")


def sslmem_table(
    accuracies: dict[int, pd.DataFrame], sslmem: dict[int, dict | None], top_k: int
) -> pd.DataFrame:
    """The déjà vu score beside the mean SSLMem, of the epochs that have both.

    accuracies: {top_k: accuracy_table against epochs}. sslmem: {epoch: {layer: estimate as in
    JSON}, or None}.
    """
    rows = []
    for row in accuracies[top_k].to_dict("records"):
        if sslmem[row["epoch"]]:
            score = {"value": row["score"], "low": row["score_low"], "high": row["score_high"]}
            of = f"{row['pct_confidence']:g}"
            rows.append({"epoch": row["epoch"], "instrument": "deja_vu", "of": of, **score})
    for epoch, layers in sslmem.items():
        for layer, mean in (layers or {}).items():
            rows.append({"epoch": epoch, "instrument": "sslmem", "of": layer, **mean})
    return pd.DataFrame(rows)


def confidence_table(sets: Sets, ceiling: TopAccuracies | None, top_k: int) -> pd.DataFrame:
    """The confidence curve of one attack."""
    curve = confidence_curve(sets, CURVE, ceiling)
    return curve[curve["top_k"] == top_k].drop(columns="top_k")


def attacks_by_votes(folder: Path, most: int, sets: Sets) -> dict[int, Sets]:
    """{k: an attack's sets if k neighbors vote}, for the k of VOTES below `most` and for `most`,
    whose sets are given."""
    fewer = {k: read_attack(folder, k) for k in VOTES if k < most}
    return {**fewer, most: sets}


def vote_table(by_votes: dict[int, Sets], top_k: int) -> pd.DataFrame:
    """Target, reference and score of an attack against the neighbors that vote. by_votes: of
    `attacks_by_votes`."""
    rows = []
    for k, sets in by_votes.items():
        (summary,) = summarize_levels(directions(sets), top_k, [100])
        rows.append({"k": k, **accuracy_columns(summary)})
    return pd.DataFrame(rows).rename(columns=_SHORT)


def class_scores(sets: Sets, top_k: int) -> pd.DataFrame:
    """The score of each class, the most affected first: class (its label), n, target, reference,
    score, and low and high, which hold for all classes of at least LEAST_OF_CLASS images at once
    (Bonferroni).

    chance_low, chance_high: 2.5 and 97.5 % of the scores that as many images drawn from all classes
    have.
    """
    attacks, gains = directions(sets), []
    for attack in attacks:
        target, reference = attack.correct(top_k)
        gains.append(target.astype(float) - reference)
    every_gain = np.concatenate(gains)
    labels = np.concatenate([attack.labels for attack in attacks])
    summary = summarize_classes(attacks, top_k, int(labels.max()) + 1)
    large = int((summary.n >= LEAST_OF_CLASS).sum())
    wider = norm.ppf(1 - 0.025 / max(large, 1)) / Z95
    rng, rows = np.random.default_rng(0), []
    for label in np.flatnonzero(summary.n).tolist():
        n, score = int(summary.n[label]), summary.score.at(label)
        row = {"class": label, "n": n, "target": summary.target.value[label]}
        row |= {
            "reference": summary.reference.value[label],
            "score": score.value,
            "low": np.nan,
            "high": np.nan,
        }
        drawn = every_gain[rng.integers(0, len(every_gain), (PERMUTATIONS, n))].mean(axis=1)
        if n >= LEAST_OF_CLASS:
            row["low"] = max(-1.0, score.value - wider * (score.value - score.low))
            row["high"] = min(1.0, score.value + wider * (score.high - score.value))
        row["chance_low"], row["chance_high"] = np.quantile(drawn, (0.025, 0.975))
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["score", "class"], ascending=[False, True])


@dataclass(frozen=True)
class ScoredPoint:
    """One point of a model's sweeps. setting, value: the column of the axis and its value there.
    dataset: images per class, None where the sweep does not say. probe: the linear probe, None
    without one."""

    model: str
    setting: str
    value: float | str
    epoch: int
    dataset: int | None
    attack: Attack
    probe: ProbeResults | None
    differs: str = ""

    def row(self, top_k: int) -> dict[str, Any]:
        """What the point adds to the accuracies: whose they are, and the probe's validation
        accuracy."""
        row = {
            "setting": self.setting,
            "value": self.value,
            "epoch": self.epoch,
            "dataset": self.dataset,
        }
        row["layer"] = self.attack.layer
        for name, column in self.attack.columns(top_k).items():
            row[_SHORT.get(name, name)] = column
        del row["pct_confidence"]
        probe = self.probe.final.val.of(top_k) if self.probe else _UNKNOWN
        return {
            **row,
            "probe_val": probe.value,
            **bounds("probe_val", probe),
            "differs": self.differs,
        }


def criteria_table(
    points: Sequence[ScoredPoint], dataset: int, epoch: int, top_k: int
) -> pd.DataFrame:
    """Target, reference, score and probe of each training criterion, a row for each of its points.

    drawn: 1 for the points at this epoch and so many images per class, and for all of a sweep of a
    parameter.
    """
    first = ["loss", "epoch", "dataset", "layer", "target", "reference", "score", "probe_val"]
    frame = pd.DataFrame([{"loss": point.model, **point.row(top_k)} for point in points])
    frame = frame[[*first, *frame.columns.difference(first, sort=False)]]
    drawn = (frame["epoch"] == epoch) & (
        frame["dataset"].eq(dataset) | (frame["setting"] == "param")
    )
    return frame.assign(drawn=drawn.astype(int))


def utility_table(points: Sequence[ScoredPoint], top_k: int) -> pd.DataFrame:
    """The déjà vu score against the probe's validation accuracy of every point that has both.

    on_front: 1 where no other point has both a smaller score and a larger probe accuracy.
    """
    frame = pd.DataFrame(
        [{"model": point.model, **point.row(top_k)} for point in points if point.probe]
    )
    if frame.empty:
        return frame
    columns = [
        "model",
        "setting",
        "value",
        "epoch",
        "layer",
        "score",
        "probe_val",
        "score_low",
        "score_high",
    ]
    front = on_front(frame["score"], frame["probe_val"])
    return frame[columns].assign(on_front=front, differs=frame["differs"])


def on_front(scores: Sequence[float], utilities: Sequence[float]) -> np.ndarray:
    """int (n,): 1 where no other point has at most the score and at least the utility, and one of
    them better."""
    scores, utilities = np.asarray(scores), np.asarray(utilities)
    front = np.ones(len(scores), dtype=int)
    for place, (score, utility) in enumerate(zip(scores, utilities)):
        no_worse = (scores <= score) & (utilities >= utility)
        front[place] = not (no_worse & ((scores < score) | (utilities > utility))).any()
    return front
