"""Figures of attacks and linear probes over epochs, data set sizes or a training parameter, with their numbers.

Reads every point that is there below --attk_folder_path (NN_attk_{model}_{n}pc_{E}ep/) and below
--lin_probe_folder_path (lp_{model}_{n}pc_{E}ep/); the statistics are made from the neighbor (or score) files. Writes
into --save_path, each as png, pdf and, with the legend, as *_legend, with its numbers beside it as csv:
attk_{epochs,datasets}_{acc,partition}_top{1,5}; lp_{epochs,datasets}_top{1,5}; score_probe_gap_top{1,5}, the déjà vu
score beside the gap that the linear probe shows;
score_utility_top{1,5}, against the probe's accuracy; and of the one point at --epoch_sweep_dataset and
--dataset_sweep_epoch attk_confidence_top{1,5}, accuracy against the fraction of most confident examples, and
attk_votes_top{1,5}, against the neighbors that vote, attk_classes_top{1,5}, of each class, and
attk_membership, ROC of set A against set B, and attk_layers_{acc,utility}_top{1,5}, of all layers that were attacked:
in its subfolders, or in attack_sweeps_backbone beside attack_sweeps; attk_grid_{,lines_}top{1,5} of all sizes at all
epochs (SWEEP=grid); of the test of one model attk_memorization_confidence. With several models, each with its folders,
criteria_top{1,5} and score_utility_top{1,5} of all alone.
Where sslmem.py's folders lie beside the attacks', sslmem_sweeps/sslmem_{model}_{n}pc_{E}ep/,
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

from dejavu_utils.analysis.attack_files import (
    attacked_layers,
    read_attack,
    read_confidences,
    read_results,
)
from dejavu_utils.analysis.figures import (
    STYLES,
    figure_style,
    save_entropy_figure,
    save_epoch_figures,
    save_outcome_figures,
    save_roc_figure,
)
from dejavu_utils.analysis.frames import (
    Attack,
    attack_frames,
    class_frames,
    confidence_frames,
    criteria_frames,
    gap_frames,
    grid_frames,
    layer_frames,
    layer_utility_frames,
    probe_frames,
    utility_frames,
    vote_frames,
)
from dejavu_utils.analysis.membership import margin_scores, roc_table
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.points import PLURALS, Output, Series, place_in_network, probes_of, what_votes
from dejavu_utils.analysis.report import POINTWISE
from dejavu_utils.analysis.tables import directions
from dejavu_utils.cli import Parser, existing_folder, expanded, positive_int, run, zero_or_one
from dejavu_utils.errors import InputError
from dejavu_utils.label_free.compare import outcome_means, read_directions, read_scores
from dejavu_utils.naming import (
    ATTACK_FOLDERS,
    ATTACK_PREFIX,
    LAYERS_BESIDE,
    SWEEPS,
    sslmem_beside,
    sweep_of,
    sweep_points,
)


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--save_path", type=expanded, required=True, help="folder for the figures and their numbers")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["vicreg"],
        help="model name in the folder names, e.g. vicreg or simclr_rn50; several: criteria side by side",
    )
    parser.add_argument(
        "--attk_folder_path", type=expanded, nargs="+", required=True, help="folder of the attacks, one for each model"
    )
    parser.add_argument(
        "--attack_fname",
        default=ATTACK_FOLDERS["projector"],
        help="name of the attacks' folder; lets --attk_folder_path be the folder above it",
    )
    parser.add_argument("--plot_lin_probe", type=zero_or_one, default=1, help="1: figures of the linear probe too")
    parser.add_argument(
        "--lin_probe_folder_path", type=expanded, nargs="+", help="folder of the linear probes, one for each model"
    )
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
    parser.add_argument("--sweep_values", type=number_or_word, nargs="+", help="these values only")
    return parser.parse_args(argv)


def sweep_parameter(text):
    try:
        sweep_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def number_or_word(text):
    try:
        return float(text)
    except ValueError:
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
    series = series_of(args)
    with figure_style(args.style):
        if len(series) > 1:
            output = compare_models(args, series)
        else:
            output = plot_model(args, series[0])
    output.print_note()
    print(POINTWISE)


def series_of(args):
    """A Series for each model."""
    folders = {"--attk_folder_path": args.attk_folder_path}
    if args.plot_lin_probe:
        folders["--lin_probe_folder_path"] = args.lin_probe_folder_path
        if not args.lin_probe_folder_path:
            raise InputError("--lin_probe_folder_path is needed: name a folder, or give --plot_lin_probe 0")
    for flag, of_flag in folders.items():
        if len(of_flag) != len(args.model):
            raise InputError(f"{flag}: names {len(of_flag)} folders for {len(args.model)} models of --model")
    with_probes = args.plot_lin_probe and (not args.sweep_param or sweep_of(args.sweep_param).own_models)
    series = []
    for number, model in enumerate(args.model):
        attacks = existing_folder(args.attk_folder_path[number], "--attk_folder_path")
        if (attacks / args.attack_fname).is_dir():
            attacks = attacks / args.attack_fname
        probes = None
        if with_probes:
            probes = existing_folder(args.lin_probe_folder_path[number], "--lin_probe_folder_path")
        which = (args.epoch_sweep_dataset, args.dataset_sweep_epoch, args.k_neighb, args.layer)
        series.append(Series(model, attacks, probes, *which, args.sweep_param, args.sweep_values))
    return series


def plot_model(args, series):
    """Draws all figures of one model; the Output that has them."""
    attacks = series.read_attacks()
    first = next(of_sweep[0][1] for of_sweep in attacks.values())
    output, scored, probed = Output(Path(args.save_path), first.classes), {}, {}
    for x, of_sweep in attacks.items():
        frames = attack_frames(of_sweep, args.pct_confidences, x)
        caption = series.caption(x, [attack for _, attack in of_sweep])
        scored[x] = output.save(f"attk_{PLURALS[x]}_", frames, x, series.label(x), caption=caption)
    if not args.sweep_param:
        plot_point(args, output, series)
        grid = series.read_grid()
        if grid:
            caption = f"{series.model}, {what_votes(list(grid.values()), args.k_neighb)}"
            output.save("attk_grid_", grid_frames(grid), caption=caption)
        if "epoch" in scored:
            caption = series.caption("epoch", [attack for _, attack in attacks["epoch"]])
            output.save("score_sslmem_", sslmem_frames(series, scored["epoch"]), "epoch", caption=caption)
    probes = series.read_probes()
    for x, of_sweep in probes.items():
        stem = "lp_param_vals_" if x == "param" else f"lp_{PLURALS[x]}_"
        caption = f"{series.model}, {series.fixed(x)},\nlinear probe on the frozen network"
        probed[x] = output.save(stem, probe_frames(of_sweep, x), x, series.label(x), caption=caption)
    own_probes = series.of_attacked_models(probes)
    points = series.scored(attacks, own_probes)
    votes = what_votes([point.attack for point in points], args.k_neighb)
    output.save("score_utility_", utility_frames(points), caption=f"{series.model}, every point with a probe,\n{votes}")
    for x in attacks.keys() & own_probes.keys():
        stem = "score_probe_gap_" + ("" if x == "epoch" else f"{PLURALS[x]}_")
        caption = series.caption(x, [attack for _, attack in attacks[x]])
        of_own = [position for position, _ in own_probes[x]]
        probed[x] = {name: frame[frame[x].isin(of_own)] for name, frame in probed[x].items()}
        output.save(stem, gap_frames(scored[x], probed[x], x), x, series.label(x), caption=caption)
    return output


def compare_models(args, every):
    """Draws the figures of several models, criteria side by side, and score against utility; the Output."""
    points = []
    for series in every:
        attacks = series.read_attacks()
        points += series.scored(attacks, series.of_attacked_models(series.read_probes()))
    output = Output(Path(args.save_path), max(point.attack.classes for point in points))
    votes = what_votes([point.attack for point in points], args.k_neighb)
    caption = f"{every[0].fixed(None)},\n{votes}"
    criteria = criteria_frames(points, args.epoch_sweep_dataset, args.dataset_sweep_epoch)
    output.save("criteria_", criteria, caption=caption)
    output.save("score_utility_", utility_frames(points), caption=f"every point with a probe,\n{votes}")
    return output


def plot_point(args, output, series):
    """Draws what one point shows, the one where both sweeps meet, and its layers if there are several."""
    meeting = SWEEPS["epochs"].at(args.dataset_sweep_epoch, series.model, args.epoch_sweep_dataset)
    point = series.attacks / f"{ATTACK_PREFIX}{meeting.name}"
    layers = attacked_layers(point)
    if series.attacks.name == ATTACK_FOLDERS["projector"]:
        for name in LAYERS_BESIDE:
            layers = {**attacked_layers(series.attacks.parent / name / point.name), **layers}
    attacks = {}
    for layer in sorted(layers, key=place_in_network):
        try:
            attacks[layer] = series.read_layer(layers[layer], layer)
        except InputError as error:
            print(f"note: left out: {error}")
    if attacks:
        own = args.layer or ("projector" if "projector" in attacks else next(iter(attacked_layers(point)), None))
        if own in attacks:
            plot_layer(output, series, attacks[own], layers[own])
            frames = outcome_frames(point, attacks[own].sets)
            output.save("attk_sslmem_outcomes_", frames, caption=series.caption(None, [attacks[own]]))
        elif args.layer:
            print(f"note: no {args.layer} in {point}: no figure of the confidence")
    if len(attacks) > 1:
        caption = series.caption(None, list(attacks.values()))
        output.save("attk_layers_acc_", layer_frames(attacks, args.pct_confidences), caption=caption)
        frames = layer_utility_frames(attacks, probes_of(layers))
        output.save("attk_layers_utility_", frames, caption=caption + "\nprobes of the training")


def plot_layer(output, series, attack, folder):
    """Draws confidence, classes, votes and membership of one attack at one layer, and the test of one model."""
    caption = series.caption(None, [attack])
    output.save("attk_confidence_", confidence_frames(attack), caption=caption)
    output.save("attk_classes_", class_frames(attack), caption=caption)
    if attack.layer != "logits":
        votes = vote_frames(lambda k: Attack(attack.layer, read_attack(folder, k), None), series.k)
        output.save("attk_votes_", votes, caption=caption)
    results, scores = read_results(folder), margin_scores(directions(attack.sets))
    if results and results.both.one_model:
        output.save_table("attk_memorization_confidence", save_entropy_figure, read_confidences(folder), caption)
    elif scores:
        roc = roc_table({"margin of votes": scores})
        output.save_table("attk_membership", save_roc_figure, roc, f"{caption},\nmembers: set A, non-members: set B")


def outcome_frames(point, sets):
    """Yields the frames of the mean SSLMem of each outcome, where label-free scores lie beside the attack `point`."""
    found = beside(read_scores, point)
    for top_k in TOP_KS if found else ():
        yield "", save_outcome_figures, outcome_means(found, sets, top_k), top_k


def sslmem_frames(series, attacks):
    """Yields the frames of the déjà vu score beside the mean SSLMem, of the epochs that have both.

    attacks: their frames against epochs, as `Output.save` returns them.
    """
    found, (_, template, _) = {}, series.sweeps[0]
    for epoch, path in sweep_points(series.attacks, ATTACK_PREFIX + template):
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


if __name__ == "__main__":
    run(main)
