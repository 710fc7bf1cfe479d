"""Boxes in the frame of the pixels: what is attacked, and what is counted instead; layouts of box folders."""

import re

import numpy as np
import pytest
from helpers import annotation, in_folder, refused
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


def said_size(width, height):
    return f"<size><width>{width}</width><height>{height}</height></size>"


def crops_of(folder, xml, rule=FIVE, size=(60, 50), orientation=None, name="c0/a.JPEG"):
    """(the crop or None, the counts) of one image with this XML."""
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.new("RGB", size).save(in_folder(folder / "images" / name), exif=exif)
    in_folder(folder / "boxes/Annotation/c0/a.xml").write_text(xml)
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
    size = said_size(*said["size"].split("x")) if "size" in said else ""
    xml = annotation(*np.reshape(sides, (-1, 4)), before=size)
    rule = CropRule(min_px=5, margin=float(said.get("margin", 0)), scale="scale" in said)
    name = f"c0/a.{said.get('kind', 'JPEG')}"
    crop, counts = crops_of(tmp_path, xml, rule, orientation=int(said.get("turn", 0)), name=name)
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
        Image.new("RGB", (60 * side, 50 * side)).save(in_folder(tmp_path / f"images/c0/{number}.png"))
        in_folder(tmp_path / f"boxes/c0/{number}.xml").write_text(annotation(box))
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
        Image.new("RGB", (60, 50)).save(in_folder(tmp_path / "images" / name))
    for name in ("c0/a.xml", "c0/b.xml", "c0/d.xml", "c0/e.xml", "c0/e.XML", "c0/._a.xml", "c1/f.XML"):
        in_folder(tmp_path / "xml" / name).write_text(annotation(BOX))
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


SECOND = """
    <object><name>x</name>[1 2 3 4]</object>                               -> read
    <object><name>x</name><polygon><x1>1</x1></polygon></object>           -> refused
    <object><robndbox><cx>4</cx></robndbox>[1 2 3 4]</object>              -> refused
    <object><name>x</name><part>[1 2 3 4]</part></object>                  -> refused
    <object>[1 2 9 9]<part><name>x</name>[1 2 3 4]</part></object>         -> read
    <object>[1 2 9 9]<part><name>x</name>[1 2 30 4]</part></object>        -> refused
    <group><object>[1 2 9 9]</object></group>                              -> refused
    <Object>[1 2 9 9]</Object>                                             -> refused
    <objects><obj><BndBox>1 2 9 9</BndBox></obj></objects>                 -> refused
    <region><polygon>1,2 9,9 1,9</polygon></region>                        -> refused
    <v:object xmlns:v='urn:x'><v:bndbox>1</v:bndbox></v:object>            -> refused
    <segmented>0</segmented><polygon/><object>[1 2 3 4]</object>           -> read
"""


@pytest.mark.parametrize("line", SECOND.strip().splitlines())
def test_objects_that_no_box_marks_are_a_reason_of_their_own(tmp_path, line):
    """Beside an object with a box: [xmin ymin xmax ymax] is a bndbox."""
    second, _, how = line.partition("->")
    box = r"<bndbox><xmin>\1</xmin><ymin>\2</ymin><xmax>\3</xmax><ymax>\4</ymax></bndbox>"
    xml = annotation((1, 1, 5, 5), before=re.sub(r"\[(\d+) (\d+) (\d+) (\d+)\]", box, second))
    (tmp_path / "x.xml").write_text(xml)
    if how.strip() == "read":
        assert len(read_annotation(tmp_path / "x.xml")[0]) == 2
    else:
        with pytest.raises(Unusable, match=NO_BNDBOX):
            read_annotation(tmp_path / "x.xml")
