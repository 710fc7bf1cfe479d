"""The names of points and folders: what trainings, attacks, probes and reconstructions of a sweep
are called.

A point is one training recipe at one epoch, for instance `vicreg_300pc_1000ep`; its models are in
`{training}_A` and `{training}_B`, its attacks in `NN_attk_{point}`, its linear probe in
`lp_{point}`, its label-free scores in `sslmem_{point}`. Standard library only: the shell scripts
call this (bash_examples/sweep_points.py).
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETS = ("A", "B")
# of a model the one that was trained on the other set; of a set the other
TWIN = {"A": "B", "B": "A"}
LOGITS = "logits"  # a layer's name
# Folders of attacks, by what is attacked, or how.
ATTACK_FOLDERS = {
    "projector": "attack_sweeps",
    "backbone": "attack_sweeps_backbone",
    "corner_crop": "attack_sweeps_corner_crop",
    "logits": "attack_sweeps_w_linear_layer_activations",
    "cropsize": "attack_sweeps_cropsize",
}
PROBE_FOLDER = "lin_probe_sweeps_with_aug"
SSLMEM_FOLDER = "sslmem_sweeps"
ATTACK_PREFIX = "NN_attk_"
PROBE_PREFIX = "lp_"
SSLMEM_PREFIX = "sslmem_"
# Folders of attacks beside attack_sweeps, with the layer that an attack in them is of.
LAYERS_BESIDE = {ATTACK_FOLDERS[layer]: layer for layer in ("backbone", "logits")}
# names of the folders that --layers makes
ATTACKED_LAYER = re.compile(r"backbone|projector(\.\d+)?|logits")


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    point, training: names with {model}, {per_class} (images), {epoch} and {digits} (of the
    parameter's value). varies: which of these differs between the points. param: the parameter,
    None where epochs or sizes vary. fraction: the parameter lies between 0 and 1, and only the
    digits after its point are in the names. own_models: False where the sweep attacks the models of
    another one; then it has no linear probes.
    """

    point: str
    training: str
    varies: str
    param: str | None = None
    fraction: bool = False
    own_models: bool = True

    def template(self, model: str, per_class: int | None, epoch: int | None) -> str:
        """The points' name, with {} for what varies."""
        fields = {"model": model, "per_class": per_class, "epoch": epoch, self.varies: "{}"}
        return self.point.format(**fields)

    def at(
        self, value: str, model: str, per_class: int | None = None, epoch: int | None = None
    ) -> "Point":
        """The Point where what varies has this value, as text, for instance .15; ValueError if it
        cannot."""
        fields: dict[str, Any] = {"model": model, "per_class": per_class, "epoch": epoch}
        fields[self.varies] = (
            fraction_digits(value) if self.fraction else re.sub("[./]", "-", str(value))
        )
        names = (self.point.format(**fields), self.training.format(**fields))
        return Point(*names, model, fields["per_class"], fields["epoch"])

    def value(self, text: str) -> float | str:
        """What stands in a name: 075 is 0.075 where the parameter is a fraction, 0-08 is 0.08,
        resnet18 a word."""
        if self.fraction:
            return float(f"0.{text}")
        for number in (text.replace("-", ".", 1), text):
            with contextlib.suppress(ValueError):
                return float(number)
        return text


_SIZES = ("{model}_{per_class}pc_{epoch}ep", "{model}_dssweep_{per_class}pc")
SWEEPS = {
    "epochs": Sweep(*_SIZES, "epoch"),  # also of the grid of both
    "datasets": Sweep(*_SIZES, "per_class"),
    "temperature": Sweep(
        "simclr_p{digits}t_{epoch}ep",
        "simclr_tempsweep_p{digits}",
        "digits",
        "simclr.temperature",
        fraction=True,
    ),
    "sim_coeff": Sweep(
        "vicreg_sim{digits}_{epoch}ep", "vicreg_simsweep_sim{digits}", "digits", "vicreg.sim_coeff"
    ),
    "corner_fraction": Sweep(
        "{model}_crop_p{digits}_{epoch}ep",
        _SIZES[1],
        "digits",
        "corner_crop_frac",
        fraction=True,
        own_models=False,
    ),
}


