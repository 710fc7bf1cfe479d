"""Faults and hostile input, one table: what is wrong, which command meets it, and what must come of it.

Every row ends in one clear line that names the file or flag, with exit code 2, and with everything that was there
before untouched; or, where that is what a user wants, in a reported count. The commands run in this process
(run_here): the exit code and the line are those that a shell would see.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ABSENT, ROOT, draw_tree, flags, run_here, save_untrained
from PIL import Image

from dejavu_utils.attack.boxes import Annotations, CropRule, Unusable, take_crops
from dejavu_utils.checkpoint import save_checkpoint
from dejavu_utils.data.beton import _FIELD, _HEADER, _RECORD, Beton
from dejavu_utils.imagenet import list_images
from dejavu_utils.locks import locked

TRAINING = {
    **{"model.arch": "resnet18", "model.mlp": "32-16", "training.loss": "simclr", "training.precision": "fp32"},
    **{"resolution.min_res": 32, "resolution.max_res": 32, "validation.resolution": 32, "data.num_workers": 1},
    **{"training.batch_size": 4, "training.epochs": 2, "training.warmup_epochs": 1, "logging.log_level": 1},
}
SCRIPTS = {
    "partition": ("imagenet_partition.py", "save_dir"),
    "beton": ("write_ffcv_dataset.py", "write-path"),
    "training": ("train_SSL.py", "logging.folder"),
    "attack": ("label_inference_attack.py", "output_dir"),
    "probe": ("lin_probe.py", "output_dir"),
    "rcdm": ("train_RCDM.py", "out_dir"),
}


def settings(command, data, made, out):
    """The flags of a command that is all right. data: images, boxes and index; made: betons and checkpoints."""
    index = data / "index" / "4_per_class"
    pictures = {"imgnet_train_pth": data / "images", "resolution": 32, "num_workers": 0, "local": 1}
    return {
        "partition": {"imgnet_dir": data / "images", "bbox_dir": data / "boxes", "per_class": 4, "save_dir": out},
        "beton": {
            **{"imgnet-path": data / "images", "idx-path": index / "train_A.npy", "write-path": out / "x.beton"},
            "num-workers": 1,
        },
        "training": {
            **TRAINING,
            **{"data.train_dataset": made / "train.beton", "data.val_dataset": made / "val.beton"},
            "logging.folder": out,
        },
        "attack": {
            **pictures,
            **{"model_A_pth": made / "A.pth", "model_B_pth": made / "B.pth", "imgnet_bbox_pth": data / "boxes"},
            **{f"bbox_{name}_idx_pth": index / f"bbox_{name}.npy" for name in "AB"},
            **{"public_idx_pth": index / "public.npy", "k": 7, "k_attk": 5, "min_px": 10, "output_dir": out},
        },
        "probe": {
            **pictures,
            **{"model_pth": made / "A.pth", "train_idx_pth": index / "train_A.npy"},
            **{"val_idx_pth": data / "index" / "val_set.npy", "epochs": 1, "output_dir": out},
        },
        "rcdm": {
            **{"feat_cond": "", "ssl_model_pth": made / "A.pth", "ssl_resolution": 32, "data_dir": data / "images"},
            **{"dataset_indices": index / "public.npy", "workers": 0, "local": 1, "world_size": 1, "batch_size": 4},
            **{"image_size": 32, "num_channels": 32, "channel_mult": "1,1", "num_res_blocks": 1},
            **{"attention_resolutions": 16, "backend": "diffusers", "timestep_respacing": 2, "log_interval": 1},
            **{"lr_anneal_steps": 2, "save_interval": 1, "out_dir": out},
        },
    }[command]


def call(command, values):
    return run_here(SCRIPTS[command][0], *flags(values))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Everything done once without a fault: data, made (betons and checkpoints), and done/COMMAND (its output)."""
    root = tmp_path_factory.mktemp("earlier")
    data, made = draw_tree(root / "data"), root / "made"
    assert call("partition", settings("partition", data, made, data / "index")).returncode == 0
    made.mkdir()
    for seed, model in enumerate("AB"):
        save_untrained(made / f"{model}.pth", seed)
    for name, index in (("train", "4_per_class/train_A.npy"), ("val", "val_set.npy")):
        values = {**settings("beton", data, made, made), "idx-path": data / "index" / index}
        assert call("beton", {**values, "write-path": made / f"{name}.beton"}).returncode == 0
    for command in SCRIPTS:
        result = call(command, settings(command, data, made, root / "done" / command))
        assert result.returncode == 0, result.stderr
    return root


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
    shutil.rmtree(case.data / "images" / "c1")


