"""Lines end at \\n only; a file or folder appears whole or not at all."""

import errno
import gzip
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mt import files
from mt.errors import ConfigError, DataError, ExitCode, Interrupted
from mt.files import (
    alone_at,
    append_text,
    atomic_directory,
    atomic_file,
    check_output_text,
    checksum,
    count_lines,
    decode_lines,
    open_binary,
    read_json,
    read_lines,
    unfinished,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[1]
THREE_LINES = b"eins\nzwei\ndrei\n"
MANY_LINES = b"".join(b"line %d of many\n" % number for number in range(20_000))


def test_unfinished_work_is_not_written_over_silently(tmp_path, caplog):
    partial, record = unfinished(tmp_path / "out")
    partial.write_bytes(THREE_LINES)
    record.write_text("{}")
    with atomic_file(tmp_path / "out") as stream:
        stream.write("new\n")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "new\n"
    assert caplog.messages == [f"what an interrupted command has left in {partial} is dropped"]


def test_one_process_at_a_time_is_in_the_block_of_a_path(tmp_path, caplog):
    """Locks of a file that is opened twice are two, in one process as in two."""
    path, entered = tmp_path / "folder" / "name", []

    def enter(who):
        with alone_at(path):
            entered.append(who)

    with caplog.at_level("INFO"), alone_at(path):
        second = threading.Thread(target=enter, args=("second",))
        second.start()
        deadline = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert caplog.messages == [f"another process writes {path}: waiting for it"]
        entered.append("first")
    second.join()
    assert entered == ["first", "second"]
    assert [entry.name for entry in path.parent.iterdir()] == [".name.lock"]


def lines_of(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return list(read_lines(path))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("character", ["\r", "\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x00"])
def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path, character):
    text = f"a{character}b\n{character}\nc{character}\n"
    assert lines_of(tmp_path / "text", text.encode()) == [f"a{character}b", character, f"c{character}"]
    assert count_lines(tmp_path / "text") == 3


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"\n\nb", ["", "", "b"]),
        (b"a\r\nb\r\n", ["a\r", "b\r"]),
        (b" a \t\n", [" a \t"]),
    ],
)
def test_the_last_line_counts_with_and_without_its_line_feed(tmp_path, content, lines):
    assert lines_of(tmp_path / "text", content) == lines
    assert count_lines(tmp_path / "text") == len(lines)


def test_a_byte_order_mark_is_dropped_at_the_start_of_a_file_only(tmp_path):
    content = "\ufeff\ufeffa\n\ufeffb\n".encode()
    assert lines_of(tmp_path / "text", content) == ["\ufeffa", "\ufeffb"]


def test_gzip_is_read_by_its_suffix(tmp_path):
    assert lines_of(tmp_path / "text.de.gz", gzip.compress(b"\xef\xbb\xbf" + THREE_LINES)) == ["eins", "zwei", "drei"]


def test_all_frames_of_a_zstd_file_are_read(tmp_path):
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    content = compress(MANY_LINES) + compress(b"") + compress(THREE_LINES)
    lines = lines_of(tmp_path / "text.zst", content)
    assert len(lines) == 20_003
    assert lines[-4:] == ["line 19999 of many", "eins", "zwei", "drei"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "plain text"])
def test_damaged_compression_is_a_data_error_that_names_the_file(tmp_path, suffix, damage):
    compress = gzip.compress if suffix == ".gz" else pytest.importorskip("zstandard").ZstdCompressor().compress
    whole = compress(os.urandom(100_000).hex().encode())
    half = len(whole) // 2
    flipped = whole[:half] + bytes(byte ^ 0xFF for byte in whole[half : half + 100]) + whole[half + 100 :]
    content = {"truncated": whole[:half], "flipped": flipped, "plain text": THREE_LINES}[damage]
    with pytest.raises(DataError, match=f"text{suffix}") as caught:
        lines_of(tmp_path / f"text{suffix}", content)
    assert "truncated" in caught.value.hint
    with pytest.raises(DataError, match=f"text{suffix}"):
        count_lines(tmp_path / f"text{suffix}")


def test_zstd_without_its_package_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        lines_of(tmp_path / "text.zst", b"")
    assert caught.value.hint == "pip install zstandard"


def test_invalid_utf8_stops_with_the_number_of_its_line(tmp_path):
    with pytest.raises(DataError, match=r"text, line 3: not UTF-8 \(invalid start byte at byte 2 of the line\)"):
        lines_of(tmp_path / "text", b"a\nb\nc\xfcd\n")


def test_invalid_utf8_can_be_replaced_and_is_marked():
    decoded = list(decode_lines([b"a\n", b"b\xff\n", b"\xc3"], "stdin", on_invalid="replace"))
    assert decoded == [("a", True), ("b\ufffd", False), ("\ufffd", False)]


