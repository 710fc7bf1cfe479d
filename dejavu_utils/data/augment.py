"""Augmentations of the training views: drawn per image from a keyed random stream, applied to
batches on the device.

Definitions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, RandomSolarize,
GaussianBlur); here every image of a batch has its own parameters. Drawing is NumPy on the CPU,
applying is PyTorch on any device.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dejavu_utils.imagenet import MEAN, STD, Preprocessing
from dejavu_utils.runtime.devices import to_device

_TRIES = 10  # of a crop, as torchvision has it
_ORDERS = np.array(list(itertools.permutations(range(4))))  # of the four adjustments of color
_SCALE = tuple(1 / std for std in STD)
_SHIFT = tuple(-mean / std for mean, std in zip(MEAN, STD))
_OPPOSITE_HUES = (11 / 6, 9 / 6, 7 / 6)  # of red, green and blue, in circles, and one more
Drawn = tuple  # the Parameters of one image, in the order of the fields, as Python's numbers
Factor = Any  # a number, or float (n, 1, 1, 1)
Operation = Callable[..., Tensor]  # images, factors -> images


@dataclass(frozen=True)
class View:
    """What is done to an image for one view. area: range of the crop's fraction of the image. side:
    of the crop after resizing, pixels; None: the resolution of the epoch."""

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    solarize: float = 0.0
    blur: bool = False
    side: int | None = None


FIRST_VIEW = View(blur=True)
SECOND_VIEW = View(solarize=0.2)
SMALL_VIEW = View(area=(0.05, 0.4), side=96)  # DINO's local crops
PLAIN_VIEW = View(flip=0.0, jitter=0.0, grayscale=0.0)  # nothing follows the crop


def crop_boxes(
    draws: np.ndarray, sizes: Sequence[Sequence[int]] | np.ndarray, view: View
) -> np.ndarray:
    """Random resized crops as torchvision draws them: int64 (n, 4) of xmin, ymin, xmax, ymax in
    pixels.

    draws: float64 (n, >= 22) in [0, 1). sizes: int (n, 2), height and width in pixels. The first of
    ten tries (area, log-uniform aspect) that fits is taken, else the largest centre crop within the
    aspect range.
    """
    height, width = np.asarray(sizes).astype(np.float64).T[:, :, None]
    area_draws = draws[:, :_TRIES]
    aspect_draws = draws[:, _TRIES : 2 * _TRIES]
    x_draws = draws[:, 2 * _TRIES, None]
    y_draws = draws[:, 2 * _TRIES + 1, None]
    low, high = view.area
    narrow, wide = view.aspect
    area = height * width * (low + (high - low) * area_draws)
    aspect = np.exp(np.log(narrow) + np.log(wide / narrow) * aspect_draws)

    # The centre crop stands behind the tries: it is taken where none of them fits.
    ratio = width / height
    centre_w = np.where(ratio > wide, np.rint(height * wide), width)
    centre_h = np.where(ratio < narrow, np.rint(width / narrow), height)
    w = np.concatenate([np.rint(np.sqrt(area * aspect)), centre_w], axis=1)
    h = np.concatenate([np.rint(np.sqrt(area / aspect)), centre_h], axis=1)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    fits[:, -1] = True
    first = fits.argmax(axis=1)[:, None]
    w = np.take_along_axis(w, first, 1)
    h = np.take_along_axis(h, first, 1)

    is_centre = first == _TRIES
    x = np.where(is_centre, (width - w) // 2, np.floor(x_draws * (width - w + 1)))
    y = np.where(is_centre, (height - h) // 2, np.floor(y_draws * (height - h + 1)))
    return np.concatenate([x, y, x + w, y + h], axis=1).astype(np.int64)


def center_boxes(sizes: np.ndarray) -> np.ndarray:
    """Evaluation crops: the centred square of 224 / 256 of the short side, int64 (n, 4)."""
    sizes = np.asarray(sizes)
    side = np.maximum(1, (sizes.min(axis=1) * 224) // 256)
    y = (sizes[:, 0] - side) // 2
    x = (sizes[:, 1] - side) // 2
    return np.stack([x, y, x + side, y + side], axis=1).astype(np.int64)


@dataclass
class Parameters:
    """Of a batch, NumPy, one row per image. flip, jitter, gray, solarize: bool (n,). order: int64
    (n, 4), which of brightness, contrast, saturation and hue comes first, second, ... factors:
    float32 (n, 4), theirs. sigma: float64 (n,), pixels of the blur, 0 for none; one for a batch."""

    flip: np.ndarray
    jitter: np.ndarray
    order: np.ndarray
    factors: np.ndarray
    gray: np.ndarray
    solarize: np.ndarray
    sigma: np.ndarray

    def __getitem__(self, rows: slice) -> "Parameters":
        """The parameters of these rows of the batch."""
        return Parameters(*(values[rows] for values in vars(self).values()))

    def rows(self) -> Iterator[Drawn]:
        """Yields the parameters of each image."""
        return zip(*(values.tolist() for values in vars(self).values()))

    def operations(self) -> list[tuple[Operation, np.ndarray, np.ndarray]]:
        """What is to be done before the normalization, in order: [(function, rows, factors)].

        function: of images and factors, float32 (m, 3, h, w) and (m, 1, 1, 1); it may overwrite the
        images. rows: int64 (m,), the images it was drawn for, never none. factors: float32 (m,).
        """
        operations = []

        def add(function: Operation, mask: np.ndarray, column: int = 0) -> None:
            rows = np.flatnonzero(mask)
            if len(rows):
                operations.append((function, rows, self.factors[rows, column]))

        add(_flipped, self.flip)
        for now in self.order.T:
            for column, adjust in enumerate(_ADJUST):
                add(adjust, self.jitter & (now == column), column)
        add(_grayed, self.gray)
        add(_solarized, self.solarize)
        return operations


def draw_parameters(draws: np.ndarray, view: View) -> Parameters:
    """Parameters of everything that follows the crop. draws: float64 (n, 64) in [0, 1); columns 22
    to 32 are used."""
    u = draws[:, 2 * _TRIES + 2 :]
    strength = np.array([view.brightness, view.contrast, view.saturation, view.hue])
    unchanged = np.array([1.0, 1.0, 1.0, 0.0])  # the hue is shifted, the others multiply
    low = np.maximum(unchanged - strength, [0, 0, 0, -0.5])
    high = unchanged + strength
    factors = low + (high - low) * u[:, 2:6]
    sigma = 0.1 + 1.9 * u[0, 9] if view.blur else 0.0  # from 0.1 to 2, one for the batch
    return Parameters(
        flip=u[:, 0] < view.flip,
        jitter=u[:, 1] < view.jitter,
        order=_ORDERS[(u[:, 6] * len(_ORDERS)).astype(np.int64)],
        factors=factors.astype(np.float32),
        gray=u[:, 7] < view.grayscale,
        solarize=u[:, 8] < view.solarize,
        sigma=np.full(len(u), sigma),
    )


def apply(images: Tensor, parameters: Parameters) -> Tensor:
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), augmented and normalized with ImageNet's mean and
    deviation.

    On a CPU the images are done one by one, so that each stays in the cache; on other devices all
    at once, as `apply_batched` does.
    """
    if images.device.type != "cpu":
        return apply_batched(images, parameters)
    out = torch.empty(images.shape)
    for row, drawn in enumerate(parameters.rows()):
        apply_to_one(images[row : row + 1], drawn, out[row : row + 1])
    return out


