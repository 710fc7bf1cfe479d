"""What a number was made from: the record in every artefact, and what each reader must find equal
in two records.

Paths are told, never compared: equal contents under two names are one thing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, digest, load_npz
from dejavu_utils.finished import changed_input, difference, recorded_settings
from dejavu_utils.log import say

if TYPE_CHECKING:  # figures and tables compare records without PyTorch
    from dejavu_utils.data.beton import Beton
    from dejavu_utils.imagenet import ImageListing
    from dejavu_utils.models import Network

FORMATS = 1  # version of the record and of the files that carry it
MADE_FROM = "made_from"  # the record's name in json files and checkpoints
SUFFIX = ".images.npz"  # of the file beside a .beton
Value = str | int | float | bool | None

# What each reader does not compare: entries as `Provenance.flat` names them, * for any text.
_OTHER_MODELS = ("models.*.weights", "models.*.images", "models.*.epoch")
_OTHER_SETS = ("sets.*", "crops.digest", "files")
_CONTROLS = ("sets.shared_idx_pth", "sets.public_idx_pth", "sets.unseen_idx_pth")
_NOT_AN_ENCODERS = (
    "models.*.shown",
    "crops.*",
    "public",
    "votes.*",
    "settings.*",
    "precision",
    "resolution",
    "files",
)
READERS: dict[str, tuple[str, ...]] = {
    "training": (),  # resumed
    "rcdm": (),  # resumed
    "probe": (),  # resumed
    "shards": (),
    "crops": (),
    # an RCDM's encoder and images against an attack's
    "reconstruction": (*_NOT_AN_ENCODERS, "sets.*"),
    "attack_dir": (*_NOT_AN_ENCODERS, *_CONTROLS),  # label-free scores against an attack
    "epochs": _OTHER_MODELS,  # points of one figure, from here on
    "datasets": (*_OTHER_MODELS, *_OTHER_SETS),
    "params": _OTHER_MODELS,
    "model.arch": (*_OTHER_MODELS, "models.*.arch"),
    "layers": ("votes.layer",),
    "corner_crop_frac": (*_OTHER_MODELS, "crops.*"),
    "runs": ("models.*.weights", "models.*.images", *_OTHER_SETS, "public"),
    # of one of an attack's models against the test of it alone
    "one_model": ("sets.*", "crops.digest", "files"),
    "table": (*_OTHER_MODELS, *_OTHER_SETS, "votes.layer"),
}
_WORDS = {
    "images": "image folder",
    "public": "public set",
    "files": "image files",
    "formats": "version of the formats",
}


@dataclass(frozen=True)
class ModelRecord:
    """A network. weights: SHA-256 of its weights. images: TrainingImages.digest of what it was
    trained on. shown: how images are shown to it, as text. None: unknown."""

    weights: str | None = None
    images: str | None = None
    epoch: int | None = None
    arch: str | None = None
    shown: str | None = None

    @classmethod
    def of(cls, network: Network, resolution: int | None = None) -> ModelRecord:
        """Of a network that loading.load_network gave, shown images at `resolution` pixels (None:
        its own)."""
        images = TrainingImages.of(network)
        shown = str(network.preprocessing.at(resolution))
        trained_on = images.digest if images else None
        return cls(weights_digest(network), trained_on, network.about["epoch"], network.arch, shown)


@dataclass(frozen=True)
class Provenance:
    """The record. Each entry is None where it is unknown, and is then not compared.

    images: SHA-256 of the listing (ImageListing.fingerprint). sets: {flag of an index file: SHA-256
    of its indices}. crops: {"digest", "rule", "margin", "least_side"}. public: SHA-256 of the
    indices. beton: Beton.digest. votes: {"k", "k_attk", "layer"}. files: SHA-256 of sizes and times
    of the image files. settings: {flag: value}, what else the artefact depends on.
    """

    models: Mapping[str, ModelRecord] | None = None
    images: str | None = None
    sets: Mapping[str, str] | None = None
    crops: Mapping[str, Value] | None = None
    public: str | None = None
    beton: str | None = None
    votes: Mapping[str, Value] | None = None
    precision: str | None = None
    resolution: int | None = None
    files: str | None = None
    settings: Mapping[str, Value] | None = None
    formats: int = FORMATS

    def plain(self) -> dict:
        """As json files and checkpoints carry it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, carried: object) -> Provenance | None:
        """From what `plain` gave; None for anything else. Entries that a later version added are
        left aside."""
        if not isinstance(carried, dict) or not isinstance(carried.get("formats"), int):
            return None
        known: dict[str, Any] = {entry.name: carried.get(entry.name) for entry in fields(cls)}
        models = known.pop("models")
        try:
            return cls(
                models and {name: ModelRecord(**of_one) for name, of_one in models.items()}, **known
            )
        except (AttributeError, TypeError):
            return None

    def flat(self) -> dict[str, Value]:
        """{entry: value}: models.A.weights, sets.bbox_A_idx_pth, votes.k, images, ..."""
        return dict(_entries(self.plain()))

    def of_model(self, name: str, alias: str = "encoder") -> Provenance:
        """The same with this model alone, under another name: what an RCDM of one of an attack's
        models agrees with."""
        models = self.models or {}
        return replace(self, models={alias: models[name]} if name in models else None)


