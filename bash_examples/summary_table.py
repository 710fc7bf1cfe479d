"""A short table of attacks: accuracies, chance, ceiling and déjà vu score with 95 % intervals; or what runs share.

Reads the results.json of each attack folder, or its neighbor files where it has none; prints the table and writes it to
--save_path. Folders named as LABEL=FOLDER get a row each and confidence level. With --runs, the folders are the same
attack of several seeds or partitions: mean of the runs with a 95 % interval (Hartung & Knapp), standard deviation
between them, and tau, what of it their own intervals do not account for (Paule & Mandel). With --split FILE.csv, which
has a column path and one of 0 and 1, each attack's images with a 1 and those with a 0 have rows of their own. With
--runs and --agreement: are the images memorized in one run also memorized in another? Its matrix goes beside the table,
as *_agreement.csv and a figure. The table ends with what it says, where the gallery is, and what to run next.

    python bash_examples/summary_table.py --save_path /tmp/summary.csv \\
        projector=demo/seed0/simclr_300epochs/attack_sweeps/NN_attk_simclr_50pc_300ep
    python bash_examples/summary_table.py --save_path /tmp/runs.csv \\
        --runs demo/seed?/simclr_300epochs/attack_sweeps/NN_attk_simclr_50pc_300ep
    python bash_examples/summary_table.py --save_path /tmp/tied.csv --split demo/seed0_correlation0.8/data/tied.csv \\
        projector=demo/seed0_correlation0.8/simclr_300epochs/attack_sweeps/NN_attk_simclr_50pc_300ep
"""

import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.analysis.agreement import copies, disagreements, distinct
from dejavu_utils.analysis.attack_files import read_attack, read_split
from dejavu_utils.analysis.figures import draw_agreement, save_figure
from dejavu_utils.analysis.intervals import Estimate, combine_runs, estimate_columns, within
from dejavu_utils.analysis.report import POINTWISE, Evidence, conclusion_of_rows, figure_in_words, side
from dejavu_utils.analysis.results_json import RESULTS, AttackResults, LevelResults
from dejavu_utils.analysis.runs import agreement_in_words, agreement_table, memorized_images, short_names
from dejavu_utils.analysis.tables import part_statistics, read_statistics
from dejavu_utils.cli import Parser, add_paths, existing_folder, expanded, run
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv
from dejavu_utils.log import print_table

COLUMNS = ("target", "reference", "score")
NEXT = "figures with plot_quant_results.py; other seeds with SEED=1, then this table with --runs."


@dataclass
class Table:
    """rows: of the csv. lines: cells to print, the head first. says: what the table says."""

    rows: list[dict[str, Any]]
    lines: list[tuple[str, ...]]
    says: str = ""


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="LABEL=FOLDER", help="folders of label_inference_attack.py")
    parser.add_argument("--runs", type=expanded, nargs="+", metavar="FOLDER", help="folders of one attack's runs")
    split = {"--split": "csv of path and a column of 0 and 1: the images of either alone"}
    add_paths(parser, split, required=False)
    parser.add_argument("--agreement", action="store_true", help="image by image: is the same memorized in all --runs?")
    parser.add_argument("--k_attk", type=int, default=0, help="neighbors that vote; 0: as in results.json, else all")
    parser.add_argument("--pct_confidences", type=int, nargs="+", default=[100, 20], help="per cents in results.json")
    add_paths(parser, {"--save_path": "csv of the same figures, unrounded"})
    parser.add_argument("--next", default=NEXT, help="what the last line suggests")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    if bool(args.attacks) == bool(args.runs):
        raise InputError("name attacks as LABEL=FOLDER, or their runs with --runs")
    if args.agreement and not args.runs:
        raise InputError("--agreement: compares the runs of --runs; name at least two")
    attacks, levels = labeled(args.attacks), args.pct_confidences
    runs, notes = distinct([existing_folder(folder, "--runs") for folder in args.runs or ()])
    twice, about_copies = copies(attacks)
    attacks = {label: folder for label, folder in attacks.items() if label not in twice}
    notes += [f"{text}, and both count once" for text in about_copies]
    folders = {folder: folder for folder in runs} or attacks
    differs, about_records = disagreements("runs" if runs else "table", folders)
    if runs:
        table = table_of_runs(runs, args.k_attk, levels, "; ".join(filter(None, differs.values())))
    else:
        split = read_split(args.split, "--split") if args.split else {}
        table = table_of_attacks(attacks, args.k_attk, levels, split, f"--split {args.split}")
        for row in table.rows:
            row["differs"] = differs[row.pop("of")]
    save_csv(args.save_path, pd.DataFrame(table.rows))
    print_table(table.lines)
    for note in notes + about_records:
        print(f"note: {note}")
    if args.agreement:
        table.says += " " + save_agreement(runs, args.k_attk, Path(args.save_path).with_suffix(""))
    print(f"What the table says: {table.says} {POINTWISE}")
    print(f"Examples to look at: {next(iter(folders.values())) / 'attack_gallery.html'}")
    print(f"Next: {args.next}")


def labeled(attacks: list[str]) -> dict[str, Path]:
    """{LABEL: FOLDER}"""
    folders = {}
    for attack in attacks:
        label, equals, folder = attack.partition("=")
        if not equals or label in folders:
            raise InputError(f"{attack}: name each attack as LABEL=FOLDER, with a label of its own")
        folders[label] = Path(folder)
    return folders


