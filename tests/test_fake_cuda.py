"""What runs on a GPU, on fake tensors that have a device and a shape but no data: no GPU is needed.

FakeTensorMode refuses tensors of two devices in one operation, and whatever needs a value (nonzero, item, a shape that
depends on data): there the host would wait for a GPU. `Waits` notes the copies between host and device that block.
"""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import flags, options
from parts import CLASSES, PARTS, training_run, training_settings
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lin_probe
import train_RCDM
import train_SSL
from dejavu_utils.data import augment
from dejavu_utils.imagenet import Preprocessing
from dejavu_utils.models import LOSSES, SSLNetwork, network_from_settings
from dejavu_utils.randomness import uniforms
from dejavu_utils.reconstruction import diffusion
from dejavu_utils.runtime import processes
from dejavu_utils.training.meter import Meter

if torch.__version__.startswith("2.5."):
    pytest.skip("PyTorch 2.5 ends the process at the first fake CUDA tensor without a GPU", allow_module_level=True)

CUDA = torch.device("cuda", 0)


class Waits(TorchDispatchMode):
    """`found`: the operations that copy between host and device and block, in order."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default:
            target, source, free = result, args[0], kwargs.get("non_blocking", False)
        elif function is torch.ops.aten.copy_.default:
            target, source, free = args[0], args[1], (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            return result
        if target.device.type != source.device.type and not free:
            self.found.append(f"{function.name()} {tuple(source.shape)} {source.device} -> {target.device}")
        return result


class Constants(TorchFunctionMode):
    """torch.tensor(values, device="cuda") is a blocking copy, too."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            self.waits.found.append(f"torch.tensor({args[0]})")
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def nothing_fake_is_left():
    benchmark = torch.backends.cudnn.benchmark
    augment.constant.cache_clear()
    yield
    augment.constant.cache_clear()
    torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def fake():
    """Within it tensors are fake. Page-locked memory needs a driver; that it is asked for is what makes a copy free."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(nn.Module, "to", moved),
        mock.patch.object(torch, "_fused_sgd_", fused_sgd),
    ):
        yield


def fused_sgd(parameters, gradients, moving, *, found_inf=None, grad_scale=None, **numbers):
    """In place of the kernel, which knows no fake tensors: all it is given lies on the GPU, or is a number."""
    rest = [x for x in (found_inf, grad_scale) if x is not None]
    assert {x.device for x in (*parameters, *gradients, *moving, *rest)} == {CUDA}
    assert not any(map(torch.is_tensor, numbers.values()))


@contextlib.contextmanager
def without_waits():
    waits = Waits()
    with waits, Constants(waits):
        yield
    assert not waits.found, waits.found


def gradients(parameters):
    """In place of Tensor.backward, which needs a driver for its streams: gradients of the right shapes."""

    def backward(loss):
        assert loss.requires_grad and loss.ndim == 0
        for p in parameters():
            p.grad = torch.empty_like(p)

    return mock.patch.object(torch.Tensor, "backward", backward)


def moved(module, device=None, memory_format=None):
    """nn.Module.to, which cannot exchange fake parameters in place."""
    for part in module.modules() if device else ():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(p.detach().to(device), p.requires_grad)
        part._buffers.update({name: b.to(device) for name, b in part._buffers.items() if b is not None})
    return module


def test_the_proofs_notice_what_waits():
    with fake():
        x = torch.empty(4, device=CUDA)
        for wait in (lambda: x.cpu(), lambda: torch.tensor([1.0], device=CUDA), lambda: torch.empty(3).to(CUDA)):
            with pytest.raises(AssertionError), without_waits():
                wait()
        for error, wait in (
            (DynamicOutputShapeException, lambda: (x > 0).nonzero()),
            (DataDependentOutputException, lambda: bool(x.sum() > 0)),
            (RuntimeError, lambda: x + torch.empty(4)),
        ):
            with pytest.raises(error):
                wait()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_waits_for_nothing(name):
    with fake():
        run = PARTS[name](CUDA)
        run()  # makes the constants
        with without_waits():
            found = run()
        assert {value.device for value in found.values()} == {CUDA}
        assert {value.dtype for value in found.values()} <= {torch.float32, torch.float64}


def test_other_normalizations_wait_for_nothing():
    other = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # of some of timm's models
    with fake():
        views = torch.empty(3, 3, 32, 32, device=CUDA)
        augment.renormalize(views, other)
        with without_waits():
            assert augment.renormalize(views, other).device == CUDA


def fake_training_run(loss, **changes):
    """TrainingRun, views, labels, to be called within fake()."""
    settings = training_settings(loss, **changes)

    def twin(_):
        """In place of deepcopy, which makes the teachers: it would read storages, and fake ones hold no data."""
        return moved(network_from_settings(settings.model, settings.training.loss, CLASSES), CUDA)

    # The scaler switches itself off where there is no GPU, and fake tensors know no autocast.
    always = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    with mock.patch("copy.deepcopy", twin), always:
        state, views, labels = training_run(settings, CUDA)
    assert state.scaler.is_enabled() == (settings.training.precision == "fp16")
    state.precision = "fp32"
    return state, views, labels


STEPS = [(loss, {}) for loss in LOSSES]
for optimizer in ("lars", "sgd", "adamw"):
    for clip in (0.0, 1.0):
        changes = {"training.optimizer": optimizer, "training.clip_grad": clip}
        STEPS += [("vicreg", {**changes, "training.precision": precision}) for precision in ("fp32", "fp16")]


@pytest.mark.parametrize("loss, changes", STEPS)
def test_a_step_waits_for_nothing(loss, changes):
    """Forward, loss, update, teacher, probes and meter; the scaler does not look whether a step is to be skipped."""
    with fake():
        state, views, labels = fake_training_run(loss, **changes)
        with gradients(lambda: [*state.network.parameters(), *state.probes.parameters()]):
            state.step(views, labels, 0.1, 0)  # makes the optimizers' states
            with without_waits():
                value = state.step(views, labels, 0.1, 1)
        assert value.device == CUDA and value.dtype == torch.float32
        assert all(p.device == CUDA for p in state.network.parameters())


def test_validation():
    with fake():
        state, views, labels = fake_training_run("vicreg")
        state.network.eval()
        with without_waits(), torch.no_grad():
            logits = state.probes(state.network(views[0]))
            meter = Meter()
            meter.add(torch.zeros((), device=CUDA), logits, [z.sum() for z in logits], labels)
            assert meter.sums.device == CUDA and all(z.dtype == torch.float32 for z in logits)


def test_a_step_of_the_linear_probe():
    """Augmentation, embedding, update, and the step's figures on their way to the host."""
    seen = []

    class Sums:
        def __init__(self, device):
            self.device = device

        def __call__(self, *values):
            seen.extend(value for value in values if torch.is_tensor(value))

        def last(self):
            return None

    words = "--output_dir x --model_pth x --train_idx_pth x --val_idx_pth x --imgnet_train_pth x --batch_size 4"
    job = lin_probe.Job.of(lin_probe.parse_args(words.split()))
    job = replace(job, inference=replace(job.inference, device=CUDA))
    listing = SimpleNamespace(classes=["a", "b"], labels=np.zeros(8, np.int64), fingerprint={"sha256": ""})
    operations = augment.draw_parameters(uniforms(0, 0, 0, 0, 4), lin_probe.VIEW).operations()
    with (
        fake(),
        mock.patch.object(lin_probe, "digest", lambda *parts: ""),
        mock.patch.object(lin_probe.ModelRecord, "of", lambda *_: None),  # of weights, and fake ones have none
        mock.patch.object(lin_probe, "prepared_for_inference", lambda network: network),
        mock.patch.object(processes, "LateSums", Sums),
        mock.patch.object(augment.Parameters, "operations", lambda parameters: operations),
    ):
        network, stop = SSLNetwork("resnet18", "64-32", "vicreg").eval(), SimpleNamespace(received=None)
        network.preprocessing = network.preprocessing.at(32)
        probe = lin_probe.ProbeRun(job, network, listing, np.arange(8), np.arange(8), stop)
        labels = torch.zeros(4, dtype=torch.int64, device=CUDA)
        pixels = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        probe.batches = lambda *_: ((first, 4, pixels, labels) for first in (0, 4))
        with gradients(probe.classifier.parameters):
            probe.train_epoch(np.arange(8))  # makes the optimizer's state
            probe.steps_done = 0
            seen.clear()
            with without_waits():
                probe.train_epoch(np.arange(8))
        assert len(seen) == 2 * 3 and all(value.device == CUDA for value in seen)


