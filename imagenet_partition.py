"""Splits an image folder with bounding boxes into training sets A and B and a public set.

Reads the listing of IMGNET_DIR (CLASS/ID.JPEG) and the names below BBOX_DIR (CLASS/ID.xml, there or in Annotation, or
in Kaggle's ILSVRC/Annotations/CLS-LOC/train).
Writes SAVE_DIR/{n}_per_class/{bbox_A,bbox_B,shared,public,train_A,train_B}.npy for each n, SAVE_DIR/val_set.npy and
SAVE_DIR/partition.json, which lets later stages refuse another image folder. All invariants are checked first.
--near_duplicates 1 reads every image (about 1 ms each per process), counts pairs of the same picture, and writes
SAVE_DIR/near_duplicates.npz, which the attack reads. Rerun the same command to resume.

    python imagenet_partition.py --save_dir $INDEX_FOLDER --imgnet_dir $IMAGENET_DATASET_DIR \\
        --bbox_dir $IMAGENET_BBOX_ANNOTATIONS
    python imagenet_partition.py --save_dir /tmp/index --imgnet_dir demo/seed0/data/images \\
        --bbox_dir demo/seed0/data/boxes --per_class 20 40
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_utils.cli import (
    Parser,
    add_flags,
    add_paths,
    default_workers,
    existing_folder,
    non_negative_int,
    positive_int,
    run,
    zero_or_one,
)
from dejavu_utils.data.annotations import SHARED_NAME, TWO_XML, Annotations, Unusable
from dejavu_utils.data.background_crops import file_fingerprint
from dejavu_utils.data.index_files import PARTITION_FILE, UNFINISHED_FILE
from dejavu_utils.data.near_copies import (
    FILE,
    PASSES,
    SHARD,
    NearCopies,
    concatenated,
    find_near_copies,
    load_near_copies,
    pairs_between,
    save_near_copies,
    signature_shards,
    with_near_copy,
)
from dejavu_utils.data.partition import (
    Partition,
    check,
    equal_classes,
    equal_partitions,
    largest_with_public,
    linked_twice,
    shuffled_order,
    split,
)
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file, save_json, write_npy
from dejavu_utils.imagenet import ImageListing, list_images
from dejavu_utils.log import Progress
from dejavu_utils.runtime.locks import locked
from dejavu_utils.runtime.resumable import ShardStore, shards_of

Partitions = dict[int, Partition]  # by images per class


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--imgnet_dir": "image folder, CLASS/ID.JPEG"})
    boxes = {
        "--bbox_dir": "folder of CLASS/ID.xml, or one above it; without it all images of A and B differ, and corner "
        "crops alone can be attacked"
    }
    add_paths(parser, boxes, required=False)
    add_paths(parser, {"--save_dir": "where the index files are written"})
    parser.add_argument(
        "--per_class",
        type=positive_int,
        nargs="+",
        default=[100, 200, 300, 400, 500],
        help="n: images of each class in a training set, one partition for each",
    )
    flags = {
        "--seed": (None, non_negative_int, "shuffle the images of each class; not given: the order of the indices"),
        "--near_duplicates": (0, zero_or_one, "1: look for near-copies, which means reading all images"),
        "--num_workers": (default_workers(), positive_int, "processes that look for near-copies"),
    }
    add_flags(parser, flags)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    print(f"listing {args.imgnet_dir}", flush=True)
    listing = list_images(args.imgnet_dir, "--imgnet_dir")
    if args.bbox_dir:
        existing_folder(args.bbox_dir, "--bbox_dir")
    print(f"{len(listing)} images of {len(listing.classes)} classes in {args.imgnet_dir}")
    for text in class_warnings(listing):
        print(f"warning: {text}")
    usable, left_out = find_usable(listing)
    boxed = find_boxed(listing, args.bbox_dir) if args.bbox_dir else without_boxes(listing)
    order = np.arange(len(listing)) if args.seed is None else shuffled_order(listing.labels, args.seed)
    order = order[usable[order]]
    partitions = {n: split(listing.labels, boxed, n, order) for n in sorted(set(args.per_class))}
    refuse_without_public(partitions, listing, boxed, order)
    for larger, smaller in equal_partitions(partitions).items():
        print(f"{larger} per class: the same sets as {smaller} per class (the classes are too small), not written")
        del partitions[larger]
    results = check(partitions, listing.labels, order)
    for what, holds in results.items():
        print(f"{'ok      ' if holds else 'VIOLATED'} {what}")
    if not all(results.values()):
        raise InputError(f"--imgnet_dir {args.imgnet_dir}: an invariant is violated (above); nothing was written")
    refuse_other_partitions(args.save_dir, partitions)
    with locked(Path(args.save_dir) / ".lock", "--save_dir"):
        copies = near_copies(args, listing) if args.near_duplicates else None
        write(args, listing, partitions, left_out, copies)


def class_warnings(listing: ImageListing) -> list[str]:
    """Warnings where the folders of the listing do not look like classes."""
    if len(listing.classes) == 1:
        name = listing.classes[0]
        return [f"{listing.root}: {name} is the only class: there is no label to infer, and only sslmem.py can be used"]
    below: dict[str, set[str]] = {}
    for path, label in zip(listing.paths, listing.labels.tolist()):
        _, *folders, _ = Path(path).parts
        if not folders:
            return []
        below.setdefault(folders[0], set()).add(listing.classes[label])
    shared = [name for name, classes in below.items() if len(classes) > 1]
    if not shared:
        return []
    classes = sorted(below[shared[0]])
    return [
        f"{listing.root}: the classes are its folders {', '.join(listing.classes[:5])}, and all images lie deeper: "
        f"{len(shared)} names of folders are in several classes ({shared[0]} in {', '.join(classes[:5])}); if those "
        f"are the classes, give {listing.root / classes[0]}"
    ]


def without_boxes(listing: ImageListing) -> np.ndarray:
    """bool (n,): images that bbox_A and bbox_B are taken from where no image has a box: all."""
    print("without --bbox_dir: bbox_A and bbox_B hold images without boxes, for --use_corner_crop 1 and sslmem.py")
    return np.ones(len(listing), bool)


def refuse_without_public(partitions: Partitions, listing: ImageListing, boxed: np.ndarray, order: np.ndarray) -> None:
    """InputError if no size leaves a public image, else what is said about those that do not."""
    too_large = [str(n) for n, partition in partitions.items() if not len(partition.public)]
    if too_large:
        largest = largest_with_public(listing.labels, boxed, order)
        remedy = f"the largest size that does is {largest}: give --per_class {largest}" if largest else "no size does"
        text = f"--per_class {' '.join(too_large)}: leaves no image for the public set; {remedy}"
        if len(too_large) == len(partitions):
            raise InputError(text)
        print(f"warning: {text}")


def near_copies(args: Namespace, listing: ImageListing) -> NearCopies:
    """The NearCopies of the listing: those of an earlier run if no image has changed since, else found and written."""
    path = Path(args.save_dir) / FILE
    key = file_fingerprint(listing, range(len(listing)))
    copies = load_near_copies(path, listing, key)
    if copies is not None:
        print(f"near-copies of {path}")
        return copies
    store = ShardStore(Path(args.save_dir) / "unfinished", key)
    saved = store.start()
    if saved:
        print(f"resumes after {saved * SHARD} images looked at for near-copies", flush=True)
    shards = shards_of("images", len(listing), SHARD)
    compute = partial(signature_shards, listing, args.num_workers)
    images = concatenated(store.map(shards, compute, lambda count: Progress(count, "images looked at for near-copies")))
    print_some("images that cannot be read", listing.paths, np.flatnonzero(~images.readable))
    with Progress(PASSES, "passes over their hashes") as progress:
        copies = find_near_copies(images, progress.update)
    save_near_copies(path, copies, listing, key)
    store.remove()
    return copies


def write(
    args: Namespace,
    listing: ImageListing,
    partitions: Partitions,
    left_out: dict[str, int],
    copies: NearCopies | None,
) -> None:
    """Writes all files; while they are renamed, a mark makes later stages refuse the folder."""
    folder = Path(args.save_dir)
    largest = max(n for n, partition in partitions.items() if len(partition.public))
    val_set = equal_classes(partitions[largest].public, listing.labels)
    with ExitStack() as files:
        for n, partition in partitions.items():
            for name, indices in partition.items():
                write_npy(files.enter_context(complete_file(folder / f"{n}_per_class" / f"{name}.npy")), indices)
            report(n, partition, listing)
        write_npy(files.enter_context(complete_file(folder / "val_set.npy")), val_set)
        (folder / UNFINISHED_FILE).touch()
        (folder / PARTITION_FILE).unlink(missing_ok=True)
    shown = len(np.unique(listing.labels[val_set]))
    print(f"val_set: {len(val_set)} images, {len(val_set) // max(shown, 1)} per class")
    without = np.setdiff1d(np.arange(len(listing.classes)), listing.labels[val_set])
    print_some("classes without a public image, and so not in val_set", listing.classes, without)
    counts = {"left_out": left_out, "passed_over": listing.passed_over}
    if copies is not None:
        counts["near_copies"] = {f"{n}_per_class": count_copies(n, p, copies) for n, p in partitions.items()}
    made = {**record(args, partitions, val_set, listing), **counts, "fingerprint": listing.fingerprint}
    save_json(folder / PARTITION_FILE, made)  # load_indices compares the fingerprint
    (folder / UNFINISHED_FILE).unlink()


def refuse_other_partitions(save_dir: str, partitions: Partitions) -> None:
    """Folders of an earlier run with other numbers would share val_set.npy and partition.json with this one."""
    sizes = {path.name.removesuffix("_per_class") for path in Path(save_dir).glob("*_per_class")}
    others = sorted(sizes - {str(n) for n in partitions})
    if others:
        raise InputError(
            f"--save_dir {save_dir}: holds partitions of {', '.join(others)} per class, which this run does not "
            "write; remove them, add them to --per_class, or name another folder"
        )


def find_usable(listing: ImageListing) -> tuple[np.ndarray, dict[str, int]]:
    """(bool (n,): may the image be in a set?, {reason: how many may not}); indices stay those of ImageFolder."""
    left_out = {
        "hidden (a name that begins with a dot)": np.array([listing.is_hidden(i) for i in range(len(listing))]),
        "links to a file that is listed before": linked_twice(listing),
    }
    for what, images in left_out.items():
        print_some(f"images in no set, {what}", listing.paths, np.flatnonzero(images))
    passed_over = [f"{count} {extension}" for extension, count in listing.passed_over.items()]
    if passed_over:
        print(f"files that ImageFolder does not read, skipped: {', '.join(passed_over)}")
    return ~np.any(list(left_out.values()), axis=0), {what: int(images.sum()) for what, images in left_out.items()}


def find_boxed(listing: ImageListing, bbox_dir: str) -> np.ndarray:
    """bool (n,): does the image have an XML of its own? Reads each class's folder once; reports what has no partner."""
    annotations = Annotations(bbox_dir, listing, "--bbox_dir")
    boxed = np.zeros(len(listing), dtype=bool)
    without_image, without_xml, two_xml, shared, deeper = 0, [], [], [], []
    with Progress(len(listing.classes), "classes looked up") as progress:
        for label, name in enumerate(listing.classes):
            xml, images = annotations.of_class(label)
            without_image += sum(len(names) for stem, names in xml.items() if stem not in images)
            if not xml:
                without_xml.append(name)
            folder = annotations.root / name
            if folder.is_dir():
                deeper += sorted(f"{name}/{below.name}" for below in folder.iterdir() if below.is_dir())
            for index in listing.members(label):
                try:
                    annotations.path(index)
                    boxed[index] = True
                except Unusable as reason:
                    {TWO_XML: two_xml, SHARED_NAME: shared}.get(str(reason), []).append(listing.paths[index])
            progress.update()
    with os.scandir(annotations.root) as entries:
        unknown = sorted({entry.name for entry in entries if entry.is_dir()} - set(listing.classes))
    print(f"{int(boxed.sum())} images have a box; {without_image} XML files without an image")
    print_some("images that share their name (and so an XML) with another: treated as unannotated", shared)
    print_some("images with two XML files of their name: treated as unannotated", two_xml)
    print_some("classes without XML", without_xml)
    print_some("folders within a class's XML folder, not searched", deeper)
    print_some("folders of XML without a class of images", unknown)
    return boxed


