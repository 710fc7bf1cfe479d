"""Trains RCDM: a diffusion model of images that is conditioned on an SSL model's representation of them.

Reads a checkpoint of train_SSL.py (the encoder), an image folder and an index file of public images. Writes into
--out_dir, every --save_interval steps and at the end: model{step}.pt and ema_{rate}_{step}.pt (state dicts of the
U-Net), opt{step}.pt (optimizer, and what resuming needs beside it), samples{step}.png (public images, and below each
samples from its representation, always from the same noise); params.json (all settings), train.images.npz (which images
it was trained on) and log (one JSON object every --log_interval steps). Rerun the same command to resume from the last
complete step.

    python train_RCDM.py --feat_cond --ssl_from_ckpt True --data_dir $IMAGENET_DATASET_DIR --batch_size 8 \\
        --ssl_model_pth $LOGGING_FOLDER/vicreg/vicreg_dssweep_300pc_A/model_ep1000.pth \\
        --dataset_indices $INDEX_FOLDER/500_per_class/public.npy \\
        --out_dir $LOGGING_FOLDER/RCDM/vicreg/rcdm_vicreg_1000ep_300pc_A --nodes 4 --ngpus 8 --image_size 128 \\
        --num_channels 256 --attention_resolutions 32,16,8 --resblock_updown True --learn_sigma True --use_fp16 True
    python train_RCDM.py --local 1 --feat_cond --data_dir demo/seed0/data/images --out_dir /tmp/rcdm \\
        --ssl_model_pth demo/seed0/simclr_300epochs/simclr_dssweep_50pc_A/model_ep300.pth \\
        --dataset_indices demo/seed0/index/50_per_class/public.npy --ssl_resolution 32 --image_size 32 \\
        --num_channels 32 --channel_mult 1,2,4 --num_res_blocks 1 --attention_resolutions 8 --learn_sigma True \\
        --batch_size 32 --lr 1e-3 --ema_rate 0.995 --lr_anneal_steps 1000 --save_interval 500
"""

from dejavu_utils.finished import leave_if_finished

if __name__ == "__main__":  # before torch is imported, which takes seconds
    leave_if_finished()

import math
import time
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dejavu_utils.checkpoint import load_checkpoint, save_checkpoint
from dejavu_utils.cli import (
    Parser,
    add_flags,
    add_launch_flags,
    add_paths,
    existing_file,
    existing_folder,
    expanded,
    non_negative_int,
    positive_int,
    run,
    zero_or_one,
)
from dejavu_utils.data.image_dataset import EachTransform, IndexedImages, evaluation_transform
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.data.provenance import MADE_FROM, save_training_images
from dejavu_utils.data.workers import batches, without_unreadable
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.files import save_json
from dejavu_utils.imagenet import ImageListing, list_images
from dejavu_utils.log import RunLog, say
from dejavu_utils.models import LOSSES
from dejavu_utils.networks.inference import check_layers
from dejavu_utils.networks.loading import ARCH_HELP, existing_model, resolved
from dejavu_utils.randomness import seed_everything, seed_step
from dejavu_utils.reconstruction import diffusion, unets
from dejavu_utils.reconstruction.pictures import image_transform, save_grid
from dejavu_utils.reconstruction.training import (
    TRAINED_ON,
    Batches,
    Encoder,
    Job,
    StepFiles,
    add_model_flags,
    check_resumed,
    check_room,
    record_of,
    shared_samples,
    update_averages,
)
from dejavu_utils.runtime.devices import PRECISIONS, autocast, choose_precision, to_device
from dejavu_utils.runtime.distributed import (
    agreed,
    any_process,
    data_parallel,
    gather,
    rank,
    sum_over_processes,
    wait_for_all,
    world_size,
)
from dejavu_utils.runtime.launch import Resources, init_from_args, launch
from dejavu_utils.runtime.processes import StepWatch, StopSignal

