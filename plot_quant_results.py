"""Figures of attacks and linear probes over epochs, data set sizes or a training parameter, with their numbers.

Reads every point that is there below --attk_folder_path (NN_attk_{model}_{n}pc_{E}ep/) and below
--lin_probe_folder_path (lp_{model}_{n}pc_{E}ep/); the statistics are made from the neighbor (or score) files. Writes
into --save_path, each as png, pdf and, with the legend, as *_legend, with its numbers beside it as csv:
attk_{epochs,datasets}_{acc,partition}_top{1,5}, lp_{epochs,datasets}_top{1,5}; with --sweep_param attk_params_* and
lp_param_vals_* instead.

    python plot_quant_results.py --model vicreg --epoch_sweep_dataset 300 --dataset_sweep_epoch 1000 \\
        --pct_confidences '20,100' --attk_folder_path $LOGGING_FOLDER/vicreg/attack_sweeps \\
        --lin_probe_folder_path $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug \\
        --save_path $LOGGING_FOLDER/vicreg/plot
    python plot_quant_results.py --model simclr --k_neighb 50 --epoch_sweep_dataset 50 --dataset_sweep_epoch 600 \\
        --pct_confidences '20,100' --attk_folder_path demo/seed0/simclr_600epochs/attack_sweeps \\
        --plot_lin_probe 0 --save_path /tmp/plot
"""

import argparse
from pathlib import Path

import pandas as pd

from dejavu_utils.files import save_csv
from dejavu_utils.memorization import SHARES, summarize
from dejavu_utils.options import InputError, Parser, existing_folder, positive_int, run, zero_or_one
from dejavu_utils.plots import save_accuracy_figures, save_partition_figures, save_probe_figures
from dejavu_utils.results import TOP_KS, read_attack, read_probe, sweep_points

# What --sweep_param may be: (folder names, the value that the digits in them stand for, label of the axis).
PARAMS = {
    "simclr.temperature": ("simclr_p{{}}t_{epoch}ep", lambda digits: float(f"0.{digits}"), "SimCLR temperature"),
    "vicreg.sim_coeff": ("vicreg_sim{{}}_{epoch}ep", float, "VICReg invariance coefficient"),
}


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--save_path", required=True, help="folder for the figures and their numbers")
    parser.add_argument("--model", default="vicreg", help="model name in the folder names, e.g. vicreg or simclr_rn50")
    parser.add_argument("--attk_folder_path", required=True, help="folder of the attacks")
    parser.add_argument(
        "--attack_fname",
        default="attack_sweeps",
        help="name of the attacks' folder; lets --attk_folder_path be the folder above it",
    )
    parser.add_argument("--plot_lin_probe", type=zero_or_one, default=1, help="1: figures of the linear probe too")
    parser.add_argument("--lin_probe_folder_path", help="folder of the linear probes")
    parser.add_argument("--k_neighb", type=positive_int, default=100, help="nearest public neighbors that vote")
    parser.add_argument(
        "--pct_confidences",
        type=percentages,
        default="5,10,30",
        help="per cent of the examples, the most confident ones, that the accuracies are taken over",
    )
    parser.add_argument("--epoch_sweep_dataset", type=int, default=300, help="images per class of the sweep of epochs")
    parser.add_argument(
        "--dataset_sweep_epoch", type=int, default=1000, help="epochs of the sweeps of data set sizes and parameters"
    )
    parser.add_argument("--sweep_param", choices=PARAMS, help="figures against this parameter instead")
    parser.add_argument("--sweep_values", type=float, nargs="+", help="these values only")
    return parser.parse_args(argv)


def percentages(text):
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: expected per cents joined by commas, for instance 20,100")
    return sorted(set(values))


def main():
    args = parse_args()
    attacks = existing_folder(args.attk_folder_path, "--attk_folder_path")
    if (attacks / args.attack_fname).is_dir():
        attacks = attacks / args.attack_fname
    if args.plot_lin_probe and not args.lin_probe_folder_path:
        raise InputError("--lin_probe_folder_path is needed: name a folder, or give --plot_lin_probe 0")
    plot_sweeps(args, attacks, "--attk_folder_path", "NN_attk_", attack_frames, "attk_{}_", "params")
    if args.plot_lin_probe:
        probes = existing_folder(args.lin_probe_folder_path, "--lin_probe_folder_path")
        plot_sweeps(args, probes, "--lin_probe_folder_path", "lp_", probe_frames, "lp_{}_", "param_vals")


