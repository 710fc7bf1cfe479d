"""Bounding boxes of images (Pascal-VOC XML), and whether they are in the frame of the image's
pixels."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from dejavu_utils.crops import DEFAULT_CROP_RULE, Box, CropRule
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing, image_frame

# as an XML states them: xmin, ymin, xmax, ymax of a box; width, height of a size
Numbers = tuple[float, ...]
Size = tuple[int, int]  # width, height in pixels
XmlNames = dict[str, list[str]]  # {stem: names of its XML files}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MARKS = ("object", "bndbox", "robndbox", "polygon")  # elements that say where something is
_LARGEST_XML = 2**20  # bytes; an annotation has some hundred
_FRACTIONS = 2  # no coordinate above it: fractions of the sides, some a little beyond 1
# Where the folders of classes may be below the folder given: image-net.org's archive and Kaggle's,
# from any level.
_PLACES = (
    "Annotation",
    ".",
    "Annotations",
    "train",
    "CLS-LOC/train",
    "Annotations/CLS-LOC/train",
    "ILSVRC/Annotations/CLS-LOC/train",
)
# Why an image is not attacked; the keys of counts in results.json.
NO_BNDBOX = "object without bndbox in the XML"
NO_XML = "no XML"
TWO_XML = "two XML of its name"
SHARED_NAME = "another image of its name"
UNREADABLE_XML = "unreadable XML"
NO_OBJECT = "no object in the XML"
REVERSED = "reversed box"
OTHER_SIZE = "size in the XML is not the image's"
NO_SIZE = "no size in the XML to scale by"
TURNED = "turned by EXIF, and the boxes may be upright"
NO_AREA = "boxes without area"
OUTSIDE = "box outside the image"
WHOLE = "crop is the whole image"
TOO_SMALL = "no crop larger than min_px"
REASONS = (
    TOO_SMALL,
    NO_XML,
    UNREADABLE_XML,
    NO_OBJECT,
    NO_BNDBOX,
    REVERSED,
    TWO_XML,
    SHARED_NAME,
    OTHER_SIZE,
    NO_SIZE,
    TURNED,
    NO_AREA,
    OUTSIDE,
    WHOLE,
)


class Unusable(Exception):
    """Why an image's boxes cannot be used: one of REASONS."""


class Annotations:
    """The box files of a listing's images, CLASS/ID.xml below `root`; each folder is read once.

    An image has one of its name alone: not where another image of its class has the same stem (two
    extensions, or another folder), nor where there are two, ID.xml and ID.XML. Hidden files do not
    count. bbox_dir: see `_boxes_root`, which finds root there. flag: what to call bbox_dir in an
    error.
    """

    def __init__(
        self, bbox_dir: str | Path | None, listing: ImageListing, flag: str = "the folder of boxes"
    ) -> None:
        self.root = _boxes_root(bbox_dir, listing, flag)
        self.listing = listing
        self._classes: dict[int, tuple[XmlNames, Counter[str]]] = {}

    def of_class(self, label: int) -> tuple[XmlNames, "Counter[str]"]:
        """({stem: names of its XML files}, {stem: number of its images}) of a class, without hidden
        ones."""
        if label not in self._classes:
            self._classes[label] = (
                _xml_names(self.root, self.listing, label),
                _image_stems(self.listing, label),
            )
        return self._classes[label]

    def path(self, index: int) -> Path:
        """The image's XML; raises Unusable where there is none, or not one that is the image's
        alone."""
        label = int(self.listing.labels[index])
        stem = self.listing.stem(index)
        names, images = self.of_class(label)
        if stem not in names or self.listing.is_hidden(index):
            raise Unusable(NO_XML)
        if len(names[stem]) > 1:
            raise Unusable(TWO_XML)
        if images[stem] > 1:
            raise Unusable(SHARED_NAME)
        return self.root / self.listing.classes[label] / names[stem][0]

    def boxes(self, index: int, rule: CropRule = DEFAULT_CROP_RULE) -> tuple[list[Box], Size]:
        """(boxes, size): the image's boxes as int (xmin, ymin, xmax, ymax), scaled and grown by the
        rule, its size.

        Both in pixels of the image as decoded. Raises Unusable with the reason where nothing says
        that the boxes are in the frame of the image's pixels, or where they do not say where the
        object is; InputError for an image that cannot be read.
        """
        try:
            marked, stated = read_annotation(self.path(index))
        except FileNotFoundError:
            raise Unusable(NO_XML) from None
        except ValueError:
            raise Unusable(UNREADABLE_XML) from None
        if not marked:
            raise Unusable(NO_OBJECT)
        if any(xmax < xmin or ymax < ymin for xmin, ymin, xmax, ymax in marked):
            raise Unusable(REVERSED)
        if max(map(max, marked)) <= _FRACTIONS:
            raise Unusable(NO_AREA)
        size, orientation = image_frame(self.listing.path(index))
        boxes = _in_pixels(marked, stated, size, orientation, rule.scale)
        _check_areas(boxes, size)
        return [_grown(box, size, rule.margin) for box in boxes], size


