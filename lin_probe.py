"""Linear probe: how well does a linear classifier on a frozen encoder do on its training set and on other images?

Reads one checkpoint of train_SSL.py, two index files and the images. Trains one Linear with cross-entropy, SGD with
momentum 0.9 and a learning rate that falls linearly from --start_lr to --end_lr, on the augmented images (view 2 of the
training, bicubic). Writes OUTPUT_DIR/results.json: accuracies of each epoch, and at the end those on the training set
and the validation set under the test transform, with 95 % intervals. The log ends with the same figures in words.

Rerun the same command to resume (OUTPUT_DIR/probe.pth, which is removed at the end). Several processes divide every
batch of --batch_size images among them, so that their number changes the figures by rounding alone.

    python lin_probe.py --model_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --end_lr 0.1 --epochs 20 --train_idx_pth $INDEX_FOLDER/300_per_class/train_A.npy \\
        --val_idx_pth $INDEX_FOLDER/val_set.npy --imgnet_train_pth $IMAGENET_DATASET_DIR \\
        --output_dir $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug/lp_vicreg_300pc_1000ep
    python lin_probe.py --local 1 --model_pth demo/seed0/simclr_300epochs/simclr_dssweep_50pc_A/model_ep300.pth \\
        --start_lr 0.05 --end_lr 0.005 --epochs 10 --resolution 32 \\
        --train_idx_pth demo/seed0/index/50_per_class/train_A.npy --val_idx_pth demo/seed0/index/val_set.npy \\
        --imgnet_train_pth demo/seed0/data/images --output_dir /tmp/probe
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.report import figure_in_words
from dejavu_utils.analysis.results_json import RESULTS, ProbeAccuracies, ProbeResults
from dejavu_utils.analysis.tables import top_accuracies
from dejavu_utils.attack.preconditions import check_validation_set
from dejavu_utils.checkpoint import save_checkpoint
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
    non_negative_number,
    positive_int,
    run,
)
from dejavu_utils.data import augment
from dejavu_utils.data.beton_loader import random_crop
from dejavu_utils.data.image_dataset import IndexedImages
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import MADE_FROM, ModelRecord, Provenance, check_same, still_valid
from dejavu_utils.data.workers import batches, without_unreadable
from dejavu_utils.errors import InputError
from dejavu_utils.files import digest, save_json
from dejavu_utils.imagenet import ImageListing, list_images
from dejavu_utils.log import Progress, say
from dejavu_utils.models import Network
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference
from dejavu_utils.networks.inference import check_layers, prepared_for_inference
from dejavu_utils.networks.loading import ModelFile, add_network_flags, existing_model
from dejavu_utils.randomness import epoch_order, seed_everything, uniforms
from dejavu_utils.runtime.distributed import average_gradients, rank, sum_over_processes, world_size
from dejavu_utils.runtime.launch import Resources, init_from_args, launch
from dejavu_utils.runtime.processes import StepWatch, StopSignal
from dejavu_utils.runtime.resumable import count_images
from dejavu_utils.training.checkpoint import agreed_checkpoint
from dejavu_utils.training.meter import correct_in_top
from dejavu_utils.typed_json import to_json

VIEW = augment.SECOND_VIEW
SETTINGS = ("start_lr", "end_lr", "epochs", "seed", "batch_size", "use_projector")  # in the record
KEPT = ("epoch", "steps_done", "totals", "records", "val_right")  # of a ProbeRun, in its checkpoint, by name
_SECONDS_BETWEEN_SAVES = 600


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--output_dir": "where results.json is written"})
    group = parser.add_argument_group("model")
    add_paths(group, {"--model_pth": "checkpoint of train_SSL.py, a public one, or timm:NAME, torchvision:NAME"})
    group.add_argument("--use_projector", action="store_true", help="probe the projector's output, not the backbone's")
    add_network_flags(group)
    group = parser.add_argument_group("data")
    images = {
        "--train_idx_pth": ".npy of the training images",
        "--val_idx_pth": ".npy of the validation images",
        "--imgnet_train_pth": "image folder, CLASS/ID.JPEG",
    }
    add_paths(group, images)
    training = {
        "--start_lr": (10.0, non_negative_number, "learning rate of the first step"),
        "--end_lr": (1.0, non_negative_number, "learning rate after the last step"),
        "--epochs": (2, positive_int, "passes over the training images"),
        "--seed": (0, non_negative_int, "seed of the classifier, image order and views"),
    }
    add_flags(parser.add_argument_group("training of the classifier"), training)
    add_inference_flags(parser, batch_size=64)
    add_launch_flags(parser, timeout=1440, mem_gb=100)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Job:
    """A linear probe. layer: backbone or projector. train, val: .npy files of indices. seed: of the classifier, the
    order of images and their views. settings: the flags, for results.json."""

    folder: Path
    model: ModelFile
    layer: str
    image_folder: str
    train: str
    val: str
    start_lr: float
    end_lr: float
    epochs: int
    seed: int
    inference: Inference
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, args: Namespace) -> "Job":
        return from_flags(
            cls,
            args,
            folder=Path(args.output_dir),
            model=ModelFile.of(args, "--model_pth"),
            layer="projector" if args.use_projector else "backbone",
            image_folder=args.imgnet_train_pth,
            train=args.train_idx_pth,
            val=args.val_idx_pth,
            inference=Inference.of(args),
            settings=vars(args),
        )


def main() -> None:
    args = parse_args()
    job, resources = Job.of(args), Resources.of(args, args.num_workers)
    existing_model(job.model.path, job.model.flag, args)
    existing_file(job.train, "--train_idx_pth")
    existing_file(job.val, "--val_idx_pth")
    existing_folder(job.image_folder, "--imgnet_train_pth")
    launch(probe, (job, resources), resources, (args.output_dir, "--output_dir"))


def probe(given: tuple[Job, Resources]) -> None:
    job, resources = given
    device = init_from_args(resources)
    job = replace(job, inference=replace(job.inference, device=device))
    network = job.model.load()
    if job.layer == "projector" and not network.has_projector:
        raise InputError(f"--use_projector: {network.source} has no projector; leave the flag out")
    check_layers(network, [job.layer])
    listing = list_images(job.image_folder, "--imgnet_train_pth")
    train = probed_images(job, "--train_idx_pth", job.train, listing)
    val = probed_images(job, "--val_idx_pth", job.val, listing)
    for warning in check_validation_set(network, listing, train, val, f"--val_idx_pth {job.val}"):
        say(f"warning: {warning}")
    stop = StopSignal()  # not before that pass, which does not look at it: submitit's own handler requeues the job
    state = ProbeRun(job, network, listing, train, val, stop)
    if still_valid(job.folder, {job.folder / RESULTS: state.made_from}, job.settings):
        return
    checkpoint = agreed_checkpoint(state.path, "--output_dir")
    if checkpoint:
        state.restore(checkpoint)
        say(f"resumes after epoch {state.epoch}, step {state.steps_done}, from {state.path}")
    images = f"{len(train)} training and {len(val)} validation images"
    say(f"{images}, {job.layer}, on {device} in {job.inference.precision}, {world_size()} process(es)")
    validation = list(state.features(val, "validation images"))  # the same in each epoch
    while state.epoch < job.epochs:
        state.train_epoch(train)
        state.end_epoch(state.count_correct(validation))
    train_correct = state.count_correct(state.features(train, "training images"))
    if rank() == 0:
        write_results(state, train_correct)


def probed_images(job: Job, flag: str, path: str, listing: ImageListing) -> np.ndarray:
    """The images of an index file, int64 (n,): those that can be read, if the others are to be left out."""
    indices = load_indices(path, flag, listing, may_be_empty=False)
    if not job.inference.skip_unreadable:
        return indices
    device, workers = job.inference.device, job.inference.num_workers
    with Progress(len(indices), "images checked for being readable", quiet=rank() > 0) as bar:
        kept = without_unreadable(listing, indices, device, workers, lambda count: bar.update(count * world_size()))
    say(f"{len(indices) - len(kept)} of {len(indices)} images cannot be read and are left out")
    return kept


def write_results(state: "ProbeRun", train_correct: dict[int, int]) -> None:
    job, n_train, n_val = state.job, len(state.train), len(state.val)
    final = ProbeAccuracies(train=top_accuracies(train_correct, n_train), val=top_accuracies(state.val_right, n_val))
    counts = {"train": n_train, "val": n_val, "classes": len(state.listing.classes)}
    about = {"layer": job.layer, "device": str(state.device), "processes": world_size()}
    settings = {**job.settings, "resolution": state.side, **about}
    results = ProbeResults(final, state.records, counts, settings, state.made_from.plain())
    save_json(job.folder / RESULTS, to_json(results))
    state.path.unlink(missing_ok=True)  # only needed to resume
    for name, figures in (("validation", final.val), ("training", final.train)):
        print(f"{name}: top-1 {figure_in_words(figures.top_1)}, top-5 {figure_in_words(figures.top_5)}", flush=True)


class RandomCrops(IndexedImages):
    """Random crops of images (bicubic), in an epoch's order: (uint8 (3, side, side), label) each.

    Only VIEW's crop is taken here; the rest is augment.apply's, with the numbers of uniforms(seed, epoch, STREAM,
    position, ...). An item depends on (seed, epoch, position) alone, not on the number of workers.
    """

    STREAM = 0

    def __init__(self, listing: ImageListing, indices: np.ndarray, side: int, seed: int, epoch: int) -> None:
        super().__init__(listing, indices[epoch_order(seed, epoch, len(indices))], np.array)
        self.side, self.seed, self.epoch = side, seed, epoch

    def view(self, position: int, image: Image.Image) -> Tensor:
        draws = uniforms(self.seed, self.epoch, self.STREAM, position, 1)
        return random_crop(np.array(image), draws, VIEW, self.side, "bicubic")[0]


class ProbeRun:
    """The frozen network, the classifier on it, and all that changes while it is trained: `probe.pth` holds that.

    Every process has the same classifier, and its own part of each batch.
    """

    def __init__(
        self,
        job: Job,
        network: Network,
        listing: ImageListing,
        train: np.ndarray,
        val: np.ndarray,
        stop: StopSignal,
    ) -> None:
        self.job, self.device = job, job.inference.device
        self.listing, self.train, self.val = listing, train, val
        self.stop, self.watch = stop, StepWatch(stop, self.device, "a smaller --start_lr")
        self.path = job.folder / "probe.pth"
        self.side = network.preprocessing.side
        self.made_from = Provenance(
            models={"model": ModelRecord.of(network)},
            images=listing.fingerprint["sha256"],
            sets={"train_idx_pth": digest(train), "val_idx_pth": digest(val)},
            precision=job.inference.precision,
            resolution=self.side,
            settings={name: job.settings[name] for name in SETTINGS},
        )
        self.preprocessing = network.preprocessing
        networks = {"model": prepared_for_inference(network).to(self.device)}
        self.embedder = Embedder(networks, {"model": [job.layer]}, listing, job.inference)
        self.width = network.width(job.layer)
        seed_everything(job.seed)
        self.classifier = torch.nn.Linear(self.width, len(listing.classes)).to(self.device)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=job.start_lr, momentum=0.9)
        self.epoch = self.steps_done = 0  # whole epochs, and steps of the one under way
        self.totals = [0.0] * (1 + len(TOP_KS))  # of this epoch so far: sum of the losses, correct images
        self.records = []
        self.val_right = {}  # correct validation images after the last epoch
        self.saved = time.monotonic()

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """float (n, 3, h, w) on the device -> float32 (n, width)."""
        outputs = self.embedder.outputs([images]) if len(images) else {}
        return next(iter(outputs.values()), torch.empty(0, self.width, device=self.device))

    def train_epoch(self, indices: np.ndarray) -> None:
        """The rest of one pass over the augmented training images."""
        job, classifier = self.job, self.classifier
        crops_of_epoch = RandomCrops(self.listing, indices, self.side, job.seed, self.epoch)
        steps = -(-len(indices) // job.inference.batch_size)
        for first, size, crops, labels in self.batches(crops_of_epoch):
            progress = (self.epoch * steps + self.steps_done) / (job.epochs * steps)
            for group in self.optimizer.param_groups:
                group["lr"] = job.start_lr + (job.end_lr - job.start_lr) * progress
            draws = uniforms(job.seed, self.epoch, RandomCrops.STREAM, first, len(labels))
            images = augment.apply(crops, augment.draw_parameters(draws, VIEW))
            images = augment.renormalize(images, self.preprocessing)
            logits = classifier(self.embed(images).clone())  # autograd takes no inference tensor
            loss = F.cross_entropy(logits, labels, reduction="sum")
            self.optimizer.zero_grad(set_to_none=True)
            (loss * (world_size() / size)).backward()
            average_gradients(list(classifier.parameters()))
            self.optimizer.step()
            self.steps_done += 1
            place = f"at epoch {self.epoch + 1}, step {self.steps_done}"
            self.count(self.watch.step(place, loss.detach(), *correct_in_top(logits, labels)))
            due, last = time.monotonic() - self.saved > _SECONDS_BETWEEN_SAVES, self.steps_done == steps
            if self.watch.asked or due or last:
                asked = self.watch.asked
                self.count(self.watch.finish(place))  # what is saved is complete
                # A process that saves learns a step early that another was asked: all leave after the same step.
                if asked or (self.watch.asked and last):
                    self.save_and_leave()
                if due:
                    self.save()

    def batches(self, crops: RandomCrops) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yields this process's part of each batch that is left of the epoch: (first, size, images, labels).

        first: position in the data set of the part's first image. size: images of the whole batch. images, labels: of
        the part, on the device; a part may be empty.
        """
        inference, parts = self.job.inference, []
        for start in range(self.steps_done * inference.batch_size, len(crops), inference.batch_size):
            size = min(inference.batch_size, len(crops) - start)
            first, last = (start + size * number // world_size() for number in (rank(), rank() + 1))
            parts.append((size, range(first, last)))
        own = [positions for _, positions in parts if positions]
        read = batches(crops, own, inference.num_workers, self.device)
        what = f"images of epoch {self.epoch + 1}"
        with Progress(sum(size for size, _ in parts), what, quiet=rank() > 0) as progress:
            for size, positions in parts:
                images, labels = next(read) if positions else (torch.empty(0, 3, 1, 1), torch.empty(0).long())
                images = images.to(self.device, non_blocking=True)
                yield positions.start, size, images, labels.to(self.device, non_blocking=True)
                progress.update(size)

    def count(self, sums: Sequence[float]) -> None:
        """Adds a step's sums over all processes: of the loss, and of the correct images."""
        if sums:
            self.totals = [total + value for total, value in zip(self.totals, sums)]

    def end_epoch(self, val_correct: dict[int, int]) -> None:
        """Notes the epoch's figures, and saves. val_correct: {1: count, 5: count} of the validation images."""
        loss, *correct = self.totals
        record = {"epoch": self.epoch + 1, "loss": loss / len(self.train)}
        for top_k, count in zip(TOP_KS, correct):
            record[f"train_top_{top_k}"] = count / len(self.train)
        for top_k, count in val_correct.items():
            record[f"val_top_{top_k}"] = count / len(self.val)
        self.records.append(record)
        self.epoch, self.steps_done, self.val_right = self.epoch + 1, 0, val_correct
        self.totals = [0.0] * len(self.totals)
        self.save()
        say(
            f"epoch {self.epoch}/{self.job.epochs}: loss {record['loss']:.4f}, train top-1 "
            f"{record['train_top_1']:.4f} (augmented), validation top-1 {record['val_top_1']:.4f}, top-5 "
            f"{record['val_top_5']:.4f}"
        )

    def features(self, indices: np.ndarray, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (float32 (n, width), labels int64 (n,)) on the CPU: this process's images, test transform."""
        images = ImageSet(what, indices)
        shards = self.embedder.shards(images)
        own = shards[rank() :: world_size()]
        with Progress(count_images(own), f"{what} embedded", quiet=rank() > 0) as bar:
            embedded = self.embedder.embed_shards(images, own, bar.update)
            for _ in range(0, len(shards), world_size()):
                for _, rows, embeddings in islice(embedded, 1):  # the last round may have none for this process
                    [features] = embeddings.values()
                    yield torch.from_numpy(features), torch.from_numpy(self.listing.labels[indices[rows]])
                if self.stop.asked(self.device):
                    self.save_and_leave()

    @torch.no_grad()
    def count_correct(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[int, int]:
        """{1: count, 5: count} of the labels among the classifier's first 1 and 5, over all processes."""
        counts = torch.zeros(len(TOP_KS), dtype=torch.float64, device=self.device)
        for features, labels in batches:
            logits = self.classifier(features.to(self.device))
            counts += torch.stack(correct_in_top(logits, labels.to(self.device)))
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
        sources = {entry: f"--{flag} {self.job.settings[flag]}" for entry, flag in flags.items()}
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


if __name__ == "__main__":
    run(main)
