"""Files in the layouts that other projects publish: loaded strictly, with the outputs of networks written out here."""

import argparse
import re
import sys
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import assert_one_line_error, ok, options, read_json, refused
from stages import call, settings
from torch import nn

from dejavu_utils.crops import corner_crop
from dejavu_utils.data import augment
from dejavu_utils.data.image_dataset import evaluation_transform
from dejavu_utils.imagenet import MEAN, STD, Preprocessing, list_images, load_image
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.backbones import resnet_of_shapes, timms_names, vit_of_shapes
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.networks.layouts import LAYOUTS
from dejavu_utils.networks.loading import load_network

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def exclude_bias_and_norm(p):
    """VICReg's and Barlow Twins' checkpoints hold this function of their script."""
    return p.ndim == 1


exclude_bias_and_norm.__module__ = "__main__"


def save(checkpoint, path):
    """torch.save by a script that defines the function; whoever loads the file does not."""
    with mock.patch.object(sys.modules["__main__"], "exclude_bias_and_norm", exclude_bias_and_norm, create=True):
        torch.save(checkpoint, path)
    return str(path)


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def randomized(module, seed=0):
    """Weights and statistics that differ from the initial ones everywhere, and batches counted as in training."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        else:
            value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    return module.eval()


def resnet(width=16, block="BasicBlock", depth=2):
    """A ResNet of torchvision's, the widths of its stages divided by 64 / width, without a classifier."""

    class Scaled(torchvision.models.ResNet):
        def _make_layer(self, block, planes, *args, **kwargs):
            if planes == 64:
                self.inplanes, self.conv1 = width, nn.Conv2d(3, width, 7, 2, 3, bias=False)
                self.bn1 = nn.BatchNorm2d(width)
            return super()._make_layer(block, planes * width // 64, *args, **kwargs)

    net = Scaled(getattr(torchvision.models.resnet, block), [depth] * 4)
    net.fc = nn.Identity()
    return randomized(net)


class Vit(nn.Module):
    """DINO's transformer, written out: 64 pixels in patches of 16 unless told otherwise."""

    def __init__(self, width=192, heads=3, depth=2, grid=4, scaled=False, registers=0, swiglu=False):
        super().__init__()
        self.heads, self.grid, self.scaled, self.registers, self.swiglu = heads, grid, scaled, registers, swiglu
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.pos_embed = nn.Parameter(torch.randn(1, grid**2 + 1, width) * 0.1)
        if registers:
            self.register_tokens = nn.Parameter(torch.randn(1, registers, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.blocks, hidden = nn.ModuleList(), 2 * width
        for _ in range(depth):
            mlp = {"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)}
            if swiglu:
                mlp = {"w12": nn.Linear(width, 2 * hidden), "w3": nn.Linear(hidden, width)}
            block = nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
                    "mlp": nn.ModuleDict(mlp),
                }
            )
            if scaled:
                for name in ("ls1", "ls2"):
                    block[name] = nn.Module()
                    block[name].gamma = nn.Parameter(torch.rand(width))
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images, positions=None):
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + (self.pos_embed if positions is None else positions)
        if self.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            y = block["norm1"](x)
            n, t, c = y.shape
            q, k, v = (z.view(n, t, self.heads, -1).transpose(1, 2) for z in block["attn"]["qkv"](y).chunk(3, -1))
            attended = F.scaled_dot_product_attention(q, k, v)
            y = block["attn"]["proj"](attended.transpose(1, 2).reshape(n, t, c))
            x = x + (y * block["ls1"].gamma if self.scaled else y)
            y, mlp = block["norm2"](x), block["mlp"]
            if self.swiglu:
                gate, value = mlp["w12"](y).chunk(2, -1)
                y = mlp["w3"](F.silu(gate) * value)
            else:
                y = mlp["fc2"](F.gelu(mlp["fc1"](y)))
            x = x + (y * block["ls2"].gamma if self.scaled else y)
        return self.norm(x)[:, 0]


def mlp(*widths, bias=True, norm=True, gelu=False, last_bias=False, last_norm=False):
    """The usual projector; widths from the backbone's on."""
    layers = []
    for width_in, width in zip(widths[:-2], widths[1:-1]):
        layers += [nn.Linear(width_in, width, bias=bias), *([nn.BatchNorm1d(width)] if norm else [])]
        layers.append(nn.GELU() if gelu else nn.ReLU())
    layers.append(nn.Linear(*widths[-2:], bias=last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return randomized(nn.Sequential(*layers), seed=1)


def named(prefix, module):
    return {prefix + name: value.clone() for name, value in module.state_dict().items()}


def junk(*names):
    return {name: torch.zeros(2) for name in names}


# A file's name, the entry with its weights: its layout | network | projector | prefixes of both | what is dropped.
FILES = """
    vicreg_full model: vicreg | resnet | 128-32-32-24 | module.backbone. module.projector. |
    barlow_full model: barlow | resnet | 128-32-32-24 bias=0 | module.backbone. module.projector.
                              | module.bn.running_mean
    backbone_alone: backbone  | resnet | | |
    swav: swav                | resnet | 128-32-16 last_bias=1 | module. module.projection_head.
                              | module.prototypes.weight
    moco_v2 state_dict: moco  | resnet | 128-128-16 norm=0 last_bias=1 | module.encoder_q. module.encoder_q.fc.
                              | module.encoder_k.* module.queue
    moco_v1 state_dict: moco  | resnet | 128-16 last_bias=1 | module.encoder_q. module.encoder_q.fc. |
    moco_v3_resnet state_dict: mocov3 | resnet | 128-32-16 bias=0 last_norm=1
                              | module.base_encoder. module.base_encoder.fc.
                              | module.momentum_encoder.* module.predictor.0.weight
    moco_v3_vit state_dict: mocov3 | vit heads=12 | 192-32-32-16 bias=0 last_norm=1
                              | module.base_encoder. module.base_encoder.head. |
    dino_backbone: dino       | vit | | |
    dino_full teacher: dino   | vit | 192-32-32-16 norm=0 gelu=1 last_bias=1 | backbone. head.mlp.
                              | head.last_layer.weight_g head.last_layer.weight_v
    dino_resnet teacher: dino | resnet | 128-32-16 gelu=1 last_bias=1 | module.backbone. module.head.mlp. |
    dinov2: dinov2            | vit scaled=1 | | | mask_token
    dinov2_giant: dinov2      | vit scaled=1 swiglu=1 | | | mask_token
    dinov2_registers: dinov2_reg | vit scaled=1 registers=4 | | | mask_token
    mae model: mae            | vit | | | mask_token decoder_pos_embed decoder_embed.weight
    simclr_converted state_dict: simclr | resnet | | | fc.weight fc.bias
    lightning state_dict: vicreg | resnet | 128-32-24 | model.backbone. model.projector. |
    compiled model: vicreg    | resnet | 128-32-24 | module._orig_mod.backbone. module._orig_mod.projector. |
"""
ROWS = {row.split()[0].rstrip(":"): row for row in re.sub(r"\n +\|", " |", FILES).strip().splitlines()}
# What projects save beside the weights.
BESIDE = {
    "epoch": 100,
    "arch": "resnet50",
    "args": argparse.Namespace(lr=1e-3),
    "scaler": {"scale": 2.0},
    "best_acc": np.float64(0.5),
    "pytorch-lightning_version": "2",
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "weight_decay_filter": exclude_bias_and_norm}]},
}


