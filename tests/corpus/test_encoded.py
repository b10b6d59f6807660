"""A corpus on disk: what was written is read, in the smallest type, without pairs that are too long."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mt.corpus import encoded as module
from mt.corpus.encoded import EncodedCorpus, encode_corpus
from mt.corpus.tokenizer import Specials
from mt.errors import DataError

EOS = 3


class Numbers:
    """A tokenizer whose text is its ids: "7 9" is [7, 9]."""

    def __init__(self, size):
        self.size = size
        self.specials = Specials(pad=0, bos=2, eos=EOS, unk=1)

    def encode(self, lines, threads=1):
        return [[int(word) for word in line.split()] for line in lines]


PAIRS = [("7 8", "9"), ("10", "11 12 13"), ("", "14"), ("15 16 17", "18")]
SENTENCES = [([7, 8, 3], [9, 3]), ([10, 3], [11, 12, 13, 3]), ([3], [14, 3]), ([15, 16, 17, 3], [18, 3])]


def encode(pairs, folder, sizes=(100, 100), max_tokens=50):
    return encode_corpus(pairs, folder, (Numbers(sizes[0]), Numbers(sizes[1])), max_tokens=max_tokens, threads=1)


def sentences_of(corpus):
    return [(corpus.source[i].tolist(), corpus.target[i].tolist()) for i in range(len(corpus))]


def test_what_was_written_is_read(tmp_path):
    assert encode(PAIRS, tmp_path).tolist() == [True] * 4
    corpus = EncodedCorpus(tmp_path)
    assert len(corpus) == len(corpus.target) == 4
    assert sentences_of(corpus) == SENTENCES
    assert corpus.source.lengths.tolist() == [3, 2, 1, 4]
    assert corpus.target.lengths.tolist() == [2, 4, 2, 2]


def test_the_files_are_the_ids_and_where_sentences_start(tmp_path):
    encode(PAIRS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "source.ids",
        "source.offsets",
        "target.ids",
        "target.offsets",
    ]
    assert np.fromfile(tmp_path / "source.ids", np.uint16).tolist() == [7, 8, 3, 10, 3, 3, 15, 16, 17, 3]
    assert np.fromfile(tmp_path / "source.offsets", np.int64).tolist() == [0, 3, 5, 6, 10]


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_two_bytes_while_the_vocabulary_allows(tmp_path, size, dtype):
    encode([(f"{size - 1} 5", "6")], tmp_path, sizes=(size, 100))
    corpus = EncodedCorpus(tmp_path)
    assert corpus.source.ids.dtype == dtype
    assert corpus.target.ids.dtype == np.uint16  # each side by its own vocabulary
    assert corpus.source[0].tolist() == [size - 1, 5, EOS]
    assert (tmp_path / "source.ids").stat().st_size == 3 * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("max_tokens", "kept"),
    [
        (4, [True, True, True, True]),
        (3, [True, False, True, False]),
        (2, [False, False, True, False]),
        (1, [False] * 4),
    ],
)
def test_pairs_with_a_side_that_is_too_long_are_left_out_and_reported(tmp_path, max_tokens, kept):
    assert encode(PAIRS, tmp_path, max_tokens=max_tokens).tolist() == kept
    if any(kept):
        expected = [sentence for sentence, keep in zip(SENTENCES, kept, strict=True) if keep]
        assert sentences_of(EncodedCorpus(tmp_path)) == expected


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5])
def test_blocks_of_any_size_make_the_same_corpus(tmp_path, monkeypatch, block):
    """With `max_tokens` 3 some blocks of one sentence are left out whole."""
    monkeypatch.setattr(module, "BLOCK", block)
    assert encode(iter(PAIRS), tmp_path, max_tokens=3).tolist() == [True, False, True, False]
    assert sentences_of(EncodedCorpus(tmp_path)) == [SENTENCES[0], SENTENCES[2]]


def test_no_pairs_keep_nothing(tmp_path):
    kept = encode([], tmp_path)
    assert (kept.shape, kept.dtype) == ((0,), np.dtype(bool))
    assert np.fromfile(tmp_path / "target.offsets", np.int64).tolist() == [0]
    assert (tmp_path / "target.ids").stat().st_size == 0


@pytest.mark.parametrize("name", ["source.ids", "source.offsets", "target.ids", "target.offsets"])
@pytest.mark.parametrize("left", [0, 3, 8, -8, -2])
def test_a_file_that_was_cut_is_a_data_error_with_a_way_out(tmp_path, name, left):
    (tmp_path / "train").mkdir()
    encode(PAIRS * 4, tmp_path / "train")
    path = tmp_path / "train" / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match="the encoded text in .*train is damaged") as caught:
        EncodedCorpus(tmp_path / "train")
    assert caught.value.hint == f"delete {tmp_path}: it is made again from the text"


def test_a_corpus_is_read_through_the_memory_map(tmp_path):
    encode(PAIRS, tmp_path)
    corpus = EncodedCorpus(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        corpus.source.ids[0] = 1
    with open(tmp_path / "source.ids", "r+b") as file:
        file.write(np.uint16(42).tobytes())
    assert corpus.source[0].tolist() == [42, 8, 3]


def test_sentences_are_the_same_after_what_was_read_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READS_BETWEEN_RELEASES", 3)
    encode(PAIRS, tmp_path)
    corpus = EncodedCorpus(tmp_path)
    held = corpus.source[0]
    for _ in range(3):
        assert sentences_of(corpus) == SENTENCES
    assert held.tolist() == SENTENCES[0][0]


def resident_bytes(path):
    """What of a file this process has in memory."""
    maps = Path("/proc/self/smaps").read_text()
    return sum(1024 * int(size) for size in re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s+(\d+) kB", maps))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells")
def test_a_corpus_that_is_read_through_does_not_come_to_lie_in_memory(tmp_path, monkeypatch):
    """Of a million ids in 2 MB a release leaves nothing; 999 sentences, which are read before it, are 200 KB."""
    monkeypatch.setattr(module, "READS_BETWEEN_RELEASES", 1_000)
    encode([("7 " * 99, "8")] * 10_000, tmp_path, max_tokens=100)
    corpus = EncodedCorpus(tmp_path)
    before, after = [], []
    for i in range(10_000):
        if i % 1_000 == 999:
            before.append(resident_bytes(tmp_path / "source.ids"))
        sentence = corpus.source[i]  # every thousandth time after a release, and not yet looked at
        if i % 1_000 == 999:
            after.append(resident_bytes(tmp_path / "source.ids"))
        assert sentence.sum() == 99 * 7 + EOS
    assert min(before) >= 190_000
    assert after == [0] * 10
    corpus.source.ids.sum()
    assert resident_bytes(tmp_path / "source.ids") > 1 << 20


def test_an_error_while_encoding_closes_the_files(tmp_path, monkeypatch):
    writers = []

    class Watched(module.SideWriter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            writers.append(self)

    monkeypatch.setattr(module, "SideWriter", Watched)

    def broken():
        yield PAIRS[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        encode(broken(), tmp_path)
    assert [writer.ids.closed and writer.offsets.closed for writer in writers] == [True, True]


def test_encoding_holds_a_block_of_lines_and_a_byte_for_each_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 500)
    pairs, line = 50_000, "7 8 9 " * 10
    tracemalloc.start()
    kept = encode(((f"{line}{number % 90}", line) for number in range(pairs)), tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.sum() == pairs
    assert peak < 2_500_000 + 2 * pairs  # 500 pairs of 62 ids take 8 bytes for each id in lists, and lines
