"""The test of one model: classifiers of crops as the reference, what they may have seen, and the figures."""

import json
import math
import shutil
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    RECIPE,
    assert_one_line_error,
    cases,
    draw_tree,
    flags,
    ok,
    options,
    read_json,
    rows_of,
    run_example,
    run_here,
    save_sets,
    save_untrained,
    trained_on,
)
from stages import attack_settings

from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.memorization import Predictions, predict_from_neighbors
from dejavu_utils.analysis.one_model import (
    ClassifierComparison,
    entropy_of_votes,
    log_mean_probabilities,
    mean_confidences,
    memorization_confidence,
    one_model_statistics,
    spread_of,
    widened,
)
from dejavu_utils.checkpoint import save_checkpoint
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.imagenet import list_images, load_image
from dejavu_utils.models import SSLNetwork
from dejavu_utils.networks.loading import load_network
from dejavu_utils.typed_json import to_json

CROPS = str(CropRule(min_px=10))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An image folder whose images are all boxed, index files of its sets, the only model and two seeds a side."""
    folder = draw_tree(tmp_path_factory.mktemp("data"), per_class=20, boxed=20)
    listing = save_sets(folder, 20, A=(0, 4), B=(4, 8), unseen=(8, 13), public=(13, 20))
    save(folder, "model", "AB", 0, loss="simclr", crops="")
    for number, side in enumerate("AABB"):
        save(folder, f"{side}{number % 2}", [side], number + 1)
    return folder, listing


def save(folder, name, trained, seed, loss="supervised", crops=CROPS):
    images = trained_on(folder, trained, crops) if trained else None
    about = {"num_classes": 3, "settings": {**RECIPE, "training.loss": loss}, "train_images": images}
    save_untrained(folder / f"{name}.pth", seed, loss, **about)
    return folder / f"{name}.pth"


def attack(data, out, references=("A0", "A1", "B0", "B1"), **changes):
    folder = data[0]
    of_side = {side: [folder / f"{name}.pth" for name in references if name.startswith(side)] for side in "AB"}
    one_model = {"model_A_pth": None, "model_B_pth": None, "model_oss_pth": folder / "model.pth"}
    settings = attack_settings(folder, out, **{**one_model, "unseen_idx_pth": folder / "unseen.npy", **changes})
    several = [word for side in "AB" for word in (f"--reference_{side}_pth", *of_side[side]) if of_side[side]]
    return run_here("label_inference_attack.py", *flags(settings), *several)


@pytest.fixture(scope="module")
def attacked(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("attack")
    result = ok(attack(data, out))
    return out, result.stdout, read_json(out / "results.json")


def test_files_have_the_names_that_plots_and_gallery_read(data, attacked):
    out, _, results = attacked
    folder, listing = data
    annotations = Annotations(folder / "boxes", listing)
    for name, other in zip("AB", "BA"):
        cropped = take_crops(listing, np.load(folder / f"{name}.npy"), CropRule(min_px=10), annotations)
        images = IndexedImages(listing, cropped.indices, evaluation_transform(32), cropped.crops)
        batch = torch.stack([image for image, _ in images])
        probabilities = []
        for seed in "01":
            with torch.no_grad():
                logits = load_network(folder / f"{other}{seed}.pth").embed(batch, "logits")
            probabilities.append(torch.softmax(logits, dim=1))
        expected = torch.log(sum(probabilities) / 2)
        scores = np.load(out / f"{other}_attk_{name}_scores.npy")
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
        assert np.array_equal(np.load(out / f"{other}_attk_{name}_attk_idxs.npy"), cropped.indices)
        assert np.load(out / f"{name}_attk_{name}_neighb_idxs.npy").shape == (len(cropped), 7)
        assert not (out / f"{other}_attk_{name}_neighb_idxs.npy").exists()
        found = results[name]["one_model"]
        right = [(p.argmax(dim=1).numpy() == listing.labels[cropped.indices]).mean() for p in probabilities]
        np.testing.assert_allclose(found["reference_accuracy_by_seed"], right)
        assert found["reference_sd"] == pytest.approx(np.std(right, ddof=1))
    sets = read_attack(out, 5)
    accuracy = np.mean([of.attack.target.correct(of.attack.labels, 1).mean() for of in sets.values()])
    assert results["both"]["top_1"]["accuracy"]["100"]["target"]["value"] == pytest.approx(accuracy)
    assert results["settings"]["reference"] == "classifier" and set(results["ceiling"]) == {"M"}
    assert results["counts"]["unseen_A"]["attacked"] + results["counts"]["unseen_B"]["attacked"] == 15
    page = (out / "attack_gallery.html").read_text(encoding="utf-8")
    assert "The reference is a classifier of crops" in page


def test_what_is_printed_stands_side_by_side(attacked):
    out, printed, results = attacked
    assert "model.pth: test_resnet; images: short side" in printed  # these settings do not tell the size of training
    both = results["both"]["one_model"]
    score = both["score"]["value"]
    assert score == pytest.approx(results["both"]["top_1"]["accuracy"]["100"]["score"]["value"])
    halves = [pd.read_csv(out / f"attack_unseen_{name}.csv") for name in "AB"]
    seen = [pd.read_csv(out / f"attack_{name}.csv") for name in "AB"]
    delta = np.mean([(half.target_top1_correct - half.reference_top1_correct).mean() for half in halves])
    assert both["delta"]["value"] == pytest.approx(delta) and sum(map(len, halves)) == 15
    assert both["score_minus_delta"]["value"] == pytest.approx(score - delta)
    for text in (f"score {score:.3f} [", f"images that the model never saw {delta:.3f} [", "score - delta"):
        assert text in printed
    assert "margin of the true label" in printed
    margins = [np.mean([(t.target_vote_share - t.reference_vote_share).mean() for t in of]) for of in (seen, halves)]
    assert (both["margin"]["value"], both["margin_delta"]["value"]) == pytest.approx(tuple(margins))
    assert both["margin_minus_delta"]["value"] == pytest.approx(margins[0] - margins[1])
    assert f"margin - that {both['margin_minus_delta']['value']:.3f} [" in printed
    assert "do not include the classifiers' training: give three or more" in printed  # two seeds of each side
    assert (seen[0].memorization_confidence >= seen[0].memorization_confidence_corrected).all()


def test_classifiers_see_what_they_judge_decoded_once(data, tmp_path, monkeypatch):
    seen, forward = [], SSLNetwork.embed_layers
    monkeypatch.setattr(
        SSLNetwork, "embed_layers", lambda net, x, layers: seen.append((net.loss, len(x))) or forward(net, x, layers)
    )
    decoded = mock.Mock(side_effect=load_image)
    monkeypatch.setattr("dejavu_utils.data.image_dataset.load_image", decoded)
    result = ok(attack(data, tmp_path, unseen_idx_pth=None))
    n = len(np.load(data[0] / "public.npy"))
    images = {loss: sum(count for of, count in seen if of == loss) for loss in ("simclr", "supervised")}
    # Each network also sees one blank image, before any is read.
    assert images == {"simclr": 1 + 24 + 2 * n, "supervised": 4 + 4 * 12}
    assert decoded.call_count == 24 + 2 * n  # crops, ceiling, public
    assert "delta is missing" in result.stdout


def test_a_classifier_that_saw_what_it_judges_is_refused(data, tmp_path):
    leaking = save(data[0], "B_leaks", "BA", 5)
    result = attack(data, tmp_path, ("A0", "B0", "B_leaks"))
    assert_one_line_error(result, f"--bbox_A_idx_pth: --reference_B_pth {leaking} was trained on 12 of its")
    save(data[0], "A_unseen", ["A", "unseen"], 5)
    result = attack(data, tmp_path, ("A_unseen", "B0"))
    assert_one_line_error(result, "--unseen_idx_pth: --reference_A_pth", "was trained on 7 of its 7")


@rows_of(
    "kind, texts",
    """
    --crops       -> --reference_B_pth ;; was trained on whole images ;; CROPS=1
    --loss simclr -> --reference_B_pth ;; has no classifier
