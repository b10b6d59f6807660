"""Parts of an input that processes translate side by side: together their outputs are that of one process.

Parts are cut where windows of lines end, so that each window is the same as without parts, and with as many threads
each batch.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from mt.device import launch_number
from mt.errors import ConfigError
from mt.files import can_be_read_only_once, count_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts that follow one another; the first has the number 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"there is no part {self}", "parts count from 1: --shard 2/8 is the second of eight")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def part(self, lines: int, window: int) -> range:
        """Its lines of so many, counted from 0: as many windows as another shard has, give or take one."""
        windows = -(-lines // window)
        first, last = (windows * number // self.count * window for number in (self.number - 1, self.number))
        return range(min(first, lines), min(last, lines))

    def own_file(self, output: Path | None) -> Path:
        """Where it writes when all shards were given one output; by their names the files sort in order."""
        if output is None:
            raise ConfigError(
                f"this is process {self.number} of {self.count}, and --output is missing",
                "each process writes a file of its own: OUTPUT.1-of-8 and so on",
            )
        number = str(self.number).zfill(len(str(self.count)))
        return output.with_name(f"{output.name}.{number}-of-{self.count}")


def parse_shard(text: str) -> Shard:
    """What `--shard` says."""
    parts = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if parts is None:
        raise ConfigError(f"--shard {text!r} is not of the form I/N", "--shard 2/8 is the second of eight parts")
    return Shard(int(parts[1]), int(parts[2]))


def launched_shard() -> Shard | None:
    """The shard of a process that torchrun has started as one of several, on one machine or on many."""
    rank, processes = launch_number("RANK"), launch_number("WORLD_SIZE")
    if rank is None or processes is None or processes == 1:
        return None
    return Shard(rank + 1, processes)


def check_divisible(files: list[Path]) -> None:
    """Raises `ConfigError` for standard input and pipes."""
    passing = [str(path) for path in files if can_be_read_only_once(path)]
    if passing or not files:
        raise ConfigError(
            f"{(passing or ['standard input'])[0]} cannot be cut into parts: its lines would have to be counted first",
            "write the text to a file: mt translate --shard 2/8 FILE",
        )


def lines_of(shard: Shard, files: list[Path], window: int) -> range:
    """Which lines of all files taken together are those of a shard, counted from 0.

    Raises as `check_divisible`, and `DataError` for a file that cannot be read.
    """
    check_divisible(files)
    lines = sum(map(count_lines, files))
    part = shard.part(lines, window)
    which = f"lines {part.start + 1:,} to {part.stop:,}" if part else "no line"
    logger.info("part %s: %s of %s", shard, which, f"{lines:,}")
    return part
