"""Sentences that are learned a little differently each time: in other pieces, or as people mistype them.

Subword regularisation is by SentencePiece's own sampling: Kudo 2018 for unigram tokenizers, Provilkov et al. 2020
(BPE-dropout) for BPE.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mt.corpus.encoded import Pairs, Side
from mt.corpus.noise import noisy
from mt.corpus.tokenizer import Tokenizer


class Sentences:
    """Some sentences in memory, as ids that end in `</s>`."""

    def __init__(self, sentences: Sequence[np.ndarray]) -> None:
        self.sentences = sentences
        self.lengths = np.array([len(ids) for ids in sentences])

    def __getitem__(self, index: int) -> np.ndarray:
        return self.sentences[index]


@dataclass(frozen=True, slots=True)
class SentencePairs:
    """Some pairs in memory."""

    source: Sentences
    target: Sentences


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """Makes other versions of a corpus's pairs; what comes out depends on the seeds alone."""

    tokenizers: tuple[Tokenizer, Tokenizer]
    sampling_alpha: float  # see `Tokenizer.sample`; 0: the best pieces
    noise_rate: float  # share of the sources that are made noisy
    noise_from_epoch: int = 0  # before, all sources stay as they are
    max_tokens: int  # a sentence that would become longer stays as it is
    seed: int

    def __call__(self, pairs: Pairs, indices: np.ndarray, epoch: int, number: int) -> SentencePairs:
        """These pairs, in this order, as update `number` of `epoch` learns them."""
        seeds = np.random.SeedSequence((self.seed, epoch, number)).generate_state(2).tolist()
        source, target = self.tokenizers
        noise_rate = self.noise_rate if epoch >= self.noise_from_epoch else 0.0
        return SentencePairs(
            self.version(pairs.source, indices, source, noise_rate, seeds[0]),
            self.version(pairs.target, indices, target, 0.0, seeds[1]),
        )

    def version(self, side: Side, indices: np.ndarray, tokenizer: Tokenizer, noise_rate: float, seed: int) -> Sentences:
        sentences = [side[i] for i in indices]
        generator = random.Random(seed)
        noise = [generator.random() < noise_rate for _ in sentences]
        unknown = tokenizer.specials.unk  # a piece that decodes to nothing: what it stood for would be lost
        changed = [
            i for i, ids in enumerate(sentences) if (noise[i] or self.sampling_alpha) and unknown not in ids.tolist()
        ]
        if not changed:  # SentencePiece takes milliseconds to do nothing
            return Sentences(sentences)
        lines = [tokenizer.decode(sentences[i].tolist()) for i in changed]
        lines = [noisy(line, generator) if noise[i] else line for i, line in zip(changed, lines, strict=True)]
        if self.sampling_alpha:
            encoded = tokenizer.sample(lines, self.sampling_alpha, seed)
        else:
            encoded = tokenizer.encode(lines)
        for i, ids in zip(changed, encoded, strict=True):
            if len(ids) < self.max_tokens and unknown not in ids:
                sentences[i] = np.array([*ids, tokenizer.specials.eos])
        return Sentences(sentences)
