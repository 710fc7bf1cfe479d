"""Exchanges between the processes of a training: embeddings with gradients, gradients, and sums read late."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from dejavu_utils.distributed import from_each, rank, sum_over_processes, world_size
from dejavu_utils.errors import InputError


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


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces the gradients by their mean over all processes, in one exchange."""
    if world_size() > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = sum_over_processes(torch.cat([g.flatten() for g in gradients])) / world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))


def check_same_place(place: str, where: str) -> None:
    """InputError if the processes would not all go on from the same place of a run: on a network's file system a
    machine may see late what another has written. place: in words. where: flag and folder. All processes must call
    this."""
    places = from_each(place)
    if len(set(places)) > 1:
        raise InputError(
            f"{where}: the processes read different states of it ({', '.join(places)}), as if a file system were late; "
            "rerun the same command to resume"
        )


class LateSums:
    """Sums of a few numbers over all processes, which come when the next are asked for, so that no GPU is waited for.

    All processes get the same sums at the same call. late: False gives them at once; not given: False on CPUs, whose
    tensors are there anyway.
    """

    def __init__(self, device: torch.device, late: bool | None = None):
        self.device, self.late = device, device.type != "cpu" if late is None else late
        self._under_way: tuple | None = None

    def __call__(self, *values: float | torch.Tensor) -> list[float] | None:
        """The sums of the values of the last call; None at the first. values: numbers, or scalars on the device."""
        kind = {"dtype": torch.float64, "device": self.device}
        full = (torch.full((), float(v), **kind) if not torch.is_tensor(v) else v.double() for v in values)
        sums = sum_over_processes(torch.stack(list(full)))
        if not self.late:
            return sums.tolist()
        before = self.last()
        done = None
        if self.device.type == "cuda":
            sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True).copy_(sums, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        self._under_way = (sums, done)
        return before

    def last(self) -> list[float] | None:
        """Those still under way; None if there are none. A GPU is waited for."""
        if self._under_way is None:
            return None
        (sums, done), self._under_way = self._under_way, None
        if done is not None:
            done.synchronize()
        return sums.tolist()


def asked_to_stop(sums: list[float] | None, when: str, remedy: str) -> bool:
    """Was any process? sums: what LateSums gave for (loss, was this process asked?). InputError for a loss that is not
    finite; when: words for where that was; remedy: what to try."""
    if sums is None:
        return False
    loss, asked = sums
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} {when}; the last good checkpoint is kept: try {remedy}")
    return asked > 0
