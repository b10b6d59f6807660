"""Pictures of training, drawn from the records of a run's log; nothing here knows folders or files.

Drawn to be read in grey too: runs differ by how dark their colour is and by the marker of their validations.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mt.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot over the step: a number that records of some kinds hold."""

    key: str
    title: str  # with the unit
    kinds: tuple[str, ...]


PANELS = (
    Panel("loss", "loss (nats per target token)", ("train", "valid")),
    Panel("bleu", "BLEU on validation", ("valid",)),
    Panel("chrf", "chrF2 on validation", ("valid",)),
    Panel("learning_rate", "learning rate", ("train",)),
    Panel("target_tokens_per_second", "speed (target tokens per second)", ("train",)),
    Panel("gradient_norm", "norm of the gradient", ("train",)),
)
COLUMNS = 3
# Okabe and Ito 2008: told apart by the colour-blind; neighbours differ in lightness.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P")
NEUTRAL = "#666666"
KINDS = {"train": "training", "valid": "validation"}
# Line styles of events, by the lengths of strokes and gaps; of others: a solid line.
MARKS: dict[str, Any] = {
    "decay": "--", "resumed": ":", "averaged": "-.", "moving_average": (0, (1, 5)), "noise": (0, (9, 3)),
    "consistency": (0, (9, 2, 2, 2, 2, 2)), "skipped": (0, (2, 5)), "out_of_memory": (0, (5, 5)),
}  # fmt: skip
UNMARKED = ("started", "finished", "micro_batches", "compiled", "length_penalty")  # events that are not drawn
GOING_ON = ("resumed", "rolled_back")  # events: the run goes on from a checkpoint
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": NEUTRAL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
    "legend.frameon": False,
    "text.parse_math": False,  # names of folders are shown as they are
}


def training_figure(runs: dict[str, list[Record]]) -> "Figure":
    """The course of training of one or more runs, given as the records of their logs, under the names to show.

    A panel has a line for each run and kind of record, labelled `NAME KIND`; panels without numbers are left out.
    Raises `ConfigError` where matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("matplotlib is not installed", "pip install matplotlib") from error
    courses = {name: without_undone(records) for name, records in runs.items()}
    drawn = [panel for panel in PANELS if any(holds(panel, record) for course in courses.values() for record in course)]
    rows = math.ceil(len(drawn) / COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.8 + 2.4 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).flat
        for panel, axes in zip(drawn, grid, strict=False):
            axes.set_title(panel.title)
            axes.tick_params(labelbottom=True)
            axes.locator_params(axis="x", nbins=5, integer=True)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:,.10g}")
            for number, (name, course) in enumerate(courses.items()):
                draw_course(axes, panel, name, course, number)
                draw_marks(axes, course, NEUTRAL if len(courses) == 1 else COLOURS[number % len(COLOURS)])
        for axes in grid[len(drawn) :]:
            axes.remove()
        figure.supxlabel("step", fontsize=9)
        handles = legend_of(courses)
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 7))
    return figure


def without_undone(records: list[Record]) -> list[Record]:
    """The records of the steps that led to the run as it stands, in order.

    A run that goes on from an earlier step undoes what came after it.  It also undoes a decay that began at that very
    step: the checkpoint was written before.  Of two records of a kind and step the later counts.
    """
    course: list[Record] = []
    for record in records:
        while course and course[-1]["step"] > record["step"]:
            course.pop()
        if record.get("event") in GOING_ON:
            course = [each for each in course if (each["step"], each.get("event")) != (record["step"], "decay")]
        course.append(record)
    return list({(record["step"], record["kind"], record.get("event")): record for record in course}.values())


def holds(panel: Panel, record: Record) -> bool:
    return record["kind"] in panel.kinds and panel.key in record


def draw_course(axes: "Axes", panel: Panel, name: str, course: list[Record], number: int) -> None:
    """The lines of the run with this number in one panel."""
    for kind in panel.kinds:
        points = [
            (record["step"], record[panel.key]) for record in course if record["kind"] == kind and holds(panel, record)
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{name} {kind}", **line_style(kind, number))


def line_style(kind: str, number: int) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    if kind == "train":
        return {"color": colour, "linewidth": 0.9}
    return {"color": colour, "linewidth": 1.2, "marker": MARKERS[number % len(MARKERS)], "markersize": 3}


def draw_marks(axes: "Axes", course: list[Record], colour: str) -> None:
    for step, event in sorted({(record["step"], record["event"]) for record in course if marked(record)}):
        axes.axvline(step, label=event, color=colour, linewidth=0.8, linestyle=MARKS.get(event, "-"), alpha=0.6)


def marked(record: Record) -> bool:
    turn = record["kind"] == "event" and record["event"] not in UNMARKED
    return turn and record.get("begun", True)  # two passes may be decided against


def legend_of(courses: dict[str, list[Record]]) -> "list[Artist]":
    """Runs by their colours, kinds of lines and of marks in grey."""
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **style)

    runs = [entry(name, **line_style("valid", number)) for number, name in enumerate(courses)]
    kinds = [entry(label, **line_style(kind, 0) | {"color": NEUTRAL}) for kind, label in KINDS.items()]
    events = {record["event"] for course in courses.values() for record in course if marked(record)}
    marks = [
        entry(event.replace("_", " "), color=NEUTRAL, linewidth=0.8, linestyle=MARKS.get(event, "-"))
        for event in sorted(events)
    ]
    return [*runs, *kinds, *marks]
