"""The SSL network (trunk, projector, head of the loss), its linear probes, and building one from a checkpoint."""

import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from dejavu_utils.checkpoint import load_checkpoint, without_prefix
from dejavu_utils.errors import InputError, one_line

LOSSES = ("vicreg", "simclr", "barlow", "byol", "dino", "supervised")
OWN_HEAD = ("barlow", "byol", "supervised")  # losses that add modules of their own to the network


def architectures():
    """Names of the torchvision trunks whose checkpoints can be rebuilt without settings: the resnets and vggs."""
    names = torchvision.models.list_models(module=torchvision.models)
    return tuple(n for n in names if n.startswith(("resnet", "vgg")))


def _trunk(arch, fc):
    """(network without its classifier, width of its output): torchvision's classifiers by name, else timm's."""
    if arch in ("googlenet", "inception_v3"):
        raise InputError(f"model.arch {arch}: gives several outputs in training, and cannot be a trunk here")
    if arch in torchvision.models.list_models(module=torchvision.models):
        net = getattr(torchvision.models, arch)(weights=None)
        if arch.startswith("vgg"):
            width = net.classifier[0].in_features
            net.classifier = nn.Identity()
            return net, width
        name, last = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
        parent = net.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.Linear(last.in_features, 256) if fc else nn.Identity())
        return net, 256 if fc else last.in_features
    net = _timm_trunk(arch)
    width = net.num_features if not hasattr(net, "head_hidden_size") else net.head_hidden_size
    return (nn.Sequential(net, nn.Linear(width, 256)), 256) if fc else (net, width)


def _timm_trunk(arch):
    try:
        import timm
    except ImportError:
        raise InputError(
            f"model.arch {arch}: no classifier of torchvision; timm may have it: pip install timm"
        ) from None
    if not timm.is_model(arch):
        raise InputError(f"model.arch {arch}: neither torchvision nor timm has it")
    # Crops grow during training: a transformer must take images of any size.
    sizes = {"dynamic_img_size": True} if arch.startswith(("vit_", "deit", "eva")) else {}
    return timm.create_model(arch, pretrained=False, num_classes=0, **sizes)


@torch.no_grad()
def check_arch(arch, sides):
    """InputError unless a trunk of this name can be built, and takes square images of these sides (pixels)."""
    with torch.device("meta"):  # shapes only
        try:
            net = _trunk(arch, False)[0].eval()
        except IndexError:
            raise InputError(
                f"model.arch {arch}: has no linear classifier to take off, and cannot be a trunk"
            ) from None
        for side in sorted(set(sides)):
            try:
                net(torch.empty(1, 3, side, side))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = one_line(error, 150)
                raise InputError(f"model.arch {arch}: does not take images of {side} pixels ({reason})") from None


def mlp_widths(mlp, flag="model.mlp"):
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


class SSLNetwork(nn.Module):
    """Trunk `net`, `projector`, and what the loss adds: `bn` (barlow), `predictor` (byol), `fc` (supervised).

    arch: a classifier of torchvision or timm, by name. mlp: widths of the projector, "2048-512". loss: one of LOSSES,
    or None where it is not known and adds nothing. num_classes: width of the supervised head. mlp_coeff scales the last
    hidden width; fc: Linear(., 256) on the trunk; proj_relu: ReLU after the projector's last layer; remove_head: no
    projector, the loss acts on the trunk.
    """

    def __init__(self, arch, mlp, loss, num_classes=None, mlp_coeff=1.0, fc=False, proj_relu=False, remove_head=False):
        super().__init__()
        self.arch, self.mlp, self.loss, self.num_classes = arch, mlp, loss, num_classes
        self.net, self.backbone_width = _trunk(arch, fc)
        widths = mlp_widths(mlp)
        if len(widths) > 1:
            widths[-2] = int(widths[-2] * mlp_coeff)
        self.projector = nn.Sequential() if remove_head else _mlp(self.backbone_width, widths, proj_relu)
        self.projector_width = self.backbone_width if remove_head else widths[-1]
        if loss == "barlow":
            self.bn = nn.BatchNorm1d(self.projector_width, affine=False)
        if loss == "byol":
            self.predictor = _mlp(self.projector_width, widths)
        if loss == "supervised":
            self.fc = nn.Sequential(
                nn.BatchNorm1d(self.projector_width), nn.ReLU(), nn.Linear(self.projector_width, num_classes)
            )

    def forward(self, images):
        """float (n, 3, h, w) -> list of float (n, width): the trunk's output, then that of each projector layer."""
        outputs = [self.net(images)]
        for layer in self.projector:
            outputs.append(layer(outputs[-1]))
        return outputs

    def layer_widths(self):
        """Widths of what `forward` returns."""
        widths = [self.backbone_width]
        for layer in self.projector:
            linear = layer[0] if isinstance(layer, nn.Sequential) else layer
            widths.append(getattr(linear, "out_features", widths[-1]))
        return widths

    def layer_names(self):
        """What `embed` gives: backbone, projector.0, ..., projector (the last of these), and logits."""
        names = ["backbone", *(f"projector.{i}" for i in range(len(self.projector))), "projector"]
        return names + (["logits"] if self.loss == "supervised" else [])

    def embed(self, images, layer):
        """float (n, 3, h, w) -> float (n, width(layer)); layer: one of `layer_names`."""
        return self.embed_layers(images, [layer])[layer]

    def embed_layers(self, images, layers):
        """`embed` of several layers in one pass: {layer: float (n, width(layer))}."""
        if set(layers) == {"backbone"}:
            return {"backbone": self.net(images)}
        outputs = self(images)
        named = dict(zip(self.layer_names(), outputs))
        named["projector"] = outputs[-1]
        if "logits" in layers:
            named["logits"] = self.fc(outputs[-1])
        return {layer: named[layer] for layer in layers}

    def width(self, layer):
        """Width of what `embed` gives for a layer; ValueError for a layer that the network has not."""
        if layer not in self.layer_names():
            raise ValueError(f"a {self.loss} network has no {layer}, it has {', '.join(self.layer_names())}")
        if layer == "logits":
            return self.num_classes
        return {**dict(zip(self.layer_names(), self.layer_widths())), "projector": self.projector_width}[layer]


