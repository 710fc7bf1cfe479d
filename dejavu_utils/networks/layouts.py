"""Checkpoints that other projects published: one table of layouts, recognized by the names of their weights.

A layout says where in the file the backbone and the projector lie, what is built from their names and shapes, and how
the published evaluation shows images to the network. Weights are renamed and then loaded strictly; what is left out is
named. What a file does not tell (heads of a transformer, normalization) is asked for with --arch.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn

from dejavu_utils.imagenet import STD, Preprocessing
from dejavu_utils.models import Network, backbone_named
from dejavu_utils.networks.backbones import arch_of_shapes, resnet_of_shapes, vit_of_shapes

BICUBIC = Preprocessing(interpolation="bicubic")


@dataclass(frozen=True)
class Layout:
    """A project's networks. loss: name it has among ours. activation: between the projector's layers. heads: of its
    transformers, None: as usual for the width. offset, antialias: of the interpolation of their positions."""

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
    "swav": Layout("SwAV, DeepCluster-v2 or SeLa-v2", preprocessing=Preprocessing(std=(0.228, *STD[1:]))),
    "dino": Layout("DINO", "dino", nn.GELU, BICUBIC, offset=0.1),
    "dinov2": Layout("DINOv2", "dino", nn.GELU, BICUBIC, offset=0.1),
    "dinov2_reg": Layout("DINOv2 with registers", "dino", nn.GELU, BICUBIC, antialias=True),
    "mae": Layout("MAE", preprocessing=BICUBIC),
    "moco": Layout("MoCo v1 or v2"),
    "mocov3": Layout("MoCo v3", heads=12),
    "simclr": Layout("SimCLR, converted", preprocessing=Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)),
    "supervised": Layout("supervised, by its classifier", "supervised"),
    "backbone": Layout("a backbone alone"),
}
# (last word of the backbone's prefix, prefix of the projector beside or within it, layout); the first that fits.
_PLACES = (
    ("encoder_q.", "encoder_q.fc.", "moco"),
    ("base_encoder.", "base_encoder.fc.", "mocov3"),
    ("base_encoder.", "base_encoder.head.", "mocov3"),
    ("backbone.", "head.mlp.", "dino"),
    ("backbone.", "dino_head.mlp.", "dinov2"),
    ("backbone.", "projector.", "vicreg"),
    ("", "projection_head.", "swav"),
)
_ANCHOR = re.compile(r"(|.*\.)(?:layer1\.0\.conv1\.weight|cls_token|features\.0\.weight)")  # one in each backbone
_SECOND = re.compile(r"(encoder_k|momentum_\w+|student\w*|target_\w+)\.")  # an encoder that is not the one to test
_CLASSIFIER = re.compile(r"(fc|head)\.(weight|bias)")
# Within a backbone's prefix, but of no use to it: masks, decoders, other heads. Everything else must be loaded.
BESIDE = re.compile(r"mask_token|masked_embed|decoder_.*|(projection_head|prototypes|classifier|head|fc)\..*|queue.*")
_NESTS = ("model", "teacher", "state_dict", "student")


def weights_in(checkpoint):
    """({name: tensor} without the prefixes of wrappers, where it lay in the file) of a checkpoint of any layout.

    ValueError where the weights cannot be told from the rest.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(f"holds a {type(checkpoint).__name__}, expected the weights of a network by their names")
    if {"resnet", "head"} <= checkpoint.keys():
        raise ValueError("holds SimCLR v2, which has an architecture of its own (selective kernels): not built in here")
    nests = {name: nest for name, nest in {**checkpoint, "": checkpoint}.items() if isinstance(nest, dict)}
    nests = {name: weights for name, nest in nests.items() if (weights := _tensors(nest))}
    chosen = next((name for name in (*_NESTS, "") if name in nests), next(iter(nests), None))
    if chosen is None or (len(nests) > 1 and chosen not in (*_NESTS, "")):
        there = ", ".join(map(str, list(checkpoint)[:8])) or "nothing"
        raise ValueError(f"holds {there}; expected weights by their names, or {', '.join(_NESTS)} with weights in it")
    state = {re.sub(r"(?<![^.])(?:module|_orig_mod)\.", "", name): value for name, value in nests[chosen].items()}
    if len(state) < len(nests[chosen]):
        raise ValueError("two of its weights have the same name without module. and _orig_mod.")
    return state, chosen


def _tensors(nest):
    return {name: value for name, value in nest.items() if isinstance(name, str) and torch.is_tensor(value)}


def prefix_of(state, anchor=_ANCHOR):
    """Prefix of a network's names, "" for a bare one; a momentum encoder or a student is left aside.

    anchor: pattern of a name that the network has once, its first group the prefix. ValueError for none or several.
    """
    found = list(dict.fromkeys(match[1] for match in map(anchor.fullmatch, state) if match))
    found = [prefix for prefix in found if not any(prefix.startswith(other) for other in found if other != prefix)]
    first = [prefix for prefix in found if not _SECOND.search(prefix)] or found
    if len(first) == 1:
        return first[0]
    there = f"networks under {', '.join(first)}" if first else f"names like {', '.join(list(state)[:3])}"
    raise ValueError(f"holds {there}; expected one torchvision resnet or vgg or one ViT, others are named with --arch")


def layout_of(state, prefix, nest, known=None):
    """(name of the layout, prefix of the projector or None) of weights whose backbone has this prefix.

    known: the layout's name, where it is given. ValueError for a transformer of which the file does not tell the heads
    or the normalization.
    """
    *root, word = re.findall(r"[^.]*\.", prefix) or [""]
    root = "".join(root)
    for place, projector, name in _PLACES:
        if place == word and any(key.startswith(root + projector) for key in state):
            barlow = name == "vicreg" and f"{root}projector.0.bias" not in state
            return known or ("barlow" if barlow else name), root + projector
    bare = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return known or {"encoder_q.": "moco", "base_encoder.": "mocov3"}.get(word) or _layout_of_bare(bare, nest), None