def test_steps_by_their_losses():
    with fake():
        steps = diffusion.LossSecondMomentSteps(100, CUDA)
        with without_waits():
            t, weights = steps.sample(6)
            steps.update(t, weights)
        assert t.device == weights.device == steps.history.device == steps.counts.device == CUDA


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_of_rcdm(tmp_path, precision):
    class Encoder:
        layers, width, network = ["backbone"], 16, SimpleNamespace(preprocessing=Preprocessing())

        def __call__(self, images):
            return images.new_zeros(len(images), 16)

    given = options("""--ssl_model_pth x --data_dir x --dataset_indices x --image_size 32 --num_channels 32
        --channel_mult 1,2 --attention_resolutions 16 --schedule_sampler loss-second-moment --microbatch 2
        --backend diffusers""")
    args = train_RCDM.parse_args(flags({**given, "out_dir": tmp_path, "precision": precision}))
    listing = SimpleNamespace(fingerprint={"sha256": ""})
    process = diffusion.Diffusion(vars(args))  # whose tables are made by NumPy
    with (
        fake(),
        mock.patch.object(diffusion, "Diffusion", lambda _: process),
        mock.patch.object(train_RCDM, "record_of", lambda *_: None),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
    ):
        state = train_RCDM.RcdmRun(train_RCDM.Job.of(args), Encoder(), listing, np.arange(4), CUDA)
        assert state.scaler.is_enabled() == (precision == "fp16")
        state.precision = "fp32"  # of the scaler's it has the rest; fake tensors know no autocast
        images, as_encoded = (torch.empty(4, 3, side, side, device=CUDA) for side in (32, 24))
        with gradients(state.unet.parameters):
            state.train_step(images, as_encoded)  # makes the optimizer's state, and the constants
            with without_waits():
                state.train_step(images, as_encoded)
        assert state.last_loss.device == CUDA and state.step == 2


def test_kernels_of_a_published_step():
    """ResNet-101, VICReg, LARS: 4728 kernels a step when parameters were updated one by one."""
    settings = training_settings("vicreg", **{"model.arch": "resnet101", "model.mlp": "64-64-64"})
    state = train_SSL.TrainingRun(settings, CLASSES, torch.device("cpu"), 100)
    state.network.train()
    views, labels = [torch.randn(2, 3, 32, 32) for _ in range(2)], torch.tensor([0, 1])
    state.step(views, labels, 0.1, 0)

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.name()
            starts_none = ("view", "detach", "unbind", "split", "slice", "select", "t", "transpose", "expand", "empty")
            if function.namespace == "aten" and name.split("::")[1].split(".")[0].strip("_") not in starts_none:
                # LARS's q is one number per parameter, which multiplies each by a kernel of its own.
                self.total += len(args[0]) if name == "aten::_foreach_mul_.List" else 1
            return function(*args, **(kwargs or {}))

    with Count() as count:
        state.step(views, labels, 0.1, 1)
    assert count.total <= 0.6 * 4728, count.total
