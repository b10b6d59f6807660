"""`mt bench`: how fast this machine is."""

from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import (
    Assignments,
    BatchTokens,
    Beam,
    Device,
    LengthPenalty,
    Models,
    Precision,
    Preset,
    Repetitions,
    Shortlist,
    TextOrJson,
    Threads,
    TrainingPrecision,
    add_assignments,
    one_of,
    print_result,
)


def train(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder whose text and recipe are used; none: made-up sentences.")
    ] = None,
    preset: Preset = None,
    vocabulary_size: Annotated[
        int, typer.Option("--vocab-size", min=5, help="Vocabulary size of made-up sentences.")
    ] = 32_000,
    updates: Annotated[int, typer.Option(min=0, help="Updates per repetition; 0: 4 on the CPU, 20 on CUDA.")] = 0,
    repetitions: Repetitions = 5,
    form: TextOrJson = "text",
    device: Device = "auto",
    precision: TrainingPrecision = "auto",
    threads: Threads = 0,
    assignments: Assignments = None,
) -> None:
    """Measure training: target tokens per second, memory, and how near it is to the speed of matrix products alone."""
    one_of(form, ("text", "json"), "--format")
    from mt.pipelines.bench_train import TrainBench, as_text, bench_train
    from mt.pipelines.recipe import Settings

    settings = Settings()
    training = {"device": device, "precision": precision, "threads": threads or "auto"}
    settings.add({"model": {"preset": preset} if preset else {}, "training": training}, "command line")
    add_assignments(settings, assignments)
    record = bench_train(
        TrainBench(settings=settings, run=run, vocabulary=vocabulary_size, updates=updates, repetitions=repetitions)
    )
    print_result(record if form == "json" else as_text(record))


def translate(
    model: Models,
    file: Annotated[Path, typer.Argument(help="Text to translate; a few hundred lines are best.")],
    beam: Beam = None,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    shortlist: Shortlist = False,
    repetitions: Repetitions = 5,
    form: TextOrJson = "text",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Measure translation: sentences and tokens per second, latency of single lines, memory and memory traffic."""
    one_of(form, ("text", "json"), "--format")
    from mt.pipelines.bench_translate import TranslateBench, as_text, bench_translate
    from mt.pipelines.translate import SearchRequest

    request = SearchRequest(
        models=model, beam=beam, length_penalty=length_penalty, batch_tokens=batch_tokens,
        shortlist=shortlist, device=device, precision=precision, threads=threads,
    )  # fmt: skip
    record = bench_translate(TranslateBench(search=request, source=file, repetitions=repetitions))
    print_result(record if form == "json" else as_text(record))
