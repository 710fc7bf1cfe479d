"""Augmentations of the training views: drawn per image from a keyed random stream, applied to batches on the device.

Definitions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, RandomSolarize, GaussianBlur); here
every image of a batch has its own parameters. Drawing is NumPy on the CPU, applying is PyTorch on any device.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dejavu_utils.imagenet import MEAN, STD

_CROP_TRIES = 10
_ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class View:
    """What is done to an image for one view. area: range of the crop's fraction of the image. side: of the crop after
    resizing, pixels; None: the resolution of the epoch."""

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
    side: int | None = None


FIRST_VIEW = View(blur=True)
SECOND_VIEW = View(solarize=0.2)
SMALL_VIEW = View(area=(0.05, 0.4), side=96)  # DINO's local crops


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
    """Of a batch, one entry per image: flip, gray, solarize bool (n,); factors float32 (n, 4) of brightness, contrast,
    saturation, hue; order int64 (n, 4), which of these comes first, second, ...; jitter bool (n,); sigma: pixels of
    the batch's blur, or None."""

    flip: torch.Tensor
    jitter: torch.Tensor
    factors: torch.Tensor
    order: torch.Tensor
    gray: torch.Tensor
    solarize: torch.Tensor
    sigma: float | None

    def __getitem__(self, rows):
        """The parameters of these rows of the batch; the blur stays the batch's."""
        chosen = {name: value[rows] if torch.is_tensor(value) else value for name, value in vars(self).items()}
        return Parameters(**chosen)

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


def apply(images, parameters, out=None):
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), augmented and normalized with ImageNet's mean and deviation.

    out: where to write the result. On a CPU the images are done one by one, so that each stays in the cache, with only
    the operations that it was drawn; on other devices all at once, as `apply_batched` does.
    """
    if images.device.type != "cpu":
        return apply_batched(images, parameters)
    out = torch.empty(images.shape) if out is None else out
    weights = _blur_weights(parameters.sigma)
    constants = _scale_and_shift(images.device)
    drawn = zip(
        parameters.flip.tolist(),
        parameters.jitter.tolist(),
        parameters.order.tolist(),
        parameters.factors[..., None, None, None, None].unbind(),
        parameters.gray.tolist(),
        parameters.solarize.tolist(),
    )
    for row, (flip, jitter, order, factors, gray, solarize) in enumerate(drawn):
        x = images[row : row + 1].to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if flip:
            x = x.flip(-1)
        if jitter:
            for operation in order:
                x = _ADJUST[operation](x, factors[operation])
        if gray:
            x = _gray(x).expand_as(x)
        if solarize:
            x = _solarized(x)
        if weights is None:
            _normalize(x, constants, out[row : row + 1])
        else:
            _blur(_normalize(x, constants), *weights, out[row : row + 1])
    return out


def apply_batched(images, parameters):
    """What `apply` does, with every operation on all images of the batch that it was drawn for at once."""
    x = images.float().div_(255)
    x = torch.where(parameters.flip[:, None, None, None], x.flip(-1), x)
    for place in range(4):
        operation = torch.where(parameters.jitter, parameters.order[:, place], -1)
        for index, adjust in enumerate(_ADJUST):
            chosen = (operation == index).nonzero()[:, 0]
            if len(chosen):
                x[chosen] = adjust(x[chosen], parameters.factors[chosen, index].view(-1, 1, 1, 1))
    x = torch.where(parameters.gray[:, None, None, None], _gray(x), x)
    x = torch.where(parameters.solarize[:, None, None, None], _solarized(x), x)
    x = _normalize(x, _scale_and_shift(x.device))
    weights = _blur_weights(parameters.sigma)
    return x if weights is None else _blur(x, *weights, torch.empty_like(x))


def normalize(images, out=None):
    """uint8 (n, 3, h, w) -> float32 (n, 3, h, w), normalized with ImageNet's mean and deviation. out: where to."""
    return _normalize(images.float().div_(255), _scale_and_shift(images.device), out)


def _scale_and_shift(device):
    scale = [1 / std for std in STD]
    shift = [-mean / std for mean, std in zip(MEAN, STD)]
    return [torch.tensor(values, device=device).view(3, 1, 1) for values in (scale, shift)]


def _normalize(x, constants, out=None):
    scale, shift = constants
    return torch.addcmul(shift, x, scale, out=out)


def _blur_weights(sigma):
    """(five weights across, nine down) of a Gaussian with `sigma` pixels; None for None."""
    if sigma is None:
        return None
    kernels = [np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2) for half in (2, 4)]
    return [(kernel / kernel.sum()).tolist() for kernel in kernels]


def _blur(x, across, down, out):
    """Separable convolution with reflected borders: sums of shifted images, much faster on CPUs than a convolution."""
    for weights, dim in ((across, 3), (down, 2)):
        half = len(weights) // 2
        size = x.shape[dim]
        padded = F.pad(x, (half, half, 0, 0) if dim == 3 else (0, 0, half, half), mode="reflect")
        x = torch.mul(padded.narrow(dim, half, size), weights[half], out=out if dim == 2 else None)
        for shift in range(half):  # the kernel is symmetric
            pair = padded.narrow(dim, shift, size) + padded.narrow(dim, len(weights) - 1 - shift, size)
            x.add_(pair, alpha=weights[shift])
    return x


def _solarized(x):
    inverted = _mask(torch.ge, x, torch.full((), 128 / 255, device=x.device))
    return torch.addcmul(x, inverted, 1 - 2 * x)


def _gray(x):
    gray = x[:, 0:1] * 0.2989
    return gray.add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:3], alpha=0.114)


def _brightness(x, factor):
    return (x * factor).clamp_(0, 1)


def _contrast(x, factor):
    return torch.lerp(_gray(x).mean(dim=(1, 2, 3), keepdim=True), x, factor).clamp_(0, 1)


def _saturation(x, factor):
    return torch.lerp(_gray(x), x, factor).clamp_(0, 1)


def _hue(x, shift):
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
    # Red, green and blue of a hue (Smith 1978) in one formula: each falls from value by chroma around its opposite hue.
    # Counted from there in circles, and one circle more, so that the fraction is that of a positive number.
    opposite = torch.tensor([11 / 6, 9 / 6, 7 / 6], device=x.device).view(1, 3, 1, 1) + shift
    k = torch.add(opposite, hue, alpha=1 / 6).frac_().mul_(6)
    return torch.addcmul(value, torch.minimum(k, 4 - k).clamp_(0, 1), chroma, value=-1)


def _mask(compare, x, y):
    """1.0 where compare(x, y), else 0.0; on CPUs arithmetic with such masks is ten times as fast as torch.where."""
    return compare(x, y, out=torch.empty_like(x))


_ADJUST = (_brightness, _contrast, _saturation, _hue)