def plot_sweeps(args, folder, flag, prefix, frames_of, stem, params):
    """Draws the figures of each sweep below `folder`; InputError if not one point is there."""
    tried, reasons, drawn = [], [], 0
    for x, plural, template, value, label in sweeps(args, params):
        tried.append((prefix + template).format("*"))
        points, left_out = read_points(args, folder, prefix + template, value, x)
        reasons += left_out
        if not points:
            print(f"note: no {tried[-1]} in {folder}: no figure of {plural}")
            continue
        for name, save, frame, top_k in frames_of(args, points, x):
            path = Path(args.save_path) / f"{stem.format(plural)}{name}top{top_k}"
            save_csv(f"{path}.csv", frame)
            save(path, frame, x, top_k, label)
            print(f"{path}.png, {len(points)} points")
            drawn += 1
    if not drawn and reasons:
        raise InputError(f"{flag}: no point could be read; the last reason: {reasons[-1]}")
    if not drawn:
        raise InputError(f"{flag} {folder}: nothing matches {' or '.join(tried)}")


def sweeps(args, params):
    """(column, word in the file names, folder template, value of the digits, label or None) of each sweep."""
    if args.sweep_param:
        template, value, label = PARAMS[args.sweep_param]
        return [("param", params, template.format(epoch=args.dataset_sweep_epoch), value, label)]
    return [
        ("epoch", "epochs", f"{args.model}_{args.epoch_sweep_dataset}pc_{{}}ep", int, None),
        ("dataset", "datasets", f"{args.model}_{{}}pc_{args.dataset_sweep_epoch}ep", int, None),
    ]


def read_points(args, folder, template, value, x):
    """([(value, what the folder holds)] of every point that is complete, why the others are left out)."""
    read = (lambda path: read_attack(path, args.k_neighb)) if template.startswith("NN_") else read_probe
    points, left_out = [], []
    for position, path in sweep_points(folder, template, value):
        if x == "param" and args.sweep_values and position not in args.sweep_values:
            continue
        try:
            points.append((position, read(path)))
        except InputError as error:
            print(f"note: left out: {error}")
            left_out.append(error)
    return points, left_out


def attack_frames(args, points, x):
    """Yields (part of the file name, function that draws, DataFrame, top_k) of an attack sweep."""
    for top_k in TOP_KS:
        accuracies, shares = [], []
        for position, sets in points:
            attacks = [attacked.attack for attacked in sets.values()]
            for pct in args.pct_confidences:
                summary = summarize(attacks, top_k, pct)
                target, reference, score = (summary[name] for name in ("target", "reference", "score"))
                accuracies.append(
                    {
                        x: position,
                        "pct_confidence": pct,
                        "target_acc": target["value"],
                        "reference_acc": reference["value"],
                        **bounds("target", target),
                        **bounds("reference", reference),
                        "score": score["value"],
                        **bounds("score", score),
                    }
                )
            row = {x: position, **{share: summary[share]["value"] for share in SHARES}}
            for share in SHARES:
                row.update(bounds(share, summary[share]))
            shares.append(row)
        yield "acc_", save_accuracy_figures, pd.DataFrame(accuracies), top_k
        yield "partition_", save_partition_figures, pd.DataFrame(shares), top_k


def probe_frames(args, points, x):
    """Yields (part of the file name, function that draws, DataFrame, top_k) of a sweep of linear probes."""
    for top_k in TOP_KS:
        rows = []
        for position, final in points:
            train, val = (final[name][f"top_{top_k}"] for name in ("train", "val"))
            accuracies = {x: position, "train_acc": train["value"], "val_acc": val["value"]}
            rows.append({**accuracies, **bounds("train", train), **bounds("val", val)})
        yield "", save_probe_figures, pd.DataFrame(rows), top_k


def bounds(name, figure):
    return {f"{name}_low": figure["low"], f"{name}_high": figure["high"]}


if __name__ == "__main__":
    run(main)
