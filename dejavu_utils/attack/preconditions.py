"""Are the two models and the sets what the déjà vu test needs? Errors for what makes its score meaningless, warnings
for what may."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dejavu_utils.data.near_copies import near_copies_beside, with_near_copy
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.errors import InputError
from dejavu_utils.files import digest
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.models import Network, SSLNetwork
from dejavu_utils.naming import SETS, TWIN
from dejavu_utils.networks.embedder import LOGITS

# Settings in which the two trainings may differ: they do not change what a model could learn.
MAY_DIFFER = ("data.", "logging.", "dist.", "validation.", "training.eval_", "training.train_probes_only")
MAY_DIFFER += ("training.compile",)


class IndexSet(NamedTuple):
    """A set of images, and the flag that named it. indices: int64 (n,), positions in the ImageListing."""

    flag: str
    indices: np.ndarray


@dataclass
class Origin:
    """What a network's checkpoint says of its training; None where it does not say it. weights: SHA-256 of the
    parameters in half precision, the same for a copy in which they were saved so. settings: flat, as in params.json."""

    weights: str
    epoch: int | None = None
    settings: dict[str, Any] | None = None
    images: TrainingImages | None = None

    @classmethod
    def of(cls, network: Network) -> "Origin":
        """Of a network that loading.load_network gave, before it is prepared for inference."""
        about = network.about
        images = TrainingImages.of_plain(about["train_images"])
        weights = digest(*(parameter.detach().half() for parameter in network.parameters()))
        return cls(weights, about["epoch"], about["settings"], images)


def check_disjoint(sets: Mapping[str, IndexSet], public: IndexSet) -> None:
    """InputError unless the sets of images are disjoint, and hold any. sets: {set: (flag that named it, int64 (n,))}.
    public: (flag, indices)."""
    listed = [*sets.values(), public]
    for number, (flag, indices) in enumerate(listed):
        if not len(indices):
            raise InputError(f"{flag}: holds no index")
        for earlier, others in listed[:number]:
            both = np.intersect1d(indices, others)
            if len(both):
                raise InputError(f"{flag}: shares {len(both)} images with {earlier}; the sets must be disjoint")


def check_alike(networks: dict[str, Network], sources: dict[str, str]) -> None:
    """InputError unless networks "A" and "B" are of one kind; it names the first difference. sources: as below."""
    first, second = networks["A"], networks["B"]
    traits = [("backbone", first.arch, second.arch), ("projector", first.mlp, second.mlp)]
    traits.append(("preprocessing", str(first.preprocessing), str(second.preprocessing)))
    differences = [(what, a, b) for what, a, b in traits if a != b and None not in (a, b)]
    if not set(first.losses()) & set(second.losses()):
        differences.append(("training", " or ".join(first.losses()), " or ".join(second.losses())))
    if differences:
        what, of_first, of_second = differences[0]
        raise InputError(
            f"{sources['B']}: its {what} is {of_second}, that of {sources['A'].partition(' ')[0]} is {of_first}; the "
            "test compares two models that were trained the same way"
        )


def check_number_of_classes(network: Network, source: str, listing: ImageListing) -> None:
    """InputError unless a network's class scores are those of the image folder's classes.

    A classifier of train_SSL.py may have fewer: it ends with the last class that it was trained on.
    """
    outputs, classes = network.width(LOGITS), len(listing.classes)
    if outputs > classes or (outputs < classes and not isinstance(network, SSLNetwork)):
        raise InputError(
            f"{source}: scores {outputs} classes, the image folder {listing.root} has {classes}; give the folder of "
            "its classes, or a classifier trained on this folder"
        )


def class_warnings(listing: ImageListing, sets: Mapping[str, IndexSet], public: np.ndarray) -> list[str]:
    """Warnings about classes that no neighbor can have, and about folders named by numbers that sort as text.

    sets: {set: (flag, int64 (n,) image indices)}. public: int64 (p,).
    """
    warnings = []
    attacked = np.concatenate([listing.labels[indices] for _, indices in sets.values()])
    without_public = np.setdiff1d(attacked, listing.labels[public])
    if len(without_public):
        images = int(np.isin(attacked, without_public).sum())
        names = ", ".join(listing.classes[label] for label in without_public[:5])
        warnings.append(
            f"{len(without_public)} of {len(listing.classes)} classes, with {images} of {len(attacked)} images of the "
            f"attacked sets, have no public image ({names}): no neighbor can have their label, so they are never "
            "predicted; add public images of them"
        )
    return warnings


def check_classes(classifiers: dict[str, Network], sources: dict[str, str], listing: ImageListing) -> list[str]:
    """Warnings about networks whose class scores are used; InputError for scores of other classes than the folder's."""
    for name, network in classifiers.items():
        check_number_of_classes(network, sources[name], listing)
    return numbered_folders(listing) if classifiers else []


def numbered_folders(listing: ImageListing) -> list[str]:
    """A warning where class folders are named by numbers and their order as text is not that of the numbers."""
    names = listing.classes
    if not all(name.isdecimal() for name in names) or names == sorted(names, key=int):
        return []
    label = next(label for label, name in enumerate(names) if name != sorted(names, key=int)[label])
    return [
        f"{listing.root}: class folders are numbered but sorted as text, so folder {names[label]} has label {label}; a "
        "classifier trained on labels in the order of the numbers is scored wrong: pad the names with zeros"
    ]


