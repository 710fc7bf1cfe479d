"""Memorization without labels, boxes or a public set: SSLMem of images and layers, UnitMem of units.

Reads two checkpoints of train_SSL.py (model A trained on set A, model B on set B), the image folder and the index files
of the partition. An image's SSLMem is the mean distance between its augmented views under the model that did not train
on it, minus that under the one that did: above 0 where training pulled the views together. Writes into OUTPUT_DIR
sslmem_{A,B}.csv (one row an image), the same for the control sets that are given (shared, public, unseen; with model A
as the target), unitmem_{A,B}_{layer}.npy (each model's units over its own set), unitmem.csv, results.json (mean score
per layer with a 95 % interval, the same minus that of public and unseen images, fraction above 0), figures and
sslmem_gallery.html (the most and the least memorized images to look at). With --attack_dir it adds the rank correlation
with the déjà vu test's margin of votes on the same images, and margin and outcome to sslmem_{A,B}.csv.

Each image is decoded once for both models, all layers and views; several processes (--ngpus, --nodes, --world_size)
divide the images; what is finished is kept in OUTPUT_DIR/unfinished/; rerun the same command to resume.

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

from dataclasses import replace
from pathlib import Path

import numpy as np

from dejavu_utils.attack.preconditions import Origin, check_alike, check_models, check_training_sets
from dejavu_utils.cli import (
    Parser,
    add_inference_flags,
    add_launch_flags,
    existing_file,
    existing_folder,
    expanded,
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
    check_same,
    read_record,
    sets_record,
)
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_files
from dejavu_utils.imagenet import list_images
from dejavu_utils.label_free.compare import about_other_images, read_margins
from dejavu_utils.label_free.measure import ViewDistances, Views, views_of_training
from dejavu_utils.label_free.output import CONTROLS, Measured, sslmem_in_words, write_folder
from dejavu_utils.log import Progress, say
from dejavu_utils.models import L2
from dejavu_utils.naming import SETS
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference
from dejavu_utils.networks.inference import check_layers, prepared_for_inference
from dejavu_utils.networks.loading import ARCH_HELP, existing_model, load_network
from dejavu_utils.runtime.distributed import rank, wait_for_all, world_size
from dejavu_utils.runtime.launch import init_from_args, launch
from dejavu_utils.runtime.resumable import ShardStore

FLAGS = {**{name: f"bbox_{name}_idx_pth" for name in SETS}, **{name: f"{name}_idx_pth" for name in CONTROLS}}


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--output_dir", type=expanded, required=True, help="where everything is written")
    group = parser.add_argument_group("models")
    group.add_argument("--model_A_pth", type=expanded, required=True, help="checkpoint of the model trained on set A")
    group.add_argument("--model_B_pth", type=expanded, required=True, help="checkpoint of the model trained on set B")
    group.add_argument("--arch", help=ARCH_HELP)
    group.add_argument(
        "--layers",
        type=lambda text: text.split(","),
        help="layers to measure, in the order of the network: backbone,projector.0,projector; default: the backbone, "
        "and the projector if there is one",
    )
    group = parser.add_argument_group("data")
    group.add_argument("--bbox_A_idx_pth", type=expanded, required=True, help=".npy of the images only set A has")
    group.add_argument("--bbox_B_idx_pth", type=expanded, required=True, help=".npy of the images only set B has")
    group.add_argument("--shared_idx_pth", type=expanded, help="control: .npy of images that both models trained on")
    group.add_argument("--public_idx_pth", type=expanded, help="control: .npy of images that neither trained on")
    group.add_argument("--unseen_idx_pth", type=expanded, help="control: .npy of others that neither trained on")
    group.add_argument("--imgnet_train_pth", type=expanded, required=True, help="image folder, CLASS/ID.JPEG")
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--views", type=positive_int, default=10, help="augmented views of an image; all pairs of them are compared"
    )
    group.add_argument("--seed", type=non_negative_int, default=0, help="seed of the augmented views")
    group.add_argument(
        "--attack_dir",
        type=expanded,
        help="folder of an attack on the same images (attack_A.csv, attack_B.csv), to compare the two scores",
    )
    add_inference_flags(parser, batch_size=256)
    add_launch_flags(parser, timeout=2800, mem_gb=60)
    return parser.parse_args(argv)


def main():
    args = parse_args()
    check_args(args)
    launch(measure, args, (args.output_dir, "--output_dir"), args.num_workers)


def check_args(args):
    """Raises an InputError for what cannot work, before anything is computed or submitted."""
    for model in SETS:
        existing_model(getattr(args, f"model_{model}_pth"), f"--model_{model}_pth", args)
    for name, flag in FLAGS.items():
        if name in SETS or getattr(args, flag):
            existing_file(getattr(args, flag), f"--{flag}")
    existing_folder(args.imgnet_train_pth, "--imgnet_train_pth")
    if args.views < 2:
        raise InputError("--views 1: a distance needs two views")
    if args.layers and len(set(args.layers)) < len(args.layers):
        raise InputError("--layers: names a layer twice")
    if args.attack_dir:
        read_margins(args.attack_dir, "--attack_dir")


def measure(args):
    device = init_from_args(args, long_waits=True)
    listing = list_images(args.imgnet_train_pth, "--imgnet_train_pth")
    sets = load_sets(args, listing)
    margins = load_margins(args, listing, sets) if args.attack_dir else None
    where = {model: f"--model_{model}_pth {getattr(args, f'model_{model}_pth')}" for model in SETS}
    networks = load_networks(args, where)
    warnings = check_identity(args, networks, where, sets, listing)
    layers = layers_of(args, networks, where)
    settings = next((found for n in networks.values() if (found := n.about["settings"])), None)
    record = record_of(args, networks, listing, sets)
    if args.attack_dir:
        warnings += check_attack(args, record)
    networks = {model: prepared_for_inference(network, layers).to(device) for model, network in networks.items()}
    args.resolution = networks["A"].preprocessing.side
    size = max(1, args.batch_size // args.views)  # the networks see so many views at once
    inference = Inference(device, args.precision, size, args.num_workers, args.skip_unreadable)
    embedder = Embedder(networks, dict.fromkeys(SETS, layers), listing, where, inference)
    views = Views(views_of_training(settings), args.views, args.seed, embedder.kinds)
    key = None if rank() else key_of(args, record, embedder, views, sets)
    pieces = ShardStore(Path(args.output_dir) / "unfinished", key)
    kept = None if rank() else pieces.start()
    say(
        f"{args.views} views each of {sum(map(len, sets.values()))} images: {', '.join(layers)}, on {device} in "
        f"{args.precision}, {world_size()} process{'es' if world_size() > 1 else ''}"
        + (f"; resumes with {kept} pieces of the same work" if kept else "")
    )
    wait_for_all()
    aligner = ViewDistances(embedder, views, pieces)
    found = {name: aligner.align(ImageSet(name, indices), progress_of(name)) for name, indices in sets.items()}
    if not rank():
        measured = Measured(listing, sets, found, layers, margins, views.pictures)
        about = {
            "warnings": warnings,
            "settings": {**vars(args), "layers": layers, "device": str(device)},
            "views": {"pairs": "all", "taking turns": [vars(view) for view in views.pair]},
            MADE_FROM: record.plain(),
        }
        with complete_files(args.output_dir, last="results.json") as new:
            results = write_folder(new, measured, about)
        print("\n".join(["", *sslmem_in_words(results), f"  {args.output_dir}"]), flush=True)
        pieces.remove()
    wait_for_all()


def load_sets(args, listing):
    """{name: int64 (n,)} of the sets that are given, A and B first; InputError if one is too small or two overlap."""
    sets = {}
    for name, flag in FLAGS.items():
        if getattr(args, flag):
            sets[name] = load_indices(getattr(args, flag), f"--{flag}", listing)
            if name not in SETS and not len(sets[name]):
                say(f"note: --{flag} {getattr(args, flag)} holds no image: this control is left out")
                del sets[name]
                continue
            if len(sets[name]) < 2:
                raise InputError(f"--{flag} {getattr(args, flag)}: holds {len(sets[name])} images, two are needed")
            for other in list(sets)[:-1]:
                both = np.intersect1d(sets[name], sets[other])
                if len(both):
                    raise InputError(
                        f"--{flag}: shares {len(both)} images with --{FLAGS[other]}; the sets must be disjoint"
                    )
    return sets


def load_margins(args, listing, sets):
    """What read_margins gives of --attack_dir; InputError if that is about other images than the sets."""
    margins = read_margins(args.attack_dir, "--attack_dir")
    for name, table in margins.items():
        if about_other_images({index: listing.text(index) for index in sets[name].tolist()}, table):
            raise InputError(f"--attack_dir {args.attack_dir}: attack_{name}.csv is about other images than set {name}")
    return margins


def load_networks(args, where):
    """{"A": network, "B": network} in eval mode on the CPU."""
    networks = {}
    for model in SETS:
        path, flag = getattr(args, f"model_{model}_pth"), f"--model_{model}_pth"
        networks[model] = load_network(path, flag, args.arch, resolution=args.resolution)
        say(f"{where[model]}: {networks[model].notes}")
    check_alike(networks, where)
    return networks


def check_identity(args, networks, where, sets, listing):
    """Warnings about models and sets that the scores may not be about; InputError where they would mean nothing."""
    origins = {model: Origin.of(network) for model, network in networks.items()}
    warnings = check_models(origins, where)
    if origins["A"].weights == origins["B"].weights:  # one model, on purpose: every score is 0
        return warnings
    own = {name: (f"--{FLAGS[name]}", sets[name]) for name in SETS}
    unknown = np.empty(0, np.int64)
    for name in ("public", "unseen"):
        found = check_training_sets(origins, where, own, (f"--{FLAGS[name]}", sets.get(name, unknown)), listing)
    for model, origin in origins.items():
        if "shared" in sets and origin.images is not None and origin.images.is_of(listing):
            missing = int((~np.isin(sets["shared"], origin.images.indices)).sum())
            if missing:
                raise InputError(
                    f"--shared_idx_pth {args.shared_idx_pth}: {missing} of its {len(sets['shared'])} images were not "
                    f"trained on by {where[model]}"
                )
    return warnings + found


def layers_of(args, networks, where):
    """The layers to measure; those typed must be both networks'."""
    layers = args.layers or ["backbone", *(["projector"] if networks["A"].has_projector else [])]
    for model, network in networks.items():
        for layer in layers:
            if layer.removesuffix(L2) not in network.layer_names():
                raise InputError(f"--layers {layer}: {where[model]} has {', '.join(network.layer_names())}")
        check_layers(network, layers, where[model])
    return layers


