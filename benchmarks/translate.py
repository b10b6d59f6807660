"""Times mt beside Hugging Face generate and CTranslate2, translating the same sentences with the same weights.

Each engine runs in a process of its own, loaded and warmed up before anything is timed.  Repetitions take turns
(A B C A B C), so that a slow minute of the machine is everybody's.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from engines import BATCH_SENTENCES, Job
from measured import circumstances, machine_name, preset_of, text_record, warn_when_busy, write_result
from peers import Disagreement, Sample, check_ctranslate2, check_m2m100, to_m2m100
from sacrebleu.metrics.bleu import BLEU
from workers import Failure, Worker, running

from mt.errors import MTError
from mt.files import checksum, read_lines
from mt.interop.ctranslate2 import to_ctranslate2
from mt.pipelines.measuring import spread
from mt.pipelines.run_folder import LoadedModel, RunFolder, load_model

PACKAGES = ("torch", "transformers", "ctranslate2", "sentencepiece", "sacrebleu", "numpy")
PRECISIONS = ("fp32", "bf16")
CHECKED_SENTENCES = 32  # through which converted models are compared with the original


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="run folder")
    parser.add_argument("--source", type=Path, required=True, help="text to translate, without empty lines")
    parser.add_argument("--reference", type=Path, required=True, help="its translation, for BLEU")
    parser.add_argument("--output", type=Path, required=True, help="folder of translate-PRESET[-bf16]-MACHINE.json")
    parser.add_argument("--engines", type=names, default=["mt", "hf", "ctranslate2"], help="mt,hf,ctranslate2")
    parser.add_argument("--beams", type=numbers, default=[5, 1], help="beam sizes, as 5,1")
    parser.add_argument("--repetitions", type=int, default=5, help="after one to warm up")
    parser.add_argument("--lines", type=int, default=0, help="only so many of the first lines; 0: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of all engines but int8")
    parser.add_argument(
        "--batch", type=int, default=0, help="sentences in a batch of the peers; 0: what suits the device"
    )
    parser.add_argument("--machine", default="", help="name of this machine in the file's name")
    options = parser.parse_args()
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return options


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - {"mt", "hf", "ctranslate2"}:
        raise argparse.ArgumentTypeError(f"there is no engine {', '.join(unknown)}")
    return chosen


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def convert(loaded: LoadedModel, options: argparse.Namespace, folder: Path, sample: Sample) -> dict[str, float]:
    """Write the model in each peer's format under `folder`; returns how far each is from mt, in float32."""
    differences = {}
    if "hf" in options.engines:
        peer = to_m2m100(loaded)
        differences["hf"] = check_m2m100(loaded, peer, sample)
        peer.save_pretrained(folder / "hf")
    if "ctranslate2" in options.engines:
        write_ctranslate2(loaded, folder / "checked", "float32")
        differences["ctranslate2"] = check_ctranslate2(loaded, folder / "checked", sample)
        for compute_type in compute_types(options):
            write_ctranslate2(loaded, folder / f"ctranslate2-{compute_type}", compute_type)
    return differences


def compute_types(options: argparse.Namespace) -> tuple[str, ...]:
    """Of CTranslate2: what comes nearest to the precision, and 8-bit integers on the CPU, where mt has them, too."""
    if options.device == "cuda":
        return ("float32" if options.precision == "fp32" else "float16",)
    return ("float32", "int8") if options.precision == "fp32" else ("bfloat16", "int8_bfloat16")


def write_ctranslate2(loaded: LoadedModel, folder: Path, weights: str) -> None:
    folder.mkdir()
    to_ctranslate2(loaded.model, loaded.tokenizers, weights).save(str(folder))


def jobs(loaded: LoadedModel, options: argparse.Namespace, folder: Path, beam: int) -> list[Job]:
    """What each engine does with this beam."""
    engines = [engine for engine in options.engines if engine != "ctranslate2"]
    if "mt" in options.engines and options.device == "cpu":
        engines.insert(engines.index("mt") + 1, "mt-int8")
    if "ctranslate2" in options.engines:
        engines += [f"ctranslate2-{compute_type}" for compute_type in compute_types(options)]
    record = RunFolder(options.model).read_config()
    files = [str(options.model / record["tokenizer"][side]["file"]) for side in ("source", "target")]
    return [
        Job(
            engine=engine,
            run=str(options.model),
            converted=str(folder / engine),
            source=str(folder / "source.txt"),
            tokenizers=(files[0], files[1]),
            beam=beam,
            max_length_ratio=loaded.decoding.max_length_ratio,
            max_length_offset=loaded.decoding.max_length_offset,
            max_positions=loaded.model.config.max_positions,
            device=options.device,
            precision=options.precision,
            threads=options.threads,
            batch=options.batch or BATCH_SENTENCES[options.device],
        )
        for engine in engines
    ]


