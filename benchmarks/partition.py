"""Seconds and memory of a partition at ImageNet's size: imagenet_partition.py against the bare listing of its files.

Makes a folder of empty files: 1000 classes of 1280 images, 544 of them with an XML. "Bare listing" is torchvision's
ImageFolder and one os.scandir of every XML folder: what any program that reads these folders must spend.

    python benchmarks/partition.py
    python benchmarks/partition.py --classes 200
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, alternate

BARE = """
import os, sys
from torchvision.datasets import ImageFolder
ImageFolder(sys.argv[1])
for folder in os.scandir(sys.argv[2] + "/Annotation"):
    [entry.name for entry in os.scandir(folder)]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1280, help="a class")
    parser.add_argument("--boxed", type=int, default=544, help="a class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files are made (several million inodes); default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        make_files(folder, args)
        arguments = ["--imgnet_dir", folder / "images", "--bbox_dir", folder / "boxes", "--save_dir", folder / "index"]
        ours = [sys.executable, ROOT / "imagenet_partition.py", *arguments]
        bare = [sys.executable, "-c", BARE, folder / "images", folder / "boxes"]
        print(f"{args.classes * args.images} images, {args.classes * args.boxed} XML: images/s")
        count = args.classes * args.images
        alternate(
            {
                "imagenet_partition.py": lambda: count / timed("imagenet_partition.py", ours),
                "bare listing": lambda: count / timed("bare listing", bare),
            },
            args.rounds,
            warm_up=0,
        )


def make_files(folder, args):
    for label in range(args.classes):
        images, boxes = folder / "images" / f"n{label:08d}", folder / "boxes" / "Annotation" / f"n{label:08d}"
        images.mkdir(parents=True)
        boxes.mkdir(parents=True)
        for rank in range(args.images):
            os.close(os.open(images / f"n{label:08d}_{rank}.JPEG", os.O_CREAT))
            if rank % args.images < args.boxed:
                os.close(os.open(boxes / f"n{label:08d}_{rank}.xml", os.O_CREAT))


def timed(name, command):
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed")
    seconds = time.perf_counter() - start
    print(f"  {name}: {seconds:.1f} s, {usage.ru_maxrss / 1e6:.2f} GB", flush=True)
    return seconds


if __name__ == "__main__":
    main()
