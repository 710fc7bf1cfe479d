"""The SSL network (backbone, projector, head of the loss), built by name or from a checkpoint's
settings."""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import Preprocessing

ABOUT = ("epoch", "settings", "train_images")  # of a checkpoint, kept with its network
L2 = ":l2"  # after a layer's name: its output divided by its length
# Names of a backbone's inner layers.
_INNER = r"layer\d|(?:blocks|stages|layers)\.\d+|encoder\.layers\.encoder_layer_\d+"


def classifier_name(net: nn.Module, arch: str) -> str:
    """Path of the classifier within a torchvision network of this name: the last Linear, or all of
    a vgg's."""
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return "classifier" if arch.startswith("vgg") else linear[-1]


def replace_module(net: nn.Module, name: str, module: nn.Module) -> Any:
    """Puts `module` where `net` has the submodule of this path; returns what was there."""
    parent, _, last = name.rpartition(".")
    before = net.get_submodule(name)
    setattr(net.get_submodule(parent), last, module)
    return before


def backbone_named(arch: str, fc: bool) -> tuple[nn.Module, int]:
    """(network without its classifier, width of its output): torchvision's classifiers by name,
    else timm's."""
    if arch in ("googlenet", "inception_v3"):
        raise InputError(
            f"model.arch {arch}: gives several outputs in training, and cannot be a backbone here"
        )
    if arch in torchvision.models.list_models(module=torchvision.models):
        net = getattr(torchvision.models, arch)(weights=None)
        name = classifier_name(net, arch)
        classifier = replace_module(net, name, nn.Identity())
        if arch.startswith("vgg"):
            return net, classifier[0].in_features
        if fc:
            replace_module(net, name, nn.Linear(classifier.in_features, 256))
        return net, 256 if fc else classifier.in_features
    net = timm_network(arch, f"model.arch {arch}", num_classes=0)
    width = timm_width(net)
    if fc:
        return nn.Sequential(net, nn.Linear(width, 256)), 256
    return net, width


def check_timm_name(arch: str, what: str) -> None:
    """InputError for a name that timm does not have. what: flag and value."""
    import timm  # takes a second

    # with one it is a place that timm knows: hf-hub:, local-dir:
    if ":" not in arch and not timm.is_model(arch):
        raise InputError(f"{what}: neither torchvision nor timm has it")


def timm_network(arch: str, what: str, **options: Any) -> nn.Module:
    """timm's network of this name. what: flag and value, for errors. options: of
    timm.create_model."""
    import timm

    check_timm_name(arch, what)
    if arch.startswith(("vit_", "deit", "eva")):
        # Crops grow during training: a transformer must take images of any size.
        with contextlib.suppress(TypeError):  # vit_relpos_* cannot
            return timm.create_model(arch, dynamic_img_size=True, **options)
    return timm.create_model(arch, **options)


def timm_width(net: Any) -> int:
    """Width of what a network of timm gives without its classifier."""
    return getattr(net, "head_hidden_size", net.num_features)


def mlp_widths(mlp: str, flag: str = "model.mlp") -> list[int]:
    """ "2048-512" -> [2048, 512]."""
    try:
        widths = [int(part) for part in str(mlp).split("-")]
    except ValueError:
        widths = []
    if not widths or min(widths) < 1:
        raise InputError(f"{flag} {mlp!r}: expected widths joined by '-', for instance 2048-512")
    return widths


def _mlp(width_in: int, widths: list[int], relu_at_end: bool = False) -> nn.Sequential:
    """Hidden layers Linear + BatchNorm + ReLU, the last a Linear without bias."""
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers.append(
            nn.Sequential(nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        )
        width_in = width
    layers.append(nn.Linear(width_in, widths[-1], bias=False))
    if relu_at_end:
        layers.append(nn.ReLU(inplace=False))
    return nn.Sequential(*layers)


Head = Callable[[int, list[int], Any], nn.Module]
# The modules that each loss adds to the network, and so to its checkpoints: names, and how they are
# built from the projector's output width, the projector's widths and the number of classes.
HEADS: dict[str, dict[str, Head]] = {
    "vicreg": {},
    "simclr": {},
    "barlow": {"bn": lambda width, widths, classes: nn.BatchNorm1d(width, affine=False)},
    "byol": {"predictor": lambda width, widths, classes: _mlp(width, widths)},
    "dino": {},
    "supervised": {
        "fc": lambda width, widths, classes: nn.Sequential(
            nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes)
        )
    },
    "mocov3": {"predictor": lambda width, widths, classes: _mlp(width, widths)},
}
LOSSES = tuple(HEADS)


