"""A short table of attacks: accuracies, chance, ceiling and déjà vu score with 95 % intervals; or what runs share.

Reads the results.json of each attack folder, or its neighbor files where it has none; prints the table and writes it to
--save_path. Folders named as LABEL=FOLDER get a row each and confidence level. With --runs, the folders are the same
attack of several seeds or partitions: mean of the runs with a 95 % interval (Hartung & Knapp), standard deviation
between them, and tau, what of it their own intervals do not account for (Paule & Mandel). With --split FILE.csv, which
has a column path and one of 0 and 1, each attack's images with a 1 and those with a 0 have rows of their own. With
--runs and --agreement: are the images memorized in one run also memorized in another? Its matrix goes beside the table,
as *_agreement.csv and a figure. The table ends with what it says, where the gallery is, and what to run next.

    python bash_examples/summary_table.py --save_path /tmp/summary.csv \\
        projector=demo/seed0/simclr_600epochs/attack_sweeps/NN_attk_simclr_50pc_600ep
    python bash_examples/summary_table.py --save_path /tmp/runs.csv \\
        --runs demo/seed?/simclr_600epochs/attack_sweeps/NN_attk_simclr_50pc_600ep
    python bash_examples/summary_table.py --save_path /tmp/tied.csv --split demo/seed0_correlation0.8/data/tied.csv \\
        projector=demo/seed0_correlation0.8/simclr_600epochs/attack_sweeps/NN_attk_simclr_50pc_600ep
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.analysis.agreement import disagreements, distinct
from dejavu_utils.analysis.attack_files import RESULTS, read_attack, read_split
from dejavu_utils.analysis.figures import draw_agreement, save_figure
from dejavu_utils.analysis.intervals import bounds, combine_runs, within
from dejavu_utils.analysis.report import POINTWISE, Evidence, conclusion_of_rows, figure_in_words
from dejavu_utils.analysis.runs import agreement_in_words, agreement_table, memorized_images, short_names
from dejavu_utils.analysis.tables import part_statistics, read_statistics
from dejavu_utils.cli import Parser, existing_folder, expanded, run
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv
from dejavu_utils.log import print_table

COLUMNS = ("target", "reference", "score")
NEXT = "figures with plot_quant_results.py; other seeds with SEED=1, then this table with --runs."


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="LABEL=FOLDER", help="folders of label_inference_attack.py")
    parser.add_argument("--runs", type=expanded, nargs="+", metavar="FOLDER", help="folders of one attack's runs")
    parser.add_argument(
        "--split", type=expanded, help="csv of path and a column of 0 and 1: the images of either alone"
    )
    parser.add_argument("--agreement", action="store_true", help="image by image: is the same memorized in all --runs?")
    parser.add_argument("--k_attk", type=int, default=0, help="neighbors that vote; 0: as in results.json, else all")
    parser.add_argument("--pct_confidences", type=int, nargs="+", default=[100, 20], help="per cents in results.json")
    parser.add_argument("--save_path", type=expanded, required=True, help="csv of the same figures, unrounded")
    parser.add_argument("--next", default=NEXT, help="what the last line suggests")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if bool(args.attacks) == bool(args.runs):
        raise InputError("name attacks as LABEL=FOLDER, or their runs with --runs")
    labels = [attack.partition("=")[0] for attack in args.attacks]
    for attack, label in zip(args.attacks, labels):
        if "=" not in attack or labels.count(label) > 1:
            raise InputError(f"{attack}: name each attack as LABEL=FOLDER, with a label of its own")
    if args.agreement and not args.runs:
        raise InputError("--agreement: compares the runs of --runs; name at least two")
    notes, differing = check_joined(args)
    rows, lines, says = table_of_runs(args, differing) if args.runs else table_of_attacks(args, differing)
    save_csv(args.save_path, pd.DataFrame(rows))
    print_table(lines)
    for note in notes:
        print(f"note: {note}")
    if args.agreement:
        says += " " + save_agreement(args)
    folder = args.runs[0] if args.runs else args.attacks[0].partition("=")[2]
    print(f"What the table says: {says} {POINTWISE}")
    print(f"Examples to look at: {Path(folder) / 'attack_gallery.html'}")
    print(f"Next: {args.next}")


def check_joined(args):
    """(notes, {label of an attack or folder of a run: how it was made otherwise than the first, in words, or ""}).

    A run that is there twice, through a link or as a copy, counts once: the others must be independent.
    """
    notes, folders = [], dict(attack.partition("=")[::2] for attack in args.attacks)
    if args.runs:
        args.runs, notes = distinct([existing_folder(folder, "--runs") for folder in args.runs])
        folders = {folder: folder for folder in args.runs}
    differing, about_records = disagreements("runs" if args.runs else "table", folders)
    return notes + about_records, differing


def table_of_attacks(args, differing):
    """(rows of the csv, lines of cells to print, what they say), an attack and level each."""
    rows, evidence, lines = [], [], [("", "examples", "target", "reference", "chance", "ceiling", "déjà vu score")]
    for attack in args.attacks:
        label, _, folder = attack.partition("=")
        results = read_statistics(existing_folder(folder, f"attack {label}"), args.k_attk)
        parts = {label: results}
        if args.split:
            of_parts = part_statistics(folder, args.k_attk, read_split(args.split, "--split"))
            check_split(args.split, folder, results, of_parts)
            parts |= {f"{label}, {part}": of_part for part, of_part in of_parts.items()}
        ceiling = results.mean_ceiling
        for name, of_part in parts.items():
            for pct in args.pct_confidences:
                figures = figures_at(of_part, pct, folder)
                row, line = row_and_line(name, pct, figures, ceiling and ceiling.top_1)
                rows.append({**row, "differs": differing[label]})
                lines.append(line)
                if not np.isnan(figures.score.value):
                    evidence.append((f"{name} ({who(pct)})", evidence_at(of_part, pct, ceiling and ceiling.top_1)))
    return rows, lines, conclusion_of_rows(evidence)


def check_split(path, folder, results, parts):
    """InputError for a list that leaves attacked images out, or has none of one kind."""
    listed = sum(of_part.both.n for of_part in parts.values())
    if listed < results.both.n:
        raise InputError(f"--split {path}: lists {listed} of the {results.both.n} attacked images of {folder}")
    for name, of_part in parts.items():
        if not (of_part.A.n and of_part.B.n):
            raise InputError(f"--split {path}: no attacked image of set {'B' if of_part.A.n else 'A'} is {name}")


def evidence_at(results, pct, ceiling):
    """Evidence of one level of confidence; the margin of votes is of all examples."""
    evidence = replace(Evidence.of(results), ceiling=ceiling)
    figures = results.both.top_1.accuracy[str(pct)]
    return evidence if pct == 100 else replace(evidence, score=figures.score, margin=None)


def row_and_line(label, pct, figures, ceiling):
    """(row of the csv, cells to print) of an attack and level. figures: LevelResults. ceiling: Estimate or None."""
    chance = None if np.isnan(figures.chance) else figures.chance
    row = {"attack": label, "pct_confidence": pct, "chance": chance}
    for name in COLUMNS:
        row |= {name: getattr(figures, name).value, **bounds(name, getattr(figures, name))}
    if ceiling:
        row |= {"ceiling": ceiling.value, **bounds("ceiling", ceiling)}
    limits = [f"{value:.3f}" if value is not None else "" for value in (chance, ceiling and ceiling.value)]
    target, reference, score = (figure_in_words(getattr(figures, name)) for name in COLUMNS)
    return row, (label, who(pct), target, reference, *limits, score)


def table_of_runs(args, differing):
    """(rows of the csv, lines of cells to print, what they say), a level and figure each."""
    if len(args.runs) < 2:
        raise InputError(f"--runs {args.runs[0]}: name at least two runs with results of their own; one has no spread")
    runs = {folder: read_statistics(existing_folder(folder, "--runs"), args.k_attk) for folder in args.runs}
    rows, scores = [], {}
    lines = [("examples", "", f"mean of {len(runs)} runs", "SD between runs", "tau", "lowest", "highest")]
    for pct in args.pct_confidences:
        of_runs = {folder: figures_at(results, pct, folder) for folder, results in runs.items()}
        for name in COLUMNS:
            estimates = [getattr(figures, name) for figures in of_runs.values()]
            values = [estimate.value for estimate in estimates]
            for folder, value in zip(runs, values):
                if np.isnan(value):
                    raise InputError(f"--runs {folder}: has no example among the most confident {pct} %")
            summary = combine_runs(estimates)
            mean = within(summary, -1.0 if name == "score" else 0.0)
            scores |= {pct: mean} if name == "score" else {}
            extremes = {"lowest": min(values), "highest": max(values)}
            row = {**vars(summary), "low": mean.low, "high": mean.high, **extremes}
            row["differs"] = "; ".join(filter(None, differing.values()))
            rows.append({"pct_confidence": pct, "figure": name, **row})
            spread = (f"{value:.3f}" for value in (summary.sd, summary.tau, *extremes.values()))
            lines.append((who(pct), name, figure_in_words(mean), *spread))
    return rows, lines, runs_in_words(scores, len(runs))


def runs_in_words(scores, count):
    """The mean score of the runs, of all examples or the largest fraction there is."""
    pct = max(scores)
    clear = "above 0" if scores[pct].low > 0 else "below 0" if scores[pct].high < 0 else "not clear of 0"
    return f"mean déjà vu score of {count} runs ({who(pct)}) {figure_in_words(scores[pct])}: {clear}."


def save_agreement(args):
    """Writes the agreement of the runs beside the table; returns what it says."""
    runs = {}
    for name, folder in zip(short_names(args.runs), args.runs):
        runs[name] = memorized_images(read_attack(folder, args.k_attk))
    table = agreement_table(runs)
    path = Path(args.save_path).with_suffix("")
    save_csv(f"{path}_agreement.csv", table)
    save_figure(f"{path}_agreement", draw_agreement, table, f"memorized images of {len(runs)} runs, top-1")
    print(f"{path}_agreement_legend.png")
    return agreement_in_words(table)


def figures_at(results, pct, folder):
    """LevelResults of an attack's AttackResults."""
    accuracy = results.both.top_1.accuracy
    if str(pct) not in accuracy:
        raise InputError(f"--pct_confidences {pct}: {Path(folder) / RESULTS} has {', '.join(accuracy)}")
    return accuracy[str(pct)]


def who(pct):
    return "all" if pct == 100 else f"most confident {pct} %"


if __name__ == "__main__":
    run(main)
