"""sslmem.py: values against an independent implementation, planted units, and the script as a user runs it."""

import re
import shutil
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import stages
import timm
import torch
from helpers import assert_one_line_error, draw_alone, flags, ok, read_json, rows_of, run_example, run_here
from pages import Page, thumbnails

from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.data import augment
from dejavu_utils.data.augment import FIRST_VIEW, SECOND_VIEW
from dejavu_utils.imagenet import load_image
from dejavu_utils.label_free import scores as sslmem
from dejavu_utils.naming import SWEEPS
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.networks.loading import load_network
from dejavu_utils.randomness import uniforms
from dejavu_utils.runtime import resumable as unfinished

LAYERS = ["backbone", "projector"]


def settings_of(tiny, out, **changes):
    return flags(stages.settings("sslmem", tiny / "data", tiny / "made", out) | changes)


@pytest.fixture(scope="module")
def done(tiny, finished_stage, tmp_path_factory):
    out = tmp_path_factory.mktemp("sslmem") / "out"
    ok(run_here("sslmem.py", *settings_of(tiny, out, attack_dir=finished_stage("attack"))))
    return out


def by_hand(tiny, table):
    """{(model, layer): (mean distance, mean activation)} of a table's images, in plain loops.

    The networks are those that the script runs, their batch normalization folded: float32 rounds the outputs of others
    by so much that distances differ by 1e-6.
    """
    networks = {}
    for model in "AB":
        networks[model] = prepared_for_inference(load_network(str(tiny / f"made/{model}.pth"), "--model"), LAYERS)
    found = {(model, layer): ([], []) for model in "AB" for layer in LAYERS}
    for index, path in zip(table["index"], table["path"]):
        pixels = np.asarray(load_image(tiny / "data/images" / path))
        views = []
        for number in range(3):
            view = (FIRST_VIEW, SECOND_VIEW)[number % 2]
            draws = uniforms(0, 2**31, number, int(index), 1)
            left, top, right, bottom = augment.crop_boxes(draws, [pixels.shape[:2]], view)[0]
            cut = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
            crop = torch.nn.functional.interpolate(cut, size=(32, 32), mode="bilinear", antialias=True)
            views.append(augment.apply_batched(crop, augment.draw_parameters(draws, view))[0])
        for model, network in networks.items():
            for layer in LAYERS:
                with torch.no_grad():
                    output = network.embed(torch.stack(views), layer).numpy().astype(np.float64)
                unit = [row / np.linalg.norm(row) for row in output]
                pairs = [np.linalg.norm(unit[i] - unit[j]) for i in range(3) for j in range(i)]
                found[model, layer][0].append(np.mean(pairs))
                found[model, layer][1].append(np.maximum(output, 0).mean(axis=0))
    return {key: tuple(map(np.array, value)) for key, value in found.items()}


def test_values_equal_an_independent_implementation(tiny, done):
    results = read_json(done / "results.json")
    for own, other in ("AB", "BA"):
        table = pd.read_csv(done / f"sslmem_{own}.csv")
        indices = np.load(tiny / f"data/index/4_per_class/bbox_{own}.npy")
        assert table["index"].tolist() == indices.tolist()
        expected = by_hand(tiny, table)
        for layer in LAYERS:
            scores = expected[other, layer][0] - expected[own, layer][0]
            np.testing.assert_allclose(table[f"{layer}_sslmem"], scores, atol=1e-6)
            np.testing.assert_allclose(table[f"{layer}_target"], expected[own, layer][0], atol=1e-6)
            width = np.ptp(scores)
            np.testing.assert_allclose(table[f"{layer}_normalized"], scores / width, atol=1e-6 / width)
            activations = expected[own, layer][1]
            rest = (activations.sum(0) - activations.max(0)) / (len(activations) - 1)
            both = activations.max(0) + rest
            units = np.where(both > 0, (activations.max(0) - rest) / np.where(both > 0, both, 1), 0)
            np.testing.assert_allclose(np.load(done / f"unitmem_{own}_{layer}.npy"), units, atol=1e-6)
            found = results["sets"][own]["layers"][layer]
            assert found["score"]["value"] == pytest.approx(scores.mean(), abs=1e-6)
            assert found["score"]["low"] < found["score"]["value"] < found["score"]["high"]
            assert found["above_0"]["value"] == np.mean(table[f"{layer}_sslmem"] > 0)
    control = pd.read_csv(done / "sslmem_public.csv")["projector_sslmem"]  # model A is the target
    sets = {name: pd.read_csv(done / f"sslmem_{name}.csv")["projector_sslmem"] for name in "AB"}
    for name, sign in (("A", -1), ("B", 1)):
        less = results["sets"][name]["layers"]["projector"]["less_control"]
        assert less["value"] == pytest.approx(sets[name].mean() + sign * control.mean(), abs=1e-12)
    assert results["both"]["projector"]["value"] == pytest.approx(np.mean([sets[name].mean() for name in "AB"]))
    halves = (control[::2].mean() - control[1::2].mean()) / 2
    assert results["control"]["projector"]["value"] == pytest.approx(halves)
    assert results["sets"]["public"]["images"] == len(control)
    assert not (done / "unfinished").exists()


