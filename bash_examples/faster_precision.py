"""Prints the precision that the demo trains in here: bf16 where a training step takes less time in it, else fp32.

Times a few steps of the demo's network in each precision, in turns, and takes the least processor time of each, which
other programs on the machine hardly change; bf16 must save a tenth. A CPU's list of instructions does not decide: some
CPUs with bf16 gain nothing from it. Others emulate it, so slowly that a step of a few images settles it. Where there is
a GPU, it prints auto: train_SSL.py chooses.

    python bash_examples/faster_precision.py
"""

import sys
import time
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.cli import Parser, add_flags, positive_int, run
from dejavu_utils.models import SSLNetwork
from dejavu_utils.runtime.devices import autocast

CONFIG = Path(__file__).parents[1] / "configs" / "demo_cfg.yaml"
FEW_IMAGES, EMULATED = 2, 4  # images per view of a short step; slower by this factor, bf16 is emulated


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    flags = {
        "--steps": (4, positive_int, "steps in each precision"),
        "--batch_size": (64, positive_int, "images in two views each, 32 pixels wide"),
    }
    add_flags(parser, flags)
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if torch.cuda.is_available():
        print("auto")
        return
    short = step_seconds(1, FEW_IMAGES)
    if short["bf16"] > EMULATED * short["fp32"]:
        print("fp32")
        return
    seconds = step_seconds(args.steps, args.batch_size)
    print("bf16" if seconds["bf16"] < 0.9 * seconds["fp32"] else "fp32")


def step_seconds(steps, batch_size):
    """{precision: the least processor seconds of a training step}, after one step each that is not counted."""
    cpu = torch.device("cpu")
    model = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]
    network = SSLNetwork(model["arch"], model["mlp"], "simclr").train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    images = torch.randn(2 * batch_size, 3, 32, 32)
    seconds = {"fp32": [], "bf16": []}
    for _ in range(steps + 1):
        for precision, found in seconds.items():
            start = time.process_time()
            optimizer.zero_grad()
            with autocast(cpu, precision):
                outputs = network(images)
            outputs[-1].float().pow(2).mean().backward()
            optimizer.step()
            found.append(time.process_time() - start)
    return {precision: min(found[1:]) for precision, found in seconds.items()}


if __name__ == "__main__":
    run(main)
