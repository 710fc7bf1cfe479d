"""lin_probe.py as a user runs it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line_error, draw_tree, flags, run_script, save_untrained
from torchvision.transforms import InterpolationMode, functional

from dejavu_utils import augment
from dejavu_utils.imagenet import list_images, load_image
from dejavu_utils.loader import RandomCrops
from dejavu_utils.memorization import wilson_interval


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = draw_tree(tmp_path_factory.mktemp("data"))
    rank = np.arange(36) % 12
    np.save(folder / "train.npy", np.flatnonzero(rank < 9))
    np.save(folder / "val.npy", np.flatnonzero(rank >= 9))
    return folder, save_untrained(folder / "model.pth")


def probe(data, output_dir, **changes):
    folder = data[0]
    settings = {
        "local": 1,
        "output_dir": output_dir,
        "model_pth": folder / "model.pth",
        "train_idx_pth": folder / "train.npy",
        "val_idx_pth": folder / "val.npy",
        "imgnet_train_pth": folder / "images",
        "resolution": 32,
        "batch_size": 10,
        "start_lr": 0.1,
        "end_lr": 0.01,
        "epochs": 3,
        "num_workers": 0,
        **changes,
    }
    return run_script("lin_probe.py", *flags(settings), PATH=str(Path(sys.executable).parent))  # without srun


def test_results_and_closing_words(data, tmp_path):
    result = probe(data, tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["counts"] == {"train": 27, "val": 9, "classes": 3}
    assert [record["epoch"] for record in results["epochs"]] == [1, 2, 3]
    for name, n in (("train", 27), ("val", 9)):
        figure = results["final"][name]["top_1"]
        hits = round(figure["value"] * n)
        assert figure["value"] == hits / n and (figure["low"], figure["high"]) == pytest.approx(
            wilson_interval(hits, n)
        )
        assert results["final"][name]["top_5"]["value"] == 1  # three classes
    assert results["epochs"][-1]["val_top_1"] == results["final"]["val"]["top_1"]["value"]
    validation, training = result.stdout.splitlines()[-2:]
    assert f"top-1 {results['final']['val']['top_1']['value']:.3f}" in validation
    assert f"top-1 {results['final']['train']['top_1']['value']:.3f}" in training


def test_workers_change_nothing_and_the_seed_does(data, tmp_path):
    found = []
    for name, changes in (("0", {}), ("2", {"num_workers": 2}), ("seed", {"seed": 1})):
        assert probe(data, tmp_path / name, use_projector="", **changes).returncode == 0
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["settings"]["layer"] == "projector"
        found.append([record["loss"] for record in results["epochs"]])
    assert found[0] == found[1] != found[2]


def test_learns_what_is_linear(data, tmp_path):
    """Images of one color a class: any encoder tells them apart, so the probe must reach 1."""
    from PIL import Image

    for label, color in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
        for rank in range(12):
            path = tmp_path / "images" / f"c{label}" / f"{rank:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), color).save(path)
    result = probe(data, tmp_path / "out", imgnet_train_pth=tmp_path / "images", epochs=20, start_lr=1)
    assert result.returncode == 0, result.stderr
    final = json.loads((tmp_path / "out" / "results.json").read_text())["final"]
    assert final["train"]["top_1"]["value"] == final["val"]["top_1"]["value"] == 1


def test_random_crops_are_keyed_by_position(data):
    listing = list_images(data[0] / "images")
    indices = np.load(data[0] / "train.npy")
    crops = RandomCrops(listing, indices, augment.SECOND_VIEW, 32, seed=3, epoch=2)
    order = augment.epoch_order(3, 2, len(indices))
    crop, label = crops[5]
    index = indices[order[5]]
    image = load_image(listing.path(index))
    draws = augment.uniforms(3, 2, RandomCrops.STREAM, 0, 6)[5:]
    xmin, ymin, xmax, ymax = augment.crop_boxes(draws, [[image.height, image.width]], augment.SECOND_VIEW)[0]
    place = (ymin, xmin, ymax - ymin, xmax - xmin)
    expected = functional.resized_crop(image, *place, [32, 32], InterpolationMode.BICUBIC)
    assert np.abs(crop.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1
    assert label == listing.labels[index]
    assert sorted(crops[i][1] for i in range(len(crops))) == sorted(listing.labels[indices])


@pytest.mark.parametrize(
    "changes, texts",
    [
        ({"model_pth": "/nowhere.pth"}, ["--model_pth /nowhere.pth: no such file"]),
        ({"train_idx_pth": "/nowhere.npy"}, ["--train_idx_pth /nowhere.npy: no such file"]),
        ({"loss": "supervised"}, ["--loss supervised", "model.pth holds"]),
        ({"epochs": 0}, ["--epochs"]),
        ({"local": 0}, ["srun", "--local 1"]),
        ({"start_lr": 1e38}, ["--start_lr 1e+38", "the loss is"]),
    ],
)
def test_bad_input_is_one_line(data, tmp_path, changes, texts):
    assert_one_line_error(probe(data, tmp_path, **changes), *texts)
    assert not (tmp_path / "results.json").exists()
