"""Measures training on a CUDA machine within nine minutes: tests, a short run, precisions, compiling, and a peer.

Each rung of the ladder trains on made-up sentences in a process of its own, which is ended when its time is over.

`idle` is the share of time in which no kernel ran.  The time of kernels per target token comes from PyTorch's profiler
over some updates, the whole time from repetitions without it: profiling slows the processor down, but not the kernels.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measured import ROOT, circumstances, found, machine_name, write_result
from parts import SMOKE_SHAPE, Parts, add_flags, missing
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from trainers import DROPOUT, Job, mt_training, peer_training

from mt.device import choose
from mt.errors import MTError
from mt.model.cost import training_flops, weight_products
from mt.pipelines.bench_train import TrainBench, Work, made_up_work, matrix_rate
from mt.pipelines.measuring import spread
from mt.pipelines.recipe import Settings
from mt.training.compiled import compiled_graphs

PACKAGES = ("torch", "triton", "transformers", "numpy")
RUN_STEPS = 60
MEASURED_SECONDS, REPETITIONS = 10.0, 5  # of a rung: whichever is reached first, after a repetition to warm up
VOCABULARY = 32_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """What is trained, and how."""

    preset: str
    precision: str  # fp32 | tf32 | bf16
    compiled: bool = False
    engine: str = "mt"  # mt | hf
    device: str = "cuda"
    smoke: bool = False  # of a shape so small that it takes a moment

    @property
    def name(self) -> str:
        return f"{self.engine} {self.preset} {self.precision}{' compiled' if self.compiled else ''}"


# In the order of what is worth most, should time run out.
LADDER = [
    *(Rung(preset="base", precision="bf16", compiled=compiled) for compiled in (False, True)),
    *(Rung(preset="base", precision="bf16", compiled=compiled, engine="hf") for compiled in (False, True)),
    *(Rung(preset="big", precision="bf16", compiled=compiled) for compiled in (False, True)),
    *(Rung(preset="base", precision=precision) for precision in ("tf32", "fp32")),
    *(Rung(preset="big", precision="bf16", compiled=compiled, engine="hf") for compiled in (False, True)),
    *(Rung(preset="big", precision=precision) for precision in ("tf32", "fp32")),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--corpus", type=Path, default=ROOT / "data" / "demo", help="folder of train.XX and train.YY for the short run"
    )
    add_flags(parser)
    parser.add_argument("--rung", type=json.loads, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if not options.output and not options.rung:
        parser.error("--output is missing")
    return options


def ladder(options: argparse.Namespace) -> list[Rung]:
    rungs = LADDER
    if options.smoke:
        plain = Rung(preset="smoke", precision="fp32", smoke=True)
        rungs = [plain, replace(plain, precision="bf16"), replace(plain, compiled=True)]
        rungs += [replace(plain, engine="hf"), replace(plain, engine="hf", compiled=True)]
    has_peer = found("transformers") is not None
    return [replace(rung, device=options.device) for rung in rungs if rung.engine == "mt" or has_peer]


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """The tests, a run, then each rung as long as there is time; what was not reached, or failed, is named."""
    parts = Parts(options.seconds, options.part_seconds)
    chosen = ["tests/model", "tests/training", "-k", "cuda and not compiled"]
    tests = {"tests": parts.tests(*(["tests/model/test_positions.py"] if options.smoke else chosen))}
    if not options.smoke:
        tests["tests of compiled layers"] = parts.tests("tests/training/test_compiled.py", "-k", "cuda")
    record: dict[str, Any] = {**tests, "run": short_run(options, parts), "results": []}
    for rung in ladder(options):
        printed = parts.run(rung.name, __file__, "--rung", json.dumps(asdict(rung)))
        if printed:
            record["results"].append(json.loads(printed))
            print(as_row(record["results"][-1]), file=sys.stderr)
    return record | {"failed": parts.failed, "not_reached": parts.not_reached}


def short_run(options: argparse.Namespace, parts: Parts) -> dict[str, Any]:
    """What `mt train` logs in some steps with validations, all choices left to it, and how it ended."""
    texts = sorted(options.corpus.resolve().glob("train.*"))[:2]
    steps = 4 if options.smoke else RUN_STEPS
    settings = [f"training.{name}={steps // 2}" for name in ("validate_every_steps", "log_every_steps")]
    if options.smoke:
        settings += ["data.batch_tokens=200", "validation.max_sentences=5", "tokenizer.vocabulary_size=300"]
        settings += [f"model.{name}={size}" for name, size in SMOKE_SHAPE.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "mt", "train", "--train", *texts, "--output", folder]
        command += ["--max-steps", steps, "--device", options.device]
        command += [word for each in settings for word in ("--set", each)]
        seconds = parts.seconds()
        answer = parts.finished(*command)
        log = Path(folder) / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {
        "steps": steps,
        "code": answer and answer.returncode,
        "seconds_allowed": seconds,
        "log": [json.loads(line) for line in lines],
    }


def measure(rung: Rung) -> dict[str, Any]:
    """Train through some repetitions, and through one more under PyTorch's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        work = work_of(rung, Path(folder))
        training = training_of(rung, work)
        warm_up = next(training)
        graphs, started, repetitions = compiled_graphs(), time.monotonic(), []
        while not repetitions or (len(repetitions) < REPETITIONS and time.monotonic() - started < MEASURED_SECONDS):
            repetitions.append(next(training))
        recompilations, memory = compiled_graphs() - graphs, work.compute.memory_gib()
        kernels = kernel_seconds_a_token(training)
        tokens = sum(each["target_tokens"] for each in repetitions)
        seconds = sum(each["seconds"] for each in repetitions)
        flops = flops_a_token(work) * tokens / seconds
        ceiling = matrix_rate(weight_products(work.config.model, *average_tokens(work)), work.compute)
        return {
            **asdict(rung),
            "batch_tokens": work.config.data.batch_tokens,
            "warm_up_seconds": warm_up["seconds"],
            "repetitions": repetitions,
            "target_tokens_per_second": spread([each["target_tokens"] / each["seconds"] for each in repetitions]),
            "memory_gib": memory,
            "flops_per_second": flops,
            "matrix_flops_per_second": ceiling,
            "share_of_matrix_rate": flops / ceiling,
            "graphs": graphs,
            "recompilations": recompilations,
            "idle": None if kernels is None else 1 - kernels * tokens / seconds,
        }


