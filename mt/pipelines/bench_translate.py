"""`mt bench translate`: how fast this machine translates a text, many sentences at a time and one by one."""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from mt.decoding.translator import Translator
from mt.errors import DataError
from mt.files import read_lines
from mt.model.cache import DecoderState
from mt.model.cost import weight_products
from mt.model.transformer import Transformer
from mt.pipelines.measuring import PeakMemory, copy_rate, device_name, spread
from mt.pipelines.run_folder import versions
from mt.pipelines.translate import SearchRequest, load_translator

logger = logging.getLogger(__name__)

WEIGHT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "int8": 1}
ONE_BY_ONE = 200  # lines at most, whose latency is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslateBench:
    """What `mt bench translate` was asked to do."""

    search: SearchRequest
    source: Path
    repetitions: int = 5  # after one to warm up


class MeteredModel:
    """A model that adds up the bytes its search must move at the least, in all processes that share `total`.

    Each call reads its weights once; each token besides the keys and values of its source and past, and its logits are
    written and read.
    """

    def __init__(self, model: Transformer, precision: str, total: Any) -> None:
        self.model, self.config, self.total = model, model.config, total
        reading, writing = weight_products(model.config, 1, 0), weight_products(model.config, 0, 1)
        self.encoder_bytes, self.decoder_bytes = (
            WEIGHT_BYTES[precision] * sum(each.inner * each.columns * each.count for each in products if each.rows)
            for products in (reading, writing)
        )
        self.piece_bytes = WEIGHT_BYTES[precision] * model.config.width  # of the projection
        self.decoder_bytes -= self.piece_bytes * model.config.target_vocabulary  # not all need be multiplied by

    def encode(self, source: Tensor, mask: Tensor | None = None) -> DecoderState:
        self.add(self.encoder_bytes)
        return self.model.encode(source, mask)

    def projection_to(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        self.add(len(candidates) * (WEIGHT_BYTES["fp32"] * self.config.width + self.piece_bytes))  # read and written
        return self.model.projection_to(candidates)

    def hidden(self, ids: Tensor, state: DecoderState) -> Tensor:
        hidden = self.model.hidden(ids, state)
        shown = 1.0 if state.memory_bias is None else float((state.memory_bias == 0).float().mean())  # not filled up
        memory = shown * sum(each.nbytes for pair in state.memory for each in pair)
        past = sum(each[:, :, : past.used].nbytes for past in state.past for each in (past.keys, past.values))
        self.add(self.decoder_bytes + memory + past)
        self.rows = len(ids)
        return hidden

    def project(self, hidden: Tensor, state: DecoderState) -> Tensor:
        logits = self.model.project(hidden, state)
        share = len(hidden) / self.rows  # of what is read at once at the least
        self.add(share * self.piece_bytes * logits.size(-1) + 2 * logits.nbytes)
        return logits

    def add(self, moved: float) -> None:
        with self.total.get_lock():
            self.total.value += moved


def bench_translate(request: TranslateBench) -> dict[str, Any]:
    """Translate a text several times over; returns what `as_text` shows, and every repetition.

    Raises `DataError` for a text without words.
    """
    lines = [line for line in dict.fromkeys(read_lines(request.source)) if line.strip()]  # translated once each
    if not lines:
        raise DataError(f"{request.source} has no words", "give a text of some hundred lines")
    moved, memory = traffic_and_memory(request.search, lines)  # first, while nothing else holds memory
    started = time.perf_counter()
    with load_translator(request.search) as translator:
        load_seconds = time.perf_counter() - started
        compute = translator.compute
        seconds, target_tokens = repeated(translator, lines, request.repetitions)
        first_waits, waits = (latencies(translator, lines[:ONE_BY_ONE]) for _ in range(2))
    ceiling = copy_rate(compute)
    moved_per_second = moved / statistics.median(seconds)
    return {
        "what": "bench translate",
        "models": [asdict(model.config) for model in translator.models],
        "device": device_name(compute),
        "precision": compute.precision,
        "threads": translator.threads,
        "search": asdict(translator.config),
        "shortlist": request.search.shortlist,
        "batch_tokens": translator.batch_tokens,
        "lines": len(lines),
        "load_seconds": load_seconds,
        "seconds": seconds,
        "sentences_per_second": spread([len(lines) / each for each in seconds]),
        "target_tokens_per_second": spread([target_tokens / each for each in seconds]),
        "latency_seconds": {
            "median": statistics.median(waits),
            "p95": np.quantile(waits, 0.95),
            "lines": len(waits),
            "made_ready": max(0.0, sum(first_waits) - sum(waits)),  # on CUDA graphs are captured once
        },
        "memory_gib": memory,
        "bytes_per_second": moved_per_second,
        "copied_bytes_per_second": ceiling,
        "share_of_copy_rate": moved_per_second / ceiling,
        "versions": versions(),
    }


def repeated(translator: Translator, lines: list[str], repetitions: int) -> tuple[list[float], int]:
    """The seconds of each repetition, after one to warm up, and the target tokens of one, `</s>` counted."""
    seconds = []
    for number in range(repetitions + 1):
        started = time.perf_counter()
        translations = translator.translate(lines, first_number=None)
        translator.compute.synchronize()
        seconds.append(time.perf_counter() - started)
        logger.info("%s: %.1f s", f"repetition {number}" if number else "warm-up", seconds[-1])
    return seconds[1:], sum(translation.hypotheses[0].tokens for translation in translations)


def latencies(translator: Translator, lines: list[str]) -> list[float]:
    """The seconds from a line to its translation, each line by itself."""
    seconds = []
    for line in lines:
        started = time.perf_counter()
        translator.translate([line], first_number=None)
        seconds.append(time.perf_counter() - started)
    return seconds


def traffic_and_memory(search: SearchRequest, lines: list[str]) -> tuple[float, float]:
    """The bytes that a translation of all lines moves, and the most memory held meanwhile, in GiB."""
    total = get_context().Value("d", 0.0)
    with load_translator(search) as translator, PeakMemory(translator.compute) as memory:
        models = [MeteredModel(model, translator.compute.precision, total) for model in translator.models]
        translator.models = cast(list[Transformer], models)
        translator.captured = None  # graphs, of which nothing can be counted
        translator.translate(lines, first_number=None)
    return total.value, memory.gib


def as_text(record: dict[str, Any]) -> str:
    """The result in a few aligned lines."""
    sentences, tokens = record["sentences_per_second"], record["target_tokens_per_second"]
    waits, rate = record["latency_seconds"], record["bytes_per_second"] / 1e9
    rows = {
        "device": f"{record['device']}, {record['precision']}, {record['threads']} threads",
        "search": f"beam {record['search']['beam']}, {record['batch_tokens']:,} tokens a batch"
        + (", shortlist" if record["shortlist"] else ""),
        "speed": f"{sentences['median']:,.1f} sentences/s ({sentences['lowest']:,.1f} to {sentences['highest']:,.1f}), "
        f"{tokens['median']:,.0f} target tok/s",
        "latency": f"{1e3 * waits['median']:,.1f} ms a line by itself, p95 {1e3 * waits['p95']:,.1f} ms "
        f"({waits['lines']:,} lines, after {waits['made_ready']:.1f} s of warm-up)",
        "traffic": f"{rate:,.1f} GB/s, {record['share_of_copy_rate']:.0%} of the "
        f"{record['copied_bytes_per_second'] / 1e9:,.1f} GB/s that a copy reaches here",
        "memory": f"{record['memory_gib']:.2f} GiB",
        "start": f"{record['load_seconds']:.1f} s to load",
    }
    return "\n".join(f"{name:<8} {value}" for name, value in rows.items())
