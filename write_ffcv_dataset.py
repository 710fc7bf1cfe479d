"""Writes the images of one index file as a .beton, FFCV's format, for train_SSL.py.

Reads an image folder (CLASS/ID.JPEG) and an .npy of image indices from imagenet_partition.py; writes one
.beton, and beside it FILE.beton.images.npz, which says which images it holds.

    python write_ffcv_dataset.py --imgnet-path $IMAGENET_DATASET_DIR \\
        --idx-path $INDEX_FOLDER/300_per_class/train_A.npy --write-path $BETONS_FOLDER/300_per_class_A.beton
    python write_ffcv_dataset.py --imgnet-path demo/seed0/data/images --idx-path demo/seed0/index/val_set.npy \\
        --write-path /tmp/val.beton --write-mode jpg --num-workers 2
"""

from pathlib import Path

import numpy as np

from dejavu_utils.cli import Parser, expanded, positive_int, run
from dejavu_utils.data.beton import MODES, write_beton
from dejavu_utils.data.provenance import save_training_images
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file
from dejavu_utils.imagenet import list_images, load_image, load_indices
from dejavu_utils.progress import Progress


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--imgnet-path", type=expanded, required=True, help="image folder, CLASS/ID.JPEG")
    parser.add_argument("--idx-path", type=expanded, required=True, help=".npy of the indices to write")
    parser.add_argument("--write-path", type=expanded, required=True, help="the .beton to write")
    parser.add_argument(
        "--write-mode", choices=MODES, default="raw", help="raw pixels, jpg, or smart: see --smart-threshold"
    )
    parser.add_argument(
        "--smart-threshold",
        type=positive_int,
        help="smart: raw pixels up to so many bytes, jpg above; raw if not given",
    )
    parser.add_argument("--max-resolution", type=positive_int, default=512, help="longest side of an image, pixels")
    parser.add_argument("--jpeg-quality", type=positive_int, default=90, help="1 to 100")
    parser.add_argument("--num-workers", type=positive_int, default=8, help="threads that read and encode")
    parser.add_argument(
        "--skip-unreadable",
        "--skip_unreadable",
        action="store_true",
        help="leave out images that cannot be read and list them in WRITE_PATH.skipped.txt; else one is an error",
    )
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if args.jpeg_quality > 100:
        raise InputError(f"--jpeg-quality {args.jpeg_quality}: must be between 1 and 100")
    listing = list_images(args.imgnet_path, "--imgnet-path")
    indices = load_indices(args.idx_path, "--idx-path", listing)
    if not len(indices):
        raise InputError(f"--idx-path {args.idx_path}: holds no index")
    with Progress(len(indices), "images written") as progress:
        skipped = write_beton(
            args.write_path,
            Images(listing, indices),
            listing.labels[indices],
            mode=args.write_mode,
            smart_threshold=args.smart_threshold,
            max_resolution=args.max_resolution,
            jpeg_quality=args.jpeg_quality,
            num_workers=args.num_workers,
            skip_unreadable=args.skip_unreadable,
            on_progress=progress.update,
        )
    save_training_images(args.write_path, np.delete(indices, list(skipped)), listing)  # a reader compares the labels
    side_file = Path(f"{args.write_path}.skipped.txt")
    if skipped:
        with complete_file(side_file) as temporary:
            temporary.write_text(
                "".join(f"{indices[p]}\t{' '.join(reason.split())}\n" for p, reason in skipped.items()),
                encoding="utf-8",
                errors="surrogateescape",
            )
        print(f"{len(skipped)} images cannot be read and are left out; they are listed in {side_file}")
    else:
        side_file.unlink(missing_ok=True)  # of an earlier writing
    print(args.write_path)


class Images:
    """The images at `indices` as a sequence of uint8 H x W x 3 RGB arrays, decoded when they are asked for."""

    def __init__(self, listing, indices):
        self.listing, self.indices = listing, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        return np.asarray(load_image(self.listing.path(self.indices[position])))


if __name__ == "__main__":
    run(main)
