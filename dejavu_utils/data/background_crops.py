"""The crops that the attack takes from images, and the file that keeps them for other attacks."""

import hashlib
import json
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dejavu_utils.crops import DEFAULT_CROP_RULE, Box, CropRule
from dejavu_utils.data.annotations import OUTSIDE, REASONS, TOO_SMALL, WHOLE, Annotations, Unusable
from dejavu_utils.data.provenance import MADE_FROM, Provenance, first_difference_in_words
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, digest, load_npz
from dejavu_utils.imagenet import UNREADABLE, ImageListing, image_size
from dejavu_utils.log import Progress
from dejavu_utils.runtime.resumable import OnProgress

# images whose boxes are compared with their pixels; fewer than _FEW show nothing
_LOOKED_AT = 256
_FEW = 10


@dataclass
class CroppedImages:
    """Images and the crop of each. indices: int64 (n,), ImageFolder positions. crops: int64 (n, 4),
    xmin, ymin, xmax, ymax in pixels. counts: {"images", "attacked", and how many were skipped for
    what}."""

    indices: np.ndarray
    crops: np.ndarray
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.indices)


def frame_warnings(
    annotations: Annotations | None, sets: dict[str, np.ndarray], rule: CropRule, source: str
) -> list[str]:
    """Warnings (list of str) if boxes seem to be in another coordinate frame, which only many
    images can show.

    Looks at up to 256 images, evenly spread. annotations: of their listing, or None. sets: {set:
    int64 (n,) image indices}. source: flag and folder of the boxes, for the text.
    """
    if annotations is None:
        return []
    indices = np.concatenate(list(sets.values()))
    looked = 0
    beyond = 0
    furthest = 0
    sides = []
    for index in indices[:: max(1, math.ceil(len(indices) / _LOOKED_AT))]:
        try:
            boxes, size = annotations.boxes(index, replace(rule, margin=0))
        except InputError:  # whoever reads the image says so
            continue
        except Unusable as reason:
            if str(reason) == OUTSIDE:
                looked += 1
                beyond += 1
            continue
        right = max(box[2] for box in boxes)
        bottom = max(box[3] for box in boxes)
        looked += 1
        furthest = max(furthest, right, bottom)
        beyond += right > 1.02 * size[0] + 2 or bottom > 1.02 * size[1] + 2
        sides.append(max(size))
    if looked < _FEW:
        return []
    if 10 * beyond >= looked:
        return [
            f"{source}: boxes reach beyond the image in {beyond} of {looked} images that were looked at: are they per "
            "cent, or of other images? Crops may show the object"
        ]
    if furthest <= 100 and np.median(sides) > 200:
        return [
            f"{source}: {looked} images that were looked at are {np.median(sides):.0f} pixels long, and no box ends "
            "beyond 100: are they per cent? Crops may show the object"
        ]
    return []


def file_fingerprint(
    listing: ImageListing, indices: np.ndarray | range, annotations: Annotations | None = None
) -> str:
    """SHA-256 of the paths of images, and of sizes and times of their files and, with annotations,
    of their XML."""

    def line(index: int) -> str:
        try:
            xml = _file_state(annotations.path(index)) if annotations else ""
        except Unusable as reason:
            xml = str(reason)
        return f"{index} {listing.paths[index]} {_file_state(listing.path(index))} {xml}\n"

    contents = hashlib.sha256()
    with ThreadPoolExecutor(8) as pool:  # mostly waiting for the disk
        for text in pool.map(line, indices):
            contents.update(text.encode(errors="surrogateescape"))
    return contents.hexdigest()


