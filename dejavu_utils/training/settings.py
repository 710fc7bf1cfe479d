"""The settings of a training, and what can be said of them before anything is read or written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dejavu_utils.cli import existing_file, expanded
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.models import LOSSES, Architecture, backbone_named, mlp_widths
from dejavu_utils.networks.loading import file_of
from dejavu_utils.runtime.devices import PRECISIONS
from dejavu_utils.training.config import Sections, fraction, setting, switch
from dejavu_utils.training.methods import METHODS


@dataclass
class Model(Architecture):
    arch: str = setting(
        "resnet50", "backbone: a classifier of torchvision (resnet101, vgg16, ...) or timm, by name"
    )
    weights: str = setting(
        "",
        "public checkpoint that the backbone starts from: a file that the attack reads, timm:NAME or torchvision:NAME; "
        "projector and head are new",
        expanded,
    )
    mlp: str = setting("2048-512", "widths of the projector's layers")
    mlp_coeff: float = setting(1.0, "scales the projector's last hidden width", above=0)
    remove_head: int = switch("1: no projector, the loss acts on the backbone's output")
    fc: int = switch("1: a Linear(width, 256) at the end of the backbone (resnets)")
    proj_relu: int = switch("1: a ReLU after the projector's last layer")


@dataclass
class Resolution:
    min_res: int = setting(64, "side of the training crops up to start_ramp, pixels", least=16)
    max_res: int = setting(224, "side of the training crops from end_ramp on, pixels", least=16)
    start_ramp: int = setting(10, "epoch (from 0) up to which crops have min_res")
    end_ramp: int = setting(
        30,
        "epoch from which crops have max_res; between, the nearest multiple of 32 on the line between the two",
    )


@dataclass
class Data:
    train_dataset: str = setting("", ".beton to train on", expanded)
    val_dataset: str = setting("", ".beton for the probes' validation", expanded)
    num_workers: int = setting(
        10, "processes that read images, at most one per core; 0: none", least=0
    )
    in_memory: int = switch("1: read the whole .beton into memory first")
    random_seed: int = setting(0, "seed of the weights, the order of images and the views", least=0)
    loader: str = setting(
        "auto",
        "auto = native: torchvision's definitions, the same batches on every run, and faster; ffcv = FFCV-SSL's",
        choices=("auto", "native", "ffcv"),
    )


@dataclass
class Augment:
    min_area: float = setting(
        0.08, "smallest fraction of an image's area that a crop shows", above=0
    )
    max_area: float = setting(1.0, "largest fraction of an image's area that a crop shows", most=1)
    jitter: float = setting(
        1.0,
        "strength of the color jitter, 1 = brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1",
        least=0,
    )
    blur: int = switch("1: Gaussian blur on view 1", default=1)
    solarize: float = fraction(0.2, "probability of solarizing view 2")


@dataclass
class Vicreg:
    sim_coeff: float = setting(25.0, "weight of the invariance term")
    std_coeff: float = setting(25.0, "weight of the variance term")
    cov_coeff: float = setting(1.0, "weight of the covariance term")


@dataclass
class Simclr:
    temperature: float = setting(
        0.15, "temperature of the softmax over cosine similarities", above=0
    )


@dataclass
class Barlow:
    lambd: float = setting(0.0051, "weight of the off-diagonal correlations")


_TEACHER = "fraction of the old teacher that an update keeps"


@dataclass
class Byol:
    momentum_teacher: float = fraction(0.996, f"{_TEACHER}; rises to 1 by a cosine")


@dataclass
class Dino:
    warmup_teacher_temp: float = setting(0.04, "teacher's temperature at first", above=0)
    teacher_temp: float = setting(0.07, "teacher's temperature after the warm-up", above=0)
    warmup_teacher_temp_epochs: int = setting(50, "epochs from the one to the other", least=0)
    student_temp: float = setting(0.1, "student's temperature", above=0)
    center_momentum: float = fraction(0.9, "fraction of the old centre that an update keeps")
    momentum_teacher: float = fraction(0.996, f"{_TEACHER}, at first; 1 at last")


@dataclass
class Mocov3:
    temperature: float = setting(
        1.0, "temperature of the softmax over cosine similarities", above=0
    )
    momentum_teacher: float = fraction(0.996, f"{_TEACHER}; rises to 1 by a cosine")


@dataclass
class Logging:
    folder: str = setting("", "where everything is written", expanded)
    log_level: int = setting(
        2, "0: the log file only; 1: a line per epoch on stdout; 2: progress within epochs too"
    )
    checkpoint_freq: int = setting(5, "epochs between two writes of model.pth", least=1)
    snapshot_freq: int = setting(50, "epochs between two snapshots model_ep{E}.pth", least=1)


@dataclass
class Validation:
    batch_size: int = setting(256, "images per batch", least=1)
    resolution: int = setting(224, "side of the centre crops, pixels", least=16)


@dataclass
class Training:
    loss: str = setting("simclr", "SSL method, or supervised", choices=LOSSES)
    # A batch of one has no variance for batch normalization.
    batch_size: int = setting(
        512, "images per process; the global batch is this x processes", least=2
    )
    epochs: int = setting(30, "passes over the training set", least=1)
    optimizer: str = setting("adamw", "optimizer", choices=("sgd", "adamw", "lars"))
    base_lr: float = setting(
        5e-4, "learning rate after warm-up = base_lr x global batch / 256", least=0
    )
    end_lr_ratio: float = setting(0.001, "last learning rate / largest learning rate", least=0)
    warmup_epochs: int = setting(10, "epochs of linear warm-up, fewer than epochs", least=0)
    momentum: float = fraction(0.9, "momentum of sgd and lars")
    weight_decay: float = setting(
        4e-5, "decay of weights; biases and normalization have none", least=0
    )
    label_smoothing: float = fraction(0.0, "label smoothing of the supervised loss")
    num_small_crops: int = setting(
        0, "dino: further views of 96 pixels, of 5 to 40 % of an image's area", least=0
    )
    eval_freq: int = setting(50, "epochs between two validations of the probes", least=1)
    eval_only: int = switch("1: only validate the probes of model.pth")
    train_probes_only: int = switch(
        "1: train new probes on model.pth's frozen network; writes probes_{seed}.pth and log_probes_{seed}"
    )
    clip_grad: float = setting(0.0, "largest norm of the gradient, 0 = no limit", least=0)
    precision: str = setting(
        "auto", "auto = bf16 on GPUs that have it, else fp16; fp32 on CPUs", choices=PRECISIONS
    )
    compile: int = switch("1: torch.compile the network")


@dataclass
class Dist:
    use_submitit: int = switch(
        "1: submit a SLURM job; 0: train here, on up to ngpus GPUs or the CPU"
    )
    world_size: int = setting(
        0, "processes on this machine with use_submitit 0; 0: one per GPU, one on a CPU", least=0
    )
    ngpus: int = setting(
        8, "GPUs, and so processes, per node; 0: no GPU, world_size processes per node", least=0
    )
    nodes: int = setting(1, "nodes", least=1)
    timeout: int = setting(2800, "time limit of the job, minutes", least=1)
    partition: str = setting("", "SLURM partition")
    comment: str = setting("", "SLURM comment")
    mem_gb: int = setting(0, "memory per node, GB; 0 = 60 x ngpus", least=0)
    cpus_per_task: int = setting(10, "CPU cores per process", least=1)
    dependency: str = setting("", "SLURM dependency, for instance afterok:123")
    port: int = setting(
        0,
        "where the processes of a SLURM job meet; 0: drawn from the job's number",
        least=0,
        most=65535,
    )


@dataclass
class Settings(Sections):
    """All settings of a training. Their flat form is what flags, YAML files, params.json and
    checkpoints carry."""

    model: Model = field(default_factory=Model)
    resolution: Resolution = field(default_factory=Resolution)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    vicreg: Vicreg = field(default_factory=Vicreg)
    simclr: Simclr = field(default_factory=Simclr)
    barlow: Barlow = field(default_factory=Barlow)
    byol: Byol = field(default_factory=Byol)
    dino: Dino = field(default_factory=Dino)
    mocov3: Mocov3 = field(default_factory=Mocov3)
    logging: Logging = field(default_factory=Logging)
    validation: Validation = field(default_factory=Validation)
    training: Training = field(default_factory=Training)
    dist: Dist = field(default_factory=Dist)


# Published YAML files and commands carry these; they changed nothing there either.
WITHOUT_EFFECT = (
    "attack.k",
    "attack.k_attk",
    "lr.*",
    "training.bn_wd",
    "validation.lr_tta",
    "model.patch_keep",
    "dist.address",
    "training.distributed",
    "training.use_ssl",
)
# May differ when a run is resumed: what does not touch the weights. (Images and public weights are
# compared by their contents.)
MAY_DIFFER = (
    "model.weights",
    "logging.",
    "dist.",
    "validation.",
    "data.num_workers",
    "data.in_memory",
    "data.train_dataset",
    "data.val_dataset",
    "training.compile",
    "training.eval_",
    "training.train_probes_only",
)


def check_settings(settings: Settings) -> None:
    """Raises an InputError for values that cannot work, before anything is read or written."""
    existing_file(settings.data.train_dataset, "--data.train_dataset")
    existing_file(settings.data.val_dataset, "--data.val_dataset")
    if not settings.logging.folder:
        raise InputError("--logging.folder is needed: name the folder of this run")
    if settings.model.weights and file_of(settings.model.weights):
        existing_file(file_of(settings.model.weights), "--model.weights")
    mlp_widths(settings.model.mlp, "--model.mlp")
    METHODS[settings.training.loss].check(settings)
    training = settings.training
    resolution = settings.resolution
    if training.warmup_epochs >= training.epochs:
        raise InputError(
            f"--training.warmup_epochs {training.warmup_epochs}: must be fewer than --training.epochs {training.epochs}"
        )
    if resolution.end_ramp < resolution.start_ramp:
        raise InputError("--resolution.end_ramp: must not come before --resolution.start_ramp")
    check_arch(
        settings.model.arch,
        [resolution.min_res, resolution.max_res, settings.validation.resolution],
    )
    if settings.augment.min_area > settings.augment.max_area:
        raise InputError(
            "--augment.min_area: must be above 0 and at most --augment.max_area, which is at most 1"
        )


def first_difference(before: Settings, now: Settings) -> tuple[str, object, object] | None:
    """("section.name", value before, value now) of the first setting that makes `now` another run;
    None: the same one.

    before, now: Settings.
    """
    earlier = before.to_flat()
    for key, value in now.to_flat().items():
        if earlier[key] != value and not key.startswith(MAY_DIFFER):
            return key, earlier[key], value
    return None


@torch.no_grad()
def check_arch(arch: str, sides: Sequence[int]) -> None:
    """InputError unless a backbone of this name can be built, and takes square images of these
    sides (pixels)."""
    with torch.device("meta"):  # shapes only
        try:
            net = backbone_named(arch, False)[0].eval()
        except IndexError:
            raise InputError(
                f"model.arch {arch}: has no linear classifier to take off, and cannot be a backbone"
            ) from None
        for side in sorted(set(sides)):
            try:
                net(torch.empty(1, 3, side, side))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = one_line(error, 150)
                raise InputError(
                    f"model.arch {arch}: does not take images of {side} pixels ({reason})"
                ) from None
