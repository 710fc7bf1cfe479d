"""Which images a model was trained on, from the index file to the checkpoint."""

import numpy as np
import torch
from helpers import draw_tree, run_here

from dejavu_utils.data.beton import Beton
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
