"""Index files (.npy) of images, checked against the listing of their folder."""

import json
from pathlib import Path

import numpy as np

from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing

PARTITION_FILE = "partition.json"
UNFINISHED_FILE = "partition.unfinished"  # there while imagenet_partition.py writes


def load_indices(
    path: str | Path | None, flag: str, listing: ImageListing, may_be_empty: bool = True
) -> np.ndarray:
    """The image indices in an .npy file, int64 (n,), checked against the listing.

    Where a partition.json lies in the file's folder or the one above, its fingerprint must be that
    of the listing; index files made by others (without one) only have to be in range. InputError
    names the flag and what differs.
    """
    indices = read_indices(path, flag)
    for folder in Path(path or "").parents[:2]:
        if (folder / UNFINISHED_FILE).is_file():
            raise InputError(
                f"{flag} {path}: imagenet_partition.py did not finish in {folder}; rerun it"
            )
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
        raise InputError(
            f"{flag} {path}: holds an index twice; make it again with imagenet_partition.py"
        )
    if not (len(indices) or may_be_empty):
        raise InputError(f"{flag} {path}: holds no index")
    return indices


def read_indices(path: str | Path | None, flag: str) -> np.ndarray:
    """The image indices in an .npy file, integers (n,), unchecked; InputError for another file."""
    if not path or not Path(path).is_file():
        raise InputError(f"{flag} {path or ''}: no such file; make it with imagenet_partition.py")
    try:
        indices = np.load(path)
    except Exception as error:  # on damaged files, NumPy raises anything, too
        raise InputError(f"{flag} {path}: not an .npy file of indices: {error}") from None
    if not isinstance(indices, np.ndarray):
        raise InputError(f"{flag} {path}: not an .npy file of indices, but an archive")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise InputError(
            f"{flag} {path}: holds {indices.dtype} {indices.shape}, expected a row of image indices"
        )
    return indices


def listing_of(path: str | Path) -> str | None:
    """SHA-256 of the listing that an index file was made for, as the partition.json near it says;
    None if none does."""
    for folder in Path(path).parents[:2]:
        if (folder / PARTITION_FILE).is_file():
            return _recorded_fingerprint(folder / PARTITION_FILE).get("sha256")
    return None


def _recorded_fingerprint(partition_file: Path) -> dict:
    try:
        recorded = json.loads(partition_file.read_text(encoding="utf-8"))
        return dict(recorded["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{partition_file}: not written by imagenet_partition.py ({error!r}); make it again"
        ) from None


def _check_fingerprint(partition_file: Path, listing: ImageListing, source: str) -> None:
    recorded = _recorded_fingerprint(partition_file)
    current = listing.fingerprint
    if recorded.get("sha256") == current["sha256"]:
        return
    before = recorded.get("by_class", {})
    now = current["by_class"]
    changed = [
        name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
    ]
    raise InputError(
        f"{source}: made for another image folder than {listing.root}: {recorded.get('images')} images then, "
        f"{current['images']} now; {len(changed)} classes differ, the first is {changed[0] if changed else '?'}; "
        "give the original folder, or run imagenet_partition.py again"
    )
