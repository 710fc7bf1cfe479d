"""Images per second of the training batches: the native loader against FFCV-SSL's, two views from one .beton.

python benchmarks/loader.py
python benchmarks/loader.py --images 2000 --num_workers 10 --device cuda
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import alternate, natural_images

from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton, Encoding, write_beton
from dejavu_utils.data.beton_loader import NativeLoader
from dejavu_utils.data.ffcv import FfcvLoader, ffcv_is_installed

CROP_ONLY = augment.View(jitter=0, grayscale=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images of 500 x 375 pixels in the .beton")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=176)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4, help="in a turn of each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = list(natural_images(args.images))
        for mode in ("raw", "jpg"):
            path = Path(folder) / f"{mode}.beton"
            write_beton(path, images, np.arange(args.images) % 10, Encoding(mode), num_workers=args.num_workers)
        for mode in ("raw", "jpg"):
            for what, views in (
                ("whole pipeline", [augment.FIRST_VIEW, augment.SECOND_VIEW]),
                ("crops, flips, normalization", [CROP_ONLY, CROP_ONLY]),
            ):
                compare(args, Path(folder) / f"{mode}.beton", mode, what, views)


def compare(args, path, mode, what, views):
    print(f"{mode}, {what}: images/s, two views of {args.resolution} px, {args.num_workers} workers, {args.device}")
    sides = {"native": side(NativeLoader, args, path, views), "FFCV-SSL": None}
    if ffcv_is_installed():
        sides["FFCV-SSL"] = side(FfcvLoader, args, path, views)
    alternate(sides, args.rounds)


def side(kind, args, path, views):
    """A function that goes through some epochs and returns images per second; says how long the first batch took."""
    loader = kind(Beton(path), args.batch_size, views, 0, args.num_workers, torch.device(args.device))
    epochs = iter(range(10**6))

    def run():
        start, count = time.perf_counter(), 0
        for _ in range(args.epochs):
            epoch = next(epochs)
            for _, labels in loader.epoch(epoch, args.resolution):
                if epoch == 0 and not count:
                    print(f"  {kind.__name__}: first batch after {time.perf_counter() - start:.2f} s")
                count += len(labels)
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if kind is NativeLoader:
            loader.close()  # no batch of an epoch is read in the other side's turn
        return count / seconds

    return run


if __name__ == "__main__":
    main()