def work_of(rung: Rung, folder: Path) -> Work:
    """Made-up sentences of natural lengths, and the model that learns from them."""
    shape = SMOKE_SHAPE if rung.smoke else {"preset": rung.preset}
    training = {"device": rung.device, "precision": rung.precision, "compile": rung.compiled}
    settings = Settings()
    model = {**shape, "dropout": DROPOUT, "attention_dropout": DROPOUT, "activation_dropout": 0.0}  # as in Marian
    settings.add({"model": model, "training": training}, "benchmark")
    if rung.smoke:
        settings.add({"data": {"batch_tokens": 200}}, "benchmark")
    request = TrainBench(
        settings=settings,
        vocabulary=100 if rung.smoke else VOCABULARY,
        updates=updates_of(rung),
        repetitions=REPETITIONS + 1,
    )
    return made_up_work(request, folder)


def updates_of(rung: Rung) -> int:
    """Of a repetition."""
    return 2 if rung.smoke else 10


def training_of(rung: Rung, work: Work) -> Iterator[dict[str, Any]]:
    """Train without end; an item for each repetition."""
    job = Job(
        engine="hf-compiled" if rung.engine == "hf" and rung.compiled else rung.engine,
        precision=rung.precision,
        run="",
        preset=rung.preset,
        batch_tokens=work.config.data.batch_tokens,
        updates=updates_of(rung),
        device=rung.device,
        threads=torch.get_num_threads(),
    )
    return mt_training(job, work) if rung.engine == "mt" else peer_training(job, work)


def kernel_seconds_a_token(training: Iterator[dict[str, Any]]) -> float | None:
    """What kernels of the GPU take together in a repetition, for a target token; None without any."""
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        repetition = next(training)
    on_gpu = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    kernels = [event for event in on_gpu if not event.is_user_annotation]  # and not, say, all of a step as one
    microseconds = sum(event.self_device_time_total for event in kernels)
    return microseconds / 1e6 / repetition["target_tokens"] if kernels else None


def flops_a_token(work: Work) -> float:
    """Floating-point operations of training for a target token, padding not counted."""
    source, target = work.corpus.source.lengths, work.corpus.target.lengths
    return work.config.training.passes * training_flops(work.config.model, source, target) / int(target.sum())


def average_tokens(work: Work) -> tuple[int, int]:
    """Source and target tokens of an update."""
    target = work.config.data.batch_tokens
    return round(target * work.corpus.source.lengths.sum() / work.corpus.target.lengths.sum()), target


def as_row(result: dict[str, Any]) -> str:
    speed, idle = result["target_tokens_per_second"], result["idle"]
    name = Rung(**{key: result[key] for key in Rung.__dataclass_fields__}).name
    return (
        f"{name:<24} {speed['median']:>10,.0f} {'({lowest:,.0f}-{highest:,.0f})'.format(**speed):>21}"
        f" {result['memory_gib']:>8.1f} {result['share_of_matrix_rate']:>9.0%}"
        f" {'' if idle is None else f'{idle:.0%}':>6} {result['recompilations']:>10}"
    )


def table(record: dict[str, Any]) -> str:
    """The results in a few columns, and what is missing from them."""
    head = f"{'':<24} {'target tok/s (range)':>32} {'GiB':>8} {'products':>9} {'idle':>6} {'recompiled':>10}"
    run = record["run"]
    rows = [f"tests: {record['tests']}", f"mt train: {run['steps']} steps, exit code {run['code']}"]
    rows += [f"  {json.dumps(each)}" for each in run["log"] if each["kind"] == "event"]
    rows += [head, *map(as_row, record["results"])]
    return "\n".join([*rows, *missing(record)])


def main() -> None:
    options = arguments()
    if options.rung:
        print(json.dumps(measure(Rung(**options.rung))))
        return
    choose(options.device, "auto", 0, training=True)  # says where there is no CUDA
    record = circumstances(PACKAGES) | {"what": "train-gpu", "vocabulary": VOCABULARY, "dropout": DROPOUT}
    record |= measure_all(options)
    path = options.output / f"train-gpu-{options.machine or machine_name(options.device)}.json"
    write_result(path, record, table(record))


if __name__ == "__main__":
    try:
        main()
    except MTError as error:
        sys.exit(f"error: {error}")
