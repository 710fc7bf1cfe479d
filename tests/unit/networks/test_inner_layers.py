"""Inner layers of other projects' networks: pooled as the network itself does it, or refused in one line."""

from unittest import mock

import pytest
import timm
import torch
from helpers import refused
from torch import nn

from dejavu_utils.checkpoint import save_checkpoint, with_prefix
from dejavu_utils.models import Network, SSLNetwork, pooled, timm_network
from dejavu_utils.networks.inference import check_layers
from dejavu_utils.networks.loading import load_network
from dejavu_utils.training.settings import Settings

# name in timm, inner layer, its number among timm's intermediates, options
MEANS = (
    ("xcit_nano_12_p16_224", "blocks.1", 1, {"depth": 2}),
    ("cait_xxs24_224", "blocks.1", 1, {"depth": 2}),
    ("convit_tiny", "blocks.1", 1, {"depth": 4, "local_up_to_layer": 3}),
    ("mambaout_femto", "stages.1", 1, {}),
    ("swin_tiny_patch4_window7_224", "layers.1", 1, {"depths": (1, 1, 1, 1)}),
    ("convnext_atto", "stages.2", 2, {}),
    ("resnet18", "layer2", 2, {}),
    ("beit_base_patch16_224", "blocks.1", 1, {"depth": 2, "embed_dim": 48, "num_heads": 2}),
    ("vit_medium_patch16_reg4_gap_256", "blocks.1", 1, {"depth": 2, "embed_dim": 48, "num_heads": 2}),
)
CLASS_TOKENS = (
    ("vit_tiny_patch16_224", "blocks.1", {"depth": 2}),
    ("vit_small_patch14_reg4_dinov2", "blocks.1", {"depth": 2, "embed_dim": 48, "num_heads": 2, "img_size": 56}),
    ("deit_tiny_distilled_patch16_224", "blocks.1", {"depth": 2}),
    ("convit_tiny", "blocks.3", {"depth": 4, "local_up_to_layer": 3}),  # the class token enters there
)


def network_around(name, options):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **options).eval()
    network = Network(net, net.num_features, nn.Sequential()).eval()
    return network, torch.randn(2, 3, *[options.get("img_size", net.pretrained_cfg["input_size"][-1])] * 2)


@pytest.mark.parametrize("name, layer, number, options", MEANS)
@torch.no_grad()
def test_a_layer_without_class_token_is_its_mean(name, layer, number, options):
    network, images = network_around(name, options)
    if not hasattr(network.net, "forward_intermediates"):
        pytest.skip(f"timm {timm.__version__} does not say what {name} gives at its layers")
    (maps,) = network.net.forward_intermediates(images, indices=[number], intermediates_only=True, output_fmt="NCHW")
    torch.testing.assert_close(network.embed(images, layer), maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, layer, options", CLASS_TOKENS)
@torch.no_grad()
def test_a_layer_with_a_class_token_is_that_token(name, layer, options):
    network, images = network_around(name, options)
    outputs = []
    network.net.get_submodule(layer).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    embedded = network.embed(images, layer)
    torch.testing.assert_close(embedded, outputs[0][:, 0])


@pytest.mark.parametrize("name, layer", [("mvitv2_tiny", "stages.1"), ("twins_svt_small", "blocks.1")])
def test_layers_without_one_output_per_image_are_refused(name, layer):
    network, _ = network_around(name, {})
    network.source = "--model_A_pth x.pth"
    with refused(f"--model_A_pth x.pth: layer {layer}: .*name another layer"):
        check_layers(network, [layer])


def test_square_maps_are_read_as_the_network_says():
    maps, net = torch.randn(1, 4, 4, 4), nn.Identity()
    torch.testing.assert_close(pooled(maps, net, "x"), maps.mean(dim=(2, 3)))
    net.output_fmt = "NHWC"
    torch.testing.assert_close(pooled(maps, net, "x"), maps.mean(dim=(1, 2)))


def test_a_size_that_the_network_does_not_take_is_named(tmp_path):
    net = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    torch.save(net.state_dict(), tmp_path / "swin.pth")
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    network = load_network(f"timm:vit_tiny_patch16_224@{tmp_path}/vit.pth", resolution=64)
    assert network.preprocessing.side == 64 and "centre 64" in network.notes
    check_layers(network, ["backbone", "blocks.3"])
    network.preprocessing = network.preprocessing.at(65)
    with refused("--model_pth .*: takes no images of 65 pixels .*; give --resolution"):
        check_layers(network, ["backbone"])


@torch.no_grad()
def test_files_of_ijepa_are_recognized(tmp_path):
    """The encoder whose weights are averaged is the one that is evaluated: the mean of its patches."""
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="avg", fc_norm=False)
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    checkpoint = {"encoder": {k: v + 1 for k, v in state.items()}, "predictor": {"module.x": torch.zeros(1)}}
    torch.save({**checkpoint, "target_encoder": state, "epoch": 300}, tmp_path / "jepa.pth.tar")
    network = load_network(tmp_path / "jepa.pth.tar")
    assert "I-JEPA" in network.notes and network.preprocessing.side == 224
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(network.embed(images, "backbone"), net.eval()(images), rtol=1e-4, atol=1e-5)
    check_layers(network, ["backbone", "blocks.3"])


