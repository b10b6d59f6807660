"""Updates and their tensors: every sentence once, in an order that two numbers fix; batches by hand."""

import tracemalloc
import weakref
from collections import Counter
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from mt.corpus import batching
from mt.corpus.batching import (
    Batcher,
    BatchSampler,
    ahead,
    equal_parts,
    make_batch,
    micro_batches,
    pad_rows,
    padding_mask,
)
from mt.corpus.encoded import BothWays
from mt.corpus.tokenizer import Specials

SPECIALS = Specials(pad=0, unk=1, bos=2, eos=3)


class Side(list):
    """Sentences in memory, as `EncodedSide` gives them."""

    def __init__(self, sentences):
        super().__init__(np.array(ids) for ids in sentences)
        self.lengths = np.array([len(ids) for ids in sentences])


@dataclass
class Corpus:
    source: Side
    target: Side


def random_corpus(count=300, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 30, size=(2, count))
    return Corpus(*(Side([[7] * (length - 1) + [3] for length in side]) for side in lengths))


def sampler(corpus, batch_tokens=200, seed=1, weights=None):
    return BatchSampler(corpus, batch_tokens=batch_tokens, seed=seed, weights=weights)


def plain(updates):
    return [update.tolist() for update in updates]


BY_HAND = Corpus(
    source=Side([[5, 3], [6, 7, 8, 3], [9, 3]]),
    target=Side([[11, 12, 3], [13, 3], [14, 15, 3]]),
)


def test_a_batch_by_hand():
    batch = make_batch(BY_HAND, np.array([1, 0]), SPECIALS, SPECIALS)
    assert batch.source.ids.tolist() == [[6, 7, 8, 3, 5, 3]]
    assert (batch.source.lengths.tolist(), batch.source.tokens, batch.source.longest) == ([4, 2], 6, 4)
    assert batch.target.tolist() == [13, 3, 11, 12, 3]
    assert batch.target_input.ids.tolist() == [[2, 13, 2, 11, 12]]
    assert (batch.target_input.lengths.tolist(), batch.target_input.longest) == ([2, 3], 3)
    assert batch.target_tokens == batch.target_input.tokens == 5
    assert batch.sentences == 2
    assert batch.source.ids.dtype == batch.target.dtype == batch.target_input.ids.dtype == torch.int64


def test_rows_are_filled_up_to_a_multiple():
    batch = make_batch(BY_HAND, np.array([0, 2]), SPECIALS, SPECIALS, multiple=4)
    assert batch.source.ids.tolist() == [[5, 3, 9, 3]]
    assert batch.target_input.ids.tolist() == [[2, 11, 12, 2, 14, 15, 0, 0]]
    assert batch.target.tolist() == [11, 12, 3, 14, 15, 3]
    assert (batch.source.tokens, batch.target_tokens) == (4, 6)


def test_each_side_has_its_own_special_ids():
    theirs = Specials(pad=90, unk=91, bos=92, eos=3)
    batch = make_batch(BY_HAND, np.array([0, 1]), SPECIALS, theirs, multiple=8)
    assert batch.source.ids.tolist() == [[5, 3, 6, 7, 8, 3, 0, 0]]
    assert batch.target_input.ids.tolist() == [[92, 11, 12, 92, 13, 90, 90, 90]]


def test_ids_of_two_bytes_lose_nothing():
    """As they stand on disk."""
    corpus = Corpus(*(Side([]) for _ in range(2)))
    for side in (corpus.source, corpus.target):
        side.append(np.array([65_535, 3], dtype=np.uint16))
        side.lengths = np.array([2])
    batch = make_batch(corpus, np.array([0]), SPECIALS, Specials(pad=70_000, unk=1, bos=70_001, eos=3), multiple=4)
    assert batch.target_input.ids.tolist() == [[70_001, 65_535, 70_000, 70_000]]


