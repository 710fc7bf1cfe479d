"""Memorization without labels, boxes or a public set: SSLMem of images and layers, UnitMem of units.

Reads two checkpoints of train_SSL.py (model A trained on set A, model B on set B), the image folder and the index files
of the partition. An image's SSLMem is the mean distance between its augmented views under the model that was not
trained on it, minus that under the model that was: above 0 where training pulled the views together. Writes into
OUTPUT_DIR sslmem_{A,B}.csv (one row per image), the same for the control sets that are given (shared, public, unseen;
with model A as the target), unitmem_{A,B}_{layer}.npy (each model's units over its own set), unitmem.csv, results.json
(mean score per layer with a 95 % interval, the same minus that of public and unseen images, fraction above 0), figures
and sslmem_gallery.html (the most and the least memorized images to look at). With --attack_dir it adds the rank
correlation with the déjà vu test's margin of votes on the same images, and margin and outcome to sslmem_{A,B}.csv.

Each image is decoded once for both models, all layers and views; several processes (--ngpus, --nodes, --world_size)
divide the images; finished shards are kept in OUTPUT_DIR/unfinished/; rerun the same command to resume.

    python sslmem.py --output_dir $LOGGING_FOLDER/vicreg/sslmem_sweeps/sslmem_vicreg_300pc_1000ep \\
        --model_A_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --model_B_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_B/model_ep1000.pth \\
        --bbox_A_idx_pth $INDEX_FOLDER/300_per_class/bbox_A.npy \\
        --bbox_B_idx_pth $INDEX_FOLDER/300_per_class/bbox_B.npy \\
        --public_idx_pth $INDEX_FOLDER/500_per_class/public.npy \\
        --imgnet_train_pth $IMAGENET_DATASET_DIR
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis.results_json import RESULTS, read_results
from dejavu_utils.attack.preconditions import (
    IndexSet,
    check_alike,
    check_disjoint,
    check_models,
    check_training_set,
    is_one_file,
)
from dejavu_utils.cli import (
    Parser,
    add_flags,
    add_inference_flags,
    add_launch_flags,
    add_paths,
    existing_file,
    existing_folder,
    from_flags,
    non_negative_int,
    positive_int,
    run,
)
from dejavu_utils.data.background_crops import file_fingerprint
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import (
    MADE_FROM,
    ModelRecord,
    Provenance,
    Value,
    check_same,
    read_record,
    sets_record,
    still_valid,
)
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_files
from dejavu_utils.imagenet import ImageListing, list_images
from dejavu_utils.label_free.compare import about_other_images, read_margins
from dejavu_utils.label_free.measure import ViewDistances, Views, views_of_training
from dejavu_utils.label_free.output import CONTROLS, Measured, sslmem_in_words, write_folder
from dejavu_utils.log import say
from dejavu_utils.models import Network
from dejavu_utils.naming import SETS
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference, progress_of
from dejavu_utils.networks.inference import check_layers, prepared_for_inference
from dejavu_utils.networks.loading import ARCH_HELP, ModelFile, existing_model
from dejavu_utils.runtime.distributed import rank, wait_for_all, world_size
from dejavu_utils.runtime.launch import Resources, init_from_args, launch
from dejavu_utils.runtime.resumable import ShardStore

FLAGS = {"A": "--bbox_A_idx_pth", "B": "--bbox_B_idx_pth"}  # of the sets
FLAGS |= {name: f"--{name}_idx_pth" for name in CONTROLS}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--output_dir": "where everything is written"})
    group = parser.add_argument_group("models")
    for name in SETS:
        add_paths(group, {f"--model_{name}_pth": f"checkpoint of the model trained on set {name}"})
    group.add_argument("--arch", help=ARCH_HELP)
    group.add_argument(
        "--layers",
        type=lambda text: text.split(","),
        help="layers to measure, in the order of the network: backbone,projector.0,projector; default: the backbone, "
        "and the projector if there is one",
    )
    group = parser.add_argument_group("data")
    for name in SETS:
        add_paths(group, {f"--bbox_{name}_idx_pth": f".npy of the images only set {name} has"})
    controls = {
        "--shared_idx_pth": "control: .npy of images that both models trained on",
        "--public_idx_pth": "control: .npy of images that neither trained on",
        "--unseen_idx_pth": "control: .npy of others that neither trained on",
    }
    add_paths(group, controls, required=False)
    add_paths(group, {"--imgnet_train_pth": "image folder, CLASS/ID.JPEG"})
    group = parser.add_argument_group("scores")
    views = {
        "--views": (10, positive_int, "augmented views of an image; all pairs of them are compared"),
        "--seed": (0, non_negative_int, "seed of the augmented views"),
    }
    add_flags(group, views)
    attack = {
        "--attack_dir": "folder of an attack on the same images (attack_A.csv, attack_B.csv), to compare the two scores"
    }
    add_paths(group, attack, required=False)
    add_inference_flags(parser, batch_size=256)
    add_launch_flags(parser, timeout=2800, mem_gb=60)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Job:
    """What is to be measured. models: "A" and "B". layers: None: the backbone and, if there is one, the projector.
    sets: {set: (flag, path of its index file)}, A and B, then the controls that are given. views: of each image, drawn
    with `seed`. attack: folder of an attack to compare with, or None. settings: the flags, for results.json."""

    folder: str
    models: Mapping[str, ModelFile]
    layers: list[str] | None
    image_folder: str
    sets: Mapping[str, tuple[str, str]]
    views: int
    seed: int
    attack: Path | None
    inference: Inference
    settings: Mapping[str, object]

    @classmethod
    def of(cls, args: Namespace) -> "Job":
        models, sets = {}, {}
        for name in SETS:
            models[name] = ModelFile.of(args, f"--model_{name}_pth")
        for name, flag in FLAGS.items():
            path = getattr(args, flag.strip("-"))
            if path:
                sets[name] = flag, path
        return from_flags(
            cls,
            args,
            folder=args.output_dir,
            models=models,
            image_folder=args.imgnet_train_pth,
            sets=sets,
            attack=Path(args.attack_dir) if args.attack_dir else None,
            inference=Inference.of(args),
            settings=vars(args),
        )


def main() -> None:
    args = parse_args()
    job = Job.of(args)
    check(job, args)
    resources = Resources.of(args, args.num_workers)
    launch(measure, (job, resources), resources, (args.output_dir, "--output_dir"))


def check(job: Job, args: Namespace) -> None:
    """Raises an InputError for what cannot work, before anything is computed or submitted."""
    for model in job.models.values():
        existing_model(model.path, model.flag, args)
    for flag, path in job.sets.values():
        existing_file(path, flag)
    existing_folder(job.image_folder, "--imgnet_train_pth")
    if job.views < 2:
        raise InputError("--views 1: a distance needs two views")
    if job.layers and len(set(job.layers)) < len(job.layers):
        raise InputError("--layers: names a layer twice")
    if job.attack:
        read_margins(job.attack, "--attack_dir")


def measure(given: tuple[Job, Resources]) -> None:
    job, resources = given
    device = init_from_args(resources, long_waits=True)
    listing = list_images(job.image_folder, "--imgnet_train_pth")
    sets = load_sets(job, listing)
    margins = load_margins(job.attack, listing, sets) if job.attack else None
    networks = {name: model.load() for name, model in job.models.items()}
    warnings = check_twins(networks, sets, listing)
    layers = job.layers or ["backbone", *(["projector"] if networks["A"].has_projector else [])]
    for network in networks.values():
        check_layers(network, layers)
    record = record_of(job, networks, listing, sets)
    if job.attack:
        warnings += check_attack(job.attack, record)
    if still_valid(job.folder, {Path(job.folder) / RESULTS: record}, job.settings):
        return
    augmented = networks["A"].about["settings"] or networks["B"].about["settings"]
    resolution = networks["A"].preprocessing.side
    networks = {name: prepared_for_inference(network, layers).to(device) for name, network in networks.items()}
    size = max(1, job.inference.batch_size // job.views)  # the networks see so many views at once
    inference = replace(job.inference, device=device, batch_size=size)
    embedder = Embedder(networks, dict.fromkeys(SETS, layers), listing, inference)
    views = Views(views_of_training(augmented), job.views, job.seed, embedder.kinds)
    pieces = ShardStore(Path(job.folder) / "unfinished", None if rank() else key_of(job, record, embedder, views, sets))
    kept = None if rank() else pieces.start()
    images = sum(len(of_set.indices) for of_set in sets.values())
    say(
        f"{job.views} views each of {images} images: {', '.join(layers)}, on {device} in {inference.precision}, "
        f"{world_size()} process{'es' if world_size() > 1 else ''}"
        + (f"; resumes with {kept} pieces of the same work" if kept else "")
    )
    wait_for_all()
    distances = ViewDistances(embedder, views, pieces)
    alignments = {}
    for name, of_set in sets.items():
        alignment = distances.align(ImageSet(name, of_set.indices), progress_of(f"images of set {name} measured"))
        if alignment:
            alignments[name] = alignment
    if not rank():
        indices = {name: of_set.indices for name, of_set in sets.items()}
        measured = Measured(listing, indices, alignments, layers, margins, views.pictures)
        about = {
            "warnings": warnings,
            "settings": {**job.settings, "resolution": resolution, "layers": layers, "device": str(device)},
            "views": {"pairs": "all", "taking turns": [vars(view) for view in views.pair]},
            MADE_FROM: record.plain(),
        }
        with complete_files(job.folder, last="results.json") as new:
            results = write_folder(new, measured, about)
        print("\n".join(["", *sslmem_in_words(results), f"  {job.folder}"]), flush=True)
        pieces.remove()
    wait_for_all()


def load_sets(job: Job, listing: ImageListing) -> dict[str, IndexSet]:
    """The sets that are given, A and B first; InputError if one is too small or two overlap."""
    sets = {}
    for name, (flag, path) in job.sets.items():
        indices = load_indices(path, flag, listing)
        if name not in SETS and not len(indices):
            say(f"note: {flag} {path} holds no image: this control is left out")
            continue
        if len(indices) < 2:
            raise InputError(f"{flag} {path}: holds {len(indices)} images, two are needed")
        sets[name] = IndexSet(flag, indices)
    check_disjoint(sets.values())
    return sets


def load_margins(folder: Path, listing: ImageListing, sets: dict[str, IndexSet]) -> dict[str, pd.DataFrame]:
    """What read_margins gives of --attack_dir; InputError if that is about other images than the sets."""
    margins = read_margins(folder, "--attack_dir")
    for name, table in margins.items():
        paths = {index: listing.text(index) for index in sets[name].indices.tolist()}
        if about_other_images(paths, table):
            raise InputError(f"--attack_dir {folder}: attack_{name}.csv is about other images than set {name}")
    return margins


def check_twins(networks: dict[str, Network], sets: dict[str, IndexSet], listing: ImageListing) -> list[str]:
    """Warnings about models and sets that the scores may not be about; InputError where they would mean nothing."""
    check_alike(networks)
    warnings = check_models(networks)
    if is_one_file(networks):  # every score is 0
        return warnings
    for model, network in networks.items():
        trained = [images for name, images in sets.items() if name in (model, "shared")]
        unseen = [images for name, images in sets.items() if name not in (model, "shared")]
        warnings += check_training_set(network, listing, trained, unseen)
    return warnings


def record_of(job: Job, networks: dict[str, Network], listing: ImageListing, sets: dict[str, IndexSet]) -> Provenance:
    """The Provenance of the scores."""
    return Provenance(
        models={name: ModelRecord.of(network) for name, network in networks.items()},
        images=listing.fingerprint["sha256"],
        sets=sets_record(sets),
        precision=job.inference.precision,
        resolution=job.inference.resolution,
        settings={"views": job.views, "seed": job.seed},
    )


def check_attack(folder: Path, record: Provenance) -> list[str]:
    """Notes; InputError unless --attack_dir attacked the same models and images."""
    results = folder / RESULTS
    read_results(folder)  # its files are of one attack
    sources = {"*": f"--attack_dir {folder}"}
    remedy = "give the attack on these models and sets, or leave --attack_dir out"
    return check_same("attack_dir", record, read_record(results), str(results), sources, remedy)


def key_of(job: Job, record: Provenance, embedder: Embedder, views: Views, sets: dict[str, IndexSet]) -> dict:
    """The record of all that the distances depend on, plain: pieces of another one are not used."""
    inference = job.inference
    settings: dict[str, Value] = {
        "views": job.views,
        "seed": job.seed,
        "batch_size": inference.batch_size,
        "skip_unreadable": inference.skip_unreadable,
        "layers": str(embedder.layers),
        "pair": str(list(map(str, views.pair))),
        "device": embedder.device.type,
    }
    files = file_fingerprint(embedder.listing, np.concatenate([images.indices for images in sets.values()]))
    return replace(record, files=files, settings=settings).plain()


if __name__ == "__main__":
    run(main)
