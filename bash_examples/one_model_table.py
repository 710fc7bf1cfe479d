"""A table of the test of one model beside that of two, on the same images: scores, delta, and the planted truth.

Reads the folder of the attack on models A and B, and for each model that was also tested as if it were the only one the
folder of that attack, as A=FOLDER or B=FOLDER; prints the table and writes it to --save_path.

    python bash_examples/one_model_table.py --chance 0.2 --save_path /tmp/one_model.csv \\
        --two_models demo/seed0/simclr_600epochs/attack_sweeps/NN_attk_simclr_50pc_600ep \\
        A=demo/seed0/simclr_600epochs/one_model_sweeps/NN_attk_simclr_50pc_600ep_A
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import read_split
from dejavu_utils.analysis.one_model import spread_of, widened
from dejavu_utils.analysis.report import figure_in_words
from dejavu_utils.analysis.tables import bounds, part_statistics
from dejavu_utils.cli import Parser, existing_file, expanded, run
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv

COLUMNS = ("two_models", "one_model", "one_minus_two", "delta", "score_minus_delta")
HEADS = dict(zip((*COLUMNS, "tied"), ("two models", "one model", "one - two", "delta", "score - delta", "tied images")))


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("attacks", nargs="+", metavar="MODEL=FOLDER", help="attacks with --model_oss_pth, by model")
    parser.add_argument("--two_models", type=expanded, required=True, help="folder of the attack on both models")
    parser.add_argument("--chance", type=float, required=True, help="accuracy of guessing, 1 / classes")
    parser.add_argument(
        "--tied",
        type=expanded,
        help="tied.csv of make_demo_dataset.py --correlation: the known accuracy is that of a model that reads "
        "backgrounds, and the score of the tied images, which must be 0, is another column",
    )
    parser.add_argument("--save_path", type=expanded, required=True, help="csv of the same figures, unrounded")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    rows = {}
    for attack in args.attacks:
        model, _, folder = attack.partition("=")
        if model not in ("A", "B"):
            raise InputError(f"{attack}: give A=FOLDER or B=FOLDER")
        rows[model] = compared(model, Path(args.two_models), Path(folder), args.chance, args.tied)
    columns = [*COLUMNS, *(["tied"] if args.tied else [])]
    if len(rows) > 1:  # of independent images, and other classifiers
        rows["both"] = {name: mean([row[name] for row in rows.values()]) for name in (*columns, "truth")}
    lines = [("model", *(HEADS[name] for name in columns), "planted truth")]
    for model, row in rows.items():
        lines.append((model, *(figure_in_words(row[name]) for name in columns), f"{row['truth']['value']:.3f}"))
    table = [
        {
            "model": model,
            **{name: row[name]["value"] for name in row},
            **{k: v for n in row for k, v in bounds(n, row[n]).items()},
        }
        for model, row in rows.items()
    ]
    save_csv(args.save_path, pd.DataFrame(table))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def compared(model, two_models, one_model, chance, tied=None):
    """{name of COLUMNS, "tied" and "truth": estimate} of a model; the truth is what it knows beyond its backgrounds.

    tied: file that says whose backgrounds tell the class; of the others they tell nothing.
    """
    two, one = (read(folder / "results.json") for folder in (two_models, one_model))
    figures = one["both"]["one_model"]
    if not figures["delta"]:
        raise InputError(f"{one_model}: holds no delta; attack with --unseen_idx_pth")
    target = two[model]["top_1"]["accuracy"]["100"]["target"]["value"]
    found = {"two_models": two[model]["top_1"]["accuracy"]["100"]["score"], "one_model": figures["score"]}
    found["one_minus_two"] = paired_difference(model, two_models, one_model, one)
    found |= {name: figures[name] for name in ("delta", "score_minus_delta")}
    if tied:
        found["tied"], share = score_of_tied(one_model, tied)
        chance = share + (1 - share) * chance
    return {**found, "truth": dict.fromkeys(("value", "low", "high"), target - chance)}


def paired_difference(model, two_models, one_model, results):
    """One-model score - two-model score of the same images: the twin's accuracy - that of the classifiers.

    The model's own guesses are the same in both. The interval holds the spread of the classifiers.
    """
    twin = pd.read_csv(existing_file(two_models / f"attack_{model}.csv", "--two_models")).set_index("index")
    attacks, halves = [], []
    for name in "AB":
        judged = pd.read_csv(existing_file(one_model / f"attack_{name}.csv", model)).set_index("index")
        if not judged.index.isin(twin.index).all():
            raise InputError(f"{one_model}: attacks other images than set {model} of --two_models {two_models}")
        same = twin.loc[judged.index]
        guesses = [of.reference_top1.to_numpy()[:, None] for of in (same, judged)]
        attacks.append(
            mem.DirectedAttack(*(mem.Predictions(top, np.zeros(len(top))) for top in guesses), same.label.to_numpy())
        )
        halves.append(spread_of(results[name]["one_model"]["reference_accuracy_by_seed"]))
    return widened(mem.summarize(attacks, 1)["score"], halves)


def score_of_tied(one_model, tied):
    """(score of the tied images among the attacked ones, their share of these)."""
    paths = read_split(tied, "--tied")
    parts = part_statistics(one_model, 0, paths)
    counts = {name: [part[name]["n"] for part in parts.values()] for name in "AB"}
    for name, of_set in counts.items():
        if sum(of_set) != len(pd.read_csv(one_model / f"attack_{name}.csv")):
            raise InputError(f"--tied {tied}: does not hold the images of {one_model}")
    shares = [tied_ones / (tied_ones + others) for tied_ones, others in counts.values()]
    return parts["tied"]["both"]["top_1"]["accuracy"]["100"]["score"], float(np.mean(shares))


def mean(estimates):
    """Mean of independent estimates: the root of the summed squared arms / their number."""
    value = np.mean([one["value"] for one in estimates])
    arms = {end: np.hypot(*(one["value"] - one[end] for one in estimates)) / len(estimates) for end in ("low", "high")}
    return {"value": value, "low": value - arms["low"], "high": value + arms["high"]}


def read(path):
    try:
        return json.loads(existing_file(path, "attack").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: was not written by label_inference_attack.py ({error})") from None


if __name__ == "__main__":
    run(main)
