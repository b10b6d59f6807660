"""Which sentences make an update, and the tensors of a batch.

An epoch is a permutation that depends on the seed and the epoch's number alone, so that where training stands is two
numbers: the epoch and the position in it.

Shapes: B sentences, M tokens of a row.
"""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from mt.corpus.encoded import Pairs
from mt.corpus.tokenizer import Specials
from mt.corpus.variation import Variation
from mt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PackedSentences:
    """One side of a batch: sentences laid end to end in one row, whose end is filled up with padding."""

    ids: Tensor  # (1, M)
    lengths: Tensor  # (B,) real tokens of each sentence
    tokens: int  # their sum
    longest: int
    seen: Tensor | None = None  # (1, M) 0 where a token's embedding is cut off, else 1; None: all are seen

    def to(self, device: torch.device) -> "PackedSentences":
        seen = None if self.seen is None else to_device(self.seen, device)
        return replace(self, ids=to_device(self.ids, device), lengths=to_device(self.lengths, device), seen=seen)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sentences with their translations, in the same order."""

    source: PackedSentences  # each sentence ended by </s>
    target_input: PackedSentences  # <s> and the target without its </s>
    target: Tensor  # (target_tokens,) the targets, each ended by </s>

    @property
    def target_tokens(self) -> int:
        """Real target tokens, `</s>` counted."""
        return len(self.target)

    @property
    def sentences(self) -> int:
        return len(self.target_input.lengths)

    def to(self, device: torch.device) -> "Batch":
        """This batch on another device; towards CUDA the copies are asynchronous."""
        return Batch(self.source.to(device), self.target_input.to(device), to_device(self.target, device))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def pad_rows(rows: list[np.ndarray], value: int) -> Tensor:
    """Rows of different lengths as one tensor (B, longest)."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def padding_mask(lengths: np.ndarray, width: int) -> Tensor | None:
    """(B, width), True at real tokens; None when every row is full."""
    if (lengths == width).all():
        return None
    return torch.from_numpy(np.arange(width) < lengths[:, None])


def make_batch(corpus: Pairs, indices: np.ndarray, source: Specials, target: Specials, *, multiple: int = 1) -> Batch:
    """The tensors of these sentences; rows are padded to a multiple of `multiple` tokens."""
    targets = np.concatenate([corpus.target[i] for i in indices]).astype(np.int64)
    lengths = corpus.target.lengths[indices].astype(np.int64)
    shifted = np.roll(targets, 1)
    shifted[lengths.cumsum() - lengths] = target.bos  # in place of the </s> of the sentence before
    sources = np.concatenate([corpus.source[i] for i in indices]).astype(np.int64)
    return Batch(
        pack(sources, corpus.source.lengths[indices].astype(np.int64), source.pad, multiple),
        pack(shifted, lengths, target.pad, multiple),
        torch.from_numpy(targets),
    )


