"""Figures of attacks and linear probes over epochs, data set sizes or a training parameter, with their numbers.

Reads every point below --attk_folder_path (NN_attk_{model}_{n}pc_{E}ep/) and below
--lin_probe_folder_path (lp_{model}_{n}pc_{E}ep/); the statistics are made from the neighbor (or score) files. Writes
into --save_path, each as png, pdf and, with the legend, as *_legend, with its numbers beside it as csv:
attk_{epochs,datasets}_{acc,partition}_top{1,5}; lp_{epochs,datasets}_top{1,5}; score_probe_gap_top{1,5}, the déjà vu
score beside the gap that the linear probe shows;
score_utility_top{1,5}, against the probe's accuracy; and of the one point at --epoch_sweep_dataset and
--dataset_sweep_epoch attk_confidence_top{1,5}, accuracy against the fraction of most confident examples, and
attk_votes_top{1,5}, against the neighbors that vote, attk_classes_top{1,5}, of each class, and
attk_membership, ROC of set A against set B, and attk_layers_{acc,utility}_top{1,5}, of all layers that were attacked:
in its subfolders, or in attack_sweeps_backbone beside attack_sweeps; attk_grid_{,lines_}top{1,5} of all sizes at all
epochs (SWEEP=grid); of the test of one model attk_memorization_confidence and
attk_classifiers, how often two classifiers predict the same class. With several models, each with its folders,
criteria_top{1,5} and score_utility_top{1,5} of all alone.
Where sslmem.py's folders lie beside the attacks', sslmem_sweeps/sslmem_{model}_{n}pc_{E}ep/,
score_sslmem_top{1,5}, the déjà vu score beside the mean SSLMem, and attk_sslmem_outcomes_top{1,5}, the mean SSLMem of
each outcome. With --sweep_param attk_params_* and lp_param_vals_* instead.

    python plot_quant_results.py --model vicreg --epoch_sweep_dataset 300 --dataset_sweep_epoch 1000 \\
        --pct_confidences '20,100' --attk_folder_path $LOGGING_FOLDER/vicreg/attack_sweeps \\
        --lin_probe_folder_path $LOGGING_FOLDER/vicreg/lin_probe_sweeps_with_aug \\
        --save_path $LOGGING_FOLDER/vicreg/plot
    python plot_quant_results.py --model simclr --k_neighb 50 --epoch_sweep_dataset 50 --dataset_sweep_epoch 300 \\
        --pct_confidences '20,100' --attk_folder_path demo/seed0/simclr_300epochs/attack_sweeps \\
        --plot_lin_probe 0 --save_path /tmp/plot
"""

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd

from dejavu_utils.analysis.attack_files import CLASSIFIERS, read_attack, read_confidences
from dejavu_utils.analysis.figures import (
    STYLES,
    draw_accuracies,
    draw_classes,
    draw_classifiers,
    draw_confidence,
    draw_criteria,
    draw_entropies,
    draw_epochs,
    draw_gap,
    draw_grid,
    draw_grid_lines,
    draw_layer_utility,
    draw_layers,
    draw_means,
    draw_partition,
    draw_probes,
    draw_roc,
    draw_utility,
    draw_votes,
)
from dejavu_utils.analysis.frames import (
    AttackScores,
    ScoredPoint,
    SweepPoint,
    accuracy_table,
    attacks_by_votes,
    class_scores,
    confidence_table,
    criteria_table,
    gap_table,
    grid_table,
    layer_utility_table,
    partition_table,
    probe_table,
    sslmem_table,
    utility_table,
    vote_table,
)
from dejavu_utils.analysis.membership import margin_scores, roc_table
from dejavu_utils.analysis.points import (
    GRID,
    PLURALS,
    Output,
    Series,
    compared,
    note,
    place_in_network,
    probes_of,
    what_is_probed,
    what_votes,
)
from dejavu_utils.analysis.report import POINTWISE
from dejavu_utils.analysis.results_json import attacked_layers, read_results
from dejavu_utils.analysis.tables import directions
from dejavu_utils.cli import Parser, add_flags, add_paths, existing_folder, expanded, positive_int, run, zero_or_one
from dejavu_utils.errors import InputError
from dejavu_utils.label_free.compare import outcome_means, read_directions, read_scores
from dejavu_utils.naming import ATTACK_FOLDERS, ATTACK_PREFIX, LAYERS_BESIDE, SWEEPS, sslmem_beside, sweep_of

