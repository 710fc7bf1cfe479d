"""The device a script computes on, and the precision it computes in."""

import contextlib

import torch

from dejavu_utils.errors import InputError


def choose_device(index=0):
    """The GPU with this index if there is one, else the CPU; None: the CPU."""
    if index is None or not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise InputError(f"--local_gpu {index}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def autocast(device, precision):
    """The context in which a network runs in `precision`: fp32, bf16 or fp16."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
