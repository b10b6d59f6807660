"""Learning rates of single steps, worked out by hand, and which parameters decay."""

import math

import pytest
import torch
from torch import nn

from mt.errors import ConfigError
from mt.training.optimizer import Decay, OptimizerConfig, learning_rate, make_optimizer


def config(schedule: str, **changes) -> OptimizerConfig:
    return OptimizerConfig(**{"peak_learning_rate": 0.8, "schedule": schedule, "warmup_steps": 4} | changes)


@pytest.mark.parametrize("schedule", ["warmup_stable_decay", "inverse_sqrt", "cosine", "constant"])
def test_the_warm_up_is_linear_and_reaches_the_peak_with_its_last_step(schedule):
    rates = [learning_rate(config(schedule), step, None) for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize(
    ("schedule", "decay", "table"),
    [
        ("constant", None, {5: 0.8, 100: 0.8, 10**6: 0.8}),
        ("inverse_sqrt", None, {5: 0.8 * (4 / 5) ** 0.5, 16: 0.4, 64: 0.2, 400: 0.08}),
        ("warmup_stable_decay", None, {5: 0.8, 999: 0.8}),
        ("warmup_stable_decay", Decay(100, 100), {5: 0.8, 100: 0.8, 101: 0.72, 104: 0.64, 125: 0.4, 164: 0.16, 200: 0}),
        ("warmup_stable_decay", Decay(100, 100), {201: 0, 1000: 0}),
        ("cosine", Decay(0, 12), {6: 0.4, 8: 0.2, 12: 0, 13: 0}),
    ],
)
def test_after_the_warm_up_each_schedule_follows_its_formula(schedule, decay, table):
    rates = {step: learning_rate(config(schedule), step, decay) for step in table}
    assert rates == pytest.approx(table, abs=1e-12)


def test_a_rate_that_falls_before_the_warm_up_has_ended_never_rises_again():
    """Grown to 0.2 a step; 1 - sqrt(1/4) and so on from step 2 on."""
    rates = [learning_rate(config("warmup_stable_decay"), step, Decay(1, 4)) for step in range(1, 7)]
    assert rates == pytest.approx([0.2, 0.4, 0.8 * (1 - 0.5**0.5), 0.8 * (1 - 0.75**0.5), 0, 0])


def test_without_a_warm_up_the_first_step_has_the_peak():
    for schedule in ("warmup_stable_decay", "inverse_sqrt", "constant"):
        assert learning_rate(config(schedule, warmup_steps=0), 1, None) == 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "linear"}, "optimizer.schedule linear is none of warmup_stable_decay, inverse_sqrt"),
        ({"peak_learning_rate": 0.0}, "optimizer.peak_learning_rate 0.0 is not above 0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps -1 is negative"),
        ({"decay_fraction": 1.5}, "optimizer.decay_fraction 1.5 is not between 0 and 1"),
        ({"peak_learning_rate": math.nan}, "optimizer.peak_learning_rate nan is not above 0"),
        ({"beta1": 1.0}, r"optimizer.beta1 1.0 is not at least 0 and below 1"),
        ({"beta2": -0.1}, r"optimizer.beta2 -0.1 is not at least 0 and below 1"),
        ({"epsilon": 0.0}, "optimizer.epsilon 0.0 is not above 0"),
        ({"weight_decay": math.inf}, "optimizer.weight_decay inf is not a number from 0 on"),
        ({"gradient_clip": -1.0}, "optimizer.gradient_clip -1.0 is not a number from 0 on"),
    ],
)
def test_an_impossible_setting_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        config(**{"schedule": "constant"} | change)


def test_matrices_decay_and_biases_and_norms_do_not():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(model, config("constant", weight_decay=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_the_first_step_of_adam_moves_each_weight_by_the_learning_rate_against_its_gradient():
    model = nn.Linear(2, 1, bias=False)
    optimizer = make_optimizer(model, config("constant", weight_decay=0.0))
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[3.0, -0.01]])
    optimizer.step()
    torch.testing.assert_close(model.weight - before, torch.tensor([[-0.8, 0.8]]), atol=1e-6, rtol=1e-6)
