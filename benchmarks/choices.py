"""Puts finished runs side by side by their scores on validation text: what `auto` chooses is chosen by such runs.

The runs differ in what is to be chosen and are alike in the rest, the time that they would take included.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from measured import circumstances, preset_of, write_result
from train import Failure, best_validation, log_records, provenance, training_figures

from mt.errors import MTError
from mt.pipelines.run_folder import RunFolder

PACKAGES = ("torch", "sentencepiece", "sacrebleu", "numpy")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished run folders")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def result(path: Path) -> dict[str, Any]:
    """How a run was made, and the best of its validations."""
    run = RunFolder(path)
    made, figures = provenance(run), training_figures(run)
    recipe = made["run_toml"]
    decided = [record.get("begun", True) for record in log_records(run) if record.get("event") == "consistency"]
    best = best_validation(figures)
    return {
        "preset": preset_of(recipe["model"]),
        "dropout": recipe["model"]["dropout"],
        "tokenizer": recipe["tokenizer"]["type"],
        "precision": recipe["training"]["precision"],
        "besides": besides(recipe, two_passes=decided[-1:] != [False]),
        "seed": made["seed"],
        "steps": figures["steps"],
        "batch_tokens": recipe["data"]["batch_tokens"],
        "best": {key: best[key] for key in ("loss", "bleu", "chrf")},
        "training": figures,
        "run": made,
    }


EXTRAS = (
    "consistency", "consistency_from", "sampling_alpha", "noise_rate", "noise_from_epoch", "bidirectional_epochs",
    "ema_decay",
)  # fmt: skip


def besides(recipe: dict[str, dict[str, Any]], *, two_passes: bool) -> str:
    """How else a run was made to learn, where it was; older recipes know nothing of it."""
    training, method = recipe["training"], recipe["optimizer"].get("method", "adamw")
    chosen = {name: training[name] for name in EXTRAS if training.get(name, "off") not in ("off", 0)}
    if not two_passes:  # a recipe may leave it open whether there will be any
        chosen = {name: value for name, value in chosen.items() if not name.startswith("consistency")}
    positions = recipe["model"].get("positions", "sinusoidal")
    said = [f"{name} {value}" for name, value in chosen.items()]
    return ", ".join(said + [method] * (method != "adamw") + [positions] * (positions != "sinusoidal"))


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        f"{'preset':<7} {'dropout':>7} {'tokenizer':<9} {'precision':<9} {'seed':>4} {'updates':>8} {'val BLEU':>9}"
        "  besides"
    ]
    rows += [
        f"{each['preset']:<7} {each['dropout']:>7} {each['tokenizer']:<9} {each['precision']:<9} {each['seed']:>4}"
        f" {each['steps']:>8,} {each['best']['bleu']:>9.2f}  {each['besides']}"
        for each in results
    ]
    return "\n".join(rows)


def main() -> None:
    options = arguments()
    results = [result(path) for path in options.runs]
    record = circumstances(PACKAGES) | {"what": "choices", "results": results}
    write_result(options.output, record, table(results))


if __name__ == "__main__":
    try:
        main()
    except (Failure, MTError) as error:
        sys.exit(f"error: {error}")
