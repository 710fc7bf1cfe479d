"""Which models, sets and images the attack's score is about: errors, warnings, ceiling and placebo."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_one_line_error, draw_tree, flags, load, read_json, run_here, save_sets
from PIL import Image
from stages import SMALL_ATTACK

from dejavu_utils.analysis.attack_output import check_ceilings
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.memorization import predict_from_neighbors
from dejavu_utils.analysis.results_json import TopAccuracies
from dejavu_utils.checkpoint import save_checkpoint, with_prefix
from dejavu_utils.data import near_copies as duplicates
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.models import SSLNetwork

SETTINGS = {
    "model.arch": "resnet18",
    "model.mlp": "32-16",
    "model.mlp_coeff": 1.0,
    "model.fc": 0,
    "model.proj_relu": 0,
    "model.remove_head": 0,
    "training.loss": "simclr",
    "simclr.temperature": 0.15,
    "data.random_seed": 0,
    "data.train_dataset": "a.beton",
    "logging.folder": "a",
    "training.epochs": 9,
}


SETS = {"A": (0, 4), "B": (4, 8), "shared": (8, 10), "public": (10, 16)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = draw_tree(tmp_path_factory.mktemp("data"), per_class=16, boxed=16)
    return folder, save_sets(folder, 16, **SETS)


def checkpoint(data, path, trained, seed=0, epoch=9, folder=None, **changes):
    """A checkpoint that says that it was trained on the index files named in `trained`; returns its path."""
    torch.manual_seed(seed)
    network = SSLNetwork("resnet18", "32-16", "simclr").eval()
    indices = np.sort(np.concatenate([np.load(data[0] / f"{name}.npy") for name in trained]))
    listing = folder or data[1].fingerprint["sha256"]
    save_checkpoint(
        path,
        {
            "epoch": epoch,
            "model": with_prefix(network.state_dict()),
            "num_classes": 3,
            "settings": {**SETTINGS, "data.random_seed": seed, **changes},
            "train_images": TrainingImages(indices, listing).plain(),
        },
    )
    return path


def attack(data, tmp_path, model_A, model_B, **changes):
    settings = {
        "output_dir": tmp_path / "attack",
        "model_A_pth": model_A,
        "model_B_pth": model_B,
        **{f"bbox_{name}_idx_pth": data[0] / f"{name}.npy" for name in "AB"},
        "public_idx_pth": data[0] / "public.npy",
        "imgnet_train_pth": data[0] / "images",
        "imgnet_bbox_pth": data[0] / "boxes",
        **SMALL_ATTACK,
        **changes,
    }
    result = run_here("label_inference_attack.py", *flags(settings))
    path = tmp_path / "attack/results.json"
    return result, read_json(path) if path.is_file() else None


def test_images_with_a_near_copy_are_counted_and_left_out(tmp_path):
    """Half of set A lies in B's training set too, mirrored and in other files; one image of B is public."""
    folder = draw_tree(tmp_path / "data", per_class=16, boxed=16)
    listing = save_sets(folder, 16, **SETS)
    sets = {name: np.load(folder / f"{name}.npy") for name in SETS}
    copied = {"A": sets["A"][::2], "B": sets["B"][:1]}
    places = {"A": np.concatenate([sets["B"][1:5], sets["shared"][:2]]), "B": sets["public"][:1]}  # of the copies
    for name in "AB":
        for index, place in zip(copied[name], places[name]):
            image = Image.open(listing.path(index)).convert("RGB")
            image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(listing.path(place), quality=85)
    data = folder, listing
    pair = [
        checkpoint(data, tmp_path / "A.pth", ["A", "shared"]),
        checkpoint(data, tmp_path / "B.pth", ["B", "shared"], seed=1),
    ]
    paths = [listing.path(index) for index in range(len(listing))]
    found = duplicates.find_near_copies(duplicates.signatures(paths))
    known = {name: duplicates.with_near_copy(found, sets[name], sets[other]) for name, other in ("AB", "BA")}
    assert known["A"].sum() == 4 and known["B"].sum() == 4  # the copies in "shared" are seen by checkpoints alone

    result, results = attack(data, tmp_path, *pair)
    assert result.returncode == 0 and "near_copies" not in results and "near-copy" not in result.stdout
    (tmp_path / "attack/results.json").unlink()
    duplicates.save_near_copies(folder / duplicates.FILE, found, listing)
    result, results = attack(data, tmp_path, *pair)
    assert result.returncode == 0, result.stderr
    tables = {name: pd.read_csv(tmp_path / f"attack/attack_{name}.csv") for name in "AB"}
    near = {name: set(table.loc[table["near_copy_elsewhere"] == 1, "index"]) for name, table in tables.items()}
    assert near["A"] == set(copied["A"]) and near["B"] == {*copied["B"], *places["A"][:4]}
    assert results["near_copies"]["A"] == 6 and results["near_copies"]["B"] == 5
    without = results["near_copies"]["without"]
    alone = {name: table[table["near_copy_elsewhere"] == 0] for name, table in tables.items()}
    scores = [(t["target_top1_correct"] - t["reference_top1_correct"]).mean() for t in alone.values()]
    score = without["top_1"]["accuracy"]["100"]["score"]
    assert without["n"] == sum(map(len, alone.values())) == results["both"]["n"] - 11
    assert score["value"] == pytest.approx(np.mean(scores)) and score["low"] < score["value"] < score["high"]
    (warning,) = [text for text in results["warnings"] if "near-copy" in text]
    assert (
        warning.startswith(f"11 of the {results['both']['n']} attacked images") and "without them the score" in warning
    )
    assert f"warning: {warning}" in result.stdout and "without a near-copy elsewhere: déjà vu score" in result.stdout


