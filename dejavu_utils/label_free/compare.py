"""The two instruments on the same images: SSLMem and the déjà vu test's margin of votes, joined
image by image."""

from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.memorization import OUTCOMES
from dejavu_utils.analysis.results_json import RESULTS
from dejavu_utils.errors import InputError
from dejavu_utils.files import load_json
from dejavu_utils.label_free.scores import CountedEstimate, mean_estimate, rank_correlation
from dejavu_utils.naming import SETS
from dejavu_utils.typed_json import from_json

SCORE = "_sslmem"  # after a layer's name: the column of its scores


def scores(table: pd.DataFrame, layer: str) -> np.ndarray:
    """SSLMem of a layer, float64 (n,), of a table as sslmem_{set}.csv holds them."""
    return table[f"{layer}{SCORE}"].to_numpy(float)


def read_margins(folder: Path, flag: str) -> dict[str, pd.DataFrame]:
    """{"A": DataFrame by image index, "B": ...} of an attack's folder: path, attack_{outcome,
    target_share, reference_share, margin}.

    The shares are those of the votes that the true label got from either model, margin is target -
    reference. InputError, which names the flag, for a folder that holds none.
    """
    margins = {}
    for name in SETS:
        path = folder / f"attack_{name}.csv"
        try:
            table = pd.read_csv(path).set_index("index")
            target = table["target_vote_share"]
            reference = table["reference_vote_share"]
            columns = {
                "path": table["path"],
                "attack_outcome": table["share"],
                "attack_target_share": target,
                "attack_reference_share": reference,
                "attack_margin": target - reference,
            }
            margins[name] = pd.DataFrame(columns).dropna()
        except FileNotFoundError:
            raise InputError(
                f"{flag}: {path}: no such file; label_inference_attack.py writes it"
            ) from None
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{flag}: {path} is no table of an attack with votes ({error})"
            ) from None
    return margins


def with_margins(table: pd.DataFrame, margins: pd.DataFrame) -> pd.DataFrame:
    """A table of sslmem_{set}.csv with the columns of `read_margins`, empty where an image was not
    attacked."""
    return table.join(margins.drop(columns="path"), on="index")


def about_other_images(paths: dict[int, str], table: pd.DataFrame) -> bool:
    """Is a table of `read_margins` or `read_scores` about other images than these? paths: {image
    index: path}."""
    there = table["path"][table.index.isin(list(paths))]
    return not len(there) or bool((there != there.index.map(paths)).any())


def read_scores(folder: Path) -> dict[str, pd.DataFrame]:
    """{"A": DataFrame of path and {layer}_sslmem by image index, "B": ...} of a folder of
    sslmem.py.

    InputError for a folder that holds none.
    """
    tables = {}
    for name in SETS:
        path = folder / f"sslmem_{name}.csv"
        try:
            table = pd.read_csv(path).set_index("index")
            tables[name] = table[["path", *score_columns(table)]]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: is no table of sslmem.py ({error})") from None
    return tables


def score_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table if column.endswith(SCORE)]


def read_directions(folder: Path) -> dict[str, Estimate]:
    """{layer: mean SSLMem of both directions} of a folder of sslmem.py.

    InputError for a folder that holds none.
    """
    path = folder / RESULTS
    try:
        return from_json(dict[str, Estimate], load_json(path)["both"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: was not written by sslmem.py ({error!r})") from None


def outcome_means(tables: dict[str, pd.DataFrame], sets: dict, top_k: int) -> pd.DataFrame:
    """Mean SSLMem of the images of each outcome: one row per layer and outcome, with value, low,
    high and n.

    tables: of `read_scores`. sets: {"A", "B"} -> attack_files.AttackedSet. An outcome of no image has
    NaN.
    """
    parts = []
    for name, attacked in sets.items():
        of_set = tables[name].reindex(attacked.idxs)
        outcomes = np.array(OUTCOMES)[attacked.attack.outcomes(top_k)]
        parts.append(of_set.assign(outcome=outcomes))
    table = pd.concat(parts)
    rows = []
    for column in score_columns(table):
        means = _means_by_outcome(table[column], table["outcome"])
        for outcome, mean in means.items():
            layer = column.removesuffix(SCORE)
            rows.append({"layer": layer, "outcome": outcome, **vars(mean)})
    return pd.DataFrame(rows)


def _means_by_outcome(scores: pd.Series, outcomes: pd.Series) -> dict[str, CountedEstimate]:
    means = {}
    for outcome in OUTCOMES:
        values = scores[outcomes == outcome].dropna().to_numpy()
        means[outcome] = CountedEstimate(**vars(mean_estimate(values)), n=len(values))
    return means


def attacked_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Those rows of a table of `with_margins` whose image was attacked."""
    return table[table["attack_margin"].notna()]


def correlations(table: pd.DataFrame, layers: list[str]) -> dict[str, dict]:
    """{layer: rank correlations of SSLMem with what the attack found, and "outcomes": mean SSLMem
    of each}.

    table: of `with_margins`. Correlations: "overall" and "within_classes", both with the margin of
    votes, and "target_share" and "reference_share", with its two parts: a margin can also go with
    SSLMem because the image is hard for the reference.
    """
    attacked = attacked_rows(table)
    labels = attacked["label"].to_numpy()
    margin = attacked["attack_margin"].to_numpy()
    target_share = attacked["attack_target_share"].to_numpy()
    reference_share = attacked["attack_reference_share"].to_numpy()
    of_layers = {}
    for layer in layers:
        of_layer = scores(attacked, layer)
        outcomes = _means_by_outcome(attacked[f"{layer}{SCORE}"], attacked["attack_outcome"])
        of_layers[layer] = {
            "overall": rank_correlation(of_layer, margin),
            "within_classes": rank_correlation(of_layer, margin, labels),
            "target_share": rank_correlation(of_layer, target_share),
            "reference_share": rank_correlation(of_layer, reference_share),
            "outcomes": outcomes,
        }
    return of_layers