def test_a_batch_moves_whole(device):
    batch = make_batch(BY_HAND, np.array([1, 0]), SPECIALS, SPECIALS)
    there = batch.to(device)
    pairs = [(there.target, batch.target)]
    for name in ("source", "target_input"):
        ours, theirs = getattr(there, name), getattr(batch, name)
        assert (ours.tokens, ours.longest) == (theirs.tokens, theirs.longest)
        pairs += [(ours.ids, theirs.ids), (ours.lengths, theirs.lengths)]
    for ours, theirs in pairs:
        assert ours.device.type == device.type
        assert torch.equal(ours.cpu(), theirs)


def test_rows_are_padded_on_the_right():
    rows = [np.array([5]), np.array([6, 7, 8])]
    assert pad_rows(rows, 9).tolist() == [[5, 9, 9], [6, 7, 8]]
    assert padding_mask(np.array([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]
    assert padding_mask(np.array([3, 3]), 3) is None


@pytest.mark.parametrize("number", [0, 1, 7])
def test_an_epoch_holds_every_sentence_once(number):
    updates = sampler(random_corpus()).epoch(number)
    assert sorted(np.concatenate(updates).tolist()) == list(range(300))
    assert all(len(update) for update in updates)


def test_at_first_an_epoch_holds_every_pair_in_both_directions_and_later_as_it_stands():
    corpus = random_corpus()
    updates = BatchSampler(BothWays(corpus), batch_tokens=200, seed=1, bidirectional_epochs=2)
    for number, held in enumerate([600, 600, 300, 300]):
        assert sorted(np.concatenate(updates.epoch(number)).tolist()) == list(range(held))
    assert plain(updates.epoch(3)) == plain(sampler(corpus).epoch(3))


def test_weights_hold_for_both_directions():
    weights = np.array([0.0, 1.0, 2.0])
    updates = BatchSampler(BothWays(BY_HAND), batch_tokens=4, seed=1, weights=weights, bidirectional_epochs=1)
    assert sorted(np.concatenate(updates.epoch(0)).tolist()) == [1, 2, 2, 4, 5, 5]
    assert sorted(np.concatenate(updates.epoch(1)).tolist()) == [1, 2, 2]


def test_a_pair_the_other_way_round_is_a_pair_like_any():
    batch = make_batch(BothWays(BY_HAND), np.array([0, 4]), SPECIALS, SPECIALS)
    assert batch.source.ids.tolist() == [[5, 3, 13, 3]]
    assert batch.target.tolist() == [11, 12, 3, 6, 7, 8, 3]
    assert batch.target_input.ids.tolist() == [[2, 11, 12, 2, 6, 7, 8]]
    assert batch.source.lengths.tolist() == [2, 2]
    assert batch.target_input.lengths.tolist() == [3, 4]


@pytest.mark.parametrize("batch_tokens", [1, 40, 200, 1000, 10**6])
def test_updates_are_about_equal_and_near_the_budget(batch_tokens):
    """The corpus is cut evenly, up to the sentence that lies across a cut."""
    corpus = random_corpus()
    lengths = corpus.target.lengths
    updates = sampler(corpus, batch_tokens).epoch(0)
    count = max(1, round(lengths.sum() / batch_tokens))
    share = lengths.sum() / count
    if batch_tokens >= 40:  # no update is empty then
        assert len(updates) == count
        assert all(abs(lengths[update].sum() - share) < lengths.max() for update in updates)
    assert all(lengths[update].sum() < share + lengths.max() for update in updates)
    if count > 1:
        assert share == pytest.approx(batch_tokens, rel=1 / count)


def plain_epoch(corpus, batch_tokens, seed, number, weights=None):
    """The slow twin of `BatchSampler.epoch`, as it is told: shuffled, sorted by target and source, cut, shuffled."""
    generator = np.random.default_rng((seed, number))
    order = np.arange(len(corpus.target.lengths))
    if weights is not None:
        order = order.repeat(np.floor(weights + generator.random(len(order))).astype(int))
    order = generator.permutation(order)
    order = order[np.lexsort((corpus.source.lengths[order], corpus.target.lengths[order]))]
    tokens = corpus.target.lengths[order].cumsum()
    count = max(1, round(int(tokens[-1]) / batch_tokens))
    cuts = np.searchsorted(tokens, tokens[-1] * np.arange(1, count) / count)
    updates = [update for update in np.split(order, cuts) if len(update)]
    return [updates[i] for i in generator.permutation(len(updates))]


@pytest.mark.parametrize("batch_tokens", [1, 13, 200, 4_999, 10**6])
@pytest.mark.parametrize("longest", [2, 30, 400])
def test_an_epoch_is_the_one_that_plain_sorting_and_summing_make(batch_tokens, longest, monkeypatch):
    monkeypatch.setattr(batching, "DRAWN_AT_A_TIME", 100)
    lengths = np.random.default_rng(longest).integers(1, longest, size=(2, 700))
    corpus = Corpus(*(Side([[7] * length for length in side]) for side in lengths))
    weights = np.random.default_rng(1).choice([0.4, 1.0, 2.5], 700)
    for number, drawn in ((0, None), (1, weights)):
        expected = plain_epoch(corpus, batch_tokens, 5, number, drawn)
        assert plain(sampler(corpus, batch_tokens, 5, drawn).epoch(number)) == plain(expected)


def test_an_epoch_takes_few_bytes_for_each_pair():
    """In the order and its sort; 76 were too many for 20 million pairs."""
    pairs = 50_000
    lengths = np.random.default_rng(1).integers(1, 200, size=(2, pairs))
    corpus = Corpus(*(Side([]) for _ in range(2)))
    corpus.source.lengths, corpus.target.lengths = lengths
    updates = sampler(corpus, 10_000)
    tracemalloc.start()
    updates.epoch(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * pairs


def test_the_first_epoch_is_ordered_once_for_the_trial_of_memory_and_for_training(monkeypatch):
    ordered, plainly = [], BatchSampler.ordered
    monkeypatch.setattr(BatchSampler, "ordered", lambda self, number: ordered.append(number) or plainly(self, number))
    updates = sampler(random_corpus())
    updates.extremes()
    stream = updates.updates(0, 0)
    while next(stream)[2] < (2, 0):
        pass
    assert ordered == [0, 1]


def test_of_two_epochs_only_the_last_one_asked_for_is_kept():
    updates = sampler(random_corpus())
    first = weakref.ref(updates.epoch(0)[0].base)
    assert first() is not None
    updates.epoch(1)
    assert first() is None


def test_an_update_holds_sentences_of_like_length():
    corpus = random_corpus(2000)
    spans = sorted(
        (corpus.target.lengths[update].min(), corpus.target.lengths[update].max())
        for update in sampler(corpus, 500).epoch(0)
    )
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_among_sentences_of_one_target_length_those_of_like_source_length_stand_together():
    generator = np.random.default_rng(3)
    source = generator.integers(1, 30, 400)
    corpus = Corpus(Side([[7] * length for length in source]), Side([[7] * 10] * 400))
    spans = sorted((source[update].min(), source[update].max()) for update in sampler(corpus, 500).epoch(0))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_an_epoch_depends_on_its_seed_and_number_alone():
    corpus = random_corpus()
    once = sampler(corpus)
    for number in (5, 0):
        once.epoch(number)  # what was drawn before does not count
    assert plain(once.epoch(0)) == plain(sampler(corpus).epoch(0))  # kept, and
    assert plain(once.epoch(5)) == plain(sampler(corpus).epoch(5))  # made again
    assert plain(once.epoch(2)) == plain(sampler(corpus).epoch(2))
    assert plain(once.epoch(2)) != plain(once.epoch(3))
    assert plain(once.epoch(2)) != plain(sampler(corpus, seed=2).epoch(2))
    assert plain(once.epoch(2)) != plain(sampler(corpus, seed=2).epoch(1))  # no seed is another one shifted


def test_epochs_group_sentences_anew_and_do_not_run_from_short_to_long():
    corpus = random_corpus()
    one, two = sampler(corpus).epoch(0), sampler(corpus).epoch(1)
    assert {frozenset(update.tolist()) for update in one} != {frozenset(update.tolist()) for update in two}
    longest = [int(corpus.target.lengths[update].max()) for update in one]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("done", [0, 1, 9, 23, 24, 25, 50])
def test_updates_resumed_where_they_stopped_are_those_of_an_uninterrupted_stream(done):
    corpus = random_corpus()
    uninterrupted = list(islice(sampler(corpus).updates(0, 0), 80))
    _, _, stopped = uninterrupted[done - 1] if done else (None, None, (0, 0))
    resumed = islice(sampler(corpus).updates(*stopped), 80 - done)
    for (ours, *places), (theirs, *expected) in zip(resumed, uninterrupted[done:], strict=True):
        assert ours.tolist() == theirs.tolist()
        assert places == expected


def test_the_stream_runs_through_epoch_after_epoch():
    corpus = random_corpus()
    epochs = [sampler(corpus).epoch(number) for number in range(2)]
    stream = list(islice(sampler(corpus).updates(0, 0), len(epochs[0]) + len(epochs[1])))
    assert plain(update for update, _, _ in stream) == plain([*epochs[0], *epochs[1]])
    assert stream[0][1:] == ((0, 0), (0, 1))
    assert stream[len(epochs[0]) - 1][1:] == ((0, len(epochs[0]) - 1), (1, 0))
    assert stream[-1][1:] == ((1, len(epochs[1]) - 1), (2, 0))


def test_weights_are_how_often_an_epoch_holds_a_sentence():
    weights = np.repeat([2.5, 1.0, 0.0, 0.25], 100)
    corpus = random_corpus(400)
    totals = Counter()
    for number in range(40):
        counts = Counter(np.concatenate(sampler(corpus, weights=weights).epoch(number)).tolist())
        assert {counts[i] for i in range(100)} == {2, 3}
        assert {counts[i] for i in range(100, 200)} == {1}
        assert {counts[i] for i in range(200, 300)} == {0}
        assert {counts[i] for i in range(300, 400)} == {0, 1}
        totals.update(counts)
    share = sum(totals[i] for i in range(100)) / 4000
    assert abs(share - 2.5) < 5 * 0.5 / 4000**0.5  # five standard deviations of 4,000 fair coins
    rare = sum(totals[i] for i in range(300, 400)) / 4000
    assert abs(rare - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("budget", [1, 20, 29, 30, 75, 200])
def test_parts_of_an_update_are_equal_and_about_the_budget_at_most(budget):
    corpus = random_corpus()
    indices = np.random.default_rng(4).permutation(300)[:40]
    parts = micro_batches(corpus, indices, budget)
    assert np.concatenate(parts).tolist() == indices.tolist()
    tokens = [int(corpus.target.lengths[part].sum()) for part in parts]
    longest = corpus.target.lengths.max()
    assert all(count <= budget + longest for count in tokens)
    assert max(tokens) - min(tokens) <= 2 * longest


def test_an_update_about_within_the_budget_or_without_one_stays_whole():
    corpus = random_corpus()
    indices = np.arange(100)
    total = int(corpus.target.lengths[:100].sum())
    for budget in (0, total + 1, total, int(total / 1.04)):
        assert plain(micro_batches(corpus, indices, budget)) == [list(range(100))]
    assert len(micro_batches(corpus, indices, int(total / 1.1))) == 2


@pytest.mark.parametrize(("sentences", "parts"), [(2, 2), (4, 2), (128, 8), (7, 3), (2, 3)])
def test_sentences_of_one_length_are_cut_into_parts_that_differ_by_one_at_most(sentences, parts):
    corpus = Corpus(*(Side([[5] * 6] * sentences) for _ in range(2)))
    sizes = [len(part) for part in equal_parts(corpus, np.arange(sentences), parts)]
    assert sum(sizes) == sentences
    assert max(sizes) - min(sizes) <= 1


def test_a_long_source_among_many_short_ones_does_not_pad_them_all():
    corpus = Corpus(Side([[5] * 6] * 63 + [[5] * 200]), Side([[5] * 8] * 64))
    lengths = corpus.source.lengths
    for budget in (0, 1_000, 100):
        parts = micro_batches(corpus, np.arange(64), budget)
        assert np.concatenate(parts).tolist() == list(range(64))
        padded = [len(part) * lengths[part].max() for part in parts]
        assert max(padded) <= 4 * (budget or corpus.target.lengths.sum()) + 201  # a sentence is not cut
    assert len(micro_batches(corpus, np.arange(63), 0)) == 1


def test_an_update_is_cut_down_to_single_sentences_when_its_parts_are_halved_again_and_again():
    corpus = random_corpus()
    indices, size = np.arange(30), int(corpus.target.lengths[:30].sum())
    while max(len(part) for part in micro_batches(corpus, indices, size)) > 1:
        size //= 2
        parts = micro_batches(corpus, indices, size)
        assert np.concatenate(parts).tolist() == indices.tolist()
    assert size >= 1


def test_a_batcher_makes_the_updates_of_its_sampler(device):
    corpus = random_corpus()
    batcher = Batcher(corpus, (SPECIALS, SPECIALS), device)
    made = list(islice(batcher.updates(sampler(corpus), 20, 0, 3), 30))
    for update, (indices, _, after) in zip(made, sampler(corpus).updates(0, 3), strict=False):
        assert (update.epoch, update.position) == after
        assert update.target_tokens == corpus.target.lengths[indices].sum()
        assert all(part.target.device.type == device.type for part in update.parts)
        assert targets(update) == np.concatenate([corpus.target[i] for i in indices]).tolist()


def targets(update):
    return [i for part in update.parts for i in part.target.tolist()]


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_the_sentences_of_each_update(ranks):
    corpus = random_corpus()
    batchers = [Batcher(corpus, (SPECIALS, SPECIALS), torch.device("cpu"), None, rank, ranks) for rank in range(ranks)]
    shares = zip(*(batcher.updates(sampler(corpus), 20, 0, 3) for batcher in batchers), strict=True)
    for updates, (indices, _, after) in islice(zip(shares, sampler(corpus).updates(0, 3), strict=False), 30):
        assert {(update.target_tokens, update.epoch, update.position) for update in updates} == {
            (corpus.target.lengths[indices].sum(), *after)
        }
        together = [i for update in updates for i in targets(update)]
        assert together == np.concatenate([corpus.target[i] for i in indices]).tolist()
        counts = [len(targets(update)) for update in updates]
        assert max(counts) - min(counts) <= 2 * corpus.target.lengths.max()


def test_a_rank_without_a_sentence_has_a_batch_without_a_target():
    corpus = random_corpus()
    one_sentence = sampler(corpus, batch_tokens=1)
    shares = [
        next(Batcher(corpus, (SPECIALS, SPECIALS), torch.device("cpu"), None, rank, 3).updates(one_sentence, 0, 0, 0))
        for rank in range(3)
    ]
    counts = [[part.target_tokens for part in share.parts] for share in shares]
    assert sorted(counts) == [[0], [0], [shares[0].target_tokens]]
    assert all(part.source.tokens for share in shares for part in share.parts)


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_items_made_ahead_are_the_same_items_in_order(depth):
    assert list(ahead(iter(range(7)), depth)) == list(range(7))


def test_items_are_made_ahead_but_not_far():
    made = []
    items = ahead((made.append(number) or number for number in range(100)), 4)
    assert next(items) == 0
    items.close()  # waits for those that are being made
    assert made == [0, 1, 2, 3, 4]


def test_what_goes_wrong_ahead_is_raised_where_the_item_would_have_come():
    def broken():
        yield 1
        raise OSError("the disk is gone")

    items = ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
