"""Files that appear complete or not at all, and folders that one run at a time writes into."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dejavu_utils.options import InputError


@contextmanager
def complete_file(path):
    """Yields a temporary path beside `path`; it takes the final name when the block ends, and is removed if it fails.

    Missing parent folders are made. The temporary name ends like the final one, so that writers which look at the
    suffix (NumPy, matplotlib) behave the same. What a process of this machine that was killed has left of the same file
    is removed first. InputError that names `path` if it cannot be written (a full disk, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(host)}.*.tmp.{glob.escape(path.name)}"):
        pid = left.name.removeprefix(f".{host}.").split(".")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
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
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); is there room?") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def complete_files(folder, last):
    """Yields a folder below `folder`; its files move up when the block ends, and are removed if it fails.

    What lies in `folder` stays as it is until all are written. last: the file that says that the others are complete;
    it moves after them, and goes before them.
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


def digest(*arrays):
    """SHA-256 of the contents of NumPy arrays or PyTorch tensors, wherever they are."""
    found = hashlib.sha256()
    for array in arrays:
        array = array.cpu() if hasattr(array, "cpu") else array
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def save_npy(path, array):
    with complete_file(path) as temporary:
        write_npy(temporary, array)


def write_npy(path, array):
    """np.save that fails on a full disk: by itself it writes through C's buffers and loses the last one in silence."""
    with open(path, "wb") as handle:
        np.save(SimpleNamespace(write=handle.write), array)


def save_json(path, data):
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def save_csv(path, frame):
    """Writes a pandas DataFrame, unrounded (17 significant digits read back to the same float)."""
    with complete_file(path) as temporary:
        frame.to_csv(temporary, index=False)


@contextmanager
def locked(path, flag, job=None, restart=0):
    """Keeps a second run from writing into the folder of the lock file `path` until the block ends.

    flag: what names that folder, for the error. job, restart: number of the SLURM job and how often it was queued
    again, if it is one. The lock is flock's, which ends with its process however that dies, on network file systems
    too; where those have no locks, nothing is locked. The file says who holds it. A job that was queued again does not
    wait for a lock of its own earlier life (a server may take minutes to see that a machine is gone). InputError if
    another run holds it.
    """
    path = Path(path)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restart": restart}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(path, flag, me)
    except OSError as error:
        raise InputError(f"{flag} {path.parent}: cannot be written into ({error.strerror or error})") from None
    try:
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)  # while it is held: `_lock` looks whether it got the file of this name
            handle.close()


def _lock(path, flag, me):
    """The open lock file; None where there are no locks, or only one of this job's earlier life."""
    deadline = time.monotonic() + 10  # the reading processes of a run that was killed hold its lock a little longer
    while True:
        handle = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
        except OSError:
            handle.close()
            return None
        else:
            if _is_at(handle, path):
                handle.truncate(0)
                handle.write(json.dumps(me))
                handle.flush()
                return handle
            owner = None  # the last holder has removed it: once more
        handle.close()
        if owner is None:
            continue
        if me["job"] and owner.get("job") == me["job"] and owner.get("restart", 0) < me["restart"]:
            return None
        dead = owner.get("host") == me["host"] and not _is_alive(owner.get("pid", 0))
        if owner and not dead or time.monotonic() > deadline:  # a holder without a name is just writing it
            job = f", SLURM job {owner['job']}" if owner.get("job") else ""
            who = f"process {owner.get('pid')} on {owner.get('host')}{job}" if owner else "another process"
            raise InputError(
                f"{flag} {path.parent}: {who} writes there now; wait for it, or name another folder (if you are "
                f"certain that it is gone: remove {path})"
            )
        time.sleep(0.1)


def _owner(handle):
    """What the holder of a lock has written into it; {} if that is nothing yet."""
    handle.seek(0)
    try:
        owner = json.loads(handle.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_at(handle, path):
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _is_alive(pid):
    """Is there a process of this number on this machine?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
