"""The déjà vu test: can the model predict an image's object from a crop that shows only background?

Reads two checkpoints of train_SSL.py (model A trained on set A, model B on set B), the index files of the partition,
the images and their box XML. Both models embed the background crops of both sets; the labels of the nearest public
images predict the object. Writes into OUTPUT_DIR, for each model and attacked set (A_attk_B = model A on set B):
{A,B}_attk_{A,B}_neighb_idxs.npy and _neighb_labels.npy (n x k, nearest first), _attk_idxs.npy (n), _labels.npy (n x 1),
top_{1,5}_conf_sweep_{A,B}_attk_{A,B}.npy (accuracy at 100 fractions from 0.1 to 1), attack_{A,B}.csv (one row per
example), attack_classes.csv, attack_confidence.csv (accuracies against the fraction of the most confident examples),
attack_gallery.html and results.json. With --use_supervised_linear 1 _scores.npy (n x classes) replaces the neighbor
files. With --layers all this goes into OUTPUT_DIR/{layer}/. --model_oss_pth tests a single model; classifiers of crops
are the reference (--reference_A_pth, --reference_B_pth; docs/one_model.md).

Several processes (--ngpus, --nodes, --world_size) divide the images; rerun the same command to resume.

    python label_inference_attack.py --output_dir $LOGGING_FOLDER/vicreg/attack_sweeps/NN_attk_vicreg_300pc_1000ep \\
        --model_A_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --model_B_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_B/model_ep1000.pth \\
        --bbox_A_idx_pth $INDEX_FOLDER/300_per_class/bbox_A.npy \\
        --bbox_B_idx_pth $INDEX_FOLDER/300_per_class/bbox_B.npy \\
        --public_idx_pth $INDEX_FOLDER/500_per_class/public.npy \\
        --imgnet_train_pth $IMAGENET_DATASET_DIR --imgnet_bbox_pth $IMAGENET_BBOX_ANNOTATIONS
    python label_inference_attack.py --local 1 --output_dir /tmp/attack --k 50 --k_attk 50 \\
        --resolution 32 --min_px 32 --model_A_pth demo/seed0/simclr_300epochs/simclr_dssweep_50pc_A/model_ep300.pth \\
        --model_B_pth demo/seed0/simclr_300epochs/simclr_dssweep_50pc_B/model_ep300.pth \\
        --bbox_A_idx_pth demo/seed0/index/50_per_class/bbox_A.npy \\
        --bbox_B_idx_pth demo/seed0/index/50_per_class/bbox_B.npy \\
        --public_idx_pth demo/seed0/index/50_per_class/public.npy \\
        --imgnet_train_pth demo/seed0/data/images --imgnet_bbox_pth demo/seed0/data/boxes
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

from argparse import Namespace, _ArgumentGroup
from dataclasses import replace
from pathlib import Path

from dejavu_utils.analysis.attack_output import (
    Answers,
    Context,
    check_ceilings,
    counts_of,
    layer_result,
    summary_lines,
    write_layer,
)
from dejavu_utils.analysis.results_json import RESULTS, check_one_kind
from dejavu_utils.attack.job import BOXES, ImageSets, Job, ModelFiles
from dejavu_utils.attack.preconditions import copied_elsewhere
from dejavu_utils.attack.search import Queries, k_with_self, nearest_public, unreadable_in_words, work_in_words
from dejavu_utils.attack.target_reference import ONE
from dejavu_utils.cli import (
    Parser,
    add_crop_flags,
    add_flags,
    add_inference_flags,
    add_launch_flags,
    add_paths,
    existing_file,
    existing_folder,
    expanded,
    positive_int,
    run,
    zero_or_one,
)
from dejavu_utils.crops import CropRule
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import ModelRecord, still_valid
from dejavu_utils.errors import InputError
from dejavu_utils.files import check_place, complete_files
from dejavu_utils.imagenet import list_images, read_class_names
from dejavu_utils.models import L2
from dejavu_utils.naming import LOGITS, SETS, attack_path
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference, progress_of
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.networks.loading import ModelFile, add_network_flags, existing_model
from dejavu_utils.runtime.distributed import from_first, rank, wait_for_all
from dejavu_utils.runtime.launch import Resources, init_from_args, launch
from dejavu_utils.runtime.resumable import ShardStore


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--output_dir": "where everything is written"})
    group = parser.add_argument_group("models")
    checkpoints = {
        "--model_A_pth": "checkpoint of the model trained on set A",
        "--model_B_pth": "checkpoint of that trained on set B",
        "--model_oss_pth": "checkpoint of the only model",
    }
    add_paths(group, checkpoints, required=False)
    for kind, what in (("", ""), ("half_", "half of ")):
        for name in SETS:
            group.add_argument(
                f"--{kind}reference_{name}_pth",
                type=expanded,
                nargs="+",
                help=f"for --model_oss_pth: classifiers trained on {what}set {name}'s crops, with different seeds",
            )
    add_network_flags(group)
    logits = "1: a supervised model's logits are the class scores, without neighbors"
    outputs = {
        "--use_backbone": (0, zero_or_one, "1: embed with the backbone; 0: with the projector"),
        "--use_supervised_linear": (0, zero_or_one, logits),
    }
    add_flags(group, outputs)
    group.add_argument(
        "--layers",
        type=lambda text: text.split(","),
        help="several layers at once, each into a folder of its name: backbone,projector.0,projector",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_attack_flags(parser.add_argument_group("attack"))
    add_inference_flags(parser, batch_size=256)
    add_launch_flags(parser, timeout=2800, mem_gb=250)
    args = parser.parse_args(argv)
    if args.k_attk is None:
        args.k_attk = min(args.k, 100)
    return args


def add_data_flags(group: _ArgumentGroup) -> None:
    for name, other in (("A", "test"), ("B", "valid")):
        group.add_argument(
            f"--bbox_{name}_idx_pth",
            f"--{other}_idx_pth",
            type=expanded,
            help=f".npy of the images only set {name} has; not with --placebo",
        )
    unseen = {"--unseen_idx_pth": "with --model_oss_pth: .npy of boxed images that it was not trained on"}
    add_paths(group, unseen, required=False)
    images = {
        "--public_idx_pth": ".npy of the public images",
        "--imgnet_train_pth": "image folder, CLASS/ID.JPEG",
    }
    add_paths(group, images)
    beside = {
        BOXES: "folder of CLASS/ID.xml, or one above it; not read with --use_corner_crop",
        "--class_names": "json of {class folder: name}, or lines of both (LOC_synset_mapping.txt), for the gallery",
        "--crop_cache": ".npz of the crops, shared with other attacks; default: OUTPUT_DIR/crops.npz",
    }
    add_paths(group, beside, required=False)


def add_attack_flags(group: _ArgumentGroup) -> None:
    votes = {
        "--k": (100, positive_int, "public neighbors that are saved"),
        "--k_attk": (None, int, "nearest of them that vote; 0 = k; default: 100, at most k"),
    }
    add_flags(group, votes)
    add_crop_flags(group)
    group.add_argument(
        "--use_corner_crop",
        type=zero_or_one,
        nargs="?",
        const=1,
        default=0,
        help="attack with the lower left corner of every image instead of a background crop",
    )
    group.add_argument(
        "--placebo",
        action="store_true",
        help="attack public images, which neither model saw, in place of sets A and B: the score is expected to be 0",
    )
    add_flags(group, {"--corner_crop_frac": (0.3, float, "side of that corner / side of the image")})


def main() -> None:
    args = parse_args()
    check_args(args)
    resources = Resources.of(args, args.num_workers)
    launch(attack, (job_of(args), resources), resources, (args.output_dir, "--output_dir"))


def check_args(args: Namespace) -> None:
    """Raises an InputError for what cannot work, before anything is computed or submitted."""
    of_one = ("reference_A_pth", "reference_B_pth", "half_reference_A_pth", "half_reference_B_pth", "unseen_idx_pth")
    for name in ("model_A_pth", "model_B_pth") if args.model_oss_pth else of_one:
        if getattr(args, name):
            raise InputError(f"--{name}: give --model_A_pth and --model_B_pth, or --model_oss_pth with its own flags")
    if args.model_oss_pth and args.placebo:
        raise InputError("--placebo: needs two models; with --model_oss_pth use --unseen_idx_pth as the control")
    for file in model_files(args).values():
        existing_model(file.path, file.flag, args)
    files = [] if args.placebo else ["bbox_A_idx_pth", "bbox_B_idx_pth"]
    for name in [*files, "public_idx_pth", *(["unseen_idx_pth"] if args.unseen_idx_pth else [])]:
        existing_file(getattr(args, name), f"--{name}")
    existing_folder(args.imgnet_train_pth, "--imgnet_train_pth")
    if not args.use_corner_crop:
        if not args.imgnet_bbox_pth:
            raise InputError(f"{BOXES} is needed: name the folder of box XML, or give --use_corner_crop 1")
        existing_folder(args.imgnet_bbox_pth, BOXES)
    if args.class_names:
        read_class_names(args.class_names, "--class_names")
    if not 0 <= args.k_attk <= args.k:
        raise InputError(f"--k_attk {args.k_attk}: must be between 0 (all) and --k {args.k}")
    if not 0 < args.corner_crop_frac <= 1:
        raise InputError(f"--corner_crop_frac {args.corner_crop_frac}: must be above 0 and at most 1")
    if args.crop_cache:
        if not args.crop_cache.endswith(".npz"):
            raise InputError(f"--crop_cache {args.crop_cache}: the name must end in .npz")
        check_place(args.crop_cache)
    if args.use_supervised_linear and args.use_backbone:
        raise InputError("--use_supervised_linear 1: scores are the logits; leave --use_backbone out")
    if args.layers and (args.use_backbone or args.use_supervised_linear):
        raise InputError("--layers: leave --use_backbone and --use_supervised_linear out")
    if args.layers and len(set(args.layers)) < len(args.layers):
        raise InputError("--layers: names a layer twice")
    if args.layers and LOGITS in [layer.removesuffix(L2) for layer in args.layers]:
        raise InputError(f"--layers {LOGITS}: give --use_supervised_linear 1 instead")
    check_one_kind(Path(args.output_dir), bool(args.layers))
    for model, scored in (("A", args.use_supervised_linear), ("B", args.use_supervised_linear or args.model_oss_pth)):
        other = "neighb_labels" if scored else "scores"
        if attack_path(args.output_dir, model, "A", other).exists():
            raise InputError(
                f"--output_dir {args.output_dir}: holds the {other} of another kind of attack; name another"
            )


def model_files(args: Namespace) -> dict[str, ModelFile]:
    """{name: ModelFile}: models A and B, or the only one and the classifiers in place of its twin."""
    if not args.model_oss_pth:
        return {name: ModelFile.of(args, f"--model_{name}_pth") for name in SETS}
    files = {ONE: ModelFile.of(args, "--model_oss_pth")}
    kinds = ["reference"]
    if args.half_reference_A_pth or args.half_reference_B_pth:
        kinds.append("half_reference")
    for kind in kinds:
        for name in SETS:
            paths = getattr(args, f"{kind}_{name}_pth") or [None]
            for number, path in enumerate(paths, 1):
                files[f"{kind}_{name}_{number}"] = ModelFile(f"--{kind}_{name}_pth", path, resolution=args.resolution)
    return files


def job_of(args: Namespace) -> Job:
    """What the flags ask for."""
    layers = args.layers
    if not layers:
        layers = [LOGITS if args.use_supervised_linear else "backbone" if args.use_backbone else "projector"]
    images = ImageSets(
        folder=args.imgnet_train_pth,
        boxes=None if args.use_corner_crop else args.imgnet_bbox_pth,
        attacked={} if args.placebo else {"A": args.bbox_A_idx_pth, "B": args.bbox_B_idx_pth},
        public=args.public_idx_pth,
        unseen=args.unseen_idx_pth,
        crop_cache=args.crop_cache or f"{args.output_dir}/crops.npz",
    )
    return Job(
        folder=Path(args.output_dir),
        models=ModelFiles(model_files(args), layers, bool(args.layers), bool(args.use_supervised_linear)),
        images=images,
        rule=CropRule.of(vars(args)),
        k=args.k,
        k_attk=args.k_attk,
        inference=Inference.of(args),
        class_names=args.class_names,
        settings=vars(args),
    )


def attack(given: tuple[Job, Resources]) -> None:
    job, resources = given
    device = init_from_args(resources, long_waits=True)
    job = replace(job, inference=replace(job.inference, device=device))
    comparison, layers = job.comparison, job.models.layers
    listing = list_images(job.images.folder, "--imgnet_train_pth")
    public_indices = load_indices(job.images.public, "--public_idx_pth", listing)
    sets = job.images.load(listing, public_indices)
    networks, warnings = job.models.load(comparison, job.rule)
    warnings += job.check(networks, sets, public_indices, listing)
    shown = networks[comparison.models[0]].preprocessing.side
    records = {} if rank() else {name: ModelRecord.of(network) for name, network in networks.items()}
    of_each = comparison.layers(networks, layers)
    for name, network in networks.items():
        networks[name] = prepared_for_inference(network, of_each[name]).to(device)
    annotations = None if rank() else job.images.annotations(listing)
    parts, of_boxes = from_first(({}, []) if rank() else job.crops(listing, annotations, sets, public_indices))
    warnings += of_boxes
    queries = Queries(parts, public_indices, comparison.shown(networks))
    public = ImageSet("public", public_indices)
    embedder = Embedder(networks, of_each, listing, job.inference)
    record = job.record(records, listing, sets, queries, public_indices)
    of_layers = {job.folder_of(layer) / RESULTS: job.of_layer(record, layer) for layer in job.models.layers}
    if still_valid(job.folder, of_layers, job.settings):
        return
    pieces = ShardStore(
        job.folder / "unfinished", None if rank() else job.key(record, listing, queries, public_indices)
    )
    if not rank():
        kept = pieces.start()
        print(work_in_words(embedder, queries, public, job.k, layers))
        if kept:
            print(f"resumes with {kept} pieces of the same attack", flush=True)
    wait_for_all()
    progress = progress_of("images embedded")
    searched = nearest_public(embedder, queries, public, k_with_self(job.k, len(public)), pieces, progress)
    if searched and not rank():
        settings = {**job.settings, "resolution": shown, "device": str(device), "reference": comparison.kind}
        beside = job.images.attacked.get("A")
        copied = copied_elsewhere(beside, networks, comparison.reference, sets, public_indices, listing)
        annotated = replace(job.rule, margin=0)  # what the gallery draws: the boxes themselves
        answers = Answers(listing, queries, public, searched, job.k, job.k_attk or job.k)
        for layer in layers:
            result = layer_result(layer, answers, comparison)
            result.copied = copied
            context = Context(
                counts_of(parts, result, len(public), len(searched.unreadable), len(listing.classes)),
                warnings + check_ceilings(result.ceiling, 1 / len(listing.classes)),
                {**settings, "layer": layer},
                job.of_layer(record, layer).plain(),
                (lambda index: annotations.boxes(index, annotated)[0]) if annotations else None,
                read_class_names(job.class_names, "--class_names") if job.class_names else None,
            )
            folder = job.folder_of(layer)
            with complete_files(folder, last="results.json") as new:
                results = write_layer(new, result, listing, context)
            print("\n".join(["", *summary_lines(layer, results), f"  {folder}"]), flush=True)
        if len(searched.unreadable):
            print(unreadable_in_words(listing, public_indices[searched.unreadable]))
        pieces.remove()
    wait_for_all()


if __name__ == "__main__":
    run(main)
