"""What the processes of one training share: embeddings with gradients, batch-norm statistics, gradients, decisions.

Everything here is the identity where there is one process.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x: torch.Tensor) -> torch.Tensor:
    """float (n, d) of each process -> float (n x processes, d), in the order of the processes.

    Meant for a loss of the whole batch that every process computes: the gradient of the own rows is multiplied by the
    number of processes, so that the mean over processes of the parameters' gradients (as DistributedDataParallel takes
    it) is the gradient of that loss. Backward needs no communication.
    """
    return _Gather.apply(x) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        start = rank() * ctx.rows
        return gradient[start : start + ctx.rows] * world_size()


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces the gradients by their mean over all processes, in one exchange."""
    if world_size() > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = sum_over_processes(torch.cat([g.flatten() for g in gradients])) / world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))


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


def wait_for_all() -> None:
    """Returns when every process has called this."""
    if world_size() > 1:
        dist.barrier()
