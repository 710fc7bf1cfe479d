"""Workers that load images: the same batches as without them, and a line where the machine does not let them."""

import os
import shutil
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_tree, refused, run_process
from torch.utils.data import get_worker_info

from dejavu_utils import imagenet
from dejavu_utils.data import workers
from dejavu_utils.data.workers import batches, without_unreadable
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import list_images, load_image

POSITIONS = [range(0, 3), range(3, 6), range(6, 7)]
IMPORTS = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
Usage = namedtuple("Usage", "total used free")


class Numbers:
    """Position -> (float (4,) of it, position); in a reading process `fault` happens first."""

    def __init__(self, fault=None):
        self.fault = fault

    def __getitem__(self, position):
        if self.fault and get_worker_info() and position == 4:
            self.fault()
        return torch.full((4,), float(position)), position


def run_text(path, text, *words):
    path.write_text(text)
    return run_process(sys.executable, path, *words, timeout=120, PYTHONPATH=IMPORTS)


def read(dataset, num_workers, **options):
    return [numbers.tolist() for _, numbers in batches(dataset, POSITIONS, num_workers, **options)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    workers._say_once.cache_clear()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_come_in_order_and_leave_no_handler(num_workers):
    handler = signal.getsignal(signal.SIGCHLD)
    assert read(Numbers(), num_workers) == [[0, 1, 2], [3, 4, 5], [6]]
    assert signal.getsignal(signal.SIGCHLD) == handler


class Unsent:
    """Cannot be handed from process to process: the thread that tries to gets this error."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def unsent(error):
    return lambda items: Unsent(error) if any(number == 4 for _, number in items) else (items, torch.tensor([0]))


@pytest.mark.parametrize("error, remedy", [
    (OSError(24, "Too many open files"), "raise ulimit -n, or give fewer --workers"),
    (RuntimeError("received 0 items of ancdata"), "raise ulimit -n"),
    (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "--shm-size=8g"),
    (RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), "killed or got no memory"),
    (BlockingIOError(11, "Resource temporarily unavailable"), "raise ulimit -u"),
    (RuntimeError("a mistake in the program"), None),
])  # fmt: skip
def test_causes_have_remedies(error, remedy):
    found = workers._remedy(error, set(), "--workers")
    assert found is None if remedy is None else remedy in found


def test_a_batch_that_cannot_be_handed_over_is_not_waited_for():
    with refused("raise ulimit -n, or give fewer --workers"):
        read(Numbers(), 2, collate=unsent(OSError(24, "Too many open files")), flag="--workers")


@pytest.mark.parametrize("signum, remedy", [
    (signal.SIGKILL, "a worker that loads images was killed or got no memory: give fewer --num_workers"),
    (signal.SIGBUS, "/dev/shm is full.*--shm-size=8g.*fewer --num_workers; 0 does without it"),
])  # fmt: skip
def test_a_reading_process_that_dies_is_a_line(signum, remedy):
    with refused(remedy):
        read(Numbers(lambda: os.kill(os.getpid(), signum)), 2)


LEFT = """
import os, signal, sys, time
from dejavu_utils.data.workers import batches
from test_workers import Numbers, POSITIONS

read = batches(Numbers(), POSITIONS, 2)
next(read)
import multiprocessing
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch's workers look for their parent every 5 s")
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    result = run_text(tmp_path / "left.py", LEFT)
    assert result.returncode == -signal.SIGKILL and len(result.stdout.split()) == 2
    for pid in result.stdout.split():
        deadline = time.monotonic() + 2
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)


FAILS = """
import multiprocessing, sys
from dejavu_utils.cli import run
from dejavu_utils.data.workers import batches
from dejavu_utils.errors import InputError
from test_workers import Numbers, POSITIONS

def main():
    read = batches(Numbers(), POSITIONS, 2)
    next(read)
    raise InputError("a: is wrong")

if __name__ == "__main__":
    if sys.argv[1] == "here":
        run(main)
    process = multiprocessing.get_context(sys.argv[1]).Process(target=run, args=(main,))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.kills
@pytest.mark.parametrize("where", ["here", "spawn"])
def test_the_end_of_a_failing_script_waits_for_no_reader(tmp_path, where):
    """What holds the processes is alive to its end, and so are they, whom nobody has told to end."""
    result = run_text(tmp_path / "fails.py", FAILS, where)
    assert (result.returncode, result.stderr) == (2, "fails.py: error: a: is wrong\n")


LATE = """
import os, signal, time
from dejavu_utils.data.workers import batches
from test_workers import Numbers, POSITIONS

received = []
signal.signal(signal.SIGTERM, lambda *_: received.append("noted, to stop where it is safe"))
delays = iter((0, 3))
delay = lambda: globals().update(this=next(delays))
os.register_at_fork(before=delay, after_in_child=lambda: time.sleep(this))
read = batches(Numbers(), POSITIONS, 2)
print(next(read)[1].tolist())
"""


@pytest.mark.kills
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_worker_that_starts_late_does_not_outlive_the_run(tmp_path):
    """Under load the run may be over, and end its workers, before one of them has replaced the run's handlers."""
    result = run_text(tmp_path / "late.py", LATE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[0, 1, 2]\n", "")


def raising(error):
    def fault():
        raise error

    return fault


@pytest.mark.parametrize("error", [InputError("x.jpg: cannot be read"), RuntimeError("a mistake in the program")])
def test_other_errors_are_passed_on(error):
    with pytest.raises(type(error), match=str(error)) as found:
        read(Numbers(raising(error)), 1)
    assert type(error) is not InputError or str(found.value) == str(error)  # without PyTorch's traceback


@pytest.mark.parametrize("room, processes, ahead", [(10, 3, 2), (7, 3, 1), (4, 2, 1), (3, 1, 1), (2, 0, 1), (0, 0, 1)])
@pytest.mark.parametrize("sharing", [1, 2])
def test_less_is_read_ahead_where_shared_memory_is_small(monkeypatch, capsys, room, processes, ahead, sharing):
    """room: batches that fit into the shared memory, of each process of the run that shares it."""
    started = {}

    def noted(_, **options):
        started.update(options)
        return iter(())

    each = 3 * 4 * 4 + 2**14
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, each * room * sharing + sharing))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(sharing))
    monkeypatch.setattr(workers, "DataLoader", noted)
    for _ in range(2):
        assert not read(Numbers(), 3)
    assert started["num_workers"] == processes and started.get("prefetch_factor", 1) == ahead
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (room < 8)  # said once
    assert all("note: /dev/shm is too small for what 3 workers prefetch (--num_workers)" in line for line in lines)


def test_too_few_open_files_is_no_unreadable_image(tmp_path, monkeypatch):
    listing = list_images(draw_tree(tmp_path, classes=1, per_class=3) / "images")
    cpu = torch.device("cpu")
    assert len(without_unreadable(listing, np.arange(3), cpu, num_workers=1)) == 3

    def no_file(path):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(imagenet.Image, "open", no_file)
    for num_workers in (0, 1):
        with refused("raise ulimit -n"):
            without_unreadable(listing, np.arange(3), cpu, num_workers)
    with pytest.raises(OSError):
        load_image(Path(listing.path(0)))