def class_added(case):
    shutil.copytree(case.data / "images" / "c0", case.data / "images" / "c00")


def class_empty(case):
    (case.data / "images" / "c9").mkdir()


def no_class(case):
    shutil.rmtree(case.data / "images")
    (case.data / "images").mkdir()


def classes_of_one_image(case):
    for path in (case.data / "images").glob("*/*.JPEG"):
        if not path.stem.endswith("_00"):
            path.unlink()


def class_without_boxes(case):
    shutil.rmtree(case.data / "boxes" / "Annotation" / "c1")


def no_boxes(case):
    shutil.rmtree(case.data / "boxes" / "Annotation")


def index(flag, content):
    """The index file of a flag holds this array, these bytes, or what a function of its path writes."""

    def make(case):
        path = case.data / "other index" / "x.npy"  # no partition.json beside it: an index file made by others
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
        assert call("partition", values).returncode == 0
        case.flags[flag] = other / "index" / "4_per_class" / "bbox_A.npy"

    return make


def unfinished_partition(case):
    (case.data / "index" / "partition.unfinished").touch()


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
    content = torch.load(good, weights_only=True)
    for name, value in content["model"].items():
        if name.endswith("conv1.weight"):
            value.view(-1)[0] = float("nan")
    save_checkpoint(path, content)


def of_odd_types(path, good):
    save_checkpoint(path, {"model": [1], "settings": {"model.mlp": 3}, "num_classes": "x"})


RESUMING = []


def resuming(change, during=contextlib.nullcontext):
    """The training's own model.pth, set back to the middle, with a change; and what holds while it goes on."""

    def make(case):
        path = case.out / "model.pth"
        content = {**torch.load(path, weights_only=True), "epoch": 1}
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
    """A change for `beton`: one number of the header, of a record, or of the table (by column)."""

    def change(header, records, table):
        target = {"header": header, "record": records, "table": table}[part]
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


def in_use(case):
    """Another run is writing into the output folder."""
    return locked(case.out / ".lock", "another run")


Fault = namedtuple("Fault", "name command make texts code")


def fault(name, command, make, *texts, code=2):
    return Fault(name, command, make, texts, code)


