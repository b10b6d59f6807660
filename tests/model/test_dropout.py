"""Dropout: its mask's values and frequencies, its gradient, and its behaviour on odd sizes, types and layouts."""

import math

import pytest
import torch

from mt.model.dropout import Dropout

MILLION = 1_000_000


def mask_of(probability, size=MILLION, seed=5):
    torch.manual_seed(seed)
    return Dropout(probability).train()(torch.ones(size))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_an_element_is_lost_with_the_probability_that_was_asked_for(probability):
    lost = (mask_of(probability) == 0).double().mean().item()
    deviation = (probability * (1 - probability) / MILLION) ** 0.5
    assert abs(lost - probability) < 5 * deviation + 2**-17


def test_the_greatest_probability_below_one_still_leaves_finite_numbers():
    mask = mask_of(math.nextafter(1.0, 0.0))
    assert mask.isfinite().all()
    assert (mask == 0).double().mean().item() > 0.9999


@pytest.mark.parametrize("lane", range(4))
def test_each_of_the_four_elements_that_share_a_draw_is_lost_as_often(lane):
    lost = (mask_of(0.3)[lane::4] == 0).double().mean().item()
    assert abs(lost - 0.3) < 5 * (0.3 * 0.7 / (MILLION / 4)) ** 0.5 + 2**-17


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_elements_are_lost_independently_of_their_neighbours(distance):
    lost = (mask_of(0.3) == 0).double()
    both = (lost[:-distance] * lost[distance:]).mean().item()
    assert abs(both - 0.09) < 5 * (0.09 * 0.91 / MILLION) ** 0.5 * 2  # twice: overlapping pairs


def test_mean_and_variance_of_the_mask_are_those_of_a_scaled_coin():
    mask = mask_of(0.2).double()
    assert sorted(mask.unique().tolist()) == pytest.approx([0, 1 / 0.8], rel=1e-4)
    assert mask.mean().item() == pytest.approx(1, abs=5 * (0.25 / MILLION) ** 0.5)
    assert mask.var().item() == pytest.approx(0.2 / 0.8, rel=0.01)


def test_evaluation_and_probability_zero_leave_everything_as_it_is(device):
    x = torch.randn(3, 7, device=device)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_training_drops_on_every_device(device):
    torch.manual_seed(6)
    y = Dropout(0.5).train()(torch.ones(1000, device=device))
    assert set(y.tolist()) == {0.0, 2.0}
    assert 400 < (y == 0).sum() < 600


def test_the_gradient_is_the_mask(device):
    torch.manual_seed(7)
    x = torch.randn(5, 9, device=device).requires_grad_()
    y = Dropout(0.4).train()(x)
    upstream = torch.randn(5, 9, device=device)
    y.backward(upstream)
    mask = y.detach() / x.detach()
    assert 0 < (mask == 0).sum() < mask.numel()
    torch.testing.assert_close(x.grad, upstream * mask)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another():
    assert torch.equal(mask_of(0.3, 100, seed=1), mask_of(0.3, 100, seed=1))
    assert not torch.equal(mask_of(0.3, 100, seed=1), mask_of(0.3, 100, seed=2))


def test_a_second_call_draws_a_new_mask():
    torch.manual_seed(8)
    dropout = Dropout(0.5).train()
    assert not torch.equal(dropout(torch.ones(100)), dropout(torch.ones(100)))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 1), (5, 7), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_size_and_both_types_keep_their_shape_type_and_values(shape, dtype):
    torch.manual_seed(9)
    x = torch.randn(shape, dtype=dtype)
    y = Dropout(0.5).train()(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert ((y == 0) | (y == 2 * x)).all()


def test_an_input_that_is_not_contiguous_is_dropped_elementwise():
    torch.manual_seed(10)
    x = torch.arange(1.0, 36.0).view(5, 7).t().requires_grad_()
    assert not x.is_contiguous()
    y = Dropout(0.5).train()(x)
    assert ((y == 0) | (y == 2 * x)).all()
    assert 0 < (y == 0).sum() < 35
    gradient = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(gradient * x, y)
