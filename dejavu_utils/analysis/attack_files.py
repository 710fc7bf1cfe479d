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
    return digest(_load_rows(path, len(order))[order])


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


def read_attack(folder: Path, k_attk: int = 0) -> Sets:
    """{"A": AttackedSet, "B": AttackedSet} from the neighbor (or score) files of an attack, their
    rows in any order.

    k_attk: neighbors that vote, 0 for all. InputError names the file that is missing or does not
    fit the others.
    """
    return {attacked: _read_set(folder, attacked, k_attk) for attacked in SETS}


def _read_set(folder: Path, attacked: str, k_attk: int) -> AttackedSet:
    twin = TWIN[attacked]
    idxs, labels, target = _read_model(folder, attacked, attacked, k_attk)
    twin_idxs, twin_labels, reference = _read_model(folder, twin, attacked, k_attk)
    try:
        rows, twin_rows = mem.align_rows(idxs, twin_idxs)
    except ValueError as error:
        path = attack_path(folder, attacked, attacked, "attk_idxs")
        raise InputError(f"{path}: {error}; attack again") from None
    labels = labels[rows].astype(int)
    if not np.array_equal(labels, twin_labels[twin_rows]):
        path = attack_path(folder, twin, attacked, "labels")
        raise InputError(f"{path}: not the labels of the other model")
    attack = mem.DirectedAttack(target.chosen(rows), reference.chosen(twin_rows), labels)
    return AttackedSet(idxs[rows].astype(int), attack)


def _read_model(
    folder: Path, model: str, attacked: str, k_attk: int
) -> tuple[np.ndarray, np.ndarray, mem.Predictions]:
    """(image indices, labels, predictions) of a model on a set, in the order of the files."""
    idxs = load_array(attack_path(folder, model, attacked, "attk_idxs")).ravel()
    labels = _load_rows(attack_path(folder, model, attacked, "labels"), len(idxs)).ravel()
    path = attack_path(folder, model, attacked, "scores")
    if path.is_file():
        return idxs, labels, mem.predict_from_scores(_load_rows(path, len(idxs)), labels)
    path = attack_path(folder, model, attacked, "neighb_labels")
    neighbor_labels = _load_rows(path, len(idxs))
    kept = neighbor_labels.shape[1]
    if k_attk > kept:
        raise TooManyVotes(
            f"{path}: k_attk is {k_attk}, but the neighbor files hold only {kept} neighbors"
        )
    return idxs, labels, mem.predict_from_neighbors(neighbor_labels, k_attk, labels)


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


def _load_rows(path: Path, count: int) -> np.ndarray:
    array = load_array(path)
    if len(array) != count:
        raise InputError(
            f"{path}: has {len(array)} rows where the attacked indices are {count}; attack again"
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
        with_1 = set(table["path"][table[name] == 1])
        with_0 = set(table["path"][table[name] == 0])
    except FileNotFoundError:
        raise InputError(f"{flag} {path}: no such file") from None
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{flag} {path}: not a csv of path and a column of 0 and 1 ({one_line(error)})"
        ) from None
    return {name: with_1, f"not {name}": with_0}


def read_confidences(folder: Path) -> pd.DataFrame:
    """Memorization confidence of the memorized images of the test of one model, nats: columns set,
    index, published, corrected. Empty where attack_{A,B}.csv has none."""
    tables = []
    for name in SETS:
        path = folder / f"attack_{name}.csv"
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
