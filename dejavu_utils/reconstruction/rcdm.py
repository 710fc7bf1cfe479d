"""From a background crop to pictures of what a model remembers: trained RCDMs, choosing examples,
rows and tiles.

An attacked image is reconstructed from its crop alone: the condition is the mean backbone embedding
of the crop's nearest public neighbors (the attack's files name them), with the crop's own projector
embedding beside it (Meehan et al. 2023, section 5; RCDM: Bordes et al. 2021).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dejavu_utils.analysis.attack_files import load_array, read_attack
from dejavu_utils.analysis.results_json import read_results
from dejavu_utils.analysis.tables import class_table, example_table
from dejavu_utils.checkpoint import load_checkpoint
from dejavu_utils.cli import existing_folder
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.provenance import (
    MADE_FROM,
    ModelRecord,
    Provenance,
    TrainingImages,
    check_same,
    read_record,
    read_training_images,
)
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import load_json
from dejavu_utils.imagenet import ImageListing, list_images, read_class_names
from dejavu_utils.log import say
from dejavu_utils.models import Network
from dejavu_utils.naming import TWIN, attack_path
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference
from dejavu_utils.networks.loading import load_network
from dejavu_utils.reconstruction.diffusion import PIXEL_RANGE, Diffusion
from dejavu_utils.reconstruction.training import TRAINED_ON
from dejavu_utils.reconstruction.unets import build_unet, choose_backend
from dejavu_utils.runtime.devices import choose_device
from dejavu_utils.runtime.resumable import Shard

NEIGHBORS, SAMPLES = 5, 4  # published
_AT_ONCE = 64  # images that are embedded or sampled together
_ENCODER = "encoder"


class Rcdm:
    """A trained RCDM and the encoder that conditions it, in eval mode; both go to `device`.

    network: the SSL model. layers: whose outputs, side by side, are the representation. side: of
    the samples, pixels. resolution: side of the encoder's input.
    """

    record: Provenance | None = None  # what it was made from
    trained_on: TrainingImages | None = None

    def __init__(
        self,
        unet: torch.nn.Module,
        network: Network,
        settings: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.unet = unet.to(device).eval()
        self.network = network.to(device)
        self.device = device
        self.settings = settings
        self.layers = settings["layers"]
        self.side = settings["image_size"]
        self.resolution = settings["ssl_resolution"]
        network.preprocessing = network.preprocessing.at(self.resolution)

    def embed(
        self, listing: ImageListing, indices: np.ndarray, crops: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """The encoder's outputs for images (or their crops): {layer: float32 (n, width)} on the
        CPU.

        layers: backbone and projector, or logits. indices: int (n,). crops: n of (xmin, ymin, xmax,
        ymax).
        """
        inference = Inference(self.device, batch_size=_AT_ONCE)
        embedder = Embedder({_ENCODER: self.network}, {_ENCODER: self.layers}, listing, inference)
        images = ImageSet("images", np.asarray(indices), crops)
        whole = [Shard(images.name, 0, len(images))]
        [(_, _, embedded)] = embedder.embed_shards(images, whole)
        return {layer: torch.from_numpy(array) for (_, layer), array in embedded.items()}

    def sample(
        self,
        conditions: Tensor,
        seeds: Sequence[int],
        respacing: str = "",
        on_progress: Callable[[int], object] = lambda count: None,
    ) -> Tensor:
        """Images in [0, 1], float32 (n, 3, side, side) on the CPU. conditions: float (n, width).
        seeds: n int.

        respacing: steps, as reconstruction.diffusion.Diffusion takes them. on_progress: called with n
        after each step.
        """
        process = Diffusion(self.settings, respacing)
        low, high = self.settings["pixel_range"]
        parts = []
        for start in range(0, len(conditions), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            condition = conditions[rows].to(self.device)
            images = process.sample(
                self.unet, condition, self.side, seeds[rows], (low, high), on_progress
            )
            parts.append(((images - low) / (high - low)).cpu())
        return torch.cat(parts)


def load_rcdm(
    path: str | Path,
    ssl_model_pth: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Rcdm:
    """The Rcdm of a folder of train_RCDM.py (its last average), or of one of its model*.pt and
    ema_*.pt files.

    ssl_model_pth: the encoder, if it has moved since the training. settings: of the U-Net, for
    files without a params.json beside them (those of the rcdm package). InputError names a file
    that does not fit.
    """
    path = Path(path)
    weights_path = _last_average(path) if path.is_dir() else path
    if settings is None:
        params = weights_path.parent / "params.json"
        if not params.is_file():
            raise InputError(
                f"{params}: no such file; train_RCDM.py writes it beside its checkpoints"
            )
        settings = load_json(params)
    encoder_path = ssl_model_pth or settings["ssl_model_pth"]
    network = load_network(
        encoder_path,
        "ssl_model_pth",
        settings.get("ssl_arch"),
        resolution=settings["ssl_resolution"],
    )
    record = Provenance.from_plain(settings.get(MADE_FROM))
    encoder = Provenance(models={"encoder": ModelRecord.of(network, settings["ssl_resolution"])})
    sources = {"models.*": f"ssl_model_pth {encoder_path}"}
    remedy = "name the encoder that it was trained with"
    for note in check_same("reconstruction", encoder, record, f"{weights_path}", sources, remedy):
        say(f"note: {note}")
    settings = {
        "pixel_range": list(PIXEL_RANGE),
        **settings,
        "width": sum(map(network.width, settings["layers"])),
    }
    unet = build_unet(choose_backend(settings["backend"]), settings, settings["width"])
    try:
        unet.load_state_dict(load_checkpoint(weights_path, "RCDM"))
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = one_line(error)
        raise InputError(
            f"{weights_path}: not the U-Net that its params.json describes: {reason}"
        ) from None
    rcdm = Rcdm(unet, network, settings, choose_device())
    rcdm.record = record or encoder
    rcdm.trained_on = read_training_images(weights_path.parent / TRAINED_ON)
    return rcdm


def _last_average(folder: Path) -> Path:
    averages = []
    for path in folder.glob("ema_*.pt"):
        match = re.fullmatch(r"ema_(.+)_(\d+)\.pt", path.name)
        if match:
            averages.append((int(match[2]), -float(match[1]), path))
    if not averages:
        raise InputError(f"{folder}: holds no ema_*.pt; train_RCDM.py writes it")
    return max(averages)[2]


class Attack:
    """A folder of label_inference_attack.py, with the images and boxes that were attacked.

    tables: {"A", "B"} -> one row per attacked image (analysis.tables.example_table). Where the
    images lie and how crops were chosen is taken from the folder's results.json. image_dir and
    bbox_dir: if they lie elsewhere now, or there is no such file; min_px and crop_rule are for
    folders without one.
    """

    def __init__(
        self,
        folder: str | Path,
        image_dir: str | None = None,
        bbox_dir: str | None = None,
        min_px: int = 100,
        crop_rule: str = "paper",
    ) -> None:
        self.folder = existing_folder(folder, "the attack")
        self.settings: dict[str, Any] = {
            "min_px": min_px,
            "crop_rule": crop_rule,
            "use_corner_crop": 0,
            "k_attk": 0,
        }
        results = read_results(self.folder)
        if results:
            self.settings.update(results.settings)
        self.record = read_record(self.folder / "results.json")
        self.bbox_dir = bbox_dir or self.settings.get("imgnet_bbox_pth")
        image_dir = image_dir or self.settings.get("imgnet_train_pth")
        self.listing = list_images(
            image_dir, f"image_dir (the attack {folder} was made with this path)"
        )
        there = Provenance(images=self.listing.fingerprint["sha256"])
        sources = {"images": f"image_dir {image_dir}"}
        remedy = "name the folder as it was"
        made = f"the attack {folder}"
        for note in check_same("reconstruction", there, self.record, made, sources, remedy):
            say(f"note: {note}")
        self.sets = read_attack(self.folder, self.settings["k_attk"])
        self.tables = {}
        for name, attacked in self.sets.items():
            self.tables[name] = example_table(attacked, self.listing)

    def class_table(self, attacked: str, class_names: Sequence[str]) -> pd.DataFrame:
        """analysis.tables.class_table of one attacked set, "A" or "B". class_names: one per label."""
        return class_table({attacked: self.sets[attacked]}, class_names)

    def crops(self, indices: np.ndarray) -> np.ndarray:
        """int64 (n, 4): xmin, ymin, xmax, ymax of each image's crop. InputError for an image
        without one."""
        rule = CropRule.of(self.settings)
        annotations = None
        if rule.reads_boxes:
            annotations = Annotations(self.bbox_dir, self.listing, "the attack's boxes")
        cropped = take_crops(self.listing, indices, rule, annotations)
        absent = np.setdiff1d(indices, cropped.indices)
        if len(absent):
            raise InputError(
                f"{self.bbox_dir}: {self.listing.paths[absent[0]]} has no background crop: not attacked"
            )
        return cropped.crops

    def neighbors(self, model: str, attacked: str, indices: np.ndarray) -> np.ndarray:
        """Image indices of the nearest public images of each crop, int64 (n, NEIGHBORS), nearest
        first.

        model, attacked: "A" or "B". InputError for images that were not attacked, or an attack
        without neighbors.
        """
        attacked_indices = load_array(attack_path(self.folder, model, attacked, "attk_idxs"))
        nearest = load_array(attack_path(self.folder, model, attacked, "neighb_idxs"))
        rows = pd.Index(attacked_indices.ravel()).get_indexer(indices)
        absent = indices[rows < 0]
        if len(absent):
            raise InputError(
                f"image {absent[0]} is not among the attacked images of set {attacked} in {self.folder}"
            )
        kept = nearest.shape[1]
        if kept < NEIGHBORS:
            raise InputError(f"{self.folder}: holds only {kept} neighbors, {NEIGHBORS} are needed")
        return nearest[rows, :NEIGHBORS].astype(int)


def most_confident(table: pd.DataFrame, label: int, count: int = 40) -> pd.DataFrame:
    """Rows of a class that the target model is most confident of, the most confident first."""
    of_class = table[table["label"] == label]
    return of_class.sort_values("target_confidence", ascending=False, kind="stable").head(count)


def most_memorized(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Rows that only the target model names correctly, the largest lead in confidence first."""
    lead = table["target_confidence"] - table["reference_confidence"]
    return _first(table, "memorized", lead, count)


