"""Exact nearest neighbors of a set of queries among public embeddings that arrive in blocks.

Only the queries, one block and the k best so far are held, so that the public set never has to be in memory.

float32 matrix products find candidates, k and some more per block; the distances of all that may be among the k
nearest are then computed from the differences of the coordinates, in float64. The products alone, |q|^2 + |x|^2 - 2 qx,
lose the distances within a cluster that is small beside its distance from the mean.
"""

import importlib.util
import math
import sys

import numpy as np
import torch

from dejavu_utils.errors import InputError
from dejavu_utils.runtime.devices import ieee_fp32

_MORE = 64  # candidates per block beyond k
_QUERIES_AT_ONCE = 4096
_DISTANCES_AT_ONCE = 2**26  # of these queries and a block, where PyTorch computes them: 256 MB
_COORDINATES, _COLUMNS = 2**18, 512  # of pairs whose differences are held at once on CPUs: 2 MB, in the cache
_COORDINATES_GPU = 2**26  # on other devices
_LEAST, _MOST = 2.0**-100, 2.0**126  # of squared distances: beyond, float32 loses digits, or has no number


class NeighborSearch:
    """The k nearest public embeddings of every query, by L2 distance in float64.

    queries: float32 (n, d), n > 0, C-contiguous; on CPUs not copied, on a GPU they stay there, like the best so far.
    k: neighbors. device: where the distances are computed. use_faiss: candidates by faiss, else by PyTorch; not given:
    by faiss on CPUs where it is installed, but not on macOS, where the OpenMP libraries of the two do not go together
    in one process. name: of the embeddings, for an InputError where their squares leave the range of float32.
    `add` takes the public embeddings block by block; `result` gives the neighbors. `best` is all that a search must
    keep to resume: give it to the `merge` of another search of the same queries.
    """

    def __init__(self, queries, k, device=None, use_faiss=None, name="the embeddings"):
        self.k, self.device, self.name = k, device or torch.device("cpu"), name
        self.use_faiss = _faiss_is_usable(self.device) if use_faiss is None else use_faiss
        self.queries = torch.from_numpy(queries).to(self.device)
        # Moved there, distances do not change, but products have digits left where all embeddings share a large mean.
        self.center = torch.from_numpy(queries.mean(axis=0, dtype=np.float64).astype(np.float32)).to(self.device)
        n = len(queries)
        self.distances = torch.empty(n, 0, dtype=torch.float64, device=self.device)  # squared
        self.positions = torch.empty(n, 0, dtype=torch.int64, device=self.device)
        self.seen = 0

    @property
    def best(self):
        """(squared distances float64, positions int64) of the nearest so far, at most k, nearest first; NumPy."""
        return self.distances.cpu().numpy(), self.positions.cpu().numpy()

    def add(self, block, positions=None):
        """Searches a block of public embeddings, float32 (m, d).

        positions: int64 (m,), theirs in the public set, rising; not given: those that follow the blocks already added.
        """
        if not len(block):
            return
        positions = np.arange(self.seen, self.seen + len(block)) if positions is None else np.asarray(positions)
        positions = torch.from_numpy(positions).to(self.device)
        block = torch.from_numpy(block).to(self.device)
        moved, m, parts = block - self.center, min(self.k + _MORE, len(block)), []
        at_once = (
            _QUERIES_AT_ONCE if self.use_faiss else max(1, min(_QUERIES_AT_ONCE, _DISTANCES_AT_ONCE // len(block)))
        )
        with ieee_fp32():
            for start in range(0, len(self.queries), at_once):
                rows = slice(start, start + at_once)
                queries = self.queries[rows] - self.center
                norms = queries.square().sum(dim=1)
                approximate, chosen = self._candidates(queries, norms, moved, m)
                if not (approximate < _MOST).all():  # nor where it is not a number
                    self._refuse("are so large that their squares overflow float32")
                wanted = approximate <= self._limit(rows, norms, approximate)[:, None]
                # They come first in each row, since the candidates are in order.
                columns = int(wanted.sum(dim=1).max())
                wanted, chosen = wanted[:, :columns], chosen[:, :columns]
                exact = _squared_distances(self.queries[rows], block, chosen).masked_fill_(~wanted, math.inf)
                parts.append(_nearest(self.distances[rows], self.positions[rows], exact, positions[chosen], self.k))
        self.distances, self.positions = (torch.cat(tensors) for tensors in zip(*parts))
        self.seen += len(block)

    def merge(self, distances, positions):
        """Joins the neighbors found in another part of the public set: `best` of a search of the same queries."""
        distances, positions = (torch.from_numpy(np.asarray(x)).to(self.device) for x in (distances, positions))
        found = _nearest(self.distances, self.positions, distances.double(), positions, self.k)
        self.distances, self.positions = found

    def result(self):
        """Positions of the neighbors in the public set, nearest first, int64 (n, k). ValueError if it holds fewer."""
        found = self.positions.shape[1]
        if found < self.k:
            raise ValueError(f"k is {self.k}, but the public set holds only {found} images")
        if 0 < float(self.distances.max()) < _LEAST:
            self._refuse("are so small that their squares are lost in float32")
        return self.positions.cpu().numpy()

    def _refuse(self, what):
        raise InputError(f"{self.name} {what}; take an earlier snapshot, or another layer")

    def _candidates(self, queries, norms, block, m):
        """(squared distances float32 (r, m), rising, rows of the block int64 (r, m)) by float32 products."""
        if self.use_faiss:
            import faiss

            return tuple(map(torch.from_numpy, faiss.knn(queries.numpy(), block.numpy(), m)))
        squared = torch.addmm(block.square().sum(dim=1), queries, block.T, alpha=-2).add_(norms[:, None])
        return squared.topk(m, dim=1, largest=False)

    def _limit(self, rows, norms, approximate):
        """Distances by products, up to which an embedding may be among the k nearest so far, float32 (r,)."""
        kth = approximate[:, min(self.k, approximate.shape[1]) - 1]
        # How far a distance by products is off at most: its terms are of the size of the norms, and their errors, of
        # random signs, add up like the root of their number.
        error = 2 * torch.finfo(torch.float32).eps * math.sqrt(self.queries.shape[1]) * (norms + kth.clamp(min=0))
        limit = kth + error
        if self.positions.shape[1] == self.k:
            limit = torch.minimum(limit, self.distances[rows, -1].float())
        return limit + error


def candidates_memory(k):
    """Bytes that a search holds for the candidates of some queries, beside what it keeps of all of them."""
    distances = 4 * _DISTANCES_AT_ONCE  # where PyTorch computes them
    return distances + _QUERIES_AT_ONCE * (k + _MORE) * 64


def _faiss_is_usable(device):
    return device.type == "cpu" and sys.platform != "darwin" and importlib.util.find_spec("faiss") is not None


def _squared_distances(queries, block, chosen):
    """|queries[r] - block[chosen[r, c]]|^2, float64 (r, c). queries, block: float32 (., d). chosen: int64 (r, c)."""
    width, candidates = queries.shape[1], max(1, chosen.shape[1])
    on_cpu = queries.device.type == "cpu"
    at_once, columns = (_COORDINATES, min(width, _COLUMNS)) if on_cpu else (_COORDINATES_GPU, width)
    rows = max(1, at_once // (candidates * columns))
    total = torch.zeros(chosen.shape, dtype=torch.float64, device=queries.device)
    for part, of_queries, of_block in zip(*(x.split(rows) for x in (total, queries, chosen))):
        for start in range(0, width, columns):
            query, public = (x[:, start : start + columns] for x in (of_queries, block))
            difference = public.index_select(0, of_block.flatten()).double().view(*of_block.shape, query.shape[1])
            part += torch.linalg.vector_norm(difference.sub_(query.double()[:, None]), dim=2).square_()
    return total


def _nearest(distances, positions, more_distances, more_positions, k):
    """The k nearest of both, nearest first, of equal distances the earlier position; (n, a), (n, a), (n, b), (n, b)."""
    distances, positions = torch.cat([distances, more_distances], 1), torch.cat([positions, more_positions], 1)
    order = positions.argsort(dim=1)
    distances, positions = distances.gather(1, order), positions.gather(1, order)
    order = distances.argsort(dim=1, stable=True)[:, :k]
    return distances.gather(1, order), positions.gather(1, order)