def record_of(args, networks, listing, sets):
    """The Provenance of the scores. networks: {"A": Network, "B": ...}. sets: {set: int64 (n,)}."""
    return Provenance(
        models={name: ModelRecord.of(network, args.resolution) for name, network in networks.items()},
        images=listing.fingerprint["sha256"],
        sets=sets_record({name: (FLAGS[name], indices) for name, indices in sets.items()}),
        precision=args.precision,
        resolution=args.resolution,
        settings={"views": args.views, "seed": args.seed},
    )


def check_attack(args, record):
    """Notes; InputError unless --attack_dir attacked the same models and images."""
    results = Path(args.attack_dir) / "results.json"
    sources = {"*": f"--attack_dir {args.attack_dir}"}
    remedy = "give the attack on these models and sets, or leave --attack_dir out"
    return check_same("attack_dir", record, read_record(results), str(results), sources, remedy)


def key_of(args, record, embedder, views, sets):
    """The record of all that the distances depend on, plain: pieces of another one are not used."""
    settings = {name: getattr(args, name) for name in ("views", "seed", "batch_size", "skip_unreadable")}
    settings |= {"layers": str(embedder.layers), "pair": str(list(map(str, views.pair)))}
    files = file_fingerprint(embedder.listing, np.concatenate(list(sets.values())))
    return replace(record, files=files, settings={**settings, "device": embedder.device.type}).plain()


def progress_of(name):
    who = f" by process {rank()}" if world_size() > 1 else ""
    return lambda total: Progress(total, f"images of set {name} measured{who}")


if __name__ == "__main__":
    run(main)
