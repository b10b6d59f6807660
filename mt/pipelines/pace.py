"""How fast translating goes, said now and then to people who wait for it."""

import logging
import time
from collections.abc import Callable
from functools import cached_property

logger = logging.getLogger(__name__)

TELL_EVERY_SECONDS = 30.0


def duration(seconds: float) -> str:
    """Seconds in words that fit a column: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Pace:
    """Says twice a minute how many lines are translated, how fast that goes, and how long the rest will take."""

    def __init__(self, count: Callable[[], int | None] | None = None) -> None:
        """`count` counts the lines that there are to do, None where it cannot; it is asked when that is first said."""
        self.count = count
        self.started = self.told = time.monotonic()
        self.done = 0.0

    @cached_property
    def lines(self) -> int | None:
        return self.count() if self.count else None

    def add(self, lines: float) -> None:
        """So many more lines are translated."""
        self.done += lines
        now = time.monotonic()
        if now - self.told >= TELL_EVERY_SECONDS:
            self.told = now
            rate = self.done / (now - self.started)
            of_all = f" of {self.lines:,}" if self.lines else ""
            left = f" │ {duration((self.lines - self.done) / rate)} left" if self.lines else ""
            logger.info("translated %s%s lines │ %s lines/s%s", f"{self.done:,.0f}", of_all, f"{rate:,.1f}", left)
