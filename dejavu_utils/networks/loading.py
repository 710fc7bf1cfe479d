"""Any network that can be tested: a checkpoint of train_SSL.py, a public one, or timm's and
torchvision's by name."""

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from dejavu_utils.checkpoint import load_checkpoint, without_prefix
from dejavu_utils.cli import existing_or_awaited_file, from_flags
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.imagenet import Preprocessing
from dejavu_utils.log import say
from dejavu_utils.models import (
    ABOUT,
    LOSSES,
    Architecture,
    Network,
    SSLNetwork,
    check_timm_name,
    classifier_name,
    mlp_widths,
    network_from_settings,
    replace_module,
    timm_network,
    timm_width,
)
from dejavu_utils.networks.backbones import arch_of_shapes, below, shapes_of
from dejavu_utils.networks.layouts import (
    BESIDE,
    LAYOUTS,
    describe,
    layout_of,
    network_of_layout,
    other_names,
    prefix_of,
    weights_in,
)
from dejavu_utils.networks.safe_load import read_weights

COLLECTIONS = ("timm", "torchvision")
ARCH_HELP = (
    "the network, where its checkpoint does not tell: a name of timm or torchvision (timm:NAME, torchvision:NAME), or "
    "the project: " + ", ".join(LAYOUTS)
)
# a backbone as train_SSL.py names it
_OWN = re.compile(r"(|.*\.)net\.(?:layer1\.0\.conv1|features\.0)\.weight")


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    """The flags that say what a model is."""
    matches = "must match the checkpoint if given"
    group.add_argument("--arch", help=ARCH_HELP)
    group.add_argument("--mlp", help=f"{matches}: widths of the projector")
    group.add_argument("--loss", choices=LOSSES, help=f"{matches}: training objective")
    group.add_argument("--resnet50", action="store_true", help=f"{matches}: the backbone")


def is_named(model: str) -> bool:
    """Is this a name in a collection ("timm:NAME", "torchvision:NAME"), not a file?"""
    return bool(model) and model.partition(":")[0] in COLLECTIONS


def file_of(model: str) -> str | None:
    """The file that a model is loaded from: itself, or what follows the @ of "timm:NAME@FILE";
    None: from a cache."""
    return os.path.expanduser(model.partition("@")[2]) or None if is_named(model) else model


def resolved(model: str) -> str:
    """The same model, found from any folder."""
    named, at, source = model.rpartition("@") if is_named(model) else ("", "", model)
    return f"{named}{at}{Path(source).resolve()}" if file_of(model) else model


def existing_model(model: str, flag: str, args: argparse.Namespace) -> None:
    """InputError unless this model's name is known, and its file there or awaited from a job."""
    if is_named(model):
        check_known(model, f"{flag} {model}")
    if file_of(model) or not is_named(model):
        existing_or_awaited_file(file_of(model), flag, args)


@dataclass(frozen=True)
class ModelFile:
    """A model as a flag names it. path: as load_network takes it. arch: where the file does not
    tell. resolution: side of its images in pixels; None: its own. mlp, loss, resnet50: what the
    user says that it is, where typed. prefix: of the flags of arch and loss ("ssl_")."""

    flag: str
    path: str
    arch: str | None = None
    resolution: int | None = None
    mlp: str | None = None
    loss: str | None = None
    resnet50: bool = False
    prefix: str = ""

    @classmethod
    def of(cls, args: argparse.Namespace, flag: str) -> "ModelFile":
        """The model of this flag, as the flags of `add_network_flags`, where there are any, and
        --resolution say that it is."""
        path = getattr(args, flag.removeprefix("--"))
        return from_flags(cls, args, flag=flag, path=path)

    def load(self) -> Network:
        """The network in eval mode on the CPU, after a line about it; InputError where the user
        says something else."""
        network = load_network(
            self.path, self.flag, self.arch, f"--{self.prefix}arch", self.resolution
        )
        self.check(network)
        say(f"{network.source}: {network.notes}")
        return network

    def check(self, network: Network) -> None:
        """InputError if a flag that the user typed contradicts the network.

        Of a checkpoint without settings any loss is taken that trains such a network.
        """
        losses = network.losses()
        if self.mlp:
            widths = "-".join(map(str, mlp_widths(self.mlp, "--mlp")))
            self._check(f"--mlp {widths}", network.source, widths, network.mlp)
        if self.loss and self.loss not in losses:
            self._check(
                f"--{self.prefix}loss {self.loss}", network.source, self.loss, " or ".join(losses)
            )
        if self.resnet50:
            self._check("--resnet50", network.source, "resnet50", network.arch)

    def _check(self, flag: str, source: str, typed: str, held: str | None) -> None:
        if typed != held:
            raise InputError(
                f"{flag}: {source} holds {held or 'none'}; leave the flag out or name another checkpoint"
            )


