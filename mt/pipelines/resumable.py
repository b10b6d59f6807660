"""A text file that is written in windows, and goes on where an interrupted command stopped.

Beside `FILE.partial` stands `FILE.partial.json`, which says after each full window how much is done, and of which
work.  The same command run again keeps that much and does the rest, in the same windows: the file is the same.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mt.errors import MTError, UnreadableText
from mt.files import atomic_file, behind_links, claim, flush_to_disk, read_json, unfinished, write_json, writing_error
from mt.settings import Values

logger = logging.getLogger(__name__)


def earlier_work(path: Path) -> Values:
    """What the text depends on that an interrupted command has left for this file; nothing where there is none."""
    try:
        return dict(read_json(unfinished(path)[1])["work"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@dataclass
class ResumableFile:
    """The file `path` while it is written; `lines` are done, of which `recorded` survive a crash."""

    path: Path
    work: Values  # all that the text depends on
    lines: int = 0
    recorded: int = 0

    def __post_init__(self) -> None:
        self.path = behind_links(self.path)
        self.partial, self.record = unfinished(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = open(claim(self.partial), "r+b")  # noqa: SIM115 (until close)
        done = self.earlier()
        if not done:
            self.record.unlink(missing_ok=True)  # first, so that it never speaks of another file
        self.stream.truncate(done)
        self.stream.seek(done)

    def earlier(self) -> int:
        """The bytes that are there already and stay."""
        if not self.record.is_file():
            return 0
        try:
            record = read_json(self.record)
            lines, size, work = int(record["lines"]), int(record["bytes"]), dict(record["work"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged: starting anew", self.record)
            return 0
        different = [key for key in self.work if work.get(key) != self.work[key]]
        if different or self.partial.stat().st_size < size:
            why = f"other {', '.join(different)}" if different else "lines are missing"
            logger.warning("%s lines in %s are dropped (%s): starting anew", f"{lines:,}", self.partial, why)
            return 0
        self.lines = self.recorded = lines
        logger.info("going on after line %s, where %s ends", f"{lines:,}", self.partial)
        return size

    def write(self, lines: list[str], *, full: bool) -> None:
        """Add a window of lines; a full one is recorded, as more may follow."""
        self.stream.write("".join(f"{line}\n" for line in lines).encode())
        self.stream.flush()
        self.lines += len(lines)
        if full:
            self.note()

    def note(self) -> None:
        """Record what is done, so that it survives a crash."""
        os.fsync(self.stream.fileno())
        write_json(self.record, {"work": self.work, "lines": self.lines, "bytes": self.stream.tell()})
        self.recorded = self.lines

    def finish(self) -> None:
        """Give the file its name."""
        os.fsync(self.stream.fileno())
        os.replace(self.partial, self.path)  # while it is claimed
        self.record.unlink(missing_ok=True)
        flush_to_disk(self.path.parent)


def join(parts: list[Path], path: Path) -> None:
    """Make one file of those that were to be joined, in this order, and remove them."""
    with atomic_file(path, "wb") as whole:
        for part in parts:
            with open(unfinished(part)[0], "rb") as text:
                shutil.copyfileobj(text, whole)
    for part in parts:
        for file in unfinished(part):
            file.unlink()


@contextmanager
def resumable_file(path: Path, work: Values, *, to_be_joined: bool = False) -> Iterator[ResumableFile]:
    """A block that writes a file; what a failure leaves recorded stays, and the error says that it does.

    One that is to be joined with others stays FILE.partial, with its record: it is not redone while others are undone.
    Raises `DataError` when the disk is full or the place cannot be written.
    """
    file, complete = None, False
    try:
        try:
            file = ResumableFile(path, work)
            yield file
            file.note() if to_be_joined else file.finish()
            complete = True
        except OSError as error:
            raise writing_error(path, error) from error
    except MTError as error:
        if file and file.recorded and not isinstance(error, UnreadableText):
            kept = f"{file.recorded:,} lines are done; the same command goes on from there"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise
    finally:
        if file:
            if not complete and not file.recorded:  # there is nothing to go on with
                with suppress(OSError):
                    file.partial.unlink(missing_ok=True)
            with suppress(OSError):
                file.stream.close()
