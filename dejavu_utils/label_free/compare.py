"""The two instruments on the same images: SSLMem and the déjà vu test's margin of votes, joined image by image."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis.memorization import OUTCOMES
from dejavu_utils.errors import InputError
from dejavu_utils.label_free import scores as sslmem
from dejavu_utils.naming import SETS

SCORE = "_sslmem"  # after a layer's name: the column of its scores


def scores(table: pd.DataFrame, layer: str) -> np.ndarray:
    """SSLMem of a layer, float64 (n,), of a table as sslmem_{set}.csv holds them."""
    return table[f"{layer}{SCORE}"].to_numpy(np.float64)


def read_margins(folder: str | Path, flag: str) -> dict[str, pd.DataFrame]:
    """{"A": DataFrame by image index, "B": ...} of an attack's folder: path, outcome, target_share, reference_share,
    margin.

    The shares are those of the votes that the true label got from either model, margin is target - reference.
    InputError, which names the flag, for a folder that holds none.
    """
    found = {}
    for name in SETS:
        path = Path(folder) / f"attack_{name}.csv"
        try:
            table = pd.read_csv(path).set_index("index")
            columns = {"path": table["path"], "outcome": table["share"]}
            columns |= {f"{model}_share": table[f"{model}_vote_share"] for model in ("target", "reference")}
            columns["margin"] = columns["target_share"] - columns["reference_share"]
            found[name] = pd.DataFrame(columns).dropna()
        except FileNotFoundError:
            raise InputError(f"{flag}: {path}: no such file; label_inference_attack.py writes it") from None
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{flag}: {path} is no table of an attack with votes ({error})") from None
    return found


def with_margins(table: pd.DataFrame, margins: pd.DataFrame) -> pd.DataFrame:
    """A table of sslmem_{set}.csv with columns attack_{outcome,target_share,reference_share,margin} of `read_margins`,
    empty where an image was not attacked."""
    return _joined(table, margins.rename(columns=lambda column: column if column == "path" else f"attack_{column}"))


def about_other_images(paths: dict[int, str], table: pd.DataFrame) -> bool:
    """Is a table of `read_margins` or `read_scores` about other images than these? paths: {image index: path}."""
    there = [index for index in table.index if index in paths]
    return not there or any(table["path"][index] != paths[index] for index in there)


def read_scores(folder: str | Path) -> dict[str, pd.DataFrame]:
    """{"A": DataFrame of path and {layer}_sslmem by image index, "B": ...} of a folder of sslmem.py.

    InputError for a folder that holds none.
    """
    found = {}
    for name in SETS:
        path = Path(folder) / f"sslmem_{name}.csv"
        try:
            table = pd.read_csv(path).set_index("index")
            found[name] = table[["path", *(column for column in table if column.endswith(SCORE))]]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: is no table of sslmem.py ({error})") from None
    return found


def read_directions(folder: str | Path) -> dict[str, dict]:
    """{layer: {"value", "low", "high"}}, mean SSLMem of both directions, of a folder of sslmem.py.

    InputError for a folder that holds none.
    """
    path = Path(folder) / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["both"]
        return {layer: {part: of[part] for part in ("value", "low", "high")} for layer, of in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: was not written by sslmem.py ({error!r})") from None


def outcome_means(found: dict[str, pd.DataFrame], sets: dict, top_k: int) -> pd.DataFrame:
    """Mean SSLMem of the images of each outcome: one row per layer and outcome, with value, low, high and n.

    found: of `read_scores`. sets: {"A", "B"} -> results.AttackedSet. An outcome of no image has NaN.
    """
    parts = []
    for name, attacked in sets.items():
        attack = attacked.attack
        parts.append(found[name].reindex(attacked.idxs).assign(outcome=attack.outcomes(top_k)))
    table, rows = pd.concat(parts), []
    for column in (column for column in table if column.endswith(SCORE)):
        for number, outcome in enumerate(OUTCOMES):
            values = table[column][table["outcome"] == number].dropna().to_numpy()
            row = {"layer": column.removesuffix(SCORE), "outcome": outcome, **sslmem.mean_estimate(values)}
            rows.append({**row, "n": len(values)})
    return pd.DataFrame(rows)


def _joined(table: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    return table.join(others.drop(columns="path"), on="index")


def margins_and_scores(table: pd.DataFrame, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """(margins, SSLMem of a layer), float (m,) each, of the images of a table of `with_margins` that were attacked."""
    attacked = table[table["attack_margin"].notna()]
    return attacked["attack_margin"].to_numpy(), scores(attacked, layer)


def correlations(table: pd.DataFrame, layers: list[str]) -> dict:
    """{layer: rank correlations of SSLMem with what the attack found, and "outcomes": mean SSLMem of each}.

    table: of `with_margins`. Correlations: "overall" and "within_classes", both with the margin of votes, and
    "target_share" and "reference_share", with its two parts: a margin can also go with SSLMem because the image is hard
    for the reference. Estimates as sslmem.rank_correlation and sslmem.mean_estimate give them, the latter with n, the
    number of images.
    """
    attacked, found = table[table["attack_margin"].notna()], {}
    margin, labels = attacked["attack_margin"].to_numpy(), attacked["label"].to_numpy()
    for layer in layers:
        of_layer = scores(attacked, layer)
        of_outcome = {outcome: of_layer[attacked["attack_outcome"] == outcome] for outcome in OUTCOMES}
        found[layer] = {
            "overall": sslmem.rank_correlation(of_layer, margin),
            "within_classes": sslmem.rank_correlation(of_layer, margin, labels),
            **{
                share: sslmem.rank_correlation(of_layer, attacked[f"attack_{share}"].to_numpy())
                for share in ("target_share", "reference_share")
            },
            "outcomes": {
                outcome: {**sslmem.mean_estimate(values), "n": len(values)} for outcome, values in of_outcome.items()
            },
        }
    return found
