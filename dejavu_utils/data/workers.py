"""Worker processes that load images, batch after batch, and which images can be read at all.

Every stage that reads image files through workers does it here: if shared memory, file handles or
RAM run out, fewer workers are started or the run ends with one line; it never hangs.
"""

import ctypes
import errno
import multiprocessing
import multiprocessing.queues
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from dejavu_utils.checkpoint import tensor_bytes
from dejavu_utils.data.image_dataset import IndexedImages, collate_readable
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.log import say
from dejavu_utils.runtime.distributed import rank, sum_over_processes, world_size
from dejavu_utils.runtime.processes import processes_here
from dejavu_utils.runtime.resumable import OnProgress

_SHARED = "/dev/shm"  # through which PyTorch's workers hand over their batches, on Linux
_PREFETCH = 2  # batches that each worker has loaded or loads, PyTorch's default
_PR_SET_PDEATHSIG = 1  # of prctl, in sys/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
# signals that ask a run to stop
_TO_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
_CPU = torch.device("cpu")


def batches(
    dataset: Any,
    positions: Iterable,
    num_workers: int = 0,
    device: torch.device = _CPU,
    collate: Callable | None = None,
    flag: str = "--num_workers",
    prefetch: int | None = None,
) -> Iterator:
    """Yields the batches of a data set, each collated from the items at the next of `positions`, in
    their order.

    positions: of each batch, int; may have no end, and is begun twice. num_workers: workers, for
    which flag is the name; 0: this process loads. device: where the batches will go (pinned memory
    for a GPU). prefetch: batches that each worker has loaded or loads; not given: two, but where
    /dev/shm is too small for them fewer, or fewer workers, which is said. InputError with the
    remedy if workers cannot be started or die, and with the name of an image that cannot be read.
    """
    workers: set = set()
    try:
        if num_workers and prefetch is None:
            size = _batch_bytes(dataset, positions)
            num_workers, prefetch = workers_that_fit_shared_memory(size, num_workers, flag)
        options: dict[str, Any] = {}
        if num_workers:
            # PDEATHSIG follows the thread that starts a worker: only the main one lives as long as
            # the run.
            parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
            options = {
                "prefetch_factor": prefetch,
                "worker_init_fn": partial(_start_worker, parent),
                # Also in processes that were not forked themselves: there new ones would take
                # seconds to import PyTorch.
                "multiprocessing_context": "fork" if sys.platform == "linux" else None,
            }
        with warnings.catch_warnings():
            # The user gave the number; PyTorch's own look at the cores would only repeat a note.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader: DataLoader = DataLoader(
                dataset,
                batch_sampler=positions,
                num_workers=num_workers,
                collate_fn=collate,
                pin_memory=device.type == "cuda",
                **options,
            )
            iterator = _started(loader, workers)
        yield from iterator
    except InputError as error:  # of a worker: PyTorch puts the traceback before it
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
    except (OSError, EOFError, RuntimeError, MemoryError) as error:
        remedy = _remedy(error, workers, flag)
        if remedy is None:
            raise
        raise InputError(remedy) from None


def _started(loader: DataLoader, workers: set) -> Iterator:
    """The loader's iterator; its workers are added to `workers`.

    Signals wait while workers are forked: until `_start_worker` runs, a worker has the run's
    handlers, and a SIGTERM that is to end it would be noted there and lost. PyTorch's SIGCHLD
    handler is removed: it can raise at any line, and `next` finds dead workers within seconds.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    others = set(multiprocessing.active_children())
    blocked = _TO_STOP if sys.platform == "linux" else set()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    workers |= set(multiprocessing.active_children()) - others
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return iterator


def _start_worker(parent: int | None, _: int) -> None:
    """Runs first in a worker. parent: process id of the run, if its main thread has started the
    worker.

    Signals that ask a run to stop reach all its processes at times (SLURM, Ctrl-C): a worker goes
    on loading until the run has stopped where it is safe. It ends with its parent, at its parent's
    SIGTERM, and if a thread of it cannot hand over a batch: PyTorch would drop that batch, and the
    run would wait for it forever.
    """
    for signum in _TO_STOP - {signal.SIGTERM}:
        signal.signal(signum, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, _: os._exit(_cause(error) or 1)
    )
    sys.excepthook = lambda _, error, __: os._exit(_cause(error) or 1)
    if sys.platform != "linux":
        return  # SIGTERM ends it, and PyTorch looks every few seconds whether the parent lives
    libc = ctypes.CDLL(None)
    if parent:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that line
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})  # which the thread receives
    threading.Thread(target=_end_if_parent_terminates, daemon=True).start()
    if hasattr(libc, "mallopt"):
        # Keep freed memory: returning it to the system after each image took a fifth of the time.
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)


def _end_if_parent_terminates() -> None:
    """multiprocessing terminates workers when the run ends; SIGTERM from anyone else is a request
    to the run."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _batch_bytes(dataset: Any, positions: Iterable) -> int:
    """Bytes of the first batch."""
    first = next(iter(positions), ())
    for position in first:
        item = dataset[position]
        if item is not None:  # one that cannot be read
            return len(first) * tensor_bytes(item)
    return 0


