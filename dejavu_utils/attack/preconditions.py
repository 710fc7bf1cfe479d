"""Are the two models and the sets what the déjà vu test needs? Errors for what makes its score meaningless, warnings
for what may."""

from dataclasses import dataclass

import numpy as np

from dejavu_utils.data.near_copies import near_copies_beside, with_near_copy
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.errors import InputError
from dejavu_utils.files import digest

# Settings in which the two trainings may differ: they do not change what a model could learn.
MAY_DIFFER = ("data.", "logging.", "dist.", "validation.", "training.eval_", "training.train_probes_only")
MAY_DIFFER += ("training.compile",)


@dataclass
class Origin:
    """What a network's checkpoint says of its training; None where it does not say it. weights: SHA-256 of the
    parameters in half precision, the same for a copy in which they were saved so. settings: flat, as in params.json."""

    weights: str
    epoch: int | None = None
    settings: dict | None = None
    images: TrainingImages | None = None

    @classmethod
    def of(cls, network):
        """Of a network that loading.load_network gave, before it is prepared for inference."""
        about = network.about
        images = TrainingImages.of_plain(about["train_images"])
        weights = digest(*(parameter.detach().half() for parameter in network.parameters()))
        return cls(weights, about["epoch"], about["settings"], images)


def check_disjoint(sets, public):
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


def check_alike(networks, where):
    """InputError unless two networks are of one kind. networks: {"A": Network, "B": ...}. where: as below."""
    kinds = [(n.arch, n.mlp, str(n.preprocessing), " or ".join(n.losses())) for n in networks.values()]
    one, other = (set(n.losses()) for n in networks.values())
    if not one & other or any(a != b for a, b in zip(*(kind[:3] for kind in kinds)) if None not in (a, b)):
        raise InputError(
            f"{where['B']}: is a {kinds[1]}, {where['A'].partition(' ')[0]} a {kinds[0]}; the test compares two models "
            "that were trained the same way"
        )


def without_record(where):
    """The warning about a checkpoint, flag and path, that does not say its images."""
    return f"{where} does not say which images it was trained on: that the sets fit it is not checked"


def of_another_folder(where, listing):
    """The warning about a checkpoint, flag and path, whose images are not in this ImageListing."""
    return f"{where} was trained on images of another folder than {listing.root}: that the sets fit it is not checked"


def check_models(origins, where):
    """Warnings (list of str) about two models that are compared; InputError if two files hold the same one.

    origins: {"A": Origin, "B": ...}. where: {"A": flag and path of the checkpoint, ...}.
    """
    a, b = origins["A"], origins["B"]
    if len({text.partition(" ")[2] for text in where.values()}) == 1:  # on purpose: a check, or a look at one model
        return [f"{where['B']}: is model A's checkpoint too: the score must be 0, whatever the model memorized"]
    if a.weights == b.weights:
        raise InputError(f"{where['B']}: holds the same weights as {where['A']}; name the two models' checkpoints")
    if a.images and b.images and a.images.digest == b.images.digest:
        raise InputError(
            f"{where['B']}: was trained on the same {len(a.images.indices)} images as {where['A']}; the test needs one "
            "model trained on set A and one trained on set B"
        )
    warnings = []
    for model, origin in origins.items():
        if origin.images is None:
            warnings.append(without_record(where[model]))
        if origin.epoch == 0:
            warnings.append(f"{where[model]} is of epoch 0: an untrained model")
    if None not in (a.epoch, b.epoch) and a.epoch != b.epoch:
        warnings.append(f"model A was trained for {a.epoch} epochs, model B for {b.epoch}: the score compares both")
    if a.settings is not None and b.settings is not None:
        for name in sorted(a.settings.keys() | b.settings.keys()):
            first, second = a.settings.get(name), b.settings.get(name)
            if first != second and not name.startswith(MAY_DIFFER):
                warnings.append(f"the models were trained with different {name}: {first} (A) and {second} (B)")
    return warnings


def check_training_sets(origins, where, sets, public, listing):
    """Warnings; InputError if an attacked or public image was, or was not, trained on against what the test needs.

    origins, where: as `check_models` takes them. sets: {"A": int64 (n,), "B": ...}, the attacked images, with the flag
    that named them: {"A": (flag, indices)}. public: (flag, indices). listing: ImageListing that all are positions in.
    """
    warnings = []
    for model, origin in origins.items():
        if origin.images is None:
            continue
        if not origin.images.is_of(listing):
            warnings.append(of_another_folder(where[model], listing))
            continue
        trained = origin.images.indices
        for name, (flag, indices) in sets.items():
            seen = int(np.isin(indices, trained).sum())
            if name == model and seen < len(indices):
                swapped = " (are the models or the sets swapped?)" if not seen else ""
                raise InputError(
                    f"{flag}: {len(indices) - seen} of its {len(indices)} images were not trained on by "
                    f"{where[model]}{swapped}; give the sets of the partition that the models were trained on"
                )
            if name != model and seen:
                raise InputError(
                    f"{flag}: {where[model]}, the reference on set {name}, was trained on {seen} of its "
                    f"{len(indices)} images; give the sets of the partition that the models were trained on"
                )
        flag, indices = public
        seen = int(np.isin(indices, trained).sum())
        if seen:
            raise InputError(
                f"{flag}: {where[model]} was trained on {seen} of its {len(indices)} images; give a public set that "
                "neither model has seen"
            )
    return warnings


def copied_elsewhere(index_path, networks, reference, sets, public, listing):
    """{set: int64 (m,), the attacked images with a near-copy that the reference was trained on, or that is public}.

    None if the partition did not look for near-copies. index_path: an index file of that partition, or None. networks:
    {name: Network}. reference: {set: names of networks}. sets: {set: (flag, int64 (n,) image indices)}. public: int64
    (p,). What the references do not say they were trained on is taken to be the other set.
    """
    copies = index_path and near_copies_beside(index_path, listing)
    if not copies:
        return None
    found = {}
    for name, other in zip("AB", "BA"):
        images = [TrainingImages.of_plain(networks[network].about["train_images"]) for network in reference[name]]
        trained = [of_one.indices for of_one in images if of_one is not None and of_one.is_of(listing)]
        (_, attacked), (_, others) = sets[name], sets[other]
        found[name] = attacked[with_near_copy(copies, attacked, np.concatenate([others, public, *trained]))]
    return found


def check_ceilings(ceilings, chance):
    """Warnings about two models that tell the classes of whole public images unequally well.

    ceilings: {model: {"top_1": {"value", "low", "high"}, ...}}, of one model or two. chance: accuracy of guessing.
    """
    if len(ceilings) < 2:
        return []
    ceilings = {model: ceiling.top_1 for model, ceiling in ceilings.items()}
    low, high = sorted(ceilings.values(), key=lambda estimate: estimate.value)
    if high.value - low.value > 0.1 * (1 - chance) and low.high < high.low:
        worse = min(ceilings, key=lambda model: ceilings[model].value)
        return [
            f"model {worse} names the class of {100 * low.value:.1f} % of whole public images, the other of "
            f"{100 * high.value:.1f} %: unequal encoders, so the score is not memorization alone"
        ]
    return []
