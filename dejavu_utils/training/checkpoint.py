"""What a checkpoint of a training holds, declared once."""

from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint
from dejavu_utils.errors import InputError


@dataclass
class TrainingCheckpoint:
    """What train_SSL.py saves, all of it plain: in model.pth to resume from, in model_ep{E}.pth a `snapshot`.

    Attack, probe and reconstruction rebuild the network from `model`, `settings` and `num_classes` alone. Fields added
    later need a default, so that older checkpoints still load.
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
    made_from: dict | None = None  # the record, Provenance.plain

    def snapshot(self) -> "TrainingCheckpoint":
        """The same without what only resuming needs, two thirds of it: optimizers and the method's own state."""
        return replace(self, objective={}, optimizer={}, optimizer_probes={}, scaler={}, meter={})

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
        f"{flag} {path}: a run cannot be resumed from it ({reason}); name another folder, or delete it to start anew"
    )
