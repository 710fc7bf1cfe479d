"""The gallery: one page that is whole, safe against any text, and needs nothing else."""

import re
import shutil

import numpy as np
import pytest
from helpers import annotation, draw_tree, noise
from pages import Page, thumbnails
from PIL import Image

from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.analysis.gallery import Attacked, class_name, save_gallery
from dejavu_utils.crops import CropRule
from dejavu_utils.data.annotations import Annotations
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.imagenet import list_images

HOSTILE = ('<script>alert("1")</script>', "a&b 'c' \"d\"", "{{ 7 * 7 }} \u202e</style>", "-->\udcff")
PER_CLASS, K = 24, 6


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """An image folder whose class names may hold anything, and the files of an attack on it with known shares."""
    folder = tmp_path_factory.mktemp("gallery")
    folders = [name.replace("/", "\u2215") for name in HOSTILE]  # a folder's name cannot hold a slash
    draw_tree(folder, classes=folders, per_class=PER_CLASS, boxed=PER_CLASS)
    paths = list(folder.glob("images/*/*"))
    for path, pixels in zip(paths, noise((90 + n % PER_CLASS, 300) for n in range(len(paths)))):  # the largest JPEGs
        Image.fromarray(pixels).save(path)
    for path in folder.glob("boxes/Annotation/*/*"):
        path.write_text(annotation((5, 9, 80, 70)))
    listing = list_images(folder / "images")
    rank = np.arange(len(listing)) % PER_CLASS
    public = np.flatnonzero(rank >= 16).reshape(len(HOSTILE), 8)  # by class
    indices = np.concatenate([np.flatnonzero(rank < 8), np.flatnonzero((rank >= 8) & (rank < 16))])
    crops = take_crops(listing, indices, CropRule(min_px=20), Annotations(folder / "boxes", listing)).crops
    neighbors = {}
    for model in "AB":
        rows = []
        for place, index in enumerate(indices):
            target = (model == "A") == (place < len(indices) // 2)
            # Of eight images of a class and set: 3 memorized, 2 correlated, 1 misrepresented, 2 unassociated.
            right = index % 8 in ((0, 1, 2, 3, 4) if target else (3, 4, 5))
            shown = (listing.labels[index] + (0 if right else 1)) % len(HOSTILE)
            votes = 4 + index % 3  # how many of its neighbors are of that class: the confidence
            rows.append([*public[shown][:votes], *public[shown - 1][: K - votes]])
        neighbors[model] = np.array(rows)
        for name, half in zip("AB", np.split(np.arange(len(indices)), 2)):
            for what, array in (
                ("attk_idxs", indices),
                ("labels", listing.labels[indices, None]),
                ("neighb_labels", listing.labels[neighbors[model]]),
            ):
                np.save(folder / f"{model}_attk_{name}_{what}.npy", array[half])
    return folder, listing, indices, crops, neighbors


def test_a_class_goes_by_its_name_without_the_number():
    names = {"001_umbrella": "umbrella", "001.Black_footed_Albatross": "Black_footed_Albatross"}
    for folder, name in {**names, "n01440764": "n01440764", "42": "42"}.items():
        assert class_name(folder) == name


def boxes_below(folder, listing):
    annotations = Annotations(folder / "boxes", listing)
    return lambda index: annotations.boxes(index)[0]


def test_page_is_whole_and_self_contained(attacked, tmp_path):
    folder, listing, indices, crops, neighbors = attacked
    path = tmp_path / "attack_gallery.html"
    shown, header = Attacked(indices, crops, neighbors), ("Model A: vicreg, epoch 300 <b>", "déjà vu score 0.2")
    save_gallery(path, read_attack(folder), listing, shown, boxes_below(folder, listing), header=header)
    assert path.stat().st_size < 3e6 and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    page = Page(path)
    groups = [example["group"] for example in page.examples]
    assert groups == ["memorized"] * 12 + ["correlated"] * 12 + ["misrepresented"] * 8  # of 24, 16 and 8 in all
    assert all(example["images"] == 12 for example in page.examples)  # image, crop, 5 neighbors of each model
    assert all(max(image.size) <= 160 for image in thumbnails(page))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    text = path.read_text(encoding="utf-8")
    assert "<p><b>Model A: vicreg, epoch 300 &lt;b&gt;</b></p>" in text and "it does not identify individual" in text
    assert not re.search(r"https?:|url\(|@import", re.sub(r"data:[^\"]*", "", text))
    assert sum(attributes.get("class") == "crop" for tag, attributes in page.tags if tag == "rect") == 1 + 32
    assert sum(attributes.get("class") == "box" for tag, attributes in page.tags if tag == "rect") == 1 + 32
    assert {"x": "5", "y": "9", "width": "75", "height": "61", "class": "box"} in [given for _, given in page.tags]
    target, reference = (page.confidences("memorized", role) for role in ("Target", "Reference"))
    assert target == sorted(target, reverse=True) and len(set(target)) > 1
    assert page.confidences("misrepresented", "Reference") == sorted(
        page.confidences("misrepresented", "Reference"), reverse=True
    )
    smaller = [min(pair) for pair in zip(*(page.confidences("correlated", role) for role in ("Target", "Reference")))]
    assert smaller == sorted(smaller, reverse=True)
    shown = "".join(example["text"] for example in page.examples)
    assert '1")<\u2215script>' in shown and "{{ 7 * 7 }}" in shown and "a&b 'c' \"d\"" in shown
    assert "Of 64 images 24 are called memorized; about 8 of them are expected by chance" in text
    assert {re.search(r"set ([AB])", example["text"])[1] for example in page.examples} == {"A", "B"}


def test_what_cannot_be_read_any_more_is_said(attacked, tmp_path):
    folder, listing, indices, crops, neighbors = attacked
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    listing = list_images(copy / "images")
    sets = read_attack(copy)
    for index in range(len(listing)):
        listing.path(index).write_bytes(b"no image")
    boxes_of = boxes_below(copy, listing)
    shutil.rmtree(copy / "boxes")
    save_gallery(tmp_path / "page.html", sets, listing, Attacked(indices, crops, neighbors), boxes_of, per_group=1)
    page = Page(tmp_path / "page.html")
    for example in page.examples:
        assert example["images"] == 0 and example["text"].count("cannot be read any more") == 1 + 1 + 1 + 10
    assert len(page.examples) == 3


def test_logits_have_no_neighbors_and_classes_may_have_names(attacked, tmp_path):
    folder, listing, indices, crops, _ = attacked
    for path in [*folder.glob("*_labels.npy"), *folder.glob("*_attk_idxs.npy")]:
        if "neighb" not in path.name:
            shutil.copy(path, tmp_path)
    for path in tmp_path.glob("*_labels.npy"):
        scores = 3.5 * (np.arange(4) == np.load(path))
        np.save(tmp_path / path.name.replace("labels", "scores"), scores)
    names = {listing.classes[0]: "<b>tench</b>"}
    save_gallery(tmp_path / "page.html", read_attack(tmp_path), listing, Attacked(indices, crops), class_names=names)
    page = Page(tmp_path / "page.html")
    assert [example["group"] for example in page.examples] == ["correlated"] * 12  # both models are always right
    assert all(example["images"] == 2 and "confidence\n 3.50" in example["text"] for example in page.examples)
    assert page.examples[0]["text"].count("<b>tench</b>") == 3  # the class and both predictions
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "largest logit" in text and "entropy" not in text and text.count("No example.") == 2
