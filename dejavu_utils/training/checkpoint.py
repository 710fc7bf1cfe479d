"""What a training starts or resumes from: its checkpoint, declared once, its images, and public
weights."""

from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint, tensor_bytes
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.provenance import ModelRecord, Provenance, TrainingImages, check_same
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import check_free_space
from dejavu_utils.log import say
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.loading import load_network
from dejavu_utils.runtime.distributed import agreed
from dejavu_utils.training.settings import Model, Settings

SAME_OR_ANOTHER = "use the same, or another --logging.folder"


@dataclass
class TrainingCheckpoint:
    """What train_SSL.py saves, all of it plain: in model.pth to resume from, in model_ep{E}.pth a
    `snapshot`.

    Attack, probe and reconstruction rebuild the network from `model`, `settings` and `num_classes`
    alone. Fields added later need a default, so that older checkpoints still load.
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
        """The same without what only resuming needs, two thirds of it: optimizers and the method's
        own state."""
        return replace(self, objective={}, optimizer={}, optimizer_probes={}, scaler={}, meter={})

    def save(self, path: Path) -> None:
        save_checkpoint(path, {entry.name: getattr(self, entry.name) for entry in fields(self)})

    @classmethod
    def agreed(cls, path: Path) -> "TrainingCheckpoint | None":
        """What `save` wrote, the same in all processes; None if there is nothing. InputError for
        something else."""
        flag = "--logging.folder"
        saved = agreed_checkpoint(path, flag)
        if saved is None:
            return None
        if not isinstance(saved.get("settings"), dict):
            raise InputError(f"{flag}: {path} was not written by this program; name another folder")
        entries = {entry.name: saved.get(entry.name, entry.default) for entry in fields(cls)}
        missing = [name for name, value in entries.items() if value is MISSING]
        if missing:
            raise not_this_run(flag, path, f"no {missing[0]}")
        return cls(**entries)


def agreed_checkpoint(path: Path, flag: str) -> dict[str, Any] | None:
    """What a checkpoint to resume from holds, the same in all processes; None if there is none.
    flag: of its folder."""

    def read() -> dict[str, Any]:
        saved = load_checkpoint(path, flag) if path.is_file() else {}
        if not isinstance(saved, dict):
            raise InputError(f"{flag}: {path} was not written by this program; name another folder")
        return saved

    def place(saved: dict[str, Any]) -> str:
        return f"epoch {saved.get('epoch')} step {saved.get('steps_done')}" if saved else "none"

    return agreed(read, place, f"{flag} {path}") or None


@dataclass(frozen=True)
class TrainingSet:
    """A .beton, its Beton.digest and, if they are known, which images it holds."""

    beton: Beton | None = None
    digest: str | None = None
    images: TrainingImages | None = None

    @property
    def fingerprint(self) -> str:
        return self.beton.fingerprint if self.beton else ""


def check_same_start(
    checkpoint: TrainingCheckpoint,
    train_set: TrainingSet,
    record: Provenance,
    settings: Settings,
    path: Path,
) -> list[str]:
    """InputError unless a run on these images, from these weights, may resume from the checkpoint;
    notes."""
    source = f"--data.train_dataset {settings.data.train_dataset}"
    images = train_set.images
    before = TrainingImages.of_plain(checkpoint.train_images)
    others = images and before and images.digest != before.digest
    if others or checkpoint.train_set != train_set.fingerprint:
        raise InputError(f"{source}: {path} was trained with other images; {SAME_OR_ANOTHER}")
    sources = {"beton": source, "models.*": f"--model.weights {settings.model.weights}"}
    saved = Provenance.from_plain(checkpoint.made_from)
    if saved and train_set.beton and saved.beton not in (None, record.beton):
        if saved.beton == train_set.beton.older_digest:
            saved = replace(saved, beton=record.beton)
    return check_same("training", record, saved, str(path), sources, SAME_OR_ANOTHER)


def check_room(checkpoint: TrainingCheckpoint, settings: Settings) -> None:
    """InputError if the disk has no room for what a training will save: snapshots, model.pth, final
    weights.

    checkpoint: of the start, without the optimizer's state, which is at least as large as the
    weights.
    """
    folder = Path(settings.logging.folder)
    every = settings.logging.snapshot_freq
    last = settings.training.epochs
    coming = range(checkpoint.epoch + 1, last + 1)
    snapshots = sum(epoch % every == 0 or epoch == last for epoch in coming)
    weights = tensor_bytes(checkpoint.model)
    needed = snapshots * tensor_bytes(vars(checkpoint.snapshot())) + weights
    if not (folder / "model.pth").exists():
        needed += tensor_bytes(vars(checkpoint)) + weights
    check_free_space(
        folder, needed, "make room, name another --logging.folder, or raise --logging.snapshot_freq"
    )


def start_from(model: Model, network: SSLNetwork) -> dict[str, ModelRecord]:
    """Gives the backbone the weights of --model.weights; what that is, for the record."""
    source = f"--model.weights {model.weights}"
    public = load_network(model.weights, "--model.weights")
    try:
        network.net.load_state_dict(public.net.state_dict())
    except RuntimeError as error:
        remedy = (
            f"--model.arch {public.arch}" if public.arch != model.arch else "another checkpoint"
        )
        raise InputError(
            f"{source}: does not fit --model.arch {model.arch} ({one_line(error)}); give {remedy}"
        ) from None
    say(
        f"the backbone starts from {model.weights} ({public.notes or public.arch}); projector and head are new"
    )
    return {"start": ModelRecord.of(public)}


def not_this_run(flag: str, path: Path, reason: str) -> InputError:
    """The error for a checkpoint whose parts are missing, or do not fit each other."""
    return InputError(
        f"{flag} {path}: a run cannot be resumed from it ({reason}); name another folder, or delete it to start anew"
    )
