"""Boxes in the frame of the pixels: what is attacked, and what is counted instead; layouts of box folders."""

import re

import numpy as np
import pytest
from PIL import Image

from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import (
    NO_AREA,
    NO_BNDBOX,
    NO_SIZE,
    NO_XML,
    OTHER_SIZE,
    OUTSIDE,
    SHARED_NAME,
    TOO_SMALL,
    TURNED,
    TWO_XML,
    Annotations,
    Unusable,
    read_annotation,
)
from dejavu_utils.data.background_crops import frame_warnings, in_words, take_crops
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import list_images

FIVE = CropRule(min_px=5)
SIDES = ("xmin", "ymin", "xmax", "ymax")


def xml(*boxes, size=None):
    objects = "".join(
        "<object><bndbox>" + "".join(f"<{s}>{v}</{s}>" for s, v in zip(SIDES, box)) + "</bndbox></object>"
        for box in boxes
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{stated}{objects}</annotation>"


def crops_of(folder, annotation, rule=FIVE, size=(60, 50), orientation=None, name="c0/a.JPEG"):
    """(the crop or None, the counts) of one image with this XML."""
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    (folder / "boxes/Annotation/c0").mkdir(parents=True, exist_ok=True)
    (folder / "boxes/Annotation/c0/a.xml").write_text(annotation)
    listing = list_images(folder / "images")
    found = take_crops(listing, [0], rule, Annotations(folder / "boxes", listing))
    return tuple(found.crops[0].tolist()) if len(found) else None, found.counts


BOX = (5, 5, 25, 25)


@pytest.mark.parametrize(
    "annotation, settings, reason",
    [
        (xml(BOX), {}, None),
        (xml(BOX, size=("60.0", "50")), {}, None),
        (xml(BOX, size=(50, 60)), {}, OTHER_SIZE),
        (xml(BOX, size=(0, 0)), {}, OTHER_SIZE),
        (xml((0.0, 0.0, 1.0, 1.0), size=(60, 50)), {}, NO_AREA),
        (xml((-0.02, 0.0, 1.01, 1.02), (0.2, 0.3, 0.4, 0.5)), {}, NO_AREA),
        (xml((10, 60, 40, 98)), {}, OUTSIDE),  # per cent: 6..24 x 30..49
        (xml((10, 20, 20, 55)), {}, None),  # beyond the height a little: clipped, as published
        (xml((10, 10, 62, 30)), {}, TOO_SMALL),  # beyond the width: no crop, as published
        # Turned by EXIF: of the right-angled turns the stated size tells whose frame it is.
        (xml(BOX, size=(60, 50)), {"orientation": 6}, None),
        (xml(BOX, size=(50, 60)), {"orientation": 6}, TURNED),
        (xml(BOX), {"orientation": 8}, TURNED),
        *((xml(BOX, size=(60, 50)), {"orientation": way}, TURNED) for way in (2, 3, 4)),
        *((xml(BOX, size=(50, 60)), {"orientation": way}, TURNED) for way in (5, 7, 8)),
        *((xml(BOX), {"orientation": 6, "name": f"c0/a.{kind}"}, TURNED) for kind in ("png", "webp")),
        (xml(BOX, size=(60, 50)), {"orientation": 6, "name": "c0/a.tif"}, OTHER_SIZE),  # Pillow turns it: 50 x 60
        (xml(BOX, size=(50, 60)), {"orientation": 6, "name": "c0/a.tif"}, None),
    ],
)
def test_images_whose_boxes_may_be_in_another_frame_are_counted(tmp_path, annotation, settings, reason):
    crop, counts = crops_of(tmp_path, annotation, **settings)
    assert (crop is None) == (reason is not None)
    assert counts["attacked" if reason is None else reason] == 1 and sum(counts.values()) == 2
    assert in_words(counts) == (f"1 {reason}" if reason else "")


@pytest.mark.parametrize(
    "box, side, words",
    [
        ((20, 20, 60, 60), 1, "reach beyond the image in 12 of 12 images"),  # per cent of 60 x 50: 20..60 x 20..60
        ((10, 10, 90, 90), 1, "reach beyond the image in 12 of 12 images"),
        ((20, 20, 90, 95), 5, "12 images that were looked at are 300 pixels long, and no box ends beyond 100"),
        ((20, 20, 101, 95), 5, None),
        ((5, 5, 25, 25), 1, None),
        ((20, 20, 30, 52), 1, None),
    ],
)
def test_many_boxes_tell_that_they_are_per_cent(tmp_path, box, side, words):
    for number in range(12):
        paths = tmp_path / f"images/c0/{number}.png", tmp_path / f"boxes/c0/{number}.xml"
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 * side, 50 * side)).save(paths[0])
        paths[1].write_text(xml(box))
    listing = list_images(tmp_path / "images")
    annotations, sets = Annotations(tmp_path / "boxes", listing), {"A": np.arange(6), "B": np.arange(6, 12)}
    found = frame_warnings(annotations, sets, FIVE, "--b x")
    assert len(found) == (words is not None) and all(text.startswith("--b x: ") and words in text for text in found)
    assert frame_warnings(annotations, {"A": np.arange(6)}, FIVE, "--b x") == []  # too few to tell


