"""Draws the README's crops.png and augmented_pairs.png from a finished demo (demo_accuracy.png is a figure of it).

python docs/make_pictures.py demo/seed0
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dejavu_utils import augment  # noqa: E402
from dejavu_utils.beton import Beton  # noqa: E402
from dejavu_utils.imagenet import background_crops, box_path, list_images, load_image, read_boxes  # noqa: E402
from dejavu_utils.loader import NativeLoader  # noqa: E402

COLUMNS = 6


def main():
    run = Path(sys.argv[1])
    listing = list_images(run / "data" / "images")
    indices = np.load(run / "index" / "50_per_class" / "bbox_A.npy")
    chosen = indices[:: len(indices) // COLUMNS][:COLUMNS]
    draw_crops(listing, chosen, run / "data" / "boxes").savefig(ROOT / "docs" / "crops.png")
    draw_pairs(Beton(run / "betons" / "50_per_class_A.beton")).savefig(ROOT / "docs" / "augmented_pairs.png")


def draw_crops(listing, indices, bbox_dir):
    """Images with their box (red) and background crop (white), the crops below."""
    indices, crops, _ = background_crops(listing, indices, bbox_dir, min_px=32)
    figure, axes = grid(2)
    for column, (index, crop) in enumerate(zip(indices, crops)):
        image = load_image(listing.path(index))
        axes[0, column].imshow(image)
        for box, color in ((read_boxes(box_path(bbox_dir, listing, index))[0], "red"), (crop, "white")):
            xmin, ymin, xmax, ymax = box
            outline = Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, color=color, linewidth=1.5)
            axes[0, column].add_patch(outline)
        axes[0, column].set_title(listing.classes[listing.labels[index]].split("_")[1], fontsize=8)
        axes[1, column].imshow(image.crop(tuple(crop)))
    return figure


def draw_pairs(beton):
    """The two published views of each of some images, at the size of the images."""
    views = [augment.FIRST_VIEW, augment.SECOND_VIEW]
    pairs, _ = next(NativeLoader(beton, COLUMNS, views, 3, 1, torch.device("cpu")).epoch(0, 128))
    figure, axes = grid(2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.MEAN, augment.STD))
    for row, view in enumerate(pairs):
        for column, image in enumerate(view):
            axes[row, column].imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
    return figure


def grid(rows):
    figure = Figure(figsize=(1.1 * COLUMNS, 1.15 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


if __name__ == "__main__":
    main()
