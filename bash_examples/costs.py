"""What the commands of a sweep cost: reads them, checks that their files are there, prints them and the sum.

With --check it only checks.

    DRY_RUN=1 ./bash_examples/sweep.sh

The formula, with the measured rates of docs/speed.md:

* training: epochs x images x 2 views x 3 (forward, and twice that backward) x the network's operations at its
  resolution, on an H100 at 95 TFLOP/s (ResNet-18, -50 and -101: 85 to 106), on a CPU core at 0.1 TFLOP/s;
* attack, probe, label-free scores: one forward pass per image and model, or the time to read and crop the images, 230
  per second and core, whichever is slower; the probe reads its training images once per epoch;
* disk: snapshots hold weights and probes, model.pth what the optimizer keeps, too; an attack its neighbors.
"""

import os
import shlex
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.cli import Parser, run
from dejavu_utils.errors import InputError
from dejavu_utils.finished import (
    RESULTS,
    Flags,
    finished_or_queued,
    missing_snapshot,
    queued_job,
    recorded_settings,
    typed_flags,
    value_of,
)

GPU, CORE = 95e12, 0.1e12  # operations per second
IMAGES_READ = 230  # per second and core: JPEG files of ImageNet's size, decoded, cropped and resized to 224 px
IMAGES_READ_SMALL = 2000  # of 128 px or less
# Core seconds of two views of an image from a raw beton, and what of them grows with the pixels, at 176 px: 750 images
# per second at 176 px, 1250 at the demo's 32 px.
VIEWS_READ, VIEWS_OF_176_PX = 0.78e-3, 0.55e-3
START = 6  # core seconds until a script has imported what it needs
# Operations of a forward pass at 224 px and parameters, both in 1e9.
NETWORKS = {
    # The demo's, of timm: 0.4 by its operations, but it is too small to be bound by them. This is its time.
    "test_resnet": (1.5, 0.0004),
    "resnet18": (3.6, 0.011),
    "resnet34": (7.3, 0.021),
    "resnet50": (8.2, 0.024),
    "resnet101": (15.6, 0.043),
    "resnet152": (23.0, 0.058),
    "vgg16": (31.0, 0.134),
    "timm:vit_small_patch16_224": (9.2, 0.022),
    "timm:vit_base_patch16_224": (35.0, 0.086),
}
COLLECTIONS = ("timm:", "torchvision:")  # names in place of files
CLASSES = 1000  # where a file does not tell how many images it has: n_per_class times this
REMEDIES = {
    "data.train_dataset": "run gen_betons.sh, or narrow the sweep (DATASETS)",
    "data.val_dataset": "run gen_val_betons.sh",
    "config_file": "LOSS names configs/{LOSS}_cfg.yaml, CONFIG another file",
    "imgnet_train_pth": "IMAGENET_DATASET_DIR names the image folder",
    "model_oss_pth": "MODEL_PTH names the model: a file, timm:NAME or torchvision:NAME",
    "public_idx_pth": "run imagenet_partition.py, or name another set with PUBLIC",
}


@dataclass
class Cost:
    """Of one command. operations: of the networks. read: core seconds of reading images, beside a GPU's work. disk:
    bytes."""

    operations: float
    read: float
    disk: float

    def gpu_hours(self) -> float:
        """Of a job with 10 workers to each GPU."""
        return max(self.operations / GPU, self.read / 10) / 3600

    def core_hours(self) -> float:
        """Of a run without a GPU."""
        return (self.operations / CORE + self.read + START) / 3600


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="print nothing but what is missing")
    args = parser.parse_args()
    lines, written, trained, rows = [], set(), {}, {}
    for line in sys.stdin.read().splitlines():
        words = shlex.split(line)
        script = Path(words[1]).name if len(words) > 1 else ""
        flags = typed_flags(words[2:])
        written.add(value_of(flags, "write_path"))  # a beton
        if script not in RESULTS:
            lines.append(line)
            continue
        said, folder = finished_or_queued(script, flags), value_of(flags, RESULTS[script].folder)
        arch = arch_of(flags, trained)
        if not said:
            check_inputs(flags, RESULTS[script].folder, written)
            rows.setdefault(script, []).append(cost_of(script, flags, arch))
        written.add(folder)
        trained[folder] = arch
        lines.append(said or line)
    if not args.check:
        print("\n".join(lines), flush=True)
        print("\n".join(sums(rows)), file=sys.stderr)  # the commands alone can be saved, or run


def check_inputs(flags: Flags, folder: str, written: set[str]) -> None:
    """InputError for a file that is missing, unless an earlier command or a job in the queue writes it."""
    for name, values in flags.items():
        for path in values if name != folder else ():
            if path.startswith(COLLECTIONS):
                check_named(path, f"--{name} {path}")
                path = path.partition("@")[2]
            parent = str(Path(path).parent)
            is_path = path and ("/" in path or name.endswith("_pth"))
            if not is_path or os.path.exists(path):
                continue
            never = missing_snapshot(path)
            if not never and ({path, parent} & written or queued_job(parent)):
                continue
            trained = path.endswith(".pth")
            remedy = "train the model (STAGES=train), or narrow the sweep" if trained else "run imagenet_partition.py"
            raise InputError(f"--{name} {path}: no such file; {never or REMEDIES.get(name, remedy)}")


def check_named(model: str, source: str) -> None:
    """InputError for a name that timm or torchvision does not have."""
    from dejavu_utils.networks.loading import check_known  # takes seconds

    check_known(model, source)


