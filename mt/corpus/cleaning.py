"""The check of parallel text: which pairs are worth training on, what is odd about the rest, and what to hold out.

Of the pairs only numbers are kept: about 75 bytes a pair at most, 90 where doubtful pairs are dropped, 17 in the
report, whose few examples are read again.  It repairs nothing.  Lines are counted from 1 where people read them, rows
from 0 in arrays.
"""

import math
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mt.corpus.alignment import find_misalignment
from mt.corpus.parallel import CorpusFiles, Pair, read_pairs
from mt.errors import ConfigError, DataError

Mask = NDArray[np.bool_]  # one for each line: does the rule apply

CHUNK_PAIRS = 8_192  # measured at once; the only text in memory
BLOCK_PAIRS = 1 << 20  # whose ratios are computed at once: several numbers for each pair would fill memory
EXAMPLES = 3  # shown of each rule
CLIPPED_CHARACTERS = 28  # of an example, so that a source and a target fit a terminal beside the counts
MANY_IDENTICAL = 0.2  # of all pairs; names and numbers seldom come to a tenth
MANY_RETURNS = 0.01  # of the lines of a side, above which they come from its file and not from single texts
FEWEST_TO_SPLIT = 10  # pairs; of fewer, one held-out pair is more than a tenth


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningRules:
    """What makes a pair unfit for training; a side of nothing but white space always does."""

    max_characters: int = 5_000  # of either side: a document on one line; a limit in tokens follows at encoding
    max_length_ratio: float = 4.0  # see `odd_lengths`; 0: any; drops 5 of 174,000 pairs in Multi30k, all of them junk
    drop_duplicates: bool = True
    drop_doubtful: bool = False  # sides that are equal, have few letters, or different digits

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ConfigError(f"data.max_characters is {self.max_characters}", "a line has at least one character")
        if self.max_length_ratio and not self.max_length_ratio > 1:
            raise ConfigError(f"data.max_length_ratio is {self.max_length_ratio:g}", "a ratio is above 1; 0 allows any")

    def as_key(self) -> dict[str, float]:
        """The rules for a cache key; those added later only where they are not the default, so that old keys hold."""
        always = {"max_characters": self.max_characters, "max_length_ratio": self.max_length_ratio}
        later = {"drop_duplicates": self.drop_duplicates, "drop_doubtful": self.drop_doubtful}
        return always | {name: value for name, value in later.items() if value != getattr(CleaningRules(), name)}


PRESETS = {
    "off": CleaningRules(max_length_ratio=0, drop_duplicates=False),
    "safe": CleaningRules(),
    "strict": CleaningRules(max_length_ratio=2.5, drop_doubtful=True),
}
FEWEST_LETTERS = 0.4  # of the characters that are not white space


class Example(NamedTuple):
    line: int
    source: str  # clipped and printable; empty until `with_texts`
    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """How many pairs a rule applies to.  A pair is counted under the first rule that drops it."""

    rule: str
    count: int
    dropped: bool
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the check found.  Words (by white space) are those of the kept pairs."""

    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    kept: Mask  # one for each line
    source_hashes: NDArray[np.uint64]  # one for each line, of its exact text
    target_hashes: NDArray[np.uint64]
    source_words: int
    target_words: int
    characters: int  # of both sides of the kept pairs

    @property
    def pairs_read(self) -> int:
        return len(self.kept)

    @property
    def pairs_kept(self) -> int:
        return int(self.kept.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """How many of the kept validation pairs, and of their sources, also stand in the kept training pairs."""

    pairs: int
    sources: int
    of: int


class SideStatistics(NamedTuple):
    """The source or target column in numbers, one of each kind for each line."""

    hashes: NDArray[np.uint64]
    characters: NDArray[np.uint32]
    words: NDArray[np.uint32]
    few_letters: Mask  # this and the next are measured only where pairs are dropped for them, and else empty
    digits: NDArray[np.uint64]  # how often each occurs, in 6 bits
    returns: int  # lines that end in a carriage return


def check_files(files: CorpusFiles, rules: CleaningRules) -> Report:
    """`check_pairs` of a corpus, with its examples quoted; raises `DataError` as `read_pairs` does."""
    return with_texts(check_pairs(read_pairs(files), rules), read_pairs(files))


def check_pairs(pairs: Iterable[Pair], rules: CleaningRules) -> Report:
    """Judge every pair; the report's examples have line numbers but no text yet."""
    source, target = measure_pairs(pairs, closely=rules.drop_doubtful)
    empty = (source.words == 0) | (target.words == 0)
    identical = source.hashes == target.hashes
    judged: list[tuple[str, Mask, bool]] = [  # and whether it drops a pair
        ("empty", empty, True),
        ("over-long", np.maximum(source.characters, target.characters) > rules.max_characters, True),
        (
            "odd ratio",
            odd_lengths(source.characters, target.characters, ~empty, rules.max_length_ratio or math.inf),
            True,
        ),
        ("duplicate", repeated(pair_hashes(source.hashes, target.hashes)), rules.drop_duplicates),
        ("identical", identical, rules.drop_doubtful),
    ]
    if rules.drop_doubtful:
        judged += [
            ("few letters", source.few_letters | target.few_letters, True),
            ("other digits", (source.digits != target.digits) & (source.digits > 0) & (target.digits > 0), True),
        ]
    kept = np.ones(len(empty), dtype=bool)
    findings = []
    for rule, mask, dropped in judged:
        findings.append(finding_of(rule, mask & kept, dropped=dropped))
        if dropped:
            kept &= ~mask
    return Report(
        findings=tuple(findings),
        warnings=tuple(warnings(source, target, int((identical & ~empty).sum()), int((~empty).sum()))),
        kept=kept,
        source_hashes=source.hashes,
        target_hashes=target.hashes,
        source_words=int(source.words[kept].sum()),
        target_words=int(target.words[kept].sum()),
        characters=int(source.characters[kept].sum()) + int(target.characters[kept].sum()),
    )