def _boxes_root(bbox_dir: str | Path | None, listing: ImageListing, flag: str) -> Path:
    """The folder of CLASS/ID.xml at or below bbox_dir, whichever level of a known layout is given.

    BBOX_DIR/Annotation, BBOX_DIR itself (image-net.org's archive), Kaggle's
    ILSVRC/Annotations/CLS-LOC/train; the first in which an XML belongs to an image. InputError,
    with one name of each side, if there is none.
    """
    if not bbox_dir or not Path(bbox_dir).is_dir():
        raise InputError(f"{flag} {bbox_dir or ''}: no such folder")
    places = [Path(bbox_dir, place) for place in _PLACES]
    candidates = [folder for folder in places if folder.is_dir()]
    an_xml = None
    for folder in candidates:
        for label, name in enumerate(listing.classes):
            names = _xml_names(folder, listing, label)
            if names and not _image_stems(listing, label).keys().isdisjoint(names):
                return folder
            if names and an_xml is None:
                an_xml = folder / name / min(names.values())[0]
    folders = [path for path in candidates[-1].iterdir() if path.is_dir()]
    if an_xml:
        there = f"an XML is {an_xml}"
    else:
        there = f"a folder there is {min(folders)}" if folders else "it has no folders"
    raise InputError(
        f"{flag} {bbox_dir}: no XML there belongs to an image: an image is {listing.path(0)}, so its boxes would be in "
        f"Annotation/{listing.classes[0]}/{listing.stem(0)}.xml or {listing.classes[0]}/{listing.stem(0)}.xml below "
        f"it, but {there}; give the folder whose subfolders are the classes, or rename them"
    )


def _xml_names(root: Path, listing: ImageListing, label: int) -> XmlNames:
    names: XmlNames = {}
    folder = root / listing.classes[label]
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            if name.lower().endswith(".xml") and not name.startswith("."):
                names.setdefault(name[:-4], []).append(name)
    return names


def _image_stems(listing: ImageListing, label: int) -> "Counter[str]":
    """How many images of a class have each stem."""
    return Counter(
        listing.stem(index) for index in listing.members(label) if not listing.is_hidden(index)
    )


def read_annotation(path: str | Path) -> tuple[list[Numbers], Numbers | None]:
    """(boxes, size) of a Pascal-VOC XML: lists of finite float (xmin, ymin, xmax, ymax), and the
    <size> in pixels.

    boxes is empty where no object is marked; size is (width, height), or None where the XML states
    none. Unusable where an object is marked otherwise than by a <bndbox> (a polygon, a turned box):
    a crop could show it. ValueError for a file that is not such an XML, or one with a document type
    or entities (those can be made to fill the memory; annotations have none).
    """
    with open(path, "rb") as handle:
        data = handle.read(_LARGEST_XML + 1)
    if len(data) > _LARGEST_XML:
        raise ValueError(f"is larger than {_LARGEST_XML} bytes")
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_document_type
    try:
        guard.Parse(data, True)
        root = ElementTree.fromstring(data)
        boxes = [_numbers(box, *_CORNERS) for box in root.iterfind("./object/bndbox")]
        size = root.find("./size")
        stated = None if size is None else _numbers(size, "width", "height")
        has_unread_objects = any(
            _is_unread(element, root) for element in root.iter("object")
        ) or _marks_elsewhere(root)
    except Exception as error:  # on damaged files, the parsers raise anything
        raise ValueError(f"is not a Pascal-VOC annotation: {error}") from None
    if has_unread_objects:
        raise Unusable(NO_BNDBOX)
    return boxes, stated