@torch.no_grad()
def test_files_of_dinov3_name_the_network_and_load_with_it(tmp_path):
    net = timm.create_model("vit_small_patch16_dinov3", num_classes=0).eval()
    state = {}
    for name, value in net.state_dict().items():
        for timms, metas in (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
            name = name.replace(timms, metas)
        state[name] = value
    state["rope_embed.periods"] = torch.zeros(16)
    torch.save(state, tmp_path / "dinov3.pth")
    with refused("holds DINOv3.*give --arch timm:vit_small_patch16_dinov3"):
        load_network(tmp_path / "dinov3.pth")
    network = load_network(tmp_path / "dinov3.pth", arch="timm:vit_small_patch16_dinov3", resolution=64)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network.embed(images, "backbone"), net(images), rtol=1e-4, atol=1e-5)


def test_files_with_names_of_another_project_are_described(tmp_path, monkeypatch):
    torch.save({"embeddings.cls_token": torch.zeros(1), "layernorm.weight": torch.zeros(1)}, tmp_path / "hf.pth")
    with refused("Hugging Face's transformers.*not those of timm:vit_tiny_patch16_224"):
        load_network(f"timm:vit_tiny_patch16_224@{tmp_path}/hf.pth")
    monkeypatch.setattr(timm, "create_model", mock.Mock(side_effect=OSError("no route")))
    with refused("--model_pth timm:hf-hub:x/y@.*: timm cannot build hf-hub:x/y"):
        load_network(f"timm:hf-hub:x/y@{tmp_path}/hf.pth")


@pytest.mark.parametrize(
    "trained, shown", [(32, 32), (64, 64), (160, 160), (192, 224), (224, 224), (288, 288), (None, 224)]
)
def test_the_shown_size_follows_the_training(tmp_path, trained, shown):
    """224, the published size, for the published models, which were trained at 192; small models their own size."""
    torch.manual_seed(0)
    network = SSLNetwork("resnet18", "8-8", "simclr")
    checkpoint = {"epoch": 1, "model": with_prefix(network.state_dict()), "num_classes": 2}
    if trained:
        settings = Settings()
        settings.model.arch, settings.model.mlp, settings.resolution.max_res = "resnet18", "8-8", trained
        checkpoint["settings"] = settings.to_flat()
    save_checkpoint(tmp_path / "model.pth", checkpoint)
    loaded = load_network(tmp_path / "model.pth", "--model_A_pth")
    assert loaded.preprocessing.side == shown and f"centre {shown}" in loaded.notes


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "dla34", "volo_d1_224"])
def test_heads_that_are_no_linear_give_way_to_the_features(tmp_path, name):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "x.pth")
    network = load_network(f"timm:{name}@{tmp_path}/x.pth")
    check_layers(network, ["backbone"])
    assert network.loss is None and "logits" not in network.layer_names()


def test_transformers_of_one_size_are_built():
    assert timm_network("vit_relpos_small_patch16_224", "--arch", depth=1, num_classes=0).num_features == 384
