"""The command line: every command and flag.

A command reads flags, builds a request and calls one pipeline, which it imports then, so that `mt --help` loads no
torch.  Here alone errors become messages and exit codes, and in this package alone results are printed.
"""

import logging
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from mt import __version__
from mt.cli import bench, runs, tokenizer, translation
from mt.cli.options import STATE
from mt.errors import ConfigError, DataError, DeviceError, ExitCode, Interrupted, MTError, out_of_memory

app = typer.Typer(
    name="mt",
    help="Train, run and judge your own translation models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tokenizer_app = typer.Typer(
    help="Train a SentencePiece tokenizer; turn text into pieces and back.", no_args_is_help=True
)
bench_app = typer.Typer(help="Measure how fast this machine is.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
for function in (
    runs.train, translation.translate, translation.evaluate, runs.info, runs.plot, runs.average, runs.shortlist,
    runs.export,
):  # fmt: skip
    app.command()(function)
app.add_typer(bench_app, name="bench")
app.command()(runs.demo)
tokenizer_app.command("train")(tokenizer.train)
tokenizer_app.command("encode")(tokenizer.encode)
tokenizer_app.command("decode")(tokenizer.decode)
bench_app.command("train")(bench.train)
bench_app.command("translate")(bench.translate)


def version(value: bool) -> None:
    if value:
        print(f"mt {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, run and judge your own translation models."""
    STATE.update(quiet=quiet, debug=debug)
    handler = StderrHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mt").setLevel(logging.WARNING if quiet else logging.INFO)


class StderrHandler(logging.StreamHandler):
    """Writes to what standard error is by then: a progress bar puts something in its place that writes above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class LineFormatter(logging.Formatter):
    """Information as it is; warnings say that they are; of an exception the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info:
            return self.formatException(record.exc_info)
        message = record.getMessage()
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


def stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted("stopped")


def main() -> NoReturn:
    """Run the command line; every error that a user can make ends here as a message and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except MTError as error:
        fail(error)
    except UnicodeEncodeError as error:  # bytes of a name, which Python carries along
        around = error.object[max(0, error.start - 40) : error.end + 40]
        fail(ConfigError(f"a name is not UTF-8: {around!r}", "rename that file or folder"))
    except OSError as error:
        fail(DataError(f"{error.filename or 'the system'}: {error.strerror or error}"))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        hint = "use smaller batches: mt translate --batch-tokens N, mt train --set training.micro_batch_tokens=N"
        fail(DeviceError("out of memory", hint))
    sys.exit(ExitCode.DONE)


def fail(error: MTError) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is ending already
    if STATE["debug"]:
        logging.getLogger(__name__).exception("traceback")
    label = "" if isinstance(error, Interrupted) else "error: "
    print(f"{label}{error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint:  {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)
