"""Sentences learned otherwise each time: other pieces of the same text, noise, and the same for the same seeds."""

import io
from itertools import islice

import numpy as np
import pytest
import sentencepiece
import torch

from mt.corpus.batching import Batcher, BatchSampler
from mt.corpus.tokenizer import Tokenizer, train_tokenizer
from mt.corpus.variation import SentencePairs, Sentences, Variation
from mt.errors import ConfigError

LINES = [f"the {size} {animal} sleeps on the {place}" for size in ("small", "large", "sleepy") for animal in
         ("cat", "dog", "badger", "elephant") for place in ("mat", "table", "mountain", "sleeper")]  # fmt: skip


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return Tokenizer(train_tokenizer(LINES * 3, type=request.param, vocabulary_size=330)[0])


@pytest.fixture
def pairs(tokenizer):
    sentences = Sentences([np.array([*ids, tokenizer.specials.eos]) for ids in tokenizer.encode(LINES)])
    return SentencePairs(sentences, sentences)


def variation(tokenizer, **changes):
    settings = {"sampling_alpha": 0.3, "noise_rate": 0.0, "max_tokens": 60, "seed": 1}
    return Variation(tokenizers=(tokenizer, tokenizer), **settings | changes)


def rows(side):
    return [side[i].tolist() for i in range(len(side.lengths))]


def test_the_text_is_the_same_in_other_pieces(tokenizer, pairs):
    indices = np.array([3, 3, *range(40)])
    drawn = variation(tokenizer)(pairs, indices, 0, 1)
    for side in (drawn.source, drawn.target):
        assert [tokenizer.decode(row[:-1]) for row in rows(side)] == [LINES[i] for i in indices]
        assert all(row[-1] == tokenizer.specials.eos for row in rows(side))
        assert side.lengths.tolist() == [len(row) for row in rows(side)]
        assert rows(side) != [pairs.source[i].tolist() for i in indices]
    assert rows(drawn.source) != rows(drawn.target)  # each side is drawn by itself


@pytest.mark.parametrize("kind", [{}, {"sampling_alpha": 0.0, "noise_rate": 0.5}], ids=["pieces", "noise"])
def test_a_draw_depends_on_the_seeds_alone(tokenizer, pairs, kind):
    indices = np.arange(40)
    drawn = [rows(variation(tokenizer, seed=seed, **kind)(pairs, indices, *more).source) for seed, *more in
             ((1, 0, 1), (2, 0, 1), (1, 0, 2), (1, 1, 1), (1, 0, 1))]  # fmt: skip
    assert drawn[0] == drawn[-1]
    assert all(other != drawn[0] for other in drawn[1:-1])


def test_a_sentence_that_would_become_too_long_stays_as_it_is(tokenizer, pairs):
    most = int(pairs.source.lengths.max())
    free, bound = (
        rows(variation(tokenizer, max_tokens=tokens)(pairs, np.arange(40), 0, 1).source) for tokens in (99, most)
    )
    assert max(map(len, free)) > most
    for i, (there, here) in enumerate(zip(free, bound, strict=True)):
        assert here == (there if len(there) <= most else pairs.source[i].tolist())


def test_updates_are_drawn_anew_each_epoch_and_again_when_they_are_repeated(tokenizer, pairs):
    specials = (tokenizer.specials, tokenizer.specials)
    batcher = Batcher(pairs, specials, torch.device("cpu"), variation(tokenizer))
    order = BatchSampler(pairs, batch_tokens=10**6, seed=1)  # an epoch is an update
    targets = [update.parts[0].target.tolist() for update in islice(batcher.updates(order, 0, 0, 0), 3)]
    assert targets[0] != targets[1] != targets[2]
    again = next(batcher.updates(order, 0, 2, 0))
    assert again.parts[0].target.tolist() == targets[2]


def test_micro_batches_share_what_was_drawn_once(tokenizer, pairs):
    specials = (tokenizer.specials, tokenizer.specials)
    batcher = Batcher(pairs, specials, torch.device("cpu"), variation(tokenizer))
    order = BatchSampler(pairs, batch_tokens=10**6, seed=1)
    whole = next(batcher.updates(order, 0, 0, 0))
    cut = next(batcher.updates(order, 200, 0, 0))
    assert len(cut.parts) > 1
    assert torch.cat([part.target for part in cut.parts]).tolist() == whole.parts[0].target.tolist()


