"""The names of files and folders of attacks and linear probes, and finding the points of a sweep by them."""

import json
import re
from pathlib import Path

SETS = ("A", "B")
# Folders of attacks beside attack_sweeps, with the layer that an attack in them is of.
LAYERS_BESIDE = {"attack_sweeps_backbone": "backbone", "attack_sweeps_w_linear_layer_activations": "logits"}


def attack_path(folder, model, attacked, what):
    """Where a file of the attack lies, e.g. FOLDER/A_attk_B_neighb_labels.npy: model A on the images of set B."""
    return Path(folder) / f"{model}_attk_{attacked}_{what}.npy"


def attacked_layers(folder):
    """{layer: folder} of an attack: subfolders backbone, projector.{i} and projector, or the folder itself.

    The folder's own files are those of the layer that its results.json names; without one, of LAYERS_BESIDE's if the
    folder above has such a name, else of the projector's output.
    """
    folder = Path(folder)
    names = re.compile(r"backbone|projector(\.\d+)?|logits")
    found = {
        path.name: path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and names.fullmatch(path.name)
    }
    if attack_path(folder, "A", "A", "attk_idxs").is_file():
        try:
            layer = json.loads((folder / "results.json").read_text(encoding="utf-8"))["settings"]["layer"]
        except (OSError, ValueError, KeyError):
            layer = LAYERS_BESIDE.get(folder.absolute().parent.name, "projector")
        found.setdefault(layer, folder)
    return found


def sweep_points(folder, template, value=int):
    """The folders of a sweep, sorted by value: [(value(digits), Path)].

    template: a folder name with {} for the digits that vary, e.g. "NN_attk_vicreg_300pc_{}ep".
    """
    before, after = template.split("{}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    matches = ((pattern.fullmatch(entry.name), entry) for entry in Path(folder).iterdir() if entry.is_dir())
    return sorted((value(match[1]), entry) for match, entry in matches if match)