def without_record(source: str) -> str:
    """The warning about a checkpoint, flag and path, that does not say its images."""
    return f"{source} does not say which images it was trained on: that the sets fit it is not checked"


def of_another_folder(source: str, listing: ImageListing) -> str:
    """The warning about a checkpoint, flag and path, whose images are not in this ImageListing."""
    return f"{source} was trained on images of another folder than {listing.root}: that the sets fit it is not checked"


def check_models(origins: dict[str, Origin], sources: dict[str, str]) -> list[str]:
    """Warnings (list of str) about two models that are compared; InputError if two files hold the same one.

    origins: of models "A" and "B". sources: {"A": flag and path of the checkpoint, ...}.
    """
    a, b = origins["A"], origins["B"]
    if len({text.partition(" ")[2] for text in sources.values()}) == 1:  # on purpose: a check, or a look at one model
        return [f"{sources['B']}: is model A's checkpoint too: the score is 0, whatever the model memorized"]
    if a.weights == b.weights:
        raise InputError(f"{sources['B']}: holds the same weights as {sources['A']}; name the two models' checkpoints")
    if a.images and b.images and a.images.digest == b.images.digest:
        raise InputError(
            f"{sources['B']}: was trained on the same {len(a.images.indices)} images as {sources['A']}; the test needs "
            "one model trained on set A and one trained on set B"
        )
    warnings = []
    for model, origin in origins.items():
        if origin.images is None:
            warnings.append(without_record(sources[model]))
        if origin.epoch == 0:
            warnings.append(f"{sources[model]} is of epoch 0: an untrained model")
    if None not in (a.epoch, b.epoch) and a.epoch != b.epoch:
        warnings.append(f"model A was trained for {a.epoch} epochs, model B for {b.epoch}: the score compares both")
    if a.settings is not None and b.settings is not None:
        for name in sorted(a.settings.keys() | b.settings.keys()):
            first, second = a.settings.get(name), b.settings.get(name)
            if first != second and not name.startswith(MAY_DIFFER):
                warnings.append(f"the models were trained with different {name}: {first} (A) and {second} (B)")
    return warnings


def check_training_sets(
    origins: dict[str, Origin],
    sources: dict[str, str],
    sets: Mapping[str, IndexSet],
    public: IndexSet,
    listing: ImageListing,
) -> list[str]:
    """Warnings; InputError if an attacked or public image was, or was not, trained on against what the test needs.

    origins, sources: as `check_models` takes them. sets: the attacked images, {"A": (flag that named
    them, int64 (n,) indices), "B": ...}. public: (flag, indices). listing: that all are positions in.
    """
    warnings = []
    for model, origin in origins.items():
        if origin.images is None:
            continue
        if not origin.images.is_of(listing):
            warnings.append(of_another_folder(sources[model], listing))
            continue
        trained = origin.images.indices
        for name, (flag, indices) in sets.items():
            seen = int(np.isin(indices, trained).sum())
            if name == model and seen < len(indices):
                swapped = " (are the models or the sets swapped?)" if not seen else ""
                raise InputError(
                    f"{flag}: {len(indices) - seen} of its {len(indices)} images were not trained on by "
                    f"{sources[model]}{swapped}; give the sets of the partition that the models were trained on"
                )
            if name != model and seen:
                raise InputError(
                    f"{flag}: {sources[model]}, the reference on set {name}, was trained on {seen} of its "
                    f"{len(indices)} images; give the sets of the partition that the models were trained on"
                )
        flag, indices = public
        seen = int(np.isin(indices, trained).sum())
        if seen:
            raise InputError(
                f"{flag}: {sources[model]} was trained on {seen} of its {len(indices)} images; give a public set that "
                "neither model has seen"
            )
    return warnings


def copied_elsewhere(
    index_path: str | None,
    networks: dict[str, Network],
    reference: dict[str, list[str]],
    sets: Mapping[str, IndexSet],
    public: np.ndarray,
    listing: ImageListing,
) -> dict[str, np.ndarray] | None:
    """{set: int64 (m,), the attacked images with a near-copy that the reference was trained on, or that is public}.

    None if the partition did not look for near-copies. index_path: an index file of that partition, or None. networks:
    {name: Network}. reference: {set: names of networks}. sets: {set: (flag, int64 (n,) image indices)}. public: int64
    (p,). What the references do not say they were trained on is taken to be the other set.
    """
    copies = index_path and near_copies_beside(index_path, listing)
    if not copies:
        return None
    copied = {}
    for name in SETS:
        images = [TrainingImages.of_plain(networks[network].about["train_images"]) for network in reference[name]]
        trained = [of_one.indices for of_one in images if of_one is not None and of_one.is_of(listing)]
        (_, attacked), (_, others) = sets[name], sets[TWIN[name]]
        elsewhere = np.concatenate([others, public, *trained])
        copied[name] = attacked[with_near_copy(copies, attacked, elsewhere)]
    return copied
