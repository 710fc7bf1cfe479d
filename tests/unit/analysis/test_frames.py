"""The numbers of the figures of classes, votes and utility, against planted truth."""

import json
from pathlib import Path

import numpy as np

from dejavu_utils.analysis import frames
from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import AttackedSet
from dejavu_utils.analysis.frames import (
    AttackScores,
    ScoredPoint,
    SweepPoint,
    class_scores,
    criteria_table,
    gap_table,
    grid_table,
    layer_utility_table,
    on_front,
    utility_table,
    vote_table,
)
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.online_probe import online_probes, read_probes
from dejavu_utils.analysis.results_json import ProbeAccuracies, ProbeResults, TopAccuracies

CLASSES, OF_CLASS, K = 24, 60, 20


def sets_of(memorized_of_class, k=K):
    """The target knows this fraction of each class's images; else both models predict at random."""
    rng, sets = np.random.default_rng(0), {}
    for name in "AB":
        labels = np.repeat(np.arange(CLASSES), OF_CLASS // 2)
        guesses = rng.integers(0, CLASSES, (2, len(labels), K))
        knows = rng.random(len(labels)) < np.asarray(memorized_of_class)[labels]
        guesses[0][knows] = labels[knows][:, None]
        target, reference = (mem.predict_from_neighbors(of_model, k, labels) for of_model in guesses)
        sets[name] = AttackedSet(np.arange(len(labels)), mem.DirectedAttack(target, reference, labels))
    return sets


def attack_of(memorized_of_class):
    return AttackScores.of(Path("attack"), "projector", sets_of(memorized_of_class), None)


def test_a_class_memorized_more_is_outside_of_chance():
    memorized = np.full(CLASSES, 0.1)
    memorized[7] = 0.9
    frame = class_scores(sets_of(memorized), 1)
    assert list(frame)[:7] == ["class", "n", "target", "reference", "score", "low", "high"]
    first = frame.iloc[0]
    assert first["class"] == 7 and first["n"] == OF_CLASS and first["low"] > first["chance_high"]
    others = frame.iloc[1:]
    assert not ((others["low"] > others["chance_high"]) | (others["high"] < others["chance_low"])).any()


def test_equal_classes_lie_inside_what_chance_spreads():
    frame = class_scores(sets_of(np.full(CLASSES, 0.4)), 1)
    inside = (frame["score"] >= frame["chance_low"]) & (frame["score"] <= frame["chance_high"])
    assert inside.mean() >= 0.8
    assert not ((frame["low"] > frame["chance_high"]) | (frame["high"] < frame["chance_low"])).any()


def test_votes_equal_the_single_runs(monkeypatch):
    memorized = np.full(CLASSES, 0.4)
    monkeypatch.setattr(frames, "read_attack", lambda folder, k: sets_of(memorized, k))
    by_votes = frames.attacks_by_votes(Path("attack"), K, sets_of(memorized, K))
    frame = vote_table(by_votes, 1).set_index("k")
    assert frame.index.tolist() == [1, 2, 5, 10, 20]
    for k in (2, 20):
        summary = mem.summarize([of_set.attack for of_set in sets_of(memorized, k).values()], 1)
        assert frame["target"][k] == summary.target.value and frame["score"][k] == summary.score.value


def point(model, epoch, memorized, probe):
    accuracies = TopAccuracies(Estimate(probe, probe, probe), Estimate(probe, probe, probe)) if probe else None
    probes = ProbeResults(ProbeAccuracies(accuracies, accuracies)) if probe else None
    return ScoredPoint(model, "epoch", epoch, epoch, 300, attack_of(np.full(CLASSES, memorized)), probes)


def test_utility_has_the_points_with_a_probe_and_their_front():
    assert on_front([0.1, 0.3, 0.2, 0.3], [0.5, 0.6, 0.4, 0.7]).tolist() == [1, 0, 0, 1]
    points = [point("vicreg", 50, 0.1, 0.5), point("vicreg", 100, 0.2, None), point("simclr", 50, 0.3, 0.7)]
    frame = utility_table([*points, point("byol", 50, 0.4, 0.6)], 1)
    assert frame[["model", "epoch", "probe_val", "on_front"]].values.tolist() == [
        ["vicreg", 50, 0.5, 1],
        ["simclr", 50, 0.7, 1],
        ["byol", 50, 0.6, 0],
    ]
    assert (
        frame["score"][1] == points[2].attack.levels[1][100].score.value
        and frame["layer"].tolist() == ["projector"] * 3
    )


def test_criteria_equal_single_runs_with_the_shared_point_drawn():
    points = [point("vicreg", 50, 0.1, None), point("vicreg", 100, 0.2, 0.5), point("simclr", 100, 0.3, 0.6)]
    frame = criteria_table(points, 300, 100, 1)
    first = ["loss", "epoch", "dataset", "layer", "target", "reference", "score", "probe_val"]
    assert list(frame.columns[:8]) == first and frame["drawn"].tolist() == [0, 1, 1]
    for row, one in zip(frame.to_dict("records"), points):
        summary = one.attack.levels[1][100]
        assert (row["target"], row["score"]) == (summary.target.value, summary.score.value)


def test_utility_of_layers_is_that_of_the_training_log(tmp_path):
    log = tmp_path / "log"
    rows = [{"epoch": 50, "top_1_val_layer0": 0.1}, {"epoch": 100}]
    for number in range(3):
        rows[1] |= {f"top_1_val_layer{number}": 0.5 - number / 10, f"top_5_val_layer{number}": 0.9}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    probes = read_probes(log, 100)
    assert [probes[layer][1] for layer in ("backbone", "projector.0", "projector.1", "projector")] == [
        0.5,
        0.4,
        0.3,
        0.3,
    ]
    settings = {f"model_{name}_pth": str(tmp_path / "model_ep100.pth") for name in "AB"}
    made_from = {"models": {name: {"epoch": 100} for name in "AB"}}
    assert online_probes(settings, made_from) == probes and online_probes(settings, None) == {}
    attack = attack_of(np.full(CLASSES, 0.4))
    layers = [SweepPoint("backbone", Path(), attack), SweepPoint("projector", Path(), attack, "public set")]
    frame = layer_utility_table(layers, probes, 1)
    assert frame["probe_val"].tolist() == [0.5, 0.3] and list(frame.columns[:3]) == ["layer", "probe_val", "score"]
    assert frame["differs"].tolist() == ["", "public set"]


def test_the_gap_names_what_differs_in_the_attack_or_the_probe():
    attack = attack_of(np.full(CLASSES, 0.4))
    probes = ProbeResults(ProbeAccuracies(*(TopAccuracies(*[Estimate(v, v, v)] * 2) for v in (0.8, 0.5))))
    attacks = [
        SweepPoint(50, Path(), attack),
        SweepPoint(100, Path(), attack, "public set"),
        SweepPoint(300, Path(), attack),
    ]
    of_probes = [SweepPoint(50, Path(), probes, "start_lr"), SweepPoint(100, Path(), probes, "start_lr")]
    frame = gap_table(attacks, of_probes, [100], "epoch", 1)
    assert frame["epoch"].tolist() == [50, 100] and frame["probe_gap"].tolist() == [0.8 - 0.5] * 2
    assert frame["differs"].tolist() == ["start_lr", "public set; start_lr"]
    assert frame["score"][0] == attack.levels[1][100].score.value


def test_the_grid_has_every_point():
    attack = attack_of(np.full(CLASSES, 0.4))
    points = [SweepPoint((n, epoch), Path(), attack) for n in (100, 300) for epoch in (50, 1000)]
    frame = grid_table(points, 1)
    assert frame[["dataset", "epoch"]].values.tolist() == [[100, 50], [100, 1000], [300, 50], [300, 1000]]
    assert frame["score"].tolist() == [attack.levels[1][100].score.value] * 4
