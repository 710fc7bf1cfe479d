"""Both sides of a comparison measured in one run, one after the other in turn."""

import io
import statistics
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts, one of which has the name of its benchmark

from dejavu_utils.runtime.devices import set_ieee_fp32  # noqa: E402


def alternate(sides, rounds, warm_up=1):
    """Calls each side in turn; prints median [min, max] of what it returns and the ratio of the first to the others.

    sides: {name: function that returns a figure, more is better, or None where a peer is not installed}. Returns {name:
    its median}. float32 is IEEE's, as in the scripts.
    """
    set_ieee_fp32()
    figures = {name: [] for name, side in sides.items() if side}
    for turn in range(warm_up + rounds):
        for name in figures:
            figure = sides[name]()
            if turn >= warm_up:
                figures[name].append(figure)
    ours, *_ = figures
    for name in sides:
        if name not in figures:
            print(f"  {name:<28} absent: not installed")
            continue
        values = figures[name]
        line = f"  {name:<28} {statistics.median(values):9.1f} [{min(values):.1f}, {max(values):.1f}]"
        if name != ours:
            ratios = [a / b for a, b in zip(figures[ours], values)]
            line += f"   {ours} / {name}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line, flush=True)
    return {name: statistics.median(values) for name, values in figures.items()}


def natural_images(count, width=500, height=375, seed=0):
    """uint8 (height, width, 3) images about as hard to compress as photographs: smooth shapes and some grain."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (width, height), Image.BICUBIC
        )
        grain = rng.normal(0, 8, (height, width, 1))
        yield np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
