"""A trained network made ready to be run over images, and a look at what it gives."""

from collections.abc import Sequence

import torch
from torch.fx.experimental.optimization import fuse

from dejavu_utils.errors import InputError, one_line
from dejavu_utils.models import L2, Network


def prepared_for_inference(network: Network, layers: Sequence[str] = ()) -> Network:
    """The same function, computed faster, of a network that is in eval mode and will not be
    trained; changes it.

    Batch normalization is folded into the convolutions before it, which multiplies their weights
    once instead of the images' features each time; weights lie channels last. Outputs differ by
    rounding. Backbones that torch.fx cannot trace keep their layers, as do those of which `layers`
    names an inner one; others have no inner layers any more.
    """
    if not {layer.removesuffix(L2) for layer in layers} & set(network.inner_layers):
        try:
            network.net, network.inner_layers = fuse(network.net), ()
        except (TypeError, ValueError, RuntimeError, AttributeError):
            pass  # timm's backbones check and convert their inputs themselves
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


@torch.inference_mode()
def check_layers(
    network: Network, layers: Sequence[str], remedy: str = "name one with --layers"
) -> None:
    """InputError unless the network has these layers (with a remedy), and each gives one vector of
    its width.

    Runs one blank image of its size through the network. To be called before any image is read.
    """
    source, names = network.source, network.layer_names()
    for layer in layers:
        if layer.removesuffix(L2) not in names:
            raise InputError(f"{source} has no layer {layer} but {', '.join(names)}; {remedy}")
    side = network.preprocessing.side
    try:
        outputs = network.embed_layers(network.blank_image(), layers)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    # whatever a network raises for images of a size that it does not take
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, 150)}"
        raise InputError(
            f"{source}: takes no images of {side} pixels ({reason}); give --resolution"
        ) from None
    for layer, output in outputs.items():
        shape, width = tuple(getattr(output, "shape", ())), network.width(layer)
        if shape != (1, width):
            raise InputError(
                f"{source}: layer {layer}: its output is of shape {shape}, expected (1, {width})"
            )


def check_finite(is_finite: bool, network: Network, layer: str, precision: str) -> None:
    """InputError unless the output of a network's layer is finite."""
    if not is_finite:
        remedy = "" if precision == "fp32" else " or --precision fp32"
        raise InputError(
            f"{network.source}: its {layer} output is not finite; take an earlier snapshot{remedy}"
        )
