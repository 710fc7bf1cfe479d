"""Files in the layouts that other projects publish: loaded strictly, with the outputs of networks written out here."""

import argparse
import sys
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import assert_one_line_error, ok, read_json
from stages import call, settings
from torch import nn

from dejavu_utils.crops import corner_crop
from dejavu_utils.data import augment
from dejavu_utils.data.image_dataset import evaluation_transform
from dejavu_utils.errors import InputError
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


def mlp(*widths, bias=True, norm=True, act=nn.ReLU, last_bias=False, last_norm=False):
    """The usual projector; widths from the backbone's on."""
    layers = []
    for width_in, width in zip(widths[:-2], widths[1:-1]):
        layers += [nn.Linear(width_in, width, bias=bias), *([nn.BatchNorm1d(width)] if norm else []), act()]
    layers.append(nn.Linear(*widths[-2:], bias=last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return randomized(nn.Sequential(*layers), seed=1)


def named(prefix, module):
    return {prefix + name: value.clone() for name, value in module.state_dict().items()}


def junk(*names):
    return {name: torch.zeros(2) for name in names}


def full_checkpoint(hidden_bias):
    net, head = resnet(), mlp(128, 32, 32, 24, bias=hidden_bias)
    state = {**named("module.backbone.", net), **named("module.projector.", head)}
    if not hidden_bias:
        state.update(junk("module.bn.running_mean"))
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "weight_decay_filter": exclude_bias_and_norm}]}
    return {"epoch": 1000, "model": state, "optimizer": optimizer}, net, head


def vicreg_full():
    return *full_checkpoint(True), "vicreg", []


def barlow_full():
    return *full_checkpoint(False), "barlow", ["bn.running_mean"]


def backbone_alone():
    net = resnet()
    return named("", net), net, None, "backbone", []


def swav():
    net, head = resnet(), mlp(128, 32, 16, last_bias=True)
    state = {**named("module.", net), **named("module.projection_head.", head), **junk("module.prototypes.weight")}
    return state, net, head, "swav", ["prototypes.weight"]


def moco_v2():
    net, head = resnet(), mlp(128, 128, 16, norm=False, last_bias=True)
    state = {**named("module.encoder_q.", net), **named("module.encoder_q.fc.", head), **junk("module.queue")}
    state.update(named("module.encoder_k.", resnet()))
    checkpoint = {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}
    return checkpoint, net, head, "moco", ["encoder_k.*", "queue"]


def moco_v1():
    net, head = resnet(), mlp(128, 16, last_bias=True)
    state = {**named("module.encoder_q.", net), **named("module.encoder_q.fc.", head[0])}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state}, net, head, "moco", []


def moco_v3_resnet():
    net, head = resnet(), mlp(128, 32, 16, bias=False, last_norm=True)
    state = {**named("module.base_encoder.", net), **named("module.base_encoder.fc.", head)}
    state |= {**named("module.momentum_encoder.", net), **junk("module.predictor.0.weight")}
    return {"epoch": 1000, "state_dict": state}, net, head, "mocov3", ["momentum_encoder.*", "predictor.0.weight"]


def moco_v3_vit():
    net, head = randomized(Vit(heads=12)), mlp(192, 32, 32, 16, bias=False, last_norm=True)
    state = {**named("module.base_encoder.", net), **named("module.base_encoder.head.", head)}
    checkpoint = {"epoch": 300, "state_dict": state, "scaler": {"scale": 1.0}}
    return checkpoint, net, head, "mocov3", []


def dino_backbone():
    net = randomized(Vit())
    return named("", net), net, None, "dino", []


def dino_full():
    net, head = randomized(Vit()), mlp(192, 32, 32, 16, norm=False, act=nn.GELU, last_bias=True)
    teacher = {**named("backbone.", net), **named("head.mlp.", head)}
    teacher |= junk("head.last_layer.weight_g", "head.last_layer.weight_v")
    student = {f"module.{name}": value + 1 for name, value in teacher.items()}
    checkpoint = {"student": student, "teacher": teacher, "optimizer": {}, "epoch": 100}
    checkpoint |= {"args": argparse.Namespace(arch="vit_small"), "dino_loss": {"center": torch.zeros(1, 4)}}
    return checkpoint, net, head, "dino", ["head.last_layer.weight_g", "head.last_layer.weight_v", "under teacher"]


def dino_resnet():
    net, head = resnet(), mlp(128, 32, 16, act=nn.GELU, last_bias=True)
    state = {**named("module.backbone.", net), **named("module.head.mlp.", head)}
    return {"student": state, "teacher": state}, net, head, "dino", []


def dinov2():
    net = randomized(Vit(scaled=True))
    return {**named("", net), "mask_token": torch.zeros(1, 192)}, net, None, "dinov2", ["mask_token"]


