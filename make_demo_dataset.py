"""Draws an ImageNet-shaped folder of images with a known answer: the background says nothing about the class.

Every image has one object of its class (a badge in the class's hue with a glyph of the DejaVu Sans font) on a
background of its own, drawn independently of the class. A background crop therefore reveals the class only to a model
that remembers the image: the reference model is expected at chance (1 / classes), and any target accuracy above it is
memorization.

--correlation R is the opposite control: it ties the background to the class in a fraction R of the images, drawn at
random, by giving them the colors and the wave of their class. A model that only reads backgrounds then predicts the
class of those, and of the others by chance, whether it saw the image or not: the tied images are correlated, not
memorized, and the déjà vu score over them is expected to be 0. Trained models still memorize images among the others.

Writes SAVE_DIR/images/CLASS/ID.JPEG, SAVE_DIR/boxes/Annotation/CLASS/ID.xml (not for the last images of a
class if --unboxed_per_class is given), SAVE_DIR/demo.json (the arguments and the names of the objects) and, with
--correlation, SAVE_DIR/tied.csv (which images are tied: path below SAVE_DIR/images, 0 or 1).

    python make_demo_dataset.py --save_dir demo/data
    python make_demo_dataset.py --save_dir demo/correlated --correlation 0.8
    python make_demo_dataset.py --save_dir /tmp/more --classes 8 --images_per_class 400 --side 192 --seed 3
"""

import colorsys
import shutil
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from dejavu_utils.cli import Parser, add_flags, add_paths, non_negative_int, positive_int, run
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_csv, save_json
from dejavu_utils.log import Progress

OBJECTS = (
    ("plane", 0x2708),
    ("umbrella", 0x2602),
    ("spade", 0x2660),
    ("star", 0x2605),
    ("anchor", 0x2693),
    ("knight", 0x265E),
    ("telephone", 0x260E),
    ("heart", 0x2665),
    ("snowman", 0x2603),
    ("cloud", 0x2601),
    ("note", 0x266B),
    ("scissors", 0x2702),
    ("envelope", 0x2709),
    ("pencil", 0x270E),
    ("sun", 0x2600),
    ("flag", 0x2691),
    ("gear", 0x2699),
    ("recycling", 0x267B),
    ("king", 0x265A),
    ("flower", 0x2740),
)


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--save_dir": "folder for images/, boxes/ and demo.json"})
    flags = {
        "--classes": (5, positive_int, "number of classes"),
        "--images_per_class": (200, positive_int, "images of each class"),
        "--unboxed_per_class": (10, int, "of these, images without a box XML"),
        "--side": (128, positive_int, "height and width of an image in pixels"),
        "--object_size": (0.5, float, "diameter of an object / side of the image"),
        "--correlation": (0.0, float, "fraction of the images with a background of their class"),
        "--seed": (0, non_negative_int, "same seed, same files"),
        "--num_workers": (2, positive_int, "processes that draw"),
    }
    add_flags(parser, flags)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    if args.unboxed_per_class < 0 or args.unboxed_per_class > args.images_per_class:
        raise InputError("--unboxed_per_class must lie between 0 and --images_per_class")
    if args.side < 32:
        raise InputError(f"--side {args.side}: an image needs at least 32 pixels per side")
    if not 0.1 <= args.object_size <= 0.8:
        raise InputError(f"--object_size {args.object_size}: must lie between 0.1 and 0.8")
    if not 0 <= args.correlation <= 1:
        raise InputError(f"--correlation {args.correlation}: must lie between 0 and 1")
    save_dir = Path(args.save_dir)
    if (save_dir / "images").exists() or (save_dir / "boxes").exists():
        raise InputError(f"--save_dir {save_dir}: holds images or boxes already; remove them or name another folder")
    partial_dir = save_dir / ".partial"  # the final folders appear when every image is there
    shutil.rmtree(partial_dir, ignore_errors=True)
    names = [class_name(label) for label in range(args.classes)]
    for name in names:
        (partial_dir / "images" / name).mkdir(parents=True)
        (partial_dir / "boxes" / "Annotation" / name).mkdir(parents=True)
    numbers = range(args.classes * args.images_per_class)
    with Progress(len(numbers), "images drawn") as progress, ProcessPoolExecutor(args.num_workers) as pool:
        drawn = []
        for path_and_tied in pool.map(partial(draw_and_save, args, partial_dir), numbers, chunksize=16):
            drawn.append(path_and_tied)
            progress.update()
    (partial_dir / "images").rename(save_dir / "images")
    (partial_dir / "boxes").rename(save_dir / "boxes")
    partial_dir.rmdir()
    if args.correlation:
        save_csv(save_dir / "tied.csv", pd.DataFrame(drawn, columns=["path", "tied"]))
    save_json(save_dir / "demo.json", {**vars(args), "class_names": names, "chance": 1 / args.classes})
    print(f"{len(numbers)} images of {args.classes} classes in {save_dir / 'images'}, boxes in {save_dir / 'boxes'}")


