"""Seeds, and random numbers that depend on nothing but their key."""

import random

import numpy as np
import torch

# uniform numbers set aside for one image and view; a multiple of 4, the block size of Philox
DRAWS = 64


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int, world_size: int) -> None:
    """Seeds PyTorch for one step of a training, so that a resumed run draws what an uninterrupted
    one draws."""
    torch.manual_seed((world_size * (seed * 2**32 + step) + rank) % 2**63)


def uniforms(seed: int, epoch: int, view: int, start: int, count: int) -> np.ndarray:
    """float64 (count, draws) in [0, 1): the random numbers of the images at positions start ... of
    an epoch's order.

    A counter-based generator (Philox) is set to the position, so the numbers of an image depend on
    (seed, epoch, view, position) alone: not on the batch size, the number of workers, or where a
    run was resumed.
    """
    key = np.random.SeedSequence([seed, epoch, view]).generate_state(2, np.uint64)
    stream = np.random.Philox(counter=start * (DRAWS // 4), key=key)
    return np.random.Generator(stream).random((count, DRAWS))


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of n images, int64 (n,), that depends on (seed, epoch) alone."""
    key = np.random.SeedSequence([seed, epoch, 2**32 - 1])  # a number that no view has
    return np.random.Generator(np.random.Philox(key)).permutation(n)
