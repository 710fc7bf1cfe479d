"""Image folders as ImageNet ships them: listing and fingerprint, decoded images, how networks are
shown them."""

import errno
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dejavu_utils.errors import InputError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images in [0, 1], per channel
STD = (0.229, 0.224, 0.225)
UNREADABLE = "unreadable image"  # among the counts of what is skipped
# torchvision's
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_ORIENTATION, _BITS, _PHOTOMETRIC, _FORMAT = 274, 258, 262, 339  # tags of EXIF and TIFF
_NOT_THE_IMAGES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass
class ImageListing:
    """The images of a torchvision ImageFolder tree; an image's index is its position in
    `ImageFolder.samples`.

    classes: names of the class folders. paths: relative to root. labels: int64 (n,). passed_over:
    {extension: how many files}, what ImageFolder takes for no image; hidden files are not counted.
    """

    root: Path
    classes: list[str]
    paths: list[str]
    labels: np.ndarray
    passed_over: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Path of the image with this index."""
        return self.root / self.paths[index]

    def text(self, index: int) -> str:
        """The relative path as tables have it: bytes that are not UTF-8 are written as \\udc.. ."""
        return self.paths[index].encode(errors="backslashreplace").decode()

    def stem(self, index: int) -> str:
        """The image's ID: its file name without the extension."""
        return os.path.splitext(os.path.basename(self.paths[index]))[0]

    def members(self, label: int) -> range:
        """The indices of a class, a range: labels are sorted."""
        return range(*np.searchsorted(self.labels, [label, label + 1]).tolist())

    def is_hidden(self, index: int) -> bool:
        """Does the file or a folder on the way to it begin with a dot? (._X.JPEG,
        .thumbnails/X.JPEG: no images)"""
        return any(part.startswith(".") for part in self.paths[index].split(os.sep))

    @cached_property
    def fingerprint(self) -> dict:
        """What index files depend on: counts and SHA-256 of the relative paths in their order,
        whole and by class."""
        by_class = {}
        for label, name in enumerate(self.classes):
            members = self.members(label)
            paths = self.paths[members.start : members.stop]
            by_class[name] = [len(paths), _digest(paths)[:12]]
        return {
            "images": len(self),
            "classes": len(self.classes),
            "sha256": _digest(self.paths),
            "by_class": by_class,
        }


def _digest(paths: Sequence[str]) -> str:
    text = "\n".join(path.replace("\\", "/") for path in paths)
    # names need not be valid UTF-8
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def list_images(root: str | Path | None, flag: str = "the image folder") -> ImageListing:
    """Lists `root/CLASS/**/IMAGE` in ImageFolder's order (sorted, never directory-listing order).

    flag: what to call the folder in an error. InputError if there is no class folder, one holds no
    image, or a folder is reached twice through a link: its images would have several indices, and
    be in several sets.
    """
    if not root or not Path(root).is_dir():
        raise InputError(f"{flag} {root or ''}: no such folder")
    root = os.path.normpath(root)
    _, classes, _ = next(os.walk(root, onerror=_refuse))
    classes.sort()
    paths: list[str] = []
    labels: list[int] = []
    passed_over = Counter()
    seen = {}
    for label, name in enumerate(classes):
        for folder, file_names in _folders_below(root, name, seen, flag):
            for file_name in file_names:
                if file_name.lower().endswith(EXTENSIONS):
                    paths.append(os.path.join(folder, file_name))
                    labels.append(label)
                elif not file_name.startswith("."):
                    passed_over[os.path.splitext(file_name)[1] or "no extension"] += 1
    of_images = np.array(labels, np.int64)
    empty = [classes[label] for label in np.setdiff1d(range(len(classes)), of_images)]
    if not paths or empty:
        what = f"no image in {', '.join(empty[:5])}" if empty else "there is none"
        there = ""
        if passed_over:
            there = f" (but {', '.join(sorted(passed_over))}; images are {', '.join(EXTENSIONS)})"
        raise InputError(
            f"{flag} {root}: expected class folders with images below it: {what}{there}"
        )
    by_extension = dict(sorted(passed_over.items()))
    return ImageListing(Path(root), classes, paths, of_images, by_extension)


