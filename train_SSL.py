"""Trains one SSL model on a .beton, with a linear probe on every layer.

Reads a YAML file (--config-file) and dotted flags over it; writes into --logging.folder: params.json (all settings),
log (one JSON object an epoch), model.pth (to resume from), model_ep{E}.pth (snapshots after E epochs, for the attack)
and final_weights.pt. The same command run again goes on where it stopped.

    python train_SSL.py --config-file configs/vicreg_cfg.yaml \\
        --data.train_dataset $BETONS_FOLDER/300_per_class_A.beton --data.val_dataset $BETONS_FOLDER/val.beton \\
        --logging.folder $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A
    python train_SSL.py --config-file configs/demo_cfg.yaml \\
        --data.train_dataset demo/betons/50_per_class_A.beton --data.val_dataset demo/betons/val.beton \\
        --logging.folder demo/simclr/simclr_dssweep_50pc_A
"""

import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from dejavu_utils import augment, losses
from dejavu_utils.beton import Beton
from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from dejavu_utils.files import complete_file, save_json
from dejavu_utils.launch import ScriptJob, autocast, choose_device, seed_everything, submit
from dejavu_utils.loader import FfcvLoader, NativeLoader, evaluation_batches
from dejavu_utils.models import Probes, architectures, mlp_widths, network_from_settings
from dejavu_utils.optim import learning_rate, make_optimizer, resolution_at
from dejavu_utils.options import InputError, Parser, existing_file, parse_settings, run, zero_or_one
from dejavu_utils.progress import Progress

