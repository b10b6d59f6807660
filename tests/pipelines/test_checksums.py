"""Checksums that are remembered: a file that was left alone is not read again, any other is."""

import json
import os

import pytest

from mt.errors import DataError
from mt.files import checksum
from mt.pipelines import checksums as module
from mt.pipelines.checksums import Checksums


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\n")
    return path


@pytest.fixture
def read(monkeypatch):
    """The files that are read, which here have always been left alone for long enough."""
    paths = []
    monkeypatch.setattr(module, "SETTLED_NANOSECONDS", -(1 << 62))
    monkeypatch.setattr(module, "checksum", lambda path: paths.append(path) or checksum(path))
    return paths


def taken(folder, path):
    """Its checksum as a new start takes it."""
    checksums = Checksums(folder)
    sha256 = checksums.of(path)
    checksums.save()
    return sha256


def test_a_file_that_was_left_alone_is_read_once(tmp_path, text, read):
    expected = checksum(text)
    assert [taken(tmp_path / "cache", text) for _ in range(3)] == [expected] * 3
    assert read == [text]


def test_a_file_has_one_checksum_however_it_is_named(tmp_path, text, read, monkeypatch):
    taken(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(text)
    assert taken(tmp_path, text.relative_to(tmp_path)) == taken(tmp_path, tmp_path / "link")
    assert read == [text]


def test_other_files_stay_remembered(tmp_path, text, read):
    other = tmp_path / "other"
    other.write_text("two\n")
    for path in (text, other, text, other):
        taken(tmp_path, path)
    assert read == [text, other]


def test_a_touched_file_is_read_again_and_then_known(tmp_path, text, read):
    before = taken(tmp_path, text)
    os.utime(text, ns=(1, 1))
    assert taken(tmp_path, text) == taken(tmp_path, text) == before
    assert read == [text, text]


@pytest.mark.parametrize("new", ["two\n", "longer\n"])
def test_a_change_is_noticed_even_when_the_time_of_modification_is_put_back(tmp_path, text, read, new):
    before, status = taken(tmp_path, text), text.stat()
    while text.stat().st_ctime_ns == status.st_ctime_ns:  # within one tick of the clock no time tells
        text.write_text(new)
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert taken(tmp_path, text) == checksum(text) != before


def test_a_file_that_has_just_been_written_is_not_trusted(tmp_path, text, read, monkeypatch):
    monkeypatch.setattr(module, "SETTLED_NANOSECONDS", 3_600_000_000_000)
    assert taken(tmp_path, text) == taken(tmp_path, text) == checksum(text)
    assert read == [text, text]
    assert not (tmp_path / "checksums.json").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_memory_is_none(tmp_path, text, read, damage):
    (tmp_path / "checksums.json").write_text(damage)
    assert taken(tmp_path, text) == checksum(text)
    taken(tmp_path, text)
    assert read == [text]


@pytest.mark.parametrize(
    "entry",
    [None, "0", [], {"stamp": [1, 2, 3, 4]}, {"stamp": 4, "sha256": "0"}, {"size": 4, "sha256": "0"}],
)
def test_an_entry_of_another_form_is_passed_over(tmp_path, text, read, entry):
    (tmp_path / "checksums.json").write_text(json.dumps({str(text): entry, "/a/train.de": entry}))
    assert taken(tmp_path, text) == taken(tmp_path, text) == checksum(text)
    assert read == [text]


@pytest.mark.parametrize("number", range(4), ids=["size", "modified", "changed", "inode"])
def test_a_file_that_differs_in_one_number_is_read_again(tmp_path, text, read, number):
    taken(tmp_path, text)
    remembered = json.loads((tmp_path / "checksums.json").read_text())
    remembered[str(text)]["stamp"][number] += 1
    remembered[str(text)]["sha256"] = "another"
    (tmp_path / "checksums.json").write_text(json.dumps(remembered))
    assert taken(tmp_path, text) == checksum(text)
    assert read == [text, text]


def test_processes_that_share_a_cache_remember_what_each_has_taken(tmp_path, text, read):
    other = tmp_path / "other"
    other.write_text("two\n")
    processes = Checksums(tmp_path), Checksums(tmp_path)
    for process, path in zip(processes, (text, other), strict=True):
        process.of(path)
    for process in processes:
        process.save()
    assert [taken(tmp_path, path) for path in (text, other)] == [checksum(text), checksum(other)]
    assert read == [text, other]


def test_a_cache_that_cannot_be_written_to_remembers_nothing(tmp_path, text, read):
    (tmp_path / "file").write_text("")
    assert taken(tmp_path / "file" / "cache", text) == checksum(text)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot read .*none: No such file"):
        Checksums(tmp_path).of(tmp_path / "none")
