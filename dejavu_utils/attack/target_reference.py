"""Target and reference: two twin models, or one model and classifiers of background crops.

Such a classifier predicts the object's class from the background crop alone and was trained on the crops of other
images (Kokhlikyan et al. 2024, arXiv 2504.05651). It takes the twin's place only if it never saw the images it judges.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from dejavu_utils.attack.preconditions import IndexSet, Origin, of_another_folder, without_record
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.models import Network, SSLNetwork
from dejavu_utils.naming import SETS, TWIN
from dejavu_utils.networks.embedder import LOGITS

ONE = "M"  # the only model's name
UNSEEN = {"A": "unseen_A", "B": "unseen_B"}  # images that the only model never saw: judged like the set


@dataclass
class TargetReference:
    """The networks by their part. target: {set: name of the network}. reference: {set: names}, of a twin, or of
    classifiers that were trained with different seeds. half: {set: names} of such on half of the crops. classifiers:
    are the references classifiers?"""

    target: dict[str, str]
    reference: dict[str, list[str]]
    half: dict[str, list[str]]
    classifiers: bool

    @classmethod
    def of(cls, names: Mapping[str, str], unseen: bool = False) -> "TargetReference":
        """Of {name: ...}: A and B, or ONE with reference_{A,B}_{1, 2, ...} and half_reference_{A,B}_{1, 2, ...}, where
        the letter is the set that a classifier was trained on: those of B judge set A. unseen: are there such images?
        """
        if ONE not in names:
            return cls({name: name for name in SETS}, {name: [TWIN[name]] for name in SETS}, {}, False)

        def trained_on_the_other_set(kind: str) -> dict[str, list[str]]:
            return {name: [one for one in names if one.startswith(f"{kind}_{TWIN[name]}_")] for name in SETS}

        reference = trained_on_the_other_set("reference")
        half = trained_on_the_other_set("half_reference")
        if unseen:
            reference |= {UNSEEN[name]: reference[name] for name in SETS}
        return cls(dict.fromkeys(reference, ONE), reference, half if all(half.values()) else {}, True)

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
        return [of for parts in (self.reference, self.half) for of, names in parts.items() if name in names]


def check_classifier(network: Network, source: str, crops: str) -> list[str]:
    """InputError unless a network is a classifier that train_SSL.py trained, from random weights, on crops; warnings.

    source: flag and path of its checkpoint. crops: how the attack cuts them, as text (str of a CropRule).
    """
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
    images = TrainingImages.of_plain(network.about["train_images"])
    if images is None:
        return [
            f"{source} does not say which images it was trained on: that it never saw those it judges is not checked"
        ]
    if not images.crops:
        raise InputError(f"{source}: was trained on whole images; write a beton of crops (CROPS=1 ./gen_betons.sh)")
    if images.crops != crops:
        return [f"{source} was trained on other crops ({images.crops}) than those it judges ({crops})"]
    return []


def check_one_model(
    origins: dict[str, Origin],
    sources: dict[str, str],
    comparison: TargetReference,
    sets: Mapping[str, IndexSet],
    public: IndexSet,
    listing: ImageListing,
) -> list[str]:
    """Warnings about what the only model and the classifiers were trained on; InputError where it spoils the test.

    origins, sources (flag and path): by name. sets: {set: (flag, int64 (n,) image indices)}. public: (flag, indices).
    listing: that all are positions in.
    """
    warnings = []
    _check_distinct(origins, sources, comparison)
    for name, origin in origins.items():
        if origin.images is None:
            if name == ONE:
                warnings.append(without_record(sources[name]))
            continue  # of classifiers check_classifier has said it
        if not origin.images.is_of(listing):
            warnings.append(of_another_folder(sources[name], listing))
            continue
        trained = origin.images.indices
        if name == ONE:
            _check_seen(trained, sources[name], sets)
            seen = int(np.isin(public[1], trained).sum())
            if seen:
                warnings.append(
                    f"{sources[name]} was trained on {seen} of the {len(public[1])} images of {public[0]}: its "
                    "neighbors are not those of a model that never saw them; what this does to the score shows "
                    "on unseen images"
                )
        for judged in comparison.judged(name):
            seen = int(np.isin(sets[judged][1], trained).sum())
            if seen:
                what = f"set {judged}" if judged in SETS else sets[judged][0]
                raise InputError(
                    f"{sources[name]} was trained on {seen} images of {what}, which it is to judge: give a classifier "
                    "that never saw them"
                )
    return warnings


def _check_distinct(origins: dict[str, Origin], sources: dict[str, str], comparison: TargetReference) -> None:
    """InputError where two classifiers that judge a set are the same one: their spread would be too small."""
    for name in SETS:
        names = [*comparison.reference[name], *comparison.half.get(name, [])]
        first_with: dict[str, str] = {}
        for classifier in names:
            first = first_with.setdefault(origins[classifier].weights, classifier)
            if first != classifier:
                raise InputError(
                    f"{sources[classifier]}: holds the same weights as {sources[first]}; name each classifier once"
                )


def _check_seen(trained: np.ndarray, source: str, sets: Mapping[str, IndexSet]) -> None:
    """The only model must have seen the attacked images, and none of the unseen ones."""
    for name, (flag, indices) in sets.items():
        seen = int(np.isin(indices, trained).sum())
        if name in SETS and seen < len(indices):
            raise InputError(
                f"{flag}: {len(indices) - seen} of its {len(indices)} images were not trained on by {source}; give "
                "images of its training set"
            )
        if name not in SETS and seen:
            raise InputError(f"{flag}: {source} was trained on {seen} of its images; give images that it never saw")
