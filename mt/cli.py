"""The command line: every command and flag.

A command reads flags, builds a request and calls one pipeline, which it imports then, so that `mt --help` loads no
torch.  Here alone errors become messages and exit codes, and here alone results are printed.
"""

import json
import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mt import __version__
from mt.errors import ConfigError, DataError, DeviceError, ExitCode, Interrupted, MTError

if TYPE_CHECKING:
    from mt.pipelines.recipe import Settings

STARTED = time.monotonic()  # the minutes of --max-minutes begin here

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
app.add_typer(tokenizer_app, name="tokenizer")
bench_app = typer.Typer(help="Measure how fast this machine is.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, tf32 or bf16.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the CPU; 0: all that the process may use.")]
Models = Annotated[list[Path], typer.Option(help="Run folder; several are an ensemble.")]
Beam = Annotated[int | None, typer.Option(min=1, help="Hypotheses followed per sentence; 1: greedy.")]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Rank by log-probability / length^this; not given: the run's own.")
]
Preset = Annotated[str | None, typer.Option(help="Model size: auto, tiny, small, base or big.")]
TextOrJson = Annotated[str, typer.Option("--format", help="text or json.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting of mt train --show-config.")
]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Sentences x longest source in a batch.")]


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mt").setLevel(logging.WARNING if quiet else logging.INFO)


STATE = {"quiet": False, "debug": False}


class LineFormatter(logging.Formatter):
    """Information as it is; warnings say that they are; of an exception the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info:
            return self.formatException(record.exc_info)
        message = record.getMessage()
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


def one_of(value: str, choices: tuple[str, ...], flag: str) -> str:
    if value not in choices:
        raise ConfigError(f"{flag} {value} is none of {', '.join(choices)}")
    return value


@tokenizer_app.command("train")
def tokenizer_train(
    files: Annotated[list[Path], typer.Argument(help="Text files (plain, .gz, .zst), read one after another.")],
    vocabulary_size: Annotated[int, typer.Option("--vocab-size", min=1, help="Number of pieces.")],
    output: Annotated[Path, typer.Option(help="Write PREFIX.model and PREFIX.vocab.")],
    type: Annotated[str, typer.Option(help="unigram or bpe.")] = "unigram",
) -> None:
    """Train a tokenizer on FILES."""
    from mt.pipelines.tokenize import train_files

    train_files(files, one_of(type, ("unigram", "bpe"), "--type"), vocabulary_size, output)


@tokenizer_app.command("encode")
def tokenizer_encode(model: Annotated[Path, typer.Option(help="A .model file.")]) -> None:
    """Read text on standard input, write its pieces, separated by spaces."""
    from mt.pipelines.tokenize import encode_lines

    encode_lines(model, sys.stdin.buffer)


@tokenizer_app.command("decode")
def tokenizer_decode(model: Annotated[Path, typer.Option(help="A .model file.")]) -> None:
    """Read pieces on standard input, write the text that they stand for."""
    from mt.pipelines.tokenize import decode_pieces

    decode_pieces(model, sys.stdin.buffer)


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="Run folder, made or continued.")],
    train: Annotated[tuple[Path, Path] | None, typer.Option(metavar="SOURCE TARGET", help="Training text.")] = None,
    valid: Annotated[tuple[Path, Path] | None, typer.Option(metavar="SOURCE TARGET", help="Validation text.")] = None,
    source_language: Annotated[str, typer.Option("--source-lang", help="ISO 639 code; else the file's suffix.")] = "",
    target_language: Annotated[str, typer.Option("--target-lang", help="ISO 639 code; else the file's suffix.")] = "",
    config: Annotated[Path | None, typer.Option(help="Recipe in TOML, such as another run's run.toml.")] = None,
    preset: Preset = None,
    vocabulary_size: Annotated[
        int | None, typer.Option("--vocab-size", min=1, help="Pieces of the tokenizer, of each when they are two.")
    ] = None,
    tokenizer: Annotated[
        list[Path] | None, typer.Option(help="SentencePiece model to use; twice: source, then target.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many updates.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="End the whole command in so many minutes.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, tf32 or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same machine: the same model.")] = None,
    start_from: Annotated[Path | None, typer.Option("--from", help="Start from this run's weights.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of encoded text; may be shared between runs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the output folder first.")] = False,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print all settings as TOML and exit.")] = False,
    assignments: Assignments = None,
) -> None:
    """Train a model on two aligned text files; run again, it goes on where it stopped.

    Precedence: defaults < --config < flags < --set.
    """
    from mt.pipelines.recipe import Settings
    from mt.pipelines.train import TrainRequest
    from mt.pipelines.train import train as train_run
    from mt.settings import read_toml

    settings = Settings()
    if config:
        settings.add(read_toml(config), str(config))
    flags: dict[str, dict[str, Any]] = {
        "tokenizer": {"files": [str(path) for path in tokenizer or []], "vocabulary_size": vocabulary_size},
        "data": {
            "train": pair_of_files(train),
            "valid": pair_of_files(valid),
            "source_language": source_language,
            "target_language": target_language,
            "cache": str(cache) if cache else None,
        },
        "model": {"preset": preset},
        "training": {
            "max_steps": max_steps,
            "max_minutes": max_minutes,
            "device": device,
            "precision": precision,
            "threads": threads,
            "seed": seed,
        },
    }
    given = {
        section: {key: value for key, value in values.items() if value not in (None, "", [])}
        for section, values in flags.items()
    }
    settings.add(given, "command line")
    add_assignments(settings, assignments)
    if show_config:
        print_result(settings.as_text().rstrip("\n"))
        return
    train_run(
        TrainRequest(
            output=output,
            settings=settings,
            overwrite=overwrite,
            start_from=start_from,
            quiet=STATE["quiet"],
            started=STARTED,
        )
    )


@app.command()
def translate(
    model: Models,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files (plain, .gz, .zst); none: standard input.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write here, through FILE.partial; else standard output.")] = None,
    beam: Beam = None,
    nbest: Annotated[int, typer.Option(min=1, help="Hypotheses returned per line; needs --format jsonl.")] = 1,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    form: Annotated[str, typer.Option("--format", help="text or jsonl.")] = "text",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Translate FILES, one sentence a line, to as many lines in the same order."""
    one_of(form, ("text", "jsonl"), "--format")
    from mt.pipelines.translate import SearchRequest
    from mt.pipelines.translate import translate as translate_files

    request = SearchRequest(
        models=model, beam=beam, length_penalty=length_penalty, nbest=nbest, batch_tokens=batch_tokens,
        device=device, precision=precision, threads=threads,
    )  # fmt: skip
    translate_files(request, files or [], output, form)


