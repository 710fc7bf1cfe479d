"""Near-copies: images that show the same picture in another size, compression or mirrored, found by
a perceptual hash.

A near-copy of an attacked image in the other training set, or in the public set, makes the test say
less than there is: the reference model has then seen the picture, too.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, load_npz
from dejavu_utils.imagenet import ImageListing, load_image
from dejavu_utils.runtime.resumable import Arrays, OnProgress, Shard

FILE = "near_duplicates.npz"
MOST_BITS = 12  # of 128 that differ between near-copies
SHARD = 2048  # images that a worker gets at once, and that are saved together
_RUN = 1000  # images alike in a part of the hash that are compared with each
# of two hashes that differ in at most MOST_BITS bits, two blocks at least agree
_BLOCKS = MOST_BITS + 2
PASSES = _BLOCKS * (_BLOCKS - 1) // 2
# Bits that are neighbors in the image tell much the same: blocks are made of bits from all over it.
_ORDER = np.arange(128).reshape(8, 16).T.ravel()


@dataclass
class Signatures:
    """What is kept of n images. hashes: uint64 (n, 2), 128 bits; mirrored: the same of the mirrored
    image.

    thumbnails: uint8 (n, 8, 8, 3), RGB. readable: bool (n,).
    """

    hashes: np.ndarray
    mirrored: np.ndarray
    thumbnails: np.ndarray
    readable: np.ndarray


@dataclass
class NearCopies:
    """Which of n images are near-copies. groups: int64 (n,), images of one number are alike to the
    last bit.

    pairs: int64 (m, 2), groups whose images are near-copies of each other's; each pair once, the
    smaller first.
    """

    groups: np.ndarray
    pairs: np.ndarray


def signature_shards(
    listing: ImageListing, num_workers: int, shards: Sequence[Shard], on_progress: OnProgress
) -> Iterator[tuple[str, Arrays]]:
    """Yields (name, Signatures as arrays) of each shard of the listing's images, read by
    `num_workers` processes."""
    chunks = [listing.paths[shard.start : shard.stop] for shard in shards]
    of_chunk = functools.partial(signatures, root=listing.root)
    with ProcessPoolExecutor(num_workers) as pool:
        read = pool.map if num_workers > 1 else map
        for shard, images in zip(shards, read(of_chunk, chunks)):
            on_progress(shard.stop - shard.start)
            yield shard.name, vars(images)


def concatenated(parts: Iterable[Arrays]) -> Signatures:
    """The Signatures of all shards, at least one, in their order."""
    pieces = list(parts)
    joined = {}
    for name in pieces[0]:
        joined[name] = np.concatenate([piece[name] for piece in pieces])
    return Signatures(**joined)


def signatures(paths: Sequence[str | Path], root: str | Path = "") -> Signatures:
    """The Signatures of image files, whose paths are relative to root.

    The hash is a difference hash (Krawetz 2013): is a pixel of the image reduced to 9 x 8 brighter
    than its left neighbor, is one of 8 x 9 brighter than its upper one?
    """
    n = len(paths)
    bits = np.zeros((2, n, 128), bool)
    thumbnails = np.zeros((n, 8, 8, 3), np.uint8)
    readable = np.zeros(n, bool)
    for row, path in enumerate(paths):
        try:
            image = load_image(Path(root, path), at_least=64)
        except InputError:
            continue
        readable[row] = True
        thumbnails[row] = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
        gray = image.convert("L")
        across = np.asarray(gray.resize((9, 8), Image.Resampling.BILINEAR))
        down = np.asarray(gray.resize((8, 9), Image.Resampling.BILINEAR))
        bits[0, row] = _hash_bits(across, down)
        bits[1, row] = _hash_bits(across[:, ::-1], down[:, ::-1])
    hashes = np.packbits(bits, axis=2).view(">u8").astype(np.uint64)
    return Signatures(hashes[0], hashes[1], thumbnails, readable)


def _hash_bits(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """bool (128,): the difference hash from the gray image reduced to 9 x 8 and to 8 x 9 pixels."""
    brighter_than_left = across[:, 1:] > across[:, :-1]
    brighter_than_above = down[1:] > down[:-1]
    return np.concatenate([brighter_than_left.ravel(), brighter_than_above.ravel()])[_ORDER]


def find_near_copies(
    images: Signatures, on_progress: OnProgress = lambda count: None
) -> NearCopies:
    """NearCopies of images: hashes at most MOST_BITS apart and thumbnails alike, as they are or one
    mirrored.

    Thumbnails are alike where the root mean square of their difference is at most 3 + 0.15 of their
    standard deviation, in levels of 0 to 255: two pictures of plain sky have one hash. Time is
    about n log n: pairs are looked for among images that agree in two of the hash's blocks
    (multi-index hashing, Norouzi et al. 2012). on_progress: called with 1 for each of PASSES such
    pairs of blocks.
    """
    groups, first = _grouped(images)
    n = len(first)
    hashes = np.concatenate([images.hashes[first], images.mirrored[first]])
    thumbnails = images.thumbnails[first]
    thumbnails = np.concatenate([thumbnails, thumbnails[:, :, ::-1]])
    # faiss's IndexBinaryMultiHash(128, 7, 18) finds the same pairs of 300,000 hashes in 244 s, this
    # in 26 s (one core).
    codes = np.empty(0, np.int64)  # a pair as one number, see _verified
    for i, j in itertools.combinations(range(_BLOCKS), 2):
        keys = (_block(hashes, i) << np.uint64(12)) | _block(hashes, j)
        near = [codes]
        for candidates in _agreeing(keys.astype(np.uint32)):
            near.append(_verified(candidates, hashes, thumbnails))
        codes = np.unique(np.concatenate(near))
        on_progress(1)
    places = np.stack(np.divmod(codes, max(n, 1)), axis=1)
    pairs = np.sort(groups[first[places]], axis=1)
    by_first_then_second = np.lexsort(pairs.T[::-1])
    return NearCopies(groups, pairs[by_first_then_second])


def _grouped(images: Signatures) -> tuple[np.ndarray, np.ndarray]:
    """(groups int64 (n,): images of one number are alike to the last bit; first int64 (g,): an
    image of each group that can be read, from dark to bright)."""
    pixels = images.thumbnails.reshape(len(images.readable), -1)
    rows = np.concatenate([images.hashes.view(np.uint8), pixels], axis=1)
    sortable = rows.view(f"V{rows.shape[1]}").ravel()  # each row as one value
    _, first, groups = np.unique(sortable, return_index=True, return_inverse=True)
    groups = groups.astype(np.int64)
    unreadable = np.flatnonzero(~images.readable)
    groups[unreadable] = len(first) + np.arange(len(unreadable))  # each alone
    first = first[images.readable[first]]
    brightness = images.thumbnails[first].mean(axis=(1, 2, 3))
    return groups, first[np.argsort(brightness, kind="stable")]


def _block(hashes: np.ndarray, number: int) -> np.ndarray:
    """The bits of one block, uint64; half of the blocks lie in each word."""
    word, place = divmod(number, _BLOCKS // 2)
    bounds = np.linspace(0, 64, _BLOCKS // 2 + 1).astype(int)
    start, stop = bounds[place : place + 2]
    return (hashes[:, word] >> np.uint64(64 - stop)) & np.uint64(2 ** (stop - start) - 1)


def _agreeing(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yields int64 (m, 2): rows with one key, the first of them no mirrored one (those are the
    second half), the second not its own mirror image."""
    n = len(keys) // 2
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    places = np.arange(len(keys))
    for offset in range(1, _RUN + 1):
        places = places[places + offset < len(keys)]
        places = places[ordered[places] == ordered[places + offset]]
        if not len(places):
            return
        candidates = np.sort(np.stack([order[places], order[places + offset]], axis=1), axis=1)
        low, high = candidates.T
        yield candidates[(low < n) & (low != high - n)]