def published(name):
    """(checkpoint, its network, its projector or None, its layout, what is said of it)."""
    about, net, head, prefixes, others = (column.strip() for column in ROWS[name].split("|"))
    kind, *words = net.split()
    net = resnet() if kind == "resnet" else randomized(Vit(**numbers(words)))
    if name == "mae":
        net.pos_embed.data[:, 0] = 0
    of_net, of_head = prefixes.split() or ("", "")
    state = named(of_net, net)
    if name == "simclr_converted":
        state |= {key: torch.zeros_like(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    if head:
        widths, *words = head.split()
        head = mlp(*map(int, widths.split("-")), **numbers(words))
        state |= named(of_head, head if len(head) > 1 else head[0])
    for other in others.split():
        state |= named(other[:-1], resnet()) if other.endswith("*") else junk(other)
    said = [other.removeprefix("module.") for other in others.split()] or ["dropped: nothing"]
    labels, _, layout = about.partition(": ")
    _, *entry = labels.split()
    checkpoint = {**BESIDE, entry[0]: state} if entry else state
    if entry == ["teacher"]:
        checkpoint["student"] = {f"module.{key}": value + 1 for key, value in state.items()}
        said.append("under teacher")
    return checkpoint, net, head or None, layout, said


def numbers(words):
    return {name: int(value) for name, value in options(" ".join(words)).items()}


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_a_published_layout_gives_the_outputs_of_its_network(tmp_path, name):
    torch.manual_seed(0)
    checkpoint, net, head, layout, said = published(name)
    network = load_network(save(checkpoint, tmp_path / "public.pth"))
    assert LAYOUTS[layout].title in network.notes and not network.training
    assert network.preprocessing == LAYOUTS[layout].preprocessing
    for words in said:
        assert words in network.notes
    backbone = net(IMAGES)
    embedded = network.embed_layers(IMAGES, ["backbone", "backbone:l2"])
    assert_near(embedded["backbone"], backbone)
    torch.testing.assert_close(embedded["backbone:l2"], backbone / backbone.norm(dim=1, keepdim=True))
    assert network.width("backbone") == network.width("backbone:l2") == backbone.shape[1]
    assert ("projector" in network.layer_names()) == (head is not None)
    if head is not None:
        projected = head(backbone)
        embedded = network.embed_layers(IMAGES, ["projector", "projector:l2", "projector.0"])
        assert_near(embedded["projector"], projected)
        torch.testing.assert_close(embedded["projector:l2"].norm(dim=1), torch.ones(2))
        assert network.width("projector") == projected.shape[1]
        assert network.width("projector.0") == embedded["projector.0"].shape[1]
    prepared = prepared_for_inference(network)
    torch.testing.assert_close(prepared.embed(IMAGES, "backbone"), backbone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, inner, width", [("backbone_alone", "layer3", 64), ("dino_backbone", "blocks.0", 192)])
@torch.no_grad()
def test_inner_layers_by_the_networks_own_names(tmp_path, name, inner, width):
    """A stage of a ResNet as its mean over positions, a block of a ViT as its class token; after preparing, too."""
    checkpoint, net, *_ = published(name)
    save(checkpoint, tmp_path / "public.pth")
    network = prepared_for_inference(load_network(str(tmp_path / "public.pth")), [inner])
    kept = []
    if inner == "layer3":
        net.layer3.register_forward_hook(lambda module, inputs, output: kept.append(output.mean(dim=(2, 3))))
    else:
        net.blocks[1]["norm1"].register_forward_hook(lambda module, inputs, output: kept.append(inputs[0][:, 0]))
    net(IMAGES)
    assert_near(network.embed(IMAGES, inner), kept[0])
    assert network.width(inner) == width
    with refused("layer layer9: this network has backbone"):
        network.width("layer9")


@pytest.mark.parametrize("name, offset", [("dino_backbone", 0.1), ("dinov2_registers", 0.0), ("mae", 0.0)])
@torch.no_grad()
def test_positions_are_interpolated_as_published(tmp_path, name, offset):
    """96 pixels where the table is for 64: DINO's factor is a little larger than 6 / 4."""
    checkpoint, net, *_ = published(name)
    save(checkpoint, tmp_path / "public.pth")
    images = torch.randn(1, 3, 96, 96)
    table = net.pos_embed[:, 1:].transpose(1, 2).reshape(1, 192, 4, 4)
    antialias = name == "dinov2_registers"
    factor = {"scale_factor": ((6 + offset) / 4,) * 2} if offset else {"size": (6, 6)}
    table = F.interpolate(table, **factor, mode="bicubic", antialias=antialias)
    positions = torch.cat([net.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], 1)
    network = load_network(str(tmp_path / "public.pth"))
    assert_near(network.embed(images, "backbone"), net(images, positions))


def test_a_wide_bottleneck_network_is_built(tmp_path):
    """VICReg's resnet50x2: every width doubled, the first convolution's too, output 4096."""
    net = resnet(128, "Bottleneck", depth=1)
    torch.save(net.state_dict(), tmp_path / "resnet_x2.pth")
    network = load_network(str(tmp_path / "resnet_x2.pth"))
    assert network.width("backbone") == 4096 and network.arch.endswith("x2")
    with torch.no_grad():
        torch.testing.assert_close(network.embed(IMAGES, "backbone"), net(IMAGES), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnet34"])
def test_names_of_torchvisions_resnets_are_recognized(tmp_path, name):
    with torch.device("meta"):
        net = getattr(torchvision.models, name)()
        net.fc = nn.Identity()
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        built, found = resnet_of_shapes(shapes)
    assert found == name and {key: tuple(value.shape) for key, value in built.state_dict().items()} == shapes


TRANSFORMERS = """vit_small_patch16_224 vit_small_patch8_224 vit_base_patch16_224 vit_large_patch16_224
    vit_huge_patch14_224 vit_small_patch14_dinov2 vit_large_patch14_dinov2 vit_giant_patch14_dinov2"""


@pytest.mark.parametrize("name", TRANSFORMERS.split())
def test_published_transformers_have_their_heads(name):
    """At their own widths: shapes do not tell the heads, the width does."""
    with torch.device("meta"):
        given = timm.create_model(name, num_classes=0, depth=1)
        net, _ = vit_of_shapes({key: tuple(value.shape) for key, value in timms_names(given.state_dict()).items()})
    assert [block.attn.num_heads for block in net.blocks] == [block.attn.num_heads for block in given.blocks]


@torch.no_grad()
def test_supervised_files_of_torchvision(tmp_path):
    """The classifier gives the logits; the images are those of the version whose file name it is."""
    net = randomized(torchvision.models.resnet18(num_classes=7))
    for name in ("resnet18-f37072fd.pth", "mine.pth"):
        torch.save(net.state_dict(), tmp_path / name)
        network = load_network(str(tmp_path / name))
        assert (network.loss, network.num_classes, network.arch) == ("supervised", 7, "resnet18")
        assert_near(network.embed(IMAGES, "logits"), net(IMAGES))
        assert network.preprocessing.resize == 256


@torch.no_grad()
def test_resnets_are_shown_images_as_their_version(tmp_path):
    net = torchvision.models.resnet50()
    path = save(net.state_dict(), tmp_path / "resnet50-11ad3fa6.pth")
    for model in (f"torchvision:resnet50@{path}", path):
        network = load_network(model, arch=None if "@" in model else "torchvision:resnet50")
        assert network.preprocessing.resize == 232 and network.width("logits") == 1000
    assert load_network(path, arch="resnet50").preprocessing.resize == 232


@pytest.mark.parametrize("wrap", ["mocov3", "mae"])
@torch.no_grad()
def test_fixed_positions_384_wide_need_the_projects_name(tmp_path, wrap):
    """Every name and shape of MoCo v3's ViT-S fits 6 heads; with these the outputs would be wrong."""
    net = randomized(Vit(width=384, heads=12 if wrap == "mocov3" else 6, depth=1))
    net.pos_embed.data[:, 0] = 0
    path = save(named("module.", net), tmp_path / "vit.pth")
    with refused(f"--model_A_pth {path}: .*12 heads.*--arch mocov3 or --arch mae"):
        load_network(path, "--model_A_pth")
    network = load_network(path, arch=wrap)
    assert_near(network.embed(IMAGES, "backbone"), net(IMAGES))


REFUSED = {
    "holds SimCLR v2": lambda: {"resnet": named("net.0.", nn.Linear(2, 2)), "head": named("", nn.Linear(2, 2))},
    "a transformer with a classifier.*--arch timm:": lambda: named("", Vit()) | named("head.", nn.Linear(192, 5)),
    "320 wide.*number of heads": lambda: named("", Vit(width=320, heads=5, depth=1)),
    "names like 0.weight, .*--arch": lambda: named("", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))),
    "holds epoch, a, b; expected weights": lambda: {"epoch": 1, "a": junk("x"), "b": junk("y")},
    "holds nothing": dict,
    "layer1.0.conv9.weight": lambda: named("", resnet()) | junk("layer1.0.conv9.weight"),
    "Missing key.*layer4.1.bn2.weight": lambda: {
        name: value for name, value in named("", resnet()).items() if name != "layer4.1.bn2.weight"
    },
    "networks under a.backbone., b.backbone.": lambda: named("a.backbone.", resnet()) | named("b.backbone.", resnet()),
    "its conv1.weight holds int8: a quantized network": lambda: {
        name: value.to(torch.int8) if value.ndim == 4 else value for name, value in named("", resnet()).items()
    },
    "its projector has projector.weight_g": lambda: named("backbone.", resnet()) | junk("projector.a.weight_g"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_files_are_refused_with_what_is_missing(tmp_path, reason):
    path = save(REFUSED[reason](), tmp_path / "public.pth")
    with refused(f"--model_pth {path}: .*{reason.replace('projector.weight_g', '')}"):
        load_network(path)


@pytest.mark.parametrize(
    "nest, other", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("teacher", "student")]
)
def test_weights_that_lie_beside_those_taken_are_named(tmp_path, nest, other):
    """Averaged ones may be those that were published; torch.optim.swa_utils counts what it averaged."""
    averaged = named("module.", randomized(resnet(), seed=1)) | {"n_averaged": torch.tensor(5)}
    path = save({other: averaged, nest: named("", resnet())}, tmp_path / "two.pth")
    assert f"weights under {nest} (not those under {other}), taken as" in load_network(path).notes
    network = load_network(save(averaged, tmp_path / "averaged.pth"))
    assert "dropped: n_averaged" in network.notes and "not those" not in network.notes


@pytest.mark.parametrize("words", [["momentum_backbone.conv1.weight"], []], ids=["BYOL", "SimCLR"])
def test_names_of_solo_learn_are_not_taken_as_vicreg(tmp_path, words):
    net, norm = resnet(), [nn.BatchNorm1d(24)] if words else []
    projector = nn.Sequential(nn.Linear(128, 24), *norm, nn.ReLU(), nn.Linear(24, 8)).eval()
    state = named("backbone.", net) | named("projector.", projector)
    for word in words:
        state |= junk(word)
    network = load_network(save({"state_dict": state}, tmp_path / "solo.ckpt"))
    assert "unknown training" in network.notes and "simclr" in network.losses()
    torch.testing.assert_close(network.embed(IMAGES, "projector"), projector(net(IMAGES)), rtol=1e-4, atol=1e-4)


def test_torchscript_is_named_and_not_run(tmp_path, recwarn):
    class Identity(torch.nn.Module):
        def forward(self, images):
            return images

    torch.jit.save(torch.jit.trace(Identity(), torch.zeros(1)), str(tmp_path / "x.pth"))
    recwarn.clear()
    with refused("TorchScript"):
        load_network(tmp_path / "x.pth")
    assert not len(recwarn)


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    net = resnet()
    safetensors.save_file(named("", net), tmp_path / "model.safetensors")
    network = load_network(str(tmp_path / "model.safetensors"))
    assert torch.equal(network.embed(IMAGES, "backbone"), net(IMAGES))


def test_a_name_of_torchvision_takes_its_cache(tmp_path, monkeypatch):
    """With nothing in the cache and no connection, the line says what to fetch."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=OSError("no route")))
    with refused("torchvision:resnet18: .*fetch https://.*and give torchvision:resnet18@FILE"):
        load_network("torchvision:resnet18")
    net = randomized(torchvision.models.resnet18())
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(net.state_dict(), tmp_path / "checkpoints" / name)
    network = load_network("torchvision:resnet18")
    assert_near(network.embed(IMAGES, "logits"), net(IMAGES))
    for model, reason in (("torchvision:resnet1", "no classifier resnet1"), ("torchvision:resnet18@x.pth", "no such")):
        with refused(reason):
            load_network(model)


@pytest.mark.parametrize("entry, prefix", [("model", ""), ("state_dict", "model."), ("teacher", "module.")])
def test_own_checkpoints_in_others_wrappers(tmp_path, entry, prefix):
    network = SSLNetwork("resnet18", "32-16", "simclr").eval()
    loaded = load_network(save({"epoch": 1, entry: named(prefix, network)}, tmp_path / "own.pth"))
    assert isinstance(loaded, SSLNetwork) and "taken as" not in loaded.notes
    assert torch.equal(loaded.embed(IMAGES, "projector"), network.embed(IMAGES, "projector"))
    with refused("holds resnet18, not --arch resnet50"):
        load_network(str(tmp_path / "own.pth"), arch="resnet50")


@torch.no_grad()
def test_networks_of_timm(tmp_path, monkeypatch):
    """A transformer with its norm and its class token; mean, deviation and size of its own; supervised logits."""
    net = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=7))
    path = save(net.state_dict(), tmp_path / "vit.pth")
    images = torch.randn(1, 3, 224, 224)
    for model, arch in ((f"timm:vit_tiny_patch16_224@{path}", None), (path, "vit_tiny_patch16_224")):
        network = load_network(model, arch=arch)
        features = net.forward_features(images)
        assert_near(network.embed(images, "backbone"), features[:, 0])
        assert_near(network.embed(images, "logits"), net(images))
        assert network.preprocessing.mean == (0.5, 0.5, 0.5) and network.preprocessing.interpolation == "bicubic"
        assert network.width("blocks.11") == 192
    with refused("timm:vit_nothing_patch16_224: neither torchvision nor timm has it"):
        load_network("timm:vit_nothing_patch16_224")
    monkeypatch.setattr(timm, "create_model", mock.Mock(side_effect=OSError("no route")))
    with refused("cannot be downloaded .no route.; give timm:vit_tiny_patch16_224@FILE"):
        load_network("timm:vit_tiny_patch16_224")


# Through the scripts: each network is shown images as it was evaluated.


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A folder with DINO's checkpoints for A and B, and a converted SimCLR backbone."""
    folder = tmp_path_factory.mktemp("public")
    for seed, model in enumerate("AB"):
        torch.manual_seed(seed)
        checkpoint, *_ = published("dino_full")
        for value in checkpoint["teacher"].values():
            value += 0.01 * seed
        save(checkpoint, folder / f"dino_{model}.pth")
    save(published("simclr_converted")[0], folder / "simclr.pth")
    return folder


def shown(network, listing, indices, resolution, cut=lambda image: image):
    transform = evaluation_transform(resolution, network.preprocessing)
    return torch.stack([transform(cut(load_image(listing.path(index)))) for index in indices])


def test_attack_of_public_checkpoints(tiny, public, tmp_path):
    """Of a projector's output divided by its length, and of a block: neighbors as found by hand."""
    values = settings("attack", tiny / "data", tiny / "made", tmp_path / "attack")
    values |= {"use_corner_crop": "", "resolution": 64, "layers": "projector:l2,blocks.0"}
    values |= {f"model_{model}_pth": public / f"dino_{model}.pth" for model in "AB"}
    result = ok(call("attack", values))
    assert (
        "weights under teacher (not those under student), taken as DINO" in result.stdout
        and "(bicubic)" in result.stdout
    )
    listing, network = list_images(tiny / "data/images"), load_network(str(public / "dino_A.pth"))
    attacked, public_set = (np.load(values[f"{name}_idx_pth"]) for name in ("bbox_B", "public"))

    def corner(image):
        return image.crop(corner_crop(*image.size, 0.3))

    for layer in ("projector:l2", "blocks.0"):
        with torch.no_grad():
            queries = network.embed(shown(network, listing, attacked, 64, corner), layer)
            gallery = network.embed(shown(network, listing, public_set, 64), layer)
        nearest = torch.cdist(queries, gallery).argsort(dim=1)[:, : values["k"]].numpy()
        found = np.load(tmp_path / f"attack/{layer}/A_attk_B_neighb_idxs.npy")
        assert (found == public_set[nearest]).mean() > 0.95  # ties within rounding
    values |= {f"model_{model}_pth": public / "simclr.pth" for model in "AB"}
    result = call("attack", values | {"output_dir": tmp_path / "other", "layers": None})
    assert_one_line_error(
        result, "projector", "simclr.pth has no layer projector but backbone, layer1", "--use_backbone 1"
    )


def test_probe_and_rcdm_of_a_backbone(tiny, public, tmp_path):
    """Without a projector the representation is the backbone's output alone."""
    values = settings("probe", tiny / "data", tiny / "made", tmp_path / "probe")
    values |= {"model_pth": public / "simclr.pth", "resolution": 64, "start_lr": 0.1, "end_lr": 0.01}
    assert "taken as SimCLR, converted" in ok(call("probe", values)).stdout
    assert_one_line_error(call("probe", values | {"use_projector": ""}), "has no projector")
    values = settings("rcdm", tiny / "data", tiny / "made", tmp_path / "rcdm")
    values |= {"ssl_model_pth": public / "simclr.pth", "ssl_resolution": 64, "learn_sigma": "True"}
    assert "representation: backbone, 128 wide" in ok(call("rcdm", values)).stdout
    assert read_json(tmp_path / "rcdm/params.json")["layers"] == ["backbone"]


def test_views_are_normalized_for_the_network():
    images, own = torch.rand(2, 3, 4, 4), Preprocessing(mean=(0.0, 0.5, 0.1), std=(1.0, 0.5, 0.3))
    mean, std, own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD, own.mean, own.std))
    torch.testing.assert_close(augment.renormalize((images - mean) / std, own), (images - own_mean) / own_std)
    assert augment.renormalize(images, Preprocessing()) is images