@pytest.mark.parametrize("read", [open_binary, lambda path: list(read_lines(path)), count_lines, checksum])
def test_a_missing_file_and_a_folder_are_data_errors(tmp_path, read):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=str(path)) as caught:
            read(path)
        assert caught.value.exit_code == ExitCode.DATA


def test_checksum_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert checksum(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_written_is_what_was_said_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_text(path, "a\r\nü\n")
    assert path.read_bytes() == b"a\r\n\xc3\xbc\n"
    assert names(path.parent) == ["file"]
    write_json(path, {"language": "čeština", "lines": 3})
    assert read_json(path) == {"language": "čeština", "lines": 3}
    with atomic_file(path, "wb") as stream:
        stream.write(b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_json_that_is_no_object_is_a_value_error(tmp_path):
    write_text(tmp_path / "list.json", "[1]")
    with pytest.raises(ValueError, match="not a JSON object"):
        read_json(tmp_path / "list.json")


def test_a_crash_while_writing_a_file_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "file"
    write_text(path, "earlier")
    with pytest.raises(UnicodeEncodeError), atomic_file(path) as stream:
        stream.writelines(["half", "\ud800"])
    assert path.read_text() == "earlier"
    write_text(path, "later")
    assert path.read_text() == "later"
    assert names(tmp_path) == ["file"]


def test_a_line_that_a_full_disk_has_cut_spoils_no_other(tmp_path):
    path = tmp_path / "log"
    append_text(path, "one\n")
    append_text(path, "tw")
    append_text(path, "three\n")
    assert path.read_text() == "one\ntw\nthree\n"


def test_a_closed_pipe_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(BrokenPipeError), atomic_file(tmp_path / "file"):
        raise BrokenPipeError


def test_a_device_is_written_directly_and_its_error_reported(tmp_path):
    write_text(Path("/dev/null"), "gone")
    assert not Path("/dev/null.partial").exists()
    (tmp_path / "file").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot write .*file: No space left on device"):
        write_text(tmp_path / "file", "text")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_its_name_is_written_directly_wherever_it_goes(tmp_path, name):
    (tmp_path / "name").symlink_to(name)
    write = (
        "import sys; from pathlib import Path; from mt.files import write_text; write_text(Path(sys.argv[1]), 'new')"
    )
    for path in (name, tmp_path / "name"):
        with open(tmp_path / "text", "w") as stream:
            stream.write("old ")
            stream.flush()
            subprocess.run([sys.executable, "-c", write, path], stdout=stream, check=True, cwd=ROOT)
        assert (tmp_path / "text").read_text() == "old new"
    assert (tmp_path / "name").is_symlink()
    assert Path(name).exists()
    assert names(tmp_path) == ["name", "text"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "latest").symlink_to("results/text")
    for text in ("first", "second"):  # it leads to nothing at first
        write_text(tmp_path / "latest", text)
        assert (tmp_path / "latest").readlink() == Path("results/text")
        assert (tmp_path / "results" / "text").read_text() == text
    assert names(tmp_path) == ["latest", "results"]
    assert names(tmp_path / "results") == ["text"]


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path):
    """Claims of a file that is opened twice are two, in one process as in two."""
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write("whole ")
        first.flush()
        with pytest.raises(DataError, match=r"another process writes .*file\.partial"), atomic_file(path):
            pass
        first.write("text")
    assert path.read_text() == "whole text"
    write_text(path, "more")
    assert path.read_text() == "more"


def test_a_file_that_was_finished_while_it_was_claimed_is_not_written_into(tmp_path, monkeypatch):
    partial, finished = tmp_path / "out.partial", tmp_path / "out"
    partial.write_text("finished\n")

    def lock_late(descriptor, operation):
        partial.rename(finished)  # by the process that had it, which ends
        partial.write_text("")  # by a third one

    monkeypatch.setattr(files.fcntl, "flock", lock_late)
    with pytest.raises(DataError, match=r"another process writes .*out\.partial"), atomic_file(finished) as stream:
        stream.write("mine\n")
    assert finished.read_text() == "finished\n"


def test_what_another_one_writes_stays_where_it_cannot_be_claimed(tmp_path, monkeypatch):
    partial = tmp_path / "out.partial"
    partial.write_text("theirs\n")

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "claim", refused)
    with pytest.raises(DataError, match="cannot write .*out: Permission denied"), atomic_file(tmp_path / "out"):
        pass
    assert partial.read_text() == "theirs\n"


