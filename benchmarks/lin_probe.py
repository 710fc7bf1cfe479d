"""Images per second of the linear probe's passes, and what 20 epochs take: ours against the published structure.

Published structure: both views of a training image are made and one is used, batches of 64, the validation images are
embedded again in every epoch, the network as it was trained. Once with this project's own decoding and augmentation, so
that only the structure differs, and once with torchvision's transforms of PIL images. Same precision, same images, same
number of workers; the passes are measured in turn, the times of a whole probe computed from their medians.

At a smaller size the probes are then run whole, with three seeds, to compare their accuracy.

    python benchmarks/lin_probe.py
    python benchmarks/lin_probe.py --images 128 --rounds 1 --resolution 96
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import alternate, jpeg, natural_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import lin_probe
from dejavu_utils.analysis.intervals import wilson_interval
from dejavu_utils.checkpoint import save_checkpoint, with_prefix
from dejavu_utils.data import augment
from dejavu_utils.data.beton_loader import cut_and_resize
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.imagenet import MEAN, STD, list_images, load_image
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.loading import load_network
from dejavu_utils.randomness import uniforms
from dejavu_utils.runtime.processes import StopSignal

CLASSES = 10
PROBE = (20, 1000, 1000)  # epochs, training and validation images of the probe whose time is computed
ACCURACY = dict(epochs=20, resolution=32)
ACCURACY_SEEDS = range(3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="of the training set, and as many for validation")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # the bars
        flags = draw(Path(folder), args)
        options = lin_probe.parse_args(flags)
        sides = {"lin_probe.py": Ours(options, device)}
        sides["published, own views"] = Published(options, OwnViews, device)
        sides["published, torchvision"] = Published(options, TorchvisionViews, device)
        size = f"ResNet-18, {args.resolution} px, fp32, {torch.get_num_threads()} threads, {args.num_workers} workers"
        print(f"images/s of a training pass, {size}")
        training = alternate({name: rate(side.train, args.images) for name, side in sides.items()}, args.rounds)
        print("images/s of a validation pass")
        validation = alternate({name: rate(side.validate, args.images) for name, side in sides.items()}, args.rounds)
        epochs, n_train, n_val = PROBE
        print(f"seconds of {epochs} epochs of {n_train} training and {n_val} validation images, computed from these")
        seconds = {}
        for name in sides:
            passes = 1 if name == "lin_probe.py" else epochs  # over the validation images
            seconds[name] = epochs * n_train / training[name] + (passes * n_val + n_train) / validation[name]
            print(f"  {name:<28} {seconds[name]:9.0f}   ratio {seconds[name] / seconds['lin_probe.py']:.2f}")
        print(f"top-1 of whole probes, {ACCURACY['epochs']} epochs at {ACCURACY['resolution']} px: mean of the seeds")
        compare_accuracy(flags, args.images, device)


def rate(run_pass, images):
    def timed():
        start = time.perf_counter()
        run_pass()
        return images / (time.perf_counter() - start)

    return timed


def draw(folder, args):
    """Images of 500 x 375 pixels, tinted by class a little, a network, index files: the probe's flags."""
    rng = np.random.default_rng(0)
    tints = rng.normal(0, 25, (CLASSES, 3))
    for number, image in enumerate(natural_images(2 * args.images)):
        label = number % CLASSES
        path = folder / "images" / f"c{label}" / f"{number:05d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(np.clip(image + tints[label], 0, 255).astype(np.uint8)))
    order = rng.permutation(2 * args.images)
    np.save(folder / "train.npy", order[: args.images])
    np.save(folder / "val.npy", order[args.images :])
    torch.manual_seed(0)
    network = SSLNetwork("resnet18", "64-32", "simclr")
    listing = list_images(folder / "images")
    some = IndexedImages(listing, np.load(folder / "val.npy"), evaluation_transform(32))
    with torch.no_grad():
        for images, _ in DataLoader(some, 64):  # the statistics of batch normalization
            network(images)
    save_checkpoint(folder / "model.pth", {"epoch": 1, "model": with_prefix(network.state_dict())})
    settings = {
        "local": 1,
        "output_dir": folder / "out",
        "model_pth": folder / "model.pth",
        "train_idx_pth": folder / "train.npy",
        "val_idx_pth": folder / "val.npy",
        "imgnet_train_pth": folder / "images",
        "resolution": args.resolution,
        "num_workers": args.num_workers,
        "start_lr": 0.1,
        "end_lr": 0.01,
        "epochs": 10**6,
        "batch_size": 64,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


class Ours:
    def __init__(self, options, device):
        job = lin_probe.Job.of(options)
        job = replace(job, inference=replace(job.inference, device=device))
        listing = list_images(job.image_folder)
        self.indices, self.val = np.load(job.train), np.load(job.val)
        self.run = lin_probe.ProbeRun(job, job.model.load(), listing, self.indices, self.val, StopSignal())

    def train(self):
        self.run.train_epoch(self.indices)
        self.run.epoch, self.run.steps_done = self.run.epoch + 1, 0

    def validate(self):
        return self.run.count_correct(self.run.features(self.val, "validation images"))


class Published:
    """Batches of both views (the second is used); the network in eval mode without gradient."""

    def __init__(self, options, views, device):
        self.options, self.device, self.epoch = options, device, 0
        self.listing = list_images(options.imgnet_train_pth)
        train, val = (np.load(path) for path in (options.train_idx_pth, options.val_idx_pth))
        self.network = load_network(options.model_pth).to(device)
        torch.manual_seed(options.seed)
        self.classifier = torch.nn.Linear(512, CLASSES).to(device)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=options.start_lr, momentum=0.9)
        self.train_set = views(self.listing, train, options.resolution)
        self.val_set = IndexedImages(self.listing, val, evaluation_transform(options.resolution))

    def loader(self, dataset, shuffle):
        return DataLoader(dataset, self.options.batch_size, shuffle=shuffle, num_workers=self.options.num_workers)

    def train(self, epochs=10**6):
        options, loader = self.options, self.loader(self.train_set, True)
        for step, (_, images, labels) in enumerate(loader):
            share = (self.epoch * len(loader) + step) / (epochs * len(loader))
            self.optimizer.param_groups[0]["lr"] = options.start_lr + share * (options.end_lr - options.start_lr)
            with torch.no_grad():
                features = self.network.embed(images.to(self.device), "backbone")
            loss = F.cross_entropy(self.classifier(features), labels.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        self.epoch += 1

    @torch.no_grad()
    def validate(self):
        right = 0
        for images, labels in self.loader(self.val_set, False):
            guesses = self.classifier(self.network.embed(images.to(self.device), "backbone")).argmax(1)
            right += int((guesses == labels.to(self.device)).sum())
        return right


class OwnViews(Dataset):
    """(view 1, view 2, label) with dejavu_utils.data.augment, as the probe makes its one view."""

    def __init__(self, listing, indices, resolution):
        self.listing, self.indices, self.resolution = listing, indices, resolution
        self.drawn = 0

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        image = np.array(load_image(self.listing.path(self.indices[position])))
        views = []
        for number, view in enumerate((augment.FIRST_VIEW, augment.SECOND_VIEW)):
            draws = uniforms(int(torch.randint(2**31, ())), 0, number, position, 1)
            box = augment.crop_boxes(draws, [image.shape[:2]], view)[0]
            crop = cut_and_resize(image, box, self.resolution, "bicubic")
            views.append(augment.apply(crop, augment.draw_parameters(draws, view))[0])
        return *views, int(self.listing.labels[self.indices[position]])


class TorchvisionViews(OwnViews):
    def __init__(self, listing, indices, resolution):
        super().__init__(listing, indices, resolution)
        crop = transforms.RandomResizedCrop(resolution, interpolation=transforms.InterpolationMode.BICUBIC)
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
        common = [crop, transforms.RandomHorizontalFlip(), jitter, transforms.RandomGrayscale(0.2)]
        tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        first = [*common, *tensor, transforms.GaussianBlur((5, 9), (0.1, 2.0))]
        second = [*common, transforms.RandomSolarize(128, 0.2), *tensor]
        self.views = [transforms.Compose(steps) for steps in (first, second)]

    def __getitem__(self, position):
        image = load_image(self.listing.path(self.indices[position]))
        return *(view(image) for view in self.views), int(self.listing.labels[self.indices[position]])


def compare_accuracy(flags, images, device):
    """Top-1 on the validation images after each side's whole probe; one seed alone moves it by several hundredths."""
    found = {"lin_probe.py": [], "published, own views": [], "published, torchvision": []}
    for seed in ACCURACY_SEEDS:
        changes = [str(word) for name, value in {**ACCURACY, "seed": seed}.items() for word in (f"--{name}", value)]
        options = lin_probe.parse_args([*flags, *changes])
        with contextlib.redirect_stdout(io.StringIO()):
            lin_probe.probe((lin_probe.Job.of(options), lin_probe.Resources.of(options, options.num_workers)))
        final = json.loads((Path(options.output_dir) / "results.json").read_text())["final"]
        found["lin_probe.py"].append(final["val"]["top_1"]["value"])
        for name, views in (("published, own views", OwnViews), ("published, torchvision", TorchvisionViews)):
            peer = Published(options, views, device)
            for _ in range(options.epochs):
                peer.train(options.epochs)
            found[name].append(peer.validate() / images)
    for name, values in found.items():
        mean = np.mean(values)
        low, high = wilson_interval(mean * images, images)  # the seeds share the images
        print(f"  {name:<28} {mean:.3f} [{low:.3f}, {high:.3f}]   by seed {' '.join(f'{v:.3f}' for v in values)}")


if __name__ == "__main__":
    main()
