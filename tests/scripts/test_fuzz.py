"""Property tests and fuzz: crops against a statement of the rule by pixels, box files, and damaged files of every kind.

`FUZZ=100 bash tests/run.sh tests/scripts/test_fuzz.py` tries a hundred times as many, other ones each time.
"""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers import noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dejavu_utils.checkpoint import load_checkpoint
from dejavu_utils.crops import background_crop
from dejavu_utils.data.annotations import read_annotation
from dejavu_utils.data.augment import View
from dejavu_utils.data.beton import Beton, Encoding, write_beton
from dejavu_utils.data.beton_loader import Batching, EvaluationLoader, NativeLoader
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import load_image
from dejavu_utils.networks.loading import load_network

FUZZ = int(os.environ.get("FUZZ", "1"))


def tries(examples):
    """So many inputs, always the same; FUZZ times as many others if that is set."""
    return settings(
        max_examples=examples * FUZZ,
        deadline=None,
        derandomize=FUZZ == 1,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


# Crops, by pixels: no formula in common with the code.

side = st.integers(1, 14)
edge = st.integers(-4, 18)
boxes = st.lists(st.tuples(edge, edge, edge, edge), min_size=1, max_size=4)


def covered(width, height, boxes):
    """bool (height, width): pixels under a box."""
    canvas = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        canvas[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return canvas


def strip_rectangles(width, height, boxes):
    """The paper's candidates, left to right and top to bottom: runs of free rows in strips between box edges."""
    hidden = covered(width, height, boxes)
    edges = sorted({0, width} | {min(max(x, 0), width) for box in boxes for x in (box[0], box[2])})
    for left, right in zip(edges, edges[1:]):
        free = [*~hidden[:, left], False]
        assert all((hidden[:, x] == hidden[:, left]).all() for x in range(left, right))
        top = None
        for y, is_free in enumerate(free):
            if is_free and top is None:
                top = y
            elif not is_free and top is not None:
                yield left, top, right, y
                top = None


@tries(400)
@given(width=side, height=side, boxes=boxes, min_px=st.integers(0, 8))
def test_paper_rule_by_pixels(width, height, boxes, min_px):
    crop = background_crop(width, height, boxes, min_px)
    if any(x1 < x0 or y1 < y0 for x0, y0, x1, y1 in boxes) or any(box[2] > width for box in boxes):
        assert crop is None
        return
    found = list(strip_rectangles(width, height, boxes))
    sides = [min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in found]
    if max(sides, default=0) <= min_px:
        assert crop is None
    else:
        assert crop == [r for r, s in zip(found, sides) if s == max(sides)][-1]


@tries(200)
@given(width=side, height=side, boxes=boxes)
def test_exact_rule_by_pixels(width, height, boxes):
    crop = background_crop(width, height, boxes, 0, "exact")
    if any(x1 < x0 or y1 < y0 for x0, y0, x1, y1 in boxes):
        assert crop is None
        return
    free = np.cumsum(np.cumsum(covered(width, height, boxes), axis=0), axis=1)
    free = np.pad(free, ((1, 0), (1, 0)))
    best = 0  # the largest square says how large the shorter side can be
    for n in range(1, min(width, height) + 1):
        if (free[n:, n:] - free[:-n, n:] - free[n:, :-n] + free[:-n, :-n] == 0).any():
            best = n
    assert (0 if crop is None else min(crop[2] - crop[0], crop[3] - crop[1])) == best
    if crop is not None:
        assert not covered(width, height, boxes)[crop[1] : crop[3], crop[0] : crop[2]].any()


# Box files.

SIDES = ("ymin", "xmin", "xmax", "ymax")
number = st.integers(-(10**6), 10**6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


PIECES = [" ", "\x00", "\ufeff", "<!DOCTYPE a [", "<!ENTITY a 'b'>", "<?xml version='1.0' encoding='utf-16'?>"]
PIECES += """<annotation> </annotation> <object> </object> <bndbox> </bndbox> <xmin> </xmin> 1 nan 1e999 &a; &amp; &#0;
    ]> <![CDATA[ ]]> é <!-- --> <x:y> <xmin xmlns:x=''""".split()
GOOD = (
    b"<annotation><object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    b"</annotation>"
)


def damaged(good):
    """Bytes near the good ones: some replaced, a part left out or written twice, an end cut off."""
    place = st.integers(0, max(len(good) - 1, 0))

    def damage(replaced, cut, twice):
        data = bytearray(good)
        for where, value in replaced:
            data[where] = value
        if cut is not None:
            start, stop = sorted(cut)
            data[start:stop] = data[start:stop] * 2 if twice else b""
        return bytes(data)

    replacements = st.lists(st.tuples(place, st.integers(0, 255)), max_size=6)
    return st.builds(damage, replacements, st.none() | st.tuples(place, place), st.booleans())


@tries(300)
@given(data=st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map(lambda p: "".join(p).encode()),
                      damaged(GOOD), damaged(GOOD.decode().encode("utf-16")), st.binary(max_size=200)))  # fmt: skip
def test_any_box_file_gives_boxes_or_its_error(folder, data):
    path = folder / "fuzz.xml"
    path.write_bytes(data)
    try:
        boxes, _ = read_annotation(path)
    except ValueError:
        return
    assert all(len(box) == 4 and all(type(v) is float and np.isfinite(v) for v in box) for box in boxes)


# Betons.


@pytest.fixture(scope="module")
def beton(folder):
    images = noise((5 + i, 7) for i in range(4))
    write_beton(folder / "good.beton", images, [0, 1, 2, 1], Encoding("smart", smart_threshold=130))
    return (folder / "good.beton").read_bytes()


@pytest.fixture(scope="module")
def places(beton):
    """(start, size) of every number in the header, the records and the table."""
    table = struct.unpack_from("<Q", beton, 16)[0]
    found = [(0, 2), (2, 2), (4, 4), (8, 8), (16, 8), (24, 1), (24 + 1041, 1)]
    for row in range(4):
        record = 24 + 2 * 1041 + 24 * row
        found += [(record + start, size) for start, size in ((0, 1), (1, 2), (3, 2), (5, 8), (16, 8))]
        found += [(table + 24 * row + start, 8) for start in (0, 8, 16)]
    return found


numbers = st.one_of(
    st.sampled_from([0, 1, 2, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 100),
)


def use(path):
    """Reads everything that a training reads."""
    found = Beton(path)
    for index in range(len(found)):
        image = found.read(index)
        assert image.dtype == np.uint8 and image.shape == (*found.sizes[index], 3)
    if len(found) >= 2:
        batching = Batching(2, 0, torch.device("cpu"))
        loader = NativeLoader(found, batching, [View()], seed=0)
        assert sum(len(labels) for _, labels in loader.epoch(0, 8)) == 2 * (len(found) // 2)
        loader.close()  # it would read on while the next example is written over the file
        assert sum(len(labels) for _, labels in EvaluationLoader(found, batching, 8)) == len(found)


@tries(150)
@given(
    changes=st.lists(st.tuples(st.integers(0, 38), numbers), min_size=1, max_size=3), cut=st.none() | st.floats(0, 1)
)
def test_any_beton_is_read_or_refused(folder, beton, places, changes, cut):
    data = bytearray(beton)
    for which, value in changes:
        start, size = places[which % len(places)]
        data[start : start + size] = (value % 256**size).to_bytes(size, "little")
    path = folder / "fuzz.beton"
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        use(path)
    except InputError as error:
        assert str(path) in str(error)


# Other files.


@pytest.fixture(scope="module")
def pictures():
    found = []
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 7), (10, 200, 30)).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


@tries(300)
@given(data=st.data())
def test_any_image_is_read_or_refused(folder, pictures, data):
    path = folder / "fuzz.JPEG"
    path.write_bytes(data.draw(damaged(data.draw(st.sampled_from(pictures)))))
    try:
        assert load_image(path).mode == "RGB"
    except InputError as error:
        assert str(path) in str(error)


@pytest.fixture(scope="module")
def small_checkpoint(folder):
    """(directory of the archive as {name: bytes}): a checkpoint of plain types, a few hundred bytes of them pickled."""
    torch.save({"epoch": 1, "model": {"module.net.x": torch.zeros(2)}, "settings": {"a": 1}}, folder / "small.pth")
    with zipfile.ZipFile(folder / "small.pth") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@tries(150)
@given(data=st.data())
def test_any_checkpoint_is_read_or_refused_and_runs_nothing(folder, small_checkpoint, data):
    path = folder / "fuzz.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in small_checkpoint.items():
            archive.writestr(name, data.draw(damaged(content)) if name.endswith("data.pkl") else content)
    for load in (load_checkpoint, load_network):
        try:
            load(path, "--model_pth")
        except InputError as error:
            assert str(path) in str(error)
