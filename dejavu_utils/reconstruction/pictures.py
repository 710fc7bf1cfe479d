"""Reconstructions as pictures: rows and tiles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from dejavu_utils.data.image_dataset import IndexedImages, collate_readable, without_far_ends
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file
from dejavu_utils.imagenet import ImageListing
from dejavu_utils.reconstruction.rcdm import NEIGHBORS, SAMPLES, Source, conditions, sample_seeds


def image_transform(side: int) -> transforms.Compose:
    """PIL image -> float32 (3, side, side) in [0, 1]: short side to int(256 x side / 224), then the
    centre."""
    return transforms.Compose(
        [
            without_far_ends,
            transforms.Resize(int(256 * side / 224)),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
        ]
    )


@dataclass(frozen=True)
class OfSource:
    """What a Source, whose name and tile these are, shows of n images, float32 (n, ..., 3, side,
    side): samples, and neighbors, 5 or (without any) 0."""

    name: str
    tile: str
    samples: Tensor
    neighbors: Tensor


@dataclass(frozen=True)
class Reconstructions:
    """Pictures of n attacked images, float32 (n, ..., 3, side, side) in [0, 1] each. rows: the
    chosen rows of the table."""

    rows: pd.DataFrame
    images: Tensor
    crops: Tensor
    sources: list[OfSource]

    def head(self, count: int) -> "Reconstructions":
        """The first `count` of them."""
        sources = []
        for of_source in self.sources:
            samples = of_source.samples[:count]
            neighbors = of_source.neighbors[:count]
            sources.append(replace(of_source, samples=samples, neighbors=neighbors))
        images = self.images[:count]
        crops = self.crops[:count]
        return Reconstructions(self.rows[:count], images, crops, sources)


def reconstruct(
    sources: Sequence[Source],
    attacked: str,
    rows: pd.DataFrame,
    samples: int = SAMPLES,
    respacing: str = "",
    seed: int = 0,
) -> Reconstructions:
    """Reconstructions of the images in `rows` (of Attack.tables[attacked]) by every Source.

    Both models start from the same noise. respacing: steps, as reconstruction.diffusion.Diffusion
    takes them.
    """
    indices = rows["index"].to_numpy(int)
    if not len(indices):
        raise InputError(f"there is no such example in set {attacked}: nothing to reconstruct")
    first = sources[0]
    side = first.rcdm.side
    listing = first.attack.listing
    images = _pictures(listing, indices, side)
    crops = _pictures(listing, indices, side, first.attack.crops(indices))
    shown = []
    for source in sources:
        condition, neighbors = conditions(source, attacked, indices)
        seeds = sample_seeds(indices, samples, seed)
        sampled = source.rcdm.sample(condition.repeat_interleave(samples, dim=0), seeds, respacing)
        sampled = sampled.unflatten(0, (len(indices), samples))
        nearest = _pictures(listing, neighbors.ravel(), source.rcdm.side)
        nearest = nearest.unflatten(0, neighbors.shape)
        shown.append(OfSource(source.name, source.tile, sampled, nearest))
    return Reconstructions(rows, images, crops, shown)


def _pictures(
    listing: ImageListing, indices: np.ndarray, side: int, crops: np.ndarray | None = None
) -> Tensor:
    images = IndexedImages(listing, indices, image_transform(side), crops)
    pictures, _, _ = collate_readable([images[position] for position in range(len(images))])
    return pictures


def draw_rows(shown: Reconstructions, names: Sequence[str], title: str = "") -> Figure:
    """Figure: for each example its image and crop, and a line per model: nearest public images and
    samples.

    names: of the classes, one per label.
    """
    sources = shown.sources
    samples = sources[0].samples.shape[1]
    cell, gap, edge, label = 0.62, 0.2, 0.08, 0.68  # inches
    head = 0.3 + (0.25 if title else 0)
    block = max(len(sources) * cell, cell + 0.2)  # the image has its class below
    first = edge + 2 * cell + label  # where the neighbors begin
    second = first + NEIGHBORS * cell + gap
    width = second + samples * cell + edge
    height = head + len(shown.rows) * (block + gap) - gap + edge
    figure = Figure(figsize=(width, height), dpi=160)

    def write(x: float, y: float, words: str, size: int = 7, **place: Any) -> None:
        figure.text(x / width, 1 - y / height, words, fontsize=size, **place)

    def put(picture: Tensor, x: float, y: float) -> None:
        """x, y: inches from the left and the top."""
        pad, side = 0.02, cell - 0.04
        left = (x + pad) / width
        bottom = 1 - (y + pad + side) / height
        place = (left, bottom, side / width, side / height)
        axes = figure.add_axes(place, frameon=False)
        axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])

    if title:
        write(width / 2, 0.06, title, 9, ha="center", va="top")
    titles = (
        ("image", edge, 1),
        ("crop", edge + cell, 1),
        ("nearest public images of the crop", first, NEIGHBORS),
        ("reconstructions", second, samples),
    )
    for words, x, columns in titles:
        write(x + columns * cell / 2, head - 0.06, words, 8, ha="center", va="bottom")
    for example, row in enumerate(shown.rows.itertuples()):
        top = head + example * (block + gap)
        middle = top + (block - cell) / 2
        put(shown.images[example], edge, middle)
        put(shown.crops[example], edge + cell, middle)
        write(edge + cell, middle + cell + 0.03, names[row.label], ha="center", va="top")
        for number, source in enumerate(sources):
            y = top + number * cell
            write(first - 0.08, y + cell / 2, source.name, ha="right", va="center")
            for column, picture in enumerate(source.neighbors[example]):
                put(picture, first + column * cell, y)
            for column, picture in enumerate(source.samples[example]):
                put(picture, second + column * cell, y)
    return figure


def save_tiles(folder: Path, shown: Reconstructions) -> None:
    """Writes samps_patches.png (images beside crops), NNs_{tile}.png and recon_{tile}.png, a line
    per example."""
    beside = torch.stack([shown.images, shown.crops], dim=1)
    save_grid(folder / "samps_patches.png", beside.flatten(0, 1), 2)
    for source in shown.sources:
        samples = source.samples
        nearest = source.neighbors
        save_grid(folder / f"recon_{source.tile}.png", samples.flatten(0, 1), samples.shape[1])
        if nearest.shape[1]:
            save_grid(folder / f"NNs_{source.tile}.png", nearest.flatten(0, 1), NEIGHBORS)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """A png of images in [0, 1], float (n, 3, s, s), so many to a line."""
    grid = make_grid(images.clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)
    levels = (grid * 255).round().byte()
    with complete_file(path) as temporary:
        to_pil_image(levels).save(temporary)


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as the file type that the path's suffix names."""
    with complete_file(path) as temporary:
        figure.savefig(temporary)
