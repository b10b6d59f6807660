"""`mt translate`: text in, one translation a line out, while input still comes."""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mt import __version__
from mt.decoding.search import SearchConfig
from mt.decoding.translator import Translation, Translator
from mt.device import choose, keep_freed_memory, usable_threads
from mt.errors import ConfigError, DataError, DeviceError, ModelError, UnreadableText, out_of_memory
from mt.files import (
    atomic_file,
    can_be_read_only_once,
    can_be_replaced,
    check_output_text,
    checksum,
    count_lines,
    decode_lines,
    open_binary,
    standard_input,
    standard_output,
)
from mt.model.products import prepare_to_translate
from mt.pipelines.pace import Pace
from mt.pipelines.resumable import earlier_work, resumable_file
from mt.pipelines.run_folder import RunFolder, load_model, load_shortlist
from mt.pipelines.shards import Shard, launched_shard, lines_of
from mt.settings import Values
from mt.workers import CAN_FORK

logger = logging.getLogger(__name__)

WINDOW = 10_000  # lines that are sorted by length together
EVERY_LINE = range(sys.maxsize)  # of an input, however long


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """Which models translate, how they search and where; None leaves a choice to the run folder."""

    models: list[Path]
    beam: int | None = None
    length_penalty: float | None = None
    nbest: int = 1
    scored: bool = False  # whether scores are asked for: greedy search is faster without
    batch_tokens: int | None = None  # sentences x longest source; None: what suits the device
    shortlist: bool = False  # the first model's: ensembles share their tokenizers
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0


def load_translator(request: SearchRequest) -> Translator:
    """The translator that a request describes, to be used in a `with` block.

    On the CPU each thread becomes a process of its own.  Raises `ModelError` when models of an ensemble do not match.
    """
    threads = request.threads or usable_threads()
    compute = choose(request.device, request.precision, threads, training=False)
    if not compute.on_cuda:
        keep_freed_memory()
    loaded = [load_model(path) for path in request.models]
    first = loaded[0]
    for path, other in zip(request.models[1:], loaded[1:], strict=True):
        for mine, its in zip(first.tokenizers, other.tokenizers, strict=True):
            if mine.model != its.model:
                raise ModelError(
                    f"{path} and {request.models[0]} have different tokenizers",
                    "an ensemble needs models trained with one tokenizer: mt train --tokenizer",
                )
        if all(mine and its and mine != its for mine, its in zip(first.languages, other.languages, strict=True)):
            logger.warning("%s and %s translate from and to other languages", path, request.models[0])
    for each in loaded:
        prepare_to_translate(each.model.to(compute.device), compute.precision)
    return Translator(
        [each.model for each in loaded],
        first.tokenizers,
        search_config(first.decoding, request),
        compute,
        knows_capitals=all(each.knows_capitals for each in loaded),
        shortlist=load_shortlist(RunFolder(first.path), first.tokenizers) if request.shortlist else None,
        batch_tokens=request.batch_tokens,
        threads=threads,
        workers=threads if CAN_FORK and not compute.on_cuda else 1,
        capture=compute.on_cuda,
    )


def search_config(defaults: SearchConfig, request: SearchRequest) -> SearchConfig:
    """The run's own decoding defaults, with what the request says."""
    said: dict[str, Any] = {"nbest": request.nbest, "scored": request.scored}
    if request.beam is not None:
        said["beam"] = request.beam
    if request.length_penalty is not None:
        said["length_penalty"] = request.length_penalty
    return replace(defaults, **said)