""",
)
def test_what_is_no_classifier_of_crops_is_refused(data, tmp_path, kind, texts):
    save(data[0], "B_other", "B", 5, **kind)
    assert_one_line_error(attack(data, tmp_path, ("A0", "B_other")), *texts)


def test_pretrained_weights_are_no_reference(data, tmp_path):
    import torchvision

    torch.manual_seed(0)
    save_checkpoint(data[0] / "B_public.pth", torchvision.models.resnet18(num_classes=3).state_dict())
    result = attack(data, tmp_path, ("A0", "B_public"))
    assert_one_line_error(result, "--reference_B_pth", "pretrained weights have seen the tested images")


def test_without_a_record_it_is_said(data, tmp_path):
    save(data[0], "B_silent", "", 5)
    save(data[0], "A_margin", "A", 5, crops=str(CropRule(min_px=10, margin=2)))
    result = ok(attack(data, tmp_path, ("A_margin", "B_silent")))
    assert "B_silent.pth does not say which images it was trained on" in result.stdout
    assert "was trained on other crops (background, paper rule, above 10 px, boxes grown by 2)" in result.stdout


def test_a_classifier_named_twice_is_refused(data, tmp_path):
    """By contents: a copy of the file under another name, also among those of half of the crops."""
    folder = data[0]
    copy = shutil.copy(folder / "A0.pth", folder / "A_copy.pth")
    same = [f"{copy}: holds the same weights as --reference_A_pth", "A0.pth", "name each classifier once"]
    assert_one_line_error(attack(data, tmp_path, ("A0", "A_copy", "B0")), "--reference_A_pth", *same)
    halves = {"half_reference_A_pth": copy, "half_reference_B_pth": folder / "B1.pth"}
    assert_one_line_error(attack(data, tmp_path, ("A0", "B0"), **halves), "--half_reference_A_pth", *same)


@rows_of(
    "changes, texts",
    """
    --test_idx_pth unseen -unseen_idx_pth    -> --bbox_A_idx_pth: 15 of its 15 ;; --model_oss_pth
    --unseen_idx_pth A --test_idx_pth unseen -> 15 of its 15 images were not trained on
    --model_A_pth model                      -> --model_A_pth: give ;; or --model_oss_pth
    -model_oss_pth                           -> --reference_A_pth: give --model_A_pth
    --half_reference_A_pth A0                -> --half_reference_B_pth is needed
    --placebo                                -> --placebo ;; --unseen_idx_pth
