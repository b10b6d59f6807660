"""Checksums of text files, remembered beside encoded text, so that large files are not read at every start.

As in git's index, a file that has the size, times and inode that it had then is taken to be the same.  Writing to a
file sets its time of change, which no program sets back; on file systems that keep no such time, text of the same size
whose time of modification is put back is mistaken for what stood there.  A file is trusted only when it had been left
alone for longer than a clock's tick, for a later change within the same tick would not show.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from mt.errors import DataError
from mt.files import checksum, read_json, write_json
from mt.settings import Values

SETTLED_NANOSECONDS = 2_000_000_000  # the coarsest tick of a file system's clock is two seconds, that of FAT


class Checksums:
    """The checksums in a folder's `checksums.json`, which may be deleted, and those that have since been taken."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checksums.json"
        self.known = self.read()
        self.taken: dict[str, Values] = {}

    def read(self) -> dict[str, Values]:
        """What is remembered now, by path; what another program, or an older version, has written there is nothing."""
        with suppress(OSError, ValueError):  # absent or damaged: files are read again
            return {name: entry for name, entry in read_json(self.path).items() if whole(entry)}
        return {}

    def of(self, path: Path) -> str:
        """SHA-256 of a file; raises `DataError` when it cannot be read."""
        now = time.time_ns()
        status = status_of(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = str(path.resolve())
        if name in self.known and self.known[name]["stamp"] == stamp:
            return self.known[name]["sha256"]
        sha256 = checksum(path)
        if max(status.st_mtime_ns, status.st_ctime_ns) < now - SETTLED_NANOSECONDS:
            self.known[name] = self.taken[name] = {"stamp": stamp, "sha256": sha256}
        return sha256

    def save(self) -> None:
        """Remember what was taken beside what other processes have remembered, where the folder can be written to."""
        if self.taken:
            with suppress(DataError):
                write_json(self.path, self.read() | self.taken)


def status_of(path: Path) -> os.stat_result:
    """The status of a file while it is open: opening is what makes a network file system ask its server."""
    try:
        with open(path, "rb") as stream:
            return os.fstat(stream.fileno())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def whole(entry: object) -> bool:
    match entry:
        case {"stamp": [_, _, _, _], "sha256": str()}:
            return True
    return False
