"""Which images a model was trained on: written beside a .beton, carried by checkpoints, compared by the attack."""

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dejavu_utils.files import complete_file, digest

SUFFIX = ".images.npz"  # of the file beside a .beton


@dataclass
class TrainingImages:
    """Images of a training set. indices: int64 (n,), rising ImageFolder positions. listing: SHA-256 of the paths of the
    image folder that they are positions in (ImageListing.fingerprint). crops: what was cut out of them, as text; ""
    for whole images. labels: SHA-256 of the labels in the order of the .beton."""

    indices: np.ndarray
    listing: str
    crops: str = ""
    labels: str = ""

    @cached_property
    def digest(self):
        """The same for the same images of the same folder, whatever was cut out of them."""
        return digest(np.frombuffer(self.listing.encode(), np.uint8), self.indices)

    def is_of(self, listing):
        """Are the indices positions in this ImageListing?"""
        return self.listing == listing.fingerprint["sha256"]

    def plain(self):
        """As a checkpoint carries it: plain types and a tensor."""
        import torch

        indices = torch.from_numpy(self.indices.astype(np.int32))
        return {"indices": indices, "listing": self.listing, "crops": self.crops, "digest": self.digest}

    @classmethod
    def of_plain(cls, carried):
        """From what `plain` gave to a checkpoint; None for None."""
        if not isinstance(carried, dict):
            return None
        return cls(carried["indices"].numpy().astype(np.int64), carried["listing"], carried.get("crops", ""))


def save_training_images(beton_path, indices, listing, crops=""):
    """Writes FILE.beton.images.npz. indices: int64 (n,), in the order of the .beton. listing: ImageListing."""
    with complete_file(f"{beton_path}{SUFFIX}") as temporary:
        np.savez_compressed(
            temporary,
            indices=np.sort(indices).astype(np.int32),
            about=np.array(
                json.dumps(
                    {
                        "listing": listing.fingerprint["sha256"],
                        "crops": crops,
                        "labels": digest(listing.labels[indices]),
                    }
                )
            ),
        )


def load_training_images(beton):
    """The TrainingImages of a data.beton.Beton; None where no file lies beside it, or one of another .beton."""
    try:
        with np.load(f"{beton.path}{SUFFIX}") as saved:
            found = TrainingImages(saved["indices"].astype(np.int64), **json.loads(str(saved["about"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.labels == digest(beton.labels) else None
