"""Statistics and tables of an attack: what its results.json and csv files hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import AttackedSet, Sets, read_attack
from dejavu_utils.analysis.intervals import Estimate, bounds, estimate_columns, proportion
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.results_json import (
    AttackResults,
    LevelResults,
    SetResults,
    TopAccuracies,
    TopResults,
    read_results,
)
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing

CONFIDENCES = (5, 20, 100)  # per cent of the examples, in results.json
MODELS = ("target", "reference")


def attack_statistics(sets: Sets) -> AttackResults:
    """The figures of `read_attack`'s sets, of each and of both."""
    return AttackResults(
        both=set_statistics(list(sets.values())),
        A=set_statistics([sets["A"]]),
        B=set_statistics([sets["B"]]),
    )


def set_statistics(members: Sequence[AttackedSet]) -> SetResults:
    """The figures of attacked sets, averaged over them."""
    attacks = [member.attack for member in members]
    votes = mem.summarize_votes(attacks)
    return SetResults(
        n=sum(len(attack.labels) for attack in attacks),
        top_1=_top_results(attacks, 1),
        top_5=_top_results(attacks, 5),
        vote_share=vars(votes) if votes else {},
    )


def _top_results(attacks: list[mem.DirectedAttack], top_k: int) -> TopResults:
    summaries = mem.summarize_levels(attacks, top_k, CONFIDENCES)
    accuracy = {}
    for pct, summary in zip(CONFIDENCES, summaries):
        accuracy[str(pct)] = LevelResults(
            summary.target, summary.reference, summary.score, summary.chance
        )
    return TopResults(accuracy, summaries[-1].outcomes)


def part_statistics(
    folder: Path, k_attk: int, parts: dict[str, set[str]]
) -> dict[str, AttackResults]:
    """{part: `attack_statistics` of its images}, of parts of the images that an attack's folder is
    about.

    k_attk: neighbors that vote, 0 for as many as results.json says, or all. parts: paths of the
    images, as in attack_{A,B}.csv. InputError names what is missing, or a folder that holds no
    image of any part.
    """
    results = read_results(folder)
    sets = read_attack(folder, k_attk or (results.k_attk if results else 0))
    paths = {}
    for name, attacked in sets.items():
        table = folder / f"attack_{name}.csv"
        try:
            paths[name] = pd.read_csv(table, index_col="index")["path"].reindex(attacked.idxs)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{table}: was not written by label_inference_attack.py ({error!r})"
            ) from None
    statistics = {}
    for part, chosen in parts.items():
        of_part = {}
        for name, attacked in sets.items():
            of_part[name] = attacked.chosen(paths[name].isin(chosen).to_numpy())
        statistics[part] = attack_statistics(of_part)
    if parts and not any(of_part.both.n for of_part in statistics.values()):
        raise InputError(
            f"{folder}: none of the listed images was attacked; are their paths those of attack_A.csv?"
        )
    return statistics


def read_statistics(folder: Path, k_attk: int) -> AttackResults:
    """The figures of an attack's folder: its results.json, or made from its neighbor (or score)
    files.

    k_attk: neighbors that vote, 0 for as many as results.json says, or all. InputError names what
    is missing or was not written by the attack.
    """
    results = read_results(folder)
    if results and k_attk in (0, results.k_attk):
        return results
    return attack_statistics(read_attack(folder, k_attk))


def example_table(attacked: AttackedSet, listing: ImageListing) -> pd.DataFrame:
    """One row per attacked example, as attack_{A,B}.csv holds them."""
    attack = attacked.attack
    columns = {
        "index": attacked.idxs,
        "path": [listing.text(index) for index in attacked.idxs],
        "label": attack.labels,
    }
    for name in MODELS:
        predictions = getattr(attack, name)
        columns[f"{name}_top1"] = predictions.top[:, 0]
        columns[f"{name}_confidence"] = predictions.confidence
        columns[f"{name}_vote_share"] = predictions.vote_share
        for top_k in TOP_KS:
            correct = predictions.correct(attack.labels, top_k)
            columns[f"{name}_top{top_k}_correct"] = correct.astype(int)
    columns["share"] = [mem.OUTCOMES[code] for code in attack.outcomes(1)]
    return pd.DataFrame(columns)


