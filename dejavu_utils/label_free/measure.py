"""Augmented views of images under several networks at once: how far apart an image's views lie, and what units do.

For memorization without labels (SSLMem, UnitMem). Each image is decoded once; its views are the training's, drawn from
a stream that depends on (seed, image index) alone. Images are cut into shards, which several processes share and whose
results are kept, so that a killed run can resume.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dejavu_utils.data import augment
from dejavu_utils.data.beton_loader import cut_and_resize
from dejavu_utils.data.image_dataset import IndexedImages, collate_readable
from dejavu_utils.data.workers import batches
from dejavu_utils.networks.embedder import to_host
from dejavu_utils.networks.inference import check_finite
from dejavu_utils.randomness import uniforms
from dejavu_utils.runtime.distributed import from_first, rank, wait_for_all, world_size
from dejavu_utils.training.methods.method import two_views
from dejavu_utils.training.settings import Augment

_EPOCH = 2**31  # no training has so many: what is drawn here was not drawn there
_PARTS = ("largest", "image", "total")  # of UnitMaxima, in pieces


def views_of_training(settings):
    """The training's views 1 and 2, as augment.View, from a checkpoint's flat settings; None: the published ones."""
    names = vars(Augment())
    given = {name: settings[f"augment.{name}"] for name in names if f"augment.{name}" in (settings or {})}
    return two_views(Augment(**given))


class Views:
    """(image index, PIL image) -> `count` views for each kind of network: tuple of float32 (count, 3, side, side).

    pair: augment.Views that take turns, the first first. kinds: list of Preprocessing; a view differs between them in
    side, interpolation and normalization only. Everything is done on the CPU, each image by itself with a blur of its
    own (the training draws one for a batch): bit for bit the same views on every device and in any batch.
    """

    def __init__(self, pair, count, seed, kinds):
        self.pair, self.count, self.seed, self.kinds = pair, count, seed, kinds

    def __call__(self, index, image):
        pixels, threads = np.array(image), torch.get_num_threads()
        torch.set_num_threads(1)  # a sum's last bits depend on how many threads share it
        try:
            return tuple(self._of(kind, index, pixels) for kind in self.kinds)
        finally:
            torch.set_num_threads(threads)

    def pictures(self, index, image):
        """The views as PIL images, as the first kind of network is shown them."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.kinds[0].mean, self.kinds[0].std))
        levels = (self(index, image)[0] * std + mean).clamp(0, 1).mul(255).round().byte()
        return [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in levels]

    def _of(self, kind, index, pixels):
        found = torch.empty((self.count, 3, kind.side, kind.side))
        for number in range(self.count):
            view = self.pair[number % len(self.pair)]
            draws = uniforms(self.seed, _EPOCH, number, index, 1)
            box = augment.crop_boxes(draws, [pixels.shape[:2]], view)[0].tolist()
            crop = cut_and_resize(pixels, box, kind.side, kind.interpolation)
            augment.apply(crop[None], augment.draw_parameters(draws, view), found[number : number + 1])
        return augment.renormalize(found, kind)


class _ViewedImages:
    """A PyTorch data set: (views, label) of the images at `indices`, or None for one that cannot be decoded."""

    def __init__(self, listing, indices, views, skip_unreadable):
        self.listing, self.indices, self.views, self.skip_unreadable = listing, indices, views, skip_unreadable

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = int(self.indices[position])
        transform = partial(self.views, index)
        return IndexedImages(self.listing, [index], transform, skip_unreadable=self.skip_unreadable)[0]


class UnitMaxima:
    """Of the units of a layer over images: largest activation float64 (width,), the image's row int64 (-1: never
    active; the first among equals), and the total float64. An image's activation is the mean over its views, after a
    ReLU."""

    def __init__(self, width):
        self.largest, self.image, self.total = np.zeros(width), np.full(width, -1), np.zeros(width)

    def add(self, activations, rows):
        """activations: float64 (n, width), 0 or more. rows: int64 (n,)."""
        first = activations.argmax(axis=0)
        self._join(np.take_along_axis(activations, first[None], 0)[0], rows[first])
        self.total += activations.sum(axis=0)

    def merge(self, largest, image, total):
        """Those of images that come after."""
        self._join(largest, image)
        self.total += total

    def _join(self, largest, image):
        greater = largest > self.largest
        self.largest, self.image = np.where(greater, largest, self.largest), np.where(greater, image, self.image)


