"""Images per second of a training step: ours, without and with its loader, the bare step, and the published structure.

Bare: two forward passes, loss, backward and update of the same network, without probes: the limit. Published structure:
the same, then a second forward pass of view 1 without gradient for the probes, and the projector applied once more. All
at the same precision and memory layout, in turn. With the loader: two views of raw images of 500 x 375 pixels; the
loader alone gives what it can.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --device cuda --arch resnet18 resnet50 resnet101 --mlp 8192-8192-8192 \\
        --resolution 160 --batch_size 128 --num_workers 14
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import alternate, natural_images

import train_SSL
from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton, write_beton
from dejavu_utils.data.beton_loader import Batching, NativeLoader
from dejavu_utils.models import SSLNetwork
from dejavu_utils.runtime.devices import autocast, choose_precision
from dejavu_utils.training import losses
from dejavu_utils.training.meter import Probes
from dejavu_utils.training.optim import make_optimizer
from dejavu_utils.training.settings import Settings

CLASSES = 1000
VIEWS = [augment.FIRST_VIEW, augment.SECOND_VIEW]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", nargs="+", default=["resnet18"])
    parser.add_argument("--mlp", default="512-512-512")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--optimizer", default="lars")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", type=int, default=0, help="1: train_SSL.py's network by torch.compile")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num_workers", type=int, default=2, help="processes of the loader")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = 2 * args.batch_size
        write_beton(Path(folder) / "x.beton", list(natural_images(images)), np.arange(images) % 10)
        for arch in args.arch:
            args.arch = arch
            compare(args, Beton(Path(folder) / "x.beton"))


def compare(args, beton):
    device = torch.device(args.device)
    precision = choose_precision(args.precision, device)
    torch.manual_seed(0)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    shape = (args.batch_size, 3, args.resolution, args.resolution)
    views = [torch.randn(shape, device=device).to(memory_format=layout) for _ in range(2)]
    labels = torch.randint(0, CLASSES, (args.batch_size,), device=device)
    ours = our_step(args, device, precision)
    loader = NativeLoader(beton, Batching(args.batch_size, args.num_workers, device), VIEWS, 0)
    batches = endless(loader, args.resolution)
    sides = {
        "train_SSL.py": lambda: ours(views, labels),
        "with its loader": lambda: ours(*next(batches)),
        "its loader alone": lambda: next(batches),
        "bare step": bare_step(args, device, precision, views),
        "published structure": published_step(args, device, precision, views, labels),
    }
    print(
        f"images/s, VICReg, {args.arch}, projector {args.mlp}, {args.batch_size} images of {args.resolution} px, "
        f"{precision}, {args.optimizer}, {device}"
    )
    peaks = {}
    turns = {name: timed(step, args, device, peaks, name) for name, step in sides.items()}
    for name in ("with its loader", "its loader alone"):
        turns[name] = sustained(turns[name], loader, batches, args)
    alternate(turns, args.rounds)
    for name, peak in peaks.items():
        print(f"  {name:<28} {peak / 1e9:9.2f} GB of the GPU at most more than between its steps")


def endless(loader, resolution):
    for epoch in itertools.count():
        yield from loader.epoch(epoch, resolution)


def sustained(turn, loader, batches, args):
    """The turn without what was read ahead before it; nothing is read in the turns of the others."""

    def run():
        for _ in range(args.num_workers * 2 * 64 // args.batch_size + 2):  # a process has two pieces of 64 rows ready
            next(batches)
        figure = turn()
        loader.close()
        return figure

    return run


def timed(step, args, device, peaks, name):
    def run():
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            at_rest = torch.cuda.memory_allocated()
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
            peaks[name] = torch.cuda.max_memory_allocated() - at_rest
        return args.steps * args.batch_size / (time.perf_counter() - start)

    return run


def our_step(args, device, precision):
    settings = Settings()
    settings.model.arch, settings.model.mlp, settings.training.loss = args.arch, args.mlp, "vicreg"
    settings.training.optimizer, settings.training.precision = args.optimizer, precision
    settings.training.batch_size, settings.training.compile = args.batch_size, args.compile
    state = train_SSL.TrainingRun(settings, CLASSES, device, 1000)
    state.network.train()
    return lambda views, labels: state.step(views, labels, 0.01, 0)


def network_and_optimizer(args, device):
    torch.manual_seed(0)
    network = SSLNetwork(args.arch, args.mlp, "vicreg").to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(args.optimizer, network, 0.9, 1e-6)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    return network, optimizer


def update(network, optimizer, device, precision, views):
    with autocast(device, precision):
        loss = losses.vicreg(network(views[0])[-1], network(views[1])[-1])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def bare_step(args, device, precision, views):
    network, optimizer = network_and_optimizer(args, device)
    return lambda: update(network, optimizer, device, precision, views)


def published_step(args, device, precision, views, labels):
    network, optimizer = network_and_optimizer(args, device)
    probes = Probes(network.layer_widths(), CLASSES).to(device)
    optimizer_probes = torch.optim.AdamW(probes.parameters(), lr=1e-4)

    def step():
        update(network, optimizer, device, precision, views)
        with autocast(device, precision):
            with torch.no_grad():
                outputs = network(views[0])
                network.projector(outputs[0])
            probe_loss = sum(F.cross_entropy(z.float(), labels) for z in probes(outputs))
        optimizer_probes.zero_grad(set_to_none=True)
        probe_loss.backward()
        optimizer_probes.step()

    return step


if __name__ == "__main__":
    main()
