"""Points of a sweep: read once, compared with the first; captions say what was probed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from dejavu_utils.analysis import frames
from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.analysis.frames import accuracy_table, partition_table
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.points import GRID, Series, compared, what_is_probed
from dejavu_utils.analysis.results_json import ProbeAccuracies, ProbeResults, TopAccuracies
from dejavu_utils.analysis.tables import attack_statistics
from dejavu_utils.data.provenance import ModelRecord, Provenance
from dejavu_utils.typed_json import to_json

POINT = Path(__file__).parents[2] / "data/attack/NN_attk_vicreg_300pc_50ep"


def write_points(folder, records):
    """An attack for each {name of a point: record}."""
    statistics = to_json(attack_statistics(read_attack(POINT)))
    for name, record in records.items():
        point = shutil.copytree(POINT, folder / f"NN_attk_vicreg_{name}")
        results = {**statistics, "settings": {"layer": "projector", "k": 100}, "made_from": record.plain()}
        (point / "results.json").write_text(json.dumps(results))


def test_points_made_otherwise_are_named_in_the_tables(tmp_path, capsys):
    record = Provenance(models={"A": ModelRecord("a" * 64)}, public="0" * 64)
    others = {"300pc_100ep": record, "300pc_250ep": replace(record, public="1" * 64)}
    write_points(tmp_path, {"300pc_50ep": record, "300pc_050ep": record, **others})  # all of equal neighbors
    series = Series("vicreg", tmp_path, None, 300, 50, 100, [20.0, 100.0])
    sweeps = series.read_attacks()
    assert list(sweeps) == ["epoch", "dataset"] and GRID not in sweeps
    words = "public set (11111111 here, 00000000 there)"
    accuracies = accuracy_table(sweeps["epoch"], series.pct_confidences, "epoch", 1)
    copy = f"results of {tmp_path / 'NN_attk_vicreg_300pc_050ep'}"
    assert accuracies["differs"].tolist() == [""] * 2 + [copy] * 2 + [words] * 2
    assert accuracies["epoch"].tolist() == [50, 50, 100, 100, 250, 250]  # 50 and 050 are one point
    assert partition_table(sweeps["epoch"], "epoch", 5)["differs"].tolist() == ["", copy, words]
    assert [point.differs for point in compared(series.scored(sweeps, {}))] == ["", copy, words]
    printed = capsys.readouterr().out
    assert printed.count("250ep differs from") == 1  # said once, however many figures show it
    assert printed.count("_50ep: holds the same results as") == 1


def test_a_folder_named_for_another_epoch_is_marked(tmp_path, capsys):
    of = {
        epoch: Provenance(models={"A": ModelRecord(epoch=epoch), "reference": ModelRecord(epoch=7)})
        for epoch in (50, 100)
    }
    write_points(
        tmp_path, {"300pc_50ep": of[50], "300pc_100ep": of[50], "100pc_50ep": of[100], "300pc_200ep": Provenance()}
    )
    sweeps = Series("vicreg", tmp_path, None, 300, 50, 100, [100.0]).read_attacks()
    epochs = accuracy_table(sweeps["epoch"], [100.0], "epoch", 1)
    assert epochs["epoch"].tolist() == [50, 100, 200]
    assert epochs["differs"].tolist()[:2] == ["", "epoch of the model (50, not 100)"]
    assert sweeps["dataset"][0].differs == "epoch of the model (100, not 50)"
    assert "300pc_100ep is named for another epoch" in capsys.readouterr().out


def test_each_file_is_read_once(tmp_path, monkeypatch):
    write_points(tmp_path, {f"{n}pc_{epoch}ep": Provenance() for n in (100, 300) for epoch in (50, 100)})
    read = []

    def counted(folder, k):
        read.append(folder.name)
        return read_attack(folder, k)

    monkeypatch.setattr(frames, "read_attack", counted)
    sweeps = Series("vicreg", tmp_path, None, 300, 50, 100, [100.0]).read_attacks()
    assert {name: len(points) for name, points in sweeps.items()} == {"epoch": 2, "dataset": 2, GRID: 4}
    assert sorted(read) == sorted(path.name for path in tmp_path.iterdir())  # the point of three sweeps, too


def test_what_is_probed():
    unknown = Estimate(0.5, np.nan, np.nan)
    final = ProbeAccuracies(TopAccuracies(unknown, unknown), TopAccuracies(unknown, unknown))
    ours = ProbeResults(final, counts={"train": 250, "val": 60}, settings={"layer": "backbone"})
    assert what_is_probed([ours, ours]) == "linear probe, backbone, n(train) = 250, n(val) = 60"
    more = replace(ours, counts={"train": 500, "val": 60})
    assert what_is_probed([ours, more]) == "linear probe, backbone, n(train) = 250 to 500, n(val) = 60"
    assert what_is_probed([ProbeResults(final)]) == "linear probe, layer unknown, n(train) = unknown, n(val) = unknown"
