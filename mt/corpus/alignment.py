"""Where two files stop belonging to each other, judged by the lengths of their lines alone.

A translation is about as long as what it translates.  In windows of 500 lines the logarithms of the lengths correlate
by 0.8 to 0.9 in Multi30k and WMT, and by less than 0.1 as soon as one side has slipped by a single line.  Small
corpora, and lines that are all about as long, are not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.floating]  # log(1 + characters) of each line

WINDOW_LINES = 500  # the correlation of unrelated lines then has a standard deviation of 0.045; fewer are not judged
FEWEST_USABLE = 100  # lines in a window with text on both sides
SMALLEST_SPREAD = 0.1  # standard deviation of the logarithms, about 10% of the length
MOST_SHIFTED = 100  # lines tried in either direction
UNRELATED = 0.1  # correlation below which the sides have nothing to do with each other
RESTORED = 0.4  # correlation that a shift must reach, and be 0.3 better than none


@dataclass(frozen=True, kw_only=True, slots=True)
class Misalignment:
    """Rows `first` to `last` (exclusive) do not belong together as they stand."""

    first: int
    last: int
    lines: int  # in the files
    inside: float  # correlation of lengths there
    elsewhere: float | None  # and in the other windows, if there are any
    shift: int = 0  # source row n belongs to target row n + shift; 0: no small shift helps
    restored: float = 0.0  # correlation after the shift

    def __str__(self) -> str:
        where = f"from about line {self.first + 1:,} " + ("on" if self.last == self.lines else f"to {self.last:,}")
        usual = "" if self.elsewhere is None else f", elsewhere {self.elsewhere:z.2f}"
        said = f"{where} the lengths of the two sides do not agree (correlation {self.inside:z.2f}{usual})"
        if not self.shift:
            return f"{said}: the lines there do not seem to be translations of each other"
        count = abs(self.shift)
        lines = "1 line" if count == 1 else f"{count} lines"
        move, lost, gained = ("down", "target", "source") if self.shift < 0 else ("up", "source", "target")
        return (
            f"{said}; with the target moved {move} by {lines} they do ({self.restored:z.2f}):"
            f" the {lost} has lost {lines} there, or the {gained} has gained {'one' if count == 1 else count}"
        )


class Window(NamedTuple):
    first: int  # row
    last: int  # row, exclusive
    agreement: float  # correlation of the lengths


def find_misalignment(source: Lengths, target: Lengths) -> Misalignment | None:
    """The longest stretch of lines that seem not to belong together, or None."""
    windows = measured_windows(source, target)
    if not windows:
        return None
    agreement = np.array([window.agreement for window in windows])
    # Slipped lines may agree a little: Multi30k by 0.26 after 40 lines, since its lengths have a rhythm of five.
    begin, end = longest_run(agreement < max(RESTORED, np.quantile(agreement, 0.9) / 2))
    if begin == end:
        return None

    stretch = windows[begin:end]
    inside = float(np.median(agreement[begin:end]))
    others = np.delete(agreement, slice(begin, end))
    elsewhere = float(np.median(others)) if len(others) else None
    # Where lines were lost in several places each slip has its own shift, so only the first windows are asked.
    shift, restored = best_shift(source, target, stretch[:3])
    if restored > max(RESTORED, inside + 0.3):
        first = slip_row(source, target, shift, windows[max(begin - 1, 0)].first, stretch[0].last)
    elif inside < UNRELATED and (elsewhere is None or (elsewhere > 0.5 and len(stretch) > 1)):
        first, shift, restored = stretch[0].first, 0, 0.0
    else:
        return None
    return Misalignment(
        first=first,
        last=stretch[-1].last,
        lines=len(source),
        inside=inside,
        elsewhere=elsewhere,
        shift=shift,
        restored=restored,
    )


def measured_windows(source: Lengths, target: Lengths) -> list[Window]:
    """The corpus in equal windows, without those whose lengths tell nothing."""
    if len(source) < WINDOW_LINES:
        return []
    edges = np.linspace(0, len(source), len(source) // WINDOW_LINES + 1).astype(int).tolist()
    windows = [Window(first, last, correlation(source, target, first, last)) for first, last in pairwise(edges)]
    return [window for window in windows if not np.isnan(window.agreement)]


def correlation(source: Lengths, target: Lengths, first: int, last: int, shift: int = 0) -> float:
    """Of the lengths of source rows `first` to `last` and those of the target `shift` further; NaN when meaningless."""
    first, last = max(first, -shift), min(last, len(source) - shift)
    sources, targets = source[first:last], target[first + shift : last + shift]
    usable = (sources > 0) & (targets > 0)
    sources, targets = sources[usable], targets[usable]
    if len(sources) < FEWEST_USABLE or min(sources.std(), targets.std()) < SMALLEST_SPREAD:
        return float("nan")
    return float(np.corrcoef(sources, targets)[0, 1])


def longest_run(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Begin and end (exclusive) of the longest run of True; (0, 0) without any."""
    runs = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2).tolist()
    return max(((begin, end) for begin, end in runs), key=lambda run: run[1] - run[0], default=(0, 0))


def best_shift(source: Lengths, target: Lengths, windows: Sequence[Window]) -> tuple[int, float]:
    """The shift of the target with which the lengths agree best, and the correlation it gives."""
    agreements = {
        shift: float(np.median([correlation(source, target, *window[:2], shift) for window in windows]))
        for shift in range(-MOST_SHIFTED, MOST_SHIFTED + 1)
        if shift
    }
    shift = max(agreements, key=lambda shift: np.nan_to_num(agreements[shift], nan=-1.0))
    return shift, agreements[shift]


def slip_row(source: Lengths, target: Lengths, shift: int, first: int, last: int) -> int:
    """The row between `first` and `last` that best divides lines which agree as they stand from shifted ones."""
    rows = np.arange(max(first, -shift), min(last, len(source) - shift))
    usual = np.median(source[rows] - target[rows])
    straight = np.abs(source[rows] - target[rows] - usual)
    shifted = np.abs(source[rows] - target[rows + shift] - usual)
    # A cut before row i costs what is straight before it and shifted from it on; the sum of all shifted is constant.
    costs = np.concatenate(([0.0], np.cumsum(straight - shifted)))
    return int(rows[0] + costs.argmin())