BAD_IMAGE = "c0_00.JPEG: cannot be read as an image"
IDX = "--idx-path"
FAULTS = [
    # Images. c0_00 is the first of set A; c0_08 is public.
    *(
        fault(f"{what} image", command, image("c0/c0_00.JPEG", content), BAD_IMAGE)
        for what, content in (("unreadable", b"no image"), ("empty", b""))
        for command in ("beton", "attack", "probe")
    ),
    *(fault("cut image", command, image("c0/c0_00.JPEG", cut), BAD_IMAGE, "truncated")
      for command in ("beton", "attack", "probe")),
    fault("unreadable public image", "rcdm", image("c0/c0_08.JPEG", b"no image"), "c0_08.JPEG: cannot be read"),
    fault("cut public image", "attack", image("c0/c0_08.JPEG", cut), "c0_08.JPEG: cannot be read as an image"),
    *(
        fault("image of 400 million pixels", command, image("c0/c0_00.JPEG", drawn((20000, 20000), "1")), BAD_IMAGE,
              "400000000 pixels")
        for command in ("beton", "attack", "probe")
    ),
    *(
        fault(f"image of {size[0]} x {size[1]}", command, image(name, drawn(size)), text, code=0)
        for size in ((1, 1), (20000, 1), (1, 20000))
        for command, name, text in (
            ("beton", "c0/c0_00.JPEG", "x.beton"),
            ("attack", "c0/c0_00.JPEG", "set A: 11 of 12 images attacked (1 no crop larger than min_px"),
            ("attack", "c0/c0_08.JPEG", "12 public images"),
            ("probe", "c0/c0_00.JPEG", "training: top-1"),
        )
    ),
    fault("unreadable image left out", "beton",
          lambda case: (image("c0/c0_00.JPEG", b"no image")(case), case.flags.update({"skip-unreadable": ""})) and None,
          "1 images cannot be read and are left out", code=0),
    *(fault("unreadable image left out", command,
            lambda case: (image("c0/c0_00.JPEG", cut)(case), case.flags.update(skip_unreadable="")) and None,
            text, code=0)
      for command, text in (("attack", "11 images of set A"), ("probe", "1 of 12 images"))),
    fault("unreadable image left out", "rcdm",
          lambda case: (image("c0/c0_08.JPEG", cut)(case), case.flags.update(skip_unreadable="")) and None,
          "1 of 12 images cannot be read", "11 images, 4 per step", code=0),
    fault("other images than before", "rcdm",
          lambda case: (image("c0/c0_08.JPEG", cut)(case), case.flags.update(skip_unreadable="")) and None,
          "--images", "was trained with", "another --out_dir"),
    # Classes.
    *(
        fault(f"class {what}", command, make, "made for another image folder", text)
        for what, make, text in (("missing", class_gone, "first is c1"), ("added", class_added, "first is c00"))
        for command in ("beton", "attack", "probe")
    ),
    *(fault("class without images", command, class_empty, "no image in c9")
      for command in ("partition", "beton", "attack", "probe")),
    *(fault("no class", command, no_class, "expected class folders") for command in ("partition", "attack")),
    fault("classes of one image", "partition", classes_of_one_image, "classes too small for it: 3", code=0),
    fault("class without boxes", "partition", class_without_boxes, "classes without XML: 1 (c1)", code=0),
    fault("no boxes", "partition", no_boxes, "--bbox_dir", "no XML there belongs to an image"),
    fault("no boxes", "attack", no_boxes, "--imgnet_bbox_pth", "no XML there belongs to an image"),
    # Index files.
    fault("index of another data set", "beton", other_data_set("idx-path"), IDX, "made for another image folder"),
    fault("index of another data set", "attack", other_data_set("bbox_A_idx_pth"), "--bbox_A_idx_pth",
          "made for another image folder"),
    fault("index of another data set", "probe", other_data_set("train_idx_pth"), "--train_idx_pth",
          "made for another image folder"),
    *(
        fault(f"index {what}", "beton", index("idx-path", content), IDX, text)
        for what, content, text in (
            ("out of range", np.array([0, 36]), "images 0 to 35"),
            ("negative", np.array([-1, 2]), "from -1 to 2"),
            ("too large for int64", np.array([2**64 - 1], np.uint64), "images 0 to 35"),
            ("duplicated", np.array([3, 4, 3]), "holds an index twice"),
            ("empty", np.array([], np.int64), "holds no index"),
            ("of decimals", np.array([0.0, 1.0]), "float64"),
            ("of two dimensions", np.zeros((2, 2), int), "(2, 2)"),
            ("of one number", np.array(3), "expected a row"),
            ("of true and false", np.array([True, False]), "bool"),
            ("of objects with code", array_with_code, "not an .npy file"),
            ("of pickled code", pickle.dumps(Payload()), "not an .npy file"),
            ("cut", b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'for", "not an .npy file"),
            ("without bytes", b"", "not an .npy file"),
            ("of other content", b"1, 2, 3\n", "not an .npy file"),
            ("in an archive", archive, "an archive"),
            ("of a million billion", enormous, "not an .npy file"),
        )
    ),
    *(
        fault("index duplicated", command, index(flag, np.array([0, 1, 0])), f"--{flag}", "holds an index twice")
        for command, flag in (("attack", "bbox_A_idx_pth"), ("attack", "public_idx_pth"), ("probe", "train_idx_pth"),
                              ("rcdm", "dataset_indices"))
    ),
    fault("index empty", "probe", index("train_idx_pth", np.array([], int)), "--train_idx_pth", "holds no index"),
    fault("index empty", "probe", index("val_idx_pth", np.array([], int)), "--val_idx_pth", "holds no index"),
    fault("index empty", "attack", index("bbox_B_idx_pth", np.array([], int)), "--bbox_B_idx_pth", "holds no index"),
    fault("index empty", "attack", index("public_idx_pth", np.array([], int)), "--k 7", "only 0 images"),
    fault("index in both sets", "attack", index("bbox_A_idx_pth", np.array([4, 5])), "must be disjoint"),
    fault("index of a partition that was killed", "beton", unfinished_partition, "did not finish", "rerun it"),
    fault("k larger than the public set", "attack", changed(k=13), "--k 13", "only 12 images"),
    # Checkpoints.
    *(
        fault(f"checkpoint {what}", command, checkpoint(flag, content), f"--{flag}", *texts)
        for command, flag in (("attack", "model_B_pth"), ("probe", "model_pth"))
        for what, content, texts in (
            ("without bytes", b"", ["not a checkpoint"]),
            ("of other content", b"epoch 1", ["not a checkpoint"]),
            *((f"cut to {share:.0%}", cut_to(share), ["not a checkpoint"]) for share in (0.001, 0.37, 0.9, 0.999)),
            ("with code", with_code, ["not a checkpoint", "never run"]),
            ("of bare code", bare_code, ["not a checkpoint", "never run"]),
            ("of odd types", of_odd_types, ["does not hold the network"]),
        )
    ),
    fault("checkpoint missing", "rcdm", changed(ssl_model_pth=ABSENT), f"--ssl_model_pth {ABSENT}: no such file"),
    fault("checkpoint cut to 90%", "rcdm", checkpoint("ssl_model_pth", cut_to(0.9)), "--ssl_model_pth",
          "not a checkpoint"),
    fault("checkpoint with NaN", "attack", checkpoint("model_A_pth", not_finite), "--model_A_pth", "not finite"),
    fault("checkpoint with NaN", "probe", checkpoint("model_pth", not_finite), "--model_pth", "not finite"),
    *(fault(f"model.pth cut to {share:.0%}", "training", resuming(resume_cut(share)), "model.pth", "not a checkpoint")
      for share in (0.0, 0.2, 0.77, 0.9999)),
    *(fault(f"model.pth without {key}", "training", resuming(resume_without(key)), "model.pth", text)
      for key, text in (("settings", "not written by this program"), ("optimizer", "does not hold the run"),
                        ("train_set", "does not hold the run"))),
    fault("model.pth with code", "training", resuming(resume_code), "model.pth", "never run"),
    fault("model.pth with NaN", "training", resuming(resume_not_finite), "the loss is nan", "checkpoint is kept"),
    # Betons.
    *(fault(f"beton cut to {share:.1%}", "training", beton(cut_at(share)), "bad.beton: not a complete .beton")
      for share in (0, 0.0001, 0.01, 0.3, 0.5, 0.9, 0.99999)),
    *(
        fault(f"beton with {what}", "training", beton(change), "bad.beton: not a complete .beton", text)
        for what, change, text in (
            ("another version", put("header", "version", 3), "version 3"),
            ("no fields", put("header", "num_fields", 0), "of types"),
            ("65535 fields", put("header", "num_fields", 65535), "version"),
            ("too many samples", put("header", "num_samples", 2**63), "truncated"),
            ("a table beyond its end", put("header", "alloc_table_ptr", 2**64 - 1), "truncated"),
            ("a table in the header", put("header", "alloc_table_ptr", 0), "images lie beyond its end"),
            ("an image beyond its end", put("table", 1, 2**40), "beyond its end"),
            ("an image that wraps around", put("table", 1, 2**64 - 8), "beyond its end"),
            ("an image of 16 EiB", put("table", 2, 2**64 - 1), "beyond its end"),
            ("a record of no image", put("record", "data_ptr", 12345), "tables disagree"),
            ("a wrong width", put("record", "width", 9), "tables disagree"),
            ("an image of no pixels", put("record", "height", 0), "no pixels"),
            ("an unknown mode", put("record", "mode", 7), "neither raw nor jpg"),
            ("a negative label", put("record", "label", -1), "labels from -1"),
            ("an enormous label", put("record", "label", 2**62), f"to {2**62}"),
        )
    ),
    fault("beton with raw called jpg", "training", elsewhere(beton(put("record", "mode", 0))), "cannot be decoded"),
    fault("beton of too few images", "training", changed(**{"training.batch_size": 13}), "only 12 images"),
    # The place to write to.
    fault("full disk (a limit)", "attack", lambda case: limit(20_000), "cannot be written"),
    *(fault("full disk (a limit)", command, lambda case: limit(200), text) for command, text in (
        ("partition", "bbox_A.npy: cannot be written"), ("beton", "x.beton: cannot be written"),
        ("attack", "cannot be written"),
        ("probe", ".pth: cannot be written"), ("rcdm", "cannot be written"))),
    fault("full disk (a limit)", "training", resuming(lambda path, content: save_checkpoint(path, content),
          lambda: limit(10**6)), "cannot be written", "disk full"),
    *(fault("full disk", command, mounted("full"), "cannot be written") for command in SCRIPTS),
    *(fault("read-only folder", command, mounted("ro"), "Read-only file system") for command in SCRIPTS),
    *(fault("file in the place of the folder", command, a_file_there, "out") for command in SCRIPTS),
    *(fault("folder in use", command, in_use, f"--{SCRIPTS[command][1]}", f"process {os.getpid()}", "writes there now")
      for command in ("partition", "training", "attack", "probe", "rcdm")),
]  # fmt: skip


def contents(folder):
    """What a folder holds: {path: (size, time of the last change)}; {} if it is none."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def case(earlier, tmp_path):
    """case(command): a copy of data and of the command's finished output, which the command would write again."""
    made = []

    def prepare(command):
        data = shutil.copytree(earlier / "data", tmp_path / "data")
        out = tmp_path / "out"
        shutil.copytree(
            earlier / "done" / command,
            out,
            copy_function=lambda a, b: os.link(a, b) if a.endswith((".pth", ".pt", ".beton")) else shutil.copy2(a, b),
        )
        made.append(
            SimpleNamespace(data=data, out=out, flags=settings(command, data, earlier / "made", out), mounted=False)
        )
        return made[0]

    yield prepare
    if made and made[0].mounted:
        subprocess.run(["umount", made[0].out], check=True)


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row.command}: {row.name}".replace(" ", "_"))
def test_faults(case, row):
    it = case(row.command)
    if row.code == 0:  # it writes; not over what is there
        flag = SCRIPTS[row.command][1]
        it.flags[flag] = it.out.with_name("new") / Path(it.flags[flag]).relative_to(it.out)
    context = row.make(it) or contextlib.nullcontext()
    before = contents(it.out)
    with context:
        result = call(row.command, it.flags)
    text = result.stderr if row.code else result.stdout
    assert result.returncode == row.code, result.stderr
    assert "Traceback" not in result.stderr and not Payload.mark.exists()
    if row.code:
        (line,) = [line for line in text.splitlines() if "error: " in line]
        assert line == text.splitlines()[-1] and all(part in line for part in row.texts), line
        after = contents(it.out)
        # A training that goes on writes its settings again, and drops the log's lines of epochs that it trains again.
        goes_on = {str(it.out / name) for name in ("params.json", "log") if row.make in RESUMING}
        goes_on.add(str(it.out / "crops.npz"))  # kept to save time; made again where the boxes are others
        assert all(after.get(path) == value for path, value in before.items() if path not in goes_on)
        assert not [path for path in contents(it.out) if ".tmp." in path]
    else:
        assert all(part in text for part in row.texts), text


