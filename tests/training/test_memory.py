"""How much is computed at a time, found where memory is made to be short; on CUDA in the memory that there is."""

import numpy as np
import pytest
import torch

from mt.corpus.batching import Batcher, BatchSampler
from mt.device import Compute
from mt.training import update
from mt.training.memory import MARGIN, tokens_that_fit
from mt.training.optimizer import OptimizerConfig, make_optimizer
from mt.training.update import Updater
from tests.made_up import SPECIALS, Corpus, small_transformer

TOKENS = 200  # of an update
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def updater(device):
    model = small_transformer(device, dropout=0.1)
    schedule = OptimizerConfig(peak_learning_rate=1e-3, schedule="constant", warmup_steps=0)
    return Updater(
        model, make_optimizer(model, schedule), Compute(device, "fp32"), label_smoothing=0.1, gradient_clip=0.0
    )


@pytest.fixture
def parts(device):
    corpus = Corpus(200)
    batcher, sampler = Batcher(corpus, (SPECIALS, SPECIALS), device), BatchSampler(corpus, batch_tokens=TOKENS, seed=1)
    return lambda tokens: batcher.parts_of(sampler.extremes(), tokens)


@pytest.fixture
def scarce(monkeypatch):
    """Lets no batch of more than so many target tokens be computed, and lists the sizes of all that were tried."""
    plain = update.batch_loss

    def arrange(tokens, error=OUT_OF_MEMORY):
        tried = []

        def limited(model, batch, *arguments):
            tried.append(batch.target_tokens)
            if batch.target_tokens > tokens:
                raise error
            return plain(model, batch, *arguments)

        monkeypatch.setattr(update, "batch_loss", limited)
        return tried

    return arrange


def test_an_update_that_fits_is_computed_at_once(updater, parts, caplog):
    assert tokens_that_fit(updater, parts, TOKENS) == TOKENS
    assert not caplog.records


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError()])
def test_tokens_are_halved_until_every_part_fits(updater, parts, scarce, error, caplog):
    tried = scarce(60, error)
    found = tokens_that_fit(updater, parts, TOKENS)
    assert found in (TOKENS // 2, TOKENS // 4, TOKENS // 8)
    assert (
        max(batch.target_tokens for batch in parts(found))
        <= 60
        < max(batch.target_tokens for batch in parts(2 * found))
    )
    assert max(tried) > 60
    assert not caplog.records


def test_a_margin_of_memory_is_left(updater, parts, monkeypatch):
    """Memory that is taken grows with the batch: more than the margin of it for more than 60 target tokens."""

    def share(compute, work):
        sizes = [batch.target_tokens for batch in work.args[1]]
        work()
        return MARGIN * max(sizes) / 60

    monkeypatch.setattr(Compute, "share_of_free_memory", share)
    found = tokens_that_fit(updater, parts, TOKENS)
    assert (
        max(batch.target_tokens for batch in parts(found))
        <= 60
        < max(batch.target_tokens for batch in parts(2 * found))
    )


def test_nothing_is_left_of_the_trial(updater, parts, scarce, device):
    scarce(60)
    before = {name: weight.clone() for name, weight in updater.model.named_parameters()}
    torch.manual_seed(7)
    expected = torch.rand(3, device=device)
    torch.manual_seed(7)
    tokens_that_fit(updater, parts, TOKENS)
    assert torch.equal(torch.rand(3, device=device), expected)
    assert not updater.optimizer.state
    for name, weight in updater.model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])


def test_halving_ends_at_single_sentences_and_a_warning_names_what_helps(updater, parts, scarce, caplog):
    scarce(1)
    found = tokens_that_fit(updater, parts, TOKENS)
    assert all(batch.sentences == 1 for batch in parts(found))
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "hardly memory for one long pair" in record.message
    assert all(remedy in record.message for remedy in ("a smaller --preset", "--set data.max_tokens=N"))


def test_another_error_is_not_mistaken_for_a_lack_of_memory(updater, parts, scarce):
    scarce(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        tokens_that_fit(updater, parts, TOKENS)


def test_the_trial_has_the_longest_sentence_the_most_sentences_and_the_longest_sources_without_and_with_padding():
    corpus = Corpus(200)
    sampler = BatchSampler(corpus, batch_tokens=TOKENS, seed=1)
    longest, most, sources, padded = sampler.extremes()
    updates = sampler.epoch(0)
    lengths = np.maximum(corpus.source.lengths, corpus.target.lengths)
    assert lengths[longest].max() == lengths.max()
    assert len(most) == max(map(len, updates))
    assert corpus.source.lengths[sources].sum() == max(corpus.source.lengths[each].sum() for each in updates)

    def with_padding(update):
        return len(update) * corpus.source.lengths[update].max()

    assert with_padding(padded) == max(map(with_padding, updates))