def _file_state(path: Path) -> str:
    try:
        stat = os.stat(path)
    except OSError:
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def take_crops(
    listing: ImageListing,
    indices: np.ndarray,
    rule: CropRule = DEFAULT_CROP_RULE,
    annotations: Annotations | None = None,
    on_progress: OnProgress = lambda count: None,
    skip_unreadable: bool = False,
) -> CroppedImages:
    """The crops of the images at `indices` that have one, by a CropRule.

    annotations: the listing's, for rules that read boxes. Sizes come from the images' headers.
    on_progress: called with the number of images done since the last call. skip_unreadable: count
    images that cannot be read instead of raising an InputError. Returns the CroppedImages that have
    a crop.
    """

    def crop_of(index: int) -> Box | str:
        """The crop, or why there is none."""
        try:
            if rule.reads_boxes and annotations:
                boxes, size = annotations.boxes(index, rule)
            else:
                boxes = []
                size = image_size(listing.path(index))
        except Unusable as reason:
            return str(reason)
        except InputError:
            if skip_unreadable:
                return UNREADABLE
            raise
        crop = rule.crop(size, boxes)
        if rule.reads_boxes and crop == (0, 0, *size):
            return WHOLE
        return crop or TOO_SMALL

    reasons = REASONS if rule.reads_boxes else ()
    counts = dict.fromkeys(("images", "attacked", *reasons, UNREADABLE), 0)
    kept = []
    crops = []
    with ThreadPoolExecutor(8) as pool:  # mostly waiting for the disk
        for index, crop_or_reason in zip(indices, pool.map(crop_of, indices)):
            counts["images"] += 1
            if isinstance(crop_or_reason, str):
                counts[crop_or_reason] += 1
            else:
                kept.append(index)
                crops.append(crop_or_reason)
            on_progress(1)
    counts["attacked"] = len(kept)
    boxes = np.array(crops, np.int64).reshape(-1, 4)  # of no image too
    return CroppedImages(np.array(kept, np.int64), boxes, counts)


def in_words(counts: dict[str, int]) -> str:
    """The counts of what was skipped, the largest first: "3 no XML, 1 reversed box"."""
    skipped = Counter(counts)
    del skipped["images"], skipped["attacked"]
    return ", ".join(f"{n} {what}" for what, n in skipped.most_common() if n)


def crops_of(
    path: str | Path,
    listing: ImageListing,
    sets: dict[str, np.ndarray],
    rule: CropRule,
    annotations: Annotations | None = None,
    skip_unreadable: bool = False,
) -> tuple[dict[str, CroppedImages], bool]:
    """({set: CroppedImages}, do they come from the cache?) of {set: int64 (n,) image indices}.

    path: of the cache, which is written if it does not hold them. rule, annotations,
    skip_unreadable: as `take_crops` takes them.
    """
    record = Provenance(
        images=listing.fingerprint["sha256"],
        sets={name: digest(indices) for name, indices in sets.items()},
        crops={"rule": str(rule)},
        files=file_fingerprint(listing, np.concatenate(list(sets.values())), annotations),
        settings={"skip_unreadable": skip_unreadable},
    )
    cached = load_crops(path, record)
    if cached:
        return cached, True
    cropped = {}
    for name, indices in sets.items():
        with Progress(len(indices), f"images of set {name} searched for a crop") as bar:
            cropped[name] = take_crops(
                listing, indices, rule, annotations, bar.update, skip_unreadable
            )
    save_crops(path, record, cropped)
    return cropped, False


def load_crops(path: str | Path, record: Provenance) -> dict[str, CroppedImages] | None:
    """{set: CroppedImages} that `save_crops` wrote, or None where they were made from something
    else."""
    try:
        cache = load_npz(path)
        there = Provenance.from_plain(json.loads(str(cache[MADE_FROM])))
    except (ValueError, KeyError):
        return None
    if there is None or first_difference_in_words("crops", record, there):
        return None
    cropped = {}
    for name in record.sets or ():
        counts = json.loads(str(cache[f"{name}_counts"]))
        cropped[name] = CroppedImages(cache[f"{name}_idxs"], cache[f"{name}_crops"], counts)
    return cropped


def save_crops(path: str | Path, record: Provenance, cropped: dict[str, CroppedImages]) -> None:
    """Writes {set: CroppedImages} and the Provenance of all that they depend on."""
    arrays = {MADE_FROM: np.array(json.dumps(record.plain()))}
    for name, images in cropped.items():
        arrays |= {f"{name}_idxs": images.indices, f"{name}_crops": images.crops}
        arrays[f"{name}_counts"] = np.array(json.dumps(images.counts))
    with complete_file(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
