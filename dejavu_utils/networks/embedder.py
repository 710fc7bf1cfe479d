"""Embeddings of image sets under several networks at once, each image read and decoded once.

The images are cut into shards, which several processes share and a ShardStore keeps, so that a
killed run can resume.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dejavu_utils.cli import from_flags
from dejavu_utils.data.image_dataset import (
    EachTransform,
    IndexedImages,
    collate_readable,
    evaluation_transform,
)
from dejavu_utils.data.workers import batches
from dejavu_utils.files import check_free_space
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.log import Progress
from dejavu_utils.models import Network
from dejavu_utils.naming import LOGITS
from dejavu_utils.networks.inference import check_finite
from dejavu_utils.runtime.devices import autocast, to_device, to_host_later
from dejavu_utils.runtime.distributed import rank, world_size
from dejavu_utils.runtime.resumable import (
    Arrays,
    OnProgress,
    ProgressOf,
    Shard,
    ShardStore,
    count_images,
    shards_of,
)

SHARD = 4096  # images at most; a killed process loses two
_SHARDS = 64  # at least, if the batches allow it, so that many processes have work

Key = tuple[str, str]  # (model, layer)
Embeddings = dict[Key, np.ndarray]
# rows that could be read int64 (m,), and the images that the loader gives of them
Batch = tuple[np.ndarray, Any]


@dataclass
class ImageSet:
    """Images to embed: a name for messages, their indices int64 (n,), and their crops int64 (n, 4)
    or None.

    shown: {network: bool (n,), which of them it is shown}; networks that are not named are shown
    all."""

    name: str
    indices: np.ndarray
    crops: np.ndarray | None = None
    shown: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass
class Inference:
    """How networks are run over images. batch_size: images. num_workers: processes that load
    images. skip_unreadable: leave out images that cannot be read, instead of an InputError that
    names the first. resolution: side of the networks' input in pixels, as typed; None: each
    network's own."""

    device: torch.device
    precision: str = "fp32"
    batch_size: int = 256
    num_workers: int = 0
    skip_unreadable: bool = False
    resolution: int | None = None

    @classmethod
    def of(cls, args: Namespace) -> "Inference":
        """From the flags of cli.add_inference_flags; on the CPU until the process has its
        device."""
        return from_flags(cls, args, device=torch.device("cpu"))


