"""Times training by mt beside MarianMTModel and torch.nn.Transformer in plain loops, on the same sentences.

Each runs in a process of its own, warmed up before anything is timed.  Repetitions take turns (A B C A B C), so that a
slow minute of the machine is everybody's; what matrix products reach alone is measured anew in each, too.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measured import circumstances, machine_name, warn_when_busy, write_result
from trainers import DROPOUT, PEERS, Job, work_of
from workers import Failure, Worker, running

from mt.errors import MTError
from mt.model.cost import weight_products
from mt.pipelines.bench_train import Work, matrix_rate
from mt.pipelines.measuring import spread

PACKAGES = ("torch", "transformers", "sentencepiece", "numpy")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder whose tokenizer and text are used")
    parser.add_argument("--output", type=Path, required=True, help="folder of train-speed-MACHINE.json")
    parser.add_argument("--presets", type=words, default=["small", "tiny"])
    parser.add_argument("--batch-tokens", type=numbers, default=[4096, 1024])
    parser.add_argument("--engines", type=words, default=["mt", "hf", "torch"])
    parser.add_argument("--precisions", type=words, default=["fp32", "bf16"])
    parser.add_argument("--tokens", type=int, default=40_000, help="target tokens of a repetition")
    parser.add_argument("--repetitions", type=int, default=5, help="after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--machine", default="", help="name of this machine in the file's name")
    options = parser.parse_args()
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    if unknown := set(options.engines) - {"mt", *PEERS}:
        parser.error(f"there is no engine {', '.join(unknown)}")
    return options


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def jobs(options: argparse.Namespace, preset: str, batch_tokens: int) -> list[Job]:
    return [
        Job(
            engine=engine,
            precision=precision,
            run=str(options.run.resolve()),
            preset=preset,
            batch_tokens=batch_tokens,
            updates=max(1, options.tokens // batch_tokens),
            device=options.device,
            threads=options.threads,
        )
        for engine in options.engines
        for precision in options.precisions
    ]


def measure(todo: list[Job], repetitions: int) -> list[dict[str, Any]]:
    """A result for each job, all of the same model and batch."""
    one_of_each = {job.precision: job for job in todo}
    ceilings: dict[str, list[float]] = {precision: [] for precision in one_of_each}
    with running("trainers.py", todo) as workers:
        for repetition in range(repetitions + 1):
            for precision, job in one_of_each.items():
                ceilings[precision].append(ceiling(job))
            for worker in workers:
                answer, job = worker.order(), worker.job
                rate = answer["target_tokens"] / answer["seconds"]
                what = f"repetition {repetition}" if repetition else "warm-up"
                print(
                    f"{job.preset}, {job.batch_tokens:,}, {job.engine} {job.precision}, {what}: {rate:,.0f} tok/s",
                    file=sys.stderr,
                )
        results = [result(worker, ceilings[worker.job.precision]) for worker in workers]
    peers = [each for each in results if each["engine"] != "mt" and each["precision"] == "fp32"]
    best = max((each["target_tokens_per_second"]["median"] for each in peers), default=None)
    for each in results:
        each["ratio_to_best_fp32_peer"] = each["target_tokens_per_second"]["median"] / best if best else None
    return results


def ceiling(job: Job) -> float:
    """What the products of an average update reach alone, in floating-point operations a second."""
    work = work_of(job)
    source, target = average_tokens(work)
    return matrix_rate(weight_products(work.config.model, source, target), work.compute)


def average_tokens(work: Work) -> tuple[int, int]:
    """Source and target tokens of an update."""
    corpus = work.corpus
    updates = max(1, round(corpus.target.lengths.sum() / work.config.data.batch_tokens))
    return round(corpus.source.lengths.sum() / updates), round(corpus.target.lengths.sum() / updates)


def result(worker: Worker[Job], ceilings: list[float]) -> dict[str, Any]:
    """What a worker has answered, beside the matrix rate that was measured before each answer."""
    job, (warm_up, *repetitions), (_, *ceilings) = worker.job, worker.answers, ceilings
    rates = [answer["target_tokens"] / answer["seconds"] for answer in repetitions]
    record = {
        "engine": job.engine,
        "precision": job.precision,
        "preset": job.preset,
        "batch_tokens": job.batch_tokens,
        "updates": job.updates,
        **worker.loaded,
        "warm_up_seconds": warm_up["seconds"],
        "seconds": [answer["seconds"] for answer in repetitions],
        "target_tokens_per_second": spread(rates),
        "matrix_flops_per_second": statistics.median(ceilings),
        "peak_rss_bytes": repetitions[-1]["peak_rss_bytes"],
        "peak_gpu_bytes": repetitions[-1]["peak_gpu_bytes"],
    }
    if job.engine == "mt":
        reached = [answer["flops"] / answer["seconds"] for answer in repetitions]
        shares = [one / ceiling for one, ceiling in zip(reached, ceilings, strict=True)]
        record["flops_per_second"] = statistics.median(reached)
        record["share_of_matrix_rate"] = statistics.median(shares)
    return record


def table(results: list[dict[str, Any]]) -> str:
    """The results in a few columns."""
    head = f"{'preset':<7} {'batch':>6}  {'engine':<10} {'target tok/s (range)':>26}"
    rows = [f"{head} {'ratio':>6} {'products':>9} {'RSS MiB':>8}"]
    for each in results:
        speed, ratio = each["target_tokens_per_second"], each["ratio_to_best_fp32_peer"]
        share = each.get("share_of_matrix_rate")
        rows.append(
            f"{each['preset']:<7} {each['batch_tokens']:>6,}  {each['engine'] + ' ' + each['precision']:<10}"
            f" {speed['median']:>10,.0f} {'({lowest:,.0f}-{highest:,.0f})'.format(**speed):>15}"
            f" {f'{ratio:.2f}' if ratio else '':>6} {f'{share:.0%}' if share else '':>9}"
            f" {each['peak_rss_bytes'] / 2**20:>8,.0f}"
        )
    rows.append("ratio: to the fastest peer in fp32; products: share of the rate that the step's products reach alone")
    return "\n".join(rows)


def main() -> None:
    options = arguments()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    warn_when_busy()
    record = circumstances(PACKAGES)
    results: list[dict[str, Any]] = []
    for preset in options.presets:
        for batch_tokens in options.batch_tokens:
            results += measure(jobs(options, preset, batch_tokens), options.repetitions)
    record |= {
        "what": "train-speed",
        "settings": {
            "device": options.device,
            "threads": options.threads,
            "dropout": DROPOUT,
            "repetitions": options.repetitions,
        },
        "results": results,
    }
    path = options.output / f"train-speed-{options.machine or machine_name(options.device)}.json"
    write_result(path, record, table(results))


if __name__ == "__main__":
    try:
        main()
    except (Failure, MTError) as error:
        sys.exit(f"error: {error}")
