"""Training batches: the same for any number of workers, processes and resumptions; crops against torchvision's."""

import gc
import multiprocessing
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton, Encoding, write_beton
from dejavu_utils.data.ffcv import FfcvLoader, ffcv_is_installed
from dejavu_utils.data.loader import NativeLoader, cut_and_resize, evaluation_batches
from dejavu_utils.errors import InputError
from dejavu_utils.randomness import epoch_order, uniforms

CPU = torch.device("cpu")
VIEWS = [augment.FIRST_VIEW, augment.SECOND_VIEW]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + i % 7, 60 - i % 5, 3), dtype=np.uint8) for i in range(90)]
    path = tmp_path_factory.mktemp("betons") / "train.beton"
    write_beton(path, images, np.arange(90))
    return path


def batches(path, batch_size=20, views=VIEWS, seed=5, num_workers=2, epoch=3, resolution=32, first_step=0, **changes):
    beton = Beton(path, in_memory=changes.pop("in_memory", False))
    by_processes = changes.pop("by_processes", False)
    loader = NativeLoader(beton, batch_size, views, seed, num_workers, CPU, **changes)
    loader.by_processes = by_processes
    return list(loader.epoch(epoch, resolution, first_step))


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for (views, labels), (other_views, other_labels) in zip(left, right):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(a, b) for a, b in zip(views, other_views))


def test_an_epoch_shows_whole_batches_of_different_images(path):
    found = batches(path)
    assert len(found) == 4
    labels = torch.cat([labels for _, labels in found])
    assert len(set(labels.tolist())) == 80
    for views, _ in found:
        assert [view.shape for view in views] == [(20, 3, 32, 32)] * 2 and views[0].dtype == torch.float32
    assert not torch.equal(found[0][0][0], found[0][0][1])


@pytest.mark.parametrize("changes", [{"num_workers": 1}, {"num_workers": 5}, {"in_memory": True}])
def test_workers_and_memory_change_nothing(path, changes):
    assert_same(batches(path), batches(path, **changes))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_read_what_threads_read(path, num_workers):
    changes = {
        "batch_size": 80,
        "num_workers": num_workers,
        "in_memory": True,
    }  # more images than a process reads at once
    views = [*VIEWS, augment.SMALL_VIEW]
    assert_same(batches(path, views=views, **changes), batches(path, views=views, by_processes=True, **changes))


@pytest.mark.parametrize("by_processes", [False, True])
def test_epochs_run_on_and_any_place_can_be_entered(path, by_processes):
    loader = NativeLoader(Beton(path), 20, VIEWS, 5, 2, CPU)
    loader.by_processes = by_processes
    for epoch, resolution, first_step in [(0, 32, 0), (1, 32, 0), (2, 48, 1), (3, 48, 0), (3, 48, 3), (0, 32, 2)]:
        found = list(loader.epoch(epoch, resolution, first_step))
        assert_same(found, batches(path, epoch=epoch, resolution=resolution, first_step=first_step))
    for _ in loader.epoch(7, 32):
        break  # left in the midst
    assert_same(list(loader.epoch(7, 32)), batches(path, epoch=7))


def test_epochs_and_seeds_differ(path):
    labels = torch.cat([labels for _, labels in batches(path)])
    for changes in ({"epoch": 4}, {"seed": 6}):
        assert not torch.equal(labels, torch.cat([labels for _, labels in batches(path, **changes)]))


def test_an_epoch_can_be_entered_at_any_step(path):
    whole = batches(path)
    for first_step in (1, 3):
        assert_same(whole[first_step:], batches(path, first_step=first_step))


@pytest.mark.parametrize("by_processes", [False, True])
def test_a_loader_that_is_dropped_ends_at_once(path, by_processes):
    """Not when the garbage collector comes by, which may be in the midst of a thread's start."""
    gc.collect()
    gc.disable()
    try:
        loader = NativeLoader(Beton(path), 20, VIEWS, 5, 2, CPU)
        loader.by_processes = by_processes
        before = threading.active_count(), len(multiprocessing.active_children())
        next(loader.epoch(0, 32))
        assert (threading.active_count(), len(multiprocessing.active_children())) > before
        del loader
        assert (threading.active_count(), len(multiprocessing.active_children())) == before
    finally:
        gc.enable()


def test_processes_share_the_global_batch_without_overlap(path):
    whole = batches(path, batch_size=30)
    parts = [batches(path, batch_size=10, rank=rank, world_size=3) for rank in range(3)]
    joined = [
        ([torch.cat(views) for views in zip(*(views for views, _ in step))], torch.cat([labels for _, labels in step]))
        for step in zip(*parts)
    ]
    assert_same(whole, joined)


