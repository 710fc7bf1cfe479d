"""What training's own linear probes say of the models of an attack: the `log` beside their
checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.naming import SETS

Accuracies = dict[str, dict[int, float]]  # {layer: {1: top-1, 5: top-5}}


def online_probes(settings: Mapping[str, Any], made_from: Mapping[str, Any] | None) -> Accuracies:
    """Validation accuracy of every layer's probe, the mean of the models; empty where a log does
    not say.

    settings, made_from: of an attack's results.json; the epochs of the models are in its record.
    """
    models = (made_from or {}).get("models") or {}
    both = []
    for name in SETS:
        path = settings.get(f"model_{name}_pth")
        epoch = (models.get(name) or {}).get("epoch")
        if not (path and epoch):
            return {}
        both.append(read_probes(Path(path).parent / "log", epoch))
    first, second = both
    means = {}
    for layer in first.keys() & second.keys():
        means[layer] = {}
        for top_k in TOP_KS:
            means[layer][top_k] = float(np.mean([first[layer][top_k], second[layer][top_k]]))
    return means


def read_probes(log: Path, epoch: int) -> Accuracies:
    """The probes' validation accuracies after an epoch; empty where the log has none.

    The log numbers its layers: 0 is the backbone, the others are the projector's, whose last is its
    output.
    """
    record = {}
    try:
        for line in log.read_text(encoding="utf-8").splitlines():
            written = json.loads(line)
            if written.get("epoch") == epoch:
                record.update(written)
    except (OSError, ValueError, AttributeError):
        return {}
    accuracies = {}
    number = 0
    while f"top_1_val_layer{number}" in record:
        layer = f"projector.{number - 1}" if number else "backbone"
        accuracies[layer] = {top_k: record[f"top_{top_k}_val_layer{number}"] for top_k in TOP_KS}
        number += 1
    if number > 1:
        accuracies["projector"] = accuracies[f"projector.{number - 2}"]
    return accuracies
