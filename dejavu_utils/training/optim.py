"""LARS and the schedules of learning rate, teacher momentum and resolution."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888) with momentum.

    q = eta |p| / |g + wd p| (1 if a norm is 0); mu = momentum mu + q (g + wd p); p -= lr mu.
    Parameters of one dimension (biases, normalization) get neither decay nor q.
    """

    # torch.amp.GradScaler then hands over `grad_scale`, by which the gradients are still
    # multiplied, and `found_inf`, 1 where the step is to be skipped, as tensors; without this it
    # would wait for the device to know whether to call it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update. Each line is one operation for all parameters together: on a GPU a network of
        hundreds of parameters would otherwise spend more time on starting kernels than in them."""
        loss = closure() if closure else None
        scale = getattr(self, "grad_scale", None)
        skipped = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if scale is not None:
                torch._foreach_div_([p.grad for p in parameters], scale)
            scaled = [p for p in parameters if p.ndim > 1]
            updates = {p: p.grad for p in parameters}
            if scaled:
                of_scaled = _scaled_updates(scaled, group["weight_decay"], group["eta"])
                updates.update(zip(scaled, of_scaled))
            for p in parameters:
                if "mu" not in self.state[p]:
                    self.state[p]["mu"] = torch.zeros_like(p)
            moving = [self.state[p]["mu"] for p in parameters]
            if skipped is None:
                torch._foreach_mul_(moving, group["momentum"])
                torch._foreach_add_(moving, list(updates.values()))
                torch._foreach_sub_(parameters, moving, alpha=group["lr"])
            else:  # the same three operations in one that does nothing where `skipped` is 1
                torch._fused_sgd_(
                    parameters,
                    list(updates.values()),
                    moving if group["momentum"] else [],  # as the kernel wants it
                    weight_decay=0.0,
                    momentum=group["momentum"],
                    lr=group["lr"],
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                    is_first_step=False,
                    found_inf=skipped,
                )
        return loss


def _scaled_updates(parameters: list[Tensor], weight_decay: float, eta: float) -> Sequence[Tensor]:
    """q (g + wd p) of each parameter."""
    updates = torch._foreach_mul(parameters, weight_decay)
    torch._foreach_add_(updates, [p.grad for p in parameters])  # type: ignore[misc]
    norms = torch.stack(torch._foreach_norm(parameters))
    update_norms = torch.stack(torch._foreach_norm(updates))
    q = torch.where((norms > 0) & (update_norms > 0), eta * norms / update_norms, 1.0)
    torch._foreach_mul_(updates, list(q.unbind()))
    return updates


def make_optimizer(
    name: str, model: nn.Module, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """sgd, adamw or lars over the model's parameters; those of one dimension get no weight decay.

    The learning rate is set before every step, from `learning_rate`.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "lars":
        return LARS(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        fused = parameters[0].device.type == "cuda"
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
        # A checkpoint says what its own device had; fp16's scaler goes by what this optimizer was
        # made with.

        def keep_fused(optimizer: torch.optim.Optimizer) -> None:
            for group in optimizer.param_groups:
                group["fused"] = fused

        sgd.register_load_state_dict_post_hook(keep_fused)
        # as the first step would have it; but where fp16 skips that one, it leaves them undefined
        if momentum:
            for p in parameters:
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    # one pass over the parameters, on CPUs too
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def learning_rate(
    step: int,
    total_steps: int,
    warmup_steps: int,
    base_lr: float,
    batch_size: int,
    end_lr_ratio: float,
) -> float:
    """Linear warm-up from 0 to base_lr x batch_size / 256, then a cosine to end_lr_ratio of
    that."""
    peak = base_lr * batch_size / 256
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    q = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * q + peak * end_lr_ratio * (1 - q)


def resolution_at(epoch: int, min_res: int, max_res: int, start_ramp: int, end_ramp: int) -> int:
    """Side of the training crops in pixels: min up to start_ramp, max from end_ramp, between them
    the nearest multiple of 32 on the straight line."""
    if epoch <= start_ramp:
        return min_res
    if epoch >= end_ramp:
        return max_res
    side = min_res + (max_res - min_res) * (epoch - start_ramp) / (end_ramp - start_ramp)
    return int(round(side / 32)) * 32


def teacher_momentum(step: int, total_steps: int, base: float) -> float:
    """Fraction of the old teacher that an update keeps: from `base` at step 0 to 1 by a cosine."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2


def teacher_temperature(epoch: int, first: float, last: float, warmup_epochs: int) -> float:
    """DINO's teacher temperature: linear from `first` to `last` over the warm-up epochs, then
    `last`."""
    if epoch >= warmup_epochs - 1:
        return last
    return first + (last - first) * epoch / (warmup_epochs - 1)
