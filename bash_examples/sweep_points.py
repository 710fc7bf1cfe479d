"""Prints the points of a sweep for shell scripts: one line for each attack of each point, words separated by spaces.

The words: sweep, parameter and its value (- where epochs or sizes vary), images per class, epoch, folder of the
trainings without _A and _B, kind of attack, folder of the attack, folder of the linear probe (- where there is none),
folder of the reconstruction models without _A and _B, folder of the label-free scores. Folders are below the model's.
Reads the variables that sweep.sh explains; errors begin with SWEEP_SCRIPT, the script that was called.

    SWEEP=epochs MODEL=simclr LOSS=simclr DATASET=50 EPOCHS="300 600" EPOCH=600 ATTACKS=projector \\
        python bash_examples/sweep_points.py
"""

import os
import sys

from dejavu_utils.cli import run
from dejavu_utils.errors import InputError
from dejavu_utils.naming import ATTACK_FOLDERS, SWEEPS

# Sweep: the variable with its values, and the one with its images per class.
VARIABLES = {
    "epochs": ("EPOCHS", "DATASET"),
    "datasets": ("DATASETS", "DATASETS"),
    "temperature": ("TEMPERATURES", "PARAM_DATASET"),
    "sim_coeff": ("SIM_COEFFS", "PARAM_DATASET"),
    "corner_fraction": ("FRACTIONS", "PARAM_DATASET"),
}
PUBLISHED_FOR = {"temperature": "simclr", "sim_coeff": "vicreg"}  # sweeps of one loss, with the published network
ATTACKS = [kind for kind in ATTACK_FOLDERS if kind != "cropsize"]


def main():
    sweeps, kinds, loss = words("SWEEP", VARIABLES), words("ATTACKS", ATTACKS), os.environ["LOSS"]
    if "logits" in kinds and loss != "supervised":
        raise InputError(f"ATTACKS=logits: only supervised models have them, not LOSS={loss}")
    for sweep in sweeps:
        arch = os.environ.get("ARCH", "")
        if PUBLISHED_FOR.get(sweep, loss) != loss or (SWEEPS[sweep].param and arch):
            raise InputError(f"SWEEP={sweep} LOSS={loss} ARCH={arch}: has no published names")
    lines = [line for sweep in sweeps for line in lines_of(sweep, kinds if SWEEPS[sweep].own_models else ["cropsize"])]
    print("\n".join(lines))


def words(variable, known):
    """The words of a variable; InputError if one is not known."""
    found = os.environ[variable].split()
    for word in found:
        if word not in known:
            raise InputError(f"{variable}: {word} is not one of {' '.join(known)}")
    return found


def lines_of(name, kinds):
    """Yields the lines of one sweep, point by point."""
    sweep = SWEEPS[name]
    values, per_class = (os.environ[variable] for variable in VARIABLES[name])
    for value in values.split():
        try:
            point = sweep.at(value, os.environ["MODEL"], per_class, os.environ["EPOCH"])
        except ValueError:
            raise InputError(f"{value}: TEMPERATURES and FRACTIONS are numbers between 0 and 1 such as .15") from None
        parameter = (sweep.param, value) if sweep.param else ("-", "-")
        probe = point.probe if sweep.own_models else "-"
        for kind in kinds:
            of_point = (
                point.per_class,
                point.epoch,
                point.training,
                kind,
                point.attack(kind),
                probe,
                point.rcdm,
                point.sslmem,
            )
            yield " ".join((name, *parameter, *of_point))


if __name__ == "__main__":
    sys.argv[0] = os.environ.get("SWEEP_SCRIPT") or sys.argv[0]  # errors are those of the script that was called
    run(main)
