"""Any network that can be tested: a checkpoint of train_SSL.py, a public one, or timm's and torchvision's by name."""

import argparse
import math
import os
import re
from pathlib import Path

import torch
import torchvision
from torch import nn

from dejavu_utils.checkpoint import load_checkpoint, without_prefix
from dejavu_utils.cli import existing_or_awaited_file
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.imagenet import Preprocessing
from dejavu_utils.models import (
    ABOUT,
    Architecture,
    Network,
    SSLNetwork,
    classifier_name,
    mlp_widths,
    network_from_settings,
    replace_module,
    timm_network,
    timm_width,
)
from dejavu_utils.networks.backbones import arch_of_shapes
from dejavu_utils.networks.layouts import BESIDE, LAYOUTS, describe, layout_of, network_of_layout, prefix_of, weights_in
from dejavu_utils.networks.safe_load import read_weights

COLLECTIONS = ("timm", "torchvision")
ARCH_HELP = (
    "the network, where its checkpoint does not tell: a name of timm or torchvision (timm:NAME, torchvision:NAME), or "
    "the project: " + ", ".join(LAYOUTS)
)
_OWN = re.compile(r"(|.*\.)net\.(?:layer1\.0\.conv1|features\.0)\.weight")  # a backbone as train_SSL.py names it


def is_named(model: str) -> bool:
    """Is this a name in a collection ("timm:NAME", "torchvision:NAME"), not a file?"""
    return bool(model) and model.partition(":")[0] in COLLECTIONS


def file_of(model: str) -> str | None:
    """The file that a model is loaded from: itself, or what follows the @ of "timm:NAME@FILE"; None: from a cache."""
    return os.path.expanduser(model.partition("@")[2]) or None if is_named(model) else model


def resolved(model: str) -> str:
    """The same model, found from any folder."""
    named, at, source = model.rpartition("@") if is_named(model) else ("", "", model)
    return f"{named}{at}{Path(source).resolve()}" if file_of(model) else model


def existing_model(model: str, flag: str, args: argparse.Namespace) -> None:
    """InputError unless this model's file is there, or may be by the time a submitted job runs."""
    if file_of(model) or not is_named(model):
        existing_or_awaited_file(file_of(model), flag, args)


def load_network(
    model: str | Path, flag: str = "--model_pth", arch: str | None = None, arch_flag: str = "--arch"
) -> Network:
    """The network of a checkpoint, in eval mode on the CPU, its weights loaded strictly; `notes` says what it is.

    model: a file; "timm:NAME" or "torchvision:NAME", their pretrained weights from their caches, else downloaded; or
    one of these with "@FILE". arch: for files that do not tell, a name of LAYOUTS, or of timm or torchvision (with that
    word and a colon before it, or not); arch_flag: its name. InputError names the flag, and says what is missing.
    """
    model, what = str(model), f"{flag} {model}"
    if is_named(model):
        if arch:
            raise InputError(f"{what}: names its network; leave {arch_flag} out")
        arch = model.partition("@")[0]
        if file_of(model) is None:
            return _pretrained(arch, what)
    checkpoint = load_checkpoint(file_of(model), flag, read_weights)
    try:
        return _from_file(checkpoint, arch, what, Path(file_of(model)).name)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        reason = one_line(error)
        reason = reason if type(error) is ValueError else f"does not hold the network it describes: {reason}"
        raise InputError(f"{what}: {reason.replace('--arch', arch_flag)}") from None