@pytest.mark.parametrize(
    "annotation, crop, reason",
    [
        (xml((2, 60, 58, 98), size=(120, 100)), (29, 0, 60, 50), None),  # the box is 1..29 x 30..49
        (xml((20, 21, 40, 40), size=(30, 200)), None, OTHER_SIZE),  # upright, and the image lies
        (xml((20, 20, 41, 40), size=(240, 50)), (11, 0, 60, 50), None),  # squashed: each side has its own factor
        (xml((1, 1, 10, 10)), None, NO_SIZE),
        (xml((0.1, 0.1, 0.9, 0.9), size=(6, 5)), None, NO_AREA),
        (xml(BOX, size=(60, 50)), (25, 0, 60, 50), None),
    ],
)
def test_boxes_are_scaled_by_the_stated_size(tmp_path, annotation, crop, reason):
    found, counts = crops_of(tmp_path, annotation, CropRule("paper", 5, scale=True))
    assert found == crop and counts[reason or "attacked"] == 1


@pytest.mark.parametrize(
    "margin, crop", [(0, (25, 0, 60, 50)), (0.25, (30, 0, 60, 50)), (8, (33, 0, 60, 50)), (0.01, (26, 0, 60, 50))]
)
def test_boxes_grow_before_the_crop_is_cut(tmp_path, margin, crop):
    assert crops_of(tmp_path, xml(BOX, size=(60, 50)), CropRule(min_px=5, margin=margin))[0] == crop


def test_rules_are_those_of_the_settings():
    settings = {"use_corner_crop": 0, "corner_crop_frac": 0.4, "crop_rule": "exact", "min_px": 32}
    assert CropRule.of(settings) == CropRule("exact", 32)
    assert CropRule.of({**settings, "box_margin": 0.1, "scale_boxes": 1}) == CropRule("exact", 32, 0.1, True)
    assert CropRule.of({**settings, "use_corner_crop": 1}) == CropRule("corner", fraction=0.4)


# Which XML is an image's.


@pytest.fixture
def tree(tmp_path):
    for name in ("c0/a.JPEG", "c0/b.JPEG", "c0/more/b.JPEG", "c0/d.JPEG", "c0/d.png", "c0/e.JPEG", "c1/f.JPEG"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 50)).save(path)
    for name in ("c0/a.xml", "c0/b.xml", "c0/d.xml", "c0/e.xml", "c0/e.XML", "c0/._a.xml", "c1/f.XML"):
        path = tmp_path / "xml" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml(BOX))
    return tmp_path


