"""Measures translating on a CUDA machine within nine minutes: tests, models trained for it, peers, single lines.

Models are trained on the corpus for a minute or so, so that their translations end.  They then translate what they have
learned from, and more lines made of it: BLEU says here whether engines do the same, and nothing of quality.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import translate
from measured import circumstances, found, machine_name, write_result
from parts import SMOKE_SHAPE, Parts, add_flags, missing
from train import Failure, text

from mt.device import choose
from mt.errors import MTError
from mt.files import read_lines, write_text
from mt.pipelines.bench_translate import as_text

PACKAGES = ("torch", "triton", "transformers", "ctranslate2", "numpy")
REPETITIONS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is trained and translated."""

    precision: str
    lines: int
    lines_of_hf: int
    limits: dict[str, tuple[object, ...]]  # flags of `mt train` that end the training of a preset
    settings: tuple[str, ...]


PLAN = Plan(
    precision="bf16",
    lines=30_000,
    lines_of_hf=2_000,  # it is the slowest by far
    limits={"base": ("--max-minutes", 1.5), "big": ("--max-minutes", 1.0)},
    settings=("tokenizer.vocabulary_size=24000",),  # of which 10,000 pairs have enough different words
)
SMOKE = Plan(
    precision="fp32",
    lines=30,
    lines_of_hf=20,
    limits={"base": ("--max-steps", 4)},
    settings=("tokenizer.vocabulary_size=300", *(f"model.{name}={size}" for name, size in SMOKE_SHAPE.items())),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of train.XX and train.YY")
    parser.add_argument("--pair", default="de-en", help="source and target language")
    add_flags(parser)
    parser.set_defaults(part_seconds=150)
    options = parser.parse_args()
    if not options.output:
        parser.error("--output is missing")
    return options


class Measurement:
    """One after another what is asked of it, in a folder of its own; `results` has what was measured, by name."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.plan, self.device, self.folder = SMOKE if options.smoke else PLAN, options.device, folder
        self.corpus = [text(options.corpus.resolve(), ("train",), language) for language in options.pair.split("-")]
        self.source, self.reference = folder / "source", folder / "reference"
        for path, lines in zip((self.source, self.reference), enough(self.corpus, self.plan.lines), strict=True):
            write_text(path, "".join(f"{line}\n" for line in lines))
        self.parts = Parts(options.seconds, options.part_seconds)
        self.results: dict[str, dict[str, Any]] = {}
        self.absent: set[str] = set()  # packages of peers

    def train(self, preset: str) -> bool:
        """Whether a model of this shape is ready."""
        # M2M-100, the peer of Hugging Face, has sinusoidal positions.
        settings = ["model.positions=sinusoidal", "validation.max_sentences=50", *self.plan.settings]
        command = ["-m", "mt", "train", "--train", *self.corpus, "--output", self.folder / preset, "--preset", preset]
        command += [*self.plan.limits[preset], "--device", self.device]
        command += [word for setting in settings for word in ("--set", setting)]
        return self.parts.run(f"mt train, {preset}", *command) is not None

    def alone(self, preset: str, beam: int) -> None:
        """What `mt bench translate` measures."""
        name = f"{preset}, beam {beam}"
        command = ["-m", "mt", "bench", "translate", "--model", self.folder / preset, self.source, "--beam", beam]
        command += ["--repetitions", REPETITIONS, "--device", self.device, "--precision", self.plan.precision]
        if printed := self.parts.run(name, *command, "--format", "json"):
            self.keep(name, json.loads(printed))

    def beside(self, peer: str, preset: str, beams: str) -> None:
        """What `translate.py` measures beside a peer, where that is installed."""
        package = {"hf": "transformers"}.get(peer, peer)
        if found(package) is None:
            self.absent.add(package)
            return
        name = f"{preset} beside {peer}, beam {beams}"
        output, lines = self.folder / name, self.plan.lines_of_hf if peer == "hf" else self.plan.lines
        command = [translate.__file__, "--model", self.folder / preset, "--output", output, "--engines", f"mt,{peer}"]
        command += ["--source", self.source, "--reference", self.reference, "--lines", lines, "--beams", beams]
        command += ["--repetitions", REPETITIONS, "--device", self.device, "--precision", self.plan.precision]
        if self.parts.run(name, *command) is not None:
            [path] = output.glob("*.json")
            self.keep(name, json.loads(path.read_text(encoding="utf-8")))

    def keep(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        print(f"{name}\n{summary(result)}\n", file=sys.stderr)


def enough(corpus: list[Path], wanted: int) -> list[list[str]]:
    """So many different lines, and their references: those of a corpus, then without their first word, or two..."""
    pairs = list(zip(*map(read_lines, corpus), strict=True))
    cut = ((" ".join(source.split()[words:]), target) for words in count() for source, target in pairs)
    different = dict(pair for pair in islice(cut, 10 * wanted) if pair[0])
    return [list(islice(lines, wanted)) for lines in (different, different.values())]


def measure_all(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The tests, then the rest in the order of what is worth most; what is absent, failed or not reached is named."""
    measurement = Measurement(options, folder)
    chosen = ["tests/decoding", "tests/pipelines/test_train.py", "-k", "cuda or one_launch or on_each_device"]
    tests = measurement.parts.tests(*(["tests/decoding/test_shortlist.py"] if options.smoke else chosen))
    has_base = measurement.train("base")
    if has_base:
        measurement.alone("base", 4)
        measurement.beside("ctranslate2", "base", "4,1")
        measurement.alone("base", 5)
        measurement.beside("hf", "base", "4")
    if "big" in measurement.plan.limits and measurement.train("big"):
        measurement.beside("ctranslate2", "big", "4")
        measurement.alone("big", 4)
    if has_base:
        measurement.beside("ctranslate2", "base", "5")
    parts = measurement.parts
    return {
        "tests": tests,
        "results": measurement.results,
        "absent": sorted(measurement.absent),
        "failed": parts.failed,
        "not_reached": parts.not_reached,
    }


def summary(result: dict[str, Any]) -> str:
    return as_text(result) if result["what"] == "bench translate" else translate.table(result["results"])


def table(record: dict[str, Any]) -> str:
    """The results of each part, and which are missing."""
    rows = [f"{name}\n{summary(result)}" for name, result in record["results"].items()]
    absent = [f"not installed: {package}" for package in record["absent"]]
    return "\n\n".join([f"tests: {record['tests']}", *rows, *absent, *missing(record)])


def main() -> None:
    options = arguments()
    choose(options.device, "auto", 0, training=False)  # says where there is no CUDA
    record = circumstances(PACKAGES) | {"what": "translate-gpu"}
    with tempfile.TemporaryDirectory() as folder:
        record |= measure_all(options, Path(folder))
    path = options.output / f"translate-gpu-{options.machine or machine_name(options.device)}.json"
    write_result(path, record, table(record))


if __name__ == "__main__":
    try:
        main()
    except (Failure, MTError) as error:
        sys.exit(f"error: {error}")