class Network(nn.Module):
    """Backbone `net`, `projector` (its children are its layers) and, where there are class scores,
    `fc` behind them.

    arch, mlp, loss: names of what they are, or None, where its checkpoint does not say.
    preprocessing: how images are shown to it. evaluation_side: side of the images it is shown by
    default, in pixels, where its checkpoint says it. source: flag and path of its checkpoint, for
    messages. notes: what is to be said about where it comes from. about: {name of ABOUT: value or
    None}, what its checkpoint says of the training. Layers by name: `layer_names`, each also with
    L2 behind it.
    """

    net: Any
    projector: nn.Sequential
    fc: nn.Module
    arch: str | None
    mlp: str | None
    loss: str | None
    num_classes: Any  # int, where there are class scores
    evaluation_side: int | None
    inner_layers: tuple[str, ...]

    def __init__(self, net: nn.Module, backbone_width: int, projector: nn.Sequential) -> None:
        super().__init__()
        self.net = net
        self.backbone_width = backbone_width
        self.projector = projector
        self.arch = self.mlp = self.loss = self.num_classes = self.evaluation_side = None
        self.preprocessing = Preprocessing()
        self.about = dict.fromkeys(ABOUT)
        self.source = "the network"
        self.notes = ""
        self.has_projector = len(projector) > 0
        self.inner_layers = tuple(
            name for name, _ in net.named_modules() if re.fullmatch(_INNER, name)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """float (n, 3, h, w) -> list of float (n, width): the backbone's output, then that of each
        projector layer."""
        outputs = [self.net(images)]
        for layer in self.projector:
            outputs.append(layer(outputs[-1]))
        return outputs

    def losses(self) -> tuple[str, ...]:
        """The loss that it was trained with, or, where its checkpoint does not say, all those that
        add its heads."""
        if self.loss:
            return (self.loss,)
        every_head = set().union(*HEADS.values())
        own = {name for name in every_head if hasattr(self, name)}
        return tuple(loss for loss, heads in HEADS.items() if heads.keys() == own)

    def layer_widths(self) -> list[int]:
        """Widths of what `forward` returns."""
        widths = [self.backbone_width]
        for layer in self.projector:
            linear = layer[0] if isinstance(layer, nn.Sequential) else layer
            widths.append(getattr(linear, "out_features", widths[-1]))
        return widths

    def layer_names(self) -> list[str]:
        """What `embed` gives: backbone, projector.0, ..., projector (the last of these), logits,
        and inner layers.

        The output of an inner layer is `pooled`.
        """
        names = ["backbone", *(f"projector.{i}" for i in range(len(self.projector)))]
        if self.has_projector:
            names.append("projector")
        if self.loss == "supervised":
            names.append("logits")
        return [*names, *self.inner_layers]

    def embed(self, images: Tensor, layer: str) -> Tensor:
        """float (n, 3, h, w) -> float (n, width(layer)); layer: one of `layer_names`, L2 behind it
        or not."""
        return self.embed_layers(images, [layer])[layer]

    def embed_layers(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """`embed` of several layers in one pass: {layer: float (n, width(layer))}.

        InputError for an inner layer whose output cannot be pooled to one vector per image.
        """
        wanted = {layer.removesuffix(L2) for layer in layers}
        outputs: dict[str, Tensor] = {}
        hooks = []
        for name in wanted & set(self.inner_layers):
            module = self.net.get_submodule(name)
            hooks.append(module.register_forward_hook(self._keep_pooled(name, outputs)))
        try:
            output = outputs["backbone"] = self.net(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not wanted <= outputs.keys():
            for number, module in enumerate(self.projector):
                output = outputs[f"projector.{number}"] = module(output)
            outputs["projector"] = output
            if "logits" in wanted:
                outputs["logits"] = self.fc(output)
        for name in wanted - outputs.keys():
            raise InputError(
                f"layer {name}: the network does not run this module as a whole; name another layer"
            )
        values = {}
        for layer in layers:
            output = outputs[layer.removesuffix(L2)]
            if layer.endswith(L2):
                output = F.normalize(output.float(), dim=1)
            values[layer] = output
        return values

    def _keep_pooled(self, name: str, outputs: dict[str, Tensor]) -> Callable:
        def keep(module: nn.Module, inputs: tuple, output: object) -> None:
            outputs[name] = pooled(output, self.net, name)

        return keep

    @torch.no_grad()
    def width(self, layer: str) -> int:
        """Width of what `embed` gives for a layer; InputError for a layer that the network has
        not."""
        name = layer.removesuffix(L2)
        if name not in self.layer_names():
            names = ", ".join(self.layer_names())
            raise InputError(
                f"layer {layer}: this network has {names}, each also with {L2} (divided by its length)"
            )
        if name == "logits":
            return self.num_classes
        if name in self.inner_layers:
            return self.embed(self.blank_image(), name).shape[1]
        widths = self.layer_widths()
        if name == "projector":
            return widths[-1]
        return widths[self.layer_names().index(name)]

    def blank_image(self) -> Tensor:
        """One image of zeros, of the size that the network is shown: (1, 3, side, side)."""
        weight = next(self.net.parameters())
        side = self.preprocessing.side
        return torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device)


def pooled(output: Any, net: nn.Module, name: str) -> Tensor:
    """The output of an inner layer of `net`, pooled as that network pools its last one: float (n,
    width).

    Maps, channels first or last: their mean over space. Tokens: the class token where the layer has
    one and the network reads it, else the mean over positions, without the class token and
    registers. InputError for other outputs.
    """
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if len(shape) == 2:
        return output
    if len(shape) == 4:
        # Images are square, so the axis that differs is that of the channels; where all are equal
        # the network says it.
        _, first, second, third = shape
        last = first == second and (second != third or getattr(net, "output_fmt", "") == "NHWC")
        return output.mean(dim=(1, 2) if last else (2, 3))
    if len(shape) == 3:
        tokens = [getattr(net, attribute, None) for attribute in ("cls_token", "class_token")]
        has_class_token = any(isinstance(token, Tensor) for token in tokens)
        before = getattr(net, "num_prefix_tokens", int(has_class_token))
        # Some networks add the class token after their blocks (XCiT, CaiT) or some of them
        # (ConViT): count positions.
        if _is_square(shape[1] - before):
            reads_class_token = has_class_token and getattr(net, "global_pool", None) != "avg"
            return output[:, 0] if reads_class_token else output[:, before:].mean(dim=1)
        if _is_square(shape[1]):
            return output.mean(dim=1)
    kind = f"of shape {shape}" if shape else f"a {type(output).__name__}"
    raise InputError(
        f"layer {name}: its output is {kind}, neither a map nor one token per position; name another layer"
    )


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


class SSLNetwork(Network):
    """A Network of train_SSL.py, with what its loss adds (HEADS): `bn`, `predictor` or `fc`.

    arch: a classifier of torchvision or timm, by name. mlp: widths of the projector, "2048-512".
    loss: one of LOSSES, or None where it is not known and adds nothing. num_classes: width of the
    supervised head. mlp_coeff scales the last hidden width; fc: Linear(., 256) on the backbone;
    proj_relu: ReLU after the projector's last layer; remove_head: no projector, the loss acts on
    the backbone.
    """

    def __init__(
        self,
        arch: str,
        mlp: str,
        loss: str | None,
        num_classes: int | None = None,
        mlp_coeff: float = 1.0,
        fc: bool = False,
        proj_relu: bool = False,
        remove_head: bool = False,
    ) -> None:
        net, backbone_width = backbone_named(arch, fc)
        widths = mlp_widths(mlp)
        if len(widths) > 1:
            widths[-2] = int(widths[-2] * mlp_coeff)
        super().__init__(
            net,
            backbone_width,
            nn.Sequential() if remove_head else _mlp(backbone_width, widths, proj_relu),
        )
        self.arch = arch
        self.mlp = mlp
        self.loss = loss
        self.num_classes = num_classes
        # what the loss acts on: without one of its own the backbone's output
        self.has_projector = True
        self.projector_width = backbone_width if remove_head else widths[-1]
        for name, build in HEADS.get(loss or "", {}).items():
            self.add_module(name, build(self.projector_width, widths, num_classes))


@dataclass
class Architecture:
    """What a network of train_SSL.py is built from beside its loss; SSLNetwork explains the
    entries."""

    arch: str
    mlp: str
    mlp_coeff: float = 1.0
    remove_head: int = 0
    fc: int = 0
    proj_relu: int = 0

    @classmethod
    def of_checkpoint(cls, settings: dict[str, Any]) -> "Architecture":
        """From a checkpoint's flat settings, {"model.arch": ...}."""
        return cls(**{field.name: settings[f"model.{field.name}"] for field in fields(cls)})


def network_from_settings(
    model: Architecture, loss: str | None, num_classes: int | None
) -> SSLNetwork:
    """The network with random weights. num_classes: width of the supervised head."""
    parts = {field.name: getattr(model, field.name) for field in fields(Architecture)}
    return SSLNetwork(loss=loss, num_classes=num_classes, **parts)
