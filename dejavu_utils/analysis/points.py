"""The points of a model's sweeps: which there are, what they hold, and how their figures are
saved."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from dejavu_utils.analysis.agreement import copies, disagreements, foreign_probe, misnamed
from dejavu_utils.analysis.attack_files import TooManyVotes
from dejavu_utils.analysis.figures import Draw, save_figure
from dejavu_utils.analysis.frames import AttackScores, Content, ScoredPoint, SweepPoint
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.online_probe import Accuracies, online_probes
from dejavu_utils.analysis.results_json import (
    ProbeResults,
    attacked_layers,
    read_probe,
    read_results,
)
from dejavu_utils.data.provenance import READERS
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv
from dejavu_utils.naming import ATTACK_PREFIX, PROBE_PREFIX, SWEEPS, sweep_of, sweep_points

# Labels of the axes.
LABELS = {
    "simclr.temperature": "SimCLR temperature",
    "vicreg.sim_coeff": "VICReg invariance coefficient",
    "corner_crop_frac": "side of the corner crop / side of the image",
}
LAYERS = ("backbone", "projector", "logits")
PLURALS = {"epoch": "epochs", "dataset": "datasets", "param": "params"}  # in the names of figures
GRID = "grid"  # of epochs and sizes, beside these
AT_ONCE = 4  # points that are read: each holds the files of an attack
TOP_5_CLASSES = 20  # with fewer, five predictions are correct too often by chance

T = TypeVar("T", SweepPoint, ScoredPoint)
Sweeps = dict[str, list[SweepPoint[Content]]]  # by column of the axis, or GRID


@dataclass(frozen=True)
class Series:
    """One model's points.

    attacks, probes: the folders they lie in; None without probes. dataset: images per class of the
    sweep of epochs. epoch: of the other sweeps. k: neighbors that vote. pct_confidences: levels of
    the accuracies. layer: of the attacks, None for the projector or the one that is there. param:
    what varies instead of epochs and sizes, with the values that are wanted, all if None.
    """

    model: str
    attacks: Path
    probes: Path | None
    dataset: int
    epoch: int
    k: int
    pct_confidences: list[float]
    layer: str | None = None
    param: str | None = None
    values: list | None = None

    @property
    def sweeps(self) -> dict[str, tuple[str, Callable]]:
        """{column: (name of a point, value of what varies)} of each sweep."""
        names = (self.model, self.dataset, self.epoch)
        if self.param:
            sweep = sweep_of(self.param)
            return {"param": (sweep.template(*names), sweep.value)}
        return {x: (SWEEPS[PLURALS[x]].template(*names), int) for x in ("epoch", "dataset")}

    def caption(self, x: str | None, attacks: Sequence[AttackScores]) -> str:
        """Model, what does not vary, layer, neighbors that vote, attacked images. x: column of the
        axis, or None."""
        return f"{self.model}, {self.fixed(x)},\n{what_votes(attacks, self.k)}"

    def fixed(self, x: str | None) -> str:
        """What does not vary along the axis: epoch and images per class."""
        dataset = f"{self.dataset} images per class"
        epoch = f"epoch {self.epoch}"
        if x is None:
            return f"{dataset}, {epoch}"
        return dataset if x == "epoch" else epoch

    def read_attacks(self) -> Sweeps[AttackScores]:
        """The AttackScores of every point, and of GRID if there are more points than those of the two
        sweeps."""
        sweeps = dict(self.sweeps)
        if not self.param:
            sweeps[GRID] = (f"{self.model}_{{}}ep", _size_and_epoch)
        return self._read(
            self.attacks, "--attk_folder_path", ATTACK_PREFIX, sweeps, self.read_attack
        )

    def read_probes(self) -> Sweeps[ProbeResults]:
        """The ProbeResults of every point; empty where there is no folder of probes."""
        if self.probes is None:
            return {}
        return self._read(
            self.probes, "--lin_probe_folder_path", PROBE_PREFIX, self.sweeps, read_probe
        )

    def read_attack(self, point: Path) -> AttackScores:
        """The layer that is asked for, else the projector, else its first one."""
        layers = attacked_layers(point)
        if self.layer and layers and self.layer not in layers:
            there = ", ".join(sorted(layers, key=place_in_network))
            raise InputError(f"--layer {self.layer}: {point} holds {there}")
        layer = self.layer
        if not layer:
            layer = next(iter(layers)) if layers and "projector" not in layers else "projector"
        return self.read_layer(layer, layers.get(layer, point))

    def read_layer(self, layer: str, folder: Path) -> AttackScores:
        """The AttackScores of one layer's folder."""
        try:
            return AttackScores.read(folder, layer, self.k, tuple(self.pct_confidences))
        except TooManyVotes as error:
            raise TooManyVotes(str(error).replace(" k_attk ", " --k_neighb ")) from None

    def own_probes(
        self, attacks: Sweeps[AttackScores], probes: Sweeps[ProbeResults]
    ) -> Sweeps[ProbeResults]:
        """The probes without those of another model than the attack's at the same point; notes
        them."""
        own = {}
        for x, of_sweep in probes.items():
            attacked = {point.value: point.folder for point in attacks.get(x, ())}
            kept = []
            for point in of_sweep:
                path = point.path
                attack = attacked.get(point.value)
                if attack and foreign_probe(attack, path):
                    note(f"{path} is of another model than {attack}: no score beside this probe")
                else:
                    kept.append(point)
            own[x] = kept
        return own

    def scored(
        self, attacks: Sweeps[AttackScores], probes: Sweeps[ProbeResults]
    ) -> list[ScoredPoint]:
        """A ScoredPoint for each attack; the one where both sweeps meet counts once."""
        points = {}
        for x, of_sweep in attacks.items():
            if x == GRID:
                continue
            of_probes = {point.value: point.content for point in probes.get(x, ())}
            for point in of_sweep:
                value = point.value
                epoch = value if x == "epoch" else self.epoch
                dataset = {"epoch": self.dataset, "dataset": value}.get(x)
                param = value if x == "param" else None
                probe = of_probes.get(value)
                scored = ScoredPoint(
                    self.model, x, value, epoch, dataset, point.content, probe, point.differs
                )
                points.setdefault((epoch, dataset, param), scored)
        return list(points.values())

    def _read(
        self,
        folder: Path,
        flag: str,
        prefix: str,
        sweeps: dict[str, tuple[str, Callable]],
        read: Callable[[Path], Content],
    ) -> Sweeps[Content]:
        """The points of each sweep that has one. InputError if none has."""
        points = {}
        reasons = []
        for x, (name, value) in sweeps.items():
            wanted = sweep_points(folder, prefix + name, value)
            if x == "param" and self.values:
                wanted = [(position, path) for position, path in wanted if position in self.values]
            complete, errors = read_all(wanted, read)
            reasons += errors
            complete = [self._checked(point, x) for point in complete]
            if x == GRID and not self._has_grid(complete):
                continue
            if complete:
                points[x] = compared(complete, self._reader(x))
            else:
                note(f"no {prefix}{name.format('*')} in {folder}: no figure of {PLURALS[x]}")
        if not points.keys() & PLURALS.keys():
            if reasons:
                raise InputError(f"{flag}: no point could be read; the last reason: {reasons[-1]}")
            tried = [prefix + name.format("*") for x, (name, _) in sweeps.items() if x != GRID]
            raise InputError(
                f"{flag} {folder}: nothing matches {' or '.join(tried)}; {_those_there(folder, prefix)} there"
            )
        return points

    def _checked(self, point: SweepPoint[Content], x: str) -> SweepPoint[Content]:
        """The point, with a word and a note if it is of another epoch than its folder's name says."""
        epoch = self.epoch
        if x == "epoch":
            epoch = point.value
        elif x == GRID:
            _, epoch = point.value
        other = misnamed(point.folder, epoch)
        if other:
            note(f"{point.folder} is named for another {other}")
        return replace(point, differs=other)

    def _has_grid(self, points: list[SweepPoint]) -> bool:
        """Are there points of neither of the two sweeps?"""
        values = [point.value for point in points]
        return any(size != self.dataset and epoch != self.epoch for size, epoch in values)

    def _reader(self, x: str) -> str:
        """One of provenance.READERS: of the points along this axis."""
        if self.param in READERS:
            return self.param
        return "datasets" if x == GRID else PLURALS[x]