def _folders_below(
    root: str, name: str, seen: dict[str, str], flag: str
) -> list[tuple[str, list[str]]]:
    """[(folder, its file names)] of a class, in ImageFolder's order; folders relative to root.

    seen: {real path of a folder: how it was reached}, of the classes before; grows.
    """
    above = os.path.join(os.path.realpath(root), "")
    found = []
    for path, _, file_names in os.walk(os.path.join(root, name), onerror=_refuse, followlinks=True):
        folder = os.path.relpath(path, root)
        real = os.path.realpath(path)
        other = root if above.startswith(os.path.join(real, "")) else seen.get(real)
        if other is not None:
            raise InputError(
                f"{flag} {root}: the link {folder} leads to {other} again, so that one file would be several images; "
                "remove the link, or make a copy in its place"
            )
        seen[real] = folder
        found.append((folder, sorted(file_names)))
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise error


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header; InputError names a file that is no
    image."""
    with _opened(path) as image:
        return image.size


def image_frame(path: str | Path) -> tuple[tuple[int, int], int]:
    """((width, height) in pixels, as decoded; EXIF orientation, 1 to 8, which is left aside when an
    image is decoded).

    1: none, or decoding applies it (Pillow does for TIFF). InputError names a file that is no
    image.
    """
    with _opened(path) as image:
        if image.format == "TIFF":
            image.load()
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # broken EXIF: the image can be decoded all the same
            orientation = 1
        return image.size, orientation if orientation in range(1, 9) else 1


@dataclass(frozen=True)
class Preprocessing:
    """How a network is shown images: the short side resized to `resize` pixels, the centre cut out,
    `side` pixels wide and high, then (pixels in [0, 1] - mean) / std per channel. The default is
    the published one.
    """

    side: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple = MEAN
    std: tuple = STD

    def at(self, resolution: int | None) -> "Preprocessing":
        """The same fraction of the image, `resolution` pixels wide; None: as it is."""
        side = resolution or self.side
        return replace(self, side=side, resize=int(side * self.resize / self.side))

    def __str__(self) -> str:
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"short side {self.resize} pixels ({self.interpolation}), centre {self.side}, mean {mean}, std {std}"


def load_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """The image as PIL RGB, 8 bits per channel; InputError names a file that cannot be decoded.

    16 bits keep their high byte, gray as with color in Pillow. Refused are floating-point, 32-bit
    and signed pixels: which number is white is not known. at_least: a JPEG may be decoded to fewer
    pixels, this many per side or more.
    """
    with _opened(path) as image:
        if at_least:
            image.draft("RGB", (at_least, at_least))
        tags = getattr(image, "tag_v2", {})
        is_signed = 2 in tags.get(_FORMAT, ())
        is_32_bit = image.mode == "I" and image.format not in ("PNG", "PPM")
        if image.mode == "F" or is_signed or is_32_bit:
            kind = "floating-point" if image.mode == "F" else "32-bit or signed"
            raise ValueError(
                f"its pixels are {kind} numbers without a defined white: convert them to 8 or 16 bits"
            )
        if image.mode.startswith("I"):
            bits = tags.get(_BITS, (16,))[0]
            pixels = (np.asarray(image) >> bits - 8).astype(np.uint8)
            # 0 is white
            image = Image.fromarray(255 - pixels if tags.get(_PHOTOMETRIC) == 0 else pixels)
        return image.convert("RGB")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Pillow's, of palettes with transparency or damaged EXIF
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    # on damaged files, Pillow's readers raise anything: struct.error, KeyError, ...
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_THE_IMAGES_FAULT:
            raise  # it would be left out with --skip_unreadable
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace it or give --skip_unreadable"
        ) from None


def read_class_names(path: str | Path, flag: str) -> dict[str, str]:
    """{class folder: name to show} from a file.

    JSON: {"n01440764": "tench"}, or {"0": ["n01440764", "tench"]}. Else one class per line, of
    whose synonyms the first is shown, as in Kaggle's LOC_synset_mapping.txt: n01440764 tench, Tinca
    tinca. InputError names the flag and what is wrong with the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
        if text and text[0] not in "{[":
            pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
            return {folder: names.split(",")[0].strip() for folder, names in pairs}
        loaded = json.loads(text)
        names = dict(
            loaded.values() if all(isinstance(v, list) for v in loaded.values()) else loaded
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{flag} {path}: neither a JSON file of class folders and their names nor one of such lines ({error})"
        ) from None
    if not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise InputError(f"{flag} {path}: a class folder or its name is not a text")
    return names
