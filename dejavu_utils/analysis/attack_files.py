"""Result folders: reading what the attack and the linear probe write, whoever wrote it."""

import ast
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.naming import SETS, attack_path


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