def directions(sets: Sets) -> list[mem.DirectedAttack]:
    """The DirectedAttacks of `read_attack`'s sets, as memorization.summarize takes them."""
    return [attacked.attack for attacked in sets.values()]


def ceiling(predictions: mem.Predictions, labels: np.ndarray) -> TopAccuracies:
    """Accuracy of the vote on whole public images, with Wilson intervals: what it could at best
    make of a crop.

    predictions: from the labels of each public image's neighbors without itself, or from its
    logits. labels: int (n,), of the public images.
    """
    correct = {top_k: int(predictions.correct(labels, top_k).sum()) for top_k in TOP_KS}
    return top_accuracies(correct, len(labels))


def top_accuracies(correct: dict[int, int], n: int) -> TopAccuracies:
    """With Wilson intervals. correct: {1: count, 5: count} of n examples."""
    return TopAccuracies(proportion(correct[1], n), proportion(correct[5], n))


def accuracy_columns(
    summary: mem.Summary | mem.ClassSummary, top: Estimate | None = None
) -> dict[str, Any]:
    """Columns of accuracies and score: {target,reference}_{acc,low,high}, score, score_{low,high},
    chance; and ceiling, ceiling_{low,high} of the estimate `top`, if it is known."""
    columns = {
        "target_acc": summary.target.value,
        "reference_acc": summary.reference.value,
        "score": summary.score.value,
        **bounds("target", summary.target),
        **bounds("reference", summary.reference),
        **bounds("score", summary.score),
        "chance": summary.chance,
    }
    if top:
        columns |= estimate_columns("ceiling", top)
    return columns


def class_table(sets: Sets, classes: Sequence[str]) -> pd.DataFrame:
    """One row per class, top-1, all sets together, as attack_classes.csv holds them: the largest
    score first.

    sets: from `read_attack`. classes: names. Columns: label, class, n,
    {target,reference}_{acc,low,high,confidence}, score, score_low, score_high, chance: the fraction
    of the reference's predictions that are the class.
    """
    summary = mem.summarize_classes(directions(sets), 1, len(classes))
    columns = {
        "label": np.arange(len(classes)),
        "class": classes,
        "n": summary.n,
        **accuracy_columns(summary),
        "target_confidence": summary.target_confidence,
        "reference_confidence": summary.reference_confidence,
    }
    table = pd.DataFrame(columns)
    table = table.sort_values(["score", "label"], ascending=[False, True], na_position="last")
    return table.set_index("label", drop=False).rename_axis(None)


def confidence_curve(
    sets: Sets,
    pct_confidences: Sequence[float] = tuple(range(1, 101)),
    ceiling: TopAccuracies | None = None,
) -> pd.DataFrame:
    """Accuracies of the most confident examples, as attack_confidence.csv holds them: a row per per
    cent and top_k.

    sets: from `read_attack`. ceiling: mean of the models, if it is known. Columns: top_k,
    pct_confidence, {target,reference}_threshold (the least confidence among those examples, mean of
    the two sets), and those of `accuracy_columns`.
    """
    attacks = directions(sets)
    ranked = {}  # each model's confidences on each set, the most confident first
    for name in MODELS:
        ranked[name] = [np.sort(getattr(attack, name).confidence)[::-1] for attack in attacks]
    rows = []
    for top_k in TOP_KS:
        top = ceiling.of(top_k) if ceiling else None
        summaries = mem.summarize_levels(attacks, top_k, pct_confidences)
        for pct, summary in zip(pct_confidences, summaries):
            row = {"top_k": top_k, "pct_confidence": pct}
            for name in MODELS:
                thresholds = [_threshold(of_set, pct) for of_set in ranked[name]]
                row[f"{name}_threshold"] = float(np.mean(thresholds))
            rows.append({**row, **accuracy_columns(summary, top)})
    return pd.DataFrame(rows)


def _threshold(ranked: np.ndarray, pct: float) -> float:
    """The least of the pct % largest confidences; NaN for none."""
    count = int(pct / 100 * len(ranked))
    return ranked[count - 1] if count else np.nan
