"""Near-copies: the hash and its search against all pairs, the counts, and the partition that finds and keeps them."""

import io

import numpy as np
import pytest
from helpers import draw_tree, ok, read_json, run_here
from PIL import Image, ImageOps

from dejavu_utils.data import near_copies as dup
from dejavu_utils.imagenet import list_images
from dejavu_utils.runtime.resumable import ShardStore, shards_of


def textures(count, side=128, seed=0):
    """Pictures like photographs: noise whose amplitude falls with frequency, in color."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / side)[None] ** -1.3
    for _ in range(count):
        spectrum = amplitude * np.exp(2j * np.pi * rng.uniform(size=(3, side, side // 2 + 1)))
        noise = np.fft.irfft2(spectrum, s=(side, side)).transpose(1, 2, 0)
        yield Image.fromarray(np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8))


def in_jpeg(image, quality):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


CHANGES = {
    "compressed": lambda image: in_jpeg(image, 25),
    "half as large": lambda image: in_jpeg(image.resize((64, 64)), 60),
    "larger and squashed": lambda image: image.resize((300, 180), Image.BICUBIC),
    "mirrored": lambda image: in_jpeg(ImageOps.mirror(image).resize((90, 90)), 60),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_found_and_others_are_not(tmp_path, change):
    paths = []
    for number, image in enumerate(textures(20)):
        image.save(tmp_path / f"{number}.png")
        CHANGES[change](image).convert("RGB").save(tmp_path / f"{number}_copy.jpg", quality=95)
        paths += [tmp_path / f"{number}.png", tmp_path / f"{number}_copy.jpg"]
    copies = dup.find_near_copies(dup.signatures(paths))
    even, odd = np.arange(0, 40, 2), np.arange(1, 40, 2)
    assert dup.pairs_between(copies, even, odd) == 20
    assert dup.pairs_between(copies, even) == dup.pairs_between(copies, odd) == 0
    assert dup.with_near_copy(copies, even, odd).all() and not dup.with_near_copy(copies, even, even).any()
    assert dup.with_near_copy(copies, even, odd[:3]).tolist() == [True] * 3 + [False] * 17


def test_many_workers_give_the_same(tmp_path):
    (tmp_path / "c").mkdir()
    for number, image in enumerate(textures(30, side=32)):
        image.save(tmp_path / f"c/{number}.png")
    listing = list_images(tmp_path)
    shards, seen = shards_of("images", 30, 7), []
    read = [list(dup.signature_shards(listing, workers, shards, seen.append)) for workers in (1, 2)]
    assert [name for name, _ in read[0]] == [shard.name for shard in shards] and seen == 2 * [7, 7, 7, 7, 2]
    one, two = (dup.concatenated(arrays for _, arrays in of_shards) for of_shards in read)
    for name, values in vars(dup.signatures(listing.paths, listing.root)).items():
        np.testing.assert_array_equal(values, getattr(one, name))
        np.testing.assert_array_equal(values, getattr(two, name))


def random_signatures(seed, n=400):
    """Some near others in the hash, at any distance; some mirrored; some of another color, some not readable."""
    rng = np.random.default_rng(seed)
    bits, mirrored = rng.random((2, n, 128)) > 0.5
    thumbnails = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    for row in range(n // 4, n):
        like = rng.integers(row)
        flipped = np.isin(np.arange(128), rng.choice(128, rng.integers(0, 20), replace=False))
        turn = rng.random() < 0.4
        bits[row] = (mirrored if turn else bits)[like] ^ flipped
        mirrored[row] = (bits if turn else mirrored)[like] ^ flipped
        thumbnails[row] = thumbnails[like][:, ::-1] if turn else thumbnails[like]
        if rng.random() < 0.1:
            thumbnails[row] = 255 - thumbnails[row]
    hashes, turned = (np.packbits(side, axis=1).view(">u8").astype(np.uint64) for side in (bits, mirrored))
    return dup.Signatures(hashes, turned, thumbnails, rng.random(n) < 0.97), bits, mirrored


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_comparing_all_pairs_finds(seed):
    given, bits, mirrored = random_signatures(seed)
    thumbnails = given.thumbnails.astype(float)
    limit = 3 + 0.15 * thumbnails.std(axis=(1, 2)).mean(axis=1)

    def alike(other_bits, others):
        few_bits = (bits[:, None] != other_bits[None]).sum(axis=2) <= dup.MOST_BITS
        distance = np.sqrt(((thumbnails[:, None] - others[None]) ** 2).mean(axis=(2, 3, 4)))
        return few_bits & (distance <= limit[:, None])

    expected = alike(bits, thumbnails) | alike(mirrored, thumbnails[:, :, ::-1])
    expected = np.triu(expected & given.readable[:, None] & given.readable[None], 1)
    copies = dup.find_near_copies(given)
    found = np.zeros_like(expected)
    for row in range(len(bits)):
        found[row] = dup.with_near_copy(copies, np.arange(len(bits)), np.array([row]))
    # b is compared with a where b's mirror image is a's picture, which is the other way round but for a bit or two.
    assert expected.sum() > 100 and (np.triu(found, 1) != expected).sum() <= 0.02 * expected.sum()


def test_images_of_one_color_are_copies_of_their_color_alone(tmp_path):
    colors = [(10, 10, 10), (10, 10, 10), (200, 30, 30), (30, 30, 200)]
    for number, color in enumerate(colors):
        Image.new("RGB", (40 + number, 30), color).save(tmp_path / f"{number}.png")
    copies = dup.find_near_copies(dup.signatures([tmp_path / f"{number}.png" for number in range(4)]))
    assert dup.pairs_between(copies, np.arange(4)) == 1 == dup.pairs_between(copies, np.array([0]), np.array([1]))


# The partition.


@pytest.fixture
def tree(tmp_path):
    """c0_00 is in A, c0_04 in B, c0_08 to c0_11 are public (4 per class, 8 boxed of 12)."""
    draw_tree(tmp_path)
    images = tmp_path / "images"
    for number, (picture, path) in enumerate(zip(textures(36), sorted(images.glob("*/*.JPEG")))):
        picture.resize((100 + number % 7, 90)).save(path)
    with Image.open(images / "c0/c0_00.JPEG") as image:
        in_jpeg(ImageOps.mirror(image), 50).save(images / "c0/c0_04.JPEG")
        in_jpeg(image.resize((60, 50)), 60).save(images / "c2/c2_11.JPEG")
    (images / "c1/c1_09.JPEG").write_bytes(b"no image")
    return tmp_path


def partition(tree, *arguments):
    folders = ["--imgnet_dir", tree / "images", "--bbox_dir", tree / "boxes", "--save_dir", tree / "index"]
    options = ["--per_class", "4", "--num_workers", "1", "--near_duplicates", "1"]
    result = ok(run_here("imagenet_partition.py", *folders, *options, *arguments))
    return result.stdout


def test_the_partition_counts_and_keeps_near_copies(tree):
    text = partition(tree)
    assert "images that cannot be read: 1 (c1/c1_09.JPEG)" in text
    assert "4 per class, pairs of near-copies: within A 0, within B 0, A-B 1, A-public 1, B-public 1" in text
    counts = read_json(tree / "index/partition.json")["near_copies"]["4_per_class"]
    assert counts["A-B"] == 1 and counts["images of bbox_A with a near-copy in train_B or public"] == 1
    listing, folder = list_images(tree / "images"), tree / "index/4_per_class"
    copies = dup.load_near_copies(tree / "index" / dup.FILE, listing)
    attacked, public = np.load(folder / "bbox_A.npy"), np.load(folder / "public.npy")
    near = attacked[dup.with_near_copy(copies, attacked, public)]
    assert [listing.paths[index] for index in near] == ["c0/c0_00.JPEG"]
    before = (tree / "index/near_duplicates.npz").read_bytes()
    assert "near-copies of " in partition(tree) and before == (tree / "index/near_duplicates.npz").read_bytes()
    Image.new("RGB", (50, 50)).save(tree / "images/c2/c2_11.JPEG")
    text = partition(tree)  # another file under the same name
    assert "near-copies of " not in text.replace("pairs of near-copies", "") and "A-public 0" in text
    (tree / "images/c2/c2_10.JPEG").unlink()
    assert dup.load_near_copies(tree / "index" / dup.FILE, list_images(tree / "images")) is None


def test_a_killed_search_resumes(tree, monkeypatch):
    read, save = [], ShardStore.save
    original = dup.signatures
    monkeypatch.setattr(dup, "signatures", lambda paths, root="": read.extend(paths) or original(paths, root))

    def save_one_and_die(self, name, **arrays):
        save(self, name, **arrays)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dejavu_utils.runtime.resumable.ShardStore.save", save_one_and_die)
        with pytest.raises(AssertionError):
            partition(tree)
    assert len(read) == 36 and not (tree / "index/partition.json").exists()
    assert "resumes after" in partition(tree)
    assert len(read) == 36 and not (tree / "index/unfinished").exists()
