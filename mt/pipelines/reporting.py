"""What a training run says: a line an interval to people on stderr, the same as a JSON object to log.jsonl.

Where it is asked for, the numbers go to TensorBoard too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from mt.files import append_text
from mt.pipelines.pace import duration
from mt.pipelines.recipe import RunConfig
from mt.pipelines.tensorboard import Board
from mt.training.budget import Progress as TrainingProgress
from mt.training.budget import Record


def recipe_line(config: RunConfig) -> str:
    """`3+3 layers of width 256, dropout 0.2, 8,000 pieces, updates of 1,024 tokens, ...`: what people ask for first."""
    model, training = config.model, config.training
    pieces = sorted({model.source_vocabulary, model.target_vocabulary})
    passes = []
    if training.passes == 2:
        begin = f" from {training.consistency_from:.0%} of the limit on" if training.consistency_from else ""
        often = f", if the text has been read {training.consistency_epochs} times by then"
        passes = [f"{training.consistency}{begin}{often if training.consistency_epochs else ''}"]
    columns = [
        f"{model.encoder_layers}+{model.decoder_layers} layers of width {model.width:,}",
        f"dropout {model.dropout:g}",
        f"{' and '.join(f'{size:,}' for size in pieces)} pieces",
        f"updates of {config.data.batch_tokens:,} target tokens",
        f"learning rate up to {config.optimizer.peak_learning_rate:.2g}",
        *passes,
    ]
    return ", ".join(columns)


def training_line(record: Record) -> str:
    """`step 1,200 │ loss 3.412 nats │ lr 3.1e-04 │ 4,821 target tok/s │ 1.2 GiB │ 41 min left`."""
    columns = [
        f"step {record['step']:>7,}",
        f"loss {record['loss']:6.3f} nats",
        f"lr {record['learning_rate']:.1e}",
        f"{record['target_tokens_per_second']:>7,.0f} target tok/s",
        f"{record['memory_gib']:.1f} GiB",
    ]
    if record["seconds_left"] is not None:
        columns.append(f"{duration(record['seconds_left'])} left")
    return " │ ".join(columns)


def validation_line(record: Record) -> str:
    columns = [
        f"step {record['step']:>7,}",
        f"validation loss {record['loss']:.3f} nats",
        f"bleu {record['bleu']:.1f}",
        f"chrf {record['chrf']:.1f}",
        f"{duration(record['validation_seconds'])}",
    ]
    return " │ ".join(columns) + (" │ best so far" if record["best"] else "")


class Silence:
    """The log of a process that trains with others and leaves it to the first of them to speak."""

    def __call__(self, record: Record) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


WARNINGS = ("skipped", "rolled_back", "out_of_memory")  # events that are told however quiet training should be


def event_line(record: Record) -> str:
    """What is said of an event; "" of those that speak elsewhere."""
    match record["event"]:
        case "decay":
            return f"the learning rate falls to 0 over {record['steps']:,} steps"
        case "consistency":
            if record["begun"]:
                return f"two passes over each sentence from now on ({record['method']})"
            return f"one pass over each sentence to the end: the text has been read only {record['epochs']:,} times"
        case "noise":
            return f"{record['rate']:.0%} of the source sentences in other case or mistyped from now on"
        case "skipped":
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in record["reasons"].items())
            return f"warning: updates skipped since the last line: {record['updates']:,} ({reasons})"
        case "rolled_back":
            rate = f"at {record['learning_rate_scale']:g} times the learning rate"
            return f"warning: training diverged at step {record['from_step']:,} and goes on from here {rate}"
        case "micro_batches":
            return f"micro-batches of {record['micro_batch_tokens']:,} target tokens, which fit into the GPU's memory"
        case "compiled":
            return f"compiled: {record['graphs']:,} graphs"
        case "length_penalty":
            chosen, before = record["length_penalty"], record["before"]
            instead = f", {record['score_before']:.2f} with {before:g}" if chosen != before else ""
            found = f"{record['metric']} {record['score']:.2f} on validation{instead}"
            return f"length penalty {chosen:g} is chosen: with beam {record['beam']} {found}"
        case "out_of_memory":
            return f"warning: out of memory: {record['micro_batch_tokens']:,} target tokens at a time from now on"
    return ""


class RunLog:
    """Writes log.jsonl and shows the same on stderr: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(
        self,
        path: Path,
        progress: TrainingProgress,
        elapsed: Callable[[], float],
        *,
        quiet: bool,
        total_steps: int,
        board: Board | None = None,
    ) -> None:
        self.path = path
        self.progress = progress
        self.elapsed = elapsed
        self.board = board
        self.console = Console(stderr=True)
        self.quiet = quiet
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", table_column=Column()))  # may wrap
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("training", total=total_steps or None, completed=progress.step)
            self.bar.start()

    def __call__(self, record: Record) -> None:
        """Add step and seconds to a record of kind train, valid or event, write it, and show it."""
        record = {"step": self.progress.step, "seconds": round(self.elapsed(), 3), **record}
        append_text(self.path, json.dumps(record) + "\n")
        if self.board:
            self.board(record)
        if record["kind"] == "train":
            self.show_training(training_line(record))
        elif record["kind"] == "valid":
            self.say(validation_line(record))
        elif line := event_line(record):
            self.say(f"step {record['step']:>7,} │ {line}", needed=record["event"] in WARNINGS)

    def show_training(self, line: str) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.progress.step, description=line)
        else:
            self.say(line)

    def say(self, line: str, *, needed: bool = False) -> None:
        if needed or not self.quiet:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        if self.board:
            self.board.close()


Log: TypeAlias = RunLog | Silence