RESUMED = "--out_dir or --resume_checkpoint"
GRID_COLUMNS, GRID_SAMPLES = 8, 2  # of samples{step}.png


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_paths(parser, {"--out_dir": "where everything is written"})
    group = parser.add_argument_group("encoder")
    add_paths(group, {"--ssl_model_pth": "checkpoint of train_SSL.py, a public one, or timm:NAME"})
    known = {
        "--ssl_loss": (None, LOSSES, "must match the checkpoint if given: training objective"),
        "--ssl_arch": (None, str, ARCH_HELP),
        "--mlp": (None, str, "must match the checkpoint if given: widths of the projector"),
    }
    add_flags(group, known)
    group.add_argument("--feat_cond", action="store_true", help="condition on the representation; always needed")
    logits = "1: the representation is a supervised model's logits; 0: backbone and projector side by side"
    shown = {
        "--ssl_from_ckpt": (1, zero_or_one, "the encoder is --ssl_model_pth; always 1"),
        "--use_supervised_activations": (0, zero_or_one, logits),
        "--ssl_resolution": (None, positive_int, "side of the encoder's input, pixels; default: its own"),
    }
    add_flags(group, shown)
    group = parser.add_argument_group("data")
    images = {
        "--data_dir": "image folder, CLASS/ID.JPEG",
        "--dataset_indices": ".npy of the images to train on: the public set",
    }
    add_paths(group, images)
    skipped = "leave out images that cannot be read, and count them"
    group.add_argument("--skip_unreadable", action="store_true", help=skipped)
    add_flags(group, {"--workers": (8, non_negative_int, "processes that read images")})
    group = parser.add_argument_group("model and diffusion")
    add_flags(group, {"--backend": ("auto", ("auto", *unets.BACKENDS), "auto: rcdm if installed")})
    add_model_flags(group)
    respacing = 'steps of the sample grids: 100, ddim50, ...; auto: 100, or all if --diffusion_steps are fewer; "": all'
    diffused = {
        "--class_cond": (0, zero_or_one, "always False: the label must not be an input"),
        "--timestep_respacing": ("auto", str, respacing),
    }
    add_flags(group, diffused)
    auto = "auto: with --use_fp16 True bf16 on GPUs that have it, else fp16; fp32 without it and on CPUs"
    training = {
        "--batch_size": (1, positive_int, "images per process and step"),
        "--microbatch": (-1, int, "images at once, to save memory; -1 = batch_size"),
        "--lr": (1e-4, float, "learning rate of AdamW"),
        "--weight_decay": (0.0, float, "weight decay of AdamW"),
        "--lr_anneal_steps": (0, non_negative_int, "steps in all, lr falls to 0; 0 = no end"),
        "--ema_rate": ("0.9999", str, "averages of the weights, for instance 0.999,0.9999"),
        "--schedule_sampler": ("uniform", tuple(diffusion.STEP_SAMPLERS), "draws the steps"),
        "--use_fp16": (0, zero_or_one, "mixed precision, where there is a GPU"),
        "--precision": ("auto", PRECISIONS, auto),
        "--fp16_scale_growth": (1e-3, float, "growth of log2(loss scale) per step"),
        "--log_interval": (10, positive_int, "steps between two lines of the log"),
        "--save_interval": (10000, positive_int, "steps between two checkpoints"),
        "--resume_checkpoint": ("", expanded, "model{step}.pt to start from, if --out_dir is not further"),
        "--seed": (0, non_negative_int, "seed of weights, order of images, steps and noise"),
    }
    add_flags(parser.add_argument_group("training"), training)
    group = add_launch_flags(parser, timeout=2800, mem_gb=0, ngpus=8, nodes=2)
    launched = {
        "--comment": ("", str, "SLURM comment"),
        "--port": (0, non_negative_int, "where a job's processes meet; 0: by its number"),
    }
    add_flags(group, launched)
    group = parser.add_argument_group("accepted without effect")
    group.add_argument("--use_head", action="store_true")
    group.add_argument("--no_shared", action="store_true")
    group.add_argument("--type_model", default="")
    args = parser.parse_args(argv)
    if args.timestep_respacing == "auto":
        args.timestep_respacing = "100" if args.diffusion_steps >= 100 else ""
    return args


def main() -> None:
    args = parse_args()
    check_args(args)
    resources = Resources.of(args, args.workers + 2)
    launch(train, (Job.of(args), resources), resources, (args.out_dir, "--out_dir"), "submitit")


