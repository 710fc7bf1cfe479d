"""Result folders: what the attack and the linear probe write, and reading it back, whoever wrote it."""

import ast
import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.points import SETS, attack_path
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.imagenet import ImageListing

TOP_KS = (1, 5)
CONFIDENCES = (5, 20, 100)  # per cent of the examples, in results.json


@dataclass
class AttackedSet:
    """One attacked set, in the order of the image indices. idxs: int64 (n,). attack: memorization.DirectedAttack."""

    idxs: np.ndarray
    attack: mem.DirectedAttack

    def chosen(self, rows: np.ndarray) -> "AttackedSet":
        """Some of its images. rows: bool (n,)."""
        attack = self.attack
        part = mem.DirectedAttack(attack.target.chosen(rows), attack.reference.chosen(rows), attack.labels[rows])
        return AttackedSet(self.idxs[rows], part)


def read_attack(folder: str | Path, k_attk: int = 0) -> dict[str, AttackedSet]:
    """{"A": AttackedSet, "B": AttackedSet} from the neighbor (or score) files of an attack, their rows in any order.

    k_attk: neighbors that vote, 0 for all. InputError names the file that is missing or does not fit the others.
    """
    return {attacked: _read_set(Path(folder), attacked, k_attk) for attacked in SETS}


def _read_set(folder, attacked, k_attk):
    target, reference = (attacked, "B" if attacked == "A" else "A")
    idxs = {model: load_array(attack_path(folder, model, attacked, "attk_idxs")).ravel() for model in SETS}
    try:
        rows = dict(zip((target, reference), mem.align_rows(idxs[target], idxs[reference])))
    except ValueError as error:
        raise InputError(f"{attack_path(folder, target, attacked, 'attk_idxs')}: {error}; attack again") from None
    labels, predictions = {}, {}
    for model in SETS:
        label_path = attack_path(folder, model, attacked, "labels")
        labels[model] = _fitting(load_array(label_path).ravel(), len(idxs[model]), label_path)[rows[model]]
        predictions[model] = _predictions(folder, model, attacked, rows[model], labels[model], k_attk)
    if not np.array_equal(labels[target], labels[reference]):
        raise InputError(f"{attack_path(folder, reference, attacked, 'labels')}: not the labels of the other model")
    attack = mem.DirectedAttack(predictions[target], predictions[reference], labels[target].astype(np.int64))
    return AttackedSet(idxs[target][rows[target]].astype(np.int64), attack)


def _predictions(folder, model, attacked, rows, labels, k_attk):
    path = attack_path(folder, model, attacked, "scores")
    if path.is_file():
        return mem.predict_from_scores(_fitting(load_array(path), len(rows), path)[rows], labels)
    path = attack_path(folder, model, attacked, "neighb_labels")
    neighbor_labels = _fitting(load_array(path), len(rows), path)[rows]
    try:
        return mem.predict_from_neighbors(neighbor_labels, k_attk, labels)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def load_array(path: Path) -> np.ndarray:
    """An array that the attack wrote; InputError names a file that is missing or cut off."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; label_inference_attack.py writes it")
    try:
        array = np.load(path)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive")
        return array
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not a complete .npy file ({error}); attack again") from None


def _fitting(array, n, path):
    if len(array) != n:
        raise InputError(f"{path}: has {len(array)} rows where the attacked indices are {n}; attack again")
    return array


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


def read_split(path: str | Path, flag: str) -> dict[str, set[str]]:
    """{"tied": paths of the images with a 1, "not tied": with a 0} of a csv with columns path and tied, say.

    InputError, which names the flag, for a file that is no such csv.
    """
    try:
        table = pd.read_csv(path)
        (name,) = table.columns.drop("path")
        if not table[name].isin((0, 1)).all():
            raise ValueError(f"{name} has other values")
        kinds = {kind: set(table.loc[table[name] == kind, "path"]) for kind in (1, 0)}
    except FileNotFoundError:
        raise InputError(f"{flag} {path}: no such file") from None
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{flag} {path}: not a csv of path and a column of 0 and 1 ({one_line(error)})") from None
    return {name: kinds[1], f"not {name}": kinds[0]}


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


def figure_in_words(figure: dict) -> str:
    """{"value", "low", "high"} as 0.400 [0.350, 0.450]."""
    if figure["value"] is None:
        return "none"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def chance_in_words(figures: dict) -> str:
    """ " (chance 0.200)" of a level's figures in results.json, nothing where they do not say."""
    return "" if figures.get("chance") is None else f" (chance {figures['chance']:.3f})"


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


def mean_ceiling(ceilings: dict[str, dict]) -> dict:
    """{"top_1": estimate, "top_5": estimate}, the mean over the models of results.json's {model: `ceiling`}.

    Low and high are means too: the models see the same public images.
    """
    return {
        f"top_{top_k}": {
            part: float(np.mean([of_model[f"top_{top_k}"][part] for of_model in ceilings.values()]))
            for part in ("value", "low", "high")
        }
        for top_k in TOP_KS
    }


def read_ceiling(folder: str | Path, k_attk: int = 0) -> dict | None:
    """`mean_ceiling` of an attack's folder, of this layer; None if its results.json, if there is one, does not say.

    k_attk: None too where other than so many neighbors have voted; 0 takes any.
    """
    try:
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        settings = results["settings"]
        if k_attk and settings["layer"] != "logits" and k_attk != (settings["k_attk"] or settings["k"]):
            return None
        return mean_ceiling(results["ceiling"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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
        f"top_{top_k}": {"value": count / n, **dict(zip(("low", "high"), mem.wilson_interval(count, n)))}
        for top_k, count in correct.items()
    }


def read_probe(folder: str | Path) -> dict:
    """{"train", "val"} -> {"top_1", "top_5"} -> {"value", "low", "high"} of a linear probe's folder.

    From results.json, or, in folders of others, from the dicts at the end of *_log.out: the last but one is validation,
    the last is training; those have no interval (NaN). InputError names a folder that holds neither.
    """
    folder = Path(folder)
    if (folder / "results.json").is_file():
        try:
            return json.loads((folder / "results.json").read_text(encoding="utf-8"))["final"]
        except (ValueError, KeyError) as error:
            raise InputError(f"{folder / 'results.json'}: not written by lin_probe.py ({error!r})") from None
    logs = sorted(folder.rglob("*_log.out"), key=lambda path: path.stat().st_mtime)
    for log in reversed(logs):
        dicts = [_accuracies(text) for text in re.findall(r"\{[^{}]*\}", log.read_text(errors="replace"))]
        dicts = [found for found in dicts if found]
        if len(dicts) >= 2:
            return {"val": dicts[-2], "train": dicts[-1]}
    raise InputError(f"{folder}: holds neither results.json nor a *_log.out that ends with accuracies; probe again")


def _accuracies(text):
    """{"top_1", "top_5"} of a printed dict such as {'top_1': np.float64(0.5), 'top_5': 0.8}, or None."""
    try:
        printed = ast.literal_eval(re.sub(r"\bnp\.float\d+\(([^()]*)\)", r"\1", text))
    except (ValueError, SyntaxError):
        return None
    if not isinstance(printed, dict):
        return None
    found = {}
    for name, value in printed.items():
        rank = re.search(r"(?<!\d)[15](?!\d)", str(name))
        if rank and isinstance(value, (int, float)):
            found[f"top_{rank[0]}"] = {"value": float(value), "low": np.nan, "high": np.nan}
    if len(found) < 2:
        return None
    if max(estimate["value"] for estimate in found.values()) > 1:  # per cent
        for estimate in found.values():
            estimate["value"] /= 100
    return found
