"""Exact nearest neighbors of a set of queries among public embeddings that arrive in blocks.

Only the queries, one block and the k best so far are held, so that the public set never has to be in memory.
"""

import sys

import numpy as np
import torch

_DISTANCES_AT_ONCE = 2**26  # held on the device: 256 MB


class NeighborSearch:
    """The k nearest public embeddings of every query, by L2 distance in float32.

    queries: float32 (n, d), n > 0, C-contiguous; moved to their mean in place, and not copied. k: neighbors. device:
    where the distances are computed. use_faiss: by faiss, else by PyTorch; not given: by faiss on CPUs, but not on
    macOS, where the OpenMP libraries of the two do not go together in one process. `add` takes the public embeddings
    block after block; `result` gives the neighbors. `best` is all that a search must keep to resume: give it to
    the `merge` of another search of the same queries.
    """

    def __init__(self, queries, k, device=None, use_faiss=None):
        self.queries, self.k, self.device = queries, k, device or torch.device("cpu")
        self.use_faiss = self.device.type == "cpu" and sys.platform != "darwin" if use_faiss is None else use_faiss
        # Distances do not change, but float32 has digits left for them where all embeddings share a large mean.
        self.center = queries.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.queries -= self.center
        n = len(queries)
        self.best = np.empty((n, 0), np.float32), np.empty((n, 0), np.int64)
        self.seen = 0

    def add(self, block, positions=None, overwrite=False):
        """Searches a block of public embeddings, float32 (m, d).

        positions: int64 (m,), theirs in the public set, rising; not given: those that follow the blocks already added.
        overwrite: the block is not needed any more and may be moved in place, else its copy is.
        """
        if not len(block):
            return
        k = min(self.k, len(block))
        moved = np.subtract(block, self.center, out=block if overwrite else None)
        distances, rows = self._nearest(moved, k)
        self.merge(distances, rows + self.seen if positions is None else np.asarray(positions)[rows])
        self.seen += len(block)

    def merge(self, distances, positions):
        """Joins the neighbors found in another part of the public set: float32 (n, m), int64 (n, m), nearest first."""
        if not positions.size or not self.best[1].size:
            self.best = (distances, positions) if positions.size else self.best
            return
        later = positions.min() > self.best[1].max()
        distances = np.concatenate([self.best[0], distances], axis=1)
        positions = np.concatenate([self.best[1], positions], axis=1)
        # Of equal distances the earlier position comes first, however the public set is cut into blocks. What follows
        # in order needs only a stable sort, which joins two sorted rows in linear time.
        order = np.argsort(distances, axis=1, kind="stable") if later else np.lexsort((positions, distances), axis=1)
        order = order[:, : self.k]
        self.best = np.take_along_axis(distances, order, axis=1), np.take_along_axis(positions, order, axis=1)

    def result(self):
        """Positions of the neighbors in the public set, nearest first, int64 (n, k). ValueError if it holds fewer."""
        found = self.best[1].shape[1]
        if found < self.k:
            raise ValueError(f"k is {self.k}, but the public set holds only {found} images")
        distances, positions = self.best
        return np.take_along_axis(positions, np.lexsort((positions, distances), axis=1), axis=1)

    def _nearest(self, block, k):
        """(squared distances float32 (n, k), rows of the block int64 (n, k))."""
        if self.use_faiss:
            import faiss

            return faiss.knn(self.queries, np.ascontiguousarray(block), k)
        block = torch.from_numpy(block).to(self.device)
        block_norms = block.square().sum(dim=1)
        distances, positions = [], []
        rows_at_once = max(1, _DISTANCES_AT_ONCE // len(block))
        for start in range(0, len(self.queries), rows_at_once):
            rows = torch.from_numpy(self.queries[start : start + rows_at_once]).to(self.device)
            squared = torch.addmm(block_norms, rows, block.T, alpha=-2).add_(rows.square().sum(dim=1, keepdim=True))
            nearest = squared.topk(k, dim=1, largest=False)
            distances.append(nearest.values.cpu().numpy())
            positions.append(nearest.indices.cpu().numpy())
        return np.concatenate(distances), np.concatenate(positions)