def test_resolution_is_the_epochs_and_small_views_keep_theirs(path):
    ((views, _),) = batches(path, batch_size=90, views=[*VIEWS, augment.SMALL_VIEW], resolution=48)
    assert [view.shape[-1] for view in views] == [48, 48, 96]


def test_views_are_crop_then_augmentation_of_the_keyed_numbers(path):
    (views, labels) = batches(path)[2]
    beton = Beton(path)
    order = epoch_order(5, 3, 90)[40:60]
    assert labels.tolist() == order.tolist()  # the label of an image here is its number
    for number, view in enumerate(VIEWS):
        draws = uniforms(5, 3, number, 40, 20)
        boxes = augment.crop_boxes(draws, beton.sizes[order], view)
        crops = torch.stack([cut_and_resize(beton.read(i), box, 32) for i, box in zip(order, boxes)])
        expected = augment.apply_batched(crops, augment.draw_parameters(draws, view))
        torch.testing.assert_close(views[number], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(3, 5, 40, 33), (0, 0, 60, 50), (10, 10, 14, 12)])
def test_crops_are_torchvisions(mode, box):
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    xmin, ymin, xmax, ymax = box
    place = (ymin, xmin, ymax - ymin, xmax - xmin)
    expected = functional.resized_crop(Image.fromarray(image), *place, [32, 32], InterpolationMode(mode))
    found = cut_and_resize(image, box, 32, mode).permute(1, 2, 0).numpy()
    assert (
        np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    )  # PIL and PyTorch round their weights differently


def test_evaluation_shows_all_images_in_their_order(path):
    found = list(evaluation_batches(Beton(path), 40, 32, 2, CPU))
    assert torch.cat([labels for _, labels in found]).tolist() == list(range(90))
    beton = Beton(path)
    crop = cut_and_resize(beton.read(50), augment.center_boxes(beton.sizes[50:51])[0], 32)
    torch.testing.assert_close(found[1][0][10:11], augment.normalize(crop[None]))


def test_a_broken_image_is_named(path, tmp_path):
    write_beton(tmp_path / "x.beton", [np.zeros((30, 30, 3), np.uint8)] * 8, np.zeros(8), Encoding("jpg"))
    data = bytearray((tmp_path / "x.beton").read_bytes())
    start = [match.start() for match in re.finditer(b"\xff\xd8\xff", data)][3]  # where the fourth JPEG begins
    data[start : start + 30] = bytes(30)
    (tmp_path / "x.beton").write_bytes(data)
    with pytest.raises(InputError, match="x.beton: image 3 cannot be decoded"):
        batches(tmp_path / "x.beton", batch_size=8)


def test_too_few_images():
    class Two:
        def __len__(self):
            return 2

    with pytest.raises(ValueError, match="batch size is 4, but there are only 2"):
        NativeLoader(Two(), 2, VIEWS, 0, 1, CPU, world_size=2)


@pytest.mark.skipif(ffcv_is_installed(), reason="FFCV-SSL is installed")
def test_absent_ffcv_is_named(path):
    with pytest.raises(InputError, match="--data.loader ffcv: FFCV-SSL is not installed"):
        FfcvLoader(Beton(path), 4, VIEWS, 0, 1, CPU)


@pytest.mark.ffcv
@pytest.mark.skipif(not ffcv_is_installed(), reason="FFCV-SSL is not installed")
def test_ffcv_loader_shows_the_same_kind_of_views(path):
    loader = FfcvLoader(Beton(path), 20, VIEWS, 0, 2, CPU)
    found = list(loader.epoch(0, 32))
    assert len(found) == len(loader) == 4
    for views, labels in found:
        assert [view.shape for view in views] == [(20, 3, 32, 32)] * 2 and labels.shape == (20,)
        assert views[0].dtype == torch.float32 and abs(views[0].mean()) < 1
    assert len(set(torch.cat([labels for _, labels in found]).tolist())) == 80
    resumed = list(loader.epoch(0, 32, first_step=3))
    assert torch.equal(resumed[0][1], found[3][1])  # the order of the images is seeded, the views are not


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_shows_what_the_cpu_shows(path):
    loader = NativeLoader(Beton(path), 20, VIEWS, 5, 2, torch.device("cuda"))
    for (views, labels), (expected, expected_labels) in zip(loader.epoch(3, 32), batches(path)):
        assert torch.equal(labels.cpu(), expected_labels)
        for view, other in zip(views, expected):
            torch.testing.assert_close(view.cpu(), other, rtol=0, atol=1e-4)
