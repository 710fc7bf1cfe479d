"""Which models, sets and images the attack's score is about: errors, warnings, ceiling and placebo."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    RECIPE,
    annotation,
    assert_one_line_error,
    draw_tree,
    flags,
    load,
    ok,
    read_json,
    rows_of,
    run_here,
    save_sets,
    save_untrained,
    trained_on,
)
from PIL import Image
from stages import attack_settings

from dejavu_utils.analysis.attack_output import check_ceilings
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.memorization import predict_from_neighbors
from dejavu_utils.analysis.results_json import TopAccuracies
from dejavu_utils.attack.preconditions import IndexSet, class_warnings
from dejavu_utils.data import near_copies as duplicates
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import list_images

SETTINGS = {**RECIPE, "simclr.temperature": 0.15, "data.train_dataset": "a.beton", "logging.folder": "a"}
BARE = {"model.arch": "resnet18"}  # is recognized without settings
SETS = {"A": (0, 4), "B": (4, 8), "shared": (8, 10), "public": (10, 16)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = draw_tree(tmp_path_factory.mktemp("data"), per_class=16, boxed=16)
    return folder, save_sets(folder, 16, **SETS)


def checkpoint(data, path, trained, seed=0, epoch=9, folder=None, **changes):
    """A checkpoint that says that it was trained on the index files named in `trained`; returns its path."""
    images = trained_on(data[0], trained) | ({"listing": folder} if folder else {})
    settings = {**SETTINGS, "training.epochs": 9, "data.random_seed": seed, **changes}
    save_untrained(path, seed, epoch=epoch, num_classes=3, settings=settings, train_images=images)
    return path


def pair(data, folder, **changes):
    """Models A and B of the partition."""
    paths = {name: folder / f"{name}.pth" for name in "AB"}
    return [checkpoint(data, paths[name], [name, "shared"], seed, **changes) for seed, name in enumerate("AB")]


def attack(data, tmp_path, model_A, model_B, **changes):
    settings = attack_settings(data[0], tmp_path / "attack", model_A_pth=model_A, model_B_pth=model_B, **changes)
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
    models = pair(data, tmp_path)
    paths = [listing.path(index) for index in range(len(listing))]
    found = duplicates.find_near_copies(duplicates.signatures(paths))
    known = {name: duplicates.with_near_copy(found, sets[name], sets[other]) for name, other in ("AB", "BA")}
    assert known["A"].sum() == 4 and known["B"].sum() == 4  # the copies in "shared" are seen by checkpoints alone

    duplicates.save_near_copies(folder / duplicates.FILE, found, listing)
    result, results = attack(data, tmp_path, *models)
    ok(result)
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
    return pair(data, tmp_path)


@pytest.fixture(scope="module")
def attacked(data, tmp_path_factory):
    """(what was printed, results.json) of models that differ in seed, folder and data alone."""
    folder = tmp_path_factory.mktemp("attacked")
    changes = {"data.train_dataset": "b.beton", "logging.folder": "b", "data.num_workers": 3, "dist.ngpus": 0}
    other = checkpoint(data, folder / "other.pth", ["B", "shared"], seed=1, **changes)
    result, results = attack(data, folder, pair(data, folder)[0], other)
    return ok(result).stdout, results


def test_models_of_the_partition_are_attacked_without_a_warning(attacked):
    printed, results = attacked
    assert results["warnings"] == [] and "warning" not in printed
    assert "near_copies" not in results and "near-copy" not in printed  # which nobody has looked for


@rows_of(
    "trained, texts",
    """
    A=A B=A seed=0          -> --model_B_pth ;; the same weights as --model_A_pth
    A=A B=A seed=1          -> same 12 images
    A=A B=A seed=2 epoch=5  -> same 12 images
    A=B B=A seed=1          -> --bbox_A_idx_pth ;; not trained on ;; swapped?
    A=A B=A,B seed=1        -> --bbox_A_idx_pth: --model_B_pth ;; was trained on 12 of its 12
    A=A,public B=B seed=1   -> --public_idx_pth ;; was trained on 18 of its 18
