"""Write the tables of the documents from the files in benchmarks/results: no figure there is typed by hand.

python benchmarks/tables.py            rewrite the documents that have such tables
python benchmarks/tables.py --check    exit 1 when they are not what the results say
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from measured import preset_of
from scores import LITERATURE, score_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = tuple(ROOT / name for name in ("README.md", "docs/training.md", "docs/data.md", "benchmarks/README.md"))
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

Record = dict[str, Any]


def records(what: str) -> list[Record]:
    """The results of one kind, by file name."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "benchmarks/results").glob("*.json"))
    ]
    return [record for record in found if record["what"] == what]


def measurements(what: str) -> Iterator[tuple[Record, Record, str]]:
    """Each result in the files of one kind, with its file and the name of the device that it was measured on."""
    for record in records(what):
        for result in record["results"]:
            yield record, result, device_name(record["machine"], record["settings"]["device"])


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |\n"


def side_by_side(columns: list[str], cells: Iterable[tuple[tuple[str, ...], str, str]]) -> str:
    """A table from (what a row begins with, the column, what stands there), with a column for each that comes up."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for first, column, cell in cells:
        lines.setdefault(first, {})[column] = cell
    names = list(dict.fromkeys(name for line in lines.values() for name in line))
    table = row(*columns, *names) + row(*["---"] * (len(columns) + len(names)))
    return table + "".join(row(*first, *(line.get(name, "") for name in names)) for first, line in lines.items())


def device_name(machine: Record, device: str) -> str:
    return machine["gpu"] if device == "cuda" else f"{machine['cpu']}, {machine['cpu_threads']} threads"


def quality_table() -> str:
    lines = row(
        "pair", "engine", "minutes", "BLEU", "chrF2", "BLEU, lower-cased tokens", "BLEU, source in capitals", "updates",
        "target tok/s", "parameters", "device",
    )  # fmt: skip
    lines += row(*["---"] * 11)
    for record in sorted(records("train") + records("quality"), key=lambda each: each["pair"]):
        metrics, figures = record["metrics"], record["training"]
        lines += row(
            record["pair"],
            ENGINES[record.get("engine", "mt")],
            f"{figures['minutes']:.0f}",
            points(metrics, "BLEU"),
            points(metrics, "chrF2"),
            points(metrics, LITERATURE),
            capitals_points(record),
            f"{figures['steps']:,}",
            f"{figures['target_tokens_per_second_median']:,.0f}",
            f"{figures['parameters'] / 1e6:.1f} M",
            device_name(record["machine"], record["device"]),
        )
    return lines


def points(metrics: list[Record], name: str) -> str:
    """The score of a metric; blank where it was not computed."""
    score = score_of(metrics, name)
    return "" if score is None else f"{score:.1f}"


def capitals_points(record: Record) -> str:
    """BLEU where every source is in capitals; blank where it was not computed."""
    return points(record.get("upper_cased", {}).get("metrics", []), "BLEU")


def ablation_table() -> str:
    lines = row(
        "pair", "recipe", "settings", "minutes", "BLEU", "BLEU, source in capitals", "BLEU on val", "updates",
        "time of an update", "device",
    )  # fmt: skip
    lines += row(*["---"] * 10)
    for record in records("ablation"):
        for result in record["results"]:
            lines += row(
                record["pair"],
                result["name"],
                ", ".join(f"`{name}={value}`" for name, value in result["set"].items()),
                f"{record['minutes']:.0f}",
                points(result["metrics"], "BLEU"),
                capitals_points(result),
                f"{result['best']['bleu']:.1f}",
                f"{result['training']['steps']:,}",
                f"{result['update_cost']:.2f}",
                device_name(record["machine"], record["device"]),
            )
    return lines


def translation_table() -> str:
    lines = row("model", "engine", "beam", "sentences/s", "BLEU", "memory", "to load", "device")
    lines += row(*["---"] * 8)
    for record, result, device in measurements("translate"):
        lines += row(
            preset_of(record["model"]["model"]),
            translator_name(result),
            str(result["beam"]),
            f"{result['sentences_per_second']['median']:,.0f}",
            f"{result['bleu']:.1f}",
            f"{result['peak_rss_bytes'] / 2**20:,.0f} MiB",
            f"{result['load_seconds']:.1f} s",
            device,
        )
    return lines


def translation_summary() -> str:
    return side_by_side(
        ["model", "beam", "device"],
        (
            (
                (preset_of(record["model"]["model"]), str(result["beam"]), device),
                translator_name(result),
                f"{result['sentences_per_second']['median']:,.0f} ({result['bleu']:.1f})",
            )
            for record, result, device in measurements("translate")
        ),
    )


def translator_name(result: Record) -> str:
    """The engine, with its precision where that is neither float32 nor part of its name."""
    rounded = ", bf16" if result["engine"] in ("mt", "hf") and result["precision"] in ("bf16", "bfloat16") else ""
    return (GENERATE if result["engine"] == "hf" else result["engine"]) + rounded


# That train: mt, two models in plain loops, and a toolkit.
ENGINES = {
    "mt": "mt",
    "hf": "HF MarianMTModel",
    "hf-compiled": "HF MarianMTModel, compiled",
    "torch": "torch.nn.Transformer",
    "joeynmt": "JoeyNMT",
}
GENERATE = "HF generate (M2M-100)"  # `hf` where it translates: the model class that mt's weights fit into


def speed_table() -> str:
    lines = row("model", "tokens an update", "engine", "target tok/s", "of the fastest fp32 peer", "memory", "device")
    lines += row(*["---"] * 7)
    for _, result, device in measurements("train-speed"):
        lines += row(
            result["preset"],
            f"{result['batch_tokens']:,}",
            trainer_name(result),
            f"{result['target_tokens_per_second']['median']:,.0f}",
            f"{result['ratio_to_best_fp32_peer'] or math.nan:.2f}",
            f"{(result['peak_gpu_bytes'] or result['peak_rss_bytes']) / 2**20:,.0f} MiB",
            device,
        )
    return lines


def speed_summary() -> str:
    return side_by_side(
        ["model", "tokens an update", "device"],
        (
            (
                (result["preset"], f"{result['batch_tokens']:,}", device),
                trainer_name(result),
                f"{result['target_tokens_per_second']['median']:,.0f}",
            )
            for _, result, device in measurements("train-speed")
        ),
    )


def trainer_name(result: Record) -> str:
    return f"{ENGINES[result['engine']]}, {result['precision']}"


def choices_table() -> str:
    lines = row(
        "pair", "preset", "dropout", "of activations", "peak rate", "besides", "tokenizer", "precision", "seed",
        "updates", "of tokens", "BLEU on val",
    )  # fmt: skip
    lines += row(*["---"] * 12)
    for record in records("choices"):
        for result in sorted(record["results"], key=lambda each: -each["best"]["bleu"]):
            recipe = result["run"]["run_toml"]
            lines += row(
                f"{recipe['data']['source_language']}-{recipe['data']['target_language']}",
                result["preset"],
                str(result["dropout"]),
                str(recipe["model"].get("activation_dropout", result["dropout"])),  # once they were one setting
                f"{recipe['optimizer']['peak_learning_rate']:.4f}",
                result.get("besides", ""),  # in files from before there was any
                f"{result['tokenizer']}, {recipe['tokenizer']['vocabulary_size']:,} pieces",
                result["precision"],
                str(result["seed"]),
                f"{result['steps']:,}",
                f"{result['batch_tokens']:,}",
                f"{result['best']['bleu']:.1f}",
            )
    return lines


PHASES = ("check", "tokenizer", "encoding", "epoch", "step")  # of those that are timed, the ones that take time


def large_table() -> str:
    lines = row("pairs", "command", "phase", "seconds", "lines/s", "memory of all processes")
    lines += row(*["---"] * 6)
    for record in records("large corpus"):
        for name, figures in record["runs"].items():
            for phase in PHASES:
                if part := figures["phases"].get(phase):
                    speed = f"{part['lines_per_second']:,}" if "lines_per_second" in part else ""
                    memory = f"{part['peak_gib']:.2f} GiB"
                    lines += row(f"{record['pairs']:,}", name, phase, f"{part['seconds']:,.1f}", speed, memory)
            first = f"{figures['seconds_from_imports_to_first_step']:,.1f}"
            lines += row(f"{record['pairs']:,}", name, "all before the first step", first, "", "")
    return lines


TABLES = {
    "large": large_table,
    "quality": quality_table,
    "ablation": ablation_table,
    "speed": speed_table,
    "speed_summary": speed_summary,
    "translation": translation_table,
    "translation_summary": translation_summary,
    "choices": choices_table,
}


def rendered(text: str) -> str:
    """A document with its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    if "--check" in sys.argv:
        sys.exit(any(rendered(text) != text for text in texts.values()))
    for path, text in texts.items():
        path.write_text(rendered(text), encoding="utf-8")


if __name__ == "__main__":
    main()
