"""Images per second of the training batches, two views of each image of a .beton: the native loader, FFCV-SSL's, and
the limit of both: as many processes that only decode, cut and resize the same crops with OpenCV.

python benchmarks/loader.py
python benchmarks/loader.py --parts raw jpg raw-crops jpg-crops --images 2000 --num_workers 10 --device cuda
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import alternate, natural_images

from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton, Encoding, write_beton
from dejavu_utils.data.beton_loader import Batching, NativeLoader
from dejavu_utils.data.ffcv import FfcvLoader, ffcv_is_installed
from dejavu_utils.randomness import uniforms

WHOLE = [augment.FIRST_VIEW, augment.SECOND_VIEW]
CROPS = [augment.View(jitter=0, grayscale=0)] * 2
PARTS = {"raw": WHOLE, "jpg": WHOLE, "raw-crops": CROPS, "jpg-crops": CROPS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=["raw", "jpg"],
        help="encoding of the images; -crops: no augmentation but crops and flips; FFCV-SSL compiles 40 s for each",
    )
    parser.add_argument("--images", type=int, default=1000, help="images of 500 x 375 pixels in the .beton")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=176)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2, help="in a turn of each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = list(natural_images(args.images))
        for part in args.parts:
            path = Path(folder) / f"{part}.beton"
            encoding = Encoding(part.removesuffix("-crops"))
            write_beton(path, images, np.arange(args.images) % 10, encoding, num_workers=args.num_workers)
            compare(args, path, part)


def compare(args, path, part):
    views = PARTS[part]
    print(f"{part}: images/s, two views of {args.resolution} px, {args.num_workers} workers, {args.device}")
    sides = {"native": loader_side(NativeLoader, args, path, views), "FFCV-SSL": None}
    if ffcv_is_installed():
        sides["FFCV-SSL"] = loader_side(FfcvLoader, args, path, views)
    sides["OpenCV alone"] = lambda: opencv_rate(args, path, views)
    alternate(sides, args.rounds)


def loader_side(kind, args, path, views):
    """A function that goes through some epochs and returns images per second; says how long the first batch took."""
    batching = Batching(args.batch_size, args.num_workers, torch.device(args.device))
    loader = kind(Beton(path), batching, views, 0)
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


def opencv_rate(args, path, views):
    """Images per second of processes that keep nothing of what they read; their start does not count."""
    cv2.setNumThreads(1)  # before the processes are forked: in them, it would wait for threads that they do not have
    processes = max(1, args.num_workers)
    barrier = multiprocessing.Barrier(processes + 1)
    shares = [range(number, args.images, processes) for number in range(processes)]
    readers = [
        multiprocessing.Process(
            target=read_with_opencv, args=(barrier, path, share, views, args.resolution, args.epochs)
        )
        for share in shares
    ]
    for reader in readers:
        reader.start()
    barrier.wait()
    start = time.perf_counter()
    for reader in readers:
        reader.join()
    return args.epochs * args.images / (time.perf_counter() - start)


def read_with_opencv(barrier, path, indices, views, resolution, epochs):
    beton = Beton(path)
    barrier.wait()
    for epoch in range(epochs):
        boxes = [
            augment.crop_boxes(uniforms(0, epoch, number, 0, len(beton)), beton.sizes, view)
            for number, view in enumerate(views)
        ]
        for index in indices:
            image = beton.read(index)  # of jpg: OpenCV's decoder
            for of_view in boxes:
                xmin, ymin, xmax, ymax = of_view[index]
                cut = image[ymin:ymax, xmin:xmax]
                cv2.resize(cut, (resolution, resolution), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
