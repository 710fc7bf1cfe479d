"""The déjà vu test: does a crop that shows only background tell the model which object the image held?

Reads two checkpoints of train_SSL.py (model A trained on set A, model B on set B), the index files of the partition,
the images and their box XML. Both models embed the background crops of both sets; the labels of the nearest public
images guess the object. Writes into OUTPUT_DIR, for each model and attacked set (A_attk_B = model A on set B):
{A,B}_attk_{A,B}_neighb_idxs.npy and _neighb_labels.npy (n x k, nearest first), _attk_idxs.npy (n), _labels.npy (n x 1),
top_{1,5}_conf_sweep_{A,B}_attk_{A,B}.npy (accuracy at 100 fractions from 0.1 to 1), attack_{A,B}.csv (one row an
example), attack_classes.csv, attack_confidence.csv (accuracies against the fraction of the most confident examples),
attack_gallery.html (examples to look at) and results.json (accuracies, outcomes and déjà vu score, each with a 95 %
interval). With --use_supervised_linear 1 _scores.npy (n x classes) takes the place of the neighbor files. With --layers
all this goes into OUTPUT_DIR/{layer}/.

Each image is read once for both models and all layers; several processes (--ngpus, --nodes, --world_size) divide the
images; what is finished is kept in OUTPUT_DIR/unfinished/ until the end; rerun the same command
to resume.

    python label_inference_attack.py --output_dir $LOGGING_FOLDER/vicreg/attack_sweeps/NN_attk_vicreg_300pc_1000ep \\
        --model_A_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --model_B_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_B/model_ep1000.pth \\
        --bbox_A_idx_pth $INDEX_FOLDER/300_per_class/bbox_A.npy \\
        --bbox_B_idx_pth $INDEX_FOLDER/300_per_class/bbox_B.npy \\
        --public_idx_pth $INDEX_FOLDER/500_per_class/public.npy \\
        --imgnet_train_pth $IMAGENET_DATASET_DIR --imgnet_bbox_pth $IMAGENET_BBOX_ANNOTATIONS
    python label_inference_attack.py --local 1 --output_dir /tmp/attack --k 50 --k_attk 50 \\
        --resolution 32 --min_px 32 \\
        --model_A_pth demo/seed0/simclr_600epochs/simclr_dssweep_50pc_A/model_ep600.pth \\
        --model_B_pth demo/seed0/simclr_600epochs/simclr_dssweep_50pc_B/model_ep600.pth \\
        --bbox_A_idx_pth demo/seed0/index/50_per_class/bbox_A.npy \\
        --bbox_B_idx_pth demo/seed0/index/50_per_class/bbox_B.npy \\
        --public_idx_pth demo/seed0/index/50_per_class/public.npy \\
        --imgnet_train_pth demo/seed0/data/images --imgnet_bbox_pth demo/seed0/data/boxes
"""

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dejavu_utils.analysis.gallery import save_gallery
from dejavu_utils.analysis.memorization import SHARES, SWEEP_FRACTIONS, accuracy_sweep
from dejavu_utils.analysis.points import SETS, attack_path
from dejavu_utils.analysis.results import (
    TOP_KS,
    attack_statistics,
    class_table,
    confidence_curve,
    example_table,
    figure_in_words,
    read_attack,
)
from dejavu_utils.attack.boxes import Annotations, CropRule, file_fingerprint, in_words, take_crops
from dejavu_utils.attack.crop_cache import load_crops, save_crops
from dejavu_utils.attack.search import Embedder, Found, ImageSet, Inference, nearest_public, predicted_memory
from dejavu_utils.attack.unfinished import Unfinished
from dejavu_utils.cli import (
    Parser,
    add_inference_flags,
    add_launch_flags,
    existing_file,
    existing_folder,
    expanded,
    positive_int,
    run,
    zero_or_one,
)
from dejavu_utils.crops import RULES
from dejavu_utils.distributed import from_first, rank, wait_for_all, world_size
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_files, digest, save_csv, save_json, save_npy
from dejavu_utils.imagenet import UNREADABLE, list_images, load_indices, read_class_names
from dejavu_utils.launch import here_or_submitted, join
from dejavu_utils.models import L2, LOSSES
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.networks.loading import ARCH_HELP, check_typed, existing_model, load_network
from dejavu_utils.progress import Progress
from dejavu_utils.runlog import say

