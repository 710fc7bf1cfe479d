"""Every reader of a record notices another model, image folder, index file and setting, but for what it ignores."""

import re
from dataclasses import replace

import pytest
from helpers import ROOT

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
    "epochs": {"model"},
    "datasets": {"model", "index file"},
    "params": {"model"},
    "model.arch": {"model", "architecture"},
    "layers": set(),
    "corner_crop_frac": {"model", "crop rule"},
    "runs": {"model", "index file", "public set"},
    "one_model": {"index file"},
    "table": {"model", "index file"},
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
