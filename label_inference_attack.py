"""The déjà vu test: does a crop that shows only background tell the model which object the image held?

Reads two checkpoints of train_SSL.py (model A trained on set A, model B on set B), the index files of the partition,
the images and their box XML. Both models embed the background crops of both sets; the labels of the nearest public
images guess the object. Writes into OUTPUT_DIR, for each model and attacked set (A_attk_B = model A on set B):
{A,B}_attk_{A,B}_neighb_idxs.npy and _neighb_labels.npy (n x k, nearest first), _attk_idxs.npy (n), _labels.npy (n x 1),
top_{1,5}_conf_sweep_{A,B}_attk_{A,B}.npy (accuracy at 100 fractions from 0.1 to 1), attack_{A,B}.csv (one row an
example), attack_classes.csv, attack_confidence.csv (accuracies against the fraction of the most confident examples),
attack_gallery.html and results.json. With --use_supervised_linear 1 _scores.npy (n x classes) takes the place of the
neighbor files. With --layers all this goes into OUTPUT_DIR/{layer}/. --model_oss_pth tests the only model there is;
classifiers of crops take its twin's place (--reference_A_pth, --reference_B_pth; docs/one_model.md).

Several processes (--ngpus, --nodes, --world_size) divide the images; rerun the same command to resume.

    python label_inference_attack.py --output_dir $LOGGING_FOLDER/vicreg/attack_sweeps/NN_attk_vicreg_300pc_1000ep \\
        --model_A_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --model_B_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_B/model_ep1000.pth \\
        --bbox_A_idx_pth $INDEX_FOLDER/300_per_class/bbox_A.npy \\
        --bbox_B_idx_pth $INDEX_FOLDER/300_per_class/bbox_B.npy \\
        --public_idx_pth $INDEX_FOLDER/500_per_class/public.npy \\
        --imgnet_train_pth $IMAGENET_DATASET_DIR --imgnet_bbox_pth $IMAGENET_BBOX_ANNOTATIONS
    python label_inference_attack.py --local 1 --output_dir /tmp/attack --k 50 --k_attk 50 \\
        --resolution 32 --min_px 32 --model_A_pth demo/seed0/simclr_600epochs/simclr_dssweep_50pc_A/model_ep600.pth \\
        --model_B_pth demo/seed0/simclr_600epochs/simclr_dssweep_50pc_B/model_ep600.pth \\
        --bbox_A_idx_pth demo/seed0/index/50_per_class/bbox_A.npy \\
        --bbox_B_idx_pth demo/seed0/index/50_per_class/bbox_B.npy \\
        --public_idx_pth demo/seed0/index/50_per_class/public.npy \\
        --imgnet_train_pth demo/seed0/data/images --imgnet_bbox_pth demo/seed0/data/boxes
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from dejavu_utils.analysis.attack_files import check_one_kind
from dejavu_utils.analysis.attack_output import (
    Context,
    check_ceilings,
    counts_of,
    layer_result,
    summary_lines,
    write_layer,
)
from dejavu_utils.attack.preconditions import (
    Origin,
    check_alike,
    check_classes,
    check_disjoint,
    check_models,
    check_training_sets,
    class_warnings,
    copied_elsewhere,
)
from dejavu_utils.attack.search import (
    CEILING,
    Queries,
    ceiling_images,
    k_with_self,
    nearest_public,
    work_in_words,
)
from dejavu_utils.attack.target_reference import ONE, UNSEEN, TargetReference, check_classifier, check_one_model
from dejavu_utils.cli import (
    Parser,
    add_crop_flags,
    add_inference_flags,
    add_launch_flags,
    check_crop_flags,
    existing_file,
    existing_folder,
    expanded,
    positive_int,
    run,
    zero_or_one,
)
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import crops_of, file_fingerprint, frame_warnings, in_words
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import ModelRecord, Provenance, crops_record, sets_record
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_files, digest
from dejavu_utils.imagenet import list_images, read_class_names
from dejavu_utils.log import Progress, say
from dejavu_utils.models import L2, LOSSES
from dejavu_utils.naming import SETS, attack_path
from dejavu_utils.networks.embedder import LOGITS, Embedder, ImageSet, Inference
from dejavu_utils.networks.inference import check_layers, prepared_for_inference
from dejavu_utils.networks.loading import ARCH_HELP, check_typed, existing_model, load_network
from dejavu_utils.runtime.distributed import from_first, rank, wait_for_all, world_size
from dejavu_utils.runtime.launch import init_from_args, launch
from dejavu_utils.runtime.resumable import ShardStore

BOXES = "--imgnet_bbox_pth"


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--output_dir", type=expanded, required=True, help="where everything is written")
    group = parser.add_argument_group("models")
    for name, what in (("A", "the model trained on set A"), ("B", "that trained on set B"), ("oss", "the only model")):
        group.add_argument(f"--model_{name}_pth", type=expanded, help=f"checkpoint of {what}")
    for kind, what in (("", ""), ("half_", "half of ")):
        for name in SETS:
            group.add_argument(
                f"--{kind}reference_{name}_pth",
                type=expanded,
                nargs="+",
                help=f"for --model_oss_pth: classifiers trained on {what}set {name}'s crops, with different seeds",
            )
    group.add_argument("--arch", help=ARCH_HELP)
    group.add_argument("--mlp", help="must match the checkpoints if given: widths of the projector")
    group.add_argument("--loss", choices=LOSSES, help="must match the checkpoints if given: training objective")
    group.add_argument("--resnet50", action="store_true", help="must match the checkpoints if given: the backbone")
    group.add_argument(
        "--use_backbone", type=zero_or_one, default=0, help="1: embed with the backbone; 0: with the projector"
    )
    group.add_argument(
        "--use_supervised_linear",
        type=zero_or_one,
        default=0,
        help="1: a supervised model's logits are the class scores, without neighbors",
    )
    group.add_argument(
        "--layers",
        type=lambda text: text.split(","),
        help="several layers at once, each into a folder of its name: backbone,projector.0,projector",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_attack_flags(parser.add_argument_group("attack"))
    add_inference_flags(parser, batch_size=256)
    add_launch_flags(parser, timeout=2800, mem_gb=250)
    return parser.parse_args(argv)


def add_data_flags(group):
    for name, other in (("A", "test"), ("B", "valid")):
        group.add_argument(
            f"--bbox_{name}_idx_pth",
            f"--{other}_idx_pth",
            type=expanded,
            help=f".npy of the images only set {name} has; not with --placebo",
        )
    group.add_argument(
        "--unseen_idx_pth", type=expanded, help="with --model_oss_pth: .npy of boxed images that it was not trained on"
    )
    group.add_argument("--public_idx_pth", type=expanded, required=True, help=".npy of the public images")
    group.add_argument("--imgnet_train_pth", type=expanded, required=True, help="image folder, CLASS/ID.JPEG")
    group.add_argument(
        BOXES, type=expanded, help="folder of CLASS/ID.xml, or one above it; not read with --use_corner_crop"
    )
    group.add_argument(
        "--class_names",
        type=expanded,
        help="json of {class folder: name}, or lines of both (LOC_synset_mapping.txt), for the gallery",
    )
    group.add_argument(
        "--crop_cache", type=expanded, help=".npz that keeps the crops for other attacks; OUTPUT_DIR/crops.npz"
    )


def add_attack_flags(group):
    group.add_argument("--k", type=positive_int, default=100, help="public neighbors that are saved")
    group.add_argument("--k_attk", type=int, default=100, help="nearest of them that vote; 0 = k")
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
        help="attack public images, which neither model saw, in place of the sets A and B: the score must be 0",
    )
    group.add_argument("--corner_crop_frac", type=float, default=0.3, help="side of that corner / side of the image")


def main():
    args = parse_args()
    check_args(args)
    launch(attack, args, (args.output_dir, "--output_dir"), args.num_workers)


def check_args(args):
    """Raises an InputError for what cannot work, before anything is computed or submitted."""
    of_one = ("reference_A_pth", "reference_B_pth", "half_reference_A_pth", "half_reference_B_pth", "unseen_idx_pth")
    for name in ("model_A_pth", "model_B_pth") if args.model_oss_pth else of_one:
        if getattr(args, name):
            raise InputError(f"--{name}: give --model_A_pth and --model_B_pth, or --model_oss_pth with its own flags")
    if args.model_oss_pth and args.placebo:
        raise InputError("--placebo: of one model --unseen_idx_pth is the test whose score must be 0")
    for flag, path in tested(args).values():
        existing_model(path, flag, args)
    files = [] if args.placebo else ["bbox_A_idx_pth", "bbox_B_idx_pth"]
    for name in [*files, "public_idx_pth", *(["unseen_idx_pth"] if args.unseen_idx_pth else [])]:
        existing_file(getattr(args, name), f"--{name}")
    existing_folder(args.imgnet_train_pth, "--imgnet_train_pth")
    if not args.use_corner_crop:
        existing_folder(args.imgnet_bbox_pth, "--imgnet_bbox_pth")
    if args.class_names:
        read_class_names(args.class_names, "--class_names")
    if not 0 <= args.k_attk <= args.k:
        raise InputError(f"--k_attk {args.k_attk}: must be between 0 (all) and --k {args.k}")
    if not 0 < args.corner_crop_frac <= 1:
        raise InputError(f"--corner_crop_frac {args.corner_crop_frac}: must be above 0 and at most 1")
    check_crop_flags(args)
    if args.use_supervised_linear and args.use_backbone:
        raise InputError("--use_supervised_linear 1: scores are the logits; leave --use_backbone out")
    if args.layers and (args.use_backbone or args.use_supervised_linear):
        raise InputError("--layers: leave --use_backbone and --use_supervised_linear out")
    if args.layers and len(set(args.layers)) < len(args.layers):
        raise InputError("--layers: names a layer twice")
    check_one_kind(args.output_dir, bool(args.layers))
    for model, scored in (("A", args.use_supervised_linear), ("B", args.use_supervised_linear or args.model_oss_pth)):
        other = "neighb_labels" if scored else "scores"
        if attack_path(args.output_dir, model, "A", other).exists():
            raise InputError(
                f"--output_dir {args.output_dir}: holds the {other} of another kind of attack; name another"
            )


def attack(args):
    device = init_from_args(args, long_waits=True)
    listing = list_images(args.imgnet_train_pth, "--imgnet_train_pth")
    public = load_indices(args.public_idx_pth, "--public_idx_pth", listing)
    sets = attacked_sets(args, listing, public)
    where = {name: f"{flag} {path}" for name, (flag, path) in tested(args).items()}
    comparison = TargetReference.of(where, bool(args.unseen_idx_pth))
    first = comparison.models[0]
    networks, warnings = load_networks(args, where, comparison)
    warnings += check_identity(args, networks, where, comparison, sets, public, listing)
    with_scores = networks if args.use_supervised_linear else comparison.shown(networks)
    warnings += check_classes({name: networks[name] for name in with_scores}, where, listing)
    warnings += [] if args.use_supervised_linear else class_warnings(listing, sets, public)
    layers = layers_of(args, networks[first], where[first])
    of_each = comparison.layers(networks, layers)
    for name, network in networks.items():
        check_layers(network, of_each[name], where[name])
    shown = networks[first].preprocessing.side
    models = {} if rank() else {name: ModelRecord.of(net, args.resolution) for name, net in networks.items()}
    networks = {name: prepared_for_inference(net, of_each[name]).to(device) for name, net in networks.items()}
    annotations = None if rank() or args.use_corner_crop else Annotations(args.imgnet_bbox_pth, listing, BOXES)
    parts = from_first(None if rank() else cropped_parts(args, listing, annotations, sets, public, warnings))
    queries, public = Queries(parts, public, comparison.shown(networks)), ImageSet("public", public)
    inference = Inference(device, args.precision, args.batch_size, args.num_workers, args.skip_unreadable)
    embedder = Embedder(networks, of_each, listing, where, inference)
    record = record_of(args, models, listing, sets, queries.images, public.indices)
    key = None if rank() else key_of(args, record, layers, listing, queries.images, public, device)
    pieces = ShardStore(Path(args.output_dir) / "unfinished", key)
    if not rank():
        kept = pieces.start()
        print(work_in_words(embedder, queries, public, args.k, layers))
        if kept:
            print(f"resumes with {kept} pieces of the same attack", flush=True)
    wait_for_all()
    found = nearest_public(embedder, queries.images, public, k_with_self(args.k, len(public)), pieces, progress)
    settings = {**vars(args), "resolution": shown, "device": str(device), "reference": comparison.kind}
    if not rank():
        copied = copied_elsewhere(args.bbox_A_idx_pth, networks, comparison.reference, sets, public.indices, listing)
        for layer in layers:
            folder = Path(args.output_dir) / layer if args.layers else Path(args.output_dir)
            result = layer_result(layer, listing, queries, public, found, (args.k, args.k_attk), comparison)
            result.copied = copied
            context = Context(
                counts_of(parts, result, len(public), found.unreadable, len(listing.classes)),
                warnings + check_ceilings(result.ceiling, 1 / len(listing.classes)),
                {**settings, "layer": layer},
                replace(record, votes={"k": args.k, "k_attk": args.k_attk, "layer": layer}).plain(),
                **pictures_of(args, annotations),
            )
            with complete_files(folder, last="results.json") as new:
                results = write_layer(new, result, listing, args.k_attk, context)
            print("\n".join(["", *summary_lines(layer, results), f"  {folder}"]), flush=True)
        pieces.remove()
    wait_for_all()


def attacked_sets(args, listing, public):
    """{set: (flag, int64 (n,) image indices)}: of A and B, with --placebo halves of the public set; of the only model
    also those that it never saw, in halves, each judged by the classifiers of one set."""
    if args.placebo:
        sets = {name: ("--placebo", public[start::2]) for start, name in enumerate(SETS)}
    else:
        flags = {name: f"--bbox_{name}_idx_pth" for name in SETS}
        sets = {
            name: (flag, load_indices(getattr(args, flag.strip("-")), flag, listing)) for name, flag in flags.items()
        }
    if args.unseen_idx_pth:
        unseen = load_indices(args.unseen_idx_pth, "--unseen_idx_pth", listing)
        sets |= {UNSEEN[name]: ("--unseen_idx_pth", unseen[start::2]) for start, name in enumerate(SETS)}
    return sets


def check_identity(args, networks, where, comparison, sets, public, listing):
    """Warnings about models and sets that the score may not be about; InputError where it would mean nothing."""
    if not args.use_supervised_linear and args.k > len(public) - args.placebo:
        raise InputError(f"--k {args.k}: the public set of --public_idx_pth has only {len(public)} images")
    attacked, public = {} if args.placebo else sets, ("--public_idx_pth", public)
    check_disjoint(attacked, public)
    origins = {model: Origin.of(network) for model, network in networks.items()}
    if comparison.classifiers:
        return check_one_model(origins, where, comparison, sets, public, listing)
    return check_models(origins, where) + check_training_sets(origins, where, attacked, public, listing)


def tested(args):
    """{name: (flag, file)}: models A and B, or the only one and the classifiers in place of its twin."""
    if not args.model_oss_pth:
        return {model: (f"--model_{model}_pth", getattr(args, f"model_{model}_pth")) for model in SETS}
    half = [None] if args.half_reference_A_pth or args.half_reference_B_pth else []
    return {ONE: ("--model_oss_pth", args.model_oss_pth)} | {
        f"{kind}_{name}_{number}": (f"--{kind}_{name}_pth", path)
        for kind, needed in (("reference", [None]), ("half_reference", half))
        for name in SETS
        for number, path in enumerate(getattr(args, f"{kind}_{name}_pth") or needed, 1)
    }


def load_networks(args, where, comparison):
    """({name: network} in eval mode on the CPU, warnings)."""
    networks, warnings = {}, []
    for name, (flag, path) in tested(args).items():
        model = name in comparison.models
        networks[name] = load_network(path, flag, args.arch if model else None, resolution=args.resolution)
        say(f"{where[name]}: {networks[name].notes}")
        if not model:
            warnings += check_classifier(networks[name], where[name], str(CropRule.of(vars(args))))
            continue
        check_typed(networks[name], where[name], args.mlp, args.loss, args.resnet50)
        if args.use_supervised_linear and networks[name].loss != "supervised":
            raise InputError(f"--use_supervised_linear 1: {where[name]} has no supervised head")
    if not comparison.classifiers:
        check_alike(networks, where)
    return networks, warnings


def layers_of(args, network, where):
    """The layers to attack; those typed must be the network's. where: flag and path of its checkpoint."""
    layers = args.layers or [LOGITS if args.use_supervised_linear else "backbone" if args.use_backbone else "projector"]
    by_default = "the {} is attacked by default", " or give --use_backbone 1"
    flag, remedy = ("--layers {}", "") if args.layers else by_default
    there = [name for name in network.layer_names() if name != LOGITS or args.use_supervised_linear]
    for layer in layers:
        if layer.removesuffix(L2) not in there:
            raise InputError(f"{flag.format(layer)}: {where} has {', '.join(there)}; name one with --layers{remedy}")
    return layers


