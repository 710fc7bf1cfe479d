"""Which attacks and probes may stand in one figure or table: their records are compared before their numbers are."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dejavu_utils.data.provenance import first_difference_in_words, read_record

Key = TypeVar("Key")
_ARRAYS = "[AB]_attk_[AB]_*.npy"


def distinct(folders: Sequence[str | Path]) -> tuple[list[str | Path], list[str]]:
    """(folders of different contents, notes about those left out): a copy or a link is no further run."""
    names: dict[str, str | Path] = {}
    notes = []
    for folder in folders:
        contents = _contents(Path(folder))
        if contents in names:
            notes.append(f"{folder}: is {names[contents]} again, and counts once")
        names.setdefault(contents, folder)
    return list(names.values()), notes


def disagreements(reader: str, folders: Mapping[Key, str | Path]) -> dict[Key, str]:
    """{key: how a folder was made otherwise than the first that has a record, in words; "" where it was not}.

    reader: one of provenance.READERS. folders: of results.json. Those without a record (older, published) agree.
    """
    words = dict.fromkeys(folders, "")
    first = None
    for key, folder in folders.items():
        record = read_record(Path(folder) / "results.json")
        if record is None:
            continue
        first = first or record
        words[key] = first_difference_in_words(reader, record, first) or ""
    return words


def _contents(folder):
    """SHA-256 of the neighbors or scores of an attack, or of its results.json where it has none."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob(_ARRAYS)) or [folder / "results.json"]:
        found.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()