def _layout_of_bare(bare, nest):
    classified = any(map(_CLASSIFIER.fullmatch, bare))
    if "cls_token" not in bare:
        # A converted network has counted no batches of training; published supervised ones have, or keep no count.
        converted = nest == "state_dict" and int(bare.get("bn1.num_batches_tracked", 1)) == 0
        wide = "conv1.weight" in bare and bare["conv1.weight"].shape[0] > 64
        return "backbone" if not classified else "simclr" if converted or wide else "supervised"
    if classified:
        raise ValueError(
            "holds a transformer with a classifier: its weights tell neither heads nor normalization; give --arch, for "
            "instance --arch timm:deit_small_patch16_224"
        )
    if "blocks.0.ls1.gamma" in bare:
        return "dinov2_reg" if "register_tokens" in bare else "dinov2"
    if "pos_embed" not in bare or bare["pos_embed"][:, 0].any():
        return "dino"
    if bare["cls_token"].shape[-1] == 384:  # fixed positions, which both have
        raise ValueError(
            "holds a transformer 384 wide with fixed positions: MoCo v3's has 12 heads, MAE's 6, which its weights do "
            "not tell; give --arch mocov3 or --arch mae"
        )
    return "mae"


def network_of_layout(state, name, prefix, projector):
    """Network of the layout `name`, in eval mode, its weights loaded strictly.

    state: {name: tensor}. prefix, projector: of the backbone's and the projector's names, as `layout_of` gives them.
    ValueError, KeyError or RuntimeError where weights are missing, too many or of other shapes.
    """
    layout, kept, left_out = LAYOUTS[name], {}, []
    for key, value in state.items():
        within = key.removeprefix(prefix)
        if projector and key.startswith(projector):
            continue
        if not key.startswith(prefix):
            left_out.append(key)
        elif layout.loss == "supervised" and _CLASSIFIER.fullmatch(within):
            kept["fc." + within.rpartition(".")[2]] = value
        elif BESIDE.fullmatch(within):
            left_out.append(key)
        else:
            kept["net." + within] = value
    with torch.device("meta"):  # the weights come from the file
        net, arch = _backbone({key[4:]: tuple(v.shape) for key, v in kept.items() if key.startswith("net.")}, layout)
        layers, renamed = _projector(state, projector, layout.activation)
        network = Network(net, net.num_features, layers)
        if "fc.weight" in kept:
            network.num_classes, width = kept["fc.weight"].shape
            network.fc = nn.Linear(width, network.num_classes)
    network.load_state_dict({**kept, **renamed}, assign=True)
    network.arch, network.preprocessing = arch, layout.preprocessing
    network.loss = layout.loss if layout.loss != "supervised" or network.num_classes else None
    network.mlp = "-".join(map(str, network.layer_widths()[1:])) or None
    network.notes = describe(network, f"taken as {layout.title}", left_out)
    return network.float().eval()


def describe(network, origin, left_out=()):
    """What is said about a network of another project. left_out: names of the file that are not used."""
    groups = {}
    for name in left_out:
        groups.setdefault(name.partition(".")[0], []).append(name)
    dropped = [f"{g}.* ({len(names)})" if len(names) > 3 else ", ".join(names) for g, names in groups.items()]
    projector = f"projector {network.mlp}" if network.mlp else "no projector"
    return (
        f"{origin}: {network.arch}, {network.backbone_width} wide, {projector}; "
        f"dropped: {', '.join(dropped) or 'nothing'}; images: {network.preprocessing}"
    )


def _backbone(shapes, layout):
    if "layer1.0.conv1.weight" in shapes:
        return resnet_of_shapes(shapes)
    if "cls_token" in shapes:
        net, arch = vit_of_shapes(shapes, layout.heads)
        net.offset, net.antialias = layout.offset, layout.antialias
        return net, arch
    arch = arch_of_shapes(shapes)
    net, net.num_features = backbone_named(arch, False)
    return net, arch


def _projector(state, prefix, activation):
    """(nn.Sequential of its layers, {our name: tensor}): a matrix begins a layer, an activation ends all but one."""
    parts = {}
    for key, value in state.items() if prefix else ():
        if key.startswith(prefix):
            number, _, leaf = key.removeprefix(prefix).rpartition(".")
            if not re.fullmatch(r"[\d.]*", number):
                raise ValueError(f"its projector has {key}: only linear layers and normalizations are built in here")
            parts.setdefault(tuple(map(int, number.split("."))) if number else (), {})[leaf] = value
    layers, renamed = [], {}
    for _, part in sorted(parts.items()):
        if "running_mean" in part:
            module = nn.BatchNorm1d(len(part["running_mean"]), affine="weight" in part)
        else:
            width, width_in = part["weight"].shape
            module = nn.Linear(width_in, width, bias="bias" in part)
            layers.append([])
        layers[-1].append(module)
        renamed.update({(len(layers) - 1, len(layers[-1]) - 1, leaf): value for leaf, value in part.items()})
    for layer in layers[:-1]:
        layer.append(activation())
    alone = [len(layer) == 1 for layer in layers]
    projector = nn.Sequential(*(layer[0] if single else nn.Sequential(*layer) for layer, single in zip(layers, alone)))
    names = {key: f"{key[0]}.{key[2]}" if alone[key[0]] else "{}.{}.{}".format(*key) for key in renamed}
    return projector, {f"projector.{names[key]}": value for key, value in renamed.items()}
