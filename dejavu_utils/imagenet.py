"""Image folders as ImageNet ships them: listing and fingerprint, index files, decoded images for a network.

PyTorch is imported by the functions that need it: listing a folder does without.
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dejavu_utils.errors import InputError
from dejavu_utils.files import save_json

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images in [0, 1], per channel
STD = (0.229, 0.224, 0.225)
PARTITION_FILE = "partition.json"
UNREADABLE = "unreadable image"  # among the counts of what is skipped
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258  # tags of EXIF and TIFF
_NOT_THE_IMAGES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
UNFINISHED_FILE = "partition.unfinished"  # there while imagenet_partition.py writes


class ImageListing:
    """The images of a torchvision ImageFolder tree; an image's index is its position in `ImageFolder.samples`.

    root: Path. classes: list of class folder names. labels: int64 (n,). paths: list of str, relative to root.
    passed_over: {extension: how many files}, what ImageFolder takes for no image; hidden files are not counted.
    """

    def __init__(
        self,
        root: str | Path,
        classes: list[str],
        paths: list[str],
        labels: Sequence[int] | np.ndarray,
        passed_over: dict[str, int] | tuple = (),
    ) -> None:
        self.root, self.classes, self.paths = Path(root), classes, paths
        self.passed_over = dict(passed_over)
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self):
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Path of the image with this index."""
        return self.root / self.paths[index]

    def stem(self, index: int) -> str:
        """The image's ID: its file name without the extension."""
        return os.path.splitext(os.path.basename(self.paths[index]))[0]

    def members(self, label: int) -> range:
        """The indices of a class, a range: labels never fall in a listing."""
        return range(*(int(place) for place in np.searchsorted(self.labels, [label, label + 1])))

    def is_hidden(self, index: int) -> bool:
        """Does the file or a folder on the way to it begin with a dot? (._X.JPEG, .thumbnails/X.JPEG: no images)"""
        return any(part.startswith(".") for part in self.paths[index].split(os.sep))

    @cached_property
    def fingerprint(self) -> dict:
        """What index files depend on: counts and SHA-256 of the relative paths in their order, whole and by class."""
        starts = np.searchsorted(self.labels, np.arange(len(self.classes) + 1))  # labels never fall in a listing
        by_class = {
            name: [int(stop - start), _digest(self.paths[start:stop])[:12]]
            for name, start, stop in zip(self.classes, starts, starts[1:])
        }
        return {
            "images": len(self),
            "classes": len(self.classes),
            "sha256": _digest(self.paths),
            "by_class": by_class,
        }


def _digest(paths):
    text = "\n".join(path.replace("\\", "/") for path in paths)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # names need not be valid UTF-8


def list_images(root: str | Path | None, flag: str = "the image folder") -> ImageListing:
    """Lists `root/CLASS/**/IMAGE` in ImageFolder's order (sorted, never directory-listing order).

    flag: what to call the folder in an error. InputError if there is no class folder, one holds no image, or a folder
    is reached twice through a link: its images would have several indices, and be in several sets.
    """
    if not root or not Path(root).is_dir():
        raise InputError(f"{flag} {root or ''}: no such folder")
    root = os.path.normpath(root)
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if _is_folder(entry))
    paths, labels, empty, passed_over, seen = [], [], [], Counter(), {}
    for label, name in enumerate(classes):
        found = []
        for folder, file_names in _folders_below(root, name, seen, flag):
            for file_name in file_names:
                if file_name.lower().endswith(EXTENSIONS):
                    found.append(os.path.join(folder, file_name))
                elif not file_name.startswith("."):
                    passed_over[os.path.splitext(file_name)[1] or "no extension"] += 1
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    passed_over = dict(sorted(passed_over.items()))
    if not paths or empty:
        what = f"no image in {', '.join(empty[:5])}" if empty else "there is none"
        there = f" (but {', '.join(passed_over)}; images are {', '.join(EXTENSIONS)})" if passed_over else ""
        raise InputError(f"{flag} {root}: expected class folders with images below it: {what}{there}")
    return ImageListing(root, classes, paths, labels, passed_over)


