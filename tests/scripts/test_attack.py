"""The attack: planted answers through the real neighbor search, and the script as a user runs it."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    assert_one_line_error,
    draw_tree,
    flags,
    in_folder,
    ok,
    options,
    read_json,
    rows_of,
    run_here,
    save_sets,
    save_untrained,
)
from PIL import Image
from stages import attack_settings
from torchvision import transforms

import label_inference_attack
from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.attack import search
from dejavu_utils.attack.neighbors import NeighborSearch
from dejavu_utils.crops import background_crop, corner_crop
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.imagenet import list_images
from dejavu_utils.networks.embedder import Embedder
from dejavu_utils.runtime import resumable
from dejavu_utils.runtime.devices import set_ieee_fp32

# Planted answers: embeddings that predict the class in a known share of the examples.


def planted_sets(rng, n, classes, memorized, correlated, width=16, k=20):
    """One attacked set: a target that embeds memorized + correlated of the crops at their class, a reference that does
    so for the correlated ones; all other crops lie at the place of a wrong class."""
    centers = rng.normal(size=(classes, width)) * 4
    public_labels = np.repeat(np.arange(classes), 60)
    public = (centers[public_labels] + rng.normal(size=(len(public_labels), width))).astype(np.float32)
    labels = rng.integers(0, classes, n)
    kind = rng.choice(3, n, p=[memorized, correlated, 1 - memorized - correlated])
    predictions = []
    for known in (kind < 2, kind == 1):
        shown = np.where(known, labels, (labels + rng.integers(1, classes, n)) % classes)
        queries = (centers[shown] + rng.normal(size=(n, width))).astype(np.float32)
        search = NeighborSearch(queries, k)
        for positions in np.array_split(np.arange(len(public)), 7):
            search.add(public[positions], positions)
        predictions.append(mem.predict_from_neighbors(public_labels[search.result()]))
    return mem.DirectedAttack(*predictions, labels)


def test_planted_embeddings_are_measured_at_their_rate():
    """Over a grid of memorized and correlated shares; of 95 % intervals a few may miss, but none by far."""
    rng = np.random.default_rng(5)
    covered = []
    for memorized in (0.0, 0.1, 0.25, 0.5):
        for correlated in (0.0, 0.15, 0.4):
            summary = mem.summarize([planted_sets(rng, 1000, 12, memorized, correlated) for _ in range(2)], 1)
            truths = {
                "target": memorized + correlated,
                "reference": correlated,
                "score": memorized,
                "memorized": memorized,
                "correlated": correlated,
                "misrepresented": 0,
                "unassociated": 1 - memorized - correlated,
            }
            figures = {**vars(summary), **summary.outcomes}
            for name, truth in truths.items():
                low, high = figures[name].low, figures[name].high
                if 0 < truth < 1:
                    covered.append(low <= truth <= high)
                    assert 1.5 * low - 0.5 * high < truth < 1.5 * high - 0.5 * low  # twice as wide: 3.9 deviations
                    assert high - low < 0.07
                else:
                    assert abs(figures[name].value - truth) < 0.002, (name, memorized, correlated)
    assert len(covered) > 50 and np.mean(covered) > 0.85


# The script.


@pytest.fixture(scope="module")
def few_whole_images():
    """So few whole public images for the ceiling that the attacked crops can be the smaller set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CEILING_IMAGES", 2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = draw_tree(tmp_path_factory.mktemp("data"))
    save_sets(folder, 12, A=(0, 4), B=(4, 8), public=(8, 12))
    for name in ("A", "B", "public"):
        indices = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", indices[::-1])
        np.save(folder / f"few_{name}.npy", indices[:5])
    networks = {model: save_untrained(folder / f"{model}.pth", seed) for seed, model in enumerate("AB")}
    for seed, model in enumerate("AB"):
        save_untrained(folder / f"{model}_supervised.pth", seed, "supervised")
    return folder, networks


