"""Files that appear whole, what killed processes leave, and folders with one writer at a time."""

import fcntl
import json
import os
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import refused

from dejavu_utils.files import check_free_space, complete_file, load_npz, save_npy
from dejavu_utils.runtime.locks import locked


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new/x.txt"
    for content in ("first", "second"):
        with complete_file(path) as temporary:
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    with pytest.raises(ZeroDivisionError), complete_file(path) as temporary:
        temporary.write_text("third")
        raise ZeroDivisionError
    assert path.read_text() == "second" and [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    host, dead = socket.gethostname(), 2**22 + 1  # above Linux's largest process id
    for name in (f".{host}.{dead}.tmp.x.npy", f".{host}.1.tmp.x.npy", f".elsewhere.{dead}.tmp.x.npy"):
        (tmp_path / name).touch()
    save_npy(tmp_path / "x.npy", np.arange(3))
    assert not (tmp_path / f".{host}.{dead}.tmp.x.npy").exists()
    assert len(list(tmp_path.glob(".*"))) == 2  # a living process's and another machine's


def test_room_is_asked_of_the_disk_of_a_folder_to_come(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=2 * 10**9))
    check_free_space(tmp_path / "a/b", 2 * 10**9, "remedy")
    with refused(r"/a/b: needs about 3.5 GB, but only 2.0 GB are free there; make room$"):
        check_free_space(tmp_path / "a/b", 3.5 * 10**9, "make room")
    assert asked == 2 * [tmp_path]


def test_an_npz_that_is_damaged_anywhere_is_one_kind_of_error(tmp_path):
    path, values = tmp_path / "x.npz", np.arange(200) % 97
    np.savez_compressed(path, a=values, b=np.arange(3))
    assert list(load_npz(path)) == ["a", "b"] and list(load_npz(path, "b")) == ["b"]
    with pytest.raises(ValueError, match="c is not a file"):
        load_npz(path, "c")
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(load_npz(path, "a")["a"], values)
        except ValueError:
            refused += 1
    assert refused > len(whole) / 3
    with pytest.raises(ValueError):
        load_npz(tmp_path / "absent.npz")


def test_a_folder_has_one_writer(tmp_path):
    lock = tmp_path / "run/.lock"
    with locked(lock, "--output_dir"):
        with refused(rf"--output_dir .*run: process {os.getpid()} on .* writes there now"):
            with locked(lock, "--output_dir"):
                raise AssertionError
        with locked(tmp_path / "run/.other", "--output_dir"):  # another part of the folder
            pass
    assert not list((tmp_path / "run").iterdir())
    lock.write_text('{"host": "gone", "pid": 1}')  # of a process that was killed
    with locked(lock, "--output_dir"):
        pass


def test_a_holder_is_named_once_it_has_written_its_name(tmp_path):
    lock = tmp_path / ".lock"
    with open(lock, "a+", encoding="utf-8") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        name = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        writer = threading.Timer(0.3, lock.write_text, [name])
        writer.start()
        with refused(f"process {os.getpid()} on "), locked(lock, "--x"):
            raise AssertionError
        writer.join()


def test_a_requeued_job_does_not_wait_for_its_earlier_run(tmp_path):
    lock = tmp_path / ".lock"
    with locked(lock, "--x", job="7", restart=1):  # as a server sees it that has not yet seen a machine die
        with locked(lock, "--x", job="7", restart=2):
            pass
        for other in ({"job": "7", "restart": 1}, {"job": "8", "restart": 2}, {}):
            with refused("SLURM job 7 writes there now"), locked(lock, "--x", **other):
                raise AssertionError
    assert not lock.exists()


def test_where_there_are_no_locks_nothing_is_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock", "--x"), locked(tmp_path / ".lock", "--x"):
        pass
