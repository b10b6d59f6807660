"""Commands that use models: `mt translate`, `evaluate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import (
    BatchTokens,
    Beam,
    Device,
    Devices,
    LengthPenalty,
    Models,
    Precision,
    Shortlist,
    TextOrJson,
    Threads,
    one_of,
    print_result,
)
from mt.errors import ConfigError


def translate(
    model: Models,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files (plain, .gz, .zst); none: standard input.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write, FILE.partial until it is whole; default: standard output.")
    ] = None,
    beam: Beam = None,
    nbest: Annotated[int, typer.Option(min=1, help="Hypotheses returned per line; needs --format jsonl.")] = 1,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    shortlist: Shortlist = False,
    form: Annotated[str, typer.Option("--format", help="text or jsonl.")] = "text",
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Translate the I-th of N parts of FILES alone, to share the work.")
    ] = None,
    device: Device = "auto",
    devices: Devices = None,
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Translate FILES, one sentence a line, to as many lines in the same order."""
    one_of(form, ("text", "jsonl"), "--format")
    from mt.pipelines.shards import parse_shard
    from mt.pipelines.translate import SearchRequest
    from mt.pipelines.translate import translate as translate_files

    request = SearchRequest(
        models=model, beam=beam, length_penalty=length_penalty, nbest=nbest, scored=form == "jsonl",
        batch_tokens=batch_tokens, shortlist=shortlist, device=device, precision=precision, threads=threads,
    )  # fmt: skip
    if devices is not None:
        from mt.pipelines.launch import end_with_launcher, is_launched, parse_devices, translate_in_parts

        if shard:
            raise ConfigError("--devices and --shard both divide the text", "on several machines, use torchrun")
        if not is_launched():
            translate_in_parts(parse_devices(devices), request, files or [], output, form, sys.argv[1:])
            return
        end_with_launcher()
    part = None if shard is None else parse_shard(shard)
    translate_files(request, files or [], output, form, part, to_be_joined=devices is not None)


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
    shortlist: Shortlist = False,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Score a model, or existing translations, with sacreBLEU's BLEU, chrF2 and TER."""
    one_of(form, ("text", "json"), "--format")
    if bool(model) == bool(hypothesis) or bool(model) != bool(source):
        raise ConfigError(
            "give either --model with --source, or --hypothesis", "what is scored is a model or a file of translations"
        )
    search = (output, beam, length_penalty, batch_tokens)
    if hypothesis and (
        any(flag is not None for flag in search) or shortlist or threads or (device, precision) != ("auto", "auto")
    ):
        raise ConfigError("--output and search flags belong to --model", "--hypothesis is translated already")
    from mt.pipelines.evaluate import evaluate_model, score_files
    from mt.pipelines.translate import SearchRequest

    if model and source:
        request = SearchRequest(
            models=model, beam=beam, length_penalty=length_penalty, batch_tokens=batch_tokens,
            shortlist=shortlist, device=device, precision=precision, threads=threads,
        )  # fmt: skip
        evaluation = evaluate_model(
            request, source, reference, output, target_language=target_language, bleu_tokenize=bleu_tokenize
        )
    else:
        evaluation = score_files(
            hypothesis or [], reference, target_language=target_language, bleu_tokenize=bleu_tokenize
        )
    print_result(evaluation.as_record() if form == "json" else evaluation.as_text())
