"""What an attack asks about the public set: the crops of the attacked sets, and whole public images for the ceiling.

The nearest public images of many crops under several networks at once, each image read and decoded once.

The crops' embeddings are mapped into memory, once per node; the public images' are streamed past them in shards, which
several processes share, and whose results are kept, so that a killed search can resume. The neighbors depend neither on
the number of processes nor on where a search was interrupted.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dejavu_utils.attack.neighbors import NeighborSearch, candidates_memory
from dejavu_utils.crops import WHOLE_IMAGE
from dejavu_utils.data.background_crops import CroppedImages, take_crops
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.log import Progress
from dejavu_utils.networks.embedder import SHARD, Embedder, ImageSet, Key, array_key
from dejavu_utils.runtime.distributed import from_first, rank, wait_for_all, world_size
from dejavu_utils.runtime.resumable import ProgressOf, Shard, ShardStore, count_images

CEILING = "ceiling"  # the part of whole public images
_CEILING_IMAGES = 5000  # of the public set, evenly spaced: enough for an interval of at most 0.03
_BLOCK_IMAGES, _BLOCK_FLOATS = 131072, 2**26  # of streamed embeddings that are searched at once: up to 256 MB per layer
_SAVING_FRACTION = 1 / 20  # of the time may go into saving the neighbors so far

Searches = dict[Key, NeighborSearch]


class Queries:
    """The images to embed and search, part after part: {"A": CroppedImages, "B": ..., CEILING: ...}.

    public: int64 (p,). shown: {network: names of the parts that it is shown}, of those that are not shown all. images:
    ImageSet of all. own: int64 (n,), the query's place in the public set, -1 where it is not public: a public image is
    left out of its own neighbors.
    """

    def __init__(
        self,
        parts: dict[str, CroppedImages],
        public: np.ndarray,
        shown: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.parts = parts
        indices = np.concatenate([part.indices for part in parts.values()])
        crops = np.concatenate([part.crops for part in parts.values()])
        sizes = [len(part) for part in parts.values()]
        part_of = np.repeat(np.array(list(parts)), sizes)
        of_networks = {network: np.isin(part_of, names) for network, names in (shown or {}).items()}
        self.images = ImageSet("crops", indices, crops, shown=of_networks)
        order = np.argsort(public)
        following = np.minimum(np.searchsorted(public, indices, sorter=order), len(public) - 1)
        places = order[following]
        self.own = np.where(public[places] == indices, places, -1)
        self._bounds = np.cumsum([0, *sizes])

    def among(self, name: str, rows: np.ndarray) -> np.ndarray:
        """bool (m,): which of these rows of `images` belong to a part?"""
        number = list(self.parts).index(name)
        return (rows >= self._bounds[number]) & (rows < self._bounds[number + 1])

    def neighbors(self, rows: np.ndarray, positions: np.ndarray, k: int) -> np.ndarray:
        """The k nearest public images of some rows, without themselves: places in the public set, int64 (m, <= k).

        positions: int64 (m, p), the places of as many as `k_with_self(k, ...)` neighbors of each.
        """
        own = self.own[rows]
        return without_itself(positions, own, k) if (own >= 0).any() else positions[:, :k]


def k_with_self(k: int, public: int) -> int:
    """How many neighbors a search must find so that k are left without the query itself; public: how many there are."""
    return min(k + 1, public)


def without_itself(positions: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """The first k neighbors of each query, without the query itself.

    positions: int64 (n, m), places in the public set. own: int64 (n,), the query's place there, -1 where it is not
    public. Returns int64 (n, min(k, m - 1)).
    """
    is_own = positions == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True  # a query missing from its own neighbors drops the last one
    return positions[~is_own].reshape(len(positions), -1)[:, :k]


def ceiling_images(listing: ImageListing, public: np.ndarray, skip_unreadable: bool = False) -> CroppedImages:
    """Whole public images, evenly spaced over the public set."""
    count = min(_CEILING_IMAGES, len(public))
    places = np.linspace(0, len(public) - 1, count).round().astype(np.int64)
    return take_crops(listing, public[places], WHOLE_IMAGE, skip_unreadable=skip_unreadable)


@dataclass
class SearchResult:
    """What a search gives. rows: int64 (m,), the crops that could be read. arrays: {key: neighbors int64 (m, k),
    positions in the public set; or scores float32 (m, classes)}. unreadable: positions of the public images that could
    not be read, sorted."""

    rows: np.ndarray
    arrays: dict[Key, np.ndarray]
    unreadable: list[int] = field(default_factory=list)


def nearest_public(
    embedder: Embedder, crops: ImageSet, public: ImageSet, k: int, pieces: ShardStore, progress: ProgressOf
) -> SearchResult | None:
    """The k public images nearest to every crop, under every network and layer; of logits the scores themselves.

    All processes must call this; the first gets the result, the others None. InputError if fewer than k public images
    could be read.
    """
    rows, embeddings = embedder.embed_set(crops, pieces, progress)
    if not len(rows):
        raise InputError("--skip_unreadable: not one of the attacked images could be read")
    scores = {key: np.array(embeddings.pop(key)) for key in embedder.scores}  # not mapped: the files will be removed
    if not embeddings:
        return SearchResult(rows, scores)
    searches = {key: _search_for(embedder, key, queries, k) for key, queries in embeddings.items()}
    embedder = embedder.without_scores()
    shards = embedder.shards(public)
    saved = pieces.names("best_") if rank() == 0 else []
    shards_of = from_first({name: pieces.load(name, "shards")["shards"].tolist() for name in saved})
    own = _SavedBest(pieces, searches, f"best_{rank():06d}")
    if own.name in shards_of:
        own.join(own.name)
    done = {shard for names in shards_of.values() for shard in names}
    blocks = _own_blocks(embedder, shards, done)
    with progress(sum(map(count_images, blocks))) as bar:
        for block in blocks:
            _search_block(embedder, public, block, own, bar)
    own.save()
    wait_for_all()
    if rank():
        return None
    of_ranks = [f"best_{number:06d}" for number in range(world_size())]
    for name in sorted({*shards_of, *of_ranks} - {own.name}):
        own.join(name)
    if sorted(own.shards) != [name for name, _, _ in shards]:
        raise InputError(f"{pieces.folder}: its pieces do not make up the public set; remove it and rerun the attack")
    readable = len(public) - len(own.unreadable)
    if readable < k:
        raise InputError(f"--k {k}: only {readable} images of the public set could be read")
    neighbors = {key: search.result() for key, search in searches.items()}
    return SearchResult(rows, {**neighbors, **scores}, sorted(own.unreadable))


def _search_for(embedder: Embedder, key: Key, queries: np.ndarray, k: int) -> NeighborSearch:
    """A NeighborSearch for embeddings of a key, float32 (n, width)."""
    model, layer = key
    name = f"{embedder.networks[model].source}: its {layer} outputs"
    return NeighborSearch(queries, k, embedder.device, name=name)


def _own_blocks(embedder: Embedder, shards: list[Shard], done: set[str]) -> list[list[Shard]]:
    """This process's blocks of shards that are searched at once, without those that are done."""
    images = shards[0][2] - shards[0][1]
    size = block_rows(max(embedder.widths.values())) // images
    size = max(1, min(size, len(shards) // world_size()))
    blocks = [shards[start : start + size] for start in range(0, len(shards), size)]
    left = [[shard for shard in block if shard[0] not in done] for block in blocks[rank() :: world_size()]]
    return [block for block in left if block]


def _search_block(embedder: Embedder, public: ImageSet, block: list[Shard], own: "_SavedBest", bar: Progress) -> None:
    """Embeds the shards of a block that are not among the pieces, and searches all of them."""
    pieces = own.pieces
    embedded = set(pieces.names(f"{public.name}_"))
    bar.update(count_images([shard for shard in block if shard.name in embedded]))
    missing = [shard for shard in block if shard.name not in embedded]
    pieces.save_each(embedder.shard_arrays(public, missing, bar.update))
    rows = np.concatenate([pieces.load(name, "rows")["rows"] for name, _, _ in block])
    for key, search in own.searches.items():
        name_of = array_key(key)
        embeddings = [pieces.load(name, name_of)[name_of] for name, _, _ in block]
        search.add(np.concatenate(embeddings), rows)
    own.add(block, rows)


class _SavedBest:
    """The nearest so far of all searches, with the shards that they come from, saved among the pieces as `name`.

    Saving takes at most _SAVING_FRACTION of the time. shards: names. unreadable: positions
    of their images that could not be read.
    """

    def __init__(self, pieces: ShardStore, searches: Searches, name: str) -> None:
        self.pieces, self.searches, self.name = pieces, searches, name
        self.shards: list[str] = []
        self.unreadable: list[int] = []
        self._saved_at, self._duration = time.monotonic(), 0.0

    def add(self, block: list[Shard], readable: np.ndarray) -> None:
        """Shards that were searched. readable: int64 (m,), positions of their images that could be read."""
        self.shards += [name for name, _, _ in block]
        positions = np.concatenate([np.arange(start, stop) for _, start, stop in block])
        self.unreadable += np.setdiff1d(positions, readable).tolist()
        if time.monotonic() - self._saved_at > self._duration / _SAVING_FRACTION:
            self.save()

    def save(self) -> None:
        """Saves the neighbors, then removes the embeddings that they stand for."""
        started = time.monotonic()
        arrays = {"shards": np.array(self.shards, str), "unreadable": np.array(self.unreadable, np.int64)}
        for key, search in self.searches.items():
            arrays[f"{array_key(key)}|distances"], arrays[f"{array_key(key)}|positions"] = search.best
        self.pieces.save(self.name, **arrays)
        for shard in self.shards:
            self.pieces.drop(shard)
        self._saved_at = time.monotonic()
        self._duration = self._saved_at - started

    def join(self, name: str) -> None:
        """Adds what an earlier run or another process saved under this name."""
        piece = self.pieces.load(name)
        for key, search in self.searches.items():
            search.merge(piece[f"{array_key(key)}|distances"], piece[f"{array_key(key)}|positions"])
        self.shards += piece["shards"].tolist()
        self.unreadable += piece["unreadable"].tolist()


def unreadable_in_words(listing: ImageListing, indices: np.ndarray) -> str:
    """Names of public images that --skip_unreadable left out, at most ten. indices: int64 (n,), n > 0."""
    names = [listing.text(index) for index in indices[:10]]
    if len(indices) > len(names):
        names.append("...")
    return f"{len(indices)} public images could not be read and were left out: {', '.join(names)}"


def block_rows(width: int) -> int:
    """Embeddings of this width that are searched at once."""
    return max(1, min(_BLOCK_IMAGES, _BLOCK_FLOATS // width))


@dataclass
class Memory:
    """Upper estimates in bytes. held: the crops' embeddings, which the processes of a node share. streamed and
    neighbors: what each process needs beside its networks and libraries. disk: for the unfinished work of all."""

    held: int
    streamed: int
    neighbors: int
    disk: int

    def in_words(self) -> str:
        held, streamed, neighbors, disk = (size / 1e9 for size in vars(self).values())
        total = streamed + neighbors
        return (
            f"estimated memory per node, shared by its processes: at most {held:.2f} GB (embeddings of the crops); "
            f"per process, excluding the networks: at most {total:.2f} GB (streamed {streamed:.2f}, neighbors "
            f"{neighbors:.2f}); disk for unfinished work: at most {disk:.2f} GB"
        )


def predicted_memory(embedder: Embedder, crops: int, public: int, k: int) -> Memory:
    """What `nearest_public` needs for so many images; public: 0 for logits, which need none."""
    widths = list(embedder.widths.values())
    block = max(min(block_rows(width), public) * width for width in widths)
    # A block is read and joined, then moved in a copy; of every layer a shard is saved, and one embedded or read.
    shard = 2 * min(max(SHARD, embedder.batch_size), public) * sum(widths)
    neighbors = crops * k * 16 if public else 0  # of one layer: float64 distances and int64 positions
    waiting = min(public, world_size() * (_BLOCK_IMAGES + SHARD))
    return Memory(
        held=crops * sum(widths) * 4,
        streamed=(2 * block + shard) * 4,
        neighbors=neighbors * (len(widths) + 1) + candidates_memory(k),  # the best of all; of one, those after a block
        disk=(2 * crops + waiting) * sum(widths) * 4 + neighbors * len(widths) * world_size(),
    )


def work_in_words(embedder: Embedder, queries: Queries, public: ImageSet, k: int, layers: list[str]) -> str:
    """What is computed where, and the memory it needs, in two lines. k: neighbors that are kept."""
    whole = len(queries.parts[CEILING])
    images = [f"{len(queries.images) - whole} crops", f"{whole} whole public images for the ceiling"]
    streamed = len(public) if len(embedder.scores) < len(embedder.widths) else 0  # logits need no public images
    if streamed:
        images.append(f"{streamed} public images as neighbors")
    processes = f"{world_size()} process{'es' if world_size() > 1 else ''}"
    precision = embedder.inference.precision
    memory = predicted_memory(embedder, len(queries.images), streamed, k_with_self(k, streamed))
    return (
        f"embedding {', '.join(images)}: {', '.join(layers)}, on {embedder.device} in {precision}, {processes}\n"
        f"{memory.in_words()}"
    )
