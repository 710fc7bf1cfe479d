"""lin_probe.py as a user runs it."""

import itertools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    assert_one_line_error,
    draw_tree,
    flags,
    in_folder,
    load,
    ok,
    options,
    read_json,
    rows_of,
    run_here,
    run_script,
    save_sets,
    save_untrained,
)

import lin_probe
from dejavu_utils.analysis.intervals import wilson_interval
from dejavu_utils.checkpoint import save_checkpoint
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.imagenet import list_images
from dejavu_utils.runtime import processes
from dejavu_utils.runtime.distributed import LateSums
from dejavu_utils.runtime.launch import Resources
from dejavu_utils.runtime.processes import StopSignal


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").symlink_to(tiny / "data/images")
    save_sets(folder, 12, train=(0, 9), val=(9, 12))
    return folder, save_untrained(folder / "model.pth")


SMALL = options("--local 1 --resolution 32 --batch_size 10 --start_lr 0.1 --end_lr 0.01 --epochs 3 --num_workers 0")


def settings_of(data, output_dir, **changes):
    folder = data[0]
    return {
        **SMALL,
        "output_dir": output_dir,
        "model_pth": folder / "model.pth",
        "train_idx_pth": folder / "train.npy",
        "val_idx_pth": folder / "val.npy",
        "imgnet_train_pth": folder / "images",
        **changes,
    }


def probe(data, output_dir, **changes):
    settings = settings_of(data, output_dir, **changes)
    return run_here("lin_probe.py", *flags(settings), PATH=str(Path(sys.executable).parent))  # without srun


def given(settings):
    """What `lin_probe.probe` is called with."""
    args = lin_probe.parse_args(flags(settings))
    return lin_probe.Job.of(args), Resources.of(args, args.num_workers)


def figures(folder):
    """What must be equal where only the way there was another."""
    results = read_json(folder / "results.json")
    return {name: results[name] for name in ("final", "epochs", "counts")}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = ok(probe(data, folder))
    return folder, result.stdout


def test_sums_that_come_a_step_later_give_the_same(data, undisturbed, tmp_path, monkeypatch):
    """As on a GPU; with a save after every step."""

    class Late(LateSums):
        def __init__(self, device):
            super().__init__(device)
            self.late = True

    monkeypatch.setattr(processes, "LateSums", Late)
    for name, seconds in (("late", 600), ("saved", -1)):
        monkeypatch.setattr(lin_probe, "_SECONDS_BETWEEN_SAVES", seconds)
        ok(probe(data, tmp_path / name))
        assert figures(tmp_path / name) == figures(undisturbed[0])


def test_results_and_closing_words(undisturbed):
    folder, output = undisturbed
    assert [path.name for path in folder.iterdir()] == ["results.json"]
    results = read_json(folder / "results.json")
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
    validation, training = output.splitlines()[-2:]
    assert f"top-1 {results['final']['val']['top_1']['value']:.3f}" in validation
    assert f"top-1 {results['final']['train']['top_1']['value']:.3f}" in training


@pytest.mark.kills
def test_workers_and_processes_change_nothing(data, tmp_path, undisturbed):
    ok(probe(data, tmp_path / "workers", num_workers=2))
    assert figures(tmp_path / "workers") == figures(undisturbed[0])
    # 27 images in batches of 10: the last batch has 7, shared as 3 and 4.
    result = ok(run_script("lin_probe.py", *flags(settings_of(data, tmp_path / "two", ngpus=0, world_size=2))))
    assert "2 process(es)" in result.stdout and result.stdout.count("epoch 3/3") == 1
    for found, expected in zip(figures(tmp_path / "two")["epochs"], figures(undisturbed[0])["epochs"]):
        assert found == pytest.approx(expected, rel=1e-4)
    for name, changes in (("seed", {"seed": 1}), ("projector", {"use_projector": ""})):
        lin_probe.probe(given(settings_of(data, tmp_path / name, **changes)))
        assert figures(tmp_path / name)["epochs"] != figures(undisturbed[0])["epochs"]
    assert read_json(tmp_path / "projector/results.json")["settings"]["layer"] == "projector"


class Asked(StopSignal):
    """Asked to stop when it is looked at for the n-th time."""

    def __init__(self, n):
        self.left = n

    @property
    def received(self):
        self.left -= 1
        return signal.SIGUSR2 if self.left <= 0 else None

    def leave(self, text):
        sys.exit(128)


