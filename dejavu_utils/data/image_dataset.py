"""Images as a network is shown them: transforms, and data sets of image files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms

from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing, Preprocessing, load_image


def evaluation_transform(
    resolution: int | None = None,
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
) -> Callable:
    """PIL image -> normalized float32 (3, resolution, resolution); None: as many pixels as
    `preprocessing` says."""
    like = preprocessing.at(resolution)
    return transforms.Compose(
        [
            without_far_ends,
            transforms.Resize(like.resize, transforms.InterpolationMode(like.interpolation)),
            transforms.CenterCrop(like.side),
            transforms.ToTensor(),
            transforms.Normalize(like.mean, like.std),
        ]
    )


class EachTransform:
    """PIL image -> what each of several transforms makes of it. A class, since workers pickle
    it."""

    def __init__(self, *transforms: Callable) -> None:
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, ...]:
        return tuple(transform(image) for transform in self.transforms)


def without_far_ends(image: Image.Image) -> Image.Image:
    """At most 32 short sides of the middle: a strip of 20 000 x 1 pixels would need 4 GB when it is
    resized."""
    short = min(image.size)
    left, top = (max(0, (side - 32 * short) // 2) for side in image.size)
    if not left and not top:
        return image
    return image.crop((left, top, image.width - left, image.height - top))


@dataclass
class IndexedImages:
    """A PyTorch data set of images, cut to `crops` (None: whole images) and transformed: (tensor,
    label) each.

    indices: int64 (n,). crops: n of (xmin, ymin, xmax, ymax) in pixels. transform: PIL image ->
    tensor. skip_unreadable: give None for an image that cannot be decoded, for `collate_readable`,
    instead of an InputError. Views that depend on more than the image override `view`.
    """

    listing: ImageListing
    indices: np.ndarray
    transform: Callable
    crops: np.ndarray | None = None
    skip_unreadable: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, int] | None:
        index = int(self.indices[position])
        try:
            image = load_image(self.listing.path(index))
        except InputError:
            if self.skip_unreadable:
                return None
            raise
        if self.crops is not None:
            image = image.crop(tuple(self.crops[position]))
        return self.view(position, image), int(self.listing.labels[index])

    def view(self, position: int, image: Image.Image) -> Any:
        """What the network is shown of the image at `position` of the data set."""
        return self.transform(image)


def collate_readable(items: list) -> tuple:
    """(images float (m, 3, h, w) or an empty tensor, labels int64 (m,), bool (n,): which of the n
    could be read).

    Where the transform gives several tensors of an image, the images are a list of as many batches.
    """
    readable = torch.tensor([item is not None for item in items])
    kept = [item for item in items if item is not None]
    images = default_collate([image for image, _ in kept]) if kept else torch.empty(0)
    return images, torch.tensor([label for _, label in kept], dtype=torch.int64), readable
