"""Checkpoints that other projects published: one table of layouts, recognized by the names of their
weights.

A layout says where in the file the backbone and the projector lie, what is built from their names
and shapes, and how the published evaluation shows images to the network. Weights are renamed and
then loaded strictly; what is left out is named. What a file does not tell (heads of a transformer,
normalization) is asked for with --arch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from dejavu_utils.imagenet import STD, Preprocessing
from dejavu_utils.models import Network, backbone_named
from dejavu_utils.networks.backbones import (
    arch_of_shapes,
    below,
    count,
    resnet_of_shapes,
    shapes_of,
    timms_names,
    vit_of_shapes,
)

Weights = dict[str, torch.Tensor]
BICUBIC = Preprocessing(interpolation="bicubic")


@dataclass(frozen=True)
class Layout:
    """A project's networks. loss: name it has among ours. activation: between the projector's
    layers. heads: of its transformers, None: as usual for the width. offset, antialias: of the
    interpolation of their positions."""

    title: str
    loss: str | None = None
    activation: type = nn.ReLU
    preprocessing: Preprocessing = Preprocessing()
    heads: int | None = None
    offset: float = 0.0
    antialias: bool = False


LAYOUTS = {
    "vicreg": Layout("VICReg", "vicreg"),
    "barlow": Layout("Barlow Twins", "barlow"),
    "swav": Layout(
        "SwAV, DeepCluster-v2 or SeLa-v2", preprocessing=Preprocessing(std=(0.228, *STD[1:]))
    ),
    "dino": Layout("DINO", "dino", nn.GELU, BICUBIC, offset=0.1),
    "dinov2": Layout("DINOv2", "dino", nn.GELU, BICUBIC, offset=0.1),
    "dinov2_reg": Layout("DINOv2 with registers", "dino", nn.GELU, BICUBIC, antialias=True),
    "mae": Layout("MAE", preprocessing=BICUBIC),
    "ijepa": Layout("I-JEPA", preprocessing=BICUBIC),
    "moco": Layout("MoCo v1 or v2"),
    "mocov3": Layout("MoCo v3", heads=12),
    "simclr": Layout(
        "SimCLR, converted", preprocessing=Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
    ),
    "supervised": Layout("supervised, by its classifier", "supervised"),
    "backbone": Layout("a backbone of unknown training"),
}
# (last word of the backbone's prefix, prefix of the projector beside or within it, layout); the
# first that fits.
_PLACES = (
    ("encoder_q.", "encoder_q.fc.", "moco"),
    ("base_encoder.", "base_encoder.fc.", "mocov3"),
    ("base_encoder.", "base_encoder.head.", "mocov3"),
    ("backbone.", "head.mlp.", "dino"),
    ("backbone.", "dino_head.mlp.", "dinov2"),
    ("backbone.", "projector.", "vicreg"),
    ("", "projection_head.", "swav"),
)
# One in each backbone.
_ANCHOR = re.compile(
    r"(|.*\.)(?:layer1\.0\.conv1\.weight|cls_token|blocks\.0\.attn\.qkv\.weight|features\.0\.weight)"
)
# an encoder that is not the one to test
_SECOND = re.compile(r"(encoder_k|momentum_\w+|student\w*|target_\w+)\.")
_CLASSIFIER = re.compile(r"(fc|head)\.(weight|bias)")
# Within a backbone's prefix, but of no use to it: masks, decoders, other heads. Everything else
# must be loaded.
BESIDE = re.compile(
    r"n_averaged|mask_token|masked_embed|decoder_.*|(projection_head|prototypes|classifier|head|fc)\..*|queue.*"
)
_NESTS = ("model", "teacher", "state_dict", "target_encoder", "student")
# What files of other projects look like: (pattern of a name, what has such names); the first that
# fits.
_LOOKS = (
    (
        r"(.*\.)?(embeddings\.|encoder\.layer\.|layer\.0\.attention).*",
        "a file of Hugging Face's transformers",
    ),
    (
        r"(.*\.)?(encoder\.layers\.encoder_layer_0\.|conv_proj\.).*",
        "torchvision's vision transformer",
    ),
    (r"(visual|image_encoder|vision_model)\..*", "an image encoder of CLIP"),
    (r"(.*\.)?layer1\.0\.conv1\.weight", "a ResNet as torchvision names it"),
    (r"(.*\.)?blocks\.0\..*", "a transformer as timm, DINO and MAE name it"),
    (r"(.*\.)?(features|downsample_layers)\..*", "a convolutional network as its authors name it"),
)
# {(width, depth): (name in timm, with gated units)} of DINOv3's transformers.
_DINOV3 = {
    (384, 12): ("small", "small_plus"),
    (768, 12): ("base", "base"),
    (1024, 24): ("large", "large"),
    (1280, 32): ("huge_plus", "huge_plus"),
    (4096, 40): ("7b", "7b"),
}


def weights_in(checkpoint: Any) -> tuple[Weights, str, list[str]]:
    """({name: tensor} without the prefixes of wrappers, where it lay in the file, where other
    weights of such names lie) of a checkpoint of any layout.

    ValueError where the weights cannot be told from the rest.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"holds a {type(checkpoint).__name__}, expected the weights of a network by their names"
        )
    if {"resnet", "head"} <= checkpoint.keys():
        raise ValueError(
            "holds SimCLR v2, which has an architecture of its own (selective kernels): not built in here"
        )
    nests = {}
    for name, nest in {**checkpoint, "": checkpoint}.items():
        for key, value in nest.items() if isinstance(nest, dict) else ():
            if isinstance(key, str) and torch.is_tensor(value):
                nests.setdefault(name, {})[key] = value
    chosen = next((name for name in (*_NESTS, "") if name in nests), next(iter(nests), None))
    if chosen is None or (len(nests) > 1 and chosen not in (*_NESTS, "")):
        entries = ", ".join(map(str, list(checkpoint)[:8])) or "nothing"
        raise ValueError(
            f"holds {entries}; expected weights by their names, or {', '.join(_NESTS)} with weights in it"
        )
    state = _unwrapped(nests[chosen])
    if len(state) < len(nests[chosen]):
        raise ValueError("two of its weights have the same name without module. and _orig_mod.")
    for name, value in state.items():
        if name.endswith(".weight") and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"its {name} holds {kind}: a quantized network; give the file before it was quantized"
            )
    others = []
    for name, nest in nests.items():
        if name != chosen and 2 * len(_unwrapped(nest).keys() & state.keys()) > len(state):
            others.append(name)
    return state, chosen, others