BOXES = "--imgnet_bbox_pth"
PARTS = ("indices", "crops")  # of an ImageSet


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--output_dir", type=expanded, required=True, help="where everything is written")
    group = parser.add_argument_group("models")
    group.add_argument("--model_A_pth", type=expanded, required=True, help="checkpoint of the model trained on set A")
    group.add_argument("--model_B_pth", type=expanded, required=True, help="checkpoint of the model trained on set B")
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
    group = parser.add_argument_group("data")
    group.add_argument("--bbox_A_idx_pth", type=expanded, required=True, help=".npy of the images only set A has")
    group.add_argument("--bbox_B_idx_pth", type=expanded, required=True, help=".npy of the images only set B has")
    group.add_argument("--public_idx_pth", type=expanded, required=True, help=".npy of the public images")
    group.add_argument("--imgnet_train_pth", type=expanded, required=True, help="image folder, CLASS/ID.JPEG")
    group.add_argument(
        "--imgnet_bbox_pth",
        type=expanded,
        help="folder of CLASS/ID.xml, or one above it; not read with --use_corner_crop",
    )
    group.add_argument(
        "--class_names",
        type=expanded,
        help="json of {class folder: name}, or lines of both (LOC_synset_mapping.txt), for the gallery",
    )
    group.add_argument(
        "--crop_cache", type=expanded, help=".npz that keeps the crops for other attacks; OUTPUT_DIR/crops.npz"
    )
    group = parser.add_argument_group("attack")
    group.add_argument("--k", type=positive_int, default=100, help="public neighbors that are saved")
    group.add_argument("--k_attk", type=int, default=100, help="nearest of them that vote; 0 = k")
    group.add_argument(
        "--crop_rule",
        choices=RULES,
        default="paper",
        help="paper: the largest gap within a strip between box edges; exact: the largest empty rectangle",
    )
    group.add_argument("--min_px", type=int, default=100, help="a crop's shorter side is longer than this, pixels")
    group.add_argument(
        "--box_margin",
        type=float,
        default=0.0,
        help="boxes grow by it on every side before a crop is cut: below 1 a fraction of the box's side, else pixels",
    )
    group.add_argument(
        "--scale_boxes",
        type=zero_or_one,
        nargs="?",
        const=1,
        default=0,
        help="1: scale boxes from the <size> in the XML to the image's; 0: where these differ, it is not attacked",
    )
    group.add_argument(
        "--use_corner_crop",
        type=zero_or_one,
        nargs="?",
        const=1,
        default=0,
        help="attack with the lower left corner of every image instead of a background crop",
    )
    group.add_argument("--corner_crop_frac", type=float, default=0.3, help="side of that corner / side of the image")
    add_inference_flags(parser, batch_size=256)
    add_launch_flags(parser, timeout=2800, mem_gb=250)
    return parser.parse_args(argv)


def main():
    args = parse_args()
    check_args(args)
    here_or_submitted(attack, args, (args.output_dir, "--output_dir"), args.num_workers)


def check_args(args):
    """Raises an InputError for what cannot work, before anything is computed or submitted."""
    for name in ("model_A_pth", "model_B_pth"):
        existing_model(getattr(args, name), f"--{name}", args)
    for name in ("bbox_A_idx_pth", "bbox_B_idx_pth", "public_idx_pth"):
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
    if not 0 <= args.box_margin < math.inf:
        raise InputError(f"--box_margin {args.box_margin}: must be 0 or more")
    if args.use_supervised_linear and args.use_backbone:
        raise InputError("--use_supervised_linear 1: scores are the logits; leave --use_backbone out")
    if args.layers and (args.use_backbone or args.use_supervised_linear):
        raise InputError("--layers: leave --use_backbone and --use_supervised_linear out")
    if args.layers and len(set(args.layers)) < len(args.layers):
        raise InputError("--layers: names a layer twice")
    other = "neighb_labels" if args.use_supervised_linear else "scores"
    if attack_path(args.output_dir, "A", "A", other).exists():
        raise InputError(f"--output_dir {args.output_dir}: holds the {other} of another kind of attack; name another")