def check_typed(
    network: Network,
    where: str,
    mlp: str | None = None,
    loss: str | None = None,
    resnet50: bool = False,
    prefix: str = "",
) -> None:
    """InputError if a flag that the user typed contradicts the network of the checkpoint `where` (flag and path).

    Of a checkpoint without settings any loss is taken that trains such a network. prefix: of the flag of the loss
    ("ssl_").
    """
    losses = network.losses()
    known = loss if loss in losses else " or ".join(losses)
    for flag, typed, found in (
        ("--mlp", mlp and "-".join(map(str, mlp_widths(mlp, "--mlp"))), network.mlp),
        (f"--{prefix}loss", loss, known),
        ("--resnet50", resnet50 and "resnet50", network.arch),
    ):
        if typed and typed != found:
            what = flag if flag == "--resnet50" else f"{flag} {typed}"
            raise InputError(f"{what}: {where} holds {found or 'none'}; leave the flag out or name another checkpoint")


def _from_file(checkpoint, arch, what, file_name):
    if isinstance(checkpoint, dict) and "settings" in checkpoint:
        return _own(network_of(checkpoint["model"], checkpoint), arch)
    state, nest = weights_in(checkpoint)
    if any(map(_OWN.fullmatch, state)):
        root = prefix_of(state, _OWN)
        own = {name.removeprefix(root): value for name, value in state.items() if name.startswith(root)}
        return _own(network_of(own, checkpoint), arch)
    if arch and arch not in LAYOUTS:
        return _built_by_name(arch, what, state, file_name)
    prefix = prefix_of(state)
    name, projector = layout_of(state, prefix, nest, arch)
    network = network_of_layout(state, name, prefix, projector)
    network.notes = (f"weights under {nest}, " if nest not in ("", "model", "state_dict") else "") + network.notes
    return network


def _own(network, arch):
    if arch and arch != network.arch:
        raise ValueError(f"holds {network.arch}, not --arch {arch}; leave the flag out")
    return network


def _built_by_name(arch, what, state, file_name):
    """timm's or torchvision's network with the weights of a file; its classifier's too, if they are there."""
    net, classifier, width, preprocessing = _collected(arch, what, file_name)
    names = set(net.state_dict())
    first = next(name for name in net.state_dict() if not name.endswith("token") and name != "pos_embed")
    prefix = prefix_of(state, re.compile(rf"(|.*\.){re.escape(first)}"))
    weights, left_out = {}, [name for name in state if not name.startswith(prefix)]
    for name, value in state.items():
        within = name.removeprefix(prefix)
        if name.startswith(prefix) and (within in names or not BESIDE.fullmatch(within)):
            weights[within] = value
        elif name.startswith(prefix):
            left_out.append(name)
    if classifier and not any(name.startswith(f"{classifier}.") for name in weights):
        replace_module(net, classifier, nn.Identity())
        classifier = None
    elif classifier and len(weights.get(f"{classifier}.weight", ())):  # of as many classes as the file has
        replace_module(net, classifier, nn.Linear(width, len(weights[f"{classifier}.weight"])))
    net.load_state_dict(weights)
    return _assembled(net, classifier, width, preprocessing, arch, left_out)


def _pretrained(arch, what):
    """timm's or torchvision's network with its own pretrained weights."""
    kind, _, name = arch.partition(":")
    if kind == "timm":
        try:
            net = timm_network(name, what, pretrained=True)
        except InputError:
            raise
        except Exception as error:  # no such weights, no network, a damaged cache: anything
            raise InputError(
                f"{what}: its weights are not in the cache and cannot be downloaded ({one_line(error, 150)}); "
                f"give timm:{name}@FILE"
            ) from None
        return _assembled(net, *_of_timm(net), arch)
    net, classifier, width, preprocessing = _collected(arch, what)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        net.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{what}: its weights are not in {torch.hub.get_dir()}/checkpoints and cannot be downloaded "
            f"({one_line(error, 150)}); fetch {weights.url} and give torchvision:{name}@FILE"
        ) from None
    return _assembled(net, classifier, width, preprocessing, arch)


