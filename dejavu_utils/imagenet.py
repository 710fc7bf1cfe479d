"""Image folders as ImageNet ships them: listing and fingerprint, index files, decoded images for a network.

PyTorch is imported by the functions that need it: listing a folder does without.
"""

import hashlib
import json
import os
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
UNFINISHED_FILE = "partition.unfinished"  # there while imagenet_partition.py writes


class ImageListing:
    """The images of a torchvision ImageFolder tree; an image's index is its position in `ImageFolder.samples`.

    root: Path. classes: list of class folder names. labels: int64 (n,). paths: list of str, relative to root.
    """

    def __init__(self, root, classes, paths, labels):
        self.root, self.classes, self.paths = Path(root), classes, paths
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self):
        return len(self.paths)

    def path(self, index):
        """Path of the image with this index."""
        return self.root / self.paths[index]

    def stem(self, index):
        """The image's ID: its file name without the extension."""
        return os.path.splitext(os.path.basename(self.paths[index]))[0]

    @cached_property
    def fingerprint(self):
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


def list_images(root, flag="the image folder"):
    """Lists `root/CLASS/**/IMAGE` in ImageFolder's order (sorted, never directory-listing order).

    flag: what to call the folder in an error. InputError if there is no class folder or one holds no image.
    """
    if not root or not Path(root).is_dir():
        raise InputError(f"{flag} {root or ''}: no such folder")
    root = os.path.normpath(root)
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    paths, labels, empty = [], [], []
    for label, name in enumerate(classes):
        found = list(_images_below(root, name))
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if not paths or empty:
        what = f"no image in {', '.join(empty[:5])}" if empty else "there is none"
        raise InputError(f"{flag} {root}: expected class folders with images below it: {what}")
    return ImageListing(root, classes, paths, labels)


def _images_below(root, name):
    """Paths of a class's images, relative to root, in ImageFolder's order."""
    prefix = len(os.path.join(root, ""))
    for folder, _, names in sorted(os.walk(os.path.join(root, name), followlinks=True)):
        for file_name in sorted(names):
            if file_name.lower().endswith(EXTENSIONS):
                yield os.path.join(folder, file_name)[prefix:]


def read_class_names(path, flag):
    """{class folder: name to show} from a JSON file: {"n01440764": "tench"}, or {"0": ["n01440764", "tench"]}.

    InputError names the flag and what is wrong with the file.
    """
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
        names = dict(loaded.values() if all(isinstance(v, list) for v in loaded.values()) else loaded)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{flag} {path}: not a JSON file of class folders and their names ({error})") from None
    if not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise InputError(f"{flag} {path}: a class folder or its name is not a text")
    return names


def load_indices(path, flag, listing):
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
            raise InputError(f"{flag} {path}: imagenet_partition.py did not finish in {folder}; run it again")
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


def save_partition_record(folder, record, listing):
    """Writes partition.json: `record` and the listing's fingerprint, which `load_indices` compares."""
    save_json(Path(folder) / PARTITION_FILE, {**record, "fingerprint": listing.fingerprint})


def image_size(path):
    """(width, height) in pixels from the file's header; InputError names a file that is no image."""
    with _opened(path) as image:
        return image.size


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

    def at(self, resolution):
        """The same share of the image, `resolution` pixels wide; None: as it is."""
        side = resolution or self.side
        return replace(self, side=side, resize=int(side * self.resize / self.side))

    def __str__(self):
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"short side {self.resize} pixels ({self.interpolation}), centre {self.side}, mean {mean}, std {std}"


def evaluation_transform(resolution=None, preprocessing=Preprocessing()):  # noqa: B008 (frozen)
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


def _without_far_ends(image):
    """At most 32 short sides of the middle: a strip of 20 000 x 1 pixels would need 4 GB when it is resized."""
    short = min(image.size)
    left, top = (max(0, (side - 32 * short) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def load_image(path):
    """The image as PIL RGB; InputError names a file that cannot be decoded."""
    with _opened(path) as image:
        return image.convert("RGB")


@contextmanager
def _opened(path):
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # on damaged files, Pillow's readers raise anything: struct.error, KeyError, ...
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image ({reason}); replace it or give --skip_unreadable"
        ) from None


class IndexedImages:
    """A PyTorch data set of images, cut to `crops` (None: whole images) and transformed: (tensor, label) each.

    indices: int64 (n,). crops: n of (xmin, ymin, xmax, ymax) in pixels. transform: PIL image -> tensor.
    skip_unreadable: give None for an image that cannot be decoded, for `collate_readable`, instead of an InputError.
    """

    def __init__(self, listing, indices, transform, crops=None, skip_unreadable=False):
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


def collate_readable(items):
    """(images float (m, 3, h, w) or an empty tensor, labels int64 (m,), bool (n,): which of the n could be read)."""
    import torch

    readable = torch.tensor([item is not None for item in items])
    kept = [item for item in items if item is not None]
    images = torch.stack([image for image, _ in kept]) if kept else torch.empty(0)
    return images, torch.tensor([label for _, label in kept], dtype=torch.int64), readable


def readable(listing, indices, num_workers=0, on_progress=lambda count: None):
    """bool (n,): which of the images at `indices` can be decoded. on_progress: called with the images done since."""
    from torch.utils.data import DataLoader

    images = IndexedImages(listing, indices, _nothing, skip_unreadable=True)
    found = [np.empty(0, bool)]
    for _, _, batch in DataLoader(images, 64, num_workers=num_workers, collate_fn=collate_readable):
        found.append(batch.numpy())
        on_progress(len(batch))
    return np.concatenate(found)


def _nothing(image):
    import torch

    return torch.empty(0)


def without_unreadable(listing, indices, device, num_workers=0, on_progress=lambda count: None):
    """The indices of the images that can be decoded, int64; the processes share the look. InputError if there are none.

    on_progress: called with the number of images that this process has done since the last call.
    """
    import torch

    from dejavu_utils.distributed import rank, sum_over_processes, world_size

    own = slice(rank(), None, world_size())
    found = torch.zeros(len(indices), device=device)
    found[own] = torch.from_numpy(readable(listing, indices[own], num_workers, on_progress)).to(found)
    kept = indices[sum_over_processes(found).cpu().numpy() > 0]
    if not len(kept):
        raise InputError("--skip_unreadable: not one of the images could be read")
    return kept
