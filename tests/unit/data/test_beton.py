"""The .beton format against files that FFCV wrote (tests/data/beton), and the scripts that write betons."""

import hashlib
import lzma
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from helpers import assert_one_line_error, draw_tree, in_folder, noise, ok, options, refused, rows_of, run_example
from PIL import Image

from dejavu_utils.data.beton import _FIELD, _HEADER, Beton, Encoding, shrink, write_beton
from dejavu_utils.errors import InputError

DATA = Path(__file__).parents[2] / "data/beton"
MODES = {"raw": {}, "jpg": {}, "smart": {"smart_threshold": 20000}}


@pytest.fixture(scope="module")
def source():
    arrays = np.load(DATA / "source_images.npz")
    return [arrays[f"arr_{i}"] for i in range(7)], arrays["labels"]


@pytest.fixture(scope="module", params=MODES)
def theirs(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / f"{request.param}.beton"
    path.write_bytes(lzma.open(DATA / f"{request.param}.beton.xz").read())
    return request.param, path, np.load(DATA / f"{request.param}_metadata.npz")


def test_reads_what_ffcv_wrote(theirs, source):
    mode, path, metadata = theirs
    images, labels = source
    for beton in (Beton(path), Beton(path, in_memory=True), pickle.loads(pickle.dumps(Beton(path)))):
        assert len(beton) == 7 and beton.num_classes == 1000
        np.testing.assert_array_equal(beton.labels, labels)
        np.testing.assert_array_equal(beton.sizes, np.stack([metadata["height"], metadata["width"]], axis=1))
        for index, image in enumerate(images):
            read = beton.read(index)
            assert read.shape == (*beton.sizes[index], 3)
            if metadata["mode"][index] == 1 and max(image.shape) <= 512:
                np.testing.assert_array_equal(read, image)
            else:
                assert np.abs(read.astype(int) - shrink(image, 512).astype(int)).mean() < 12  # jpg


def test_writes_what_ffcv_writes(theirs, source, tmp_path):
    """Raw: every byte. With JPEGs, whose encoders differ: header, fields, sizes and modes."""
    mode, path, metadata = theirs
    images, labels = source
    write_beton(
        tmp_path / "ours.beton", images, labels, Encoding(mode, max_resolution=512, **MODES[mode]), page_size=2**21
    )
    ours, expected = (tmp_path / "ours.beton").read_bytes(), path.read_bytes()
    records = slice(24 + 2 * 1041, 24 + 2 * 1041 + 7 * 24)
    assert ours[: records.start] == expected[: records.start]
    if mode == "raw":
        assert ours == expected
    beton = Beton(tmp_path / "ours.beton")
    np.testing.assert_array_equal(beton.labels, labels)
    np.testing.assert_array_equal(beton.sizes, np.stack([metadata["height"], metadata["width"]], axis=1))
    modes = np.frombuffer(ours[records], np.uint8)[::24]
    np.testing.assert_array_equal(modes, metadata["mode"])


def test_no_image_crosses_a_page_and_pages_grow(tmp_path):
    images = noise([(500, 400 + 7 * i) for i in range(9)] + [(900, 900)])
    images.insert(4, images.pop())  # 2.4 MB: more than the smallest page
    write_beton(tmp_path / "x.beton", images, range(10), page_size=2**21, num_workers=3)
    data = (tmp_path / "x.beton").read_bytes()
    page_size = int.from_bytes(data[4:8], "little")
    assert page_size == 2**22
    table = np.frombuffer(data[int.from_bytes(data[16:24], "little") :], "<u8").reshape(-1, 3)
    assert (table[:, 1] // page_size == (table[:, 1] + table[:, 2] - 1) // page_size).all()
    beton = Beton(tmp_path / "x.beton")
    assert all(np.array_equal(beton.read(i), image) for i, image in enumerate(images))


@pytest.mark.parametrize(
    "shape, expected", [((561, 300), (511, 273)), ((512, 512), (512, 512)), ((375, 500), (375, 500))]
)
def test_sides_are_truncated_in_floating_point(shape, expected):
    assert shrink(np.zeros((*shape, 3), np.uint8), 512).shape[:2] == expected


def test_bytes_do_not_depend_on_the_number_of_workers(source, tmp_path):
    files = [tmp_path / f"{workers}.beton" for workers in (1, 4)]
    for workers, path in zip((1, 4), files):
        write_beton(path, *source, Encoding("jpg", max_resolution=100), num_workers=workers)
    assert files[0].read_bytes() == files[1].read_bytes()


def with_fields(path, fields, images, labels):
    """A .beton as FFCV lays one out. fields: (name, type); empty byte strings lie where the next content begins."""
    image = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
    parts = {0: "<f8", 1: "<i8", 2: image, 3: np.dtype([("ptr", "<u8"), ("size", "<u8")]), 4: "<u8"}
    records = np.zeros(len(images), np.dtype([(name, parts[kind]) for name, kind in fields], align=True))
    page, content, table = 2**21, b"", []
    for row, pixels in enumerate(images):
        for name, kind in fields:
            position = page + len(content)
            if kind == 2:
                data = pixels.tobytes()
                records[name][row] = (1, pixels.shape[1], pixels.shape[0], position)
            elif kind in (3, 4):
                data = b"text" if row else b""
                records[name][row] = (position, len(data)) if kind == 3 else position
            else:
                records[name][row] = labels[row] if name != "number" else 1000 + row
                continue
            content += data
            table.append((row, position, len(data)))
    descriptors = np.zeros(len(fields), [("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
    descriptors["name"], descriptors["type_id"] = zip(*fields)
    header = np.array([(2, len(fields), page, len(images), page + len(content))], "<u2,<u2,<u4,<u8,<u8")
    start = header.tobytes() + descriptors.tobytes() + records.tobytes()
    path.write_bytes(start.ljust(page, b"\0") + content + np.array(table, "<u8").tobytes())


FIELDS = """image=2 label=1
    label=1 image=2
    path=3 image=2 weight=0 label=1 features=4
    number=1 label=1 picture=2 path=3
    pic=2 path=3 class=1"""


@pytest.mark.parametrize("fields", FIELDS.splitlines())
def test_of_further_fields_image_and_label_are_taken(tmp_path, fields):
    fields = [(name, int(kind)) for name, kind in options(fields).items()]
    images = noise((4 + row, 7) for row in range(5))
    with_fields(tmp_path / "x.beton", fields, images, [3, 1, 0, 2, 2])
    beton = Beton(tmp_path / "x.beton")
    assert beton.labels.tolist() == [3, 1, 0, 2, 2]
    for row, image in enumerate(images):
        np.testing.assert_array_equal(beton.read(row), image)


def test_fields_that_leave_open_what_is_meant_are_named(tmp_path):
    fields = [("image", 2), ("first", 1), ("second", 1)]
    for given, message in ((fields, "one label, or one of that name"), (fields[1:2], "one image")):
        with_fields(tmp_path / "x.beton", given, [np.zeros((4, 5, 3), np.uint8)], [0])
        with refused(f"its fields are .*{given[-1][0]}.*expected {message}"):
            Beton(tmp_path / "x.beton")


@pytest.mark.ffcv
def test_ffcv_reads_what_is_written_here(source, tmp_path):
    pytest.importorskip("ffcv.reader", reason="ffcv is not installed")
    images, labels = source
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    images = [image for image in images if image.shape == images[0].shape] * 3  # its simplest decoder wants one size
    labels = np.arange(len(images))
    write_beton(tmp_path / "x.beton", images, labels, page_size=2**21)
    loader = Loader(
        str(tmp_path / "x.beton"),
        batch_size=1,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    found = [(batch[0][0].numpy().copy(), int(batch[1])) for batch in loader]
    assert [label for _, label in found] == labels.tolist()
    assert all(np.array_equal(image, expected) for (image, _), expected in zip(found, images))


# The scripts.


@pytest.fixture
def folders(tmp_path):
    for index, image in enumerate(noise([(30, 40)] * 6)):
        Image.fromarray(image).save(in_folder(tmp_path / f"images/class_{index % 2}/{index}.JPEG"))
    for n in (1, 2):
        (tmp_path / f"index/{n}_per_class").mkdir(parents=True)
        np.save(tmp_path / f"index/{n}_per_class/train_A.npy", np.array([0, 5])[:n])
        np.save(tmp_path / f"index/{n}_per_class/train_B.npy", np.array([1, 3])[:n])
    np.save(tmp_path / "index/val_set.npy", np.array([2, 4]))
    return tmp_path


def run(folders, script, *arguments, **variables):
    places = {"IMAGENET_DATASET_DIR": "images", "INDEX_FOLDER": "index", "BETONS_FOLDER": "betons"}
    environment = {variable: folders / name for variable, name in places.items()}
    return run_example(f"../{script}", *arguments, **{"PYTHON": sys.executable, **environment, **variables})


def test_gen_scripts_write_what_is_missing(folders):
    ok(run(folders, "gen_betons.sh", DATASETS="2"))
    assert len(list((folders / "betons").glob("2_per_class_[AB].beton*"))) == 4  # each with its .images.npz
    assert Beton(folders / "betons/2_per_class_A.beton").labels.tolist() == [0, 1]
    before = (folders / "betons/2_per_class_A.beton").stat().st_mtime_ns
    result = ok(run(folders, "gen_betons.sh", "--write-mode", "jpg"))
    assert "there already" in result.stdout
    assert (folders / "betons/2_per_class_A.beton").stat().st_mtime_ns == before
    assert (folders / "betons/1_per_class_B.beton").exists()
    np.save(folders / "index/2_per_class/train_A.npy", np.array([0, 4]))
    result = run(folders, "gen_betons.sh")
    assert_one_line_error(result, "2_per_class_A.beton: is there already, but holds other images than", "FORCE=1")
    ok(run(folders, "gen_betons.sh", FORCE="1"))
    assert (folders / "betons/2_per_class_A.beton").stat().st_mtime_ns > before
    ok(run(folders, "gen_val_betons.sh"))
    val = Beton(folders / "betons/val.beton")
    with Image.open(folders / "images/class_0/4.JPEG") as image:
        np.testing.assert_array_equal(val.read(0), np.asarray(image))


def test_crops_are_written_beside_the_training_sets(folders):
    draw_tree(folders / "boxed", classes=2, per_class=4, boxed=4)
    for side, indices in (("A", [0, 5]), ("B", [1, 6])):
        np.save(folders / f"index/1_per_class/bbox_{side}.npy", np.array(indices))
    variables = {"CROPS": "1", "DATASETS": "1", "IMAGENET_DATASET_DIR": str(folders / "boxed/images")}
    assert_one_line_error(
        run(folders, "gen_betons.sh", **variables, IMAGENET_BBOX_ANNOTATIONS=""),
        "the variable IMAGENET_BBOX_ANNOTATIONS is not set",
    )
    variables["IMAGENET_BBOX_ANNOTATIONS"] = str(folders / "boxed/boxes")
    ok(run(folders, "gen_betons.sh", "--min-px", "8", **variables))
    assert {p.name for p in (folders / "betons").glob("*.beton")} == {f"1_per_class_{s}_crops.beton" for s in "AB"}
    assert Beton(folders / "betons/1_per_class_B_crops.beton").labels.tolist() == [0, 1]


@rows_of(
    "variables, texts",
    """
    INDEX_FOLDER=               -> gen_betons.sh ;; the variable INDEX_FOLDER is not set
    DATASETS=7                  -> gen_betons.sh ;; 7_per_class/train_A.npy: no such file
    IMAGENET_DATASET_DIR=ABSENT -> gen_val_betons.sh ;; IMAGENET_DATASET_DIR ABSENT: no such folder
""",
)
def test_gen_scripts_name_what_is_missing(folders, variables, texts):
    assert_one_line_error(run(folders, texts[0], **variables), texts[1])


def test_unreadable_images_can_be_left_out(folders):
    (folders / "images/class_0/0.JPEG").write_bytes(b"not an image")
    result = ok(run(folders, "gen_betons.sh", "--skip-unreadable", DATASETS="2"))
    beton = Beton(folders / "betons/2_per_class_A.beton")
    assert beton.labels.tolist() == [1]
    with Image.open(folders / "images/class_1/5.JPEG") as image:
        np.testing.assert_array_equal(beton.read(0), np.asarray(image))
    side_file = folders / "betons/2_per_class_A.beton.skipped.txt"
    index, reason = side_file.read_text().rstrip().split("\t")
    assert index == "0" and "class_0/0.JPEG: cannot be read as an image" in reason
    assert "1 images cannot be read" in result.stdout and not list(side_file.parent.glob("*B.beton.skipped.txt"))


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_the_digest_is_made_while_the_file_is_written(tmp_path, mode):
    class WithBroken(list):
        def __getitem__(self, index):
            if index == 3:
                raise InputError("broken")
            return super().__getitem__(index)

    images = WithBroken(noise((150 + 3 * n, 200) for n in range(12)))
    encoding, path = Encoding(mode, jpeg_quality=99), tmp_path / "x.beton"
    skipped, digest = write_beton(path, images, range(12), encoding, num_workers=3, skip_unreadable=True)
    beton, data = Beton(path), path.read_bytes()
    assert list(skipped) == [3] and digest == beton.digest != beton.older_digest
    first = _HEADER.itemsize + 2 * _FIELD.itemsize
    tables = data[first : first + 11 * 24]
    heads, older_heads = b"", b""
    for start in range(0, len(tables), 24):
        pointer = int.from_bytes(tables[start + 5 : start + 13], "little")
        size = beton.sizes[start // 24].prod() * 3 if mode == "raw" else data.index(b"\xff\xd9", pointer) + 2 - pointer
        heads += hashlib.sha256(data[pointer : pointer + min(size, 2**14)]).digest()
        older_heads += data[pointer : pointer + min(size, 2**16)]
    assert beton.older_digest == hashlib.sha256(tables + older_heads).hexdigest()
    assert digest == hashlib.sha256(heads + tables).hexdigest()


def test_a_disk_that_is_too_small_is_named_early(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**8))
    images, image = mock.MagicMock(), np.zeros((500, 500, 3), np.uint8)
    images.__len__.return_value, images.__getitem__.return_value = 5000, image
    with refused(r"x.beton: needs about 4.0 GB, but only 0.1 GB are free"):
        write_beton(tmp_path / "x.beton", images, np.zeros(5000))
    assert images.__getitem__.call_count < 1000 and not list(tmp_path.iterdir())
