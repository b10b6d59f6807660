"""Files: text read line by line exactly, results written whole or not at all.

A line ends at `\\n` and nowhere else.  A file or folder appears under its name only when it is complete and on disk.
"""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO

from mt.errors import ConfigError, DataError, MTError, UnreadableText

logger = logging.getLogger(__name__)

BYTE_ORDER_MARK = "\ufeff"
BLOCK_BYTES = 1 << 16  # of compressed text, read at once


def can_be_read_only_once(path: Path) -> bool:
    """Whether this is a pipe or a terminal, whose text is gone when it has been read."""
    return path.is_fifo() or path.is_char_device()


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, decompressing `.gz` and `.zst` on the way; raises `DataError` when it cannot be."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder", "name a text file")
        if path.suffix == ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        if path.suffix == ".zst":
            return open_zstandard(path)
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def open_zstandard(path: Path) -> BinaryIO:
    if find_spec("zstandard") is None:
        raise ConfigError(f"reading {path} needs the package zstandard", "pip install zstandard")
    file = open(path, "rb")  # noqa: SIM115 (BlockReader closes it)
    return io.BufferedReader(BlockReader(file, zstandard_blocks(file)))


def zstandard_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress a file of zstd frames, block by block.

    As gzip does, and zstandard's own reader does not, it raises `EOFError` when the last frame is cut short, and
    `OSError` when one is damaged.
    """
    import zstandard

    compressed = file.read(BLOCK_BYTES)
    while compressed:
        frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        while not frame.eof:
            if not compressed:
                raise EOFError("compressed file ended before the end of its last frame")
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            compressed = frame.unused_data or file.read(BLOCK_BYTES)


class BlockReader(io.RawIOBase):
    """An iterator of blocks made from a file, read as a stream that closes the file."""

    def __init__(self, file: BinaryIO, blocks: Iterator[bytes]) -> None:
        self.file = file
        self.blocks = blocks
        self.block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.block:
            try:
                self.block = memoryview(next(self.blocks))
            except StopIteration:
                return 0
        count = min(len(buffer), len(self.block))
        buffer[:count], self.block = self.block[:count], self.block[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def decode_lines(stream: Iterable[bytes], name: str, *, on_invalid: str = "stop") -> Iterator[tuple[str, bool]]:
    """Yield (line, valid) for each line of a binary stream, without its `\\n`.

    A byte-order mark is dropped at the start.  Invalid UTF-8 raises `DataError` with the line's number, or, with
    `on_invalid="replace"`, becomes U+FFFD in a line marked as not valid.  A stream that cannot be read to its end,
    such as a truncated .gz, raises `UnreadableText`.
    """
    for number, raw in enumerate(binary_lines(stream, name), 1):
        try:
            line, valid = raw.removesuffix(b"\n").decode("utf-8"), True
        except UnicodeDecodeError as error:
            if on_invalid == "stop":
                raise DataError(
                    f"{name}, line {number:,}: not UTF-8 ({error.reason} at byte {error.start + 1} of the line)",
                    "convert the file, for instance with: iconv -f LATIN1 -t UTF-8",
                ) from error
            line, valid = raw.removesuffix(b"\n").decode("utf-8", "replace"), False
        yield (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line), valid


def binary_lines(stream: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines of a binary stream; one that cannot be read to its end raises `UnreadableText`."""
    number = 0
    try:
        for number, raw in enumerate(stream, 1):  # noqa: B007 (told when reading fails)
            yield raw
    except (EOFError, OSError, zlib.error) as error:
        hint = "the file may be truncated, or not of the kind that its name says"
        raise UnreadableText(f"cannot read {name} after line {number:,}: {error}", hint) from error


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file (plain, .gz, .zst); raises `DataError` with the place of what is wrong."""
    with open_binary(path) as stream:
        for line, _ in decode_lines(stream, str(path)):
            yield line


def count_lines(path: Path) -> int:
    """How many lines `read_lines` yields, whatever their bytes say."""
    with open_binary(path) as stream:
        return sum(1 for _ in binary_lines(stream, str(path)))


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder, so that what follows cannot reach the disk before it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # and not where a folder cannot be read, or a file system cannot do it to folders


def writing_error(path: Path, error: OSError) -> MTError:
    return DataError(f"cannot write {path}: {error.strerror or error}", "free some space or choose another place")


def standard_input() -> BinaryIO:
    """Standard input as bytes; raises `DataError` where the command was started without one."""
    if sys.stdin is None:
        raise DataError("standard input is closed", "name files, or give text: mt ... < FILE")
    return sys.stdin.buffer


@contextmanager
def standard_output() -> Iterator[IO[str]]:
    """Standard output as UTF-8 lines; a reader that closes the pipe ends the block silently."""
    if sys.stdout is None:
        raise DataError("standard output is closed", "send results somewhere: mt ... > FILE")
    try:
        with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n") as stream:
            yield stream
    except BrokenPipeError:
        pass
    except OSError as error:
        raise writing_error(Path("standard output"), error) from error


def can_be_replaced(path: Path) -> bool:
    """Whether a file can be renamed to this name: where there is one or nothing, but no device, pipe or open file.

    `/dev/stdout`, `/dev/fd/1` and links to them are names of open files, even where those are regular ones.
    """
    if path.exists() and not path.is_file():
        return False
    for _ in range(MOST_LINKS):
        folder = Path(os.path.realpath(path.parent))
        if folder.name == "fd" and folder.parts[1] in ("dev", "proc"):
            return False
        if not path.is_symlink():
            break
        path = folder / path.readlink()
    return True


def unfinished(path: Path) -> tuple[Path, Path]:
    """Where the text of a file is written until it is complete, and where the record of its progress is."""
    place = behind_links(path)
    return Path(f"{place}.partial"), Path(f"{place}.partial.json")


def check_output_text(path: Path, inputs: Iterable[Path]) -> None:
    """Raise `ConfigError` where a text must not be written: over its inputs, or under a name for compressed text."""
    if path.suffix in COMPRESSED:
        raise ConfigError(f"{path} would be plain text", f"name it without {path.suffix}, and compress it then")
    for written in (path, *unfinished(path)):
        for read in inputs:
            if written.is_file() and read.is_file() and written.samefile(read):
                raise ConfigError(f"{written} is read, and would be written over", "choose another --output")


COMPRESSED = (".gz", ".zst")
MOST_LINKS = 40  # that follow one another, as Linux has it


def behind_links(path: Path) -> Path:
    """The file that a name leads to: what is renamed to a link's own name would leave that file as it was."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def claim(path: Path) -> int:
    """Open a file, made where it is not there, and lock it until the returned descriptor is closed.

    Raises `DataError` where another process has locked it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:  # whoever had it may have finished just now, and renamed it
        own = try_to_lock(descriptor) and os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        own = False
    if not own:
        os.close(descriptor)
        raise DataError(f"another process writes {path}", "wait until it has ended, or choose another --output")
    return descriptor


def try_to_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False where another process has locked it.

    A file system without locks locks nothing.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """A block that holds the `claim` to a file and then deletes it; raises `DataError` where another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = claim(path)
    except OSError as error:
        raise writing_error(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write `path` through `path.partial`: it appears under its own name complete and flushed, or not at all.

    Devices, pipes and `/dev/stdout` cannot be renamed over: they are added to, until nobody reads any more.  A link
    stays, what it leads to is replaced.  Raises `DataError` when the disk is full, the place cannot be written, or
    another process writes there; a `BrokenPipeError` of another file passes through.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    place, (partial, record) = behind_links(path), unfinished(path)
    try:
        if not can_be_replaced(path):
            with suppress(BrokenPipeError), open(path, mode.replace("w", "a"), **text) as stream:  # type: ignore[call-overload]
                yield stream
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(claim(partial), mode, **text) as stream:  # type: ignore[call-overload]
            if record.exists():
                logger.warning("what an interrupted command has left in %s is dropped", partial)
                record.unlink()  # it would speak of another file from now on
            try:  # what has to happen while it is claimed
                stream.truncate(0)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(partial, place)
            except OSError:
                with suppress(OSError):
                    partial.unlink()
                raise
            flush_to_disk(place.parent)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise writing_error(path, error) from error


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `path`, flush what is in it, rename it to `path`.

    A folder already there is replaced.  A crash leaves the earlier state and a `.NAME.partial`, which the next write of
    the same name clears away.  A folder cannot be renamed over a full one, so the earlier one steps aside first, as
    `.NAME.earlier`; a crash just then leaves both, and the next write puts it back.  Raises `DataError` as
    `atomic_file` does.
    """
    partial = path.with_name(f".{path.name}.partial")
    earlier = path.with_name(f".{path.name}.earlier")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if earlier.exists() and not path.exists():
            os.rename(earlier, path)
        shutil.rmtree(earlier, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for entry in partial.rglob("*"):
            flush_to_disk(entry)
        flush_to_disk(partial)
        if path.is_dir():
            os.rename(path, earlier)
        os.rename(partial, path)
        flush_to_disk(path.parent)
        shutil.rmtree(earlier, ignore_errors=True)
    except (OSError, MTError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error if isinstance(error, MTError) else writing_error(path, error) from error


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """A block that one process at a time is in, of all that name the same path; the others wait, and say so.

    Leaves an empty `.NAME.lock` beside `path`.  Raises `DataError` where that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        if not try_to_lock(descriptor):
            logger.info("another process writes %s: waiting for it", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise writing_error(path, error) from error
    try:
        yield
    finally:
        os.close(descriptor)


def append_text(path: Path, text: str) -> None:
    """Add lines to the end of a file that grows, such as a log; raises `DataError` as `atomic_file` does."""
    try:
        with open(path, "ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":  # a full disk has cut the last line
                    text = "\n" + text
            stream.write(text.encode())
    except OSError as error:
        raise writing_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as stream:
        stream.write(text)


def write_json(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The record in a JSON file that `mt` wrote.  Raises `OSError` or `ValueError`: the caller knows what it means."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record
