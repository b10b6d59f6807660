"""Trains by `mt train` on generated text of any size: what preparing it takes, in time and in memory.

The text is made-up words in the frequencies of natural ones (Zipf 1949), each with one translation.  Three commands are
run on it: one that begins, one that begins again where text is encoded but no checkpoint is left, and one that goes on.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from measured import circumstances, machine_name, warn_when_busy, write_result

from mt.corpus.encoded import BLOCK, encode_corpus
from mt.corpus.parallel import CorpusFiles, read_pairs
from mt.corpus.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "sentencepiece", "numpy")
WORDS = 200_000  # of the made-up language
MEAN_WORDS = 12  # of a sentence
AT_A_TIME = 10_000  # sentences made
ENCODED_PAIRS = 200_000  # with which encoding is compared to SentencePiece alone
SAMPLE_SECONDS = 0.1  # between looks at memory
LETTERS = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))


class Failure(Exception):
    """A command that has ended with an error."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where text and run are put and stay; none: a temporary folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of large-corpus-PAIRS-MACHINE.json")
    parser.add_argument("--machine", default="", help="name of this machine in the file's name")
    return parser.parse_args()


def vocabulary(generator: np.random.Generator) -> np.ndarray:
    """Made-up words, frequent ones shorter; a few are spelt alike."""
    longest = 3 + np.log2(np.arange(1, WORDS + 1)) / 2
    lengths = generator.integers(2, longest.astype(int) + 2)
    letters = LETTERS[np.minimum(generator.geometric(0.12, lengths.sum()) - 1, len(LETTERS) - 1)]
    ends = lengths.cumsum()
    words = ["".join(letters[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    return np.array(words, dtype=object)


def write_text(folder: Path, pairs: int, seed: int = 1) -> tuple[Path, Path]:
    """`text.aa` and `text.bb`: a target is its source word by word, with some neighbours exchanged."""
    generator = np.random.default_rng(seed)
    sources, targets = vocabulary(generator), vocabulary(generator)
    shares = (1 / (np.arange(WORDS) + 2.7)).cumsum()
    paths = folder / "text.aa", folder / "text.bb"
    with open(paths[0], "w", encoding="utf-8") as source, open(paths[1], "w", encoding="utf-8") as target:
        for first in range(0, pairs, AT_A_TIME):
            lengths = 1 + generator.poisson(MEAN_WORDS - 1, min(AT_A_TIME, pairs - first))
            words = np.searchsorted(shares, generator.random(lengths.sum()) * shares[-1])
            ends = lengths.cumsum()
            exchanged = np.arange(len(words))
            moved = np.setdiff1d(np.flatnonzero(generator.random(len(words)) < 0.1), ends - 1)
            exchanged[moved], exchanged[moved + 1] = exchanged[moved + 1].copy(), exchanged[moved].copy()
            for stream, spelt in ((source, sources[words]), (target, targets[words[exchanged]])):
                stream.writelines(
                    " ".join(spelt[end - length : end]) + "\n" for end, length in zip(ends, lengths, strict=True)
                )
    return paths


class Memory(threading.Thread):
    """Looks again and again at the memory of a process and all its descendants, until it has ended."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.looks: list[tuple[float, int, int]] = []  # time, all bytes, those that are no file's

    def run(self) -> None:
        while sizes := [size for number in family(self.process) if (size := memory_of(number))]:
            self.looks.append((time.monotonic(), sum(size[0] for size in sizes), sum(size[1] for size in sizes)))
            time.sleep(SAMPLE_SECONDS)

    def peak(self, began: float, ended: float) -> dict[str, float]:
        """In GiB; what processes share is counted once."""
        looks = [look for look in self.looks if began <= look[0] <= ended]
        return {
            "peak_gib": round(max((look[1] for look in looks), default=0) / 2**30, 3),
            "peak_without_files_gib": round(max((look[2] for look in looks), default=0) / 2**30, 3),
        }


def family(process: int) -> Iterator[int]:
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            numbers = children.read_text().split()
        except OSError:  # the thread has ended
            continue
        for number in numbers:
            yield from family(int(number))


def memory_of(process: int) -> tuple[int, int] | None:
    """Bytes of a process, each page divided by the number of processes that share it; None when it has ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = dict(re.findall(r"^(Pss\w*):\s+(\d+) kB", rollup, re.MULTILINE))
    return int(sizes["Pss"]) * 1024, int(sizes["Pss_Anon"]) * 1024


def run(folder: Path, name: str, *flags: str) -> dict[str, Any]:
    """A `mt train` command: seconds and memory of each phase, and seconds from its imports to the end of a step."""
    record = folder / f"{name}.jsonl"
    record.unlink(missing_ok=True)
    began = time.monotonic()
    script = str(Path(__file__).with_name("phases.py"))
    process = subprocess.Popen([sys.executable, script, str(record), "train", *flags])
    memory = Memory(process.pid)
    memory.start()
    if process.wait():
        raise Failure(f"mt train ({name}) ended with code {process.returncode}")
    ended = time.monotonic()
    if not memory.looks:
        raise Failure(f"the memory of mt train ({name}) was not seen: this takes Linux and its /proc/PID/smaps_rollup")
    times = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    imported = next(phase["ended"] for phase in times if phase["phase"] == "imports")
    first = next(phase for phase in times if phase["phase"] == "step")
    phases: dict[str, Any] = {}
    for phase in times:
        seconds = phase["ended"] - phase["began"]
        known = phases.setdefault(phase["phase"], {"seconds": 0.0, "peak_gib": 0.0, "peak_without_files_gib": 0.0})
        known["seconds"] = round(known["seconds"] + seconds, 3)
        for key, value in memory.peak(phase["began"], phase["ended"]).items():
            known[key] = max(known[key], value)
    return {
        "seconds": round(ended - began, 3),
        "seconds_from_imports_to_first_step": round(first["began"] - imported, 3),
        "seconds_from_imports_to_end_of_first_step": round(first["ended"] - imported, 3),
        **memory.peak(began, ended),
        "phases": phases,
    }


def encoding_speeds(paths: tuple[Path, Path], tokenizer: Tokenizer, threads: int) -> dict[str, Any]:
    """Lines a second of encoding to files, and of SentencePiece alone on the same lines: three times each, in turns."""
    pairs = list(islice(read_pairs(CorpusFiles(source=paths[0], target=paths[1])), ENCODED_PAIRS))
    lines = [line for pair in pairs for line in pair]
    encoding, alone = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            encode_corpus(pairs, Path(folder), (tokenizer, tokenizer), max_tokens=256, threads=threads)
            encoding.append(len(lines) / (time.perf_counter() - began))
        began = time.perf_counter()
        for first in range(0, len(lines), BLOCK):
            tokenizer.processor.encode(lines[first : first + BLOCK], num_threads=threads)
        alone.append(len(lines) / (time.perf_counter() - began))
    return {
        "lines": len(lines),
        "lines_per_second": encoding,
        "lines_per_second_of_sentencepiece_alone": alone,
        "ratio": round(statistics.median(encoding) / statistics.median(alone), 3),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    paths = write_text(folder, options.pairs)
    print(f"{options.pairs:,} pairs written in {time.monotonic() - began:.0f} s", file=sys.stderr)
    output = folder / "large-corpus-run"
    shutil.rmtree(output, ignore_errors=True)
    text = ("--train", *map(str, paths))
    often = (f"training.validate_every_steps={options.steps}", "validation.max_sentences=20")  # as little as can be
    flags = ("--preset", "tiny", "--threads", str(options.threads), "--max-steps", str(options.steps))
    for setting in ("tokenizer.joint=true", "data.batch_tokens=32768", "validation.beam=1", *often):
        flags += ("--set", setting)
    runs = {"cold": run(folder, "cold", *text, "--output", str(output), *flags)}
    shutil.rmtree(output / "checkpoints")
    runs["warm"] = run(folder, "warm", "--output", str(output))
    runs["resumed"] = run(folder, "resumed", "--output", str(output), "--max-steps", str(2 * options.steps))
    for phase in ("check", "encoding"):
        figures = runs["cold"]["phases"][phase]
        figures["lines_per_second"] = round(2 * options.pairs / figures["seconds"])
    return {
        "what": "large corpus",
        "pairs": options.pairs,
        "text_bytes": sum(os.path.getsize(path) for path in paths),
        "threads": options.threads,
        "runs": runs,
        "encoding": encoding_speeds(paths, Tokenizer.load(output / "tokenizer.model"), options.threads),
    }


def table(record: dict[str, Any]) -> str:
    """The seconds and memory of each run, and of its phases."""
    rows = []
    for name, figures in record["runs"].items():
        first = figures["seconds_from_imports_to_first_step"]
        memory = f"{figures['peak_gib']:.2f} GiB"
        rows.append(f"{name:8} {figures['seconds']:8.1f} s  {memory}  {first:.2f} s to the first step")
        for phase, part in figures["phases"].items():
            speed = f"  {part['lines_per_second']:,} lines/s" if "lines_per_second" in part else ""
            sizes = f"{part['peak_gib']:.2f} GiB, {part['peak_without_files_gib']:.2f} without files"
            rows.append(f"  {phase:10} {part['seconds']:8.2f} s  {sizes}{speed}")
    rows.append(f"encoding is {record['encoding']['ratio']:.2f} times as fast as SentencePiece alone")
    return "\n".join(rows)


def main() -> None:
    options = arguments()
    warn_when_busy()
    record = circumstances(PACKAGES)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        record |= measure(options, options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            record |= measure(options, Path(folder))
    name = f"large-corpus-{options.pairs}-{options.machine or machine_name('cpu')}.json"
    write_result(options.results / name, record, table(record))


if __name__ == "__main__":
    try:
        main()
    except Failure as error:
        sys.exit(f"error: {error}")
