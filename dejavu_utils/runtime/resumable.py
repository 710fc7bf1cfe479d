"""The finished pieces of a long stage, kept so that a killed one can resume: arrays in files of one folder."""

import json
import time
import zipfile
from pathlib import Path

import numpy as np

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, save_json

_KEY = "key.json"
_PATIENCE = 60  # seconds after which a network file system must show what another machine has written


class ShardStore:
    """Pieces below `folder` that belong to the work described by `key` (what json can hold).

    `start` removes those of another work. Several processes may use one folder: each saves pieces of its own names, one
    alone calls `start` and `remove`, and needs the key.
    """

    def __init__(self, folder: str | Path, key: object) -> None:
        self.folder, self.key = Path(folder), json.loads(json.dumps(key))

    def start(self) -> int:
        """Makes the folder ready; returns how many pieces of the same work were found there."""
        try:
            same = json.loads((self.folder / _KEY).read_text(encoding="utf-8")) == self.key
        except (OSError, ValueError):
            same = False
        if not same:
            self.remove()
            save_json(self.folder / _KEY, self.key)
        return len(self.names())

    def names(self, start: str = "") -> list[str]:
        """Sorted names of the pieces that begin with `start`."""
        return sorted(path.stem for path in self.folder.glob(f"{start}*.npz"))

    def save(self, name: str, **arrays: np.ndarray) -> None:
        with complete_file(self.folder / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)

    def load(self, name: str, *wanted: str) -> dict[str, np.ndarray]:
        """{array name: array} of the wanted arrays, or of all. InputError if the piece is missing or damaged."""
        path = self.folder / f"{name}.npz"
        deadline = time.monotonic() + _PATIENCE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        try:
            with np.load(path) as arrays:
                return {key: arrays[key] for key in wanted or arrays.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: is missing or damaged ({error}); remove {self.folder} and rerun the same command"
            ) from None

    def drop(self, name: str) -> None:
        (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all pieces, and the folder if nothing else lies in it."""
        for path in [*self.folder.glob("*.npz"), *self.folder.glob(".*.tmp.*"), self.folder / _KEY]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