def compared(points: Sequence[T], reader: str = "table") -> list[T]:
    """The points of one figure, with how each was made otherwise than the first; notes it.

    Equal results are noted, too: at one place they count once, at several all but one are misplaced.
    """
    folders = {number: point.folder for number, point in enumerate(points)}
    earlier, notes = copies(folders)
    for number, first in earlier.items():
        if points[number].place == points[first].place:
            del folders[number]
    differs, about_records = disagreements(reader, folders)
    for text in notes + about_records:
        note(text)
    kept = []
    for number, words in differs.items():
        same = f"results of {points[earlier[number]].folder}" if number in earlier else ""
        kept.append(replace(points[number], differs=words or points[number].differs or same))
    return kept


def read_all(
    wanted: list[tuple[Any, Path]], read: Callable[[Path], Content]
) -> tuple[list[SweepPoint[Content]], list[InputError]]:
    """(points, why others are left out, which is noted), several read at a time. wanted: (value,
    folder) of each."""

    def read_one(path: Path) -> Content | InputError:
        try:
            return read(path)
        except TooManyVotes:  # of every point, and easily mended
            raise
        except InputError as error:
            return error

    points = []
    reasons = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        contents = pool.map(read_one, [path for _, path in wanted])
        for (value, path), content in zip(wanted, contents):
            if isinstance(content, InputError):
                reasons.append(content)
                note(f"left out: {content}")
            else:
                points.append(SweepPoint(value, path, content))
    return points, reasons


