"""Membership inference by label-free scores: set A against set B, of the same draw."""

import numpy as np
import pandas as pd

from dejavu_utils.analysis.membership import Membership, membership

Scores = dict[str, tuple[np.ndarray, np.ndarray]]  # {name: (of members, of non-members)}


def member_scores(tables: dict[str, pd.DataFrame], layer: str) -> Scores:
    """Of model A and of model B minus the mean pair distance, and SSLMem of the twins, for model A.
    Where both controls are given, model A's on public against unseen images, too: neither was
    trained on, so that the AUC is 0.5.

    tables: as sslmem_{set}.csv hold them. On set B the target is model B.
    """

    def column(name: str, what: str) -> np.ndarray:
        return tables[name][f"{layer}_{what}"].to_numpy(np.float64)

    scores = {
        "model A": (-column("A", "target"), -column("B", "reference")),
        "model B": (-column("B", "target"), -column("A", "reference")),
        "twins": (column("A", "sslmem"), -column("B", "sslmem")),
    }
    if "public" in tables and "unseen" in tables:
        scores["public against unseen"] = -column("public", "target"), -column("unseen", "target")
    return {name: pair for name, pair in scores.items() if len(pair[0]) and len(pair[1])}


def memberships(scores: Scores) -> dict[str, Membership]:
    """{name: how well the score tells members}."""
    return {name: membership(*pair) for name, pair in scores.items()}
