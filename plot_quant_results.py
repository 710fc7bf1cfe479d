"""Figures of attacks and linear probes over epochs, data set sizes or a training parameter, with their numbers.

Reads every point that is there below --attk_folder_path (NN_attk_{model}_{n}pc_{E}ep/) and below
--lin_probe_folder_path (lp_{model}_{n}pc_{E}ep/); the statistics are made from the neighbor (or score) files. Writes
into --save_path, each as png, pdf and, with the legend, as *_legend, with its numbers beside it as csv:
attk_{epochs,datasets}_{acc,partition}_top{1,5}; lp_{epochs,datasets}_top{1,5}; score_probe_gap_top{1,5}, the déjà vu
score beside the gap that the linear probe shows;
score_utility_top{1,5}, against the probe's accuracy; and of the one point at --epoch_sweep_dataset and
--dataset_sweep_epoch attk_confidence_top{1,5}, accuracy against the fraction of most confident examples, and
attk_votes_top{1,5}, against the neighbors that vote, attk_classes_top{1,5}, of each class, and
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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dejavu_utils.analysis.agreement import disagreements, foreign_probe
from dejavu_utils.analysis.attack_files import attacked_layers, read_attack, read_ceiling, read_probe
from dejavu_utils.analysis.figures import STYLES, figure_style, save_epoch_figures, save_outcome_figures
from dejavu_utils.analysis.frames import (
    Attack,
    attack_frames,
    class_frames,
    confidence_frames,
    gap_frames,
    layer_frames,
    probe_frames,
    utility_frames,
    vote_frames,
)
from dejavu_utils.analysis.memorization import TOP_KS
from dejavu_utils.analysis.report import POINTWISE
from dejavu_utils.cli import Parser, existing_folder, expanded, positive_int, run, zero_or_one
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv
from dejavu_utils.label_free.compare import outcome_means, read_directions, read_scores
from dejavu_utils.naming import (
    ATTACK_FOLDERS,
    ATTACK_PREFIX,
    LAYERS_BESIDE,
    PROBE_PREFIX,
    SWEEPS,
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
PLURALS = {"epoch": "epochs", "dataset": "datasets", "param": "params"}  # in the names of figures
TOP_5_CLASSES = 20  # with fewer, five guesses are correct too often by chance


@dataclass(frozen=True)
class Output:
    """Where figures and their numbers go. classes: None where they are not known."""

    folder: Path
    classes: int | None = None

    def save(self, stem: str, frames: Iterable[tuple], *how: object, caption: str = "") -> dict:
        """Draws and writes each frame: (part of the file name, function that draws, DataFrame, top_k).

        how: what the function that draws takes beside them. Returns {(part of the file name, top_k): DataFrame}.
        """
        saved = {}
        for name, draw, frame, top_k in frames:
            path = self.folder / f"{stem}{name}top{top_k}"
            save_csv(f"{path}.csv", frame)
            saved[name, top_k] = frame
            if top_k > 1 and self.classes is not None and self.classes < TOP_5_CLASSES:
                print(f"note: {path}.csv has no figure: top-{top_k} of {self.classes} classes is mostly chance")
                continue
            draw(path, frame, *how[:1], top_k, *how[1:], caption=caption)
            print(f"{path}_legend.png")
        return saved


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
    attacks = existing_folder(args.attk_folder_path, "--attk_folder_path")
    if (attacks / args.attack_fname).is_dir():
        attacks = attacks / args.attack_fname
    if args.plot_lin_probe and not args.lin_probe_folder_path:
        raise InputError("--lin_probe_folder_path is needed: name a folder, or give --plot_lin_probe 0")
    with figure_style(args.style):
        output, scored = plot_attacks(args, attacks)
        if not args.sweep_param:
            plot_point(args, output, attacks)
            if "epoch" in scored:
                caption = f"{args.model}, {fixed_of(args, 'epoch')}"
                output.save("score_sslmem_", sslmem_frames(args, attacks, scored["epoch"]), "epoch", caption=caption)
        if args.plot_lin_probe and (not args.sweep_param or sweep_of(args.sweep_param).own_models):
            probes = existing_folder(args.lin_probe_folder_path, "--lin_probe_folder_path")
            probed = of_attacked_models(args, attacks, probes, plot_probes(args, output, probes))
            layer = args.layer or "projector"
            utility = utility_frames(scored, probed, args.model, layer, args.dataset_sweep_epoch)
            output.save("score_utility_", utility, caption=f"{args.model}, {layer}, every point with a probe")
            for x in scored.keys() & probed.keys():
                stem = "score_probe_gap_" + ("" if x == "epoch" else f"{PLURALS[x]}_")
                caption = f"{args.model}, {fixed_of(args, x)}"
                output.save(stem, gap_frames(scored[x], probed[x], x), x, label_of(args, x), caption=caption)
    print(POINTWISE)


def plot_attacks(args, folder):
    """Draws the figures of each sweep of attacks; (Output, {column: its frames})."""
    points = read_sweeps(args, folder, "--attk_folder_path", ATTACK_PREFIX)
    first = next(of_sweep[0][1] for of_sweep in points.values() if of_sweep)
    output, scored = Output(Path(args.save_path), first.classes), {}
    for x, of_sweep in points.items():
        stem = f"attk_{PLURALS[x]}_"
        caption = caption_of(args, x, [attack for _, attack in of_sweep])
        scored[x] = output.save(
            stem, attack_frames(of_sweep, args.pct_confidences, x), x, label_of(args, x), caption=caption
        )
    return output, scored


def plot_probes(args, output, folder):
    """Draws the figures of each sweep of linear probes; {column: its frames}."""
    probed = {}
    for x, points in read_sweeps(args, folder, "--lin_probe_folder_path", PROBE_PREFIX).items():
        stem = "lp_param_vals_" if x == "param" else f"lp_{PLURALS[x]}_"
        caption = f"{args.model}, linear probe on the frozen network, {fixed_of(args, x)}"
        probed[x] = output.save(stem, probe_frames(points, x), x, label_of(args, x), caption=caption)
    return probed


def of_attacked_models(args, attacks, folder, probed):
    """The frames of `plot_probes` without the points whose probe is of another model than the attack's; notes them."""
    kept = dict(probed)
    for x, template, value in sweeps(args):
        probes = dict(sweep_points(folder, PROBE_PREFIX + template, value))
        for position, attack in sweep_points(attacks, ATTACK_PREFIX + template, value):
            probe, layers = probes.get(position), attacked_layers(attack).values()
            if x not in kept or probe is None or not any(foreign_probe(layer, probe) for layer in layers):
                continue
            print(f"note: {probe} is of another model than {attack}: no score beside this probe")
            kept[x] = {name: frame[frame[x] != position] for name, frame in kept[x].items()}
    return {x: frames for x, frames in kept.items() if all(map(len, frames.values()))}


