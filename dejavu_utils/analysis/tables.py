"""Statistics and tables of an attack: what its results.json and csv files hold."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import AttackedSet, read_attack
from dejavu_utils.analysis.intervals import wilson_interval
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import ImageListing

CONFIDENCES = (5, 20, 100)  # per cent of the examples, in results.json


def attack_statistics(sets: dict[str, AttackedSet]) -> dict:
    """{"both", "A", "B"} -> {"n", "top_1", "top_5", "vote_share"} from `read_attack`'s sets.

    n: attacked examples. top_1, top_5 -> {"accuracy": {pct: ...}, "shares": ...}. accuracy: for the 5, 20 and 100 %
    most confident examples, target and reference accuracy, their difference, the déjà vu score, and the reference's
    chance; shares: fractions of the outcomes, of all examples. vote_share: what the true label gets of the votes, under
    the target, the reference, and the margin between them. All but n and chance are {"value", "low", "high"} with a 95
    % interval; what no example tells is null. "both": mean of the two attacked sets.
    """
    groups = {"both": list(sets.values()), **{name: [attacked] for name, attacked in sets.items()}}
    found = {}
    for name, members in groups.items():
        attacks = [member.attack for member in members]
        votes = mem.summarize_votes(attacks) or {}
        found[name] = {
            "n": sum(len(attack.labels) for attack in attacks),
            **{f"top_{top_k}": _statistics(attacks, top_k) for top_k in TOP_KS},
            "vote_share": {what: _without_nan(estimate) for what, estimate in votes.items()},
        }
    return found


def part_statistics(folder: str | Path, k_attk: int, parts: dict[str, set[str]]) -> dict:
    """{part: `attack_statistics` of its images}, of parts of the images that an attack's folder is about.

    k_attk: neighbors that vote, 0 for as many as results.json says, or all. parts: paths of the images, as in
    attack_{A,B}.csv. InputError names what is missing, or a folder that holds no image of any part.
    """
    settings = read_statistics(folder, k_attk).get("settings", {})
    sets, paths = read_attack(folder, k_attk or settings.get("k_attk") or settings.get("k") or 0), {}
    for name, attacked in sets.items():
        table = Path(folder) / f"attack_{name}.csv"
        try:
            paths[name] = pd.read_csv(table, index_col="index")["path"].reindex(attacked.idxs)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{table}: was not written by label_inference_attack.py ({error!r})") from None
    found = {}
    for part, chosen in parts.items():
        of_part = {name: attacked.chosen(paths[name].isin(chosen).to_numpy()) for name, attacked in sets.items()}
        found[part] = attack_statistics(of_part)
    if parts and not any(of_part["both"]["n"] for of_part in found.values()):
        raise InputError(f"{folder}: none of the listed images was attacked; are their paths those of attack_A.csv?")
    return found


def _statistics(attacks, top_k):
    summaries = dict(zip(CONFIDENCES, mem.summarize_levels(attacks, top_k, CONFIDENCES)))
    return {
        "accuracy": {
            str(pct): {
                **{name: _without_nan(summary[name]) for name in ("target", "reference", "score")},
                "chance": _without_nan({"value": summary["chance"]})["value"],
            }
            for pct, summary in summaries.items()
        },
        "shares": {name: _without_nan(summaries[100][name]) for name in mem.OUTCOMES},
    }


def _without_nan(estimate):
    """JSON has no NaN: a figure of no example is null."""
    return {name: value if np.isfinite(value) else None for name, value in estimate.items()}


def example_table(attacked: AttackedSet, listing: ImageListing) -> pd.DataFrame:
    """One row per attacked example, as attack_{A,B}.csv holds them. attacked: AttackedSet. Returns a DataFrame."""
    attack = attacked.attack
    columns = {
        "index": attacked.idxs,
        "path": [listing.paths[index] for index in attacked.idxs],
        "label": attack.labels,
    }
    for name in ("target", "reference"):
        predictions = getattr(attack, name)
        columns[f"{name}_top1"] = predictions.top[:, 0]
        columns[f"{name}_confidence"] = predictions.confidence
        columns[f"{name}_vote_share"] = predictions.vote_share
        for top_k in TOP_KS:
            columns[f"{name}_top{top_k}_correct"] = predictions.correct(attack.labels, top_k).astype(int)
    shares = mem.outcomes_of(attack.target.correct(attack.labels, 1), attack.reference.correct(attack.labels, 1))
    columns["share"] = [mem.OUTCOMES[share] for share in shares]
    return pd.DataFrame(columns)


def directions(sets: dict[str, AttackedSet]) -> list[mem.DirectedAttack]:
    """The DirectedAttacks of `read_attack`'s sets, as memorization.summarize takes them."""
    return [attacked.attack for attacked in sets.values()]


