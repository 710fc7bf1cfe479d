"""Embeddings of image sets under several networks at once, each image read and decoded once.

The images are cut into shards, which several processes share, and whose results are kept, so that a killed run can
resume.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from dejavu_utils.data.image_dataset import EachTransform, IndexedImages, collate_readable, evaluation_transform
from dejavu_utils.data.workers import batches
from dejavu_utils.networks.inference import check_finite
from dejavu_utils.runtime.devices import autocast, to_device
from dejavu_utils.runtime.distributed import from_first, rank, wait_for_all, world_size

LOGITS = "logits"  # a layer's name
SHARD = 4096  # images at most; a killed process loses two
_SHARDS = 64  # at least, if the batches allow it, so that many processes have work


@dataclass
class ImageSet:
    """Images to embed: a name for messages, their indices int64 (n,), and their crops int64 (n, 4) or None.

    shown: {network: bool (n,), which of them it is shown}; networks that are not named are shown all."""

    name: str
    indices: np.ndarray
    crops: np.ndarray | None = None
    shown: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self):
        return len(self.indices)


@dataclass
class Inference:
    """How networks are run over images. batch_size: images. num_workers: processes that read images. skip_unreadable:
    leave out images that cannot be read, instead of an InputError that names the first."""

    device: torch.device
    precision: str = "fp32"
    batch_size: int = 256
    num_workers: int = 0
    skip_unreadable: bool = False


class Embedder:
    """Embeddings of image sets under several networks.

    networks: {model: Network} in eval mode on the device. layers: {model: names of its layers}. where: {model: flag and
    path of its checkpoint}, for errors. inference: Inference. Keys of embeddings are (model, layer). Each image is
    decoded once, and shown to every network as that one's preprocessing says. Outputs of the layer LOGITS are class
    scores: they are kept, and no neighbors are searched for them.
    """

    def __init__(self, networks, layers, listing, where, inference):
        self.networks, self.layers, self.listing, self.where = networks, layers, listing, where
        self.inference, self.device, self.batch_size = inference, inference.device, inference.batch_size
        self.shown = {model: network.preprocessing for model, network in networks.items()}
        self.kinds = list(dict.fromkeys(self.shown.values()))
        self.transform = EachTransform(*(evaluation_transform(preprocessing=kind) for kind in self.kinds))
        self.widths = {(model, layer): net.width(layer) for model, net in networks.items() for layer in layers[model]}
        self.scores = [key for key in self.widths if key[1] == LOGITS]

    def without_scores(self):
        """The Embedder of the networks that public images are embedded with; itself if those are all of them."""
        if not self.scores:
            return self
        layers = {model: [layer for layer in of_model if layer != LOGITS] for model, of_model in self.layers.items()}
        searched = {model: net for model, net in self.networks.items() if layers[model]}
        return Embedder(searched, layers, self.listing, self.where, self.inference)

    def embed(self, images, chosen=None):
        """{key: float32 (n, width) in NumPy}; InputError for values that are not finite.

        images: a batch for each of `kinds`, float (n, 3, h, w). chosen: {network: bool (n,), rows that it is shown, and
        has outputs for}; others are shown all, and one that is shown none is not in what is returned.
        """
        return self.embed_later(images, chosen)()

    @torch.inference_mode()
    def embed_later(self, images, chosen=None):
        """A function that waits for what `embed` returns and returns it; a GPU is at work on it meanwhile."""
        outputs = self.outputs(images, chosen)
        # One copy for all of them, and for whether they are finite: a GPU is waited for once per batch.
        finite = torch.stack([torch.isfinite(output).all() for output in outputs.values()])
        on_host = to_host_later([finite.float(), *outputs.values()])

        def found():
            finite, *host = on_host()
            for (model, layer), is_finite in zip(outputs, finite):
                check_finite(is_finite, self.where[model], layer, self.inference.precision)
            return dict(zip(outputs, host))

        return found

    def outputs(self, images, chosen=None):
        """What `embed` gives, as tensors on the device, unchecked."""
        chosen = {model: rows for model, rows in (chosen or {}).items() if not rows.all()}
        batches = {kind: batch.to(self.device, non_blocking=True) for kind, batch in zip(self.kinds, images)}
        outputs = {}
        for model, network in self.networks.items():
            batch = batches[self.shown[model]]
            if model in chosen:
                if not chosen[model].any():
                    continue
                rows = torch.from_numpy(np.flatnonzero(chosen[model]))
                batch = batch.index_select(0, to_device(rows, self.device))
            with autocast(self.device, self.inference.precision):
                of_layers = network.embed_layers(batch, self.layers[model])
            outputs |= {(model, layer): output.float() for layer, output in of_layers.items()}
        return outputs

    def shards(self, images):
        """An ImageSet cut into [(name, start, stop)], of whole batches but for the last."""
        size = self.batch_size * max(1, min(SHARD, len(images) // _SHARDS) // self.batch_size)
        starts = range(0, len(images), size)
        return [(f"{images.name}_{start // size:06d}", start, min(start + size, len(images))) for start in starts]

    def embed_shards(self, images, shards, on_progress=lambda count: None):
        """Yields (name, rows int64 (m,) of `images` that could be read, {key: float32 (m, width)}) of each shard.

        images: ImageSet. shards: those of `shards(images)` that are wanted. on_progress: called with the number of
        images done since the last call. Batches do not cross shards: a shard's embeddings depend on nothing else. What
        a network was not shown is NaN.
        """
        positions = [
            range(first, min(first + self.batch_size, stop))
            for _, start, stop in shards
            for first in range(start, stop, self.batch_size)
        ]
        dataset = IndexedImages(
            self.listing, images.indices, self.transform, images.crops, self.inference.skip_unreadable
        )
        workers = self.inference.num_workers
        loader = batches(dataset, positions, workers, self.device, collate_readable)
        for name, start, stop in shards:
            rows = np.empty(stop - start, np.int64)
            arrays = {key: np.full((stop - start, width), np.nan, np.float32) for key, width in self.widths.items()}
            filled, under_way = 0, []
            for first in range(start, stop, self.batch_size):
                batch, _, readable = next(loader)
                end = filled + int(readable.sum())
                if end > filled:
                    rows[filled:end] = first + np.flatnonzero(readable.numpy())
                    chosen = {model: of_all[rows[filled:end]] for model, of_all in images.shown.items()}
                    under_way.append((slice(filled, end), chosen, self.embed_later(batch, chosen)))
                filled = end
                if len(under_way) > 1:  # the GPU has the next batch before this one is waited for
                    _store(arrays, *under_way.pop(0))
                on_progress(len(readable))
            for of_batch in under_way:
                _store(arrays, *of_batch)
            yield name, rows[:filled], {key: array[:filled] for key, array in arrays.items()}

    def embed_set(self, images, pieces, progress=lambda total: None):
        """(rows int64 (m,) that could be read, {key: float32 (m, width)}) of a whole set, in its order.

        pieces: ShardStore, which keeps the shards. progress: total -> context manager whose `update` is told of each
        batch. All processes must call this; each embeds its share and gets the whole.
        """
        shards = self.shards(images)
        there = set(from_first(pieces.names(f"{images.name}_")))
        missing = [shard for shard in shards if shard[0] not in there][rank() :: world_size()]
        with progress(count_images(missing)) as bar:
            self.keep(images, missing, pieces, bar.update)
        wait_for_all()
        rows = np.concatenate([pieces.load(name, "rows")["rows"] for name, _, _ in shards])
        whole = {key: np.empty((len(rows), width), np.float32) for key, width in self.widths.items()}
        filled = 0
        for name, _, _ in shards:
            piece = pieces.load(name)
            end = filled + len(piece["rows"])
            for key, array in whole.items():
                array[filled:end] = piece[array_key(key)]
            filled = end
        return rows, whole

    def keep(self, images, shards, pieces, on_progress):
        """Embeds shards and saves them among the pieces, each while the next is embedded."""
        with ThreadPoolExecutor(1) as thread:
            saving = None
            for name, rows, embedded in self.embed_shards(images, shards, on_progress):
                if saving:
                    saving.result()
                arrays = {array_key(key): array for key, array in embedded.items()}
                saving = thread.submit(pieces.save, name, rows=rows, **arrays)
            if saving:
                saving.result()


def _store(arrays, rows, chosen, embedded):
    """Puts into {key: array} the rows of a batch. chosen, embedded: what Embedder.embed_later took and returned."""
    for key, values in embedded().items():
        arrays[key][rows][chosen.get(key[0], slice(None))] = values


def count_images(shards):
    return sum(stop - start for _, start, stop in shards)


def array_key(key):
    return "|".join(key)


def to_host(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Tensors of one device and type as NumPy arrays. From a GPU they come in one copy into page-locked memory."""
    return to_host_later(tensors)()


def to_host_later(tensors: list[torch.Tensor]) -> Callable[[], list[np.ndarray]]:
    """A function that waits for the copies that `to_host` returns, and returns them."""
    if tensors[0].device.type != "cuda":
        return lambda: [tensor.cpu().numpy() for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    shapes = [tensor.shape for tensor in tensors]

    def copies():
        done.synchronize()
        return [part.view(shape).numpy() for part, shape in zip(host.split([s.numel() for s in shapes]), shapes)]

    return copies