def _unwrapped(nest: Weights) -> Weights:
    """Without the prefixes of wrappers."""
    return {
        re.sub(r"(?<![^.])(?:module|_orig_mod)\.", "", name): value for name, value in nest.items()
    }


def prefix_of(state: Weights, anchor: re.Pattern = _ANCHOR) -> str:
    """Prefix of a network's names, "" for a bare one; a momentum encoder or a student is left
    aside.

    anchor: pattern of a name that the network has once, its first group the prefix. ValueError for
    none or several.
    """
    prefixes = set()
    for name in state:
        match = anchor.fullmatch(name)
        if match:
            prefixes.add(match[1])
    outer = []  # of a network within another the outer one
    for prefix in sorted(prefixes):
        if not prefix.startswith(tuple(outer)):
            outer.append(prefix)
    first = [prefix for prefix in outer if not _SECOND.search(prefix)] or outer
    if len(first) == 1:
        return first[0]
    what = f"networks under {', '.join(first)}" if first else looks_like(state)
    raise ValueError(
        f"holds {what}; expected one torchvision resnet or vgg or one ViT, others are named with --arch"
    )


def looks_like(state: Weights) -> str:
    """What the names of a file are like, in words."""
    names = f"names like {', '.join(list(state)[:3])}"
    for pattern, what in _LOOKS:
        if any(re.fullmatch(pattern, name) for name in state):
            return f"{names} ({what})"
    return names


def other_names(state: Weights, arch: str) -> str:
    """The message about weights whose names are not those of the network `arch` of a collection."""
    return f"holds {looks_like(state)}, which are not those of {arch}: give a file with {arch}'s names, or its network"


