"""What the processes of one training share: embeddings with gradients, batch-norm statistics, gradients, decisions.

Everything here is the identity where there is one process.
"""

import torch
import torch.distributed as dist
from torch import nn

from dejavu_utils.options import InputError


def rank():
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x):
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


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx, x):
        return sum_over_processes(x.clone())

    @staticmethod
    def backward(ctx, gradient):
        return sum_over_processes(gradient.clone())


def sum_over_processes(x):
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def average_gradients(parameters):
    """Replaces the gradients by their mean over all processes, in one exchange."""
    if world_size() > 1:
        gradients = [p.grad for p in parameters]
        flat = sum_over_processes(torch.cat([g.flatten() for g in gradients])) / world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))


def any_process(flags, device):
    """Which of these flags are set in any process? A list of bool; all processes must ask, in one exchange."""
    if world_size() == 1:
        return [bool(flag) for flag in flags]
    return [total > 0 for total in sum_over_processes(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]


def from_first(value):
    """What the first process gives; all processes must ask. Of picklable objects, over gloo."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all():
    """Returns when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def synchronize_batch_norm(module, device):
    """The module with every BatchNorm over the batches of all processes; names in the state dict stay the same.

    InputError for layers that do more than normalize (some of timm's hold an activation): they would lose it.
    """
    if world_size() == 1:
        return module
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise InputError(f"--model.arch: its {type(layer).__name__} layers cannot be synchronized: use one process")
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _convert(module)


def _convert(module):
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        converted = _CpuSyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine)
        converted.load_state_dict(module.state_dict())
        return converted
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module


class _CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.SyncBatchNorm for CPUs, which has no twin there: mean and variance over the batches of all processes."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        n = x.numel() // x.shape[1] * world_size()  # batches are of equal size
        mean = _Sum.apply(x.float().sum(dims)) / n
        centered = x.float() - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        result = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(x.dtype)
