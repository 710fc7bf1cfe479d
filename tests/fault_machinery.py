"""What can be wrong, as functions that change a case: the machinery of faults_table.py."""

import contextlib
import errno
import os
import pickle
import resource
import shutil
import subprocess
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


def cut_image_left_out(case):
    image("c0/c0_08.JPEG", cut)(case)
    case.flags["skip_unreadable"] = ""


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


INDEX = {"beton": "idx-path", "attack": "bbox_A_idx_pth", "probe": "train_idx_pth", "rcdm": "dataset_indices"}
MODEL = {"attack": "model_B_pth", "probe": "model_pth", "rcdm": "ssl_model_pth"}


def index(content, flag=None):
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
        case.flags[flag or INDEX[case.command]] = path

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


def other_data_set(case):
    other = draw_tree(case.data / "other", classes=2)
    ok(call("partition", settings("partition", other, other, other / "index")))
    case.flags[INDEX[case.command]] = other / "index/4_per_class/bbox_A.npy"


def unfinished_partition(case):
    (case.data / "index/partition.unfinished").touch()


def checkpoint(content):
    """The checkpoint holds these bytes, or what a function makes of the path and a good one's path."""

    def make(case):
        path, flag = case.data / "bad.pth", MODEL[case.command]
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
    next(iter(content["model"].values())).fill_(float("nan"))
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


def put(part, column, value):
    """A change for `beton`: one number of the header, of a record or its image, or of the table (by column)."""

    def change(header, records, table):
        targets = {"header": header, "image": records["image"], "record": records, "table": table}
        target = targets[part]
        if part == "table":
            target[0, column] = value
        else:
            target[column][0] = value

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


def files_end_at(size):
    return lambda case: limit(size)


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


FIRST, PUBLIC = "c0/c0_00.JPEG", "c0/c0_08.JPEG"  # the first of set A, and a public one
NPY_CUT = b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'for"
WRONG = {
    "unreadable image": image(FIRST, b"no image"),
    "empty image": image(FIRST, b""),
    "image of 400 million pixels": image(FIRST, drawn((20000, 20000), "1")),
    "unreadable public image": image(PUBLIC, b"no image"),
    "cut public image": image(PUBLIC, cut),
    "cut public image left out": cut_image_left_out,
    "image of 1 x 1": image(FIRST, drawn((1, 1))),
    "image of 20000 x 1": image(FIRST, drawn((20000, 1))),
    "public image of 1 x 1": image(PUBLIC, drawn((1, 1))),
    "public image of 20000 x 1": image(PUBLIC, drawn((20000, 1))),
    "class missing": class_gone,
    "class added": class_added,
    "class without images": class_empty,
    "no class": no_class,
    "classes of one image": classes_of_one_image,
    "class without boxes": class_without_boxes,
    "no boxes": no_boxes,
    "index of another data set": other_data_set,
    "index out of range": index(np.array([0, 36])),
    "index negative": index(np.array([-1, 2])),
    "index too large for int64": index(np.array([2**64 - 1], np.uint64)),
    "index duplicated": index(np.array([0, 1, 0])),
    "public index duplicated": index(np.array([0, 1, 0]), "public_idx_pth"),
    "index empty": index(np.array([], int)),
    "validation index empty": index(np.array([], int), "val_idx_pth"),
    "public index empty": index(np.array([], int), "public_idx_pth"),
    "index of decimals": index(np.array([0.0, 1.0])),
    "index of two dimensions": index(np.zeros((2, 2), int)),
    "index of one number": index(np.array(3)),
    "index of true and false": index(np.array([True, False])),
    "index of objects with code": index(array_with_code),
    "index of pickled code": index(pickle.dumps(Payload())),
    "index cut": index(NPY_CUT),
    "index without bytes": index(b""),
    "index of other content": index(b"1, 2, 3\n"),
    "index in an archive": index(archive),
    "index of a million billion": index(enormous),
    "index in both sets": index(np.array([4, 5])),
    "index of a killed partition": unfinished_partition,
    "checkpoint without bytes": checkpoint(b""),
    "checkpoint of other content": checkpoint(b"epoch 1"),
    "checkpoint cut early": checkpoint(cut_to(0.001)),
    "checkpoint cut late": checkpoint(cut_to(0.9)),
    "checkpoint with code": checkpoint(with_code),
    "checkpoint of bare code": checkpoint(bare_code),
    "checkpoint of odd types": checkpoint(of_odd_types),
    "checkpoint with NaN": checkpoint(not_finite),
    "model.pth without bytes": resuming(resume_cut(0)),
    "model.pth cut": resuming(resume_cut(0.77)),
    "model.pth without settings": resuming(resume_without("settings")),
    "model.pth without optimizer": resuming(resume_without("optimizer")),
    "model.pth without train_set": resuming(resume_without("train_set")),
    "model.pth with code": resuming(resume_code),
    "model.pth with NaN": resuming(resume_not_finite),
    "beton without bytes": beton(cut_at(0)),
    "beton cut early": beton(cut_at(0.01)),
    "beton cut late": beton(cut_at(0.99999)),
    "beton with raw called jpg": elsewhere(beton(put("image", "mode", 0))),
    "no file beyond 20 kB": files_end_at(20_000),
    "no file beyond 200 bytes": files_end_at(200),
    "no file beyond 1 MB": resuming(save_checkpoint, lambda: limit(10**6)),
    "full disk": mounted("full"),
    "read-only folder": mounted("ro"),
    "file in the place of the folder": a_file_there,
    "file above the folder": below_a_file,
    "folder in the place of the file": a_folder_there,
    "crop cache below a file": crop_cache("a file/x.npz"),
    "crop cache of another name": crop_cache("x.pth"),
    "folder in use": in_use,
    "weights of another program": files_of_another_program,
    "left WORLD_SIZE": environment(WORLD_SIZE="2"),
    "rank beyond the world": environment(RANK="2", WORLD_SIZE="2"),
    "too few open files": too_few_open_files,
}
# One number of the training beton: of the header, of its first record or image, of its table by column.
NUMBERS = """
    beton of another version: header version 3
    beton of no fields: header num_fields 0
    beton of 65535 fields: header num_fields 65535
    beton of too many samples: header num_samples 0x8000000000000000
    beton's table beyond its end: header alloc_table_ptr 0xffffffffffffffff
    beton's table in the header: header alloc_table_ptr 0
    beton's image beyond its end: table 1 0x10000000000
    beton's image wraps around: table 1 0xfffffffffffffff8
    beton's image of 16 EiB: table 2 0xffffffffffffffff
    beton's record of no image: image data_ptr 12345
    beton's wrong width: image width 9
    beton's image of no pixels: image height 0
    beton's unknown mode: image mode 7
    beton's negative label: record label -1
    beton's enormous label: record label 0x4000000000000000
"""
for line in NUMBERS.strip().splitlines():
    name, number = line.strip().split(": ")
    part, column, value = number.split()
    WRONG[name] = beton(put(part, int(column) if part == "table" else column, int(value, 0)))
