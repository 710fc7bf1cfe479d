"""Crops of an attack, kept in a file for the same attack run again and for attacks on other models."""

import json
import zipfile

import numpy as np

from dejavu_utils.attack.boxes import CroppedImages
from dejavu_utils.files import complete_file


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
