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

from dejavu_utils.imagenet import MEAN, STD, Preprocessing
from dejavu_utils.runtime.devices import to_device

_CROP_TRIES = 10
_ORDERS = np.array(list(itertools.permutations(range(4))))
# of one image: flip, jitter, order, factors, gray, solarize, sigma; as Parameters has them
Drawn = tuple
Factor = Any  # a number, or float (n, 1, 1, 1)
Operation = Callable[..., torch.Tensor]  # images, factors -> images


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
    low, high = view.area
    narrow, wide = view.aspect
    area = height * width * (low + (high - low) * draws[:, 0:_CROP_TRIES])
    aspect = np.exp(np.log(narrow) + np.log(wide / narrow) * draws[:, _CROP_TRIES:20])
    w = np.rint(np.sqrt(area * aspect))
    h = np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)[:, None]
    w = np.take_along_axis(w, first, 1)
    h = np.take_along_axis(h, first, 1)
    x = np.floor(draws[:, 20:21] * (width - w + 1))
    y = np.floor(draws[:, 21:22] * (height - h + 1))
    ratio = width / height
    whole_w = np.where(ratio > wide, np.rint(height * wide), width)
    whole_h = np.where(ratio < narrow, np.rint(width / narrow), height)
    none = ~fits.any(axis=1, keepdims=True)
    w = np.where(none, whole_w, w)
    h = np.where(none, whole_h, h)
    x = np.where(none, (width - w) // 2, x)
    y = np.where(none, (height - h) // 2, y)
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
    """Of a batch, on the CPU, one entry per image: flip, gray, solarize bool (n,); factors float32
    (n, 4) of brightness, contrast, saturation, hue; order int64 (n, 4), which of these comes first,
    second, ...; jitter bool (n,); sigma: pixels of the batch's blur, or None."""

    flip: torch.Tensor
    jitter: torch.Tensor
    factors: torch.Tensor
    order: torch.Tensor
    gray: torch.Tensor
    solarize: torch.Tensor
    sigma: float | None

    def __getitem__(self, rows: slice) -> "Parameters":
        """The parameters of these rows of the batch; the blur stays the batch's."""
        of_images = {name: values[rows] for name, values in vars(self).items() if name != "sigma"}
        return Parameters(**of_images, sigma=self.sigma)

    def rows(self) -> Iterator[Drawn]:
        """Yields of each image (flip, jitter, order, factors, gray, solarize, sigma), as Python's
        numbers."""
        of_images = (self.flip, self.jitter, self.order, self.factors, self.gray, self.solarize)
        return zip(*(values.tolist() for values in of_images), itertools.repeat(self.sigma))

    def operations(self) -> list[tuple[Operation, np.ndarray, np.ndarray]]:
        """What is to be done before the normalization, in order: [(function, rows, factors)].

        function: of images and factors, float32 (m, 3, h, w) and (m, 1, 1, 1); it may overwrite the
        images. rows: int64 (m,), the images it was drawn for, never none. factors: float32 (m,).
        NumPy, so that no device has to be asked which images were drawn.
        """
        factors, order, jitter = self.factors.numpy(), self.order.numpy(), self.jitter.numpy()
        operations: list[tuple[Operation, np.ndarray, np.ndarray]] = []

        def add(function: Operation, mask: np.ndarray, index: int = 0) -> None:
            rows = np.flatnonzero(mask)
            if len(rows):
                operations.append((function, rows, factors[rows, index]))

        add(_flipped, self.flip.numpy())
        for place in range(4):
            for index, adjust in enumerate(_ADJUST):
                add(adjust, jitter & (order[:, place] == index), index)
        add(_grayed, self.gray.numpy())
        add(_solarized, self.solarize.numpy())
        return operations


def draw_parameters(draws: np.ndarray, view: View) -> Parameters:
    """Parameters of everything that follows the crop. draws: float64 (n, 64) in [0, 1); columns 22
    to 32 are used."""
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


def apply(
    images: torch.Tensor, parameters: Parameters, out: torch.Tensor | None = None
) -> torch.Tensor:
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), augmented and normalized with ImageNet's mean and
    deviation.

    out: where to write the result. On a CPU the images are done one by one, so that each stays in
    the cache; on other devices all at once, as `apply_batched` does.
    """
    if images.device.type != "cpu":
        return apply_batched(images, parameters)
    out = torch.empty(images.shape) if out is None else out
    for row, drawn in enumerate(parameters.rows()):
        apply_to_one(images[row : row + 1], drawn, out[row : row + 1])
    return out


def apply_to_one(image: torch.Tensor, drawn: Drawn, out: torch.Tensor) -> None:
    """`apply` for one image on a CPU, with only the operations that it was drawn.

    image: uint8 (1, 3, h, w). drawn: of it, from `Parameters.rows`. out: float32 (1, 3, h, w),
    where the result goes.
    """
    flip, jitter, order, factors, gray, solarize, sigma = drawn
    x = image.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if flip:
        x = _flipped(x)
    if jitter:
        for operation in order:
            x = _ADJUST[operation](x, factors[operation])
    if gray:
        x = _grayed(x)
    if solarize:
        x = _solarized(x)
    if sigma is None:
        _normalize(x, out)
    else:
        _blur(_normalize(x, x), sigma, out)


def apply_batched(images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
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
        all_rows = to_device(torch.from_numpy(np.concatenate(rows)), x.device).split(counts)
        all_factors = to_device(torch.from_numpy(np.concatenate(factors)), x.device).split(counts)
        for function, chosen, factor in zip(functions, all_rows, all_factors):
            changed = function(x.index_select(0, chosen), factor.view(-1, 1, 1, 1))
            x.index_copy_(0, chosen, changed)
    _normalize(x, x)
    return x if parameters.sigma is None else _blur(x, parameters.sigma, torch.empty_like(x))


def normalize(images: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), normalized with ImageNet's mean and deviation.
    out: where to."""
    x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return _normalize(x, x if out is None else out)


def renormalize(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """What `apply` gives, normalized with the mean and deviation of an imagenet.Preprocessing
    instead of ImageNet's."""
    if (preprocessing.mean, preprocessing.std) == (MEAN, STD):
        return images
    scale, shift = own_constants(images.device, preprocessing.mean, preprocessing.std)
    return torch.addcmul(shift, images, scale)


@functools.lru_cache(maxsize=32)
def own_constants(
    device: torch.device, means: tuple[float, ...], stds: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) on a device, float32 (3, 1, 1), from ImageNet's normalization to another; made
    once, as below."""
    scale = [std / own for std, own in zip(STD, stds)]
    shift = [(mean - own_mean) / own for mean, own_mean, own in zip(MEAN, means, stds)]
    return torch.tensor(scale, device=device).view(3, 1, 1), torch.tensor(
        shift, device=device
    ).view(3, 1, 1)


@functools.lru_cache(maxsize=32)
def constants(device: torch.device, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """(scale, shift, opposite hues) on a device, float32 that broadcasts over (n, 3, height,
    width).

    Made once, since each is a copy that a GPU would have to be waited for. `height` and `width` are
    1 except on CPUs, which multiply and add three times as fast where the scale is given for every
    pixel.
    """
    scale, shift = [1 / std for std in STD], [-mean / std for mean, std in zip(MEAN, STD)]
    values = [
        torch.tensor(v, device=device).view(3, 1, 1) for v in (scale, shift, [11 / 6, 9 / 6, 7 / 6])
    ]
    return values[0].expand(3, height, width).contiguous(), *values[1:]


def _constants_for(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    height, width = x.shape[2:] if x.device.type == "cpu" else (1, 1)
    return constants(x.device, height, width)


def _normalize(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    scale, shift, _ = _constants_for(x)
    return torch.addcmul(shift, x, scale, out=out)


@functools.lru_cache(maxsize=32)
def _gaussian(sigma: float, half: int) -> list[float]:
    """2 x half + 1 weights whose sum is 1."""
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    return (kernel / kernel.sum()).tolist()


def _blur(x: torch.Tensor, sigma: float, out: torch.Tensor) -> torch.Tensor:
    """Convolution with a Gaussian of `sigma` pixels, five pixels wide and nine high, with reflected
    borders.

    As sums of shifted images, across and then down: much faster on CPUs than a convolution.
    """
    pair = torch.empty_like(out)
    for half, dim in ((2, 3), (4, 2)):
        weights, size = _gaussian(sigma, half), x.shape[dim]
        padded = F.pad(x, (half, half, 0, 0) if dim == 3 else (0, 0, half, half), mode="reflect")
        x = torch.mul(padded.narrow(dim, half, size), weights[half], out=out if dim == 2 else None)
        for shift in range(half):  # the kernel is symmetric
            torch.add(
                padded.narrow(dim, shift, size),
                padded.narrow(dim, 2 * half - shift, size),
                out=pair,
            )
            x.add_(pair, alpha=weights[shift])
    return x


def _flipped(x: torch.Tensor, factor: object = None) -> torch.Tensor:
    return x.flip(-1)


def _solarized(x: torch.Tensor, factor: object = None) -> torch.Tensor:
    inverted = _mask(torch.ge, x, torch.full((), 128 / 255, device=x.device))
    change = torch.rsub(x, 1, alpha=2)
    return torch.addcmul(x, inverted, change, out=change)


def _grayed(x: torch.Tensor, factor: object = None) -> torch.Tensor:
    return x.copy_(_gray(x).expand_as(x))


def _gray(x: torch.Tensor) -> torch.Tensor:
    gray = x[:, 0:1] * 0.2989
    return gray.add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:3], alpha=0.114)


def _brightness(x: torch.Tensor, factor: Factor) -> torch.Tensor:
    return x.mul_(factor).clamp_(0, 1)


def _contrast(x: torch.Tensor, factor: Factor) -> torch.Tensor:
    # CPUs are slow with a single number
    mean = _gray(x).mean(dim=(1, 2, 3), keepdim=True).expand_as(x).contiguous()
    return torch.lerp(mean, x, factor, out=mean).clamp_(0, 1)


def _saturation(x: torch.Tensor, factor: Factor) -> torch.Tensor:
    return torch.lerp(_gray(x), x, factor, out=x).clamp_(0, 1)


def _hue(x: torch.Tensor, shift: Factor) -> torch.Tensor:
    """Turns the hue of the hexcone model by `shift` circles."""
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    # The hue in sixths of a circle, counted from red; where there is no chroma any hue will do.
    red, green = _mask(torch.eq, r, value), _mask(torch.eq, g, value)
    green.addcmul_(green, red, value=-1)
    blue = 1 - red - green
    hue = red.mul_(g - b).addcmul_(green, b - r).addcmul_(blue, r - g).div_(chroma.clamp(min=1e-12))
    hue.add_(green, alpha=2).add_(blue, alpha=4)
    # Red, green and blue of a hue (Smith 1978) in one formula: each falls from value by chroma
    # around its opposite hue. Counted from there in circles, and one circle more, so that the
    # fraction is that of a positive number.
    opposite = _constants_for(x)[2] + shift
    k = torch.add(opposite, hue, alpha=1 / 6).frac_().mul_(6)
    torch.minimum(k, 4 - k, out=k).clamp_(0, 1)
    return torch.addcmul(value, k, chroma, value=-1, out=k)


def _mask(compare: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1.0 where compare(x, y), else 0.0; on CPUs arithmetic with such masks is ten times as fast as
    torch.where."""
    return compare(x, y, out=torch.empty_like(x))


_ADJUST = (_brightness, _contrast, _saturation, _hue)
