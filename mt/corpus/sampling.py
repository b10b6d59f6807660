"""Subword regularisation: a sentence is split into other pieces each time it is learned from.

Kudo 2018 for unigram tokenizers, Provilkov et al. 2020 (BPE-dropout) for BPE; both are SentencePiece's own sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mt.corpus.encoded import Pairs
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


@dataclass(frozen=True, slots=True)
class PieceSampler:
    """Splits pairs of a corpus into pieces anew; what comes out depends on the seeds alone."""

    tokenizers: tuple[Tokenizer, Tokenizer]
    alpha: float  # see `Tokenizer.sample`
    max_tokens: int  # a sentence that would become longer stays as it is
    seed: int

    def __call__(self, pairs: Pairs, indices: np.ndarray, *more_seeds: int) -> SentencePairs:
        """These pairs, in this order."""
        seeds = np.random.SeedSequence((self.seed, *more_seeds)).generate_state(2).tolist()
        source, target = (
            Sentences(self.split([side[i] for i in indices], tokenizer, seed))
            for side, tokenizer, seed in zip((pairs.source, pairs.target), self.tokenizers, seeds, strict=True)
        )
        return SentencePairs(source, target)

    def split(self, sentences: list[np.ndarray], tokenizer: Tokenizer, seed: int) -> list[np.ndarray]:
        lines = [tokenizer.decode(ids.tolist()) for ids in sentences]
        sampled = [np.array([*ids, tokenizer.specials.eos]) for ids in tokenizer.sample(lines, self.alpha, seed)]
        return [new if len(new) <= self.max_tokens else old for new, old in zip(sampled, sentences, strict=True)]
