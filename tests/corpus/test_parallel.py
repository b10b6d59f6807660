"""Lockstep reading: every pair is the right pair, or reading stops and says where and why."""

import gzip
from pathlib import Path

import pytest

from mt.corpus.parallel import TWO_LETTERS, CorpusFiles, language_of, read_pairs, sampling_weights
from mt.errors import ConfigError, DataError, ExitCode


@pytest.fixture
def corpus(tmp_path):
    """Writes a source and a target text and names them."""

    def write(source: str, target: str) -> CorpusFiles:
        files = CorpusFiles(source=tmp_path / "a.de", target=tmp_path / "a.en")
        for path, text in zip(files.paths, (source, target), strict=True):
            path.write_bytes(text.encode())
        return files

    return write


@pytest.fixture
def table(tmp_path):
    """Writes a tab-separated text and names it."""

    def write(text: str) -> CorpusFiles:
        (tmp_path / "a.tsv").write_bytes(text.encode())
        return CorpusFiles(tsv=tmp_path / "a.tsv")

    return write


def test_pairs_are_read_as_they_stand(corpus):
    files = corpus("\ufeffeins\n\nzwei\u2028drei\n vier \r\n", "one\n \ntwo\f\nfour")
    assert list(read_pairs(files)) == [("eins", "one"), ("", " "), ("zwei\u2028drei", "two\f"), (" vier \r", "four")]


def test_compressed_and_plain_files_go_together(tmp_path):
    (tmp_path / "a.de.gz").write_bytes(gzip.compress(b"eins\nzwei\n"))
    (tmp_path / "a.en").write_bytes(b"one\ntwo\n")
    files = CorpusFiles(source=tmp_path / "a.de.gz", target=tmp_path / "a.en")
    assert list(read_pairs(files)) == [("eins", "one"), ("zwei", "two")]


@pytest.mark.parametrize(("source_count", "target_count"), [(1_203, 1_202), (1_202, 1_203), (2, 1_000)])
def test_unequal_files_stop_with_both_counts(corpus, source_count, target_count):
    files = corpus("a\n" * source_count, "b\n" * target_count)
    with pytest.raises(DataError) as caught:
        list(read_pairs(files))
    assert caught.value.message == (f"{files.source} has {source_count:,} lines, {files.target} has {target_count:,}")
    assert "lost or gained a line" in caught.value.hint
    assert caught.value.exit_code == ExitCode.DATA


@pytest.mark.parametrize(
    ("source", "target", "named"), [("", "", "a.en are"), ("", "b\n", "a.de is"), ("a", "", "a.en is")]
)
def test_an_empty_file_is_named(corpus, source, target, named):
    with pytest.raises(DataError, match=f"{named} empty$"):
        list(read_pairs(corpus(source, target)))


def test_a_missing_file_is_named(corpus):
    files = corpus("a", "b")
    files.target.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.en: No such file"):
        list(read_pairs(files))


def test_a_tsv_holds_source_and_target(table):
    assert list(read_pairs(table("\ufeffeins\tone\n\t\nzwei\ttwo \r"))) == [
        ("eins", "one"),
        ("", ""),
        ("zwei", "two \r"),
    ]


@pytest.mark.parametrize(("line", "tabs"), [("zwei two", 0), ("zwei\ttwo\t0.93", 2), ("", 0)])
def test_a_tsv_line_without_exactly_one_tab_is_named(table, line, tabs):
    with pytest.raises(DataError, match=rf"a\.tsv, line 2: {tabs} tabs instead of one"):
        list(read_pairs(table(f"eins\tone\n{line}\ndrei\tthree\n")))


def test_an_empty_tsv_is_an_error(table):
    with pytest.raises(DataError, match=r"a\.tsv is empty"):
        list(read_pairs(table("")))


def test_a_corpus_is_two_files_or_one_tsv():
    a, b = Path("a"), Path("b")
    assert CorpusFiles(source=a, target=b).paths == (a, b)
    assert CorpusFiles(source=a, target=b).name == "a + b"
    assert CorpusFiles(tsv=a, weight=0.5).paths == (a,)
    for paths in ({}, {"source": a}, {"target": b}, {"source": a, "tsv": b}, {"source": a, "target": b, "tsv": a}):
        with pytest.raises(ConfigError):
            CorpusFiles(**paths)
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="weight of a is"):
            CorpusFiles(tsv=a, weight=weight)


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("train.de", "de"),
        ("train.de.gz", "de"),
        ("data.v2/train.en-de.DE.zst", "de"),
        ("news.yue", "yue"),
        ("news.deu", "deu"),
        ("train.txt", ""),
        ("train.de.txt", ""),
        ("train.tok.src", ""),
        ("de", ""),
        (".de", ""),
        ("train.gz", ""),
        ("train.xx", ""),
        ("train.", ""),
    ],
)
def test_a_language_is_the_last_suffix_when_it_is_a_code(name, language):
    assert language_of(Path(name)) == language


def test_every_two_letter_code_is_known():
    assert len(set(TWO_LETTERS.split())) == 183


@pytest.mark.parametrize(
    ("temperature", "weights"),
    [
        (1.0, [1.0, 1.0, 1.0]),
        (2.0, [1.0, 2.0, 10.0]),  # drawn as the roots of 100, 25 and 1: 10, 5 and 1 times 10
        (float("inf"), [1.0, 4.0, 100.0]),  # all as often
    ],
)
def test_temperature_draws_from_corpora_by_a_root_of_their_sizes(temperature, weights):
    corpora = [CorpusFiles(tsv=Path(name)) for name in "abc"]
    assert sampling_weights(corpora, [100, 25, 1], temperature) == pytest.approx(weights)


def test_temperature_and_weights_multiply():
    corpora = [CorpusFiles(tsv=Path("a"), weight=0.5), CorpusFiles(tsv=Path("b"), weight=3.0)]
    assert sampling_weights(corpora, [10_000, 100], 2.0) == pytest.approx([0.5, 30.0])
    assert sampling_weights(corpora, [10_000, 100], 1.0) == [0.5, 3.0]


def test_a_corpus_of_which_nothing_is_left_does_not_matter():
    corpora = [CorpusFiles(tsv=Path(name)) for name in "ab"]
    assert sampling_weights(corpora, [100, 0], 5.0)[0] == 1.0
