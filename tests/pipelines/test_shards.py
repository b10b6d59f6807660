"""Parts of an input: together they are the whole, in order, and none is much larger than another."""

from itertools import pairwise
from pathlib import Path

import pytest

from mt.errors import ConfigError
from mt.pipelines.shards import Shard, launched_shard, parse_shard


@pytest.mark.parametrize(
    ("shard", "lines", "part"),
    [
        ("1/1", 0, range(0, 0)),
        ("1/1", 25, range(0, 25)),
        ("1/2", 40, range(0, 20)),
        ("2/2", 40, range(20, 40)),
        ("1/2", 25, range(0, 10)),  # three windows: one and two
        ("2/2", 25, range(10, 25)),
        ("1/3", 7, range(0, 0)),  # one window, and three who want it
        ("2/3", 7, range(0, 0)),
        ("3/3", 7, range(0, 7)),
    ],
)
def test_a_part_is_made_of_whole_windows(shard, lines, part):
    assert parse_shard(shard).part(lines, window=10) == part


@pytest.mark.parametrize("window", [1, 3, 10])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_parts_cover_every_line_once_in_order_as_evenly_as_windows_allow(count, window):
    for lines in range(4 * window * 3 + 2):
        parts = [Shard(number, count).part(lines, window) for number in range(1, count + 1)]
        assert [line for part in parts for line in part] == list(range(lines))
        assert all(one.stop == other.start for one, other in pairwise(parts))
        assert all(part.start % window == 0 for part in parts if part)
        windows = [-(-len(part) // window) for part in parts]
        assert max(windows) - min(windows) <= 1


@pytest.mark.parametrize("text", ["", "x", "1", "1/", "/2", "1/2/3", "-1/3", "+1/3", " 1/3", "1/3\n", "1.0/2", "١/٢"])
def test_a_shard_is_written_as_two_numbers(text):
    with pytest.raises(ConfigError) as caught:
        parse_shard(text)
    assert caught.value.message == f"--shard {text!r} is not of the form I/N"


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "0/0"])
def test_a_shard_is_one_of_those_that_there_are(text):
    with pytest.raises(ConfigError) as caught:
        parse_shard(text)
    assert caught.value.message == f"there is no part {text}"


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "8"}, None),  # a number without a place among so many is another program's
        ({"RANK": "2"}, None),
        ({"RANK": "", "WORLD_SIZE": "8"}, None),
        ({"RANK": "0", "WORLD_SIZE": "8"}, Shard(1, 8)),
        ({"RANK": "7", "WORLD_SIZE": "8"}, Shard(8, 8)),
    ],
)
def test_torchrun_tells_a_process_its_shard(monkeypatch, environment, shard):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_shard() == shard


@pytest.mark.parametrize(("rank", "message"), [("first", "RANK=first"), ("8", "there is no part 9/8")])
def test_an_impossible_rank_is_a_mistake_with_a_name(monkeypatch, rank, message):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=message):
        launched_shard()


@pytest.mark.parametrize(
    ("shard", "name"),
    [
        ("1/8", "out.de.1-of-8"),
        ("1/16", "out.de.01-of-16"),
        ("16/16", "out.de.16-of-16"),
        ("7/100", "out.de.007-of-100"),
    ],
)
def test_files_of_shards_sort_in_order(shard, name):
    assert parse_shard(shard).own_file(Path("some/out.de")) == Path("some", name)
