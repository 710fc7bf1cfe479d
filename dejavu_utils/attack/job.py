"""What an attack is given, and what it reads before any image is embedded: networks, image sets and
crops."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dejavu_utils.attack.preconditions import (
    IndexSet,
    check_alike,
    check_disjoint,
    check_models,
    check_number_of_classes,
    check_training_set,
    class_warnings,
    numbered_folders,
)
from dejavu_utils.attack.search import CEILING, Queries, ceiling_images
from dejavu_utils.attack.target_reference import (
    UNSEEN,
    TargetReference,
    check_classifier,
    check_one_model,
)
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import OTHER_SIZE, Annotations
from dejavu_utils.data.background_crops import (
    CroppedImages,
    crops_of,
    file_fingerprint,
    frame_warnings,
    in_words,
)
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import ModelRecord, Provenance, Value, sets_record
from dejavu_utils.errors import InputError
from dejavu_utils.files import digest
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.models import Network
from dejavu_utils.naming import SETS
from dejavu_utils.networks.embedder import Inference
from dejavu_utils.networks.inference import check_layers
from dejavu_utils.networks.loading import ModelFile

BOXES = "--imgnet_bbox_pth"


@dataclass(frozen=True)
class ModelFiles:
    """The models. files: by name, as TargetReference.of takes them. layers: those to attack;
    chosen: by --layers. scores: do the class scores of a supervised model take the place of
    neighbors?"""

    files: Mapping[str, ModelFile]
    layers: list[str]
    chosen: bool = False
    scores: bool = False

    def load(
        self, comparison: TargetReference, rule: CropRule
    ) -> tuple[dict[str, Network], list[str]]:
        """({name: network} in eval mode on the CPU, warnings)."""
        networks = {}
        warnings = []
        for name, file in self.files.items():
            network = networks[name] = file.load()
            if name not in comparison.models:
                warnings += check_classifier(network, str(rule))
            elif self.scores and network.loss != "supervised":
                raise InputError(
                    f"--use_supervised_linear 1: {network.source} has no supervised head"
                )
        if not comparison.classifiers:
            check_alike(networks)
        remedy = "name one with --layers" + ("" if self.chosen else " or give --use_backbone 1")
        for name, layers in comparison.layers(networks, self.layers).items():
            check_layers(networks[name], layers, remedy)
        return networks, warnings


@dataclass(frozen=True)
class ImageSets:
    """Image folder, folder of the boxes (None: not read) and .npy files of indices. attacked: {set:
    path}; empty for the placebo, which attacks halves of the public images. crop_cache: .npz that
    keeps the crops."""

    folder: str
    boxes: str | None
    attacked: Mapping[str, str]
    public: str
    unseen: str | None
    crop_cache: str

    def load(self, listing: ImageListing, public: np.ndarray) -> dict[str, IndexSet]:
        """{set: images}: of A and B; of the only model also those that it never saw, in halves,
        each judged by the classifiers of one set. public: int64 (p,)."""
        sets = {}
        for start, name in enumerate(SETS):
            flag = f"--bbox_{name}_idx_pth"
            if self.attacked:
                sets[name] = IndexSet(flag, load_indices(self.attacked[name], flag, listing))
            else:
                sets[name] = IndexSet("--placebo", public[start::2])
        if self.unseen:
            unseen = load_indices(self.unseen, "--unseen_idx_pth", listing)
            for start, name in enumerate(SETS):
                sets[UNSEEN[name]] = IndexSet("--unseen_idx_pth", unseen[start::2])
        return sets

    def annotations(self, listing: ImageListing) -> Annotations | None:
        if self.boxes is None:
            return None
        try:
            return Annotations(self.boxes, listing, BOXES)
        except InputError as error:
            raise InputError(f"{error}; without boxes, give --use_corner_crop 1") from None


@dataclass(frozen=True)
class Job:
    """An attack. k: neighbors that are kept; k_attk: nearest of them that vote, 0 for all.
    inference: on the device of the process. class_names: path. settings: the flags, for
    results.json."""

    folder: Path
    models: ModelFiles
    images: ImageSets
    rule: CropRule
    k: int
    k_attk: int
    inference: Inference
    class_names: str | None
    settings: Mapping[str, object]

    @property
    def comparison(self) -> TargetReference:
        return TargetReference.of(self.models.files, bool(self.images.unseen))

    def check(
        self,
        networks: dict[str, Network],
        sets: dict[str, IndexSet],
        public: np.ndarray,
        listing: ImageListing,
    ) -> list[str]:
        """Warnings about models and sets that the score may not be about; InputError where it would
        mean nothing."""
        placebo = not self.images.attacked
        if not self.models.scores and self.k > len(public) - placebo:
            raise InputError(
                f"--k {self.k}: the public set of --public_idx_pth has only {len(public)} images"
            )
        attacked = {} if placebo else sets
        of_public = IndexSet("--public_idx_pth", public)
        check_disjoint([*attacked.values(), of_public])
        comparison = self.comparison
        if comparison.classifiers:
            warnings = check_one_model(networks, comparison, sets, of_public, listing)
        else:
            warnings = check_models(networks)
            for model, network in networks.items():
                trained = [images for name, images in attacked.items() if name == model]
                others = [images for name, images in attacked.items() if name != model]
                warnings += check_training_set(network, listing, trained, [*others, of_public])
        with_scores = list(networks) if self.models.scores else list(comparison.shown(networks))
        for name in with_scores:
            check_number_of_classes(networks[name], listing)
        if with_scores:
            warnings += numbered_folders(listing)
        if not self.models.scores:
            warnings += class_warnings(listing, sets, public)
        return warnings

    def crops(
        self,
        listing: ImageListing,
        annotations: Annotations | None,
        sets: dict[str, IndexSet],
        public: np.ndarray,
    ) -> tuple[dict[str, CroppedImages], list[str]]:
        """({set: images and their crops, ..., CEILING: ...}, the queries in order; warnings about
        the boxes); InputError where no image has a crop."""
        indices = {name: images.indices for name, images in sets.items()}
        cache = self.images.crop_cache
        skip = self.inference.skip_unreadable
        parts, cached = crops_of(cache, listing, indices, self.rule, annotations, skip)
        source = f"{BOXES} {self.images.boxes}"
        warnings = frame_warnings(annotations, indices, self.rule, source)
        if cached:
            print(f"crops of {cache}")
        skipped: Counter[str] = Counter()
        for name, images in parts.items():
            skipped.update(images.counts)
            why = f" ({in_words(images.counts)})" if len(images) < images.counts["images"] else ""
            print(f"set {name}: {len(images)} of {images.counts['images']} images attacked{why}")
        if not any(map(len, parts.values())):
            remedy = f"see --min_px {self.rule.min_px}, or give --use_corner_crop 1"
            if skipped[OTHER_SIZE] and not self.rule.scale:
                remedy += "; --scale_boxes 1 scales boxes of images that were resized"
            raise InputError(f"{source}: no image has a crop: {in_words(skipped)}; {remedy}")
        parts[CEILING] = ceiling_images(listing, public, skip)
        return parts, warnings

    def record(
        self,
        models: dict[str, ModelRecord],
        listing: ImageListing,
        sets: dict[str, IndexSet],
        queries: Queries,
        public: np.ndarray,
    ) -> Provenance:
        """Of the attack, but for its votes. public: int64 (p,)."""
        crops: dict[str, Value] = {
            "digest": digest(queries.indices, queries.crops),
            "rule": str(self.rule),
            "margin": self.rule.margin,
            "least_side": self.rule.min_px,
        }
        return Provenance(
            models=models,
            images=listing.fingerprint["sha256"],
            sets=sets_record(sets),
            crops=crops,
            public=digest(public),
            precision=self.inference.precision,
            resolution=self.inference.resolution,
            settings={"use_supervised_linear": int(self.models.scores)},
        )

    def of_layer(self, record: Provenance, layer: str) -> Provenance:
        """The record with the votes of one layer."""
        return replace(record, votes={"k": self.k, "k_attk": self.k_attk, "layer": layer})

    def folder_of(self, layer: str) -> Path:
        """Where a layer's results are written."""
        return self.folder / layer if self.models.chosen else self.folder

    def key(
        self, record: Provenance, listing: ImageListing, queries: Queries, public: np.ndarray
    ) -> dict:
        """The record of all that the neighbors depend on, plain: pieces of an attack with another
        one are not used."""
        settings: dict[str, Value] = {
            "batch_size": self.inference.batch_size,
            "skip_unreadable": self.inference.skip_unreadable,
            "use_supervised_linear": int(self.models.scores),
            "device": self.inference.device.type,
            "pieces": 2,  # the version of their format
        }
        for name, rows in queries.shown.items():
            settings[f"shown to {name}"] = digest(rows)
        votes: dict[str, Value] = {"k": self.k, "layers": ",".join(self.models.layers)}
        files = file_fingerprint(listing, np.concatenate([queries.indices, public]))
        return replace(record, votes=votes, files=files, settings=settings).plain()