def most_correlated(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Rows that both models name correctly, sorted by the smaller of the two confidences, the
    largest first."""
    smaller = table[["target_confidence", "reference_confidence"]].min(axis=1)
    return _first(table, "correlated", smaller, count)


def _first(table: pd.DataFrame, outcome: str, values: pd.Series, count: int) -> pd.DataFrame:
    order = values[table["share"] == outcome].sort_values(ascending=False, kind="stable").index
    return table.loc[order[:count]]


def picked(table: pd.DataFrame, indices: Sequence[int]) -> pd.DataFrame:
    """Rows of the images with these indices, in their order. InputError for one that was not
    attacked."""
    rows = table.set_index("index", drop=False)
    absent = [index for index in indices if index not in rows.index]
    if absent:
        raise InputError(f"image {absent[0]} is not among the attacked images of this set")
    return rows.loc[list(indices)]


def class_names(listing: ImageListing, path: str | None) -> list[str]:
    """Names to show, one per label: those of a json (imagenet.read_class_names), else the folder
    names."""
    names = read_class_names(path, "the class names") if path else {}
    return [names.get(folder, folder) for folder in listing.classes]


@dataclass
class Source:
    """A model whose memory is shown. name: in figures, e.g. "target"; tile: in file names, e.g.
    "A".

    model: the letter of the model in the attack's file names.
    """

    name: str
    rcdm: Rcdm
    attack: Attack
    model: str
    tile: str


def check_rcdms(attack: Attack, rcdms: Mapping[str, Rcdm]) -> list[str]:
    """Warnings; InputError unless each RCDM's encoder is the attack's model and their images lie in
    one folder.

    rcdms: {"A": Rcdm, "B": ...} of the attack's models.
    """
    warnings = []
    for name, rcdm in rcdms.items():
        source = f"the RCDM of model {name}"
        remedy = "name the RCDM of the attacked model"
        there = attack.record.of_model(name) if attack.record else None
        made = f"the attack {attack.folder}"
        warnings += check_same(
            "reconstruction", rcdm.record or Provenance(), there, made, {"*": source}, remedy
        )
        if rcdm.trained_on is None:
            warnings.append(f"{source} does not say which images it was trained on")
            continue
        attacked = np.concatenate([table["index"].to_numpy() for table in attack.tables.values()])
        seen = rcdm.trained_on.seen(attacked)
        if seen:
            warnings.append(
                f"{source} was trained on {seen} of the {len(attacked)} attacked images: reconstructions may show its "
                "own memorization, not the encoder's"
            )
    return warnings


def check_supervised(
    attack: Attack, attacked: str, rcdm: Rcdm, its_attack: Attack | None
) -> list[str]:
    """Warnings; InputError unless the supervised model was trained on the images that the attack's
    model was, and its RCDM and the attack on it fit.

    its_attack: None for an RCDM of logits, which needs no neighbors.
    """
    source = "the RCDM of the supervised model"
    target = attack.record.of_model(attacked).models if attack.record else None
    trained_on = TrainingImages.of(rcdm.network)
    if target and trained_on:
        images = target["encoder"].images
        if images not in (None, trained_on.digest):
            raise InputError(
                f"{source}: its model was not trained on the images of model {attacked} of the attack "
                f"{attack.folder}; name the RCDM of the supervised model that was"
            )
    if its_attack:
        return check_rcdms(its_attack, {attacked: rcdm})
    if "logits" not in rcdm.layers:
        raise InputError(f"{source}: needs the neighbors of an attack on that model; name it, too")
    return []


def sources_of(
    attack: Attack,
    attacked: str,
    rcdm_A: Rcdm,
    rcdm_B: Rcdm,
    rcdm_supervised: Rcdm | None = None,
    attack_supervised: Attack | None = None,
) -> list[Source]:
    """[target, reference] for an attacked set, "A" or "B", and the supervised model if its RCDM is
    given.

    attack_supervised: the Attack of the supervised models; its model is the one that was trained on
    the attacked set. Only an RCDM of logits, which needs no neighbors, can do without.
    """
    reference = TWIN[attacked]
    rcdms = {"A": rcdm_A, "B": rcdm_B}
    check_rcdms(attack, rcdms)
    sources = [
        Source("target", rcdms[attacked], attack, attacked, attacked),
        Source("reference", rcdms[reference], attack, reference, reference),
    ]
    if rcdm_supervised is not None:
        check_supervised(attack, attacked, rcdm_supervised, attack_supervised)
        other = attack_supervised or attack
        name = "supervised"
        sources.append(Source(name, rcdm_supervised, other, attacked, name))
    return sources


def conditions(source: Source, attacked: str, indices: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """What an RCDM is given for each attacked image, float32 (n, width), and the neighbors int64
    (n, 5).

    Of an RCDM of logits: the crop's logits, and no neighbors, (n, 0).
    """
    crop = source.rcdm.embed(source.attack.listing, indices, source.attack.crops(indices))
    if "logits" in crop:
        return crop["logits"], np.empty((len(indices), 0), int)
    neighbors = source.attack.neighbors(source.model, attacked, indices)
    public, rows = np.unique(neighbors, return_inverse=True)
    backbone = source.rcdm.embed(source.attack.listing, public)["backbone"]
    mean = backbone[torch.from_numpy(rows.reshape(neighbors.shape))].mean(dim=1)
    if "projector" not in crop:  # public backbones may have none
        return mean, neighbors
    return torch.cat([mean, crop["projector"]], dim=1), neighbors


def sample_seeds(indices: Sequence[int] | np.ndarray, samples: int, seed: int) -> list[int]:
    """n x samples seeds, image after image, that depend on (seed, image, sample) alone."""
    seeds = []
    for index in indices:
        for sample in range(samples):
            sequence = np.random.SeedSequence([seed, int(index), sample])
            [state] = sequence.generate_state(1, np.uint64).tolist()
            seeds.append(state >> 1)  # fits into int64
    return seeds
