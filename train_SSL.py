"""Trains one SSL model on a .beton, with a linear probe on every layer.

Reads a YAML file (--config-file) and dotted flags over it; writes into --logging.folder: params.json (all settings),
log (one JSON object an epoch), model.pth (to resume from), model_ep{E}.pth (snapshots after E epochs, for the attack)
and final_weights.pt. Rerun the same command to resume.

    python train_SSL.py --config-file configs/vicreg_cfg.yaml \\
        --data.train_dataset $BETONS_FOLDER/300_per_class_A.beton --data.val_dataset $BETONS_FOLDER/val.beton \\
        --logging.folder $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A
    python train_SSL.py --config-file configs/demo_cfg.yaml \\
        --data.train_dataset demo/seed0/betons/50_per_class_A.beton --data.val_dataset demo/seed0/betons/val.beton \\
        --logging.folder /tmp/simclr_50pc_A
"""

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from dejavu_utils.cli import Parser, existing_file, run, zero_or_one
from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.ffcv import FfcvLoader
from dejavu_utils.data.loader import NativeLoader, evaluation_batches
from dejavu_utils.data.provenance import load_training_images
from dejavu_utils.devices import autocast, choose_precision
from dejavu_utils.distributed import any_process, average_gradients, rank, world_size
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import save_json
from dejavu_utils.launch import LOCK_FILE, Resources, ScriptJob, StopSignal, connect, start_here, submit
from dejavu_utils.models import LOSSES, mlp_widths, network_from_settings
from dejavu_utils.progress import Progress
from dejavu_utils.randomness import seed_everything, seed_step
from dejavu_utils.runlog import RunLog, say
from dejavu_utils.training.batch_norm import synchronize_batch_norm
from dejavu_utils.training.meter import Meter
from dejavu_utils.training.networks import Probes, check_arch
from dejavu_utils.training.objectives import Objective, ViewsForward
from dejavu_utils.training.optim import learning_rate, make_optimizer, resolution_at
from dejavu_utils.training.settings import parse_settings

SECTIONS = {
    "model": {
        "arch": ("resnet50", str, "trunk: a classifier of torchvision (resnet101, vgg16, ...) or timm, by name"),
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
    "byol": {
        "momentum_teacher": (0.996, float, "share of the old teacher that an update keeps; rises to 1 by a cosine")
    },
    "dino": {
        "warmup_teacher_temp": (0.04, float, "teacher's temperature at first"),
        "teacher_temp": (0.07, float, "teacher's temperature after the warm-up"),
        "warmup_teacher_temp_epochs": (50, int, "epochs from the one to the other"),
        "student_temp": (0.1, float, "student's temperature"),
        "center_momentum": (0.9, float, "share of the old centre that an update keeps"),
        "momentum_teacher": (0.996, float, "share of the old teacher that an update keeps, at first; 1 at last"),
    },
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
        "loss": ("simclr", LOSSES, "training objective"),
        "batch_size": (512, int, "images per process; the global batch is that of all processes"),
        "epochs": (30, int, "passes over the training set"),
        "optimizer": ("adamw", ("sgd", "adamw", "lars"), "optimizer"),
        "base_lr": (5e-4, float, "learning rate after warm-up = base_lr x global batch / 256"),
        "end_lr_ratio": (0.001, float, "last learning rate / largest learning rate"),
        "warmup_epochs": (10, int, "epochs of linear warm-up, fewer than epochs"),
        "momentum": (0.9, float, "momentum of sgd and lars"),
        "weight_decay": (4e-5, float, "decay of weights; biases and normalization have none"),
        "label_smoothing": (0.0, float, "of the supervised loss"),
        "num_small_crops": (0, int, "dino: further views of 96 pixels, of 5 to 40 % of an image's area"),
        "eval_freq": (50, int, "epochs between two validations of the probes"),
        "eval_only": (0, zero_or_one, "1: only validate the probes of model.pth"),
        "train_probes_only": (
            0,
            zero_or_one,
            "1: train new probes on model.pth's frozen network; writes probes_{seed}.pth and log_probes_{seed}",
        ),
        "clip_grad": (0.0, float, "largest norm of the gradient, 0 = no limit"),
        "precision": (
            "auto",
            ("auto", "fp32", "bf16", "fp16"),
            "auto = bf16 on GPUs that have it, else fp16; fp32 on CPUs",
        ),
        "compile": (0, zero_or_one, "1: torch.compile the network"),
    },
    "dist": {
        "use_submitit": (0, zero_or_one, "1: submit a SLURM job; 0: train here, on all visible GPUs or the CPU"),
        "world_size": (0, int, "processes on this machine with use_submitit 0; 0: one a GPU, one on a CPU"),
        "ngpus": (8, int, "GPUs, and so processes, a node; 0: no GPU, world_size processes a node"),
        "nodes": (1, int, "nodes"),
        "timeout": (2800, int, "time limit of the job, minutes"),
        "partition": ("", str, "SLURM partition"),
        "comment": ("", str, "SLURM comment"),
        "mem_gb": (0, int, "memory a node, GB; 0 = 60 x ngpus"),
        "cpus_per_task": (10, int, "CPU cores a process"),
        "dependency": ("", str, "SLURM dependency, for instance afterok:123"),
        "port": (0, int, "where the processes of a SLURM job meet; 0: drawn from the job's number"),
    },
}
# Published YAML files and commands carry these; they changed nothing there either.
WITHOUT_EFFECT = (
    *("attack.k", "attack.k_attk", "lr.*", "training.bn_wd", "validation.lr_tta", "model.patch_keep", "dist.address"),
    *("training.distributed", "training.use_ssl"),
)
# May differ when a run is resumed: what does not touch the weights. (The images are compared by what they are.)
MAY_DIFFER = (
    *("logging.", "dist.", "validation.", "data.num_workers", "data.in_memory", "data.train_dataset"),
    *("data.val_dataset", "training.compile", "training.eval_", "training.train_probes_only"),
)