def check_args(args: Namespace) -> None:
    """Raises an InputError for what cannot work, before anything is read or submitted."""
    existing_model(args.ssl_model_pth, "--ssl_model_pth", args)
    existing_folder(args.data_dir, "--data_dir")
    existing_file(args.dataset_indices, "--dataset_indices")
    if args.resume_checkpoint:
        existing_file(args.resume_checkpoint, "--resume_checkpoint")
    if not args.feat_cond:
        raise InputError("--feat_cond is needed: the model reconstructs from a representation")
    if not args.ssl_from_ckpt:
        raise InputError("--ssl_from_ckpt False: the encoder is that of --ssl_model_pth; leave the flag out")
    if args.class_cond:
        raise InputError("--class_cond True: a model that is told the label would not show what a representation holds")
    if not 32 <= args.image_size <= 256:
        raise InputError(f"--image_size {args.image_size}: must be 32 to 256")
    if not 0 < args.lr < math.inf or not 0 <= args.weight_decay < math.inf or not 0 <= args.dropout < 1:
        raise InputError("--lr must be positive, --weight_decay not negative, --dropout at least 0 and below 1")
    unets.attention_levels(vars(args))
    try:
        diffusion.kept_steps(args.diffusion_steps, args.timestep_respacing)
    except ValueError as error:
        raise InputError(f"--timestep_respacing {args.timestep_respacing}: {error}") from None


def train(given: tuple[Job, Resources]) -> None:
    job, resources = given
    device = init_from_args(resources, job.port)
    stop = StopSignal()
    listing = list_images(job.data_dir, "--data_dir")
    indices = load_indices(job.dataset_indices, "--dataset_indices", listing, may_be_empty=False)
    encoder = load_encoder(job, device)
    if job.skip_unreadable:
        count = len(indices)
        indices = without_unreadable(listing, indices, device, job.workers, flag="--workers")
        say(f"{count - len(indices)} of {count} images cannot be read and are left out")
    for_encoder = evaluation_transform(preprocessing=encoder.network.preprocessing)
    dataset = IndexedImages(listing, indices, EachTransform(image_transform(job.image_size), for_encoder))
    spread = np.linspace(0, len(indices) - 1, GRID_COLUMNS).round().astype(int)  # over the classes
    shown, shown_to_encoder = next(batches(dataset, [spread]))[0]  # in the grids
    seed_everything(job.seed)
    state = RcdmRun(job, encoder, listing, indices, device)
    for warning in encoder.trained_on(listing, indices):
        say(f"warning: --dataset_indices {job.dataset_indices}: {warning}")
    state.resume()
    if rank() == 0:
        state.files.refuse_others(state.step, "--out_dir")
        check_room(job, state.unet, state.step)
        save_json(Path(job.out_dir) / "params.json", {**state.settings, MADE_FROM: state.record.plain()})
        save_training_images(Path(job.out_dir) / TRAINED_ON, indices, listing)
        state.log_file.trim(state.step)
    weights = sum(parameter.numel() for parameter in state.unet.parameters())
    say(
        f"{len(indices)} images, {job.batch_size * world_size()} per step ({world_size()} processes), "
        f"{job.settings['backend']} U-Net of {weights / 1e6:.2f} million weights on {device} in {state.precision}, "
        f"representation: {' and '.join(encoder.layers)}, {encoder.width} wide"
    )
    watch = StepWatch(stop, device, "a smaller --lr or --precision fp32")
    if state.lacks_samples() and not state.save_samples(shown, shown_to_encoder, stop):
        watch.leave(f"step {state.step}")
    positions = Batches(len(indices), job.batch_size, job.seed, state.step)
    read = batches(dataset, positions, job.workers, device, flag="--workers")
    for (images, encoder_images), _ in read if not job.is_last(state.step) else ():
        state.train_step(images.to(device, non_blocking=True), encoder_images.to(device, non_blocking=True))
        watch.step(f"at step {state.step}", state.last_loss)
        saves = job.due(state.step, job.save_interval)
        if watch.asked or saves:
            watch.finish(f"at step {state.step}")
        if watch.asked or job.due(state.step, job.log_interval):
            state.log()
        leaving = watch.asked
        if saves or leaving:
            state.save()
            leaving = leaving or not state.save_samples(shown, shown_to_encoder, stop)
        if leaving:
            watch.leave(f"step {state.step}")
        if job.is_last(state.step):
            break
    say(f"{state.step} steps are done")
    wait_for_all()


def load_encoder(job: Job, device: torch.device) -> Encoder:
    """The Encoder of --ssl_model_pth."""
    network = job.encoder.load()
    if job.use_supervised_activations and network.loss != "supervised":
        raise InputError(f"--use_supervised_activations 1: {network.source} has no supervised head; give 0")
    layers = ["backbone", *(["projector"] if network.has_projector else [])]
    layers = ["logits"] if job.use_supervised_activations else layers
    check_layers(network, layers)
    return Encoder(network, layers, device)


