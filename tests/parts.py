"""Parts of the stages on any device: test_gpu.py runs them on a GPU, test_fake_cuda.py on tensors without data."""

from types import SimpleNamespace
from unittest import mock

import torch

import train_SSL
from dejavu_utils.data import augment
from dejavu_utils.label_free.measure import ViewDistances
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.embedder import Embedder, Inference
from dejavu_utils.randomness import uniforms
from dejavu_utils.reconstruction import diffusion, unets
from dejavu_utils.reconstruction.training import MODEL_FLAGS
from dejavu_utils.training.methods import METHODS
from dejavu_utils.training.settings import Settings

CLASSES, IMAGES = 5, 16
DIFFUSION = {name: default for name, (default, *_) in MODEL_FLAGS.items()} | {"diffusion_steps": 100}


def training_settings(loss, **changes):
    values = {"model.arch": "resnet18", "model.mlp": "64-32", "training.loss": loss, "training.batch_size": IMAGES}
    values |= {"training.precision": "fp32", "training.optimizer": "lars", **changes}
    if METHODS[loss].small_views:
        values["training.num_small_crops"] = 2
    return Settings.from_flat(values)


def training_run(settings, device):
    """(TrainingRun, views, labels)"""
    torch.manual_seed(0)
    state = train_SSL.TrainingRun(settings, CLASSES, device, 100)
    state.network.train()
    sides = [48 if view.side else 64 for view in METHODS[settings.training.loss].views(settings)]
    views = [torch.randn(IMAGES, 3, side, side).to(device) for side in sides]
    return state, views, torch.randint(0, CLASSES, (IMAGES,)).to(device)


# Each part: device -> a function to be called again and again, which returns tensors by name.


def augmentation(view):
    parameters = augment.draw_parameters(uniforms(0, 0, 0, 0, IMAGES), view)
    operations = parameters.operations()  # of what lies on the CPU, whose data must be real

    def part(device):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (IMAGES, 3, 40, 40), dtype=torch.uint8).to(device)

        def run():
            with mock.patch.object(augment.Parameters, "operations", lambda _: operations):
                return {"views": augment.apply(images, parameters)}

        return run

    return part


def embedder_of_two(device):
    torch.manual_seed(0)
    networks = {model: SSLNetwork("resnet18", "64-32", "vicreg").eval().to(device) for model in "AB"}
    layers = dict.fromkeys("AB", ["backbone", "projector"])
    return Embedder(networks, layers, None, Inference(device))


def embedding(device):
    embedder = embedder_of_two(device)
    images = [torch.randn(6, 3, 64, 64).pin_memory() if device.type == "cuda" else torch.randn(6, 3, 64, 64)]

    def run():
        with torch.inference_mode():
            return embedder.outputs(images * len(embedder.kinds))

    return run


def label_free_views(device):
    embedder = embedder_of_two(device)
    distances = ViewDistances(embedder, SimpleNamespace(count=3), None)
    views = torch.randn(2, 3, 3, 64, 64)
    views = views.pin_memory() if device.type == "cuda" else views

    def run():
        found = {}
        for key, (of_images, activations) in distances.on_device([views] * len(embedder.kinds)).items():
            found[key, "distances"], found[key, "activations"] = of_images, activations
        return found

    return run


def diffusion_step(respacing, **changes):
    whole, spaced = diffusion.Diffusion({**DIFFUSION, **changes}), diffusion.Diffusion(DIFFUSION | changes, respacing)

    def unet(x, steps, feat):
        parts = [x.sin(), x.cos()] if changes else [x.sin()]
        return torch.cat(parts, 1) + steps.view(-1, 1, 1, 1) / 100

    def part(device):
        torch.manual_seed(0)
        start, noise = (torch.randn(4, 3, 16, 16).to(device) for _ in range(2))
        t, condition = torch.arange(0, 80, 20).to(device), torch.zeros(4, 8).to(device)
        whole._on(device), spaced._on(device)

        def run():
            loss = whole.losses(unet, start, t, noise, condition)["loss"]
            return {"loss": loss, "samples": spaced.sample(unet, condition, 16, range(4))}

        return run

    return part


def unet(device):
    torch.manual_seed(0)
    tiny = {"image_size": 32, "channel_mult": "1,2", "num_channels": 32, "attention_resolutions": "16"}
    network = unets.build_unet("diffusers", DIFFUSION | tiny, 16).to(device)
    x, steps = torch.randn(2, 3, 32, 32).to(device), torch.zeros(2, dtype=torch.int64).to(device)
    condition = torch.randn(2, 16).to(device)
    return lambda: {"noise": network(x, steps, feat=condition)}


LEARNED = {"learn_sigma": True}
PARTS = {
    "first view": augmentation(augment.FIRST_VIEW),
    "second view": augmentation(augment.SECOND_VIEW),
    "embedding of the attack": embedding,
    "views of label-free scores": label_free_views,
    "diffusion": diffusion_step("10"),
    "diffusion, learned variance": diffusion_step("10", **LEARNED),
    "diffusion, bound alone, DDIM": diffusion_step("ddim10", **LEARNED, use_kl=True),
    "U-Net": unet,
}
