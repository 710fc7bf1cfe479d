"""What an attack asks about the public set: the crops of the attacked sets, and whole public images for the ceiling."""

import numpy as np

from dejavu_utils.attack.boxes import CropRule, take_crops
from dejavu_utils.attack.search import ImageSet

CEILING = "ceiling"  # the part of whole public images
_CEILING_IMAGES = 5000  # of the public set, evenly spaced: enough for an interval of at most 0.03


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

        positions: int64 (m, p), what a search for as many as `to_search(k, ...)` found for them.
        """
        own = self.own[rows]
        return without_itself(positions, own, k) if (own >= 0).any() else positions[:, :k]


def to_search(k, public):
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
