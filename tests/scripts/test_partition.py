"""The split: its rules, its order, its invariants; the script on a tiny tree."""

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import ROOT, assert_one_line_error, draw_tree, flags, in_folder, ok, read_json, refused, rows_of, run_here
from PIL import Image
from torchvision.datasets import ImageFolder

from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.partition import check, equal_classes, equal_partitions, shuffled_order, split
from dejavu_utils.imagenet import list_images, load_image, read_class_names


def random_listing(seed, classes=6, most=60):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(1, most, classes))
    return labels, rng.random(len(labels)) < rng.uniform(0, 1, classes)[labels]


def test_small_example_by_hand():
    labels = np.array([0] * 8 + [1] * 5)
    boxed = np.array([1, 0, 1, 1, 0, 1, 1, 0] + [0, 1, 0, 0, 1], dtype=bool)
    p = split(labels, boxed, 3, np.arange(13))
    # class 0: boxed 0 2 3 5 6 -> b = 2; without 1 4 7. class 1: boxed 9 12 -> b = 1; without 8 10 11.
    assert p.bbox_A.tolist() == [0, 2, 9]
    assert p.bbox_B.tolist() == [3, 5, 12]
    assert p.shared.tolist() == [1, 8, 10]
    assert p.public.tolist() == [6, 4, 7, 11]
    assert p.train_A.tolist() == [0, 2, 1, 9, 8, 10]
    assert p.train_B.tolist() == [3, 5, 1, 12, 8, 10]
    assert equal_classes(p.public, labels).tolist() == [6, 11]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shuffle", [False, True])