def read_sweeps(args, folder, flag, prefix):
    """{column: [(value, what `read_points` gives)]} of each sweep that has a point. InputError if none has."""
    tried, reasons, points = [], [], {}
    for x, template, value in sweeps(args):
        tried.append((prefix + template).format("*"))
        of_sweep, left_out = read_points(args, folder, prefix + template, value, x)
        reasons += left_out
        if of_sweep:
            points[x] = of_sweep
        else:
            print(f"note: no {tried[-1]} in {folder}: no figure of {PLURALS[x]}")
    if not points and reasons:
        raise InputError(f"{flag}: no point could be read; the last reason: {reasons[-1]}")
    if not points:
        there = sorted(path.name for path in folder.iterdir() if path.name.startswith(prefix))
        holds = f"there are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else f"no {prefix}* is"
        raise InputError(f"{flag} {folder}: nothing matches {' or '.join(tried)}; {holds} there")
    return points


def caption_of(args, x, attacks):
    """Model, what does not vary, layer, neighbors that vote, attacked images. x: the column of the axis, or None."""
    counts = sorted({attack.n for attack in attacks})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    layers = ", ".join(sorted({attack.layer for attack in attacks}, key=place_in_network))
    votes = "" if layers == "logits" else f", k = {args.k_neighb}"
    return f"{args.model}, {fixed_of(args, x)},\n{layers}{votes}, n = {n}"


def fixed_of(args, x):
    """What does not vary along the axis: epoch and images per class."""
    fixed = [f"{args.epoch_sweep_dataset} images per class"] if x in ("epoch", None) else []
    return ", ".join([*fixed, *([f"epoch {args.dataset_sweep_epoch}"] if x != "epoch" else ())])


def label_of(args, x):
    return LABELS.get(args.sweep_param, args.sweep_param) if x == "param" else None