def test_stopped_anywhere_and_continued_equals_undisturbed(data, tmp_path, monkeypatch, undisturbed):
    """Also within the passes that only embed: of the validation images first, of the training images last."""
    stops = 0
    for n in itertools.cycle((2, 3, 5)):
        monkeypatch.setattr(lin_probe, "StopSignal", lambda n=n: Asked(n))
        try:
            lin_probe.probe(given(settings_of(data, tmp_path)))
            break
        except SystemExit:
            stops += 1
            assert stops < 100 and (tmp_path / "probe.pth").is_file()
            # one look a batch of validation images comes first: fewer would never reach the training
    assert stops >= 4 and figures(tmp_path) == figures(undisturbed[0])
    assert not (tmp_path / "probe.pth").exists()


def test_learns_what_is_linear(data, tmp_path):
    """Images of one color a class: any encoder tells them apart, so the probe must reach 1."""
    from PIL import Image

    for label, color in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
        for rank in range(12):
            Image.new("RGB", (40, 40), color).save(in_folder(tmp_path / f"images/c{label}/{rank:02d}.png"))
    ok(probe(data, tmp_path / "out", imgnet_train_pth=tmp_path / "images", epochs=20, start_lr=1))
    final = read_json(tmp_path / "out/results.json")["final"]
    assert final["train"]["top_1"]["value"] == final["val"]["top_1"]["value"] == 1


@rows_of(
    "changes, texts",
    """
    --model_pth ABSENT.pth     -> --model_pth ABSENT.pth: no such file
    --train_idx_pth ABSENT.npy -> --train_idx_pth ABSENT.npy: no such file
    --loss supervised          -> --loss supervised ;; model.pth holds
    --epochs 0                 -> --epochs
    --local 0                  -> srun ;; --local 1
    --start_lr 1e+38           -> a smaller --start_lr ;; the loss is
""",
)
def test_bad_input_is_one_line(data, tmp_path, changes, texts):
    assert_one_line_error(probe(data, tmp_path, **changes), *texts)
    assert not (tmp_path / "results.json").exists()


def test_unreadable_images_are_named_or_left_out(data, tmp_path):
    folder = draw_tree(tmp_path / "tree")
    listing = list_images(folder / "images")
    broken = [np.load(data[0] / "train.npy")[3], np.load(data[0] / "val.npy")[5]]
    for index in broken:
        listing.path(index).write_bytes(listing.path(index).read_bytes()[:300])
    changes = {"imgnet_train_pth": folder / "images", "epochs": 1}
    assert_one_line_error(probe(data, tmp_path / "out", **changes), listing.paths[broken[1]], "--skip_unreadable")
    result = ok(probe(data, tmp_path / "out", skip_unreadable="", **changes))
    assert "1 of 27 images cannot be read" in result.stdout
    results = read_json(tmp_path / "out/results.json")
    assert results["counts"] == {"train": 26, "val": 8, "classes": 3}


def test_a_stop_while_images_are_looked_at_is_left_to_submitit(data, tmp_path, monkeypatch):
    class Queued(Exception):
        pass

    def queue_again(*_):
        raise Queued

    previous = signal.signal(signal.SIGUSR2, queue_again)  # as in one of its jobs
    monkeypatch.setattr(lin_probe, "without_unreadable", lambda *_: os.kill(os.getpid(), signal.SIGUSR2))
    try:
        with pytest.raises(Queued):
            lin_probe.probe(given(settings_of(data, tmp_path, skip_unreadable="")))
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_validation_images_that_were_trained_on_are_counted(data, tmp_path):
    folder = data[0]
    result = run_here("lin_probe.py", *flags(settings_of(data, tmp_path, val_idx_pth=folder / "train.npy")))
    assert_one_line_error(result, "--val_idx_pth", "all of its 27 images are among those of --train_idx_pth")
    listing, encoder = list_images(folder / "images"), load(folder / "model.pth")
    val, train = np.load(folder / "val.npy"), np.load(folder / "train.npy")
    seen = TrainingImages(val[:3], listing.fingerprint["sha256"])
    save_checkpoint(tmp_path / "seen.pth", {**encoder, "train_images": seen.plain()})
    np.save(tmp_path / "val.npy", np.concatenate([val, train[:2]]))
    changes = {"model_pth": tmp_path / "seen.pth", "val_idx_pth": tmp_path / "val.npy", "epochs": 1}
    result = ok(run_here("lin_probe.py", *flags(settings_of(data, tmp_path, **changes))))
    assert "2 of its 11 images are among those of --train_idx_pth" in result.stdout
    assert "seen.pth was trained on 3 of its 11 images" in result.stdout
    np.save(tmp_path / "train.npy", train[listing.labels[train] != 2])
    changes = {"train_idx_pth": tmp_path / "train.npy", "epochs": 1}
    printed = ok(run_here("lin_probe.py", *flags(settings_of(data, tmp_path / "other", **changes)))).stdout
    assert "3 of its 9 images are of 1 classes without an image in --train_idx_pth (c2)" in printed
