"""One of several processes dies or hangs: the others end and name it; training goes on from its last checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest

from mt.errors import ExitCode
from mt.training.checkpoint import Checkpoints
from tests.faults.test_kill import KILLS, SEED, SETTINGS, log_of, sessions

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]


@pytest.fixture
def start(tmp_path):
    """Starts two processes that train RUN; what they say goes to RUN.err."""
    lines = [" ".join(words) for words in permutations(("ba", "deki", "lomu", "na", "resi", "topa"))]
    (tmp_path / "train.en").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "train.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    flags = ["--train", str(tmp_path / "train.en"), str(tmp_path / "train.de"), "--vocab-size", "300"]
    flags += ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
    settings = SETTINGS | {"model.dropout": 0.0, "optimizer.schedule": "constant"}
    flags += [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    processes: list[subprocess.Popen] = []

    def start_training(run: Path, *extra: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [*(launcher or (sys.executable,)), "-m", "mt", "train", *flags, "--output", str(run), *extra]
        with open(run.with_suffix(".err"), "wb") as stream:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stream))
        return processes[-1]

    yield start_training
    for process in processes:
        process.kill()
        process.wait()


def messages_of(run: Path) -> str:
    return run.with_suffix(".err").read_text()


def wait_until(condition, run: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"too slow:\n{messages_of(run)}"
        time.sleep(0.01)


def process_of(rank: int, run: Path) -> int:
    """The process that trains a run as this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process has rank {rank}")


def losses(run: Path) -> dict[int, float]:
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def trains(run: Path, step: int):
    return lambda: step in Checkpoints(run).steps()


def test_ranks_killed_together_again_and_again_end_as_ranks_that_were_not(start, tmp_path):
    """As when a machine loses its power; bit for bit, for two numbers have but one sum."""
    together = ("--devices", "0,1", "--max-steps", "100")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, *together).wait(PATIENCE_SECONDS) == 0, messages_of(whole)
    generator = random.Random(SEED)
    for step in sorted(generator.sample(range(1, 90), max(2, KILLS // 2))):
        count = sessions(killed) + 1
        launcher = start(killed, *together)
        wait_until(lambda count=count: sessions(killed) == count, killed)
        wait_until(lambda step=step: log_of(killed)[-1]["step"] >= step, killed)
        time.sleep(generator.uniform(0, 0.02))
        for process in (launcher.pid, process_of(0, killed), process_of(1, killed)):
            os.kill(process, signal.SIGKILL)
        launcher.wait()
    assert start(killed, *together).wait(PATIENCE_SECONDS) == 0, messages_of(killed)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (Checkpoints(run).path(100) / name for run in (killed, whole))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.skipif(sys.platform != "linux", reason="a process does not learn of its parent's end")
def test_ranks_end_with_the_command_that_started_them_however_it_ends(start, tmp_path):
    run = tmp_path / "run"
    launcher = start(run, "--devices", "0,1", "--max-steps", "100000")
    wait_until(lambda: sessions(run) == 1 and log_of(run)[-1]["step"] >= 5, run)
    ranks = [process_of(rank, run) for rank in (0, 1)]
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(map(alive, ranks)), run)
    assert start(run, "--max-steps", str(log_of(run)[-1]["step"] + 5)).wait(PATIENCE_SECONDS) == 0, messages_of(run)


def test_ranks_started_under_nohup_outlive_their_terminal(start, tmp_path):
    run = tmp_path / "run"
    launcher = start(run, "--devices", "0,1", "--max-steps", "100000", launcher=("nohup", sys.executable))
    wait_until(trains(run, 10), run)
    for process in (launcher.pid, process_of(0, run), process_of(1, run)):
        os.kill(process, signal.SIGHUP)
    reached = Checkpoints(run).steps()[-1]
    wait_until(trains(run, reached + 20), run)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(PATIENCE_SECONDS) == ExitCode.INTERRUPTED, messages_of(run)


def alive(process: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_rank_that_hangs_or_is_killed_ends_the_job_with_its_name_and_the_run_goes_on(start, tmp_path):
    run, together = tmp_path / "run", ("--devices", "0,1", "--max-steps", "100000")

    first = start(run, *together, "--set", "training.timeout_seconds=3")
    wait_until(trains(run, 20), run)
    hanging = process_of(1, run)
    os.kill(hanging, signal.SIGSTOP)
    wait_until(lambda: "rank 1 of 2 does not answer" in messages_of(run), run)
    os.kill(hanging, signal.SIGCONT)
    assert first.wait(PATIENCE_SECONDS) == ExitCode.DEVICE

    reached = Checkpoints(run).steps()[-1]
    second = start(run, *together)
    wait_until(trains(run, reached + 20), run)
    os.kill(process_of(1, run), signal.SIGKILL)
    assert second.wait(PATIENCE_SECONDS) == ExitCode.DEVICE
    assert "rank 1 of 2" in messages_of(run)

    steps = Checkpoints(run).steps()[-1] + 10
    assert start(run, "--max-steps", str(steps)).wait(PATIENCE_SECONDS) == 0
    alone = tmp_path / "alone"
    assert start(alone, "--max-steps", str(steps)).wait(PATIENCE_SECONDS) == 0
    assert losses(run) == pytest.approx(losses(alone), abs=1e-4)


def test_torchrun_starts_anew_when_a_rank_is_killed_and_nothing_is_deleted_again(start, tmp_path):
    run = tmp_path / "run"
    refused = start(run, "--overwrite", "--max-steps", "150", launcher=tuple(TORCHRUN))
    assert refused.wait(PATIENCE_SECONDS) != 0
    assert "--overwrite would delete the run each time" in messages_of(run)
    process = start(run, "--max-steps", "150", launcher=tuple(TORCHRUN))
    wait_until(trains(run, 20), run)
    os.kill(process_of(1, run), signal.SIGKILL)
    assert process.wait(PATIENCE_SECONDS) == 0, messages_of(run)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    resumed = [record["step"] for record in records if record.get("event") == "resumed"]
    assert len(resumed) == 1
    assert resumed[0] >= 20
    assert Checkpoints(run).steps()[-1] == 150