def attack(data, output_dir, **changes):
    words = flags(attack_settings(data[0], output_dir, **changes))
    return run_here("label_inference_attack.py", *words, PATH=str(Path(sys.executable).parent))  # no srun


@pytest.fixture(scope="module")
def attacked(data, tmp_path_factory):
    """(folder, what was printed, results.json) of an attack with all defaults."""
    folder = tmp_path_factory.mktemp("attacked")
    result = ok(attack(data, folder))
    return folder, result.stdout, read_json(folder / "results.json")


def embed(network, layer, listing, indices, crop_of=lambda image, index: None):
    """What the script should compute, image by image, with torchvision's transforms."""
    transform = transforms.Compose(
        [
            transforms.Resize(int(32 * 256 / 224)),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    outputs = []
    for index in indices:
        image = Image.open(listing.path(index)).convert("RGB")
        image = image.crop(crop_of(image, index)) if crop_of(image, index) else image
        with torch.no_grad():
            outputs.append(network.embed(transform(image)[None], layer)[0].double().numpy())
    return np.array(outputs)


def background(folder, listing):
    annotations = Annotations(folder / "boxes", listing)

    def crop_of(image, index):
        return background_crop(*image.size, annotations.boxes(index)[0], 10)

    return crop_of


CORNER = options("--use_corner_crop --corner_crop_frac 0.4 -imgnet_bbox_pth")


@pytest.mark.parametrize(
    "layer, attacked, changes", [("projector", "", {}), ("backbone", "few_", {}), ("projector", "few_", CORNER)]
)
def test_files_hold_the_nearest_public_images(data, tmp_path, layer, attacked, changes):
    """With more crops than public images, whose embeddings are then held, and with fewer; corners need no XML."""
    folder, networks = data
    few = {f"bbox_{name}_idx_pth": folder / f"{attacked}{name}.npy" for name in "AB"}
    ok(attack(data, tmp_path, **few, **changes, use_backbone=int(layer == "backbone"), batch_size=5))
    listing = list_images(folder / "images")
    public = np.load(folder / "public.npy")
    for model, network in networks.items():
        gallery = embed(network, layer, listing, public)
        for name in "AB":
            indices = np.load(folder / f"{attacked}{name}.npy")
            cut = background(folder, listing) if not changes else lambda image, _: corner_crop(*image.size, 0.4)
            queries = embed(network, layer, listing, indices, cut)
            squared = ((queries[:, None] - gallery[None]) ** 2).sum(axis=2)
            expected = public[np.argsort(squared, axis=1)[:, :7]]
            saved = {
                what: np.load(tmp_path / f"{model}_attk_{name}_{what}.npy")
                for what in ("attk_idxs", "labels", "neighb_idxs", "neighb_labels")
            }
            assert all(array.dtype == np.int64 for array in saved.values())
            np.testing.assert_array_equal(saved["attk_idxs"], indices)
            np.testing.assert_array_equal(saved["labels"], listing.labels[indices][:, None])
            np.testing.assert_array_equal(saved["neighb_idxs"], expected)
            np.testing.assert_array_equal(saved["neighb_labels"], listing.labels[expected])


@pytest.mark.parametrize(
    "words, votes", [([], 100), (["--k", "10"], 10), (["--k", "200"], 100), (["--k_attk", "0"], 0)]
)
def test_as_many_neighbors_vote_as_there_are(words, votes):
    needed = ["--output_dir", "x", "--public_idx_pth", "x", "--imgnet_train_pth", "x"]
    assert label_inference_attack.parse_args([*needed, *words]).k_attk == votes


def test_results_and_tables_agree_with_the_files(attacked):
    folder, printed, results = attacked
    assert results["counts"]["A"]["attacked"] == 12 and results["counts"]["public"] == 12
    assert results["settings"]["layer"] == "projector" and results["settings"]["k_attk"] == 5
    sets = read_attack(folder, k_attk=5)
    summary = mem.summarize([sets["A"].attack, sets["B"].attack], 1)
    top_1 = results["both"]["top_1"]
    for name in ("target", "reference", "score"):
        assert top_1["accuracy"]["100"][name] == vars(getattr(summary, name))
        assert set(top_1["accuracy"]) == {"5", "20", "100"}
    assert top_1["accuracy"]["5"]["target"]["value"] is None  # 5 % of 12 examples are none
    assert top_1["accuracy"]["100"]["chance"] == summary.chance
    assert top_1["accuracy"]["5"]["chance"] is None
    difference = top_1["shares"]["memorized"]["value"] - top_1["shares"]["misrepresented"]["value"]
    assert top_1["accuracy"]["100"]["score"]["value"] == pytest.approx(difference, abs=1e-12)
    for name in "AB":
        table = pd.read_csv(folder / f"attack_{name}.csv")
        assert len(table) == 12 and (table["index"].diff().dropna() > 0).all()
        assert table["target_top1_correct"].mean() == results[name]["top_1"]["accuracy"]["100"]["target"]["value"]
        assert (table["target_top1_correct"] == (table["target_top1"] == table["label"])).all()
        margin = (table["target_vote_share"] - table["reference_vote_share"]).mean()
        assert results[name]["vote_share"]["margin"]["value"] == pytest.approx(margin, abs=1e-12)
        assert (table["share"] == "memorized").mean() == results[name]["top_1"]["shares"]["memorized"]["value"]
        for model in "AB":
            sweep = np.load(folder / f"top_1_conf_sweep_{model}_attk_{name}.npy")
            role = "target" if model == name else "reference"
            assert sweep.shape == (100,) and sweep[-1] == table[f"{role}_top1_correct"].mean()
    assert f"target {summary.target.value:.3f}" in printed
    assert "<html" in (folder / "attack_gallery.html").read_text()


def test_one_model_twice_on_purpose_is_named(data, tmp_path):
    ok(attack(data, tmp_path, model_B_pth=data[0] / "A.pth"))
    results = read_json(tmp_path / "results.json")
    score = results["both"]["top_1"]["accuracy"]["100"]["score"]
    assert score["value"] == 0 and score["low"] < 0 < score["high"]
    assert "the score is 0" in results["warnings"][0]


def test_supervised_logits_are_the_scores(data, tmp_path):
    folder, _ = data
    models = {f"model_{model}_pth": folder / f"{model}_supervised.pth" for model in "AB"}
    ok(attack(data, tmp_path, **models, use_supervised_linear=1))
    assert not list(tmp_path.glob("*neighb*"))
    scores = np.load(tmp_path / "A_attk_B_scores.npy")
    assert scores.shape == (12, 3)
    sets = read_attack(tmp_path)
    right = scores.argmax(axis=1) == np.load(tmp_path / "A_attk_B_labels.npy").ravel()
    assert sets["B"].attack.reference.correct(sets["B"].attack.labels, 1).mean() == right.mean()
    assert_one_line_error(attack(data, tmp_path), "--output_dir", "another kind of attack")


@rows_of(
    "changes, texts",
    """
    --model_A_pth ABSENT.pth           -> --model_A_pth ABSENT.pth: no such file
    --model_A_pth A.npy                -> --model_A_pth ;; not a checkpoint
    -imgnet_bbox_pth                   -> --imgnet_bbox_pth is needed ;; --use_corner_crop 1
    --mlp 64-32                        -> --mlp 64-32 ;; A.pth holds 32-16
    --loss barlow                      -> --loss barlow ;; A.pth holds
    --resnet50                         -> --resnet50 ;; A.pth holds resnet18
    --use_supervised_linear 1          -> --use_supervised_linear 1 ;; no supervised head
    --model_B_pth B_supervised.pth     -> --model_B_pth ;; trained the same way
    --k 13 --k_attk 0                  -> --k 13 ;; only 12 images
    --k_attk 8                         -> --k_attk 8 ;; --k 7
    --bbox_B_idx_pth A.npy             -> --bbox_B_idx_pth ;; 12 images
    --public_idx_pth A.npy             -> --public_idx_pth ;; 12 images
    --min_px 1000                      -> --min_px 1000
    --local 0                          -> srun ;; --local 1
    --use_backbone yes                 -> --use_backbone
    --layers projector.2               -> has no layer projector.2 ;; backbone, projector.0, projector.1, projector
    --layers backbone --use_backbone 1 -> --layers ;; --use_backbone
""",
)
def test_bad_input_is_one_line(data, tmp_path, changes, texts):
    changes = {name: data[0] / value if (data[0] / str(value)).is_file() else value for name, value in changes.items()}
    result = attack(data, tmp_path / "out", **changes)
    assert_one_line_error(result, *texts)
    assert not list((tmp_path / "out").glob("*.npy"))


def test_scaling_boxes_is_named_where_it_would_help_alone(data, tmp_path):
    """Images that were resized after their boxes were drawn; not images whose crops are only small."""
    for path in (data[0] / "boxes").rglob("*.xml"):
        size = "<annotation><size><width>600</width><height>500</height></size>"
        resized = in_folder(tmp_path / path.relative_to(data[0]))
        resized.write_text(path.read_text().replace("<annotation>", size))
    result = attack(data, tmp_path / "out", imgnet_bbox_pth=tmp_path / "boxes")
    assert_one_line_error(result, "no image has a crop", "size in the XML is not the image's", "--scale_boxes 1")
    small = attack(data, tmp_path / "small", min_px=1000)
    assert_one_line_error(small, "no image has a crop", "--min_px 1000")
    assert "--scale_boxes" not in small.stderr


def outputs(folder):
    """{file name: content} of all results in a folder; the settings of results.json left out."""
    files = {path.name: path.read_bytes() for path in Path(folder).glob("*.*") if path.suffix in (".npy", ".csv")}
    results = read_json(Path(folder) / "results.json")
    del results["settings"]
    return {**files, "results.json": results}


def test_layers_of_one_run_are_those_of_single_runs(data, attacked, tmp_path):
    layers = tmp_path / "layers"
    ok(attack(data, layers, layers="backbone,projector.0,projector"))
    folders = {path.name for path in layers.iterdir() if path.is_dir()}
    assert folders == {"backbone", "projector", "projector.0"} and not (layers / "results.json").exists()
    ok(attack(data, tmp_path / "backbone", use_backbone=1))
    assert outputs(layers / "backbone") == outputs(tmp_path / "backbone")
    assert outputs(layers / "projector") == outputs(attacked[0])
    between = read_json(layers / "projector.0/results.json")
    assert between["settings"]["layer"] == "projector.0"
    one_of_several = attack(data, layers)
    assert_one_line_error(one_of_several, "--output_dir", "of the layers backbone, projector, projector.0 (--layers)")
    assert_one_line_error(attack(data, tmp_path / "backbone", layers="backbone"), "--output_dir", "of one layer")


def held(data, what):
    """What makes the attack hold the embeddings of all `what`, the smaller set; batches and so shards of two images."""
    few = {f"bbox_{name}_idx_pth": data[0] / f"few_{name}.npy" for name in "AB"}  # 10 crops, 12 public images
    return {"batch_size": 2, **(few if what == "crops" else {})}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory, few_whole_images):
    """{what is held: the files of an attack}."""
    found = {}
    for what in ("crops", "public"):
        folder = tmp_path_factory.mktemp("undisturbed")
        ok(attack(data, folder, **held(data, what)))
        found[what] = outputs(folder)
    return found


@contextlib.contextmanager
def killed_after(batches):
    """An attack dies when it has embedded so many batches of images."""
    embed, left = Embedder.embed_later, iter(range(batches))

    def embed_or_die(*args):
        if next(left, None) is None:
            raise SystemExit(137)
        return embed(*args)

    with mock.patch.object(Embedder, "embed_later", embed_or_die):
        yield


@pytest.mark.kills
@pytest.mark.parametrize("what", ["crops", "public"])
def test_a_killed_attack_resumes(data, tmp_path, undisturbed, what):
    codes = []
    while 0 not in codes and len(codes) < 20:
        assert not (tmp_path / "results.json").exists()
        with killed_after(3):
            codes.append(attack(data, tmp_path, **held(data, what)).returncode)
    assert len(codes) > 3 and codes == [137] * (len(codes) - 1) + [0]
    assert outputs(tmp_path) == undisturbed[what]
    assert not (tmp_path / "unfinished").exists()


def test_pieces_of_another_attack_are_not_used(data, tmp_path, undisturbed):
    with killed_after(0):
        assert attack(data, tmp_path, **held(data, "crops"), resolution=64).returncode == 137
    result = ok(attack(data, tmp_path, **held(data, "crops")))
    assert "resumes" not in result.stdout
    assert outputs(tmp_path) == undisturbed["crops"]


def test_another_number_of_processes_resumes(data, tmp_path, undisturbed, monkeypatch):
    """Stopped alone when the crops are embedded, then the second of two processes alone, then one process again."""
    with killed_after(6):  # the crops and two whole images
        assert attack(data, tmp_path, **held(data, "crops")).returncode == 137
    with monkeypatch.context() as patch:
        for name, value in (("rank", 1), ("world_size", 2)):
            patch.setattr(search, name, lambda value=value: value)
        ok(attack(data, tmp_path, **held(data, "crops")))
    assert not (tmp_path / "results.json").exists()  # only the first process has the whole to write
    pieces = sorted(path.stem for path in (tmp_path / "unfinished").glob("*.npz"))
    assert "best_000001" in pieces and "best_000000" not in pieces
    with np.load(tmp_path / "unfinished/best_000001.npz") as piece:
        assert len(piece["shards"]) == 3  # of six
    result = ok(attack(data, tmp_path, **held(data, "crops")))
    assert "resumes with" in result.stdout
    assert outputs(tmp_path) == undisturbed["crops"]


def test_a_lost_piece_is_noticed(data, tmp_path, monkeypatch, few_whole_images):
    save = resumable.ShardStore.save

    def lose_one(self, name, **arrays):
        if name != "crops_000001":
            save(self, name, **arrays)

    monkeypatch.setattr(resumable.ShardStore, "save", lose_one)
    monkeypatch.setattr(resumable, "_PATIENCE", 0)
    assert_one_line_error(attack(data, tmp_path, **held(data, "crops")), "crops_000001.npz: is missing")


def test_a_disk_without_room_is_named_before_embedding(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(Embedder, "outputs", None)  # which would be called
    assert_one_line_error(attack(data, tmp_path), "unfinished: needs about 0.0 GB", "give another --output_dir")


def test_networks_compute_in_ieee_float32_whatever_was_set(data, tmp_path, monkeypatch):
    seen, outputs_of = set(), Embedder.outputs
    flags_of = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    monkeypatch.setattr(Embedder, "outputs", lambda *args: seen.add(flags_of()) or outputs_of(*args))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    assert flags_of() == (True, True)
    try:
        ok(attack(data, tmp_path))
        assert seen == {(False, False)}
    finally:
        set_ieee_fp32()


@pytest.mark.kills
def test_two_processes_find_what_one_finds(data, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_CEILING_IMAGES", 5000)  # as in processes of their own, whatever a fixture has set
    for processes in (1, 2):
        ok(attack(data, tmp_path / str(processes), **held(data, "public"), ngpus=0, world_size=processes))
    assert outputs(tmp_path / "2") == outputs(tmp_path / "1")


def test_unreadable_images_are_named_or_left_out(data, tmp_path):
    folder = draw_tree(tmp_path / "tree")
    listing = list_images(folder / "images")
    attacked, public = np.load(data[0] / "A.npy"), np.load(data[0] / "public.npy")
    listing.path(public[3]).write_bytes(b"no image")
    listing.path(attacked[2]).write_bytes(listing.path(attacked[2]).read_bytes()[:300])  # its header is whole
    changes = {"imgnet_train_pth": folder / "images", "imgnet_bbox_pth": folder / "boxes"}
    result = attack(data, tmp_path / "out", **changes)
    assert_one_line_error(result, listing.paths[attacked[2]], "--skip_unreadable")
    result = ok(attack(data, tmp_path / "out", skip_unreadable="", **changes))
    assert f"1 public images could not be read and were left out: {listing.paths[public[3]]}" in result.stdout
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert (counts["public"], counts["public, unreadable image"]) == (11, 1)
    assert (counts["A"]["attacked"], counts["A"]["unreadable image"], counts["B"]["attacked"]) == (11, 1, 12)
    assert attacked[2] not in np.load(tmp_path / "out/A_attk_A_attk_idxs.npy")
    assert public[3] not in np.load(tmp_path / "out/A_attk_A_neighb_idxs.npy")
    result = attack(data, tmp_path / "out12", skip_unreadable="", k=12, **changes)
    assert_one_line_error(result, "--k 12", "only 11 images")


def test_crops_are_computed_once_until_the_boxes_change(data, tmp_path):
    folder = draw_tree(tmp_path / "tree")
    changes = {"imgnet_train_pth": folder / "images", "imgnet_bbox_pth": folder / "boxes"}
    changes["crop_cache"] = tmp_path / "crops.npz"
    assert "crops of" not in attack(data, tmp_path / "first", **changes).stdout
    assert f"crops of {tmp_path / 'crops.npz'}" in attack(data, tmp_path / "second", **changes).stdout
    assert outputs(tmp_path / "first") == outputs(tmp_path / "second")
    (folder / "boxes/Annotation/c0/c0_00.xml").unlink()
    assert "1 no XML" in attack(data, tmp_path / "third", **changes).stdout


def test_tables_of_classes_and_confidence(attacked):
    folder, _, results = attacked
    tables = [pd.read_csv(folder / f"attack_{name}.csv") for name in "AB"]
    rows, classes = pd.concat(tables), pd.read_csv(folder / "attack_classes.csv")
    assert list(classes["n"]) == [8, 8, 8] and (classes["score"].diff().dropna() <= 0).all()
    for _, row in classes.iterrows():
        of_class = rows[rows["label"] == row["label"]]
        assert row["class"] == f"c{row['label']:.0f}"
        assert row["target_acc"] == pytest.approx(of_class["target_top1_correct"].mean())
        assert row["score"] == pytest.approx(row["target_acc"] - row["reference_acc"])
        assert row["score_low"] <= row["score"] <= row["score_high"]
        assert row["reference_confidence"] == pytest.approx(of_class["reference_confidence"].mean())
    curve = pd.read_csv(folder / "attack_confidence.csv")
    assert len(curve) == 200 and (curve.groupby("top_k")["target_threshold"].diff().dropna() <= 0).all()
    last = curve[(curve["top_k"] == 1) & (curve["pct_confidence"] == 100)].iloc[0]
    everyone = results["both"]["top_1"]["accuracy"]["100"]
    for name in ("target", "reference"):
        found = last[f"{name}_acc"], last[f"{name}_low"]
        assert found == pytest.approx((everyone[name]["value"], everyone[name]["low"]))
        least = np.mean([table[f"{name}_confidence"].min() for table in tables])
        assert last[f"{name}_threshold"] == pytest.approx(least)
    assert last["score_high"] == pytest.approx(everyone["score"]["high"])
