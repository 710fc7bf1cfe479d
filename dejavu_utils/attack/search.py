"""The nearest public images of many crops under several networks at once, each image read and decoded once.

The images are cut into shards, which several processes share, and whose results are kept, so that a killed search can
resume. Of crops and public images the smaller set's embeddings are held in memory, the other's are streamed past them.
What is found does not depend on the number of processes, nor on where a search was interrupted.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from dejavu_utils.attack.neighbors import NeighborSearch, candidates_memory
from dejavu_utils.data.images import EachTransform, IndexedImages, collate_readable, evaluation_transform
from dejavu_utils.data.readers import batches
from dejavu_utils.devices import autocast, to_device
from dejavu_utils.distributed import from_first, rank, wait_for_all, world_size
from dejavu_utils.errors import InputError
from dejavu_utils.networks.inference import check_finite

LOGITS = "logits"  # a layer's name
_SHARD = 4096  # images at most; a killed process loses two
_SHARDS = 64  # at least, if the batches allow it, so that many processes have work
_BLOCK_IMAGES, _BLOCK_FLOATS = 131072, 2**26  # of streamed embeddings that are searched at once: up to 256 MB per layer
_SAVING_SHARE = 1 / 20  # of the time may go into saving neighbors found so far


@dataclass
class ImageSet:
    """Images to embed: a name for messages, their indices int64 (n,), and their crops int64 (n, 4) or None.

    shown: {network: bool (n,), which of them it is shown}; networks that are not named are shown all."""

    name: str
    indices: np.ndarray
    crops: np.ndarray = None
    shown: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.indices)


@dataclass
class Inference:
    """How networks are run over images. resolution: side of their input, pixels; None: each one's own. batch_size:
    images. num_workers: processes that read images. skip_unreadable: leave out images that cannot be read, instead of
    an InputError that names the first."""

    device: torch.device
    precision: str = "fp32"
    resolution: int | None = None
    batch_size: int = 256
    num_workers: int = 0
    skip_unreadable: bool = False


@dataclass
class Found:
    """What a search gives. rows: int64 (m,), the crops that could be read. arrays: {key: neighbors int64 (m, k),
    positions in the public set; or scores float32 (m, classes)}. unreadable: public images that could not be read."""

    rows: np.ndarray
    arrays: dict
    unreadable: int = 0


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
        self.shown = {model: net.preprocessing.at(inference.resolution) for model, net in networks.items()}
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

    def search(self, key, queries, k):
        """A NeighborSearch of embeddings of (model, layer), float32 (n, width)."""
        model, layer = key
        return NeighborSearch(queries, k, self.device, name=f"{self.where.get(model, model)}: its {layer} outputs")

    def shards(self, images):
        """An ImageSet cut into [(name, start, stop)], of whole batches but for the last."""
        size = self.batch_size * max(1, min(_SHARD, len(images) // _SHARDS) // self.batch_size)
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

        pieces: Unfinished, which keeps the shards. progress: total -> context manager whose `update` is told of each
        batch. All processes must call this; each embeds its share and gets the whole.
        """
        shards = self.shards(images)
        there = set(from_first(pieces.names(f"{images.name}_")))
        missing = [shard for shard in shards if shard[0] not in there][rank() :: world_size()]
        with progress(_images(missing)) as bar:
            self.keep(images, missing, pieces, bar.update)
        wait_for_all()
        rows = np.concatenate([pieces.load(name, "rows")["rows"] for name, _, _ in shards])
        whole = {key: np.empty((len(rows), width), np.float32) for key, width in self.widths.items()}
        filled = 0
        for name, _, _ in shards:
            piece = pieces.load(name)
            end = filled + len(piece["rows"])
            for key, array in whole.items():
                array[filled:end] = piece[_word(key)]
            filled = end
        return rows, whole

    def keep(self, images, shards, pieces, on_progress):
        """Embeds shards and saves them among the pieces, each while the next is embedded."""
        with ThreadPoolExecutor(1) as thread:
            saving = None
            for name, rows, embedded in self.embed_shards(images, shards, on_progress):
                if saving:
                    saving.result()
                arrays = {_word(key): array for key, array in embedded.items()}
                saving = thread.submit(pieces.save, name, rows=rows, **arrays)
            if saving:
                saving.result()


