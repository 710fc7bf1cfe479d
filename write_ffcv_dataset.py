"""Writes the images of one index file as a .beton, FFCV's format, for train_SSL.py.

Reads an image folder (CLASS/ID.JPEG) and an .npy of image indices from imagenet_partition.py; writes one
.beton, and beside it FILE.beton.images.npz, which says which images it holds. With --bbox-path, the folder of box XML,
each image's background crop is written in its place, the crop of label_inference_attack.py: for the classifier that
predicts an object from its background, the reference of the test of one model (docs/one_model.md).

    python write_ffcv_dataset.py --imgnet-path $IMAGENET_DATASET_DIR \\
        --idx-path $INDEX_FOLDER/300_per_class/train_A.npy --write-path $BETONS_FOLDER/300_per_class_A.beton
    python write_ffcv_dataset.py --imgnet-path $IMAGENET_DATASET_DIR --bbox-path $IMAGENET_BBOX_ANNOTATIONS \\
        --idx-path $INDEX_FOLDER/300_per_class/bbox_A.npy --write-path $BETONS_FOLDER/300_per_class_A_crops.beton
    python write_ffcv_dataset.py --imgnet-path demo/seed0/data/images --idx-path demo/seed0/index/val_set.npy \\
        --write-path /tmp/val.beton --write-mode jpg --num-workers 2
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dejavu_utils.cli import Parser, add_crop_flags, add_flags, add_paths, expanded, positive_int, run
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import frame_warnings, in_words, take_crops
from dejavu_utils.data.beton import MODES, Encoding, write_beton
from dejavu_utils.data.index_files import listing_of, load_indices, read_indices
from dejavu_utils.data.provenance import Provenance, read_training_images, save_training_images
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, digest
from dejavu_utils.imagenet import ImageListing, list_images, load_image
from dejavu_utils.log import Progress


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    paths = {
        "--imgnet-path": "image folder, CLASS/ID.JPEG",
        "--idx-path": ".npy of the indices to write",
        "--write-path": "the .beton to write",
    }
    add_paths(parser, paths)
    encoding = {
        "--write-mode": ("raw", MODES, "raw pixels, jpg, or smart: see --smart-threshold"),
        "--smart-threshold": (None, positive_int, "smart: raw pixels up to so many bytes, jpg above; raw if not given"),
        "--max-resolution": (512, positive_int, "longest side of an image, pixels"),
        "--jpeg-quality": (90, positive_int, "1 to 100"),
        "--num-workers": (8, positive_int, "threads that read and encode"),
    }
    add_flags(parser, encoding)
    parser.add_argument(
        "--skip-unreadable",
        "--skip_unreadable",
        action="store_true",
        help="leave out images that cannot be read and list them in WRITE_PATH.skipped.txt; else one is an error",
    )
    parser.add_argument(
        "--keep-finished",
        "--keep_finished",
        action="store_true",
        help="leave a finished file as it is, if it is of these images; else that is an error",
    )
    group = parser.add_argument_group("background crops in place of the images")
    group.add_argument(
        "--bbox-path",
        "--bbox_path",
        type=expanded,
        help="folder of CLASS/ID.xml, or one above it: writes each image's crop; images without one are left out",
    )
    add_crop_flags(group)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    if args.jpeg_quality > 100:
        raise InputError(f"--jpeg-quality {args.jpeg_quality}: must be between 1 and 100")
    if args.keep_finished and Path(args.write_path).is_file():
        check_finished(args)
        print(f"{args.write_path}: there already")
        return
    listing = list_images(args.imgnet_path, "--imgnet-path")
    indices = load_indices(args.idx_path, "--idx-path", listing, may_be_empty=False)
    crops, cut = None, ""
    if args.bbox_path:
        indices, crops, cut = background_crops(args, listing, indices)
    with Progress(len(indices), "images written") as progress:
        skipped, contents = write_beton(
            args.write_path,
            Images(listing, indices, crops),
            listing.labels[indices],
            Encoding(args.write_mode, args.smart_threshold, args.max_resolution, args.jpeg_quality),
            num_workers=args.num_workers,
            skip_unreadable=args.skip_unreadable,
            on_progress=progress.update,
        )
    written = np.delete(indices, list(skipped))
    save_training_images(args.write_path, written, listing, cut, record_of(args, listing, written, cut, contents))
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


def check_finished(args: Namespace) -> None:
    """InputError if what lies beside a finished .beton says that it is of other images than --idx-path.

    The image folder is not listed: that takes minutes on a network file system.
    """
    images = read_training_images(args.write_path)
    if images is None:
        return
    wanted = read_indices(args.idx_path, "--idx-path")
    left_out = args.bbox_path or Path(f"{args.write_path}.skipped.txt").is_file()
    missing = 0 if left_out else len(wanted) - images.seen(wanted)
    others = len(images.indices) - images.seen(wanted)
    folder = "" if listing_of(args.idx_path) in (None, images.listing) else "images of another folder than "
    if folder or missing or others:
        raise InputError(
            f"{args.write_path}: is there already, but holds {folder or 'other images than '}--idx-path "
            f"{args.idx_path}: write it again (FORCE=1 of gen_betons.sh), or name another file"
        )


def record_of(args: Namespace, listing: ImageListing, indices: np.ndarray, cut: str, contents: str) -> Provenance:
    """The Provenance of the .beton that was written. indices: int64 (n,). cut: how crops were cut out, "" if not.
    contents: Beton.digest."""
    return Provenance(
        images=listing.fingerprint["sha256"],
        sets={"idx_path": digest(indices)},
        crops={"rule": cut} if cut else None,
        beton=contents,
        settings={name: getattr(args, name) for name in ("write_mode", "max_resolution", "jpeg_quality")},
    )


def background_crops(args: Namespace, listing: ImageListing, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """(indices of the images that have a background crop, int64 (n, 4) the crops, how they were cut, as text)."""
    rule = CropRule.of(vars(args))
    annotations = Annotations(args.bbox_path, listing, "--bbox-path")
    with Progress(len(indices), "images searched for a crop") as progress:
        cropped = take_crops(listing, indices, rule, annotations, progress.update, args.skip_unreadable)
    skipped = in_words(cropped.counts)
    print(f"{len(cropped)} of {len(indices)} images have a crop" + (f" ({skipped})" if skipped else ""))
    for text in frame_warnings(annotations, {"": indices}, rule, f"--bbox-path {args.bbox_path}"):
        print(f"warning: {text}")
    if not len(cropped):
        raise InputError(f"--bbox-path {args.bbox_path}: no image has a crop: {skipped}; see --min-px {args.min_px}")
    return cropped.indices, cropped.crops, str(rule)


class Images:
    """The images at `indices` as a sequence of uint8 H x W x 3 RGB arrays, decoded when they are asked for.

    crops: n of (xmin, ymin, xmax, ymax) in pixels, to be cut out of them; None: whole images.
    """

    def __init__(self, listing: ImageListing, indices: np.ndarray, crops: np.ndarray | None = None) -> None:
        self.listing, self.indices, self.crops = listing, indices, crops

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        image = load_image(self.listing.path(self.indices[position]))
        return np.asarray(image if self.crops is None else image.crop(tuple(self.crops[position])))


if __name__ == "__main__":
    run(main)
