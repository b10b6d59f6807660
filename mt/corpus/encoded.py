"""A corpus as ids on disk, read through the memory map: one larger than memory is used like a small one.

A side is two files: `NAME.ids`, the ids of all sentences one after another, each ended by `</s>`, and `NAME.offsets`,
where each sentence starts and the last one ends.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mt.corpus.tokenizer import Tokenizer

BLOCK = 20_000  # sentences encoded at a time: memory stays flat, threads stay busy
Item = TypeVar("Item")


class Side(Protocol):
    """Sentences as arrays of ids that end in `</s>`, and their lengths."""

    lengths: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray: ...


class Pairs(Protocol):
    """Sentences with their translations, wherever they are kept."""

    @property
    def source(self) -> Side: ...
    @property
    def target(self) -> Side: ...


class EncodedSide:
    """The sentences of one side: `side[i]` is an array of ids that ends in `</s>`; `lengths` counts them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.offsets = np.memmap(folder / f"{name}.offsets", dtype=np.int64, mode="r")
        width = (folder / f"{name}.ids").stat().st_size // max(1, int(self.offsets[-1]))
        self.ids = np.memmap(folder / f"{name}.ids", dtype=np.uint16 if width == 2 else np.uint32, mode="r")
        self.lengths = np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


class EncodedCorpus:
    """Both sides of a corpus in one folder, sentence i of the one translating sentence i of the other."""

    def __init__(self, folder: Path) -> None:
        self.source = EncodedSide(folder, "source")
        self.target = EncodedSide(folder, "target")

    def __len__(self) -> int:
        return len(self.source)


class BothWays:
    """The pairs of a corpus, and after them the same pairs the other way round; nothing is copied but lengths."""

    def __init__(self, corpus: Pairs) -> None:
        self.source = OneAfterAnother(corpus.source, corpus.target)
        self.target = OneAfterAnother(corpus.target, corpus.source)


class OneAfterAnother:
    """The sentences of one side, then those of another."""

    def __init__(self, first: Side, second: Side) -> None:
        self.first, self.second = first, second
        self.lengths = np.concatenate((first.lengths, second.lengths))

    def __getitem__(self, index: int) -> np.ndarray:
        count = len(self.first.lengths)
        return self.first[index] if index < count else self.second[index - count]


class SideWriter:
    """Appends sentences to the two files of a side."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
        self.ids = open(folder / f"{name}.ids", "wb")  # noqa: SIM115 (until close)
        self.offsets = open(folder / f"{name}.offsets", "wb")  # noqa: SIM115
        self.end = 0
        self.offsets.write(np.int64(0).tobytes())

    def encode(self, lines: list[str], threads: int) -> list[list[int]]:
        eos = self.tokenizer.specials.eos
        return [[*ids, eos] for ids in self.tokenizer.encode(lines, threads)]

    def append(self, sentences: list[list[int]]) -> None:
        lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
        ends = self.end + lengths.cumsum()
        np.concatenate([np.array(ids, dtype=self.dtype) for ids in sentences]).tofile(self.ids)
        ends.tofile(self.offsets)
        self.end = int(ends[-1])

    def close(self) -> None:
        self.ids.close()
        self.offsets.close()


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def encode_corpus(
    pairs: Iterable[tuple[str, str]],
    folder: Path,
    tokenizers: tuple[Tokenizer, Tokenizer],
    *,
    max_tokens: int,
    threads: int,
) -> np.ndarray:
    """Write the encoded corpus into `folder`; SentencePiece's own threads share the work.

    Returns a bool per pair, False where one side has more than `max_tokens` tokens and the pair was left out.
    """
    source, target = SideWriter(folder, "source", tokenizers[0]), SideWriter(folder, "target", tokenizers[1])
    kept: list[np.ndarray] = []
    try:
        for block in blocks(pairs, BLOCK):
            source_ids = source.encode([pair[0] for pair in block], threads)
            target_ids = target.encode([pair[1] for pair in block], threads)
            short = np.array([max(len(s), len(t)) <= max_tokens for s, t in zip(source_ids, target_ids, strict=True)])
            if short.any():
                source.append([ids for ids, keep in zip(source_ids, short, strict=True) if keep])
                target.append([ids for ids, keep in zip(target_ids, short, strict=True) if keep])
            kept.append(short)
    finally:
        source.close()
        target.close()
    return np.concatenate(kept) if kept else np.zeros(0, dtype=bool)
