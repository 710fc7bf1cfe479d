"""Exact neighbors in a stream against a float64 brute force."""

import numpy as np
import pytest
import torch

from dejavu_utils.attack.neighbors import NeighborSearch


def assert_nearest(found, queries, public, k):
    """The same neighbors as a float64 brute force, up to distances that float32 cannot tell apart."""
    squared = ((queries[:, None].astype(np.float64) - public[None].astype(np.float64)) ** 2).sum(axis=2)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :k]
    distances = [np.take_along_axis(squared, positions, axis=1) for positions in (found, expected)]
    np.testing.assert_allclose(*distances, rtol=1e-5)
    assert all(len(set(row)) == k for row in found)
    assert (found == expected).mean() > 0.999


def search(queries, public, k, blocks, use_faiss):
    found = NeighborSearch(queries.copy(), k, use_faiss=use_faiss)
    for block in np.array_split(public, blocks):
        found.add(block)
    return found.result()


@pytest.mark.parametrize("use_faiss", [True, False])
@pytest.mark.parametrize("blocks", [1, 3, 40])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_same_as_brute_force(use_faiss, blocks, offset):
    rng = np.random.default_rng(0)
    queries = (rng.normal(size=(300, 24)) + offset).astype(np.float32)
    public = (rng.normal(size=(1000, 24)) + offset).astype(np.float32)
    assert_nearest(search(queries, public, 20, blocks, use_faiss), queries, public, 20)


@pytest.mark.parametrize("use_faiss", [True, False])
def test_equal_distances_are_ordered_by_position(use_faiss):
    public = np.tile(np.float32([[1, 0], [0, 1]]), (4, 1))
    found = search(np.float32([[0, 0]]), public, 8, 8, use_faiss)
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_k_beyond_the_public_set_is_named():
    found = NeighborSearch(np.zeros((2, 3), np.float32), 5)
    found.add(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="k is 5, but the public set holds only 4"):
        found.result()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_finds_what_the_cpu_finds():
    rng = np.random.default_rng(0)
    queries, public = (rng.normal(size=(n, 64)).astype(np.float32) for n in (500, 3000))
    found = NeighborSearch(queries.copy(), 10, torch.device("cuda"))
    for block in np.array_split(public, 4):
        found.add(block)
    assert_nearest(found.result(), queries, public, 10)
