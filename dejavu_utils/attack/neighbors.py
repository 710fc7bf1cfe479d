"""Exact nearest neighbors of a set of queries among public embeddings that arrive in blocks.

Only the queries, one block and the k best so far are held, so that the public set never has to be
in memory.

float32 matrix products find candidates, k and some more per block. The distances of the candidates
that can be among the k nearest are then computed from the differences of the coordinates, in
float64. The products alone, |q|^2 + |x|^2 - 2 qx, lose the distances within a cluster that is small
beside its distance from the mean.
"""

import importlib.util
import math
import sys
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from dejavu_utils.errors import InputError

_CPU = torch.device("cpu")
_MORE = 64  # candidates per block beyond k
_QUERIES_AT_ONCE = 4096
_DISTANCES_AT_ONCE = 2**26  # of these queries and a block, where PyTorch computes them: 256 MB
# of pairs whose differences are held at once on CPUs: 2 MB, in the cache
_COORDINATES = 2**18
_COLUMNS = 512
_COORDINATES_GPU = 2**26  # on other devices
# of squared distances: outside this range float32 underflows or overflows
_LEAST = 2.0**-100
_MOST = 2.0**126


class NeighborSearch:
    """The k nearest public embeddings of every query, by L2 distance in float64.

    queries: float32 (n, d), n > 0, C-contiguous; on CPUs not copied, on a GPU they stay there, like
    the best so far. k: neighbors. device: where the distances are computed, with IEEE float32
    (devices.set_ieee_fp32). name: of the embeddings, for an InputError where their squares leave
    the range of float32. `add` takes the public embeddings block by block; `result` gives the
    neighbors. `best` is all that a search must keep to resume: give it to the `merge` of another
    search of the same queries.

    Candidates come from faiss on CPUs where it is installed, else from PyTorch; on macOS the OpenMP
    libraries of the two do not go together in one process.
    """

    def __init__(
        self,
        queries: np.ndarray,
        k: int,
        device: torch.device = _CPU,
        name: str = "the embeddings",
    ) -> None:
        self.k = k
        self.device = device
        self.name = name
        on_cpu = device.type == "cpu" and sys.platform != "darwin"
        self.use_faiss = on_cpu and importlib.util.find_spec("faiss") is not None
        self.queries = torch.from_numpy(queries).to(self.device)
        # Centering leaves distances unchanged and avoids cancellation in the float32 products.
        center = queries.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.center = torch.from_numpy(center).to(self.device)
        n = len(queries)
        self.distances = torch.empty(n, 0, dtype=torch.float64, device=self.device)  # squared
        self.positions = torch.empty(n, 0, dtype=torch.int64, device=self.device)

    @property
    def best(self) -> dict[str, np.ndarray]:
        """{"distances": squared, float64, "positions": int64} of the nearest so far, at most k,
        nearest first."""
        return {
            "distances": self.distances.cpu().numpy(),
            "positions": self.positions.cpu().numpy(),
        }

    def add(self, block: np.ndarray, positions: np.ndarray) -> None:
        """Searches a block of public embeddings, float32 (m, d). positions: int64 (m,), theirs in
        the public set, sorted."""
        if not len(block):
            return
        places = torch.from_numpy(positions).to(self.device)
        embeddings = torch.from_numpy(block).to(self.device)
        centered = embeddings - self.center
        at_once = _QUERIES_AT_ONCE
        if not self.use_faiss:
            at_once = max(1, min(at_once, _DISTANCES_AT_ONCE // len(block)))
        parts = []
        for start in range(0, len(self.queries), at_once):
            rows = slice(start, start + at_once)
            exact, chosen = self._exact_distances(rows, embeddings, centered)
            parts.append(self._nearest(rows, exact, places[chosen]))
        self.distances = torch.cat([distances for distances, _ in parts])
        self.positions = torch.cat([positions for _, positions in parts])

    def _exact_distances(
        self, rows: slice, block: Tensor, centered: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(squared distances float64 (r, c), infinite where an embedding is none of the nearest;
        rows of the block)."""
        queries = self.queries[rows] - self.center
        norms = queries.square().sum(dim=1)
        approximate, chosen = self._candidates(queries, norms, centered)
        if not (approximate < _MOST).all():  # also where one is not a number
            self._refuse("are so large that their squares overflow float32")
        kth = approximate[:, min(self.k, approximate.shape[1]) - 1]
        # How far a distance by products is off at most: its terms are of the size of the norms, and
        # their errors, of random signs, add up like the root of their number.
        eps = torch.finfo(torch.float32).eps
        width = self.queries.shape[1]
        error = 2 * eps * math.sqrt(width) * (norms + kth.clamp(min=0))
        limit = kth + error  # by products, up to which one may be among the k nearest so far
        if self.positions.shape[1] == self.k:
            limit = torch.minimum(limit, self.distances[rows, -1].float())
        wanted = approximate <= (limit + error)[:, None]
        # They come first in each row, since the candidates are in order.
        columns = int(wanted.sum(dim=1).max())
        wanted = wanted[:, :columns]
        chosen = chosen[:, :columns]
        exact = _squared_distances(self.queries[rows], block, chosen)
        return exact.masked_fill_(~wanted, math.inf), chosen

    def merge(self, distances: np.ndarray, positions: np.ndarray) -> None:
        """Joins the neighbors found in another part of the public set: `best` of a search of the
        same queries."""
        others = torch.from_numpy(distances).to(self.device)
        places = torch.from_numpy(positions).to(self.device)
        self.distances, self.positions = self._nearest(slice(None), others, places)

    def _nearest(self, rows: slice, distances: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The k nearest of these (r, c) and of those so far, nearest first, of equal distances the
        earlier position."""
        distances = torch.cat([self.distances[rows], distances], 1)
        positions = torch.cat([self.positions[rows], positions], 1)
        order = positions.argsort(dim=1)
        distances = distances.gather(1, order)
        positions = positions.gather(1, order)
        order = distances.argsort(dim=1, stable=True)[:, : self.k]
        return distances.gather(1, order), positions.gather(1, order)

    def result(self) -> np.ndarray:
        """Positions of the neighbors in the public set, nearest first, int64 (n, k). ValueError if
        it holds fewer."""
        images = self.positions.shape[1]
        if images < self.k:
            raise ValueError(f"k is {self.k}, but the public set holds only {images} images")
        if 0 < float(self.distances.max()) < _LEAST:
            self._refuse("are so small that their squares are lost in float32")
        return self.positions.cpu().numpy()

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.name} {what}; take an earlier snapshot, or another layer")

    def _candidates(self, queries: Tensor, norms: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """(squared distances float32 (r, m), sorted, rows of the block int64 (r, m)) by float32
        products."""
        m = min(self.k + _MORE, len(block))
        if self.use_faiss:
            import faiss

            distances, rows = faiss.knn(queries.numpy(), block.numpy(), m)
            return torch.from_numpy(distances), torch.from_numpy(rows)
        block_norms = block.square().sum(dim=1)
        squared = torch.addmm(block_norms, queries, block.T, alpha=-2)
        squared.add_(norms[:, None])
        distances, rows = squared.topk(m, dim=1, largest=False)
        return distances, rows


def candidates_memory(k: int) -> int:
    """Bytes that a search holds for the candidates of some queries, beside what it keeps of all of
    them."""
    distances = 4 * _DISTANCES_AT_ONCE  # where PyTorch computes them
    candidates = _QUERIES_AT_ONCE * (k + _MORE)
    return distances + 64 * candidates  # some arrays of 8 bytes a candidate: distances, positions


def _squared_distances(queries: Tensor, block: Tensor, chosen: Tensor) -> Tensor:
    """|queries[r] - block[chosen[r, c]]|^2, float64 (r, c). queries, block: float32 (., d). chosen:
    int64 (r, c)."""
    width = queries.shape[1]
    candidates = max(1, chosen.shape[1])
    at_once = _COORDINATES_GPU
    columns = width
    if queries.device.type == "cpu":
        at_once = _COORDINATES
        columns = min(width, _COLUMNS)
    rows = max(1, at_once // (candidates * columns))
    total = torch.zeros(chosen.shape, dtype=torch.float64, device=queries.device)
    for first in range(0, len(queries), rows):
        those = slice(first, first + rows)
        for start in range(0, width, columns):
            coordinates = slice(start, start + columns)
            query = queries[those, None, coordinates].double()
            public = block[:, coordinates].index_select(0, chosen[those].flatten()).double()
            difference = public.unflatten(0, chosen[those].shape).sub_(query)
            total[those] += torch.linalg.vector_norm(difference, dim=2).square_()
    return total