T = TypeVar("T")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--save_path": "folder for the figures and their numbers"})
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
    levels = "per cent of the examples, the most confident ones, that the accuracies are taken over"
    layer = "layer of the attacks, for all but attk_layers; default: projector, or the one that is there"
    param = "figures against this parameter instead: section.setting of train_SSL.py, or corner_crop_frac"
    flags = {
        "--k_neighb": (100, positive_int, "nearest public neighbors that vote"),
        "--pct_confidences": ("5,10,30", percentages, levels),
        "--epoch_sweep_dataset": (300, int, "images per class of the sweep of epochs"),
        "--dataset_sweep_epoch": (1000, int, "epochs of the sweeps of data set sizes and parameters"),
        "--layer": (None, str, layer),
        "--style": (STYLES[0], STYLES, "science: SciencePlots', if it is installed"),
        "--sweep_param": (None, sweep_parameter, param),
    }
    add_flags(parser, flags)
    parser.add_argument("--sweep_values", type=number_or_word, nargs="+", help="these values only")
    return parser.parse_args(argv)


def sweep_parameter(text: str) -> str:
    try:
        sweep_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def percentages(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: expected per cents joined by commas, for instance 20,100")
    return sorted(set(values))


def main() -> None:
    args = parse_args()
    series = series_of(args)
    if len(series) > 1:
        output = compare_models(series, Path(args.save_path), args.style)
    else:
        output = plot_model(series[0], Path(args.save_path), args.style)
    output.print_note()
    print(POINTWISE)


def series_of(args: Namespace) -> list[Series]:
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
        one = Series(
            model=model,
            attacks=attacks,
            probes=probes,
            dataset=args.epoch_sweep_dataset,
            epoch=args.dataset_sweep_epoch,
            k=args.k_neighb,
            pct_confidences=args.pct_confidences,
            layer=args.layer,
            param=args.sweep_param,
            values=args.sweep_values,
        )
        series.append(one)
    return series


def plot_model(series: Series, folder: Path, style: str) -> Output:
    """Draws all figures of one model."""
    attacks = series.read_attacks()
    grid = attacks.pop(GRID, [])
    first = next(iter(attacks.values()))[0].content
    output = Output(folder, style, first.classes, series.param)
    captions, levels = {}, series.pct_confidences
    for x, points in attacks.items():
        stem = f"attk_{PLURALS[x]}"
        captions[x] = series.caption(x, [point.content for point in points])
        output.save(f"{stem}_acc", draw_accuracies, captions[x], accuracy_table, points, levels, x)
        output.save(f"{stem}_partition", draw_partition, captions[x], partition_table, points, x)
    if not series.param:
        plot_point(output, series)
    if grid:
        caption = f"{series.model}, {what_votes([point.content for point in grid], series.k)}"
        output.save("attk_grid", draw_grid, caption, grid_table, grid)
        output.save("attk_grid_lines", draw_grid_lines, caption, grid_table, grid)
    if "epoch" in attacks:
        sslmem = {point.value: beside(read_directions, point.path) for point in attacks["epoch"]}
        output.save("score_sslmem", draw_epochs, captions["epoch"], sslmem_table, attacks["epoch"], sslmem, levels)
    probes = series.read_probes()
    own_probes = series.own_probes(attacks, probes)
    for x, points in probes.items():
        stem = "lp_param_vals" if x == "param" else f"lp_{PLURALS[x]}"
        probed = what_is_probed([point.content for point in points])
        caption = f"{series.model}, {series.fixed(x)},\n{probed}"
        output.save(stem, draw_probes, caption, probe_table, points, x)
        if x in attacks:
            stem = "score_probe_gap" + ("" if x == "epoch" else f"_{PLURALS[x]}")
            caption = f"{captions[x]}\n{probed}"
            output.save(stem, draw_gap, caption, gap_table, attacks[x], own_probes[x], levels, x)
    plot_utility(output, f"{series.model}, ", series.scored(attacks, own_probes), series.k)
    return output


def compare_models(every: list[Series], folder: Path, style: str) -> Output:
    """Draws the figures of several models: criteria side by side, and score against utility."""
    points = []
    for series in every:
        attacks = series.read_attacks()
        points += series.scored(attacks, series.own_probes(attacks, series.read_probes()))
    output = Output(folder, style, max(point.attack.classes for point in points))
    dataset, epoch, k = series.dataset, series.epoch, series.k  # the same of all models
    caption = f"{series.fixed(None)},\n{what_votes([point.attack for point in points], k)}"
    output.save("criteria", draw_criteria, caption, criteria_table, compared(points), dataset, epoch)
    plot_utility(output, "", points, k)
    return output


def plot_utility(output: Output, model: str, points: list[ScoredPoint], k: int) -> None:
    """Draws the score against the probe's accuracy, of the points that have both."""
    probed = compared([point for point in points if point.probe])
    if probed:
        votes = what_votes([point.attack for point in probed], k)
        probes = what_is_probed([point.probe for point in probed if point.probe])
        caption = f"{model}every point with a probe,\n{votes}\n{probes}"
        output.save("score_utility", draw_utility, caption, utility_table, probed)


def plot_point(output: Output, series: Series) -> None:
    """Draws what one point shows, the one where both sweeps meet, and its layers if there are several."""
    meeting = SWEEPS["epochs"].at(str(series.epoch), series.model, series.dataset)
    point = series.attacks / f"{ATTACK_PREFIX}{meeting.name}"
    layers = own = attacked_layers(point)
    if series.attacks.name == ATTACK_FOLDERS["projector"]:
        for name in LAYERS_BESIDE:
            layers = {**attacked_layers(series.attacks.parent / name / point.name), **layers}
    attacks = {}
    for layer in sorted(layers, key=place_in_network):
        try:
            attacks[layer] = series.read_layer(layer, layers[layer])
        except InputError as error:
            note(f"left out: {error}")
    layer = series.layer or ("projector" if "projector" in attacks else next(iter(own), None))
    if layer in attacks:
        plot_layer(output, series, attacks[layer], point)
    elif series.layer and attacks:
        note(f"no {series.layer} in {point}: no figure of the confidence")
    if len(attacks) > 1:
        caption = series.caption(None, list(attacks.values()))
        points = [SweepPoint(layer, attack.folder, attack) for layer, attack in attacks.items()]
        points, levels = compared(points, "layers"), series.pct_confidences
        output.save("attk_layers_acc", draw_layers, caption, accuracy_table, points, levels, "layer")
        caption += "\nprobes of the training"
        probes = probes_of(layers)
        output.save("attk_layers_utility", draw_layer_utility, caption, layer_utility_table, points, probes)


def plot_layer(output: Output, series: Series, attack: AttackScores, point: Path) -> None:
    """Draws confidence, classes, votes and membership of one attack at one layer, and the test of one model."""
    caption = series.caption(None, [attack])
    sets = read_attack(attack.folder, series.k)
    output.save("attk_confidence", draw_confidence, caption, confidence_table, sets, attack.ceiling)
    output.save("attk_classes", draw_classes, caption, class_scores, sets)
    if attack.layer != "logits":
        by_votes = attacks_by_votes(attack.folder, series.k, sets)
        output.save("attk_votes", draw_votes, caption, vote_table, by_votes)
    results, scores = read_results(attack.folder), margin_scores(directions(sets))
    if results and results.both.one_model:
        confidences = read_confidences(attack.folder)
        output.save_table("attk_memorization_confidence", draw_entropies, caption, confidences)
        pairs = attack.folder / CLASSIFIERS
        if pairs.is_file():  # older attacks have none
            output.save_table("attk_classifiers", draw_classifiers, caption, pd.read_csv(pairs))
    elif scores:
        roc = roc_table({"margin of votes": scores})
        output.save_table("attk_membership", draw_roc, f"{caption},\nmembers: set A, non-members: set B", roc)
    sslmem = beside(read_scores, point)
    if sslmem:
        output.save("attk_sslmem_outcomes", draw_means, caption, outcome_means, sslmem, sets)


def beside(read: Callable[[Path], T], attack: Path) -> T | None:
    """What `read` gives of the folder of label-free scores beside an attack; None where there is none."""
    folder = sslmem_beside(attack)
    if folder is None or not folder.is_dir():
        return None
    try:
        return read(folder)
    except InputError as error:
        note(f"left out: {error}")
        return None


if __name__ == "__main__":
    run(main)
