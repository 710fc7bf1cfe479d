"""The points of a model's sweeps: which there are, what they hold, and how their figures are saved."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dejavu_utils.analysis.agreement import disagreements, foreign_probe
from dejavu_utils.analysis.attack_files import (
    attacked_layers,
    read_attack,
    read_ceiling,
    read_probe,
    read_results,
)
from dejavu_utils.analysis.frames import Attack, ScoredPoint
from dejavu_utils.analysis.online_probe import Accuracies, online_probes
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
TOP_5_CLASSES = 20  # with fewer, five predictions are correct too often by chance

Sweeps = dict[str, list[tuple]]  # {column of the axis: [(value, Attack or ProbeAccuracies)]}


@dataclass(frozen=True)
class Series:
    """One model's points.

    attacks, probes: the folders they lie in; None without probes. dataset: images per class of the sweep of epochs.
    epoch: of the other sweeps. k: neighbors that vote. layer: of the attacks, None for the projector or the one that is
    there. param: what varies instead of epochs and sizes, with the values that are wanted, all if None.
    """

    model: str
    attacks: Path
    probes: Path | None
    dataset: int
    epoch: int
    k: int
    layer: str | None = None
    param: str | None = None
    values: list | None = None

    @property
    def sweeps(self) -> list[tuple[str, str, Callable]]:
        """(column, folder template, value of the digits) of each sweep."""
        names = (self.model, self.dataset, self.epoch)
        if self.param:
            sweep = sweep_of(self.param)
            return [("param", sweep.template(*names), sweep.value)]
        return [(column, SWEEPS[PLURALS[column]].template(*names), int) for column in ("epoch", "dataset")]

    def fixed(self, x: str | None) -> str:
        """What does not vary along the axis: epoch and images per class. x: the column of the axis, or None."""
        fixed = [f"{self.dataset} images per class"] if x in ("epoch", None) else []
        fixed += [f"epoch {self.epoch}"] if x != "epoch" else []
        return ", ".join(fixed)

    def caption(self, x: str | None, attacks: Sequence[Attack]) -> str:
        """Model, what does not vary, layer, neighbors that vote, attacked images."""
        return f"{self.model}, {self.fixed(x)},\n{what_votes(attacks, self.k)}"

    def label(self, x: str) -> str | None:
        return LABELS.get(self.param or "", self.param) if x == "param" else None

    def read_attacks(self) -> Sweeps:
        return self._read(self.attacks, "--attk_folder_path", ATTACK_PREFIX, self.read_attack)

    def read_probes(self) -> Sweeps:
        """Empty where there is no folder of probes."""
        if self.probes is None:
            return {}
        return self._read(self.probes, "--lin_probe_folder_path", PROBE_PREFIX, read_probe)

    def read_attack(self, point: Path) -> Attack:
        """The Attack of a point's folder."""
        return self.read_layer(*self.chosen_layer(point))

    def chosen_layer(self, point: Path) -> tuple[Path, str]:
        """(folder, layer) of an attack: the layer that is asked for, else the projector, else its first one."""
        layers = attacked_layers(point)
        if self.layer and layers and self.layer not in layers:
            there = ", ".join(sorted(layers, key=place_in_network))
            raise InputError(f"--layer {self.layer}: {point} holds {there}")
        layer = self.layer or ("projector" if "projector" in layers else next(iter(layers), "projector"))
        return layers.get(layer, point), layer

    def read_layer(self, folder: Path, layer: str) -> Attack:
        """The Attack of one layer's folder."""
        try:
            return Attack(layer, read_attack(folder, self.k), read_ceiling(folder, self.k))
        except InputError as error:
            raise InputError(str(error).replace("k_attk is", "--k_neighb is")) from None

    def read_grid(self) -> dict[tuple[int, int], Attack]:
        """{(images per class, epoch): Attack} of SWEEP=grid; empty where there are only the two sweeps."""
        points = {}
        for size_and_epoch, path in sweep_points(self.attacks, f"{ATTACK_PREFIX}{self.model}_{{}}ep", _size_and_epoch):
            try:
                points[size_and_epoch] = self.read_attack(path)
            except InputError:
                continue  # named where the sweeps are read
        has_grid = any(size != self.dataset and epoch != self.epoch for size, epoch in points)
        return points if has_grid else {}

    def of_attacked_models(self, probed: Sweeps) -> Sweeps:
        """The points of `read_probes` without those whose probe is of another model than the attack's; notes them."""
        kept: Sweeps = {}
        for x, template, value in self.sweeps:
            if x not in probed or self.probes is None:
                continue
            probes = dict(sweep_points(self.probes, PROBE_PREFIX + template, value))
            foreign = set()
            for position, attack in sweep_points(self.attacks, ATTACK_PREFIX + template, value):
                probe, layers = probes.get(position), attacked_layers(attack).values()
                if probe is not None and any(foreign_probe(layer, probe) for layer in layers):
                    print(f"note: {probe} is of another model than {attack}: no score beside this probe")
                    foreign.add(position)
            own = [(position, probe) for position, probe in probed[x] if position not in foreign]
            if own:
                kept[x] = own
        return kept

    def scored(self, attacks: Sweeps, probes: Sweeps) -> list[ScoredPoint]:
        """A ScoredPoint for each attack; the one where both sweeps meet counts once."""
        points: dict[tuple, ScoredPoint] = {}
        for x, of_sweep in attacks.items():
            of_probes = dict(probes.get(x, ()))
            for value, attack in of_sweep:
                epoch = value if x == "epoch" else self.epoch
                dataset = {"epoch": self.dataset, "dataset": value}.get(x)
                point = ScoredPoint(self.model, x, value, epoch, dataset, attack, of_probes.get(value))
                points.setdefault((epoch, dataset, value if x == "param" else None), point)
        return list(points.values())

    def _read(self, folder: Path, flag: str, prefix: str, read: Callable) -> Sweeps:
        """The points of each sweep that has one. InputError if none has."""
        tried: list[str] = []
        reasons: list[InputError] = []
        points: Sweeps = {}
        for x, template, value in self.sweeps:
            tried.append((prefix + template).format("*"))
            wanted = sweep_points(folder, prefix + template, value)
            if self.values and x == "param":
                wanted = [(position, path) for position, path in wanted if position in self.values]
            of_sweep, left_out = self._read_points(wanted, x, read)
            reasons += left_out
            if of_sweep:
                points[x] = of_sweep
            else:
                print(f"note: no {tried[-1]} in {folder}: no figure of {PLURALS[x]}")
        if not points and reasons:
            raise InputError(f"{flag}: no point could be read; the last reason: {reasons[-1]}")
        if not points:
            there = sorted(path.name for path in folder.iterdir() if path.name.startswith(prefix))
            holds = f"no {prefix}* is"
            if there:
                holds = f"there are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}"
            raise InputError(f"{flag} {folder}: nothing matches {' or '.join(tried)}; {holds} there")
        return points

    def _read_points(self, wanted: Iterable[tuple], x: str, read: Callable) -> tuple[list[tuple], list[InputError]]:
        """([(value, what the folder holds)] of every point that is complete, why the others are left out)."""
        points, left_out, folders = [], [], {}
        for position, path in wanted:
            try:
                points.append((position, read(path)))
                folders[position] = self.chosen_layer(path)[0] if read == self.read_attack else path
            except InputError as error:
                if "--k_neighb" in str(error):
                    raise
                print(f"note: left out: {error}")
                left_out.append(error)
        reader = "corner_crop_frac" if self.param == "corner_crop_frac" else PLURALS[x]
        for note in disagreements(reader, folders)[1]:
            print(f"note: {note}")
        return points, left_out


