"""Backbones built from the names and shapes of their weights.

torchvision's ResNets and VGGs, ResNets of any width (VICReg's and SwAV's w2, SimCLR's 2x and 4x),
and the vision transformer that DINO, DINOv2, MAE, MoCo v3 and I-JEPA share, which takes images of
other sizes as each publishes it.
"""

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar, cast

import timm.models
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Mlp, SwiGLUPacked
from torch import Tensor, nn
from torchvision.models import resnet

from dejavu_utils.models import backbone_named

T = TypeVar("T")
# Of the widths that DINO, DINOv2, MAE, DeiT and I-JEPA have.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
_NAMES: dict[tuple, str] = {
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
    (3, 24, 36, 3): "resnet200",
}


class ResNet(resnet.ResNet):
    """torchvision's ResNet without its classifier, all widths multiplied by `times`, the first
    convolution's too."""

    def __init__(
        self,
        block: Any,
        layers: list[int],
        times: float = 1.0,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        self.times = times
        super().__init__(block, layers, groups=groups, width_per_group=width_per_group)
        self.num_features = int(512 * times) * block.expansion
        self.fc = nn.Identity()

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage: the stem has been made, with 64 channels
            self.inplanes = int(64 * self.times)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, int(planes * self.times), *args, **kwargs)


def resnet_of_shapes(shapes: dict[str, tuple]) -> tuple[ResNet, str]:
    """(ResNet, name) for {name: shape} of its weights without a classifier."""
    counts = [count(shapes, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    name = _NAMES.get(tuple(counts), "resnet" + "-".join(map(str, counts)))
    times = shapes["conv1.weight"][0] / 64
    wider = f"x{times:g}" if times != 1 else ""
    block: Any = resnet.Bottleneck
    if "layer1.0.conv3.weight" not in shapes:
        block = resnet.BasicBlock
        name = "resnet34" if name == "resnet50" else name
        return ResNet(block, counts, times), name + wider
    inner, a_group = shapes["layer1.0.conv2.weight"][:2]
    groups = inner // a_group
    per_group = round(inner / times / groups)
    if groups > 1:
        name = name.replace("resnet", "resnext") + f"_{groups}x{per_group}d"
    elif per_group != 64:
        name = f"wide_{name}_{per_group // 64}"
    return ResNet(block, counts, times, groups, per_group), name + wider


class VisionTransformer(timm.models.VisionTransformer):
    """timm's transformer, but for images of another size than its position table's: that is
    interpolated (bicubic) to the grid's size, or (`offset`, DINO's) by a factor of (side + offset)
    / side of the table, as its project does."""

    pos_embed: Any
    offset, antialias = 0.0, False

    def _pos_embed(self, patches: Tensor) -> Tensor:
        """float (n, height, width, channels) -> float (n, tokens, channels), the class token and
        registers first."""
        tokens = patches.flatten(1, 2) + self._positions(*patches.shape[1:3])
        for token in (self.reg_token, self.cls_token):
            if token is not None:
                tokens = torch.cat([token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens

    def _positions(self, height: int, width: int) -> Tensor:
        side = math.isqrt(self.pos_embed.shape[1])
        if (height, width) == (side, side):
            return self.pos_embed
        table = self.pos_embed.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        options = {"size": (height, width)}
        if self.offset:
            options = {
                "scale_factor": ((height + self.offset) / side, (width + self.offset) / side)
            }
        table = F.interpolate(table, mode="bicubic", antialias=self.antialias, **options)
        return table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)


def vit_of_shapes(
    shapes: dict[str, tuple], heads: int | None = None
) -> tuple[VisionTransformer, str]:
    """(network, name) for {name: shape} of its weights under timm's names, as `timms_names` gives
    them.

    heads: as usual for the width, unless given. ValueError for a width that is none of the usual
    ones: shapes do not tell the number of heads.
    """
    _, positions, width = shapes["pos_embed"]
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    gated = shapes["blocks.0.mlp.fc2.weight"][1] < hidden
    heads = heads or _HEADS.get(width)
    if not heads or width % heads:
        raise ValueError(f"a transformer {width} wide: its weights do not tell the number of heads")
    depth, patch = count(shapes, r"blocks\.(\d+)\."), shapes["patch_embed.proj.weight"][-1]
    class_token = "cls_token" in shapes
    net = VisionTransformer(
        img_size=math.isqrt(positions) * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=(hidden + 0.5) / width,  # timm rounds the product down
        mlp_layer=cast(Any, SwiGLUPacked if gated else Mlp),
        act_layer=nn.SiLU if gated else nn.GELU,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        init_values=1.0 if "blocks.0.ls1.gamma" in shapes else None,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        fc_norm=False,
        no_embed_class=True,
        reg_tokens=shapes.get("reg_token", (0, 0))[1],
        num_classes=0,
        dynamic_img_size=True,
        weight_init="skip",
    )
    return net, f"vit_{width}x{depth}_{heads}heads_patch{patch}"


def timms_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a vision transformer as DINO, DINOv2, MAE, MoCo v3 and I-JEPA name them -> as timm
    does.

    The class token's entry of the position table is added to that token, once: timm's table is of
    the patches alone.
    """
    renamed = {}
    for name, value in state.items():
        name = "reg_token" if name == "register_tokens" else name
        renamed[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = value
    if "cls_token" in renamed and "pos_embed" in renamed:
        table = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + table[:, :1]
        renamed["pos_embed"] = table[:, 1:]
    return renamed


def count(names: Iterable[str], pattern: str) -> int:
    """1 + the largest number in the first group of a pattern that names match; ValueError if none
    does."""
    numbers = 0
    for name in names:
        match = re.match(pattern, name)
        if match:
            numbers = max(numbers, int(match[1]) + 1)
    if not numbers:
        raise ValueError(f"no weight is called {pattern}")
    return numbers


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple]:
    """{name: shape} of weights."""
    return {name: tuple(value.shape) for name, value in state.items()}


def below(prefix: str, named: dict[str, T]) -> dict[str, T]:
    """{name without the prefix: value} of the names that have it."""
    return {
        name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)
    }


def architectures() -> tuple[str, ...]:
    """Names of the torchvision backbones whose checkpoints can be rebuilt without settings: the
    resnets and vggs."""
    names = torchvision.models.list_models(module=torchvision.models)
    return tuple(n for n in names if n.startswith(("resnet", "vgg")))


@cache  # building the networks takes a second, and an attack loads two
def _shapes_of_arch(arch: str, fc: bool) -> dict[str, tuple]:
    with torch.device("meta"):
        net, _ = backbone_named(arch, fc)
    return shapes_of(net.state_dict())


def arch_of_shapes(shapes: dict, fc: bool = False) -> str:
    """Name of the backbone whose weights have these names and shapes; ValueError if it is none of
    `architectures`."""
    for arch in architectures():
        if _shapes_of_arch(arch, fc) == shapes:
            return arch
    raise ValueError("its names and shapes are those of no torchvision resnet or vgg")