def check_known(model: str, source: str) -> None:
    """InputError for a name ("timm:NAME@FILE", with or without the file) that its collection does
    not have."""
    kind, _, name = model.partition("@")[0].partition(":")
    if kind == "timm":
        check_timm_name(name, source)
    elif name not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"{source}: torchvision has no classifier {name}")


def load_network(
    model: str | Path,
    flag: str = "--model_pth",
    arch: str | None = None,
    arch_flag: str = "--arch",
    resolution: int | None = None,
) -> Network:
    """The network of a checkpoint, in eval mode on the CPU, its weights loaded strictly; `notes`
    says what it is.

    model: a file; "timm:NAME" or "torchvision:NAME", their pretrained weights from their caches,
    else downloaded; or one of these with "@FILE". arch: for files that do not tell, a name of
    LAYOUTS, or of timm or torchvision (with that word and a colon before it, or not); arch_flag:
    its name. resolution: side of the images that it will be shown, in pixels; None: that of its
    training or published evaluation. Either is in `preprocessing`. InputError names the flag, and
    says what is missing.
    """
    network = _loaded(str(model), flag, arch, arch_flag)
    network.source = f"{flag} {model}"
    network.preprocessing = network.preprocessing.at(resolution or network.evaluation_side)
    network.notes += f"; images: {network.preprocessing}"
    return network