def _is_unread(element: ElementTree.Element, root: ElementTree.Element) -> bool:
    """Is an object, or a part of it, where no <bndbox> that is read tells it?"""
    boxes = [_numbers(box, *_CORNERS) for box in element.iterfind("./bndbox")]
    if element.find(".//robndbox") is not None:
        return True
    if not boxes or element not in list(root):
        return len(element) > 0  # an empty one marks nothing
    for part in element.iterfind(".//part//bndbox"):
        corners = _numbers(part, *_CORNERS)
        if not any(_is_within(corners, box) for box in boxes):
            return True
    return False


def _is_within(part: Numbers, box: Numbers) -> bool:
    xmin, ymin, xmax, ymax = part
    left, top, right, bottom = box
    return left <= xmin and top <= ymin and xmax <= right and ymax <= bottom


def _marks_elsewhere(root: ElementTree.Element) -> bool:
    """Is something marked outside of the <object>s that are read: <Object>, <region><bndbox>, an
    element of another namespace?"""
    for child in root:
        if child.tag == "object":
            continue
        for element in child.iter():
            name = str(element.tag).rpartition("}")[2].lower()
            if name in _MARKS and (len(element) or (element.text or "").strip()):
                return True
    return False


def _refuse_document_type(*_: object) -> None:
    raise ValueError("it has a document type")


def _numbers(element: ElementTree.Element, *names: str) -> Numbers:
    numbers = tuple(float(element.findtext(name) or "") for name in names)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{numbers} are not all numbers")
    return numbers


def _in_pixels(
    boxes: Sequence[Numbers], stated: Numbers | None, size: Size, orientation: int, scale: bool
) -> list[Box]:
    """Boxes of an XML that states a size -> int boxes in the image's pixels, or Unusable.

    A turned image's boxes may be those of the image as it is shown. Where turning changes the
    sides, the stated size tells; else nothing does.
    """
    if orientation != 1 and (orientation < 5 or stated != size or size[0] == size[1]):
        raise Unusable(TURNED)
    if stated is None and scale:
        raise Unusable(NO_SIZE)
    if stated is None or stated == size:
        return [(int(xmin), int(ymin), int(xmax), int(ymax)) for xmin, ymin, xmax, ymax in boxes]
    width, height = stated
    # landscape in the XML, portrait in the file
    turned = (width - height) * (size[0] - size[1]) < 0
    if not scale or min(stated) <= 0 or turned:
        raise Unusable(OTHER_SIZE)
    x = size[0] / width
    y = size[1] / height
    scaled: list[Box] = []
    for xmin, ymin, xmax, ymax in boxes:
        left = math.floor(xmin * x)
        top = math.floor(ymin * y)
        right = math.ceil(xmax * x)
        bottom = math.ceil(ymax * y)
        scaled.append((left, top, right, bottom))
    return scaled


def _check_areas(boxes: Sequence[Box], size: Size) -> None:
    """Unusable where boxes cannot say where the object is: none has an area, or most of one is
    outside."""
    areas = [(xmax - xmin) * (ymax - ymin) for xmin, ymin, xmax, ymax in boxes]
    if not any(areas):
        raise Unusable(NO_AREA)
    for (xmin, ymin, xmax, ymax), area in zip(boxes, areas):
        width_inside = max(0, min(xmax, size[0]) - max(xmin, 0))
        height_inside = max(0, min(ymax, size[1]) - max(ymin, 0))
        if 2 * width_inside * height_inside < area:
            raise Unusable(OUTSIDE)


def _grown(box: Box, size: Size, margin: float) -> Box:
    """The box grown on every side, not beyond the image; what is beyond it already stays."""
    lows = []
    highs = []
    for low, high, side in zip(box[:2], box[2:], size):
        by = margin * (high - low) if margin < 1 else margin
        lows.append(min(low, max(0, math.floor(low - by))))
        highs.append(max(high, min(side, math.ceil(high + by))))
    return lows[0], lows[1], highs[0], highs[1]
