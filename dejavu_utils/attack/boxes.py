"""Bounding boxes of images (Pascal-VOC XML) and the crops that the attack takes from images."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from dejavu_utils.crops import background_crop, corner_crop
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import UNREADABLE, image_size

_LARGEST_XML = 2**20  # bytes; an annotation has some hundred


@dataclass
class CroppedImages:
    """Images and the crop of each. indices: int64 (n,), ImageFolder positions. crops: int64 (n, 4), xmin, ymin, xmax,
    ymax in pixels. counts: {"images", "attacked", and how many were skipped for what}."""

    indices: np.ndarray
    crops: np.ndarray
    counts: dict

    def __len__(self):
        return len(self.indices)


def box_path(bbox_dir, listing, index):
    """Where the image's Pascal-VOC XML is expected: BBOX_DIR/Annotation/CLASS/ID.xml."""
    name = listing.classes[listing.labels[index]]
    return Path(bbox_dir) / "Annotation" / name / f"{listing.stem(index)}.xml"


def read_boxes(path):
    """The boxes in a Pascal-VOC XML, a list of int (xmin, ymin, xmax, ymax); empty where no object is marked.

    ValueError for a file that is not such an XML, or one with a document type or entities (those can be made to fill
    the memory; annotations have none).
    """
    with open(path, "rb") as handle:
        data = handle.read(_LARGEST_XML + 1)
    if len(data) > _LARGEST_XML:
        raise ValueError(f"is larger than {_LARGEST_XML} bytes")
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_document_type
    try:
        guard.Parse(data, True)
        boxes = ElementTree.fromstring(data).iterfind("./object/bndbox")
        return [tuple(int(float(box.findtext(side))) for side in ("xmin", "ymin", "xmax", "ymax")) for box in boxes]
    except (ElementTree.ParseError, expat.ExpatError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"is not a Pascal-VOC annotation: {error}") from None


def _refuse_document_type(*_):
    raise ValueError("it has a document type")


def file_fingerprint(listing, indices, bbox_dir=None):
    """SHA-256 of the paths of images, and of sizes and times of their files and, with bbox_dir, of their XML."""

    def state(path):
        try:
            stat = os.stat(path)
            return f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            return "absent"

    def line(index):
        xml = state(box_path(bbox_dir, listing, index)) if bbox_dir else ""
        return f"{index} {listing.paths[index]} {state(listing.path(index))} {xml}\n"

    found = hashlib.sha256()
    with ThreadPoolExecutor(8) as pool:  # mostly waiting for the disk
        for text in pool.map(line, indices):
            found.update(text.encode(errors="surrogateescape"))
    return found.hexdigest()


def background_crops(
    listing, indices, bbox_dir, min_px=100, rule="paper", on_progress=lambda count: None, skip_unreadable=False
):
    """Background crops (dejavu_utils.crops) of the images at `indices` that have one.

    Boxes are read from BBOX_DIR/Annotation/CLASS/ID.xml, sizes from the images' headers. on_progress: called with the
    number of images done since the last call. skip_unreadable: count images that cannot be read instead of raising an
    InputError. Returns the CroppedImages that have a crop.
    """
    reasons = ("no crop larger than min_px", "no XML", "unreadable XML", "no object in the XML", "reversed box")

    def crop_of(index):
        try:
            boxes = read_boxes(box_path(bbox_dir, listing, index))
        except FileNotFoundError:
            return "no XML"
        except ValueError:
            return "unreadable XML"
        if not boxes:
            return "no object in the XML"
        if any(xmax < xmin or ymax < ymin for xmin, ymin, xmax, ymax in boxes):
            return "reversed box"
        return background_crop(*image_size(listing.path(index)), boxes, min_px, rule) or reasons[0]

    return _crops(indices, crop_of, reasons, on_progress, skip_unreadable)


def corner_crops(listing, indices, fraction=0.3, on_progress=lambda count: None, skip_unreadable=False):
    """Lower left corners (dejavu_utils.crops.corner_crop) of all images at `indices`, as `background_crops` gives them.

    No XML is read; fraction: side of the corner / side of the image.
    """
    return _crops(
        indices, lambda index: corner_crop(*image_size(listing.path(index)), fraction), (), on_progress, skip_unreadable
    )


def _crops(indices, crop_of, reasons, on_progress, skip_unreadable):
    """crop_of: index -> crop, or one of the reasons why there is none."""

    def examine(index):
        try:
            return crop_of(index)
        except InputError:
            if skip_unreadable:
                return UNREADABLE
            raise

    counts = dict.fromkeys(("images", "attacked", *reasons, UNREADABLE), 0)
    kept, crops = [], []
    with ThreadPoolExecutor(8) as pool:  # mostly waiting for the disk
        for index, found in zip(indices, pool.map(examine, indices)):
            counts["images"] += 1
            if isinstance(found, str):
                counts[found] += 1
            else:
                kept.append(index)
                crops.append(found)
            on_progress(1)
    counts["attacked"] = len(kept)
    return CroppedImages(np.array(kept, np.int64), np.array(crops, np.int64).reshape(-1, 4), counts)
