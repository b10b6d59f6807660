"""Verdicts on updates by hand, the guard's memory against plain Python, and what a skipped step leaves as it was."""

import math

import numpy as np
import pytest
import torch

from mt.training.guard import FAULTS, Guard, LossHistory
from mt.training.optimizer import OptimizerConfig, make_optimizer
from tests.made_up import small_transformer

CPU = torch.device("cpu")
LOST, BLOWN, SPIKE = FAULTS


def verdict(guard, loss, norm=1.0):
    """Which fault an update has; "" for none."""
    faults = guard.judge(torch.tensor(loss, device=guard.device), torch.tensor(norm, device=guard.device))
    assert faults.shape == (3,)
    assert faults.sum() in (0, 1)
    return next((name for name, fault in zip(FAULTS, faults.tolist(), strict=True) if fault), "")


def guard_after(losses, device=CPU):
    guard = Guard(device)
    for loss in losses:
        assert verdict(guard, loss) == ""
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "fault"),
    [
        (3.0, 1.0, ""),
        (math.nan, 1.0, LOST),
        (math.inf, 1.0, LOST),
        (3.0, math.nan, BLOWN),
        (3.0, math.inf, BLOWN),
        (math.nan, math.nan, LOST),
        (1e6, math.nan, BLOWN),
    ],
)
@pytest.mark.parametrize("before", [0, 200])
def test_what_is_not_finite_is_skipped_from_the_first_update_on(device, before, loss, norm, fault):
    assert verdict(guard_after([3.0] * before, device), loss, norm) == fault


def test_a_spike_is_more_than_a_nat_above_the_mean_where_losses_are_alike():
    losses = [5.0] * 100
    assert verdict(guard_after(losses), 5.99) == ""
    assert verdict(guard_after(losses), 6.01) == SPIKE
    assert verdict(guard_after(losses), 0.01) == ""  # below the mean nothing is a spike


def test_a_spike_is_more_than_ten_standard_deviations_above_the_mean_where_losses_differ():
    losses = [4.0, 6.0] * 50  # their standard deviation is 1
    assert verdict(guard_after(losses), 14.9) == ""
    assert verdict(guard_after(losses), 15.1) == SPIKE


def test_before_a_hundred_accepted_updates_nothing_is_a_spike():
    assert verdict(guard_after([5.0] * 99), 1000.0) == ""
    guard = guard_after([5.0] * 99)
    assert verdict(guard, math.nan) == LOST
    assert verdict(guard, 1000.0) == ""  # the skipped one does not count


def test_the_first_hundred_have_the_plain_mean_and_variance_and_then_they_follow_exponentially():
    losses = np.random.default_rng(1).normal(5, 0.2, 150)
    guard = guard_after(losses[:100].tolist())
    assert guard.history().mean == pytest.approx(losses[:100].mean(), rel=1e-6)
    assert guard.history().variance == pytest.approx(losses[:100].var(), rel=1e-5)

    mean, square = losses[:100].mean(), (losses[:100] ** 2).mean()
    for loss in losses[100:]:
        assert verdict(guard, loss) == ""
        mean, square = 0.99 * mean + 0.01 * loss, 0.99 * square + 0.01 * loss**2
    assert guard.history().mean == pytest.approx(mean, rel=1e-6)
    assert guard.history().variance == pytest.approx(square - mean**2, rel=1e-4)


def test_skipped_updates_are_counted_in_a_row_and_else_forgotten():
    guard = guard_after([5.0, 4.0, 6.0])
    before = guard.history()
    for count, (loss, norm) in enumerate([(math.nan, 1.0), (5.0, math.inf), (math.inf, math.nan)], 1):
        verdict(guard, loss, norm)
        assert guard.history() == LossHistory(before.accepted, before.mean, before.variance, skipped_in_a_row=count)
    assert verdict(guard, 5.0) == ""
    assert guard.history().accepted == 4
    assert guard.history().skipped_in_a_row == 0


def test_a_guard_restored_judges_as_the_one_that_was_saved():
    losses = np.random.default_rng(2).normal(5, 0.3, 140).tolist()
    whole = guard_after(losses)
    parts = Guard(CPU)
    parts.restore(guard_after(losses[:117]).history())
    for loss in losses[117:]:
        verdict(parts, loss)
    assert parts.history() == whole.history()


def test_nobody_waits_for_a_verdict(device):
    guard = guard_after([5.0] * 100, device)
    loss, norm = torch.tensor(7.0, device=device), torch.tensor(1.0, device=device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        faults = guard.judge(loss, norm)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert faults.tolist() == [0, 0, 1]


def tensors_of(model, optimizer):
    parameters = list(model.parameters())
    states = [value for parameter in parameters for value in optimizer.state[parameter].values()]
    return [tensor.detach().clone() for tensor in parameters + states]


@pytest.mark.parametrize("taken", [0, 3])
def test_a_step_that_is_not_taken_changes_nothing_and_one_that_is_taken_is_as_always(device, taken):
    """The promise of PyTorch's fused optimizers that skipping rests on."""
    ends = []
    for found_inf in (None, 0.0):
        model = small_transformer(device)
        optimizer = make_optimizer(model, OptimizerConfig(peak_learning_rate=1e-3, schedule="constant", warmup_steps=0))
        torch.manual_seed(1)
        for _ in range(taken):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            if found_inf is not None:
                optimizer.found_inf = torch.tensor(found_inf, device=device)
            optimizer.step()
        ends.append(tensors_of(model, optimizer))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))

    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.found_inf = torch.tensor(1.0, device=device)
    optimizer.step()
    after = tensors_of(model, optimizer)
    assert all(torch.equal(one, other) for one, other in zip(ends[1], after, strict=False))
    if not taken:
        assert not any(tensor.any() for tensor in after[len(ends[1]) :])  # what AdamW starts from
