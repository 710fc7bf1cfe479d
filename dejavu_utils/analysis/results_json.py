"""results.json of the attack and of the linear probe, every entry declared once, and its readers;
which layers an attack's folder holds."""

import ast
import math
import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dejavu_utils.analysis.attack_files import file_digests
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.membership import Membership
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import load_json
from dejavu_utils.naming import ATTACKED_LAYER, LAYERS_BESIDE, attack_path
from dejavu_utils.typed_json import entry, from_json, optional

RESULTS = "results.json"
T = TypeVar("T")


@dataclass
class LevelResults:
    """Accuracies among the most confident examples, mean of the attacked sets."""

    target: Estimate = entry(
        "accuracy of the model that was trained on the attacked set; null without examples"
    )
    reference: Estimate = entry(
        "accuracy of the model that was not, or of the classifiers in its place"
    )
    score: Estimate = entry("déjà vu score: target - reference accuracy")
    chance: float = entry(
        "mean reference accuracy of the same predictions under permuted labels", default=math.nan
    )


@dataclass
class TopResults:
    """Figures of the first k predictions."""

    accuracy: dict[str, LevelResults] = entry(
        "by per cent of the examples, the most confident ones: 5, 20, 100", default_factory=dict
    )
    shares: dict[str, Estimate] = entry(
        "fractions of all examples: memorized, correlated, misrepresented, unassociated",
        default_factory=dict,
    )


@dataclass
class MemorizationConfidence:
    """By how much surer the model is than the classifiers, mean over the memorized examples, in
    nats."""

    published: Estimate | None = entry(
        "entropy of the classifiers' softmax - entropy of the votes; null for one image"
    )
    corrected: Estimate | None = entry(
        "the entropy of as many votes drawn from that softmax - entropy of the votes"
    )
    n: int = entry("memorized examples")


@dataclass
class OneModelResults:
    """The test of one model (docs/one_model.md), top-1, all examples. Figures that were not asked
    for are null."""

    score: Estimate = entry("accuracy of the model - that of the classifiers")
    delta: Estimate | None = entry("the same on images that the model never saw", default=None)
    score_minus_delta: Estimate | None = entry("score - delta", default=None)
    margin: Estimate | None = entry(
        "vote share of the true label - its probability under the classifiers", default=None
    )
    margin_delta: Estimate | None = entry(
        "the same on images that the model never saw", default=None
    )
    margin_minus_delta: Estimate | None = entry("margin - margin_delta", default=None)
    rise: Estimate | None = entry(
        "reference accuracy with all crops - with half of them", default=None
    )
    spread_in_intervals: bool = entry(
        "do the intervals include the training of the classifiers?", default=False
    )
    reference_accuracy_by_seed: list[float] | None = optional(
        "accuracy of each classifier; of one set"
    )
    reference_sd: float | None = optional(
        "standard deviation of these; null for one classifier; of one set"
    )
    reference_agreement: float | None = optional(
        "fraction of images for which two classifiers predict the same class, mean over pairs; of one set"
    )
    memorization_confidence: MemorizationConfidence | None = entry(
        "null where the model's predictions are no votes, or no example is memorized", default=None
    )


@dataclass
class SetResults:
    """Figures of one attacked set, or of both."""

    n: int = entry("attacked examples")
    top_1: TopResults = entry("is the true label the first prediction?")
    top_5: TopResults = entry("is it among the first five?", default_factory=TopResults)
    vote_share: dict[str, Estimate] = entry(
        "mean share of the votes for the true label: target, reference, margin; empty without votes",
        default_factory=dict,
    )
    one_model: OneModelResults | None = optional("with --model_oss_pth")


@dataclass
class TopAccuracies:
    """Accuracy of the first prediction, and of the first five."""

    top_1: Estimate = entry("is the true label the first prediction?")
    top_5: Estimate = entry("is it among the first five?")

    def of(self, top_k: int) -> Estimate:
        """Of the first prediction (1) or the first five (5)."""
        return self.top_1 if top_k == 1 else self.top_5


