"""Draws the documentation's pictures and writes its numbers from finished demos.

Reads the folders of bash_examples/demo.sh: the pictures are of the first, the reconstructions of the first that has
them, the numbers of all, each under its folder's name and precision. Writes, below --docs,
crops.png, augmented_pairs.png, memorized.png, demo_accuracy.png; after demo_sslmem.sh demo_membership.png and
label_free_{epochs,margin,images}.png; after demo_losses.sh demo_{criteria,utility}.png; with the agreement of two
trainings (runs_agreement.csv) demo_agreement.png; after demo_rcdm.sh reconstructions.png; figures.json, the numbers;
and into *.md beside and above it the blocks between <!-- demo: NAME --> and <!-- end -->, tables of these numbers.

    python docs/make_pictures.py demo/seed0
    python docs/make_pictures.py --docs /tmp/docs fp32/seed0 fp32/seed1 fp32/seed2 bf16/seed0 bf16/seed1 bf16/seed2
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.cli import Parser, existing_folder, expanded, run
from dejavu_utils.crops import CropRule
from dejavu_utils.data import augment
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.beton_loader import Batching, NativeLoader
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_json
from dejavu_utils.imagenet import list_images, load_image
from dejavu_utils.reconstruction.pictures import draw_rows, reconstruct, save_figure
from dejavu_utils.reconstruction.rcdm import Attack, load_rcdm, most_memorized, sources_of

DOCS = Path(__file__).resolve().parent
COLUMNS = 6
MIN_PX = 32  # of the demo's crops


@dataclass
class Demo:
    """A finished demo: its folder (data, index, betons), and the folder of its models and results."""

    folder: Path
    results: Path

    @classmethod
    def at(cls, path):
        """The demo in a folder such as demo/seed0; InputError unless it has one folder of results."""
        folder = Path(existing_folder(path, "the demo's folder"))
        finished = sorted(summary.parent for summary in folder.glob("*/summary.csv"))
        finished = [path for path in finished if re.fullmatch(r"[a-z0-9]+_\d+epochs", path.name)]
        if len(finished) != 1:
            names = ", ".join(path.name for path in finished) or "none"
            raise InputError(f"{folder}: one finished demo is needed (summary.csv), there are: {names}")
        return cls(folder, finished[0])

    @property
    def name(self):
        """seed0, with the precision where it is not fp32: seed0 in bf16."""
        chosen = self.folder / "precision.txt"
        precision = chosen.read_text().strip() if chosen.exists() else "fp32"
        return self.folder.name + ("" if precision == "fp32" else f" in {precision}")

    def last_attack(self):
        """The attack on the projector of the last snapshot."""
        attacks = (self.results / "attack_sweeps").glob("NN_attk_*ep")
        return max(attacks, key=lambda path: int(re.search(r"_(\d+)ep$", path.name)[1]))

    def point(self):
        """What its folders' names share: simclr_50pc_400ep."""
        return self.last_attack().name.removeprefix("NN_attk_")

    def label_free(self):
        """The folder of demo_sslmem.sh's scores at the last snapshot; it need not exist."""
        return self.results / "sslmem_sweeps" / f"sslmem_{self.point()}"

    def index(self, name):
        return np.load(next((self.folder / "index").glob("*_per_class")) / f"{name}.npy")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("demos", nargs="+", type=expanded, help="folders of finished demos, such as demo/seed0")
    parser.add_argument("--docs", type=expanded, default=str(DOCS), help="where to write; default: beside this script")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    demos = [Demo.at(path) for path in args.demos]
    docs = Path(args.docs)
    docs.mkdir(parents=True, exist_ok=True)
    draw_all(demos[0], docs)
    with_rcdm = next((demo for demo in demos if (demo.results / "RCDM").is_dir()), None)
    if with_rcdm:
        save_figure(docs / "reconstructions.png", draw_reconstructions(with_rcdm))
    numbers = {demo.name: numbers_of(demo) for demo in demos}
    save_json(docs / "figures.json", numbers)
    for page in [*docs.glob("*.md"), *docs.parent.glob("README.md")]:
        text = page.read_text(encoding="utf-8")
        filled = fill_blocks(text, numbers)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            print(f"{page}: numbers updated")


