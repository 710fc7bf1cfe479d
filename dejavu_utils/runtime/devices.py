"""The device a script computes on, and the precision it computes in."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch

from dejavu_utils.errors import InputError, one_line

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def set_ieee_fp32() -> None:
    """From now on float32 is computed as IEEE has it, by products and convolutions too, whatever
    the environment says.

    Without this PyTorch lets convolutions round their inputs to TF32, which has 10 of the 23 bits;
    for speed there are bf16 and fp16, by name.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread: faster for one image, and sums do not depend on the number of
    threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_device(index: int | None = 0, flag: str = "the GPU") -> torch.device:
    """The GPU with this index if there is one, else the CPU; None: the CPU. flag: what gave the
    index, for an error.

    float32 is IEEE's on it (`set_ieee_fp32`).
    """
    set_ieee_fp32()
    if index is None or not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise InputError(
            f"{flag} {index}: this machine has {torch.cuda.device_count()} GPUs, counted from 0"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def gpu_problem() -> str:
    """Why PyTorch can use no GPU here, and the remedy; empty where it can."""
    if torch.cuda.is_available():
        return ""
    if not (torch.version.cuda or torch.version.hip):
        return f"PyTorch {torch.__version__} is built for CPUs; install a build for CUDA"
    try:
        torch.cuda.init()
        reason = "it sees none"
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error).partition(" Please ")[0].rstrip(".")
    return (
        f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}: {reason}; see nvidia-smi for the driver, "
        "update it or install a build for an older CUDA"
    )


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16 for one of PRECISIONS: auto is bf16 on GPUs that have it, else fp16; fp32
    on CPUs."""
    if name != "auto":
        return name
    if device.type == "cpu":
        return "fp32"
    # Older GPUs emulate bf16, slowly, and PyTorch counts that as support.
    has_bf16 = torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8
    return "bf16" if has_bf16 else "fp16"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device; a GPU takes it from page-locked memory, and is not waited for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host_later(tensors: list[torch.Tensor]) -> Callable[[], list[np.ndarray]]:
    """A function that waits for the tensors, of one device and type, as NumPy arrays, and returns
    them. From a GPU they come in one copy into page-locked memory."""
    if tensors[0].device.type != "cuda":
        return lambda: [tensor.cpu().numpy() for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    shapes = [tensor.shape for tensor in tensors]

    def copies() -> list[np.ndarray]:
        done.synchronize()
        parts = host.split([shape.numel() for shape in shapes])
        return [part.view(shape).numpy() for part, shape in zip(parts, shapes)]

    return copies


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which a network runs in `precision`: fp32, bf16 or fp16."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
