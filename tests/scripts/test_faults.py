"""Runs the rows of faults_table.py in this process (run_here): exit code and line are those that a shell would see."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fault_machinery import RESUMING, Payload
from faults_table import ANNOTATIONS, FAULTS, GOOD
from helpers import ROOT, draw_tree, flags, ok, read_json, run_example, run_here
from stages import SCRIPTS, call, plot_settings, settings

from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations, Unusable
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.beton import Beton
from dejavu_utils.imagenet import list_images


def contents(folder):
    """What a folder holds: {path: (size, time of the last change)}; {} if it is none."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def case(tiny, finished_stage, tmp_path):
    """case(command): a copy of data and of the command's finished output, which the command would write again."""
    made = []

    def prepare(command):
        data = shutil.copytree(tiny / "data", tmp_path / "data")
        out = tmp_path / "out"
        shutil.copytree(
            finished_stage(command),
            out,
            copy_function=lambda a, b: os.link(a, b) if a.endswith((".pth", ".pt", ".beton")) else shutil.copy2(a, b),
        )
        made.append(
            SimpleNamespace(
                command=command, data=data, out=out, flags=settings(command, data, tiny / "made", out), mounted=False
            )
        )
        return made[0]

    yield prepare
    if made and made[0].mounted:
        subprocess.run(["umount", made[0].out], check=True)


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row.command}: {row.name}".replace(" ", "_"))
def test_faults(case, row):
    it = case(row.command)
    if row.code == 0:  # it writes; not over what is there
        flag = SCRIPTS[row.command][1]
        it.flags[flag] = it.out.with_name("new") / Path(it.flags[flag]).relative_to(it.out)
    context = row.make(it) or contextlib.nullcontext()
    before = contents(it.out)
    with context:
        result = call(row.command, it.flags)
    text = result.stderr if row.code else result.stdout
    assert result.returncode == row.code, result.stderr
    assert "Traceback" not in result.stderr and not Payload.mark.exists()
    if row.code:
        (line,) = [line for line in text.splitlines() if "error: " in line]
        assert line == text.splitlines()[-1] and all(part in line for part in row.texts), line
        after = contents(it.out)
        # A resumed training writes its settings again, and drops the log's lines of epochs that it trains again.
        rewritten = {str(it.out / name) for name in ("params.json", "log") if row.make in RESUMING}
        rewritten.add(str(it.out / "crops.npz"))  # kept to save time; made again where the boxes are others
        assert all(after.get(path) == value for path, value in before.items() if path not in rewritten)
        assert not [path for path in contents(it.out) if ".tmp." in path]
    else:
        assert all(part in text for part in row.texts), text


@pytest.fixture(scope="module")
def annotated(tiny, tmp_path_factory):
    """(listing, folder of boxes, {name: index}, the attack's counts of A and B together, attacked indices)."""
    root = tmp_path_factory.mktemp("annotated")
    data, out = shutil.copytree(tiny / "data", root / "data"), root / "out"
    listing = list_images(data / "images")
    attacked = np.concatenate([np.load(data / f"index/4_per_class/bbox_{name}.npy") for name in "AB"])
    places = dict(zip(ANNOTATIONS, attacked.tolist()))
    assert len(places) == len(ANNOTATIONS) <= len(attacked)
    for name, place in places.items():
        path = data / "boxes/Annotation" / listing.classes[listing.labels[place]] / f"{listing.stem(place)}.xml"
        content, _ = ANNOTATIONS[name]
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ok(call("attack", settings("attack", data, tiny / "made", out)))
    counts = read_json(out / "results.json")["counts"]
    counted = {name: counts["A"][name] + counts["B"][name] for name in counts["A"]}
    found = np.concatenate([np.load(out / f"A_attk_{name}_attk_idxs.npy") for name in "AB"])
    return listing, data / "boxes", places, counted, found


@pytest.mark.parametrize("name", ANNOTATIONS, ids=lambda name: name.replace(" ", "_"))
def test_annotations_that_cannot_be_used_are_counted(annotated, name):
    listing, boxes, places, counted, found = annotated
    reason = ANNOTATIONS[name][1]
    assert (places[name] in found) == (reason is None)
    counts = take_crops(listing, [places[name]], CropRule(min_px=10), Annotations(boxes, listing)).counts
    assert counts["attacked" if reason is None else reason] == 1 == counts["images"]
    same = [other for other, (_, its_reason) in ANNOTATIONS.items() if its_reason == reason]
    if reason is not None:
        assert counted[reason] == len(same)


def test_nothing_outside_the_folders_is_read(annotated):
    """An image called like a path upwards has its annotation beside the others' all the same."""
    listing, boxes = annotated[:2]
    for stem in ("..", "...", "..%2f..%2fx"):
        listing.paths[0] = f"c0/{stem}.JPEG"
        (boxes / f"Annotation/c0/{stem}.xml").write_text(GOOD)
        with contextlib.suppress(Unusable):  # what begins with a dot is hidden
            path = Annotations(boxes, listing).path(0)
            assert Path(os.path.normpath(path)).parent == boxes / "Annotation/c0", path


def test_odd_names_work_through_all_stages(tmp_path, undrawn):
    """In folders, classes and images; $(...) and ; would run something if any stage gave a name to a shell."""
    root = tmp_path / 'it\'s a "näme"\n$(touch x); *'
    data = draw_tree(root / "data", classes=("a class; 'x'", 'b "é"\nc', "ü*$(touch y)"))
    made, out = root / "made", root / "out"
    ok(call("partition", settings("partition", data, made, data / "index")))
    folders = {"IMAGENET_DATASET_DIR": data / "images", "INDEX_FOLDER": data / "index", "BETONS_FOLDER": made}
    for script in ("gen_betons.sh", "gen_val_betons.sh"):
        ok(run_example(f"../{script}", **folders))
    assert len(Beton(made / "val.beton")) == 12
    for model in "AB":
        (made / f"4_per_class_{model}.beton").rename(made / "train.beton")
        ok(call("training", settings("training", data, made, out / model)))
        shutil.move(out / model / "model_ep2.pth", made / f"{model}.pth")
    for command in ("attack", "probe"):
        folder = out / {"attack": "NN_attk_simclr_4pc_2ep", "probe": "lp_simclr_4pc_2ep"}[command]
        ok(call(command, settings(command, data, made, folder)))
    probes = {"plot_lin_probe": 1, "lin_probe_folder_path": out}
    plot = plot_settings(out, out / "plot", **probes, k_neighb=7, dataset_sweep_epoch=2, attack_fname="out")
    ok(run_here("plot_quant_results.py", *flags(plot)))
    assert (out / "plot/attk_epochs_acc_top1.png").exists()
    assert not [path for path in (tmp_path, ROOT, Path.cwd()) for name in "xy" if (path / name).exists()]
