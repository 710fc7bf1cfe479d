"""The SSL network (backbone, projector, head of the loss) and building one from a checkpoint."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import Preprocessing

ABOUT = ("epoch", "settings", "train_images")  # of a checkpoint, kept with its network
L2 = ":l2"  # after a layer's name: its output divided by its length
_INNER = r"layer\d|blocks\.\d+|stages\.\d+|encoder\.layers\.encoder_layer_\d+"  # names of a backbone's inner layers


def classifier_name(net: nn.Module, arch: str) -> str:
    """Path of the classifier within a torchvision network of this name: the last Linear, or all of a vgg's."""
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return "classifier" if arch.startswith("vgg") else linear[-1]


def replace_module(net: nn.Module, name: str, module: nn.Module) -> Any:
    """Puts `module` where `net` has the submodule of this path; returns what was there."""
    parent, _, last = name.rpartition(".")
    before = net.get_submodule(name)
    setattr(net.get_submodule(parent), last, module)
    return before


def backbone_named(arch: str, fc: bool) -> tuple[nn.Module, int]:
    """(network without its classifier, width of its output): torchvision's classifiers by name, else timm's."""
    if arch in ("googlenet", "inception_v3"):
        raise InputError(f"model.arch {arch}: gives several outputs in training, and cannot be a backbone here")
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
    return (nn.Sequential(net, nn.Linear(width, 256)), 256) if fc else (net, width)


def timm_network(arch: str, what: str, **options: Any) -> nn.Module:
    """timm's network of this name. what: flag and value, for errors. options: of timm.create_model."""
    try:
        import timm
    except ImportError:
        raise InputError(f"{what}: no classifier of torchvision; timm may have it: pip install timm") from None
    if not timm.is_model(arch):
        raise InputError(f"{what}: neither torchvision nor timm has it")
    # Crops grow during training: a transformer must take images of any size.
    sizes = {"dynamic_img_size": True} if arch.startswith(("vit_", "deit", "eva")) else {}
    return timm.create_model(arch, **sizes, **options)


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


def _mlp(width_in, widths, relu_at_end=False):
    """Hidden layers Linear + BatchNorm + ReLU, the last a Linear without bias."""
    layers = []
    for width in widths[:-1]:
        layers.append(nn.Sequential(nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)))
        width_in = width
    layers.append(nn.Linear(width_in, widths[-1], bias=False))
    if relu_at_end:
        layers.append(nn.ReLU(inplace=False))
    return nn.Sequential(*layers)


def _batch_norm(width, widths, num_classes):
    return nn.BatchNorm1d(width, affine=False)


def _predictor(width, widths, num_classes):
    return _mlp(width, widths)


def _classifier(width, widths, num_classes):
    return nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes))


# What each loss adds to the network, and so to its checkpoints: None, or a module's name and how it is built from the
# projector's output width, the projector's widths and the number of classes.
HEADS = {
    "vicreg": None,
    "simclr": None,
    "barlow": ("bn", _batch_norm),
    "byol": ("predictor", _predictor),
    "dino": None,
    "supervised": ("fc", _classifier),
    "mocov3": ("predictor", _predictor),
}
LOSSES = tuple(HEADS)


