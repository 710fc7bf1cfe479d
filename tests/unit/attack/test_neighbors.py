"""Exact neighbors in a stream against a float64 brute force."""

import importlib.util

import numpy as np
import pytest
import torch
from helpers import refused

from dejavu_utils.attack.neighbors import NeighborSearch


def assert_nearest(found, queries, public, k):
    """The same neighbors as a float64 brute force, up to distances that float32 cannot tell apart."""
    squared = ((queries[:, None].astype(np.float64) - public[None].astype(np.float64)) ** 2).sum(axis=2)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :k]
    distances = [np.take_along_axis(squared, positions, axis=1) for positions in (found, expected)]
    np.testing.assert_allclose(*distances, rtol=1e-5)
    assert all(len(set(row)) == k for row in found)
    assert (found == expected).mean() > 0.999


HAS_FAISS = importlib.util.find_spec("faiss") is not None
BOTH = [pytest.param(True, marks=pytest.mark.skipif(not HAS_FAISS, reason="faiss is not installed")), False]


def search(queries, public, k, blocks, use_faiss):
    found = NeighborSearch(queries.copy(), k)
    found.use_faiss = use_faiss
    for positions in np.array_split(np.arange(len(public)), blocks):
        found.add(public[positions], positions)
    return found.result()


@pytest.mark.parametrize("use_faiss", BOTH)
@pytest.mark.parametrize("blocks", [1, 3, 40])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_same_as_brute_force(use_faiss, blocks, offset):
    rng = np.random.default_rng(0)
    queries = (rng.normal(size=(300, 24)) + offset).astype(np.float32)
    public = (rng.normal(size=(1000, 24)) + offset).astype(np.float32)
    assert_nearest(search(queries, public, 20, blocks, use_faiss), queries, public, 20)


@pytest.mark.parametrize("use_faiss", BOTH)
def test_equal_distances_are_ordered_by_position(use_faiss):
    public = np.tile(np.float32([[1, 0], [0, 1]]), (4, 1))
    found = search(np.float32([[0, 0]]), public, 8, 8, use_faiss)
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_k_beyond_the_public_set_is_named():
    found = NeighborSearch(np.zeros((2, 3), np.float32), 5)
    found.add(np.zeros((4, 3), np.float32), np.arange(4))
    with pytest.raises(ValueError, match="k is 5, but the public set holds only 4"):
        found.result()


def tight_clusters(clusters, per_cluster, d, spread, seed=0):
    """Embeddings in clusters that are `spread` wide and about 1 from one another, labels, and as many queries."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(clusters, d)) / np.sqrt(d)
    labels = np.repeat(np.arange(clusters), per_cluster)
    # Within a cluster, subclusters that only the last digits tell apart: they are the classes.
    classes = rng.integers(0, 4, len(labels))
    offsets = spread * rng.normal(size=(clusters, 4, d)) / np.sqrt(d)

    def draw(classes):
        noise = 0.2 * spread * rng.normal(size=(len(classes), d)) / np.sqrt(d)
        return (centers[labels] + offsets[labels, classes] + noise).astype(np.float32)

    return draw(classes), classes, draw(classes)


@pytest.mark.parametrize("use_faiss", BOTH)
def test_tight_clusters_are_told_apart(use_faiss):
    """Clusters 1e-4 wide at distance 1: of products alone float32 keeps nothing of the distances within."""
    public, classes, queries = tight_clusters(25, 40, 64, 1e-4)
    found = search(queries, public, 5, 3, use_faiss)
    squared = ((queries[:, None].astype(np.float64) - public[None].astype(np.float64)) ** 2).sum(axis=2)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :5]
    assert np.array_equal(found, expected)
    vote = np.array([np.bincount(classes[row]).argmax() for row in found])
    assert (vote == classes).mean() > 0.99
    centered = [torch.from_numpy(x - queries.mean(axis=0)) for x in (queries, public)]
    products = torch.addmm(centered[1].square().sum(1), centered[0], centered[1].T, alpha=-2)
    by_products = products.topk(5, largest=False).indices.numpy()
    assert np.mean([np.bincount(classes[row]).argmax() for row in by_products] == classes) < 0.9  # without float64


@pytest.mark.parametrize("use_faiss", BOTH)
def test_the_cut_into_blocks_changes_nothing(use_faiss):
    rng = np.random.default_rng(1)
    queries, public = (rng.normal(size=(n, 48)).astype(np.float32) for n in (70, 900))
    public[500:600] = public[100:200]  # equal distances
    expected = search(queries, public, 30, 1, use_faiss)
    for blocks in (2, 7, 100):
        assert np.array_equal(search(queries, public, 30, blocks, use_faiss), expected)


@pytest.mark.parametrize("scale, what", [(1e19, "overflow"), (1e-22, "are lost")])
def test_squares_beyond_float32_are_refused(scale, what):
    rng = np.random.default_rng(0)
    queries, public = ((scale * rng.normal(size=(n, 8))).astype(np.float32) for n in (10, 50))
    for use_faiss in {HAS_FAISS, False}:
        found = NeighborSearch(queries.copy(), 5, name="model A, projector")
        found.use_faiss = use_faiss
        with refused(f"model A, projector are so .*{what}"):
            found.add(public.copy(), np.arange(50))
            found.result()


def test_equal_embeddings_are_no_error():
    found = NeighborSearch(np.ones((3, 4), np.float32), 2)
    found.add(np.ones((5, 4), np.float32), np.arange(5))
    assert found.result().tolist() == [[0, 1]] * 3


def test_without_faiss_pytorch_searches(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not NeighborSearch(np.zeros((2, 3), np.float32), 1).use_faiss