SECTIONS = {
    "model": {
        "arch": ("resnet50", architectures(), "trunk, a torchvision resnet or vgg"),
        "mlp": ("2048-512", str, "widths of the projector's layers"),
        "mlp_coeff": (1.0, float, "scales the projector's last hidden width"),
        "remove_head": (0, zero_or_one, "1: no projector, the loss acts on the trunk's output"),
        "fc": (0, zero_or_one, "1: a Linear(width, 256) at the end of the trunk (resnets)"),
        "proj_relu": (0, zero_or_one, "1: a ReLU after the projector's last layer"),
    },
    "resolution": {
        "min_res": (64, int, "side of the training crops up to start_ramp, pixels"),
        "max_res": (224, int, "side of the training crops from end_ramp on, pixels"),
        "start_ramp": (10, int, "epoch (from 0) up to which crops have min_res"),
        "end_ramp": (30, int, "epoch from which crops have max_res; between, the nearest multiple of 32 on the line"),
    },
    "data": {
        "train_dataset": ("", str, ".beton to train on"),
        "val_dataset": ("", str, ".beton for the probes' validation"),
        "num_workers": (10, int, "threads that read, decode and crop"),
        "in_memory": (0, zero_or_one, "1: read the whole .beton into memory first"),
        "random_seed": (0, int, "seed of the weights, the order of images and the views"),
        "loader": (
            "auto",
            ("auto", "native", "ffcv"),
            "auto = native: torchvision's definitions, the same batches on every run, and faster; ffcv = FFCV-SSL's",
        ),
    },
    "augment": {
        "min_area": (0.08, float, "smallest share of an image's area that a crop shows"),
        "max_area": (1.0, float, "largest share of an image's area that a crop shows"),
        "jitter": (
            1.0,
            float,
            "strength of the color jitter, 1 = brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1",
        ),
        "blur": (1, zero_or_one, "1: Gaussian blur on view 1"),
        "solarize": (0.2, float, "probability of solarizing view 2"),
    },
    "vicreg": {
        "sim_coeff": (25.0, float, "weight of the invariance term"),
        "std_coeff": (25.0, float, "weight of the variance term"),
        "cov_coeff": (1.0, float, "weight of the covariance term"),
    },
    "simclr": {"temperature": (0.15, float, "temperature of the softmax over cosine similarities")},
    "barlow": {"lambd": (0.0051, float, "weight of the off-diagonal correlations")},
    "logging": {
        "folder": ("", str, "where everything is written"),
        "log_level": (2, int, "0: the log file only; 1: a line an epoch on stdout; 2: progress within epochs too"),
        "checkpoint_freq": (5, int, "epochs between two writes of model.pth"),
        "snapshot_freq": (50, int, "epochs between two snapshots model_ep{E}.pth"),
    },
    "validation": {
        "batch_size": (256, int, "images"),
        "resolution": (224, int, "side of the centre crops, pixels"),
    },
    "training": {
        "loss": ("simclr", ("vicreg", "simclr", "barlow", "supervised"), "training objective"),
        "batch_size": (512, int, "images per process"),
        "epochs": (30, int, "passes over the training set"),
        "optimizer": ("adamw", ("sgd", "adamw", "lars"), "optimizer"),
        "base_lr": (5e-4, float, "learning rate after warm-up = base_lr x global batch / 256"),
        "end_lr_ratio": (0.001, float, "last learning rate / largest learning rate"),
        "warmup_epochs": (10, int, "epochs of linear warm-up, fewer than epochs"),
        "momentum": (0.9, float, "momentum of sgd and lars"),
        "weight_decay": (4e-5, float, "decay of weights; biases and normalization have none"),
        "label_smoothing": (0.0, float, "of the supervised loss"),
        "eval_freq": (50, int, "epochs between two validations of the probes"),
        "clip_grad": (0.0, float, "largest norm of the gradient, 0 = no limit"),
        "precision": (
            "auto",
            ("auto", "fp32", "bf16", "fp16"),
            "auto = bf16 on GPUs that have it, else fp16; fp32 on CPUs",
        ),
        "compile": (0, zero_or_one, "1: torch.compile the trunk"),
    },
    "dist": {
        "use_submitit": (0, zero_or_one, "1: submit a SLURM job; 0: train here"),
        "ngpus": (8, int, "GPUs a node"),
        "nodes": (1, int, "nodes"),
        "timeout": (2800, int, "time limit of the job, minutes"),
        "partition": ("", str, "SLURM partition"),
        "comment": ("", str, "SLURM comment"),
        "mem_gb": (0, int, "memory a node, GB; 0 = 60 x ngpus"),
        "cpus_per_task": (10, int, "CPU cores a process"),
        "dependency": ("", str, "SLURM dependency, for instance afterok:123"),
    },
}
# Published YAML files and commands carry these; they changed nothing there either.
WITHOUT_EFFECT = (
    *("attack.k", "attack.k_attk", "lr.*", "training.bn_wd", "validation.lr_tta", "model.patch_keep", "dist.address"),
    *("training.distributed", "training.use_ssl", "dist.world_size", "dist.port"),
)
MAY_DIFFER = ("logging.", "dist.", "data.num_workers", "data.in_memory", "training.compile")  # when a run is resumed


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--config-file", dest="config_file", help="YAML file of sections and settings")
    parser.add_argument("ignored", nargs="?", help="an optional last word (published commands end in 0); ignored")
    settings, notices = parse_settings(parser, SECTIONS, WITHOUT_EFFECT)
    for notice in notices:
        print(f"note: {notice}")
    check_settings(settings)
    if not settings["dist.use_submitit"]:
        return train(settings)
    if settings["dist.nodes"] * settings["dist.ngpus"] > 1:
        raise InputError("--dist.ngpus: training is one process for now; give --dist.nodes 1 --dist.ngpus 1")
    job = submit(
        ScriptJob(__file__, "train", settings),
        Path(settings["logging.folder"]) / "submitit",
        "--dist.use_submitit 0",
        timeout_min=settings["dist.timeout"],
        slurm_partition=settings["dist.partition"] or None,
        slurm_comment=settings["dist.comment"] or None,
        slurm_additional_parameters={"dependency": settings["dist.dependency"]}
        if settings["dist.dependency"]
        else None,
        slurm_signal_delay_s=120,
        mem_gb=settings["dist.mem_gb"] or 60 * settings["dist.ngpus"],
        gpus_per_node=settings["dist.ngpus"],
        cpus_per_task=settings["dist.cpus_per_task"],
        name=Path(settings["logging.folder"]).name,
    )
    print(job)