@pytest.fixture
def models(data, tmp_path):
    return [
        checkpoint(data, tmp_path / "A.pth", ["A", "shared"]),
        checkpoint(data, tmp_path / "B.pth", ["B", "shared"], seed=1),
    ]


def test_models_of_the_partition_are_attacked_without_a_warning(data, tmp_path, models):
    result, results = attack(data, tmp_path, *models)
    assert result.returncode == 0, result.stderr
    assert results["warnings"] == [] and "warning" not in result.stdout


@pytest.mark.parametrize(
    "of_A, of_B, changes, text",
    [
        (["A"], ["A"], {}, "same weights"),
        (["A"], ["A"], {"seed": 1}, "same 12 images"),
        (["A"], ["A"], {"seed": 2, "epoch": 5}, "same 12 images"),  # two epochs of one training
        (["B"], ["A"], {"seed": 1}, "--bbox_A_idx_pth.*not trained on.*swapped?"),
        (["A"], ["A", "B"], {"seed": 1}, "--bbox_A_idx_pth: --model_B_pth .* was trained on 12 of its 12"),
        (["A", "public"], ["B"], {"seed": 1}, "--public_idx_pth.*was trained on 18 of its 18"),
    ],
)
def test_models_that_cannot_give_a_score_are_refused(data, tmp_path, of_A, of_B, changes, text):
    models = checkpoint(data, tmp_path / "a", of_A), checkpoint(data, tmp_path / "b", of_B, **changes)
    result, results = attack(data, tmp_path, *models)
    assert_one_line_error(result)
    assert re.search(text, result.stderr) and results is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_final_weights_of_the_same_model_are_refused(data, tmp_path, dtype):
    weights = load(checkpoint(data, tmp_path / "a", ["A"]))["model"]
    weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    torch.save(weights, tmp_path / "final_weights.pt")
    result, _ = attack(data, tmp_path, tmp_path / "a", tmp_path / "final_weights.pt")
    assert_one_line_error(result, "--model_B_pth", "same weights")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"epoch": 5}, "9 epochs, model B for 5"),
        ({"epoch": 0}, "epoch 0"),
        ({"simclr.temperature": 0.5}, "different simclr.temperature: 0.15 (A) and 0.5 (B)"),
        ({"folder": "another"}, "images of another folder"),
    ],
)
def test_models_that_were_not_trained_the_same_way_are_named(data, tmp_path, models, changes, text):
    other = checkpoint(data, tmp_path / "b.pth", ["B", "shared"], seed=1, **changes)
    result, results = attack(data, tmp_path, models[0], other)
    assert result.returncode == 0, result.stderr
    assert any(text in warning for warning in results["warnings"])
    assert text in result.stdout