def _loaded(model: str, flag: str, arch: str | None, arch_flag: str) -> Network:
    source = f"{flag} {model}"
    file = file_of(model)
    if is_named(model):
        if arch:
            raise InputError(f"{source}: names its network; leave {arch_flag} out")
        arch = model.partition("@")[0]
        if file is None:
            return _pretrained(arch, source)
    path = Path(file or "")
    checkpoint = load_checkpoint(path, flag, read_weights)
    try:
        return _from_file(checkpoint, arch, source, path.name)
    except (
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        reason = one_line(error)
        if type(error) is not ValueError:
            reason = f"does not hold the network it describes: {reason}"
        raise InputError(f"{source}: {reason.replace('--arch', arch_flag)}") from None


def _from_file(checkpoint: Any, arch: str | None, source: str, file_name: str) -> Network:
    if isinstance(checkpoint, dict) and "settings" in checkpoint:
        return _own(network_of(checkpoint["model"], checkpoint), arch)
    state, nest, others = weights_in(checkpoint)
    if any(map(_OWN.fullmatch, state)):
        root = prefix_of(state, _OWN)
        return _own(network_of(below(root, state), checkpoint), arch)
    if arch and arch not in LAYOUTS:
        network = _built_by_name(arch, source, state, file_name)
    else:
        prefix = prefix_of(state)
        name, projector = layout_of(state, prefix, nest, arch)
        network = network_of_layout(state, name, prefix, projector)
    if others or nest not in ("", "model", "state_dict"):
        not_used = f" (not those under {', '.join(others)})" if others else ""
        network.notes = f"weights under {nest or 'no name'}{not_used}, {network.notes}"
    return network


def _own(network: SSLNetwork, arch: str | None) -> SSLNetwork:
    if arch and arch != network.arch:
        raise ValueError(f"holds {network.arch}, not --arch {arch}; leave the flag out")
    return network


def _built_by_name(arch: str, source: str, state: dict[str, Tensor], file_name: str) -> Network:
    """timm's or torchvision's network with the weights of a file; its classifier's too, if they are
    there."""
    collected = _collected(arch, source, file_name)
    net, classifier = collected.net, collected.classifier
    names = set(net.state_dict())
    first = next(
        name for name in net.state_dict() if not name.endswith("token") and name != "pos_embed"
    )
    anchor = re.compile(rf"(|.*\.){re.escape(first)}")
    has_network = any(map(anchor.fullmatch, state))
    prefix = prefix_of(state, anchor) if has_network else ""
    needed = {
        prefix + name for name in names if not classifier or not name.startswith(f"{classifier}.")
    }
    if not needed <= state.keys():
        state = _renamed_by_timm(state, net, arch)
        prefix = prefix_of(state, anchor)
    weights, left_out = {}, []
    for name, value in state.items():
        within = name.removeprefix(prefix)
        if name.startswith(prefix) and (within in names or not BESIDE.fullmatch(within)):
            weights[within] = value
        else:
            left_out.append(name)
    if classifier and not any(name.startswith(f"{classifier}.") for name in weights):
        replace_module(net, classifier, nn.Identity())
        collected.classifier = None
    # of as many classes as the file has
    elif classifier and len(weights.get(f"{classifier}.weight", ())):
        replace_module(
            net, classifier, nn.Linear(collected.width, len(weights[f"{classifier}.weight"]))
        )
    net.load_state_dict(weights)
    return _assembled(collected, arch, left_out)


def _renamed_by_timm(state: dict[str, Tensor], net: nn.Module, arch: str) -> dict[str, Tensor]:
    """Weights of another project under timm's names, where timm knows that project; ValueError
    where it does not."""
    rename = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        renamed = rename(dict(state), net) if rename else state
    # timm expects the files of the projects that it knows, and fails in any way on others
    except Exception:
        renamed = state
    if len(renamed.keys() & net.state_dict().keys()) < len(net.state_dict()) / 2:
        raise ValueError(other_names(state, arch))
    return renamed


def _pretrained(arch: str, source: str) -> Network:
    """timm's or torchvision's network with its own pretrained weights."""
    kind, _, name = arch.partition(":")
    if kind == "timm":
        try:
            net = timm_network(name, source, pretrained=True)
        except InputError:
            raise
        except Exception as error:  # no such weights, no network, a damaged cache: anything
            raise InputError(
                f"{source}: its weights are not in the cache and cannot be downloaded ({one_line(error, 150)}); "
                f"give timm:{name}@FILE"
            ) from None
        return _assembled(_Collected.of_timm(net), arch)
    collected = _collected(arch, source)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        collected.net.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{source}: its weights are not in {torch.hub.get_dir()}/checkpoints and cannot be downloaded "
            f"({one_line(error, 150)}); fetch {weights.url} and give torchvision:{name}@FILE"
        ) from None
    return _assembled(collected, arch)


@dataclass
class _Collected:
    """A network of a collection. classifier: its path, None where it is no Linear. width: before it.
    other_head: does a convolution or the mean of several heads give its logits?"""

    net: nn.Module
    classifier: str | None
    width: int
    preprocessing: Preprocessing
    other_head: bool = False

    @classmethod
    def of_timm(cls, net: Any) -> "_Collected":
        config = net.pretrained_cfg
        side = config["input_size"][-1]
        resize = math.floor(side / config["crop_pct"])
        mean, std = tuple(config["mean"]), tuple(config["std"])
        name = config.get("classifier")
        several = isinstance(name, (list, tuple))
        head = None if several else dict(net.named_modules()).get(name)
        classifier = name if isinstance(head, nn.Linear) else None
        preprocessing = Preprocessing(side, resize, config["interpolation"], mean, std)
        other_head = several or isinstance(head, nn.Conv2d)
        return cls(net, classifier, timm_width(net), preprocessing, other_head)