def _collected(arch, what, file_name=None):
    """(network with random weights, path of its classifier or None, width before it, Preprocessing)."""
    kind, _, name = arch.rpartition(":")
    known = torchvision.models.list_models(module=torchvision.models)
    if kind == "timm" or (not kind and name not in known):
        net = timm_network(name, what)
        return net, *_of_timm(net)
    if name not in known:
        raise InputError(f"{what}: torchvision has no classifier {name}")
    if name in ("googlenet", "inception_v3"):
        raise InputError(f"{what}: gives several outputs, and cannot be a backbone here")
    net = getattr(torchvision.models, name)(weights=None)
    classifier = classifier_name(net, name)
    found = net.get_submodule(classifier)
    width = (found[0] if name.startswith("vgg") else found).in_features
    versions = torchvision.models.get_model_weights(name)
    same = [version for version in versions if version.url.rpartition("/")[2] == file_name]
    # A file under another name: the first version's images, which are those of most training outside torchvision.
    shown = (same or [next(iter(versions))] if file_name else [versions.DEFAULT])[0].transforms()
    preprocessing = Preprocessing(
        shown.crop_size[0], shown.resize_size[0], shown.interpolation.value, tuple(shown.mean), tuple(shown.std)
    )
    return net, classifier, width, preprocessing


def _of_timm(net):
    """(path of the classifier, or None where it is none or several Linear, width before it, Preprocessing)."""
    config = net.pretrained_cfg
    side = config["input_size"][-1]
    preprocessing = Preprocessing(
        side,
        math.floor(side / config["crop_pct"]),
        config["interpolation"],
        tuple(config["mean"]),
        tuple(config["std"]),
    )
    name = config.get("classifier")
    linear = isinstance(name, str) and isinstance(dict(net.named_modules()).get(name), nn.Linear)
    return name if linear else None, timm_width(net), preprocessing


def _assembled(net, classifier, width, preprocessing, arch, left_out=()):
    """The Network around a network of a collection; its classifier, if it has one, gives the logits."""
    module = replace_module(net, classifier, nn.Identity()) if classifier else None
    network = Network(net, width, nn.Sequential())
    network.arch, network.preprocessing = arch.rpartition(":")[2], preprocessing
    if module is not None:
        last = module[-1] if isinstance(module, nn.Sequential) else module
        network.fc, network.num_classes, network.loss = module, last.out_features, "supervised"
    network.notes = describe(network, f"taken as {arch}", left_out)
    return network.eval()


def network_of(state: dict, checkpoint: dict) -> SSLNetwork:
    """The SSLNetwork with these weights, {name: tensor}, in eval mode; checkpoint: where its settings are, if any."""
    state = without_prefix(state)
    if "settings" in checkpoint:
        settings = checkpoint["settings"]
        model = Architecture.of_checkpoint(settings)
        network = network_from_settings(model, settings["training.loss"], checkpoint["num_classes"])
    else:
        network = _network_from_shapes({name: tuple(value.shape) for name, value in state.items()})
    network.load_state_dict(state)
    network.about = {name: checkpoint.get(name) for name in ABOUT}
    return network.eval()


def _network_from_shapes(shapes):
    backbone = {name.removeprefix("net."): shape for name, shape in shapes.items() if name.startswith("net.")}
    fc = "fc.weight" in backbone
    arch = arch_of_shapes(backbone, fc)
    projector = [(name, s[0]) for name, s in shapes.items() if name.startswith("projector.") and len(s) == 2]
    mlp = "-".join(str(width) for _, width in projector)
    loss, num_classes = None, None
    if "bn.running_mean" in shapes:
        loss = "barlow"
    elif any(name.startswith("predictor.") for name in shapes):
        loss = "byol"
    elif "fc.2.weight" in shapes:
        loss, num_classes = "supervised", shapes["fc.2.weight"][0]
    network = SSLNetwork(arch, mlp or "1", loss, num_classes, fc=fc, remove_head=not projector)
    network.loss = None  # its heads do not tell it: VICReg and SimCLR train the same network, BYOL and MoCo v3 another
    if len(network.losses()) == 1:
        network.loss = loss
    return network