def cropped_parts(args, listing, annotations, sets, public, warnings):
    """{set: CroppedImages, ..., CEILING: ...}: the attack's queries in order; `warnings` get those of the boxes."""
    indices, rule = {name: of_set for name, (_, of_set) in sets.items()}, CropRule.of(vars(args))
    path = args.crop_cache or f"{args.output_dir}/crops.npz"
    parts, cached = crops_of(path, listing, indices, rule, annotations, args.skip_unreadable, Progress)
    warnings += frame_warnings(annotations, indices, rule, f"{BOXES} {args.imgnet_bbox_pth}")
    if cached:
        print(f"crops of {path}")
    for name, images in parts.items():
        skipped = f" ({in_words(images.counts)})" if len(images) < images.counts["images"] else ""
        print(f"set {name}: {len(images)} of {images.counts['images']} images attacked{skipped}")
    if not any(map(len, parts.values())):
        why = in_words(sum((Counter(images.counts) for images in parts.values()), Counter()))
        raise InputError(
            f"{BOXES} {args.imgnet_bbox_pth}: no image has a crop: {why}; see --min_px {args.min_px} and "
            f"--scale_boxes {args.scale_boxes}, or give --use_corner_crop 1"
        )
    return {**parts, CEILING: ceiling_images(listing, public, args.skip_unreadable)}


