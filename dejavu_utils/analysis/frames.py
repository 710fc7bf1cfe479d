"""The tables that figures of attacks and linear probes are drawn from, as the csv beside the figure
holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import norm

from dejavu_utils.analysis.attack_files import Sets, read_attack
from dejavu_utils.analysis.intervals import Z95, Estimate, bounds, difference, estimate_columns
from dejavu_utils.analysis.memorization import (
    TOP_KS,
    DirectedAttack,
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


@dataclass(frozen=True)
class AttackScores:
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
    def read(
        cls, folder: Path, layer: str, k: int, pct_confidences: tuple[float, ...]
    ) -> "AttackScores":
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
    ) -> "AttackScores":
        attacks = directions(sets)
        every = sorted({*pct_confidences, 100})
        levels = {}
        for top_k in TOP_KS:
            levels[top_k] = dict(zip(every, summarize_levels(attacks, top_k, every)))
        joined = DirectedAttack.joined(attacks)
        named = np.union1d(joined.labels, joined.target.top)
        classes = np.setdiff1d(named, [-1])
        return cls(folder, layer, len(joined.labels), len(classes), levels, ceiling)

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


Content = TypeVar("Content", AttackScores, ProbeResults)


@dataclass(frozen=True)
class SweepPoint(Generic[Content]):
    """A point of a sweep, or a layer of one. value: on the axis. path: its folder. differs: how it
    was made otherwise than the first point, beside what the axis varies; "" where it was not."""

    value: Any
    path: Path
    content: Content
    differs: str = ""

    @property
    def folder(self) -> Path:
        """Of its results.json."""
        return self.content.folder if isinstance(self.content, AttackScores) else self.path

    @property
    def place(self) -> tuple:
        """On the axis."""
        return (self.value,)


def accuracy_table(
    points: Sequence[SweepPoint[AttackScores]], pct_confidences: Sequence[float], x: str, top_k: int
) -> pd.DataFrame:
    """Accuracies of attacks, a row for each point and confidence level. x: column of the axis."""
    rows = []
    for point in points:
        for pct in pct_confidences:
            columns = point.content.columns(top_k, pct)
            rows.append({x: point.value, **columns, "differs": point.differs})
    return pd.DataFrame(rows)


def partition_table(points: Sequence[SweepPoint[AttackScores]], x: str, top_k: int) -> pd.DataFrame:
    """Fractions of the four outcomes, of all examples, a row for each point."""
    rows = []
    for point in points:
        outcomes = point.content.levels[top_k][100].outcomes
        row = {x: point.value, **{name: fraction.value for name, fraction in outcomes.items()}}
        for name, fraction in outcomes.items():
            row |= bounds(name, fraction)
        row["interpretable"] = point.content.interpretable(top_k)
        rows.append({**row, "differs": point.differs})
    return pd.DataFrame(rows)


def probe_table(points: Sequence[SweepPoint[ProbeResults]], x: str, top_k: int) -> pd.DataFrame:
    """Accuracies of a sweep of linear probes."""
    rows = []
    for point in points:
        final = point.content.final
        train, val = final.train.of(top_k), final.val.of(top_k)
        row = {x: point.value, "train_acc": train.value, "val_acc": val.value}
        row |= {**bounds("train", train), **bounds("val", val)}
        rows.append({**row, "differs": point.differs})
    return pd.DataFrame(rows)


def gap_table(
    attacks: Sequence[SweepPoint[AttackScores]],
    probes: Sequence[SweepPoint[ProbeResults]],
    pct_confidences: Sequence[float],
    x: str,
    top_k: int,
) -> pd.DataFrame:
    """The déjà vu score beside the linear probe's gap, of the points that have both."""
    probe_at = {probe.value: probe for probe in probes}
    rows = []
    for point in attacks:
        if point.value not in probe_at:
            continue
        probe = probe_at[point.value]
        final = probe.content.final
        gap = difference(final.train.of(top_k), final.val.of(top_k))
        differs = "; ".join(filter(None, (point.differs, probe.differs)))
        for pct in pct_confidences:
            score = point.content.levels[top_k][pct].score
            columns = {**estimate_columns("score", score), **estimate_columns("probe_gap", gap)}
            rows.append({x: point.value, "pct_confidence": pct, **columns, "differs": differs})
    return pd.DataFrame(rows)


def layer_utility_table(
    layers: Sequence[SweepPoint[AttackScores]], probes: Accuracies, top_k: int
) -> pd.DataFrame:
    """The déjà vu score of each layer beside training's own probe on it, of the layers that have
    both; empty for one.

    layers: in the network's order. probes: of `online_probes`.
    """
    rows = []
    for point in layers:
        if point.value in probes:
            row = {"layer": point.value, "probe_val": probes[point.value][top_k]}
            row |= estimate_columns("score", point.content.levels[top_k][100].score)
            row["interpretable"] = point.content.interpretable(top_k)
            rows.append({**row, "differs": point.differs})
    return pd.DataFrame(rows if len(rows) > 1 else [])


