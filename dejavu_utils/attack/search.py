"""What an attack asks about the public set: the crops of the attacked sets, and whole public images
for the ceiling.

The nearest public images of many crops under several networks at once, each image read and decoded
once.

The crops' embeddings are mapped into memory, once per node; the public images' are streamed past
them in shards, which several processes share, and whose results are kept, so that a killed search
can resume. The neighbors depend neither on the number of processes nor on where a search was
interrupted.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

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
# of streamed embeddings that are searched at once: up to 256 MB per layer
_BLOCK_IMAGES = 131072
_BLOCK_FLOATS = 2**26
_SAVING_FRACTION = 1 / 20  # of the time may go into saving the neighbors so far


class Queries(ImageSet):
    """The images to embed and search, part after part: {"A": CroppedImages, "B": ..., CEILING:
    ...}.

    public: int64 (p,). shown: {network: names of the parts that it is shown}, of those that are not
    shown all. own: int64 (n,), the query's place in the public set, -1 where it is not public: a
    public image is left out of its own neighbors.
    """

    crops: np.ndarray

    def __init__(
        self,
        parts: dict[str, CroppedImages],
        public: np.ndarray,
        shown: Mapping[str, list[str]],
    ) -> None:
        indices = np.concatenate([part.indices for part in parts.values()])
        crops = np.concatenate([part.crops for part in parts.values()])
        super().__init__("crops", indices, crops)
        self.parts = parts
        self._part_of = np.repeat(list(parts), [len(part) for part in parts.values()])
        for network, names in shown.items():
            self.shown[network] = np.isin(self._part_of, names)
        self.own = pd.Index(public).get_indexer(indices)

    def among(self, name: str, rows: np.ndarray) -> np.ndarray:
        """bool (m,): which of these rows belong to a part?"""
        return self._part_of[rows] == name

    def neighbors(self, rows: np.ndarray, positions: np.ndarray, k: int) -> np.ndarray:
        """The k nearest public images of some rows, without themselves: places in the public set,
        int64 (m, <= k).

        positions: int64 (m, p), the places of as many as `k_with_self(k, ...)` neighbors of each.
        """
        own = self.own[rows]
        if not (own >= 0).any():
            return positions[:, :k]
        is_own = positions == own[:, None]
        # a query missing from its own neighbors drops the last one
        is_own[~is_own.any(axis=1), -1] = True
        return positions[~is_own].reshape(len(positions), -1)[:, :k]


def k_with_self(k: int, public: int) -> int:
    """How many neighbors a search must find so that k are left without the query itself; public:
    how many there are."""
    return min(k + 1, public)


def ceiling_images(
    listing: ImageListing, public: np.ndarray, skip_unreadable: bool = False
) -> CroppedImages:
    """Whole public images, evenly spaced over the public set."""
    count = min(_CEILING_IMAGES, len(public))
    places = np.linspace(0, len(public) - 1, count).round().astype(np.int64)
    return take_crops(listing, public[places], WHOLE_IMAGE, skip_unreadable=skip_unreadable)


@dataclass
class SearchResult:
    """What a search gives. rows: int64 (m,), the crops that could be read. arrays: {key: neighbors
    int64 (m, k), positions in the public set; or scores float32 (m, classes)}. unreadable:
    positions of the public images that could not be read, sorted."""

    rows: np.ndarray
    arrays: dict[Key, np.ndarray]
    unreadable: list[int] = field(default_factory=list)


def nearest_public(
    embedder: Embedder,
    crops: ImageSet,
    public: ImageSet,
    k: int,
    pieces: ShardStore,
    progress: ProgressOf,
) -> SearchResult | None:
    """The k public images nearest to every crop, under every network and layer; of logits the
    scores themselves.

    All processes must call this; the first gets the result, the others None. InputError if fewer
    than k public images could be read.
    """
    rows, embeddings = embedder.embed_set(crops, pieces, progress)
    if not len(rows):
        raise InputError("--skip_unreadable: not one of the attacked images could be read")
    scores = {}
    searches = {}
    for key, of_crops in embeddings.items():
        model, layer = key
        if key in embedder.scores:
            scores[key] = np.array(of_crops)  # not mapped: the files will be removed
        else:
            name = f"{embedder.networks[model].source}: its {layer} outputs"
            searches[key] = NeighborSearch(of_crops, k, embedder.device, name=name)
    if not searches:
        return SearchResult(rows, scores)
    embedder = embedder.without_scores()
    shards = embedder.shards(public)
    saved: dict[str, list[str]] = {}  # {piece of an earlier run: the shards that it has searched}
    if rank() == 0:
        for name in pieces.names("best_"):
            saved[name] = pieces.load(name, "shards")["shards"].tolist()
    saved = from_first(saved)
    own = _PublicSearch(embedder, public, searches, pieces, f"best_{rank():06d}")
    if own.name in saved:
        own.join(own.name)
    blocks = own.blocks(shards, done=set().union(*saved.values()))
    with progress(sum(map(count_images, blocks))) as bar:
        for block in blocks:
            own.search(block, bar)
    own.save()
    wait_for_all()
    if rank():
        return None
    of_ranks = [f"best_{number:06d}" for number in range(world_size())]
    for name in sorted({*saved, *of_ranks} - {own.name}):
        own.join(name)
    if sorted(own.shards) != [shard.name for shard in shards]:
        raise InputError(
            f"{pieces.folder}: its pieces do not make up the public set; remove it and rerun the attack"
        )
    readable = len(public) - len(own.unreadable)
    if readable < k:
        raise InputError(f"--k {k}: only {readable} images of the public set could be read")
    neighbors = {key: search.result() for key, search in searches.items()}
    return SearchResult(rows, {**neighbors, **scores}, sorted(own.unreadable))


@dataclass
class _PublicSearch:
    """What this process searches: blocks of shards of the public set, for all keys. The nearest so
    far are saved among the pieces as `name`, with the shards that they come from; saving takes at
    most _SAVING_FRACTION of the time.

    shards: names. unreadable: positions of their images that could not be read.
    """

    embedder: Embedder
    public: ImageSet
    searches: dict[Key, NeighborSearch]
    pieces: ShardStore
    name: str
    shards: list[str] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)
    duration: float = 0.0  # of saving, seconds

    def blocks(self, shards: list[Shard], done: set[str]) -> list[list[Shard]]:
        """This process's shards that are not done, in blocks that are searched at once."""
        images = shards[0].stop - shards[0].start
        size = block_rows(max(self.embedder.widths.values())) // images
        size = max(1, min(size, len(shards) // world_size()))
        blocks = []
        for start in range(rank() * size, len(shards), world_size() * size):
            block = [shard for shard in shards[start : start + size] if shard.name not in done]
            if block:
                blocks.append(block)
        return blocks

    def search(self, block: list[Shard], bar: Progress) -> None:
        """Embeds the shards of a block that are not among the pieces, and searches all of them."""
        embedded = set(self.pieces.names(f"{self.public.name}_"))
        missing = [shard for shard in block if shard.name not in embedded]
        bar.update(count_images(block) - count_images(missing))
        self.pieces.save_each(self.embedder.shard_arrays(self.public, missing, bar.update))
        readable = self._joined(block, "rows")
        for key, search in self.searches.items():
            search.add(self._joined(block, array_key(*key)), readable)
        for shard in block:
            self.shards.append(shard.name)
            self.unreadable += np.setdiff1d(range(shard.start, shard.stop), readable).tolist()
        if time.monotonic() - self.saved_at > self.duration / _SAVING_FRACTION:
            self.save()

    def _joined(self, block: list[Shard], array: str) -> np.ndarray:
        return np.concatenate([self.pieces.load(shard.name, array)[array] for shard in block])

    def save(self) -> None:
        """Saves the neighbors, then removes the embeddings that they stand for."""
        started = time.monotonic()
        arrays = {
            "shards": np.array(self.shards, str),
            "unreadable": np.array(self.unreadable, np.int64),
        }
        for key, search in self.searches.items():
            for name, array in search.best.items():
                arrays[array_key(*key, name)] = array
        self.pieces.save(self.name, **arrays)
        for shard in self.shards:
            self.pieces.drop(shard)
        self.saved_at = time.monotonic()
        self.duration = self.saved_at - started

    def join(self, name: str) -> None:
        """Adds what an earlier run or another process saved under this name."""
        piece = self.pieces.load(name)
        for key, search in self.searches.items():
            distances = piece[array_key(*key, "distances")]
            search.merge(distances, piece[array_key(*key, "positions")])
        self.shards += piece["shards"].tolist()
        self.unreadable += piece["unreadable"].tolist()


def unreadable_in_words(listing: ImageListing, indices: np.ndarray) -> str:
    """Names of public images that --skip_unreadable left out, at most ten. indices: int64 (n,), n >
    0."""
    names = [listing.text(index) for index in indices[:10]]
    if len(indices) > len(names):
        names.append("...")
    return f"{len(indices)} public images could not be read and were left out: {', '.join(names)}"


def block_rows(width: int) -> int:
    """Embeddings of this width that are searched at once."""
    return max(1, min(_BLOCK_IMAGES, _BLOCK_FLOATS // width))


def memory_in_words(embedder: Embedder, crops: int, public: int, k: int) -> str:
    """Upper estimates of what `nearest_public` needs; public: 0 for logits, which need none."""
    widths = list(embedder.widths.values())
    held = crops * sum(widths) * 4
    block = max(min(block_rows(width), public) * width for width in widths)
    # A block is read and joined, then moved in a copy; of every layer a shard is saved, and one
    # embedded or read.
    shard = 2 * min(max(SHARD, embedder.batch_size), public) * sum(widths)
    streamed = (2 * block + shard) * 4
    # of one layer: float64 distances and int64 positions
    of_layer = crops * k * 16 if public else 0
    # the best of all; of one, those after a block
    neighbors = of_layer * (len(widths) + 1) + candidates_memory(k)
    waiting = min(public, world_size() * (_BLOCK_IMAGES + SHARD))
    disk = (2 * crops + waiting) * sum(widths) * 4 + of_layer * len(widths) * world_size()
    return (
        f"estimated memory per node, shared by its processes: at most {held / 1e9:.2f} GB (embeddings of the crops); "
        f"per process, excluding the networks: at most {(streamed + neighbors) / 1e9:.2f} GB (streamed "
        f"{streamed / 1e9:.2f}, neighbors {neighbors / 1e9:.2f}); disk for unfinished work: at most {disk / 1e9:.2f} GB"
    )


def work_in_words(
    embedder: Embedder, queries: Queries, public: ImageSet, k: int, layers: list[str]
) -> str:
    """What is computed where, and the memory it needs, in two lines. k: neighbors that are kept."""
    whole = len(queries.parts[CEILING])
    images = [
        f"{len(queries) - whole} crops",
        f"{whole} whole public images for the ceiling",
    ]
    # logits need no public images
    streamed = len(public) if len(embedder.scores) < len(embedder.widths) else 0
    if streamed:
        images.append(f"{streamed} public images as neighbors")
    processes = f"{world_size()} process{'es' if world_size() > 1 else ''}"
    precision = embedder.inference.precision
    memory = memory_in_words(embedder, len(queries), streamed, k_with_self(k, streamed))
    return (
        f"embedding {', '.join(images)}: {', '.join(layers)}, on {embedder.device} in {precision}, {processes}\n"
        f"{memory}"
    )
