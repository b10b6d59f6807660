"""Which target pieces translate which source pieces, learnt from sentence pairs by IBM Model 1 (Brown et al. 1993).

Each target token is taken to be produced by one source token of its pair, each position being as likely as another.
Expectation-maximisation finds t(e|f), the probability that source piece f produces target piece e.  It starts from
t = 1, and an iteration is

    c(e|f) = the sum, over all tokens e and f of a pair, of t(e|f) / (t(e|f1) + ... + t(e|fn))
    t(e|f) = c(e|f) / (the sum of c(e'|f) over all pieces e')

where f1 ... fn are the source tokens of the pair.  `</s>` ends every source sentence and takes the place of the paper's
empty word, which produces what no other word does.

A link is a target token and a source token of its pair; an entry is a source piece and a target piece with a link.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mt.corpus.encoded import EncodedCorpus

ITERATIONS = 5
LINKS_AT_A_TIME = 1 << 20  # few enough that their entries stay in a processor's cache
SentencePair = tuple[np.ndarray, np.ndarray]  # ids of source and target, each ended by </s>


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Entries, sorted by source piece and then by target piece."""

    source: np.ndarray
    target: np.ndarray
    probability: np.ndarray  # t(target|source)

    def best(self, count: int, fill: np.ndarray) -> np.ndarray:
        """The `count` likeliest target pieces of every source piece; where there are fewer, its `fill` (pieces,)."""
        order = np.lexsort((-self.probability, self.source))
        source, target = self.source[order], self.target[order]
        rank = np.arange(len(source)) - np.searchsorted(source, source)  # the first of a piece has 0
        table = fill[:, None].repeat(count, axis=1)
        kept = rank < count
        table[source[kept], rank[kept]] = target[kept]
        return table


def sample_pairs(corpus: EncodedCorpus, links: int, seed: int) -> list[SentencePair]:
    """All pairs of a corpus, or a random sample with at most `links` links in total; at least one pair."""
    order = np.random.default_rng(seed).permutation(len(corpus))
    total = (corpus.source.lengths[order] * corpus.target.lengths[order]).cumsum()
    chosen = np.sort(order[: max(1, int(np.searchsorted(total, links, side="right")))])
    return [(corpus.source[i], corpus.target[i]) for i in chosen]


@dataclass(frozen=True, slots=True)
class Links:
    """The links of some pairs: of each target token those to all source tokens, one after another."""

    keys: np.ndarray  # the entries that occur here, sorted: source piece * target vocabulary + target piece
    entries: np.ndarray  # (links,) which of these each link belongs to
    firsts: np.ndarray  # (target tokens,) where the links of each begin

    @classmethod
    def of(cls, pairs: Sequence[SentencePair], target_vocabulary: int) -> "Links":
        keys = [source.astype(np.int64) * target_vocabulary + target[:, None] for source, target in pairs]
        known, entries = np.unique(np.concatenate([each.ravel() for each in keys]), return_inverse=True)
        widths = np.repeat([len(source) for source, _ in pairs], [len(target) for _, target in pairs])
        return cls(known, entries.astype(np.int32), widths.cumsum() - widths)

    def expected_counts(self, probability: np.ndarray) -> np.ndarray:
        """How often each entry's source piece is expected to have produced its target piece here."""
        return np.bincount(self.entries, shares(probability[self.entries], self.firsts))


def learn_lexicon(pairs: Sequence[SentencePair], target_vocabulary: int, iterations: int = ITERATIONS) -> Lexicon:
    """The lexicon of these pairs; memory grows with their links."""
    blocks = [Links.of(block, target_vocabulary) for block in blocks_of(pairs)]
    keys = np.concatenate([block.keys for block in blocks])
    keys.sort()  # np.unique, which hashes, takes ten times as long
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    source, target = (part.astype(np.int32) for part in divmod(keys, target_vocabulary))
    firsts = np.flatnonzero(np.diff(source, prepend=-1))  # of the entries of each source piece
    probability = np.ones(len(keys))
    for _ in range(iterations):
        counts = np.zeros(len(keys))
        for block in blocks:
            here = np.searchsorted(keys, block.keys)
            counts[here] += block.expected_counts(probability[here])
        probability = shares(counts, firsts)
    return Lexicon(source, target, probability)


def shares(values: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Each value divided by the sum of its group; groups follow one another and begin at `firsts`."""
    return values / np.add.reduceat(values, firsts).repeat(np.diff(firsts, append=len(values)))


def blocks_of(pairs: Sequence[SentencePair]) -> Iterator[Sequence[SentencePair]]:
    """The pairs in parts of about `LINKS_AT_A_TIME` links."""
    total = np.cumsum([len(source) * len(target) for source, target in pairs])
    cuts = np.flatnonzero(np.diff(total // LINKS_AT_A_TIME)) + 1
    for first, last in zip([0, *cuts], [*cuts, len(pairs)], strict=True):
        yield pairs[first:last]
