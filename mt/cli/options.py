"""What several commands share: flags, checks of their values, and how results are printed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mt.errors import ConfigError

if TYPE_CHECKING:
    from mt.pipelines.recipe import Settings

STATE = {"quiet": False, "debug": False}  # of the flags before the command

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[
    str | None, typer.Option(metavar="0,1,...", help="CUDA devices (with --device cpu: processes) that share the work.")
]
TrainingPrecision = Annotated[str, typer.Option(help="auto, fp32, tf32 or bf16.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, tf32, bf16 or int8.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the CPU; 0: all that the process may use.")]
Models = Annotated[list[Path], typer.Option(help="Run folder; repeat it for an ensemble.")]
Beam = Annotated[int | None, typer.Option(min=1, help="Hypotheses followed per sentence; 1: greedy.")]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Rank by log-probability / length^this; not given: the run's own.")
]
Preset = Annotated[str | None, typer.Option(help="Model size: auto, tiny, small, base or big.")]
TextOrJson = Annotated[str, typer.Option("--format", help="text or json.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting (docs/settings.md); may be repeated."),
]
Repetitions = Annotated[int, typer.Option(min=1, help="Repetitions timed, after one to warm up.")]
Shortlist = Annotated[
    bool, typer.Option("--shortlist", help="Choose only among the target pieces that mt shortlist RUN found likely.")
]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Sentences x longest source in a batch.")]


def one_of(value: str, choices: tuple[str, ...], flag: str) -> str:
    if value not in choices:
        raise ConfigError(f"{flag} {value} is none of {', '.join(choices)}")
    return value


def print_result(result: dict[str, Any] | str) -> None:
    """Results go to standard output, records as JSON."""
    from mt.files import standard_output

    with standard_output() as stream:
        stream.write(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
        stream.write("\n")


def add_assignments(settings: "Settings", assignments: list[str] | None) -> None:
    """Lay what `--set` says over the settings, all at once: what is said together holds together."""
    from mt.settings import parse_assignment

    layer: dict[str, dict[str, Any]] = {}
    for assignment in assignments or []:
        section, key, value = parse_assignment(assignment)
        layer.setdefault(section, {})[key] = value
    settings.add(layer, "--set")