def _store(arrays, rows, chosen, embedded):
    """Puts into {key: array} the rows of a batch. chosen, embedded: what Embedder.embed_later took and returned."""
    for key, values in embedded().items():
        arrays[key][rows][chosen.get(key[0], slice(None))] = values


def nearest_public(embedder, crops, public, k, pieces, progress=lambda total: None):
    """The k public images nearest to every crop, under every network and layer; of logits the scores themselves.

    crops, public: ImageSet. pieces: Unfinished. All processes must call this; the first gets what was Found, the others
    None. InputError if fewer than k public images could be read.
    """
    if len(embedder.scores) == len(embedder.widths):
        return Found(*embedder.embed_set(crops, pieces, progress))
    search = _past_crops if holds_crops(len(crops), len(public)) else _past_public
    return search(embedder, crops, public, k, pieces, progress)


def holds_crops(crops, public):
    """Are the crops' embeddings held, and the public images' streamed? For their numbers."""
    return crops <= public


def predicted_memory(embedder, crops, public, k):
    """Upper estimates in bytes for `nearest_public` with so many images: {"held", "streamed", "neighbors", "disk"}.

    The first three add up to what a process needs beside its networks and libraries; disk is for all processes.
    """
    widths = list(embedder.widths.values())
    held, streamed = sorted((crops, public)) if public else (crops, 0)  # logits need no public images
    block = max(min(block_rows(width), streamed) * width for width in widths)
    # A block is read and joined, then moved in a copy; of every layer a shard is saved, and one embedded or read.
    shard = 2 * min(max(_SHARD, embedder.batch_size), streamed) * sum(widths)
    # The best of all layers; and for one, those after a block.
    found = 0 if not public else crops if holds_crops(crops, public) else min(crops, _SHARD)
    waiting = min(streamed, world_size() * (_BLOCK_IMAGES + _SHARD))
    return {
        "held": held * sum(widths) * 4,
        "streamed": (2 * block + shard) * 4,
        "neighbors": found * k * 16 * (len(widths) + 1) + candidates_memory(k),
        "disk": (held + waiting) * sum(widths) * 4 + found * k * len(widths) * 16 * world_size(),
    }


def memory_in_words(needed):
    """What `predicted_memory` gave, as a line of text."""
    gigabytes = {what: size / 1e9 for what, size in needed.items()}
    disk = gigabytes.pop("disk")
    return (
        f"memory per process, beside its networks: at most {sum(gigabytes.values()):.2f} GB ("
        + ", ".join(f"{what} {size:.2f}" for what, size in gigabytes.items())
        + f"); disk for unfinished work: at most {disk:.2f} GB"
    )


