"""Files that appear complete or not at all."""

import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dejavu_utils.errors import InputError


def check_place(path: str | Path) -> None:
    """InputError unless a file may get this name; makes its folder. For what is written after hours
    of work."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.filename}: {error.strerror}); name another place"
        ) from None


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes the final name when the block ends, and is
    removed if it fails.

    Missing parent folders are made. The temporary name ends like the final one, so that writers
    which look at the suffix (NumPy, matplotlib) behave the same. Temporary files of the same path
    that a killed process of this machine has left are removed first. InputError that names `path`
    if it cannot be written (a full disk, no permission).
    """
    path = Path(path)
    check_place(path)
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(host)}.*.tmp.{glob.escape(path.name)}"):
        pid = left.name.removeprefix(f".{host}.").split(".")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{host}.{os.getpid()}.tmp.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary), temporary):
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); is there room?"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def complete_files(folder: str | Path, last: str) -> Iterator[Path]:
    """Yields a folder below `folder`; its files move up when the block ends, and are removed if it
    fails.

    Files in `folder` stay as they are until all are written. last: the file whose presence says
    that the others are complete: it is moved last, and an old one is removed first.
    """
    folder = Path(folder)
    staging = folder / ".new"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
        (folder / last).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_free_space(folder: str | Path, needed: float, remedy: str) -> None:
    """InputError, with the remedy, if the disk of a folder, which need not exist yet, has fewer
    bytes free than needed.

    Asked before hours of computing; a disk that fills up later is named by `complete_file`.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{folder}: needs about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there; {remedy}"
        )


def digest(*arrays: Any) -> str:
    """SHA-256 of the contents of NumPy arrays or PyTorch tensors, wherever they are."""
    found = hashlib.sha256()
    for array in arrays:
        array = array.cpu() if hasattr(array, "cpu") else array
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def save_npy(path: str | Path, array: np.ndarray) -> None:
    with complete_file(path) as temporary:
        write_npy(temporary, array)


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """np.save that fails on a full disk; np.save alone writes through C's buffers and loses the
    last one silently."""
    with open(path, "wb") as handle:
        np.save(SimpleNamespace(write=handle.write), array)


def load_npz(path: str | Path, *wanted: str) -> dict[str, np.ndarray]:
    """{name: array} of an .npz, of all or of the wanted ones; ValueError where it is missing,
    damaged or lacks one."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in wanted or arrays.files}
    except Exception as error:  # on damaged files, NumPy and zipfile raise anything
        raise ValueError(str(error)) from None


def save_json(path: str | Path, data: object) -> None:
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def save_csv(path: str | Path, frame: Any) -> None:
    """Writes a pandas DataFrame, unrounded (17 significant digits read back to the same float)."""
    with complete_file(path) as temporary:
        # names of files need not be UTF-8
        frame.to_csv(temporary, index=False, errors="backslashreplace")


def is_alive(pid: int) -> bool:
    """Does this machine run a process with this id?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
