"""Two passes made to predict alike: by hand, in chunks against PyTorch's own, and through a whole model."""

import math

import numpy as np
import pytest
import torch

from mt.corpus.batching import ROW_TOKENS, Batcher
from mt.errors import ConfigError
from mt.model.packing import Packing
from mt.training import consistency as module
from mt.training.config import TrainingConfig
from mt.training.consistency import Consistency, consistent_loss, plain_consistent_loss
from mt.training.loss import plain_loss
from mt.training.update import batch_loss, last_hidden
from tests.made_up import SPECIALS, Corpus, small_transformer

TOKENS, REST, E, PIECES = 7, 3, 6, 10
METHODS = [
    Consistency(method="r-drop", alpha=5.0, cutoff=0.0),
    Consistency(method="simcut", alpha=3.0, cutoff=0.1),
    Consistency(method="simcut", alpha=0.0, cutoff=0.1),
]


def inputs(device="cpu"):
    generator = torch.Generator().manual_seed(12)
    hidden = torch.randn(2 * TOKENS + REST, E, generator=generator)
    weight = torch.randn(PIECES, E, generator=generator)
    targets = torch.randint(0, PIECES, (TOKENS,), generator=generator)
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), targets.to(device)


def values_and_gradients(function, hidden, weight, targets, consistency, smoothing=0.1):
    """Loss, loss without smoothing, and the gradients of three times the loss (a factor must reach them)."""
    loss, unsmoothed = function(hidden, weight, targets, smoothing, consistency)
    return loss.detach(), unsmoothed, *torch.autograd.grad(3 * loss, (hidden, weight))


@pytest.mark.parametrize("consistency", METHODS)
@pytest.mark.parametrize("tokens_a_chunk", [1, 3, 7, 100])
def test_the_loss_in_chunks_equals_the_plain_one(device, monkeypatch, consistency, tokens_a_chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), tokens_a_chunk * PIECES))
    chunked = values_and_gradients(consistent_loss, *inputs(device), consistency)
    plain = values_and_gradients(plain_consistent_loss, *inputs(device), consistency)
    for ours, theirs in zip(chunked, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert chunked[2][2 * TOKENS :].eq(0).all()


@pytest.mark.parametrize("consistency", METHODS)
def test_in_bfloat16_it_is_about_the_plain_one(device, consistency):
    exact = values_and_gradients(plain_consistent_loss, *inputs(device), consistency)
    with torch.autocast(device.type, torch.bfloat16):
        rounded = values_and_gradients(consistent_loss, *inputs(device), consistency)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def two_words(method, alpha, smoothing=0.0):
    """One token with two pieces: the passes give the first of them, which is right, 1/2 and 1/4."""
    hidden = torch.tensor([[0.0], [-math.log(3)]])
    weight, targets = torch.tensor([[1.0], [0.0]]), torch.tensor([0])
    return consistent_loss(hidden, weight, targets, smoothing, Consistency(method=method, alpha=alpha, cutoff=0.0))


def test_simcut_by_hand():
    divergence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # of (1/2, 1/2) from (1/4, 3/4)
    loss, unsmoothed = two_words("simcut", 3)
    assert loss.item() == pytest.approx(math.log(2) + 3 * divergence, rel=1e-6)
    assert unsmoothed.item() == pytest.approx(math.log(2), rel=1e-6)


def test_r_drop_by_hand():
    there = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    back = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    loss, unsmoothed = two_words("r-drop", 5)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4) + 5 / 2 * (there + back)) / 2, rel=1e-6)
    assert unsmoothed.item() == pytest.approx(math.log(2), rel=1e-6)


def test_the_second_value_is_for_the_eye_only():
    loss, unsmoothed = consistent_loss(*inputs(), 0.1, METHODS[0])
    assert loss.requires_grad
    assert not unsmoothed.requires_grad


# Through a model


@pytest.fixture
def batch(device):
    return Batcher(Corpus(30), (SPECIALS, SPECIALS), device).batch(np.arange(30))


@pytest.mark.parametrize("method", ["r-drop", "simcut"])
def test_passes_that_do_not_differ_have_the_loss_of_one(device, batch, method):
    model = small_transformer(device)
    found = batch_loss(model, batch, 0.1, Consistency(method=method, alpha=5.0, cutoff=0.0))
    expected = batch_loss(model, batch, 0.1)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_the_passes_differ_by_dropout(device, batch):
    model = small_transformer(device, dropout=0.3)
    consistency = Consistency(method="r-drop", alpha=0.0, cutoff=0.0)
    hidden, tokens = last_hidden(model, consistency.twice(batch)), batch.target_tokens
    assert (hidden[:tokens] - hidden[tokens : 2 * tokens]).abs().mean() > 0.1


