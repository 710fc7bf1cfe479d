"""LARS and the schedules against the values of the study's method (tests/data/losses.json, losses.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import read_json

from dejavu_utils.training.optim import (
    LARS,
    learning_rate,
    make_optimizer,
    resolution_at,
    teacher_momentum,
    teacher_temperature,
)

DATA = Path(__file__).parents[2] / "data"
EXPECTED = read_json(DATA / "losses.json")


def test_learning_rate_equals_the_reference():
    arguments = EXPECTED["lr_schedule"]["args"]
    for step, expected in zip(EXPECTED["lr_schedule"]["steps"], EXPECTED["lr_schedule"]["lr"]):
        assert learning_rate(step, **arguments) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_four_steps_of_lars_equal_the_reference():
    arrays = {name: torch.from_numpy(array) for name, array in np.load(DATA / "losses.npz").items()}
    net = torch.nn.Linear(5, 4)
    with torch.no_grad():
        net.weight.copy_(arrays["lars_w0"])
        net.bias.copy_(arrays["lars_b0"])
    optimizer = LARS(net.parameters(), lr=0.3, weight_decay=1e-2, momentum=0.9, eta=1e-3)
    for x in arrays["lars_x"]:
        optimizer.zero_grad()
        net(x).pow(2).mean().backward()
        optimizer.step()
    torch.testing.assert_close(net.weight.detach(), arrays["lars_w"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(net.bias.detach(), arrays["lars_b"], rtol=1e-5, atol=1e-7)


def test_lars_takes_a_whole_step_where_a_norm_is_zero():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.5).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize("name, momentum", [("lars", 0.9), ("lars", 0.0), ("sgd", 0.9), ("sgd", 0.0), ("adamw", 0.9)])
def test_fp16s_scaler_scales_and_skips_without_asking(name, momentum):
    """The first step and a later one overflow; the others are those of gradients that were not scaled."""
    networks = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [make_optimizer(name, network, momentum, weight_decay=0.1) for network in networks]
    scaler, start = torch.amp.GradScaler("cpu", init_scale=2.0**8), networks[0][0].weight.detach().clone()
    for step in range(6):
        skipped = step in (0, 3)
        before = [p.detach().clone() for p in networks[0].parameters()]
        torch.manual_seed(step)
        for p, other in zip(*(network.parameters() for network in networks)):
            p.grad = other.grad = None
            gradient = torch.randn_like(p)
            p.grad = scaler.scale(gradient) * (torch.inf if skipped else 1)
            other.grad = gradient
        for group in (*optimizers[0].param_groups, *optimizers[1].param_groups):
            group["lr"] = 0.1 / (step + 1)
        scaler.step(optimizers[0])
        scaler.update()
        if skipped:
            assert all(torch.equal(p, q) for p, q in zip(networks[0].parameters(), before))
        else:
            optimizers[1].step()
    for p, other in zip(*(network.parameters() for network in networks)):
        torch.testing.assert_close(p, other, rtol=1e-5, atol=1e-6)
    assert scaler.get_scale() == 2.0**6 and not torch.equal(networks[0][0].weight, start)
    assert name == "sgd" or optimizers[0]._step_supports_amp_scaling  # SGD is fused on GPUs alone


@pytest.mark.parametrize("fused", [None, True])
def test_sgd_goes_on_from_the_checkpoint_of_another_device(fused):
    """Fused on GPUs, not on CPUs; earlier versions fused nowhere, and had no momentum before the first step."""
    optimizer = make_optimizer("sgd", torch.nn.Linear(3, 2), momentum=0.9, weight_decay=0.1)
    own = [group["fused"] for group in optimizer.param_groups]
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["fused"] = fused
    for state in (saved["state"], {}):
        optimizer.load_state_dict({**saved, "state": state})
        assert [group["fused"] for group in optimizer.param_groups] == own
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p in parameters:
            p.grad = torch.ones_like(p)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        biases = [p for p in parameters if p.ndim == 1]  # which have no weight decay
        assert all(torch.equal(optimizer.state[p]["momentum_buffer"], p.grad) for p in biases)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_normalization_get_no_weight_decay(name):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = make_optimizer(name, net, momentum=0.9, weight_decay=0.1)
    before = {k: v.detach().clone() for k, v in net.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = dict(net.named_parameters())
    torch.testing.assert_close(after["0.weight"].detach(), before["0.weight"] * (1 - 0.5 * 0.1))
    for name_ in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(after[name_].detach(), before[name_])


def test_published_resolutions():
    sides = [resolution_at(epoch, 160, 192, 70, 85) for epoch in (0, 70, 77, 78, 85, 999)]
    assert sides == [160, 160, 160, 192, 192, 192]
    assert [resolution_at(e, 64, 224, 10, 30) for e in (10, 12, 14, 20, 29, 30)] == [64, 64, 96, 128, 224, 224]


def test_teacher_momentum_equals_the_reference():
    expected = EXPECTED["ema_schedule_0.996_to_1_e3_n7"]
    found = [teacher_momentum(step, 21, 0.996) for step in range(21)]
    assert found == pytest.approx(expected, rel=1e-9) and teacher_momentum(21, 21, 0.996) == 1


def test_teacher_temperature_warms_up_linearly():
    found = [teacher_temperature(epoch, 0.04, 0.07, 4) for epoch in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(0, 0.04, 0.07, 0) == 0.07
