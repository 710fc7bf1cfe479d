"""Which attacks and probes may stand in one figure or table: their records are compared before
their numbers are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dejavu_utils.analysis.attack_files import file_digest
from dejavu_utils.analysis.results_json import RESULTS
from dejavu_utils.data.provenance import first_difference_in_words, read_record

Key = TypeVar("Key")
_ARRAYS = "[AB]_attk_[AB]_*.npy"


def distinct(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """(folders of independent runs, notes about those left out).

    A copy or a link is no further run, nor is another attack on the same images with one of the
    models.
    """
    kept = []
    names = {}
    notes = []
    for folder in folders:
        identities = _identities(folder)
        same = next((names[identity] for identity in identities if identity in names), None)
        if same is None:
            kept.append(folder)
            names |= dict.fromkeys(identities, folder)
        else:
            notes.append(f"{folder}: has a model and images of {same}, and both count once")
    return kept, notes


def copies(folders: Mapping[Key, Path]) -> tuple[dict[Key, Key], list[str]]:
    """({key of a folder with the same results as an earlier one: the key of that}, notes)."""
    first: dict[str, Key] = {}
    found = {}
    notes = []
    for key, folder in folders.items():
        same = first.setdefault(_contents(folder), key)
        if same != key:
            found[key] = same
            notes.append(f"{folder}: holds the same results as {folders[same]}")
    return found, notes


def disagreements(reader: str, folders: Mapping[Key, Path]) -> tuple[dict[Key, str], list[str]]:
    """({key: how a folder was made otherwise than the first that has a record, in words; "" where
    it was not}, notes).

    reader: one of provenance.READERS. folders: of results.json. Those without a record (older,
    published) agree; one note counts them.
    """
    words = dict.fromkeys(folders, "")
    notes = []
    unknown = []
    first, first_record = None, None
    for key, folder in folders.items():
        record = read_record(folder / RESULTS)
        if record is None:
            unknown.append(folder)
        elif first_record is None:
            first, first_record = folder, record
        else:
            words[key] = first_difference_in_words(reader, record, first_record) or ""
            if words[key]:
                notes.append(f"{folder} differs from {first} in {words[key]}")
    if unknown:
        notes.append(
            f"{len(unknown)} of {len(folders)} folders do not say what they were made from (first: {unknown[0]}): that "
            "they fit is not checked"
        )
    return words, notes


def misnamed(folder: Path, epoch: int) -> str:
    """The epoch of a folder's networks, in words, where its record says another than its name,
    `epoch`; "" where they agree or it is unknown."""
    record = read_record(folder / RESULTS)
    models = (record.models if record else None) or {}
    for name in ("A", "B", "model"):  # not the classifiers of a test of one model
        of_model = models[name].epoch if name in models else None
        if of_model not in (None, epoch):
            return f"epoch of the model ({of_model}, not {epoch})"
    return ""


def foreign_probe(attack: Path, probe: Path) -> bool:
    """Do the records of these folders say that the probed network is none of the attacked ones?"""
    attacked = read_record(attack / RESULTS)
    probed = read_record(probe / RESULTS)
    if not (attacked and probed and attacked.models and probed.models):
        return False
    attacked_weights = {model.weights for model in attacked.models.values()}
    probed_weights = {model.weights for model in probed.models.values()}
    is_known = None not in attacked_weights | probed_weights
    return is_known and attacked_weights.isdisjoint(probed_weights)


def _identities(folder: Path) -> list[str]:
    """What no two independent runs share: contents of the neighbor files, and weights of a model
    with its images."""
    identities = [_contents(folder)]
    record = read_record(folder / RESULTS)
    if record and record.models and record.sets:
        images = sorted(record.sets.items())
        for model in record.models.values():
            if model.weights:
                identities.append(f"{model.weights} {images}")
    return identities


def _contents(folder: Path) -> str:
    paths = sorted(folder.rglob(_ARRAYS)) or sorted(folder.glob(RESULTS))
    return " ".join(f"{path.relative_to(folder)} {file_digest(path)}" for path in paths)
