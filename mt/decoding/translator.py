"""Lines to translations: tokens, batches of like length, search, text.

Lines are translated in windows; within a window identical lines are translated once and sentences of like length
together.  A line of white space only, or of which the tokenizer leaves nothing, gives an empty translation.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from typing import TypedDict

import numpy as np

from mt.corpus.batching import pad_rows, padding_mask
from mt.corpus.casing import without_capitals
from mt.corpus.tokenizer import Tokenizer
from mt.decoding.captured import CapturedSearches
from mt.decoding.search import Hypothesis, SearchConfig, search
from mt.decoding.shortlist import Shortlist
from mt.device import Compute
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.workers import Workers

logger = logging.getLogger(__name__)

FEWEST_TOKENS_A_WORKER = 256  # below, one process searches
MOST_BATCH_TOKENS_ON_CUDA = 65_536


class SearchIds(TypedDict):
    """Target ids that a search begins with, ends with, and never produces."""

    bos: int
    eos: int
    forbidden: list[int]


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A hypothesis as text: the sum of its log-probabilities in nats, the score it is ranked by, its target tokens."""

    text: str
    score: float
    normalized_score: float
    tokens: int  # `</s>` counted


@dataclass(frozen=True, slots=True)
class Translation:
    """A line and its hypotheses, best first."""

    source: str
    hypotheses: list[ScoredText]

    @property
    def text(self) -> str:
        return self.hypotheses[0].text

    def ranked_by(self, length_penalty: float) -> ScoredText:
        """The hypothesis that comes first with another length penalty than it was searched with."""
        return max(self.hypotheses, key=lambda each: each.score / max(1, each.tokens) ** length_penalty)


def default_batch_tokens(compute: Compute, models: Sequence[Transformer], config: SearchConfig) -> int:
    """Sentences x longest source of a batch.

    With two workers on a CPU 8,192 was ahead of 2,048 and 4,096 with a beam of 1; with 5 it was 3,072 that
    was ahead of 2,048 with *tiny*; with 4,096, and with *small*, no difference stood out.  On CUDA it is a power of
    two, so that an interrupted file goes on in the same batches though a little more memory is free now; the greatest,
    65,536, is an estimate.
    """
    if compute.on_cuda:
        token = sum(bytes_a_source_token(model.config, config, compute.product_type.itemsize) for model in models)
        fitting = compute.free_memory() // (2 * token)  # the other half is for logits and what else comes and goes
        return min(MOST_BATCH_TOKENS_ON_CUDA, 1 << max(0, fitting.bit_length() - 1))
    return 8_192 if config.beam == 1 else 3_072


def bytes_a_source_token(model: ModelConfig, search: SearchConfig, number_bytes: int) -> int:
    """What a decoder remembers for each token of a batch's sources: the keys and values of it and of its translations.

    A sentence of S tokens, which is counted as one of `max_length_offset` at least, has translations of at most
    ratio * S + offset tokens.
    """
    remembered = 1 + search.beam * (search.max_length_ratio + 1)
    return math.ceil(model.decoder_layers * 2 * model.width * number_bytes * remembered)