# Annotations: one run of the attack over all of them, each of another image. What is wrong is counted.

BOX = "<object><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
GOOD = "<annotation>" + BOX.format(5, 5, 25, 25) + "</annotation>"
BOMB = '<!DOCTYPE x [<!ENTITY a "{}">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi")
) + "]><annotation>&i;" + BOX.format(5, 5, 25, 25) + "</annotation>"  # fmt: skip
UNREADABLE, NO_OBJECT, REVERSED = "unreadable XML", "no object in the XML", "reversed box"
TOO_SMALL = "no crop larger than min_px"
ANNOTATIONS = {
    "good": (GOOD, None),
    "absent": (None, "no XML"),
    "without bytes": ("", UNREADABLE),
    "malformed": ("<annotation><object>", UNREADABLE),
    "not XML": (b"\x00\x01\xff" * 50, UNREADABLE),
    "entities that grow": (BOMB.format("a" * 10), UNREADABLE),
    "entities that grow, in UTF-16": (BOMB.format("a" * 10).encode("utf-16"), UNREADABLE),
    "entity of another file": (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + GOOD.replace("<object>", "&a;<object>"),
        UNREADABLE,
    ),
    "document type on the network": ('<!DOCTYPE x SYSTEM "http://localhost:9/x.dtd">' + GOOD, UNREADABLE),
    "unknown encoding": ('<?xml version="1.0" encoding="none"?>' + GOOD, UNREADABLE),
    "of 3 MB": (GOOD.replace("<object>", "<x/>" * 750_000 + "<object>"), UNREADABLE),
    "another root": ("<html><object/></html>", NO_OBJECT),
    "no object": ("<annotation></annotation>", NO_OBJECT),
    "box without numbers": (GOOD.replace("25", "wide"), UNREADABLE),
    "box of NaN": (GOOD.replace("25", "nan"), UNREADABLE),
    "box of infinity": (GOOD.replace("25", "1e999"), UNREADABLE),
    "box without a side": (GOOD.replace("<xmin>5</xmin>", ""), UNREADABLE),
    "box reversed": ("<annotation>" + BOX.format(30, 5, 20, 25) + "</annotation>", REVERSED),
    "box negative": ("<annotation>" + BOX.format(-30, -5, 20, 25) + "</annotation>", None),
    "box beyond the width": ("<annotation>" + BOX.format(5, 5, 2000, 25) + "</annotation>", TOO_SMALL),
    "box beyond the height": ("<annotation>" + BOX.format(5, 5, 25, 2000) + "</annotation>", None),
    "box without area": ("<annotation>" + BOX.format(20, 20, 20, 20) + "</annotation>", None),
    "box over all": ("<annotation>" + BOX.format(0, 0, 50, 60) + "</annotation>", TOO_SMALL),
    "box of a thousand digits": (GOOD.replace("25", "9" * 1000), UNREADABLE),
}


