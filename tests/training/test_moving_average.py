"""The moving average of weights: numbers by hand, a plain loop beside it, and what it must leave alone."""

import pytest
import torch

from mt.training.moving_average import EVERY, MovingAverage, decay_at


def test_early_updates_are_forgotten_and_later_ones_kept_by_the_decay():
    assert [decay_at(step, 0.999) for step in (0, 5, 35)] == [1 / 10, 6 / 15, 36 / 45]
    assert [decay_at(step, 0.8) for step in (34, 35, 36, 10**9)] == [pytest.approx(35 / 44), 0.8, 0.8, 0.8]


def test_three_moves_by_hand():
    """With a decay of 1/2 that of five updates is 1/32, but in the warm-up (6/15)^5 = 32/3125."""
    weight = torch.zeros(1)
    moving_average = MovingAverage({"weight": weight}, 0.5)
    wanted = 0.0
    for step, value, kept in ((5, 1.0, 32 / 3125), (10, -2.0, 1 / 32), (15, 4.0, 1 / 32)):
        weight.fill_(value)
        moving_average.follow(step)
        wanted = kept * wanted + (1 - kept) * value
        assert moving_average.weights["weight"].item() == pytest.approx(wanted, abs=1e-6)


def test_it_equals_a_plain_loop_over_every_number():
    generator = torch.Generator().manual_seed(1)
    parameters = {name: torch.randn(shape, generator=generator) for name, shape in {"a": (3, 2), "b": (4,)}.items()}
    moving_average = MovingAverage(parameters, 0.9)
    plain = {name: parameter.clone().flatten().tolist() for name, parameter in parameters.items()}
    for step in range(1, 41):
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        moving_average.follow(step)
        if step % EVERY:
            continue
        kept = min(0.9, (1 + step) / (10 + step)) ** EVERY
        for name, numbers in plain.items():
            new = parameters[name].flatten().tolist()
            plain[name] = [kept * old + (1 - kept) * now for old, now in zip(numbers, new, strict=True)]
    for name, numbers in plain.items():
        assert moving_average.weights[name].flatten().tolist() == pytest.approx(numbers, abs=1e-5)


def test_between_its_moves_nothing_changes_and_parameters_never_do():
    parameter = torch.nn.Parameter(torch.ones(2))
    moving_average = MovingAverage({"p": parameter}, 0.9)
    with torch.no_grad():
        parameter.fill_(3.0)
    for step in range(EVERY + 1, 2 * EVERY):
        moving_average.follow(step)
    assert moving_average.weights["p"].tolist() == [1.0, 1.0]
    moving_average.follow(2 * EVERY)
    assert 1.0 < moving_average.weights["p"][0] < 3.0
    assert parameter.tolist() == [3.0, 3.0]
    assert parameter.requires_grad
    assert not moving_average.weights["p"].requires_grad