@dataclass
class Alignment:
    """Of an image set. rows: int64 (m,), the images that could be read. distances: {(model, layer): float64 (m,)}, mean
    L2 distance over all pairs of an image's views between representations of length 1. units: {(model, layer):
    UnitMaxima}, whose images are positions in the set."""

    rows: np.ndarray
    distances: dict
    units: dict


def mean_distance(representations):
    """float (n, views, width) -> float64 (n,): mean L2 distance over all pairs of views, each divided by its length."""
    unit = F.normalize(representations.double(), dim=2)
    views = unit.shape[1]
    return torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / (views * (views - 1))


class ViewDistances:
    """The Alignment of image sets. embedder: attack.search.Embedder, whose batch_size counts images, not views. views:
    Views of the embedder's kinds. pieces: ShardStore, which keeps the shards."""

    def __init__(self, embedder, views, pieces):
        self.embedder, self.views, self.pieces = embedder, views, pieces

    def align(self, images, progress=lambda total: None):
        """The Alignment of an ImageSet. All processes must call this; each does its share, the first gets the whole,
        the others None. progress: total -> context manager whose `update` is told of each batch."""
        shards = self.embedder.shards(images)
        there = set(from_first(self.pieces.names(f"{images.name}_")))
        missing = [shard for shard in shards if shard[0] not in there][rank() :: world_size()]
        with progress(sum(stop - start for _, start, stop in missing)) as bar:
            self._keep(images, missing, bar.update)
        wait_for_all()
        return None if rank() else self._collect(shards)

    def measure(self, batch):
        """{(model, layer): (mean distance float64 (n,), activations float64 (n, width))}; InputError for values that
        are not finite. batch: for each kind float (n, views, 3, h, w)."""
        found = self.on_device(batch)
        host = iter(to_host([tensor for pair in found.values() for tensor in pair]))  # a GPU is waited for once
        found = {key: (next(host), next(host)) for key in found}
        for (model, layer), (distances, _) in found.items():  # of a view that is not finite neither is the distance
            precision = self.embedder.inference.precision
            check_finite(bool(np.isfinite(distances).all()), self.embedder.where[model], layer, precision)
        return found

    @torch.inference_mode()
    def on_device(self, batch):
        """What `measure` gives, as tensors on the device, unchecked."""
        found = {}
        for key, output in self.embedder.outputs([views.flatten(0, 1) for views in batch]).items():
            of_images = output.unflatten(0, (-1, self.views.count))
            found[key] = mean_distance(of_images), of_images.relu().double().mean(dim=1)
        return found

    def _keep(self, images, shards, on_progress):
        inference, size = self.embedder.inference, self.embedder.batch_size
        parts = [
            range(first, min(first + size, stop)) for _, start, stop in shards for first in range(start, stop, size)
        ]
        dataset = _ViewedImages(self.embedder.listing, images.indices, self.views, inference.skip_unreadable)
        loader = batches(dataset, parts, inference.num_workers, inference.device, collate_readable)
        for name, start, stop in shards:
            rows, distances = [np.empty(0, np.int64)], {key: [np.empty(0)] for key in self.embedder.widths}
            units = {key: UnitMaxima(width) for key, width in self.embedder.widths.items()}
            for first in range(start, stop, size):
                batch, _, readable = next(loader)
                rows.append(first + np.flatnonzero(readable.numpy()))
                for key, (spread, activations) in self.measure(batch).items() if len(rows[-1]) else ():
                    distances[key].append(spread)
                    units[key].add(activations, rows[-1])
                on_progress(len(readable))
            arrays = {_word("distance", key): np.concatenate(part) for key, part in distances.items()}
            for part in _PARTS:
                arrays |= {_word(part, key): getattr(found, part) for key, found in units.items()}
            self.pieces.save(name, rows=np.concatenate(rows), **arrays)

    def _collect(self, shards):
        """In the order of the shards, so that no sum depends on which process did what."""
        rows, distances = [], {key: [] for key in self.embedder.widths}
        units = {key: UnitMaxima(width) for key, width in self.embedder.widths.items()}
        for name, _, _ in shards:
            piece = self.pieces.load(name)
            rows.append(piece["rows"])
            for key in units:
                distances[key].append(piece[_word("distance", key)])
                units[key].merge(*(piece[_word(part, key)] for part in _PARTS))
        return Alignment(np.concatenate(rows), {key: np.concatenate(parts) for key, parts in distances.items()}, units)


def _word(part, key):
    return "|".join((part, *key))
