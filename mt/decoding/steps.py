"""One token more for every live hypothesis of a beam search: by log-probabilities, or greedily by logits.

Shapes: B sentences, K beams, V vocabulary, or the candidates.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Maxima (..., groups) of groups of x (..., V), and how many tokens these hold together: the last few are in none.

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
