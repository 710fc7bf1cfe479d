"""Linear probe: how well does a linear classifier on a frozen encoder do on its training set and on other images?

Reads one checkpoint of train_SSL.py, two index files and the images. Trains one Linear with cross-entropy, SGD with
momentum 0.9 and a learning rate that falls linearly from --start_lr to --end_lr, on the augmented images (view 2 of the
training, bicubic). Writes OUTPUT_DIR/results.json: accuracies of each epoch, and at the end those on the training set
and the validation set under the test transform, with 95 % intervals. The log ends with the same figures in words.

Rerun the same command to resume (OUTPUT_DIR/probe.pth, which is removed at the end). Several
processes divide every batch of --batch_size images among them, so that their number changes the figures by rounding
alone.

    python lin_probe.py --model_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --end_lr 0.1 --epochs 20 --train_idx_pth $INDEX_FOLDER/300_per_class/train_A.npy \\
        --val_idx_pth $INDEX_FOLDER/val_set.npy --imgnet_train_pth $IMAGENET_DATASET_DIR \\
        --output_dir $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug/lp_vicreg_300pc_1000ep
    python lin_probe.py --local 1 --model_pth demo/seed0/simclr_600epochs/simclr_dssweep_50pc_A/model_ep600.pth \\
        --start_lr 0.05 --end_lr 0.005 --epochs 10 --resolution 32 \\
        --train_idx_pth demo/seed0/index/50_per_class/train_A.npy --val_idx_pth demo/seed0/index/val_set.npy \\
        --imgnet_train_pth demo/seed0/data/images --output_dir /tmp/probe
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F

from dejavu_utils.analysis.attack_files import RESULTS, ProbeAccuracies, ProbeResults
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.report import figure_in_words
from dejavu_utils.analysis.tables import top_accuracies
from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint
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
from dejavu_utils.data import augment
from dejavu_utils.data.beton_loader import cut_and_resize
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import MADE_FROM, ModelRecord, Provenance, check_same
from dejavu_utils.data.workers import batches, without_unreadable
from dejavu_utils.errors import InputError
from dejavu_utils.files import digest, save_json
from dejavu_utils.imagenet import ImageListing, list_images, load_image
from dejavu_utils.log import Progress, say
from dejavu_utils.models import LOSSES, Network
from dejavu_utils.networks.inference import check_finite, check_layers, prepared_for_inference
from dejavu_utils.networks.loading import ARCH_HELP, ModelFile, existing_model
from dejavu_utils.randomness import epoch_order, seed_everything, uniforms
from dejavu_utils.runtime.devices import autocast
from dejavu_utils.runtime.distributed import agreed, average_gradients, from_each, rank, sum_over_processes, world_size
from dejavu_utils.runtime.launch import init_from_args, launch
from dejavu_utils.runtime.processes import StepWatch, StopSignal
from dejavu_utils.typed_json import to_json

VIEW = augment.SECOND_VIEW
SETTINGS = ("start_lr", "end_lr", "epochs", "seed", "batch_size", "use_projector")  # in the record
KEPT = ("epoch", "steps_done", "totals", "records", "val_right")  # of a ProbeRun, in its checkpoint, by name
_FEATURE_BYTES = 8 * 2**30  # of validation features that a process keeps on its device; more are computed in each epoch
_SECONDS_BETWEEN_SAVES = 600


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--output_dir", type=expanded, required=True, help="where results.json is written")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_pth",
        type=expanded,
        required=True,
        help="checkpoint of train_SSL.py, a public one, or timm:NAME, torchvision:NAME",
    )
    group.add_argument("--use_projector", action="store_true", help="probe the projector's output, not the backbone's")
    group.add_argument("--arch", help=ARCH_HELP)
    group.add_argument("--mlp", help="must match the checkpoint if given: widths of the projector")
    group.add_argument("--loss", choices=LOSSES, help="must match the checkpoint if given: training objective")
    group.add_argument("--resnet50", action="store_true", help="must match the checkpoint if given: the backbone")
    group = parser.add_argument_group("data")
    group.add_argument("--train_idx_pth", type=expanded, required=True, help=".npy of the training images")
    group.add_argument("--val_idx_pth", type=expanded, required=True, help=".npy of the validation images")
    group.add_argument("--imgnet_train_pth", type=expanded, required=True, help="image folder, CLASS/ID.JPEG")
    group = parser.add_argument_group("training of the classifier")
    group.add_argument("--start_lr", type=float, default=10.0, help="learning rate of the first step")
    group.add_argument("--end_lr", type=float, default=1.0, help="learning rate after the last step")
    group.add_argument("--epochs", type=positive_int, default=2, help="passes over the training images")
    group.add_argument("--seed", type=non_negative_int, default=0, help="seed of the classifier, image order and views")
    add_inference_flags(parser, batch_size=64)
    add_launch_flags(parser, timeout=1440, mem_gb=100)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    existing_model(args.model_pth, "--model_pth", args)
    for name in ("train_idx_pth", "val_idx_pth"):
        existing_file(getattr(args, name), f"--{name}")
    existing_folder(args.imgnet_train_pth, "--imgnet_train_pth")
    if not 0 <= args.start_lr < float("inf") or not 0 <= args.end_lr < float("inf"):
        raise InputError("--start_lr and --end_lr must not be negative or infinite")
    launch(probe, args, (args.output_dir, "--output_dir"), args.num_workers)


def probe(args: Namespace) -> None:
    device = init_from_args(args)
    model = ModelFile("--model_pth", args.model_pth, args.arch, args.resolution, args.mlp, args.loss, args.resnet50)
    network = model.load()
    if args.use_projector and not network.has_projector:
        raise InputError(f"--use_projector: --model_pth {args.model_pth} has no projector; leave the flag out")
    layer = "projector" if args.use_projector else "backbone"
    check_layers(network, [layer])
    args.resolution = network.preprocessing.side
    listing = list_images(args.imgnet_train_pth, "--imgnet_train_pth")
    train = load_indices(args.train_idx_pth, "--train_idx_pth", listing)
    val = load_indices(args.val_idx_pth, "--val_idx_pth", listing)
    for flag, indices in (("--train_idx_pth", train), ("--val_idx_pth", val)):
        if not len(indices):
            raise InputError(f"{flag} {getattr(args, flag[2:])}: holds no index")
    if args.skip_unreadable:
        train, val = (readable_only(args, listing, indices, device) for indices in (train, val))
    stop = StopSignal()  # not before that pass, which does not look at it: submitit's own handler requeues the job
    state = ProbeRun(args, network, layer, listing, train, val, device, stop)
    checkpoint = saved_checkpoint(state.path)
    if checkpoint:
        state.restore(checkpoint)
        say(f"resumes after epoch {state.epoch}, step {state.steps_done}, from {state.path}")
    say(
        f"{len(train)} training and {len(val)} validation images, {layer}, on {device} in {args.precision}, "
        f"{world_size()} process(es)"
    )
    # The same views in each epoch: features are made once, if they fit; copies, as some ViTs' are views of all tokens.
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _FEATURE_BYTES
    share = len(val) * network.width(layer) * 4 / world_size()
    fit = all(from_each(share <= min(room, _FEATURE_BYTES)))
    kept = [(z.clone(), y) for z, y in state.features(val, "validation images")] if fit else None
    while state.epoch < args.epochs:
        state.train_epoch(train)
        state.end_epoch(state.count_correct(kept if fit else state.features(val, "validation images")))
    train_correct = state.count_correct(state.features(train, "training images"))
    if rank() == 0:
        write_results(args, state, train_correct)


def saved_checkpoint(path: Path) -> dict[str, Any] | None:
    """What probe.pth holds, the same in all processes; None if there is none."""

    def read() -> dict[str, Any] | None:
        return load_checkpoint(path, "--output_dir") if path.is_file() else None

    def place(checkpoint: dict[str, Any] | None) -> str:
        return f"epoch {checkpoint.get('epoch')} step {checkpoint.get('steps_done')}" if checkpoint else "none"

    return agreed(read, place, f"--output_dir {path}")


def readable_only(args: Namespace, listing: ImageListing, indices: np.ndarray, device: torch.device) -> np.ndarray:
    with Progress(len(indices), "images checked for being readable") if rank() == 0 else nullcontext() as bar:
        on_progress = (lambda count: bar.update(count * world_size())) if bar else lambda count: None
        kept = without_unreadable(listing, indices, device, args.num_workers, on_progress)
    say(f"{len(indices) - len(kept)} of {len(indices)} images cannot be read and are left out")
    return kept


def write_results(args: Namespace, state: "ProbeRun", train_correct: dict[int, int]) -> None:
    final = ProbeAccuracies(
        train=top_accuracies(train_correct, len(state.train)), val=top_accuracies(state.val_right, len(state.val))
    )
    counts = {"train": len(state.train), "val": len(state.val), "classes": len(state.listing.classes)}
    settings = {**vars(args), "layer": state.layer, "device": str(state.device), "processes": world_size()}
    results = ProbeResults(final, state.records, counts, settings, state.made_from.plain())
    save_json(Path(args.output_dir) / RESULTS, to_json(results))
    state.path.unlink(missing_ok=True)  # only needed to resume
    for name, figures in (("validation", final.val), ("training", final.train)):
        print(f"{name}: top-1 {figure_in_words(figures.top_1)}, top-5 {figure_in_words(figures.top_5)}", flush=True)


class RandomCrops(torch.utils.data.Dataset):
    """Random crops from image files, in an epoch's order: (uint8 (3, resolution, resolution), label) each.

    listing: ImageListing. indices: int64 (n,), the images. view: augment.View; its crop is taken here (bicubic), the
    rest is augment.apply's, with the numbers of uniforms(seed, epoch, STREAM, position, ...). An item depends on
    (seed, epoch, position) alone, not on the number of workers.
    """

    STREAM = 0

    def __init__(
        self, listing: ImageListing, indices: np.ndarray, view: augment.View, resolution: int, seed: int, epoch: int
    ) -> None:
        self.listing, self.view, self.resolution, self.seed, self.epoch = listing, view, resolution, seed, epoch
        self.indices = indices[epoch_order(seed, epoch, len(indices))]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        index = self.indices[position]
        image = np.array(load_image(self.listing.path(index)))
        draws = uniforms(self.seed, self.epoch, self.STREAM, position, 1)
        box = augment.crop_boxes(draws, [image.shape[:2]], self.view)[0]
        return cut_and_resize(image, box, self.resolution, "bicubic"), int(self.listing.labels[index])


class ProbeRun:
    """The frozen network, the classifier on it, and all that changes while it is trained: `probe.pth` holds that.

    Every process has the same classifier, and its own part of each batch.
    """

    def __init__(
        self,
        args: Namespace,
        network: Network,
        layer: str,
        listing: ImageListing,
        train: np.ndarray,
        val: np.ndarray,
        device: torch.device,
        stop: StopSignal,
    ) -> None:
        self.args, self.layer, self.device = args, layer, device
        self.watch = StepWatch(stop, device, "a smaller --start_lr")
        self.listing, self.train, self.val = listing, train, val
        self.path = Path(args.output_dir) / "probe.pth"
        self.made_from = Provenance(
            models={"model": ModelRecord.of(network, args.resolution)},
            images=listing.fingerprint["sha256"],
            sets={"train_idx_pth": digest(train), "val_idx_pth": digest(val)},
            precision=args.precision,
            resolution=args.resolution,
            settings={name: getattr(args, name) for name in SETTINGS},
        )
        self.width = network.width(layer)
        self.network = prepared_for_inference(network).to(device)
        seed_everything(args.seed)
        self.classifier = torch.nn.Linear(self.width, len(listing.classes)).to(device)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=args.start_lr, momentum=0.9)
        self.epoch = self.steps_done = 0  # whole epochs, and steps of the one under way
        self.totals = [0.0] * (1 + len(TOP_KS))  # of this epoch so far: sum of the losses, correct images
        self.records: list[dict[str, float]] = []
        self.val_right: dict[int, int] = {}  # correct validation images after the last epoch
        self.saved = time.monotonic()

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """float (n, 3, h, w) on the device -> float32 (n, width)."""
        if not len(images):
            return torch.empty(0, self.width, device=self.device)
        with autocast(self.device, self.args.precision):
            return self.network.embed(images, self.layer).float()

    def train_epoch(self, indices: np.ndarray) -> None:
        """The rest of one pass over the augmented training images."""
        args, classifier = self.args, self.classifier
        crops_of_epoch = RandomCrops(self.listing, indices, VIEW, args.resolution, args.seed, self.epoch)
        steps = -(-len(indices) // args.batch_size)
        what = f"images of epoch {self.epoch + 1}"
        for first, size, crops, labels in self.shares(crops_of_epoch, what, self.steps_done):
            share = (self.epoch * steps + self.steps_done) / (args.epochs * steps)
            for group in self.optimizer.param_groups:
                group["lr"] = args.start_lr + (args.end_lr - args.start_lr) * share
            draws = uniforms(args.seed, self.epoch, RandomCrops.STREAM, first, len(labels))
            images = augment.apply(crops, augment.draw_parameters(draws, VIEW))
            images = augment.renormalize(images, self.network.preprocessing)
            logits = classifier(self.embed(images).clone())  # autograd takes no inference tensor
            loss = F.cross_entropy(logits, labels, reduction="sum")
            self.optimizer.zero_grad(set_to_none=True)
            (loss * (world_size() / size)).backward()
            average_gradients(list(classifier.parameters()))
            self.optimizer.step()
            self.steps_done += 1
            self.count(self.watch.step(self.place(), loss.detach(), *correct_in_top(logits, labels)))
            due, last = time.monotonic() - self.saved > _SECONDS_BETWEEN_SAVES, self.steps_done == steps
            if self.watch.asked or due or last:
                asked = self.watch.asked
                self.count(self.watch.finish(self.place()))  # what is saved is complete
                # A process that saves learns a step early that another was asked: all leave after the same step.
                if asked or (self.watch.asked and last):
                    self.save_and_leave()
                if due:
                    self.save()

    def place(self) -> str:
        """Where the run is, in words."""
        return f"at epoch {self.epoch + 1}, step {self.steps_done}"

    def count(self, sums: Sequence[float]) -> None:
        """Adds a step's sums over all processes: of the loss, and of the correct images."""
        if sums:
            self.totals = [total + value for total, value in zip(self.totals, sums)]

    def end_epoch(self, val_correct: dict[int, int]) -> None:
        """Notes the epoch's figures, and saves. val_correct: {1: count, 5: count} of the validation images."""
        n_train, n_val = len(self.train), len(self.val)
        loss, *right = self.totals
        record = {
            "epoch": self.epoch + 1,
            "loss": loss / n_train,
            **{f"train_top_{top_k}": count / n_train for top_k, count in zip(TOP_KS, right)},
            **{f"val_top_{top_k}": count / n_val for top_k, count in val_correct.items()},
        }
        self.records.append(record)
        self.epoch, self.steps_done, self.val_right = self.epoch + 1, 0, val_correct
        self.totals = [0.0] * len(self.totals)
        self.save()
        say(
            f"epoch {self.epoch}/{self.args.epochs}: loss {record['loss']:.4f}, train top-1 "
            f"{record['train_top_1']:.4f} (augmented), validation top-1 {record['val_top_1']:.4f}, top-5 "
            f"{record['val_top_5']:.4f}"
        )

    def features(self, indices: np.ndarray, what: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (float32 (n, width), labels int64 (n,)) on the device: this process's images, test transform."""
        transform = evaluation_transform(preprocessing=self.network.preprocessing)
        images = IndexedImages(self.listing, indices, transform)

        def check(sums: Sequence[float]) -> None:
            check_finite(not any(sums), self.network, self.layer, self.args.precision)
            if self.watch.asked:
                self.save_and_leave()

        for _, _, batch, labels in self.shares(images, f"{what} embedded"):
            z = self.embed(batch)
            check(self.watch.step(what, ~torch.isfinite(z).all()))
            yield z, labels
        check(self.watch.finish(what))

    def shares(
        self, dataset: torch.utils.data.Dataset | IndexedImages, what: str, first_step: int = 0
    ) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """Yields this process's part of each batch from `first_step` on: (first, size, images, labels).

        first: position in the data set of the part's first image. size: images of the whole batch. images, labels: of
        the part, on the device; a part may be empty.
        """
        batch_size, shares = self.args.batch_size, []
        for start in range(first_step * batch_size, len(dataset), batch_size):
            size = min(batch_size, len(dataset) - start)
            first, last = (start + size * number // world_size() for number in (rank(), rank() + 1))
            shares.append((size, range(first, last)))
        own = [positions for _, positions in shares if positions]
        read = batches(dataset, own, self.args.num_workers, self.device)
        with Progress(sum(size for size, _ in shares), what) if rank() == 0 else nullcontext() as progress:
            for size, positions in shares:
                images, labels = next(read) if positions else (torch.empty(0, 3, 1, 1), torch.empty(0).long())
                images = images.to(self.device, non_blocking=True)
                yield positions.start, size, images, labels.to(self.device, non_blocking=True)
                if progress:
                    progress.update(size)

    @torch.no_grad()
    def count_correct(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[int, int]:
        """{1: count, 5: count} of the labels among the classifier's first 1 and 5, over all processes."""
        counts = torch.zeros(len(TOP_KS), dtype=torch.float64, device=self.device)
        for z, labels in batches:
            counts += torch.stack(correct_in_top(self.classifier(z), labels))
        return dict(zip(TOP_KS, map(int, sum_over_processes(counts).tolist())))

    def save(self) -> None:
        if rank() == 0:
            kept = {name: getattr(self, name) for name in KEPT}
            states = {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}
            save_checkpoint(self.path, {**kept, MADE_FROM: self.made_from.plain(), **states})
        self.saved = time.monotonic()

    def save_and_leave(self) -> NoReturn:
        """Saves the place in the epoch, too, and ends this process when all have come to this place."""
        self.save()
        self.watch.leave(f"epoch {self.epoch}, step {self.steps_done}")

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes over a checkpoint of the same probe; InputError names the first flag that is not the same.

        Starting again instead would throw away hours because of a mistyped flag.
        """
        flags = {"models.*": "model_pth", "images": "imgnet_train_pth"}
        flags |= {f"sets.{flag}": flag for flag in ("train_idx_pth", "val_idx_pth")}
        sources = {entry: f"--{flag} {getattr(self.args, flag)}" for entry, flag in flags.items()}
        remedy = "use the same or another --output_dir, or delete that file to start again"
        try:
            there = Provenance.from_plain(checkpoint[MADE_FROM])
            for note in check_same("probe", self.made_from, there, str(self.path), sources, remedy):
                say(f"note: {note}")
            self.classifier.load_state_dict(checkpoint["classifier"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            for name in KEPT:
                setattr(self, name, checkpoint[name])
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"--output_dir: {self.path} was not written by lin_probe.py ({error!r})") from None


def correct_in_top(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """How many labels are the first prediction, how many among the first five: scalars, one for each of TOP_KS."""
    top = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return [top[:, :top_k].any(dim=1).sum() for top_k in TOP_KS]


if __name__ == "__main__":
    run(main)
