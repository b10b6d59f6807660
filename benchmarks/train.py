"""Trains by `mt train` on a corpus folder, scores the test set by `mt evaluate`, and keeps what came out as JSON.

A corpus folder holds train, validation and test text as NAME.LANGUAGE: train.de, train.en, val.de (or valid.de), ...
With --run, a run folder that is already finished is scored, and nothing is trained.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from measured import circumstances, machine_name, text_record, warn_when_busy, without_folders, write_result
from scores import literature_scores, upper_cased_record

from mt.errors import MTError
from mt.files import checksum, read_lines, write_text
from mt.pipelines.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "sentencepiece", "sacrebleu", "sacremoses", "numpy")
AVERAGES = ("averaged", "moving_average")  # events: what was validated at the end, and may have become the model


class Failure(Exception):
    """A corpus or a run that cannot be measured."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of train, validation and test text")
    parser.add_argument("--pair", default="", help="source and target language, as de-en; with --run: the run's own")
    parser.add_argument("--test", default="", help="name of the test text without language; default: the one test*")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="run folder to train")
    what.add_argument("--run", type=Path, help="finished run folder to score; nothing is trained")
    parser.add_argument("--minutes", type=float, default=45, help="of the whole mt train command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--upper-case", action="store_true", help="also score the test set with its source in capitals")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of train-CORPUS-PAIR-MACHINE.json")
    parser.add_argument("--machine", default="", help="name of this machine in the file's name")
    parser.add_argument("train_flags", nargs="*", metavar="-- FLAG", help="more flags of mt train")
    return parser.parse_args()


