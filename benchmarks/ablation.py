"""Trains recipes that differ from one in a setting or two, each for the same minutes, and puts them side by side.

One recipe after another is trained by `mt train` into a folder of its own; one that is finished there is not trained
again, and one that was interrupted goes on.  What a recipe brings is its scores on the test set and the best ones on
the validation text; what it costs is the time of its update beside that of the recipe it differs from.
"""

import argparse
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from measured import circumstances, machine_name, text_record, warn_when_busy, write_result
from scores import score_of, upper_cased_record
from train import (
    PACKAGES,
    RESULTS,
    Failure,
    best_validation,
    evaluate,
    evaluate_upper_cased,
    log_records,
    provenance,
    run_device,
    text,
    train,
    training_figures,
)

from mt.errors import MTError
from mt.files import read_lines
from mt.pipelines.run_folder import RunFolder
from mt.settings import read_toml

# Nothing of what pays on little text: for what each ingredient brings where it is the only one.
PLAIN: dict[str, object] = {"training.consistency": "off", "training.noise_rate": 0, "model.positions": "sinusoidal"}
# Each begins with the recipe that the others are set beside.
FROM_BASE: dict[str, dict[str, object]] = {
    "base": {},
    "dropout 0.1": {"model.dropout": 0.1},
    "dropout 0.3": {"model.dropout": 0.3},
    "dropout of attention 0.1": {"model.attention_dropout": 0.1},
    "dropout of activations 0.1": {"model.activation_dropout": 0.1},
    "pieces drawn anew": {"training.sampling_alpha": 0.3},
    "one pass": {"training.consistency": "off"},
    "R-Drop": {"training.consistency": "r-drop"},
    "SimCut": {"training.consistency": "simcut"},
    "both directions first": {"training.bidirectional_epochs": 3},
    "no noise": {"training.noise_rate": 0},
    "noise from the first epoch": {"training.noise_from_epoch": 0},
    # As docs/training.md has it: larger updates at a higher rate.
    "Muon": {"optimizer.method": "muon", "data.batch_tokens": 2048, "optimizer.peak_learning_rate": 0.002},
    "no label smoothing": {"training.label_smoothing": 0},
    "no averaging": {"training.keep_best": 1},
    "length penalty 1": {"validation.tune_length_penalty": "false"},
    "6+2 layers": {"model.encoder_layers": 6, "model.decoder_layers": 2},
    "4,000 pieces": {"tokenizer.vocabulary_size": 4000},
    "16,000 pieces": {"tokenizer.vocabulary_size": 16000},
    "BPE": {"tokenizer.type": "bpe"},
    "sinusoidal positions": {"model.positions": "sinusoidal"},
    "post-norm": {"model.norm_first": "false"},
}
FROM_PLAIN: dict[str, dict[str, object]] = {
    "plain": PLAIN,
    "plain and R-Drop": PLAIN | {"training.consistency": "r-drop"},
    "plain and SimCut": PLAIN | {"training.consistency": "simcut"},
    "plain and noise": PLAIN | {"training.noise_rate": 0.3},
    "plain and rotary positions": PLAIN | {"model.positions": "rotary"},
    "plain and pieces drawn anew": PLAIN | {"training.sampling_alpha": 0.3},
    "plain and both directions first": PLAIN | {"training.bidirectional_epochs": 3},
}
ABLATIONS = {"base": FROM_BASE, "plain": FROM_PLAIN}
RECIPES = FROM_BASE | FROM_PLAIN

