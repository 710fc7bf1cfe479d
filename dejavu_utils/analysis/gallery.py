"""Galleries: examples to look at, in one file that needs nothing else. attack_gallery.html is here.

A page is gallery.html, filled in by a template of its own that extends it.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import AttackedSet, Sets
from dejavu_utils.analysis.report import memorized_by_chance
from dejavu_utils.data.annotations import Unusable
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file
from dejavu_utils.imagenet import ImageListing, load_image
from dejavu_utils.naming import TWIN

NEIGHBORS = 5  # shown under each model
# longest side in pixels, bytes of the JPEG: keeps the page below 3 MB at 12 examples a group
IMAGE = 160, 12_000
_CROP = 160, 9_000
SMALL = 80, 3_000

# What a group shows, and which confidences put its examples in order: `order` maps the target's and
# the reference's confidence to keys, the greatest first, the second among equals (with neighbors
# that all agree there are many).
_GROUPS = (
    (
        "memorized",
        "Only the target, the model that was trained on the image, predicts its class from the crop.",
        "the target’s confidence; among ties, the least confident reference first",
        lambda target, reference: (target, -reference),
    ),
    (
        "correlated",
        "Both models predict the class: the background is enough, without memorization.",
        "the smaller of the two models’ confidences; among ties, by the larger",
        lambda target, reference: (np.minimum(target, reference), np.maximum(target, reference)),
    ),
    (
        "misrepresented",
        "Only the reference, the model that never saw the image, predicts its class. This happens by chance; about "
        "as many of the memorized images are chance, too.",
        "the reference’s confidence; among ties, the least confident target first",
        lambda target, reference: (reference, -target),
    ),
)


@dataclass
class Attacked:
    """The attacked images of both sets, in any order. indices: int64 (n,), theirs. crops: int (n,
    4) of xmin, ymin, xmax, ymax in pixels. neighbors: {"A", "B"} -> image indices of that model's
    nearest public images, int64 (n, k), nearest first, -1 where it predicts from class scores; None
    where all are."""

    indices: np.ndarray
    crops: np.ndarray
    neighbors: dict | None = None


def save_gallery(
    path: str | Path,
    sets: Sets,
    listing: ImageListing,
    attacked: Attacked,
    boxes_of: Callable | None = None,
    class_names: dict | None = None,
    per_group: int = 12,
    header: Sequence[str] = (),
) -> None:
    """Writes the HTML page: the `per_group` most confident memorized, correlated and misrepresented
    examples (top-1).

    sets: of read_attack. boxes_of: image index -> its boxes in pixels, or
    data.annotations.Unusable; None draws no boxes. class_names: {class folder: name to show};
    folders without one, and all by default, go by the folder's name without a number in front of
    it. header: lines that say which models, epochs, layer and k the page is about, and what they
    score.

    Images are JPEG thumbnails in data: URIs; the page loads nothing, and its content security
    policy forbids it. An image that cannot be read any more is named in its place. Definitions:
    memorization.OUTCOMES.
    """
    page = _Page(listing, class_names or {}, attacked, boxes_of)
    neighbors = attacked.neighbors
    groups = []
    counts = {}
    total = sum(len(attacked_set.idxs) for attacked_set in sets.values())
    for outcome, meaning, order_in_words, order in _GROUPS:
        chosen, counts[outcome] = _most_confident(
            sets, mem.OUTCOMES.index(outcome), order, per_group
        )
        group = {
            "id": outcome,
            "name": outcome,
            "meaning": meaning,
            "order": f"the most confident first: by {order_in_words}",
            "count": counts[outcome],
            "examples": [page.example(sets[name], name, row) for name, row in chosen],
        }
        groups.append(group)
    memorized, misrepresented = counts["memorized"], counts["misrepresented"]
    groups[0]["by_chance"] = memorized_by_chance(memorized, misrepresented, total)
    legend: list[tuple[str | None, str]] = [
        ("crop", "light blue, solid: the crop that both models see")
    ]
    if boxes_of is not None:
        legend.insert(0, ("box", "orange, dashed: a box around an object, hidden from the models"))
    if neighbors is not None:
        legend.append(
            (None, "✓ and a blue frame: a neighbor of the image’s class; ✗: of another class")
        )
    save_page(
        path,
        "attack_gallery.html",
        title="Déjà vu attack: examples",
        groups=groups,
        total=total,
        header=header,
        neighbors=neighbors is not None,
        classifiers=any((nearest < 0).any() for nearest in (neighbors or {}).values()),
        legend=legend,
    )


def save_page(path: str | Path, template: str, **content: Any) -> None:
    """Writes an HTML page. template: a file of this package or of label_free. content: what it
    shows, with `title`, `legend` and `groups` of examples as gallery.html has them."""
    packages = [
        jinja2.PackageLoader("dejavu_utils", folder) for folder in ("analysis", "label_free")
    ]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(packages), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template(template).render(content)
    with complete_file(path) as temporary:  # names of folders need not be UTF-8
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")


def readable_image(listing: ImageListing, index: int) -> Image.Image | None:
    """The image at this index, or None if it cannot be read any more."""
    try:
        return load_image(listing.path(index))
    except InputError:
        return None


def _most_confident(
    sets: Sets, outcome: int, order: Callable, count: int
) -> tuple[list[tuple[str, int]], int]:
    """([(set, row in that set)] of the most confident examples with this outcome, how many have
    it)."""
    candidates = []
    for name, attacked_set in sets.items():
        attack = attacked_set.attack
        rows = np.flatnonzero(attack.outcomes(1) == outcome)
        first, second = order(attack.target.confidence[rows], attack.reference.confidence[rows])
        indices = attacked_set.idxs[rows]  # so that the order is the same for equal confidences
        candidates += zip(-first, -second, indices, [name] * len(rows), rows)
    candidates.sort()
    return [candidate[3:] for candidate in candidates[:count]], len(candidates)


def class_name(folder: str) -> str:
    """What a class folder is called: umbrella for 001_umbrella; n01440764 stays."""
    return re.sub(r"^\d+[_.](?=\D)", "", folder)


class _Page:
    """Turns examples into what the template shows."""

    def __init__(
        self,
        listing: ImageListing,
        class_names: dict[str, str],
        attacked: Attacked,
        boxes_of: Callable | None,
    ) -> None:
        self.listing = listing
        self.class_names = class_names
        self.attacked = attacked
        self.boxes_of = boxes_of
        self.rows = {int(index): row for row, index in enumerate(attacked.indices)}

    def example(self, attacked_set: AttackedSet, name: str, row: int) -> dict[str, Any]:
        index = int(attacked_set.idxs[row])
        attack = attacked_set.attack
        crop = self.attacked.crops[self.rows[index]].tolist()
        label = int(attack.labels[row])
        image = readable_image(self.listing, index)
        boxes = self.boxes(index)
        rectangles = [("box", _rectangle(box)) for box in boxes or []]
        rectangles.append(("crop", _rectangle(crop)))
        return {
            "set": name,
            "path": self.listing.paths[index],
            "class": self.name(label),
            "image": image and data_uri(image, *IMAGE),
            "crop": image and data_uri(image.crop(crop), *_CROP),
            "size": image and image.size,
            "rectangles": rectangles,
            "boxes_missing": boxes is None,
            "models": [
                self.model("target", name, attack.target, row, index),
                self.model("reference", TWIN[name], attack.reference, row, index),
            ],
        }

    def model(
        self, role: str, name: str, predictions: mem.Predictions, row: int, index: int
    ) -> dict[str, Any]:
        predicted = int(predictions.top[row, 0])
        label = int(self.listing.labels[index])
        nearest = []
        if self.attacked.neighbors is not None:
            for neighbor in self.attacked.neighbors[name][self.rows[index]][:NEIGHBORS]:
                if neighbor >= 0:
                    nearest.append(self.neighbor(int(neighbor), label))
        return {
            "role": role,
            "model": name,
            "prediction": self.name(predicted),
            "correct": predicted == label,
            "confidence": float(predictions.confidence[row]) + 0.0,  # no minus zero
            "neighbors": nearest,
        }

    def neighbor(self, index: int, label: int) -> dict[str, Any]:
        image = readable_image(self.listing, index)
        own_label = int(self.listing.labels[index])
        return {
            "path": self.listing.paths[index],
            "image": image and data_uri(image, *SMALL),
            "class": self.name(own_label),
            "match": own_label == label,
        }

    def name(self, label: int) -> str:
        folder = self.listing.classes[label]
        return self.class_names.get(folder) or class_name(folder)

    def boxes(self, index: int) -> list | None:
        """The image's boxes, [] where none are drawn, None if its XML cannot be read."""
        if self.boxes_of is None:
            return []
        try:
            return self.boxes_of(index)
        except (OSError, InputError, Unusable):
            return None


def _rectangle(sides: Sequence[int]) -> dict[str, int]:
    xmin, ymin, xmax, ymax = sides
    return {"x": xmin, "y": ymin, "width": max(0, xmax - xmin), "height": max(0, ymax - ymin)}


def data_uri(image: Image.Image, longest: int, most_bytes: int) -> str:
    """The image as a JPEG of at most `longest` pixels a side; of lower quality until it has at most
    `most_bytes`."""
    image = image.copy()
    image.thumbnail((longest, longest))
    for quality in (82, 65, 45, 25, 10):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        if data.tell() <= most_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
