"""What only a GPU can show, within nine minutes: its tests, then the benchmarks at ImageNet's sizes.

Each part's output goes to --out/PART.txt as it comes; its end (time, exit status) is a line here and in
--out/parts.txt. A part that reaches its time limit is ended, and the next one starts. --tiny runs the same parts at
sizes that measure nothing, so that the script itself can be tested on a CPU.

    python benchmarks/gpu.py --out gpu_figures
    python benchmarks/gpu.py --out gpu_figures --parts search attack
    python benchmarks/gpu.py --out /tmp/gpu_figures --device cpu --tiny
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Part:
    """command: from the checkout. tiny: flags in place of `sizes`. limit: seconds."""

    command: str
    sizes: str
    tiny: str
    limit: int


STEP = "benchmarks/train_step.py --arch"
SIZES = "--mlp 8192-8192-8192 --resolution 160 --batch_size 256 --num_workers 14 --rounds 3 --precision"
TINY = "--mlp 8-8 --resolution 32 --batch_size 4 --steps 1 --rounds 1 --precision"
PARTS = {
    "tests": Part("-m pytest -q -m gpu tests", "", "", 100),
    "search": Part(
        "benchmarks/attack.py neighbors",
        "--queries 20000 --public 500000 --width 8192 --rounds 1",
        "--queries 20 --public 300 --width 8 --rounds 1",
        70,
    ),
    "resnet101": Part(f"{STEP} resnet101", f"{SIZES} bf16", f"{TINY} fp32", 80),
    "vit_small": Part(f"{STEP} vit_small_patch16_224", f"{SIZES} bf16", f"{TINY} bf16", 60),
    "fp16": Part(f"{STEP} resnet50", f"{SIZES} fp16", f"{TINY} fp32", 50),  # CPUs have no fp16
    "compile": Part(f"{STEP} resnet50 --compile 1", f"{SIZES} bf16", f"{TINY} fp32", 70),
    "attack": Part(
        "benchmarks/attack.py network",
        "--arch resnet101 --images 2048 --num_workers 14 --rounds 1",
        "--images 16 --rounds 1 --resolution 32 --batch_size 8 --num_workers 0",
        60,
    ),
    "probe": Part(
        "benchmarks/lin_probe.py",
        "--images 1024 --num_workers 14 --rounds 1",
        "--images 20 --rounds 1 --resolution 32 --num_workers 0",
        50,
    ),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="at sizes that measure nothing")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with open(args.out / "parts.txt", "a") as summary:
        for name in args.parts:
            ended, seconds = run_part(name, args)
            failed += ended != "done"
            line = f"{name}: {ended} after {seconds:.0f} s"
            print(line, flush=True)
            print(line, file=summary, flush=True)
    sys.exit(bool(failed))


def run_part(name, args):
    """("done", "exit status 1" or "limit", its seconds)"""
    part = PARTS[name]
    command = [sys.executable, *part.command.split(), *(part.tiny if args.tiny else part.sizes).split()]
    if name != "tests":
        command += ["--device", args.device]
    started = time.monotonic()
    with open(args.out / f"{name}.txt", "w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # with its workers
        )
        try:
            status = process.wait(part.limit * (5 if args.tiny else 1))  # a CPU need not be quick
            ended = "done" if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = "limit"
    return ended, time.monotonic() - started


if __name__ == "__main__":
    main()
