"""Backbones that torchvision has no name for, built from the names and shapes of their weights.

ResNets of any width (VICReg's and SwAV's w2, SimCLR's 2x and 4x), and the vision transformer that DINO, DINOv2, MAE and
MoCo v3 share, which takes images of other sizes as each of them publishes it.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import resnet

from dejavu_utils.models import backbone_named

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}  # of the widths that DINO, DINOv2, MAE and DeiT have
_NAMES = {
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
    (3, 24, 36, 3): "resnet200",
}


class ResNet(resnet.ResNet):
    """torchvision's ResNet without its classifier, all widths multiplied by `times`, the first convolution's too."""

    def __init__(self, block, layers, times=1.0, groups=1, width_per_group=64):
        self.times = times
        super().__init__(block, layers, groups=groups, width_per_group=width_per_group)
        self.num_features = int(512 * times) * block.expansion
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:  # the first stage: the stem has been made, with 64 channels
            self.inplanes = int(64 * self.times)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, int(planes * self.times), *args, **kwargs)


def resnet_of_shapes(shapes: dict[str, tuple]) -> tuple[nn.Module, str]:
    """(ResNet, name) for {name: shape} of its weights without a classifier."""
    counts = [_count(shapes, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    block = resnet.Bottleneck if "layer1.0.conv3.weight" in shapes else resnet.BasicBlock
    stem, inner, a_group = shapes["conv1.weight"][0], *shapes["layer1.0.conv2.weight"][:2]
    groups, times = inner // a_group, stem / 64
    name = _NAMES.get(tuple(counts), "resnet" + "-".join(map(str, counts)))
    if tuple(counts) == (3, 4, 6, 3) and block is resnet.BasicBlock:
        name = "resnet34"
    if block is resnet.BasicBlock:
        return ResNet(block, counts, times), name + (f"x{times:g}" if times != 1 else "")
    per_group = round(inner / times / groups)
    if groups > 1:
        name = name.replace("resnet", "resnext") + f"_{groups}x{per_group}d"
    elif per_group != 64:
        name = f"wide_{name}_{per_group // 64}"
    return ResNet(block, counts, times, groups, per_group), name + (f"x{times:g}" if times != 1 else "")


@dataclass
class VitShape:
    """What a vision transformer is made of. patch: side, pixels. tokens: entries of the position table, the class
    token's first. hidden: width within the MLPs. scaled: each block's outputs have learned factors. registers: extra
    tokens without a position (DINOv2). swiglu: gated units in place of GELU."""

    width: int
    depth: int
    heads: int
    patch: int
    tokens: int
    hidden: int
    qkv_bias: bool = True
    scaled: bool = False
    registers: int = 0
    swiglu: bool = False


class VisionTransformer(nn.Module):
    """The ViT of Dosovitskiy et al. 2021 with a class token; output: that token after the last normalization.

    Images of another size than the position table's get it by bicubic interpolation: to the grid's size, or (`offset`,
    DINO's) by a factor of (side + offset) / side of the table.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width = shape.width
        self.num_features, self.offset, self.antialias = width, 0.0, False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.tokens, width))
        if shape.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, shape.registers, width))
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("proj", nn.Conv2d(3, width, kernel_size=shape.patch, stride=shape.patch))
        self.blocks = nn.Sequential(*(_Block(shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images):
        """float (n, 3, h, w) -> float (n, width)."""
        patches = self.patch_embed(images)
        positions = self._positions(*patches.shape[-2:])
        tokens = [self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)]
        x = torch.cat(tokens, dim=1) + positions
        if hasattr(self, "register_tokens"):
            registers = self.register_tokens.expand(len(images), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        return self.norm(self.blocks(x)[:, 0])

    def _positions(self, height, width):
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (height, width) == (side, side):
            return self.pos_embed
        table = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
        if self.offset:
            size = {"scale_factor": ((height + self.offset) / side, (width + self.offset) / side)}
        else:
            size = {"size": (height, width)}
        table = F.interpolate(table, **size, mode="bicubic", antialias=self.antialias)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)], dim=1)


class _Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width = shape.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = _Attention(width, shape.heads, shape.qkv_bias)
        self.mlp = (_SwiGlu if shape.swiglu else _Mlp)(width, shape.hidden)
        self.ls1, self.ls2 = (_Scale(width) if shape.scaled else nn.Identity() for _ in range(2))

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class _Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class _SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class _Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


def vit_of_shapes(shapes: dict[str, tuple], heads: int | None = None) -> tuple[nn.Module, str]:
    """(VisionTransformer, name) for {name: shape} of its weights. heads: as usual for the width, unless given.

    ValueError for a width that is none of the usual ones: shapes do not tell the number of heads.
    """
    _, tokens, width = shapes["pos_embed"]
    swiglu = "blocks.0.mlp.w12.weight" in shapes
    hidden = shapes["blocks.0.mlp.w3.weight"][1] if swiglu else shapes["blocks.0.mlp.fc1.weight"][0]
    heads = heads or _HEADS.get(width)
    if not heads or width % heads:
        raise ValueError(f"a transformer {width} wide: its weights do not tell the number of heads")
    depth, patch = _count(shapes, r"blocks\.(\d+)\."), shapes["patch_embed.proj.weight"][-1]
    shape = VitShape(
        width,
        depth,
        heads,
        patch,
        tokens,
        hidden,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        scaled="blocks.0.ls1.gamma" in shapes,
        registers=shapes.get("register_tokens", (0, 0))[1],
        swiglu=swiglu,
    )
    return VisionTransformer(shape), f"vit_{width}x{depth}_{heads}heads_patch{patch}"


def _count(shapes, pattern):
    numbers = [int(match[1]) for match in (re.match(pattern, name) for name in shapes) if match]
    if not numbers:
        raise ValueError(f"no weight is called {pattern}")
    return max(numbers) + 1


def architectures() -> tuple[str, ...]:
    """Names of the torchvision backbones whose checkpoints can be rebuilt without settings: the resnets and vggs."""
    names = torchvision.models.list_models(module=torchvision.models)
    return tuple(n for n in names if n.startswith(("resnet", "vgg")))


def arch_of_shapes(shapes: dict, fc: bool = False) -> str:
    """Name of the backbone whose weights have these names and shapes; ValueError if it is none of `architectures`."""
    for arch in architectures():
        with torch.device("meta"):
            candidate, _ = backbone_named(arch, fc)
        if {name: tuple(value.shape) for name, value in candidate.state_dict().items()} == shapes:
            return arch
    raise ValueError("its names and shapes are those of no torchvision resnet or vgg")
