"""Augmentations of the training views: drawn per image from a keyed random stream, applied to batches on the device.

Definitions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, RandomSolarize, GaussianBlur); here
every image of a batch has its own parameters. Drawing is NumPy on the CPU, applying is PyTorch on any device.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms import functional

from dejavu_utils.imagenet import MEAN, STD

_CROP_TRIES = 10
_DRAWS = 64  # uniform numbers set aside for one image and view; a multiple of 4, the block size of Philox
_ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class View:
    """What one view of an image goes through. area: range of the crop's share of the image."""

    area: tuple = (0.08, 1.0)
    aspect: tuple = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    solarize: float = 0.0
    blur: bool = False


FIRST_VIEW = View(blur=True)
SECOND_VIEW = View(solarize=0.2)


def uniforms(seed, epoch, view, start, count):
    """float64 (count, draws) in [0, 1): the random numbers of the images at positions start ... of an epoch's order.

    A counter-based generator (Philox) is set to the position, so the numbers of an image depend on nothing but (seed,
    epoch, view, position): not on the batch size, the number of workers, or where a run was resumed.
    """
    key = np.random.SeedSequence([seed, epoch, view]).generate_state(2, np.uint64)
    stream = np.random.Philox(counter=start * (_DRAWS // 4), key=key)
    return np.random.Generator(stream).random((count, _DRAWS))


def epoch_order(seed, epoch, n):
    """A permutation of n images, int64 (n,), that depends on (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, 2**32 - 1]))).permutation(n)


def crop_boxes(draws, sizes, view):
    """Random resized crops as torchvision draws them: int64 (n, 4) of xmin, ymin, xmax, ymax in pixels.

    draws: float64 (n, >= 22) in [0, 1). sizes: int (n, 2), height and width in pixels. The first of ten tries (area,
    log-uniform aspect) that fits is taken, else the largest centre crop within the aspect range.
    """
    height, width = (np.asarray(sizes)[:, i, None].astype(np.float64) for i in (0, 1))
    low, high = view.area
    area = height * width * (low + (high - low) * draws[:, 0:_CROP_TRIES])
    aspect = np.exp(np.log(view.aspect[0]) + np.log(view.aspect[1] / view.aspect[0]) * draws[:, _CROP_TRIES:20])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)[:, None]
    w, h = np.take_along_axis(w, first, 1), np.take_along_axis(h, first, 1)
    x, y = np.floor(draws[:, 20:21] * (width - w + 1)), np.floor(draws[:, 21:22] * (height - h + 1))
    ratio = width / height
    whole_w = np.where(ratio > view.aspect[1], np.rint(height * view.aspect[1]), width)
    whole_h = np.where(ratio < view.aspect[0], np.rint(width / view.aspect[0]), height)
    none = ~fits.any(axis=1, keepdims=True)
    w, h = np.where(none, whole_w, w), np.where(none, whole_h, h)
    x = np.where(none, (width - w) // 2, x)
    y = np.where(none, (height - h) // 2, y)
    return np.concatenate([x, y, x + w, y + h], axis=1).astype(np.int64)


def center_boxes(sizes):
    """Evaluation crops: the centred square of 224 / 256 of the short side, int64 (n, 4)."""
    sizes = np.asarray(sizes)
    side = np.maximum(1, (sizes.min(axis=1) * 224) // 256)
    y, x = (sizes[:, 0] - side) // 2, (sizes[:, 1] - side) // 2
    return np.stack([x, y, x + side, y + side], axis=1).astype(np.int64)


@dataclass
class Parameters:
    """Of a batch, one entry an image: flip, gray, solarize bool (n,); factors float32 (n, 4) of brightness, contrast,
    saturation, hue; order int64 (n, 4), which of these comes first, second, ...; jitter bool (n,); sigma: pixels of
    the batch's blur, or None."""

    flip: torch.Tensor
    jitter: torch.Tensor
    factors: torch.Tensor
    order: torch.Tensor
    gray: torch.Tensor
    solarize: torch.Tensor
    sigma: float | None

    def to(self, device):
        moved = {
            name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in vars(self).items()
        }
        return Parameters(**moved)


def draw_parameters(draws, view):
    """Parameters of everything that follows the crop. draws: float64 (n, 64) in [0, 1), of which 22 to 32 are used."""
    u = draws[:, 22:]
    strength = np.array([view.brightness, view.contrast, view.saturation, view.hue])
    center = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.maximum(center - strength, [0, 0, 0, -0.5])
    factors = low + (center + strength - low) * u[:, 2:6]
    return Parameters(
        flip=torch.from_numpy(u[:, 0] < view.flip),
        jitter=torch.from_numpy(u[:, 1] < view.jitter),
        factors=torch.from_numpy(factors.astype(np.float32)),
        order=torch.from_numpy(_ORDERS[(u[:, 6] * 24).astype(np.int64)]),
        gray=torch.from_numpy(u[:, 7] < view.grayscale),
        solarize=torch.from_numpy(u[:, 8] < view.solarize),
        sigma=float(0.1 + 1.9 * u[0, 9]) if view.blur else None,
    )


def apply(images, parameters):
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), augmented and normalized with ImageNet's mean and deviation."""
    x = images.float().div_(255)
    x = torch.where(parameters.flip[:, None, None, None], x.flip(-1), x)
    x = _color_jitter(x, parameters)
    x = torch.where(parameters.gray[:, None, None, None], _gray(x).expand_as(x), x)
    inverted = torch.where(x >= 128 / 255, 1 - x, x)
    x = torch.where(parameters.solarize[:, None, None, None], inverted, x)
    x = normalize(x)
    if parameters.sigma is not None:
        x = functional.gaussian_blur(x, [5, 9], [parameters.sigma, parameters.sigma])  # 5 wide, 9 high
    return x


def normalize(x):
    """float (n, 3, h, w) in [0, 1] -> ImageNet-normalized."""
    mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def _color_jitter(x, parameters):
    result = x.clone()
    for place in range(4):
        operation = torch.where(parameters.jitter, parameters.order[:, place], -1)
        for index, adjust in enumerate((_brightness, _contrast, _saturation, _hue)):
            chosen = (operation == index).nonzero()[:, 0]
            if len(chosen):
                factor = parameters.factors[chosen, index].view(-1, 1, 1, 1)
                result[chosen] = adjust(result[chosen], factor)
    return result


def _gray(x):
    return (0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]


def _brightness(x, factor):
    return (x * factor).clamp(0, 1)


def _contrast(x, factor):
    return (x * factor + _gray(x).mean(dim=(1, 2, 3), keepdim=True) * (1 - factor)).clamp(0, 1)


def _saturation(x, factor):
    return (x * factor + _gray(x) * (1 - factor)).clamp(0, 1)


def _hue(x, shift):
    """Turns the hue of the hexcone model by `shift` circles."""
    r, g, b = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # of six
    sector = sector + 6 * shift[:, 0]
    channels = []
    for offset in (5, 3, 1):  # red, green, blue of a hue: Smith 1978, in one formula
        k = (offset + sector) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)