class Network(nn.Module):
    """Backbone `net`, `projector` (its children are its layers) and, where there are class scores, `fc` behind them.

    arch, mlp, loss: names of what they are, or None, where its checkpoint does not say. preprocessing: how images are
    shown to it. notes: what is to be said about where it comes from. about: what its checkpoint says of the training,
    {name of ABOUT: value or None}. Layers by name: `layer_names`, each also with L2 behind it.
    """

    net: Any
    projector: nn.Sequential
    fc: nn.Module
    arch: str | None
    mlp: str | None
    loss: str | None
    num_classes: Any  # int, where there are class scores
    inner_layers: tuple[str, ...]

    def __init__(self, net: nn.Module, backbone_width: int, projector: nn.Sequential) -> None:
        super().__init__()
        self.net, self.backbone_width, self.projector = net, backbone_width, projector
        self.arch = self.mlp = self.loss = self.num_classes = None
        self.preprocessing, self.notes, self.about = Preprocessing(), "", dict.fromkeys(ABOUT)
        self.has_projector = len(projector) > 0
        self.inner_layers = tuple(name for name, _ in net.named_modules() if re.fullmatch(_INNER, name))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """float (n, 3, h, w) -> list of float (n, width): the backbone's output, then that of each projector layer."""
        outputs = [self.net(images)]
        for layer in self.projector:
            outputs.append(layer(outputs[-1]))
        return outputs

    def losses(self) -> tuple[str, ...]:
        """The loss that it was trained with, or, where its checkpoint does not say, all those that add its heads."""
        if self.loss:
            return (self.loss,)
        own = {name for name, _ in filter(None, HEADS.values()) if hasattr(self, name)}
        return tuple(loss for loss, head in HEADS.items() if own == ({head[0]} if head else set()))

    def layer_widths(self) -> list[int]:
        """Widths of what `forward` returns."""
        widths = [self.backbone_width]
        for layer in self.projector:
            linear = layer[0] if isinstance(layer, nn.Sequential) else layer
            widths.append(getattr(linear, "out_features", widths[-1]))
        return widths

    def layer_names(self) -> list[str]:
        """What `embed` gives: backbone, projector.0, ..., projector (the last of these), logits, and inner layers.

        An inner layer's output is its class token, else its mean over positions.
        """
        names = ["backbone", *(f"projector.{i}" for i in range(len(self.projector)))]
        names += ["projector"] if self.has_projector else []
        return [*names, *(["logits"] if self.loss == "supervised" else []), *self.inner_layers]

    def embed(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """float (n, 3, h, w) -> float (n, width(layer)); layer: one of `layer_names`, L2 behind it or not."""
        return self.embed_layers(images, [layer])[layer]

    def embed_layers(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """`embed` of several layers in one pass: {layer: float (n, width(layer))}."""
        wanted, named = {layer.removesuffix(L2) for layer in layers}, {}

        def keep(name):
            return lambda module, inputs, output: named.update({name: self._pooled(output)})

        inner = [name for name in self.inner_layers if name in wanted]
        hooks = [self.net.get_submodule(name).register_forward_hook(keep(name)) for name in inner]
        try:
            output = named["backbone"] = self.net(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not wanted <= named.keys():
            for number, layer in enumerate(self.projector):
                output = named[f"projector.{number}"] = layer(output)
            named["projector"] = output
            if "logits" in wanted:
                named["logits"] = self.fc(output)
        values = {layer: named[layer.removesuffix(L2)] for layer in layers}
        return {name: F.normalize(z.float(), dim=1) if name.endswith(L2) else z for name, z in values.items()}

    def _pooled(self, output):
        if output.ndim == 4:
            return output.mean(dim=(2, 3))
        has_class_token = any(getattr(self.net, name, None) is not None for name in ("cls_token", "class_token"))
        return output[:, 0] if has_class_token else output.mean(dim=1)

    @torch.no_grad()
    def width(self, layer: str) -> int:
        """Width of what `embed` gives for a layer; InputError for a layer that the network has not."""
        name = layer.removesuffix(L2)
        if name not in self.layer_names():
            there = ", ".join(self.layer_names())
            raise InputError(f"layer {layer}: this network has {there}, each also with {L2} (divided by its length)")
        if name == "logits":
            return self.num_classes
        if name in self.inner_layers:
            weight, side = next(self.net.parameters()), self.preprocessing.side
            return self.embed(torch.zeros(1, 3, side, side).to(weight), name).shape[1]
        return {**dict(zip(self.layer_names(), self.layer_widths())), "projector": self.layer_widths()[-1]}[name]


class SSLNetwork(Network):
    """A Network of train_SSL.py, with what its loss adds (HEADS): `bn`, `predictor` or `fc`.

    arch: a classifier of torchvision or timm, by name. mlp: widths of the projector, "2048-512". loss: one of LOSSES,
    or None where it is not known and adds nothing. num_classes: width of the supervised head. mlp_coeff scales the last
    hidden width; fc: Linear(., 256) on the backbone; proj_relu: ReLU after the projector's last layer; remove_head: no
    projector, the loss acts on the backbone.
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
            net, backbone_width, nn.Sequential() if remove_head else _mlp(backbone_width, widths, proj_relu)
        )
        self.arch, self.mlp, self.loss, self.num_classes = arch, mlp, loss, num_classes
        self.has_projector = True  # what the loss acts on: without one of its own the backbone's output
        self.projector_width = backbone_width if remove_head else widths[-1]
        head = HEADS.get(loss) if loss else None
        if head:
            name, build = head
            self.add_module(name, build(self.projector_width, widths, num_classes))


@dataclass
class Architecture:
    """What a network of train_SSL.py is built from beside its loss; SSLNetwork explains the entries."""

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


def network_from_settings(model: Architecture, loss: str | None, num_classes: int | None) -> SSLNetwork:
    """The network with random weights. num_classes: width of the supervised head."""
    flags = {"fc": bool(model.fc), "proj_relu": bool(model.proj_relu), "remove_head": bool(model.remove_head)}
    return SSLNetwork(model.arch, model.mlp, loss, num_classes, model.mlp_coeff, **flags)
