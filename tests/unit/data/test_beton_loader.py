"""Training batches: the same for any number of processes and resumptions; crops against torchvision's."""

import gc
import multiprocessing
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from helpers import noise, refused

from dejavu_utils.data import augment
from dejavu_utils.data import beton_loader as loaders
from dejavu_utils.data.beton import Beton, Encoding, write_beton
from dejavu_utils.data.beton_loader import Batching, EvaluationLoader, NativeLoader, cut_and_resize
from dejavu_utils.data.ffcv import FfcvLoader, ffcv_is_installed
from dejavu_utils.randomness import epoch_order, uniforms

CPU = torch.device("cpu")
VIEWS = [augment.FIRST_VIEW, augment.SECOND_VIEW]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    images = noise((40 + i % 7, 60 - i % 5) for i in range(90))
    path = tmp_path_factory.mktemp("betons") / "train.beton"
    write_beton(path, images, np.arange(90))
    return path


def batches(path, batch_size=20, views=VIEWS, seed=5, num_workers=0, epoch=3, resolution=32, first_step=0, **changes):
    beton = Beton(path, in_memory=changes.pop("in_memory", False))
    loader = NativeLoader(beton, Batching(batch_size, num_workers, CPU, **changes), views, seed)
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


@pytest.fixture(params=["for a CPU", "for a GPU"])
def way(request, monkeypatch):
    """Both ways of reading; that for a GPU, on a CPU here, augments in this process."""
    if request.param == "for a GPU":
        monkeypatch.setattr(loaders, "_for_a_cpu", loaders._for_a_gpu)


@pytest.mark.parametrize("changes", [{"num_workers": 1}, {"num_workers": 2}, {"num_workers": 2, "in_memory": True}])
def test_workers_and_memory_change_nothing(path, changes, way):
    assert_same(batches(path), batches(path, **changes))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_for_a_gpu_is_what_is_for_a_cpu(path, num_workers, monkeypatch):
    # More images than a process reads at once.
    options = {"views": [*VIEWS, augment.SMALL_VIEW], "batch_size": 80, "num_workers": num_workers}
    expected = batches(path, **options)
    monkeypatch.setattr(loaders, "_for_a_cpu", loaders._for_a_gpu)
    assert_same(expected, batches(path, **options))


def test_the_number_of_threads_changes_nothing(path):
    options = {"batch_size": 40, "resolution": 208}  # pixels that PyTorch would divide among threads
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(batches(path, **options))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert_same(*found)


def test_epochs_run_on_and_any_place_can_be_entered(path, way):
    loader = NativeLoader(Beton(path), Batching(20, 2, CPU), VIEWS, 5)
    for epoch, resolution, first_step in [(0, 32, 0), (1, 32, 0), (2, 48, 1), (3, 48, 0), (3, 48, 3), (0, 32, 2)]:
        found = list(loader.epoch(epoch, resolution, first_step))
        assert_same(found, batches(path, epoch=epoch, resolution=resolution, first_step=first_step))
    for _ in loader.epoch(7, 32):
        break  # left in the midst
    assert_same(list(loader.epoch(7, 32)), batches(path, epoch=7))


@pytest.mark.parametrize("workers, ahead", [(2, 2), (3, 1), (1, 1), (0, 1)])
def test_a_slow_consumer_keeps_its_batches(path, monkeypatch, workers, ahead):
    """The memory that processes write into is used again, at any depth of reading ahead."""
    monkeypatch.setattr(loaders, "workers_that_fit_shared_memory", lambda *_: (workers, ahead))
    loader = NativeLoader(Beton(path), Batching(36, 3, CPU), VIEWS, 5)  # pieces of 16, 16 and 4 images
    kept = []
    for epoch in range(6):
        for batch in loader.epoch(epoch, 16):
            time.sleep(0.02)  # time to write too far
            kept.append(batch)
        if epoch % 2:  # of some batches parts alone are kept
            kept[-2:] = [([view[3:] for view in views], labels[3:]) for views, labels in kept[-2:]]
    expected = [batches(path, 36, epoch=epoch, resolution=16) for epoch in range(6)]
    for of_epoch in expected[1::2]:
        of_epoch[-2:] = [([view[3:] for view in views], labels[3:]) for views, labels in of_epoch[-2:]]
    assert_same(kept, [batch for of_epoch in expected for batch in of_epoch])