def test_some_sources_become_noisy_and_no_target_does(tokenizer, pairs):
    drawn = variation(tokenizer, sampling_alpha=0.0, noise_rate=0.3)(pairs, np.arange(48), 0, 1)
    assert rows(drawn.target) == rows(pairs.target)
    lines = [tokenizer.decode(row[:-1]) for row in rows(drawn.source)]
    changed = [(line, before) for line, before in zip(lines, LINES, strict=True) if line != before]
    assert 3 < len(changed) < 22  # of 48, 11 on average
    assert any(line == before.title() for line, before in changed)


def test_the_first_epochs_have_no_noise_where_that_is_asked_for(tokenizer, pairs):
    order = BatchSampler(pairs, batch_tokens=200, seed=1)
    late = variation(tokenizer, sampling_alpha=0.0, noise_rate=0.9, noise_from_epoch=2)
    epochs = {0: [], 1: [], 2: [], 3: []}
    for indices, (epoch, number), _ in islice(order.updates(0, 0), 4 * len(order.epoch(0))):
        drawn = rows(late(pairs, indices, epoch, number).source)
        epochs[epoch].append(drawn == [pairs.source[i].tolist() for i in indices])
    assert all(epochs[0] + epochs[1])
    assert not any(epochs[2] + epochs[3])


def test_memory_is_tried_with_noise(tokenizer, pairs):
    late = variation(tokenizer, sampling_alpha=0.0, noise_rate=0.9, noise_from_epoch=2)
    batcher = Batcher(pairs, (tokenizer.specials, tokenizer.specials), torch.device("cpu"), late)
    tried = batcher.parts_of([np.arange(48)], 0)
    assert sum(part.source.tokens for part in tried) > batcher.batch(np.arange(48)).source.tokens


def test_noise_and_sampling_go_together(tokenizer, pairs):
    drawn = variation(tokenizer, noise_rate=1.0)(pairs, np.arange(48), 0, 1)
    again = variation(tokenizer, noise_rate=1.0)(pairs, np.arange(48), 0, 1)
    assert rows(drawn.source) == rows(again.source)
    same = sum(tokenizer.decode(row[:-1]) == line for row, line in zip(rows(drawn.source), LINES, strict=True))
    assert 6 < same < 28  # of 48, 16 on average: they are in lower case anyway
    assert [tokenizer.decode(row[:-1]) for row in rows(drawn.target)] == LINES


def test_what_is_unknown_to_a_tokenizer_is_not_lost(tokenizer):
    unknown = tokenizer.specials.unk
    sentences = Sentences([np.array([unknown, 5, 6, tokenizer.specials.eos])])
    drawn = variation(tokenizer, noise_rate=1.0)(SentencePairs(sentences, sentences), np.array([0]), 0, 1)
    assert rows(drawn.source) == rows(drawn.target) == rows(sentences)


def tokenizer_of_characters():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, model_type="char", vocab_size=30, minloglevel=2
    )
    return Tokenizer(model.getvalue())


def test_noise_that_a_tokenizer_has_no_pieces_for_is_not_learned():
    """Of capitals it would make unknown ones; letters that are left out, doubled or swapped it knows."""
    tokenizer = tokenizer_of_characters()
    specials = tokenizer.specials
    sentences = Sentences([np.array([*ids, specials.eos]) for ids in tokenizer.encode(LINES)])
    noise = variation(tokenizer, sampling_alpha=0.0, noise_rate=1.0)
    drawn = rows(noise(SentencePairs(sentences, sentences), np.arange(48), 0, 1).source)
    assert not any(specials.unk in row for row in drawn)
    assert [tokenizer.decode(row[:-1]) for row in drawn] != LINES


def test_a_tokenizer_without_other_pieces_is_one_clear_error():
    with pytest.raises(ConfigError, match="this tokenizer has no other pieces to draw"):
        tokenizer_of_characters().sample(LINES, 0.3, 1)
