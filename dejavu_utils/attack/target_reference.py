"""Target and reference: two twin models, or one model and classifiers of background crops.

Such a classifier predicts the object's class from the background crop alone and was trained on the
crops of other images (Kokhlikyan et al. 2024, arXiv 2504.05651). It takes the twin's place only if
it never saw the images it judges.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dejavu_utils.attack.preconditions import IndexSet, check_training_set, have_same_weights
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.models import Network, SSLNetwork
from dejavu_utils.naming import LOGITS, SETS, TWIN

ONE = "M"  # the only model's name
# images that the only model never saw: judged like the set
UNSEEN = {"A": "unseen_A", "B": "unseen_B"}


@dataclass
class TargetReference:
    """The networks by their part. target: {set: name of the network}. reference: {set: names}, of a
    twin, or of classifiers that were trained with different seeds. half: {set: names} of such on
    half of the crops."""

    target: dict[str, str]
    reference: dict[str, list[str]]
    half: dict[str, list[str]]

    @classmethod
    def of(cls, names: Iterable[str], unseen: bool = False) -> "TargetReference":
        """Of names: A and B, or ONE with reference_{A,B}_{1, 2, ...} and half_reference_{A,B}_{1,
        2, ...}, where the letter is the set that a classifier was trained on: those of B judge set
        A. unseen: are there such images?
        """
        names = list(names)
        if ONE not in names:
            own = {name: name for name in SETS}
            return cls(own, {name: [TWIN[name]] for name in SETS}, {})
        reference = {}
        half = {}
        for name in SETS:
            reference[name] = [one for one in names if one.startswith(f"reference_{TWIN[name]}_")]
            half[name] = [one for one in names if one.startswith(f"half_reference_{TWIN[name]}_")]
        if not all(half.values()):
            half = {}
        if unseen:
            for name in SETS:
                reference[UNSEEN[name]] = reference[name]
        return cls(dict.fromkeys(reference, ONE), reference, half)

    @property
    def classifiers(self) -> bool:
        """Are the references classifiers?"""
        return ONE in self.target.values()

    @property
    def kind(self) -> str:
        """What the reference is, as in results.json."""
        return "classifier" if self.classifiers else "model"

    @property
    def models(self) -> list[str]:
        """Names of the models that are tested."""
        return list(dict.fromkeys(self.target.values()))

    def layers(self, names: Iterable[str], layers: list[str]) -> dict[str, list[str]]:
        """{name: layers that the network is asked for}; layers: those that are attacked."""
        return {name: layers if name in self.models else [LOGITS] for name in names}

    def keys(self, layer: str, names: Iterable[str]) -> list[tuple[str, str]]:
        """(network, layer) of several networks, as attack.search.SearchResult has them."""
        return [(name, layer if name in self.models else LOGITS) for name in names]

    def shown(self, names: Iterable[str]) -> dict[str, list[str]]:
        """{classifier: sets of images that it is shown}: those that it judges, and nothing else."""
        return {name: self.judged(name) for name in names if name not in self.models}

    def judged(self, name: str) -> list[str]:
        """Sets on which a classifier is the reference."""
        judged = []
        for of, names in [*self.reference.items(), *self.half.items()]:
            if name in names:
                judged.append(of)
        return judged


def check_classifier(network: Network, crops: str) -> list[str]:
    """InputError unless a network is a classifier that train_SSL.py trained, from random weights,
    on crops; warnings.

    crops: how the attack cuts them, as text (str of a CropRule).
    """
    source = network.source
    if not isinstance(network, SSLNetwork):
        raise InputError(
            f"{source}: is a public network: pretrained weights have seen the tested images; train a classifier on "
            "crops from random weights (configs/crop_classifier_cfg.yaml)"
        )
    if network.loss != "supervised":
        raise InputError(
            f"{source}: has no classifier; train one on crops (configs/crop_classifier_cfg.yaml, --training.loss "
            "supervised)"
        )
    images = TrainingImages.of(network)
    if images is not None and not images.crops:
        raise InputError(
            f"{source}: was trained on whole images; write a beton of crops (CROPS=1 ./gen_betons.sh)"
        )
    if images is not None and images.crops != crops:
        return [
            f"{source} was trained on other crops ({images.crops}) than those it judges ({crops})"
        ]
    return []


def check_one_model(
    networks: Mapping[str, Network],
    comparison: TargetReference,
    sets: Mapping[str, IndexSet],
    public: IndexSet,
    listing: ImageListing,
) -> list[str]:
    """Warnings about what the only model and the classifiers were trained on; InputError where it
    spoils the test.

    networks: by name. listing: that all indices are positions in.
    """
    _check_distinct(networks, comparison)
    warnings = []
    for name, network in networks.items():
        trained = []
        unseen = []
        if name == ONE:
            for of, images in sets.items():
                (trained if of in SETS else unseen).append(images)
        else:
            unseen = [sets[judged] for judged in comparison.judged(name)]
        unknown = check_training_set(network, listing, trained, unseen)
        warnings += unknown
        images = TrainingImages.of(network)
        if name == ONE and not unknown and images:
            seen = images.seen(public.indices)
            if seen:
                warnings.append(
                    f"{network.source} was trained on {seen} of the {len(public.indices)} images of {public.flag}: its "
                    "neighbors are not those of a model that never saw them; what this does to the score shows on "
                    "unseen images"
                )
    return warnings


def _check_distinct(networks: Mapping[str, Network], comparison: TargetReference) -> None:
    """InputError where two classifiers that judge a set are the same one: their spread would be too
    small."""
    for name in SETS:
        distinct: list[Network] = []
        for classifier in [*comparison.reference[name], *comparison.half.get(name, [])]:
            network = networks[classifier]
            for other in distinct:
                if have_same_weights(network, other):
                    raise InputError(
                        f"{network.source}: holds the same weights as {other.source}; name each classifier once"
                    )
            distinct.append(network)
