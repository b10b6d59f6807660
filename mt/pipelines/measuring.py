"""What the commands of `mt bench` share: how long a call takes, memory, spreads, names."""

import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from mt.device import Compute

CALL_SECONDS = 0.15  # for which a call is repeated to learn what it takes
COPIED_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}  # more than fits into a cache
SAMPLE_SECONDS = 0.05  # between looks at memory


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of repetitions, and the lowest and highest of them."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def seconds_of(call: Callable[[], object], compute: Compute) -> float:
    """The time of a call, repeated for a while; the first ones are not counted."""
    at_a_time = 10 if compute.on_cuda else 1  # a GPU is not asked after each
    for _ in range(2):
        call()
    compute.synchronize()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < CALL_SECONDS:
        for _ in range(at_a_time):
            call()
        calls += at_a_time
        compute.synchronize()
    return (time.perf_counter() - started) / calls


def device_name(compute: Compute) -> str:
    return torch.cuda.get_device_name(compute.device) if compute.on_cuda else "cpu"


def copy_rate(compute: Compute) -> float:
    """Bytes a second that a copy moves, those read and those written."""
    size = COPIED_BYTES[compute.device.type]
    source = torch.zeros(size, dtype=torch.uint8, device=compute.device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), compute)


class PeakMemory:
    """A block in which `gib` learns the most memory held: on the GPU, or resident in this process and its children.

    What processes share is counted once. Where the system does not tell, `gib` is this process's own.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.gib = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self.compute.forget_peak_memory()
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()
        if self.compute.on_cuda or not self.gib:
            self.gib = self.compute.memory_gib()

    def sample(self) -> None:
        with suppress(FileNotFoundError):
            while True:
                self.gib = max(self.gib, resident_gib())
                if self.ended.wait(SAMPLE_SECONDS):
                    return


def resident_gib() -> float:
    """The memory of this process and its children, each page divided by the number of processes that share it.

    Raises `FileNotFoundError` where there is no /proc, as it is only on Linux.
    """
    kilobytes = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        with suppress(FileNotFoundError, ProcessLookupError) if process != "self" else nullcontext():
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            kilobytes += int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
    return kilobytes / 2**20