def apply_to_one(image: Tensor, drawn: Drawn, out: Tensor) -> None:
    """`apply` for one image on a CPU, with only the operations that it was drawn.

    image: uint8 (1, 3, h, w). drawn: from `Parameters.rows`. out: float32 (1, 3, h, w), where the
    result goes.
    """
    flip, jitter, order, factors, gray, solarize, sigma = drawn
    x = _fractions(image)
    if flip:
        x = _flipped(x)
    if jitter:
        for operation in order:
            x = _ADJUST[operation](x, factors[operation])
    if gray:
        x = _grayed(x)
    if solarize:
        x = _solarized(x)
    if sigma:
        _blur(_normalize(x, x), sigma, out)
    else:
        _normalize(x, out)


def apply_batched(images: Tensor, parameters: Parameters) -> Tensor:
    """What `apply` does, with every operation on all images of the batch that it was drawn for at
    once.

    Nothing here waits for the device: which rows an operation takes is known on the CPU.
    """
    x = images.float().div_(255)
    operations = parameters.operations()
    if operations:
        functions, rows, factors = zip(*operations)
        counts = [len(chosen) for chosen in rows]
        # One copy to the device for all operations.
        all_rows = to_device(torch.from_numpy(np.concatenate(rows)), x.device)
        all_factors = to_device(torch.from_numpy(np.concatenate(factors)), x.device)
        parts = zip(functions, all_rows.split(counts), all_factors.split(counts))
        for function, chosen, factor in parts:
            changed = function(x.index_select(0, chosen), factor.view(-1, 1, 1, 1))
            x.index_copy_(0, chosen, changed)
    _normalize(x, x)
    sigma = float(parameters.sigma.max(initial=0))
    return _blur(x, sigma, torch.empty_like(x)) if sigma else x


def normalize(images: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), normalized with ImageNet's mean and deviation."""
    x = _fractions(images)
    return _normalize(x, x)


def renormalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What `apply` gives, normalized with the mean and deviation of an imagenet.Preprocessing
    instead of ImageNet's."""
    if (preprocessing.mean, preprocessing.std) == (MEAN, STD):
        return images
    scale = tuple(std / own for std, own in zip(STD, preprocessing.std))
    shift = tuple(
        (mean - own_mean) / own
        for mean, own_mean, own in zip(MEAN, preprocessing.mean, preprocessing.std)
    )
    return torch.addcmul(constant(shift, images.device), images, constant(scale, images.device))


@functools.lru_cache(maxsize=32)
def constant(
    values: tuple[float, ...], device: torch.device, height: int = 1, width: int = 1
) -> Tensor:
    """A number per channel on a device, float32 (3, height, width); made once, since it is a copy
    that a GPU would have to be waited for."""
    of_channels = torch.tensor(values, device=device).view(3, 1, 1)
    return of_channels.expand(3, height, width).contiguous()


def _fractions(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _normalize(x: Tensor, out: Tensor) -> Tensor:
    # CPUs are three times as fast where the scale is given for every pixel.
    sides = x.shape[2:] if x.device.type == "cpu" else (1, 1)
    scale = constant(_SCALE, x.device, *sides)
    return torch.addcmul(constant(_SHIFT, x.device), x, scale, out=out)


def _blur(x: Tensor, sigma: float, out: Tensor) -> Tensor:
    """Convolution with a Gaussian of `sigma` pixels, five pixels wide and nine high, with reflected
    borders.

    As sums of shifted images, across and then down: much faster on CPUs than a convolution.
    """
    pair = torch.empty_like(out)
    across = (2, 3, (2, 2, 0, 0), None)
    down = (4, 2, (0, 0, 4, 4), out)
    for half, dim, padding, result in (across, down):
        size = x.shape[dim]
        kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
        weights = (kernel / kernel.sum()).tolist()
        padded = F.pad(x, padding, mode="reflect")
        x = torch.mul(padded.narrow(dim, half, size), weights[half], out=result)
        for shift in range(half):  # the kernel is symmetric
            before = padded.narrow(dim, shift, size)
            behind = padded.narrow(dim, 2 * half - shift, size)
            torch.add(before, behind, out=pair)
            x.add_(pair, alpha=weights[shift])
    return x


def _flipped(x: Tensor, factor: object = None) -> Tensor:
    return x.flip(-1)


def _solarized(x: Tensor, factor: object = None) -> Tensor:
    inverted = _mask(torch.ge, x, 128 / 255)
    change = torch.rsub(x, 1, alpha=2)
    return torch.addcmul(x, inverted, change, out=change)


def _grayed(x: Tensor, factor: object = None) -> Tensor:
    return x.copy_(_gray(x).expand_as(x))


def _gray(x: Tensor) -> Tensor:
    gray = x[:, 0:1] * 0.2989
    return gray.add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:3], alpha=0.114)


def _brightness(x: Tensor, factor: Factor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Factor) -> Tensor:
    # CPUs are slow with a single number
    mean = _gray(x).mean(dim=(1, 2, 3), keepdim=True).expand_as(x).contiguous()
    return torch.lerp(mean, x, factor, out=mean).clamp_(0, 1)


def _saturation(x: Tensor, factor: Factor) -> Tensor:
    return torch.lerp(_gray(x), x, factor, out=x).clamp_(0, 1)


def _hue(x: Tensor, shift: Factor) -> Tensor:
    """Turns the hue of the hexcone model by `shift` circles."""
    r = x[:, 0:1]
    g = x[:, 1:2]
    b = x[:, 2:3]
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    # The hue in sixths of a circle, counted from red; where there is no chroma any hue will do.
    red = _mask(torch.eq, r, value)
    green = _mask(torch.eq, g, value)
    green.addcmul_(green, red, value=-1)
    blue = 1 - red - green
    hue = red.mul_(g - b).addcmul_(green, b - r).addcmul_(blue, r - g).div_(chroma.clamp(min=1e-12))
    hue.add_(green, alpha=2).add_(blue, alpha=4)
    # Red, green and blue of a hue (Smith 1978) in one formula: each falls from value by chroma
    # around its opposite hue. Counted from there in circles, and one circle more, so that the
    # fraction is that of a positive number.
    opposite = constant(_OPPOSITE_HUES, x.device) + shift
    k = torch.add(opposite, hue, alpha=1 / 6).frac_().mul_(6)
    torch.minimum(k, 4 - k, out=k).clamp_(0, 1)
    return torch.addcmul(value, k, chroma, value=-1, out=k)


def _mask(compare: Operation, x: Tensor, y: Tensor | float) -> Tensor:
    """1.0 where compare(x, y), else 0.0; on CPUs arithmetic with such masks is ten times as fast as
    torch.where."""
    return compare(x, y, out=torch.empty_like(x))


_ADJUST = (_brightness, _contrast, _saturation, _hue)