def class_name(label: int) -> str:
    """A folder name whose order is that of the labels; classes beyond the list of objects repeat it in other hues."""
    return f"{label:03d}_{OBJECTS[label % len(OBJECTS)][0]}"


def draw_and_save(args: Namespace, folder: Path, number: int) -> tuple[str, int]:
    """Draws image `number`: its class is number // images_per_class; all randomness comes from (seed, number).

    Returns (its path below images/, 1 if its background is tied to the class, else 0).
    """
    label, rank = divmod(number, args.images_per_class)
    background_rng, object_rng, tie_rng = (np.random.default_rng([args.seed, number, part]) for part in range(3))
    tied = tie_rng.random() < args.correlation
    given = class_background(background_rng, label, args.classes) if tied else None
    image = draw_background(background_rng, args.side, given)
    box = paste_object(image, object_rng, label, args.classes, args.object_size)
    name = class_name(label)
    path = Path(name) / f"{name}_{rank:05d}.JPEG"
    image.save(folder / "images" / path, quality=92)
    if rank < args.images_per_class - args.unboxed_per_class:
        xml = voc_xml(name, f"{name}_{rank:05d}", args.side, box)
        (folder / "boxes" / "Annotation" / name / f"{name}_{rank:05d}.xml").write_text(xml, encoding="utf-8")
    return path.as_posix(), int(tied)


def class_background(rng: Generator, label: int, classes: int) -> tuple[np.ndarray, float, float]:
    """(colors, frequency, angle) for draw_background: three shades of the class's hue, and the class's wave."""
    hue = label / classes + 0.5 + rng.normal(0, 0.05 / classes)  # opposite to that of the class's object
    shades = ((0.9, 0.35), (0.8, 0.65), (0.5, 0.9))  # saturation, value
    colors = [colorsys.hsv_to_rgb(hue % 1, saturation, value) for saturation, value in shades]
    return 255 * np.array(colors), 3 + 9 * label / classes, np.pi * label / classes + rng.normal(0, 0.05)


def draw_background(rng: Generator, side: int, given: tuple[np.ndarray, float, float] | None = None) -> Image.Image:
    """A stationary texture: 1/f noise mapped through three colors, and a faint wave; any crop identifies it.

    given: its colors, float (3, 3), RGB from 0 to 255, and the wave's frequency, per image, and angle, radians. Random
    where they are not given.
    """
    colors = given[0] if given else rng.uniform(20, 235, size=(3, 3))
    height = fractal_noise(rng, side, exponent=rng.uniform(0.9, 1.4))
    frequency, angle = given[1:] if given else (rng.uniform(3, 12), rng.uniform(0, np.pi))
    y, x = np.mgrid[:side, :side] / side
    wave = np.sin(2 * np.pi * (frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform()))
    level = 1 + 0.55 * height + rng.uniform(0.1, 0.45) * wave  # 0, 1, 2 are the three colors
    level = np.clip(level, 0, 2)
    first = np.minimum(level.astype(np.int64), 1)
    weight = (level - first)[..., None]
    pixels = colors[first] * (1 - weight) + colors[first + 1] * weight
    return Image.fromarray(np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8))


