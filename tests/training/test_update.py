"""Updates the fast way (packed sentences, chunked loss, the CPU's own attention) against the plain way."""

import numpy as np
import pytest
import torch
from torch import nn

from mt.corpus.batching import Batcher, Update, pad_rows, padding_mask
from mt.device import Compute
from mt.pipelines.train import use_fastest_kernel
from mt.training import loss as loss_module
from mt.training.loss import plain_loss
from mt.training.optimizer import OptimizerConfig, make_optimizer
from mt.training.update import Updater, batch_loss
from tests.made_up import SPECIALS, Corpus, V, small_transformer

RATE, CLIP, SMOOTHING = 1e-3, 1.0, 0.1


def new_updater(compute):
    model = small_transformer(compute.device)
    optimizer = make_optimizer(
        model, OptimizerConfig(peak_learning_rate=RATE, schedule="constant", warmup_steps=0, epsilon=1e-6)
    )
    return Updater(model, optimizer, compute, label_smoothing=SMOOTHING, gradient_clip=CLIP)


def plain_update(updater, corpus, indices):
    """Padded rows, fused attention, the whole matrix of logits: what anybody would write."""
    model, device = updater.model, updater.compute.device
    targets = [corpus.target[i] for i in indices]
    lengths = corpus.target.lengths[indices]
    source = pad_rows([corpus.source[i] for i in indices], SPECIALS.pad).to(device)
    mask = padding_mask(corpus.source.lengths[indices], source.size(1))
    shifted = pad_rows([np.append(SPECIALS.bos, row[:-1]) for row in targets], SPECIALS.pad).to(device)
    real = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(device)
    hidden = model.hidden(shifted, model.encode(source, None if mask is None else mask.to(device)))
    wanted = torch.from_numpy(np.concatenate(targets)).to(device)
    loss, unsmoothed = plain_loss(hidden[real], model.output_weight, wanted, SMOOTHING)
    (loss / len(wanted)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    updater.optimizer.step()
    updater.optimizer.zero_grad()
    return unsmoothed


def test_fifty_updates_the_fast_way_have_the_losses_of_fifty_plain_ones(device, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), 50 * V))
    compute, corpus = Compute(device, "fp32"), Corpus(200)
    fast, plain = new_updater(compute), new_updater(compute)
    use_fastest_kernel(fast.model, compute)
    batcher = Batcher(corpus, (SPECIALS, SPECIALS), device)
    generator = np.random.default_rng(3)
    losses = []
    for _ in range(50):
        indices = generator.choice(200, 20, replace=False)
        tokens = corpus.target.lengths[indices].sum()
        parts = [batcher.batch(part) for part in np.array_split(indices, 3)]  # micro-batches too
        ours = fast(Update(parts, tokens, 0, 0), RATE).loss.item() / tokens
        theirs = plain_update(plain, corpus, indices).item() / tokens
        losses.append((ours, theirs))
    ours, theirs = zip(*losses, strict=True)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[-1] < ours[0] - 0.2  # it learned something


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e3])
def test_the_norm_of_an_update_is_that_of_its_gradient_before_it_is_clipped(device, clip):
    compute, corpus = Compute(device, "fp32"), Corpus(20)
    batch = Batcher(corpus, (SPECIALS, SPECIALS), device).batch(np.arange(20))
    updater = new_updater(compute)
    (batch_loss(updater.model, batch, SMOOTHING)[0] / batch.target_tokens).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in updater.model.parameters()]).norm().item()
    updater.optimizer.zero_grad()
    updater.gradient_clip = clip
    outcome = updater(Update([batch], batch.target_tokens, 0, 0), RATE)
    assert outcome.gradient_norm.item() == pytest.approx(norm, rel=1e-5)
    assert outcome.faults.tolist() == [0, 0, 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_leaves_no_gradient_and_returns_the_loss_without_smoothing(device, precision):
    compute, corpus = Compute(device, precision), Corpus(20)
    updater = new_updater(compute)
    with torch.no_grad():
        updater.model.target_embedding.weight.zero_()
    batch = Batcher(corpus, (SPECIALS, SPECIALS), device).batch(np.arange(20))
    outcome = updater(Update([batch], batch.target_tokens, 0, 0), 0.0)
    assert outcome.loss.item() / batch.target_tokens == pytest.approx(np.log(V), rel=1e-3)
    assert all(parameter.grad is None for parameter in updater.model.parameters())
    assert updater.guard.history().mean == pytest.approx(np.log(V), rel=1e-3)  # per target token


def test_the_rate_of_an_update_is_that_of_every_weight(device):
    updater = new_updater(Compute(device, "fp32"))
    batch = Batcher(Corpus(20), (SPECIALS, SPECIALS), device).batch(np.arange(20))
    before = {name: weight.detach().clone() for name, weight in updater.model.named_parameters()}
    for rate in (0.0, RATE):
        updater(Update([batch], batch.target_tokens, 0, 0), rate)
        for name, weight in updater.model.named_parameters():
            assert torch.equal(weight, before[name]) == (rate == 0), name


def test_the_gradient_of_an_update_in_bfloat16_is_about_that_in_float32(device):
    """Of every weight, by the kernel that trains, with a row that has a rest."""
    corpus, gradients = Corpus(30), []
    for precision in ("fp32", "bf16"):
        compute = Compute(device, precision)
        updater = new_updater(compute)
        use_fastest_kernel(updater.model, compute)
        batch = Batcher(corpus, (SPECIALS, SPECIALS), device).batch(np.arange(30))
        assert batch.target_input.ids.size(1) > batch.target_tokens
        with compute.autocast():
            batch_loss(updater.model, batch, SMOOTHING)[0].backward()
        gradients.append({name: weight.grad for name, weight in updater.model.named_parameters()})
    for name, exact in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32
        assert (gradients[1][name] - exact).norm() < 0.05 * exact.norm() + 1e-3, name