class Embedder:
    """Embeddings of image sets under several networks.

    networks: {model: Network} in eval mode on the device. layers: {model: names of its layers}.
    inference: Inference. Keys of embeddings are (model, layer). Each image is decoded once, and
    shown to every network as that one's preprocessing says. Outputs of the layer LOGITS are class
    scores: they are kept, and no neighbors are searched for them.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        layers: Mapping[str, list[str]],
        listing: ImageListing,
        inference: Inference,
    ) -> None:
        self.networks, self.layers, self.listing = networks, layers, listing
        self.inference = inference
        self.device, self.batch_size = inference.device, inference.batch_size
        every = [network.preprocessing for network in networks.values()]
        self.kinds = list(dict.fromkeys(every))
        transforms = [evaluation_transform(preprocessing=kind) for kind in self.kinds]
        self.transform = EachTransform(*transforms)
        self.widths = {}
        for model, network in networks.items():
            for layer in layers[model]:
                self.widths[model, layer] = network.width(layer)
        self.scores = [key for key in self.widths if key[1] == LOGITS]

    def without_scores(self) -> "Embedder":
        """The Embedder of the networks that public images are embedded with; itself if those are
        all of them."""
        if not self.scores:
            return self
        layers = {}
        for model, layer in self.widths:
            if layer != LOGITS:
                layers.setdefault(model, []).append(layer)
        networks = {model: self.networks[model] for model in layers}
        return Embedder(networks, layers, self.listing, self.inference)

    @torch.inference_mode()
    def embed_later(
        self, images: Sequence[Tensor], chosen: dict[str, np.ndarray]
    ) -> Callable[[], Embeddings]:
        """A function that waits for {key: float32 (n, width) in NumPy} and returns it; a GPU works
        on it meanwhile.

        images: a batch for each of `kinds`, float (n, 3, h, w). chosen: {network: bool (n,), rows
        that it is shown}; others are shown all. What a network is not shown is NaN. The function
        raises an InputError for other values that are not finite.
        """
        outputs = self.outputs(images, chosen)
        # One copy for all of them, and for whether they are finite: a GPU is waited for once per
        # batch.
        finite = torch.stack([torch.isfinite(output).all() for output in outputs.values()])
        copies = to_host_later([finite.float(), *outputs.values()])

        def checked() -> Embeddings:
            finite, *host = copies()
            embeddings = dict(zip(outputs, host))
            for (model, layer), is_finite in zip(outputs, finite):
                check_finite(is_finite, self.networks[model], layer, self.inference.precision)
            for key, width in self.widths.items():
                rows = chosen.get(key[0])
                if rows is not None:
                    whole = np.full((len(rows), width), np.nan, np.float32)
                    whole[rows] = embeddings.get(key, np.nan)
                    embeddings[key] = whole
            return embeddings

        return checked

    def outputs(
        self, images: Sequence[Tensor], chosen: Mapping[str, np.ndarray] | None = None
    ) -> dict[Key, Tensor]:
        """Outputs on the device, unchecked: {key: float32 (m, width)} of the m rows that a network
        is shown, if any."""
        batches = {}
        for kind, batch in zip(self.kinds, images):
            batches[kind] = batch.to(self.device, non_blocking=True)
        outputs = {}
        for model, network in self.networks.items():
            batch = batches[network.preprocessing]
            rows = None if chosen is None else chosen.get(model)
            if rows is not None and not rows.all():
                if not rows.any():
                    continue
                places = torch.from_numpy(np.flatnonzero(rows))
                batch = batch.index_select(0, to_device(places, self.device))
            with autocast(self.device, self.inference.precision):
                of_layers = network.embed_layers(batch, self.layers[model])
            for layer, output in of_layers.items():
                outputs[model, layer] = output.float()
        return outputs

    def shards(self, images: ImageSet) -> list[Shard]:
        """The shards of an image set, of whole batches but for the last."""
        batches_of_shard = max(1, min(SHARD, len(images) // _SHARDS) // self.batch_size)
        return shards_of(images.name, len(images), self.batch_size * batches_of_shard)

    def read_shards(
        self, dataset: IndexedImages, shards: Sequence[Shard], on_progress: OnProgress
    ) -> Iterator[tuple[Shard, Iterator[Batch]]]:
        """Yields each shard with an iterator over its batches, which must be used up before the
        next shard.

        Batches do not cross shards: what is computed from a shard depends on nothing else.
        """
        positions = []
        for shard in shards:
            positions += self._positions(shard)
        loader = batches(
            dataset, positions, self.inference.num_workers, self.device, collate_readable
        )
        for shard in shards:
            yield shard, self._batches_of(shard, loader, on_progress)

    def _positions(self, shard: Shard) -> list[range]:
        """Positions of the images of each batch."""
        starts = range(shard.start, shard.stop, self.batch_size)
        return [range(start, min(start + self.batch_size, shard.stop)) for start in starts]

    def _batches_of(
        self, shard: Shard, loader: Iterator, on_progress: OnProgress
    ) -> Iterator[Batch]:
        for positions in self._positions(shard):
            images, _, readable = next(loader)
            rows = positions.start + np.flatnonzero(readable.numpy())
            if len(rows):
                yield rows, images
            on_progress(len(positions))

    def embed_shards(
        self,
        images: ImageSet,
        shards: Sequence[Shard],
        on_progress: OnProgress = lambda count: None,
    ) -> Iterator[tuple[str, np.ndarray, Embeddings]]:
        """Yields (name, rows int64 (m,) of `images` that could be read, {key: float32 (m, width)})
        of each shard.

        shards: those of `shards(images)` that are wanted. What a network is not shown is NaN.
        """
        skip_unreadable = self.inference.skip_unreadable
        dataset = IndexedImages(
            self.listing, images.indices, self.transform, images.crops, skip_unreadable
        )
        for shard, shard_batches in self.read_shards(dataset, shards, on_progress):
            size, filled = count_images([shard]), 0
            rows = np.empty(size, int)
            arrays = {}
            for key, width in self.widths.items():
                arrays[key] = np.empty((size, width), np.float32)
            for of_batch, embeddings in self._embedded(images, shard_batches):
                place = slice(filled, filled + len(of_batch))
                rows[place] = of_batch
                for key, values in embeddings.items():
                    arrays[key][place] = values
                filled = place.stop
            yield shard.name, rows[:filled], {key: array[:filled] for key, array in arrays.items()}

    def _embedded(
        self, images: ImageSet, batches: Iterator[Batch]
    ) -> Iterator[tuple[np.ndarray, Embeddings]]:
        """Yields (rows, embeddings) of each batch; the GPU has the next batch before it is waited
        for."""
        before: tuple[np.ndarray, Callable[[], Embeddings]] | None = None
        for rows, batch in batches:
            chosen = {model: is_shown[rows] for model, is_shown in images.shown.items()}
            later = self.embed_later(batch, chosen)
            if before:
                yield before[0], before[1]()
            before = rows, later
        if before:
            yield before[0], before[1]()

    def embed_set(
        self, images: ImageSet, store: ShardStore, progress: ProgressOf
    ) -> tuple[np.ndarray, Embeddings]:
        """(rows int64 (m,) that could be read, {key: float32 (m, width)}) of a whole set, in its
        order.

        All processes must call this; each embeds its part and gets the whole, as one copy per node,
        mapped from files of the store. progress: number of images -> context manager whose `update`
        is told of each batch.
        """
        shards = self.shards(images)
        if rank() == 0:
            saved = store.names()
            missing = count_images(shard for shard in shards if shard.name not in saved)
            row_bytes = 4 * sum(self.widths.values())  # once in the shards, and once joined
            check_free_space(
                store.folder,
                row_bytes * (missing + len(images)),
                "make room, or give another --output_dir",
            )
        store.map(shards, partial(self.shard_arrays, images), progress)
        whole = store.joined(images.name, shards)
        rows = np.array(whole["rows"])
        return rows, {key: whole[array_key(*key)] for key in self.widths}

    def shard_arrays(
        self, images: ImageSet, shards: Sequence[Shard], on_progress: OnProgress
    ) -> Iterator[tuple[str, Arrays]]:
        """What `embed_shards` gives as a ShardStore keeps it: (name, {"rows", "model|layer", ...})
        of each shard."""
        for name, rows, embedded in self.embed_shards(images, shards, on_progress):
            arrays = {array_key(*key): array for key, array in embedded.items()}
            yield name, {"rows": rows, **arrays}


def progress_of(what: str) -> ProgressOf:
    """The progress of this process's images. what: is done with them."""
    who = f" by process {rank()}" if world_size() > 1 else ""
    return lambda total: Progress(total, f"{what}{who}")


def array_key(*words: str) -> str:
    """The name of an array in a ShardStore."""
    return "|".join(words)
