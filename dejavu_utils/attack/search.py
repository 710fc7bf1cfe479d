"""What an attack asks about the public set: the crops of the attacked sets, and whole public images for the ceiling.

The nearest public images of many crops under several networks at once, each image read and decoded once.

The images are cut into shards, which several processes share, and whose results are kept, so that a killed search can
resume. Of crops and public images the smaller set's embeddings are held in memory, the other's are streamed past them.
What is found does not depend on the number of processes, nor on where a search was interrupted.
"""

import time
from dataclasses import dataclass

import numpy as np

from dejavu_utils.attack.neighbors import NeighborSearch, candidates_memory
from dejavu_utils.crops import CropRule
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.errors import InputError
from dejavu_utils.networks.embedder import SHARD, ImageSet, array_key, count_images
from dejavu_utils.runtime.distributed import from_first, rank, wait_for_all, world_size

CEILING = "ceiling"  # the part of whole public images
_CEILING_IMAGES = 5000  # of the public set, evenly spaced: enough for an interval of at most 0.03
_BLOCK_IMAGES, _BLOCK_FLOATS = 131072, 2**26  # of streamed embeddings that are searched at once: up to 256 MB per layer
_SAVING_SHARE = 1 / 20  # of the time may go into saving neighbors found so far


class Queries:
    """The images to embed and search, part after part: {"A": CroppedImages, "B": ..., CEILING: ...}.

    shown: {network: names of the parts that it is shown}, of those that are not shown all. images: ImageSet of
    all. own: int64 (n,), the query's place in the public set, -1 where it is not public: a public image is left out of
    its own neighbors.
    """

    def __init__(self, parts, public, shown=None):
        self.parts = parts
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts.values()]) for name in ("indices", "crops")
        }
        part_of = np.repeat(np.array(list(parts)), list(map(len, parts.values())))
        of_networks = {network: np.isin(part_of, names) for network, names in (shown or {}).items()}
        self.images = ImageSet("crops", **joined, shown=of_networks)
        order = np.argsort(public)
        places = order[np.minimum(np.searchsorted(public, joined["indices"], sorter=order), len(public) - 1)]
        self.own = np.where(public[places] == joined["indices"], places, -1)
        self._bounds = np.cumsum([0, *map(len, parts.values())])

    def among(self, name, rows):
        """bool (m,): which of these rows of `images` belong to a part?"""
        number = list(self.parts).index(name)
        return (rows >= self._bounds[number]) & (rows < self._bounds[number + 1])

    def neighbors(self, rows, positions, k):
        """The k nearest public images of some rows, without themselves: places in the public set, int64 (m, <= k).

        positions: int64 (m, p), what a search for as many as `k_with_self(k, ...)` found for them.
        """
        own = self.own[rows]
        return without_itself(positions, own, k) if (own >= 0).any() else positions[:, :k]


def k_with_self(k, public):
    """How many neighbors a search must find so that k are left without the query itself; public: how many there are."""
    return min(k + 1, public)


def without_itself(positions, own, k):
    """The first k neighbors of each query, without the query itself.

    positions: int64 (n, m), places in the public set. own: int64 (n,), the query's place there, -1 where it is not
    public. Returns int64 (n, min(k, m - 1)).
    """
    is_own = positions == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True  # who is not among the neighbors leaves out the last
    return positions[~is_own].reshape(len(positions), -1)[:, :k]


def ceiling_images(listing, public, skip_unreadable=False):
    """Whole public images, evenly spaced over the public set, as CroppedImages."""
    count = min(_CEILING_IMAGES, len(public))
    chosen = public[np.linspace(0, len(public) - 1, count).round().astype(np.int64)]
    whole = CropRule("corner", fraction=1.0)
    return take_crops(listing, chosen, whole, skip_unreadable=skip_unreadable)


@dataclass
class SearchResult:
    """What a search gives. rows: int64 (m,), the crops that could be read. arrays: {key: neighbors int64 (m, k),
    positions in the public set; or scores float32 (m, classes)}. unreadable: public images that could not be read."""

    rows: np.ndarray
    arrays: dict
    unreadable: int = 0


def nearest_public(embedder, crops, public, k, pieces, progress=lambda total: None):
    """The k public images nearest to every crop, under every network and layer; of logits the scores themselves.

    crops, public: ImageSet. pieces: ShardStore. All processes must call this; the first gets what was SearchResult,
    the others None. InputError if fewer than k public images could be read.
    """
    if len(embedder.scores) == len(embedder.widths):
        return SearchResult(*embedder.embed_set(crops, pieces, progress))
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
    shard = 2 * min(max(SHARD, embedder.batch_size), streamed) * sum(widths)
    # The best of all layers; and for one, those after a block.
    found = 0 if not public else crops if holds_crops(crops, public) else min(crops, SHARD)
    waiting = min(streamed, world_size() * (_BLOCK_IMAGES + SHARD))
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