@cache
def note(text: str) -> None:
    """Prints a note, once."""
    print(f"note: {text}")


def _those_there(folder: Path, prefix: str) -> str:
    there = sorted(path.name for path in folder.iterdir() if path.name.startswith(prefix))
    if not there:
        return f"no {prefix}* is"
    return f"there are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}"


def _size_and_epoch(text: str) -> tuple[int, int]:
    """(images per class, epoch) of 300pc_1000. ValueError for others."""
    size, epoch = text.split("pc_")
    return int(size), int(epoch)


def place_in_network(layer: str) -> tuple[int, int]:
    """Sorts backbone, projector.0, projector.1, ..., projector, logits."""
    name, _, number = layer.partition(".")
    return LAYERS.index(name), int(number) if number else 1000


def what_votes(attacks: Sequence[AttackScores], k: int) -> str:
    """Layer, neighbors that vote, attacked images, in words."""
    layers = ", ".join(sorted({attack.layer for attack in attacks}, key=place_in_network))
    votes = "" if layers == "logits" else f", k = {k}"
    return f"{layers}{votes}, n = {_range([attack.n for attack in attacks])}"


def what_is_probed(probes: Sequence[ProbeResults]) -> str:
    """Layer and images of linear probes, in words, as far as they say."""
    layers = {probe.settings["layer"] for probe in probes if "layer" in probe.settings}
    words = f"linear probe, {', '.join(sorted(layers)) or 'layer unknown'}"
    for name in ("train", "val"):
        counts = [probe.counts[name] for probe in probes if name in probe.counts]
        words += f", n({name}) = {_range(counts) if counts else 'unknown'}"
    return words


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def probes_of(layers: dict[str, Path]) -> Accuracies:
    """Training's own probes of the models of an attack. layers: {layer: folder}."""
    for folder in layers.values():
        results = read_results(folder)
        if results:
            return online_probes(results.settings, results.made_from)
    return {}


@dataclass(frozen=True)
class Output:
    """Where figures and their numbers go. classes: that the attacks have. param: what varies in a
    sweep of a parameter. csv_only: names of the tables that have no figure, since top-5 of few
    classes is mostly chance."""

    folder: Path
    style: str
    classes: int
    param: str | None = None
    csv_only: list[str] = field(default_factory=list)

    def save(
        self,
        stem: str,
        draw: Draw,
        caption: str,
        table: Callable[..., pd.DataFrame],
        *arguments: Any,
    ) -> None:
        """Draws and writes {stem}_top1 and {stem}_top5. table: called with the arguments and top_k,
        gives what is drawn."""
        for top_k in TOP_KS:
            name = f"{stem}_top{top_k}"
            frame = table(*arguments, top_k)
            self.save_table(name, draw, caption, frame, top_k)

    def save_table(
        self, name: str, draw: Draw, caption: str, frame: pd.DataFrame, top_k: int = 1
    ) -> None:
        """Draws and writes one table; nothing where it has no row."""
        if frame.empty:
            return
        path = self.folder / name
        save_csv(f"{path}.csv", frame)
        if top_k > 1 and self.classes < TOP_5_CLASSES:
            self.csv_only.append(f"{name}.csv")
            return
        param = LABELS.get(self.param, self.param) if self.param else "param"
        save_figure(path, draw, frame, caption, top_k, param, self.style)
        print(f"{path}_legend.png")

    def print_note(self) -> None:
        """Names the tables without a figure, if there are any, in one line."""
        if self.csv_only:
            tables = ", ".join(self.csv_only)
            note(
                f"without a figure, since top-5 of {self.classes} classes is mostly chance: {tables}"
            )