def arch_of(flags: Flags, trained: dict[str, str]) -> str:
    """The backbone that a command trains or reads. trained: {folder: backbone} of the commands before."""
    if "model.arch" in flags:
        return value_of(flags, "model.arch")
    for name in ("model_A_pth", "model_pth", "model_oss_pth", "ssl_model_pth"):
        model = value_of(flags, name)
        if model:
            folder = str(Path(model).parent)
            recorded = recorded_settings(Path(folder, "final_weights.pt")).get("model.arch")
            return trained.get(folder) or str(recorded or model)
    return "resnet50"


def cost_of(script: str, flags: Flags, arch: str) -> Cost:
    """The cost of a command of one of the scripts, with this backbone."""
    if script == "train_SSL.py":
        return training(flags, arch)
    if script == "train_RCDM.py":
        gpus = number(flags, "nodes", 2) * number(flags, "ngpus", 8)
        return Cost(gpus * number(flags, "timeout", 2800) * 60 * GPU, 0, 0)  # at most
    side = number(flags, "resolution", 224)
    operations, _ = network(arch, side)
    fast = IMAGES_READ if side > 128 else IMAGES_READ_SMALL
    if script == "lin_probe.py":
        train, val = images(flags, "train_idx_pth"), images(flags, "val_idx_pth")
        seen = train * (number(flags, "epochs", 2) + 1) + val
        return Cost(seen * operations, seen / fast, 0)
    names = ("bbox_A", "bbox_B", "test", "valid", "unseen")  # the attacked images; test and valid: one model's
    sets = [images(flags, f"{name}_idx_pth") for name in names if f"{name}_idx_pth" in flags]
    if script == "sslmem.py":
        views = 10 * sum(sets)
        return Cost(2 * views * operations, views / fast, 0)
    public, k = images(flags, "public_idx_pth"), number(flags, "k", 100)
    seen, width = sum(sets) + public, 8192 if side > 64 else 128
    search = 2 * 2 * sum(sets) * public * width
    return Cost(2 * seen * operations + search, seen / fast, 2 * sum(sets) * k * 16)


def number(flags: Flags, name: str, default: float) -> float:
    return float(value_of(flags, name) or default)


def training(flags: Flags, arch: str) -> Cost:
    """Of train_SSL.py, whose resolution ramps up; incomplete batches are dropped."""
    epochs = number(flags, "training.epochs", 30)
    low, high = number(flags, "resolution.min_res", 64), number(flags, "resolution.max_res", 224)
    ramp = min(epochs, (number(flags, "resolution.start_ramp", 10) + number(flags, "resolution.end_ramp", 30)) / 2)
    side = ((low**2 * ramp + high**2 * (epochs - ramp)) / epochs) ** 0.5
    submitted = value_of(flags, "dist.use_submitit") == "1"
    processes = number(flags, "dist.ngpus", 8) * number(flags, "dist.nodes", 1) if submitted else 1
    batch = number(flags, "training.batch_size", 512) * processes
    seen = epochs * max(1, images(flags, "data.train_dataset") // batch) * batch
    operations, parameters = network(arch, side)
    widths = [int(width) for width in (value_of(flags, "model.mlp") or "2048-512").split("-")]
    projector = sum(before * after for before, after in zip([2048, *widths], widths))
    weights = parameters + projector + CLASSES * (2048 + sum(widths))  # with the online probes
    optimizers = 2 if value_of(flags, "training.optimizer") in ("", "adamw") else 1  # copies of the weights
    snapshots = -(-epochs // number(flags, "logging.snapshot_freq", 50))  # the last epoch has one, too
    copies = snapshots + 1 + optimizers
    views = seen * (VIEWS_READ + VIEWS_OF_176_PX * (side / 176) ** 2)
    return Cost(seen * 2 * 3 * (operations + 2 * projector), views, 4 * weights * copies)


def network(arch: str, side: float) -> tuple[float, float]:
    """(operations of a forward pass, parameters) of a backbone; an unknown one counts as ResNet-50."""
    operations, parameters = NETWORKS.get(arch, NETWORKS["resnet50"])
    return operations * 1e9 * (side / 224) ** 2, parameters * 1e9


def images(flags: Flags, name: str) -> int:
    """How many images an index file or a beton has, or will have by its name."""
    path = Path(value_of(flags, name) or "0_per_class")
    try:
        if path.suffix == ".npy":
            return len(np.load(path, mmap_mode="r"))
        with open(path, "rb") as file:
            return struct.unpack_from("<Q", file.read(16), 8)[0]
    except (OSError, ValueError, EOFError, struct.error):
        n = "".join(filter(str.isdigit, path.parent.name if path.suffix == ".npy" else path.name)) or "50"
        boxed = "bbox" in path.name or "crops" in path.name
        return int(n) * CLASSES // (2 if boxed else 1)


def sums(rows: dict[str, list[Cost]]) -> Iterator[str]:
    """Lines of what the commands cost."""
    here = os.environ.get("LOCAL") == "1" and not shutil.which("nvidia-smi")
    unit = "CPU core hours" if here else "GPU hours (H100)"
    everything = 0.0
    for script, costs in rows.items():
        hours = sum(cost.core_hours() if here else cost.gpu_hours() for cost in costs)
        disk = sum(cost.disk for cost in costs) / 1e9
        if script == "train_RCDM.py":
            yield f"{script} x {len(costs)}: until --lr_anneal_steps; to the time limit {hours:.3g} {unit}"
        else:
            everything += hours
            yield f"{script} x {len(costs)}: {hours:.3g} {unit}, {disk:.3g} GB"
    if everything:
        disk = sum(cost.disk for costs in rows.values() for cost in costs) / 1e9
        yield f"in all: {everything:.3g} {unit}, {disk:.3g} GB of disk, estimated from measured rates (docs/costs.md)"


if __name__ == "__main__":
    sys.argv[0] = os.environ.get("SWEEP_SCRIPT") or sys.argv[0]  # errors are those of the script that was called
    run(main)