def test_rank_correlation_with_the_attack_on_the_same_images(done, finished_stage, tiny, tmp_path):
    results = read_json(done / "results.json")
    for name in "AB":
        scores = pd.read_csv(done / f"sslmem_{name}.csv").set_index("index")
        attacked = pd.read_csv(finished_stage("attack") / f"attack_{name}.csv").set_index("index")
        margin = attacked["target_vote_share"] - attacked["reference_vote_share"]
        assert scores["attack_outcome"].dropna().equals(attacked["share"].rename("attack_outcome"))
        assert np.allclose(scores["attack_margin"].dropna(), margin)
        for layer in LAYERS:
            found = results["attack"][name][layer]["overall"]
            for which in ("target", "reference"):
                share = results["attack"][name][layer][f"{which}_share"]["value"]
                both = pd.concat([scores[f"{layer}_sslmem"], attacked[f"{which}_vote_share"]], axis=1).dropna()
                assert share == pytest.approx(both.corr(method="spearman").iloc[0, 1])
            outcomes = results["attack"][name][layer]["outcomes"]
            for outcome, of in outcomes.items():
                chosen = scores[f"{layer}_sslmem"][attacked.index[attacked["share"] == outcome]]
                assert of["n"] == len(chosen) and (not len(chosen) or of["value"] == pytest.approx(chosen.mean()))
            both = pd.DataFrame({"score": scores[f"{layer}_sslmem"], "margin": margin}).dropna()
            expected = both.corr(method="spearman").iloc[0, 1]
            assert found["n"] == len(both) and found["value"] == pytest.approx(expected)
    for name in ("sslmem_layers", *(f"{kind}_{layer}" for kind in ("unitmem", "sslmem_margin") for layer in LAYERS)):
        for ending in ("png", "pdf"):
            assert (done / f"{name}.{ending}").stat().st_size > 3000
    result = run_here("sslmem.py", *settings_of(tiny, tmp_path / "out", attack_dir=done))
    assert_one_line_error(result, "--attack_dir", "attack_A.csv", "no such file")


def test_swapped_models_give_the_negative_and_one_model_gives_0(tiny, done, tmp_path, undrawn):
    """With a control that holds no image, which is left out."""
    made, shared = tiny / "made", tmp_path / "shared.npy"
    np.save(shared, np.empty(0, np.int64))
    controls = {"public_idx_pth": None, "shared_idx_pth": shared}
    for name, changes in (
        ("swapped", {"model_A_pth": made / "B.pth", "model_B_pth": made / "A.pth"}),
        ("same", {"model_B_pth": made / "A.pth"}),
    ):
        printed = ok(run_here("sslmem.py", *settings_of(tiny, tmp_path / name, **controls, **changes))).stdout
        assert f"note: --shared_idx_pth {shared} holds no image: this control is left out" in printed
        assert ("is model A's checkpoint too" in printed) == (name == "same")
    column = "projector_sslmem"
    scores = [
        pd.read_csv(folder / "sslmem_A.csv")[column] for folder in (done, tmp_path / "swapped", tmp_path / "same")
    ]
    assert (scores[0] == -scores[1]).all() and scores[0].abs().max() > 1e-4
    assert (scores[2] == 0).all()