class Probes(nn.Module):
    """One linear classifier on each of several layers' outputs. widths: list of int."""

    def __init__(self, widths, num_classes):
        super().__init__()
        self.probes = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, outputs):
        """list of float (n, width) -> list of float (n, num_classes); no gradient reaches the outputs."""
        return [probe(output.detach()) for probe, output in zip(self.probes, outputs)]


def load_model(path, flag="--model_pth"):
    """The network of a checkpoint, in eval mode on the CPU, its weights loaded strictly.

    Built from the settings in the checkpoint; one without them (published, or a bare state dict) from the names and
    shapes of its weights. InputError names the flag for a file that does not hold such a network.
    """
    checkpoint = load_checkpoint(path, flag)
    if not isinstance(checkpoint, dict):
        raise InputError(f"{flag} {path}: holds a {type(checkpoint).__name__}, expected a checkpoint of train_SSL.py")
    try:
        state = without_prefix(checkpoint.get("model", checkpoint))
        if "settings" in checkpoint:
            network = network_from_settings(checkpoint["settings"], checkpoint["num_classes"])
        else:
            network = _network_from_shapes({name: tuple(value.shape) for name, value in state.items()})
        network.load_state_dict(state)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise InputError(f"{flag} {path}: does not hold the network it describes: {reason}") from None
    return network.eval()


def prepared_for_inference(network):
    """The same function, computed faster, of a network that is in eval mode and will not be trained; changes it.

    Batch normalization is folded into the convolutions before it, which multiplies their weights once instead of the
    images' features each time; weights lie channels last. Outputs differ by rounding. Trunks that torch.fx cannot
    trace keep their layers.
    """
    try:
        network.net = fuse(network.net)
    except (TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        pass  # what a trunk of timm does with its inputs is its own business
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def check_finite(output, where, layer, precision):
    """InputError unless a tensor, the output of a layer of the checkpoint `where` (flag and path), is finite."""
    if not torch.isfinite(output).all():
        raise InputError(
            f"{where}: its {layer} output is not finite; take an earlier snapshot"
            + ("" if precision == "fp32" else " or --precision fp32")
        )


def check_typed(network, where, mlp=None, loss=None, resnet50=False, arch=None, prefix=""):
    """InputError if a flag that the user typed contradicts the network of the checkpoint `where` (flag and path).

    The loss of a checkpoint without settings is known only where the loss adds a head of its own. prefix: of the flags
    of loss and arch ("ssl_").
    """
    known = network.loss or (loss if loss not in OWN_HEAD else "one without a head of its own")
    for flag, typed, found in (
        ("--mlp", mlp and "-".join(map(str, mlp_widths(mlp, "--mlp"))), network.mlp),
        (f"--{prefix}loss", loss, known),
        (f"--{prefix}arch", arch, network.arch),
        ("--resnet50", resnet50 and "resnet50", network.arch),
    ):
        if typed and typed != found:
            what = flag if flag == "--resnet50" else f"{flag} {typed}"
            raise InputError(f"{what}: {where} holds {found}; leave the flag out or name another checkpoint")


def network_from_settings(settings, num_classes):
    """settings: flat {"model.arch": ...} as in params.json."""
    return SSLNetwork(
        settings["model.arch"],
        settings["model.mlp"],
        settings["training.loss"],
        num_classes,
        settings["model.mlp_coeff"],
        settings["model.fc"],
        settings["model.proj_relu"],
        settings["model.remove_head"],
    )


def _network_from_shapes(shapes):
    trunk = {name.removeprefix("net."): shape for name, shape in shapes.items() if name.startswith("net.")}
    fc = "fc.weight" in trunk
    for arch in architectures():
        with torch.device("meta"):
            candidate, _ = _trunk(arch, fc)
        if {name: tuple(value.shape) for name, value in candidate.state_dict().items()} == trunk:
            break
    else:
        raise ValueError("the names and shapes under net. are those of no torchvision resnet or vgg")
    projector = [(name, s[0]) for name, s in shapes.items() if name.startswith("projector.") and len(s) == 2]
    mlp = "-".join(str(width) for _, width in projector)
    loss, num_classes = None, None  # VICReg and SimCLR train the same network
    if "bn.running_mean" in shapes:
        loss = "barlow"
    elif any(name.startswith("predictor.") for name in shapes):
        loss = "byol"
    elif "fc.2.weight" in shapes:
        loss, num_classes = "supervised", shapes["fc.2.weight"][0]
    return SSLNetwork(arch, mlp or "1", loss, num_classes, fc=fc, remove_head=not projector)
