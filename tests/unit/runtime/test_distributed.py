"""A world of two processes equals a world of one on the same global batch: values, gradients and whole trainings."""

import copy
import math
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from dejavu_utils.errors import InputError
from dejavu_utils.models import LOSSES, SSLNetwork
from dejavu_utils.runtime import distributed
from dejavu_utils.runtime.distributed import (
    LateSums,
    any_process,
    average_gradients,
    gather,
    sum_over_processes,
)
from dejavu_utils.training.batch_norm import synchronize_batch_norm
from dejavu_utils.training.checkpoint import TrainingCheckpoint
from dejavu_utils.training.methods import METHODS
from dejavu_utils.training.methods.method import ViewsForward
from dejavu_utils.training.settings import Settings

CPU = torch.device("cpu")
SETTINGS = Settings.from_flat(
    {
        "byol.momentum_teacher": 0.9,
        "dino.momentum_teacher": 0.9,
        "mocov3.momentum_teacher": 0.9,
        "mocov3.temperature": 0.5,
        "dino.warmup_teacher_temp_epochs": 5,
        "training.label_smoothing": 0.1,
        "training.num_small_crops": 2,
    }
)


class SmallBackbone(nn.Module):
    """A small backbone with batch norm over images."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def small_network(loss):
    torch.manual_seed(0)
    network = SSLNetwork("resnet18", "8-6", loss, 5)
    network.net = SmallBackbone()
    network.projector[0][0] = nn.Linear(16, 8)
    return network


def train(loss, views, labels, rows):
    """Two updates on these rows of every view; (losses, gradients of the second update, state dict, the method's)."""
    network = small_network(loss)
    for name, part in list(network.named_children()):
        if name not in METHODS[loss].sees_all:
            setattr(network, name, synchronize_batch_norm(part, CPU))
    method = METHODS[loss](SETTINGS, network, total_steps=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    forward, values = ViewsForward(network, method.embedding), []
    for step in range(2):
        mine = [view[rows] for view in views]
        _, embeddings = forward(mine)
        value = method.loss(embeddings, mine, labels[rows], epoch=step)
        optimizer.zero_grad()
        value.backward()
        average_gradients(list(network.parameters()))
        optimizer.step()
        method.after_step(step)
        values.append(value.detach())
    gradients = [p.grad for p in network.parameters()]
    return torch.stack(values), gradients, network.state_dict(), method.state_dict()


def batch(loss):
    generator = torch.Generator().manual_seed(1)
    sizes = [8 if view.side else 12 for view in METHODS[loss].views(SETTINGS)]
    views = [torch.randn(8, 3, size, size, generator=generator) for size in sizes]
    return views, torch.randint(0, 5, (8,), generator=generator)


def flat(tree):
    if isinstance(tree, dict):
        return [x for value in tree.values() for x in flat(value)]
    return [x for value in tree for x in flat(value)] if isinstance(tree, (list, tuple)) else [tree]


def worker(rank, port, folder, function, arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def in_two_processes(folder, function, *arguments):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, folder, function, arguments), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]


def exchange(rank):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    average_gradients([parameter])
    gathered = gather(torch.full((2, 1), float(rank)))
    flags = [any_process(flag, CPU) for flag in (rank == 1, False)]
    return parameter.grad, gathered, flags, sum_over_processes(torch.tensor(float(rank + 1)))


def exchange_and_train(rank):
    rows = slice(4 * rank, 4 * rank + 4)
    return {"exchange": exchange(rank), **{loss: train(loss, *batch(loss), rows) for loss in LOSSES}}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """What `exchange_and_train` gives in each of two processes."""
    return in_two_processes(tmp_path_factory.mktemp("halves"), exchange_and_train)


@pytest.mark.kills
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_as_one(halves, loss):
    values, *expected = train(loss, *batch(loss), slice(0, 8))
    halves = [of_process[loss] for of_process in halves]
    mean_value = (halves[0][0] + halves[1][0]) / 2  # where each process has the mean of its images
    torch.testing.assert_close(mean_value, values, rtol=1e-5, atol=1e-6)
    for _, *found in halves:
        for a, b in zip(flat(found), flat(expected)):
            assert (a - b).double().norm() <= 1e-4 * b.double().norm() + 1e-5  # some are zero but for rounding
    if loss in ("vicreg", "simclr", "barlow"):  # a loss of the whole batch, known to every process
        torch.testing.assert_close(halves[0][0], values, rtol=1e-5, atol=1e-6)


@pytest.mark.kills
def test_exchanges(halves):
    for gradient, gathered, flags, total in (of_process["exchange"] for of_process in halves):
        assert gradient.tolist() == [1.5, 3.0] and gathered.ravel().tolist() == [0, 0, 1, 1]
        assert flags == [True, False] and total == 3


def read_together(rank, cases):
    found = []
    distributed._PATIENCE = 0
    for folders in cases:
        try:
            read = TrainingCheckpoint.agreed(folders[rank] / "model.pth")
            found.append((read.epoch, read.steps_done))
        except InputError as error:
            found.append(str(error))
    return found


@pytest.mark.kills
def test_processes_resume_from_one_checkpoint_or_not_at_all(tmp_path):
    """As if a network's file system showed one machine an earlier state."""
    for name, epoch in (("late", 2), ("new", 3)):
        (tmp_path / name).mkdir()
        rest = {"settings": {}, "num_classes": 1, "train_set": "", "world_size": 2}
        parts = ("model", "objective", "optimizer", "probes", "optimizer_probes", "scaler", "meter")
        saved = TrainingCheckpoint(epoch=epoch, steps_done=1, **dict.fromkeys(parts, {}), **rest)
        saved.save(tmp_path / name / "model.pth")
    late, new, empty = (tmp_path / name for name in ("late", "new", "empty"))
    for found in in_two_processes(tmp_path, read_together, [(new, new), (new, late), (empty, late)]):
        assert found[0] == (3, 1)
        for error, seen in zip(found[1:], (("epoch 3 step 1", "epoch 2 step 1"), ("none", "epoch 2 step 1"))):
            for state in seen:
                assert f"{state} on {socket.gethostname()}" in error
            assert "different states" in error and "rerun the same command" in error


def test_teachers_move_and_students_do_not_follow():
    for loss in ("byol", "dino", "mocov3"):
        network = small_network(loss)
        method = METHODS[loss](SETTINGS, network, total_steps=10)
        before = copy.deepcopy(method.teacher.state_dict())
        with torch.no_grad():
            for p in network.parameters():
                p.add_(1)
        method.after_step(0)
        for (name, old), p in zip(method.teacher.named_parameters(), network.parameters()):
            torch.testing.assert_close(old, before[name] * 0.9 + p * 0.1)


def test_late_sums_come_one_call_later_and_none_is_lost():
    late = LateSums(CPU)
    late.late = True  # as on a GPU
    assert late(torch.tensor(1.5), False) is None
    assert late(torch.tensor(math.nan), True) == [1.5, 0]
    nan, asked = late.last()
    assert math.isnan(nan) and asked == 1 and late.last() is None
    assert LateSums(CPU)(2, True) == [2, 1]  # on a CPU at once