@pytest.mark.kills
def test_two_processes_measure_what_one_measures(tiny, done, finished_stage, tmp_path):
    settings = settings_of(tiny, tmp_path, attack_dir=finished_stage("attack"), ngpus=0, world_size=2)
    ok(run_here("sslmem.py", *settings))
    files = [path.name for path in done.iterdir() if path.name != "results.json"]
    assert len(files) > 15
    for name in files:
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name
    one, two = (read_json(folder / "results.json") for folder in (done, tmp_path))
    assert {**one, "settings": 0} == {**two, "settings": 0}


def test_the_gallery_shows_the_most_and_least_memorized(tiny, done):
    page = Page(done / "sslmem_gallery.html")
    assert (done / "sslmem_gallery.html").stat().st_size < 3e6
    tables = pd.concat([pd.read_csv(done / f"sslmem_{name}.csv") for name in "AB"])
    for layer in LAYERS:
        ordered = tables.sort_values(f"{layer}_sslmem", ascending=False)
        for word, expected in (("most", ordered.head(12)), ("least", ordered.tail(12)[::-1])):
            shown = [example for example in page.examples if example["group"] == f"{word}-{layer}"]
            for example, row in zip(shown, expected.to_dict("records"), strict=True):
                assert row["path"] in example["text"] and example["images"] == 1 + 3  # the image and its views
                score = float(re.search(r"SSLMem (\S+)", example["text"])[1].replace("−", "-"))
                assert score == pytest.approx(row[f"{layer}_sslmem"], abs=6e-4)
    assert all(max(image.size) <= 160 for image in thumbnails(page))


def test_attack_and_plots_read_scores_that_lie_beside_them(tiny, done, tmp_path, monkeypatch):
    """With paths as the study names them."""
    draw_alone(monkeypatch, "attk_sslmem_outcomes_top1")
    point = SWEEPS["epochs"].at("1", "simclr", 4)
    attack, beside = tmp_path / point.attack("projector"), tmp_path / point.sslmem
    shutil.copytree(done, beside)
    ok(stages.call("attack", stages.settings("attack", tiny / "data", tiny / "made", attack)))
    tables = {name: pd.read_csv(attack / f"attack_{name}.csv") for name in "AB"}
    for name, table in tables.items():
        scores = pd.read_csv(beside / f"sslmem_{name}.csv").set_index("index")
        table["projector_sslmem"] = scores["projector_sslmem"][table["index"]].to_numpy()
    ok(run_here("plot_quant_results.py", *flags(stages.plot_settings(tmp_path, tmp_path / "plot"))))
    beside_score = pd.read_csv(tmp_path / "plot/score_sslmem_top1.csv")
    both = read_json(beside / "results.json")["both"]
    found = beside_score[beside_score["instrument"] == "sslmem"].set_index("of")["value"]
    assert found.to_dict() == pytest.approx({layer: both[layer]["value"] for layer in LAYERS})
    outcomes = pd.read_csv(tmp_path / "plot/attk_sslmem_outcomes_top1.csv").set_index(["layer", "outcome"])
    for outcome, rows in pd.concat(tables.values()).groupby("share"):
        assert outcomes["n"]["projector", outcome] == len(rows)
        assert outcomes["value"]["projector", outcome] == pytest.approx(rows["projector_sslmem"].mean())
    assert (tmp_path / "plot" / "attk_sslmem_outcomes_top1.png").stat().st_size > 3000


def test_a_public_network_and_its_twin(tiny, tmp_path, undrawn):
    """Layers of the network's own; the twin differs by noise, as if trained on other images."""
    torch.manual_seed(0)
    net, layers = timm.create_model("test_vit"), ["blocks.2", "backbone:l2"]
    for model in "AB":
        torch.save(net.state_dict(), tmp_path / f"{model}.pth")
        with torch.no_grad():
            for value in net.parameters():
                value += 0.02 * torch.randn_like(value)
    changes = {f"model_{model}_pth": f"timm:test_vit@{tmp_path / model}.pth" for model in "AB"}
    more = {"layers": ",".join(layers), "resolution": None, "public_idx_pth": None}  # of timm's own size
    ok(run_here("sslmem.py", *settings_of(tiny, tmp_path / "out", **changes, **more)))
    network = load_network(changes["model_A_pth"], "--model")
    for layer in layers:
        table = pd.read_csv(tmp_path / "out/sslmem_A.csv")
        assert table[f"{layer}_sslmem"].abs().max() > 1e-4
        units = np.load(tmp_path / f"out/unitmem_A_{layer}.npy")
        assert len(units) == network.width(layer) and 0 <= units.min() and units.max() <= 1


