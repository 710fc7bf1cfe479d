"""Losses against the values that the study's method gives (tests/data/losses.json), and against finite differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import read_json

from dejavu_utils.training import losses

DATA = Path(__file__).parents[2] / "data"
EXPECTED = read_json(DATA / "losses.json")


@pytest.fixture(scope="module")
def embeddings():
    arrays = np.load(DATA / "losses.npz")
    return torch.from_numpy(arrays["z1"]), torch.from_numpy(arrays["z2"])


def test_losses_of_two_views_equal_the_reference(embeddings):
    total, invariance, variance, covariance = EXPECTED["vicreg_parts"]
    normalized = [F.batch_norm(z, None, None, training=True) for z in embeddings]
    for found, expected in (
        (losses.vicreg(*embeddings), EXPECTED["vicreg"]),
        (losses.vicreg(*embeddings, 25, 0, 0), invariance),
        (losses.vicreg(*embeddings, 0, 25, 0), variance),
        (losses.vicreg(*embeddings, 0, 0, 1), covariance),
        (losses.simclr(*embeddings, 0.15), EXPECTED["simclr_t0.15"][2]),
        (losses.barlow(*normalized, 0.0051), EXPECTED["barlow_lambda0.0051"]),
    ):
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [losses.vicreg, losses.simclr, losses.barlow])
def test_losses_are_symmetric_and_float32_under_autocast(embeddings, loss):
    z1, z2 = embeddings
    assert loss(z1, z2).item() == pytest.approx(loss(z2, z1).item(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(z1.bfloat16(), z2.bfloat16()).dtype == torch.float32


def naive(name, z1, z2):
    """The definitions by the d x d matrices, in the precision of what is given."""
    n, d = z1.shape
    if name == "barlow":
        c = z1.T @ z2 / n
        diagonal = torch.eye(d, dtype=torch.bool)
        return (c[diagonal] - 1).square().sum() + 0.0051 * c[~diagonal].square().sum()
    covariances = [torch.cov(z.T) for z in (z1, z2)]
    std = [torch.sqrt(c.diagonal() + 1e-4) for c in covariances]
    off = [c[~torch.eye(d, dtype=torch.bool)].square().sum() / d for c in covariances]
    return 25 * (z1 - z2).square().mean() + 25 * sum(F.relu(1 - s).mean() for s in std) / 2 + sum(off)


@pytest.mark.parametrize("shape", [(12, 50), (50, 12), (16, 16), (2, 9)])
@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_few_rows_and_few_columns_give_the_same(name, shape):
    """Values and gradients against the definition in float64, on both sides of n = d, and for embeddings that are
    correlated, so that the covariances matter."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(shape[1], shape[1], generator=generator) / shape[1] ** 0.5
    views = [torch.randn(shape, generator=generator) @ mixing for _ in range(2)]
    found = [z.clone().requires_grad_() for z in views]
    expected = [z.double().requires_grad_() for z in views]
    value, exact = getattr(losses, name)(*found), naive(name, *expected)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    value.backward()
    exact.backward()
    for z, twin in zip(found, expected):
        scale = twin.grad.abs().max()
        assert (z.grad.double() - twin.grad).abs().max() < 1e-5 * scale


def test_byol_equals_the_reference():
    arrays = np.load(DATA / "losses.npz")
    students, teachers = (list(torch.from_numpy(arrays[name])) for name in ("student", "teacher"))
    assert losses.byol(students, teachers).item() == pytest.approx(EXPECTED["byol"], rel=1e-5)


@pytest.mark.parametrize("small", [0, 3])
def test_dino_is_the_mean_over_pairs_of_different_views(small):
    rng = np.random.default_rng(0)
    students, teachers = rng.normal(size=(2 + small, 5, 7)), rng.normal(size=(2, 5, 7))
    center = rng.normal(size=7)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    pairs = [(t, s) for t in range(2) for s in range(2 + small) if s != t]
    assert len(pairs) == 2 * (2 + small) - 2
    expected = np.mean(
        [
            -(softmax((teachers[t] - center) / 0.05) * np.log(softmax(students[s] / 0.1))).sum(axis=1).mean()
            for t, s in pairs
        ]
    )
    found = losses.dino(
        [torch.from_numpy(s) for s in students],
        [torch.from_numpy(t) for t in teachers],
        torch.tensor(center),
        0.1,
        0.05,
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_mocov3_is_infonce_of_both_directions():
    """By hand: for each query, -log of its own key's share, times 2 temperature; the keys of 5 images, queries of 3."""
    rng = np.random.default_rng(3)
    queries = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2)]
    keys = [rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2)]
    expected = 0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        for row, q in enumerate(query):
            cosines = [q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in key]
            share = np.exp(cosines[row + 2] / 0.2) / sum(np.exp(c / 0.2) for c in cosines)
            expected += -2 * 0.2 * np.log(share) / 3
    tensors = [[torch.from_numpy(x) for x in part] for part in (queries, keys)]
    assert losses.mocov3(*tensors, temperature=0.2, first=2).item() == pytest.approx(expected, rel=1e-5)


def test_teachers_get_no_gradient():
    torch.manual_seed(0)
    students = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    teachers = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    dino = losses.dino(students, teachers, torch.zeros(3), 0.1, 0.04)
    (losses.byol(students, teachers) + dino + losses.mocov3(students, teachers)).backward()
    assert all(s.grad.abs().sum() > 0 for s in students) and all(t.grad is None for t in teachers)
