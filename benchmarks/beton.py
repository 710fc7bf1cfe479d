"""Images per second of writing a .beton from JPEG files: this project against FFCV's own writer, same workers.

python benchmarks/beton.py
"""

import argparse
import importlib.util
import io
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from harness import alternate, jpeg, natural_images

from dejavu_utils.data.beton import Encoding, write_beton
from dejavu_utils.imagenet import list_images, load_image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="JPEG files; a fifth larger than 512 pixels")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images" / "one").mkdir(parents=True)
        large = args.images // 5
        for sides, count in (((500, 375), args.images - large), ((800, 600), large)):
            for number, image in enumerate(natural_images(count, *sides)):
                (Path(folder) / "images" / "one" / f"{sides[0]}_{number}.JPEG").write_bytes(jpeg(image, 95))
        listing = list_images(Path(folder) / "images")
        images = Images(listing)
        for mode in ("raw", "jpg"):
            print(f"{mode}: images/s written from JPEG files, {args.num_workers} workers")
            path = Path(folder) / f"{mode}.beton"
            sides = {"write_beton": lambda: ours(path, images, mode, args), "FFCV": None}  # noqa: B023
            if importlib.util.find_spec("ffcv"):
                sides["FFCV"] = lambda: theirs(path, images, mode, args)  # noqa: B023
            alternate(sides, args.rounds)


class Images:
    """Item i: the decoded image; with `pairs` (image, label), as FFCV's writer wants it."""

    def __init__(self, listing, pairs=False):
        self.listing, self.pairs = listing, pairs

    def __len__(self):
        return len(self.listing)

    def __getitem__(self, index):
        image = np.asarray(load_image(self.listing.path(index)))
        return (image, 0) if self.pairs else image


def ours(path, images, mode, args):
    start = time.perf_counter()
    write_beton(path, images, np.zeros(len(images)), Encoding(mode, max_resolution=512), num_workers=args.num_workers)
    return len(images) / (time.perf_counter() - start)


def theirs(path, images, mode, args):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=mode, max_resolution=512, jpeg_quality=90), "label": IntField()}
    start = time.perf_counter()
    with redirect_stderr(io.StringIO()):  # its progress bar
        writer = DatasetWriter(str(path), fields, num_workers=args.num_workers)
        writer.from_indexed_dataset(Images(images.listing, pairs=True))
    return len(images) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
