"""Exchanges between the processes of a run: embeddings with gradients, gradients, sums read late,
agreement.

With one process all of it is the identity.
"""

import inspect
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dejavu_utils.errors import InputError
from dejavu_utils.runtime.devices import to_host_later

T = TypeVar("T")
_PATIENCE, _PAUSE = 60, 5  # seconds


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def any_process(flag: bool, device: torch.device) -> bool:
    """Is this flag set in any process? All processes must call this."""
    if world_size() == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    return sum_over_processes(count).item() > 0


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


def gather(x: Tensor) -> Tensor:
    """float (n, d) of each process -> float (n x processes, d), in the order of the processes.

    Meant for a loss of the whole batch that every process computes: the gradient of the own rows is
    multiplied by the number of processes, so that the mean over processes of the parameters'
    gradients (as DistributedDataParallel takes it) is the gradient of that loss. Backward needs no
    communication.
    """
    return _Gather.apply(x) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return gradient[start : start + ctx.rows] * world_size()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces the gradients by their mean over all processes, in one exchange."""
    if world_size() > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = sum_over_processes(parameters_to_vector(gradients))
        vector_to_parameters(total / world_size(), gradients)


def data_parallel(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module in DistributedDataParallel where there are several processes.

    Buffers are not broadcast: batch norm over all processes keeps them equal. PyTorch renames the
    option in 2.14, and warns of the older name.
    """
    if world_size() == 1:
        return module
    known = inspect.signature(DistributedDataParallel).parameters
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    devices = [device.index] if device.type == "cuda" else None
    options: dict[str, Any] = {
        "device_ids": devices,
        "gradient_as_bucket_view": True,
        broadcast: False,
    }
    return DistributedDataParallel(module, **options)


def agreed(
    read: Callable[[], T],
    place: Callable[[T], str],
    source: str,
) -> T:
    """What read() gives in this process, once all processes read the same place; all of them must
    call this.

    On a network file system one machine may see late what another has written: it gets _PATIENCE
    seconds, with a look every _PAUSE. place: names the place of a run that was read. source: flag
    and path, for the InputError after that.
    """
    for left in range(_PATIENCE, -1, -_PAUSE):
        value = read()
        places = from_each((place(value), socket.gethostname()))
        if len({text for text, _ in places}) == 1:
            return value
        if left:
            time.sleep(_PAUSE)
    states = ", ".join(f"{text} on {host}" for text, host in places)
    raise InputError(
        f"{source}: the processes read different states of it ({states}): does every node see this folder? If a file "
        "system was only late, rerun the same command to resume"
    )


class LateSums:
    """All-reduced sums of a few numbers, returned one call late so that reading them does not
    synchronize with the GPU.

    All processes get the same sums at the same call. On CPUs, where there is nothing to wait for,
    they are returned at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.late = device.type != "cpu"
        self._pending: Callable[[], list[np.ndarray]] | None = None

    def __call__(self, *values: float | Tensor) -> list[float] | None:
        """The sums of the values of the last call; None at the first. values: numbers, or scalars
        on the device."""
        scalars = []
        for value in values:
            if not isinstance(value, Tensor):
                # full, not tensor: a number is filled in on the GPU, a tensor made of it would be
                # copied there
                value = torch.full((), float(value), dtype=torch.float64, device=self.device)
            scalars.append(value.double())
        sums = sum_over_processes(torch.stack(scalars))
        if not self.late:
            return sums.tolist()
        before = self.last()
        self._pending = to_host_later([sums])
        return before

    def last(self) -> list[float] | None:
        """The sums still pending, None if there are none; this synchronizes with the GPU."""
        if self._pending is None:
            return None
        [sums] = self._pending()
        self._pending = None
        return sums.tolist()
