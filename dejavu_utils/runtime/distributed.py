"""What the processes of one training share: embeddings with gradients, batch-norm statistics, gradients, decisions.

Everything here is the identity where there is one process.


Exchanges between the processes of a training: embeddings with gradients, gradients, and sums read late."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dejavu_utils.errors import InputError

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
