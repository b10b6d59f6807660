"""Beam search over any model with `encode`, `hidden`, `project` and `projection_to`.

Knows token ids and log-probabilities; nothing of text, tokenizers, or which model is behind these.  Scores are
log-probabilities in nats: larger is better.  A hypothesis is ranked by log-probability / length**length_penalty, its
`</s>` counted.  What a sentence gets depends on the sentence alone, never on what stands beside it in the batch.

A batch may be given candidates: then nothing else of the vocabulary is looked at, and probabilities add up to one over
them, so that what a sentence gets depends on these too.

Shapes: B sentences, K beams, N = B*K rows, S source length, V vocabulary, or the candidates.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mt.errors import ConfigError
from mt.model.cache import DecoderState
from mt.model.transformer import Transformer

CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27}  # logits that exist at a time
FEWEST_ROWS = 32  # of a product with the projection, which is read anew for each
ASK_EVERY = {"cpu": 1, "cuda": 8}  # steps between the questions whether sentences have finished, each a sync
GREATEST_PENALTY = 10  # far above all that is of use, and below what floating-point numbers can hold

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
    scored: bool = True  # whether a single beam computes log-probabilities; it chooses the same without, and faster

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
        if not 0 <= self.max_length_ratio < math.inf or self.max_length_offset < 1:
            raise ConfigError(
                f"translations of at most {self.max_length_ratio:g} tokens for each of the source and"
                f" {self.max_length_offset} more may have none",
                "max_length_ratio is a number from 0 on, max_length_offset at least 1",
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


@dataclass(frozen=True, slots=True)
class Rules:
    """What every step obeys: what ends, what is never produced, the length penalty, and each sentence's limit."""

    eos: int  # where it stands on the axis V: its id, or its number among the candidates
    forbidden: Tensor  # the same of tokens never produced
    length_penalty: float
    beams: int  # K
    wanted: int  # hypotheses returned per sentence
    scored: bool  # whether log-probabilities are added up; a single beam can go by each step's logits as well
    limits: Tensor  # (B,) most target tokens, </s> included
    shortest_limit: int  # the least of them, known without asking the device; 0 where it is not

    @classmethod
    def of(
        cls, config: SearchConfig, limits: Sequence[int], eos: int, forbidden: Sequence[int], device: torch.device
    ) -> "Rules":
        return cls(
            eos=eos,
            forbidden=torch.tensor(forbidden, dtype=torch.long, device=device),
            length_penalty=config.length_penalty,
            beams=config.beam,
            wanted=config.nbest,
            scored=config.scored or config.beam > 1,
            limits=torch.tensor(limits, device=device),
            shortest_limit=min(limits),
        )

    def select(self, sentences: Tensor, shortest_limit: int) -> "Rules":
        return replace(self, limits=self.limits[sentences], shortest_limit=shortest_limit)


@dataclass(frozen=True, slots=True)
class Beams:
    """Where a search stands: K live hypotheses and the K best ended ones of each sentence.

    `parents` are beams of the step before.  An ended hypothesis is found again by its length and its last parent.
    Before the first step there is one live hypothesis, which is empty; it may be the first of K rows.
    """

    scores: Tensor  # (B, K) log-probabilities of the live; -inf where none is
    tokens: Tensor  # (B, K) their last tokens
    parents: Tensor  # (B, K) which beam each went on from
    ended: Tensor  # (B, K) normalized scores of the ended, best first; -inf where none is
    ended_scores: Tensor  # (B, K) their log-probabilities
    ended_lengths: Tensor  # (B, K) their lengths, </s> counted
    ended_parents: Tensor  # (B, K) the beam that </s> was appended to
    settled: Tensor  # (B,) True where the ended are final, however long others are still searched for

    @classmethod
    def start(cls, sentences: int, beams: int, bos: int, device: torch.device, rows: int = 1) -> "Beams":
        nothing = torch.full((sentences, beams), -torch.inf, device=device)
        zeros = torch.zeros((sentences, beams), dtype=torch.long, device=device)
        settled = torch.zeros(sentences, dtype=torch.bool, device=device)
        live = torch.full((sentences, rows), -torch.inf, device=device)
        live[:, 0] = 0.0
        return cls(live, zeros[:, :rows] + bos, zeros[:, :rows], nothing, nothing, zeros, zeros, settled)

    def select(self, sentences: Tensor) -> "Beams":
        return Beams(*(getattr(self, name)[sentences] for name in self.__slots__))


