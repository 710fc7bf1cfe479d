"""What can be wrong, as functions that change a case: the machinery of faults_table.py."""

import contextlib
import errno
import os
import pickle
import resource
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import draw_tree, load, ok
from PIL import Image
from stages import SCRIPTS, call, settings

from dejavu_utils import imagenet
from dejavu_utils.checkpoint import save_checkpoint
from dejavu_utils.data.beton import _FIELD, _HEADER, _RECORD
from dejavu_utils.runtime.locks import locked

# What is wrong. Each function changes the case: case.data (a copy of images, boxes and index), case.flags, case.out; it
# may return a context that holds while the command runs.


def image(name, content):
    """The image file NAME below images/ holds something else: bytes, or what Pillow draws and saves."""

    def make(case):
        path = case.data / "images" / name
        content(path) if callable(content) else path.write_bytes(content)

    return make


def drawn(size, mode="RGB"):
    def save(path):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        Image.new(mode, size).save(path, "PNG")

    return save


def cut(path):
    path.write_bytes(path.read_bytes()[:700])


def class_gone(case):
    shutil.rmtree(case.data / "images/c1")


def class_added(case):
    shutil.copytree(case.data / "images/c0", case.data / "images/c00")


def class_empty(case):
    (case.data / "images/c9").mkdir()


def no_class(case):
    shutil.rmtree(case.data / "images")
    (case.data / "images").mkdir()


def classes_of_one_image(case):
    for path in (case.data / "images").glob("*/*.JPEG"):
        if not path.stem.endswith("_00"):
            path.unlink()


def class_without_boxes(case):
    shutil.rmtree(case.data / "boxes/Annotation/c1")


def no_boxes(case):
    shutil.rmtree(case.data / "boxes/Annotation")


def index(flag, content):
    """The index file of a flag holds this array, these bytes, or what a function of its path writes."""

    def make(case):
        path = case.data / "other index/x.npy"  # no partition.json beside it: an index file made by others
        path.parent.mkdir()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif callable(content):
            content(path)
        else:
            np.save(path, content)
        case.flags[flag] = path

    return make


def archive(path):
    with open(path, "wb") as handle:
        np.savez(handle, np.arange(3))


def enormous(path):
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n")


class Payload:
    """Pickled, it would run a command when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch {Payload.mark}",)

    mark = Path("/tmp") / f"payload-{os.getpid()}"


def array_with_code(path):
    np.save(path, np.array([Payload()], dtype=object), allow_pickle=True)


def other_data_set(flag):
    def make(case):
        other = draw_tree(case.data / "other", classes=2)
        values = settings("partition", other, other, other / "index")
        ok(call("partition", values))
        case.flags[flag] = other / "index/4_per_class/bbox_A.npy"

    return make


def unfinished_partition(case):
    (case.data / "index/partition.unfinished").touch()


def changed(**values):
    return lambda case: case.flags.update(values)


def checkpoint(flag, content):
    """The checkpoint of a flag holds these bytes, or what a function makes of the path and a good one's path."""

    def make(case):
        path = case.data / "bad.pth"
        good = case.flags[flag]
        path.write_bytes(content) if isinstance(content, bytes) else content(path, good)
        case.flags[flag] = path

    return make


def cut_to(share):
    return lambda path, good: path.write_bytes(good.read_bytes()[: int(share * good.stat().st_size)])


def with_code(path, good):
    torch.save({"model": {}, "settings": Payload()}, path)


def bare_code(path, good):
    path.write_bytes(pickle.dumps(Payload()))


def not_finite(path, good):
    content = load(good)
    for name, value in content["model"].items():
        if name.endswith("conv1.weight"):
            value.view(-1)[0] = float("nan")
    save_checkpoint(path, content)


def of_odd_types(path, good):
    save_checkpoint(path, {"model": [1], "settings": {"model.mlp": 3}, "num_classes": "x"})


RESUMING = []


def resuming(change, during=contextlib.nullcontext):
    """The training's own model.pth, set back to the middle, with a change; and what holds while it resumes."""

    def make(case):
        path = case.out / "model.pth"
        content = {**load(path), "epoch": 1}
        path.unlink()
        change(path, content)
        return during()

    RESUMING.append(make)
    return make


