"""The loss by hand, and in chunks against PyTorch's own over the whole matrix."""

import math

import pytest
import torch

from mt.training import loss as module
from mt.training.loss import cross_entropy, label_smoothed_loss, plain_loss

M, E, V = 7, 6, 10


def inputs(device="cpu"):
    generator = torch.Generator().manual_seed(12)
    hidden, weight = torch.randn(M, E, generator=generator), torch.randn(V, E, generator=generator)
    targets = torch.randint(0, V, (M,), generator=generator)
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), targets.to(device)


def values_and_gradients(function, hidden, weight, targets, smoothing):
    """Loss, loss without smoothing, and the gradients of three times the loss (a factor must reach them)."""
    loss, unsmoothed = function(hidden, weight, targets, smoothing)
    return loss.detach(), unsmoothed, *torch.autograd.grad(3 * loss, (hidden, weight))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_uniform_model_is_the_logarithm_of_its_vocabulary(smoothing):
    loss, unsmoothed = label_smoothed_loss(torch.zeros(M, E), torch.randn(V, E), torch.arange(M), smoothing)
    assert loss.item() == pytest.approx(M * math.log(V), rel=1e-6)
    assert unsmoothed.item() == pytest.approx(M * math.log(V), rel=1e-6)


def test_label_smoothing_on_three_words_by_hand():
    hidden = torch.tensor([[math.log(2)], [0.0]])
    weight = torch.tensor([[1.0], [0.0], [0.0]])  # probabilities (1/2, 1/4, 1/4), then (1/3, 1/3, 1/3)
    loss, unsmoothed = label_smoothed_loss(hidden, weight, torch.tensor([0, 2]), 0.3)
    # The target gets 0.7 + 0.1 of the weight, each other word 0.1.
    first = 0.8 * math.log(2) + 0.1 * math.log(4) + 0.1 * math.log(4)
    assert loss.item() == pytest.approx(first + math.log(3), rel=1e-6)
    assert unsmoothed.item() == pytest.approx(math.log(2) + math.log(3), rel=1e-6)


def test_the_gradient_on_three_words_by_hand():
    hidden, weight = torch.tensor([[math.log(2)]], requires_grad=True), torch.tensor([[1.0], [0.0], [0.0]])
    label_smoothed_loss(hidden, weight, torch.tensor([1]), 0.3)[0].backward()
    assert hidden.grad.item() == pytest.approx(0.5 - 0.1, rel=1e-6)  # probability minus wish, of the word with weight 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("tokens_a_chunk", [1, 2, 3, 7, 100])
def test_the_loss_in_chunks_equals_the_plain_one(device, monkeypatch, smoothing, tokens_a_chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), tokens_a_chunk * V + V - 1))
    chunked = values_and_gradients(label_smoothed_loss, *inputs(device), smoothing)
    plain = values_and_gradients(plain_loss, *inputs(device), smoothing)
    for ours, theirs in zip(chunked, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_chunk_is_never_less_than_a_token(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), 1))
    expected = plain_loss(*inputs(), 0.1)[0]
    torch.testing.assert_close(label_smoothed_loss(*inputs(), 0.1)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_second_value_is_without_smoothing_and_for_the_eye_only():
    hidden, weight, targets = inputs()
    loss, unsmoothed = label_smoothed_loss(hidden, weight, targets, 0.1)
    log_probs = (hidden @ weight.T).log_softmax(-1)
    torch.testing.assert_close(unsmoothed, -log_probs[torch.arange(M), targets].sum(), rtol=1e-5, atol=1e-5)
    assert loss.requires_grad
    assert not unsmoothed.requires_grad


@pytest.mark.parametrize("tokens", [4, M])
@pytest.mark.parametrize("tokens_a_chunk", [0, 1, 3, 4, 100])
def test_without_a_gradient_it_is_the_plain_loss_too(device, monkeypatch, tokens_a_chunk, tokens):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), tokens_a_chunk * V))
    hidden, weight, targets = inputs(device)
    expected = plain_loss(hidden, weight, targets[:tokens], 0.1)[1]
    torch.testing.assert_close(cross_entropy(hidden, weight, targets[:tokens]), expected, rtol=1e-5, atol=1e-5)


def test_under_bfloat16_the_loss_in_chunks_is_about_the_plain_one(device, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), 3 * V))
    exact = values_and_gradients(plain_loss, *inputs(device), 0.1)
    with torch.autocast(device.type, torch.bfloat16):
        rounded = values_and_gradients(label_smoothed_loss, *inputs(device), 0.1)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
        without_gradient = cross_entropy(*inputs(device))
    assert not torch.equal(rounded[0], exact[0])  # bfloat16 it was
    assert without_gradient.item() == pytest.approx(exact[1].item(), rel=0.02)


def test_logits_of_a_large_size_do_not_overflow():
    hidden, weight = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0], [0.0]])
    assert label_smoothed_loss(hidden, weight, torch.tensor([0]), 0.0)[0].item() == 0
    assert label_smoothed_loss(hidden, weight, torch.tensor([1]), 0.0)[0].item() == pytest.approx(2e4)


@pytest.mark.parametrize("tokens_a_chunk", [1, 3, 4, 100])
def test_rows_beyond_the_targets_count_for_nothing(device, monkeypatch, tokens_a_chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), tokens_a_chunk * V))
    hidden, weight, targets = inputs(device)
    ours = values_and_gradients(label_smoothed_loss, hidden, weight, targets[:4], 0.1)
    theirs = values_and_gradients(plain_loss, hidden, weight, targets[:4], 0.1)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert ours[2][4:].eq(0).all()
