"""The files of an attack's folder beside results.json: neighbors or scores, read whoever wrote
them."""

import hashlib
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import digest
from dejavu_utils.naming import SETS, TWIN, attack_path


def file_digests(folder: Path) -> dict[str, str]:
    """{file name: SHA-256} of neighbors, scores and tables in an attack's folder:
    AttackResults.files."""
    paths = [*sorted(folder.glob("[AB]_attk_[AB]_*.npy")), *sorted(folder.glob("attack_[AB].csv"))]
    return {path.name: file_digest(path) for path in paths}


def file_digest(path: Path) -> str:
    """SHA-256 of a file in an attack's folder; of an array in the order of the image indices,
    whatever its own is."""
    return _file_digest(path, path.stat().st_mtime_ns)


@cache
def _file_digest(path: Path, changed: int) -> str:
    if path.suffix != ".npy":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    order = np.argsort(load_array(path.with_name(f"{path.name[:8]}_attk_idxs.npy")).ravel())
    array = load_array(path)
    return digest(_fitting(array, order, path)[order])


CLASSIFIERS = "attack_classifiers.csv"


class TooManyVotes(InputError):
    """More neighbors are to vote than a file holds."""


@dataclass
class AttackedSet:
    """One attacked set, in the order of the image indices. idxs: int64 (n,)."""

    idxs: np.ndarray
    attack: mem.DirectedAttack

    def chosen(self, rows: np.ndarray) -> "AttackedSet":
        """Some of its images. rows: bool (n,)."""
        return AttackedSet(self.idxs[rows], self.attack.chosen(rows))


Sets = dict[str, AttackedSet]  # by name, A and B


def read_attack(folder: str | Path, k_attk: int = 0) -> Sets:
    """{"A": AttackedSet, "B": AttackedSet} from the neighbor (or score) files of an attack, their
    rows in any order.

    k_attk: neighbors that vote, 0 for all. InputError names the file that is missing or does not
    fit the others.
    """
    return {attacked: _read_set(Path(folder), attacked, k_attk) for attacked in SETS}


def _read_set(folder: Path, attacked: str, k_attk: int) -> AttackedSet:
    target, reference = attacked, TWIN[attacked]
    idxs, labels, predictions = {}, {}, {}
    for model in SETS:
        idxs[model] = load_array(attack_path(folder, model, attacked, "attk_idxs")).ravel()
        path = attack_path(folder, model, attacked, "labels")
        labels[model] = _fitting(load_array(path).ravel(), idxs[model], path)
        predictions[model] = _predictions(
            folder, model, attacked, idxs[model], labels[model], k_attk
        )
    try:
        rows, reference_rows = mem.align_rows(idxs[target], idxs[reference])
    except ValueError as error:
        raise InputError(
            f"{attack_path(folder, target, attacked, 'attk_idxs')}: {error}; attack again"
        ) from None
    in_order = labels[target][rows]
    if not np.array_equal(in_order, labels[reference][reference_rows]):
        raise InputError(
            f"{attack_path(folder, reference, attacked, 'labels')}: not the labels of the other model"
        )
    of_target = predictions[target].chosen(rows)
    of_reference = predictions[reference].chosen(reference_rows)
    attack = mem.DirectedAttack(of_target, of_reference, in_order.astype(np.int64))
    return AttackedSet(idxs[target][rows].astype(np.int64), attack)


def _predictions(
    folder: Path, model: str, attacked: str, idxs: np.ndarray, labels: np.ndarray, k_attk: int
) -> mem.Predictions:
    """In the order of the files."""
    path = attack_path(folder, model, attacked, "scores")
    if path.is_file():
        return mem.predict_from_scores(_fitting(load_array(path), idxs, path), labels)
    path = attack_path(folder, model, attacked, "neighb_labels")
    neighbor_labels = _fitting(load_array(path), idxs, path)
    kept = neighbor_labels.shape[1]
    if k_attk > kept:
        raise TooManyVotes(
            f"{path}: k_attk is {k_attk}, but the neighbor files hold only {kept} neighbors"
        )
    return mem.predict_from_neighbors(neighbor_labels, k_attk, labels)


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


def _fitting(array: np.ndarray, idxs: np.ndarray, path: Path) -> np.ndarray:
    if len(array) != len(idxs):
        raise InputError(
            f"{path}: has {len(array)} rows where the attacked indices are {len(idxs)}; attack again"
        )
    return array


def read_split(path: str | Path, flag: str) -> dict[str, set[str]]:
    """{"tied": paths of the images with a 1, "not tied": with a 0} of a csv with columns path and
    tied, say.

    InputError, which names the flag, for a file that is no such csv.
    """
    try:
        table = pd.read_csv(path)
        (name,) = table.columns.drop("path")
        if not table[name].isin((0, 1)).all():
            raise ValueError(f"{name} has other values")
        if table["path"].duplicated().any():
            raise ValueError(f"{table['path'][table['path'].duplicated()].iloc[0]} is listed twice")
        kinds = {kind: set(table.loc[table[name] == kind, "path"]) for kind in (1, 0)}
    except FileNotFoundError:
        raise InputError(f"{flag} {path}: no such file") from None
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{flag} {path}: not a csv of path and a column of 0 and 1 ({one_line(error)})"
        ) from None
    return {name: kinds[1], f"not {name}": kinds[0]}


def read_confidences(folder: str | Path) -> pd.DataFrame:
    """Memorization confidence of the memorized images of the test of one model, nats: columns set,
    index, published, corrected. Empty where attack_{A,B}.csv has none."""
    tables = []
    for name in SETS:
        path = Path(folder) / f"attack_{name}.csv"
        table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
        if "memorization_confidence" not in table:
            return pd.DataFrame()
        memorized = table[table["share"] == "memorized"].assign(set=name)
        names = {
            "memorization_confidence": "published",
            "memorization_confidence_corrected": "corrected",
        }
        tables.append(memorized.rename(columns=names)[["set", "index", "published", "corrected"]])
    return pd.concat(tables, ignore_index=True)
