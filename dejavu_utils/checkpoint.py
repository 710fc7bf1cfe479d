"""Checkpoints: saved complete or not at all, plain types only, loaded with weights_only."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file

# published checkpoints were saved from DistributedDataParallel; ours carry the same names
PREFIX = "module."


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """torch.save under a temporary name, then a rename."""
    with complete_file(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError:  # PyTorch's error on a full disk
            raise InputError(f"{path}: cannot be written; is the disk full?") from None


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def load_checkpoint(path: str | Path, flag: str, read: Callable | None = None) -> dict:
    """The checkpoint on the CPU; InputError names the flag for a file that is missing or is not a
    checkpoint.

    read: function of the path, for files of other projects; it may raise anything.
    """
    if not path or not Path(path).is_file():
        raise InputError(
            f"{flag} {path or ''}: no such file; train_SSL.py writes model_ep{{E}}.pth"
        )
    try:
        return read(path) if read else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {named[1]}" if named else "it is damaged, or holds more than plain data"
        reason += ": code from files is never run" + ("; save its weights alone" if named else "")
    except Exception as error:  # a damaged file makes the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(f"{flag} {path}: not a checkpoint that can be read ({reason})")


def with_prefix(state: dict) -> dict:
    """State-dict names as checkpoints carry them."""
    return {PREFIX + name: value for name, value in state.items()}


def without_prefix(state: dict) -> dict:
    """State-dict names as the network carries them."""
    return {name.removeprefix(PREFIX): value for name, value in state.items()}
