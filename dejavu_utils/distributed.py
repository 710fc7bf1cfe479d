"""What the processes of one training share: embeddings with gradients, batch-norm statistics, gradients, decisions.

Everything here is the identity where there is one process.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of these flags are set in any process: list of bool, in one exchange; all processes must call this."""
    if world_size() == 1:
        return [bool(flag) for flag in flags]
    return [total > 0 for total in sum_over_processes(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]


def from_first(value: T) -> T:
    """The first process's picklable object, over gloo; all processes must call this."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_each(value: T) -> list[T]:
    """The picklable objects of all processes, in their order; all must call this."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Returns when every process has called this."""
    if world_size() > 1:
        dist.barrier()