def _verified(candidates: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Codes a * n + b (a < b) of the candidates that are near-copies."""
    n = len(hashes) // 2
    for words in (hashes[:, :1], hashes):  # the first half of the bits refuses most of them
        low, high = candidates.T
        differing_bits = np.bitwise_count(words[low] ^ words[high]).sum(axis=1)
        candidates = candidates[differing_bits <= MOST_BITS]
    one, other = thumbnails[candidates.T].astype(np.float32)
    difference = np.sqrt(np.mean((one - other) ** 2, axis=(1, 2, 3)))
    deviation = one.std(axis=(1, 2)).mean(axis=1)
    are_alike = difference <= 3 + 0.15 * deviation
    low, high = np.sort(candidates[are_alike] % n, axis=1).T
    return low * n + high


def pairs_between(copies: NearCopies, first: np.ndarray, second: np.ndarray | None = None) -> int:
    """How many pairs of near-copies have one image in `first` and the other in `second`, which
    share no image.

    second: None counts the pairs within `first`. Sets are int (.,) of image indices.
    """
    others = first if second is None else second
    pairs = int(_members(copies, first) @ _members_and_copies(copies, others))
    # within one set each pair is met twice, and each image meets itself
    return (pairs - len(first)) // 2 if second is None else pairs


def _members(copies: NearCopies, images: np.ndarray) -> np.ndarray:
    """int64: how many of these images are in each group."""
    return np.bincount(copies.groups[images], minlength=copies.groups.max(initial=0) + 1)


def _members_and_copies(copies: NearCopies, images: np.ndarray) -> np.ndarray:
    """int64: how many of these images are in each group, or near-copies of its images."""
    members = _members(copies, images)
    counts = members.copy()
    for here, there in (copies.pairs.T, copies.pairs.T[::-1]):
        np.add.at(counts, here, members[there])
    return counts


def with_near_copy(copies: NearCopies, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool (n,): has the image a near-copy among `others`? An image that is among them is no copy
    of itself.

    images, others: int (.,), image indices.
    """
    counts = _members_and_copies(copies, others)
    return counts[copies.groups[images]] > np.isin(images, others)


def near_copies_beside(index_path: str | Path, listing: ImageListing) -> NearCopies | None:
    """The NearCopies that the partition of an index file kept; None if it looked for none, or at
    other images."""
    folder = Path(index_path).parent  # {n}_per_class, in the partition's folder
    return load_near_copies(folder / FILE, listing) or load_near_copies(
        folder.parent / FILE, listing
    )


def save_near_copies(
    path: str | Path, copies: NearCopies, listing: ImageListing, key: str = ""
) -> None:
    """Writes the npz that `load_near_copies` reads. key: text that says what the images were."""
    with complete_file(path) as temporary:
        np.savez_compressed(
            temporary,
            groups=copies.groups,
            pairs=copies.pairs,
            key=key,
            listing=listing.fingerprint["sha256"],
        )


def load_near_copies(
    path: str | Path, listing: ImageListing, key: str | None = None
) -> NearCopies | None:
    """The NearCopies of an npz; None if there is no such file, it is damaged, or of other images
    than the listing's.

    key: what `save_near_copies` was given, if it must be the same.
    """
    try:
        saved = load_npz(path, "listing", "key", "groups", "pairs")
    except ValueError:
        return None
    of_listing = str(saved["listing"]) == listing.fingerprint["sha256"]
    is_same = of_listing and key in (None, str(saved["key"]))
    return NearCopies(saved["groups"], saved["pairs"]) if is_same else None
