"""Every reader of a record notices another model, image folder, index file and setting, but for what it ignores."""

import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT, assert_one_line_error, flags, ok, run_here, save_untrained
from stages import call, plot_settings, settings

from dejavu_utils.analysis.results_json import read_results
from dejavu_utils.data.provenance import READERS, ModelRecord, Provenance, first_difference_in_words

MODEL = ModelRecord("a" * 64, "b" * 64, 3, "resnet18", "short side 36")
RECORD = Provenance(
    models={"A": MODEL},
    images="c" * 64,
    sets={"bbox_A_idx_pth": "d" * 64},
    crops={"digest": "e" * 64, "rule": "background", "margin": 0.0, "least_side": 10},
    public="f" * 64,
    beton="0" * 64,
    votes={"k": 7, "k_attk": 5, "layer": "projector"},
    precision="fp32",
    resolution=32,
    files="1" * 64,
    settings={"seed": 0},
)
OTHER = "9" * 64
CHANGES = {
    "model": {"models": {"A": replace(MODEL, weights=OTHER)}},
    "epoch": {"models": {"A": replace(MODEL, epoch=9)}},
    "architecture": {"models": {"A": replace(MODEL, arch="resnet50")}},
    "image folder": {"images": OTHER},
    "index file": {"sets": {"bbox_A_idx_pth": OTHER}},
    "public set": {"public": OTHER},
    "beton": {"beton": OTHER},
    "crop rule": {"crops": {**RECORD.crops, "margin": 4.0}},
    "votes": {"votes": {**RECORD.votes, "k_attk": 3}},
    "resolution": {"resolution": 64},
    "setting": {"settings": {"seed": 1}},
}
# Reader -> what it does not notice: a figure's axis, the models of its points, what an encoder does not depend on.
NOT_NOTICED = {
    "training": set(),
    "rcdm": set(),
    "probe": set(),
    "shards": set(),
    "crops": set(),
    "reconstruction": {"index file", "public set", "crop rule", "votes", "resolution", "setting"},
    "attack_dir": {"public set", "crop rule", "votes", "resolution", "setting"},
    "epochs": {"epoch", "model"},
    "datasets": {"epoch", "model", "index file"},
    "params": {"epoch", "model"},
    "model.arch": {"epoch", "model", "architecture"},
    "layers": set(),
    "corner_crop_frac": {"epoch", "model", "crop rule"},
    "runs": {"model", "index file", "public set"},
    "one_model": {"index file"},
    "table": {"epoch", "model", "index file"},
}


def test_every_reader_has_a_row():
    assert set(NOT_NOTICED) == set(READERS)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_reader_notices(reader, change):
    other = replace(RECORD, **CHANGES[change])
    assert first_difference_in_words(reader, RECORD, RECORD) is None
    noticed = first_difference_in_words(reader, other, RECORD) is not None
    assert noticed == (change not in NOT_NOTICED[reader])


def test_readers_that_scripts_name_are_in_the_table():
    paths = [*ROOT.glob("*.py"), *(ROOT / "bash_examples").glob("*.py"), *(ROOT / "dejavu_utils").rglob("*.py")]
    call = re.compile(r'(?:check_same|first_difference_in_words|disagreements)\(\s*"(\w+)"')
    named = {name for path in paths for name in call.findall(path.read_text(encoding="utf-8"))}
    assert {"rcdm", "probe", "reconstruction", "attack_dir", "crops"} <= named <= set(READERS)


@pytest.fixture(scope="module")
def mixed(tiny, finished_stage, tmp_path_factory):
    """mixed(file): an attack's folder in which this file is that of another attack, by a copy."""
    root = tmp_path_factory.mktemp("mixed")
    save_untrained(root / "A.pth", seed=7)
    values = settings("attack", tiny / "data", tiny / "made", root / "other")
    ok(call("attack", values | {"k_attk": 2, "model_A_pth": root / "A.pth"}))

    def copy(name):
        folder = shutil.copytree(finished_stage("attack"), root / name / "NN_attk_simclr_4pc_1ep")
        shutil.copy(root / "other" / name, folder)
        return folder

    return copy


@pytest.mark.parametrize("name", ["A_attk_A_neighb_labels.npy", "attack_A.csv", "results.json"])
def test_files_of_two_attacks_in_one_folder_are_noticed(tiny, mixed, name):
    folder = mixed(name)
    plot = plot_settings(folder.parent, folder.parent / "plot")
    sslmem = settings("sslmem", tiny / "data", tiny / "made", folder.parent / "sslmem")
    for script, words in (
        ("plot_quant_results.py", flags(plot)),
        ("bash_examples/summary_table.py", ["--save_path", folder.parent / "x.csv", f"x={folder}"]),
        ("sslmem.py", flags({**sslmem, "attack_dir": folder})),
    ):
        assert_one_line_error(run_here(script, *words), f"{folder / 'results.json'}: ", "two attacks are mixed")


def test_the_order_of_rows_is_no_difference(finished_stage, tmp_path):
    folder = shutil.copytree(finished_stage("attack"), tmp_path / "attack")
    for path in folder.glob("A_attk_A_*.npy"):
        np.save(path, np.load(path)[::-1])
    assert read_results(folder) == read_results(finished_stage("attack"))


INPUTS = {
    "attack": ("label_inference_attack.py", "bbox_A_idx_pth", "model_A_pth"),
    "probe": ("lin_probe.py", "val_idx_pth", "model_pth"),
    "sslmem": ("sslmem.py", "model_B_pth"),
}


@pytest.mark.parametrize("command", INPUTS)
def test_finished_results_stand_for_the_same_contents_alone(tiny, tmp_path, command):
    script, *changed = INPUTS[command]
    values = settings(command, tiny / "data", tiny / "made", tmp_path / "out")
    for flag in changed:
        values[flag] = shutil.copy(values[flag], tmp_path / flag)

    def said():
        return ok(run_here(script, *flags(values))).stdout

    said()
    results = tmp_path / "out/results.json"
    made = results.read_bytes()
    os.utime(values[flag])
    assert "there already, made from the same models and sets" in said() and results.read_bytes() == made
    save_untrained(values[flag], seed=8)
    assert "there already" not in said() and results.read_bytes() != made