def dinov2_giant():
    net = randomized(Vit(scaled=True, swiglu=True))
    return {**named("", net), "mask_token": torch.zeros(1, 192)}, net, None, "dinov2", ["mask_token"]


def dinov2_registers():
    net = randomized(Vit(scaled=True, registers=4))
    return {**named("", net), "mask_token": torch.zeros(1, 192)}, net, None, "dinov2_reg", ["mask_token"]


def mae():
    net = randomized(Vit())
    net.pos_embed.data[:, 0] = 0
    state = {**named("", net), **junk("mask_token", "decoder_pos_embed", "decoder_embed.weight")}
    checkpoint = {"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 800, "scaler": {"scale": 2.0}}
    return checkpoint, net, None, "mae", ["mask_token", "decoder_pos_embed"]


def simclr_converted():
    net = resnet()
    state = named("", net)
    state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    return {"state_dict": {**state, **named("fc.", nn.Linear(128, 5))}}, net, None, "simclr", ["fc.weight", "fc.bias"]


def lightning():
    net, head = resnet(), mlp(128, 32, 24)
    state = {**named("model.backbone.", net), **named("model.projector.", head)}
    return {"epoch": 1, "pytorch-lightning_version": "2", "state_dict": state}, net, head, "vicreg", []


def compiled():
    net, head = resnet(), mlp(128, 32, 24)
    state = {**named("module._orig_mod.backbone.", net), **named("module._orig_mod.projector.", head)}
    return {"model": state, "best_acc": np.float64(0.5)}, net, head, "vicreg", []


FILES = (
    vicreg_full,
    barlow_full,
    backbone_alone,
    swav,
    moco_v2,
    moco_v1,
    moco_v3_resnet,
    moco_v3_vit,
    dino_backbone,
    dino_full,
    dino_resnet,
    dinov2,
    dinov2_giant,
    dinov2_registers,
    mae,
    simclr_converted,
    lightning,
    compiled,
)


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
@torch.no_grad()
def test_a_published_layout_gives_the_outputs_of_its_network(tmp_path, make):
    torch.manual_seed(0)
    checkpoint, net, head, layout, said = make()
    network = load_network(save(checkpoint, tmp_path / "public.pth"))
    assert LAYOUTS[layout].title in network.notes and not network.training
    assert network.preprocessing == LAYOUTS[layout].preprocessing
    for words in said:
        assert words in network.notes
    if not said:
        assert "dropped: nothing" in network.notes
    backbone = net(IMAGES)
    embedded = network.embed_layers(IMAGES, ["backbone", "backbone:l2"])
    torch.testing.assert_close(embedded["backbone"], backbone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedded["backbone:l2"], backbone / backbone.norm(dim=1, keepdim=True))
    assert network.width("backbone") == network.width("backbone:l2") == backbone.shape[1]
    assert ("projector" in network.layer_names()) == (head is not None)
    if head is not None:
        projected = head(backbone)
        embedded = network.embed_layers(IMAGES, ["projector", "projector:l2", "projector.0"])
        torch.testing.assert_close(embedded["projector"], projected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(embedded["projector:l2"].norm(dim=1), torch.ones(2))
        assert network.width("projector") == projected.shape[1]
        assert network.width("projector.0") == embedded["projector.0"].shape[1]
    prepared = prepared_for_inference(network)
    torch.testing.assert_close(prepared.embed(IMAGES, "backbone"), backbone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make, inner, width", [(backbone_alone, "layer3", 64), (dino_backbone, "blocks.0", 192)])
@torch.no_grad()
def test_inner_layers_by_the_networks_own_names(tmp_path, make, inner, width):
    """A stage of a ResNet as its mean over positions, a block of a ViT as its class token; after preparing, too."""
    checkpoint, net, *_ = make()
    torch.save(checkpoint, tmp_path / "public.pth")
    network = prepared_for_inference(load_network(str(tmp_path / "public.pth")), [inner])
    kept = []
    if inner == "layer3":
        net.layer3.register_forward_hook(lambda module, inputs, output: kept.append(output.mean(dim=(2, 3))))
    else:
        net.blocks[1]["norm1"].register_forward_hook(lambda module, inputs, output: kept.append(inputs[0][:, 0]))
    net(IMAGES)
    torch.testing.assert_close(network.embed(IMAGES, inner), kept[0], rtol=1e-4, atol=1e-4)
    assert network.width(inner) == width
    with pytest.raises(InputError, match="layer layer9: this network has backbone"):
        network.width("layer9")


@pytest.mark.parametrize("make, offset", [(dino_backbone, 0.1), (dinov2_registers, 0.0), (mae, 0.0)])
@torch.no_grad()
def test_positions_are_interpolated_as_published(tmp_path, make, offset):
    """96 pixels where the table is for 64: DINO's factor is a little larger than 6 / 4."""
    checkpoint, net, *_ = make()
    torch.save(checkpoint, tmp_path / "public.pth")
    images = torch.randn(1, 3, 96, 96)
    table = net.pos_embed[:, 1:].transpose(1, 2).reshape(1, 192, 4, 4)
    antialias = make is dinov2_registers
    factor = {"scale_factor": ((6 + offset) / 4,) * 2} if offset else {"size": (6, 6)}
    table = F.interpolate(table, **factor, mode="bicubic", antialias=antialias)
    positions = torch.cat([net.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], 1)
    network = load_network(str(tmp_path / "public.pth"))
    torch.testing.assert_close(network.embed(images, "backbone"), net(images, positions), rtol=1e-4, atol=1e-4)


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
        torch.testing.assert_close(network.embed(IMAGES, "logits"), net(IMAGES), rtol=1e-4, atol=1e-4)
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
    with pytest.raises(InputError, match=f"--model_A_pth {path}: .*12 heads.*--arch mocov3 or --arch mae"):
        load_network(path, "--model_A_pth")
    network = load_network(path, arch=wrap)
    torch.testing.assert_close(network.embed(IMAGES, "backbone"), net(IMAGES), rtol=1e-4, atol=1e-4)


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
    "its projector has projector.weight_g": lambda: named("backbone.", resnet()) | junk("projector.a.weight_g"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_files_are_refused_with_what_is_missing(tmp_path, reason):
    path = save(REFUSED[reason](), tmp_path / "public.pth")
    with pytest.raises(InputError, match=f"--model_pth {path}: .*{reason.replace('projector.weight_g', '')}"):
        load_network(path)


def test_torchscript_is_named_and_not_run(tmp_path, recwarn):
    class Identity(torch.nn.Module):
        def forward(self, images):
            return images

    torch.jit.save(torch.jit.trace(Identity(), torch.zeros(1)), str(tmp_path / "x.pth"))
    recwarn.clear()
    with pytest.raises(InputError, match="TorchScript"):
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
    with pytest.raises(InputError, match="torchvision:resnet18: .*fetch https://.*and give torchvision:resnet18@FILE"):
        load_network("torchvision:resnet18")
    net = randomized(torchvision.models.resnet18())
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(net.state_dict(), tmp_path / "checkpoints" / name)
    network = load_network("torchvision:resnet18")
    torch.testing.assert_close(network.embed(IMAGES, "logits"), net(IMAGES), rtol=1e-4, atol=1e-4)
    for model, reason in (("torchvision:resnet1", "no classifier resnet1"), ("torchvision:resnet18@x.pth", "no such")):
        with pytest.raises(InputError, match=reason):
            load_network(model)


@pytest.mark.parametrize("entry, prefix", [("model", ""), ("state_dict", "model."), ("teacher", "module.")])
def test_own_checkpoints_in_others_wrappers(tmp_path, entry, prefix):
    network = SSLNetwork("resnet18", "32-16", "simclr").eval()
    loaded = load_network(save({"epoch": 1, entry: named(prefix, network)}, tmp_path / "own.pth"))
    assert isinstance(loaded, SSLNetwork) and "taken as" not in loaded.notes
    assert torch.equal(loaded.embed(IMAGES, "projector"), network.embed(IMAGES, "projector"))
    with pytest.raises(InputError, match="holds resnet18, not --arch resnet50"):
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
        torch.testing.assert_close(network.embed(images, "backbone"), features[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.embed(images, "logits"), net(images), rtol=1e-4, atol=1e-4)
        assert network.preprocessing.mean == (0.5, 0.5, 0.5) and network.preprocessing.interpolation == "bicubic"
        assert network.width("blocks.11") == 192
    with pytest.raises(InputError, match="timm:vit_nothing_patch16_224: neither torchvision nor timm has it"):
        load_network("timm:vit_nothing_patch16_224")
    monkeypatch.setattr(timm, "create_model", mock.Mock(side_effect=OSError("no route")))
    with pytest.raises(InputError, match="cannot be downloaded .no route.; give timm:vit_tiny_patch16_224@FILE"):
        load_network("timm:vit_tiny_patch16_224")


# Through the scripts: each network is shown images as it was evaluated.


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A folder with DINO's checkpoints for A and B, and a converted SimCLR backbone."""
    folder = tmp_path_factory.mktemp("public")
    for seed, model in enumerate("AB"):
        torch.manual_seed(seed)
        checkpoint, *_ = dino_full()
        for value in checkpoint["teacher"].values():
            value += 0.01 * seed
        save(checkpoint, folder / f"dino_{model}.pth")
    save(simclr_converted()[0], folder / "simclr.pth")
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
    assert "weights under teacher, taken as DINO" in result.stdout and "(bicubic)" in result.stdout
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
