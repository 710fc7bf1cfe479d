"""Label-free scores against their limit, measured in turn: each image decoded once, each view through two models.

The limit does nothing else: no scores, no files, and its views are random pixels; a second limit makes the views, too.
On a CPU with --num_workers 0 the time is that of this process alone, which others on the machine do not change.

    python benchmarks/sslmem.py
    python benchmarks/sslmem.py --device cuda --arch resnet50 --images 2048 --num_workers 16
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import alternate, jpeg, natural_images

from dejavu_utils.data.image_dataset import IndexedImages, collate_readable
from dejavu_utils.data.workers import batches
from dejavu_utils.imagenet import list_images
from dejavu_utils.label_free.measure import ViewDistances, Views, views_of_training
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.runtime.devices import autocast
from dejavu_utils.runtime.resumable import ShardStore

SETS = ("A", "B")
LAYERS = ["backbone", "projector"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="500 x 375 JPEG files")
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=80, help="views")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device)
    networks = {
        model: prepared_for_inference(SSLNetwork(args.arch, "512-512-512", "vicreg").eval(), LAYERS).to(device)
        for model in SETS
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(natural_images(args.images)):
            path = Path(folder) / "images" / f"c{number % 4}" / f"{number:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(image))
        compare(args, networks, list_images(Path(folder) / "images"), device)


def compare(args, networks, listing, device):
    size = max(1, args.batch_size // args.views)
    inference = Inference(device, args.precision, size, args.num_workers)
    embedder = Embedder(networks, dict.fromkeys(SETS, LAYERS), listing, inference)
    views = Views(views_of_training(None), args.views, 0, embedder.kinds)
    images = ImageSet("images", np.arange(len(listing)))
    random = torch.randn(args.views, 3, args.resolution, args.resolution)

    def ours():
        with tempfile.TemporaryDirectory() as unfinished:
            pieces = ShardStore(Path(unfinished), {})
            pieces.start()
            bar = contextlib.nullcontext(argparse.Namespace(update=lambda count: None))
            ViewDistances(embedder, views, pieces).align(images, lambda total: bar)

    def limit(views_of):
        @torch.inference_mode()
        def work():
            dataset = Decoded(listing, images.indices, views_of)
            parts = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
            for batch, *_ in batches(dataset, parts, args.num_workers, device, collate_readable):
                shown = batch[0].flatten(0, 1).to(device, non_blocking=True)
                for network in networks.values():
                    with autocast(device, args.precision):
                        network.embed_layers(shown, LAYERS)

        return work

    sides = {
        "ours": ours,
        "decoding and passes": limit(lambda index, image: (random,)),
        "the same with views": limit(views),
    }
    print(
        f"label-free scores, {args.views} views of {args.resolution} px, two {args.arch}, {device}, {args.precision}: "
        "images/s"
    )
    alternate({name: rate(side, args, device) for name, side in sides.items()}, args.rounds)


class Decoded:
    """(views, label) of each image: `views_of` its index and the decoded image."""

    def __init__(self, listing, indices, views_of):
        self.listing, self.indices, self.views_of = listing, indices, views_of

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = int(self.indices[position])
        return IndexedImages(self.listing, [index], lambda image: self.views_of(index, image))[0]


def rate(work, args, device):
    clock = time.perf_counter if args.num_workers or device.type != "cpu" else time.process_time

    def timed():
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return args.images / (clock() - start)

    return timed


if __name__ == "__main__":
    main()