def text(corpus: Path, patterns: tuple[str, ...], language: str) -> Path:
    """The one file of the corpus with one of these names."""
    found = sorted(path for pattern in patterns for path in corpus.glob(f"{pattern}.{language}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise Failure(f"one file {' or '.join(patterns)}.{language} is needed in {corpus}; there is {names}")
    return found[0]


def pair_of(corpus: Path, patterns: tuple[str, ...], languages: tuple[str, str]) -> list[str]:
    return [str(text(corpus, patterns, language)) for language in languages]


def mt(*flags: str) -> str:
    """Run a command of mt; returns its standard output."""
    finished = subprocess.run([sys.executable, "-m", "mt", *flags], stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise Failure(f"mt {flags[0]} ended with code {finished.returncode}")
    return finished.stdout


def train(options: argparse.Namespace, languages: tuple[str, str], output: Path, *flags: str) -> None:
    """Run `mt train` on a corpus folder for some minutes."""
    mt(
        "train",
        *("--train", *pair_of(options.corpus, ("train",), languages)),
        *("--valid", *pair_of(options.corpus, ("val", "valid"), languages)),
        *("--output", str(output)),
        *("--max-minutes", str(options.minutes)),
        *("--seed", str(options.seed)),
        *("--device", options.device),
        *flags,
    )


def evaluate(run: RunFolder, source: Path, reference: Path, device: str) -> list[dict[str, Any]]:
    """BLEU, chrF2 and TER with their signatures, and BLEU as papers have it; the run's decoding defaults hold."""
    with tempfile.TemporaryDirectory() as folder:
        hypothesis = Path(folder, "hypothesis")
        files = ("--source", str(source), "--reference", str(reference), "--output", str(hypothesis))
        said = mt("evaluate", "--model", str(run.path), *files, "--device", device, "--format", "json")
        hypotheses, references = list(read_lines(hypothesis)), list(read_lines(reference))
    return json.loads(said)["metrics"] + literature_scores(hypotheses, references, target_language(run))


def evaluate_upper_cased(run: RunFolder, source: Path, reference: Path, device: str) -> list[dict[str, Any]]:
    """The same scores where every source is in capitals."""
    with tempfile.TemporaryDirectory() as folder:
        capitals = Path(folder, source.name)
        write_text(capitals, "".join(f"{line.upper()}\n" for line in read_lines(source)))
        return evaluate(run, capitals, reference, device)


def target_language(run: RunFolder) -> str:
    return run.read_config()["languages"]["target"]


def log_records(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]


def training_figures(run: RunFolder) -> dict[str, Any]:
    """Steps, time, speed and memory from log.jsonl, and how validation went."""
    records = log_records(run)
    steps = [record for record in records if record["kind"] == "train"]
    events = [record for record in records if record["kind"] == "event"]
    ends = [event for event in events if event["event"] == "finished"]
    if not ends:
        raise Failure(f"{run.path} is not finished: mt train --output {run.path} goes on with it")
    if not steps:
        raise Failure(f"{run.path} ended before its log had a first interval of training.log_every_steps")
    return {
        "steps": ends[-1]["step"],
        "minutes": round(records[-1]["seconds"] / 60, 2),
        "finished": ends[-1]["reason"],
        "parameters": events[0]["parameters"],
        "target_tokens_per_second_median": statistics.median(record["target_tokens_per_second"] for record in steps),
        "peak_memory_gib": max(record["memory_gib"] for record in steps),
        "times_resumed": sum(event["event"] == "resumed" for event in events),
        **{
            average: next((event for event in reversed(events) if event["event"] == average), None)
            for average in AVERAGES
        },
        "validation": [
            {key: record[key] for key in ("step", "loss", "bleu", "chrf")}
            for record in records
            if record["kind"] == "valid"
        ],
    }


def best_validation(figures: dict[str, Any]) -> dict[str, Any]:
    """The scores of the weights that did best on the validation text, by BLEU; averages are looked at, too."""
    validations = figures["validation"] + [figures[average] for average in AVERAGES if figures[average]]
    return max(validations, key=lambda each: each["bleu"])


def provenance(run: RunFolder) -> dict[str, Any]:
    """What the run says of its own making: versions and command then, seed, checksums of its texts, the recipe."""
    said = run.read_config()["provenance"]
    return {
        "versions": {key: said[key] for key in ("mt", "python", "torch", "cuda")},
        "command": without_folders(said["command"]),
        "seed": said["seed"],
        "corpora": corpora_of(said),
        "run_toml": recipe(run),
        "model_sha256": checksum(run.model),
    }


def corpora_of(said: dict[str, Any]) -> list[dict[str, str]]:
    """The texts that a run was made from, and their checksums."""
    return [{"file": Path(each["path"]).name, "sha256": each["sha256"]} for each in said["corpora"]]


def recipe(run: RunFolder) -> dict[str, Any]:
    """run.toml, its corpora by name."""
    sections = tomllib.loads(run.recipe.read_text(encoding="utf-8"))
    for name in ("train", "valid"):
        for table in sections["data"][name]:
            table |= {key: Path(table[key]).name for key in ("source", "target", "tsv") if key in table}
    return sections


def main() -> None:
    options = arguments()
    warn_when_busy()
    record = circumstances(PACKAGES)
    run = RunFolder(options.run or options.output)
    if options.run:
        said = run.read_config()["languages"]
        options.pair = options.pair or f"{said['source']}-{said['target']}"
    languages = (options.pair.partition("-")[0], options.pair.partition("-")[2])
    test = (options.test,) if options.test else ("test*",)
    source, reference = (text(options.corpus, test, language) for language in languages)
    if not options.run:
        train(options, languages, options.output, *options.train_flags)
    figures = training_figures(run)
    metrics = evaluate(run, source, reference, options.device)
    if options.upper_case:
        capitals = evaluate_upper_cased(run, source, reference, options.device)
        record["upper_cased"] = upper_cased_record(metrics, capitals)
    device = run_device(run)
    record |= {
        "what": "train",
        "pair": options.pair,
        "device": device,
        "trained_by_this_command": not options.run,
        "metrics": metrics,
        "training": figures,
        "source": text_record(source, list(read_lines(source))),
        "reference": text_record(reference, list(read_lines(reference))),
        "run": provenance(run),
    }
    name = f"train-{options.corpus.resolve().name}-{options.pair}-{options.machine or machine_name(device)}.json"
    scores = "  ".join(f"{metric['name']} {metric['score']:.2f}" for metric in metrics)
    speed = f"{figures['target_tokens_per_second_median']:,.0f} target tok/s, {figures['peak_memory_gib']:.1f} GiB"
    summary = f"{scores}\n{figures['steps']:,} steps, {figures['minutes']:.1f} min, {speed}"
    write_result(options.results / name, record, summary)


def run_device(run: RunFolder) -> str:
    return tomllib.loads(run.recipe.read_text(encoding="utf-8"))["training"]["device"]


if __name__ == "__main__":
    try:
        main()
    except (Failure, MTError) as error:
        sys.exit(f"error: {error}")
