"""Which images a model was trained on, from the index file to the checkpoint."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_one_line_error, draw_tree, load, ok, refused, run_here, save_untrained

from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.beton import Beton, write_beton
from dejavu_utils.data.image_dataset import IndexedImages
from dejavu_utils.data.provenance import (
    ModelRecord,
    Provenance,
    TrainingImages,
    check_same,
    differences,
    first_difference_in_words,
    load_training_images,
    save_training_images,
    validation_warnings,
    weights_digest,
)
from dejavu_utils.imagenet import list_images
from dejavu_utils.networks.loading import load_network
from dejavu_utils.training.checkpoint import TrainingSet, check_same_start
from dejavu_utils.training.settings import Settings


def write(folder, name, indices, *more):
    """What writing NAME.beton of these images of FOLDER/images gave."""
    np.save(folder / "idx.npy", np.array(indices))
    words = f"--imgnet-path {folder}/images --idx-path {folder}/idx.npy --write-path {folder}/{name}.beton"
    return run_here("write_ffcv_dataset.py", *words.split(), "--num-workers", "1", *more)


def test_a_beton_says_which_images_it_holds(tmp_path):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=2)
    broken = list_images(tmp_path / "images").path(9)
    broken.write_bytes(b"no image")
    write(tmp_path, "a", [7, 1, 9, 3], "--skip-unreadable")
    listing, beton = list_images(tmp_path / "images"), Beton(tmp_path / "a.beton")
    found, notes = load_training_images(beton, beton.digest)
    assert not notes
    assert found.indices.tolist() == [1, 3, 7] and found.is_of(listing)
    carried = TrainingImages.of_plain(found.plain())
    assert carried.digest == found.digest and carried.indices.tolist() == [1, 3, 7]
    assert torch.is_tensor(found.plain()["indices"])

    (tmp_path / "b.beton.images.npz").write_bytes((tmp_path / "a.beton.images.npz").read_bytes())
    beton_of_others = tmp_path / "b.beton"
    write(tmp_path, "b", [7, 8, 1])
    assert load_training_images(Beton(beton_of_others), Beton(beton_of_others).digest)[0].indices.tolist() == [1, 7, 8]
    beton_of_others.with_name("b.beton.images.npz").write_bytes((tmp_path / "a.beton.images.npz").read_bytes())
    images, notes = load_training_images(Beton(beton_of_others), Beton(beton_of_others).digest)
    assert images is None and "was written for another .beton" in notes[0]  # labels of other images
    beton_of_others.with_name("b.beton.images.npz").write_bytes(b"cut")
    images, notes = load_training_images(Beton(beton_of_others), Beton(beton_of_others).digest)
    assert images is None and "cannot be read" in notes[0]


def test_validation_images_that_are_trained_on_are_counted(tmp_path):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=2)
    for name, indices in (("train", [1, 3, 7]), ("val", [3, 7, 8]), ("other", [2, 8])):
        write(tmp_path, name, indices)
    train, val, other = (Beton(tmp_path / f"{name}.beton") for name in ("train", "val", "other"))
    images, _ = load_training_images(train, train.digest)
    (warning,) = validation_warnings(images, val)
    assert f"{val.path}: 2 of its 3 images are among those of --data.train_dataset" in warning
    assert "3 of its 3 images" in validation_warnings(images, train)[0]
    assert validation_warnings(images, other) == validation_warnings(None, val) == []


def test_images_of_a_beton_with_the_same_labels_are_not_taken(tmp_path):
    """Twin sets have as many images of each class: their labels agree."""
    draw_tree(tmp_path, classes=2, per_class=4, boxed=0)
    write(tmp_path, "A", [0, 1, 4, 5])
    write(tmp_path, "B", [2, 3, 6, 7])
    beton, companion = Beton(tmp_path / "A.beton"), tmp_path / "A.beton.images.npz"
    assert load_training_images(beton, beton.digest)[0].indices.tolist() == [0, 1, 4, 5]
    companion.write_bytes((tmp_path / "B.beton.images.npz").read_bytes())
    images, notes = load_training_images(beton, beton.digest)
    assert images is None and notes[0].startswith(f"warning: {companion}")
    listing = list_images(tmp_path / "images")
    save_training_images(beton.path, np.array([0, 1, 4, 5]), listing, record=Provenance(beton=beton.older_digest))
    assert load_training_images(beton, beton.digest)[0].indices.tolist() == [0, 1, 4, 5]  # of an earlier version
    companion.unlink()
    assert load_training_images(beton, beton.digest)[1][0].endswith("holds is not known")


def test_a_record_with_either_digest_of_the_beton_resumes(tmp_path):
    write_beton(tmp_path / "x.beton", [np.zeros((9, 9, 3), np.uint8)] * 3, range(3))
    beton, settings = Beton(tmp_path / "x.beton"), Settings()
    here = Provenance(beton=beton.digest)

    def check(recorded):
        made_from = Provenance(beton=recorded).plain()
        checkpoint = SimpleNamespace(train_images=None, train_set=beton.fingerprint, made_from=made_from)
        return check_same_start(checkpoint, TrainingSet(beton, beton.digest), here, settings, tmp_path / "model.pth")

    assert check(beton.digest) == check(beton.older_digest) == []
    with refused("model.pth was made from something else"):
        check(64 * "0")


def crops_beton(folder, *flags):
    """(what writing the crops of all images, the last first, into crops.beton gave, the ImageListing)."""
    listing = list_images(folder / "images")
    written = write(folder, "crops", range(len(listing))[::-1], "--bbox-path", folder / "boxes", *flags)
    return written, listing


def test_a_beton_of_crops_holds_the_attacks_pixels_and_says_so(tmp_path):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=4)
    written, listing = crops_beton(tmp_path, "--min-px", "8", "--box-margin", "0.05")
    assert "8 of 12 images have a crop (4 no XML)" in ok(written).stdout
    beton, rule = Beton(tmp_path / "crops.beton"), CropRule(min_px=8, margin=0.05)
    cropped = take_crops(listing, np.arange(12)[::-1], rule, Annotations(tmp_path / "boxes", listing))
    attacked = IndexedImages(listing, cropped.indices, np.asarray, cropped.crops)
    assert beton.labels.tolist() == listing.labels[cropped.indices].tolist() and len(beton) == 8
    for position in range(8):
        assert np.array_equal(beton.read(position), attacked[position][0])
    found, notes = load_training_images(beton, beton.digest)
    assert not notes
    assert found.crops == str(rule) == "background, paper rule, above 8 px, boxes grown by 0.05"
    assert found.indices.tolist() == sorted(cropped.indices)
    carried = TrainingImages.of_plain(found.plain())
    assert carried.crops == str(rule) and carried.indices.tolist() == found.indices.tolist()


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--min-px", "50"], ["--bbox-path", "no image has a crop: 8 no crop larger than min_px", "--min-px 50"]),
        (["--box-margin", "-1"], ["--box-margin: -1 is not a number from 0 on"]),
        (["--bbox-path", "absent"], ["--bbox-path absent: no such folder"]),
    ],
)
def test_what_cannot_give_crops_is_refused(tmp_path, flags, texts):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=4)
    written, _ = crops_beton(tmp_path, *flags)
    assert_one_line_error(written, *texts)
    assert not (tmp_path / "crops.beton").exists()


def test_different_rules_have_different_texts():
    rules = [CropRule(), CropRule("exact"), CropRule(min_px=32), CropRule(margin=4), CropRule(scale=True)]
    rules += [CropRule("corner"), CropRule("corner", fraction=0.4)]
    assert len({str(rule) for rule in rules}) == len(rules)


# The record of what a number was made from.

A = ModelRecord(weights="a" * 64, images="b" * 64, epoch=3, arch="resnet18", shown="short side 36")
RECORD = Provenance(
    models={"A": A, "B": replace(A, weights="c" * 64)},
    images="d" * 64,
    sets={"bbox_A_idx_pth": "e" * 64},
    crops={"digest": "f" * 64, "rule": "background", "margin": 0.0, "least_side": 10},
    public="0" * 64,
    votes={"k": 7, "k_attk": 5, "layer": "projector"},
    precision="fp32",
    resolution=32,
    settings={"batch_size": 4},
)


def test_a_record_comes_back_from_json_and_from_a_checkpoint(tmp_path):
    assert Provenance.from_plain(json.loads(json.dumps(RECORD.plain()))) == RECORD
    torch.save({"made_from": RECORD.plain()}, tmp_path / "a.pt")
    carried = load(tmp_path / "a.pt")["made_from"]
    assert Provenance.from_plain(carried) == RECORD
    assert Provenance.from_plain({**RECORD.plain(), "of_a_later_version": 1}) == RECORD
    for nothing in (None, [], {}, {"formats": 1, "models": 3}, {"formats": 1, "models": {"A": {"of_another": 1}}}):
        assert Provenance.from_plain(nothing) is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"models": {"A": replace(A, weights="9" * 64), "B": RECORD.models["B"]}}, "weights of model A (99999999 here"),
        ({"models": {"A": A}}, "weights of model B (none here, cccccccc there)"),
        ({"sets": {"bbox_A_idx_pth": "9" * 64}}, "--bbox_A_idx_pth (99999999 here"),
        ({"crops": {**RECORD.crops, "least_side": 12}}, "crops (least side) (12 here, 10 there)"),
        ({"votes": {**RECORD.votes, "k_attk": 3}}, "--k_attk (3 here, 5 there)"),
        ({"settings": {"batch_size": 8}}, "--batch_size (8 here, 4 there)"),
    ],
)
def test_the_first_difference_is_said_in_words(change, words):
    other = replace(RECORD, **change)
    assert words in first_difference_in_words("shards", other, RECORD)
    assert first_difference_in_words("shards", RECORD, RECORD) is None
    with refused("the shards was made with|the shards was made from something else"):
        check_same("shards", other, RECORD, "the shards", {"images": "--imgnet_train_pth x"}, "use the same")


def test_unknown_and_ignored_entries_are_not_compared():
    assert not differences(RECORD, Provenance())
    assert not differences(replace(RECORD, models={"A": replace(A, weights=None), "B": RECORD.models["B"]}), RECORD)
    assert not differences(replace(RECORD, settings={"lr": 1}), RECORD)  # a setting that an older version did not write
    other = replace(RECORD, models={"A": replace(A, weights="9" * 64), "B": RECORD.models["B"]}, public="9" * 64)
    assert [str(found.entry) for found in differences(other, RECORD)] == ["models.A.weights", "public"]
    assert first_difference_in_words("epochs", other, RECORD).startswith("public set")
    assert first_difference_in_words("runs", other, RECORD) is None
    assert check_same("shards", RECORD, None, "FILE", {}, "") == [
        "FILE does not say what it was made from: that it fits is not checked"
    ]


def test_equal_weights_under_two_names_are_one_thing(tmp_path):
    networks = []
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        save_untrained(tmp_path / f"{name}.pth", seed=seed)
        networks.append(load_network(tmp_path / f"{name}.pth"))
    one, copy, other = map(weights_digest, networks)
    assert one == copy != other
    with torch.no_grad():
        networks[0].net.conv1.weight.copy_(networks[0].net.conv1.weight.flip(0))  # the same numbers elsewhere
    assert weights_digest(networks[0]) != one
    record = ModelRecord.of(networks[1], 32)
    assert record.arch == "resnet18" and re.search("\\b36\\b", record.shown)