def _past_crops(embedder, crops, public, k, pieces, progress):
    """The crops' embeddings are held, the public images' pass by in blocks of shards, each process's own."""
    crop_rows, held = embedder.embed_set(crops, pieces, progress)
    if not len(crop_rows):
        raise InputError("--skip_unreadable: not one of the attacked images could be read")
    scores = {key: held.pop(key) for key in embedder.scores}
    searches = {key: embedder.search(key, array, k) for key, array in held.items()}
    embedder = embedder.without_scores()
    shards, own = embedder.shards(public), f"best_{rank():06d}"
    earlier = pieces.names("best_") if rank() == 0 else []
    earlier = from_first({name: pieces.load(name, "shards")["shards"].tolist() for name in earlier})
    done = {shard for shards_of_piece in earlier.values() for shard in shards_of_piece}
    finished, unreadable = _merge(searches, pieces.load(own)) if own in earlier else ([], 0)
    size = block_rows(max(embedder.widths.values())) // (shards[0][2] - shards[0][1])
    size = max(1, min(size, len(shards) // world_size()))
    blocks = [shards[start : start + size] for start in range(0, len(shards), size)][rank() :: world_size()]
    blocks = [[shard for shard in block if shard[0] not in done] for block in blocks]
    saved, saving = time.monotonic(), 0.0
    with progress(sum(map(_images, blocks))) as bar:
        for block in filter(None, blocks):
            there = set(pieces.names(f"{public.name}_"))
            bar.update(_images([shard for shard in block if shard[0] in there]))
            embedder.keep(public, [shard for shard in block if shard[0] not in there], pieces, bar.update)
            rows = np.concatenate([pieces.load(name, "rows")["rows"] for name, _, _ in block])
            unreadable += _images(block) - len(rows)
            for key, search in searches.items():
                parts = [pieces.load(name, _word(key))[_word(key)] for name, _, _ in block]
                search.add(np.concatenate(parts), rows)
            finished += [name for name, _, _ in block]
            if time.monotonic() - saved > saving / _SAVING_SHARE:
                saved, saving = _save_best(pieces, own, searches, finished, unreadable)
    _save_best(pieces, own, searches, finished, unreadable)
    wait_for_all()
    if rank():
        return None
    for name in sorted({*earlier, *(f"best_{number:06d}" for number in range(world_size()))} - {own}):
        finished_there, unreadable_there = _merge(searches, pieces.load(name))
        finished, unreadable = finished + finished_there, unreadable + unreadable_there
    if sorted(finished) != [name for name, _, _ in shards]:
        raise InputError(f"{pieces.folder}: its pieces do not make up the public set; remove it and rerun the attack")
    neighbors = {key: _result(search, len(public) - unreadable) for key, search in searches.items()}
    return Found(crop_rows, {**neighbors, **scores}, unreadable)


def _past_public(embedder, crops, public, k, pieces, progress):
    """The public images' embeddings are held, the crops' pass by in shards, each process's own."""
    public_rows, held = embedder.without_scores().embed_set(public, pieces, progress)
    if len(public_rows) < k:
        _too_few(k, len(public_rows))
    shards = embedder.shards(crops)
    there = set(from_first(pieces.names("found_")))
    todo = [shard for shard in shards if f"found_{shard[0]}" not in there][rank() :: world_size()]
    with progress(_images(todo)) as bar:
        for name, rows, embedded in embedder.embed_shards(crops, todo, bar.update):
            found = {key: np.empty((0, k), np.int64) for key in held}  # where no crop of the shard could be read
            found |= {key: embedded[key] for key in embedder.scores}
            if len(rows):
                for key, public_embeddings in held.items():
                    search, step = embedder.search(key, embedded[key], k), block_rows(embedder.widths[key])
                    for start in range(0, len(public_rows), step):
                        search.add(public_embeddings[start : start + step], public_rows[start : start + step])
                    found[key] = search.result()
            pieces.save(f"found_{name}", rows=rows, **{_word(key): array for key, array in found.items()})
    wait_for_all()
    if rank():
        return None
    found = [pieces.load(f"found_{name}") for name, _, _ in shards]
    rows = np.concatenate([piece["rows"] for piece in found])
    if not len(rows):
        raise InputError("--skip_unreadable: not one of the attacked images could be read")
    arrays = {key: np.concatenate([piece[_word(key)] for piece in found]) for key in embedder.widths}
    return Found(rows, arrays, len(public) - len(public_rows))


def block_rows(width):
    """Embeddings of this width that are searched at once."""
    return max(1, min(_BLOCK_IMAGES, _BLOCK_FLOATS // width))


def _images(shards):
    return sum(stop - start for _, start, stop in shards)


def _word(key):
    return "|".join(key)


def _save_best(pieces, name, searches, shards, unreadable):
    """Saves the neighbors found so far, then removes the embeddings that they stand for; (when, how long it took)."""
    started = time.monotonic()
    arrays = {"shards": np.array(shards, str), "unreadable": np.array(unreadable)}
    for key, search in searches.items():
        arrays[f"{_word(key)}|distances"], arrays[f"{_word(key)}|positions"] = search.best
    pieces.save(name, **arrays)
    for shard in shards:
        pieces.drop(shard)
    return time.monotonic(), time.monotonic() - started


def _merge(searches, piece):
    """Joins what `_save_best` has saved; its (shards, unreadable)."""
    for key, search in searches.items():
        search.merge(piece[f"{_word(key)}|distances"], piece[f"{_word(key)}|positions"])
    return piece["shards"].tolist(), int(piece["unreadable"])


def _result(search, readable):
    if readable < search.k:
        _too_few(search.k, readable)
    return search.result()


def _too_few(k, readable):
    raise InputError(f"--k {k}: only {readable} images of the public set could be read")


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