def grid_table(points: Sequence[SweepPoint[AttackScores]], top_k: int) -> pd.DataFrame:
    """Accuracies of all data set sizes at all epochs. points: their values are (images per class,
    epoch)."""
    rows = []
    for point in points:
        dataset, epoch = point.value
        columns = point.content.columns(top_k)
        rows.append({"dataset": dataset, "epoch": epoch, **columns, "differs": point.differs})
    return pd.DataFrame(rows).rename(columns=_SHORT).drop(columns="pct_confidence")


def sslmem_table(
    points: Sequence[SweepPoint[AttackScores]],
    sslmem: dict[int, dict[str, Estimate] | None],
    pct_confidences: Sequence[float],
    top_k: int,
) -> pd.DataFrame:
    """The déjà vu score beside the mean SSLMem, of the epochs that have both.

    points: attacks against epochs. sslmem: {epoch: {layer: estimate}, or None}.
    """
    rows = []
    for point in points:
        if not sslmem[point.value]:
            continue
        for pct in pct_confidences:
            score = vars(point.content.levels[top_k][pct].score)
            row = {"epoch": point.value, "instrument": "deja_vu", "of": f"{pct:g}"}
            rows.append({**row, **score})
    for epoch, layers in sslmem.items():
        for layer, mean in (layers or {}).items():
            rows.append({"epoch": epoch, "instrument": "sslmem", "of": layer, **vars(mean)})
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
    joined = DirectedAttack.joined(directions(sets))
    target, reference = joined.correct(top_k)
    gains = target.astype(float) - reference
    summary = summarize_classes([joined], top_k, int(joined.labels.max()) + 1)
    score = summary.score
    large = summary.n >= LEAST_OF_CLASS
    bonferroni = norm.ppf(1 - 0.025 / max(int(large.sum()), 1))
    wider = bonferroni / Z95  # than an interval of one class
    low = np.maximum(-1, score.value - wider * (score.value - score.low))
    high = np.minimum(1, score.value + wider * (score.high - score.value))
    columns = {
        "class": np.arange(len(large)),
        "n": summary.n,
        "target": summary.target.value,
        "reference": summary.reference.value,
        "score": score.value,
        "low": np.where(large, low, np.nan),
        "high": np.where(large, high, np.nan),
    }
    frame = pd.DataFrame(columns)[summary.n > 0]
    rng = np.random.default_rng(0)
    by_chance = []
    for n in frame["n"]:
        drawn = rng.integers(0, len(gains), (PERMUTATIONS, n))
        scores = gains[drawn].mean(axis=1)
        by_chance.append(np.quantile(scores, (0.025, 0.975)))
    chance_low, chance_high = np.transpose(by_chance)
    frame = frame.assign(chance_low=chance_low, chance_high=chance_high)
    return frame.sort_values(["score", "class"], ascending=[False, True])


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
    attack: AttackScores
    probe: ProbeResults | None
    differs: str = ""

    @property
    def folder(self) -> Path:
        """Of the attack's results.json."""
        return self.attack.folder

    @property
    def place(self) -> tuple:
        """Of the model, on its axis."""
        return (self.model, self.setting, self.value)

    def row(self, top_k: int) -> dict[str, Any]:
        """What the point adds to the accuracies: whose they are, and the probe's validation
        accuracy."""
        probe = self.probe.final.val.of(top_k) if self.probe else _UNKNOWN
        return {
            "setting": self.setting,
            "value": self.value,
            "epoch": self.epoch,
            "dataset": self.dataset,
            "layer": self.attack.layer,
            **self.attack.columns(top_k),
            **estimate_columns("probe_val", probe),
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
    frame = frame.rename(columns=_SHORT).drop(columns="pct_confidence")
    frame = frame[[*first, *frame.columns.difference(first, sort=False)]]
    is_here = frame["dataset"].eq(dataset) | (frame["setting"] == "param")
    drawn = (frame["epoch"] == epoch) & is_here
    return frame.assign(drawn=drawn.astype(int))


def utility_table(points: Sequence[ScoredPoint], top_k: int) -> pd.DataFrame:
    """The déjà vu score against the probe's validation accuracy of every point that has both.

    on_front: 1 where no other point has both a smaller score and a larger probe accuracy.
    """
    rows = [{"model": point.model, **point.row(top_k)} for point in points if point.probe]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    whose = ["model", "setting", "value", "epoch", "layer"]
    columns = [*whose, "score", "probe_val", "score_low", "score_high"]
    front = on_front(frame["score"], frame["probe_val"])
    return frame[columns].assign(on_front=front, differs=frame["differs"])


def on_front(scores: Sequence[float], utilities: Sequence[float]) -> np.ndarray:
    """int (n,): 1 where no other point has at most the score and at least the utility, and one of
    them better."""
    scores = np.asarray(scores)
    utilities = np.asarray(utilities)
    front = np.ones(len(scores), dtype=int)
    for place, (score, utility) in enumerate(zip(scores, utilities)):
        no_worse = (scores <= score) & (utilities >= utility)
        better = (scores < score) | (utilities > utility)
        front[place] = not (no_worse & better).any()
    return front
