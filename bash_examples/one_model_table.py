"""A table of the test of one model beside that of two, on the same images: scores, delta, and the planted truth.

Reads the folder of the attack on models A and B, and for each model that was also tested as if it were the only one the
folder of that attack, as A=FOLDER or B=FOLDER; prints the table, writes it to --save_path and draws it beside.

    python bash_examples/one_model_table.py --chance 0.2 --save_path /tmp/one_model.csv \\
        --two_models demo/seed0/simclr_300epochs/attack_sweeps/NN_attk_simclr_50pc_300ep \\
        A=demo/seed0/simclr_300epochs/one_model_sweeps/NN_attk_simclr_50pc_300ep_A
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import read_split
from dejavu_utils.analysis.figures import draw_one_against_two, save_figure
from dejavu_utils.analysis.intervals import Estimate, bounds, mean_of_estimates
from dejavu_utils.analysis.one_model import spread_of, widened
from dejavu_utils.analysis.report import figure_in_words
from dejavu_utils.analysis.results_json import RESULTS, AttackResults, read_results
from dejavu_utils.analysis.tables import part_statistics
from dejavu_utils.attack.target_reference import ONE
from dejavu_utils.cli import Parser, add_paths, existing_file, run
from dejavu_utils.data.provenance import Provenance, first_difference_in_words
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv
from dejavu_utils.log import print_table
from dejavu_utils.naming import SETS

COLUMNS = ("two_models", "one_model", "one_minus_two", "delta", "score_minus_delta")
HEADS = dict(zip((*COLUMNS, "tied"), ("two models", "one model", "one - two", "delta", "score - delta", "tied images")))


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("attacks", nargs="+", metavar="MODEL=FOLDER", help="attacks with --model_oss_pth, by model")
    add_paths(parser, {"--two_models": "folder of the attack on both models"})
    parser.add_argument("--chance", type=float, required=True, help="accuracy of guessing, 1 / classes")
    tied = {
        "--tied": "tied.csv of make_demo_dataset.py --correlation: the known accuracy is that of a model that reads "
        "backgrounds, and the score of the tied images, expected to be 0, is another column"
    }
    add_paths(parser, tied, required=False)
    add_paths(parser, {"--save_path": "csv of the same figures, unrounded"})
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    two_models = Path(args.two_models)
    rows = {}
    for attack in args.attacks:
        model, _, folder = attack.partition("=")
        if model not in SETS:
            raise InputError(f"{attack}: give A=FOLDER or B=FOLDER")
        rows[model] = compared(model, two_models, Path(folder), args.chance, args.tied)
    columns = [*COLUMNS, *(["tied"] if args.tied else [])]
    if len(rows) > 1:  # of independent images, and other classifiers
        both = {}
        for name in (*columns, "truth"):
            both[name] = mean_of_estimates([row[name] for row in rows.values()], -np.inf, np.inf)
        rows["both"] = both
    table = pd.DataFrame([csv_row(model, row) for model, row in rows.items()])
    save_csv(args.save_path, table)
    figure = Path(args.save_path).with_suffix("")
    save_figure(figure, draw_one_against_two, table, "score of the test of one model and of two, the same images")
    print(f"{figure}_legend.png")
    lines = [("model", *(HEADS[name] for name in columns), "planted truth")]
    for model, row in rows.items():
        lines.append((model, *(figure_in_words(row[name]) for name in columns), f"{row['truth'].value:.3f}"))
    print_table(lines)


def csv_row(model: str, row: dict[str, Estimate]) -> dict[str, object]:
    columns = {"model": model}
    for name, estimate in row.items():
        columns[name] = estimate.value
    for name, estimate in row.items():
        columns |= bounds(name, estimate)
    return columns


def compared(
    model: str, two_models: Path, one_model: Path, chance: float, tied: str | None = None
) -> dict[str, Estimate]:
    """{name of COLUMNS, "tied" and "truth": estimate} of a model; the truth is what it knows beyond its backgrounds.

    tied: file of the images whose background predicts the class; the other backgrounds carry no information.
    """
    two, one = results_of(two_models), results_of(one_model)
    figures = one.both.one_model
    if figures is None or figures.delta is None or figures.score_minus_delta is None:
        raise InputError(f"{one_model}: holds no delta; attack with --unseen_idx_pth")
    difference = difference_of_attacks(model, two, one)
    if difference:
        raise InputError(f"{one_model}: {difference}: other than --two_models {two_models}; attack again with the same")
    twins = two.of(model).top_1.accuracy["100"]
    row = {
        "two_models": twins.score,
        "one_model": figures.score,
        "one_minus_two": paired_difference(model, two_models, one_model, one),
        "delta": figures.delta,
        "score_minus_delta": figures.score_minus_delta,
    }
    if tied:
        row["tied"], fraction = score_of_tied(one_model, tied)
        chance = fraction + (1 - fraction) * chance
    truth = twins.target.value - chance
    return {**row, "truth": Estimate(truth, truth, truth)}


def results_of(folder: Path) -> AttackResults:
    results = read_results(folder)
    if results is None:
        raise InputError(f"{folder / RESULTS}: no such file; label_inference_attack.py writes it")
    return results


def difference_of_attacks(model: str, two: AttackResults, one: AttackResults) -> str | None:
    """The first difference of what the two attacks were made from, beside the images attacked, in words; None where
    they agree, or where one has no record."""
    of_two, of_one = Provenance.from_plain(two.made_from), Provenance.from_plain(one.made_from)
    if of_two is None or of_one is None:
        return None
    same_name = of_one.of_model(ONE, model), of_two.of_model(model, model)
    return first_difference_in_words("one_model", *same_name)


def paired_difference(model: str, two_models: Path, one_model: Path, results: AttackResults) -> Estimate:
    """One-model score - two-model score of the same images: the twin's accuracy - that of the classifiers.

    The model's own predictions are the same in both. The interval includes the spread of the classifiers.
    """
    twin = pd.read_csv(existing_file(two_models / f"attack_{model}.csv", "--two_models")).set_index("index")
    attacks, spreads = [], []
    for name in SETS:
        judged = pd.read_csv(existing_file(one_model / f"attack_{name}.csv", model)).set_index("index")
        if not judged.index.isin(twin.index).all():
            raise InputError(f"{one_model}: attacks other images than set {model} of --two_models {two_models}")
        same = twin.loc[judged.index]
        attacks.append(mem.DirectedAttack(references_of(same), references_of(judged), same.label.to_numpy()))
        figures = results.of(name).one_model
        spreads.append(spread_of(figures.reference_accuracy_by_seed or []) if figures else None)
    return widened(mem.summarize(attacks, 1).score, spreads)


def references_of(table: pd.DataFrame) -> mem.Predictions:
    """The reference's predictions of an examples' table."""
    top = table.reference_top1.to_numpy()[:, None]
    return mem.Predictions(top, np.zeros(len(top)))


def score_of_tied(one_model: Path, tied: str) -> tuple[Estimate, float]:
    """(score of the tied images among the attacked ones, their fraction of these)."""
    parts = part_statistics(one_model, 0, read_split(tied, "--tied"))
    fractions = []
    for name in SETS:
        counts = [part.of(name).n for part in parts.values()]
        if sum(counts) != len(pd.read_csv(one_model / f"attack_{name}.csv")):
            raise InputError(f"--tied {tied}: does not hold the images of {one_model}")
        fractions.append(parts["tied"].of(name).n / sum(counts))
    return parts["tied"].both.top_1.accuracy["100"].score, float(np.mean(fractions))


if __name__ == "__main__":
    run(main)
