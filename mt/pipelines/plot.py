"""`mt plot`: how training went, as a picture of what the logs of runs say."""

import json
import logging
from pathlib import Path

from mt.errors import ConfigError, ModelError
from mt.evaluation.plots import Record, training_figure, without_undone
from mt.files import atomic_file, read_lines
from mt.pipelines.run_folder import RunFolder

logger = logging.getLogger(__name__)

FORMATS = (".png", ".svg", ".pdf")


def plot(runs: list[Path], outputs: list[Path]) -> list[Path]:
    """Draw the training of runs together into each of the files; none: into the folder of the one run.

    Returns what was written.  Raises `ConfigError` for a file of another kind, `ModelError` where there is no log.
    """
    if not outputs and len(runs) > 1:
        raise ConfigError("--output must say where the plot of several runs goes", "--output runs.png")
    outputs = outputs or [RunFolder(runs[0]).plots / "training.png"]
    for path in outputs:
        if path.suffix.lower() not in FORMATS:
            raise ConfigError(f"--output {path} ends in none of {', '.join(FORMATS)}")
    figure = training_figure({name: read_log(RunFolder(run)) for name, run in named(runs).items()})
    for path in outputs:
        with atomic_file(path, "wb") as stream:
            figure.savefig(stream, format=path.suffix.lower().removeprefix("."), dpi=150)
    return outputs


def named(runs: list[Path]) -> dict[str, Path]:
    """Runs by the names of their folders; by their paths where two folders have one name."""
    by_name = {run.resolve().name: run for run in runs}
    return by_name if len(by_name) == len(runs) else {str(run): run for run in runs}


def read_log(run: RunFolder) -> list[Record]:
    """The records of a run's log; lines that a crash has left half-written are passed over with a warning."""
    run.read_config()
    if not run.log.is_file():
        raise ModelError(f"{run.path} has no log.jsonl", "name a run folder made by mt train")
    records = []
    for number, line in enumerate(read_lines(run.log), 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            logger.warning("%s, line %s is no whole record: left out", run.log, f"{number:,}")
    if not any(record["kind"] in ("train", "valid") for record in without_undone(records)):
        raise ModelError(f"{run.log} says nothing of training yet", "wait for the first line of mt train")
    return records
