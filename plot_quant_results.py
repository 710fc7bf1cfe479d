"""Figures of attacks and linear probes over epochs, data set sizes or a training parameter, with their numbers.

Reads every point that is there below --attk_folder_path (NN_attk_{model}_{n}pc_{E}ep/) and below
--lin_probe_folder_path (lp_{model}_{n}pc_{E}ep/); the statistics are made from the neighbor (or score) files. Writes
into --save_path, each as png, pdf and, with the legend, as *_legend, with its numbers beside it as csv:
attk_{epochs,datasets}_{acc,partition}_top{1,5}; lp_{epochs,datasets}_top{1,5}; score_probe_gap_top{1,5}, the déjà vu
score beside the gap that the linear probe shows; and of the one point at --epoch_sweep_dataset and
--dataset_sweep_epoch attk_confidence_top{1,5}, accuracy against the fraction of most confident examples, and
attk_layers_acc_top{1,5}, of all layers that were attacked: in its subfolders, or in attack_sweeps_backbone beside
attack_sweeps. Where sslmem.py's folders lie beside the attacks', sslmem_sweeps/sslmem_{model}_{n}pc_{E}ep/,
score_sslmem_top{1,5}, the déjà vu score beside the mean SSLMem, and attk_sslmem_outcomes_top{1,5}, the mean SSLMem of
each outcome. With --sweep_param attk_params_* and lp_param_vals_* instead.

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

from dejavu_utils.analysis.attack_files import read_attack, read_ceiling, read_probe
from dejavu_utils.analysis.figures import (
    STYLES,
    figure_style,
    save_accuracy_figures,
    save_confidence_figures,
    save_gap_figures,
    save_layer_figures,
    save_partition_figures,
    save_probe_figures,
)
from dejavu_utils.analysis.intervals import difference
from dejavu_utils.analysis.memorization import OUTCOMES, TOP_KS, summarize_levels
from dejavu_utils.analysis.tables import accuracy_columns, bounds, confidence_curve, directions
from dejavu_utils.cli import Parser, existing_folder, expanded, positive_int, run, zero_or_one
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv
from dejavu_utils.label_free.compare import outcome_means, read_directions, read_scores
from dejavu_utils.label_free.figures import save_epoch_figures, save_outcome_figures
from dejavu_utils.naming import (
    ATTACK_FOLDERS,
    ATTACK_PREFIX,
    LAYERS_BESIDE,
    PROBE_PREFIX,
    SWEEPS,
    attacked_layers,
    sslmem_beside,
    sweep_of,
    sweep_points,
)

# Labels of the axes.
LABELS = {
    "simclr.temperature": "SimCLR temperature",
    "vicreg.sim_coeff": "VICReg invariance coefficient",
    "corner_crop_frac": "side of the corner crop / side of the image",
}
LAYERS = ("backbone", "projector", "logits")
CURVE = range(10, 101, 2)  # per cents of the confidence curve


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--save_path", type=expanded, required=True, help="folder for the figures and their numbers")
    parser.add_argument("--model", default="vicreg", help="model name in the folder names, e.g. vicreg or simclr_rn50")
    parser.add_argument("--attk_folder_path", type=expanded, required=True, help="folder of the attacks")
    parser.add_argument(
        "--attack_fname",
        default=ATTACK_FOLDERS["projector"],
        help="name of the attacks' folder; lets --attk_folder_path be the folder above it",
    )
    parser.add_argument("--plot_lin_probe", type=zero_or_one, default=1, help="1: figures of the linear probe too")
    parser.add_argument("--lin_probe_folder_path", type=expanded, help="folder of the linear probes")
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
    parser.add_argument(
        "--layer", help="layer of the attacks, for all but attk_layers; default: projector, or the one that is there"
    )
    parser.add_argument("--style", choices=STYLES, default=STYLES[0], help="science: SciencePlots', if it is installed")
    text = "figures against this parameter instead: section.setting of train_SSL.py, or corner_crop_frac"
    parser.add_argument("--sweep_param", type=sweep_parameter, help=text)
    parser.add_argument("--sweep_values", type=float, nargs="+", help="these values only")
    return parser.parse_args(argv)


def sweep_parameter(text):
    try:
        sweep_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


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
    with figure_style(args.style):
        scored = plot_sweeps(args, attacks, "--attk_folder_path", ATTACK_PREFIX, attack_frames, "attk_{}_", "params")
        if not args.sweep_param:
            plot_point(args, attacks)
            save_all(args, "score_sslmem_", sslmem_frames(args, attacks, scored["epoch"]), "epoch", None)
        if args.plot_lin_probe and (not args.sweep_param or sweep_of(args.sweep_param).own_models):
            probes = existing_folder(args.lin_probe_folder_path, "--lin_probe_folder_path")
            probed = plot_sweeps(
                args, probes, "--lin_probe_folder_path", PROBE_PREFIX, probe_frames, "lp_{}_", "param_vals"
            )
            if not args.sweep_param:
                save_all(args, "score_probe_gap_", gap_frames(scored["epoch"], probed["epoch"]), "epoch", None)


def plot_sweeps(args, folder, flag, prefix, frames_of, stem, params):
    """Draws the figures of each sweep below `folder`; {column: its frames}. InputError if not one point is there."""
    tried, reasons, found = [], [], {}
    for x, plural, template, value, label in sweeps(args, params):
        tried.append((prefix + template).format("*"))
        points, left_out = read_points(args, folder, prefix + template, value, x)
        reasons += left_out
        if not points:
            print(f"note: no {tried[-1]} in {folder}: no figure of {plural}")
        found[x] = save_all(args, stem.format(plural), frames_of(args, points, x), x, label) if points else {}
    if not any(found.values()) and reasons:
        raise InputError(f"{flag}: no point could be read; the last reason: {reasons[-1]}")
    if not any(found.values()):
        raise InputError(f"{flag} {folder}: nothing matches {' or '.join(tried)}")
    return found


def save_all(args, stem, frames, *how):
    """Draws and writes each frame: (part of the file name, function that draws, DataFrame, top_k).

    how: what the function that draws takes beside them. Returns {(part of the file name, top_k): DataFrame}.
    """
    saved = {}
    for name, save, frame, top_k in frames:
        path = Path(args.save_path) / f"{stem}{name}top{top_k}"
        save_csv(f"{path}.csv", frame)
        save(path, frame, *how[:1], top_k, *how[1:])
        print(f"{path}.png")
        saved[name, top_k] = frame
    return saved


def plot_point(args, folder):
    """Draws the confidence curve, and the layers if there are several, of the point where both sweeps meet."""
    meeting = SWEEPS["epochs"].at(args.dataset_sweep_epoch, args.model, args.epoch_sweep_dataset)
    point = folder / f"{ATTACK_PREFIX}{meeting.name}"
    layers = attacked_layers(point)
    if folder.name == ATTACK_FOLDERS["projector"]:
        for name in LAYERS_BESIDE:
            layers = {**attacked_layers(folder.parent / name / point.name), **layers}
    read = {}
    for layer in sorted(layers, key=place_in_network):
        try:
            read[layer] = with_ceiling(args, layers[layer])
        except InputError as error:
            print(f"note: left out: {error}")
    if read:
        own = args.layer or ("projector" if "projector" in read else next(iter(attacked_layers(point)), None))
        if own not in read and args.layer:
            print(f"note: no {args.layer} in {point}: no figure of the confidence")
        save_all(args, "attk_confidence_", confidence_frames(*read[own]) if own in read else ())
        if own in read:
            save_all(args, "attk_sslmem_outcomes_", outcome_frames(point, read[own][0]))
    if len(read) > 1:
        save_all(args, "attk_layers_acc_", layer_frames(args, read))


def place_in_network(layer):
    """Sorts backbone, projector.0, projector.1, ..., projector, logits."""
    name, _, number = layer.partition(".")
    return LAYERS.index(name), int(number) if number else 1000


def sweeps(args, params):
    """(column, word in the file names, folder template, value of the digits, label or None) of each sweep."""
    names = (args.model, args.epoch_sweep_dataset, args.dataset_sweep_epoch)
    if args.sweep_param:
        sweep = sweep_of(args.sweep_param)
        label = LABELS.get(args.sweep_param, args.sweep_param)
        return [("param", params, sweep.template(*names), sweep.value, label)]
    return [
        (column, word, SWEEPS[word].template(*names), int, None)
        for column, word in (("epoch", "epochs"), ("dataset", "datasets"))
    ]


def read_points(args, folder, template, value, x):
    """([(value, what the folder holds)] of every point that is complete, why the others are left out)."""
    is_attack = template.startswith(ATTACK_PREFIX)

    def read(path):
        if not is_attack:
            return read_probe(path)
        layers = attacked_layers(path)
        if args.layer and layers and args.layer not in layers:
            raise InputError(f"--layer {args.layer}: {path} holds {', '.join(sorted(layers, key=place_in_network))}")
        return with_ceiling(args, layers.get(args.layer or "projector", path))

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


def with_ceiling(args, folder):
    """(sets of read_attack, ceiling or None) of one layer of an attack."""
    return read_attack(folder, args.k_neighb), read_ceiling(folder, args.k_neighb)


def columns_at(args, sets, ceiling, top_k):
    """[the columns of the accuracies, and memorization.summarize's dict they are from] of each confidence level."""
    top = ceiling and ceiling[f"top_{top_k}"]
    summaries = summarize_levels(directions(sets), top_k, args.pct_confidences)
    return [
        ({"pct_confidence": pct, **accuracy_columns(summary, top)}, summary)
        for pct, summary in zip(args.pct_confidences, summaries)
    ]


def attack_frames(args, points, x):
    """Yields (part of the file name, function that draws, DataFrame, top_k) of an attack sweep."""
    for top_k in TOP_KS:
        accuracies, outcomes = [], []
        for position, (sets, ceiling) in points:
            levels = columns_at(args, sets, ceiling, top_k)
            accuracies += [{x: position, **columns} for columns, _ in levels]
            summary = levels[0][1]  # the shares are of all examples at every level
            row = {x: position, **{outcome: summary[outcome]["value"] for outcome in OUTCOMES}}
            for outcome in OUTCOMES:
                row.update(bounds(outcome, summary[outcome]))
            outcomes.append(row)
        yield "acc_", save_accuracy_figures, pd.DataFrame(accuracies), top_k
        yield "partition_", save_partition_figures, pd.DataFrame(outcomes), top_k


def layer_frames(args, layers):
    """Yields the frames of the layers of one point. layers: {name: `with_ceiling`}, in the network's order."""
    for top_k in TOP_KS:
        rows = [
            {"layer": layer, **columns}
            for layer, (sets, ceiling) in layers.items()
            for columns, _ in columns_at(args, sets, ceiling, top_k)
        ]
        yield "", save_layer_figures, pd.DataFrame(rows), top_k


def confidence_frames(sets, ceiling):
    """Yields the frames of the confidence curve of one point."""
    curve = confidence_curve(sets, CURVE, ceiling)
    for top_k in TOP_KS:
        yield "", save_confidence_figures, curve[curve["top_k"] == top_k].drop(columns="top_k"), top_k


def outcome_frames(point, sets):
    """Yields the frames of the mean SSLMem of each outcome, where label-free scores lie beside the attack `point`."""
    found = beside(read_scores, point)
    for top_k in TOP_KS if found else ():
        yield "", save_outcome_figures, outcome_means(found, sets, top_k), top_k


def sslmem_frames(args, folder, attacks):
    """Yields the frames of the déjà vu score beside the mean SSLMem, of the epochs that have both.

    folder: of the attacks. attacks: their frames against epochs, as `save_all` returns them.
    """
    found, template = {}, sweeps(args, None)[0][2]
    for epoch, path in sweep_points(folder, ATTACK_PREFIX + template) if attacks else ():
        found[epoch] = beside(read_directions, path) or {}
    for top_k in TOP_KS if any(found.values()) else ():
        scores = attacks["acc_", top_k]
        rows = [
            {"epoch": row["epoch"], "instrument": "deja_vu", "of": f"{row['pct_confidence']:g}", "value": row["score"]}
            | {"low": row["score_low"], "high": row["score_high"]}
            for row in scores[scores["epoch"].isin([epoch for epoch in found if found[epoch]])].to_dict("records")
        ]
        for epoch, layers in found.items():
            rows += [{"epoch": epoch, "instrument": "sslmem", "of": layer, **of} for layer, of in layers.items()]
        yield "", save_epoch_figures, pd.DataFrame(rows), top_k


def beside(read, attack):
    """What `read` gives of the folder of label-free scores beside an attack; None where there is none."""
    folder = sslmem_beside(attack)
    if folder is None or not folder.is_dir():
        return None
    try:
        return read(folder)
    except InputError as error:
        print(f"note: left out: {error}")
        return None


def gap_frames(attacks, probes):
    """Yields the frames of the déjà vu score beside the linear probe's gap, of the epochs that have both.

    attacks, probes: the frames of both against epochs, as `save_all` returns them.
    """
    for top_k in TOP_KS:
        rows = []
        for row in probes["", top_k].to_dict("records") if probes else ():
            gap = difference(
                *(
                    {"value": row[f"{n}_acc"], "low": row[f"{n}_low"], "high": row[f"{n}_high"]}
                    for n in ("train", "val")
                )
            )
            rows.append({"epoch": row["epoch"], "probe_gap": gap["value"], **bounds("probe_gap", gap)})
        if attacks and rows:
            scores = attacks["acc_", top_k][["epoch", "pct_confidence", "score", "score_low", "score_high"]]
            frame = scores.merge(pd.DataFrame(rows), on="epoch")
            if len(frame):
                yield "", save_gap_figures, frame, top_k


def probe_frames(args, points, x):
    """Yields (part of the file name, function that draws, DataFrame, top_k) of a sweep of linear probes."""
    for top_k in TOP_KS:
        rows = []
        for position, final in points:
            train, val = (final[name][f"top_{top_k}"] for name in ("train", "val"))
            accuracies = {x: position, "train_acc": train["value"], "val_acc": val["value"]}
            rows.append({**accuracies, **bounds("train", train), **bounds("val", val)})
        yield "", save_probe_figures, pd.DataFrame(rows), top_k


if __name__ == "__main__":
    run(main)