def measure_pairs(pairs: Iterable[Pair], *, closely: bool) -> tuple[SideStatistics, SideStatistics]:
    sources, targets = Columns(closely), Columns(closely)
    remaining = iter(pairs)
    while chunk := list(islice(remaining, CHUNK_PAIRS)):
        source_lines, target_lines = zip(*chunk, strict=True)
        sources.extend(source_lines)
        targets.extend(target_lines)
    return sources.side(), targets.side()


class Columns:
    """A `SideStatistics` that grows in place."""

    def __init__(self, closely: bool) -> None:
        self.closely = closely
        self.hashes, self.characters, self.words = array("Q"), array("I"), array("I")
        self.few_letters, self.digits = array("B"), array("Q")
        self.returns = 0

    def extend(self, lines: Sequence[str]) -> None:
        # Python's own hash differs between processes.  With 64 bits, two of a billion lines collide once in 40 corpora.
        self.hashes.frombytes(b"".join([blake2b(line.encode(), digest_size=8).digest() for line in lines]))
        self.characters.extend(map(len, lines))
        self.words.extend(map(len, map(str.split, lines)))
        self.returns += sum(line[-1:] == "\r" for line in lines)
        if self.closely:
            self.few_letters.extend(map(has_few_letters, lines))
            self.digits.extend(map(digits_of, lines))

    def side(self) -> SideStatistics:
        return SideStatistics(
            hashes=np.asarray(self.hashes),
            characters=np.asarray(self.characters),
            words=np.asarray(self.words),
            few_letters=np.asarray(self.few_letters).astype(bool),
            digits=np.asarray(self.digits),
            returns=self.returns,
        )


def has_few_letters(line: str) -> bool:
    fewest = FEWEST_LETTERS * sum(map(len, line.split()))
    if sum(map(str.isalpha, line)) >= fewest:
        return False
    return sum(unicodedata.category(character)[0] in "LM" for character in line) < fewest  # vowel signs are marks


def digits_of(line: str) -> int:
    """How often each digit occurs, 0 in the lowest 6 bits; equal for `1,000` and `1.000`, in any script."""
    return sum(1 << 6 * int(digit) for digit in DIGIT.findall(line)) & (1 << 60) - 1


DIGIT = re.compile(r"\d")