def attack(args):
    device = join(args, long_waits=True)
    networks, layers = load_networks(args, device)
    listing = list_images(args.imgnet_train_pth, "--imgnet_train_pth")
    sets = {
        name: load_indices(getattr(args, f"bbox_{name}_idx_pth"), f"--bbox_{name}_idx_pth", listing) for name in SETS
    }
    public = load_indices(args.public_idx_pth, "--public_idx_pth", listing)
    check_sets(args, sets, public)
    annotations = None if rank() or args.use_corner_crop else Annotations(args.imgnet_bbox_pth, listing, BOXES)
    cropped = from_first(None if rank() else cached_crops(args, listing, annotations, sets))
    crops = ImageSet("crops", *(np.concatenate([getattr(s, part) for s in cropped.values()]) for part in PARTS))
    if not len(crops):
        why = in_words(sum((Counter(images.counts) for images in cropped.values()), Counter()))
        raise InputError(
            f"--imgnet_bbox_pth {args.imgnet_bbox_pth}: no image has a crop: {why}; see --min_px {args.min_px} and "
            f"--scale_boxes {args.scale_boxes}"
        )
    public = ImageSet("public", public)
    where = {model: f"--model_{model}_pth {getattr(args, f'model_{model}_pth')}" for model in SETS}
    inference = Inference(
        device, args.precision, args.resolution, args.batch_size, args.num_workers, args.skip_unreadable
    )
    embedder = Embedder(networks, layers, listing, where, inference)
    key = None if rank() else key_of(args, networks, layers, listing, crops, public, device)
    pieces = Unfinished(Path(args.output_dir) / "unfinished", key)
    if not rank():
        announce(args, embedder, crops, public, pieces.start())
    wait_for_all()
    if args.use_supervised_linear:
        found = Found(*embedder.embed_set(crops, pieces, progress))
    else:
        found = nearest_public(embedder, crops, public, args.k, pieces, progress)
    if not rank():
        for layer in layers:
            folder = Path(args.output_dir) / layer if args.layers else Path(args.output_dir)
            with complete_files(folder, last="results.json") as new:
                results = save_layer(args, new, layer, embedder, annotations, cropped, public, found)
            print_summary(folder, layer, results)
        pieces.remove()
    wait_for_all()


def load_networks(args, device):
    """({"A": network, "B": network} in eval mode on the device, the layers to attack)."""
    networks = {}
    for model in SETS:
        flag, path = f"--model_{model}_pth", getattr(args, f"model_{model}_pth")
        networks[model] = load_network(path, flag, args.arch)
        if networks[model].notes:
            say(f"{flag} {path}: {networks[model].notes}")
        check_typed(networks[model], f"{flag} {path}", args.mlp, args.loss, args.resnet50)
        if args.use_supervised_linear and networks[model].loss != "supervised":
            raise InputError(f"--use_supervised_linear 1: {flag} {path} has no supervised head")
    kinds = [(n.arch, n.mlp, n.loss, str(n.preprocessing)) for n in networks.values()]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"--model_B_pth {args.model_B_pth}: is a {kinds[1]}, --model_A_pth a {kinds[0]}; the test compares two "
            "models that were trained the same way"
        )
    args.resolution = args.resolution or networks["A"].preprocessing.side
    layers = layers_of(args, networks["A"])
    return {model: prepared_for_inference(network, layers).to(device) for model, network in networks.items()}, layers