def check_settings(settings):
    """Raises an InputError for values that cannot work, before anything is read or written."""
    for key in ("data.train_dataset", "data.val_dataset"):
        existing_file(settings[key], f"--{key}")
    if not settings["logging.folder"]:
        raise InputError("--logging.folder is needed: name the folder of this run")
    mlp_widths(settings["model.mlp"], "--model.mlp")
    for key in ("training.batch_size", "training.epochs", "training.eval_freq", "validation.batch_size"):
        if settings[key] < 1:
            raise InputError(f"--{key} {settings[key]}: must be at least 1")
    if not 0 <= settings["training.warmup_epochs"] < settings["training.epochs"]:
        raise InputError(
            f"--training.warmup_epochs {settings['training.warmup_epochs']}: must be fewer than "
            f"--training.epochs {settings['training.epochs']}"
        )
    if settings["resolution.end_ramp"] < settings["resolution.start_ramp"]:
        raise InputError("--resolution.end_ramp: must not come before --resolution.start_ramp")
    if not 0 < settings["augment.min_area"] <= settings["augment.max_area"] <= 1:
        raise InputError("--augment.min_area: must be above 0 and at most --augment.max_area, which is at most 1")


def train(settings):
    device = choose_device()
    folder = Path(settings["logging.folder"])
    folder.mkdir(parents=True, exist_ok=True)
    train_set = Beton(settings["data.train_dataset"], in_memory=bool(settings["data.in_memory"]))
    val_set = Beton(settings["data.val_dataset"], in_memory=bool(settings["data.in_memory"]))
    num_classes = max(train_set.num_classes, val_set.num_classes)
    seed_everything(settings["data.random_seed"])
    run_state = Run(settings, num_classes, device)
    checkpoint_path = folder / "model.pth"
    if checkpoint_path.is_file():
        run_state.restore(load_checkpoint(checkpoint_path, "--logging.folder"), checkpoint_path)
        say(settings, 1, f"going on after epoch {run_state.epoch}, from {checkpoint_path}")
    save_json(folder / "params.json", settings)
    try:
        loader = (FfcvLoader if settings["data.loader"] == "ffcv" else NativeLoader)(
            train_set,
            settings["training.batch_size"],
            training_views(settings),
            settings["data.random_seed"],
            settings["data.num_workers"],
            device,
        )
    except ValueError as error:
        raise InputError(f"--training.batch_size, --data.train_dataset {train_set.path}: {error}") from None
    say(
        settings,
        1,
        f"{len(train_set)} images, {num_classes} classes, {len(loader)} steps of {settings['training.batch_size']} "
        f"images an epoch, on {device} in {run_state.precision}, {type(loader).__name__}",
    )
    epochs = settings["training.epochs"]
    trim_log(folder / "log", run_state.epoch)
    while run_state.epoch < epochs:
        record = run_state.train_epoch(loader)
        if run_state.epoch % settings["training.eval_freq"] == 0 or run_state.epoch == epochs:
            record.update(run_state.validate(val_set))
        snapshot = run_state.epoch % settings["logging.snapshot_freq"] == 0 or run_state.epoch == epochs
        if snapshot:
            save_checkpoint(folder / f"model_ep{run_state.epoch}.pth", run_state.checkpoint())
        append_log(folder / "log", record)
        if snapshot or run_state.epoch % settings["logging.checkpoint_freq"] == 0:
            save_checkpoint(checkpoint_path, run_state.checkpoint())
        say(settings, 1, summary_line(record, epochs))
    save_checkpoint(folder / "final_weights.pt", with_prefix(run_state.network.state_dict()))
    say(settings, 1, f"{folder}: {epochs} epochs are done")