def draw_all(demo, docs):
    """Every picture that the demo's folders suffice for, but the reconstructions."""
    listing = list_images(demo.folder / "data" / "images")
    indices = demo.index("bbox_A")
    chosen = indices[:: max(1, len(indices) // COLUMNS)][:COLUMNS]
    draw_crops(listing, chosen, demo.folder / "data" / "boxes").savefig(docs / "crops.png")
    beton = next((demo.folder / "betons").glob("*_A.beton"))
    draw_pairs(Beton(beton)).savefig(docs / "augmented_pairs.png")
    draw_memorization(listing, demo).savefig(docs / "memorized.png")
    plots, scores = demo.results / "plot", demo.label_free()
    for name, figure in (
        ("demo_accuracy", plots / "attk_epochs_acc_top1"),
        ("demo_criteria", demo.folder / "plot_losses/criteria_top1"),
        ("demo_utility", demo.folder / "plot_losses/score_utility_top1"),
        ("demo_agreement", demo.folder / "runs_agreement"),
        ("demo_membership", scores / "sslmem_membership_projector"),
        ("label_free_epochs", plots / "score_sslmem_top1"),
        ("label_free_margin", scores / "sslmem_margin_projector"),
    ):
        drawn = Path(f"{figure}_legend.png")  # the figure with its legend
        if drawn.exists():
            shutil.copy(drawn, docs / f"{name}.png")
    if scores.is_dir():
        draw_sslmem(listing, scores).savefig(docs / "label_free_images.png", dpi=70)


# --- numbers ---------------------------------------------------------------------------------------------------------


def numbers_of(demo):
    """{"summary": rows of summary.csv, "epochs": one row per snapshot}: what the documentation says about a demo."""
    summary = pd.read_csv(demo.results / "summary.csv")
    attacks = pd.read_csv(demo.results / "plot" / "attk_epochs_acc_top1.csv")
    epochs = attacks[attacks["pct_confidence"] == 100]
    probe = demo.results / "plot" / "lp_epochs_top1.csv"
    if probe.exists():
        epochs = epochs.merge(pd.read_csv(probe)[["epoch", "train_acc", "val_acc"]], on="epoch", how="left")
    tables = {"summary": summary, "epochs": epochs}
    for name, path in (("losses", "plot_losses/criteria_top1.csv"), ("agreement", "runs_agreement.csv")):
        if (demo.folder / path).exists():
            tables[name] = pd.read_csv(demo.folder / path)
    if demo.label_free().is_dir():
        tables["membership"] = membership_of(demo.label_free())
    judged = demo.results / "RCDM" / "reconstructions" / "judged.json"
    if judged.exists():
        judged = json.loads(judged.read_text())
        tables["judged_images"], tables["judged_crops"] = judged_images(judged), judged_crops(judged)
    return {"run": demo.results.name, **{name: rows_of(table) for name, table in tables.items()}}


def membership_of(scores):
    """A row per layer and score of demo_sslmem.sh: AUC, and true-positive rate at 1 % false positives."""
    rows = []
    for layer, of_layer in json.loads((scores / "results.json").read_text())["membership"].items():
        for score, found in of_layer.items():
            rows.append({"layer": layer, "score": score, **columns("auc", found["auc"])})
            rows[-1] |= columns("tpr", found["tpr_at_1_percent"])
    return pd.DataFrame(rows)


def judged_images(judged):
    """A row per kind of whole image of judge_rcdm.py: how often the judge names its class."""
    whole = judged["samples from whole images"]
    kinds = {
        "real images that the judge never saw, for comparison": judged["real images"],
        "samples from whole public images": whole["public images"],
        "samples from whole images that neither RCDM nor its encoder saw": whole["held-out images"],
    }
    rows = [{"what": kind, "n": found["n"], **columns("correct", found)} for kind, found in kinds.items()]
    return pd.DataFrame(rows)


def judged_crops(judged):
    """A row per selection of attacked images of judge_rcdm.py: samples from their crops that show the class."""
    rows = []
    for what, found in judged["samples from crops"].items():
        n = found.get("n", judged["samples from whole images"]["held-out images"]["n"])
        row = {"what": "all attacked images" if what == "all" else what, "n": n}
        for name in ("target", "reference", "score"):
            row |= columns(name, found[name])
        rows.append(row)
    return pd.DataFrame(rows)


def columns(name, estimate):
    """{"auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}"""
    return {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}


def rows_of(table):
    """A DataFrame as rows of plain values, rounded to 6 digits; None for NaN."""
    return json.loads(table.round(6).to_json(orient="records"))


def fill_blocks(text, numbers):
    """The text with each block <!-- demo: NAME --> ... <!-- end --> made anew."""

    def block(match):
        return f"<!-- demo: {match[1]} -->\n{TABLES[match[1]](numbers)}\n<!-- end -->"

    return re.sub(r"<!-- demo: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def estimate(row, name, value=None):
    """0.487 [0.441, 0.533]"""
    return f"{row[value or name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def summary_table(numbers):
    """The table that the first demo ends in, as its script prints it."""
    lines = [("", "examples", "target", "reference", "chance", "ceiling", "déjà vu score")]
    for row in first(numbers)["summary"]:
        pct = row["pct_confidence"]
        examples = "all" if pct == 100 else f"most confident {pct} %"
        chance = [f"{row[name]:.3f}" for name in ("chance", "ceiling")]
        target, reference, score = (estimate(row, name) for name in ("target", "reference", "score"))
        lines.append((row["attack"], examples, target, reference, *chance, score))
    widths = [max(map(len, column)) for column in zip(*lines)]
    printed = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join(["```text", *printed, "```"])


def epochs_table(numbers):
    """One row per snapshot of the first demo."""
    lines = ["| epoch | target | reference | déjà vu score | probe, validation |", "| --- | --- | --- | --- | --- |"]
    for row in first(numbers)["epochs"]:
        cells = [estimate(row, name, f"{name}_acc") for name in ("target", "reference")]
        probe = f"{row['val_acc']:.3f}" if row.get("val_acc") is not None else ""
        lines.append(" | ".join(["| " + str(row["epoch"]), *cells, estimate(row, "score"), probe + " |"]))
    return "\n".join(lines)


def seeds_table(numbers):
    """One row per demo: the projector of the last snapshot, all examples."""
    lines = ["| demo | target | reference | déjà vu score |", "| --- | --- | --- | --- |"]
    for name, of_demo in numbers.items():
        row = of_demo["summary"][0]
        lines.append(
            " | ".join([f"| {name}", *(estimate(row, key) for key in ("target", "reference", "score"))]) + " |"
        )
    return "\n".join(lines)


def losses_table(numbers):
    """One row per loss of demo_losses.sh: the projector, all examples."""
    lines = ["| loss | target | reference | déjà vu score | ceiling | probe, validation |", "| --- " * 6 + "|"]
    for row in first(numbers).get("losses", []):
        cells = [estimate(row, name) for name in ("target", "reference", "score")]
        rest = [f"{row[name]:.3f}" for name in ("ceiling", "probe_val")]
        lines.append(" | ".join([f"| {row['loss']}", *cells, *rest]) + " |")
    return "\n".join(lines)


def agreement_table(numbers):
    """One row per pair of trainings on the same sets."""
    lines = ["| memorized in | also memorized in, above chance | Cohen's kappa |", "| --- | --- | --- |"]
    for row in first(numbers).get("agreement", []):
        pair = "the same training" if row["first"] == row["second"] else f"{row['first']} and {row['second']}"
        lines.append(f"| {pair} | {estimate(row, 'above_chance')} | {row['kappa']:.3f} |")
    return "\n".join(dict.fromkeys(lines))


def membership_table(numbers):
    """One row per layer and score: how well it tells members from images that the model never saw."""
    lines = ["| layer | score | AUC | true-positive rate at 1 % false positives |", "| --- " * 4 + "|"]
    for row in first(numbers).get("membership", []):
        lines.append(f"| {row['layer']} | {row['score']} | {estimate(row, 'auc')} | {estimate(row, 'tpr')} |")
    return "\n".join(lines)


def judged_images_table(numbers):
    """Real images, and samples from whole images, whose class the judge names."""
    lines = ["| images | n | correct class |", "| --- | --- | --- |"]
    for row in first_with(numbers, "judged_images"):
        lines.append(f"| {row['what']} | {row['n']} | {estimate(row, 'correct')} |")
    return "\n".join(lines)


def judged_crops_table(numbers):
    """Samples from crops whose class the judge names, of both models' RCDMs."""
    lines = ["| samples from crops of | n | target | reference | difference |", "| --- " * 5 + "|"]
    for row in first_with(numbers, "judged_crops"):
        cells = [estimate(row, name) for name in ("target", "reference", "score")]
        lines.append(" | ".join([f"| {row['what']}", str(row["n"]), *cells]) + " |")
    return "\n".join(lines)


TABLES = {
    "summary": summary_table,
    "epochs": epochs_table,
    "seeds": seeds_table,
    "losses": losses_table,
    "agreement": agreement_table,
    "membership": membership_table,
    "judged_images": judged_images_table,
    "judged_crops": judged_crops_table,
}


def first(numbers):
    return next(iter(numbers.values()))


def first_with(numbers, table):
    """The rows of a table in the first demo that has it."""
    return next((of_demo[table] for of_demo in numbers.values() if table in of_demo), [])


# --- pictures --------------------------------------------------------------------------------------------------------


def draw_crops(listing, indices, bbox_dir):
    """Images with their box (red) and background crop (white), the crops below."""
    annotations = Annotations(bbox_dir, listing)
    cut = take_crops(listing, indices, CropRule(min_px=MIN_PX), annotations)
    figure, axes = grid(2)
    for column, (index, crop) in enumerate(zip(cut.indices, cut.crops)):
        image = load_image(listing.path(index))
        axes[0, column].imshow(image)
        for box, color in ((annotations.boxes(index)[0][0], "red"), (crop, "white")):
            outline(axes[0, column], box, color)
        axes[0, column].set_title(class_name(listing, index), fontsize=8)
        axes[1, column].imshow(image.crop(tuple(crop)))
    return figure


def draw_pairs(beton):
    """The two published views of each of some images, at the size of the images."""
    views = [augment.FIRST_VIEW, augment.SECOND_VIEW]
    pairs, _ = next(NativeLoader(beton, Batching(COLUMNS, 1, torch.device("cpu")), views, 3).epoch(0, 128))
    figure, axes = grid(2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.MEAN, augment.STD))
    for row, view in enumerate(pairs):
        for column, image in enumerate(view):
            axes[row, column].imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
    return figure


def draw_sslmem(listing, folder):
    """The images of set A with the largest SSLMem of the projector above, those with the smallest below."""
    table = pd.read_csv(folder / "sslmem_A.csv").sort_values("projector_sslmem", ascending=False)
    figure, axes = grid(2)
    for row, chosen in enumerate((table.head(COLUMNS), table.tail(COLUMNS)[::-1])):
        for column, (index, score) in enumerate(zip(chosen["index"], chosen["projector_sslmem"])):
            axes[row, column].imshow(load_image(listing.path(index)))
            axes[row, column].set_title(f"{score:+.2f}".replace("-", "\N{MINUS SIGN}"), fontsize=8)
    return figure


def draw_memorization(listing, demo):
    """The two memorized examples of set A with the largest margin of votes: image, box and crop, and the five nearest
    public images under both models."""
    attack = demo.last_attack()
    table = pd.read_csv(attack / "attack_A.csv")
    memorized = table[table["share"] == "memorized"] if (table["share"] == "memorized").any() else table
    margin = memorized["target_vote_share"] - memorized["reference_vote_share"]
    rows = memorized.loc[margin.sort_values(ascending=False).index[:2], "index"].tolist()
    annotations = Annotations(demo.folder / "data" / "boxes", listing)
    cut = take_crops(listing, np.array(rows), CropRule(min_px=MIN_PX), annotations)
    crops = dict(zip(cut.indices.tolist(), cut.crops.tolist()))
    figure, axes = grid(2 * len(rows), 7)
    for number, index in enumerate(rows):
        image = load_image(listing.path(index))
        shown, cropped = axes[2 * number, 0], axes[2 * number, 1]
        shown.imshow(image)
        outline(shown, annotations.boxes(index)[0][0], "red")
        outline(shown, crops[index], "white")
        shown.set_title(class_name(listing, index), fontsize=8)
        cropped.imshow(image.crop(tuple(crops[index])))
        cropped.set_title("crop", fontsize=8)
        for row, (model, role) in enumerate((("A", "target"), ("B", "reference")), start=2 * number):
            draw_neighbors(axes[row, 2:], listing, attack, f"{model}_attk_A", index, role)
    return figure


def draw_neighbors(axes, listing, attack, pair, index, role):
    """The nearest public images of an attacked image, each with its class; role: title of the first."""
    attacked = np.load(attack / f"{pair}_attk_idxs.npy")
    position = int(np.flatnonzero(attacked == index)[0])
    neighbors = np.load(attack / f"{pair}_neighb_idxs.npy")[position]
    for column, (ax, neighbor) in enumerate(zip(axes, neighbors)):
        ax.imshow(load_image(listing.path(neighbor)))
        name = class_name(listing, neighbor)
        ax.set_title(f"{role}: {name}" if column == 0 else name, fontsize=8)


def draw_reconstructions(demo):
    """The three most memorized examples of set A, as the notebook draws them; with SUPERVISED=1's row."""
    attack = Attack(demo.last_attack())
    size, epoch = re.search(r"_(\d+pc)_(\d+ep)$", demo.point()).groups()
    loss = demo.point().split("_")[0]
    rcdms = [load_rcdm(demo.results / "RCDM" / f"rcdm_{loss}_{epoch}_{size}_{side}") for side in "AB"]
    rows = most_memorized(attack.tables["A"], 3)
    names = [name.split("_")[1] for name in attack.listing.classes]
    supervised = demo.results / "RCDM" / "supervised_A"
    sources = sources_of(attack, "A", *rcdms, load_rcdm(supervised) if supervised.is_dir() else None)
    return draw_rows(reconstruct(sources, "A", rows, respacing="50"), names)


def class_name(listing, index):
    """ "001_umbrella" -> "umbrella"."""
    return listing.classes[listing.labels[index]].split("_")[-1]


def outline(ax, box, color):
    xmin, ymin, xmax, ymax = box
    ax.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, color=color, linewidth=1.5))


def grid(rows, columns=COLUMNS):
    figure = Figure(figsize=(1.1 * columns, 1.15 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


if __name__ == "__main__":
    run(main)
