"""Measuring on a CUDA machine in one command: parts with a limit of time each, so that every one has its turn."""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from measured import ROOT

SECONDS, PART_SECONDS = 520, 90  # of the whole, and the most of a part, after which it is ended
LEAST_SECONDS = 15  # with which a part is begun
SMOKE_SHAPE = {"width": 16, "heads": 2, "feed_forward": 24, "encoder_layers": 1, "decoder_layers": 1}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that measures parts."""
    parser.add_argument("--output", type=Path, help="folder of the result, named after the machine")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--part-seconds", type=float, default=PART_SECONDS, help="the most for one part")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape: whether all of it runs, not how fast")
    parser.add_argument("--machine", default="", help="name of this machine in the file's name")


class Parts:
    """Parts that are run one after another as processes; those that failed or were not reached are named."""

    def __init__(self, seconds: float, most: float) -> None:
        """Seconds for all of them, and the most for one."""
        self.until, self.most = time.monotonic() + seconds, most
        self.failed: dict[str, str] = {}
        self.not_reached: list[str] = []

    def seconds(self) -> float:
        """That the next part may take."""
        return max(0.0, min(self.most, self.until - time.monotonic()))

    def finished(self, *command: object) -> "subprocess.CompletedProcess[str] | None":
        """Run Python with these arguments in the root of the repository; None where the time was too short.

        All processes that it started are killed when it ends: they would run beside the next part, and hold memory.
        """
        words, seconds = [sys.executable, *map(str, command)], self.seconds()
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True)
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            print((error.stdout or b"").decode(errors="replace"), file=sys.stderr)  # how far it came
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return subprocess.CompletedProcess(words, process.returncode, printed)

    def run(self, name: str, *command: object) -> str | None:
        """What a part prints that is run by Python with these arguments; None where it did not come to its end."""
        seconds = self.seconds()
        if seconds < LEAST_SECONDS:
            self.not_reached.append(name)
        elif (answer := self.finished(*command)) is None:
            self.not_reached.append(f"{name} (in {seconds:.0f} s)")
        elif answer.returncode:
            self.failed[name] = f"ended with code {answer.returncode}"
        else:
            return answer.stdout
        return None

    def tests(self, *chosen: str) -> str:
        """What pytest says last of these tests."""
        answer = self.finished("-m", "pytest", *chosen)
        if answer is None:
            return "not done in time"
        print(answer.stdout, file=sys.stderr)
        return answer.stdout.strip().rpartition("\n")[2]


def missing(record: dict[str, Any]) -> list[str]:
    """A line for each part that a record has no result of."""
    failed = [f"failed: {name}: {why}" for name, why in record["failed"].items()]
    return failed + [f"not reached: {name}" for name in record["not_reached"]]