def layers_of(args, network):
    """The layers to attack; those typed must be the network's."""
    layers = args.layers or [
        "logits" if args.use_supervised_linear else "backbone" if args.use_backbone else "projector"
    ]
    there = [name for name in network.layer_names() if name != "logits" or args.use_supervised_linear]
    for layer in layers:
        if layer.removesuffix(L2) not in there:
            flag = f"--layers {layer}" if args.layers else f"the {layer} is attacked by default"
            raise InputError(
                f"{flag}: --model_A_pth {args.model_A_pth} has {', '.join(there)}; name one with --layers"
                + ("" if args.layers else " or give --use_backbone 1")
            )
    return layers


def check_sets(args, indices, public):
    """Attacked images must be in one training set only, and not among the public images."""
    for name in SETS:
        if not len(indices[name]):
            raise InputError(f"--bbox_{name}_idx_pth {getattr(args, f'bbox_{name}_idx_pth')}: holds no index")
    for name, others, flag in (
        ("A", indices["B"], "--bbox_B_idx_pth"),
        ("A", public, "--public_idx_pth"),
        ("B", public, "--public_idx_pth"),
    ):
        both = np.intersect1d(indices[name], others)
        if len(both):
            raise InputError(f"{flag}: shares {len(both)} images with --bbox_{name}_idx_pth; the sets must be disjoint")
    if not args.use_supervised_linear and args.k > len(public):
        raise InputError(f"--k {args.k}: the public set of --public_idx_pth has only {len(public)} images")


def cached_crops(args, listing, annotations, sets):
    """{set: CroppedImages}, from the cache if it holds them, else computed."""
    rule = CropRule.of(vars(args))
    state = file_fingerprint(listing, np.concatenate(list(sets.values())), annotations)
    key = json.dumps([*asdict(rule).values(), args.skip_unreadable, len(sets["A"]), state])
    path = Path(args.crop_cache or Path(args.output_dir) / "crops.npz")
    cropped = load_crops(path, key)
    if cropped:
        print(f"crops of {path}")
    else:
        cropped = {}
        for name, indices in sets.items():
            with Progress(len(indices), f"images of set {name} searched for a crop") as bar:
                cropped[name] = take_crops(listing, indices, rule, annotations, bar.update, args.skip_unreadable)
        save_crops(path, key, cropped)
    for name, images in cropped.items():
        skipped = in_words(images.counts)
        print(
            f"set {name}: {len(images)} of {images.counts['images']} images attacked"
            + (f" ({skipped})" if skipped else "")
        )
    return cropped


def key_of(args, networks, layers, listing, crops, public, device):
    """All that the neighbors depend on: pieces of an attack with another key are not used."""
    names = ("k", "precision", "resolution", "batch_size", "skip_unreadable", "use_supervised_linear")
    return {
        **{name: getattr(args, name) for name in names},
        "networks": {
            model: [digest(*network.state_dict().values()), str(network.preprocessing)]
            for model, network in networks.items()
        },
        "layers": layers,
        "sets": [digest(crops.indices, crops.crops), digest(public.indices)],
        "files": file_fingerprint(listing, np.concatenate([crops.indices, public.indices])),
        "device": device.type,
    }


def announce(args, embedder, crops, public, kept):
    """Prints what is computed where, and the memory it needs."""
    n_public = 0 if args.use_supervised_linear else len(public)
    print(
        f"embedding {len(crops)} crops and {n_public} public images: {', '.join(embedder.layers)}, on "
        f"{embedder.device} in {args.precision}, {world_size()} process{'es' if world_size() > 1 else ''}"
    )
    gigabytes = {what: size / 1e9 for what, size in predicted_memory(embedder, len(crops), n_public, args.k).items()}
    disk = gigabytes.pop("disk")
    print(
        f"memory per process, beside its networks: at most {sum(gigabytes.values()):.2f} GB ("
        + ", ".join(f"{what} {size:.2f}" for what, size in gigabytes.items())
        + f"); disk for unfinished work: at most {disk:.2f} GB"
    )
    if kept:
        print(f"resumes with {kept} pieces of the same attack", flush=True)


def progress(total):
    return Progress(total, "images embedded" + (f" by process {rank()}" if world_size() > 1 else ""))