def translate(
    request: SearchRequest,
    files: list[Path],
    output: Path | None,
    form: str,
    shard: Shard | None = None,
    *,
    to_be_joined: bool = False,
) -> None:
    """Translate files, or standard input, to a file or standard output, line by line.

    With a shard, given or told by torchrun, its lines alone, in a file that may be `to_be_joined` with others.
    """
    check(request, files, output, form)
    if launched := launched_shard():
        if shard:
            raise ConfigError(f"--shard {shard} would apply to every process", "torchrun gives each a part of its own")
        shard, output = launched, launched.own_file(output)
    resumable = bool(files and output and can_be_replaced(output) and all(path.is_file() for path in files))
    before = [state_of(path) for path in files] if resumable else []  # and before lines are counted
    part = lines_of(shard, files, WINDOW) if shard else EVERY_LINE
    with ExitStack() as stack:
        for path in files:
            if not can_be_read_only_once(path):
                open_binary(path).close()  # what cannot be read is told before the work
        translator = stack.enter_context(load_translator(request))
        inputs = opened(files) if files else arriving()
        if output and resumable:
            work = work_record(request, translator, files, form, shard)
            take_over_batches(work, earlier_work(output), translator, asked_for=request.batch_tokens is not None)
            file = stack.enter_context(resumable_file(output, work, to_be_joined=bool(to_be_joined and shard)))
            part = part[file.lines :]
            pace = Pace(partial(lines_in, files, part))
            for window in translated(translator, chunks(text_lines(inputs, part)), part.start, form, pace):
                file.write(window, full=len(window) == WINDOW)
            check_untouched(files, before)
        else:
            stream = stack.enter_context(atomic_file(output) if output else standard_output())
            lines = text_lines(inputs, part)
            windows = chunks(lines) if files else arriving_windows(lines)
            pace = Pace(partial(lines_in, files, part)) if files else Pace()
            for window in translated(translator, windows, part.start, form, pace):
                stream.writelines(f"{line}\n" for line in window)
                stream.flush()


def check(request: SearchRequest, files: list[Path], output: Path | None, form: str) -> None:
    """Raise `ConfigError` for a request that `translate` cannot meet."""
    if request.nbest > 1 and form == "text":
        raise ConfigError(f"--nbest {request.nbest} needs --format jsonl", "a text file has one translation a line")
    if output:
        check_output_text(output, files)


def lines_in(files: list[Path], part: range) -> int | None:
    """How many lines of the files are in this part; None where they cannot be counted."""
    if part.stop < EVERY_LINE.stop:  # they have been
        return len(part)
    if any(map(can_be_read_only_once, files)):
        return None
    try:
        return len(range(sum(map(count_lines, files)))[part.start : part.stop])
    except DataError:  # of a file that is gone, or damaged: who reads it will say so when it matters
        return None


def translated(
    translator: Translator, windows: Iterable[list[str]], before: int, form: str, pace: Pace
) -> Iterator[list[str]]:
    """The translations of windows of lines, as they are written; so many lines of the input stand before the first."""
    for window in windows:
        is_text = pace.count or len(window) == WINDOW  # and not what somebody types, or a program hands on by and by
        try:
            translations = translator.translate(window, first_number=before + 1, done=pace.add if is_text else None)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise DeviceError("out of memory", "use smaller batches: --batch-tokens N") from error
        yield [as_json(each) if form == "jsonl" else each.text for each in translations]
        before += len(window)


def work_record(
    request: SearchRequest, translator: Translator, files: list[Path], form: str, shard: Shard | None
) -> Values:
    """All that a translation depends on.

    In full precision and with the whole vocabulary, the other sentences of a batch change only the last digits of sums;
    otherwise threads and batches count as well.
    """
    alone = translator.compute.precision in ("fp32", "tf32") and not request.shortlist
    return {
        "model": [model_record(RunFolder(path)) for path in request.models],
        "source": [checksum(path) for path in files],
        "search": asdict(translator.config),
        "shortlist": checksum(RunFolder(request.models[0]).shortlist) if request.shortlist else None,
        "shard": str(shard) if shard else None,
        "device": translator.compute.device.type,
        "precision": translator.compute.precision,
        "window": WINDOW,
        "batches": None if alone else [translator.batch_tokens, translator.processes],
        "format": form,
        "versions": {"mt": __version__, "torch": torch.__version__},
    }


