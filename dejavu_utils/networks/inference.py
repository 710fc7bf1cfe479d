"""A trained network made ready to be run over images, and a look at what it gives."""

from collections.abc import Sequence

import torch
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from dejavu_utils.errors import InputError
from dejavu_utils.models import L2, Network


def prepared_for_inference(network: Network, layers: Sequence[str] = ()) -> Network:
    """The same function, computed faster, of a network that is in eval mode and will not be trained; changes it.

    Batch normalization is folded into the convolutions before it, which multiplies their weights once instead of the
    images' features each time; weights lie channels last. Outputs differ by rounding. Backbones that torch.fx cannot
    trace keep their layers, as do those of which `layers` names an inner one; others have no inner layers any more.
    """
    if not {layer.removesuffix(L2) for layer in layers} & set(network.inner_layers):
        try:
            network.net, network.inner_layers = fuse(network.net), ()
        except (TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
            pass  # timm's backbones check and convert their inputs themselves
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def check_finite(is_finite: bool, where: str, layer: str, precision: str) -> None:
    """InputError unless the output of a layer of the checkpoint `where` (flag and path) is finite."""
    if not is_finite:
        raise InputError(
            f"{where}: its {layer} output is not finite; take an earlier snapshot"
            + ("" if precision == "fp32" else " or --precision fp32")
        )
