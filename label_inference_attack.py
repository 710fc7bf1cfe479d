"""The déjà vu test: does a crop that shows only background tell the model which object the image held?

Reads two checkpoints of train_SSL.py (model A trained on set A, model B on set B), the index files of the partition,
the images and their box XML. Both models embed the background crops of both sets; the labels of the nearest public
images guess the object. Writes into OUTPUT_DIR, for each model and attacked set (A_attk_B = model A on set B):
{A,B}_attk_{A,B}_neighb_idxs.npy and _neighb_labels.npy (n x k, nearest first), _attk_idxs.npy (n), _labels.npy (n x 1),
top_{1,5}_conf_sweep_{A,B}_attk_{A,B}.npy (accuracy at 100 fractions from 0.1 to 1), attack_{A,B}.csv (a row an example)
and results.json (accuracies, shares and déjà vu score, each with a 95 % interval). With --use_supervised_linear 1
_scores.npy (n x classes) takes the place of the neighbor files.

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

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from dejavu_utils import crops as crop_rules
from dejavu_utils.files import save_csv, save_json, save_npy
from dejavu_utils.imagenet import (
    IndexedImages,
    background_crops,
    evaluation_transform,
    image_size,
    list_images,
    load_indices,
)
from dejavu_utils.launch import autocast, here_or_submitted, join
from dejavu_utils.memorization import SHARES, SWEEP_FRACTIONS, accuracy_sweep
from dejavu_utils.models import LOSSES, check_typed, load_model
from dejavu_utils.neighbors import NeighborSearch
from dejavu_utils.options import (
    InputError,
    Parser,
    add_inference_flags,
    add_launch_flags,
    existing_file,
    existing_folder,
    positive_int,
    run,
    zero_or_one,
)
from dejavu_utils.progress import Progress
from dejavu_utils.results import (
    SETS,
    TOP_KS,
    attack_path,
    attack_statistics,
    example_table,
    figure_in_words,
    read_attack,
)

_BLOCK_FLOATS = 2**26  # public embeddings of one model that are held at once: 256 MB


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--output_dir", required=True, help="where everything is written")
    group = parser.add_argument_group("models")
    group.add_argument("--model_A_pth", required=True, help="checkpoint of the model trained on set A")
    group.add_argument("--model_B_pth", required=True, help="checkpoint of the model trained on set B")
    group.add_argument("--mlp", help="checked against the checkpoints if given: widths of the projector")
    group.add_argument("--loss", choices=LOSSES, help="checked against the checkpoints if given: training objective")
    group.add_argument("--resnet50", action="store_true", help="checked against the checkpoints if given: the trunk")
    group.add_argument(
        "--use_backbone", type=zero_or_one, default=0, help="1: embed with the backbone; 0: with the projector"
    )
    group.add_argument(
        "--use_supervised_linear",
        type=zero_or_one,
        default=0,
        help="1: a supervised model's logits are the class scores, without neighbors",
    )
    group = parser.add_argument_group("data")
    group.add_argument("--bbox_A_idx_pth", required=True, help=".npy of the images only set A has")
    group.add_argument("--bbox_B_idx_pth", required=True, help=".npy of the images only set B has")
    group.add_argument("--public_idx_pth", required=True, help=".npy of the public images")
    group.add_argument("--imgnet_train_pth", required=True, help="image folder, CLASS/ID.JPEG")
    group.add_argument("--imgnet_bbox_pth", help="folder of Annotation/CLASS/ID.xml; not read with --use_corner_crop")
    group = parser.add_argument_group("attack")
    group.add_argument("--k", type=positive_int, default=100, help="public neighbors that are saved")
    group.add_argument("--k_attk", type=int, default=100, help="nearest of them that vote; 0 = k")
    group.add_argument(
        "--crop_rule",
        choices=crop_rules.RULES,
        default="paper",
        help="paper: the largest gap within a strip between box edges; exact: the largest empty rectangle",
    )
    group.add_argument("--min_px", type=int, default=100, help="a crop's shorter side is longer than this, pixels")
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
    here_or_submitted(__file__, "attack", args)


def check_args(args):
    """Raises an InputError for what cannot work, before anything is computed or submitted."""
    for name in ("model_A_pth", "model_B_pth", "bbox_A_idx_pth", "bbox_B_idx_pth", "public_idx_pth"):
        existing_file(getattr(args, name), f"--{name}")
    existing_folder(args.imgnet_train_pth, "--imgnet_train_pth")
    if not args.use_corner_crop:
        existing_folder(args.imgnet_bbox_pth, "--imgnet_bbox_pth")
    if not 0 <= args.k_attk <= args.k:
        raise InputError(f"--k_attk {args.k_attk}: must be between 0 (all) and --k {args.k}")
    if not 0 < args.corner_crop_frac <= 1:
        raise InputError(f"--corner_crop_frac {args.corner_crop_frac}: must be above 0 and at most 1")
    if args.use_supervised_linear and args.use_backbone:
        raise InputError("--use_supervised_linear 1: scores are the logits; leave --use_backbone out")
    other = "neighb_labels" if args.use_supervised_linear else "scores"
    if attack_path(args.output_dir, "A", "A", other).exists():
        raise InputError(f"--output_dir {args.output_dir}: holds the {other} of another kind of attack; name another")


def attack(args):
    device = join(args)
    networks = load_networks(args, device)
    listing = list_images(args.imgnet_train_pth, "--imgnet_train_pth")
    indices = {
        name: load_indices(getattr(args, f"bbox_{name}_idx_pth"), f"--bbox_{name}_idx_pth", listing) for name in SETS
    }
    public = load_indices(args.public_idx_pth, "--public_idx_pth", listing)
    check_sets(args, indices, public)
    found = {name: find_crops(args, listing, name, indices[name]) for name in SETS}
    attacked = np.concatenate([found[name][0] for name in SETS])
    if not len(attacked):
        raise InputError(f"--imgnet_bbox_pth {args.imgnet_bbox_pth}: no image has a crop; see --min_px {args.min_px}")
    crops = np.concatenate([found[name][1] for name in SETS])
    layer = "logits" if args.use_supervised_linear else "backbone" if args.use_backbone else "projector"
    print(f"embedding {len(attacked)} crops and {len(public)} public images: {layer}, on {device} in {args.precision}")
    embedded = embed_crops(args, networks, layer, listing, attacked, crops, device)
    if layer == "logits":
        outcome = [{"scores": embedded[model]} for model in SETS]
    else:
        neighbors = find_neighbors(args, networks, layer, listing, public, embedded, device)
        outcome = [
            {"neighb_idxs": public[positions], "neighb_labels": listing.labels[public[positions]]}
            for positions in neighbors
        ]
    (Path(args.output_dir) / "results.json").unlink(
        missing_ok=True
    )  # of an earlier attack; the new one is written last
    save_outcome(args, listing, attacked, outcome, n_first=len(found["A"][0]))
    sets = read_attack(args.output_dir, args.k_attk)
    save_statistics(args, sets)
    for name in SETS:
        save_csv(Path(args.output_dir) / f"attack_{name}.csv", example_table(sets[name], listing))
    results = {
        **attack_statistics(sets),
        "counts": {
            **{name: found[name][2] for name in SETS},
            "public": len(public),
            "classes": len(listing.classes),
        },
        "settings": {**vars(args), "layer": layer, "device": str(device)},
    }
    save_json(Path(args.output_dir) / "results.json", results)
    print_summary(results)


def load_networks(args, device):
    """{"A": network, "B": network} in eval mode on the device."""
    networks = {}
    for model in SETS:
        flag, path = f"--model_{model}_pth", getattr(args, f"model_{model}_pth")
        networks[model] = load_model(path, flag)
        check_typed(networks[model], f"{flag} {path}", args.mlp, args.loss, args.resnet50)
        if args.use_supervised_linear and networks[model].loss != "supervised":
            raise InputError(f"--use_supervised_linear 1: {flag} {path} has no supervised head")
    kinds = [(network.arch, network.mlp, network.loss) for network in networks.values()]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"--model_B_pth {args.model_B_pth}: is a {kinds[1]}, --model_A_pth a {kinds[0]}; the test compares two "
            "models that were trained the same way"
        )
    return {model: network.to(device) for model, network in networks.items()}


def check_sets(args, indices, public):
    """Attacked images must be in one training set only, and not among the public images."""
    for name, others, flag in (
        ("A", indices["B"], "--bbox_B_idx_pth"),
        ("A", public, "--public_idx_pth"),
        ("B", public, "--public_idx_pth"),
    ):
        both = np.intersect1d(indices[name], others)
        if len(both):
            raise InputError(f"{flag}: shares {len(both)} images with --bbox_{name}_idx_pth; the sets must be disjoint")
    for flag, values in (*((f"--bbox_{name}_idx_pth", indices[name]) for name in SETS), ("--public_idx_pth", public)):
        if len(np.unique(values)) < len(values):
            raise InputError(f"{flag}: holds an index twice; make it again with imagenet_partition.py")
    if not args.use_supervised_linear and args.k > len(public):
        raise InputError(f"--k {args.k}: the public set of --public_idx_pth has only {len(public)} images")


def find_crops(args, listing, name, indices):
    """(indices of the attacked images, their crops, counts) of one set."""
    with Progress(len(indices), f"images of set {name} looked at for a crop") as progress:
        if not args.use_corner_crop:
            found = background_crops(
                listing, indices, args.imgnet_bbox_pth, args.min_px, args.crop_rule, progress.update
            )
        else:
            crops = np.empty((len(indices), 4), np.int64)
            for row, index in enumerate(indices):
                crops[row] = crop_rules.corner_crop(*image_size(listing.path(index)), args.corner_crop_frac)
                progress.update()
            found = indices, crops, {"images": len(indices), "attacked": len(indices)}
    skipped = ", ".join(f"{count} {what}" for what, count in found[2].items() if what not in ("images", "attacked"))
    print(f"set {name}: {len(found[0])} of {len(indices)} images attacked" + (f" ({skipped})" if skipped else ""))
    return found


def embed_crops(args, networks, layer, listing, attacked, crops, device):
    """{model: float32 (n, width)} of the crops; each image is read once for both models."""
    embedded = {
        model: np.empty((len(attacked), network.width(layer)), np.float32) for model, network in networks.items()
    }
    start = 0
    for outputs in embeddings(args, networks, layer, listing, attacked, crops, device, "crops embedded"):
        for model, output in outputs.items():
            embedded[model][start : start + len(output)] = output
        start += len(output)
    return embedded


def find_neighbors(args, networks, layer, listing, public, queries, device):
    """Positions in the public set of each crop's k nearest, int64 (n, k) for model A and model B."""
    searches = {model: NeighborSearch(queries[model], args.k, device) for model in SETS}
    rows = min(len(public), max(args.k, args.batch_size, _BLOCK_FLOATS // networks["A"].width(layer)))
    blocks = {model: np.empty((rows, networks[model].width(layer)), np.float32) for model in SETS}
    filled = 0

    def search_block():
        for model in SETS:
            searches[model].add(blocks[model][:filled])

    for outputs in embeddings(args, networks, layer, listing, public, None, device, "public images embedded"):
        size = len(outputs["A"])
        if filled + size > rows:
            search_block()
            filled = 0
        for model in SETS:
            blocks[model][filled : filled + size] = outputs[model]
        filled += size
    search_block()
    return [searches[model].result() for model in SETS]


@torch.inference_mode()
def embeddings(args, networks, layer, listing, indices, crops, device, what):
    """Yields {model: float32 (batch, width)} of the images (or their crops) in their order."""
    images = IndexedImages(listing, indices, evaluation_transform(args.resolution), crops)
    loader = DataLoader(images, args.batch_size, num_workers=args.num_workers, pin_memory=device.type == "cuda")
    with Progress(len(indices), what) as progress:
        for batch, _ in loader:
            batch = batch.to(device, non_blocking=True)
            outputs = {}
            for model, network in networks.items():
                with autocast(device, args.precision):
                    outputs[model] = network.embed(batch, layer).float().cpu().numpy()
                if not np.isfinite(outputs[model]).all():
                    path = getattr(args, f"model_{model}_pth")
                    raise InputError(
                        f"--model_{model}_pth {path}: its {layer} output is not finite; take an earlier snapshot"
                        + ("" if args.precision == "fp32" else " or --precision fp32")
                    )
            yield outputs
            progress.update(len(batch))


def save_outcome(args, listing, attacked, outcome, n_first):
    """Writes the files of each model and set. attacked: set A's n_first images, then set B's; outcome: of A, of B."""
    rows_of = {"A": slice(0, n_first), "B": slice(n_first, len(attacked))}
    for model, arrays in zip(SETS, outcome):
        for name, rows in rows_of.items():
            arrays_of_set = {
                "attk_idxs": attacked[rows],
                "labels": listing.labels[attacked[rows], None],
                **{what: array[rows] for what, array in arrays.items()},
            }
            for what, array in arrays_of_set.items():
                save_npy(attack_path(args.output_dir, model, name, what), array)


def save_statistics(args, sets):
    """Writes the accuracies at 100 fractions of confidence, of each model on each set."""
    for name in SETS:
        attack_on = sets[name].attack
        for model in SETS:
            predictions = attack_on.target if model == name else attack_on.reference
            for top_k in TOP_KS:
                sweep = accuracy_sweep(predictions, attack_on.labels, top_k, SWEEP_FRACTIONS)
                save_npy(Path(args.output_dir) / f"top_{top_k}_conf_sweep_{model}_attk_{name}.npy", sweep)


def print_summary(results):
    counts, top_1 = results["counts"], results["both"]["top_1"]
    print(
        f"\n{counts['A']['attacked']} images of set A and {counts['B']['attacked']} of set B attacked, "
        f"{counts['classes']} classes; top-1, with 95 % intervals:"
    )
    for pct, figures in top_1["accuracy"].items():
        who = "all examples" if pct == "100" else f"the most confident {pct} %"
        print(
            f"  {who}: target {figure_in_words(figures['target'])}, reference {figure_in_words(figures['reference'])}, "
            f"déjà vu score {figure_in_words(figures['score'])}"
        )
    print("  " + ", ".join(f"{share} {figure_in_words(top_1['shares'][share])}" for share in SHARES))


if __name__ == "__main__":
    run(main)