@pytest.fixture(scope="module")
def annotated(earlier, tmp_path_factory):
    """(listing, folder of boxes, {name: index}, the attack's counts of A and B together, attacked indices)."""
    root = tmp_path_factory.mktemp("annotated")
    data, out = shutil.copytree(earlier / "data", root / "data"), root / "out"
    listing = list_images(data / "images")
    attacked = np.concatenate([np.load(data / "index" / "4_per_class" / f"bbox_{name}.npy") for name in "AB"])
    places = dict(zip(ANNOTATIONS, attacked.tolist()))
    assert len(places) == len(ANNOTATIONS) <= len(attacked)
    for name, place in places.items():
        path = data / "boxes" / "Annotation" / listing.classes[listing.labels[place]] / f"{listing.stem(place)}.xml"
        content, _ = ANNOTATIONS[name]
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = call("attack", settings("attack", data, earlier / "made", out))
    assert result.returncode == 0, result.stderr
    counts = json.loads((out / "results.json").read_text())["counts"]
    counted = {name: counts["A"][name] + counts["B"][name] for name in counts["A"]}
    found = np.concatenate([np.load(out / f"A_attk_{name}_attk_idxs.npy") for name in "AB"])
    return listing, data / "boxes", places, counted, found


@pytest.mark.parametrize("name", ANNOTATIONS, ids=lambda name: name.replace(" ", "_"))
def test_annotations_that_cannot_be_used_are_counted(annotated, name):
    listing, boxes, places, counted, found = annotated
    reason = ANNOTATIONS[name][1]
    assert (places[name] in found) == (reason is None)
    counts = take_crops(listing, [places[name]], CropRule(min_px=10), Annotations(boxes, listing)).counts
    assert counts["attacked" if reason is None else reason] == 1 == counts["images"]
    same = [other for other, (_, its_reason) in ANNOTATIONS.items() if its_reason == reason]
    if reason is not None:
        assert counted[reason] == len(same)


