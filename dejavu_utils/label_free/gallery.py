"""sslmem_gallery.html: the images with the greatest and the least SSLMem to look at, with the views
that gave it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dejavu_utils.analysis.gallery import (
    IMAGE,
    SMALL,
    class_name,
    data_uri,
    readable_image,
    save_page,
)
from dejavu_utils.analysis.report import POPULATION
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.label_free.compare import SCORE
from dejavu_utils.naming import TWIN

VIEWS = 5  # shown of each image
PER_GROUP = 12  # images


def save_sslmem_gallery(
    path: str | Path,
    tables: dict[str, pd.DataFrame],
    listing: ImageListing,
    layers: list[str],
    views_of: Callable,
    header: Sequence[str],
) -> None:
    """Writes the HTML page: at each layer, the most and least memorized images of both sets.

    tables: {"A", "B"} -> table of sslmem_{set}.csv. layers: the last, which memorizes most, comes
    first on the page. views_of: image index -> its views as PIL images. An image that cannot be
    read any more is named in its place. The page loads nothing, as attack_gallery.html. header:
    lines that say which models and epochs it is about, and what they score.
    """
    examples = pd.concat([table.assign(set=name) for name, table in tables.items()])
    groups = []
    for layer in reversed(layers):
        ordered = examples.sort_values([f"{layer}{SCORE}", "index"], ascending=[False, True])
        above = int((ordered[f"{layer}{SCORE}"] > 0).sum())
        most = (
            f"SSLMem of the {layer} is above 0 for {above} of {len(ordered)} images; without memorization, by chance, "
            f"for about half of them. {POPULATION}"
        )
        least = "Below 0 the model that never saw the image aligns its views better: chance does this too."
        groups.append(_group("most", layer, most, ordered.head(PER_GROUP), listing, views_of))
        groups.append(
            _group("least", layer, least, ordered.tail(PER_GROUP)[::-1], listing, views_of)
        )
    save_page(
        path,
        "sslmem_gallery.html",
        title="Label-free scores: examples",
        groups=groups,
        header=header,
    )


def _group(
    name: str,
    layer: str,
    meaning: str,
    rows: pd.DataFrame,
    listing: ImageListing,
    views_of: Callable,
) -> dict[str, Any]:
    """The examples with the most or the least SSLMem."""
    return {
        "id": f"{name}-{layer}",
        "name": f"{name} memorized, {layer}",
        "meaning": meaning,
        "order": f"the {'greatest' if name == 'most' else 'least'} SSLMem first",
        "examples": [_example(row, layer, listing, views_of) for row in rows.to_dict("records")],
    }


def _example(
    row: dict[str, Any], layer: str, listing: ImageListing, views_of: Callable
) -> dict[str, Any]:
    image = readable_image(listing, row["index"])
    name = row["set"]
    models = []
    for role, model in (("target", name), ("reference", TWIN[name])):
        models.append({"role": role, "model": model, "distance": row[f"{layer}_{role}"]})
    views = views_of(row["index"], image)[:VIEWS] if image else []
    return {
        "set": name,
        "path": row["path"],
        "class": class_name(listing.classes[row["label"]]),
        "image": image and data_uri(image, *IMAGE),
        "size": image and image.size,
        "rectangles": [],
        "boxes_missing": False,
        "score": row[f"{layer}{SCORE}"],
        "models": models,
        "views": [data_uri(view, *SMALL) for view in views],
    }
