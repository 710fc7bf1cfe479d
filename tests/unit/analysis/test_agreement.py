"""Which points may be joined: equal contents count once, other settings are named."""

import json
import shutil
from dataclasses import replace

import numpy as np

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.agreement import distinct, foreign_probe
from dejavu_utils.analysis.one_model import ClassifierComparison, classifier_agreement, one_model_statistics
from dejavu_utils.data.provenance import ModelRecord, Provenance


def write(folder, seed=0, record=None):
    folder.mkdir(parents=True)
    np.save(folder / "A_attk_A_attk_idxs.npy", np.arange(3))
    np.save(folder / "A_attk_A_neighb_idxs.npy", np.random.default_rng(seed).integers(0, 99, (3, 4)))
    (folder / "results.json").write_text(json.dumps({"made_from": record and record.plain()}))
    return folder


def test_equal_contents_count_once(tmp_path):
    one, other = write(tmp_path / "r1"), write(tmp_path / "r2", seed=1)
    (tmp_path / "latest").symlink_to(other)
    for name in ("copy", "other order"):
        shutil.copytree(one, tmp_path / name)
    for path in (tmp_path / "other order").glob("*.npy"):
        np.save(path, np.load(path)[::-1])
    again = [tmp_path / "latest", one, tmp_path / "copy", tmp_path / "other order"]
    kept, notes = distinct([one, other, *again])
    assert kept == [one, other]
    assert [note.split(":")[0] for note in notes] == list(map(str, again))
    bare = [tmp_path / "without arrays", tmp_path / "empty"]
    for folder in bare:
        folder.mkdir()
    (bare[0] / "results.json").write_text("{}")
    assert distinct(bare) == (bare, [])


def test_runs_of_one_model_on_the_same_images_count_once(tmp_path):
    models = {name: ModelRecord(name * 64) for name in "abc"}
    record = Provenance(models={"A": models["a"], "B": models["b"]}, sets={"bbox_A_idx_pth": "0" * 64})
    changes = {
        "other votes": replace(record, votes={"k": 3}),
        "one model": replace(record, models={"A": models["a"], "B": models["c"]}),
        "other models": replace(record, models={"A": models["c"]}),
        "other images": replace(record, sets={"bbox_A_idx_pth": "1" * 64}),
    }
    folders = [write(tmp_path / "run", record=record)]
    folders += [write(tmp_path / name, seed, one) for seed, (name, one) in enumerate(changes.items(), 1)]
    kept, _ = distinct(folders)
    assert [folder.name for folder in kept] == ["run", "other models", "other images"]


def test_a_probe_of_another_model_is_told_apart(tmp_path):
    models = {name: ModelRecord(name.lower() * 64) for name in "AB"}
    attack = write(tmp_path / "attack", record=Provenance(models=models))
    probes = {
        "of B": Provenance(models={"model": models["B"]}),
        "of another": Provenance(models={"model": ModelRecord("c" * 64)}),
        "unknown": Provenance(models={"model": ModelRecord()}),
        "without a record": None,
    }
    foreign = [name for name, record in probes.items() if foreign_probe(attack, write(tmp_path / name, 0, record))]
    assert foreign == ["of another"]


def test_classifiers_agree_as_often_as_they_were_made_to():
    rng, n = np.random.default_rng(0), 5000
    labels = rng.integers(0, 4, n)
    first, third = rng.integers(0, 4, (2, n))
    second = np.where(rng.random(n) < 0.6, first, third)
    logits = [np.eye(4)[predicted] for predicted in (first, second, third)]
    target = mem.predict_from_neighbors(labels[:, None], 0, labels)
    compared = {name: ClassifierComparison.of(target, logits, labels) for name in "AB"}
    table = classifier_agreement(compared)
    assert table[["set", "first", "second"]].values.tolist()[:3] == [["A", 1, 2], ["A", 1, 3], ["A", 2, 3]]
    for row, truth in zip(table.to_dict("records"), (0.7, 0.25, 0.55)):
        assert row["agreement_low"] < truth < row["agreement_high"] and row["images"] == n
    figures = one_model_statistics(compared)
    assert figures["A"].reference_agreement == table["agreement"][:3].mean()
    assert figures["both"].reference_agreement is None
    alone = ClassifierComparison.of(target, logits[:1], labels)
    assert list(classifier_agreement({"A": alone})) == list(table) and not len(classifier_agreement({"A": alone}))