def test_nothing_outside_the_folders_is_read(annotated):
    """An image called like a path upwards has its annotation beside the others' all the same."""
    listing, boxes = annotated[:2]
    for stem in ("..", "...", "..%2f..%2fx"):
        listing.paths[0] = f"c0/{stem}.JPEG"
        (boxes / "Annotation" / "c0" / f"{stem}.xml").write_text(GOOD)
        with contextlib.suppress(Unusable):  # what begins with a dot is hidden
            path = Annotations(boxes, listing).path(0)
            assert Path(os.path.normpath(path)).parent == boxes / "Annotation" / "c0", path


def test_names_with_spaces_quotes_line_breaks_and_other_letters_work_through_all_stages(earlier, tmp_path):
    """In folders, classes and images; $(...) and ; would run something if any stage gave a name to a shell."""
    root = tmp_path / 'it\'s a "näme"\n$(touch x); *'
    data = draw_tree(root / "data")
    for number, name in enumerate(("a class; 'x'", 'b "é"\nc', "ü*$(touch y)")):
        for folder in (data / "images", data / "boxes" / "Annotation"):
            (folder / f"c{number}").rename(folder / name)
            for path in (folder / name).iterdir():
                path.rename(path.with_name(path.name.replace(f"c{number}_", f"{name} ")))
    made, out = root / "made", root / "out"
    assert call("partition", settings("partition", data, made, data / "index")).returncode == 0
    folders = {"IMAGENET_DATASET_DIR": data / "images", "INDEX_FOLDER": data / "index", "BETONS_FOLDER": made}
    for script in ("gen_betons.sh", "gen_val_betons.sh"):
        result = subprocess.run(
            [ROOT / script], env={**os.environ, **folders}, capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
    assert len(Beton(made / "val.beton")) == 12
    for model in "AB":
        (made / f"4_per_class_{model}.beton").rename(made / "train.beton")
        result = call("training", settings("training", data, made, out / model))
        assert result.returncode == 0, result.stderr
        shutil.move(out / model / "model_ep2.pth", made / f"{model}.pth")
    for command in ("attack", "probe"):
        folder = out / {"attack": "NN_attk_simclr_4pc_2ep", "probe": "lp_simclr_4pc_2ep"}[command]
        result = call(command, settings(command, data, made, folder))
        assert result.returncode == 0, result.stderr
    words = {"model": "simclr", "k_neighb": 7, "epoch_sweep_dataset": 4, "dataset_sweep_epoch": 2}
    words |= {"attack_fname": "out", "attk_folder_path": out, "lin_probe_folder_path": out, "save_path": out / "plot"}
    result = run_here("plot_quant_results.py", *flags(words))
    assert result.returncode == 0 and (out / "plot" / "attk_epochs_acc_top1.png").exists(), result.stderr
    assert not [path for path in (tmp_path, ROOT, Path.cwd()) for name in "xy" if (path / name).exists()]


# Kills: each command dies at a random instant; nothing half-written has its final name, and the same command finishes.

KILLS = 20
MORE = {  # so that a training writes often
    "training": {
        **{"training.epochs": 4, "training.eval_freq": 2, "logging.snapshot_freq": 2, "logging.checkpoint_freq": 1}
    },
}


def call_and_leave(command, values):
    result = call(command, values)
    os.write(2, result.stderr.encode())
    os._exit(result.returncode)


@pytest.fixture(scope="module")
def fork():
    """fork(command, values): starts the command in a process that need not import anything first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["helpers", "torchvision", "pandas", "cv2", "submitit", "dejavu_utils.data.loader", "diffusers"]
    )

    def start(command, values):
        process = context.Process(target=call_and_leave, args=(command, values))
        process.start()
        return process

    warm = start("partition", {"help": ""})
    warm.join()
    assert warm.exitcode == 0
    return start


def comparable(value):
    """Without what differs from run to run: times and folders."""
    names = {"settings", "timestamp", "relative_time", "time", "images_per_second"}
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in names}
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if torch.is_tensor(value):
        return str(value.dtype), value.shape, hashlib.sha256(value.numpy().tobytes()).hexdigest()
    return value


def read(path):
    """What a complete file says; an error for a half one."""
    if path.suffix in (".pth", ".pt"):
        return comparable(torch.load(path, weights_only=True))
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture).tolist()
    if path.suffix == ".npy":
        return np.load(path).tolist()
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name].tolist() for name in archive.files}
    if path.suffix == ".beton":
        return len(Beton(path)), path.read_bytes()
    if path.name == "params.json":
        return sorted(json.loads(path.read_text()))
    if path.suffix == ".json":
        return comparable(json.loads(path.read_text()))
    return path.read_text()


def finished(folder):
    """{name: what it says} of everything below a folder, hidden files too; a log line by line."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    logs = {
        name: [comparable(json.loads(line)) for line in found.pop(name).open()] for name in ("log",) if name in found
    }
    return {**{name: read(path) for name, path in found.items()}, **logs}


