"""Batch normalization over the batches of all processes."""

from typing import Any

import torch
from torch import Tensor, nn

from dejavu_utils.errors import InputError
from dejavu_utils.runtime.distributed import sum_over_processes, world_size


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_processes(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient.clone())


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with every BatchNorm over the batches of all processes; names in the state dict
    stay the same.

    InputError for layers that do more than normalize (some of timm's hold an activation): they
    would lose it.
    """
    if world_size() == 1:
        return module
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and type(layer) not in (
            nn.BatchNorm1d,
            nn.BatchNorm2d,
        ):
            raise InputError(
                f"--model.arch: its {type(layer).__name__} layers cannot be synchronized: use one process"
            )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _convert(module)


def _convert(module: nn.Module) -> nn.Module:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        converted = _CpuSyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine
        )
        converted.load_state_dict(module.state_dict())
        return converted
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module


class _CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.SyncBatchNorm for CPUs, which has no twin there: mean and variance over the batches of all
    processes."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        n = x.numel() // x.shape[1] * world_size()  # batches are of equal size
        mean = _Sum.apply(x.float().sum(dims)) / n
        centered = x.float() - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dims)) / n
        with torch.no_grad():
            # nn.BatchNorm's default
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        result = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(x.dtype)
