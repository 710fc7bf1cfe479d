"""Splitting a boxed image folder into training sets A and B and a public set X: pure functions of
labels and boxes."""

import bisect
import os
import stat
from collections import defaultdict
from dataclasses import dataclass

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
        return list(vars(self).items())


def split(labels: np.ndarray, boxed: np.ndarray, per_class: int, order: np.ndarray) -> Partition:
    """The partition with `per_class` training images of each class (Meehan et al. 2023, section 4).

    labels: int (n,), class of each image, sorted. boxed: bool (n,). order: int (m,), the images
    that may be in a set, class by class; within a class it says which come first. With m boxed
    images in a class and b = min(m // 2, per_class): the first b boxed go to bbox_A, the next b to
    bbox_B, the rest to public (first); of the images without a box the first per_class - b are
    shared, the rest public. A class too small gives what it has.
    """
    sets = defaultdict(list)
    for members in _by_class(order, labels):
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
    joined = {name: np.concatenate(parts) for name, parts in sets.items()}
    return Partition(**joined)


def _by_class(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class that has any. images: int (n,), sorted by class."""
    return np.split(images, np.flatnonzero(np.diff(labels[images])) + 1)


def largest_with_public(labels: np.ndarray, boxed: np.ndarray, order: np.ndarray) -> int:
    """The largest number per class whose partition leaves a public image; 0 if none does. Arguments
    as of `split`."""

    def leaves_none(per_class: int) -> bool:
        return len(split(labels, boxed, per_class, order).public) == 0

    # the larger the training sets, the smaller the public set
    return bisect.bisect_right(range(1, len(labels) + 1), False, key=leaves_none)


def equal_partitions(partitions: dict[int, Partition]) -> dict[int, int]:
    """{size per class: the smallest size whose partition is the same}, of those that have one, as
    small classes do."""
    equal: dict[int, int] = {}
    sizes = sorted(partitions)
    for smaller, larger in zip(sizes, sizes[1:]):
        own = vars(partitions[larger]).values()
        others = vars(partitions[smaller]).values()
        if all(map(np.array_equal, own, others)):
            equal[larger] = equal.get(smaller, smaller)
    return equal


def shuffled_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the images within each class, int64 (n,), the same on every machine for a
    seed."""
    shuffled = []
    for members in _by_class(np.arange(len(labels)), labels):
        key = np.random.SeedSequence([seed, labels[members[0]]])
        generator = np.random.Generator(np.random.Philox(key))
        shuffled.append(members[generator.permutation(len(members))])
    return np.concatenate(shuffled)


def equal_classes(public: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first images of each class in `public`, as many of each as the smallest class has; class
    by class.

    Classes without an image there are left out.
    """
    classes = _by_class(public[np.argsort(labels[public], kind="stable")], labels)
    least = min(map(len, classes))
    return np.concatenate([members[:least] for members in classes])


def check(
    partitions: dict[int, Partition], labels: np.ndarray, order: np.ndarray
) -> dict[str, bool]:
    """The invariants of {per_class: Partition}: {what was checked: whether it holds}.

    order: as in `split`.
    """
    usable = np.isin(np.arange(len(labels)), order)
    holds: dict[str, bool] = {}
    for per_class, p in sorted(partitions.items()):
        sizes = f"{per_class} per class"
        own = np.concatenate([p.bbox_A, p.bbox_B, p.shared, p.public])
        times = np.bincount(own, minlength=len(labels))
        holds[f"{sizes}: bbox_A, bbox_B, shared and public are disjoint"] = times.max() <= 1
        holds[f"{sizes}: every image is in one of them"] = np.array_equal(times > 0, usable)
        boxed_alike = _equal_in_each_class(labels, p.bbox_A, p.bbox_B)
        train_alike = _equal_in_each_class(labels, p.train_A, p.train_B)
        holds[f"{sizes}: A and B are equal in each class"] = boxed_alike and train_alike
        of_A = _is_union(p.train_A, p.bbox_A, p.shared)
        of_B = _is_union(p.train_B, p.bbox_B, p.shared)
        what = f"{sizes}: train_A and train_B are their boxed images and the shared ones"
        holds[what] = of_A and of_B
    per_class_sizes = sorted(partitions)
    for smaller, larger in zip(per_class_sizes, per_class_sizes[1:]):
        contained = np.isin(partitions[larger].public, partitions[smaller].public)
        what = f"public of {larger} per class is contained in public of {smaller}"
        holds[what] = bool(contained.all())
    return holds


def _equal_in_each_class(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(np.sort(labels[one]), np.sort(labels[other]))


def _is_union(images: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(np.sort(images), np.sort(np.concatenate([one, other])))


def linked_twice(listing: ImageListing) -> np.ndarray:
    """bool (n,): is the image a link, symbolic or hard, to a file that is an earlier image too?

    Links to folders: see `list_images`."""
    files = np.zeros((len(listing), 2), np.uint64)
    linked = np.zeros(len(listing), bool)
    for index in range(len(listing)):
        path = listing.path(index)
        try:
            state = os.lstat(path)
            is_symbolic = stat.S_ISLNK(state.st_mode)
            linked[index] = is_symbolic or state.st_nlink > 1
            if is_symbolic:
                state = os.stat(path)
            files[index] = state.st_dev, state.st_ino
        except OSError:  # a link to nothing: whoever reads it names it
            files[index] = np.iinfo(np.uint64).max, index
    _, first, file_of = np.unique(files, axis=0, return_index=True, return_inverse=True)
    file_of = file_of.ravel()
    # Equal numbers alone do not tell: some file systems give one to many files.
    has_links = np.bincount(file_of, linked) > 0
    is_copy = has_links[file_of]
    is_copy[first] = False
    return is_copy