def _entries(nested: dict, above: str = "") -> Iterator[tuple[str, Value]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{above}{name}.")
        else:
            yield above + name, value


@dataclass(frozen=True)
class Difference:
    """An entry that two records do not share. here, there: its value in either, digests
    shortened."""

    entry: str
    here: str
    there: str

    @property
    def words(self) -> str:
        """What the entry is called: weights of model A, image folder, --k."""
        group, _, name = self.entry.partition(".")
        if group == "models":
            model, _, part = name.rpartition(".")
            return f"{part} of model {model}"
        if group == "crops":
            return f"crops ({name.replace('_', ' ')})"
        return f"--{name or group}" if group not in _WORDS else _WORDS[group]

    def __str__(self) -> str:
        return f"{self.words} ({self.here} here, {self.there} there)"


def differences(
    here: Provenance, there: Provenance, ignoring: Iterable[str] = ()
) -> list[Difference]:
    """Where two records differ. An entry that either does not know is not compared, but a model or
    a set that only one of them has is a difference. ignoring: entries, * for any text."""
    mine = here.flat()
    theirs = there.flat()
    different = []
    for entry in dict.fromkeys([*mine, *theirs]):
        if any(fnmatch(entry, pattern) for pattern in ignoring):
            continue
        group = entry.partition(".")[0]
        is_missing = group in ("models", "sets") and (entry in mine) != (entry in theirs)
        if is_missing and None in (getattr(here, group), getattr(there, group)):
            continue
        values = mine.get(entry), theirs.get(entry)
        if values[0] != values[1] and (is_missing or None not in values):
            different.append(Difference(entry, _shown(values[0]), _shown(values[1])))
    return different


def first_difference_in_words(reader: str, here: Provenance, there: Provenance) -> str | None:
    """What a reader of two artefacts must say before it joins them; None where they agree. reader:
    one of READERS."""
    found = differences(here, there, READERS[reader])
    return str(found[0]) if found else None


def check_same(
    reader: str,
    here: Provenance,
    there: Provenance | None,
    made: str,
    sources: Mapping[str, str],
    remedy: str,
) -> list[str]:
    """InputError that names both for the first entry in which what is here is not what the artefact
    was made from.

    reader: one of READERS. made: the artefact, as text. sources: {entry, * for any text: flag and
    path that it comes from}. remedy: what to do. Returns notes: one for an artefact without a
    record.
    """
    if there is None:
        return [f"{made} does not say what it was made from: that it fits is not checked"]
    for found in differences(here, there, READERS[reader]):
        source = next(
            (text for pattern, text in sources.items() if fnmatch(found.entry, pattern)), None
        )
        if source is None:
            raise InputError(
                f"{found.words} {found.here}: {made} was made with {found.there}; {remedy}"
            )
        what = f"{found.words}: {found.there}, not {found.here}"
        raise InputError(f"{source}: {made} was made from something else ({what}); {remedy}")
    return []


def read_record(path: Path) -> Provenance | None:
    """The record in a json file; None where the file has none, or cannot be read."""
    try:
        return Provenance.from_plain(json.loads(path.read_text(encoding="utf-8")).get(MADE_FROM))
    except (OSError, ValueError, AttributeError):
        return None


def still_valid(
    folder: str | Path, records: Mapping[Path, Provenance], settings: Mapping[str, object]
) -> bool:
    """Are finished results those of the same contents, although a file that a flag names has
    changed since? Says so; all processes must call this.

    records: {results.json: what it would be made from now}, of the first process. settings: the
    flags.
    """
    # Readers of records alone do without PyTorch.
    from dejavu_utils.runtime.distributed import from_first, rank

    same = not rank() and all(
        _is_same(results, record, settings) for results, record in records.items()
    )
    if not from_first(same):
        return False
    say(f"{folder}: there already, made from the same models and sets")
    return True


def _is_same(results: Path, record: Provenance, settings: Mapping[str, object]) -> bool:
    flags = {}
    for name, value in settings.items():
        if value is not None:
            flags[name] = [str(part) for part in (value if isinstance(value, list) else [value])]
    if not (results.is_file() and changed_input(flags, results)):
        return False
    there = read_record(results)
    if there is None or differences(record, there):
        return False
    # of flags of paths, which end in _pth, the record has the contents
    others = {name: values for name, values in flags.items() if not name.endswith("_pth")}
    return not difference(others, recorded_settings(results))


def weights_digest(network: Network) -> str:
    """SHA-256 of names, shapes and bytes of a network's weights, by name: the same for a copy of
    its file."""
    import torch

    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def sets_record(sets: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, str]:
    """`Provenance.sets` of {set: (flag, int (n,) indices)}; sets that one flag names are one."""
    by_flag: dict[str, list[np.ndarray]] = {}
    for flag, indices in sets.values():
        by_flag.setdefault(flag.strip("-"), []).append(indices)
    return {flag: digest(*of_flag) for flag, of_flag in by_flag.items()}


def _shown(value: Value) -> str:
    if isinstance(value, str) and len(value) == 64:  # a SHA-256
        return value[:8]
    return "none" if value is None else str(value)


@dataclass
class TrainingImages:
    """Images of a training set. indices: int64 (n,), sorted ImageFolder positions. listing: SHA-256
    of the paths of the image folder that they are positions in (ImageListing.fingerprint). crops:
    what was cut out of them, as text; "" for whole images. labels: SHA-256 of the labels in the
    order of the .beton. beton: Beton.digest, None if unknown."""

    indices: np.ndarray
    listing: str
    crops: str = ""
    labels: str = ""
    beton: str | None = None

    @cached_property
    def digest(self) -> str:
        """The same for the same images of the same folder, whatever was cut out of them."""
        return digest(np.frombuffer(self.listing.encode(), np.uint8), self.indices)

    def is_of(self, listing: ImageListing) -> bool:
        """Are the indices positions in this ImageListing?"""
        return self.listing == listing.fingerprint["sha256"]

    def seen(self, indices: np.ndarray) -> int:
        """How many of these images, int (n,), are among them."""
        return int(np.isin(indices, self.indices).sum())

    def plain(self) -> dict:
        """As a checkpoint carries it: plain types and a tensor."""
        import torch

        indices = torch.from_numpy(self.indices.astype(np.int32))
        return {
            "indices": indices,
            "listing": self.listing,
            "crops": self.crops,
            "digest": self.digest,
        }

    @classmethod
    def of(cls, network: Network) -> TrainingImages | None:
        """What a network's checkpoint says that it was trained on; None where it does not say it."""
        return cls.of_plain(network.about["train_images"])

    @classmethod
    def of_plain(cls, carried: dict | None) -> TrainingImages | None:
        """From what `plain` gave to a checkpoint; None for None."""
        if not isinstance(carried, dict):
            return None
        return cls(
            carried["indices"].numpy().astype(np.int64),
            carried["listing"],
            carried.get("crops", ""),
        )


def save_training_images(
    beton_path: str | Path,
    indices: np.ndarray,
    listing: ImageListing,
    crops: str = "",
    record: Provenance | None = None,
) -> None:
    """Writes FILE.beton.images.npz. indices: int64 (n,), in the order of the .beton. record: of the
    .beton."""
    about = {
        "listing": listing.fingerprint["sha256"],
        "crops": crops,
        "labels": digest(listing.labels[indices]),
        MADE_FROM: record and record.plain(),
    }
    ordered = np.sort(indices).astype(np.int32)
    with complete_file(f"{beton_path}{SUFFIX}") as temporary:
        np.savez_compressed(temporary, indices=ordered, about=np.array(json.dumps(about)))


def load_training_images(beton: Beton, contents: str) -> tuple[TrainingImages | None, list[str]]:
    """(the TrainingImages of a .beton, notes); None where no file lies beside it, or one of another
    .beton.

    contents: Beton.digest, which tells apart data sets whose labels are equal.
    """
    path = Path(f"{beton.path}{SUFFIX}")
    images = read_training_images(beton.path)
    if images is None:
        state = "cannot be read" if path.exists() else "no such file"
        return None, [f"{path}: {state}; which images {beton.path} holds is not known"]
    same = images.beton in (None, contents) or images.beton == beton.older_digest
    if not same or images.labels != digest(beton.labels):
        return None, [
            f"warning: {path} lies beside {beton.path} and was written for another .beton; it is not used"
        ]
    return images, []


def validation_warnings(images: TrainingImages | None, validation: Beton) -> list[str]:
    """A warning that counts the images of a validation .beton that are trained on, as far as the
    files beside the betons tell."""
    of_validation = read_training_images(validation.path)
    if images is None or of_validation is None or images.listing != of_validation.listing:
        return []
    seen = images.seen(of_validation.indices)
    if not seen or of_validation.labels != digest(validation.labels):
        return []
    return [
        f"warning: --data.val_dataset {validation.path}: {seen} of its {len(validation)} images are among those of "
        "--data.train_dataset: the probes' validation accuracy is too high"
    ]


def read_training_images(path: str | Path) -> TrainingImages | None:
    """What `save_training_images` wrote for this path; None where it is missing or damaged."""
    try:
        saved = load_npz(f"{path}{SUFFIX}", "about", "indices")
        about = json.loads(str(saved["about"]))
        record = Provenance.from_plain(about.pop(MADE_FROM, None))
        return TrainingImages(
            saved["indices"].astype(np.int64), **about, beton=record.beton if record else None
        )
    except (ValueError, TypeError):
        return None
