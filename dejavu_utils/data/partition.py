"""Splitting a boxed image folder into training sets A and B and a public set X: pure functions of
labels and boxes."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from dejavu_utils.imagenet import ImageListing


@dataclass
class Partition:
    """Image indices, int64 (.,), each class by class. train_A = bbox_A + shared, train_B = bbox_B +
    shared."""

    bbox_A: np.ndarray
    bbox_B: np.ndarray
    shared: np.ndarray
    public: np.ndarray
    train_A: np.ndarray
    train_B: np.ndarray

    def items(self) -> list[tuple[str, np.ndarray]]:
        """(name, indices) of the six sets."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def split(
    labels: np.ndarray,
    boxed: np.ndarray,
    per_class: int,
    order: np.ndarray | None = None,
    usable: np.ndarray | None = None,
) -> Partition:
    """The partition with `per_class` training images of each class (Meehan et al. 2023, section 4).

    labels: int (n,), class of each image, sorted. boxed: bool (n,). order: int (n,), a permutation
    of the images within each class that says which come first; None for the order of the indices.
    With m boxed images in a class and b = min(m // 2, per_class): the first b boxed go to bbox_A,
    the next b to bbox_B, the rest to public (first); of the images without a box the first
    per_class - b are shared, the rest public. A class too small gives what it has. usable: bool
    (n,), which images may be in a set; None for all.
    """
    order = np.arange(len(labels)) if order is None else order
    sets: dict[str, list[np.ndarray]] = {field.name: [order[:0]] for field in fields(Partition)}
    for start, stop in _class_bounds(labels):
        members = order[start:stop]
        if usable is not None:
            members = members[usable[members]]
        with_box = members[boxed[members]]
        without = members[~boxed[members]]
        b = min(len(with_box) // 2, per_class)
        first = with_box[:b]
        second = with_box[b : 2 * b]
        shared = without[: per_class - b]
        sets["bbox_A"].append(first)
        sets["bbox_B"].append(second)
        sets["shared"].append(shared)
        sets["public"] += [with_box[2 * b :], without[per_class - b :]]
        sets["train_A"] += [first, shared]
        sets["train_B"] += [second, shared]
    return Partition(
        **{name: np.concatenate(parts).astype(np.int64) for name, parts in sets.items()}
    )


def _class_bounds(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first image, behind the last) of each class, of sorted labels."""
    bounds = np.searchsorted(labels, np.arange(labels.max(initial=-1) + 2))
    return zip(bounds, bounds[1:])


def largest_with_public(
    labels: np.ndarray, boxed: np.ndarray, usable: np.ndarray | None = None
) -> int:
    """The largest number per class whose partition leaves a public image; 0 if none does. Arguments
    as of `split`."""
    least, most = 0, len(labels)
    while least < most:  # the larger the training sets, the smaller the public set
        middle = (least + most + 1) // 2
        if len(split(labels, boxed, middle, usable=usable).public):
            least = middle
        else:
            most = middle - 1
    return least


def equal_partitions(partitions: dict[int, Partition]) -> dict[int, int]:
    """{size per class: the smallest size whose partition is the same}, of those that have one, as
    small classes do."""
    equal: dict[int, int] = {}
    sizes = sorted(partitions)
    for smaller, larger in zip(sizes, sizes[1:]):
        if _equal(partitions[smaller], partitions[larger]):
            equal[larger] = equal.get(smaller, smaller)
    return equal


def _equal(one: Partition, other: Partition) -> bool:
    return all(np.array_equal(indices, getattr(other, name)) for name, indices in one.items())


def shuffled_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the images within each class, int64 (n,), the same on every machine for a
    seed."""
    order = np.arange(len(labels))
    for label, (start, stop) in enumerate(_class_bounds(labels)):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, label])))
        order[start:stop] = start + generator.permutation(stop - start)
    return order


def equal_classes(public: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first images of each class in `public`, as many of each as the smallest class has; class
    by class.

    Classes without an image there are left out.
    """
    counts = np.bincount(labels[public])
    least = counts[counts > 0].min(initial=len(labels))
    by_class = public[np.argsort(labels[public], kind="stable")]
    chosen = [by_class[:0]]
    for start, stop in _class_bounds(labels[by_class]):
        chosen.append(by_class[start:stop][:least])
    return np.concatenate(chosen)


def check(
    partitions: dict[int, Partition], labels: np.ndarray, usable: np.ndarray | None = None
) -> list[tuple[str, bool]]:
    """The invariants of {per_class: Partition}: a list of (what was checked, whether it holds).

    usable: as in `split`.
    """
    n = len(labels)
    expected = np.ones(n, bool) if usable is None else usable
    results = []
    for per_class, p in sorted(partitions.items()):
        sizes = f"{per_class} per class"
        times = np.bincount(np.concatenate([p.bbox_A, p.bbox_B, p.shared, p.public]), minlength=n)
        results.append(
            (f"{sizes}: bbox_A, bbox_B, shared and public are disjoint", bool(times.max() <= 1))
        )
        results.append(
            (f"{sizes}: every image is in one of them", np.array_equal(times > 0, expected))
        )
        boxed_alike = _equal_in_each_class(labels, p.bbox_A, p.bbox_B)
        balanced = boxed_alike and _equal_in_each_class(labels, p.train_A, p.train_B)
        results.append((f"{sizes}: A and B are equal in each class", balanced))
        complete = _is_union(p.train_A, p.bbox_A, p.shared) and _is_union(
            p.train_B, p.bbox_B, p.shared
        )
        results.append(
            (f"{sizes}: train_A and train_B are their boxed images and the shared ones", complete)
        )
    per_class_sizes = sorted(partitions)
    for smaller, larger in zip(per_class_sizes, per_class_sizes[1:]):
        contained = bool(np.isin(partitions[larger].public, partitions[smaller].public).all())
        results.append(
            (f"public of {larger} per class is contained in public of {smaller}", contained)
        )
    return results


def _equal_in_each_class(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(np.sort(labels[one]), np.sort(labels[other]))


def _is_union(images: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(np.sort(images), np.sort(np.concatenate([one, other])))


def linked_twice(listing: ImageListing) -> np.ndarray:
    """bool (n,): is the image a link, symbolic or hard, to a file that is an earlier image too?

    Links to folders: see `list_images`."""
    files, linked = np.zeros((len(listing), 2), np.uint64), np.zeros(len(listing), bool)
    for index in range(len(listing)):
        try:
            state = os.lstat(listing.path(index))
            linked[index] = stat.S_ISLNK(state.st_mode) or state.st_nlink > 1
            state = os.stat(listing.path(index)) if stat.S_ISLNK(state.st_mode) else state
            files[index] = state.st_dev, state.st_ino
        except OSError:  # a link to nothing: whoever reads it names it
            files[index] = np.iinfo(np.uint64).max, index
    _, first, file_of = np.unique(files, axis=0, return_index=True, return_inverse=True)
    file_of = file_of.ravel()
    # Equal numbers alone do not tell: some file systems give one to many files.
    is_copy = (np.bincount(file_of, linked) > 0)[file_of]
    is_copy[first] = False
    return is_copy
