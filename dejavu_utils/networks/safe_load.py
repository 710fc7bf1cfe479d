"""Reading files of other projects: harmless types beside the weights, and safetensors."""

import zipfile
from pathlib import Path
from typing import Any

import torch

# What published checkpoints hold beside their weights. Each is read as an empty placeholder:
# nothing of it is ever run.
HARMLESS = (
    "argparse.Namespace",  # DINO, MAE
    "__main__.exclude_bias_and_norm",  # VICReg and Barlow Twins: in the optimizer's groups
    "numpy.dtype",  # accuracies and the like
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
)


def read_weights(path: str | Path) -> Any:
    """What a file of weights holds, whoever wrote it, for checkpoint.load_checkpoint. Nothing of it
    is run."""
    if str(path).endswith(".safetensors"):
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    "TorchScript, whose code is never run; save the state_dict of the module instead"
                )
    with torch.serialization.safe_globals([_placeholder(name) for name in HARMLESS]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: str | Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            "safetensors files are loaded by the package of that name: pip install safetensors"
        ) from None
    return load_file(path)


def _placeholder(name: str) -> type:
    """A class that takes the place of what a file calls `name`, whatever is done with it while the
    file is read."""
    module, _, last = name.rpartition(".")
    return type(
        last,
        (),
        {
            "__module__": module,
            "__qualname__": last,
            "__new__": lambda cls, *args, **kwargs: object.__new__(cls),
            "__init__": lambda self, *args, **kwargs: None,
            "__setstate__": lambda self, state: None,
        },
    )