@pytest.mark.parametrize("name", ["out", "out.partial", "out.partial.json"])
def test_no_text_is_written_over_one_that_is_read(tmp_path, name):
    (tmp_path / name).write_text("one\n")
    with pytest.raises(ConfigError, match=f"{name} is read, and would be written over"):
        check_output_text(tmp_path / "out", [tmp_path / name])
    check_output_text(tmp_path / "other", [tmp_path / name])


def test_a_pipe_that_nobody_reads_any_more_ends_the_writing_silently(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    reached = []
    with atomic_file(pipe) as stream:
        stream.write("read\n")
        stream.flush()
        assert os.read(reader, 10) == b"read\n"
        os.close(reader)
        stream.write("x" * 100_000)
        reached.append("after all was written")
    assert not reached


def test_a_folder_in_the_place_of_a_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        write_text(tmp_path, "text")
    write_text(tmp_path / "file", "text")
    with pytest.raises(DataError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "text")


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 64 KiB; skips where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_earlier_file_and_folder(tiny_disk):
    write_text(tiny_disk / "file", "earlier")
    with atomic_directory(tiny_disk / "folder") as folder:
        write_text(folder / "inside", "earlier")
    with pytest.raises(DataError, match=r"cannot write .*file: No space left") as caught:
        write_text(tiny_disk / "file", "x" * 100_000)
    assert "free some space" in caught.value.hint
    with pytest.raises(DataError, match="No space left"), atomic_directory(tiny_disk / "folder") as folder:
        (folder / "inside").write_text("x" * 100_000)
    assert names(tiny_disk) == ["file", "folder"]
    assert (tiny_disk / "file").read_text() == (tiny_disk / "folder" / "inside").read_text() == "earlier"


def test_a_full_disk_found_while_flushing_leaves_the_earlier_file(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "earlier")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write_text(tmp_path / "file", "later")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "earlier"


def write_folder(path: Path, content: str) -> None:
    with atomic_directory(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text(content)


def test_a_folder_appears_complete_and_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "above" / "folder"
    with atomic_directory(path) as folder:
        assert not path.exists()
        (folder / "old").write_text("old")
    write_folder(path, "new")
    assert names(path) == ["below"]
    assert (path / "below" / "file").read_text() == "new"
    assert names(path.parent) == ["folder"]


def test_what_is_written_is_on_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    done = []

    def noted(name, call):
        def instead(path, *more):
            done.append(f"{name} {Path(path).name}")
            return call(path, *more)

        return instead

    monkeypatch.setattr(files, "flush_to_disk", noted("flush", files.flush_to_disk))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_folder(tmp_path / "folder", "new")
    assert sorted(done[:2]) == ["flush below", "flush file"]
    assert done[2:] == ["flush .folder.partial", "rename .folder.partial", f"flush {tmp_path.name}"]
    done.clear()
    write_text(tmp_path / "text", "new")
    assert done == ["replace text.partial", f"flush {tmp_path.name}"]


def test_a_crash_while_filling_a_folder_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "folder"
    write_folder(path, "earlier")
    with pytest.raises(UnicodeEncodeError), atomic_directory(path) as folder:
        (folder / "half").write_text("half\ud800", encoding="utf-8")
    assert names(path) == ["below"]
    write_folder(path, "later")
    assert names(tmp_path) == ["folder"]
    assert (path / "below" / "file").read_text() == "later"


def test_a_folder_whose_filling_is_interrupted_leaves_nothing(tmp_path):
    """What is filled may be gigabytes, under a name that nobody writes again."""

    def fill(folder):
        (folder / "half").write_text("half")
        raise Interrupted("stopped")

    with pytest.raises(Interrupted), atomic_directory(tmp_path / "folder") as folder:
        fill(folder)
    assert names(tmp_path) == []


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write_folder(path, "earlier")
    rename = os.rename

    def crash_after_the_first(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", crash_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, "later")
    monkeypatch.undo()
    assert names(tmp_path) == [".folder.earlier", ".folder.partial"]

    with pytest.raises(RuntimeError), atomic_directory(path):
        raise RuntimeError
    assert (path / "below" / "file").read_text() == "earlier"


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    write_text(tmp_path / "folder", "a file")
    with pytest.raises(DataError, match="cannot write"):
        write_folder(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder").read_text() == "a file"


def test_a_file_system_that_cannot_flush_folders_is_written_to_all_the_same(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_text(tmp_path / "text", "one\n")
    assert (tmp_path / "text").read_text() == "one\n"


def test_a_folder_that_may_be_written_to_but_not_read_is_written_to(tmp_path, monkeypatch):
    opened = os.open

    def no_folders(path, *more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *more)

    monkeypatch.setattr(os, "open", no_folders)
    write_text(tmp_path / "text", "one\n")
    assert (tmp_path / "text").read_text() == "one\n"
