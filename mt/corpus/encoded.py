"""A corpus as ids on disk, read through the memory map: one larger than memory is used like a small one.

A side is two files: `NAME.ids`, the ids of all sentences one after another, each ended by `</s>`, and `NAME.offsets`,
where each sentence starts and the last one ends.
"""

import mmap
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from mt.corpus.tokenizer import Tokenizer
from mt.errors import DataError

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


class MappedNumbers:
    """The numbers in a file, read through the memory map."""

    def __init__(self, path: Path, dtype: type) -> None:
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.numbers: np.ndarray = np.frombuffer(self.map, dtype)

    def release(self) -> None:
        """What was read no longer counts as memory of this process; the system may keep it, or read it again."""
        self.map.madvise(mmap.MADV_DONTNEED)


def damaged(part: Path) -> DataError:
    """The error for a part of a folder of encoded corpora that is not as it was written."""
    return DataError(f"the encoded text in {part} is damaged", f"delete {part.parent}: it is made again from the text")


WIDTHS: dict[float, type] = {2: np.uint16, 4: np.uint32}  # by the bytes of an id
READS_BETWEEN_RELEASES = 2_048  # of a map: each sentence may bring 64 KiB of the file into memory, or more


class EncodedSide:
    """The sentences of one side: `side[i]` is an array of ids that ends in `</s>`; `lengths` counts them."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises `DataError` where a file is cut or absent, as after an interrupted copy."""
        try:
            offsets = MappedNumbers(folder / f"{name}.offsets", np.int64)
            self.offsets = offsets.numbers
            width = (folder / f"{name}.ids").stat().st_size / max(1, int(self.offsets[-1]))
            ids = MappedNumbers(folder / f"{name}.ids", WIDTHS[width])
        except (OSError, ValueError, KeyError) as error:
            raise damaged(folder) from error
        self.ids = ids.numbers
        self.lengths = np.subtract(self.offsets[1:], self.offsets[:-1], out=np.empty(len(self.offsets) - 1, np.int32))
        self.maps = (offsets, ids)
        self.reads = 0
        self.release()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        self.reads += 1
        if self.reads % READS_BETWEEN_RELEASES == 0:
            self.release()
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def release(self) -> None:
        for numbers in self.maps:
            numbers.release()


class EncodedCorpus:
    """Both sides of a corpus in one folder, sentence i of the one translating sentence i of the other."""

    def __init__(self, folder: Path) -> None:
        self.source = EncodedSide(folder, "source")
        self.target = EncodedSide(folder, "target")
        if len(self.source) != len(self.target):
            raise damaged(folder)

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


class EncodedSentences(NamedTuple):
    """Ids of sentences one after another, each ended by `</s>`, and the length of each."""

    ids: np.ndarray
    lengths: np.ndarray

    def kept(self, mask: np.ndarray) -> "EncodedSentences":
        return EncodedSentences(self.ids[mask.repeat(self.lengths)], self.lengths[mask])


class SideWriter:
    """Appends sentences to the two files of a side."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
        self.ids = open(folder / f"{name}.ids", "wb")  # noqa: SIM115 (until close)
        self.offsets = open(folder / f"{name}.offsets", "wb")  # noqa: SIM115
        self.end = 0
        self.offsets.write(np.int64(0).tobytes())

    def encode(self, lines: list[str], threads: int) -> EncodedSentences:
        encoded = self.tokenizer.encode(lines, threads)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), self.dtype, int(lengths.sum()))
        return EncodedSentences(np.insert(ids, lengths.cumsum(), self.tokenizer.specials.eos), lengths + 1)

    def append(self, sentences: EncodedSentences) -> None:
        ends = self.end + sentences.lengths.cumsum()
        self.ids.write(sentences.ids.tobytes())  # `tofile` passes over a full disk
        self.offsets.write(ends.tobytes())
        self.end += len(sentences.ids)

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
            sources = source.encode([pair[0] for pair in block], threads)
            targets = target.encode([pair[1] for pair in block], threads)
            short = np.maximum(sources.lengths, targets.lengths) <= max_tokens
            source.append(sources.kept(short))
            target.append(targets.kept(short))
            kept.append(short)
    finally:
        source.close()
        target.close()
    return np.concatenate(kept) if kept else np.zeros(0, dtype=bool)