def test_each_sentence_is_laid_twice_and_only_the_second_is_cut(device, batch):
    torch.manual_seed(1)
    twice = Consistency(method="simcut", alpha=3.0, cutoff=0.3).twice(batch)
    assert twice.target is batch.target
    for before, after in ((batch.source, twice.source), (batch.target_input, twice.target_input)):
        ids, tokens = before.ids[0, : before.tokens], before.tokens
        assert after.ids.size(1) % ROW_TOKENS == 0
        assert torch.equal(after.ids[0, :tokens], ids)
        assert torch.equal(after.ids[0, tokens : 2 * tokens], ids)
        assert torch.equal(after.lengths, before.lengths.repeat(2))
        assert (after.tokens, after.longest) == (2 * tokens, before.longest)
        assert after.seen[0, :tokens].eq(1).all()
        assert after.seen[0, tokens : 2 * tokens].mean().item() == pytest.approx(0.7, abs=0.15)


def test_a_token_that_is_cut_off_has_its_position_only(device):
    model = small_transformer(device)
    lengths = torch.tensor([3], device=device)
    ids, seen = torch.tensor([[5, 6, 3]], device=device), torch.tensor([[1.0, 0.0, 1.0]], device=device)
    packing = Packing(lengths, longest=3, tokens=3, row=3, seen=seen)
    x = model.embed(model.source_embedding, ids, packing.positions, packing)[0]
    torch.testing.assert_close(x[1], model.positions[1])
    torch.testing.assert_close(x[2], model.source_embedding.weight[3] * 32**0.5 + model.positions[2])


def test_the_gradient_of_a_model_is_that_of_the_plain_loss(device, batch):
    """With words cut off, the same in both ways of computing."""
    consistency, gradients = Consistency(method="simcut", alpha=3.0, cutoff=0.2), []
    for loss in (consistent_loss, plain_consistent_loss):
        torch.manual_seed(7)
        model = small_transformer(device)
        hidden = last_hidden(model, consistency.twice(batch))
        loss(hidden, model.output_weight, batch.target, 0.1, consistency)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_agreement_is_learned(device, batch):
    """Trained on the divergence alone, the passes come to differ less."""
    model = small_transformer(device, dropout=0.3)
    consistency = Consistency(method="r-drop", alpha=5.0, cutoff=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def divergence():
        """The loss beyond both cross-entropies, per token."""
        hidden, tokens = last_hidden(model, consistency.twice(batch)), batch.target_tokens
        loss, _ = consistent_loss(hidden, model.output_weight, batch.target, 0.1, consistency)
        passes = [
            plain_loss(each, model.output_weight, batch.target, 0.1)[0] for each in hidden[: 2 * tokens].split(tokens)
        ]
        return (loss - sum(passes) / 2) / tokens

    torch.manual_seed(2)
    first = divergence().item()
    for _ in range(30):
        optimizer.zero_grad()
        divergence().backward()
        optimizer.step()
    assert divergence().item() < first / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consistency": "rdrop"}, "training.consistency rdrop is none of off, r-drop, simcut"),
        ({"cutoff": 1.0}, r"training.cutoff 1.0 is not at least 0 and below 1"),
        ({"consistency_alpha": -1.0}, "training.consistency_alpha is negative"),
        ({"consistency_from": 1.0}, r"training.consistency_from 1.0 is not at least 0 and below 1"),
        ({"consistency_epochs": -1}, "training.consistency_epochs is negative"),
    ],
)
def test_an_impossible_setting_is_refused(change, message):
    values = {"consistency": "r-drop", "consistency_from": 0.0, "consistency_epochs": 0, "consistency_alpha": 0.0}
    values |= {"cutoff": 0.0, "device": "cpu", "precision": "fp32", "threads": 1}
    values |= {"noise_rate": 0.0, "noise_from_epoch": 0}
    values |= {"compile": False, "micro_batch_tokens": 0, "validate_every_steps": 1, "checkpoint_every_steps": 1}
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**values | change)


def test_what_is_cut_off_depends_on_the_seed_of_the_step_alone():
    """So that a resumed run repeats it."""
    batch, losses = Batcher(Corpus(30), (SPECIALS, SPECIALS), torch.device("cpu")).batch(np.arange(30)), []
    for seed in (5, 5, 6):
        model = small_transformer("cpu")
        torch.manual_seed(seed)
        losses.append(batch_loss(model, batch, 0.1, METHODS[1])[0].item())
    assert losses[0] == losses[1] != losses[2]
