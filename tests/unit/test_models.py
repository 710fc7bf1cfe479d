"""Networks carry the published names and shapes, and a checkpoint rebuilds its own network."""

from pathlib import Path

import pytest
import torch
from helpers import read_json, refused

from dejavu_utils.attack.preconditions import check_alike
from dejavu_utils.checkpoint import save_checkpoint, with_prefix
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.networks.loading import ModelFile, load_network
from dejavu_utils.training.meter import Probes
from dejavu_utils.training.settings import check_arch

SHAPES = read_json(Path(__file__).parents[1] / "data/state_dict_shapes.json")


@pytest.mark.parametrize("key", SHAPES)
def test_names_and_shapes_are_the_published_ones(key):
    with torch.device("meta"):
        network = SSLNetwork(*key.split("|"))
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == SHAPES[key]


@pytest.mark.parametrize(
    "arch, batch_norms_left", [("resnet18", 0), ("vgg11_bn", 0), ("densenet121", 62), ("vit_tiny_patch16_224", 0)]
)
def test_a_prepared_network_computes_the_same(arch, batch_norms_left):
    """Where a normalization comes before its convolution, as in DenseNet, it stays."""
    torch.manual_seed(0)
    network = SSLNetwork(arch, "32-16", "supervised", 7)
    side = 224 if arch.startswith("vit") else 64
    with torch.no_grad():
        network(torch.randn(4, 3, side, side))  # gives the normalizations statistics of their own
    images, layers = torch.randn(2, 3, side, side), ("backbone", "projector", "logits")
    network.eval()
    with torch.inference_mode():
        expected = [network.embed(images, layer) for layer in layers]
    prepared = prepared_for_inference(network)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in prepared.modules()) == batch_norms_left
    with torch.inference_mode():
        for layer, value in zip(layers, expected):
            torch.testing.assert_close(
                prepared.embed(images, layer), value, rtol=1e-3, atol=1e-4 * value.abs().max().item()
            )


def test_probes_have_the_published_names():
    names = set(with_prefix(Probes([512, 64], 5).state_dict()))
    assert names == {f"module.probes.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}


@pytest.mark.parametrize("loss, classes", [("vicreg", None), ("barlow", None), ("byol", None), ("supervised", 7)])
@pytest.mark.parametrize("bare", [False, True])
def test_published_checkpoints_are_rebuilt_from_shapes(tmp_path, loss, classes, bare):
    network = SSLNetwork("resnet18", "64-48-32", loss, classes).eval()
    state = with_prefix(network.state_dict())
    save_checkpoint(tmp_path / "model.pth", state if bare else {"epoch": 3, "model": state})
    loaded = load_network(tmp_path / "model.pth")
    assert (loaded.arch, loaded.mlp, loaded.num_classes) == ("resnet18", "64-48-32", classes)
    assert not loaded.training
    images = torch.randn(2, 3, 32, 32)
    for layer in ("backbone", "projector") + (("logits",) if classes else ()):
        embedded = loaded.embed(images, layer)
        assert torch.equal(embedded, network.embed(images, layer))
        assert embedded.shape == (2, loaded.width(layer))


def test_networks_of_several_losses_are_taken_as_any_of_them(tmp_path):
    """BYOL and MoCo v3 train the same network: its names and shapes do not tell which it was."""
    for loss, others in (("mocov3", ("byol", "mocov3")), ("simclr", ("vicreg", "simclr", "dino"))):
        network = SSLNetwork("resnet18", "32-16", loss).eval()
        save_checkpoint(tmp_path / f"{loss}.pth", {"model": with_prefix(network.state_dict())})
        bare = load_network(tmp_path / f"{loss}.pth")
        assert bare.losses() == others and network.losses() == (loss,)
        for typed in others:
            ModelFile("--model_pth", "x.pth", loss=typed).check(bare)
        with refused(f"--loss barlow: .*{loss}.pth holds {' or '.join(others)};"):
            ModelFile("--model_pth", "x.pth", loss="barlow").check(bare)
        check_alike({"A": network, "B": bare})
        third = SSLNetwork("resnet18", "32-16", "barlow").eval()
        bare.source, third.source = "--a a.pth", "--b b.pth"
        with refused("--b b.pth: its training is barlow, that of --a is "):
            check_alike({"A": bare, "B": third})


@pytest.mark.parametrize(
    "options", [{"mlp_coeff": 2.0}, {"fc": True}, {"proj_relu": True}, {"remove_head": True}, {"arch": "vgg11"}]
)
def test_layer_widths_are_those_of_the_outputs(options):
    network = SSLNetwork(options.pop("arch", "resnet18"), "64-48-32", "vicreg", **options).eval()
    outputs = network(torch.randn(2, 3, 32, 32))
    assert [output.shape[1] for output in outputs] == network.layer_widths()
    assert outputs[-1].shape[1] == network.width("projector")
    if options.get("proj_relu"):
        assert outputs[-1].min() >= 0


def test_probes_send_no_gradient_to_the_network():
    output = torch.randn(4, 8, requires_grad=True)
    Probes([8], 3)([output])[0].sum().backward()
    assert output.grad is None


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "efficientnet_b0", "densenet121", "vgg11_bn"])
def test_other_backbones_of_torchvision_by_name(arch):
    check_arch(arch, [64, 96])
    network = SSLNetwork(arch, "16-8", "simclr").eval()
    outputs = network(torch.randn(2, 3, 64, 64))
    assert [output.shape[1] for output in outputs] == network.layer_widths()


def test_backbones_of_timm_take_growing_images():
    check_arch("vit_tiny_patch16_224", [160, 192, 224])
    network = SSLNetwork("vit_tiny_patch16_224", "16-8", "simclr").eval()
    for side in (64, 96):
        assert [output.shape[1] for output in network(torch.randn(1, 3, side, side))] == [192, 16, 8]
