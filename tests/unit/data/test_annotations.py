"""Boxes in the frame of the pixels: what is attacked, and what is counted instead; layouts of box folders."""

import re

import numpy as np
import pytest
from helpers import refused
from PIL import Image

from dejavu_utils.crops import CropRule
from dejavu_utils.data import annotations
from dejavu_utils.data.annotations import (
    NO_BNDBOX,
    NO_XML,
    SHARED_NAME,
    TWO_XML,
    Annotations,
    Unusable,
    read_annotation,
)
from dejavu_utils.data.background_crops import frame_warnings, in_words, take_crops
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


# Boxes of an image of 60 x 50 pixels, and what the XML or the file says else; the crop, or the reason for none.
FRAMES = """
    5 5 25 25                                 -> 25 0 60 50
    5 5 25 25 size=60.0x50                    -> 25 0 60 50
    5 5 25 25 size=50x60                      -> OTHER_SIZE
    5 5 25 25 size=0x0                        -> OTHER_SIZE
    0.0 0.0 1.0 1.0 size=60x50                -> NO_AREA
    -0.02 0.0 1.01 1.02 0.2 0.3 0.4 0.5       -> NO_AREA
    10 60 40 98                               -> OUTSIDE      # per cent: 6..24 x 30..49
    10 20 20 55                               -> 20 0 60 50   # beyond the height a little: clipped, as published
    10 10 62 30                               -> TOO_SMALL    # beyond the width: no crop, as published
    # Turned by EXIF: of the right-angled turns the stated size tells whose frame it is.
    5 5 25 25 size=60x50 turn=6               -> 25 0 60 50
    5 5 25 25 size=50x60 turn=6               -> TURNED
    5 5 25 25 turn=8                          -> TURNED
    5 5 25 25 size=60x50 turn=2               -> TURNED
    5 5 25 25 size=60x50 turn=3               -> TURNED
    5 5 25 25 size=60x50 turn=4               -> TURNED
    5 5 25 25 size=50x60 turn=5               -> TURNED
    5 5 25 25 size=50x60 turn=7               -> TURNED
    5 5 25 25 size=50x60 turn=8               -> TURNED
    5 5 25 25 turn=6 kind=png                 -> TURNED
    5 5 25 25 turn=6 kind=webp                -> TURNED
    5 5 25 25 size=60x50 turn=6 kind=tif      -> OTHER_SIZE   # Pillow turns it: 50 x 60
    5 5 25 25 size=50x60 turn=6 kind=tif      -> 25 0 50 60
    # Boxes scaled by the stated size.
    2 60 58 98 size=120x100 scale=1           -> 29 0 60 50   # the box is 1..29 x 30..49
    20 21 40 40 size=30x200 scale=1           -> OTHER_SIZE   # upright, and the image lies
    20 20 41 40 size=240x50 scale=1           -> 11 0 60 50   # squashed: each side has its own factor
    1 1 10 10 scale=1                         -> NO_SIZE
    0.1 0.1 0.9 0.9 size=6x5 scale=1          -> NO_AREA
    5 5 25 25 size=60x50 scale=1              -> 25 0 60 50
    # Boxes that grow before the crop is cut: by a part of their sides, or by pixels.
    5 5 25 25 size=60x50 margin=0.25          -> 30 0 60 50
    5 5 25 25 size=60x50 margin=8             -> 33 0 60 50
    5 5 25 25 size=60x50 margin=0.01          -> 26 0 60 50
"""


@pytest.mark.parametrize("line", re.findall(r"^ *(\S.* -> [^#\n]*)", re.sub("^ *#.*", "", FRAMES, flags=re.M), re.M))
def test_images_whose_boxes_may_be_in_another_frame_are_counted(tmp_path, line):
    words, _, expected = line.partition(" -> ")
    sides = [word for word in words.split() if "=" not in word]
    said = dict(word.split("=") for word in words.split() if "=" in word)
    annotation = xml(*np.reshape(sides, (-1, 4)), size=said["size"].split("x") if "size" in said else None)
    rule = CropRule(min_px=5, margin=float(said.get("margin", 0)), scale="scale" in said)
    name = f"c0/a.{said.get('kind', 'JPEG')}"
    crop, counts = crops_of(tmp_path, annotation, rule, orientation=int(said.get("turn", 0)), name=name)
    if expected.strip().isupper():
        reason = getattr(annotations, expected.strip())
        assert crop is None and counts[reason] == 1 and in_words(counts) == f"1 {reason}"
    else:
        assert crop == tuple(map(int, expected.split())) and counts["attacked"] == 1 and not in_words(counts)
    assert sum(counts.values()) == 2


# A box of images of 60 x 50 pixels, or of 300 x 250; the warning.
PER_CENT = """1: 20 20 60 60 -> reach beyond the image in 12 of 12 images
    1: 10 10 90 90  -> reach beyond the image in 12 of 12 images
    5: 20 20 90 95  -> 12 images that were looked at are 300 pixels long, and no box ends beyond 100
    5: 20 20 101 95 -> none
    1: 5 5 25 25    -> none
    1: 20 20 30 52  -> none"""


@pytest.mark.parametrize("line", PER_CENT.splitlines())
def test_many_boxes_tell_that_they_are_per_cent(tmp_path, line):
    given, words = line.split(" -> ")
    side, box = int(given.split(":")[0]), given.split(":")[1].split()
    for number in range(12):
        paths = tmp_path / f"images/c0/{number}.png", tmp_path / f"boxes/c0/{number}.xml"
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 * side, 50 * side)).save(paths[0])
        paths[1].write_text(xml(box))
    listing = list_images(tmp_path / "images")
    boxes, sets = Annotations(tmp_path / "boxes", listing), {"A": np.arange(6), "B": np.arange(6, 12)}
    found = frame_warnings(boxes, sets, FIVE, "--b x")
    assert len(found) == (words != "none") and all(text.startswith("--b x: ") and words in text for text in found)
    assert frame_warnings(boxes, {"A": np.arange(6)}, FIVE, "--b x") == []  # too few to tell


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
    assert take_crops(listing, [0], FIVE, Annotations(tree / "xml", listing)).counts[NO_XML] == 1


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
    with refused(r"--b .*xml: no XML .*c0/a.JPEG, .*/c0/a.xml .* an XML is .*c0/n_a.xml"):
        Annotations(tree / "xml", listing, "--b")
    (tree / "xml/c0").rename(tree / "xml/n0")
    (tree / "xml/c1").rename(tree / "xml/n1")
    with refused("a folder there is .*xml/n0"):
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
        ("<Object><bndbox>1 2 9 9</bndbox></Object>", False),
        ("<objects><obj><BndBox>1 2 9 9</BndBox></obj></objects>", False),
        ("<region><polygon>1,2 9,9 1,9</polygon></region>", False),
        ("<v:object xmlns:v='urn:x'><v:bndbox>1</v:bndbox></v:object>", False),
        ("<segmented>0</segmented><polygon/><object><bndbox>1 2 3 4</bndbox></object>", True),
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
