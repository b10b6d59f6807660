"""Processes of their own for what is measured, so that memory, libraries and load time are each one's own.

A worker is a script that reads its job as a JSON argument, prints one JSON object when it is ready, and another for
each line that it then reads.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

PAUSE_SECONDS = 0.5  # until the threads of the engine before have stopped waiting for work on the processor
Job = TypeVar("Job")


class Failure(Exception):
    """A worker that has ended too early."""


class Worker(Generic[Job]):
    """A script at work on a job, a dataclass with a field `engine`."""

    def __init__(self, script: str, job: Job) -> None:
        self.job = job
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), json.dumps(asdict(job))],  # type: ignore[call-overload]
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.loaded = self.answer()
        self.answers: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"{self.job} has ended with code {self.process.wait()}")
        return json.loads(line)

    def order(self) -> dict[str, Any]:
        """Have the work done once; returns the answer, which is also kept."""
        assert self.process.stdin is not None
        time.sleep(PAUSE_SECONDS)
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failure(f"{self.job} has ended with code {self.process.wait()}") from error
        self.answers.append(self.answer())
        return self.answers[-1]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def running(script: str, jobs: Sequence[Job]) -> Iterator[list[Worker[Job]]]:
    """Workers made ready one after another, ended with the block."""
    workers: list[Worker[Job]] = []
    try:
        for job in jobs:
            workers.append(Worker(script, job))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def serve(answers: Iterable[dict[str, Any]]) -> None:
    """In a worker: print each answer as a line.  What libraries print must not come between, and goes to stderr."""
    stream = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process lives)
    os.dup2(2, 1)
    for answer in answers:
        print(json.dumps(answer), file=stream, flush=True)


def peak_memory() -> dict[str, int | None]:
    """The most memory that this process and its children have held: resident, and on the GPU where PyTorch manages it.

    What processes share is counted for each of them.
    """
    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {"peak_rss_bytes": sum(peak_resident(process) for process in ("self", *children)), "peak_gpu_bytes": on_gpu}


def peak_resident(process: str) -> int:
    # Not getrusage: its figure begins with that of the process that started this one.
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0
