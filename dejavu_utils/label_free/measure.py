"""Augmented views of images under several networks at once: how far apart an image's views lie, and
what units do.

For memorization without labels (SSLMem, UnitMem). Each image is decoded once; its views are the
training's, drawn from a stream that depends on (seed, image index) alone. Images are cut into
shards, which several processes share and a ShardStore keeps, so that a killed run can resume.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dejavu_utils.data import augment
from dejavu_utils.data.augment import View
from dejavu_utils.data.beton_loader import random_crop
from dejavu_utils.data.image_dataset import IndexedImages
from dejavu_utils.imagenet import Preprocessing
from dejavu_utils.networks.embedder import Embedder, ImageSet, Key, array_key
from dejavu_utils.networks.inference import check_finite
from dejavu_utils.randomness import uniforms
from dejavu_utils.runtime.devices import one_thread, to_host_later
from dejavu_utils.runtime.distributed import rank
from dejavu_utils.runtime.resumable import Arrays, OnProgress, ProgressOf, Shard, ShardStore
from dejavu_utils.training.methods.method import two_views
from dejavu_utils.training.settings import Settings

_EPOCH = 2**31  # no training has so many: what is drawn here was not drawn there


def views_of_training(settings: dict[str, Any] | None) -> list[View]:
    """The training's views 1 and 2, as augment.View, from a checkpoint's flat settings; None: the
    published ones."""
    return two_views(Settings.from_flat(settings or {}).augment)


@dataclass
class Views:
    """(image index, PIL image) -> `count` views for each kind of network: tuple of float32 (count,
    3, side, side).

    pair: the two augment.View, which take turns, the first first. kinds: list of Preprocessing; a view
    differs between them in side, interpolation and normalization only. Everything is done on the
    CPU, each image by itself with a blur of its own (the training draws one for a batch): bit for
    bit the same views on every device and in any batch.
    """

    pair: Sequence[View]
    count: int
    seed: int
    kinds: Sequence[Preprocessing]

    def __call__(self, index: int, image: Image.Image) -> tuple[Tensor, ...]:
        pixels = np.array(image)
        with one_thread():
            return tuple(self._of(kind, index, pixels) for kind in self.kinds)

    def pictures(self, index: int, image: Image.Image) -> list[Image.Image]:
        """The views as PIL images, as the first kind of network is shown them."""
        kind = self.kinds[0]
        views = self(index, image)[0]
        mean, std = torch.tensor(kind.mean), torch.tensor(kind.std)
        levels = views * std[:, None, None] + mean[:, None, None]
        return [to_pil_image(view) for view in levels.clamp(0, 1).mul(255).round().byte()]

    def _of(self, kind: Preprocessing, index: int, pixels: np.ndarray) -> Tensor:
        views = torch.empty((self.count, 3, kind.side, kind.side))
        for number in range(self.count):
            view = self.pair[number % len(self.pair)]
            draws = uniforms(self.seed, _EPOCH, number, index, 1)
            crop = random_crop(pixels, draws, view, kind.side, kind.interpolation)
            parameters = augment.draw_parameters(draws, view)
            views[number] = augment.apply(crop, parameters)[0]
        return augment.renormalize(views, kind)


class _ViewedImages(IndexedImages):
    """A PyTorch data set: (views, label) of each image. transform: Views."""

    def view(self, position: int, image: Image.Image) -> tuple[Tensor, ...]:
        return self.transform(int(self.indices[position]), image)


@dataclass
class LayerAlignment:
    """Of a model's layer over images. distance: float64 (m,), mean L2 distance over all pairs of an
    image's views between representations of length 1. Of its units, float64 (width,) each: largest
    activation, the image's row (int64; -1: never active; the first among equals), and the total. An
    image's activation is the mean over its views, after a ReLU."""

    distance: np.ndarray
    largest: np.ndarray
    image: np.ndarray
    total: np.ndarray

    def merge(self, other: "LayerAlignment") -> None:
        """Adds images that come after."""
        self.distance = np.append(self.distance, other.distance)
        greater = other.largest > self.largest
        self.largest = np.where(greater, other.largest, self.largest)
        self.image = np.where(greater, other.image, self.image)
        self.total = self.total + other.total