def test_a_loader_that_is_dropped_ends_at_once(path, way):
    """Not when the garbage collector comes by, which may be during a thread's start."""
    gc.collect()
    gc.disable()
    try:
        for begin in (training, evaluation):
            before = len(multiprocessing.active_children())
            loader, batches = begin(path)
            next(batches)
            assert len(multiprocessing.active_children()) == before + 2
            del loader, batches
            assert len(multiprocessing.active_children()) == before
    finally:
        gc.enable()


def training(path):
    loader = NativeLoader(Beton(path), Batching(20, 2, CPU), VIEWS, 5)
    return loader, loader.epoch(0, 32)


def evaluation(path):
    loader = EvaluationLoader(Beton(path), Batching(20, 2, CPU), 32)
    return loader, iter(loader)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_leave_workers_loading(path, signum):
    """As from SLURM, which sends them to all processes of a job, or by Ctrl-C: the step can be ended and saved."""
    others = set(multiprocessing.active_children())
    loader = NativeLoader(Beton(path), Batching(20, 2, CPU), VIEWS, 5)
    found = []
    for batch in loader.epoch(3, 32):
        workers = set(multiprocessing.active_children()) - others
        subprocess.run(["kill", f"-{int(signum)}", *(str(worker.pid) for worker in workers)], check=True)
        found.append(batch)
    assert_same(found, batches(path))
    loader.close()
    assert set(multiprocessing.active_children()) == others


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
        crops = torch.cat([cut_and_resize(beton.read(i), box, 32) for i, box in zip(order, boxes)])
        expected = augment.apply_batched(crops, augment.draw_parameters(draws, view))
        torch.testing.assert_close(views[number], expected, rtol=0, atol=1e-5)


def test_evaluation_shows_all_images_in_their_order_each_time(path, way):
    loader = EvaluationLoader(Beton(path), Batching(40, 2, CPU), 32)
    assert loader.in_all == 3
    beton = Beton(path)
    crop = cut_and_resize(beton.read(50), augment.center_boxes(beton.sizes[50:51])[0], 32)
    for left_early in (False, False, True, False):
        found = []
        for batch in loader:
            found.append(batch)
            if left_early:
                break
        if not left_early:
            assert torch.cat([labels for _, labels in found]).tolist() == list(range(90))
            torch.testing.assert_close(found[1][0][10:11], augment.normalize(crop))


def test_processes_share_the_evaluation(path):
    parts = [EvaluationLoader(Beton(path), Batching(20, 0, CPU, rank, 3), 32) for rank in range(3)]
    assert [part.in_all for part in parts] == [1, 1, 1]
    shares = [[labels.tolist() for _, labels in part] for part in parts]
    batch = [list(range(first, min(first + 20, 90))) for first in range(0, 90, 20)]
    assert shares == [[batch[0], batch[3]], [batch[1], batch[4]], [batch[2]]]
    assert not list(EvaluationLoader(Beton(path), Batching(50, 0, CPU, rank=2, world_size=3), 32))


def test_a_broken_image_is_named(path, tmp_path):
    write_beton(tmp_path / "x.beton", [np.zeros((30, 30, 3), np.uint8)] * 8, np.zeros(8), Encoding("jpg"))
    data = bytearray((tmp_path / "x.beton").read_bytes())
    start = [match.start() for match in re.finditer(b"\xff\xd8\xff", data)][3]  # where the fourth JPEG begins
    data[start : start + 30] = bytes(30)
    (tmp_path / "x.beton").write_bytes(data)
    with refused("x.beton: image 3 cannot be decoded"):
        batches(tmp_path / "x.beton", batch_size=8, num_workers=2)


@pytest.mark.skipif(ffcv_is_installed(), reason="FFCV-SSL is installed")
def test_absent_ffcv_is_named(path):
    with refused("--data.loader ffcv: FFCV-SSL is not installed"):
        FfcvLoader(Beton(path), Batching(4, 1, CPU), VIEWS, 0)


@pytest.mark.ffcv
@pytest.mark.skipif(not ffcv_is_installed(), reason="FFCV-SSL is not installed")
def test_ffcv_loader_shows_the_same_kind_of_views(path):
    loader = FfcvLoader(Beton(path), Batching(20, 2, CPU), VIEWS, 0)
    found = list(loader.epoch(0, 32))
    assert len(found) == len(loader) == 4
    for views, labels in found:
        assert [view.shape for view in views] == [(20, 3, 32, 32)] * 2 and labels.shape == (20,)
        assert views[0].dtype == torch.float32 and abs(views[0].mean()) < 1
    assert len(set(torch.cat([labels for _, labels in found]).tolist())) == 80
    resumed = list(loader.epoch(0, 32, first_step=3))
    assert torch.equal(resumed[0][1], found[3][1])  # the order of the images is seeded, the views are not