class Run:
    """Everything that changes while a model is trained: network, probes, optimizers, epoch."""

    def __init__(self, settings, num_classes, device):
        self.settings, self.num_classes, self.device, self.epoch = settings, num_classes, device, 0
        self.network = network_from_settings(settings, num_classes).to(device)
        self.probes = Probes(self.network.layer_widths(), num_classes).to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(
            settings["training.optimizer"],
            self.network,
            settings["training.momentum"],
            settings["training.weight_decay"],
        )
        self.optimizer_probes = torch.optim.AdamW(self.probes.parameters(), lr=1e-4)
        self.precision = choose_precision(settings["training.precision"], device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.forward = torch.compile(self.network) if settings["training.compile"] else self.network
        self.started = time.time()

    def train_epoch(self, loader):
        """One pass over the training set; returns the record for the log."""
        settings, start = self.settings, time.time()
        resolution = resolution_at(self.epoch, *(settings[f"resolution.{n}"] for n in RAMP))
        meter, total_loss, loss = ProbeMeter(), 0.0, math.nan
        self.network.train()
        schedule = dict(
            total_steps=settings["training.epochs"] * len(loader),
            warmup_steps=settings["training.warmup_epochs"] * len(loader),
            base_lr=settings["training.base_lr"],
            batch_size=settings["training.batch_size"],
            end_lr_ratio=settings["training.end_lr_ratio"],
        )
        quiet = settings["logging.log_level"] < 2
        with nullcontext() if quiet else Progress(len(loader), f"steps of epoch {self.epoch + 1}") as progress:
            for step, (views, labels) in enumerate(loader.epoch(self.epoch, resolution)):
                rate = learning_rate(self.epoch * len(loader) + step, **schedule)
                loss = self.step(views, labels, rate, meter)
                if not math.isfinite(loss):
                    raise InputError(
                        f"the loss is {loss} at epoch {self.epoch + 1}, step {step + 1}; the last good checkpoint is "
                        "kept in --logging.folder: try a smaller --training.base_lr or --training.precision fp32"
                    )
                total_loss += loss
                if progress:
                    progress.update()
        self.epoch += 1
        now = time.time()
        return {
            "timestamp": now,
            "relative_time": now - self.started,
            "epoch": self.epoch,
            "train_loss": total_loss / len(loader),
            "loss": loss,
            "time": now - start,
            **meter.result(""),
        }

    def step(self, views, labels, rate, meter):
        """One update of the network and of the probes; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(self.device, self.precision):
            outputs = self.forward(views[0])
            second = self.forward(views[1])[-1] if len(views) > 1 else None
            loss = self.loss(outputs[-1], second, labels)
            logits = self.probes(outputs)
        probe_losses = [F.cross_entropy(z.float(), labels) for z in logits]
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.settings["training.clip_grad"]:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings["training.clip_grad"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer_probes.zero_grad(set_to_none=True)
        sum(probe_losses).backward()
        self.optimizer_probes.step()
        meter.add(logits, probe_losses, labels)
        return loss.item()

    def loss(self, z1, z2, labels):
        settings, name = self.settings, self.settings["training.loss"]
        if name == "vicreg":
            return losses.vicreg(z1, z2, *(settings[f"vicreg.{n}_coeff"] for n in ("sim", "std", "cov")))
        if name == "simclr":
            return losses.simclr(z1, z2, settings["simclr.temperature"])
        if name == "barlow":
            return losses.barlow(self.network.bn(z1), self.network.bn(z2), settings["barlow.lambd"])
        return F.cross_entropy(
            self.network.fc(z1).float(), labels, label_smoothing=settings["training.label_smoothing"]
        )

    @torch.no_grad()
    def validate(self, val_set):
        """The probes' accuracy on the validation set; the record's `_val` entries."""
        settings, meter = self.settings, ProbeMeter()
        self.network.eval()
        batches = evaluation_batches(
            val_set,
            settings["validation.batch_size"],
            settings["validation.resolution"],
            settings["data.num_workers"],
            self.device,
        )
        for images, labels in batches:
            with autocast(self.device, self.precision):
                logits = self.probes(self.network(images))
            meter.add(logits, [F.cross_entropy(z.float(), labels) for z in logits], labels)
        return meter.result("_val")

    def checkpoint(self):
        return {
            "epoch": self.epoch,
            "model": with_prefix(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "probes": with_prefix(self.probes.state_dict()),
            "optimizer_probes": self.optimizer_probes.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
            "settings": self.settings,
            "num_classes": self.num_classes,
        }

    def restore(self, checkpoint, path):
        """Goes back to a checkpoint of the same run; InputError names the first setting that is not the same."""
        before = checkpoint.get("settings", {})
        for key, value in self.settings.items():
            if before.get(key) != value and not key.startswith(MAY_DIFFER):
                raise InputError(
                    f"--{key} {value}: {path} was trained with {before.get(key)}; "
                    "use the same, or another --logging.folder"
                )
        if checkpoint["num_classes"] != self.num_classes:
            raise InputError(
                f"--data.train_dataset: has {self.num_classes} classes, {path} {checkpoint['num_classes']}"
            )
        self.network.load_state_dict(without_prefix(checkpoint["model"]))
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.probes.load_state_dict(without_prefix(checkpoint["probes"]))
        self.optimizer_probes.load_state_dict(checkpoint["optimizer_probes"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["random_state"])
        self.epoch = checkpoint["epoch"]


RAMP = ("min_res", "max_res", "start_ramp", "end_ramp")


class ProbeMeter:
    """Sums of the probes' losses and hits over batches; kept on the device until `result`."""

    def __init__(self):
        self.sums, self.count = 0, 0

    @torch.no_grad()
    def add(self, logits, probe_losses, labels):
        rows = []
        for z, loss in zip(logits, probe_losses):
            right = z.topk(min(5, z.shape[1]), dim=1).indices == labels[:, None]
            rows.append(torch.stack([loss.float() * len(labels), right[:, 0].sum(), right.sum()]))
        self.sums = self.sums + torch.stack(rows).double()
        self.count += len(labels)

    def result(self, suffix):
        record = {}
        for layer, values in enumerate((self.sums / self.count).tolist()):
            for name, value in zip(("loss_classif", "top_1", "top_5"), values):
                record[f"{name}{suffix}_layer{layer}"] = value
        return record


def training_views(settings):
    """The published views, with the augment.* settings; the supervised loss needs only the first."""
    strength = settings["augment.jitter"]
    common = dict(
        area=(settings["augment.min_area"], settings["augment.max_area"]),
        **{name: strength * getattr(augment.View, name) for name in ("brightness", "contrast", "saturation", "hue")},
    )
    first = augment.View(blur=bool(settings["augment.blur"]), **common)
    second = augment.View(solarize=settings["augment.solarize"], **common)
    return [first] if settings["training.loss"] == "supervised" else [first, second]


def choose_precision(name, device):
    if name != "auto":
        return name
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def trim_log(path, epoch):
    """Drops the log's lines of epochs that will be trained again."""
    if path.is_file():
        kept = [line for line in path.read_text().splitlines() if line and json.loads(line)["epoch"] <= epoch]
        with complete_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))


def append_log(path, record):
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(record) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def summary_line(record, epochs):
    left = record["time"] * (epochs - record["epoch"])
    accuracy = f"probe top-1 {record['top_1_layer0']:.3f}"
    if "top_1_val_layer0" in record:
        accuracy += f" (val {record['top_1_val_layer0']:.3f})"
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4f}, {accuracy}, "
        f"{record['time']:.1f} s, about {left / 60:.0f} min left"
    )


def say(settings, level, text):
    if settings["logging.log_level"] >= level:
        print(text, flush=True)


if __name__ == "__main__":
    run(main)
