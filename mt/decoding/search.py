"""Beam search over any model with `encode`, `hidden`, `project`, `projection_to` and `config.target_vocabulary`.

Knows token ids and log-probabilities; nothing of text, tokenizers, or which model is behind these.  Scores are
log-probabilities in nats: larger is better.  A hypothesis is ranked by log-probability / length**length_penalty, its
`</s>` counted.  In fp32 what a sentence gets depends on the sentence alone, not on what stands beside it in the batch.

A batch may be given candidates: then nothing else of the vocabulary is looked at, and probabilities add up to one over
them, so that what a sentence gets depends on these too.

Shapes: B sentences, K beams, N = B*K rows, S source length, V vocabulary, or the candidates.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mt.decoding.steps import Beams, Rules, step
from mt.errors import ConfigError
from mt.model.cache import DecoderState
from mt.model.transformer import Transformer

CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27}  # logits that exist at a time
FEWEST_ROWS = 32  # of a product with the projection, which is read anew for each
ASK_EVERY = {"cpu": 1, "cuda": 8}  # steps between the questions whether sentences have finished, each a sync
# Far above all that is of use, and below what floating-point numbers can hold.
GREATEST_PENALTY, GREATEST_RATIO = 10, 1_000

# Sentences: 1, 2 ... 8, 10, 12, 14, 16, 20 ...  Few sizes, as libraries prepare products anew for each number of rows.
BATCH_SIZES = sorted({1, 2, 3} | {base << n for base in (4, 5, 6, 7) for n in range(20)})


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How translations are looked for; a run folder's decoding defaults."""

    beam: int = 5  # hypotheses followed per sentence; 1 is greedy search
    length_penalty: float = 1.0  # rank by log-probability / length**this; 0: by log-probability
    nbest: int = 1  # hypotheses returned per sentence
    max_length_ratio: float = 2.0  # a translation has at most ratio * source tokens + offset tokens
    max_length_offset: int = 10
    scored: bool = True  # false: a single beam computes no log-probabilities; it chooses the same tokens, faster

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ConfigError(f"beam {self.beam} is below 1")
        if not 1 <= self.nbest <= self.beam:
            raise ConfigError(
                f"{self.nbest} best hypotheses of {self.beam} beams cannot be returned",
                f"choose a --beam of at least {self.nbest} and an --nbest of at least 1",
            )
        if not 0 <= self.length_penalty <= GREATEST_PENALTY:
            raise ConfigError(f"length penalty {self.length_penalty:g} is not between 0 and {GREATEST_PENALTY}")
        if not 0 <= self.max_length_ratio <= GREATEST_RATIO or self.max_length_offset < 1:
            raise ConfigError(
                f"max_length_ratio {self.max_length_ratio:g} and max_length_offset {self.max_length_offset}"
                " set no usable limit",
                f"max_length_ratio must be between 0 and {GREATEST_RATIO:,}, max_length_offset at least 1",
            )

    def max_target_tokens(self, source_tokens: int) -> int:
        """The longest translation, `</s>` included, of a sentence of so many tokens, `</s>` included."""
        return int(self.max_length_ratio * source_tokens) + self.max_length_offset


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Target ids without `</s>`, the sum of log-probabilities of these and `</s>`, and the score it is ranked by.

    Both scores are NaN where no log-probabilities were computed.
    """

    ids: list[int]
    score: float
    normalized_score: float


def rules_for(
    config: SearchConfig, limits: Sequence[int], eos: int, forbidden: Sequence[int], device: torch.device
) -> Rules:
    """What the steps of a search for sentences with these limits obey."""
    return Rules(
        eos=eos,
        forbidden=torch.tensor(forbidden, dtype=torch.long, device=device),
        length_penalty=config.length_penalty,
        beams=config.beam,
        wanted=config.nbest,
        scored=config.scored or config.beam > 1,
        limits=torch.tensor(limits, device=device),
        shortest_limit=min(limits),
    )


class History:
    """The tokens and parents of all steps, from which the winners are read once, at the end."""

    def __init__(self, length: int, sentences: int, beams: int, device: torch.device) -> None:
        self.tokens = torch.empty((length, sentences, beams), dtype=torch.long, device=device)
        self.parents = torch.empty_like(self.tokens)

    def append(self, beams: Beams, position: int | Tensor) -> None:
        self.tokens[position], self.parents[position] = beams.tokens, beams.parents

    def select(self, sentences: Tensor) -> None:
        self.tokens, self.parents = self.tokens[:, sentences], self.parents[:, sentences]

    def hypotheses(self, beams: Beams, sentences: Tensor, rules: Rules) -> list[list[Hypothesis]]:
        """The wanted best ended hypotheses of these sentences, traced back from their ends.

        Reading them waits for a GPU: once per group of finished sentences, not per token.
        """
        wanted = (beams.ended_scores, beams.ended, beams.ended_lengths, beams.ended_parents)
        scores, normalized, lengths, beam = (x[sentences, : rules.wanted].cpu().numpy() for x in wanted)
        longest = int(lengths.max())
        tokens, parents = (x[:longest, sentences].cpu().numpy() for x in (self.tokens, self.parents))
        ids = traced_back(tokens, parents, lengths, beam)

        def hypothesis(ids: list[int], length: int, score: float, normalized: float) -> Hypothesis:
            ranked = (score, normalized) if rules.scored else (math.nan, math.nan)
            return Hypothesis(ids[: length - 1], *ranked)

        every = zip(*(x.tolist() for x in (ids, lengths, scores, normalized)), strict=True)
        return [[hypothesis(*one) for one in zip(*each, strict=True) if one[-1] > -math.inf] for each in every]


def traced_back(tokens: np.ndarray, parents: np.ndarray, lengths: np.ndarray, beam: np.ndarray) -> np.ndarray:
    """Ids (B, nbest, steps) of hypotheses (B, nbest) by their lengths, last beams and each step's tokens (steps, B, K).

    What stands from a hypothesis's last token on, `</s>`, is arbitrary.
    """
    steps, sentences, beams = tokens.shape
    if beams == 1:  # it goes on from itself
        return tokens.transpose(1, 2, 0)
    row = np.arange(sentences)[:, None]
    ids = np.zeros((*lengths.shape, steps), dtype=np.int64)
    for position in reversed(range(steps)):
        ids[..., position] = tokens[position, row, beam]
        # A hypothesis is traced back from its last token but one: the last is </s>.
        beam = np.where(position < lengths - 1, parents[position, row, beam], beam)
    return ids


def compacted(settled: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Which sentences of a batch stay and which leave.

    In the last step all leave.  Before, the settled ones leave, except those that fill up the smallest of `BATCH_SIZES`
    that holds the others.  Those that stay keep their places, but for the last ones, which go where others have left.
    """
    unsettled = len(settled) - int(settled.sum())
    if unsettled == len(settled) and not last:
        return torch.arange(len(settled)), torch.empty(0, dtype=torch.long)
    size = 0 if last or not unsettled else BATCH_SIZES[bisect_left(BATCH_SIZES, unsettled)]
    order = settled.int().argsort(stable=True)  # the unsettled first
    chosen, leaving = order[:size], order[size:]
    staying = torch.arange(len(chosen))
    staying[leaving[leaving < size]] = chosen[chosen >= size]
    return staying, leaving