def _search_for(embedder, key, queries, k):
    """A NeighborSearch for embeddings of (model, layer), float32 (n, width)."""
    model, layer = key
    return NeighborSearch(queries, k, embedder.device, name=f"{embedder.where.get(model, model)}: its {layer} outputs")


def _past_crops(embedder, crops, public, k, pieces, progress):
    """The crops' embeddings are held, the public images' pass by in blocks of shards, each process's own."""
    crop_rows, held = embedder.embed_set(crops, pieces, progress)
    if not len(crop_rows):
        raise InputError("--skip_unreadable: not one of the attacked images could be read")
    scores = {key: held.pop(key) for key in embedder.scores}
    searches = {key: _search_for(embedder, key, array, k) for key, array in held.items()}
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
    with progress(sum(map(count_images, blocks))) as bar:
        for block in filter(None, blocks):
            there = set(pieces.names(f"{public.name}_"))
            bar.update(count_images([shard for shard in block if shard[0] in there]))
            embedder.keep(public, [shard for shard in block if shard[0] not in there], pieces, bar.update)
            rows = np.concatenate([pieces.load(name, "rows")["rows"] for name, _, _ in block])
            unreadable += count_images(block) - len(rows)
            for key, search in searches.items():
                parts = [pieces.load(name, array_key(key))[array_key(key)] for name, _, _ in block]
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
    return SearchResult(crop_rows, {**neighbors, **scores}, unreadable)


def _past_public(embedder, crops, public, k, pieces, progress):
    """The public images' embeddings are held, the crops' pass by in shards, each process's own."""
    public_rows, held = embedder.without_scores().embed_set(public, pieces, progress)
    if len(public_rows) < k:
        _too_few(k, len(public_rows))
    shards = embedder.shards(crops)
    there = set(from_first(pieces.names("found_")))
    todo = [shard for shard in shards if f"found_{shard[0]}" not in there][rank() :: world_size()]
    with progress(count_images(todo)) as bar:
        for name, rows, embedded in embedder.embed_shards(crops, todo, bar.update):
            found = {key: np.empty((0, k), np.int64) for key in held}  # where no crop of the shard could be read
            found |= {key: embedded[key] for key in embedder.scores}
            if len(rows):
                for key, public_embeddings in held.items():
                    search, step = _search_for(embedder, key, embedded[key], k), block_rows(embedder.widths[key])
                    for start in range(0, len(public_rows), step):
                        search.add(public_embeddings[start : start + step], public_rows[start : start + step])
                    found[key] = search.result()
            pieces.save(f"found_{name}", rows=rows, **{array_key(key): array for key, array in found.items()})
    wait_for_all()
    if rank():
        return None
    found = [pieces.load(f"found_{name}") for name, _, _ in shards]
    rows = np.concatenate([piece["rows"] for piece in found])
    if not len(rows):
        raise InputError("--skip_unreadable: not one of the attacked images could be read")
    arrays = {key: np.concatenate([piece[array_key(key)] for piece in found]) for key in embedder.widths}
    return SearchResult(rows, arrays, len(public) - len(public_rows))


def block_rows(width):
    """Embeddings of this width that are searched at once."""
    return max(1, min(_BLOCK_IMAGES, _BLOCK_FLOATS // width))


def _save_best(pieces, name, searches, shards, unreadable):
    """Saves the neighbors found so far, then removes the embeddings that they stand for; (when, how long it took)."""
    started = time.monotonic()
    arrays = {"shards": np.array(shards, str), "unreadable": np.array(unreadable)}
    for key, search in searches.items():
        arrays[f"{array_key(key)}|distances"], arrays[f"{array_key(key)}|positions"] = search.best
    pieces.save(name, **arrays)
    for shard in shards:
        pieces.drop(shard)
    return time.monotonic(), time.monotonic() - started


def _merge(searches, piece):
    """Joins what `_save_best` has saved; its (shards, unreadable)."""
    for key, search in searches.items():
        search.merge(piece[f"{array_key(key)}|distances"], piece[f"{array_key(key)}|positions"])
    return piece["shards"].tolist(), int(piece["unreadable"])


def _result(search, readable):
    if readable < search.k:
        _too_few(search.k, readable)
    return search.result()


def _too_few(k, readable):
    raise InputError(f"--k {k}: only {readable} images of the public set could be read")