def copies(network: torch.nn.Module) -> dict[str, Tensor]:
    """{name: copy} of a network's weights."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


class RcdmRun:
    """Everything that changes while the model is trained: weights, their averages, optimizer, step."""

    def __init__(
        self, job: Job, encoder: Encoder, listing: ImageListing, indices: np.ndarray, device: torch.device
    ) -> None:
        self.job, self.encoder, self.device, self.step = job, encoder, device, 0
        self.files = StepFiles(job.out_dir)
        self.log_file = RunLog(self.files.folder / "log", "step")
        self.settings = {
            **job.settings,
            "ssl_resolution": encoder.network.preprocessing.side,
            "layers": encoder.layers,
            "width": encoder.width,
            "pixel_range": list(diffusion.PIXEL_RANGE),
            "processes": world_size(),
            "images": [listing.fingerprint["sha256"], len(indices), int(indices.sum())],
            "ssl_model_pth": resolved(job.encoder.path),
        }
        auto = "auto" if job.use_fp16 else "fp32"
        self.precision = choose_precision(auto if job.precision == "auto" else job.precision, device)
        self.record = record_of(encoder, listing, indices, self.settings)
        self.unet = unets.build_unet(self.settings["backend"], self.settings, encoder.width).to(device)
        self.ema = {rate: copies(self.unet) for rate in job.ema_rates}
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=job.lr, weight_decay=job.weight_decay, fused=True)
        self.skipped = None  # in fp16 a scalar on the device: 1 if the last gradients were not finite
        self.optimizer.register_step_post_hook(self.note_skipped)
        # Guided diffusion's loss scale: from 2^20, log2 grows by fp16_scale_growth a step and falls by 1 on overflow.
        self.scaler = torch.amp.GradScaler(
            device.type,
            init_scale=2.0**20,
            growth_factor=2.0**job.fp16_scale_growth,
            growth_interval=1,
            enabled=self.precision == "fp16",
        )
        self.diffusion = diffusion.Diffusion(job.settings)
        self.step_sampler = diffusion.STEP_SAMPLERS[job.schedule_sampler](len(self.diffusion), device)
        self.forward: Any = data_parallel(diffusion.Losses(self.unet, self.diffusion), device)
        self.last_loss: float | Tensor = 0.0
        self.sums, self.since = {}, (0, time.time())

    def note_skipped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.skipped = getattr(optimizer, "found_inf", None)

    def train_step(self, images: Tensor, encoder_images: Tensor) -> None:
        """One update from images in PIXEL_RANGE, float (n, 3, s, s), and the same as the encoder sees them."""
        job, n = self.job, len(images)
        seed_step(job.seed, self.step, rank(), world_size())
        t, weights = self.step_sampler.sample(n)
        noise = to_device(torch.randn(images.shape), self.device)
        with autocast(self.device, self.precision):
            representations = self.encoder(encoder_images)
        rate = job.lr * (1 - self.step / job.lr_anneal_steps) if job.lr_anneal_steps else job.lr
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        size = job.microbatch if job.microbatch > 0 else n
        parts = []
        for start in range(0, n, size):
            rows = slice(start, start + size)
            waiting = world_size() > 1 and start + size < n
            with self.forward.no_sync() if waiting else nullcontext():
                with autocast(self.device, self.precision):
                    losses = self.forward(images[rows], t[rows], noise[rows], representations[rows])
                self.scaler.scale((losses["loss"] * weights[rows]).sum() / n).backward()
            parts.append({name: values.detach() for name, values in losses.items()})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        update_averages(self.ema, self.unet, self.skipped)
        self.step += 1
        losses = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        of_all = gather(torch.stack([t.float(), losses["loss"]], dim=1))
        self.step_sampler.update(of_all[:, 0].long(), of_all[:, 1])
        for name, values in losses.items():
            self.sums[name] = self.sums.get(name, 0) + (values * weights).mean().double()
        self.last_loss = losses["loss"].mean()

    def log(self) -> None:
        """One line for the log and for the screen: means since the last one, over all processes."""
        since_step, since_time = self.since
        steps = self.step - since_step
        names = list(self.sums)
        means = sum_over_processes(torch.stack([self.sums[name] for name in names]) / (steps * world_size())).tolist()
        record = {
            "timestamp": time.time(),
            "step": self.step,
            **dict(zip(names, means)),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": steps * self.job.batch_size * world_size() / max(time.time() - since_time, 1e-9),
        }
        self.sums, self.since = {}, (self.step, time.time())
        if rank() == 0:
            self.log_file.append(record)
        total = f"/{self.job.lr_anneal_steps}" if self.job.lr_anneal_steps else ""
        losses = ", ".join(f"{name} {record[name]:.4f}" for name in names)
        say(f"step {self.step}{total}: {losses}, {record['images_per_second']:.1f} images/s")

    def save(self) -> None:
        """Writes the files of this step; opt{step}.pt last, so that a step that has it is complete."""
        if rank() == 0:
            save_checkpoint(self.files.model(self.step), self.unet.state_dict())
            for rate, average in self.ema.items():
                save_checkpoint(self.files.average(rate, self.step), average)
            training = {
                "settings": self.settings,
                MADE_FROM: self.record.plain(),
                "scaler": self.scaler.state_dict(),
                "step_sampler": self.step_sampler.state_dict(),
            }
            # The optimizer's own keys stay where the package looks for them; it ignores one more.
            state = {**self.optimizer.state_dict(), "training": training}
            save_checkpoint(self.files.optimizer(self.step), state)
        wait_for_all()

    def lacks_samples(self) -> bool:
        """Did the run end after this step was saved, but before its sample grid was?"""
        due = self.step > 0 and self.job.due(self.step, self.job.save_interval)
        ours = due and self.files.optimizer(self.step).is_file()
        return any_process(rank() == 0 and ours and not self.files.samples(self.step).is_file(), self.device)

    def save_samples(self, images: Tensor, encoder_images: Tensor, stop: StopSignal) -> bool:
        """samples{step}.png: images, and below each two samples from its representation by the first average.

        The processes share the samples. False, and no file, if one of them was asked to stop meanwhile.
        """
        weights = copies(self.unet)
        self.unet.load_state_dict(self.ema[self.job.ema_rates[0]])
        self.unet.eval()
        sampler = diffusion.Diffusion(self.settings, self.job.timestep_respacing)
        with torch.no_grad(), autocast(self.device, self.precision):
            representations = self.encoder(encoder_images.to(self.device)).repeat(GRID_SAMPLES, 1)
            samples = shared_samples(sampler, self.unet, representations, self.job.image_size, stop)
        self.unet.load_state_dict(weights)
        self.unet.train()
        if samples is not None and rank() == 0:
            save_grid(self.files.samples(self.step), torch.cat([images, samples]), len(images))
        wait_for_all()
        return samples is not None

    def resume(self) -> None:
        """Resumes from the last complete step in --out_dir, or from --resume_checkpoint if that is further."""
        given = Path(self.job.resume_checkpoint) if self.job.resume_checkpoint else None
        rates, out_dir = self.job.ema_rates, f"--out_dir {self.files.folder}"
        step = agreed(lambda: self.files.last_complete(rates, "--ema_rate"), str, out_dir)
        if given is not None and (step is None or StepFiles.step_of(given) > step):
            step, model_path = StepFiles.step_of(given), given
        elif step is not None:
            model_path = self.files.model(step)
        else:
            return
        folder, source = model_path.parent, f"{model_path} (of {RESUMED})"
        files = StepFiles(folder)
        opt_path = files.optimizer(step)
        saved = load_checkpoint(opt_path, RESUMED) if opt_path.is_file() else {}
        training = saved.pop("training", None)
        if training and folder.resolve() == self.files.folder.resolve():
            for note in check_resumed(self.record, training, folder, self.settings):
                say(f"note: {note}")
        try:
            weights = load_checkpoint(model_path, RESUMED)
            self.unet.load_state_dict(weights)
            for rate in rates:
                path = files.average(rate, step)
                if not path.is_file():
                    say(f"note: there is no {path}; this average starts from the weights of {model_path}")
                for name, value in (load_checkpoint(path, RESUMED) if path.is_file() else weights).items():
                    self.ema[rate][name].copy_(value)
            if saved:
                for group in saved["param_groups"]:
                    group["fused"] = True  # also where RCDM's package wrote it; fp16's scaler counts on it
                self.optimizer.load_state_dict(saved)
        except (KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{source}: not of this U-Net and optimizer: {one_line(error)}") from None
        if not saved:
            say(f"note: there is no {opt_path}; the optimizer has no state yet")
        if training and training["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(training["scaler"])
        if training and training["settings"]["schedule_sampler"] == self.job.schedule_sampler:
            self.step_sampler.load_state_dict(training["step_sampler"])
        self.step, self.since = step, (step, time.time())
        say(f"resumes after step {step}, from {model_path}")


if __name__ == "__main__":
    run(main)