def measure(jobs: list[Job], references: list[str], repetitions: int) -> list[dict[str, Any]]:
    """A result for each job, all with the same beam."""
    with running("engines.py", jobs) as workers:
        for repetition in range(repetitions + 1):
            for worker in workers:
                seconds = worker.order()["seconds"]
                what = f"repetition {repetition}" if repetition else "warm-up"
                print(f"beam {worker.job.beam}, {worker.job.engine}, {what}: {seconds:.2f} s", file=sys.stderr)
        return [result(worker, workers[0], references) for worker in workers]


def result(worker: Worker[Job], first: Worker[Job], references: list[str]) -> dict[str, Any]:
    """The figures of a worker, and how the first one (mt, unless left out) compares with it."""
    warm_up, *repetitions = worker.answers
    last, lines = repetitions[-1], len(references)
    bleu = BLEU(tokenize="13a")
    score = bleu.corpus_score(last["translations"], [references]).score
    same = sum(a == b for a, b in zip(last["translations"], first.answers[-1]["translations"], strict=True))
    return {
        "engine": worker.job.engine,
        "beam": worker.job.beam,
        **worker.loaded,
        "warm_up_seconds": warm_up["seconds"],
        "seconds": [answer["seconds"] for answer in repetitions],
        "sentences_per_second": spread([lines / answer["seconds"] for answer in repetitions]),
        "target_tokens_per_second": spread([answer["target_tokens"] / answer["seconds"] for answer in repetitions]),
        "target_tokens": last["target_tokens"],
        "speedup_of_first_engine": seconds_of(worker) / seconds_of(first),
        "translations_as_first_engine": same / lines,
        "bleu": round(score, 4),
        "bleu_signature": str(bleu.get_signature()),
        "peak_rss_bytes": last["peak_rss_bytes"],
        "peak_gpu_bytes": last["peak_gpu_bytes"],
    }


def seconds_of(worker: Worker[Job]) -> float:
    return statistics.median(answer["seconds"] for answer in worker.answers[1:])


def read_texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    sources, references = list(read_lines(options.source)), list(read_lines(options.reference))
    if len(sources) != len(references) or not all(line.strip() for line in sources):
        raise Disagreement(f"{options.source} has empty lines, or not as many lines as {options.reference}")
    count = options.lines or len(sources)
    return sources[:count], references[:count]


def table(results: list[dict[str, Any]]) -> str:
    """The results in a few columns."""
    head = f"{'beam':>4}  {'engine':<21} {'sentences/s (range)':>22} {'ratio':>7} {'target tok/s':>13} {'BLEU':>7}"
    rows = [head + f" {'same':>7} {'load s':>7} {'RSS MiB':>8}"]
    for each in results:
        speed = each["sentences_per_second"]
        rows.append(
            f"{each['beam']:>4}  {each['engine']:<21} {speed['median']:>8.1f}"
            f" {'({lowest:.1f}-{highest:.1f})'.format(**speed):>13} {each['speedup_of_first_engine']:>7.2f}"
            f" {each['target_tokens_per_second']['median']:>13,.0f} {each['bleu']:>7.2f}"
            f" {each['translations_as_first_engine']:>7.1%} {each['load_seconds']:>7.1f}"
            f" {each['peak_rss_bytes'] / 2**20:>8,.0f}"
        )
    first = results[0]["engine"]
    rows.append(f"ratio: how many times as fast {first} is; same: share of translations equal to those of {first}")
    return "\n".join(rows)


def texts_and_model(options: argparse.Namespace, sources: list[str], references: list[str]) -> dict[str, Any]:
    """What was translated, by which weights and how."""
    run = RunFolder(options.model)
    config = run.read_config()
    return {
        "model": {"sha256": checksum(run.model), **{key: config[key] for key in ("model", "languages", "decoding")}},
        "source": text_record(options.source, sources),
        "reference": text_record(options.reference, references),
        "settings": {
            "device": options.device,
            "threads": options.threads,
            "length_penalty": 1.0,
            "repetitions": options.repetitions,
        },
    }


def main() -> None:
    options = arguments()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    warn_when_busy()
    record = circumstances(PACKAGES)
    sources, references = read_texts(options)
    loaded = load_model(options.model)
    sample = Sample.of(sources[:CHECKED_SENTENCES], references[:CHECKED_SENTENCES], loaded.tokenizers)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        differences = convert(loaded, options, folder, sample)
        (folder / "source.txt").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
        for beam in options.beams:
            results += measure(jobs(loaded, options, folder, beam), references, options.repetitions)
    record |= {"what": "translate", **texts_and_model(options, sources, references)}
    record |= {"largest_difference_from_mt": differences, "results": results}
    preset = preset_of(record["model"]["model"])
    rounded = "" if options.precision == "fp32" else f"-{options.precision}"
    path = options.output / f"translate-{preset}{rounded}-{options.machine or machine_name(options.device)}.json"
    write_result(path, record, table(results))


if __name__ == "__main__":
    try:
        main()
    except (Disagreement, Failure, MTError) as error:
        sys.exit(f"error: {error}")
