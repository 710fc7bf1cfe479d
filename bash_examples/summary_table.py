"""A short table of attacks: target and reference accuracy, chance and déjà vu score with 95 % intervals.

Reads the results.json of each attack folder named as LABEL=FOLDER; prints the table and writes it to --save_path.

    python bash_examples/summary_table.py --chance 0.2 --save_path /tmp/summary.csv \\
        projector=demo/seed0/simclr_600epochs/attack_sweeps/NN_attk_simclr_50pc_600ep
"""

import json
from pathlib import Path

import pandas as pd

from dejavu_utils.analysis.results import figure_in_words
from dejavu_utils.cli import Parser, existing_file, expanded, run
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv

COLUMNS = ("target", "reference", "score")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("attacks", nargs="+", metavar="LABEL=FOLDER", help="folders of label_inference_attack.py")
    parser.add_argument("--chance", type=float, required=True, help="accuracy of guessing, 1 / classes")
    parser.add_argument("--pct_confidences", type=int, nargs="+", default=[100, 20], help="per cents in results.json")
    parser.add_argument("--save_path", type=expanded, required=True, help="csv of the same figures, unrounded")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    rows, lines = [], [("", "examples", "target", "reference", "chance", "déjà vu score")]
    for attack in args.attacks:
        label, _, folder = attack.partition("=")
        path = existing_file(Path(folder) / "results.json", f"attack {label}")
        try:
            accuracy = json.loads(path.read_text(encoding="utf-8"))["both"]["top_1"]["accuracy"]
        except (ValueError, KeyError) as error:
            raise InputError(
                f"attack {label}: {path} was not written by label_inference_attack.py ({error!r})"
            ) from None
        for pct in args.pct_confidences:
            if str(pct) not in accuracy:
                raise InputError(f"--pct_confidences {pct}: {path} has {', '.join(accuracy)}")
            figures = accuracy[str(pct)]
            row = {"attack": label, "pct_confidence": pct, "chance": args.chance}
            for name in COLUMNS:
                row.update({f"{name}{'' if key == 'value' else '_' + key}": v for key, v in figures[name].items()})
            rows.append(row)
            cells = [figure_in_words(figures[name]) for name in COLUMNS]
            who = "all" if pct == 100 else f"most confident {pct} %"
            lines.append((label, who, *cells[:2], f"{args.chance:.3f}", cells[2]))
    save_csv(args.save_path, pd.DataFrame(rows))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


if __name__ == "__main__":
    run(main)