def layout_of(state: Weights, prefix: str, nest: str, known: str | None) -> tuple[str, str | None]:
    """(name of the layout, prefix of the projector or None) of weights whose backbone has this
    prefix.

    known: the layout's name, where it is given. ValueError for a transformer whose heads or
    normalization the file does not determine.
    """
    *outer, word = re.findall(r"[^.]*\.", prefix) or [""]
    root = "".join(outer)
    for place, projector, name in _PLACES:
        if place == word and any(key.startswith(root + projector) for key in state):
            if name == "vicreg" and f"{root}projector.0.bias" not in state:
                name = "barlow"
            # solo-learn's names are the same; VICReg has neither of these
            others = any(re.match(r"(momentum_|predictor\.|prototypes\.)", key) for key in state)
            if name == "vicreg" and (others or f"{root}projector.1.running_mean" not in state):
                name = "backbone"
            return known or name, root + projector
    alone = {"encoder_q.": "moco", "base_encoder.": "mocov3"}
    return known or alone.get(word) or _layout_of_bare(below(prefix, state), nest), None


def _layout_of_bare(bare: Weights, nest: str) -> str:
    classified = any(map(_CLASSIFIER.fullmatch, bare))
    if "blocks.0.attn.qkv.weight" in bare:
        return _layout_of_transformer(bare, nest, classified)
    if "cls_token" in bare:
        raise ValueError(
            f"holds {looks_like(bare)}; expected one ViT, others are named with --arch"
        )
    # A converted network has counted no batches of training; published supervised ones have, or
    # keep no count.
    converted = nest == "state_dict" and int(bare.get("bn1.num_batches_tracked", 1)) == 0
    wide = "conv1.weight" in bare and bare["conv1.weight"].shape[0] > 64
    if not classified:
        return "backbone"
    return "simclr" if converted or wide else "supervised"


def _layout_of_transformer(bare: Weights, nest: str, classified: bool) -> str:
    width = bare["blocks.0.attn.qkv.weight"].shape[1]
    if "storage_tokens" in bare:
        depth = count(bare, r"blocks\.(\d+)\.")
        plain, gated = _DINOV3.get((width, depth), ("base", "base"))
        size = gated if "blocks.0.mlp.w1.weight" in bare else plain
        raise ValueError(
            f"holds DINOv3, which timm builds: give --arch timm:vit_{size}_patch16_dinov3"
        )
    if classified:
        raise ValueError(
            "holds a transformer with a classifier: its weights tell neither heads nor normalization; give --arch, for "
            "instance --arch timm:deit_small_patch16_224"
        )
    if "blocks.0.ls1.gamma" in bare:
        return "dinov2_reg" if "register_tokens" in bare else "dinov2"
    if "cls_token" not in bare:
        if nest == "target_encoder":
            return "ijepa"
        raise ValueError(
            "holds a transformer without a class token: its weights do not tell what it is; give --arch ijepa, or its "
            "name in timm, for instance --arch timm:vit_base_patch16_siglip_224"
        )
    if "pos_embed" not in bare or bare["pos_embed"][:, 0].any():
        return "dino"
    if width == 384:  # fixed positions, which both have
        raise ValueError(
            "holds a transformer 384 wide with fixed positions: MoCo v3's has 12 heads, MAE's 6, which its weights do "
            "not tell; give --arch mocov3 or --arch mae"
        )
    return "mae"