def sweep_of(param: str) -> Sweep:
    """The sweep of a parameter: a published one, or that of any setting of training,
    "section.setting".

    ValueError if it is neither.
    """
    for sweep in SWEEPS.values():
        if sweep.param == param:
            return sweep
    if not re.fullmatch(r"\w+\.\w+", param):
        raise ValueError(f"{param}: not a setting of training such as model.arch")
    name = param.partition(".")[2]
    return Sweep(
        f"{{model}}_{name}{{digits}}_{{epoch}}ep",
        f"{{model}}_{name}sweep_{{digits}}",
        "digits",
        param,
    )


@dataclass(frozen=True)
class Point:
    """One point: its name, the folder of its models without the _A or _B, the model's name, and
    where it lies."""

    name: str
    training: str
    model: str
    per_class: str
    epoch: str

    def attack(self, kind: str) -> str:
        """Where its attack lies below the model's folder. kind: one of ATTACK_FOLDERS."""
        return f"{ATTACK_FOLDERS[kind]}/{ATTACK_PREFIX}{self.name}"

    @property
    def probe(self) -> str | None:
        """Where its linear probe lies below the model's folder."""
        return f"{PROBE_FOLDER}/{PROBE_PREFIX}{self.name}"

    @property
    def sslmem(self) -> str:
        """Where its label-free scores lie below the model's folder."""
        return f"{SSLMEM_FOLDER}/{SSLMEM_PREFIX}{self.name}"

    @property
    def rcdm(self) -> str:
        """Where its reconstruction models lie below the model's folder, without the _A or _B."""
        return f"RCDM/rcdm_{self.model}_{self.epoch}ep_{self.per_class}pc"


def fraction_digits(text: str) -> str:
    """The digits after the point, at least two: .05 -> 05, .075 -> 075, .5 -> 50. ValueError unless
    0 < text < 1."""
    match = re.fullmatch(r"0?\.(\d+)", str(text))
    if not match:
        raise ValueError(f"{text}: not a number between 0 and 1 such as .15")
    return match[1].rstrip("0").ljust(2, "0")


def attack_path(folder: str | Path, model: str, attacked: str, what: str) -> Path:
    """Where a file of the attack lies, e.g. FOLDER/A_attk_B_neighb_labels.npy: model A on the
    images of set B."""
    return Path(folder) / f"{model}_attk_{attacked}_{what}.npy"


def sslmem_beside(attack: str | Path) -> Path | None:
    """Where the label-free scores of the models of FOLDER/attack_sweeps*/NN_attk_{point} lie, there
    or not: FOLDER/sslmem_sweeps/sslmem_{point}. None for an attack with another name."""
    folder = Path(attack).absolute()
    if not folder.name.startswith(ATTACK_PREFIX):
        return None
    point = folder.name.removeprefix(ATTACK_PREFIX)
    return folder.parent.parent / SSLMEM_FOLDER / f"{SSLMEM_PREFIX}{point}"


def sweep_points(folder: str | Path, template: str, value: Callable = int) -> list[tuple]:
    """The folders of a sweep, sorted by value, numbers before words: [(value(what varies), Path)].

    template: a folder name with {} for what varies, e.g. "NN_attk_vicreg_300pc_{}ep".
    """
    before, after = map(re.escape, template.split("{}"))
    points = []
    for entry in Path(folder).iterdir():
        match = re.fullmatch(f"{before}(.+){after}", entry.name)
        if match and entry.is_dir():
            with contextlib.suppress(ValueError):
                points.append((value(match[1]), entry))
    return sorted(points, key=lambda point: (isinstance(point[0], str), point))