def sentences_at_once(tokens: Tensor, vocabulary: int) -> int:
    """Of how many of the sentences of tokens (B, K) logits exist at a time: what is small stays in a CPU's cache."""
    device = tokens.device.type
    rows = max(FEWEST_ROWS, CHUNK_ELEMENTS[device] // vocabulary)
    return math.ceil(len(tokens) / math.ceil(tokens.numel() / rows))


def next_logits(
    models: Sequence[Transformer], tokens: Tensor, states: Sequence[DecoderState], at_once: int
) -> Iterator[Tensor]:
    """Float32 logits (b, K, V) of the token after tokens (B, K), of so many sentences `at_once`.

    Of several models they are the logarithm of their mean probability, but for a constant.
    """
    K = tokens.size(1)

    def logits_of(hidden: tuple[Tensor, ...]) -> Tensor:
        flat = [model.project(x, state).float() for model, x, state in zip(models, hidden, states, strict=True)]
        logits = [each.unflatten(0, (-1, K)) for each in flat]
        if len(logits) == 1:
            return logits[0]
        return torch.stack([each.log_softmax(-1) for each in logits]).logsumexp(0)  # unscaled, like any logits

    rows = tokens.view(-1, 1)  # (N, 1)
    hidden = [model.hidden(rows, state)[:, -1].split(at_once * K) for model, state in zip(models, states, strict=True)]
    return map(logits_of, zip(*hidden, strict=True))


def numbers_among(candidates: Tensor, ids: Sequence[int]) -> list[int]:
    """Where those of the ids that are candidates stand among them."""
    wanted = torch.tensor(ids, dtype=torch.long, device=candidates.device)
    return torch.isin(candidates, wanted).nonzero().flatten().tolist()


@torch.inference_mode()
def search(
    models: Sequence[Transformer],
    source: Tensor,
    mask: Tensor | None,
    limits: Sequence[int],
    config: SearchConfig,
    *,
    bos: int,
    eos: int,
    forbidden: Sequence[int] = (),
    candidates: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """The `config.nbest` best hypotheses of each source sentence, best first.

    `source` is (B, S) with `mask` True at real tokens, `limits` the most target tokens of each sentence, `candidates`
    (C,) different ids, `</s>` among them, that hypotheses are made of; None: the whole vocabulary.  Finished sentences
    leave as soon as the others fill a smaller batch of one of the `BATCH_SIZES`.
    """
    B, K, device = len(source), config.beam, source.device
    V = models[0].config.target_vocabulary if candidates is None else len(candidates)
    states = [model.encode(source, mask).with_past(K, max(limits)) for model in models]
    if candidates is not None:
        [eos], forbidden = numbers_among(candidates, [eos]), numbers_among(candidates, forbidden)
        candidates = candidates.to(device)
        for model, state in zip(models, states, strict=True):
            state.projection = model.projection_to(candidates)
    beams = Beams.start(B, K, bos, device)
    history = History(max(limits), B, K, device)
    rules = rules_for(config, limits, eos, forbidden, device)
    results: list[list[Hypothesis]] = [[] for _ in range(B)]
    searching = torch.arange(B)  # the sentences that the rows of the batch belong to

    for length in range(max(limits)):
        parts = next_logits(models, beams.tokens, states, sentences_at_once(beams.tokens, V * len(models)))
        beams = step(beams, parts, length, rules)
        if candidates is not None:
            beams = replace(beams, tokens=candidates[beams.tokens])
        history.append(beams, length)
        last = length + 1 == max(limits)
        if last or (length + 1) % ASK_EVERY[device.type] == 0:
            staying, leaving = compacted(beams.settled.cpu(), last)  # sync
            if len(leaving):
                found = history.hypotheses(beams, leaving.to(device, non_blocking=True), rules)
                for sentence, hypotheses in zip(searching[leaving].tolist(), found, strict=True):
                    results[sentence] = hypotheses
                searching = searching[staying]
                if not len(searching):
                    break
                rest = staying.to(device, non_blocking=True)
                beams = beams.select(rest)
                rules = rules.select(rest, min(limits[sentence] for sentence in searching.tolist()))
                history.select(rest)
                for state in states:
                    state.select(staying)
        if K > 1:  # a single beam goes on from itself
            for state in states:
                state.reorder(beams.parents)
    return results
