"""Splits an image folder with bounding boxes into training sets A and B and a public set.

Reads the listing of IMGNET_DIR (CLASS/ID.JPEG) and the names in BBOX_DIR/Annotation (CLASS/ID.xml; no file is opened).
Writes SAVE_DIR/{n}_per_class/{bbox_A,bbox_B,shared,public,train_A,train_B}.npy for each n, SAVE_DIR/val_set.npy and
SAVE_DIR/partition.json, which lets later stages refuse another image folder. All invariants are checked first.

    python imagenet_partition.py --save_dir $INDEX_FOLDER --imgnet_dir $IMAGENET_DATASET_DIR \\
        --bbox_dir $IMAGENET_BBOX_ANNOTATIONS
    python imagenet_partition.py --save_dir /tmp/index --imgnet_dir demo/seed0/data/images \\
        --bbox_dir demo/seed0/data/boxes --per_class 20 40
"""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dejavu_utils.cli import Parser, existing_folder, non_negative_int, positive_int, run
from dejavu_utils.data.partition import check, equal_classes, shuffled_order, split
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, write_npy
from dejavu_utils.imagenet import PARTITION_FILE, UNFINISHED_FILE, list_images, save_partition_record
from dejavu_utils.locks import locked
from dejavu_utils.progress import Progress


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--imgnet_dir", required=True, help="image folder, CLASS/ID.JPEG")
    parser.add_argument("--bbox_dir", required=True, help="folder of Annotation/CLASS/ID.xml")
    parser.add_argument("--save_dir", required=True, help="where the index files are written")
    parser.add_argument(
        "--per_class",
        type=positive_int,
        nargs="+",
        default=[100, 200, 300, 400, 500],
        help="n: images of each class in a training set, one partition for each",
    )
    parser.add_argument(
        "--seed", type=non_negative_int, help="shuffle the images of each class; not given: the order of the indices"
    )
    return parser.parse_args(argv)


def main():
    args = parse_args()
    print(f"listing {args.imgnet_dir}", flush=True)
    listing = list_images(args.imgnet_dir, "--imgnet_dir")
    existing_folder(args.bbox_dir, "--bbox_dir")
    print(f"{len(listing)} images of {len(listing.classes)} classes in {args.imgnet_dir}")
    boxed = find_boxed(listing, Path(args.bbox_dir) / "Annotation")
    order = None if args.seed is None else shuffled_order(listing.labels, args.seed)
    partitions = {n: split(listing.labels, boxed, n, order) for n in sorted(set(args.per_class))}
    results = check(partitions, listing.labels)
    for what, holds in results:
        print(f"{'ok      ' if holds else 'VIOLATED'} {what}")
    if not all(holds for _, holds in results):
        raise InputError(f"--imgnet_dir {args.imgnet_dir}: an invariant is violated (above); nothing was written")
    refuse_other_partitions(args)
    with locked(Path(args.save_dir) / ".lock", "--save_dir"):
        write(args, listing, partitions)


def write(args, listing, partitions):
    """Writes all files; while they take their names, a mark that later stages obey says so."""
    folder = Path(args.save_dir)
    val_set = equal_classes(partitions[max(partitions)].public, listing.labels)
    with ExitStack() as files:
        for n, partition in partitions.items():
            for name, indices in partition.items():
                write_npy(files.enter_context(complete_file(folder / f"{n}_per_class" / f"{name}.npy")), indices)
            report(n, partition, listing)
        write_npy(files.enter_context(complete_file(folder / "val_set.npy")), val_set)
        (folder / UNFINISHED_FILE).touch()
        (folder / PARTITION_FILE).unlink(missing_ok=True)
    shown = len(np.unique(listing.labels[val_set]))
    print(f"val_set: {len(val_set)} images, {len(val_set) // max(shown, 1)} a class")
    without = np.setdiff1d(np.arange(len(listing.classes)), listing.labels[val_set])
    print_some("classes without a public image, and so not in val_set", [listing.classes[c] for c in without])
    save_partition_record(folder, record(args, partitions, val_set, listing), listing)
    (folder / UNFINISHED_FILE).unlink()


def refuse_other_partitions(args):
    """Folders of an earlier run with other numbers would share val_set.npy and partition.json with this one."""
    found = {path.name.removesuffix("_per_class") for path in Path(args.save_dir).glob("*_per_class")}
    others = sorted(found - {str(n) for n in args.per_class})
    if others:
        raise InputError(
            f"--save_dir {args.save_dir}: holds partitions of {', '.join(others)} per class, which this run does not "
            "make again; remove them, add them to --per_class, or name another folder"
        )


def find_boxed(listing, annotation_dir):
    """bool (n,): does the image have an XML? Reads each class's folder once; reports what has no partner."""
    if not annotation_dir.is_dir():
        raise InputError(f"--bbox_dir {annotation_dir.parent}: holds no folder Annotation with CLASS/ID.xml below it")
    boxed = np.zeros(len(listing), dtype=bool)
    starts = np.searchsorted(listing.labels, np.arange(len(listing.classes) + 1))
    without_image, classes_without_xml = 0, []
    with Progress(len(listing.classes), "classes looked up") as progress:
        for name, start, stop in zip(listing.classes, starts, starts[1:]):
            stems = xml_stems(annotation_dir / name)
            if not stems:
                classes_without_xml.append(name)
            boxed[start:stop] = [listing.stem(index) in stems for index in range(start, stop)]
            without_image += len(stems) - int(boxed[start:stop].sum())
            progress.update()
    if not boxed.any():
        raise InputError(f"--bbox_dir {annotation_dir.parent}: no XML there belongs to an image of --imgnet_dir")
    unknown = sorted(
        entry.name for entry in os.scandir(annotation_dir) if entry.is_dir() and entry.name not in set(listing.classes)
    )
    print(f"{int(boxed.sum())} images have a box; {without_image} XML belong to no image")
    print_some("classes without XML", classes_without_xml)
    print_some("folders of XML without a class of images", unknown)
    return boxed


def xml_stems(folder):
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name[:-4] for entry in entries if entry.name.lower().endswith(".xml")}


def print_some(what, names):
    if names:
        print(f"{what}: {len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")


def report(n, partition, listing):
    print(f"{n} per class: " + ", ".join(f"{name} {len(indices)}" for name, indices in partition.items()))
    counts = np.bincount(listing.labels[partition.train_A], minlength=len(listing.classes))
    print_some(f"{n} per class: classes too small for it", [listing.classes[c] for c in np.flatnonzero(counts < n)])


def record(args, partitions, val_set, listing):
    """What partition.json says beside the fingerprint: sizes of all sets and their smallest class."""
    sizes = {}
    for n, partition in partitions.items():
        sizes[f"{n}_per_class"] = {
            name: {
                "images": len(indices),
                "smallest_class": int(np.bincount(listing.labels[indices], minlength=len(listing.classes)).min()),
            }
            for name, indices in partition.items()
        }
    return {"per_class": sorted(partitions), "seed": args.seed, "sets": sizes, "val_set": len(val_set)}


if __name__ == "__main__":
    run(main)