@dataclass
class Alignment:
    """Of an image set. rows: int64 (m,), the images that could be read, as positions in the set.
    layers: by (model, layer)."""

    rows: np.ndarray
    layers: dict[Key, LayerAlignment]

    @classmethod
    def empty(cls, widths: dict[Key, int]) -> "Alignment":
        """Of no image. widths: of each layer."""
        layers = {}
        for key, width in widths.items():
            zeros = np.zeros(width)
            layers[key] = LayerAlignment(np.empty(0), zeros, np.full(width, -1), zeros)
        return cls(np.empty(0, int), layers)

    def add(self, rows: np.ndarray, measured: dict[Key, tuple[np.ndarray, np.ndarray]]) -> None:
        """Adds images that come after. measured: of `ViewDistances.measure`."""
        self.rows = np.append(self.rows, rows)
        for key, (distance, activations) in measured.items():
            first = rows[activations.argmax(axis=0)]
            largest = activations.max(axis=0)
            total = activations.sum(axis=0)
            self.layers[key].merge(LayerAlignment(distance, largest, first, total))

    def arrays(self) -> Arrays:
        """As a ShardStore keeps it."""
        arrays = {"rows": self.rows}
        for key, layer in self.layers.items():
            for part, values in vars(layer).items():
                arrays[array_key(part, *key)] = values
        return arrays

    def merge(self, arrays: Arrays) -> None:
        """Adds the images of another Alignment's `arrays`, which come after."""
        self.rows = np.append(self.rows, arrays["rows"])
        for key, layer in self.layers.items():
            parts = {part: arrays[array_key(part, *key)] for part in vars(layer)}
            layer.merge(LayerAlignment(**parts))


def mean_distance(representations: Tensor) -> Tensor:
    """float (n, views, width) -> float64 (n,): mean L2 distance over all pairs of views, each
    divided by its length."""
    unit = F.normalize(representations.double(), dim=2)
    views = unit.shape[1]
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum((1, 2)) / (views * (views - 1))


@dataclass
class ViewDistances:
    """The Alignment of image sets. embedder: its batch_size counts images, not views. views: of the
    embedder's kinds. store: keeps the shards."""

    embedder: Embedder
    views: Views
    store: ShardStore

    def align(self, images: ImageSet, progress: ProgressOf) -> Alignment | None:
        """The Alignment of an ImageSet. All processes must call this; each does its part, the first
        gets the whole, the others None. progress: total -> context manager whose `update` is told
        of each batch."""
        shards = self.embedder.shards(images)
        compute = partial(self.measure_shards, images)
        pieces = self.store.map(shards, compute, progress)
        if rank():
            return None
        whole = Alignment.empty(self.embedder.widths)
        # in the order of the shards, so that no sum depends on which process did what
        for piece in pieces:
            whole.merge(piece)
        return whole

    def measure(self, batch: Sequence[Tensor]) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
        """{(model, layer): (mean distance float64 (n,), activations float64 (n, width))};
        InputError for values that are not finite. batch: for each kind float (n, views, 3, h,
        w)."""
        on_device = self.on_device(batch)
        tensors = itertools.chain.from_iterable(on_device.values())
        host = iter(to_host_later(list(tensors))())  # one synchronization with a GPU
        measured = {}
        for model, layer in on_device:
            distances = next(host)
            activations = next(host)
            # of a view that is not finite neither is the distance
            is_finite = bool(np.isfinite(distances).all())
            network = self.embedder.networks[model]
            check_finite(is_finite, network, layer, self.embedder.inference.precision)
            measured[model, layer] = distances, activations
        return measured

    @torch.inference_mode()
    def on_device(self, batch: Sequence[Tensor]) -> dict[Key, tuple[Tensor, Tensor]]:
        """What `measure` gives, as tensors on the device, unchecked."""
        measured = {}
        shown = [views.flatten(0, 1) for views in batch]
        for key, output in self.embedder.outputs(shown).items():
            of_images = output.unflatten(0, (-1, self.views.count))
            activations = of_images.relu().double().mean(dim=1)
            measured[key] = mean_distance(of_images), activations
        return measured

    def measure_shards(
        self, images: ImageSet, shards: Sequence[Shard], on_progress: OnProgress
    ) -> Iterator[tuple[str, Arrays]]:
        """Yields (name, {"rows", "distance|model|layer", ...}) of each shard."""
        embedder = self.embedder
        dataset = _ViewedImages(
            embedder.listing,
            images.indices,
            self.views,
            skip_unreadable=embedder.inference.skip_unreadable,
        )
        for shard, batches in embedder.read_shards(dataset, shards, on_progress):
            measured = Alignment.empty(embedder.widths)
            for rows, views in batches:
                measured.add(rows, self.measure(views))
            yield shard.name, measured.arrays()
