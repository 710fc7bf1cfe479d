"""plot_quant_results.py on result folders of others (npy only, logs only) and of our own."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import assert_one_line_error, draw_alone, flags, ok, options, read_json, rows_of, run_here
from PIL import Image

from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.analysis.memorization import summarize
from dejavu_utils.analysis.results_json import read_ceiling, read_probe
from dejavu_utils.analysis.tables import attack_statistics
from dejavu_utils.typed_json import to_json

DATA = Path(__file__).parents[1] / "data"
TRACES = read_json(DATA / "attack_traces.json")
POINT = DATA / "attack/NN_attk_vicreg_300pc_50ep"
# Of an outcome: is the target correct, and the reference?
OUTCOMES = ("memorized yes no", "correlated yes yes", "misrepresented no yes", "unassociated no no")


def plot(tmp_path, **changes):
    settings = options("""--model vicreg --epoch_sweep_dataset 300 --dataset_sweep_epoch 50 --pct_confidences 5,20,100
        --plot_lin_probe 0""")
    settings |= {"attk_folder_path": DATA / "attack", "save_path": tmp_path / "plot", **changes}
    return run_here("plot_quant_results.py", *flags(settings))


def mean_of_traces(*names):
    return pytest.approx(np.mean([TRACES[f"{name}_300pc"][0] for name in names]), abs=1e-12)


def test_one_published_point_gives_the_published_figures(tmp_path, monkeypatch):
    draw_alone(monkeypatch, "attk_epochs_acc_top1")
    ok(plot(tmp_path))
    for plural, x, position in (("epochs", "epoch", 50), ("datasets", "dataset", 300)):
        for top_k in (1, 5):
            accuracy = pd.read_csv(tmp_path / f"plot/attk_{plural}_acc_top{top_k}.csv")
            assert list(accuracy.columns[:4]) == [x, "pct_confidence", "target_acc", "reference_acc"]
            assert accuracy["pct_confidence"].tolist() == [5, 20, 100] and (accuracy[x] == position).all()
            for row in accuracy.itertuples():
                level = f"top{top_k}_{row.pct_confidence}conf"
                assert row.target_acc == mean_of_traces(f"A_attk_A_{level}", f"B_attk_B_{level}")
                assert row.reference_acc == mean_of_traces(f"B_attk_A_{level}", f"A_attk_B_{level}")
                assert row.target_low < row.target_acc <= row.target_high
            (shares,) = pd.read_csv(tmp_path / f"plot/attk_{plural}_partition_top{top_k}.csv").to_dict("records")
            assert list(shares)[:5] == [x, "memorized", "correlated", "misrepresented", "unassociated"]
            for outcome in OUTCOMES:
                share, target, reference = outcome.split()
                on_A, on_B = f"{target}_A_{reference}_B_attk_A", f"{reference}_A_{target}_B_attk_B"
                assert shares[share] == mean_of_traces(f"{on_A}_top{top_k}", f"{on_B}_top{top_k}")
    names = {path.name for path in (tmp_path / "plot").iterdir()}
    for plural in ("epochs", "datasets"):
        for kind in ("acc", "partition"):
            stem = f"attk_{plural}_{kind}_top1"
            assert {f"{stem}{suffix}" for suffix in (".csv", ".png", ".pdf", "_legend.png", "_legend.pdf")} <= names
    assert Image.open(tmp_path / "plot/attk_epochs_acc_top1_legend.png").size[0] > 600
    assert (tmp_path / "plot/attk_epochs_acc_top1.pdf").read_bytes().startswith(b"%PDF")


def write_probe_log(folder, val, train, numpy_2=False):
    folder.mkdir(parents=True)
    number = (lambda value: f"np.float64({value})") if numpy_2 else str
    lines = ["loading", "{'loss': 3.0}", "{'top_1': 0.1, 'top_5': 0.2}"]
    lines += [f"{{'top_1': {number(a)}, 'top_5': {number(b)}}}" for a, b in (val, train)]
    (folder / "123_0_log.out").write_text("\n".join(lines) + "\n")


def test_sweeps_of_several_points_and_probes_of_both_kinds(tmp_path, undrawn):
    for name in ("vicreg_300pc_50ep", "vicreg_300pc_1000ep", "vicreg_100pc_50ep"):
        shutil.copytree(POINT, tmp_path / f"attack_sweeps/NN_attk_{name}")
    (tmp_path / "attack_sweeps/NN_attk_vicreg_300pc_250ep").mkdir()  # submitted, not finished
    write_probe_log(tmp_path / "probes/lp_vicreg_300pc_50ep", (0.4, 0.7), (0.5, 0.8), numpy_2=True)
    write_probe_log(tmp_path / "probes/lp_vicreg_300pc_1000ep", (0.45, 0.75), (0.6, 0.9))
    ours = tmp_path / "probes/lp_vicreg_300pc_100ep"
    ours.mkdir()
    figures = {f"top_{k}": {"value": 0.3 + k / 10, "low": 0.2, "high": 0.9} for k in (1, 5)}
    (ours / "results.json").write_text(json.dumps({"final": {"train": figures, "val": figures}}))
    folders = {"attk_folder_path": tmp_path, "lin_probe_folder_path": tmp_path / "probes"}
    result = ok(plot(tmp_path, **folders, plot_lin_probe=1, k_neighb=50))
    assert "note: left out:" in result.stdout and "NN_attk_vicreg_300pc_250ep" in result.stdout
    epochs = pd.read_csv(tmp_path / "plot/attk_epochs_acc_top1.csv")
    assert epochs["epoch"].unique().tolist() == [50, 1000]
    assert pd.read_csv(tmp_path / "plot/attk_datasets_partition_top5.csv")["dataset"].tolist() == [100, 300]
    probes = pd.read_csv(tmp_path / "plot/lp_epochs_top1.csv")[["epoch", "train_acc", "val_acc"]]
    assert probes.values.tolist() == [[50, 0.5, 0.4], [100, 0.4, 0.4], [1000, 0.6, 0.45]]
    assert pd.read_csv(tmp_path / "plot/lp_datasets_top5.csv")["val_acc"].tolist() == [0.7]


def test_parameter_sweep(tmp_path, undrawn):
    for digits in ("05", "075", "15", "99"):
        shutil.copytree(POINT, tmp_path / f"attack_sweeps/NN_attk_simclr_p{digits}t_50ep")
        write_probe_log(tmp_path / f"probes/lp_simclr_p{digits}t_50ep", (0.4, 0.7), (0.5, 0.8))
    changes = dict(attk_folder_path=tmp_path, sweep_param="simclr.temperature")
    ok(plot(tmp_path, **changes, plot_lin_probe=1, lin_probe_folder_path=tmp_path / "probes"))
    params = pd.read_csv(tmp_path / "plot/attk_params_partition_top1.csv")["param"]
    assert params.tolist() == [0.05, 0.075, 0.15, 0.99]
    assert pd.read_csv(tmp_path / "plot/lp_param_vals_top1.csv")["param"].tolist() == params.tolist()
    settings = flags({**changes, "dataset_sweep_epoch": 50, "plot_lin_probe": 0, "save_path": tmp_path / "two"})
    ok(run_here("plot_quant_results.py", *settings, "--sweep_values", ".075", ".99"))
    assert pd.read_csv(tmp_path / "two/attk_params_acc_top1.csv")["param"].unique().tolist() == [0.075, 0.99]
    for value in ("25", "100"):
        shutil.copytree(POINT, tmp_path / f"attack_sweeps/NN_attk_vicreg_sim{value}_50ep")
    ok(plot(tmp_path, attk_folder_path=tmp_path, sweep_param="vicreg.sim_coeff", save_path=tmp_path / "sim"))
    assert pd.read_csv(tmp_path / "sim/attk_params_acc_top1.csv")["param"].unique().tolist() == [25, 100]


def test_corner_fractions_have_no_probes_of_their_own(tmp_path, undrawn):
    for digits in ("20", "35"):
        shutil.copytree(POINT, tmp_path / f"attack_sweeps_cropsize/NN_attk_vicreg_crop_p{digits}_50ep")
    changes = dict(attk_folder_path=tmp_path / "attack_sweeps_cropsize", sweep_param="corner_crop_frac")
    ok(plot(tmp_path, **changes, plot_lin_probe=1, lin_probe_folder_path=tmp_path))
    assert pd.read_csv(tmp_path / "plot/attk_params_acc_top1.csv")["param"].unique().tolist() == [0.2, 0.35]


def test_layers_confidence_curve_and_probe_gap(tmp_path, monkeypatch):
    """Layers as the attack writes them, in subfolders; a backbone that others attacked by itself; and logits."""
    figures = ("attk_layers_acc_top1", "attk_confidence_top1", "score_probe_gap_top1")
    draw_alone(monkeypatch, *figures)
    name = "NN_attk_vicreg_300pc_50ep"
    for layer in ("projector", "projector.1", "projector.0"):
        shutil.copytree(POINT, tmp_path / "attack_sweeps" / name / layer)
    shutil.copytree(POINT, tmp_path / "attack_sweeps_backbone" / name)
    worse = tmp_path / "attack_sweeps_backbone" / name / "A_attk_A_neighb_labels.npy"
    worse.chmod(0o644)
    np.save(worse, np.load(worse)[:, ::-1].copy() % 7)
    logits = shutil.copytree(POINT, tmp_path / "attack_sweeps_w_linear_layer_activations" / name)
    statistics = to_json(attack_statistics(read_attack(POINT)))
    (logits / "results.json").write_text(json.dumps({**statistics, "settings": {"layer": "logits"}}))
    write_probe_log(tmp_path / "probes/lp_vicreg_300pc_50ep", (0.4, 0.7), (0.5, 0.8))
    result = ok(plot(tmp_path, attk_folder_path=tmp_path, plot_lin_probe=1, lin_probe_folder_path=tmp_path / "probes"))
    saved = tmp_path / "plot"
    layers = pd.read_csv(saved / "attk_layers_acc_top1.csv")
    assert layers["layer"].unique().tolist() == ["backbone", "projector.0", "projector.1", "projector", "logits"]
    everybody = layers[layers["pct_confidence"] == 100].set_index("layer")
    assert everybody["target_acc"]["backbone"] < everybody["target_acc"]["projector"]
    epochs = pd.read_csv(saved / "attk_epochs_acc_top1.csv")
    assert epochs["target_acc"].tolist() == layers[layers["layer"] == "projector"]["target_acc"].tolist()
    curve = pd.read_csv(saved / "attk_confidence_top1.csv").set_index("pct_confidence")
    assert curve["target_acc"][20] == epochs["target_acc"][1] and curve["target_acc"][100] == epochs["target_acc"][2]
    gap = pd.read_csv(saved / "score_probe_gap_top1.csv")
    assert gap["score"].tolist() == epochs["score"].tolist() and gap["probe_gap"].to_numpy() == pytest.approx(0.1)
    for figure in figures:
        for ending in (".png", "_legend.png", ".pdf", "_legend.pdf"):
            data = (saved / f"{figure}{ending}").read_bytes()
            assert len(data) > 4000 and b"/Type3" not in data  # fonts that publishers refuse
        assert f"{saved / figure}_legend.png" in result.stdout  # the path that is printed is the one with a legend
    assert Image.open(saved / "attk_layers_acc_top1.png").size == (1020, 1170)  # 3.4 x 3.9 inches: two panels
    assert (saved / "attk_layers_acc_top5.csv").exists() and not (saved / "attk_layers_acc_top5.png").exists()
    assert "since top-5 of 12 classes is mostly chance: " in result.stdout
    assert "attk_layers_acc_top5.csv" in result.stdout
    assert result.stdout.rstrip().endswith("holds for its own point.")


def test_chance_and_ceiling_are_there_where_they_are_known(tmp_path, undrawn):
    """Of two points, one has a results.json with the ceiling of its vote, one is only neighbor files."""
    attacks = tmp_path / "attack_sweeps"
    for epoch in (50, 100):
        shutil.copytree(POINT, attacks / f"NN_attk_vicreg_300pc_{epoch}ep")
    estimates = {"A": {"value": 0.9, "low": 0.88, "high": 0.92}, "B": {"value": 0.8, "low": 0.78, "high": 0.82}}
    results = {
        **to_json(attack_statistics(read_attack(POINT))),
        "settings": {"layer": "projector", "k": 100, "k_attk": 0},
        "ceiling": {model: {"top_1": found, "top_5": found} for model, found in estimates.items()},
    }
    (attacks / "NN_attk_vicreg_300pc_50ep/results.json").write_text(json.dumps(results))
    assert read_ceiling(attacks / "NN_attk_vicreg_300pc_50ep", 50) is None  # of another vote
    for name, changes in (("with", {}), ("without", {"k_neighb": 50})):
        settings = dict(attk_folder_path=attacks, save_path=tmp_path / name, **changes)
        ok(plot(tmp_path, **settings))
    table = pd.read_csv(tmp_path / "with/attk_epochs_acc_top1.csv").set_index(["epoch", "pct_confidence"])
    assert table["ceiling"][50, 5] == pytest.approx(0.85) and np.isnan(table["ceiling"][100, 5])
    assert table["ceiling_low"][50, 5] == pytest.approx(0.83)
    summary = summarize([s.attack for s in read_attack(POINT, 100).values()], 1, 20)
    assert table["chance"][100, 20] == pytest.approx(summary.chance, abs=1e-15)
    assert pd.read_csv(tmp_path / "with/attk_confidence_top1.csv")["ceiling"].to_numpy() == pytest.approx(0.85)
    assert "ceiling" not in pd.read_csv(tmp_path / "without/attk_epochs_acc_top1.csv")


def test_a_layer_that_was_asked_for_is_drawn_or_left_out(tmp_path, undrawn):
    shutil.copytree(POINT, tmp_path / "attack_sweeps/NN_attk_vicreg_300pc_50ep/backbone")
    shutil.copytree(POINT, tmp_path / "attack_sweeps/NN_attk_vicreg_300pc_100ep")
    changes = dict(attk_folder_path=tmp_path, layer="backbone", dataset_sweep_epoch=100)
    result = ok(plot(tmp_path, **changes))
    assert "note: left out: --layer backbone: " in result.stdout and "300pc_100ep holds projector" in result.stdout
    assert pd.read_csv(tmp_path / "plot/attk_epochs_acc_top1.csv")["epoch"].unique().tolist() == [50]
    assert not (tmp_path / "plot/attk_confidence_top1.csv").exists()  # of the point at 100 epochs


def test_probe_logs_in_per_cent(tmp_path):
    write_probe_log(tmp_path / "p", (40.0, 70.0), (50.0, 80.0))
    assert read_probe(tmp_path / "p").final.val.top_5.value == pytest.approx(0.7)


def test_science_style_or_how_to_get_it(tmp_path, undrawn):
    result = plot(tmp_path, style="science")
    if importlib.util.find_spec("scienceplots"):
        assert result.returncode == 0, result.stderr
    else:
        assert_one_line_error(result, "--style science", "pip install SciencePlots")


@rows_of(
    "changes, texts",
    f"""
    --model dino              -> NN_attk_dino_300pc_*ep or NN_attk_dino_*pc_50ep; there are NN_attk_vicreg_300pc_50ep
    --attk_folder_path ABSENT -> --attk_folder_path ABSENT: no such folder
    --pct_confidences 20:100  -> --pct_confidences ;; 20,100
    --layer backbone          -> --layer backbone ;; NN_attk_vicreg_300pc_50ep holds projector
    --k_neighb 101            -> neighb_labels.npy ;; --k_neighb is 101 ;; only 100
    --plot_lin_probe 1        -> --lin_probe_folder_path is needed
    --plot_lin_probe 1 --lin_probe_folder_path '{DATA}' -> --lin_probe_folder_path ;; lp_vicreg_300pc_*ep
""",
)
def test_bad_input_is_one_line(tmp_path, undrawn, changes, texts):
    assert_one_line_error(plot(tmp_path, **changes), *texts)


def test_a_damaged_file_is_named(tmp_path):
    copy = shutil.copytree(POINT, tmp_path / "attack_sweeps" / POINT.name)
    for path in copy.iterdir():
        path.chmod(0o644)
    labels = np.load(copy / "B_attk_A_labels.npy")
    np.save(copy / "B_attk_A_labels.npy", labels[:-1])
    result = plot(tmp_path, attk_folder_path=tmp_path)
    assert_one_line_error(result, "B_attk_A_labels.npy: has 399 rows")


def test_an_outcome_without_examples_is_no_failure(tmp_path, undrawn):
    ok(plot(tmp_path, pct_confidences="0.1"))
    assert pd.read_csv(tmp_path / "plot/attk_epochs_acc_top1.csv")["target_acc"].isna().all()