def print_some(what: str, names: Sequence[str], chosen: np.ndarray | None = None) -> None:
    """How many names there are, or are chosen by their numbers, and the first five."""
    if chosen is not None:
        names = [names[number] for number in chosen]
    if names:
        print(f"{what}: {len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")


def report(n: int, partition: Partition, listing: ImageListing) -> None:
    print(f"{n} per class: " + ", ".join(f"{name} {len(indices)}" for name, indices in partition.items()))
    counts = np.bincount(listing.labels[partition.train_A], minlength=len(listing.classes))
    print_some(f"{n} per class: classes too small for it", listing.classes, np.flatnonzero(counts < n))


def count_copies(n: int, partition: Partition, copies: NearCopies) -> dict[str, int]:
    """{where: pairs of near-copies}; A-B are pairs of an image that only one of the sets has and one of the other."""
    own, shared = {"A": partition.bbox_A, "B": partition.bbox_B}, partition.shared
    across = [(own["A"], own["B"]), (own["A"], shared), (own["B"], shared)]
    pairs = {
        "within A": pairs_between(copies, partition.train_A),
        "within B": pairs_between(copies, partition.train_B),
        "A-B": sum(pairs_between(copies, one, other) for one, other in across),
        "A-public": pairs_between(copies, partition.train_A, partition.public),
        "B-public": pairs_between(copies, partition.train_B, partition.public),
    }
    for name, (other, others) in {"A": ("B", partition.train_B), "B": ("A", partition.train_A)}.items():
        elsewhere = np.concatenate([others, partition.public])
        pairs[f"images of bbox_{name} with a near-copy in train_{other} or public"] = int(
            with_near_copy(copies, own[name], elsewhere).sum()
        )
    print(f"{n} per class, pairs of near-copies: " + ", ".join(f"{where} {count}" for where, count in pairs.items()))
    return pairs


def record(args: Namespace, partitions: Partitions, val_set: np.ndarray, listing: ImageListing) -> dict[str, Any]:
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
