"""Trains one SSL model on a .beton, with a linear probe on every layer.

Reads a YAML file (--config-file) and dotted flags over it; writes into --logging.folder: params.json (all settings),
log (one JSON object per epoch), model.pth (to resume from), model_ep{E}.pth (snapshots after E epochs, for the attack)
and final_weights.pt. Rerun the same command to resume.

    python train_SSL.py --config-file configs/vicreg_cfg.yaml \\
        --data.train_dataset $BETONS_FOLDER/300_per_class_A.beton --data.val_dataset $BETONS_FOLDER/val.beton \\
        --logging.folder $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A
    python train_SSL.py --config-file configs/demo_cfg.yaml \\
        --data.train_dataset demo/seed0/betons/50_per_class_A.beton --data.val_dataset demo/seed0/betons/val.beton \\
        --logging.folder /tmp/simclr_50pc_A
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from dejavu_utils.cli import default_workers, run
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.beton_loader import Batching, EvaluationLoader, NativeLoader
from dejavu_utils.data.ffcv import FfcvLoader
from dejavu_utils.data.provenance import MADE_FROM, Provenance, load_training_images, validation_warnings
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import save_json
from dejavu_utils.log import Progress, RunLog, say
from dejavu_utils.models import network_from_settings
from dejavu_utils.randomness import seed_everything, seed_step
from dejavu_utils.runtime.devices import autocast, choose_precision
from dejavu_utils.runtime.distributed import (
    average_gradients,
    data_parallel,
    from_first,
    rank,
    world_size,
)
from dejavu_utils.runtime.launch import LOCK_FILE, Resources, ScriptJob, submit
from dejavu_utils.runtime.processes import StepWatch, StopSignal, init_distributed, start_here
from dejavu_utils.training.batch_norm import synchronize_batch_norm
from dejavu_utils.training.checkpoint import (
    SAME_OR_ANOTHER,
    TrainingCheckpoint,
    TrainingSet,
    check_room,
    check_same_start,
    not_this_run,
    start_from,
)
from dejavu_utils.training.config import Flat, SettingsParser
from dejavu_utils.training.meter import Meter, Probes
from dejavu_utils.training.methods import METHODS
from dejavu_utils.training.methods.method import ViewsForward
from dejavu_utils.training.optim import learning_rate, make_optimizer, resolution_at
from dejavu_utils.training.settings import WITHOUT_EFFECT, Settings, check_settings, first_difference

Loader = NativeLoader | FfcvLoader
Record = dict[str, float]  # a line of the log


def main() -> None:
    values, notices = read_settings()
    settings = Settings.from_flat(values)
    for notice in notices:
        print(f"note: {notice}")
    check_settings(settings)
    work = ScriptJob(train, settings, lock_of(settings))
    if not settings.dist.use_submitit:
        gpus = min(settings.dist.ngpus, torch.cuda.device_count())
        return start_here(work, settings.dist.world_size or max(1, gpus))
    resources = Resources.of(settings.dist, settings.dist.cpus_per_task)
    number = submit(work, settings.logging.folder, resources, "--dist.use_submitit 0", "submitit")
    params = Path(settings.logging.folder) / "params.json"
    if not params.exists():  # tells what is submitted next which snapshots there will be
        save_json(params, settings.to_flat())
    print(number)


def read_settings(argv: Sequence[str] | None = None) -> tuple[Flat, list[str]]:
    """({"section.name": value}, notices) from the command line and the YAML file that it names."""
    parser = SettingsParser(Settings, WITHOUT_EFFECT, description=__doc__)
    values, notices = parser.read(argv)
    if not parser.config_file:
        loss, arch, epochs = (values[key] for key in ("training.loss", "model.arch", "training.epochs"))
        notices.append(f"no --config-file: trains {loss} on {arch} for {epochs} epochs, by flags and defaults")
    return values, notices


def lock_of(settings: Settings) -> tuple[Path, str] | None:
    """The lock file of what this run writes and the flag that names its folder; None for a run that only reads."""
    if settings.training.eval_only:
        return None
    name = f".lock_probes_{settings.data.random_seed}" if settings.training.train_probes_only else LOCK_FILE
    return Path(settings.logging.folder) / name, "--logging.folder"


def train(settings: Settings) -> None:
    device = init_distributed(settings.dist.port, gpu=0 if settings.dist.ngpus else None)
    first = rank() == 0
    folder = Path(settings.logging.folder)
    folder.mkdir(parents=True, exist_ok=True)
    train_set = Beton(settings.data.train_dataset, in_memory=bool(settings.data.in_memory))
    val_set = Beton(settings.data.val_dataset, in_memory=bool(settings.data.in_memory))
    num_classes = max(train_set.num_classes, val_set.num_classes)
    seed_everything(settings.data.random_seed)
    loader = make_loader(settings, train_set, device)
    own = batching(settings, settings.validation.batch_size, device)
    validation = EvaluationLoader(val_set, own, settings.validation.resolution)
    digest = from_first(train_set.digest if first else "")
    images, notes = load_training_images(train_set, digest)
    for note in notes + validation_warnings(images, val_set):
        tell(settings, 1, note)
    state = TrainingRun(settings, num_classes, device, len(loader), TrainingSet(train_set, digest, images))
    checkpoint_path, log = folder / "model.pth", RunLog(folder / "log", "epoch")
    if settings.training.train_probes_only:
        return train_probes(state, loader, validation)
    checkpoint = TrainingCheckpoint.agreed(checkpoint_path)
    if checkpoint:
        state.restore(checkpoint, checkpoint_path)
        tell(settings, 1, f"resumes after epoch {state.epoch}, step {state.steps_done}, from {checkpoint_path}")
    elif settings.training.eval_only:
        raise InputError(f"--training.eval_only 1: there is no {checkpoint_path} to evaluate")
    if settings.training.eval_only:
        accuracies = state.validate(validation) or {}
        return tell(settings, 0, json.dumps({"epoch": state.epoch, **accuracies}))
    if first:
        check_room(state.checkpoint(), settings)
        save_json(folder / "params.json", {**settings.to_flat(), MADE_FROM: state.record.plain()})
        log.trim(state.epoch)
    effective = settings.training.batch_size * world_size()
    tell(
        settings,
        1,
        f"{len(train_set)} images, {num_classes} classes, {len(loader)} steps of {effective} images per epoch "
        f"({world_size()} processes), on {device} in {state.precision}, {type(loader).__name__}",
    )
    epochs, watch = settings.training.epochs, state.watch()
    while state.epoch < epochs:
        record = state.train_epoch(loader, validation, watch)
        if record is None:
            save_and_leave(state, watch)
        state.end_epoch()
        last = state.epoch == epochs
        snapshot = state.epoch % settings.logging.snapshot_freq == 0 or last
        if first and snapshot:
            state.checkpoint().snapshot().save(folder / f"model_ep{state.epoch}.pth")
        if first:
            log.append(record)
        if first and (snapshot or state.epoch % settings.logging.checkpoint_freq == 0):
            state.checkpoint().save(checkpoint_path)
        tell(settings, 1, summary_line(record, epochs))
        if not last and watch.stop.asked(device):
            save_and_leave(state, watch)
    if first:
        save_checkpoint(folder / "final_weights.pt", with_prefix(state.network.state_dict()))
    tell(settings, 1, f"{folder}: {epochs} epochs are done")


def save_and_leave(state: "TrainingRun", watch: StepWatch) -> NoReturn:
    """Saves the place in the epoch, too, and ends this process when all have come to this place."""
    state.meter.average()
    if rank() == 0:
        state.checkpoint().save(Path(state.settings.logging.folder) / "model.pth")
    watch.leave(f"epoch {state.epoch}, step {state.steps_done}")


def train_probes(state: "TrainingRun", loader: Loader, validation: EvaluationLoader) -> None:
    """Trains new probes on the frozen network of model.pth and saves them beside it."""
    settings, watch = state.settings, state.watch()
    folder, seed = Path(settings.logging.folder), settings.data.random_seed
    state.freeze(load_checkpoint(folder / "model.pth", "--logging.folder"), folder / "model.pth")
    log = RunLog(folder / f"log_probes_{seed}", "epoch")
    if rank() == 0:
        log.trim(0)
    while state.epoch < settings.training.epochs:
        record = state.train_epoch(loader, validation, watch)
        if record is None:
            watch.stop.leave("stopped; probes are trained in minutes: the next run starts again")
        state.end_epoch()
        if rank() == 0:
            log.append(record)
        tell(settings, 1, summary_line(record, settings.training.epochs))
    if rank() == 0:
        saved = {"epoch": state.epoch, "probes": with_prefix(state.probes.state_dict()), "settings": settings.to_flat()}
        save_checkpoint(folder / f"probes_{seed}.pth", {**saved, "num_classes": state.num_classes})


def make_loader(settings: Settings, train_set: Beton, device: torch.device) -> Loader:
    kind = FfcvLoader if settings.data.loader == "ffcv" else NativeLoader
    own = batching(settings, settings.training.batch_size, device)
    views = METHODS[settings.training.loss].views(settings)
    try:
        return kind(train_set, own, views, settings.data.random_seed)
    except ValueError as error:
        raise InputError(f"--training.batch_size, --data.train_dataset {train_set.path}: {error}") from None


def batching(settings: Settings, batch_size: int, device: torch.device) -> Batching:
    return Batching(batch_size, default_workers(settings.data.num_workers), device, rank(), world_size())


class TrainingRun:
    """Everything that changes while a model is trained: network, teacher, probes, optimizers, place in the data."""

    def __init__(
        self,
        settings: Settings,
        num_classes: int,
        device: torch.device,
        steps_per_epoch: int,
        train_set: TrainingSet | None = None,
    ) -> None:
        self.settings, self.num_classes, self.device = settings, num_classes, device
        self.train_set = train_set or TrainingSet()
        self.epoch = self.steps_done = 0  # whole epochs, and steps of the one under way
        self.frozen = False
        self.meter, self.started = Meter(), time.time()
        self.schedule: dict[str, Any] = dict(
            total_steps=settings.training.epochs * steps_per_epoch,
            warmup_steps=settings.training.warmup_epochs * steps_per_epoch,
            base_lr=settings.training.base_lr,
            batch_size=settings.training.batch_size * world_size(),
            end_lr_ratio=settings.training.end_lr_ratio,
        )
        method = METHODS[settings.training.loss]
        network = network_from_settings(settings.model, settings.training.loss, num_classes)
        start = start_from(settings.model, network) if settings.model.weights else None
        network.to(device)
        self.record = Provenance(models=start, beton=self.train_set.digest)
        for name, part in list(network.named_children()):
            if name not in method.sees_all:
                setattr(network, name, synchronize_batch_norm(part, device))
        if device.type == "cuda":
            network.to(memory_format=torch.channels_last)
            torch.backends.cudnn.benchmark = True  # shapes repeat
        self.network = network
        self.method = method(settings, network, self.schedule["total_steps"])
        self.probes = Probes(network.layer_widths(), num_classes).to(device)
        self.optimizer = make_optimizer(
            settings.training.optimizer,
            network,
            settings.training.momentum,
            settings.training.weight_decay,
        )
        self.optimizer_probes = torch.optim.AdamW(self.probes.parameters(), lr=1e-4, fused=True)
        self.precision = choose_precision(settings.training.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.forward: Any = data_parallel(ViewsForward(network, method.embedding), device)
        if settings.training.compile:  # around it, so that exchanges are cut in where gradients are ready
            self.forward = torch.compile(self.forward)

    def watch(self) -> StepWatch:
        """Notes from now on that the run is asked to stop: to be called when there is something to save."""
        remedy = "a smaller --training.base_lr or --training.precision fp32"
        return StepWatch(StopSignal(), self.device, remedy)

    def train_epoch(self, loader: Loader, validation: EvaluationLoader, watch: StepWatch) -> Record | None:
        """The rest of one pass over the training set, and the validation if it is due; returns the record for the log,
        or None if asked to stop: a later run then goes on, or validates."""
        settings, start, first_step = self.settings, time.time(), self.steps_done
        ramp = settings.resolution
        resolution = resolution_at(self.epoch, ramp.min_res, ramp.max_res, ramp.start_ramp, ramp.end_ramp)
        self.network.train(not self.frozen)
        quiet = settings.logging.log_level < 2 or rank() > 0
        with Progress(len(loader), f"steps of epoch {self.epoch + 1}", quiet=quiet) as progress:
            for views, labels in loader.epoch(self.epoch, resolution, first_step):
                step = self.epoch * len(loader) + self.steps_done
                rate = learning_rate(step, **self.schedule)
                # What a backbone draws (dropout) is the same in a resumed run.
                seed_step(settings.data.random_seed, step, rank(), world_size())
                loss = self.step(views, labels, rate, step)
                self.steps_done += 1
                watch.step(self.place(), loss)
                progress.update()
                if watch.asked and self.steps_done < len(loader):
                    watch.finish(self.place())
                    return None
            watch.finish(self.place())
        seconds, images = time.time() - start, (self.steps_done - first_step) * self.schedule["batch_size"]
        number = self.epoch + 1
        record = {
            "timestamp": time.time(),
            "relative_time": time.time() - self.started,
            "epoch": number,
            **self.meter.result(),
            "time": seconds,
            "images_per_second": images / max(seconds, 1e-9),
            "lr": learning_rate(number * len(loader) - 1, **self.schedule),
            "resolution": resolution,
        }
        if number % settings.training.eval_freq and number < settings.training.epochs:
            return record
        accuracies = self.validate(validation, watch.stop)
        return None if accuracies is None else {**record, **accuracies}

    def place(self) -> str:
        """Where the run is, in words."""
        return f"at epoch {self.epoch + 1}, step {self.steps_done}"

    def end_epoch(self) -> None:
        """The next step is the first of a new epoch."""
        self.epoch, self.steps_done, self.meter = self.epoch + 1, 0, Meter()

    def step(self, views: list[Tensor], labels: Tensor, rate: float, step: int) -> Tensor:
        """One update of the network, its teacher and the probes; returns the loss, a scalar on the device."""
        with autocast(self.device, self.precision):
            if self.frozen:
                with torch.no_grad():
                    outputs, loss = self.network(views[0]), torch.zeros((), device=self.device)
            else:
                outputs, embeddings = self.forward(views)
                loss = self.method.loss(embeddings, views, labels, self.epoch)
        logits = self.probes(outputs)
        if not self.frozen:
            self.update_network(loss, rate, step)
        probe_losses = [F.cross_entropy(z, labels) for z in logits]
        self.optimizer_probes.zero_grad(set_to_none=True)
        torch.stack(probe_losses).sum().backward()
        average_gradients(list(self.probes.parameters()))
        self.optimizer_probes.step()
        self.meter.add(loss, logits, probe_losses, labels)
        return loss.detach()

    def update_network(self, loss: Tensor, rate: float, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.settings.training.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.training.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(step)

    @torch.no_grad()
    def validate(self, validation: EvaluationLoader, stop: StopSignal | None = None) -> Record | None:
        """The probes' accuracy, the record's `_val` entries; None if asked to stop. The processes share the images."""
        meter = Meter()
        self.network.eval()
        for number, (images, labels) in enumerate(validation):
            if stop and number < validation.in_all and stop.asked(self.device):
                return None
            with autocast(self.device, self.precision):
                outputs = self.network(images)
            logits = self.probes(outputs)
            probe_losses = [F.cross_entropy(z, labels) for z in logits]
            meter.add(torch.zeros((), device=self.device), logits, probe_losses, labels)
        return meter.total(len(self.probes.probes), self.device).probes("_val")

    def checkpoint(self) -> TrainingCheckpoint:
        images = self.train_set.images
        return TrainingCheckpoint(
            epoch=self.epoch,
            steps_done=self.steps_done,
            model=with_prefix(self.network.state_dict()),
            objective=self.method.state_dict(),
            optimizer=self.optimizer.state_dict(),
            probes=with_prefix(self.probes.state_dict()),
            optimizer_probes=self.optimizer_probes.state_dict(),
            scaler=self.scaler.state_dict(),
            meter=self.meter.state_dict(),
            settings=self.settings.to_flat(),
            num_classes=self.num_classes,
            train_set=self.train_set.fingerprint,
            world_size=world_size(),
            train_images=images.plain() if images else None,
            made_from=self.record.plain(),
        )

    def freeze(self, checkpoint: dict, path: Path) -> None:
        """Takes the network of a checkpoint and trains nothing but the probes from now on."""
        try:
            self.network.load_state_dict(without_prefix(checkpoint["model"]))
        except (KeyError, RuntimeError) as error:
            raise InputError(f"--logging.folder {path}: not of this network: {one_line(error)}") from None
        self.frozen = True

    def restore(self, checkpoint: TrainingCheckpoint, path: Path) -> None:
        """Goes back to a TrainingCheckpoint of the same run; InputError names the first setting that differs."""
        what = f"{path} was trained with"
        difference = first_difference(Settings.from_flat(checkpoint.settings), self.settings)
        if difference:
            key, before, now = difference
            remedy = SAME_OR_ANOTHER
            if key == "training.epochs":
                remedy += "; the learning rate ends with the last epoch, so that no run can be extended"
            raise InputError(f"--{key} {now}: {what} {before}; {remedy}")
        for note in check_same_start(checkpoint, self.train_set, self.record, self.settings, path):
            tell(self.settings, 1, f"note: {note}")
        if checkpoint.num_classes != self.num_classes:
            raise InputError(f"--data.val_dataset: {what} {checkpoint.num_classes} classes, not {self.num_classes}")
        if checkpoint.world_size != world_size() and not self.settings.training.eval_only:
            raise InputError(
                f"--dist.*: {what} {checkpoint.world_size} processes, and so another global batch; now there "
                f"are {world_size()}: use the same number, or another --logging.folder"
            )
        if not checkpoint.optimizer:
            raise not_this_run("--logging.folder", path, "it is a snapshot; model.pth alone has the optimizer's state")
        self.load(checkpoint, path)

    def load(self, checkpoint: TrainingCheckpoint, path: Path) -> None:
        """Takes over all that changes while training."""
        try:
            self.network.load_state_dict(without_prefix(checkpoint.model))
            self.method.load_state_dict(checkpoint.objective)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.probes.load_state_dict(without_prefix(checkpoint.probes))
            self.optimizer_probes.load_state_dict(checkpoint.optimizer_probes)
            if checkpoint.scaler:  # else the run was not in fp16 there: "auto" goes by the GPU
                self.scaler.load_state_dict(checkpoint.scaler)
            self.meter.load_state_dict(checkpoint.meter, self.device)
            self.epoch, self.steps_done = checkpoint.epoch, checkpoint.steps_done
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise not_this_run("--logging.folder", path, one_line(error)) from None


def summary_line(record: Record, epochs: int) -> str:
    left = record["time"] * (epochs - record["epoch"])  # a little more: what validation and saving take
    accuracy = f"probe top-1 {record['top_1_layer0']:.3f}"
    if "top_1_val_layer0" in record:
        accuracy += f" (val {record['top_1_val_layer0']:.3f})"
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4f}, {accuracy}, lr {record['lr']:.2g}, "
        f"{record['images_per_second']:.0f} images/s, {record['time']:.1f} s, about {left / 60:.0f} min left"
    )


def tell(settings: Settings, level: int, text: str) -> None:
    if settings.logging.log_level >= level:
        say(text)


if __name__ == "__main__":
    run(main)