def step(beams: Beams, parts: Iterable[Tensor], length: int | Tensor, rules: Rules) -> Beams:
    """Extend every live hypothesis of `length` tokens by one; keep the K best live and the K best ended.

    The length is a number or, where the device alone need know it, (1,).
    `parts` are the logits (b, K, V), at the first step (b, 1, V), of some sentences and then of others, and may be
    written into.  A sentence at its limit can only end.
    """
    return (beam_step if rules.scored else greedy_step)(beams, parts, length, rules)


def greedy_step(beams: Beams, parts: Iterable[Tensor], length: int | Tensor, rules: Rules) -> Beams:
    """`step` of a single beam without scores: it goes on with the greatest logit, and is ranked by 0 when it ends."""
    found, seen = [], 0
    for logits in parts:
        some = slice(seen, seen + len(logits))
        found.append(greatest(allowed(logits, rules.limits[some], length, rules)))
        seen = some.stop
        del logits  # before the next ones are computed
    tokens = torch.cat(found)  # (B, 1)
    ends = (tokens == rules.eos) & ~beams.settled[:, None]
    return replace(
        beams,
        tokens=tokens,
        ended=beams.ended.masked_fill(ends, 0.0),
        ended_lengths=torch.where(ends, length + 1, beams.ended_lengths),
        settled=beams.settled | ends[:, 0],
    )


def beam_step(beams: Beams, parts: Iterable[Tensor], length: int | Tensor, rules: Rules) -> Beams:
    """`step` by log-probabilities, for any number of beams."""
    K, found, seen = rules.beams, [], 0
    for logits in parts:
        some = slice(seen, seen + len(logits))
        log_probs = allowed(logits.log_softmax(-1), rules.limits[some], length, rules)
        found.append(best_sums(beams.scores[some], log_probs, 2 * K))  # since at most K of 2K can end
        seen, V = some.stop, logits.size(-1)
        del logits, log_probs  # before the next ones are computed
    scores, flat = (torch.cat(each) for each in zip(*found, strict=True))  # (B, 2K)
    parents, tokens = flat // V, flat % V
    ends = tokens == rules.eos

    live, order = scores.masked_fill(ends, -torch.inf).topk(K)
    ends[:, K:] = False  # a hypothesis ends only where it is among the K best, as greedy search does with K = 1
    ends &= ~beams.settled[:, None]
    normalized = scores.masked_fill(~ends, -torch.inf) / (length + 1) ** rules.length_penalty
    ended, chosen = torch.cat((beams.ended, normalized), dim=1).topk(K)  # (B, K)

    def pool(before: Tensor, now: Tensor) -> Tensor:
        return torch.cat((before, now), dim=1).gather(1, chosen)

    return Beams(
        scores=live,
        tokens=tokens.gather(1, order),
        parents=parents.gather(1, order),
        ended=ended,
        ended_scores=pool(beams.ended_scores, scores),
        ended_lengths=pool(beams.ended_lengths, torch.ones_like(tokens) + length),
        ended_parents=pool(beams.ended_parents, parents),
        settled=beams.settled | settled(live, ended, rules),
    )


def allowed(log_probs: Tensor, limits: Tensor, length: int | Tensor, rules: Rules) -> Tensor:
    """Log-probabilities or logits (B, K, V) of the next token, -inf where it may not come after `length` tokens."""
    log_probs.index_fill_(-1, rules.forbidden, -torch.inf)  # an assignment would wait for the device
    if not rules.shortest_limit or length + 1 >= rules.shortest_limit:
        ending = log_probs[..., rules.eos].clone()
        log_probs.masked_fill_((limits <= length + 1)[:, None, None], -torch.inf)
        log_probs[..., rules.eos] = ending
    return log_probs