def _folders_below(root, name, seen, flag):
    """[(folder, its file names)] of a class, in ImageFolder's order; folders relative to root.

    seen: {real path of a folder: how it was reached}, of the classes before; grows.
    """
    above, waiting, found = os.path.join(os.path.realpath(root), ""), [name], []
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(os.path.join(root, folder))
        other = root if above.startswith(os.path.join(real, "")) else seen.get(real)
        if other is not None:
            raise InputError(
                f"{flag} {root}: the link {folder} leads to {other} again, so that one file would be several images; "
                "remove the link, or make a copy in its place"
            )
        seen[real] = folder
        with os.scandir(os.path.join(root, folder)) as entries:
            entries = list(entries)
        folders = [entry.name for entry in entries if _is_folder(entry)]
        waiting += [os.path.join(folder, below) for below in folders]
        found.append((folder, sorted({entry.name for entry in entries} - set(folders))))
    return sorted(found)


def linked_twice(listing: ImageListing) -> np.ndarray:
    """bool (n,): is the image a link to a file that is an earlier image too? Links to folders: see `list_images`."""
    found = np.zeros(len(listing), bool)
    links = [index for index in range(len(listing)) if os.path.islink(listing.path(index))]
    if links:
        first, real_folders = {}, {}
        for index, path in enumerate(listing.paths):
            folder, name = os.path.split(os.path.join(listing.root, path))
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)
            path = os.path.join(real_folders[folder], name)
            found[index] = first.setdefault(os.path.realpath(path) if os.path.islink(path) else path, index) != index
    return found


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def read_class_names(path: str | Path, flag: str) -> dict[str, str]:
    """{class folder: name to show} from a file.

    JSON: {"n01440764": "tench"}, or {"0": ["n01440764", "tench"]}. Else one class per line, of whose synonyms the first
    is shown, as in Kaggle's LOC_synset_mapping.txt: n01440764 tench, Tinca tinca. InputError names the flag and what is
    wrong with the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
        if text and text[0] not in "{[":
            pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
            return {folder: names.split(",")[0].strip() for folder, names in pairs}
        loaded = json.loads(text)
        names = dict(loaded.values() if all(isinstance(v, list) for v in loaded.values()) else loaded)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{flag} {path}: neither a JSON file of class folders and their names nor one of such lines ({error})"
        ) from None
    if not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise InputError(f"{flag} {path}: a class folder or its name is not a text")
    return names


def load_indices(path: str | Path | None, flag: str, listing: ImageListing) -> np.ndarray:
    """The image indices in an .npy file, int64 (n,), checked against the listing.

    Where a partition.json lies in the file's folder or the one above, its fingerprint must be that of the listing;
    index files made by others (without one) only have to be in range. InputError names the flag and what differs.
    """
    if not path or not Path(path).is_file():
        raise InputError(f"{flag} {path or ''}: no such file; make it with imagenet_partition.py")
    try:
        indices = np.load(path)
    except Exception as error:  # on damaged files, NumPy raises anything, too
        raise InputError(f"{flag} {path}: not an .npy file of indices: {error}") from None
    if not isinstance(indices, np.ndarray):
        raise InputError(f"{flag} {path}: not an .npy file of indices, but an archive")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise InputError(f"{flag} {path}: holds {indices.dtype} {indices.shape}, expected a row of image indices")
    for folder in (Path(path).parent, Path(path).parent.parent):
        if (folder / UNFINISHED_FILE).is_file():
            raise InputError(f"{flag} {path}: imagenet_partition.py did not finish in {folder}; rerun it")
        if (folder / PARTITION_FILE).is_file():
            _check_fingerprint(folder / PARTITION_FILE, listing, f"{flag} {path}")
            break
    if len(indices) and (indices.min() < 0 or indices.max() >= len(listing)):
        raise InputError(
            f"{flag} {path}: holds indices from {indices.min()} to {indices.max()}, but {listing.root} has images 0 to "
            f"{len(listing) - 1}; give the image folder that the index files were made from"
        )
    indices = indices.astype(np.int64)
    if len(indices) and np.bincount(indices).max() > 1:
        raise InputError(f"{flag} {path}: holds an index twice; make it again with imagenet_partition.py")
    return indices


def _check_fingerprint(partition_file, listing, what):
    try:
        recorded = json.loads(partition_file.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{partition_file}: not written by imagenet_partition.py ({error!r}); make it again") from None
    found = listing.fingerprint
    if recorded.get("sha256") == found["sha256"]:
        return
    before, now = recorded.get("by_class", {}), found["by_class"]
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    raise InputError(
        f"{what}: made for another image folder than {listing.root}: {recorded.get('images')} images then, "
        f"{found['images']} now; {len(changed)} classes differ, the first is {changed[0] if changed else '?'}; "
        "give the folder of then, or run imagenet_partition.py again"
    )


def save_partition_record(folder: str | Path, record: dict, listing: ImageListing) -> None:
    """Writes partition.json: `record` and the listing's fingerprint, which `load_indices` compares."""
    save_json(Path(folder) / PARTITION_FILE, {**record, "fingerprint": listing.fingerprint})


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header; InputError names a file that is no image."""
    with _opened(path) as image:
        return image.size


def image_frame(path: str | Path) -> tuple[tuple[int, int], int]:
    """((width, height) in pixels, as decoded; EXIF orientation, 1 to 8, which is left aside when an image is decoded).

    1: none, or decoding applies it (Pillow does for TIFF). InputError names a file that is no image.
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
    """How a network is shown images: the short side resized to `resize` pixels, the centre cut out, `side` pixels wide
    and high, then (pixels in [0, 1] - mean) / std per channel. The default is the published one.
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

    def __str__(self):
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"short side {self.resize} pixels ({self.interpolation}), centre {self.side}, mean {mean}, std {std}"


def evaluation_transform(resolution: int | None = None, preprocessing: Preprocessing = Preprocessing()) -> Callable:  # noqa: B008 (frozen)
    """PIL image -> normalized float32 (3, resolution, resolution); None: as many pixels as `preprocessing` says."""
    from torchvision import transforms

    like = preprocessing.at(resolution)
    return transforms.Compose(
        [
            _without_far_ends,
            transforms.Resize(like.resize, transforms.InterpolationMode(like.interpolation)),
            transforms.CenterCrop(like.side),
            transforms.ToTensor(),
            transforms.Normalize(like.mean, like.std),
        ]
    )


class EachTransform:
    """PIL image -> what each of several transforms makes of it. A class, for processes that read images."""

    def __init__(self, *transforms: Callable) -> None:
        self.transforms = transforms

    def __call__(self, image):
        return tuple(transform(image) for transform in self.transforms)


def _without_far_ends(image):
    """At most 32 short sides of the middle: a strip of 20 000 x 1 pixels would need 4 GB when it is resized."""
    short = min(image.size)
    left, top = (max(0, (side - 32 * short) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def load_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """The image as PIL RGB, 8 bits per channel; InputError names a file that cannot be decoded.

    16-bit images keep their high byte, gray ones as Pillow does it with color. Refused are floating-point and 32-bit
    pixels: which number is white is not known. at_least: a JPEG may be decoded smaller, to this many pixels per side or
    more, which is faster.
    """
    with _opened(path) as image:
        if at_least:
            image.draft("RGB", (at_least, at_least))
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            kind = "floating-point" if image.mode == "F" else "32-bit or signed"
            raise ValueError(f"its pixels are {kind} numbers, of which none is white: convert them to 8 or 16 bits")
        if image.mode.startswith("I"):
            bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
            image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        return image.convert("RGB")


@contextmanager
def _opened(path):
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # on damaged files, Pillow's readers raise anything: struct.error, KeyError, ...
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_THE_IMAGES_FAULT:
            raise  # it would be left out with --skip_unreadable
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace it or give --skip_unreadable"
        ) from None


class IndexedImages:
    """A PyTorch data set of images, cut to `crops` (None: whole images) and transformed: (tensor, label) each.

    indices: int64 (n,). crops: n of (xmin, ymin, xmax, ymax) in pixels. transform: PIL image -> tensor.
    skip_unreadable: give None for an image that cannot be decoded, for `collate_readable`, instead of an InputError.
    """

    def __init__(
        self,
        listing: ImageListing,
        indices: np.ndarray,
        transform: Callable,
        crops: np.ndarray | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        self.listing, self.indices, self.transform, self.crops = listing, indices, transform, crops
        self.skip_unreadable = skip_unreadable

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = self.indices[position]
        try:
            image = load_image(self.listing.path(index))
        except InputError:
            if self.skip_unreadable:
                return None
            raise
        if self.crops is not None:
            image = image.crop(tuple(self.crops[position]))
        return self.transform(image), int(self.listing.labels[index])


def collate_readable(items: list) -> tuple:
    """(images float (m, 3, h, w) or an empty tensor, labels int64 (m,), bool (n,): which of the n could be read).

    Where the transform gives several tensors of an image, the images are a list of as many batches.
    """
    import torch.utils.data

    readable = torch.tensor([item is not None for item in items])
    kept = [item for item in items if item is not None]
    images = torch.utils.data.default_collate([image for image, _ in kept]) if kept else torch.empty(0)
    return images, torch.tensor([label for _, label in kept], dtype=torch.int64), readable