def _collected(arch: str, source: str, file_name: str | None = None) -> _Collected:
    """A network of timm or torchvision with random weights."""
    kind, _, name = arch.partition(":")
    if kind not in COLLECTIONS:
        kind, name = "", arch
    known = torchvision.models.list_models(module=torchvision.models)
    if kind == "timm" or (not kind and name not in known):
        try:
            return _Collected.of_timm(timm_network(name, source))
        # hf-hub: its configuration is downloaded
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{source}: timm cannot build {name} ({one_line(error, 150)})"
            ) from None
    check_known(f"torchvision:{name}", source)
    if name in ("googlenet", "inception_v3"):
        raise InputError(f"{source}: gives several outputs, and cannot be a backbone here")
    net = getattr(torchvision.models, name)(weights=None)
    classifier = classifier_name(net, name)
    module = net.get_submodule(classifier)
    width = (module[0] if name.startswith("vgg") else module).in_features
    versions = torchvision.models.get_model_weights(name)
    shown = versions.DEFAULT
    if file_name:
        # A file under another name: the first version's images, which are those of most training
        # outside torchvision.
        same = [version for version in versions if version.url.rpartition("/")[2] == file_name]
        shown = (same or list(versions))[0]
    images = shown.transforms()
    mean, std = tuple(images.mean), tuple(images.std)
    side, resize = images.crop_size[0], images.resize_size[0]
    return _Collected(
        net, classifier, width, Preprocessing(side, resize, images.interpolation.value, mean, std)
    )


def _assembled(collected: _Collected, arch: str, left_out: Sequence[str] = ()) -> Network:
    """The Network around a network of a collection; its classifier, if it has one, gives the
    logits."""
    net: Any = collected.net
    classifier = collected.classifier
    if collected.other_head:
        net.reset_classifier(0)  # timm's networks then give their features
    module = replace_module(net, classifier, nn.Identity()) if classifier else None
    network = Network(net, collected.width, nn.Sequential())
    kind, _, name = arch.partition(":")
    network.arch = name if kind in COLLECTIONS else arch
    network.preprocessing = collected.preprocessing
    if module is not None:
        last = module[-1] if isinstance(module, nn.Sequential) else module
        network.fc, network.num_classes, network.loss = module, last.out_features, "supervised"
    network.notes = describe(network, f"taken as {arch}", left_out)
    return network.eval()


def network_of(state: dict[str, Tensor], checkpoint: dict) -> SSLNetwork:
    """The SSLNetwork with these weights, {name: tensor}, in eval mode; checkpoint: where its
    settings are, if any."""
    state = without_prefix(state)
    settings = checkpoint.get("settings")
    if settings:
        model = Architecture.of_checkpoint(settings)
        network = network_from_settings(model, settings["training.loss"], checkpoint["num_classes"])
        trained_side = settings.get("resolution.max_res")
        network.evaluation_side = _evaluation_side(trained_side)
        network.notes = (
            f"{network.arch}, trained at {trained_side} pixels"
            if trained_side
            else str(network.arch)
        )
    else:
        network = _network_from_shapes(shapes_of(state))
        network.notes = f"{network.arch}, without the settings of its training"
    network.load_state_dict(state)
    network.about = {name: checkpoint.get(name) for name in ABOUT}
    return network.eval()


def _evaluation_side(trained_side: int | None) -> int | None:
    """Side of the images that a network of train_SSL.py is shown, in pixels.

    Random crops enlarge objects, so that a test at up to a third more pixels than the training is
    common practice (Touvron et al. 2019, arXiv 1906.06423). The published models were trained at
    192 and tested at 224; a model of small images is shown images of its own size.
    """
    published = Preprocessing().side
    if trained_side and trained_side <= published <= trained_side * 4 / 3:
        return published
    return trained_side


def _network_from_shapes(shapes: dict[str, tuple]) -> SSLNetwork:
    backbone = below("net.", shapes)
    fc = "fc.weight" in backbone
    arch = arch_of_shapes(backbone, fc)
    widths = []
    for name, shape in shapes.items():
        if name.startswith("projector.") and len(shape) == 2:
            widths.append(str(shape[0]))
    loss, num_classes = None, None
    if "bn.running_mean" in shapes:
        loss = "barlow"
    elif any(name.startswith("predictor.") for name in shapes):
        loss = "byol"
    elif "fc.2.weight" in shapes:
        loss, num_classes = "supervised", shapes["fc.2.weight"][0]
    network = SSLNetwork(
        arch, "-".join(widths) or "1", loss, num_classes, fc=fc, remove_head=not widths
    )
    # its heads do not tell it: VICReg and SimCLR train the same network, BYOL and MoCo v3 another
    network.loss = None
    if len(network.losses()) == 1:
        network.loss = loss
    return network