""",
)
def test_models_that_cannot_give_a_score_are_refused(data, tmp_path, trained, texts):
    """The sets that A and B were trained on; seed and epoch of B."""
    of_A, of_B = (trained[name].split(",") for name in "AB")
    of_training = {name: int(value) for name, value in trained.items() if name in ("seed", "epoch")}
    models = checkpoint(data, tmp_path / "a", of_A), checkpoint(data, tmp_path / "b", of_B, **of_training)
    result, results = attack(data, tmp_path, *models)
    assert_one_line_error(result, *texts)
    assert results is None


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_final_weights_of_the_same_model_are_refused(data, tmp_path, dtype):
    """Also where they were saved in half precision."""
    weights = load(checkpoint(data, tmp_path / "a", ["A"], **BARE))["model"]
    halves = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    torch.save(halves, tmp_path / "final_weights.pt")
    result, _ = attack(data, tmp_path, tmp_path / "a", tmp_path / "final_weights.pt")
    assert_one_line_error(result, "--model_B_pth", "same weights")


@pytest.mark.parametrize(
    "changes, texts",
    [
        ({"epoch": 0}, ["epoch 0"]),
        (
            {"epoch": 5, "simclr.temperature": 0.5, "folder": "another"},
            ["9 epochs, model B for 5", "simclr.temperature: 0.15 (A) and 0.5 (B)", "images of another folder"],
        ),
    ],
)
def test_models_that_were_not_trained_the_same_way_are_named(data, tmp_path, models, changes, texts):
    other = checkpoint(data, tmp_path / "b.pth", ["B", "shared"], seed=1, **changes)
    result, results = attack(data, tmp_path, models[0], other)
    for text in texts:
        assert text in ok(result).stdout and any(text in warning for warning in results["warnings"])


def test_boxes_in_per_cent_are_named(data, tmp_path, models):
    boxes = shutil.copytree(data[0] / "boxes", tmp_path / "boxes")
    for path in boxes.rglob("*.xml"):
        path.write_text(annotation((20, 20, 60, 60)))  # of images of 60 x 50
    result, results = attack(data, tmp_path, *models, imgnet_bbox_pth=boxes)
    (warning,) = results["warnings"]
    assert f"--imgnet_bbox_pth {boxes}: boxes reach beyond the image" in warning
    assert "are they per cent" in ok(result).stdout


def test_a_published_checkpoint_is_named(data, tmp_path):
    models = pair(data, tmp_path, **BARE)
    torch.save({"epoch": 9, "model": load(models[1])["model"]}, tmp_path / "published.pth")
    (warning,) = attack(data, tmp_path, models[0], tmp_path / "published.pth")[1]["warnings"]
    assert "does not say which images" in warning


def test_unequal_encoders_are_named():
    good, bad, near = (
        TopAccuracies(Estimate(*top_1), Estimate(1, 1, 1))
        for top_1 in ((0.9, 0.88, 0.92), (0.3, 0.26, 0.34), (0.86, 0.84, 0.88))
    )
    assert "model B" in check_ceilings({"A": good, "B": bad}, 0.2)[0]
    assert check_ceilings({"A": good, "B": near}, 0.2) == []


@pytest.mark.parametrize("logits", [False, True])
def test_the_ceiling_is_the_vote_on_whole_public_images(data, attacked, tmp_path, logits):
    """Against neighbors found by hand, each image left out of its own."""
    folder, listing = data
    if logits:
        paths = [tmp_path / "A.pth", tmp_path / "B.pth"]
        save_untrained(paths[0], loss="supervised")
        network = save_untrained(paths[1], seed=1, loss="supervised")
        _, results = attack(data, tmp_path, *paths, use_supervised_linear=1)
    else:
        results, network = attacked[1], save_untrained(tmp_path / "A.pth", settings=SETTINGS)
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
    ok(result)
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


def test_public_images_of_one_class_are_refused(data, tmp_path):
    """Every vote is right then, and the ceiling is 1, like chance."""
    listing = list_images(data[0] / "images")
    public = np.flatnonzero(listing.labels == 1)
    with pytest.raises(InputError, match="--public_idx_pth: all its images are of the class c1: every model"):
        class_warnings(listing, {"A": IndexSet("--bbox_A_idx_pth", np.arange(4))}, public)
