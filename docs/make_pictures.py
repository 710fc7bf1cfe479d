"""Draws the documentation's pictures from a finished demo (demo_accuracy.png is a figure of it): crops.png and
augmented_pairs.png, after bash_examples/demo_sslmem.sh label_free_{epochs,margin,images}.png, of which the first two
are figures of it, and after bash_examples/demo_rcdm.sh reconstructions.png.

python docs/make_pictures.py demo/seed0
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dejavu_utils.crops import CropRule
from dejavu_utils.data import augment
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.beton_loader import NativeLoader
from dejavu_utils.imagenet import list_images, load_image
from dejavu_utils.reconstruction.pictures import draw_rows, reconstruct, save_figure
from dejavu_utils.reconstruction.rcdm import Attack, load_rcdm, most_memorized, sources_of

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 6


def main():
    run = Path(sys.argv[1])
    listing = list_images(run / "data" / "images")
    indices = np.load(run / "index" / "50_per_class" / "bbox_A.npy")
    chosen = indices[:: len(indices) // COLUMNS][:COLUMNS]
    draw_crops(listing, chosen, run / "data" / "boxes").savefig(ROOT / "docs" / "crops.png")
    draw_pairs(Beton(run / "betons" / "50_per_class_A.beton")).savefig(ROOT / "docs" / "augmented_pairs.png")
    logging_folder = run / "simclr_600epochs"
    scores = logging_folder / "sslmem_sweeps" / "sslmem_simclr_50pc_600ep"
    if scores.is_dir():
        shutil.copy(logging_folder / "plot" / "score_sslmem_top1.png", ROOT / "docs" / "label_free_epochs.png")
        shutil.copy(scores / "sslmem_margin_projector.png", ROOT / "docs" / "label_free_margin.png")
        draw_memorized(listing, scores).savefig(ROOT / "docs" / "label_free_images.png", dpi=70)
    if (logging_folder / "RCDM").is_dir():
        save_figure(ROOT / "docs" / "reconstructions.png", draw_reconstructions(logging_folder))


def draw_crops(listing, indices, bbox_dir):
    """Images with their box (red) and background crop (white), the crops below."""
    annotations = Annotations(bbox_dir, listing)
    found = take_crops(listing, indices, CropRule(min_px=32), annotations)
    figure, axes = grid(2)
    for column, (index, crop) in enumerate(zip(found.indices, found.crops)):
        image = load_image(listing.path(index))
        axes[0, column].imshow(image)
        for box, color in ((annotations.boxes(index)[0][0], "red"), (crop, "white")):
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


def draw_memorized(listing, folder):
    """The images of set A with the greatest SSLMem of the projector above, those with the least below."""
    table = pd.read_csv(folder / "sslmem_A.csv").sort_values("projector_sslmem", ascending=False)
    figure, axes = grid(2)
    for row, chosen in enumerate((table.head(COLUMNS), table.tail(COLUMNS)[::-1])):
        for column, (index, score) in enumerate(zip(chosen["index"], chosen["projector_sslmem"])):
            axes[row, column].imshow(load_image(listing.path(index)))
            axes[row, column].set_title(f"{score:+.2f}".replace("-", "\N{MINUS SIGN}"), fontsize=8)
    return figure


def draw_reconstructions(logging_folder):
    """The three most memorized examples of set A, as the notebook draws them."""
    attack = Attack(logging_folder / "attack_sweeps" / "NN_attk_simclr_50pc_600ep")
    rcdms = [load_rcdm(logging_folder / "RCDM" / f"rcdm_simclr_600ep_50pc_{side}") for side in "AB"]
    rows = most_memorized(attack.tables["A"], 3)
    names = [name.split("_")[1] for name in attack.listing.classes]
    return draw_rows(reconstruct(sources_of(attack, "A", *rcdms), "A", rows, respacing="50"), names)


def grid(rows):
    figure = Figure(figsize=(1.1 * COLUMNS, 1.15 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


if __name__ == "__main__":
    main()