Record = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of train, validation and test text")
    parser.add_argument("--pair", required=True, help="source and target language, as de-en")
    parser.add_argument(
        "--test", default="test*", help="name of the test text without language; default: the one test*"
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders, one for each recipe")
    parser.add_argument("--minutes", type=float, default=30, help="of each mt train command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--base", choices=ABLATIONS, default="base", help="what mt train chooses, or that without what pays"
    )
    parser.add_argument("--only", nargs="+", default=[], choices=RECIPES, metavar="RECIPE", help="and the base")
    parser.add_argument("--upper-case", action="store_true", help="also score the test set with its source in capitals")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of ablation-BASE-PAIR-MACHINE.json")
    parser.add_argument("--machine", default="", help="name of this machine in the file's name")
    parser.add_argument("train_flags", nargs="*", metavar="-- FLAG", help="more flags of every mt train")
    options = parser.parse_args()
    if foreign := [name for name in options.only if name not in ABLATIONS[options.base]]:
        parser.error(f"{foreign[0]} is not set beside {options.base}: one of {', '.join(ABLATIONS[options.base])}")
    return options


def set_flags(settings: dict[str, object]) -> list[str]:
    """Settings as flags of `mt train`."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def run_of(runs: Path, name: str) -> RunFolder:
    return RunFolder(runs / re.sub("[^a-z0-9+.]+", "-", name.lower()))


def check_minutes(run: RunFolder, minutes: float) -> None:
    """Raises `Failure` for a run of other minutes; all else that differs `mt train` refuses, but a limit it changes."""
    if run.recipe.is_file() and (had := read_toml(run.recipe)["training"]["max_minutes"]) != minutes:
        raise Failure(f"{run.path} was given {had:g} minutes, not {minutes:g}: choose another --runs")


def result(name: str, run: RunFolder, metrics: list[Record]) -> Record:
    """What a recipe brought, and how long an update of it takes."""
    figures = training_figures(run)
    best = best_validation(figures)
    return {
        "name": name,
        "set": RECIPES[name],
        "metrics": metrics,
        "best": {key: best[key] for key in ("loss", "bleu", "chrf")},
        "update_seconds": update_seconds(log_records(run)),
        "training": figures,
        "run": provenance(run),
    }


def update_seconds(records: list[Record]) -> float:
    """The median over the log's intervals of the time of an update, without validation.

    A line of the log says when it was written; intervals with a validation or another event in between are left out.
    """
    intervals = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in pairwise(records)
        if before["kind"] == after["kind"] == "train"
    ]
    if not intervals:
        raise Failure("no two lines of the log follow one another: give more minutes")
    return statistics.median(intervals)


def with_costs(results: list[Record]) -> list[Record]:
    """The results, each with the time of its update as a multiple of the first one's, which is the base."""
    base = results[0]["update_seconds"]
    return [{**each, "update_cost": each["update_seconds"] / base} for each in results]


def table(results: list[Record]) -> str:
    rows = [f"{'recipe':<27} {'BLEU':>6} {'val BLEU':>9} {'val loss':>9} {'updates':>8} {'cost':>5}"]
    rows += [
        f"{each['name']:<27} {score_of(each['metrics'], 'BLEU'):>6.2f} {each['best']['bleu']:>9.2f}"
        f" {each['best']['loss']:>9.3f} {each['training']['steps']:>8,} {each['update_cost']:>5.2f}"
        for each in results
    ]
    return "\n".join([*rows, "cost: time of an update, that of the base being 1"])


def main() -> None:
    options = arguments()
    warn_when_busy()
    languages = (options.pair.partition("-")[0], options.pair.partition("-")[2])
    source, reference = (text(options.corpus, (options.test,), language) for language in languages)
    record = circumstances(PACKAGES)
    only = {options.base, *options.only} if options.only else ABLATIONS[options.base].keys()
    results = []
    for name in (each for each in ABLATIONS[options.base] if each in only):
        run = run_of(options.runs, name)
        try:
            check_minutes(run, options.minutes)
            print(f"{name}: training for {options.minutes:g} minutes", file=sys.stderr)
            train(options, languages, run.path, *options.train_flags, *set_flags(RECIPES[name]))
            metrics = evaluate(run, source, reference, options.device)
            found = result(name, run, metrics)
            if options.upper_case:
                capitals = evaluate_upper_cased(run, source, reference, options.device)
                found["upper_cased"] = upper_cased_record(metrics, capitals)
            results.append(found)
        except Failure as error:
            if name == options.base:
                raise
            print(f"warning: {name} is left out: {error}", file=sys.stderr)  # a night of others is not lost with it
    results = with_costs(results)
    device = run_device(run_of(options.runs, options.base))
    record |= {
        "what": "ablation",
        "pair": options.pair,
        "device": device,
        "minutes": options.minutes,
        "base": options.train_flags,
        "source": text_record(source, list(read_lines(source))),
        "reference": text_record(reference, list(read_lines(reference))),
        "results": results,
    }
    path = options.results / f"ablation-{options.base}-{options.pair}-{options.machine or machine_name(device)}.json"
    write_result(path, record, table(results))


if __name__ == "__main__":
    try:
        main()
    except (Failure, MTError) as error:
        sys.exit(f"error: {error}")
