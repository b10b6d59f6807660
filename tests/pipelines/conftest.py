"""Made-up corpora, tiny runs trained on them, and `mt` as a function: what the tests of whole commands share.

The task is to say number words in reverse order.  A run of forty steps has not learned it and need not: these tests
ask what commands do, `test_learning.py` whether models learn.
"""

import io
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mt import cli

ROOT = Path(__file__).parents[2]
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
TINY = [
    "--vocab-size", "300", "--threads", "1", "--precision", "fp32", "--device", "cpu",
    "--set", "model.width=32", "--set", "model.heads=2", "--set", "model.feed_forward=64",
    "--set", "model.encoder_layers=1", "--set", "model.decoder_layers=1", "--set", "data.batch_tokens=200",
    "--set", "optimizer.warmup_steps=8", "--set", "optimizer.peak_learning_rate=0.003",
    "--set", "training.noise_rate=0",  # so small a vocabulary has no room for it
    "--set", "training.log_every_steps=5",
    "--set", "training.validate_every_steps=10", "--set", "training.checkpoint_every_steps=10",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def run_here(*arguments: object, stdin: bytes = b"", with_cuda: bool = False) -> Outcome:
    """`mt ARGUMENTS` in this process, error boundary included; afterwards the process is as it was.

    It sees a CUDA device only when told, so that what these tests compare is the same on every machine.
    """
    root, own = logging.getLogger(), logging.getLogger("mt")
    handlers, level, own_level, threads = root.handlers[:], root.level, own.level, torch.get_num_threads()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root.handlers = []
    with (
        tempfile.TemporaryFile() as read,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="", errors="backslashreplace") as err,  # as Python's own
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["mt", *map(str, arguments)])
        read.write(stdin)
        read.seek(0)
        patch.setattr(sys, "stdin", io.TextIOWrapper(read))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(cli.runs, "STARTED", time.monotonic())
        if not with_cuda:
            patch.setattr(torch.cuda, "is_available", lambda: False)
        for name, value in cli.STATE.items():
            patch.setitem(cli.STATE, name, value)  # to be put back
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            root.handlers = handlers
            root.setLevel(level)
            own.setLevel(own_level)
            torch.set_num_threads(threads)
            for number, handler in signals.items():
                signal.signal(number, handler)
        for stream in (out, err):
            stream.flush()
            stream.seek(0)
        return Outcome(int(ended.value.code or 0), out.read(), err.read())


@pytest.fixture(scope="session")
def mt():
    """`mt("info", run)` runs a command and returns its `Outcome`."""
    return run_here


@pytest.fixture
def start_mt():
    """Starts `mt ARGUMENTS` as a process of its own, with pipes; it does not outlive the test."""
    processes = []

    def start(*arguments: object, **options) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "mt", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        processes.append(subprocess.Popen(command, env=environment, **pipes | options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream and not stream.closed:
                stream.close()


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="session")
def tiny_flags():
    """What makes a run tiny, as flags of `mt train`."""
    return TINY


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with train, valid and test in `en` (number words) and `de` (the same in reverse order)."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(1)
    sentences: dict[str, None] = {}
    while len(sentences) < 340:
        sentences[" ".join(generator.choices(WORDS, k=generator.randint(3, 7)))] = None
    lines = list(sentences)
    for name, part in {"train": lines[:300], "valid": lines[300:320], "test": lines[320:]}.items():
        write_lines(folder / f"{name}.en", part)
        write_lines(folder / f"{name}.de", [" ".join(reversed(line.split())) for line in part])
    return folder


@pytest.fixture(scope="session")
def train(corpus):
    """Trains a tiny run into a folder: `train(output, "--seed", 2)`; forty steps when nothing else is said."""

    def train_tiny(output: Path, *extra: object, steps: int | None = 40) -> Outcome:
        limit = ["--max-steps", steps] if steps else []
        text = ["--train", corpus / "train.en", corpus / "train.de"]
        return run_here("train", *text, "--output", output, *TINY, *limit, *extra)

    return train_tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train):
    """A finished run, to look at only."""
    run = tmp_path_factory.mktemp("trained") / "run"
    outcome = train(run)
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture(scope="session")
def other(tmp_path_factory, train, trained):
    """A finished run with the tokenizer of `trained` and another seed, to look at only."""
    run = tmp_path_factory.mktemp("other") / "run"
    outcome = train(run, "--seed", 2, "--tokenizer", trained / "tokenizer.model")
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