def pair_hashes(sources: NDArray[np.uint64], targets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return sources * np.uint64(0x9E3779B97F4A7C15) + targets  # odd, so that (a, b) and (b, a) differ


def repeated(hashes: NDArray[np.uint64]) -> Mask:
    """True for every occurrence of a value after its first."""
    order, again = runs(hashes)
    mask = np.zeros(len(hashes), dtype=bool)
    mask[order] = again
    return mask


def runs(values: NDArray[np.uint64]) -> tuple[NDArray[np.int64], Mask]:
    """The stable order that sorts values, and for each place in it whether it holds the value of the place before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    again = np.zeros(len(values), dtype=bool)
    again[1:] = ordered[1:] == ordered[:-1]
    return order, again


def odd_lengths(source: NDArray[np.uint32], target: NDArray[np.uint32], usable: Mask, limit: float) -> Mask:
    """Whether the ratio of lengths is more than `limit` times what is usual in this corpus, or below 1 / `limit` times.

    Lengths in characters are compared after scaling by the corpus's median ratio (Chinese needs a third of English's),
    and with 15 characters added to both, since short lines vary more: `OK` may well become `In Ordnung`.
    """
    odd = np.zeros(len(source), dtype=bool)
    if not usable.any():
        return odd
    root = np.sqrt(np.median(source[usable] / target[usable], overwrite_input=True))
    for first in range(0, len(source), BLOCK_PAIRS):
        block = slice(first, first + BLOCK_PAIRS)
        ratios = (source[block] / root + 15) / (target[block] * root + 15)
        odd[block] = np.maximum(ratios, 1 / ratios) > limit
    return odd


def finding_of(rule: str, mask: Mask, *, dropped: bool) -> Finding:
    rows = np.flatnonzero(mask)
    examples = tuple(Example(int(row) + 1, "", "") for row in rows[:EXAMPLES])
    return Finding(rule=rule, count=len(rows), dropped=dropped, examples=examples)


def warnings(source: SideStatistics, target: SideStatistics, identical: int, nonempty: int) -> Iterator[str]:
    if identical > MANY_IDENTICAL * nonempty:
        yield (
            f"{identical:,} of {nonempty:,} pairs have a target equal to their source: are they translated, and are the"
            " two files different ones?"
        )
    for name, side in (("source", source), ("target", target)):
        if side.returns > MANY_RETURNS * len(side.hashes):
            yield (
                f"{side.returns:,} of {len(side.hashes):,} {name} lines end in a carriage return, which is learned like"
                " a letter: take it out, for instance with: sed -i 's/\\r$//' FILE"
            )
    if misalignment := find_misalignment(np.log1p(source.characters), np.log1p(target.characters)):
        yield str(misalignment)


def with_texts(report: Report, pairs: Iterable[Pair]) -> Report:
    """The report with its examples quoted from `pairs`, read up to the last one; those past the end are left out."""
    lines = {example.line for finding in report.findings for example in finding.examples}
    read = enumerate(islice(pairs, max(lines, default=0)), 1)
    texts = {line: Example(line, *map(clipped, pair)) for line, pair in read if line in lines}
    findings = (
        replace(finding, examples=tuple(texts[each.line] for each in finding.examples if each.line in texts))
        for finding in report.findings
    )
    return replace(report, findings=tuple(findings))


def clipped(text: str) -> str:
    text = text if len(text) <= CLIPPED_CHARACTERS else text[: CLIPPED_CHARACTERS - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def overlap(train: Iterable[Report], valid: Report) -> Overlap:
    """How much of the validation text the model has seen: what it scores there is memory, not translation."""
    pairs, sources = np.zeros((2, valid.pairs_kept), dtype=bool)
    valid_pairs = pair_hashes(valid.source_hashes, valid.target_hashes)[valid.kept]
    for report in train:
        pairs |= among(valid_pairs, pair_hashes(report.source_hashes, report.target_hashes)[report.kept])
        sources |= among(valid.source_hashes[valid.kept], report.source_hashes[report.kept])
    return Overlap(pairs=int(pairs.sum()), sources=int(sources.sum()), of=valid.pairs_kept)


def among(few: NDArray[np.uint64], many: NDArray[np.uint64]) -> Mask:
    """Which of the first values occur in the second, as `np.isin`, which takes several times the memory of both."""
    ordered = np.sort(many)
    return np.searchsorted(ordered, few, "left") < np.searchsorted(ordered, few, "right")


def hold_out(
    report: Report, others: Sequence[Report] = (), *, seed: int, fraction: float = 0.02, most: int = 2_000
) -> NDArray[np.int64]:
    """Rows to validate on, in order: a random `fraction` of the kept pairs, at least one and at most `most`.

    None shares its source or its target with another kept pair, of this corpus or of the others, so that nothing
    validated on is trained on.  Raises `DataError` when the corpus is too small, or has no such pairs.
    """
    kept = np.flatnonzero(report.kept)
    alone = unique([each.source_hashes[each.kept] for each in (report, *others)])[: len(kept)]
    alone &= unique([each.target_hashes[each.kept] for each in (report, *others)])[: len(kept)]
    candidates = kept[alone]
    if len(kept) < FEWEST_TO_SPLIT:
        problem = f"{len(kept)} usable pairs are too few to hold some out for validation"
    elif len(candidates) == 0:
        problem = "no pair can be held out for validation: each shares its source or its target with another"
    else:
        count = min(len(candidates), most, max(1, round(fraction * len(kept))))
        return np.sort(np.random.default_rng(seed).choice(candidates, count, replace=False))
    raise DataError(problem, "name other text to validate on: --valid SOURCE TARGET")


def unique(parts: Sequence[NDArray[np.uint64]]) -> Mask:
    """True for every value that occurs once in all parts together."""
    order, again = runs(np.concatenate(parts))
    alone = ~again
    alone[:-1] &= ~again[1:]
    mask = np.empty(len(order), dtype=bool)
    mask[order] = alone
    return mask


def report_lines(report: Report) -> list[str]:
    """The report as aligned text: a line for each rule, with the lines of the first examples and the text of one."""
    lines = [f"{report.pairs_read:,} pairs read"]
    width, longest = len(f"{report.pairs_read:,}"), max(len(finding.rule) for finding in report.findings)
    for finding in report.findings:
        verdict = "dropped" if finding.dropped else "kept"
        row = f"  {finding.rule:<{longest}}  {finding.count:>{width},}  {verdict:<7}"
        if finding.examples:
            numbers = ", ".join(str(example.line) for example in finding.examples)
            first = finding.examples[0]
            row += f"  {'lines' if finding.count > 1 else 'line'} {numbers}: {first.source} │ {first.target}"
        lines.append(row.rstrip())
    lines.append(
        f"{report.pairs_kept:,} pairs kept: {report.source_words:,} source words, {report.target_words:,} target words"
    )
    return lines
