"""Crops of an attack, kept in a file for the same attack run again and for attacks on other models."""

import json
import zipfile
from dataclasses import asdict

import numpy as np

from dejavu_utils.attack.boxes import CroppedImages, file_fingerprint, take_crops
from dejavu_utils.files import complete_file


def crops_of(path, listing, sets, rule, annotations=None, skip_unreadable=False, progress=None):
    """({set: CroppedImages}, do they come from the cache?) of {set: int64 (n,) image indices}.

    path: of the cache, which is written if it does not hold them. rule, annotations, skip_unreadable: as
    boxes.take_crops takes them. progress: (total, text) -> context manager whose `update` is told of images done.
    """
    state = file_fingerprint(listing, np.concatenate(list(sets.values())), annotations)
    sizes = {name: len(indices) for name, indices in sets.items()}
    key = json.dumps([*asdict(rule).values(), skip_unreadable, sizes, state])
    cached = load_crops(path, key)
    if cached:
        return cached, True
    cropped = {}
    for name, indices in sets.items():
        with progress(len(indices), f"images of set {name} searched for a crop") as bar:
            cropped[name] = take_crops(listing, indices, rule, annotations, bar.update, skip_unreadable)
    save_crops(path, key, cropped)
    return cropped, False


def load_crops(path, key):
    """{set: CroppedImages} that `save_crops` wrote with this key (text), or None."""
    try:
        with np.load(path) as cache:
            if str(cache["key"]) != key:
                return None
            names = [name.removesuffix("_idxs") for name in cache.files if name.endswith("_idxs")]
            return {
                name: CroppedImages(
                    cache[f"{name}_idxs"], cache[f"{name}_crops"], json.loads(str(cache[f"{name}_counts"]))
                )
                for name in names
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_crops(path, key, cropped):
    """Writes {set: CroppedImages} with a key that says all that they depend on."""
    arrays = {"key": np.array(key)}
    for name, images in cropped.items():
        arrays |= {f"{name}_idxs": images.indices, f"{name}_crops": images.crops}
        arrays[f"{name}_counts"] = np.array(json.dumps(images.counts))
    with complete_file(path) as temporary:
        np.savez(temporary, **arrays)