def save_layer(args, folder, layer, embedder, annotations, cropped, public, found):
    """Writes everything about one layer into `folder`, and returns its results. found: search.Found."""
    listing, rows, arrays = embedder.listing, found.rows, found.arrays
    indices, crops = (np.concatenate([getattr(images, part) for images in cropped.values()])[rows] for part in PARTS)
    in_A = rows < len(cropped["A"])
    nearest = None if layer == "logits" else {model: public.indices[arrays[model, layer]] for model in SETS}
    for model in SETS:
        outcome = {"attk_idxs": indices, "labels": listing.labels[indices, None]}
        if nearest:
            outcome.update(neighb_idxs=nearest[model], neighb_labels=listing.labels[nearest[model]])
        else:
            outcome["scores"] = arrays[model, layer]
        for name in SETS:
            for what, values in outcome.items():
                save_npy(attack_path(folder, model, name, what), values[in_A == (name == "A")])
    sets = read_attack(folder, args.k_attk)
    save_statistics(folder, sets)
    for name in SETS:
        save_csv(folder / f"attack_{name}.csv", example_table(sets[name], listing))
    save_csv(folder / "attack_classes.csv", class_table(sets, listing.classes))
    save_csv(folder / "attack_confidence.csv", confidence_curve(sets))
    annotated = replace(CropRule.of(vars(args)), margin=0)
    boxes = annotations and (lambda index: annotations.boxes(index, annotated)[0])
    names = read_class_names(args.class_names, "--class_names") if args.class_names else None
    save_gallery(folder / "attack_gallery.html", sets, listing, indices, crops, nearest, boxes, names)
    counts = {name: dict(cropped[name].counts) for name in SETS}
    for name in SETS:
        lost = counts[name]["attacked"] - len(sets[name].idxs)
        counts[name]["attacked"] -= lost
        counts[name][UNREADABLE] += lost
    results = {
        **attack_statistics(sets),
        "counts": {
            **counts,
            "public": len(public) - found.unreadable,
            f"public, {UNREADABLE}": found.unreadable,
            "classes": len(listing.classes),
        },
        "settings": {**vars(args), "layer": layer, "device": str(embedder.device)},
    }
    save_json(folder / "results.json", results)
    return results


def save_statistics(folder, sets):
    """Writes the accuracies at 100 fractions of confidence, of each model on each set."""
    for name in SETS:
        attack_on = sets[name].attack
        for model in SETS:
            predictions = attack_on.target if model == name else attack_on.reference
            for top_k in TOP_KS:
                sweep = accuracy_sweep(predictions, attack_on.labels, top_k, SWEEP_FRACTIONS)
                save_npy(folder / f"top_{top_k}_conf_sweep_{model}_attk_{name}.npy", sweep)


def print_summary(folder, layer, results):
    counts, top_1 = results["counts"], results["both"]["top_1"]
    print(
        f"\n{layer}: {counts['A']['attacked']} images of set A and {counts['B']['attacked']} of set B attacked, "
        f"{counts['classes']} classes; top-1, with 95 % intervals:"
    )
    for pct, figures in top_1["accuracy"].items():
        who = "all examples" if pct == "100" else f"the most confident {pct} %"
        print(
            f"  {who}: target {figure_in_words(figures['target'])}, reference {figure_in_words(figures['reference'])}, "
            f"déjà vu score {figure_in_words(figures['score'])}"
        )
    print("  " + ", ".join(f"{share} {figure_in_words(top_1['shares'][share])}" for share in SHARES))
    print(f"  {verdict(top_1)}")
    print(f"  {folder}", flush=True)


def verdict(top_1):
    """The score of all examples in words."""
    score, reference = top_1["accuracy"]["100"]["score"], top_1["accuracy"]["100"]["reference"]
    if score["low"] > 0:
        return (
            f"A model names the objects of {100 * score['value']:.1f} % more images if it was trained on them: those "
            f"are memorized. What the background alone tells names {100 * reference['value']:.1f} %."
        )
    if score["high"] < 0:
        return "The model that was not trained on an image names its object more often: look for a mistake."
    return "Whether a model was trained on an image makes no difference that these examples could show."


if __name__ == "__main__":
    run(main)