@app.command()
def evaluate(
    reference: Annotated[Path, typer.Option(help="Reference translations, a line each.")],
    model: Annotated[
        list[Path] | None, typer.Option(help="Run folder that translates --source; several are an ensemble.")
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Text to translate with --model.")] = None,
    hypothesis: Annotated[
        list[Path] | None, typer.Option(help="Translations to score; twice: the second is compared with the first.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the translations of --model here.")] = None,
    target_language: Annotated[str, typer.Option("--target-lang", help="ISO 639 code; chooses BLEU's tokenizer.")] = "",
    bleu_tokenize: Annotated[str | None, typer.Option(help="BLEU's tokenizer by sacreBLEU's name.")] = None,
    form: TextOrJson = "text",
    beam: Beam = None,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Score a model, or translations that exist, by sacreBLEU's BLEU, chrF2 and TER."""
    one_of(form, ("text", "json"), "--format")
    if bool(model) == bool(hypothesis) or bool(model) != bool(source):
        raise ConfigError(
            "give either --model with --source, or --hypothesis", "what is scored is a model or a file of translations"
        )
    if hypothesis and any(each is not None for each in (output, beam, length_penalty, batch_tokens)):
        raise ConfigError("--output and search flags belong to --model", "--hypothesis is translated already")
    from mt.pipelines.evaluate import evaluate_model, score_files
    from mt.pipelines.translate import SearchRequest

    if model and source:
        request = SearchRequest(
            models=model, beam=beam, length_penalty=length_penalty, batch_tokens=batch_tokens,
            device=device, precision=precision, threads=threads,
        )  # fmt: skip
        evaluation = evaluate_model(
            request, source, reference, output, target_language=target_language, bleu_tokenize=bleu_tokenize
        )
    else:
        evaluation = score_files(
            hypothesis or [], reference, target_language=target_language, bleu_tokenize=bleu_tokenize
        )
    print_result(evaluation.as_record() if form == "json" else evaluation.as_text())


@app.command()
def info(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    form: TextOrJson = "text",
) -> None:
    """Say what a run folder holds: model, languages, tokenizers, training so far, where it comes from."""
    one_of(form, ("text", "json"), "--format")
    from mt.pipelines.inspect import describe, describe_as_text

    record = describe(run)
    print_result(record if form == "json" else describe_as_text(record))


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    last: Annotated[int, typer.Option(min=1, help="How many of the last checkpoints.")],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
) -> None:
    """Write a run folder whose weights are the mean of a run's last checkpoints."""
    from mt.pipelines.inspect import average_last

    steps = average_last(run, last, output)
    logging.getLogger(__name__).info("%s holds the average of steps %s", output, ", ".join(f"{s:,}" for s in steps))


@bench_app.command("train")
def bench_train(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder whose text and recipe are used; none: made-up sentences.")
    ] = None,
    preset: Preset = None,
    vocabulary_size: Annotated[int, typer.Option("--vocab-size", min=5, help="Pieces of made-up sentences.")] = 32_000,
    updates: Annotated[int, typer.Option(min=0, help="Updates of a repetition; 0: 4 on the CPU, 20 on CUDA.")] = 0,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions timed, after one to warm up.")] = 5,
    form: TextOrJson = "text",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    assignments: Assignments = None,
) -> None:
    """Train for a moment: target tokens a second, memory, and the share of what matrix products alone reach here."""
    one_of(form, ("text", "json"), "--format")
    from mt.pipelines.bench import TrainBench, as_text
    from mt.pipelines.bench import bench_train as run_bench
    from mt.pipelines.recipe import Settings

    settings = Settings()
    training = {"device": device, "precision": precision, "threads": threads or "auto"}
    settings.add({"model": {"preset": preset} if preset else {}, "training": training}, "command line")
    add_assignments(settings, assignments)
    record = run_bench(
        TrainBench(settings=settings, run=run, vocabulary=vocabulary_size, updates=updates, repetitions=repetitions)
    )
    print_result(record if form == "json" else as_text(record))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Run folder, made or continued.")] = Path("runs/demo"),
) -> None:
    """Train on the bundled English-German corpus, translate, and score: a first look in four minutes."""
    from mt.pipelines.demo import demo as run_demo

    print_result(run_demo(output, started=STARTED, quiet=STATE["quiet"]))