def record_of(args, models, listing, sets, crops, public):
    """The Provenance of the attack, but for its votes. models: {name: ModelRecord}. public: int64 (p,)."""
    return Provenance(
        models=models,
        images=listing.fingerprint["sha256"],
        sets=sets_record(sets),
        crops=crops_record(CropRule.of(vars(args)), crops.indices, crops.crops),
        public=digest(public),
        precision=args.precision,
        resolution=args.resolution,
        settings={"use_supervised_linear": args.use_supervised_linear},
    )


def key_of(args, record, layers, listing, crops, public, device):
    """The record of all that the neighbors depend on, plain: pieces of an attack with another one are not used."""
    settings = {name: getattr(args, name) for name in ("batch_size", "skip_unreadable", "use_supervised_linear")}
    shown = {f"shown to {name}": digest(rows) for name, rows in crops.shown.items()}
    return replace(
        record,
        votes={"k": args.k, "layers": ",".join(layers)},
        files=file_fingerprint(listing, np.concatenate([crops.indices, public.indices])),
        settings={**settings, **shown, "device": device.type},
    ).plain()


def progress(total):
    return Progress(total, "images embedded" + (f" by process {rank()}" if world_size() > 1 else ""))


def pictures_of(args, annotations):
    """What the gallery shows beside the images: their boxes as annotated, and the names of the classes."""
    annotated = replace(CropRule.of(vars(args)), margin=0)
    return {
        "boxes_of": annotations and (lambda index: annotations.boxes(index, annotated)[0]),
        "class_names": read_class_names(args.class_names, "--class_names") if args.class_names else None,
    }


if __name__ == "__main__":
    run(main)
