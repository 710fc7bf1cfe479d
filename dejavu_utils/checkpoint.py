"""Checkpoints: saved complete or not at all, plain types only, loaded with weights_only."""

import pickle
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import torch

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file

PREFIX = "module."  # published checkpoints were saved from DistributedDataParallel; ours carry the same names


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """torch.save under a temporary name, then a rename."""
    with complete_file(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError:  # what PyTorch makes of a full disk
            raise InputError(f"{path}: cannot be written; is the disk full?") from None


def load_checkpoint(path: str | Path, flag: str, read: Callable | None = None) -> dict:
    """The checkpoint on the CPU; InputError names the flag for a file that is missing or is not a checkpoint.

    read: function of the path, for files of other projects; it may raise anything.
    """
    if not path or not Path(path).is_file():
        raise InputError(f"{flag} {path or ''}: no such file; train_SSL.py writes model_ep{{E}}.pth")
    try:
        return read(path) if read else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {named[1]}" if named else "it is damaged, or holds more than plain data"
        reason += ": code from files is never run" + ("; save its weights alone" if named else "")
    except Exception as error:  # a damaged file makes the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(f"{flag} {path}: not a checkpoint that can be read ({reason})")


def with_prefix(state: dict) -> dict:
    """State-dict names as checkpoints carry them."""
    return {PREFIX + name: value for name, value in state.items()}


def without_prefix(state: dict) -> dict:
    """State-dict names as the network carries them."""
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


@dataclass
class TrainingCheckpoint:
    """What train_SSL.py saves, all of it plain: in model.pth to resume from, in model_ep{E}.pth for attack and probe.

    Those rebuild the network from `model`, `settings` and `num_classes` alone. An entry that checkpoints of before do
    not have needs a default.
    """

    epoch: int  # whole epochs that are done
    steps_done: int  # of the next one
    model: dict  # the network's state, named as by with_prefix
    objective: dict  # what the SSL method keeps beside it: a teacher, a centre
    optimizer: dict
    probes: dict  # state of the linear probes, named as by with_prefix
    optimizer_probes: dict
    scaler: dict
    meter: dict  # sums of the epoch that is under way
    settings: dict  # {"section.name": value}
    num_classes: int
    train_set: str  # fingerprint of the .beton
    world_size: int
    train_images: dict | None = None  # which images the .beton holds, if it is known

    def save(self, path: str | Path) -> None:
        save_checkpoint(path, {entry.name: getattr(self, entry.name) for entry in fields(self)})

    @classmethod
    def load(cls, path: str | Path, flag: str) -> "TrainingCheckpoint":
        """Reads what `save` wrote; InputError names the flag for a file that is something else."""
        found = load_checkpoint(path, flag)
        if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
            raise InputError(f"{flag}: {path} was not written by this program; name another folder")
        entries = {entry.name: found.get(entry.name, entry.default) for entry in fields(cls)}
        missing = [name for name, value in entries.items() if value is MISSING]
        if missing:
            raise not_this_run(flag, path, f"no {missing[0]}")
        return cls(**entries)


def not_this_run(flag: str, path: str | Path, reason: str) -> InputError:
    """The error for a checkpoint whose parts are missing, or do not fit each other."""
    return InputError(
        f"{flag} {path}: does not hold the run that it describes ({reason}); put a snapshot model_ep{{E}}.pth in its "
        "place, or name another folder"
    )
