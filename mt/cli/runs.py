"""Commands that make and describe run folders: `mt train`, `info`, `plot`, `average`, `shortlist`, `export`, `demo`."""

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mt.cli.options import STATE, Assignments, Devices, Preset, TextOrJson, add_assignments, one_of, print_result

STARTED = time.monotonic()  # the minutes of --max-minutes begin here


def train(
    output: Annotated[Path, typer.Option(help="Run folder to create or continue.")],
    train: Annotated[tuple[Path, Path] | None, typer.Option(metavar="SOURCE TARGET", help="Training text.")] = None,
    valid: Annotated[tuple[Path, Path] | None, typer.Option(metavar="SOURCE TARGET", help="Validation text.")] = None,
    clean: Annotated[str | None, typer.Option(help="Pairs to leave out: off, safe or strict.")] = None,
    source_language: Annotated[
        str, typer.Option("--source-lang", help="ISO 639 code; default: the file's suffix.")
    ] = "",
    target_language: Annotated[
        str, typer.Option("--target-lang", help="ISO 639 code; default: the file's suffix.")
    ] = "",
    config: Annotated[Path | None, typer.Option(help="Recipe in TOML: a file, or a name of mt's own.")] = None,
    preset: Preset = None,
    vocabulary_size: Annotated[
        int | None, typer.Option("--vocab-size", min=1, help="Vocabulary size, of each tokenizer where there are two.")
    ] = None,
    tokenizer: Annotated[
        list[Path] | None, typer.Option(help="SentencePiece model to use; twice: source, then target.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many updates.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Minutes that the whole command may take.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    devices: Devices = None,
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
    from mt.pipelines.recipe import Settings, read_recipe
    from mt.pipelines.train import TrainRequest
    from mt.pipelines.train import train as train_run

    settings = Settings()
    if config:
        settings.add(read_recipe(config), str(config))
    flags: dict[str, dict[str, Any]] = {
        "tokenizer": {"files": [str(path) for path in tokenizer or []], "vocabulary_size": vocabulary_size},
        "data": {
            "train": pair_of_files(train),
            "valid": pair_of_files(valid),
            "clean": clean,
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
    if devices is not None:
        from mt.pipelines.launch import end_with_launcher, is_launched, launch, parse_devices
        from mt.settings import AUTO

        if not is_launched():
            launch(parse_devices(devices), settings.said()["training"].get("device", AUTO), sys.argv[1:])
            return
        end_with_launcher()
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


def pair_of_files(paths: tuple[Path, Path] | None) -> list[dict[str, str]]:
    return [{"source": str(paths[0]), "target": str(paths[1])}] if paths else []


def info(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    form: TextOrJson = "text",
) -> None:
    """Say what a run folder holds: model, languages, tokenizers, training so far, where it comes from."""
    one_of(form, ("text", "json"), "--format")
    from mt.pipelines.inspect import describe, describe_as_text

    record = describe(run)
    print_result(record if form == "json" else describe_as_text(record))


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, drawn together.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Picture (.png, .svg, .pdf); may be repeated. Default for one run: RUN/plots/training.png."),
    ] = None,
) -> None:
    """Draw how training went; prints the files written.

    Losses, BLEU, chrF, learning rate, speed and norm of the gradient over the step, with marks at what happened:
    the learning rate began to fall, updates were skipped, training was resumed, and so on.
    """
    from mt.pipelines.plot import plot as plot_runs

    print_result("\n".join(str(path) for path in plot_runs(runs, output or [])))


def average(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    last: Annotated[int, typer.Option(min=1, help="How many of the last checkpoints.")],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
) -> None:
    """Write a run folder whose weights are the mean of a run's last checkpoints."""
    from mt.pipelines.inspect import average_last

    steps = average_last(run, last, output)
    logging.getLogger(__name__).info("%s holds the average of steps %s", output, ", ".join(f"{s:,}" for s in steps))


def shortlist(
    run: Annotated[
        Path, typer.Argument(help="Run folder; the text it was trained and validated on must still be there.")
    ],
    pieces: Annotated[int, typer.Option(min=1, help="Target pieces for each source piece.")] = 50,
) -> None:
    """Learn which target pieces translate which source pieces, for mt translate --shortlist."""
    from mt.pipelines.shortlist import make_shortlist

    make_shortlist(run, pieces)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    to: Annotated[str, typer.Option(help="ctranslate2.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    weights: Annotated[str, typer.Option(help="float32, float16, bfloat16, int8 or int8_float16 ...")] = "float32",
) -> None:
    """Write a run's model and tokenizers in the format of another toolkit."""
    from mt.pipelines.export import export as export_run

    export_run(run, to, output, weights)


def demo(
    output: Annotated[Path, typer.Option(help="Run folder to create or continue.")] = Path("runs/demo"),
) -> None:
    """Train on the bundled English-German corpus, translate, and score: a first look in four minutes."""
    from mt.pipelines.demo import demo as run_demo

    print_result(run_demo(output, started=STARTED, quiet=STATE["quiet"]))