def take_over_batches(work: Values, earlier: Values, translator: Translator, *, asked_for: bool) -> None:
    """Go on with the same work of an interrupted command in its batches, unless others are asked for.

    Left to itself, the memory that is free now might make others.
    """
    if work["batches"] and earlier | {"batches": work["batches"]} == work:
        if not asked_for:
            translator.batch_tokens = earlier["batches"][0]
        if [translator.batch_tokens, translator.processes] != earlier["batches"]:
            logger.warning("the rest is in other batches than what is done: its rounding, and some words, may differ")
        work["batches"] = earlier["batches"]


def model_record(run: RunFolder) -> Values:
    files = [run.model, run.config, *sorted(run.path.glob("*.model"))]
    return {path.name: checksum(path) for path in files}


def state_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file does."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_untouched(files: list[Path], before: list[tuple[int, int, int]]) -> None:
    """Raise `UnreadableText` where a file is no longer what it was: its translations would be of two texts."""
    for path, state in zip(files, before, strict=True):
        if not path.is_file() or state_of(path) != state:
            raise UnreadableText(
                f"{path} has changed while it was translated", "run the command again when nothing writes to it"
            )


def opened(files: list[Path]) -> Iterator[tuple[BinaryIO, str]]:
    """Each file, open as long as it is its turn, and its name."""
    for path in files:
        with open_binary(path) as stream:
            yield stream, str(path)


def arriving() -> Iterator[tuple[BinaryIO, str]]:
    """Standard input, by a reader of its own that nobody closes.

    To close one, as Python does with sys.stdin at exit, would wait for the thread that reads it, and that for input.
    """
    yield open(os.dup(standard_input().fileno()), "rb"), "standard input"  # noqa: SIM115


def text_lines(inputs: Iterator[tuple[BinaryIO, str]], part: range) -> Iterator[str]:
    """Those lines of all inputs taken together; invalid UTF-8 among them is replaced and said so.

    A carriage return at the end of a line is part of it; the first one of an input is told.
    """
    told: set[str] = set()
    lines = (
        (name, number, line, valid)
        for stream, name in inputs
        for number, (line, valid) in enumerate(decode_lines(stream, name, on_invalid="replace"), 1)
    )
    for name, number, line, valid in islice(lines, part.start, part.stop):
        if not valid:
            logger.warning("%s, line %s: not UTF-8; what cannot be read is replaced by U+FFFD", name, f"{number:,}")
        if line[-1:] == "\r" and name not in told:
            told.add(name)
            warn_of_return(name, number)
        yield line


def warn_of_return(name: str, number: int) -> None:
    logger.warning(
        "%s, line %s: ends in a carriage return, which counts as text; remove it with: tr -d '\\r'",
        name,
        f"{number:,}",
    )


def chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Windows of a fixed number of lines."""
    window: list[str] = []
    for line in lines:
        window.append(line)
        if len(window) == WINDOW:
            yield window
            window = []
    if window:
        yield window


def arriving_windows(lines: Iterator[str]) -> Iterator[list[str]]:
    """Windows of the lines that have come in meanwhile: one at a time from a keyboard, many from a pipe.

    A thread reads ahead by two windows at most, so that memory does not grow with the input.
    """
    arrived: queue.Queue[str | BaseException | None] = queue.Queue(maxsize=2 * WINDOW)

    def read() -> None:
        try:
            for line in lines:
                arrived.put(line)
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again below, where it can be caught)
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        item = arrived.get()
        window: list[str] = []
        while isinstance(item, str):
            window.append(item)
            if len(window) == WINDOW or arrived.empty():
                item = ""
                break
            item = arrived.get()
        if window:
            yield window
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return


def as_json(translation: Translation) -> str:
    """A translation as one JSON object: source, translation, scores, and all hypotheses, best first."""
    best = translation.hypotheses[0]
    record = {
        "source": translation.source,
        "translation": best.text,
        "score": best.score,
        "normalized_score": best.normalized_score,
        "hypotheses": [
            {"translation": each.text, "score": each.score, "normalized_score": each.normalized_score}
            for each in translation.hypotheses
        ],
    }
    return json.dumps(record, ensure_ascii=False)