class Translator:
    """One model, or several as an ensemble, with their tokenizers, ready to translate lines."""

    def __init__(
        self,
        models: Sequence[Transformer],
        tokenizers: tuple[Tokenizer, Tokenizer],
        config: SearchConfig,
        compute: Compute,
        *,
        knows_capitals: bool = True,
        shortlist: Shortlist | None = None,
        batch_tokens: int | None = None,
        threads: int = 1,
        workers: int = 1,
        capture: bool = False,
    ) -> None:
        """Without `knows_capitals`, lines in capitals are turned into lower case before the models read them.

        With `workers` above 1, that many processes search; use a `with` block then, which ends them.  With `capture`,
        few sentences at a time are searched by CUDA graphs.
        """
        self.models = models
        self.tokenizers = self.source_tokenizer, self.target_tokenizer = tokenizers
        self.config = config
        self.compute = compute
        self.knows_capitals = knows_capitals
        self.shortlist = shortlist
        self.batch_tokens = batch_tokens or default_batch_tokens(compute, models, config)
        self.threads = threads
        self.max_positions = min(model.config.max_positions for model in models)
        self.processes = workers
        self.workers = Workers(workers, self.translate_batch) if workers > 1 else None
        ids = self.target_tokenizer.specials
        never = sorted({ids.pad, ids.bos, ids.unk} - {ids.eos})
        self.ids: SearchIds = {"bos": ids.bos, "eos": ids.eos, "forbidden": never}
        self.captured = CapturedSearches(models, config, **self.ids) if capture and not shortlist else None

    def __enter__(self) -> "Translator":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.workers:
            self.workers.close()

    def translate(
        self,
        lines: Sequence[str],
        first_number: int | None = 1,
        done: Callable[[float], None] | None = None,
    ) -> list[Translation]:
        """The translation of each line, in order; warnings count lines from `first_number`, None: there are none.

        `done` is told after each batch how many lines it came to: the share of the sentences, as lines may be alike.
        """
        number_of: dict[str, int | None] = {}
        numbers: Iterator[int | None] = repeat(None) if first_number is None else count(first_number)
        for number, line in zip(numbers, lines, strict=False):
            if line.strip():
                number_of.setdefault(line, number)
        read = number_of if self.knows_capitals else [without_capitals(text) for text in number_of]
        encoded = zip(number_of, self.source_tokenizer.encode(list(read), self.threads), strict=True)
        # Of a line of characters that a tokenizer drops nothing is left to be read.
        sentences = {text: self.fit(ids, number_of[text]) for text, ids in encoded if ids}
        texts = list(sentences)
        found: dict[str, list[ScoredText]] = {}
        for batch, results in self.results(list(sentences.values())):
            for i, hypotheses in zip(batch, results, strict=True):
                found[texts[i]] = hypotheses
            if done:
                done(len(lines) * len(batch) / len(sentences))
        nothing = [ScoredText("", 0.0, 0.0, 0)]
        return [Translation(line, found.get(line, nothing)) for line in lines]

    def fit(self, ids: list[int], number: int | None) -> list[int]:
        """A source sentence ended by `</s>`, cut to the positions that the model has; with a number, this is told."""
        if len(ids) >= self.max_positions and number is not None:
            logger.warning(
                "line %s of the input has %s tokens; the model reads %s: the rest is left untranslated",
                f"{number:,}",
                f"{len(ids):,}",
                f"{self.max_positions - 1:,}",
            )
        return [*ids[: self.max_positions - 1], self.source_tokenizer.specials.eos]

    def results(self, sentences: list[list[int]]) -> Iterator[tuple[list[int], list[list[ScoredText]]]]:
        """Batches of numbers of sentences, each with its hypotheses; workers are used where there is enough for all."""
        tokens_each = sum(map(len, sentences)) // self.processes
        enough = len(sentences) >= self.processes and tokens_each >= FEWEST_TOKENS_A_WORKER
        workers = self.workers if enough else None
        batches = self.batches(sentences, self.processes if workers else 1)
        sources = [[sentences[i] for i in batch] for batch in batches]
        found = workers.map(sources) if workers else map(self.translate_batch, sources)
        return zip(batches, found, strict=True)

    def batches(self, sentences: list[list[int]], workers: int = 1) -> list[list[int]]:
        """Numbers of sentences that are searched together: the longest first, under the token budget.

        There are as few as the budget allows, rounded up to a multiple of `workers`, with tokens shared out as evenly
        as can be, so that workers end at about the same time.  A short sentence counts as one of `max_length_offset`
        tokens, since its translation may have more than these.
        """
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        lengths = [max(len(sentences[i]), self.config.max_length_offset) for i in order]

        def cut(batch_tokens: int) -> list[list[int]]:
            batches, start = [], 0
            while start < len(order):
                batches.append(order[start : start + max(1, batch_tokens // lengths[start])])
                start += len(batches[-1])
            return batches

        number = math.ceil(len(cut(self.batch_tokens)) / workers) * workers
        # Of budgets under which there are no more batches than that, the smallest.
        budgets = range(min(self.batch_tokens, len(order) * max(lengths, default=0)))
        budget = bisect_left(budgets, -number, key=lambda tokens: -len(cut(tokens)))
        return cut(budget)

    def translate_batch(self, sentences: list[list[int]]) -> list[list[ScoredText]]:
        """The hypotheses of a batch of source ids, as text."""
        rows = [np.array(ids) for ids in sentences]
        lengths = np.array([len(ids) for ids in sentences])
        source = pad_rows(rows, self.source_tokenizer.specials.pad)  # (B, S)
        mask = padding_mask(lengths, source.size(1))
        limits = [min(self.config.max_target_tokens(len(ids)), self.max_positions) for ids in sentences]
        candidates = self.shortlist.candidates(source) if self.shortlist else None
        source = source.to(self.compute.device)
        mask = None if mask is None else mask.to(self.compute.device)
        with self.compute.autocast():
            if self.captured and self.captured.takes(limits):
                found = self.captured.search(source, mask, limits)
            else:
                found = search(self.models, source, mask, limits, self.config, candidates=candidates, **self.ids)
        return [[self.as_text(hypothesis) for hypothesis in hypotheses] for hypotheses in found]

    def as_text(self, hypothesis: Hypothesis) -> ScoredText:
        text = self.target_tokenizer.decode(hypothesis.ids)
        return ScoredText(text, hypothesis.score, hypothesis.normalized_score, len(hypothesis.ids) + 1)