def _size_and_epoch(text: str) -> tuple[int, int]:
    """(images per class, epoch) of 300pc_1000. ValueError for others."""
    size, epoch = text.split("pc_")
    return int(size), int(epoch)


def place_in_network(layer: str) -> tuple[int, int]:
    """Sorts backbone, projector.0, projector.1, ..., projector, logits."""
    name, _, number = layer.partition(".")
    return LAYERS.index(name), int(number) if number else 1000


def what_votes(attacks: Sequence[Attack], k: int) -> str:
    """Layer, neighbors that vote, attacked images, in words."""
    counts = sorted({attack.n for attack in attacks})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    layers = ", ".join(sorted({attack.layer for attack in attacks}, key=place_in_network))
    votes = "" if layers == "logits" else f", k = {k}"
    return f"{layers}{votes}, n = {n}"


def probes_of(layers: dict[str, Path]) -> Accuracies:
    """Training's own probes of the models of an attack. layers: {layer: folder}."""
    for folder in layers.values():
        results = read_results(folder)
        if results:
            return online_probes(results.settings, results.made_from)
    return {}


@dataclass(frozen=True)
class Output:
    """Where figures and their numbers go. classes: None where they are not known. csv_only: names of the tables that
    have no figure, since top-5 of few classes is mostly chance."""

    folder: Path
    classes: int | None = None
    csv_only: list[str] = field(default_factory=list)

    def save(self, stem: str, frames: Iterable[tuple], *how: Any, caption: str = "") -> dict:
        """Draws and writes each frame: (part of the file name, function that draws, DataFrame, top_k).

        how: what the function that draws takes beside them. Returns {(part of the file name, top_k): DataFrame}.
        """
        saved = {}
        for name, draw, frame, top_k in frames:
            path = self.folder / f"{stem}{name}top{top_k}"
            save_csv(f"{path}.csv", frame)
            saved[name, top_k] = frame
            if top_k > 1 and self.classes is not None and self.classes < TOP_5_CLASSES:
                self.csv_only.append(f"{path.name}.csv")
                continue
            draw(path, frame, *how[:1], top_k, *how[1:], caption=caption)
            print(f"{path}_legend.png")
        return saved

    def save_table(self, name: str, draw: Callable, frame: pd.DataFrame, caption: str) -> None:
        """Draws and writes one table; nothing where it has no row."""
        if len(frame):
            save_csv(self.folder / f"{name}.csv", frame)
            draw(self.folder / name, frame, caption=caption)
            print(f"{self.folder / name}_legend.png")

    def print_note(self) -> None:
        """Names the tables without a figure, if there are any, in one line."""
        if self.csv_only:
            tables = ", ".join(self.csv_only)
            print(f"note: without a figure, since top-5 of {self.classes} classes is mostly chance: {tables}")