def workers_that_fit_shared_memory(size: int, num_workers: int, flag: str) -> tuple[int, int]:
    """(workers, batches that each prefetches) for which the shared memory has room; says if they
    are fewer.

    size: bytes of a batch. num_workers: workers that are wanted, for which flag is the name.
    """
    if not num_workers or not os.path.isdir(_SHARED):
        return num_workers, _PREFETCH
    room = shutil.disk_usage(_SHARED).free // processes_here()
    # two more batches than are prefetched: in use, and on the way
    most = room // (size + 2**14) - 2
    if num_workers * _PREFETCH <= most:
        return num_workers, _PREFETCH
    workers = max(0, min(num_workers, most))
    who = "this process loads them"
    if workers:
        who = f"only {workers} load images, one batch ahead each"
    _say_once(
        f"note: {_SHARED} is too small for what {num_workers} workers prefetch ({flag}): {who}; more room "
        "(docker run --shm-size=8g) or smaller batches are faster"
    )
    return workers, 1


@cache
def _say_once(text: str) -> None:
    say(text)


# What messages of PyTorch and the system say of a cause; workers that have ended say it by their
# exit codes.
_WORDS = {
    errno.EMFILE: "Too many open files|ancdata",
    errno.ENOSPC: "No space left|Bus error|shared memory",
    errno.ENOMEM: "allocate memory|MemoryError",
    errno.EAGAIN: "temporarily unavailable|can't start new thread",
}
_SIGNALS = {-signal.SIGBUS: errno.ENOSPC, -signal.SIGKILL: errno.ENOMEM}


def _cause(error: BaseException) -> int | None:
    text = f"{type(error).__name__}: {error}"
    for number, words in _WORDS.items():
        if re.search(words, text):
            return number
    return None


def _remedy(error: BaseException, workers: set, flag: str) -> str | None:
    """The line for an error of the workers; None for another error."""
    exit_codes = sorted({worker.exitcode for worker in workers} - {None, 0})
    causes = [_SIGNALS.get(code, code) for code in exit_codes]
    known = [cause for cause in causes if cause in _WORDS]
    cause = known[0] if known else _cause(error)
    if cause is None and exit_codes:
        cause = errno.ECHILD
    remedies = {
        errno.EMFILE: f"too many open files for the workers that load images: raise ulimit -n, or give fewer {flag}",
        errno.ENOSPC: f"{_SHARED} is full, through which workers hand over the images that they load: enlarge it "
        f"(docker run --shm-size=8g), or give fewer {flag}; 0 does without it",
        errno.ENOMEM: f"a worker that loads images was killed or got no memory: give fewer {flag}, a smaller "
        "--batch_size, or the job more memory",
        errno.EAGAIN: f"no more workers may be started to load images: raise ulimit -u, or give fewer {flag}",
        errno.ECHILD: f"a worker that loads images has ended: rerun the same command to resume; {flag} 0 shows why",
    }
    return remedies.get(cause) if cause else None


def _nothing(image: object) -> torch.Tensor:
    return torch.empty(0)


def without_unreadable(
    listing: ImageListing,
    indices: np.ndarray,
    device: torch.device,
    num_workers: int = 0,
    on_progress: OnProgress = lambda count: None,
    flag: str = "--num_workers",
) -> np.ndarray:
    """The indices of the images that can be decoded, int64; the processes divide the images among
    them. InputError if there are none.

    on_progress: called with the number of images that this process has done since the last call.
    """
    own = np.arange(rank(), len(indices), world_size())
    images = IndexedImages(listing, indices[own], _nothing, skip_unreadable=True)
    positions = list(BatchSampler(range(len(own)), 64, drop_last=False))
    read = batches(images, positions, num_workers, collate=collate_readable, flag=flag)
    can_be_read = torch.zeros(len(indices))
    for rows, (_, _, readable) in zip(positions, read):
        can_be_read[own[rows]] = readable.float()
        on_progress(len(rows))
    kept = indices[sum_over_processes(can_be_read.to(device)).cpu().numpy() > 0]
    if not len(kept):
        raise InputError("--skip_unreadable: not one of the images could be read")
    return kept
