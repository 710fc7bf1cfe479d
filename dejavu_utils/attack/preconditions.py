"""Are the two models and the sets what the déjà vu test needs? Errors for what makes its score
meaningless, warnings for what may."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch

from dejavu_utils.data.near_copies import near_copies_beside, with_near_copy
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.models import Network, SSLNetwork
from dejavu_utils.naming import LOGITS, SETS, TWIN

# Settings in which the two trainings may differ: they do not change what a model could learn.
MAY_DIFFER = (
    "data.",
    "logging.",
    "dist.",
    "validation.",
    "training.eval_",
    "training.train_probes_only",
    "training.compile",
)


class IndexSet(NamedTuple):
    """A set of images, and the flag that named it. indices: int64 (n,), positions in the
    ImageListing."""

    flag: str
    indices: np.ndarray


def have_same_weights(first: Network, second: Network) -> bool:
    """Do two networks share their parameters, but for rounding to half precision (float16,
    bfloat16)? To be asked before they are prepared for inference."""
    pairs = list(zip_longest(first.parameters(), second.parameters()))
    return all(
        one is not None
        and other is not None
        and one.shape == other.shape
        and torch.allclose(one.float(), other.float(), rtol=2**-8, atol=2**-24)
        for one, other in pairs
    )


def check_disjoint(sets: Iterable[IndexSet]) -> None:
    """InputError unless the sets of images are disjoint, and hold any."""
    earlier: list[IndexSet] = []
    for flag, indices in sets:
        if not len(indices):
            raise InputError(f"{flag}: holds no index")
        for other, others in earlier:
            both = np.intersect1d(indices, others)
            if len(both):
                raise InputError(
                    f"{flag}: shares {len(both)} images with {other}; the sets must be disjoint"
                )
        earlier.append(IndexSet(flag, indices))


def check_alike(networks: dict[str, Network]) -> None:
    """InputError unless networks "A" and "B" are of one kind; it names the first difference."""
    first = networks["A"]
    second = networks["B"]
    traits = [("backbone", first.arch, second.arch), ("projector", first.mlp, second.mlp)]
    traits.append(("preprocessing", str(first.preprocessing), str(second.preprocessing)))
    if not set(first.losses()) & set(second.losses()):
        traits.append(("training", " or ".join(first.losses()), " or ".join(second.losses())))
    for what, of_first, of_second in traits:
        if of_first != of_second and None not in (of_first, of_second):
            flag = first.source.partition(" ")[0]
            raise InputError(
                f"{second.source}: its {what} is {of_second}, that of {flag} is {of_first}; the test compares "
                "two models that were trained the same way"
            )


def check_number_of_classes(network: Network, listing: ImageListing) -> None:
    """InputError unless a network's class scores are those of the image folder's classes.

    A classifier of train_SSL.py may have fewer: it ends with the last class that it was trained on.
    """
    outputs = network.width(LOGITS)
    classes = len(listing.classes)
    if outputs > classes or (outputs < classes and not isinstance(network, SSLNetwork)):
        raise InputError(
            f"{network.source}: scores {outputs} classes, the image folder {listing.root} has {classes}; give the "
            "folder of its classes, or a classifier trained on this folder"
        )


def class_warnings(
    listing: ImageListing, sets: Mapping[str, IndexSet], public: np.ndarray
) -> list[str]:
    """A warning where attacked images are of classes that no neighbor can have; InputError where
    neighbors can have one label alone.

    public: int64 (p,), image indices.
    """
    of_public = np.unique(listing.labels[public])
    if len(of_public) == 1:
        raise InputError(
            f"--public_idx_pth: all its images are of the class {listing.classes[of_public[0]]}: every model predicts "
            "that one, whatever it memorized; give public images of several classes"
        )
    attacked = np.concatenate([listing.labels[indices] for _, indices in sets.values()])
    without_public = np.setdiff1d(attacked, listing.labels[public])
    if not len(without_public):
        return []
    images = int(np.isin(attacked, without_public).sum())
    names = ", ".join(listing.classes[label] for label in without_public[:5])
    return [
        f"{len(without_public)} of {len(listing.classes)} classes, with {images} of {len(attacked)} images of the "
        f"attacked sets, have no public image ({names}): no neighbor can have their label, so they are never "
        "predicted; add public images of them"
    ]


def numbered_folders(listing: ImageListing) -> list[str]:
    """A warning where class folders are named by numbers and their order as text is not that of the
    numbers."""
    names = listing.classes
    if not all(name.isdecimal() for name in names):
        return []
    for label, (name, by_number) in enumerate(zip(names, sorted(names, key=int))):
        if name != by_number:
            return [
                f"{listing.root}: class folders are numbered but sorted as text, so folder {name} has label {label}; "
                "a classifier trained on labels in the order of the numbers is scored wrong: pad the names with zeros"
            ]
    return []


def is_one_file(networks: Mapping[str, Network]) -> bool:
    """Are models "A" and "B" the same file? That is on purpose: a check, or a look at one model."""
    paths = {networks[name].source.partition(" ")[2] for name in SETS}
    return len(paths) == 1


def check_models(networks: Mapping[str, Network]) -> list[str]:
    """Warnings (list of str) about models "A" and "B" that are compared; InputError if two files
    hold the same one."""
    a = networks["A"]
    b = networks["B"]
    if is_one_file(networks):
        return [
            f"{b.source}: is model A's checkpoint too: the score is 0, whatever the model memorized"
        ]
    if have_same_weights(a, b):
        raise InputError(
            f"{b.source}: holds the same weights as {a.source}; name the two models' checkpoints"
        )
    of_a = TrainingImages.of(a)
    of_b = TrainingImages.of(b)
    if of_a and of_b and of_a.digest == of_b.digest:
        raise InputError(
            f"{b.source}: was trained on the same {len(of_a.indices)} images as {a.source}; the test needs one "
            "model trained on set A and one trained on set B"
        )
    epochs = [network.about["epoch"] for network in (a, b)]
    warnings = []
    for network, epoch in zip((a, b), epochs):
        if epoch == 0:
            warnings.append(f"{network.source} is of epoch 0: an untrained model")
    if None not in epochs and epochs[0] != epochs[1]:
        warnings.append(
            f"model A was trained for {epochs[0]} epochs, model B for {epochs[1]}: the score compares both"
        )
    first = a.about["settings"]
    second = b.about["settings"]
    if first is not None and second is not None:
        for name in sorted(first.keys() | second.keys()):
            if first.get(name) != second.get(name) and not name.startswith(MAY_DIFFER):
                warnings.append(
                    f"the models were trained with different {name}: {first.get(name)} (A) and {second.get(name)} (B)"
                )
    return warnings


def check_training_set(
    network: Network,
    listing: ImageListing,
    trained: Sequence[IndexSet],
    unseen: Sequence[IndexSet],
) -> list[str]:
    """InputError unless a model was trained on all images of some sets, and on none of others.

    Returns warnings: one where its checkpoint does not say which images of this ImageListing it was
    trained on.
    """
    source = network.source
    images = TrainingImages.of(network)
    if images is None:
        return [
            f"{source} does not say which images it was trained on: that the sets fit it is not checked"
        ]
    if not images.is_of(listing):
        another = f"{source} was trained on images of another folder than {listing.root}"
        return [f"{another}: that the sets fit it is not checked"]
    for flag, indices in trained:
        missing = len(indices) - images.seen(indices)
        if missing:
            raise InputError(
                f"{flag}: {missing} of its {len(indices)} images were not trained on by {source}: are models or sets "
                "swapped? Give the sets of the partition that it was trained on"
            )
    for flag, indices in unseen:
        seen = images.seen(indices)
        if seen:
            raise InputError(
                f"{flag}: {source} was trained on {seen} of its {len(indices)} images; give images that it never saw"
            )
    return []


def check_validation_set(
    network: Network, listing: ImageListing, train: np.ndarray, val: np.ndarray, source: str
) -> list[str]:
    """Warnings that count the validation images of a probe, int (n,), that it or its encoder is
    trained on, and those of classes that it is not trained on.

    train: int (m,), what the probe is trained on. source: flag and path of val. InputError if the
    probe sees them all.
    """
    of = f"of its {len(val)} images"
    probed = int(np.isin(val, train).sum())
    if probed == len(val):
        raise InputError(
            f"{source}: all {of} are among those of --train_idx_pth; give other images"
        )
    warnings = []
    if probed:
        warnings.append(f"{source}: {probed} {of} are among those of --train_idx_pth")
    images = TrainingImages.of(network)
    seen = images.seen(val) if images and images.is_of(listing) else 0
    if seen:
        warnings.append(f"{source}: {network.source} was trained on {seen} {of}")
    unknown = np.setdiff1d(listing.labels[val], listing.labels[train])
    if len(unknown):
        names = ", ".join(listing.classes[label] for label in unknown[:5])
        count = int(np.isin(listing.labels[val], unknown).sum())
        warnings.append(
            f"{source}: {count} {of} are of {len(unknown)} classes without an image in --train_idx_pth ({names}): the "
            "probe cannot predict them"
        )
    return warnings


def copied_elsewhere(
    index_path: str | None,
    networks: Mapping[str, Network],
    reference: Mapping[str, list[str]],
    sets: Mapping[str, IndexSet],
    public: np.ndarray,
    listing: ImageListing,
) -> dict[str, np.ndarray] | None:
    """{set: int64 (m,), the attacked images with a near-copy that the reference was trained on, or
    that is public}.

    None if the partition did not look for near-copies. index_path: an index file of that partition,
    or None. networks: by name. reference: {set: names of networks}. public: int64 (p,). What the
    references do not say they were trained on is taken to be the other set.
    """
    copies = index_path and near_copies_beside(index_path, listing)
    if not copies:
        return None
    copied = {}
    for name in SETS:
        elsewhere = [sets[TWIN[name]].indices, public]
        for reference_name in reference[name]:
            images = TrainingImages.of(networks[reference_name])
            if images is not None and images.is_of(listing):
                elsewhere.append(images.indices)
        attacked = sets[name].indices
        copied[name] = attacked[with_near_copy(copies, attacked, np.concatenate(elsewhere))]
    return copied