def pack(ids: np.ndarray, lengths: np.ndarray, pad: int, multiple: int) -> PackedSentences:
    tokens = len(ids)
    row = np.full((1, -(-tokens // multiple) * multiple), pad)
    row[0, :tokens] = ids
    return PackedSentences(torch.from_numpy(row), torch.from_numpy(lengths), tokens, int(lengths.max()))


@dataclass(frozen=True, slots=True)
class Update:
    """What one step learns from, or this process's part of it, and where training stands after it."""

    parts: list[Batch]  # micro-batches
    target_tokens: int  # of the whole update, in all processes
    epoch: int
    position: int  # updates done of the epoch


EpochPosition: TypeAlias = tuple[int, int]  # an epoch, and how many of its updates come before
DRAWN_AT_A_TIME = 1 << 20  # sentences whose copies are counted: several numbers for each would fill memory


def narrow(lengths: np.ndarray) -> np.ndarray:
    """The same numbers in as few bytes as they need: those of one or two bytes NumPy sorts by radix, in linear time."""
    return lengths.astype(np.min_scalar_type(lengths.max()))


def even_cuts(counts: np.ndarray, batch_tokens: int) -> np.ndarray:
    """Where sentences in the order of their lengths are cut into updates of about `batch_tokens` each.

    There are `counts[length]` sentences of each length.  With n updates the k-th cut stands before the first sentence
    with which the running sum of tokens reaches k/n of all; what that sum would find is computed from the counts.
    """
    tokens = counts * np.arange(len(counts))
    sentences_before, tokens_before = counts.cumsum() - counts, tokens.cumsum() - tokens
    total = int(tokens.sum())
    updates = max(1, round(total / batch_tokens))
    wanted = np.ceil(total * np.arange(1, updates) / updates).astype(np.int64)
    length = np.searchsorted(tokens.cumsum(), wanted)  # of the sentence with which so many tokens are reached
    return sentences_before[length] + -(-(wanted - tokens_before[length]) // length) - 1


class BatchSampler:
    """Cuts a corpus into updates of about `batch_tokens` real target tokens, sentences of like length together.

    `weights` holds, for each sentence, how often an epoch contains it: 2.5 means twice, and a third time with
    a probability of a half.  The first `bidirectional_epochs` hold all pairs of a `BothWays`, later ones its first
    half: the pairs as they stand.
    """

    def __init__(
        self,
        corpus: Pairs,
        *,
        batch_tokens: int,
        seed: int,
        weights: np.ndarray | None = None,
        bidirectional_epochs: int = 0,
    ):
        self.source_lengths = narrow(corpus.source.lengths)
        self.target_lengths = narrow(corpus.target.lengths)
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.weights = weights
        self.bidirectional_epochs = bidirectional_epochs
        self.kept: tuple[int, list[np.ndarray]] = (-1, [])  # the epoch asked for last, and its updates

    def pairs(self, epoch: int) -> int:
        """How many of the corpus's pairs, from the first on, belong to an epoch."""
        halves = 2 if self.bidirectional_epochs and epoch >= self.bidirectional_epochs else 1
        return len(self.target_lengths) // halves

    def epoch(self, number: int) -> list[np.ndarray]:
        """All updates of an epoch, as arrays of sentence numbers, in the order of training.

        They are kept until another epoch is asked for: `extremes` and then training ask for the first.
        """
        if number != self.kept[0]:
            self.kept = (-1, [])  # makes room
            self.kept = (number, self.ordered(number))
        return self.kept[1]

    def ordered(self, number: int) -> list[np.ndarray]:
        """The updates of `epoch`, made anew."""
        generator = np.random.default_rng((self.seed, number))
        order = self.drawn(number, generator)
        if not len(order):
            raise ConfigError("the weights of data.train leave an epoch without a pair", "raise a weight")
        cuts = even_cuts(np.bincount(self.target_lengths[order]), self.batch_tokens)
        generator.shuffle(order)
        for lengths in (self.source_lengths, self.target_lengths):  # by target, then source, then as shuffled
            order = order[np.argsort(lengths[order], kind="stable")]
        updates = [update for update in np.split(order, cuts) if len(update)]
        return [updates[i] for i in generator.permutation(len(updates))]

    def drawn(self, number: int, generator: np.random.Generator) -> np.ndarray:
        """The sentences of an epoch, in the order of the corpus, each as often as its weight says."""
        count = self.pairs(number)
        if self.weights is None:
            return np.arange(count)
        blocks = []
        for first in range(0, count, DRAWN_AT_A_TIME):
            sentences = np.arange(first, min(first + DRAWN_AT_A_TIME, count))
            weights = self.weights[sentences % len(self.weights)]  # repeated for the other direction
            copies = np.floor(weights + generator.random(len(sentences))).astype(np.int64)
            blocks.append(sentences.repeat(copies))
        return np.concatenate(blocks)

    def extremes(self) -> list[np.ndarray]:
        """The updates of the first epoch that take the most memory, each in its way.

        They have the longest sentence, the most sentences, the most source tokens, and the most with padding.
        """
        updates = self.epoch(0)
        measures = (
            lambda update: max(self.source_lengths[update].max(), self.target_lengths[update].max()),
            len,
            lambda update: self.source_lengths[update].sum(dtype=np.int64),
            lambda update: len(update) * int(self.source_lengths[update].max()),
        )
        return [max(updates, key=measure) for measure in measures]

    def updates(self, epoch: int, position: int) -> Iterator[tuple[np.ndarray, EpochPosition, EpochPosition]]:
        """Endless updates from update `position` of `epoch` on, each with its own place and the one that follows."""
        while True:
            updates = self.epoch(epoch)
            for number in range(position, len(updates)):
                last = number + 1 == len(updates)
                yield updates[number], (epoch, number), (epoch + 1, 0) if last else (epoch, number + 1)
            epoch, position = epoch + 1, 0


SLACK = 1.05  # an update that is a little above the budget is not worth a second part
MOST_PADDED = 4  # times as many source tokens, with padding, as target tokens that are computed at a time


def micro_batches(corpus: Pairs, indices: np.ndarray, micro_batch_tokens: int) -> list[np.ndarray]:
    """An update cut into equal parts of about `micro_batch_tokens` target tokens at most (0: no limit), to save memory.

    There are more parts, even without a limit, where one long source would pad many short ones to its length.
    """
    tokens = int(corpus.target.lengths[indices].sum())
    padded = len(indices) * int(corpus.source.lengths[indices].max())
    most = micro_batch_tokens or tokens
    count = max(math.ceil(tokens / most) if tokens > SLACK * most else 1, math.ceil(padded / (MOST_PADDED * most)))
    return [part for part in equal_parts(corpus, indices, count) if len(part)]


def equal_parts(corpus: Pairs, indices: np.ndarray, count: int) -> list[np.ndarray]:
    """Sentences cut into so many runs of about as many target tokens; some are empty where sentences are few."""
    tokens = corpus.target.lengths[indices].cumsum()
    return np.split(indices, np.searchsorted(tokens, tokens[-1] * np.arange(1, count) / count, side="right"))


ROW_TOKENS = 64  # rows of tokens are multiples of this


@dataclass(frozen=True, slots=True)
class Batcher:
    """Makes the tensors of a corpus's sentences, on a device."""

    corpus: Pairs
    specials: tuple[Specials, Specials]  # of source and target
    device: torch.device
    variation: Variation | None = None  # updates hold another version of their sentences each time
    rank: int = 0  # of the processes that share each update, which one this is
    ranks: int = 1

    def batch(self, indices: np.ndarray) -> Batch:
        return self.batch_of(self.corpus, indices)

    def batch_of(self, pairs: Pairs, indices: np.ndarray) -> Batch:
        """These sentences, in rows of few different lengths, since kernels are made anew for each length."""
        return make_batch(pairs, indices, *self.specials, multiple=ROW_TOKENS).to(self.device)

    def updates(self, sampler: BatchSampler, micro_batch_tokens: int, epoch: int, position: int) -> Iterator[Update]:
        """What `sampler.updates` yields, as tensors; for a GPU they are made while it computes."""

        def made(indices: np.ndarray, place: EpochPosition, next_place: EpochPosition) -> Update:
            pairs, indices = self.as_learned(indices, place)
            tokens = int(pairs.target.lengths[indices].sum())
            return Update(self.own_parts(pairs, indices, micro_batch_tokens), tokens, *next_place)

        updates = (made(*update) for update in sampler.updates(epoch, position))
        return ahead(updates, AHEAD) if self.device.type == "cuda" else updates

    def parts_of(self, updates: list[np.ndarray], micro_batch_tokens: int) -> list[Batch]:
        """This rank's micro-batches of some updates, one after another, varied as in most epochs."""
        epoch = self.variation.noise_from_epoch if self.variation else 0
        learned = [self.as_learned(indices, (epoch, number)) for number, indices in enumerate(updates)]
        return [part for pairs, indices in learned for part in self.own_parts(pairs, indices, micro_batch_tokens)]

    def as_learned(self, indices: np.ndarray, place: EpochPosition) -> tuple[Pairs, np.ndarray]:
        """Where an update's sentences are found, varied for its place in training, and their numbers there."""
        if not self.variation:
            return self.corpus, indices
        return self.variation(self.corpus, indices, *place), np.arange(len(indices))

    def own_parts(self, pairs: Pairs, indices: np.ndarray, micro_batch_tokens: int) -> list[Batch]:
        """This rank's share of an update; where sentences are too few, one that brings no target to learn from."""
        own = equal_parts(pairs, indices, self.ranks)[self.rank]
        if not len(own):
            idle = self.batch_of(pairs, indices[:1])
            return [replace(idle, target=idle.target[:0])]
        return [self.batch_of(pairs, part) for part in micro_batches(pairs, own, micro_batch_tokens)]


AHEAD = 4  # updates that wait for the GPU
Item = TypeVar("Item")


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, up to `depth` of them made beforehand in a thread."""
    end = object()
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield cast(Item, item)
