"""The two U-Nets of RCDM: the published package's, and one like it of diffusers."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dejavu_utils.errors import InputError

Flags = Mapping[str, Any]  # the model flags of the command line, {name: value}
BACKENDS = ("rcdm", "diffusers")
_DEFAULT_MULTIPLIERS = {64: "1,2,3,4", 128: "1,1,2,3,4", 256: "1,1,2,2,4,4"}


def choose_backend(name: str) -> str:
    """rcdm or diffusers; auto is rcdm where the package can be imported, else diffusers. InputError
    if it is absent."""
    packages = {"rcdm": "guided_diffusion_rcdm", "diffusers": "diffusers"}
    if name == "auto":
        name = "rcdm" if importlib.util.find_spec(packages["rcdm"]) else "diffusers"
    if not importlib.util.find_spec(packages[name]):
        remedy = {
            "rcdm": "clone facebookresearch/RCDM, then pip install --no-deps -e RCDM and pip install blobfile",
            "diffusers": "pip install diffusers",
        }
        raise InputError(f"--backend {name}: {packages[name]} is not installed: {remedy[name]}")
    return name


def channel_multipliers(flags: Flags) -> list[int]:
    """[1, 1, 2, 3, 4] of --channel_mult, or the package's default for the image side. InputError if
    neither fits."""
    side = flags["image_size"]
    text = flags["channel_mult"] or _DEFAULT_MULTIPLIERS.get(side)
    if text is None:
        raise InputError(
            f"--image_size {side}: needs --channel_mult, for instance 1,2,4 (only 64, 128, 256 have one)"
        )
    multipliers = _whole_numbers("channel_mult", text)
    if side % 2 ** (len(multipliers) - 1):
        raise InputError(
            f"--channel_mult {text}: {len(multipliers)} levels cannot halve --image_size {side} evenly"
        )
    return multipliers


def attention_levels(flags: Flags) -> list[int]:
    """Levels of the U-Net (0: full resolution) that have attention. InputError for what is no list
    of sides."""
    sides = [flags["image_size"] >> level for level in range(len(channel_multipliers(flags)))]
    text = flags["attention_resolutions"]
    # Published flags name more sides than a smaller model has; those have no effect, as in the
    # package.
    named = _whole_numbers("attention_resolutions", text) if text else []
    return [sides.index(side) for side in named if side in sides]


def _whole_numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InputError(
            f"--{flag} {text}: expected positive whole numbers with commas between, for instance 1,2,4"
        )
    return numbers


def build_unet(backend: str, flags: Flags, width: int) -> nn.Module:
    """The U-Net, called as unet(x (n, 3, s, s), steps (n,), feat=representation (n, width)) -> (n,
    3 or 6, s, s).

    backend: one of BACKENDS. Weights are float32 (mixed precision is autocast's work), drawn from
    PyTorch's global generator. InputError for flags that do not fit together.
    """
    multipliers = channel_multipliers(flags)
    build = _rcdm_unet if backend == "rcdm" else _DiffusersUNet
    try:
        return build(flags, multipliers, width)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"--num_channels {flags['num_channels']} --num_heads {flags['num_heads']} --num_head_channels "
            f"{flags['num_head_channels']}: do not make a U-Net of the {backend} backend ({error})"
        ) from None


def _rcdm_unet(flags: Flags, multipliers: list[int], width: int) -> nn.Module:
    # The package imports this name, which PyTorch 2.1 dropped, and never uses it.
    if not hasattr(torch._C, "has_mkldnn"):
        setattr(torch._C, "has_mkldnn", torch.backends.mkldnn.is_available())  # noqa: B010 (mypy knows no such name)
    from guided_diffusion_rcdm.script_util import create_model

    if flags["num_channels"] % 32:
        raise ValueError("its normalization has 32 groups: give a multiple of 32 channels")
    names = (
        "num_heads",
        "num_head_channels",
        "num_heads_upsample",
        "dropout",
        "use_checkpoint",
        "resblock_updown",
        "use_scale_shift_norm",
        "use_new_attention_order",
        "learn_sigma",
    )
    return create_model(
        flags["image_size"],
        flags["num_channels"],
        flags["num_res_blocks"],
        channel_mult=",".join(map(str, multipliers)),
        # a side no level has
        attention_resolutions=flags["attention_resolutions"] or str(2 * flags["image_size"]),
        feat_cond=True,
        ssl_dim=width,
        **{name: flags[name] for name in names},
    )


class _DiffusersUNet(nn.Module):
    """diffusers' UNet2DModel as ADM has it: scale-shift normalization, zero at the end of every
    residual branch."""

    def __init__(self, flags: Flags, multipliers: list[int], width: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel
        from diffusers.models.attention_processor import Attention
        from diffusers.models.resnet import ResnetBlock2D

        channels = flags["num_channels"]
        groups = min(32, channels // 4)
        if not groups or channels % groups:
            raise ValueError(
                f"{channels} channels do not divide into {groups} groups of normalization"
            )
        attention = attention_levels(flags)
        updown = flags["resblock_updown"]
        down = "ResnetDownsampleBlock2D" if updown else "DownBlock2D"
        up = "ResnetUpsampleBlock2D" if updown else "UpBlock2D"
        levels = range(len(multipliers))
        down_blocks = ["AttnDownBlock2D" if i in attention else down for i in levels]
        up_blocks = ["AttnUpBlock2D" if i in attention else up for i in reversed(levels)]
        self.unet = UNet2DModel(
            sample_size=flags["image_size"],
            out_channels=6 if flags["learn_sigma"] else 3,
            down_block_types=tuple(down_blocks),
            up_block_types=tuple(up_blocks),
            block_out_channels=tuple(channels * multiplier for multiplier in multipliers),
            layers_per_block=flags["num_res_blocks"],
            downsample_type="resnet" if updown else "conv",
            upsample_type="resnet" if updown else "conv",
            dropout=flags["dropout"],
            # set below: a width of heads is all that it knows, and one that may not fit
            attention_head_dim=1,
            norm_num_groups=groups,
            resnet_time_scale_shift="scale_shift" if flags["use_scale_shift_norm"] else "default",
            class_embed_type="identity",
        )
        self.embedding = nn.Linear(width, 4 * channels)
        if flags["use_checkpoint"]:
            self.unet.enable_gradient_checkpointing()
        for name, module in self.unet.named_modules():
            if isinstance(module, Attention):
                _set_heads(module, flags, upsampling=name.startswith("up_blocks"))
                _zero(module.to_out[0])
            elif isinstance(module, ResnetBlock2D):
                _zero(module.conv2)
        _zero(self.unet.conv_out)

    def forward(self, x: Tensor, steps: Tensor, feat: Tensor) -> Tensor:
        return self.unet(x, steps, class_labels=self.embedding(feat), return_dict=False)[0]


def _set_heads(attention: Any, flags: Flags, upsampling: bool) -> None:
    """As many heads as the flags say. ValueError if they do not share the channels evenly."""
    if flags["num_head_channels"] > 0:
        heads, rest = divmod(attention.inner_dim, flags["num_head_channels"])
    else:
        heads = flags["num_heads"]
        if upsampling and flags["num_heads_upsample"] > 0:
            heads = flags["num_heads_upsample"]
        rest = attention.inner_dim % heads
    if rest or not heads:
        raise ValueError(f"{attention.inner_dim} channels do not divide into heads")
    attention.heads = heads
    attention.scale = (attention.inner_dim // heads) ** -0.5


def _zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