def main():
    settings, notices = read_settings()
    for notice in notices:
        print(f"note: {notice}")
    check_settings(settings)
    work = ScriptJob(train, settings, lock_of(settings))
    if not settings["dist.use_submitit"]:
        return start_here(work, settings["dist.world_size"] or (0 if settings["dist.ngpus"] else 1))
    names = ("timeout", "mem_gb", "nodes", "ngpus", "world_size", "partition", "dependency", "comment")
    asked = {name: settings[f"dist.{name}"] for name in names}
    resources = Resources(**asked, cores=settings["dist.cpus_per_task"])
    print(submit(work, settings["logging.folder"], resources, "--dist.use_submitit 0", "submitit"))


def read_settings(argv=None):
    """({"section.name": value}, notices) from the command line and the YAML file it names."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config-file", dest="config_file", help="YAML file of sections and settings")
    parser.add_argument("ignored", nargs="?", help="an optional last word (published commands end in 0); ignored")
    return parse_settings(parser, SECTIONS, WITHOUT_EFFECT, argv)


def check_settings(settings):
    """Raises an InputError for values that cannot work, before anything is read or written."""
    for key in ("data.train_dataset", "data.val_dataset"):
        existing_file(settings[key], f"--{key}")
    if not settings["logging.folder"]:
        raise InputError("--logging.folder is needed: name the folder of this run")
    mlp_widths(settings["model.mlp"], "--model.mlp")
    if settings["training.num_small_crops"] and settings["training.loss"] != "dino":
        raise InputError("--training.num_small_crops: only dino has small crops; leave it out")
    if settings["training.loss"] == "byol" and settings["model.remove_head"]:
        raise InputError("--model.remove_head 1: BYOL predicts the projector's output; leave it out")
    for key, least in LEAST.items():
        if settings[key] < least:
            raise InputError(f"--{key} {settings[key]}: must be at least {least}")
    if not 0 <= settings["training.warmup_epochs"] < settings["training.epochs"]:
        raise InputError(
            f"--training.warmup_epochs {settings['training.warmup_epochs']}: must be fewer than "
            f"--training.epochs {settings['training.epochs']}"
        )
    if settings["resolution.end_ramp"] < settings["resolution.start_ramp"]:
        raise InputError("--resolution.end_ramp: must not come before --resolution.start_ramp")
    sides = [settings[f"resolution.{name}"] for name in ("min_res", "max_res")] + [settings["validation.resolution"]]
    check_arch(settings["model.arch"], sides)
    if not 0 < settings["augment.min_area"] <= settings["augment.max_area"] <= 1:
        raise InputError("--augment.min_area: must be above 0 and at most --augment.max_area, which is at most 1")


def lock_of(settings):
    """The lock file of what this run writes and the flag that names its folder; None for a run that only reads."""
    if settings["training.eval_only"]:
        return None
    name = f".lock_probes_{settings['data.random_seed']}" if settings["training.train_probes_only"] else LOCK_FILE
    return Path(settings["logging.folder"]) / name, "--logging.folder"


def train(settings):
    device = connect(settings["dist.port"], gpu=0 if settings["dist.ngpus"] else None)
    stop = None if settings["training.eval_only"] else StopSignal()
    first = rank() == 0
    folder = Path(settings["logging.folder"])
    folder.mkdir(parents=True, exist_ok=True)
    train_set = Beton(settings["data.train_dataset"], in_memory=bool(settings["data.in_memory"]))
    val_set = Beton(settings["data.val_dataset"], in_memory=bool(settings["data.in_memory"]))
    num_classes = max(train_set.num_classes, val_set.num_classes)
    seed_everything(settings["data.random_seed"])
    loader = make_loader(settings, train_set, device)
    state = Run(settings, num_classes, device, len(loader), train_set)
    checkpoint_path, log = folder / "model.pth", RunLog(folder / "log", "epoch")
    if settings["training.train_probes_only"]:
        return train_probes(settings, state, loader, val_set, stop)
    if checkpoint_path.is_file():
        state.restore(load_checkpoint(checkpoint_path, "--logging.folder"), checkpoint_path)
        tell(settings, 1, f"resumes after epoch {state.epoch}, step {state.steps_done}, from {checkpoint_path}")
    elif settings["training.eval_only"]:
        raise InputError(f"--training.eval_only 1: there is no {checkpoint_path} to evaluate")
    if settings["training.eval_only"]:
        record = {"epoch": state.epoch, **state.validate(val_set)}
        return tell(settings, 0, json.dumps(record))
    if first:
        save_json(folder / "params.json", settings)
        log.trim(state.epoch)
    effective = settings["training.batch_size"] * world_size()
    tell(
        settings,
        1,
        f"{len(train_set)} images, {num_classes} classes, {len(loader)} steps of {effective} images an epoch "
        f"({world_size()} processes), on {device} in {state.precision}, {type(loader).__name__}",
    )
    epochs = settings["training.epochs"]
    while state.epoch < epochs:
        record = state.train_epoch(loader, stop)
        last = state.epoch + 1 == epochs
        if record and ((state.epoch + 1) % settings["training.eval_freq"] == 0 or last):
            record = state.validated(record, val_set, stop)
        if record is None:  # asked to stop
            save_and_leave(settings, state, stop)
        state.end_epoch()
        snapshot = state.epoch % settings["logging.snapshot_freq"] == 0 or last
        if first and snapshot:
            save_checkpoint(folder / f"model_ep{state.epoch}.pth", state.checkpoint())
        if first:
            log.append(record)
        if first and (snapshot or state.epoch % settings["logging.checkpoint_freq"] == 0):
            save_checkpoint(checkpoint_path, state.checkpoint())
        tell(settings, 1, summary_line(record, epochs))
        if not last and stop.asked(device):
            save_and_leave(settings, state, stop)
    if first:
        save_checkpoint(folder / "final_weights.pt", with_prefix(state.network.state_dict()))
    tell(settings, 1, f"{folder}: {epochs} epochs are done")


def save_and_leave(settings, state, stop):
    """Saves the place in the epoch, too, and ends this process when all have come so far."""
    state.meter.average()
    if rank() == 0:
        save_checkpoint(Path(settings["logging.folder"]) / "model.pth", state.checkpoint())
    stop.leave(f"stopped after epoch {state.epoch}, step {state.steps_done}; rerun the same command to resume there")


def train_probes(settings, state, loader, val_set, stop):
    """Trains new probes on the frozen network of model.pth and saves them beside it."""
    folder, seed = Path(settings["logging.folder"]), settings["data.random_seed"]
    state.freeze(load_checkpoint(folder / "model.pth", "--logging.folder"), folder / "model.pth")
    log = RunLog(folder / f"log_probes_{seed}", "epoch")
    if rank() == 0:
        log.trim(0)
    while state.epoch < settings["training.epochs"]:
        record = state.train_epoch(loader, stop)
        number = state.epoch + 1
        if record and (number % settings["training.eval_freq"] == 0 or number == settings["training.epochs"]):
            record = state.validated(record, val_set, stop)
        if record is None:
            stop.leave("stopped; probes are trained in minutes: the next run begins anew")
        state.end_epoch()
        if rank() == 0:
            log.append(record)
        tell(settings, 1, summary_line(record, settings["training.epochs"]))
    if rank() == 0:
        saved = {"epoch": state.epoch, "probes": with_prefix(state.probes.state_dict()), "settings": settings}
        save_checkpoint(folder / f"probes_{seed}.pth", {**saved, "num_classes": state.num_classes})


def make_loader(settings, train_set, device):
    kind = FfcvLoader if settings["data.loader"] == "ffcv" else NativeLoader
    try:
        return kind(
            train_set,
            settings["training.batch_size"],
            training_views(settings),
            settings["data.random_seed"],
            settings["data.num_workers"],
            device,
            rank(),
            world_size(),
        )
    except ValueError as error:
        raise InputError(f"--training.batch_size, --data.train_dataset {train_set.path}: {error}") from None


class Run:
    """Everything that changes while a model is trained: network, teacher, probes, optimizers, place in the data."""

    def __init__(self, settings, num_classes, device, steps_per_epoch, train_set):
        self.settings, self.num_classes, self.device = settings, num_classes, device
        images = load_training_images(train_set)
        self.train_set, self.train_images = train_set.fingerprint, images and images.plain()
        self.epoch = self.steps_done = 0  # whole epochs, and steps of the one under way
        self.frozen = False
        self.meter, self.started = Meter(), time.time()
        self.schedule = dict(
            total_steps=settings["training.epochs"] * steps_per_epoch,
            warmup_steps=settings["training.warmup_epochs"] * steps_per_epoch,
            base_lr=settings["training.base_lr"],
            batch_size=settings["training.batch_size"] * world_size(),
            end_lr_ratio=settings["training.end_lr_ratio"],
        )
        network = network_from_settings(settings, num_classes).to(device)
        for part in ("net", "projector", "predictor", "fc"):  # not Barlow's bn: it sees the embeddings of all processes
            if hasattr(network, part):
                setattr(network, part, synchronize_batch_norm(getattr(network, part), device))
        if device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        self.network = network
        self.objective = Objective(settings, network, self.schedule["total_steps"])
        self.probes = Probes(network.layer_widths(), num_classes).to(device)
        self.optimizer = make_optimizer(
            settings["training.optimizer"],
            network,
            settings["training.momentum"],
            settings["training.weight_decay"],
        )
        self.optimizer_probes = torch.optim.AdamW(self.probes.parameters(), lr=1e-4)
        self.precision = choose_precision(settings["training.precision"], device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.forward = ViewsForward(network)
        if settings["training.compile"]:
            self.forward = torch.compile(self.forward)
        if world_size() > 1:
            devices = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.forward, device_ids=devices, broadcast_buffers=False)

    def train_epoch(self, loader, stop):
        """The rest of one pass over the training set; returns the record for the log, or None if asked to stop."""
        settings, start, first_step = self.settings, time.time(), self.steps_done
        resolution = resolution_at(self.epoch, *(settings[f"resolution.{n}"] for n in RAMP))
        self.network.train(not self.frozen)
        quiet = settings["logging.log_level"] < 2 or rank() > 0
        with nullcontext() if quiet else Progress(len(loader), f"steps of epoch {self.epoch + 1}") as progress:
            for views, labels in loader.epoch(self.epoch, resolution, first_step):
                step = self.epoch * len(loader) + self.steps_done
                rate = learning_rate(step, **self.schedule)
                # What a backbone draws (dropout) is the same in a resumed run.
                seed_step(settings["data.random_seed"], step)
                loss = self.step(views, labels, rate, step)
                asked, broken = any_process([stop.received is not None, not math.isfinite(loss)], self.device)
                if broken:
                    raise InputError(
                        f"the loss is {loss.item()} at epoch {self.epoch + 1}, step {self.steps_done + 1}; the last "
                        "good checkpoint is kept: try a smaller --training.base_lr or --training.precision fp32"
                    )
                self.steps_done += 1
                if progress:
                    progress.update()
                if asked and self.steps_done < len(loader):
                    return None
        seconds, images = time.time() - start, (self.steps_done - first_step) * self.schedule["batch_size"]
        return {
            "timestamp": time.time(),
            "relative_time": time.time() - self.started,
            "epoch": self.epoch + 1,
            **self.meter.result(),
            "time": seconds,
            "images_per_second": images / max(seconds, 1e-9),
            "lr": learning_rate((self.epoch + 1) * len(loader) - 1, **self.schedule),
            "resolution": resolution,
        }

    def end_epoch(self):
        """The next step is the first of a new epoch."""
        self.epoch, self.steps_done, self.meter = self.epoch + 1, 0, Meter()

    def step(self, views, labels, rate, step):
        """One update of the network, its teacher and the probes; returns the loss, a scalar on the device."""
        with autocast(self.device, self.precision):
            if self.frozen:
                with torch.no_grad():
                    outputs, loss = self.network(views[0]), torch.zeros((), device=self.device)
            else:
                outputs, embeddings = self.forward(views)
                loss = self.objective(embeddings, views, labels, self.epoch)
            logits = self.probes(outputs)
        if not self.frozen:
            self.update_network(loss, rate, step)
        probe_losses = [F.cross_entropy(z.float(), labels) for z in logits]
        self.optimizer_probes.zero_grad(set_to_none=True)
        sum(probe_losses).backward()
        average_gradients(list(self.probes.parameters()))
        self.optimizer_probes.step()
        self.meter.add(loss, logits, probe_losses, labels)
        return loss.detach()

    def update_network(self, loss, rate, step):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.settings["training.clip_grad"]:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings["training.clip_grad"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.objective.after_step(step)

    def validated(self, record, val_set, stop):
        """The record with the validation's entries; None if asked to stop, and then a later run validates."""
        found = self.validate(val_set, stop)
        return None if found is None else {**record, **found}

    @torch.no_grad()
    def validate(self, val_set, stop=None):
        """The probes' accuracy on the validation set; the record's `_val` entries. The processes share the images."""
        settings, meter = self.settings, Meter()
        self.network.eval()
        batches = evaluation_batches(
            val_set,
            settings["validation.batch_size"],
            settings["validation.resolution"],
            settings["data.num_workers"],
            self.device,
            rank(),
            world_size(),
        )
        in_all = len(val_set) // settings["validation.batch_size"] // world_size()  # batches that every process has
        for number, (images, labels) in enumerate(batches):
            if stop and number < in_all and stop.asked(self.device):
                return None
            with autocast(self.device, self.precision):
                logits = self.probes(self.network(images))
            probe_losses = [F.cross_entropy(z.float(), labels) for z in logits]
            meter.add(torch.zeros((), device=self.device), logits, probe_losses, labels)
        return meter.total(len(self.probes.probes), self.device).probes("_val")

    def checkpoint(self):
        return {
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            "model": with_prefix(self.network.state_dict()),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "probes": with_prefix(self.probes.state_dict()),
            "optimizer_probes": self.optimizer_probes.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state_dict(),
            "settings": self.settings,
            "num_classes": self.num_classes,
            "train_set": self.train_set,
            "train_images": self.train_images,
            "world_size": world_size(),
        }

    def freeze(self, checkpoint, path):
        """Takes the network of a checkpoint and trains nothing but the probes from now on."""
        try:
            self.network.load_state_dict(without_prefix(checkpoint["model"]))
        except (KeyError, RuntimeError) as error:
            raise InputError(f"--logging.folder {path}: not of this network: {one_line(error)}") from None
        self.frozen = True

    def restore(self, checkpoint, path):
        """Goes back to a checkpoint of the same run; InputError names the first setting that is not the same."""
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("settings"), dict):
            raise InputError(f"--logging.folder: {path} was not written by this program; name another folder")
        before, what = checkpoint["settings"], f"{path} was trained with"
        for key, value in self.settings.items():
            if before.get(key) != value and not key.startswith(MAY_DIFFER):
                raise InputError(
                    f"--{key} {value}: {what} {before.get(key)}; use the same, or another --logging.folder"
                )
        images = (checkpoint.get("train_images"), self.train_images)
        others = all(images) and images[0]["digest"] != images[1]["digest"]
        if others or checkpoint.get("train_set") != self.train_set:
            raise InputError(f"--data.train_dataset {self.settings['data.train_dataset']}: {what} other images")
        if checkpoint.get("num_classes") != self.num_classes:
            found = checkpoint.get("num_classes")
            raise InputError(f"--data.val_dataset: {what} {found} classes, not {self.num_classes}")
        if checkpoint.get("world_size") != world_size() and not self.settings["training.eval_only"]:
            raise InputError(
                f"--dist.*: {what} {checkpoint.get('world_size')} processes, and so another global batch; now there "
                f"are {world_size()}: use the same number, or another --logging.folder"
            )
        try:
            self.network.load_state_dict(without_prefix(checkpoint["model"]))
            self.objective.load_state_dict(checkpoint["objective"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.probes.load_state_dict(without_prefix(checkpoint["probes"]))
            self.optimizer_probes.load_state_dict(checkpoint["optimizer_probes"])
            self.scaler.load_state_dict(checkpoint["scaler"])
            self.meter.load_state_dict(checkpoint["meter"], self.device)
            self.epoch, self.steps_done = checkpoint["epoch"], checkpoint["steps_done"]
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = one_line(error)
            raise InputError(
                f"--logging.folder {path}: does not hold the run that it describes ({reason}); put a snapshot "
                "model_ep{E}.pth in its place, or name another folder"
            ) from None


# Below these nothing works. A batch of one has no variance for batch normalization.
LEAST = {
    **{"training.batch_size": 2, "training.epochs": 1, "training.eval_freq": 1, "validation.batch_size": 1},
    **{"resolution.min_res": 16, "resolution.max_res": 16, "validation.resolution": 16, "data.random_seed": 0},
    **{"logging.checkpoint_freq": 1, "logging.snapshot_freq": 1, "training.num_small_crops": 0, "dist.world_size": 0},
}
RAMP = ("min_res", "max_res", "start_ramp", "end_ramp")


def training_views(settings):
    """The published views, with the augment.* settings; the supervised loss needs only the first."""
    strength = settings["augment.jitter"]
    common = dict(
        area=(settings["augment.min_area"], settings["augment.max_area"]),
        **{name: strength * getattr(augment.View, name) for name in ("brightness", "contrast", "saturation", "hue")},
    )
    first = augment.View(blur=bool(settings["augment.blur"]), **common)
    second = augment.View(solarize=settings["augment.solarize"], **common)
    if settings["training.loss"] == "supervised":
        return [first]
    small = augment.View(**{**common, "area": augment.SMALL_VIEW.area}, side=augment.SMALL_VIEW.side)
    return [first, second] + [small] * (
        settings["training.num_small_crops"] if settings["training.loss"] == "dino" else 0
    )


def summary_line(record, epochs):
    left = record["time"] * (epochs - record["epoch"])  # a little more: what validation and saving take
    accuracy = f"probe top-1 {record['top_1_layer0']:.3f}"
    if "top_1_val_layer0" in record:
        accuracy += f" (val {record['top_1_val_layer0']:.3f})"
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4f}, {accuracy}, lr {record['lr']:.2g}, "
        f"{record['images_per_second']:.0f} images/s, {record['time']:.1f} s, about {left / 60:.0f} min left"
    )


def tell(settings, level, text):
    if settings["logging.log_level"] >= level:
        say(text)


if __name__ == "__main__":
    run(main)
