"""Folders that one run at a time writes into."""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dejavu_utils.errors import InputError
from dejavu_utils.files import is_alive


# Why not filelock, which PyTorch brings along: it would take off the call of flock below. The rest
# it has not: who holds the lock, for the error and for the requeued job of a dead machine. What it
# has must not be: where there is no flock, a file that outlives a killed run, after which the same
# command would not resume; and some of its versions empty the file, with the holder's name in it,
# before they hold it.
@contextmanager
def locked(path: str | Path, flag: str, job: str | None = None, restart: int = 0) -> Iterator[None]:
    """Keeps a second run from writing into the folder of the lock file `path` until the block ends.

    flag: what names that folder, for the error. job, restart: number of the SLURM job and how often
    it was requeued, if it is one. The lock is flock's, which ends with its process however that
    dies, on network file systems too; where those have no locks, nothing is locked. The file says
    who holds it. A requeued job does not wait for the lock of its own earlier run (a server may
    take minutes to see that a machine is gone). InputError if another run holds it. An unexpected
    exception in the block says where the finished pieces are.
    """
    path = Path(path)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restart": restart}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(path, flag, me)
    except OSError as error:
        raise InputError(
            f"{flag} {path.parent}: cannot be written into ({error.strerror or error})"
        ) from None
    try:
        yield
    except (InputError, OSError):  # cli.run has one line for these
        raise
    except Exception:  # its traceback follows
        sys.stderr.write(
            f"{flag} {path.parent}: keeps what was saved; the same command resumes from it\n"
        )
        raise
    finally:
        if handle is not None:
            # while it is held: `_lock` looks whether it got the file of this name
            path.unlink(missing_ok=True)
            handle.close()


def _lock(path: Path, flag: str, me: dict[str, Any]) -> TextIO | None:
    """The open lock file; None where there are no locks, or only one of this job's earlier run."""
    # the reading processes of a run that was killed hold its lock a little longer
    deadline = time.monotonic() + 10
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
        dead = owner.get("host") == me["host"] and not is_alive(owner.get("pid", 0))
        # a holder without a name is just writing it
        if owner and not dead or time.monotonic() > deadline:
            who = "another process"
            if owner:
                who = f"process {owner.get('pid')} on {owner.get('host')}"
            if owner.get("job"):
                who += f", SLURM job {owner['job']}"
            raise InputError(
                f"{flag} {path.parent}: {who} writes there now; wait for it, or name another folder (if you are "
                f"certain that it is gone: remove {path})"
            )
        time.sleep(0.1)


def _owner(handle: TextIO) -> dict[str, Any]:
    """What the holder of a lock has written into it; {} if that is nothing yet."""
    handle.seek(0)
    try:
        owner = json.loads(handle.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_at(handle: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