@dataclass
class NearCopies:
    """Attacked images with a near-copy that the reference was trained on, or that is public."""

    A: int = entry("images of set A")
    B: int = entry("images of set B")
    without: SetResults | None = optional("figures of both sets without these images")


@dataclass
class AttackResults:
    """results.json of the attack on one layer. Older files may lack entries that have a default
    here."""

    both: SetResults = entry("mean of the two attacked sets")
    A: SetResults = entry("set A: the target is model A")
    B: SetResults = entry("set B: the target is model B")
    ceiling: dict[str, TopAccuracies] = entry(
        "by model: accuracy of the same vote on whole public images, each left out of its own neighbors",
        default_factory=dict,
    )
    counts: dict[str, Any] = entry(
        "images by set: how many were attacked, and left out for what; public images; classes",
        default_factory=dict,
    )
    warnings: list[str] = entry(
        "what could make the score mean less than it seems", default_factory=list
    )
    settings: dict[str, Any] = entry(
        "the flags, and layer, device, reference", default_factory=dict
    )
    made_from: dict[str, Any] | None = optional("the record of data.provenance")
    near_copies: NearCopies | None = optional("if the partition looked for near-copies")
    probe_accuracy: float | None = optional("of training's own linear probe, if it is known")
    membership: Membership | None = optional(
        "of set A against set B for model A, by the margin of votes; not of one model"
    )
    files: dict[str, str] | None = optional(
        "SHA-256 of each file beside this one that others read; of arrays in the order of the image indices"
    )
    conclusion: str | None = optional("name of the concluding sentence")
    conclusion_in_words: str | None = optional("the concluding sentence")

    def of(self, group: str) -> SetResults:
        """Of "both", "A" or "B"."""
        return getattr(self, group)

    def score(self, group: str = "both") -> Estimate:
        """The déjà vu score: top-1, all examples."""
        return self.of(group).top_1.accuracy["100"].score

    @property
    def layer(self) -> str | None:
        return self.settings.get("layer")

    @property
    def k_attk(self) -> int:
        """Neighbors that vote; 0 if it does not say."""
        return self.settings.get("k_attk") or self.settings.get("k") or 0

    @property
    def mean_ceiling(self) -> TopAccuracies | None:
        """Mean over the models, of low and high too, since they see the same public images; None
        without any."""
        if not self.ceiling:
            return None
        estimates = [astuple(of_model) for of_model in self.ceiling.values()]
        top_1, top_5 = np.mean(estimates, axis=0).tolist()
        return TopAccuracies(Estimate(*top_1), Estimate(*top_5))


def read_results(folder: Path) -> AttackResults | None:
    """results.json of an attack's folder (of one layer); None where there is none.

    InputError for another file, and where a file beside it is of another attack.
    """
    results = _read(folder / RESULTS, AttackResults, "label_inference_attack.py")
    if results and results.files:
        for name, contents in file_digests(folder).items():
            if contents != results.files.get(name):
                raise InputError(
                    f"{folder / RESULTS}: {name} beside it is of another attack: two attacks are mixed in this folder; "
                    "remove it and attack again"
                )
    return results