@pytest.mark.kills
def test_resumes_after_a_kill_without_measuring_again(tiny, done, finished_stage, tmp_path, undrawn):
    out, save = tmp_path / "out", unfinished.ShardStore.save
    command, saved = settings_of(tiny, out, attack_dir=finished_stage("attack")), []

    def killed(self, name, **arrays):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, name, **arrays)

    with mock.patch.object(unfinished.ShardStore, "save", killed):
        assert run_here("sslmem.py", *command).returncode == 130
    assert len(list((out / "unfinished").glob("*.npz"))) == 3 and not (out / "results.json").exists()
    result = ok(run_here("sslmem.py", *command))
    assert "resumes with 3 pieces" in result.stdout
    for path in done.glob("*.csv"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_rank_correlation_overall_and_within_groups():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=300), np.repeat(np.arange(3), 100)
    y = np.round(2 * x + rng.normal(size=300))  # with equal values
    pandas = pd.DataFrame({"x": x, "y": y}).corr(method="spearman").iloc[0, 1]
    found = sslmem.rank_correlation(x, y)
    assert found.value == pytest.approx(pandas) and found.low < found.value < found.high
    shifted = 10 * groups + rng.normal(size=300)  # related through the groups alone
    assert sslmem.rank_correlation(x + 10 * groups, shifted).value > 0.8
    within = sslmem.rank_correlation(x + 10 * groups, shifted, groups)
    assert within.low < 0 < within.high and within.n == 300
    assert np.isnan(sslmem.rank_correlation(np.ones(9), x[:9]).value)


@rows_of(
    "changes, texts",
    """
    --views 1                   -> --views 1
    --layers backbone,nothing   -> has no layer nothing ;; projector
    --model_A_pth absent.pth    -> --model_A_pth absent.pth ;; no such file
    --shared_idx_pth absent.npy -> --shared_idx_pth absent.npy
""",
)
def test_bad_input_is_one_line(tiny, tmp_path, changes, texts):
    assert_one_line_error(run_here("sslmem.py", *settings_of(tiny, tmp_path / "out", **changes)), *texts)


def test_attack_on_other_images_is_refused_at_once(tiny, finished_stage, tmp_path):
    index = tiny / "data/index/4_per_class"
    swapped = {"bbox_A_idx_pth": index / "bbox_B.npy", "bbox_B_idx_pth": index / "bbox_A.npy"}
    result = run_here("sslmem.py", *settings_of(tiny, tmp_path, **swapped, attack_dir=finished_stage("attack")))
    assert_one_line_error(result, "--attack_dir", "attack_A.csv is about other images than set A")
    assert not list(tmp_path.iterdir())


def test_less_control_removes_a_difference_everywhere():
    """Welch's interval covers the true difference in about 95 of 100 draws, with unequal variances and numbers."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        scores, control = rng.normal(0.5, 1, 30), rng.normal(0.2, 0.3, 200)  # 0.2: better everywhere
        found = sslmem.weighted_means((1, scores), (-1, control))
        assert found.value == pytest.approx(scores.mean() - control.mean())
        covered += found.low < 0.3 < found.high
    assert 930 <= covered <= 970
    one = sslmem.weighted_means((1, scores))
    assert vars(one) == pytest.approx(vars(sslmem.mean_estimate(scores)))
    assert sslmem.weighted_means((0.5, np.zeros(5)), (0.5, np.zeros(5))) == Estimate(0, 0, 0)


@pytest.mark.slow
def test_the_demo_is_memorized_by_both_instruments(tmp_path):
    for script in ("demo.sh", "demo_sslmem.sh"):
        ok(run_example(script, DEMO_DIR=tmp_path, SNAPSHOTS=1))
    (path,) = tmp_path.glob("seed0/*/sslmem_sweeps/*/results.json")
    results = read_json(path)
    for layer in ("backbone", "projector.0", "projector"):
        assert results["both"][layer]["low"] > 0 and abs(results["control"][layer]["value"]) < 0.02
        for name in "AB":
            assert results["sets"][name]["layers"][layer]["less_control"]["low"] > 0
