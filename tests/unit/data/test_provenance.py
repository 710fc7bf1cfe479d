"""Which images a model was trained on, from the index file to the checkpoint."""

import numpy as np
import pytest
import torch
from helpers import assert_one_line_error, draw_tree, run_here

from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.image_dataset import IndexedImages
from dejavu_utils.data.provenance import TrainingImages, load_training_images
from dejavu_utils.imagenet import list_images


def test_a_beton_says_which_images_it_holds(tmp_path):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=2)
    indices = np.array([7, 1, 9, 3])
    np.save(tmp_path / "idx.npy", indices)
    broken = list_images(tmp_path / "images").path(9)
    broken.write_bytes(b"no image")
    written = run_here(
        "write_ffcv_dataset.py",
        "--imgnet-path",
        tmp_path / "images",
        "--idx-path",
        tmp_path / "idx.npy",
        "--write-path",
        tmp_path / "a.beton",
        "--skip-unreadable",
    )
    assert written.returncode == 0, written.stderr
    listing, beton = list_images(tmp_path / "images"), Beton(tmp_path / "a.beton")
    found = load_training_images(beton)
    assert found.indices.tolist() == [1, 3, 7] and found.is_of(listing)
    carried = TrainingImages.of_plain(found.plain())
    assert carried.digest == found.digest and carried.indices.tolist() == [1, 3, 7]
    assert torch.is_tensor(found.plain()["indices"])

    (tmp_path / "b.beton.images.npz").write_bytes((tmp_path / "a.beton.images.npz").read_bytes())
    np.save(tmp_path / "idx.npy", np.array([7, 8, 1]))
    beton_of_others = tmp_path / "b.beton"
    run_here(
        "write_ffcv_dataset.py",
        "--imgnet-path",
        tmp_path / "images",
        "--idx-path",
        tmp_path / "idx.npy",
        "--write-path",
        beton_of_others,
    )
    assert load_training_images(Beton(beton_of_others)).indices.tolist() == [1, 7, 8]
    beton_of_others.with_name("b.beton.images.npz").write_bytes((tmp_path / "a.beton.images.npz").read_bytes())
    assert load_training_images(Beton(beton_of_others)) is None  # labels of other images
    beton_of_others.with_name("b.beton.images.npz").write_bytes(b"cut")
    assert load_training_images(Beton(beton_of_others)) is None


def crops_beton(folder, *flags):
    """(what writing the crops of all images, the last first, into crops.beton gave, the ImageListing)."""
    listing = list_images(folder / "images")
    np.save(folder / "idx.npy", np.arange(len(listing))[::-1])
    written = run_here(
        "write_ffcv_dataset.py",
        *("--imgnet-path", folder / "images", "--bbox-path", folder / "boxes"),
        *("--idx-path", folder / "idx.npy", "--write-path", folder / "crops.beton", "--num-workers", "1"),
        *flags,
    )
    return written, listing


def test_a_beton_of_crops_holds_the_attacks_pixels_and_says_so(tmp_path):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=4)
    written, listing = crops_beton(tmp_path, "--min-px", "8", "--box-margin", "0.05")
    assert written.returncode == 0, written.stderr
    assert "8 of 12 images have a crop (4 no XML)" in written.stdout
    beton, rule = Beton(tmp_path / "crops.beton"), CropRule(min_px=8, margin=0.05)
    cropped = take_crops(listing, np.arange(12)[::-1], rule, Annotations(tmp_path / "boxes", listing))
    attacked = IndexedImages(listing, cropped.indices, np.asarray, cropped.crops)
    assert beton.labels.tolist() == listing.labels[cropped.indices].tolist() and len(beton) == 8
    for position in range(8):
        assert np.array_equal(beton.read(position), attacked[position][0])
    found = load_training_images(beton)
    assert found.crops == str(rule) == "background, paper rule, above 8 px, boxes grown by 0.05"
    assert found.indices.tolist() == sorted(cropped.indices)
    carried = TrainingImages.of_plain(found.plain())
    assert carried.crops == str(rule) and carried.indices.tolist() == found.indices.tolist()


def test_a_beton_of_crops_says_that_boxes_may_be_per_cent(tmp_path):
    draw_tree(tmp_path, classes=2, per_class=6, boxed=6)
    for path in (tmp_path / "boxes").rglob("*.xml"):
        box = "<xmin>20</xmin><ymin>20</ymin><xmax>50</xmax><ymax>65</ymax>"  # images are 60 x 50 or 50 x 60
        path.write_text(f"<annotation><object><bndbox>{box}</bndbox></object></annotation>")
    written, _ = crops_beton(tmp_path, "--min-px", "8")
    assert "warning: --bbox-path" in written.stdout and "beyond the image in 12 of 12" in written.stdout


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--min-px", "50"], ["--bbox-path", "no image has a crop: 8 no crop larger than min_px", "--min-px 50"]),
        (["--box-margin", "-1"], ["--box_margin -1.0: must be 0 or more"]),
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