def _read(path: Path, kind: type[T], script: str) -> T | None:
    if not path.is_file():
        return None
    try:
        return from_json(kind, load_json(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: was not written by {script} ({one_line(error)})") from None


def attacked_layers(folder: Path) -> dict[str, Path]:
    """{layer: folder} of an attack: subfolders backbone, projector.{i} and projector, or the folder
    itself.

    The folder's own files are those of the layer that its results.json names; without one, of
    LAYERS_BESIDE's if the folder above has such a name, else of the projector's output.
    """
    layers = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and ATTACKED_LAYER.fullmatch(path.name):
            layers[path.name] = path
    if attack_path(folder, "A", "A", "attk_idxs").is_file():
        results = _read(folder / RESULTS, AttackResults, "label_inference_attack.py")
        by_name = LAYERS_BESIDE.get(folder.absolute().parent.name, "projector")
        layer = results and results.layer or by_name
        # the later attack
        if layer not in layers or _written_at(layers[layer]) < _written_at(folder):
            layers[layer] = folder
    return layers


def check_one_kind(folder: Path, layers: bool) -> None:
    """InputError where an attack of several layers (with --layers) and one of a single layer would
    share a folder."""
    others = [name for name, path in attacked_layers(folder).items() if path != folder]
    own = attack_path(folder, "A", "A", "attk_idxs").exists()
    if own and layers or others and not layers:
        what = "of one layer" if own else f"of the layers {', '.join(sorted(others))} (--layers)"
        raise InputError(
            f"--output_dir {folder}: holds an attack {what}; remove it or name another folder"
        )


def _written_at(folder: Path) -> float:
    path = attack_path(folder, "A", "A", "attk_idxs")
    return path.stat().st_mtime if path.is_file() else 0.0


@dataclass
class ProbeAccuracies:
    """Accuracies at the end of a linear probe."""

    train: TopAccuracies = entry("on the training images, with the transform of the test")
    val: TopAccuracies = entry("on the validation images")


@dataclass
class ProbeResults:
    """results.json of lin_probe.py."""

    final: ProbeAccuracies = entry("accuracies at the end")
    epochs: list[Any] = entry("the record of each epoch", default_factory=list)
    counts: dict[str, int] = entry("images: train, val; classes", default_factory=dict)
    settings: dict[str, Any] = entry(
        "the flags, and layer, device, processes", default_factory=dict
    )
    made_from: dict[str, Any] | None = optional("the record of data.provenance")


def read_probe(folder: Path) -> ProbeResults:
    """The results of a linear probe's folder.

    From results.json, or, in folders of others, from the dicts at the end of *_log.out: the last
    but one is validation, the last is training; those have no interval (NaN). The last log that a
    probe finished counts. InputError names a folder that holds neither.
    """
    results = _read(folder / RESULTS, ProbeResults, "lin_probe.py")
    if results:
        return results
    logs = sorted(folder.rglob("*_log.out"), key=lambda path: path.stat().st_mtime)
    for log in reversed(logs):
        printed = []
        for text in re.findall(r"\{[^{}]*\}", log.read_text(errors="replace")):
            accuracies = _printed_accuracies(text)
            if accuracies:
                printed.append((_printed_set(text), accuracies))
        if len(printed) < 2:
            continue
        (second, val), (last, train) = printed[-2:]
        # The study's code names the set: a job that did not finish has printed validation
        # accuracies alone.
        if last != "val" and second != "train":
            return ProbeResults(ProbeAccuracies(train=train, val=val))
    raise InputError(
        f"{folder}: holds neither results.json nor the *_log.out of a finished probe; probe again"
    )


def _printed_set(text: str) -> str | None:
    """ "train" or "val" of a printed dict that has "dset"; else None."""
    named = re.search(r"""["']dset["']: *["'](\w+)["']""", text)
    return named[1] if named else None


def _printed_accuracies(text: str) -> TopAccuracies | None:
    """Of a printed dict such as {'top_1': np.float64(0.5), 'top_5': 0.8}, fractions or per cents;
    else None."""
    try:
        printed = ast.literal_eval(re.sub(r"\bnp\.float\d+\(([^()]*)\)", r"\1", text))
    except (ValueError, SyntaxError):
        return None
    if not isinstance(printed, dict):
        return None
    values = {}
    for name, value in printed.items():
        top_k = re.search(r"(?<!\d)[15](?!\d)", str(name))
        if top_k and isinstance(value, (int, float)):
            values[top_k[0]] = float(value)
    if len(values) < 2:
        return None
    scale = 100 if max(values.values()) > 1 else 1
    top_1 = Estimate(values["1"] / scale, math.nan, math.nan)
    top_5 = Estimate(values["5"] / scale, math.nan, math.nan)
    return TopAccuracies(top_1, top_5)


def read_ceiling(folder: Path, k_attk: int) -> TopAccuracies | None:
    """The ceiling of an attack's folder, of this layer; None if its results.json, if there is one,
    does not say.

    k_attk: None too where other than so many neighbors have voted; 0 takes any.
    """
    results = read_results(folder)
    if results is None:
        return None
    other_votes = k_attk and results.layer != "logits" and k_attk != results.k_attk
    return None if other_votes else results.mean_ceiling
