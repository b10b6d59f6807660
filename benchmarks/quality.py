"""What a peer's translations are worth after as many minutes as `mt train` had: same text, tokenizer and machine.

`train` trains Hugging Face's Marian, or JoeyNMT, on the encoded text of a run of mt, and scores the test set; the run
itself is scored by `train.py --run`, and the files make rows of one table.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measured import circumstances, machine_name, text_record, warn_when_busy, write_result
from scores import literature_scores, upper_cased_record
from train import corpora_of

from mt.errors import ConfigError, DataError, MTError
from mt.evaluation.metrics import evaluate
from mt.files import checksum, read_lines
from mt.pipelines.evaluate import score_records
from mt.pipelines.run_folder import RunFolder
from mt.settings import AUTO

if TYPE_CHECKING:
    from joey import JoeyTraining
    from marian import MarianTraining

    from mt.device import Compute
    from mt.pipelines.prepare import PreparedRun

PACKAGES = ("torch", "transformers", "joeynmt", "sentencepiece", "sacrebleu", "sacremoses", "numpy")
BEAM = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    train = parser.add_subparsers(required=True).add_parser("train", help="train a peer and score the test set")
    train.add_argument("--peer", choices=("hf", "joeynmt"), default="hf", help="Hugging Face's Marian, or JoeyNMT")
    train.add_argument("--run", type=Path, required=True, help="run folder of mt whose tokenizer and text are used")
    train.add_argument("--test-source", type=Path, required=True)
    train.add_argument("--test-reference", type=Path, required=True)
    train.add_argument("--output", type=Path, required=True, help="folder of quality-PEER-PAIR-MACHINE.json")
    train.add_argument("--minutes", type=float, default=45, help="set-up, training and validation, not the test set")
    train.add_argument("--upper-case", action="store_true", help="also score the test set with its source in capitals")
    train.add_argument("--preset", default="", help="shape of the model; default: that of the run")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    train.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    train.add_argument("--threads", type=int, default=0, help="default: all")
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--dropout", type=float, default=0.2)
    train.add_argument("--attention-dropout", type=float, default=0.1, help="of hf; joeynmt has one dropout for all")
    train.add_argument("--batch-tokens", type=int, default=1024, help="target tokens of an update")
    train.add_argument("--peak-learning-rate", type=float, default=1e-3)
    train.add_argument("--warmup-updates", type=int, default=400)
    train.add_argument("--validate-every", type=int, default=445, help="updates; 445 of 1,024 tokens: Multi30k once")
    train.add_argument("--machine", default="", help="name of this machine in the file's name")
    options = parser.parse_args()
    if options.peer == "joeynmt" and options.precision == "bf16":
        parser.error("joeynmt is trained in fp32")
    return options


def prepare(options: argparse.Namespace) -> "tuple[PreparedRun, Compute]":
    """The text of the run, encoded, with its recipe: over it lies what the options say of the peer."""
    from mt.pipelines.prepare import prepare_again
    from mt.pipelines.recipe import Settings
    from mt.pipelines.texts import Texts
    from mt.pipelines.train import choose_compute

    run = RunFolder(options.run)
    saved = run.read_recipe()
    model: dict[str, Any] = {"dropout": options.dropout}
    if options.preset:
        saved["model"], model["preset"] = {}, options.preset
    training = {"device": options.device, "precision": options.precision, "threads": options.threads or AUTO}
    settings = Settings()
    settings.add(saved, str(run.recipe))
    settings.add({"model": model, "data": {"batch_tokens": options.batch_tokens}, "training": training}, "command line")
    compute = choose_compute(settings)
    prepared = prepare_again(run, settings, Texts.of(run, settings), compute)
    if not prepared.config.model.share_embeddings:
        raise ConfigError(f"{run.path} has two tokenizers, Marian one for both sides", "choose a run with a joint one")
    return prepared, compute


def trained(options: argparse.Namespace, started: float) -> "MarianTraining | JoeyTraining":
    from joey import JoeyTraining
    from marian import MarianTraining, Schedule
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from mt.training.budget import Clock

    disable_progress_bar()
    set_verbosity_error()
    peers: dict[str, type[MarianTraining | JoeyTraining]] = {"hf": MarianTraining, "joeynmt": JoeyTraining}
    schedule = Schedule(
        minutes=options.minutes,
        seed=options.seed,
        attention_dropout=options.attention_dropout,
        peak_learning_rate=options.peak_learning_rate,
        warmup_updates=options.warmup_updates,
        validate_every_updates=options.validate_every,
    )
    training = peers[options.peer](*prepare(options), schedule, Clock(started))
    training.fit()
    training.choose_length_penalty(beam=BEAM)  # beyond its minutes
    return training


def scores(hypotheses: list[str], references: list[str], language: str) -> list[dict[str, Any]]:
    """All metrics, as `train.py` writes them."""
    metrics = score_records(evaluate(hypotheses, references, target_language=language))
    return metrics + literature_scores(hypotheses, references, language)


def read_test(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The sources and references that are scored in the end; raises `DataError` at once where they do not match."""
    sources, references = list(read_lines(options.test_source)), list(read_lines(options.test_reference))
    if len(sources) != len(references):
        found = f"{len(sources):,} lines in {options.test_source}, {len(references):,} in {options.test_reference}"
        raise DataError(found, "line n of one file must be the translation of line n of the other")
    return sources, references


def test_scores(
    training: "MarianTraining | JoeyTraining", options: argparse.Namespace, sources: list[str], references: list[str]
) -> dict[str, Any]:
    """How the test set is translated."""
    language = training.prepared.config.data.target_language
    started = time.monotonic()
    metrics = scores(training.translate(sources, beam=BEAM), references, language)
    record: dict[str, Any] = {"metrics": metrics, "test_seconds": round(time.monotonic() - started, 1)}
    if options.upper_case:
        capitals = training.translate([line.upper() for line in sources], beam=BEAM)
        record["upper_cased"] = upper_cased_record(metrics, scores(capitals, references, language))
    texts = {"source": (options.test_source, sources), "reference": (options.test_reference, references)}
    return record | {name: text_record(*text) for name, text in texts.items()}


def main() -> None:
    started = time.monotonic()  # before the libraries that a training needs are read
    options = arguments()
    warn_when_busy()
    test = read_test(options)
    record = circumstances(PACKAGES)
    training = trained(options, started)
    figures = training.figures()
    device = training.compute.device.type
    said = RunFolder(options.run).read_config()
    pair = f"{said['languages']['source']}-{said['languages']['target']}"
    record |= {
        "what": "quality",
        "engine": options.peer,
        "pair": pair,
        "device": device,
        **test_scores(training, options, *test),
        "training": figures,
        "settings": training.settings() | {"beam": BEAM},
        "text": {
            "corpora": corpora_of(said["provenance"]),
            "tokenizers": [checksum(options.run / name) for name in tokenizer_files(said)],
        },
    }
    path = options.output / f"quality-{options.peer}-{pair}-{options.machine or machine_name(device)}.json"
    scores = "  ".join(f"{metric['name']} {metric['score']:.2f}" for metric in record["metrics"])
    speed = f"{figures['target_tokens_per_second_median']:,.0f} target tok/s"
    summary = f"{scores}\n{figures['steps']:,} updates, {figures['minutes']:.1f} min, {speed}"
    write_result(path, record, summary)


def tokenizer_files(said: dict[str, Any]) -> list[str]:
    return sorted({side["file"] for side in said["tokenizer"].values()})


if __name__ == "__main__":
    try:
        main()
    except MTError as error:
        sys.exit(f"error: {error}")
