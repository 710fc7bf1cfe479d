"""Finished shards of a long pass over images, kept so that a killed run can resume: arrays in files
of one folder."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, load_npz, save_json
from dejavu_utils.log import Progress

_KEY = "key.json"
# seconds after which a network file system must show what another machine has written
_PATIENCE = 60

Arrays = dict[str, np.ndarray]
OnProgress = Callable[[int], object]  # called with the number of images done since the last call
ProgressOf = Callable[[int], AbstractContextManager[Progress]]  # of so many images


class Shard(NamedTuple):
    """Consecutive images of a set, from `start` to before `stop`; name: of the piece that holds
    their arrays."""

    name: str
    start: int
    stop: int


# (name, arrays) of each shard
Compute = Callable[[Sequence[Shard], OnProgress], Iterator[tuple[str, Arrays]]]


def shards_of(name: str, images: int, size: int) -> list[Shard]:
    """`images` images cut into shards of `size`, the last one of what is left."""
    shards = []
    for start in range(0, images, size):
        shards.append(Shard(f"{name}_{start // size:06d}", start, min(start + size, images)))
    return shards


def count_images(shards: Iterable[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)


@dataclass
class ShardStore:
    """Pieces below `folder` that belong to the work described by `key` (what json can hold).

    `start` removes those of other work. Several processes may use one folder: each saves pieces of
    its own names, one alone calls `start` and `remove`, and needs the key.
    """

    folder: Path
    key: object

    def start(self) -> int:
        """Makes the folder ready; returns how many pieces of the same work it holds."""
        try:
            saved = json.loads((self.folder / _KEY).read_text(encoding="utf-8"))
            same = saved == json.loads(json.dumps(self.key))
        except (OSError, ValueError):
            same = False
        if not same:
            self.remove()
            save_json(self.folder / _KEY, self.key)
        return len(self.names())

    def map(
        self, shards: Sequence[Shard], compute: Compute, progress: ProgressOf
    ) -> Iterator[Arrays]:
        """The arrays of each shard, in order; those that no earlier run has saved are computed and
        saved first.

        All processes must call this; each computes its part of the missing shards. A shard's arrays
        must depend on nothing else, so that neither the number of processes nor an interruption
        changes them. The iterator that is returned may be left unread.
        """
        # takes seconds: partitions are made without torch
        from dejavu_utils.runtime import distributed

        names = set(distributed.from_first(self.names()))
        missing = [shard for shard in shards if shard.name not in names]
        own = missing[distributed.rank() :: distributed.world_size()]
        with progress(count_images(own)) as bar:
            self.save_each(compute(own, bar.update))
        distributed.wait_for_all()
        return (self.load(shard.name) for shard in shards)

    def save_each(self, computed: Iterator[tuple[str, Arrays]]) -> None:
        """Saves pieces, each while the next is computed."""
        with ThreadPoolExecutor(1) as thread:
            saving = None
            for name, arrays in computed:
                if saving:
                    saving.result()
                saving = thread.submit(self.save, name, **arrays)
            if saving:
                saving.result()

    def joined(self, name: str, shards: Sequence[Shard]) -> Arrays:
        """The arrays of all shards, one below the other, mapped from files of the folder that are
        called after `name`.

        All processes must call this. The processes of a node share the memory of the mapped files;
        writing into the arrays copies the page that is written.
        """
        from dejavu_utils.runtime import distributed

        paths = distributed.from_first(self._join(name, shards) if distributed.rank() == 0 else {})
        arrays = {}
        for array, path in paths.items():
            _wait_for(path)
            arrays[array] = np.load(path, mmap_mode="c")  # torch warns of arrays that are read-only
        return arrays

    def _join(self, name: str, shards: Sequence[Shard]) -> dict[str, Path]:
        """Writes {array name: .npy file} of all shards, with one shard in memory at a time."""
        rows = sum(len(self.load(shard.name, "rows")["rows"]) for shard in shards)
        paths = {}
        for array, first in self.load(shards[0].name).items():
            path = self.folder / f"{name}_{array.replace('|', '_')}.npy"
            with complete_file(path) as temporary:
                whole = np.lib.format.open_memmap(
                    temporary, "w+", first.dtype, (rows, *first.shape[1:])
                )
                filled = 0
                for shard in shards:
                    part = self.load(shard.name, array)[array]
                    whole[filled : filled + len(part)] = part
                    filled += len(part)
                whole.flush()
            paths[array] = path
        return paths

    def names(self, start: str = "") -> list[str]:
        """Sorted names of the pieces that begin with `start`."""
        return sorted(path.stem for path in self.folder.glob(f"{start}*.npz"))

    def save(self, name: str, **arrays: np.ndarray) -> None:
        with complete_file(self.folder / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stub takes them for allow_pickle

    def load(self, name: str, *wanted: str) -> Arrays:
        """{array name: array} of the wanted arrays, or of all. InputError if the piece is missing
        or damaged."""
        path = self.folder / f"{name}.npz"
        _wait_for(path)
        try:
            return load_npz(path, *wanted)
        except ValueError as error:
            raise InputError(
                f"{path}: is missing or damaged ({error}); remove {self.folder} and rerun the same command"
            ) from None

    def drop(self, name: str) -> None:
        (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all pieces, and the folder if nothing else lies in it."""
        for pattern in ("*.npz", "*.npy", ".*.tmp.*", _KEY):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _wait_for(path: Path) -> None:
    """Returns when the file is there, or after _PATIENCE."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