def test_boxes_in_per_cent_are_named(data, tmp_path, models):
    boxes = tmp_path / "boxes"
    for path in (data[0] / "boxes").rglob("*.xml"):
        (boxes / path.parent.name).mkdir(parents=True, exist_ok=True)
        box = "<xmin>20</xmin><ymin>20</ymin><xmax>60</xmax><ymax>60</ymax>"  # of images of 60 x 50
        (boxes / path.parent.name / path.name).write_text(
            f"<annotation><object><bndbox>{box}</bndbox></object></annotation>"
        )
    result, results = attack(data, tmp_path, *models, imgnet_bbox_pth=boxes)
    assert result.returncode == 0, result.stderr
    assert [f"--imgnet_bbox_pth {boxes}: boxes reach beyond the image" in text for text in results["warnings"]] == [
        True
    ]
    assert "are they per cent" in result.stdout


def test_seed_folder_and_data_may_differ(data, tmp_path, models):
    changes = {"data.train_dataset": "b.beton", "logging.folder": "b", "data.num_workers": 3, "dist.ngpus": 0}
    other = checkpoint(data, tmp_path / "b.pth", ["B", "shared"], seed=1, **changes)
    assert attack(data, tmp_path, models[0], other)[1]["warnings"] == []


def test_a_published_checkpoint_is_named(data, tmp_path, models):
    bare = load(models[1])["model"]
    torch.save({"epoch": 9, "model": bare}, tmp_path / "published.pth")
    results = attack(data, tmp_path, models[0], tmp_path / "published.pth")[1]
    assert ["does not say which images" in warning for warning in results["warnings"]] == [True]


def test_unequal_encoders_are_named():
    good, bad, near = (
        TopAccuracies(Estimate(*top_1), Estimate(1, 1, 1))
        for top_1 in ((0.9, 0.88, 0.92), (0.3, 0.26, 0.34), (0.86, 0.84, 0.88))
    )
    assert "model B" in check_ceilings({"A": good, "B": bad}, 0.2)[0]
    assert check_ceilings({"A": good, "B": near}, 0.2) == []


@pytest.mark.parametrize("logits", [False, True])
def test_the_ceiling_is_the_vote_on_whole_public_images(data, tmp_path, models, logits):
    """Against neighbors found by hand, each image left out of its own."""
    folder, listing = data
    if logits:
        paths = []
        for seed, name in enumerate("AB"):
            torch.manual_seed(seed)
            network = SSLNetwork("resnet18", "32-16", "supervised", 3).eval()
            save_checkpoint(tmp_path / f"s{name}.pth", {"epoch": 1, "model": with_prefix(network.state_dict())})
            paths.append(tmp_path / f"s{name}.pth")
        _, results = attack(data, tmp_path, *paths, use_supervised_linear=1)
    else:
        _, results = attack(data, tmp_path, *models)
        torch.manual_seed(0)
        network = SSLNetwork("resnet18", "32-16", "simclr").eval()
    public = np.load(folder / "public.npy")
    images = torch.stack([x for x, _ in IndexedImages(listing, public, evaluation_transform(32))])
    with torch.inference_mode():
        z = network.embed(images, "logits" if logits else "projector").double()
    labels = listing.labels[public]
    if logits:
        expected, model = (z.argmax(1).numpy() == labels).mean(), "B"
    else:
        distances = torch.cdist(z, z).fill_diagonal_(torch.inf)
        voters = labels[distances.argsort(dim=1)[:, :5].numpy()]
        expected, model = predict_from_neighbors(voters).correct(labels, 1).mean(), "A"
    estimate = results["ceiling"][model]["top_1"]
    assert estimate["value"] == pytest.approx(expected, abs=1e-9)
    assert estimate["low"] < estimate["value"] < estimate["high"] or expected in (0, 1)


def test_placebo_attacks_public_images(data, tmp_path, models):
    result, results = attack(data, tmp_path, *models, placebo="", bbox_A_idx_pth=None, bbox_B_idx_pth=None)
    assert result.returncode == 0, result.stderr
    public = np.load(data[0] / "public.npy")
    found = []
    for name in "AB":
        idxs = np.load(tmp_path / f"attack/A_attk_{name}_attk_idxs.npy")
        neighbors = np.load(tmp_path / f"attack/A_attk_{name}_neighb_idxs.npy")
        assert neighbors.shape == (len(idxs), 7) and not (neighbors == idxs[:, None]).any()
        assert np.isin(neighbors, public).all()
        found.append(idxs)
    assert sorted(np.concatenate(found)) == sorted(public)
    score = results["both"]["top_1"]["accuracy"]["100"]["score"]
    assert score["low"] <= 0 <= score["high"]
