"""Prints the points of a sweep for shell scripts: NAME=value words that bash's `eval` takes, one line a point.

    SWEEP=epochs LOSS=simclr DATASET=50 EPOCHS="300 600" python bash_examples/sweep_points.py attack

The stage says what a line is: a training, an attack, a probe, or the figures of one kind of attack. The names: loss,
model, n (images per class), epoch, param and value (empty where epochs or sizes vary), training (folder of the models
without _A and _B), kind and attack (folder), probe (folder, empty where there is none), sslmem, rcdm (without _A and
_B), flags (of the attack). Folders are below LOGGING_FOLDER/$model. Reads the variables that sweep.sh explains.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.cli import Parser, run
from dejavu_utils.errors import InputError
from dejavu_utils.finished import job_file, typed_flags
from dejavu_utils.naming import ATTACK_FOLDERS, SWEEPS, Point, Sweep, sweep_of

DEFAULTS = {
    "LOSS": "vicreg",
    "SWEEP": "epochs datasets",
    "ATTACKS": "projector",
    "EPOCHS": "50 100 250 500 750 1000",
    "DATASET": "300",
    "DATASETS": "100 200 300 400 500",
    "EPOCH": "1000",
    "PARAM_DATASET": "100",
    "TEMPERATURES": ".05 .075 .10 .125 .15 .175 .25 .30 .50 .99",
    "SIM_COEFFS": "10 25 50 65 80 100",
    "FRACTIONS": ".20 .25 .30 .35 .40 .45 .50",
}
# Sweep: the variable with its values, and the one with its images per class.
VARIABLES = {
    "epochs": ("EPOCHS", "DATASET"),
    "datasets": ("DATASETS", "DATASETS"),
    "temperature": ("TEMPERATURES", "PARAM_DATASET"),
    "sim_coeff": ("SIM_COEFFS", "PARAM_DATASET"),
    "corner_fraction": ("FRACTIONS", "PARAM_DATASET"),
}
PUBLISHED_FOR = {"temperature": "simclr", "sim_coeff": "vicreg"}  # sweeps of one loss, with the published network
FLAGS = {
    "backbone": "--use_backbone 1",
    "corner_crop": "--use_corner_crop 1 --corner_crop_frac 0.40",
    "logits": "--use_supervised_linear 1",
    "cropsize": "--use_corner_crop 1 --corner_crop_frac {}",
}
STAGES = {  # stage: what makes a line another one
    "train": ("model", "training"),
    "attack": ("model", "attack"),
    "probe": ("model", "probe"),
    "plot": ("model", "param", "kind"),
}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("stage", choices=STAGES, nargs="?", default="attack")
    stage = parser.parse_args().stage
    points = [point for loss in words("LOSS") for point in points_of(loss)]
    lines = {}
    for point in points:
        lines.setdefault(tuple(point[name] for name in STAGES[stage]), []).append(point)
    for group in lines.values():
        if stage != "probe" or group[0]["probe"]:
            about = {**group[0], **(figures_of(group) if stage == "plot" else {})}
            print(" ".join(f"{name}={shlex.quote(text)}" for name, text in about.items()))


def words(variable: str) -> list[str]:
    """The words of a variable, or of its default."""
    found = (os.environ.get(variable) or DEFAULTS[variable]).split()
    if variable in ("EPOCHS", "DATASETS", "EPOCH", "DATASET", "PARAM_DATASET"):
        for word in found:
            if not re.fullmatch("[1-9][0-9]*", word):
                raise InputError(f"{variable}: {word} is not a whole number from 1 on")
    return found


def only(variable: str) -> str:
    """The value of a variable that has one."""
    found = words(variable)
    if len(found) != 1:
        raise InputError(f"{variable}: one number is needed, not {' '.join(found)!r} (several: DATASETS, EPOCHS)")
    return found[0]


def points_of(loss: str) -> Iterator[dict[str, str]]:
    """The attacks of all points of one loss."""
    arch = os.environ.get("ARCH", "")
    if arch not in ("", "resnet50"):
        raise InputError(f"ARCH={arch}: only resnet50 has published names; SWEEP=model.arch VALUES={arch} takes any")
    model = f"{loss}_rn50" if arch else loss
    kinds = words("ATTACKS")
    for kind in kinds:
        if kind not in ATTACK_FOLDERS or kind == "cropsize":
            raise InputError(f"ATTACKS: {kind} is not one of projector backbone corner_crop logits")
    if "logits" in kinds and loss != "supervised":
        raise InputError(f"ATTACKS=logits: only supervised models have them, not LOSS={loss}")
    for name in words("SWEEP"):
        for value, sweep, point in points_at(name, loss, model):
            check_epoch(loss, model, point)
            for kind in kinds if sweep.own_models else ["cropsize"]:
                flags = [FLAGS.get(kind, "").format(value), "--resnet50" if arch else ""]
                yield {
                    "loss": loss,
                    "model": model,
                    "n": point.per_class,
                    "epoch": point.epoch,
                    "param": sweep.param or "",
                    "value": value if sweep.param else "",
                    "training": point.training,
                    "kind": kind,
                    "attack": point.attack(kind),
                    "probe": point.probe if sweep.own_models else "",
                    "sslmem": point.sslmem,
                    "rcdm": point.rcdm,
                    "flags": " ".join(filter(None, flags)),
                }


def points_at(name: str, loss: str, model: str) -> Iterator[tuple[str, Sweep, Point]]:
    """(value, sweep, point) of each point of the sweep of this name."""
    if name == "grid":
        for n in words("DATASETS"):
            for epoch in words("EPOCHS"):
                yield epoch, SWEEPS["epochs"], SWEEPS["epochs"].at(epoch, model, n)
        return
    try:
        sweep = SWEEPS.get(name) or sweep_of(name)
    except ValueError:
        known = " ".join([*VARIABLES, "grid"])
        raise InputError(f"SWEEP: {name} is not one of {known}, nor a setting of training such as model.arch") from None
    name = next((known for known, of in SWEEPS.items() if of is sweep), name)
    if PUBLISHED_FOR.get(name, loss) != loss or (name in PUBLISHED_FOR and model != loss):
        raise InputError(f"SWEEP={name} LOSS={loss} ARCH={os.environ.get('ARCH', '')}: has no published names")
    values, per_class = VARIABLES.get(name, ("VALUES", "PARAM_DATASET"))
    texts = os.environ["VALUES"].split() if os.environ.get("VALUES") and sweep.param else []
    if not texts and values == "VALUES":
        raise InputError(f'SWEEP={name}: VALUES is not set: export VALUES="..."')
    n = "" if name == "datasets" else only(per_class)
    epoch = "" if name == "epochs" else only("EPOCH")
    for value in texts or words(values):
        try:
            yield value, sweep, sweep.at(value, model, n, epoch)
        except ValueError:
            raise InputError(f"{value}: TEMPERATURES and FRACTIONS are numbers between 0 and 1 such as .15") from None


def check_epoch(loss: str, model: str, point: Point) -> None:
    """InputError if the training will not save a snapshot after this epoch."""
    config = os.environ.get("CONFIG") or Path(__file__).parents[1] / "configs" / f"{loss}_cfg.yaml"
    if not Path(config).is_file():
        return  # train_SSL.py says so
    flags = typed_flags(["--config-file", str(config), *os.environ.get("TRAIN_FLAGS", "").split()])
    params = Path(os.environ.get("LOGGING_FOLDER", ""), model, f"{point.training}_A", "params.json")
    settings = yaml.safe_load(params.read_text(encoding="utf-8")) if params.is_file() else {}

    def number(name: str, default: int) -> int:
        text = str(settings.get(name) or flags.get(name, [default])[0])
        return int(text) if text.isdecimal() and int(text) else default

    epoch, epochs = int(point.epoch), number("training.epochs", 30)
    every = number("logging.snapshot_freq", 50)
    if epoch > epochs or (epoch % every and epoch != epochs):
        raise InputError(
            f"epoch {epoch} (EPOCHS, EPOCH): the training of {point.training} has {epochs} epochs and a snapshot every "
            f"{every}; name one of these, or train longer (TRAIN_FLAGS)"
        )


def figures_of(points: list[dict[str, str]]) -> dict[str, str]:
    """What the figures of these points need: folders whose jobs they wait for, and whether there are probes."""
    folder = Path(os.environ.get("LOGGING_FOLDER", ""), points[0]["model"])
    probes = {point["probe"] for point in points if point["probe"]}
    attacks = {point["attack"] for point in points}
    there = [probe for probe in probes if (folder / probe).is_dir() or job_file(folder / probe).is_file()]
    wanted = probes if "probe" in os.environ.get("STAGES", "").split() else there
    return {
        "attacks": points[0]["attack"].partition("/")[0],
        "probes": points[0]["probe"].partition("/")[0] if wanted else "",
        "folders": " ".join(sorted(attacks | probes)),
    }


if __name__ == "__main__":
    sys.argv[0] = os.environ.get("SWEEP_SCRIPT") or sys.argv[0]  # errors are those of the script that was called
    run(main)