def resume_cut(share):
    def change(path, content):
        save_checkpoint(path, content)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return change


def resume_without(key):
    return lambda path, content: save_checkpoint(path, {k: v for k, v in content.items() if k != key})


def resume_not_finite(path, content):
    content["model"]["module.net.conv1.weight"].fill_(float("nan"))
    save_checkpoint(path, content)


def resume_code(path, content):
    torch.save({**content, "extra": Payload()}, path)


def beton(change):
    """A copy of the training beton whose header, records or table are changed in place."""

    def make(case):
        path = case.data / "bad.beton"
        data = bytearray(Path(case.flags["data.train_dataset"]).read_bytes())
        header = np.frombuffer(data, _HEADER, 1)
        first = _HEADER.itemsize + 2 * _FIELD.itemsize
        records = np.frombuffer(data, _RECORD, int(header["num_samples"][0]), first)
        table = np.frombuffer(data, "<u8", 3 * len(records), int(header["alloc_table_ptr"][0])).reshape(-1, 3)
        end = change(header[0:1], records, table)
        del header, records, table
        path.write_bytes(data[:end])
        case.flags["data.train_dataset"] = path

    return make


def elsewhere(make):
    """A new run, in a folder of its own."""

    def make_elsewhere(case):
        make(case)
        case.flags["logging.folder"] = case.out / "new"

    return make_elsewhere


def put(part, column, value, row=0):
    """A change for `beton`: one number of the header, of a record or its image, or of the table (by column)."""

    def change(header, records, table):
        targets = {"header": header, "image": records["image"], "record": records, "table": table}
        target = targets[part]
        if part == "table":
            target[row, column] = value
        else:
            target[column][row] = value

    return change


def cut_at(share):
    return lambda header, records, table: int(share * (int(header["alloc_table_ptr"][0]) + table.nbytes))


@contextlib.contextmanager
def limit(size):
    """No file can grow beyond `size` bytes: what a full disk or a quota looks like, on any machine."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mounted(options):
    """The output folder is a file system of its own (tmpfs), with what is there already in it; root only."""

    def make(case):
        kept = case.out.with_name("kept")
        case.out.rename(kept)
        case.out.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", case.out], capture_output=True, text=True
        )
        if done.returncode:
            kept.rename(case.out)
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        case.mounted = True
        for path in kept.iterdir():
            if path.stat().st_size < 2**16:
                shutil.copytree(path, case.out / path.name) if path.is_dir() else shutil.copy(path, case.out)
        if options == "full":
            with contextlib.suppress(OSError), open(case.out / "filler", "wb") as handle:
                handle.write(bytes(2**21))
        else:
            subprocess.run(["mount", "-o", "remount,ro", case.out], check=True)

    return make


def a_file_there(case):
    """A file has the output folder's name."""
    shutil.rmtree(case.out)
    case.out.write_text("a file")


def below_a_file(case):
    """A file has the name of the folder above the output folder."""
    (case.data / "a file").touch()
    flag = SCRIPTS[case.command][1]
    case.flags[flag] = case.data / "a file/below" / Path(case.flags[flag]).relative_to(case.out)


def a_folder_there(case):
    """A folder has the name of the file that is to be written."""
    flag = SCRIPTS[case.command][1]
    case.flags[flag] = case.data / "x.beton"
    case.flags[flag].mkdir()


def crop_cache(name):
    def make(case):
        (case.data / "a file").touch()
        case.flags["crop_cache"] = case.data / name

    return make


def in_use(case):
    """Another run is writing into the output folder."""
    return locked(case.out / ".lock", "another run")


def environment(**variables):
    """The shell has kept these variables, of another program."""
    return lambda case: mock.patch.dict(os.environ, variables)


def too_few_open_files(case):
    """Images cannot be opened: the process has as many files open as it may."""

    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    return mock.patch.object(imagenet.Image, "open", refuse)


def files_of_another_program(case):
    """The folder holds a U-Net's weights, but nothing that says that train_RCDM.py wrote them."""
    for path in case.out.iterdir():
        if path.name not in ("model000002.pt", ".lock"):
            path.unlink()


Fault = namedtuple("Fault", "name command make texts code")


def fault(name, command, make, *texts, code=2):
    return Fault(name, command, make, texts, code)