def best_sums(scores: Tensor, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of scores (B, K) + log_probs (B, K, V) of each sentence, and where they stand among K*V.

    They are sought in two steps: the groups of tokens with the largest maxima, then the largest in these.  What is
    among the `count` largest stands in a group whose maximum is, too.  Where there are fewer sums, -inf fills up.
    """
    B, K, V = log_probs.shape
    maxima, split = maxima_of_groups(log_probs)
    groups, maxima = maxima.size(-1), maxima + scores[..., None]  # (B, K, groups)
    chosen = maxima.flatten(1).topk(min(count, K * groups)).indices  # (B, groups chosen)
    firsts = chosen // groups * V + chosen % groups
    members = firsts[..., None] + torch.arange(0, split, groups, device=scores.device)
    outside = (torch.arange(K, device=scores.device) * V)[:, None] + torch.arange(split, V, device=scores.device)
    candidates = torch.cat((members.flatten(1), outside.flatten().expand(B, -1)), dim=1)
    sums = log_probs.flatten(1).gather(1, candidates) + scores.gather(1, candidates // V)
    if sums.size(1) < count:
        missing = (0, count - sums.size(1))
        sums, candidates = F.pad(sums, missing, value=-torch.inf), F.pad(candidates, missing)
    best, which = sums.topk(count)
    return best, candidates.gather(1, which)


def greatest(logits: Tensor) -> Tensor:
    """Where the greatest of logits (B, 1, V) stand: (B, 1), sought as in `best_sums`."""
    maxima, split = maxima_of_groups(logits)
    best, group = maxima.max(-1)  # (B, 1)
    members = group[..., None] + torch.arange(0, split, maxima.size(-1), device=logits.device)
    where = group + maxima.size(-1) * logits.gather(-1, members).argmax(-1)
    if split < logits.size(-1):
        outside, place = logits[..., split:].max(-1)
        where = torch.where(outside > best, split + place, where)
    return where


def maxima_of_groups(x: Tensor) -> tuple[Tensor, int]:
    """The maxima (..., groups) of every so many-th of x (..., V), and the number of V from which on none is in a group.

    Token v is in the group v % groups.
    """
    V = x.size(-1)
    groups = min(V, LANES * math.ceil(V / (LANES * GROUP_SIZE)))
    split = V // groups * groups
    return x[..., :split].unflatten(-1, (-1, groups)).amax(-2), split


GROUP_SIZE = 64  # at most; near the square root of half a vocabulary, which is best
LANES = 16  # numbers that a CPU compares at once: maxima of 128 columns take it a sixth of the time of those of 125


def settled(live: Tensor, ended: Tensor, rules: Rules) -> Tensor:
    """(B,) True where K hypotheses have ended, or where no live one can still enter the wanted best.

    `live` (B, K) are log-probabilities, `ended` (B, K) normalized scores.  Log-probabilities only fall and the penalty
    only grows, so no descendant of a live hypothesis can be ranked above its present log-probability at the greatest
    length.
    """
    bound = live.amax(1) / rules.limits**rules.length_penalty
    return (ended[:, -1] > -torch.inf) | (bound <= ended[:, rules.wanted - 1])


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

        All that is read here a GPU is waited for, once per group of finished sentences and not per token.
        """
        beams = beams.select(sentences)
        longest = int(beams.ended_lengths.max())
        tokens = self.tokens[:longest, sentences].tolist()
        parents = self.parents[:longest, sentences].tolist()
        scores, normalized = beams.ended_scores.tolist(), beams.ended.tolist()
        lengths, last = beams.ended_lengths.tolist(), beams.ended_parents.tolist()
        found: list[list[Hypothesis]] = []
        for b in range(len(sentences)):
            found.append([])
            for k in range(rules.wanted):
                if normalized[b][k] == -torch.inf:
                    continue
                ids, beam = [], last[b][k]
                for position in range(lengths[b][k] - 2, -1, -1):  # the last token, </s>, is in no history
                    ids.append(tokens[position][b][beam])
                    beam = parents[position][b][beam]
                ranked = (scores[b][k], normalized[b][k]) if rules.scored else (math.nan, math.nan)
                found[b].append(Hypothesis(ids[::-1], *ranked))
        return found


def parted(settled: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Which sentences of a batch stay and which leave: all in the last step, else the settled that no size needs.

    Those that stay keep their places, but for the last ones, which go where others have left.
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

    Of several models they are the logarithm of their mean probability.
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
    rules = Rules.of(config, limits, eos, forbidden, device)
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
            staying, leaving = parted(beams.settled.cpu(), last)  # sync
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
