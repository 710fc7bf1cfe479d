"""Linear probe: how well does a linear classifier on a frozen encoder do on its training set and on other images?

Reads one checkpoint of train_SSL.py, two index files and the images. Trains one Linear with cross-entropy, SGD with
momentum 0.9 and a learning rate that falls linearly from --start_lr to --end_lr, on the augmented images (view 2 of the
training, bicubic). Writes OUTPUT_DIR/results.json: accuracies of each epoch, and at the end those on the training set
and the validation set under the test transform, with 95 % intervals. The log ends with the same figures in words.

    python lin_probe.py --model_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --end_lr 0.1 --epochs 20 --train_idx_pth $INDEX_FOLDER/300_per_class/train_A.npy \\
        --val_idx_pth $INDEX_FOLDER/val_set.npy --imgnet_train_pth $IMAGENET_DATASET_DIR \\
        --output_dir $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug/lp_vicreg_300pc_1000ep
    python lin_probe.py --local 1 --model_pth demo/seed0/simclr_600epochs/simclr_dssweep_50pc_A/model_ep600.pth \\
        --start_lr 0.1 --end_lr 0.01 --epochs 10 --resolution 32 \\
        --train_idx_pth demo/seed0/index/50_per_class/train_A.npy --val_idx_pth demo/seed0/index/val_set.npy \\
        --imgnet_train_pth demo/seed0/data/images --output_dir /tmp/probe
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from dejavu_utils import augment
from dejavu_utils.files import save_json
from dejavu_utils.imagenet import IndexedImages, evaluation_transform, list_images, load_indices
from dejavu_utils.launch import autocast, here_or_submitted, join, seed_everything
from dejavu_utils.loader import RandomCrops
from dejavu_utils.models import LOSSES, check_typed, load_model
from dejavu_utils.options import (
    InputError,
    Parser,
    add_inference_flags,
    add_launch_flags,
    existing_file,
    existing_folder,
    non_negative_int,
    positive_int,
    run,
)
from dejavu_utils.progress import Progress
from dejavu_utils.results import TOP_KS, figure_in_words, probe_estimates

VIEW = augment.SECOND_VIEW


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--output_dir", required=True, help="where results.json is written")
    group = parser.add_argument_group("model")
    group.add_argument("--model_pth", required=True, help="checkpoint of train_SSL.py")
    group.add_argument("--use_projector", action="store_true", help="probe the projector's output, not the backbone's")
    group.add_argument("--mlp", help="checked against the checkpoint if given: widths of the projector")
    group.add_argument("--loss", choices=LOSSES, help="checked against the checkpoint if given: training objective")
    group.add_argument("--resnet50", action="store_true", help="checked against the checkpoint if given: the trunk")
    group = parser.add_argument_group("data")
    group.add_argument("--train_idx_pth", required=True, help=".npy of the images to train the classifier on")
    group.add_argument("--val_idx_pth", required=True, help=".npy of the validation images")
    group.add_argument("--imgnet_train_pth", required=True, help="image folder, CLASS/ID.JPEG")
    group = parser.add_argument_group("training of the classifier")
    group.add_argument("--start_lr", type=float, default=10.0, help="learning rate of the first step")
    group.add_argument("--end_lr", type=float, default=1.0, help="learning rate that the last step comes close to")
    group.add_argument("--epochs", type=positive_int, default=2, help="passes over the training images")
    group.add_argument(
        "--seed", type=non_negative_int, default=0, help="of the classifier, the order of images and the views"
    )
    add_inference_flags(parser, batch_size=64)
    add_launch_flags(parser, timeout=1440, mem_gb=100)
    return parser.parse_args(argv)


def main():
    args = parse_args()
    for name in ("model_pth", "train_idx_pth", "val_idx_pth"):
        existing_file(getattr(args, name), f"--{name}")
    existing_folder(args.imgnet_train_pth, "--imgnet_train_pth")
    if not 0 <= args.start_lr < float("inf") or not 0 <= args.end_lr < float("inf"):
        raise InputError("--start_lr and --end_lr must not be negative or infinite")
    here_or_submitted(__file__, "probe", args)


def probe(args):
    device = join(args)
    network = load_model(args.model_pth, "--model_pth")
    check_typed(network, f"--model_pth {args.model_pth}", args.mlp, args.loss, args.resnet50)
    listing = list_images(args.imgnet_train_pth, "--imgnet_train_pth")
    train = load_indices(args.train_idx_pth, "--train_idx_pth", listing)
    val = load_indices(args.val_idx_pth, "--val_idx_pth", listing)
    for flag, indices in (("--train_idx_pth", train), ("--val_idx_pth", val)):
        if not len(indices):
            raise InputError(f"{flag} {getattr(args, flag[2:])}: holds no index")
    layer = "projector" if args.use_projector else "backbone"
    encoder = Encoder(network.to(device), layer, device, args.precision)
    seed_everything(args.seed)
    classifier = torch.nn.Linear(network.width(layer), len(listing.classes)).to(device)
    print(f"{len(train)} training and {len(val)} validation images, {layer}, on {device} in {args.precision}")
    # The validation views are the same in every epoch: their features are computed once.
    val_features, val_labels = features(args, encoder, listing, val, "validation images embedded")
    optimizer = torch.optim.SGD(classifier.parameters(), lr=args.start_lr, momentum=0.9)
    epochs = []
    for epoch in range(args.epochs):
        record = train_epoch(args, encoder, classifier, optimizer, listing, train, epoch)
        hits = hits_of(classifier, [(val_features, val_labels)], device)
        record.update({f"val_top_{top_k}": hits[top_k].mean() for top_k in TOP_KS})
        epochs.append(record)
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {record['loss']:.4f}, train top-1 {record['train_top_1']:.4f} "
            f"(augmented), validation top-1 {record['val_top_1']:.4f}, top-5 {record['val_top_5']:.4f}",
            flush=True,
        )
    train_batches = feature_batches(args, encoder, listing, train, "training images embedded")
    final = {
        "train": probe_estimates(hits_of(classifier, train_batches, device)),
        "val": probe_estimates(hits),
    }
    results = {
        "final": final,
        "epochs": epochs,
        "counts": {"train": len(train), "val": len(val), "classes": len(listing.classes)},
        "settings": {**vars(args), "layer": layer, "device": str(device)},
    }
    save_json(Path(args.output_dir) / "results.json", results)
    for name, figures in (("validation", final["val"]), ("training", final["train"])):
        print(f"{name}: " + ", ".join(f"top-{k} {figure_in_words(figures[f'top_{k}'])}" for k in TOP_KS))


class Encoder:
    """The frozen network: float images (n, 3, h, w) on the device -> float32 features (n, width)."""

    def __init__(self, network, layer, device, precision):
        self.network, self.layer, self.device, self.precision = network, layer, device, precision

    @torch.no_grad()
    def __call__(self, images):
        with autocast(self.device, self.precision):
            return self.network.embed(images, self.layer).float()


def train_epoch(args, encoder, classifier, optimizer, listing, indices, epoch):
    """One pass over the augmented training images; the epoch's record."""
    dataset = RandomCrops(listing, indices, VIEW, args.resolution, args.seed, epoch)
    loader = DataLoader(dataset, args.batch_size, num_workers=args.num_workers, pin_memory=on_gpu(encoder))
    total_steps, done = args.epochs * len(loader), 0
    loss_sum, right = 0.0, {top_k: 0 for top_k in TOP_KS}
    with Progress(len(indices), f"images of epoch {epoch + 1}") as progress:
        for step, (crops, labels) in enumerate(loader):
            share = (epoch * len(loader) + step) / total_steps
            for group in optimizer.param_groups:
                group["lr"] = args.start_lr + (args.end_lr - args.start_lr) * share
            draws = augment.uniforms(args.seed, epoch, RandomCrops.STREAM, done, len(labels))
            crops = crops.to(encoder.device, non_blocking=True)
            labels = labels.to(encoder.device, non_blocking=True)
            images = augment.apply(crops, augment.draw_parameters(draws, VIEW).to(encoder.device))
            logits = classifier(encoder(images))
            loss = F.cross_entropy(logits, labels)
            if not torch.isfinite(loss):
                raise InputError(
                    f"--start_lr {args.start_lr}: the loss is {loss} in epoch {epoch + 1}; give a smaller one"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            for top_k, hits in batch_hits(logits, labels).items():
                right[top_k] += int(hits.sum())
            done += len(labels)
            progress.update(len(labels))
    return {
        "epoch": epoch + 1,
        "loss": loss_sum / done,
        **{f"train_top_{top_k}": right[top_k] / done for top_k in TOP_KS},
    }


def on_gpu(encoder):
    return encoder.device.type == "cuda"


def feature_batches(args, encoder, listing, indices, what):
    """Yields (features float32 (n, width), labels int64 (n,)) on the device, under the test transform."""
    images = IndexedImages(listing, indices, evaluation_transform(args.resolution))
    loader = DataLoader(images, args.batch_size, num_workers=args.num_workers, pin_memory=on_gpu(encoder))
    with Progress(len(indices), what) as progress:
        for batch, labels in loader:
            yield encoder(batch.to(encoder.device, non_blocking=True)), labels.to(encoder.device)
            progress.update(len(labels))


def features(args, encoder, listing, indices, what):
    """All features float32 (n, width) and labels int64 (n,), in the CPU's memory."""
    parts = [(z.cpu(), labels.cpu()) for z, labels in feature_batches(args, encoder, listing, indices, what)]
    return torch.cat([z for z, _ in parts]), torch.cat([labels for _, labels in parts])


@torch.no_grad()
def hits_of(classifier, batches, device):
    """{1: bool (n,), 5: bool (n,)} in NumPy: is the label among the classifier's first 1 and 5?"""
    hits = {top_k: [] for top_k in TOP_KS}
    for batch, labels in batches:
        for z, y in zip(batch.split(65536), labels.split(65536)):
            for top_k, right in batch_hits(classifier(z.to(device)), y.to(device)).items():
                hits[top_k].append(right.cpu())
    return {top_k: torch.cat(parts).numpy() for top_k, parts in hits.items()}


def batch_hits(logits, labels):
    """{1: bool (n,), 5: bool (n,)}; with fewer than five classes, all of them count as the first five."""
    top = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {top_k: top[:, :top_k].any(dim=1) for top_k in TOP_KS}


if __name__ == "__main__":
    run(main)