def network_of_layout(state: Weights, name: str, prefix: str, projector: str | None) -> Network:
    """Network of the layout `name`, in eval mode, its weights loaded strictly.

    state: {name: tensor}. prefix, projector: of the backbone's and the projector's names, as
    `layout_of` gives them. ValueError, KeyError or RuntimeError where weights are missing, too many
    or of other shapes.
    """
    layout = LAYOUTS[name]
    backbone, classifier, left_out = {}, {}, []
    for key, value in state.items():
        within = key.removeprefix(prefix)
        if projector and key.startswith(projector):
            continue
        if not key.startswith(prefix):
            left_out.append(key)
        elif layout.loss == "supervised" and _CLASSIFIER.fullmatch(within):
            classifier["fc." + within.rpartition(".")[2]] = value
        elif BESIDE.fullmatch(within):
            left_out.append(key)
        else:
            backbone[within] = value
    if "blocks.0.attn.qkv.weight" in backbone:
        backbone = timms_names(backbone)
    with torch.device("meta"):  # the weights come from the file
        net, arch = _backbone(shapes_of(backbone), layout)
        layers, projected = _projector(state, projector, layout.activation)
        network = Network(net, net.num_features, layers)
        if "fc.weight" in classifier:
            network.num_classes, width = classifier["fc.weight"].shape
            network.fc = nn.Linear(width, network.num_classes)
    weights = {f"net.{key}": value for key, value in backbone.items()}
    network.load_state_dict({**weights, **classifier, **projected}, assign=True)
    network.arch, network.preprocessing = arch, layout.preprocessing
    if name == "ijepa":  # others interpolate their tables: published evaluations are at 224
        network.evaluation_side = net.patch_embed.img_size[0]
    network.loss = layout.loss if layout.loss != "supervised" or network.num_classes else None
    network.mlp = "-".join(map(str, network.layer_widths()[1:])) or None
    network.notes = describe(network, f"taken as {layout.title}", left_out)
    return network.float().eval()


def describe(network: Network, origin: str, left_out: Sequence[str]) -> str:
    """What is said about a network of another project. left_out: names of the file that are not
    used."""
    groups = {}
    for name in left_out:
        groups.setdefault(name.partition(".")[0], []).append(name)
    dropped = []
    for group, names in groups.items():
        dropped += [f"{group}.* ({len(names)})"] if len(names) > 3 else names
    projector = f"projector {network.mlp}" if network.mlp else "no projector"
    return (
        f"{origin}: {network.arch}, {network.backbone_width} wide, {projector}; "
        f"dropped: {', '.join(dropped) or 'nothing'}"
    )


def _backbone(shapes: dict[str, tuple], layout: Layout) -> tuple[Any, str]:
    if "layer1.0.conv1.weight" in shapes:
        return resnet_of_shapes(shapes)
    if "blocks.0.attn.qkv.weight" in shapes:
        vit, arch = vit_of_shapes(shapes, layout.heads)
        vit.offset, vit.antialias = layout.offset, layout.antialias
        return vit, arch
    arch = arch_of_shapes(shapes)
    net, width = backbone_named(arch, False)
    net.num_features = cast(Any, width)
    return net, arch


def _projector(
    state: Weights, prefix: str | None, activation: type
) -> tuple[nn.Sequential, Weights]:
    """(its layers, {our name: tensor}): a matrix begins a layer, an activation ends all but the
    last."""
    modules = {}
    for key, value in state.items():
        if prefix and key.startswith(prefix):
            number, _, leaf = key.removeprefix(prefix).rpartition(".")
            if not re.fullmatch(r"[\d.]*", number):
                raise ValueError(
                    f"its projector has {key}: only linear layers and normalizations are built in here"
                )
            place = tuple(map(int, number.split("."))) if number else ()
            modules.setdefault(place, {})[leaf] = value
    parts = [part for _, part in sorted(modules.items())]
    layers = []
    for part in parts:
        if "running_mean" in part:
            module = nn.BatchNorm1d(len(part["running_mean"]), affine="weight" in part)
        else:
            width, width_in = part["weight"].shape
            module = nn.Linear(width_in, width, bias="bias" in part)
            layers.append(nn.Sequential())
        layers[-1].append(module)
    for layer in layers[:-1]:
        layer.append(activation())
    projector = nn.Sequential(*[layer if len(layer) > 1 else layer[0] for layer in layers])
    built = (nn.Linear, nn.BatchNorm1d)
    names = [name for name, module in projector.named_modules() if isinstance(module, built)]
    renamed = {}
    for name, part in zip(names, parts):
        for leaf, value in part.items():
            renamed[f"projector.{name}.{leaf}"] = value
    return projector, renamed
