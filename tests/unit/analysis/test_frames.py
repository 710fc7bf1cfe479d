"""The numbers of the figures of classes, votes and utility, against planted truth."""

import numpy as np
import pandas as pd
import pytest

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import AttackedSet
from dejavu_utils.analysis.frames import Attack, class_frames, on_front, utility_frames, vote_frames

CLASSES, OF_CLASS, K = 24, 60, 20


def attack_of(memorized_of_class, k=K):
    """The target knows this fraction of each class's images; else both models guess."""
    rng, sets = np.random.default_rng(0), {}
    for name in "AB":
        labels = np.repeat(np.arange(CLASSES), OF_CLASS // 2)
        guesses = rng.integers(0, CLASSES, (2, len(labels), K))
        knows = rng.random(len(labels)) < np.asarray(memorized_of_class)[labels]
        guesses[0][knows] = labels[knows][:, None]
        target, reference = (mem.predict_from_neighbors(of_model, k, labels) for of_model in guesses)
        sets[name] = AttackedSet(np.arange(len(labels)), mem.DirectedAttack(target, reference, labels))
    return Attack("projector", sets, None)


def test_a_class_that_is_memorized_more_is_outside_of_what_chance_spreads():
    memorized = np.full(CLASSES, 0.1)
    memorized[7] = 0.9
    frames = {top_k: frame for _, _, frame, top_k in class_frames(attack_of(memorized))}
    assert list(frames[1])[:7] == ["class", "n", "target", "reference", "score", "low", "high"]
    first = frames[1].iloc[0]
    assert first["class"] == 7 and first["n"] == OF_CLASS and first["low"] > first["chance_high"]
    others = frames[1].iloc[1:]
    assert not ((others["low"] > others["chance_high"]) | (others["high"] < others["chance_low"])).any()


def test_equal_classes_lie_inside_what_chance_spreads():
    frame = next(iter(class_frames(attack_of(np.full(CLASSES, 0.4)))))[2]
    inside = (frame["score"] >= frame["chance_low"]) & (frame["score"] <= frame["chance_high"])
    assert inside.mean() >= 0.8
    assert not ((frame["low"] > frame["chance_high"]) | (frame["high"] < frame["chance_low"])).any()


def test_votes_equal_the_single_runs():
    memorized = np.full(CLASSES, 0.4)
    frame = next(iter(vote_frames(lambda k: attack_of(memorized, k), K)))[2].set_index("k")
    assert frame.index.tolist() == [1, 2, 5, 10, 20]
    for k in (2, 20):
        summary = mem.summarize([of_set.attack for of_set in attack_of(memorized, k).sets.values()], 1)
        assert frame["target"][k] == summary.target.value and frame["score"][k] == summary.score.value


def test_utility_has_the_points_with_a_probe_and_their_front():
    assert on_front([0.1, 0.3, 0.2, 0.3], [0.5, 0.6, 0.4, 0.7]).tolist() == [1, 0, 0, 1]
    scores = pd.DataFrame({"epoch": [50, 100, 300], "pct_confidence": 100, "score": [0.1, 0.2, 0.3]})
    scores = scores.assign(score_low=0.0, score_high=0.4)
    probes = pd.DataFrame({"epoch": [50, 300], "val_acc": [0.5, 0.7]})
    scored = {"epoch": {("acc_", top_k): scores for top_k in (1, 5)}}
    probed = {"epoch": {("", top_k): probes for top_k in (1, 5)}}
    _, _, frame, _ = next(iter(utility_frames(scored, probed, "vicreg", "projector", 1000)))
    assert frame[["epoch", "score", "probe_val", "on_front"]].values.tolist() == [[50, 0.1, 0.5, 1], [300, 0.3, 0.7, 1]]
    assert frame["layer"].tolist() == ["projector"] * 2 and frame["probe_val"].tolist() == pytest.approx([0.5, 0.7])
