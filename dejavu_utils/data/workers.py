"""Images read by processes of their own, batch after batch, and which images can be read at all.

Every stage that reads image files through such processes does it here: what a machine lacks for them (shared memory,
open files, memory) is said in one line, or they are fewer, and a run never waits for an answer that cannot come.
"""

import atexit
import ctypes
import errno
import multiprocessing
import multiprocessing.queues
import multiprocessing.util
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch.utils.data import DataLoader

from dejavu_utils.data.image_dataset import IndexedImages, collate_readable
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.log import say
from dejavu_utils.runtime.distributed import rank, sum_over_processes, world_size
from dejavu_utils.runtime.processes import processes_here

_SHARED = "/dev/shm"  # where PyTorch's reading processes put their batches, on Linux
_AHEAD = 2  # batches that each process has read or reads, PyTorch's default
_GRACE = 60  # seconds that a process reads on after SIGTERM
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_READERS = weakref.WeakSet()  # all that this process has started
_CPU = torch.device("cpu")


def batches(
    dataset,
    positions: Iterable,
    num_workers: int = 0,
    device: torch.device = _CPU,
    collate: Callable | None = None,
    flag: str = "--num_workers",
    ahead: int | None = None,
) -> Iterator:
    """Yields the batches of a data set, each collated from the items at the next of `positions`, in their order.

    positions: of each batch, int; may have no end, and is begun twice. num_workers: processes that read, for which flag
    is the name; 0: this one. device: where the batches will go (pinned memory for a GPU). ahead: batches that each
    process has read or reads; not given: two, but where /dev/shm is too small for them fewer, or fewer processes, which
    is said. InputError with the remedy if they cannot be started or go on, and with the name of an image that cannot be
    read.
    """
    readers: set = set()
    try:
        if num_workers and ahead is None:
            num_workers, ahead = workers_that_fit_shared_memory(_size(dataset, positions), num_workers, flag)
        # Where it is Linux's habit, also in processes that were started otherwise: those would take seconds to import.
        how = "fork" if sys.platform == "linux" else None
        parallel = {"prefetch_factor": ahead, "worker_init_fn": _start, "multiprocessing_context": how}
        loader = DataLoader(
            dataset,
            batch_sampler=positions,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            **(parallel if num_workers else {}),
        )
        yield from _started(loader, readers)
    except InputError as error:  # of a process that reads: PyTorch puts the traceback before it
        _let_go(error)
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
    except (OSError, EOFError, RuntimeError, MemoryError) as error:
        remedy = _remedy(error, readers, flag)
        if remedy is None:
            raise
        _let_go(error)
        raise InputError(remedy) from None


def _started(loader, readers):
    """The loader's iterator; its processes are put into `readers`. PyTorch's handler for their deaths is taken away: it
    raises errors in the midst of any line, and `next` finds the dead within seconds."""
    handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
    iterator = iter(loader)
    readers |= set(multiprocessing.active_children()) - others
    _READERS.update(readers)
    atexit.unregister(_end_readers)
    atexit.register(_end_readers)  # the last comes first: before PyTorch's, which waits for each of them
    _end_readers_of(os.getpid())
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return iterator


def _let_go(error):
    """Ends the processes in their order, which what an error holds would leave to the garbage collector's."""
    traceback.clear_frames(error.__traceback__)


def _end_readers():
    """At the end of this process, if an error or a signal has left it no time to tell them."""
    for process in multiprocessing.active_children():
        if process in _READERS:
            process.kill()


@cache
def _end_readers_of(pid):
    """The same where this process is one of multiprocessing's, which know nothing of atexit."""
    multiprocessing.util.Finalize(None, _end_readers, exitpriority=0)


def _size(dataset, positions):
    """Bytes of the first batch."""
    first = next(iter(positions), ())
    items = (dataset[position] for position in first)
    return len(first) * _bytes_of(next((item for item in items if item is not None), ()))


def workers_that_fit_shared_memory(size: int, num_workers: int, flag: str) -> tuple[int, int]:
    """(processes, batches that each has read ahead) for which the shared memory has room; says if they are fewer.

    size: of a batch, bytes. num_workers: processes that are wanted, for which flag is the name.
    """
    if not num_workers or not os.path.isdir(_SHARED):
        return num_workers, _AHEAD
    room = shutil.disk_usage(_SHARED).free // processes_here()

    def needed(processes, ahead):
        return (processes * ahead + 2) * (size + 2**14) if processes else 0  # two more: in use, and on the way

    fit = [(num_workers, _AHEAD), *((processes, 1) for processes in range(num_workers, -1, -1))]
    processes, ahead = next(pair for pair in fit if needed(*pair) <= room)
    if (processes, ahead) != fit[0]:
        who = f"only {processes} read, one batch ahead each" if processes else "this process reads by itself"
        _say_once(
            f"note: {_SHARED} is too small for what {num_workers} processes read ahead ({flag}): {who}; more room "
            "(docker run --shm-size=8g) or smaller batches are faster"
        )
    return processes, ahead


