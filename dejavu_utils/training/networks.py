"""What only training needs of a network: can one of this name be built, and the linear probes on its layers."""

import torch
from torch import nn

from dejavu_utils.errors import InputError, one_line
from dejavu_utils.models import backbone_named


@torch.no_grad()
def check_arch(arch, sides):
    """InputError unless a backbone of this name can be built, and takes square images of these sides (pixels)."""
    with torch.device("meta"):  # shapes only
        try:
            net = backbone_named(arch, False)[0].eval()
        except IndexError:
            raise InputError(
                f"model.arch {arch}: has no linear classifier to take off, and cannot be a backbone"
            ) from None
        for side in sorted(set(sides)):
            try:
                net(torch.empty(1, 3, side, side))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = one_line(error, 150)
                raise InputError(f"model.arch {arch}: does not take images of {side} pixels ({reason})") from None


class Probes(nn.Module):
    """One linear classifier on each of several layers' outputs. widths: list of int."""

    def __init__(self, widths, num_classes):
        super().__init__()
        self.probes = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, outputs):
        """list of float (n, width) -> list of float32 (n, num_classes); no gradient reaches the outputs.

        In float32 whatever precision the network runs in: in bf16 two classes often tie.
        """
        return [probe(output.detach().float()) for probe, output in zip(self.probes, outputs)]
