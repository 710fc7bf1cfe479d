"""What an attack is given, and what it reads before any image is embedded: networks, image sets and crops."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dejavu_utils.attack.preconditions import (
    IndexSet,
    Origin,
    check_alike,
    check_classes,
    check_disjoint,
    check_models,
    check_training_sets,
    class_warnings,
)
from dejavu_utils.attack.search import CEILING, ceiling_images
from dejavu_utils.attack.target_reference import UNSEEN, TargetReference, check_classifier, check_one_model
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import OTHER_SIZE, Annotations
from dejavu_utils.data.background_crops import CroppedImages, crops_of, file_fingerprint, frame_warnings, in_words
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import ModelRecord, Provenance, Value, crops_record, sets_record
from dejavu_utils.errors import InputError
from dejavu_utils.files import digest
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.log import Progress, say
from dejavu_utils.models import L2, Network
from dejavu_utils.naming import SETS
from dejavu_utils.networks.embedder import LOGITS, ImageSet, Inference
from dejavu_utils.networks.loading import check_typed, load_network

BOXES = "--imgnet_bbox_pth"


@dataclass(frozen=True)
class ModelFiles:
    """The checkpoints. files: {name: (flag, path)}, named as TargetReference.of takes them. layers: those to attack;
    chosen: by --layers. scores: do the class scores of a supervised model take the place of neighbors? arch, mlp, loss,
    resnet50: as typed. resolution: side of the networks' input in pixels; None: each network's own."""

    files: Mapping[str, tuple[str, str]]
    layers: list[str]
    chosen: bool = False
    scores: bool = False
    arch: str | None = None
    mlp: str | None = None
    loss: str | None = None
    resnet50: bool = False
    resolution: int | None = None

    @property
    def sources(self) -> dict[str, str]:
        """{name: flag and path}, for messages."""
        return {name: f"{flag} {path}" for name, (flag, path) in self.files.items()}

    def load(self, comparison: TargetReference, rule: CropRule) -> tuple[dict[str, Network], list[str]]:
        """({name: network} in eval mode on the CPU, warnings)."""
        networks, warnings = {}, []
        for name, (flag, path) in self.files.items():
            is_tested = name in comparison.models
            source = self.sources[name]
            network = load_network(path, flag, self.arch if is_tested else None, resolution=self.resolution)
            networks[name] = network
            say(f"{source}: {network.notes}")
            if not is_tested:
                warnings += check_classifier(network, source, str(rule))
                continue
            check_typed(network, source, self.mlp, self.loss, self.resnet50)
            if self.scores and network.loss != "supervised":
                raise InputError(f"--use_supervised_linear 1: {source} has no supervised head")
        if not comparison.classifiers:
            check_alike(networks, self.sources)
        return networks, warnings

    def check_layers_exist(self, network: Network, source: str) -> None:
        """InputError for a layer that the network does not have. source: flag and path of its checkpoint."""
        names = [name for name in network.layer_names() if name != LOGITS or self.scores]
        for layer in self.layers:
            if layer.removesuffix(L2) in names:
                continue
            what, remedy = f"--layers {layer}", ""
            if not self.chosen:
                what, remedy = f"the {layer} is attacked by default", " or give --use_backbone 1"
            raise InputError(f"{what}: {source} has {', '.join(names)}; name one with --layers{remedy}")


@dataclass(frozen=True)
class ImageSets:
    """Image folder, folder of the boxes (None: not read) and .npy files of indices. attacked: {set: path}; empty for
    the placebo, which attacks halves of the public images. crop_cache: .npz that keeps the crops."""

    folder: str
    boxes: str | None
    attacked: Mapping[str, str]
    public: str
    unseen: str | None
    crop_cache: str

    def load(self, listing: ImageListing, public: np.ndarray) -> dict[str, IndexSet]:
        """{set: images}: of A and B; of the only model also those that it never saw, in halves, each judged by the
        classifiers of one set. public: int64 (p,)."""
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

    def crops(
        self,
        listing: ImageListing,
        rule: CropRule,
        sets: Mapping[str, IndexSet],
        annotations: Annotations | None,
        skip_unreadable: bool,
    ) -> tuple[dict[str, CroppedImages], list[str]]:
        """({set: images and their crops}, warnings about the boxes); InputError where no image has a crop."""
        indices = {name: images.indices for name, images in sets.items()}
        parts, cached = crops_of(self.crop_cache, listing, indices, rule, annotations, skip_unreadable, Progress)
        warnings = frame_warnings(annotations, indices, rule, f"{BOXES} {self.boxes}")
        if cached:
            print(f"crops of {self.crop_cache}")
        skipped: Counter[str] = Counter()
        for name, images in parts.items():
            skipped.update(images.counts)
            why = f" ({in_words(images.counts)})" if len(images) < images.counts["images"] else ""
            print(f"set {name}: {len(images)} of {images.counts['images']} images attacked{why}")
        if not any(map(len, parts.values())):
            remedy = f"see --min_px {rule.min_px}, or give --use_corner_crop 1"
            if skipped[OTHER_SIZE] and not rule.scale:
                remedy += "; --scale_boxes 1 scales boxes of images that were resized"
            raise InputError(f"{BOXES} {self.boxes}: no image has a crop: {in_words(skipped)}; {remedy}")
        return parts, warnings


@dataclass(frozen=True)
class Job:
    """An attack. k: neighbors that are kept; k_attk: nearest of them that vote, 0 for all. inference: on the device of
    the process. class_names: path. settings: the flags, for results.json."""

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
        return TargetReference.of(self.models.sources, bool(self.images.unseen))

    def check(
        self,
        networks: dict[str, Network],
        sets: dict[str, IndexSet],
        public: np.ndarray,
        listing: ImageListing,
    ) -> list[str]:
        """Warnings about models and sets that the score may not be about; InputError where it would mean nothing."""
        placebo = not self.images.attacked
        if not self.models.scores and self.k > len(public) - placebo:
            raise InputError(f"--k {self.k}: the public set of --public_idx_pth has only {len(public)} images")
        attacked, of_public = {} if placebo else sets, IndexSet("--public_idx_pth", public)
        check_disjoint(attacked, of_public)
        comparison, sources = self.comparison, self.models.sources
        origins = {name: Origin.of(network) for name, network in networks.items()}
        if comparison.classifiers:
            warnings = check_one_model(origins, sources, comparison, sets, of_public, listing)
        else:
            warnings = check_models(origins, sources)
            warnings += check_training_sets(origins, sources, attacked, of_public, listing)
        with_scores = list(networks) if self.models.scores else comparison.shown(networks)
        warnings += check_classes({name: networks[name] for name in with_scores}, sources, listing)
        if not self.models.scores:
            warnings += class_warnings(listing, sets, public)
        self.models.check_layers_exist(networks[comparison.models[0]], sources[comparison.models[0]])
        return warnings

    def parts(
        self,
        listing: ImageListing,
        annotations: Annotations | None,
        sets: dict[str, IndexSet],
        public: np.ndarray,
        warnings: list[str],
    ) -> dict[str, CroppedImages]:
        """{set: images and their crops, ..., CEILING: ...}: the queries in order; `warnings` get those of the boxes."""
        skip = self.inference.skip_unreadable
        parts, of_boxes = self.images.crops(listing, self.rule, sets, annotations, skip)
        warnings += of_boxes
        return {**parts, CEILING: ceiling_images(listing, public, skip)}

    def record(
        self,
        models: dict[str, ModelRecord],
        listing: ImageListing,
        sets: dict[str, IndexSet],
        queries: ImageSet,
        public: np.ndarray,
    ) -> Provenance:
        """Of the attack, but for its votes. public: int64 (p,)."""
        assert queries.crops is not None
        return Provenance(
            models=models,
            images=listing.fingerprint["sha256"],
            sets=sets_record(sets),
            crops=crops_record(self.rule, queries.indices, queries.crops),
            public=digest(public),
            precision=self.inference.precision,
            resolution=self.models.resolution,
            settings={"use_supervised_linear": int(self.models.scores)},
        )

    def key(self, record: Provenance, listing: ImageListing, queries: ImageSet, public: np.ndarray) -> dict:
        """The record of all that the neighbors depend on, plain: pieces of an attack with another one are not used."""
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
