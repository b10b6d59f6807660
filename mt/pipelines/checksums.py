"""Checksums of text files, remembered beside encoded text, so that large files are not read at every start.

As in git's index, a file that has the size and the times that it had then is taken to be the same.  Writing to a file
sets its time of change, which nobody can set back; it is trusted only when the file had been left alone for longer
than a clock's tick, for a later change within the same tick would not show.
"""

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
        self.known: dict[str, Values] = {}
        with suppress(OSError, ValueError):  # absent or damaged: files are read again
            self.known = read_json(self.path)
        self.saved = dict(self.known)

    def of(self, path: Path) -> str:
        """SHA-256 of a file; raises `DataError` when it cannot be read."""
        now = time.time_ns()
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        seen = {"size": status.st_size, "modified_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns}
        name = str(path.resolve())
        known = self.known.pop(name, {})
        sha256 = known["sha256"] if known == seen | {"sha256": known.get("sha256")} else checksum(path)
        if max(status.st_mtime_ns, status.st_ctime_ns) < now - SETTLED_NANOSECONDS:
            self.known[name] = seen | {"sha256": sha256}
        return sha256

    def save(self) -> None:
        """Remember what was taken, where the folder can be written to."""
        if self.known != self.saved:
            with suppress(DataError):
                write_json(self.path, self.known)
