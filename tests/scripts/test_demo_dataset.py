"""The demo's data: the same files for the same seed, boxes that hide the object, known correlation."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import draw_demo, flags, ok, options, read_json, run_here, save_color_reader
from PIL import Image, ImageChops
from stages import attack_settings

from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.imagenet import list_images
from make_demo_dataset import draw_background, paste_object

EARLIER_COLORS = (
    ("000_plane", 0, (139.3, 58.7, 134.9)),
    ("001_umbrella", 7, (187.8, 121.6, 108.6)),
    ("002_spade", 19, (170.5, 116.1, 139.1)),
)
SEED, CLASSES, PER_CLASS, CORRELATION = 3, 5, 140, 0.8


@pytest.fixture(scope="module")
def tied_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied") / "data"
    counts = {"classes": CLASSES, "images_per_class": PER_CLASS, "unboxed_per_class": 60}
    return draw_demo(folder, seed=SEED, correlation=CORRELATION, **counts)


def test_correlation_changes_tied_backgrounds_alone(tied_data, tmp_path):
    plain = draw_demo(tmp_path / "plain", seed=SEED, classes=CLASSES, images_per_class=PER_CLASS, unboxed_per_class=60)
    assert read_json(tied_data / "demo.json")["correlation"] == CORRELATION
    assert not (plain / "tied.csv").exists()
    tied = pd.read_csv(tied_data / "tied.csv")
    listing = list_images(tied_data / "images")
    assert [Path(path).as_posix() for path in listing.paths] == tied["path"].tolist()
    assert abs(tied["tied"].mean() - CORRELATION) < 4 * np.sqrt(CORRELATION * (1 - CORRELATION) / len(tied))
    same = [
        (plain / "images" / path).read_bytes() == (tied_data / "images" / path).read_bytes() for path in tied["path"]
    ]
    assert same == (tied["tied"] == 0).tolist()
    xmls = sorted((plain / "boxes").rglob("*.xml"))
    assert len(xmls) == CLASSES * (PER_CLASS - 60)
    for xml in xmls:
        assert xml.read_bytes() == (tied_data / xml.relative_to(plain)).read_bytes()


def test_stream_of_random_numbers_is_that_of_earlier_versions(tmp_path):
    """Colors of three images as they were before --correlation came; another order of draws would change them."""
    settings = options("--classes 3 --images_per_class 20 --unboxed_per_class 4 --side 128 --object_size 0.5")
    folder = draw_demo(tmp_path / "data", seed=SEED, **settings)
    for name, rank, color in EARLIER_COLORS:
        with Image.open(folder / "images" / name / f"{name}_{rank:05d}.JPEG") as image:
            assert np.asarray(image).mean(axis=(0, 1)) == pytest.approx(color, abs=1)


@pytest.mark.parametrize("rule", ["paper", "exact"])
@pytest.mark.parametrize("side, object_size", [(128, 0.5), (96, 0.3)])
def test_crops_show_no_pixel_of_the_object(tmp_path, side, object_size, rule):
    """Each crop is that of the image drawn without its object: exactly as drawn, and in the JPEG but for blocks that
    the object reaches into."""
    per_class, classes = 10, 4
    counts = {"images_per_class": per_class, "unboxed_per_class": 0, "classes": classes}
    folder = draw_demo(tmp_path / "data", seed=SEED, side=side, object_size=object_size, **counts)
    listing = list_images(folder / "images")
    annotations = Annotations(folder / "boxes", listing)
    crop_rule = CropRule(rule, min_px=side // 4)
    cropped = take_crops(listing, np.arange(len(listing)), crop_rule, annotations)
    assert len(cropped) > 0.9 * len(listing)
    touching = 0
    for number, crop in zip(cropped.indices.tolist(), cropped.crops.tolist()):
        background = draw_background(np.random.default_rng([SEED, number, 0]), side)
        whole = background.copy()
        paste_object(whole, np.random.default_rng([SEED, number, 1]), number // per_class, classes, object_size)
        object_box = ImageChops.difference(whole, background).getbbox()
        assert whole.crop(crop) == background.crop(crop)
        touching += crop[0] in (object_box[2], object_box[2] + 1) or crop[2] in (object_box[0], object_box[0] - 1)
        with Image.open(listing.path(number)) as image:
            decoded = np.asarray(image).astype(int)
        difference = np.abs(decoded - through_jpeg(background))
        inside = np.zeros((side, side), bool)
        inside[crop[1] : crop[3], crop[0] : crop[2]] = True
        assert difference[inside & ~blocks_of(object_box, side)].max() == 0
        assert difference[inside].mean() < 3  # the object itself differs by about 100
    assert touching > len(cropped) / 4  # the box is tight: no test of crops far from any object


def through_jpeg(image):
    """int (side, side, 3): the image after the compression of the demo's files."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    with Image.open(file) as decoded:
        return np.asarray(decoded).astype(int)


def blocks_of(box, side):
    """bool (side, side): pixels that a box changes through JPEG, whose color is stored in blocks of 16 pixels and is
    smoothed over one more when decoded."""
    changed = np.zeros((side, side), bool)
    left, top = (max(0, low // 16 * 16 - 1) for low in box[:2])
    right, bottom = (-(-high // 16) * 16 + 1 for high in box[2:])
    changed[top:bottom, left:right] = True
    return changed


def test_correlation_is_not_reported_as_memorization(tied_data, tmp_path):
    """Two models that read colors and remember nothing must both come out at R + (1 - R) / classes."""
    listing = list_images(tied_data / "images")
    rank = np.arange(len(listing)) % PER_CLASS
    for name, chosen in (("A", rank < 40), ("B", (rank >= 40) & (rank < 80)), ("public", rank >= 80)):
        np.save(tmp_path / f"{name}.npy", np.flatnonzero(chosen))
    for seed, model in enumerate("AB"):
        save_color_reader(tmp_path / f"{model}.pth", seed, classes=CLASSES)
    folders = {"imgnet_train_pth": tied_data / "images", "imgnet_bbox_pth": tied_data / "boxes"}
    settings = attack_settings(tmp_path, tmp_path / "attack", **folders, k=10, k_attk=10, min_px=16)
    result = ok(run_here("label_inference_attack.py", *flags(settings)))
    tables = pd.concat([pd.read_csv(tmp_path / f"attack/attack_{name}.csv") for name in "AB"])
    tied = pd.read_csv(tied_data / "tied.csv")["tied"].to_numpy(bool)[tables["index"]]
    truth = tied.mean() + (1 - tied.mean()) / CLASSES
    top_1 = read_json(tmp_path / "attack/results.json")["both"]["top_1"]
    for role in ("target", "reference"):
        figure = top_1["accuracy"]["100"][role]
        assert figure["low"] < truth < figure["high"]
        right = tables[f"{role}_top1_correct"]
        assert right[tied].mean() > 0.95 and abs(right[~tied].mean() - 1 / CLASSES) < 0.15
    for pct in ("20", "100"):
        score = top_1["accuracy"][pct]["score"]
        assert score["low"] <= 0 <= score["high"], result.stdout
    assert top_1["shares"]["correlated"]["low"] > 0.7 and top_1["shares"]["memorized"]["high"] < 0.1