@pytest.fixture(scope="module")
def undisturbed(earlier, fork):
    """undisturbed(command): (seconds, what it writes), each command run once."""
    known = {}

    def run(command):
        if command not in known:
            out = earlier / "undisturbed" / command
            start, process = time.monotonic(), fork(command, in_full(command, earlier, out))
            process.join()
            assert process.exitcode == 0
            known[command] = time.monotonic() - start, finished(out)
        return known[command]

    return run


def in_full(command, earlier, out):
    return {**settings(command, earlier / "data", earlier / "made", out), **MORE.get(command, {})}


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= len(SCRIPTS))) for seed in range(KILLS)]
)
def test_killed_at_a_random_instant(earlier, fork, undisturbed, tmp_path, seed):
    command = list(SCRIPTS)[seed % len(SCRIPTS)]
    seconds, expected = undisturbed(command)
    values = in_full(command, earlier, tmp_path / "out")
    rng, died = np.random.default_rng(seed), []
    while not died or rng.random() < 0.3:  # some die more than once
        process, wait = fork(command, values), rng.uniform(0, seconds)
        process.join(wait)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it was faster this time: from the start
            assert process.exitcode == 0
            shutil.rmtree(tmp_path / "out")
            seconds /= 2
            continue
        died.append(f"{wait:.3f} s")
        for path in (tmp_path / "out").rglob("*"):
            if path.is_file() and ".tmp." not in path.name and path.name != "log" and path.suffix:
                read(path)
    print(f"seed {seed}: {command} killed after {', '.join(died)} of {undisturbed(command)[0]:.3f} s")
    process = fork(command, values)
    process.join()
    assert process.exitcode == 0
    assert finished(tmp_path / "out") == expected