def bounds(name: str, estimate: dict) -> dict:
    """{name_low, name_high} of an estimate {"value", "low", "high"}: columns of a table."""
    return {f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}


def ceiling(predictions: mem.Predictions, labels: np.ndarray) -> dict:
    """{"top_1": estimate, "top_5": estimate}: accuracy of the vote on whole public images, with Wilson intervals.

    It is what the same vote could at best make of a crop. predictions: memorization.Predictions, from the labels of
    each public image's neighbors without itself, or from its logits. labels: int (n,), of the public images.
    results.json holds it as ["ceiling"], by model.
    """
    return probe_estimates({top_k: int(predictions.correct(labels, top_k).sum()) for top_k in TOP_KS}, len(labels))


def read_statistics(folder: str | Path, k_attk: int = 0) -> dict:
    """`attack_statistics` of a folder: those of its results.json, or made from its neighbor (or score) files.

    InputError names what is missing or was not written by the attack.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        return attack_statistics(read_attack(folder, k_attk))
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["both"]["top_1"]["accuracy"]["100"]["score"]["value"]
        return results
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: was not written by label_inference_attack.py ({error!r})") from None


def accuracy_columns(summary: dict, top: dict | None = None) -> dict:
    """Columns of memorization.summarize's accuracies and score: {target,reference}_{acc,low,high}, score, score_{low,
    high}, chance; and ceiling, ceiling_{low,high} of the estimate `top`, if it is known."""
    columns = {f"{name}_acc": summary[name]["value"] for name in ("target", "reference")}
    columns["score"] = summary["score"]["value"]
    for name in ("target", "reference", "score"):
        columns.update(bounds(name, summary[name]))
    columns["chance"] = summary["chance"]
    return {**columns, **({"ceiling": top["value"], **bounds("ceiling", top)} if top else {})}


def class_table(sets: dict[str, AttackedSet], classes: Sequence[str]) -> pd.DataFrame:
    """One row per class, top-1, all sets together, as attack_classes.csv holds them: the largest score first.

    sets: from `read_attack`. classes: names. Columns: label, class, n, {target,reference}_{acc,low,high,confidence},
    score, score_low, score_high, chance: the fraction of the reference's guesses that name the class.
    """
    table = mem.summarize_classes(directions(sets), 1, len(classes))
    columns = {"label": np.arange(len(classes)), "class": classes, "n": table["n"], **accuracy_columns(table)}
    columns.update({name: table[name] for name in ("target_confidence", "reference_confidence")})
    table = pd.DataFrame(columns).sort_values(["score", "label"], ascending=[False, True], na_position="last")
    return table.set_index("label", drop=False).rename_axis(None)


def confidence_curve(
    sets: dict[str, AttackedSet], pct_confidences: Sequence[float] = tuple(range(1, 101)), ceiling: dict | None = None
) -> pd.DataFrame:
    """Accuracies of the most confident examples, as attack_confidence.csv holds them: a row per per cent and top_k.

    sets: from `read_attack`. ceiling: from `mean_ceiling`, if it is known. Columns: top_k, pct_confidence,
    {target,reference}_threshold (the least confidence among those examples, mean of the two sets), and those of
    `accuracy_columns`.
    """
    attacks = directions(sets)
    falling = {
        name: [np.sort(getattr(attack, name).confidence)[::-1] for attack in attacks]
        for name in ("target", "reference")
    }
    rows = []
    for top_k in TOP_KS:
        for pct, summary in zip(pct_confidences, mem.summarize_levels(attacks, top_k, pct_confidences)):
            row = {"top_k": top_k, "pct_confidence": pct}
            for name, sorted_confidences in falling.items():
                counts = [int(pct / 100 * len(confidences)) for confidences in sorted_confidences]
                least = [c[n - 1] if n else np.nan for c, n in zip(sorted_confidences, counts)]
                row[f"{name}_threshold"] = np.mean(least)
            rows.append({**row, **accuracy_columns(summary, ceiling and ceiling[f"top_{top_k}"])})
    return pd.DataFrame(rows)


def probe_estimates(correct: dict[int, int], n: int) -> dict:
    """{"top_1": estimate, "top_5": estimate} with Wilson intervals. correct: {1: count, 5: count} of n examples."""
    return {
        f"top_{top_k}": {"value": count / n, **dict(zip(("low", "high"), wilson_interval(count, n)))}
        for top_k, count in correct.items()
    }