""",
)
def test_what_does_not_go_together_is_refused(data, tmp_path, changes, texts):
    files = {name: data[0] / f"{value}.{'npy' if 'idx' in name else 'pth'}" for name, value in changes.items() if value}
    assert_one_line_error(attack(data, tmp_path, **{**changes, **files}), *texts)


def test_a_folder_holds_one_kind_of_attack(data, attacked, tmp_path):
    out, folder = attacked[0], data[0]
    models = {"model_oss_pth": None, "model_A_pth": folder / "model.pth", "model_B_pth": folder / "model.pth"}
    result = attack(data, out, (), **models, unseen_idx_pth=None)
    assert_one_line_error(result, "holds the scores of another kind of attack")


def test_half_of_the_crops_gives_a_learning_curve(data, tmp_path):
    halves = {f"half_reference_{side}_pth": data[0] / f"{side}1.pth" for side in "AB"}
    result = ok(attack(data, tmp_path, ("A0", "B0"), **halves))
    results = read_json(tmp_path / "results.json")
    assert results["both"]["one_model"]["rise"] is not None
    assert "reference accuracy with all crops - with half: " in result.stdout


def planted(rng, n, target, reference, seeds=3, spread=0.0):
    """ClassifierComparison of n images of five classes; target, reference: how often each is correct."""
    labels = rng.integers(0, 5, n)

    def guesses(probability):
        return np.where(rng.random(n) < probability, labels, (labels + rng.integers(1, 5, n)) % 5)

    top = np.full((n, 5), -1)
    top[:, 0] = guesses(target)
    model = Predictions(top, np.zeros(n), (top[:, 0] == labels).astype(float))
    base = guesses(reference)  # classifiers of one recipe predict much the same
    logits = [
        3.0 * (np.where(rng.random(n) < spread, guesses(reference), base)[:, None] == np.arange(5))
        for _ in range(seeds)
    ]
    return ClassifierComparison.of(model, logits, labels)


def test_figures_against_a_hand_computation():
    rng = np.random.default_rng(0)
    seen = {name: planted(rng, 400, 0.5, 0.2, spread=0.3) for name in "AB"}
    unseen = {name: planted(rng, 300, 0.3, 0.25, spread=0.3) for name in "AB"}
    found = to_json(one_model_statistics(seen, unseen))
    bare = {name: found[name]["score"] for name in "AB"}
    for name in "AB":
        one = seen[name]
        labels, joint = one.attack.labels, one.attack.reference.top[:, 0]
        assert bare[name]["value"] == pytest.approx(
            (one.attack.target.top[:, 0] == labels).mean() - (joint == labels).mean()
        )
        by_seed = one.correct.mean(axis=1)
        assert found[name]["reference_accuracy_by_seed"] == by_seed.tolist()
        half = 4.302652729911275 * by_seed.std(ddof=1) / math.sqrt(3)  # t quantile of two degrees of freedom
        assert spread_of(by_seed) == pytest.approx(half)
    assert found["both"]["score"]["value"] == pytest.approx(np.mean([one["value"] for one in bare.values()]))
    assert found["both"]["score_minus_delta"]["value"] == pytest.approx(
        found["both"]["score"]["value"] - found["both"]["delta"]["value"]
    )
    estimate = Estimate(0.2, 0.17, 0.26)
    assert vars(widened(estimate, [0.08, 0.0])) == pytest.approx(
        {"value": 0.2, "low": 0.15, "high": 0.2 + math.hypot(0.06, 0.04)}
    )
    assert vars(widened(estimate, [None, None])) == pytest.approx(vars(estimate))
    two_seeds = {name: planted(rng, 50, 0.5, 0.2, seeds=2) for name in "AB"}
    assert spread_of([0.1, 0.2]) is None and not one_model_statistics(two_seeds)["both"].spread_in_intervals


def covered(truth, estimates):
    return np.mean([one["low"] <= truth <= one["high"] for one in estimates])


def planted_runs(seed, on_seen, on_unseen, spread=0.0):
    """The figures of both sets of 60 attacks. on_seen, on_unseen: how often target and reference are correct."""
    rng, runs = np.random.default_rng(seed), []
    for _ in range(60):
        seen, unseen = (
            {name: planted(rng, 150, *rates, spread=spread) for name in "AB"} for rates in (on_seen, on_unseen)
        )
        runs.append(one_model_statistics(seen, unseen)["both"])
    return to_json(runs)


def test_a_bad_encoder_has_a_score_below_0_without_delta_0():
    """A model that learned nothing reads backgrounds at chance, the classifiers better: on any images alike."""
    runs = planted_runs(1, (0.2, 0.6), (0.2, 0.6), spread=0.1)
    assert all(run["score"]["high"] < -0.2 for run in runs)
    assert covered(0.0, [run["score_minus_delta"] for run in runs]) >= 0.9


def test_memory_is_seen_and_covered():
    runs = planted_runs(2, (0.45, 0.2), (0.2, 0.2))
    for name in ("score", "score_minus_delta"):
        assert covered(0.25, [run[name] for run in runs]) >= 0.9
        assert np.mean([run[name]["low"] > 0 for run in runs]) > 0.6
    assert covered(0.0, [run["delta"] for run in runs]) >= 0.9


def test_mean_of_probabilities_takes_fewer_classes():
    logits = [np.array([[0.0, 1.0, 2.0]]), np.array([[1.0, 1.0]])]
    softmax = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    expected = np.log((softmax + [0.5, 0.5, 0]) / 2)
    np.testing.assert_allclose(log_mean_probabilities(logits)[0], expected, rtol=1e-6)


def test_zero_of_the_memorization_confidence():
    """Votes that are drawn from the softmax itself: the published zero is not zero, the corrected one is."""
    rng = np.random.default_rng(4)
    weights = rng.gamma(0.3, size=(500, 40)) + 1e-9
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    votes = np.array([rng.choice(40, 20, p=p) for p in probabilities])
    target = predict_from_neighbors(votes)
    found = memorization_confidence(target, np.log(probabilities).astype(np.float32), 20)
    error = found["corrected"].std() / math.sqrt(500)
    assert abs(found["corrected"].mean()) < 4 * error
    assert found["published"].mean() > 10 * error
    by_hand = -(
        2 * 0.25 * 0.0 + 0.5 * 2 * 0.5 * math.log(0.5)
    )  # two votes over two classes: one each, half of the time
    assert entropy_of_votes(np.array([[0.5, 0.5]]), 2)[0] == pytest.approx(by_hand, abs=1e-6)
    uniform = entropy_of_votes(np.full((1, 1000), 1e-3), 100)[0]
    assert math.log(1000) - uniform == pytest.approx(2.37, abs=0.01)


def test_mean_confidences_are_of_memorized_images():
    table = pd.DataFrame({"share": ["memorized", "memorized", "correlated"]})
    table["memorization_confidence"] = [1.0, 3.0, 9.0]
    table["memorization_confidence_corrected"] = [0.0, 1.0, 9.0]
    found = to_json(mean_confidences([table]))
    assert found["n"] == 2 and found["published"]["value"] == 2.0 and found["corrected"]["value"] == 0.5
    assert found["corrected"]["high"] == pytest.approx(0.5 + 1.96 * math.sqrt(0.5) / math.sqrt(2))
    assert mean_confidences([table[2:]]) is None


def test_the_table_sets_one_model_beside_two(data, attacked, tmp_path):
    """The paired difference is that of the two references; the truth what the model knows beyond chance."""
    out, _, results = attacked
    judged = pd.concat([pd.read_csv(out / f"attack_{name}.csv") for name in "AB"])
    twin = judged[["index", "label"]].assign(reference_top1=np.random.default_rng(0).integers(0, 3, len(judged)))
    two = tmp_path / "two"
    two.mkdir()
    twin.sample(frac=1, random_state=0).to_csv(two / "attack_A.csv", index=False)
    estimate = {"value": 0.4, "low": 0.3, "high": 0.5}
    accuracy = {"target": estimate, "reference": estimate, "score": estimate}
    of_set = {"n": len(judged), "top_1": {"accuracy": {"100": accuracy}}}

    def write_results(**more):
        (two / "results.json").write_text(json.dumps({"both": of_set, "A": of_set, "B": of_set, **more}))

    def tabulate(*more):
        words = ["--two_models", two, "--chance", "0.25", "--save_path", tmp_path / "table.csv", f"A={out}", *more]
        return run_here("bash_examples/one_model_table.py", *words)

    write_results()
    ok(tabulate())
    row = pd.read_csv(tmp_path / "table.csv").iloc[0]
    halves = [judged[judged["index"].isin(np.load(data[0] / f"{name}.npy"))] for name in "AB"]
    correct, by_index = [], twin.set_index("index").reference_top1
    for half in halves:
        of_twin = (by_index[half["index"]].to_numpy() == half.label).mean()
        correct.append(of_twin - half.reference_top1_correct.mean())
    assert row.one_minus_two == pytest.approx(np.mean(correct)) and row.truth == pytest.approx(0.15)
    assert row.one_model == pytest.approx(results["both"]["one_model"]["score"]["value"])
    tied = pd.DataFrame({"path": judged.path, "tied": np.arange(len(judged)) % 3 == 0})
    tied.to_csv(tmp_path / "tied.csv", index=False)
    assert "tied images" in ok(tabulate("--tied", tmp_path / "tied.csv")).stdout
    row = pd.read_csv(tmp_path / "table.csv").iloc[0]
    of_tied = [half[half.path.isin(tied.path[tied.tied])] for half in halves]
    score = [(half.target_top1_correct - half.reference_top1_correct).mean() for half in of_tied]
    share = np.mean([len(some) / len(half) for some, half in zip(of_tied, halves)])
    assert row.tied == pytest.approx(np.mean(score))
    assert row.truth == pytest.approx(0.4 - (share + (1 - share) * 0.25))
    tied[1:].to_csv(tmp_path / "tied.csv", index=False)
    assert_one_line_error(tabulate("--tied", tmp_path / "tied.csv"), "--tied", "does not hold the images of")
    record = read_json(out / "results.json")["made_from"]
    record["models"] = {"A": {**record["models"]["M"], "weights": "0" * 64}}
    write_results(made_from=record)
    assert_one_line_error(tabulate(), f"{out}: weights of model A", f"other than --two_models {two}")
    write_results()
    twin[1:].to_csv(two / "attack_A.csv", index=False)
    assert_one_line_error(tabulate(), "attacks other images than set A")


def test_the_sweep_goes_from_index_files_to_the_figure(tmp_path):
    index = tmp_path / "index/300_per_class"
    index.mkdir(parents=True)
    for path in (index / "bbox_A.npy", index / "bbox_B.npy", tmp_path / "public.npy"):
        np.save(path, np.arange(3))
    folders = options("""LOGGING_FOLDER=logs BETONS_FOLDER=betons INDEX_FOLDER=index PUBLIC_IDX=public.npy
        IMAGENET_DATASET_DIR= IMAGENET_BBOX_ANNOTATIONS=""")
    environment = {name: tmp_path / place for name, place in folders.items()}
    environment |= options("DRY_RUN=1 LOCAL=1 NAME=vicreg EPOCH=1000") | {"MODEL_PTH": __file__}
    result = ok(run_example("one_model.sh", **{**environment, "MODEL_PTH": "timm:resnet18"}))
    scripts = [line.split()[1].rpartition("/")[2] for line in result.stdout.splitlines()]
    half = ["write_ffcv_dataset.py", *["train_SSL.py"] * 3]
    assert scripts == [*half, *half, "label_inference_attack.py", "plot_quant_results.py"]
    attack_command = result.stdout.splitlines()[-2]
    assert attack_command.count("/crop_classifiers/300pc_A_seed") == 3 == attack_command.count("300pc_B_seed")
    assert "attack_sweeps/NN_attk_vicreg_300pc_1000ep" in attack_command
    result = run_example("one_model.sh", **environment, LEARNING_CURVE="1")
    lines = result.stdout.splitlines()
    assert len(lines) == 4 + 12 + 2 and "half_bbox_A.npy" in result.stdout
    assert lines[-2].count("/crop_classifiers/300pc_half_B_seed") == 3 and "--half_reference_B_pth" in lines[-2]
    for change, texts in cases("""
        MODEL_PTH=                    -> the variable MODEL_PTH is not set
        MODEL_PTH=absent.pth          -> --model_oss_pth absent.pth: no such file
        MODEL_PTH=timm:absent         -> --model_oss_pth timm:absent
        UNSEEN_IDX=ABSENT             -> --unseen_idx_pth ABSENT: no such file
        SEEDS="0 one"                 -> SEEDS: one is not a whole number from 0 on
        DATASET="100 200"             -> DATASET: one number is needed, not '100 200'
    """):
        result = run_example("one_model.sh", **{**environment, "DRY_RUN": "0", **change})
        assert_one_line_error(result, *texts)
        assert not result.stdout and not (tmp_path / "betons").exists()


def test_the_recipe_of_imagenet_gives_disjoint_sets(tmp_path):
    """The script, on a folder like ImageNet: 12 images of a class for training, 6 for validation."""
    for part, count in (("train", 12), ("val", 6)):
        draw_tree(tmp_path / part, per_class=count, boxed=count)
        for path in [*tmp_path.glob(f"{part}/images/*/*"), *tmp_path.glob(f"{part}/boxes/Annotation/*/*")]:
            path.rename(path.with_name(f"{part}_{path.name}"))
    for xml in list(tmp_path.glob("val/boxes/Annotation/*/*")):  # which lie in one folder
        xml.rename(tmp_path / "val/boxes" / xml.name)
    folders = options("""IMAGENET_DATASET_DIR=train/images IMAGENET_VAL_DIR=val/images INDEX_FOLDER=index
        IMAGENET_BBOX_ANNOTATIONS=train/boxes/Annotation IMAGENET_VAL_BBOX=val/boxes BETONS_FOLDER=betons
        LOGGING_FOLDER=logs""")
    environment = {variable: tmp_path / name for variable, name in folders.items()}
    environment |= options("PER_CLASS=4 DATASET=4 DRY_RUN=1 LOCAL=1 CDPATH=.")
    environment |= {"MODEL_PTH": __file__, "PYTHON": sys.executable}
    results = [ok(run_example("one_model_imagenet.sh", **environment)) for _ in range(2)]
    assert results[0].stdout == results[1].stdout  # the sets are made once
    for flag, name in (("public", "public_val"), ("unseen", "unseen")):
        assert f"--{flag}_idx_pth {tmp_path}/index/{name}.npy" in results[0].stdout
    listing = list_images(tmp_path / "index/linked/images")
    assert len(listing) == 3 * 18
    sets = {path.stem: np.load(path) for path in (tmp_path / "index").rglob("*.npy")}
    val = {index for index, path in enumerate(listing.paths) if "/val/" in path}
    assert set(sets["unseen"]) | set(sets["public_val"]) == val and len(sets["unseen"]) == len(sets["public_val"]) == 9
    assert not val & set(np.concatenate([sets["bbox_A"], sets["bbox_B"], sets["train_A"], sets["public"]]))
    assert len(sets["bbox_A"]) and len(sets["bbox_B"])
    annotations = Annotations(tmp_path / "index/linked/boxes", listing)
    assert len(take_crops(listing, sets["unseen"], CropRule(min_px=10), annotations)) == 9


def demo_of_one_model(folder, **variables):
    """Row of both models in the table, after both demos; one point, which is all that it takes."""
    for script in ("demo.sh", "demo_one_model.sh"):
        ok(run_example(script, DEMO_DIR=folder, SNAPSHOTS=1, MODELS="A B", **variables))
    (path,) = folder.glob("*/*/one_model.csv")
    return pd.read_csv(path).set_index("model").loc["both"]


@pytest.mark.slow
def test_one_model_agrees_with_two_and_with_the_planted_truth(tmp_path):
    both = demo_of_one_model(tmp_path)
    assert both.one_minus_two_low <= 0 <= both.one_minus_two_high
    assert both.one_model_low <= both.truth <= both.one_model_high
    assert both.delta_low <= 0 <= both.delta_high and both.score_minus_delta_low > 0


@pytest.mark.slow
def test_of_tied_backgrounds_nothing_is_called_memorized(tmp_path):
    """Of those of 80 % of the images; the others are memorized as ever."""
    both = demo_of_one_model(tmp_path, CORRELATION="0.8")
    assert both.tied == 0
    assert both.one_minus_two_low <= 0 <= both.one_minus_two_high
    assert both.one_model_low <= both.truth <= both.one_model_high
    assert both.score_minus_delta_low <= both.two_models <= both.score_minus_delta_high