def table_of_attacks(
    attacks: dict[str, Path], k_attk: int, levels: list[int], split: dict[str, set[str]], flag: str
) -> Table:
    """An attack, part of its images and level in each row. split: paths of the parts' images. flag: with its file."""
    table = Table([], [("", "examples", "target", "reference", "chance", "ceiling", "déjà vu score")])
    evidence = []
    for label, folder in attacks.items():
        results = read_statistics(existing_folder(folder, f"attack {label}"), k_attk)
        parts = {label: results}
        if split:
            of_parts = part_statistics(folder, k_attk, split)
            check_split(flag, folder, results, of_parts)
            parts |= {f"{label}, {part}": of_part for part, of_part in of_parts.items()}
        ceiling = results.mean_ceiling.top_1 if results.mean_ceiling else None
        for name, of_part in parts.items():
            for pct in levels:
                figures = figures_at(of_part, pct, folder)
                row, line = row_and_line(name, pct, figures, ceiling)
                table.rows.append({**row, "of": label})
                table.lines.append(line)
                if not np.isnan(figures.score.value):
                    evidence.append((f"{name} ({who(pct)})", evidence_at(of_part, pct, ceiling)))
    table.says = conclusion_of_rows(evidence)
    return table


def check_split(flag: str, folder: Path, results: AttackResults, parts: dict[str, AttackResults]) -> None:
    """InputError for a list that leaves attacked images out, or has none of one kind."""
    listed = sum(of_part.both.n for of_part in parts.values())
    if listed < results.both.n:
        raise InputError(f"{flag}: lists {listed} of the {results.both.n} attacked images of {folder}")
    for name, of_part in parts.items():
        if not (of_part.A.n and of_part.B.n):
            raise InputError(f"{flag}: no attacked image of set {'B' if of_part.A.n else 'A'} is {name}")


def evidence_at(results: AttackResults, pct: int, ceiling: Estimate | None) -> Evidence:
    """Evidence of one level of confidence; the margin of votes is of all examples."""
    evidence = replace(Evidence.of(results), ceiling=ceiling)
    figures = results.both.top_1.accuracy[str(pct)]
    return evidence if pct == 100 else replace(evidence, score=figures.score, margin=None)


def row_and_line(
    label: str, pct: int, figures: LevelResults, ceiling: Estimate | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(row of the csv, cells to print) of an attack and level."""
    chance = None if np.isnan(figures.chance) else figures.chance
    row = {"attack": label, "pct_confidence": pct, "chance": chance}
    words = {}
    for name in COLUMNS:
        estimate = getattr(figures, name)
        row |= estimate_columns(name, estimate)
        words[name] = figure_in_words(estimate)
    if ceiling:
        row |= estimate_columns("ceiling", ceiling)
    limits = [f"{value:.3f}" if value is not None else "" for value in (chance, ceiling and ceiling.value)]
    return row, (label, who(pct), words["target"], words["reference"], *limits, words["score"])


def table_of_runs(runs: list, k_attk: int, levels: list[int], differs: str) -> Table:
    """A level and figure in each row. runs: their folders. differs: how they were made otherwise, in words."""
    if len(runs) < 2:
        raise InputError(f"--runs {runs[0]}: name at least two runs with results of their own; one has no spread")
    results = [read_statistics(folder, k_attk) for folder in runs]
    table = Table([], [("examples", "", f"mean of {len(runs)} runs", "SD between runs", "tau", "lowest", "highest")])
    scores = {}
    for pct in levels:
        of_runs = [figures_at(of_run, pct, folder) for folder, of_run in zip(runs, results)]
        for name in COLUMNS:
            estimates = [getattr(figures, name) for figures in of_runs]
            values = [estimate.value for estimate in estimates]
            for folder, value in zip(runs, values):
                if np.isnan(value):
                    raise InputError(f"--runs {folder}: has no example among the most confident {pct} %")
            summary = combine_runs(estimates)
            mean = within(summary, -1.0 if name == "score" else 0.0)
            if name == "score":
                scores[pct] = mean
            row = {"pct_confidence": pct, "figure": name, **vars(summary), "low": mean.low, "high": mean.high}
            lowest, highest = min(values), max(values)
            table.rows.append({**row, "lowest": lowest, "highest": highest, "differs": differs})
            spread = [f"{value:.3f}" for value in (summary.sd, summary.tau, lowest, highest)]
            table.lines.append((who(pct), name, figure_in_words(mean), *spread))
    table.says = runs_in_words(scores, len(runs))
    return table


def runs_in_words(scores: dict[int, Estimate], count: int) -> str:
    """The mean score of the runs, of all examples or the largest fraction there is."""
    pct = max(scores)
    clear = {1: "above 0", -1: "below 0", 0: "not clear of 0"}[side(scores[pct])]
    return f"mean déjà vu score of {count} runs ({who(pct)}) {figure_in_words(scores[pct])}: {clear}."


def save_agreement(folders: list, k_attk: int, path: Path) -> str:
    """Writes the agreement of the runs beside the table; returns what it says. path: of the table, without suffix."""
    runs = {}
    for name, folder in zip(short_names(folders), folders):
        runs[name] = memorized_images(read_attack(folder, k_attk))
    table = agreement_table(runs)
    save_csv(f"{path}_agreement.csv", table)
    save_figure(f"{path}_agreement", draw_agreement, table, f"memorized images of {len(runs)} runs, top-1")
    print(f"{path}_agreement_legend.png")
    return agreement_in_words(table)


def figures_at(results: AttackResults, pct: int, folder: Path) -> LevelResults:
    """The figures of one level; InputError names those that there are."""
    accuracy = results.both.top_1.accuracy
    if str(pct) not in accuracy:
        raise InputError(f"--pct_confidences {pct}: {folder / RESULTS} has {', '.join(accuracy)}")
    return accuracy[str(pct)]


def who(pct: int) -> str:
    return "all" if pct == 100 else f"most confident {pct} %"


if __name__ == "__main__":
    run(main)