def plot_point(args, output, folder):
    """Draws the confidence curve, and the layers if there are several, of the point where both sweeps meet."""
    meeting = SWEEPS["epochs"].at(args.dataset_sweep_epoch, args.model, args.epoch_sweep_dataset)
    point = folder / f"{ATTACK_PREFIX}{meeting.name}"
    layers = attacked_layers(point)
    if folder.name == ATTACK_FOLDERS["projector"]:
        for name in LAYERS_BESIDE:
            layers = {**attacked_layers(folder.parent / name / point.name), **layers}
    attacks = {}
    for layer in sorted(layers, key=place_in_network):
        try:
            attacks[layer] = read_layer(args, layers[layer], layer)
        except InputError as error:
            print(f"note: left out: {error}")
    if attacks:
        own = args.layer or ("projector" if "projector" in attacks else next(iter(attacked_layers(point)), None))
        if own in attacks:
            caption = caption_of(args, None, [attacks[own]])
            output.save("attk_confidence_", confidence_frames(attacks[own]), caption=caption)
            output.save("attk_classes_", class_frames(attacks[own]), caption=caption)
            if own != "logits":
                votes = vote_frames(lambda k: Attack(own, read_attack(layers[own], k), None), args.k_neighb)
                output.save("attk_votes_", votes, caption=caption)
            output.save("attk_sslmem_outcomes_", outcome_frames(point, attacks[own].sets), caption=caption)
        elif args.layer:
            print(f"note: no {args.layer} in {point}: no figure of the confidence")
    if len(attacks) > 1:
        caption = caption_of(args, None, list(attacks.values()))
        output.save("attk_layers_acc_", layer_frames(attacks, args.pct_confidences), caption=caption)


def place_in_network(layer):
    """Sorts backbone, projector.0, projector.1, ..., projector, logits."""
    name, _, number = layer.partition(".")
    return LAYERS.index(name), int(number) if number else 1000


def sweeps(args):
    """(column, folder template, value of the digits) of each sweep."""
    names = (args.model, args.epoch_sweep_dataset, args.dataset_sweep_epoch)
    if args.sweep_param:
        sweep = sweep_of(args.sweep_param)
        return [("param", sweep.template(*names), sweep.value)]
    return [(column, SWEEPS[PLURALS[column]].template(*names), int) for column in ("epoch", "dataset")]


def read_points(args, folder, template, value, x):
    """([(value, what the folder holds)] of every point that is complete, why the others are left out)."""
    is_attack = template.startswith(ATTACK_PREFIX)

    def read(path):
        if not is_attack:
            return read_probe(path)
        layer, folder = chosen_layer(args, path)
        return read_layer(args, folder, layer)

    points, left_out, folders = [], [], {}
    for position, path in sweep_points(folder, template, value):
        if x == "param" and args.sweep_values and position not in args.sweep_values:
            continue
        try:
            points.append((position, read(path)))
            folders[position] = chosen_layer(args, path)[1] if is_attack else path
        except InputError as error:
            if "--k_neighb" in str(error):
                raise
            print(f"note: left out: {error}")
            left_out.append(error)
    reader = {"epoch": "epochs", "dataset": "datasets"}.get(x, "params")
    reader = "corner_crop_frac" if args.sweep_param == "corner_crop_frac" else reader
    for note in disagreements(reader, folders)[1]:
        print(f"note: {note}")
    return points, left_out


def chosen_layer(args, attack):
    """(layer, its folder) of an attack's folder: --layer, else the projector, else its first one."""
    layers = attacked_layers(attack)
    if args.layer and layers and args.layer not in layers:
        raise InputError(f"--layer {args.layer}: {attack} holds {', '.join(sorted(layers, key=place_in_network))}")
    layer = args.layer or ("projector" if "projector" in layers else next(iter(layers), "projector"))
    return layer, layers.get(layer, attack)


def read_layer(args, folder, layer):
    """The Attack of one layer's folder."""
    try:
        return Attack(layer, read_attack(folder, args.k_neighb), read_ceiling(folder, args.k_neighb))
    except InputError as error:
        raise InputError(str(error).replace("k_attk is", "--k_neighb is")) from None


def outcome_frames(point, sets):
    """Yields the frames of the mean SSLMem of each outcome, where label-free scores lie beside the attack `point`."""
    found = beside(read_scores, point)
    for top_k in TOP_KS if found else ():
        yield "", save_outcome_figures, outcome_means(found, sets, top_k), top_k


def sslmem_frames(args, folder, attacks):
    """Yields the frames of the déjà vu score beside the mean SSLMem, of the epochs that have both.

    folder: of the attacks. attacks: their frames against epochs, as `save_all` returns them.
    """
    found, template = {}, sweeps(args)[0][1]
    for epoch, path in sweep_points(folder, ATTACK_PREFIX + template):
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