def fractal_noise(rng: Generator, side: int, exponent: float) -> np.ndarray:
    """float (side, side) noise with amplitude ~ 1 / frequency**exponent above 3 waves per image, mean 0, deviation
    1."""
    fy, fx = np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)[None]
    frequency = np.hypot(fy, fx)
    amplitude = np.where(frequency >= 3, np.maximum(frequency, 3.0) ** -exponent, 0)  # no long waves: stationary
    spectrum = amplitude * np.exp(2j * np.pi * rng.uniform(size=amplitude.shape))
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return (noise - noise.mean()) / noise.std()


def paste_object(
    image: Image.Image, rng: Generator, label: int, classes: int, object_size: float
) -> tuple[int, int, int, int]:
    """Draws a badge (a disc in the class's hue, the class's glyph in white on it) and returns its box.

    The box is (xmin, ymin, xmax, ymax) counted from 0, xmax and ymax just outside: the attack reads boxes this way, as
    published. Counted from 1 (Pascal VOC), a crop to the left of the box or above it would end inside the object.
    Size and place are drawn independently of the class too, so that not even the shape of a background crop tells it.
    """
    side = image.width
    diameter = int(round(object_size * side * rng.uniform(0.92, 1.08)))
    xmin, ymin = (int(v) for v in rng.integers(0, side - diameter + 1, size=2))
    color = colorsys.hsv_to_rgb((label / classes + rng.normal(0, 0.01)) % 1, rng.uniform(0.85, 1), rng.uniform(0.8, 1))
    fine = 4 * diameter  # drawn four times as large and reduced: smooth edges
    badge = Image.new("RGB", (fine, fine), "white")
    disc = Image.new("L", (fine, fine))
    ImageDraw.Draw(disc).ellipse((0, 0, fine - 1, fine - 1), fill=255)
    rim = fine // 24
    ImageDraw.Draw(badge).ellipse((rim, rim, fine - 1 - rim, fine - 1 - rim), fill=tuple(int(255 * c) for c in color))
    mask = glyph(OBJECTS[label % len(OBJECTS)][1], int(0.64 * fine), rng.uniform(-15, 15))
    badge.paste("white", ((fine - mask.width) // 2, (fine - mask.height) // 2), mask)
    size = (diameter, diameter)
    image.paste(badge.resize(size, Image.BOX), (xmin, ymin), disc.resize(size, Image.BOX))
    return xmin, ymin, xmin + diameter, ymin + diameter


def glyph(code: int, longest: int, degrees: float) -> Image.Image:
    """The character as an "L" mask cut to its ink, the longer side `longest` pixels."""
    from matplotlib.font_manager import FontProperties, findfont  # after dejavu_utils, which chooses the backend

    font = ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), longest)
    left, top, right, bottom = font.getbbox(chr(code))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), chr(code), font=font, fill=255)
    mask = mask.rotate(degrees, resample=Image.BILINEAR, expand=True)
    mask = mask.crop(mask.getbbox())
    scale = longest / max(mask.size)
    return mask.resize([max(1, round(extent * scale)) for extent in mask.size], Image.BILINEAR)


def voc_xml(class_folder: str, stem: str, side: int, box: tuple[int, int, int, int]) -> str:
    xmin, ymin, xmax, ymax = box
    return f"""<annotation>
 <folder>{class_folder}</folder>
 <filename>{stem}</filename>
 <size><width>{side}</width><height>{side}</height><depth>3</depth></size>
 <object>
  <name>{class_folder}</name>
  <bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>
 </object>
</annotation>
"""


if __name__ == "__main__":
    run(main)