@cache
def _say_once(text):
    say(text)


def _bytes_of(item):
    if isinstance(item, torch.Tensor):
        return item.nbytes
    return sum(map(_bytes_of, item)) if isinstance(item, (tuple, list)) else 8


def _start(_):
    """Of a reading process.

    It ends if a thread of it cannot hand a batch over; by itself it would drop the batch and read on, and the process
    that waits for that one would wait for ever. Signals that ask a run to stop reach all its processes at times (SLURM,
    Ctrl-C): this one goes on until the one that it reads for has stopped where it is safe. Memory that it frees stays
    with it: to give it back to the system after each image took a fifth of the time.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)  # glibc has it
    set_option(_M_TRIM_THRESHOLD, 2**30)
    set_option(_M_MMAP_THRESHOLD, 2**25)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, _: os._exit(_cause(error) or 1))
    sys.excepthook = lambda _, error, __: os._exit(_cause(error) or 1)


# What messages of PyTorch and the system say of a cause; processes that have ended say it by their exit codes.
_WORDS = {
    errno.EMFILE: "Too many open files|ancdata",
    errno.ENOSPC: "No space left|Bus error|shared memory",
    errno.ENOMEM: "allocate memory|MemoryError",
    errno.EAGAIN: "temporarily unavailable|can't start new thread",
}
_SIGNALS = {-signal.SIGBUS: errno.ENOSPC, -signal.SIGKILL: errno.ENOMEM}


def _cause(error):
    text = f"{type(error).__name__}: {error}"
    return next((number for number, words in _WORDS.items() if re.search(words, text)), None)


def _remedy(error, readers, flag):
    """The line for an error of the reading processes; None for another error."""
    ends = {reader.exitcode for reader in readers} - {None, 0}
    found = next((_SIGNALS.get(end, end) for end in sorted(ends) if _SIGNALS.get(end, end) in _WORDS), _cause(error))
    if found is None and ends:
        found = errno.ECHILD
    return {
        errno.EMFILE: f"too many open files for the processes that read images: raise ulimit -n, or give fewer {flag}",
        errno.ENOSPC: f"{_SHARED} is full, through which processes hand on the images that they read: enlarge it "
        f"(docker run --shm-size=8g), or give fewer {flag}; 0 does without it",
        errno.ENOMEM: f"a process that reads images was killed or got no memory: give fewer {flag}, a smaller "
        "--batch_size, or the job more memory",
        errno.EAGAIN: f"no more processes may be started to read images: raise ulimit -u, or give fewer {flag}",
        errno.ECHILD: f"a process that reads images has ended: rerun the same command to resume; {flag} 0 shows why",
    }.get(found)


def readable(
    listing: ImageListing,
    indices: np.ndarray,
    num_workers: int = 0,
    on_progress: Callable[[int], object] = lambda count: None,
    flag: str = "--num_workers",
) -> np.ndarray:
    """bool (n,): which of the images at `indices` can be decoded. on_progress: called with the images done since."""
    images = IndexedImages(listing, indices, _nothing, skip_unreadable=True)
    positions = [range(start, min(start + 64, len(indices))) for start in range(0, len(indices), 64)]
    found = [np.empty(0, bool)]
    for _, _, batch in batches(images, positions, num_workers, collate=collate_readable, flag=flag):
        found.append(batch.numpy())
        on_progress(len(batch))
    return np.concatenate(found)


def _nothing(image):
    return torch.empty(0)


def without_unreadable(
    listing: ImageListing,
    indices: np.ndarray,
    device: torch.device,
    num_workers: int = 0,
    on_progress: Callable[[int], object] = lambda count: None,
    flag: str = "--num_workers",
) -> np.ndarray:
    """The indices of the images that can be decoded, int64; the processes divide the images among them. InputError if
    there are none.

    on_progress: called with the number of images that this process has done since the last call.
    """
    own = slice(rank(), None, world_size())
    found = torch.zeros(len(indices), device=device)
    found[own] = torch.from_numpy(readable(listing, indices[own], num_workers, on_progress, flag)).to(found)
    kept = indices[sum_over_processes(found).cpu().numpy() > 0]
    if not len(kept):
        raise InputError("--skip_unreadable: not one of the images could be read")
    return kept
