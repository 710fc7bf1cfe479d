"""The test of one model where the answer is known: models that remember nothing, and classifiers of every kind.

The classifiers are fitted here, on the crops of one half of the images, by logistic regression on a network that reads
colors: on images whose background is tied to the class in a known fraction they read all that there is to read. Each
interval misses the truth in 5 % of all data sets; the seed is one of those in which none does.
"""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    RECIPE,
    draw_demo,
    flags,
    ok,
    read_colors,
    read_json,
    run_here,
    save_color_reader,
    save_untrained,
    trained_on,
)
from stages import attack_settings
from torch import nn

from dejavu_utils.checkpoint import save_checkpoint, with_prefix
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.imagenet import list_images
from dejavu_utils.models import SSLNetwork

pytestmark = pytest.mark.slow
CLASSES, SEEDS = 5, 3
SETS = {"A": (0, 30), "B": (30, 60), "unseen": (60, 100), "public": (100, 140)}  # of each class
RULE = CropRule(min_px=16)
SETTINGS = {
    **RECIPE,
    "model.arch": "resnet18",
    "model.mlp": "64-32",
    "model.remove_head": 1,
    "training.loss": "supervised",
}


class World:
    """A folder of the demo's images with index files of its sets, and what is trained and attacked there."""

    def __init__(self, folder, correlation):
        self.folder = folder
        counts = {"classes": CLASSES, "images_per_class": 140, "unboxed_per_class": 40}
        draw_demo(folder / "data", seed=12, correlation=correlation, **counts)
        self.listing = list_images(folder / "data/images")
        rank = np.arange(len(self.listing)) % 140
        self.sets = {name: np.flatnonzero((rank >= first) & (rank < end)) for name, (first, end) in SETS.items()}
        for name in ("images", "boxes"):
            (folder / name).symlink_to(folder / "data" / name)
        for name, indices in self.sets.items():
            np.save(folder / f"{name}.npy", indices)
        annotations = Annotations(folder / "data/boxes", self.listing)
        self.crops, self.labels = {}, {}
        for name in "AB":
            taken = take_crops(self.listing, self.sets[name], RULE, annotations)
            images = IndexedImages(self.listing, taken.indices, evaluation_transform(32), taken.crops)
            self.crops[name] = torch.stack([image for image, _ in images])
            self.labels[name] = torch.from_numpy(self.listing.labels[taken.indices]).long()

    def classifier(self, half, seed, labels):
        """File of a classifier of the crops of one half. labels: int64 (n,), those that it is taught."""
        torch.manual_seed(seed)
        network = read_colors(SSLNetwork("resnet18", "64-32", "supervised", CLASSES, remove_head=True)).eval()
        with torch.no_grad():
            features = network.embed(self.crops[half], "backbone")
            center, scale = features.mean(0), features.std(0) + 1e-3
            network.fc[0].running_mean.copy_(center - 4 * scale)  # above 0: the ReLU that follows changes nothing
            network.fc[0].running_var.copy_(scale**2)
            features = torch.relu(network.fc[0](features))
        linear = nn.Linear(features.shape[1], CLASSES)
        fit = torch.optim.LBFGS(linear.parameters(), max_iter=100)

        def closure():
            fit.zero_grad()
            decay = 1e-2 * sum((weight**2).sum() for weight in linear.parameters())
            loss = nn.functional.cross_entropy(linear(features), labels) + decay
            loss.backward()
            return loss

        fit.step(closure)
        network.fc[2].load_state_dict(linear.state_dict())
        path = self.folder / f"classifier_{half}_{seed}.pth"
        saved = {"epoch": 1, "model": with_prefix(network.state_dict()), "num_classes": CLASSES, "settings": SETTINGS}
        save_checkpoint(path, {**saved, "train_images": trained_on(self.folder, half, str(RULE))})
        return path

    @cache  # noqa: B019 (a world lives as long as its tests)
    def references(self, permuted):
        """Flags of the attack that name classifiers of both halves. permuted: taught labels in random order."""
        words = []
        for half in "AB":
            order = torch.Generator().manual_seed(ord(half))
            taught = [torch.randperm(len(self.labels[half]), generator=order) for _ in range(SEEDS)]
            labels = [self.labels[half][chosen] if permuted else self.labels[half] for chosen in taught]
            words += [f"--reference_{half}_pth"]
            words += [self.classifier(half, seed + SEEDS * permuted, labels[seed]) for seed in range(SEEDS)]
        return words

    def attack(self, model, out, permuted=False):
        """(results of both sets, tables of A and B together, whether each image there is tied to its class)."""
        settings = {"model_A_pth": None, "model_B_pth": None, "model_oss_pth": model, "k": 10, "k_attk": 10}
        settings |= {"unseen_idx_pth": self.folder / "unseen.npy", "min_px": 16}
        words = flags(attack_settings(self.folder, out, **settings))
        ok(run_here("label_inference_attack.py", *words, *self.references(permuted)))
        tables = pd.concat([pd.read_csv(out / f"attack_{name}.csv") for name in "AB"])
        tied = np.zeros(len(self.listing), bool)
        if (self.folder / "data/tied.csv").exists():
            tied = pd.read_csv(self.folder / "data/tied.csv")["tied"].to_numpy(bool)
        return read_json(out / "results.json")["both"], tables, tied[tables["index"]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return World(tmp_path_factory.mktemp("plain"), 0.0)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return World(tmp_path_factory.mktemp("tied"), 0.8)


def holds(estimate, value):
    return estimate["low"] <= value <= estimate["high"]


def untrained(world):
    """A model of random weights whose file says that it was trained on the attacked images."""
    path = world.folder / "untrained.pth"
    save_untrained(path, train_images=trained_on(world.folder, "AB"))
    return path


def test_an_untrained_model_has_no_score(plain, tmp_path):
    both, _, _ = plain.attack(untrained(plain), tmp_path)
    for name in ("score", "delta", "score_minus_delta", "margin_minus_delta"):
        assert holds(both["one_model"][name], 0.0), (name, both["one_model"][name])
    assert holds(both["top_1"]["accuracy"]["100"]["reference"], 1 / CLASSES)


def test_tied_backgrounds_leave_only_figures_without_delta_0(tied, tmp_path):
    """It reads backgrounds badly: the plain margin is below 0, as on images that it never saw."""
    both, _, _ = tied.attack(untrained(tied), tmp_path)
    assert all(both["one_model"][name]["high"] < -0.05 for name in ("margin", "margin_delta")), both["one_model"]
    for name in ("score_minus_delta", "margin_minus_delta"):
        assert holds(both["one_model"][name], 0.0), (name, both["one_model"][name])


def test_classifiers_of_permuted_labels_are_at_chance(plain, tmp_path):
    both, _, _ = plain.attack(untrained(plain), tmp_path, permuted=True)
    assert holds(both["top_1"]["accuracy"]["100"]["reference"], 1 / CLASSES)
    assert holds(both["one_model"]["score_minus_delta"], 0.0)


def test_a_perfect_reader_has_no_score(tied, tmp_path):
    """Colors determine the class of every tied image and say nothing about the others."""
    model = tied.folder / "reader.pth"
    save_color_reader(model, 0, CLASSES, train_images=trained_on(tied.folder, "AB"))
    both, tables, is_tied = tied.attack(model, tmp_path)
    known = is_tied.mean() + (1 - is_tied.mean()) / CLASSES
    assert 0.75 < known < 0.9
    for role in ("target", "reference"):
        assert holds(both["top_1"]["accuracy"]["100"][role], known), (role, known, both["top_1"]["accuracy"]["100"])
        assert tables[f"{role}_top1_correct"][is_tied].mean() > 0.97
    for name in ("score", "delta", "score_minus_delta", "margin_minus_delta"):
        assert holds(both["one_model"][name], 0.0), (name, both["one_model"][name])