def test_invariants_hold_for_any_listing(seed, shuffle):
    labels, boxed = random_listing(seed)
    order = shuffled_order(labels, seed) if shuffle else np.arange(len(labels))
    partitions = {n: split(labels, boxed, n, order) for n in (1, 5, 12, 40)}
    assert all(check(partitions, labels, order).values())
    for n, p in partitions.items():
        m = np.bincount(labels[boxed], minlength=6)
        assert np.array_equal(np.bincount(labels[p.bbox_A], minlength=6), np.minimum(m // 2, n))
        assert all(array.dtype == np.int64 for _, array in p.items())


def test_shuffling_keeps_classes_and_depends_on_the_seed_alone():
    labels, _ = random_listing(1)
    order = shuffled_order(labels, 7)
    assert np.array_equal(np.sort(order), np.arange(len(labels))) and np.array_equal(labels[order], labels)
    assert np.array_equal(order, shuffled_order(labels, 7)) and not np.array_equal(order, shuffled_order(labels, 8))
    # Pinned: the same files on any machine and with any NumPy.
    assert shuffled_order(np.zeros(10, int), 0).tolist() == [8, 0, 3, 7, 6, 4, 1, 5, 2, 9]


# The script, and what later stages read.


@pytest.fixture
def tree(tmp_path):
    for label, name in enumerate(["n02", "n01", "n03"]):  # made in another order than sorted
        for rank in (3, 1, 4, 0, 2, 5, 6, 7)[: 8 - label]:
            Image.new("RGB", (8, 8)).save(in_folder(tmp_path / "images" / name / f"{name}_{rank}.JPEG"))
            if rank < 4 and name != "n03":
                in_folder(tmp_path / "boxes/Annotation" / name / f"{name}_{rank}.xml").write_text("<annotation/>")
    (tmp_path / "boxes/Annotation/n02/n02_99.xml").write_text("<annotation/>")
    (tmp_path / "boxes/Annotation/n77").mkdir()
    return tmp_path


def partition(tree, *arguments):
    folders = ["--imgnet_dir", tree / "images", "--bbox_dir", tree / "boxes", "--save_dir", tree / "index"]
    return run_here("imagenet_partition.py", *folders, *arguments)


def test_script_writes_the_sets_and_reports(tree):
    result = ok(partition(tree, "--per_class", "2", "4"))
    for text in (
        "21 images of 3 classes",
        "8 images have a box; 1 XML files without an image",
        "classes without XML: 1 (n03)",
        "folders of XML without a class of images: 1 (n77)",
        "ok       public of 4 per class is contained in public of 2",
        "val_set: 3 images, 1 per class",
    ):
        assert text in result.stdout
    names = {"bbox_A", "bbox_B", "shared", "public", "train_A", "train_B"}
    assert {p.stem for p in (tree / "index/4_per_class").iterdir()} == names
    listing = list_images(tree / "images")
    train = load_indices(tree / "index/2_per_class/train_A.npy", "--x", listing)
    assert train.tolist() == [0, 1, 7, 8, 15, 16]
    record = read_json(tree / "index/partition.json")
    assert record["sets"]["2_per_class"]["train_A"] == {"images": 6, "smallest_class": 2} and record["seed"] is None
    ok(partition(tree, "--per_class", "2", "4", "--seed", "4"))
    assert load_indices(tree / "index/2_per_class/train_A.npy", "--x", listing).tolist() != train.tolist()


def test_partitions_of_an_earlier_run_are_not_left(tree):
    def written():
        return {path: path.read_bytes() for path in (tree / "index").rglob("*.npy")}

    ok(partition(tree, "--per_class", "2", "4"))
    before = written()
    result = partition(tree, "--per_class", "2")
    assert_one_line_error(result, "--save_dir", "holds partitions of 4 per class")
    assert written() == before
    ok(partition(tree, "--per_class", "4", "2", "--seed", "1"))


@rows_of(
    "changes, texts",
    """
    --seed '-1'         -> --seed
    --bbox_dir ABSENT   -> --bbox_dir ABSENT: no such folder
    --imgnet_dir ABSENT -> --imgnet_dir ABSENT: no such folder
    --per_class x       -> --per_class
""",
)
def test_bad_input_is_one_line_and_writes_nothing(tree, changes, texts):
    assert_one_line_error(partition(tree, *flags(changes)), *texts)
    assert not (tree / "index").exists()


def test_listing_is_that_of_image_folder(tree):
    (tree / "images/n01/deeper").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "images/n01/deeper/a.png")
    (tree / "images/n01/notes.txt").write_text("not an image")
    listing, folder = list_images(tree / "images"), ImageFolder(tree / "images")
    assert [str(listing.path(i)) for i in range(len(listing))] == [path for path, _ in folder.samples]
    assert listing.labels.tolist() == folder.targets and listing.classes == folder.classes


@pytest.mark.parametrize("link, target", [("n01/again", "n01"), ("again", "."), ("n01/up", ".."), ("n02/x", "n03"),
                                          ("n09", "n01")])  # fmt: skip
def test_folders_that_are_reached_twice_are_refused(tree, link, target):
    (tree / "images" / link).symlink_to((tree / "images" / target).resolve(), target_is_directory=True)
    with refused(r"--imgnet_dir .*/images: the link \S+ leads to"):
        list_images(tree / "images", "--imgnet_dir")


def test_what_is_no_image_of_its_own_is_in_no_set_and_counted(tree):
    images = tree / "images"
    for name in ("n01/._n01_0.JPEG", "n02/.thumbs/n02_0.JPEG"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"\0\5\26\7Mac OS X")
    for name in ("n01/x.gif", "n01/y.GIF", "n02/z.JPG2", "n02/no_extension", "n02/.DS_Store"):
        (images / name).write_bytes(b"x")
    (images / "n03/linked.JPEG").symlink_to(images / "n02/n02_3.JPEG")
    (images / "n03/hard.JPEG").hardlink_to(images / "n01/n01_1.JPEG")
    (tree / "boxes/Annotation/n01/._n01_0.xml").write_bytes(b"x")
    result = ok(partition(tree, "--per_class", "2"))
    for text in (
        "25 images of 3 classes",
        "images in no set, hidden (a name that begins with a dot): 2 (n01/._n01_0.JPEG, n02/.thumbs/n02_0.JPEG)",
        "images in no set, links to a file that is listed before: 2 (n03/hard.JPEG, n03/linked.JPEG)",
        "ImageFolder does not read, skipped: 1 .GIF, 1 .JPG2, 1 .gif, 1 no extension",
        "8 images have a box; 1 XML files without an image",
    ):
        assert text in result.stdout, text
    listing, folder = list_images(images), tree / "index/2_per_class"
    members = np.concatenate([np.load(folder / f"{name}.npy") for name in ("bbox_A", "bbox_B", "shared", "public")])
    names = {listing.paths[index] for index in members}
    assert len(members) == len(names) == 21 and not [n for n in names if "/." in n or n.endswith(("d.JPEG",))]
    record = read_json(tree / "index/partition.json")
    assert sorted(record["left_out"].values()) == [2, 2] and record["passed_over"][".JPG2"] == 1


def test_a_class_of_other_files_alone_says_so(tree):
    for path in (tree / "images/n03").iterdir():
        path.rename(path.with_suffix(".gif"))
    with refused(r"no image in n03 \(but .gif; images are .jpg"):
        list_images(tree / "images")


def test_the_partition_does_without_pytorch():
    command = "import sys; sys.argv[1:] = ['--help']; import imagenet_partition as i\n"
    command += "try: i.main()\nexcept SystemExit: sys.exit(int('torch' in sys.modules or 'pandas' in sys.modules))"
    ok(subprocess.run([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.DEVNULL))


# Pixels.


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65535, 3000).astype(np.uint16).reshape(50, 60)
    expected = np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for name, array in (("a.png", ramp), ("b.tif", ramp), ("c.tif", ramp.astype(">u2")), ("d.pgm", ramp)):
        np.testing.assert_array_equal(load_image(saved(tmp_path / name, array)), expected)
    Image.fromarray(65535 - ramp).save(tmp_path / "white_is_zero.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(load_image(tmp_path / "white_is_zero.tif"), expected)
    (tmp_path / "12_bits.pgm").write_bytes(b"P5 60 50 4095\n" + (ramp >> 4).astype(">u2").tobytes())
    np.testing.assert_array_equal(load_image(tmp_path / "12_bits.pgm"), expected)
    import cv2

    for name in ("e.png", "f.tif"):
        cv2.imwrite(str(tmp_path / name), np.stack([ramp, ramp, ramp], axis=2))
        np.testing.assert_array_equal(load_image(tmp_path / name), expected)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes(range(64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.asarray(load_image(tmp_path / "palette.png"))
    np.testing.assert_array_equal(pixels[:, :, 0], np.arange(64).reshape(8, 8))


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, np.int32, np.int16, np.int8, "three of float32"], ids=lambda kind: str(kind)[-9:-2]
)
def test_pixels_without_a_white_are_refused_by_name(tmp_path, kind):
    import cv2

    array = np.ones((5, 6, 3), np.float32) if isinstance(kind, str) else np.ones((5, 6), kind)
    cv2.imwrite(str(tmp_path / "a.tif"), array)
    reason = ".*convert them to 8 or 16 bits" if array.ndim == 2 and kind != np.float64 else ""
    with refused(f"a.tif: cannot be read as an image{reason}"):  # else Pillow does not read it
        load_image(tmp_path / "a.tif")


def test_other_kinds_are_read_as_torchvision_reads_them(tmp_path):
    gray = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
    palette = Image.fromarray(gray).convert("P")
    images = [Image.fromarray(gray > 100), palette, Image.fromarray(gray).convert("CMYK").convert("RGBA")]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png", **({"transparency": 3} if image.mode == "P" else {}))
        with Image.open(tmp_path / f"{number}.png") as found:
            np.testing.assert_array_equal(load_image(tmp_path / f"{number}.png"), found.convert("RGB"))


def test_class_names_are_read_as_kaggle_writes_them(tmp_path):
    lines = "n01440764 tench, Tinca tinca\r\nn01443537 goldfish, Carassius auratus\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "x").write_text(lines, encoding=encoding)
        assert read_class_names(tmp_path / "x", "--f") == {"n01440764": "tench", "n01443537": "goldfish"}
        (tmp_path / "x").write_text('{"n1": "tench"}', encoding=encoding)
        assert read_class_names(tmp_path / "x", "--f") == {"n1": "tench"}


def test_index_files_are_refused_for_another_image_folder(tree):
    ok(partition(tree, "--per_class", "2"))
    (tree / "images/n02/n02_3.JPEG").unlink()
    listing = list_images(tree / "images")
    for path in ("2_per_class/public.npy", "val_set.npy"):
        with refused("21 images then, 20 now; 1 classes differ, the first is n02"):
            load_indices(tree / "index" / path, "--idx", listing)
    (tree / "index/partition.json").unlink()  # index files made by others have none
    assert len(load_indices(tree / "index/val_set.npy", "--idx", listing)) == 9


def test_sizes_without_public_images_are_refused(tmp_path):
    tree = draw_tree(tmp_path)
    result = partition(tree)  # 100 to 500 of each class; a class has 12
    assert_one_line_error(result, "leaves no image for the public set", "give --per_class 7")
    assert not (tree / "index").exists()
    ok(partition(tree, "--per_class", "7"))
    labels, boxed = np.zeros(12, np.int64), np.arange(12) < 9
    partitions = {n: split(labels, boxed, n, np.arange(12)) for n in (2, 7, 8)}
    assert equal_partitions({**partitions, 9: partitions[8]}) == {8: 7, 9: 7}


def test_image_folders_without_boxes(tmp_path):
    """A and B then differ in all images; the attack of background crops names the missing flag."""
    tree = draw_tree(tmp_path)
    settings = {"imgnet_dir": tree / "images", "save_dir": tree / "index", "per_class": 4}
    result = ok(run_here("imagenet_partition.py", *flags(settings)))
    assert "without --bbox_dir" in result.stdout
    folder = tree / "index/4_per_class"
    sets = {name: np.load(folder / f"{name}.npy") for name in ("bbox_A", "bbox_B", "shared", "train_A", "public")}
    assert [len(sets[name]) for name in sets] == [12, 12, 0, 12, 12]
    assert not np.intersect1d(sets["bbox_A"], sets["bbox_B"]).size


@pytest.mark.parametrize(
    "above, texts",
    [
        ("up/train up/val", ["the classes are its folders train, val", "c0 in train, val", "give {}/up/train"]),
        ("up/all", ["all is the only class", "sslmem.py"]),
        ("up", []),
    ],
)
def test_folders_that_do_not_look_like_classes_are_named(tmp_path, above, texts):
    tree = draw_tree(tmp_path)
    for folder in above.split():
        shutil.copytree(tree / "images", tmp_path / folder)
    settings = {"imgnet_dir": tmp_path / "up", "save_dir": tree / "index", "per_class": 4}
    printed = ok(run_here("imagenet_partition.py", *flags(settings))).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("warning: ")] or [""]
    assert bool(line) == bool(texts) and all(text.format(tmp_path) in line for text in texts), line


def test_images_in_folders_below_their_classes_are_no_mistake(tmp_path):
    tree = draw_tree(tmp_path)
    for path in sorted(tree.glob("images/*/*")):
        (path.parent / path.stem).mkdir()
        path.rename(path.parent / path.stem / path.name)  # one folder for each patient, say
    settings = {"imgnet_dir": tree / "images", "save_dir": tree / "index", "per_class": 4}
    assert "warning" not in ok(run_here("imagenet_partition.py", *flags(settings))).stdout
