"""Which sentences make an update, and the tensors of a batch.

An epoch is a permutation that depends on the seed and the epoch's number alone, so that where training stands is two
numbers: the epoch and the position in it.

Shapes: B sentences, S source length, T target length.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from mt.corpus.encoded import EncodedCorpus
from mt.corpus.tokenizer import Specials
from mt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Batch:
    """Sentences padded on the right to common lengths."""

    source: Tensor  # (B, S), each sentence ended by </s>
    source_mask: Tensor | None  # (B, S), True at real tokens; None when nothing is padded
    target_input: Tensor  # (B, T), <s> and the target without its </s>
    target: Tensor  # (B, T), the target ended by </s>
    target_mask: Tensor  # (B, T), True at real tokens
    target_tokens: int  # real target tokens, </s> counted

    def to(self, device: torch.device) -> "Batch":
        """This batch on another device; towards CUDA the copies are asynchronous."""
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return Batch(
            moved(self.source),
            None if self.source_mask is None else moved(self.source_mask),
            moved(self.target_input),
            moved(self.target),
            moved(self.target_mask),
            self.target_tokens,
        )


def pad_rows(rows: list[np.ndarray], value: int, multiple: int = 1) -> Tensor:
    """Rows of different lengths as one tensor (B, longest), rounded up to a multiple."""
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), -(-longest // multiple) * multiple), value, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def padding_mask(lengths: np.ndarray, width: int) -> Tensor | None:
    """(B, width), True at real tokens; None when every row is full."""
    if (lengths == width).all():
        return None
    return torch.from_numpy(np.arange(width) < lengths[:, None])


def make_batch(
    corpus: EncodedCorpus, indices: np.ndarray, source: Specials, target: Specials, *, multiple: int = 1
) -> Batch:
    """The tensors of these sentences, in lengths that are a multiple of `multiple`."""
    targets = [corpus.target[i] for i in indices]
    target_ids = pad_rows(targets, target.pad, multiple)  # (B, T)
    source_ids = pad_rows([corpus.source[i] for i in indices], source.pad, multiple)  # (B, S)
    target_input = target_ids.roll(1, dims=1)  # its </s>, where one comes in, stands behind the real tokens
    target_input[:, 0] = target.bos
    lengths = corpus.target.lengths[indices]
    return Batch(
        source_ids,
        padding_mask(corpus.source.lengths[indices], source_ids.size(1)),
        target_input,
        target_ids,
        torch.from_numpy(np.arange(target_ids.size(1)) < lengths[:, None]),
        int(lengths.sum()),
    )


class BatchSampler:
    """Cuts a corpus into updates of about `batch_tokens` real target tokens, sentences of like length together.

    `weights` holds, for each sentence, how often an epoch contains it: 2.5 means twice, and a third time in every
    second epoch.
    """

    def __init__(self, corpus: EncodedCorpus, *, batch_tokens: int, seed: int, weights: np.ndarray | None = None):
        self.source_lengths = corpus.source.lengths
        self.target_lengths = corpus.target.lengths
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.weights = weights

    def epoch(self, number: int) -> list[np.ndarray]:
        """All updates of an epoch, as arrays of sentence numbers, in the order of training."""
        generator = np.random.default_rng((self.seed, number))
        order = np.arange(len(self.target_lengths))
        if self.weights is not None:
            copies = np.floor(self.weights + generator.random(len(order))).astype(np.int64)
            order = order.repeat(copies)
            if not len(order):
                raise ConfigError("the weights of data.train leave an epoch without a pair", "raise a weight")
        order = generator.permutation(order)
        order = order[np.lexsort((self.source_lengths[order], self.target_lengths[order]))]
        tokens = self.target_lengths[order].cumsum()
        count = max(1, round(int(tokens[-1]) / self.batch_tokens))
        cuts = np.searchsorted(tokens, tokens[-1] * np.arange(1, count) / count)
        updates = [update for update in np.split(order, cuts) if len(update)]
        return [updates[i] for i in generator.permutation(len(updates))]

    def updates(self, epoch: int, position: int) -> Iterator[tuple[np.ndarray, int, int]]:
        """Endless updates from update `position` of `epoch` on, each with the epoch and position that follow it."""
        while True:
            updates = self.epoch(epoch)
            for number in range(position, len(updates)):
                last = number + 1 == len(updates)
                yield updates[number], epoch + last, 0 if last else number + 1
            epoch, position = epoch + 1, 0


def micro_batches(corpus: EncodedCorpus, indices: np.ndarray, micro_batch_tokens: int) -> list[np.ndarray]:
    """An update cut into parts of at most so many target tokens (0: uncut), for memory's sake."""
    tokens = corpus.target.lengths[indices].cumsum()
    if not micro_batch_tokens or tokens[-1] <= micro_batch_tokens:
        return [indices]
    cuts, start = [], 0
    while start < len(indices):
        before = tokens[start - 1] if start else 0
        start = max(start + 1, int(np.searchsorted(tokens, before + micro_batch_tokens, side="right")))
        cuts.append(start)
    return np.split(indices, cuts[:-1])


@dataclass(frozen=True, slots=True)
class Batcher:
    """Makes the tensors of a corpus's sentences, on a device."""

    corpus: EncodedCorpus
    source: Specials
    target: Specials
    device: torch.device

    def batch(self, indices: np.ndarray) -> Batch:
        """These sentences, in lengths that are multiples of 8 where that makes products faster."""
        multiple = 8 if self.device.type == "cuda" else 1
        return make_batch(self.corpus, indices, self.source, self.target, multiple=multiple).to(self.device)

    def updates(
        self, sampler: BatchSampler, micro_batch_tokens: int, epoch: int, position: int
    ) -> Iterator[tuple[list[Batch], int, int]]:
        """What `sampler.updates` yields, as micro-batches; for a GPU they are made while it computes."""
        made = (
            ([self.batch(part) for part in micro_batches(self.corpus, indices, micro_batch_tokens)], *after)
            for indices, *after in sampler.updates(epoch, position)
        )
        return ahead(made, AHEAD) if self.device.type == "cuda" else made


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