def test_an_xml_is_that_of_one_image(tree):
    listing = list_images(tree / "images")
    counts = take_crops(listing, range(len(listing)), FIVE, Annotations(tree / "xml", listing)).counts
    expected = {"images": 7, "attacked": 2, SHARED_NAME: 4, TWO_XML: 1}
    assert {what: n for what, n in counts.items() if n} == expected
    (tree / "xml/c0/a.xml").unlink()
    annotations = Annotations(tree / "xml", listing)
    assert take_crops(listing, [0], FIVE, annotations).counts[NO_XML] == 1


KAGGLE = "ILSVRC/Annotations/CLS-LOC/train"


@pytest.mark.parametrize(
    "place, given",
    [
        *(("Annotation", given) for given in ("", "Annotation")),
        ("", ""),
        *((KAGGLE, given) for given in ("", "ILSVRC", "ILSVRC/Annotations", "ILSVRC/Annotations/CLS-LOC", KAGGLE)),
    ],
)
def test_every_level_of_known_layouts_is_taken(tree, place, given):
    (tree / "boxes" / place).parent.mkdir(parents=True, exist_ok=True)
    (tree / "boxes" / KAGGLE.replace("train", "val")).mkdir(parents=True)
    if place:
        (tree / "xml").rename(tree / "boxes" / place)
    else:
        for folder in list((tree / "xml").iterdir()):
            folder.rename(tree / "boxes" / folder.name)
    listing = list_images(tree / "images")
    assert Annotations(tree / "boxes" / given, listing).path(0) == tree / "boxes" / place / "c0/a.xml"


def test_where_nothing_fits_a_name_of_each_side_is_shown(tree):
    listing = list_images(tree / "images")
    (tree / "xml/c0/._a.xml").unlink()
    for path in list((tree / "xml").rglob("*.[xX]*")):
        path.rename(path.with_name(f"n_{path.name}"))
    with pytest.raises(InputError, match=r"--b .*xml: no XML .*c0/a.JPEG, .*/c0/a.xml .* an XML is .*c0/n_a.xml"):
        Annotations(tree / "xml", listing, "--b")
    (tree / "xml/c0").rename(tree / "xml/n0")
    (tree / "xml/c1").rename(tree / "xml/n1")
    with pytest.raises(InputError, match="a folder there is .*xml/n0"):
        Annotations(tree / "xml", listing, "--b")


@pytest.mark.parametrize(
    "second, is_read",
    [
        ("<object><name>x</name><bndbox>1 2 3 4</bndbox></object>", True),
        ("<object><name>x</name><polygon><x1>1</x1></polygon></object>", False),
        ("<object><robndbox><cx>4</cx></robndbox><bndbox>1 2 3 4</bndbox></object>", False),
        ("<object><name>x</name><part><bndbox>1 2 3 4</bndbox></part></object>", False),
        ("<object><bndbox>1 2 9 9</bndbox><part><name>x</name><bndbox>1 2 3 4</bndbox></part></object>", True),
        ("<object><bndbox>1 2 9 9</bndbox><part><name>x</name><bndbox>1 2 30 4</bndbox></part></object>", False),
        ("<group><object><bndbox>1 2 9 9</bndbox></object></group>", False),
    ],
)
def test_objects_that_no_box_marks_are_a_reason_of_their_own(tmp_path, second, is_read):
    def written_out(match):
        names = ("xmin", "ymin", "xmax", "ymax")
        values = match[1].split()
        return "<bndbox>" + "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, values)) + "</bndbox>"

    first = "<object><name>y</name><bndbox>1 1 5 5</bndbox></object>"
    xml = re.sub(r"<bndbox>([\d ]+)</bndbox>", written_out, f"<annotation>{first}{second}</annotation>")
    (tmp_path / "x.xml").write_text(xml)
    if is_read:
        assert len(read_annotation(tmp_path / "x.xml")[0]) == 2
    else:
        with pytest.raises(Unusable, match=NO_BNDBOX):
            read_annotation(tmp_path / "x.xml")