def print_result(result: dict[str, Any] | str) -> None:
    """Results go to standard output, records as JSON."""
    from mt.files import standard_output

    with standard_output() as stream:
        stream.write(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
        stream.write("\n")


def add_assignments(settings: "Settings", assignments: list[str] | None) -> None:
    """Lay what `--set` says over the settings."""
    from mt.settings import parse_assignment

    for assignment in assignments or []:
        section, key, value = parse_assignment(assignment)
        settings.add({section: {key: value}}, "--set")


def pair_of_files(paths: tuple[Path, Path] | None) -> list[dict[str, str]]:
    return [{"source": str(paths[0]), "target": str(paths[1])}] if paths else []


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
    except OSError as error:
        fail(DataError(f"{error.filename or 'the system'}: {error.strerror or error}"))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        hint = "use less at a time: mt translate --batch-tokens N, mt train --set training.micro_batch_tokens=N"
        fail(DeviceError("out of memory", hint))
    sys.exit(ExitCode.DONE)


def fail(error: MTError) -> NoReturn:
    if STATE["debug"]:
        logging.getLogger(__name__).exception("traceback")
    label = "" if isinstance(error, Interrupted) else "error: "
    print(f"{label}{error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint:  {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)


def out_of_memory(error: Exception) -> bool:
    """Whether memory, of the machine or of the GPU, did not suffice; torch is asked only where it is loaded."""
    torch = sys.modules.get("torch")
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_device or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
