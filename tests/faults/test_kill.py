"""Kill -9 at random moments: run again until it ends, the run ends as if nothing had happened.

Four kills in the suite; `MT_KILLS=20 pytest tests/faults` gives the long form, `MT_KILL_SEED=2` other moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mt.corpus.tokenizer import Tokenizer
from mt.training.checkpoint import Checkpoints, load_tensors

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MT_KILLS", "4"))
SEED = int(os.environ.get("MT_KILL_SEED", "1"))
STEPS = 120
INTERVAL = 10  # steps between checkpoints
PATIENCE_SECONDS = 120
SETTINGS = {
    "model.width": 32,
    "model.heads": 2,
    "model.feed_forward": 64,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "data.batch_tokens": 200,
    "optimizer.warmup_steps": 8,
    "optimizer.peak_learning_rate": 0.003,
    "training.log_every_steps": 1,
    "training.validate_every_steps": 2 * INTERVAL,
    "training.checkpoint_every_steps": INTERVAL,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the training of a run in a process group of its own; what it says goes to RUN.err."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(1)
    words = [f"{first}{second}" for first in ("ba", "de", "ki", "lo", "mu") for second in ("na", "re", "si", "to")]
    lines = list({" ".join(generator.choices(words, k=generator.randint(3, 9))): None for _ in range(2_000)})
    (folder / "train.en").write_text("".join(f"{line}\n" for line in lines))
    (folder / "train.de").write_text("".join(f"{' '.join(reversed(line.split()))}\n" for line in lines))
    flags = ["--train", str(folder / "train.en"), str(folder / "train.de"), "--vocab-size", "310"]
    flags += ["--max-steps", str(STEPS), "--threads", "1", "--precision", "fp32", "--device", "cpu"]
    flags += [flag for name, value in SETTINGS.items() for flag in ("--set", f"{name}={value}")]
    processes: list[subprocess.Popen] = []

    def start_training(run: Path) -> subprocess.Popen:
        with open(messages_of(run), "wb") as stream:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mt", "train", *flags, "--output", str(run)],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    start_new_session=True,
                )
            )
        return processes[-1]

    yield start_training
    for process in processes:
        process.kill()
        process.wait()


def messages_of(run: Path) -> Path:
    return run.with_suffix(".err")


def wait_until(condition, process: subprocess.Popen, run: Path) -> None:
    """Until the condition holds; fails when the process ends first, or never gets there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, f"ended too early:\n{messages_of(run).read_text()}"
        assert time.monotonic() < deadline, f"too slow:\n{messages_of(run).read_text()}"
        time.sleep(0.002)


def wait_for_end(process: subprocess.Popen, run: Path) -> None:
    assert process.wait(PATIENCE_SECONDS) == 0, messages_of(run).read_text()


def preparing(run: Path) -> bool:
    """Whether the text has been checked, so that tokenizer and encoding come next."""
    return messages_of(run).stat().st_size > 0


def log_of(run: Path) -> list[dict]:
    """The records whose lines are complete: it may be read while it is written."""
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


def sessions(run: Path) -> int:
    """How often training has begun or gone on."""
    return sum(record.get("event") in ("started", "resumed") for record in log_of(run))


def kill(process: subprocess.Popen) -> None:
    """Kill the process, and only that: nothing that it may have started is left to write."""
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def assert_whole(run: Path) -> None:
    """Whatever stands in the folder under its own name is complete."""
    checkpoints = Checkpoints(run)
    for path in [run / "model.safetensors", *(run / "checkpoints").glob("step-*/*.safetensors")]:
        if path.is_file():
            load_tensors(path)
    for step in checkpoints.steps():
        assert checkpoints.state(step)["step"] == step
    if (run / "tokenizer.model").is_file():
        Tokenizer.load(run / "tokenizer.model")


def repeated_steps(records: list[dict]) -> list[int]:
    """How many steps each session did again that an earlier one had logged."""
    repeated, reached = [], 0
    for record in records:
        if record.get("event") in ("started", "resumed"):
            repeated.append(reached - record["step"])
        reached = max(reached, record["step"])
    return repeated


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    wait_until(lambda: preparing(whole), process, whole)
    began = time.monotonic()
    wait_until(lambda: sessions(whole), process, whole)
    preparation_seconds = time.monotonic() - began
    wait_for_end(process, whole)

    generator = random.Random(SEED)
    kills = 0
    while kills <= KILLS // 3 and not sessions(killed):
        process = start(killed)
        wait_until(lambda: preparing(killed), process, killed)
        moment = time.monotonic() + generator.uniform(0, preparation_seconds)
        wait_until(lambda moment=moment: time.monotonic() >= moment or sessions(killed), process, killed)
        kill(process)
        assert_whole(killed)
        kills += 1
    for step in sorted(generator.sample(range(1, STEPS - INTERVAL), KILLS - kills)):
        count = sessions(killed) + 1
        process = start(killed)
        wait_until(lambda count=count: sessions(killed) == count, process, killed)
        wait_until(lambda step=step: log_of(killed)[-1]["step"] >= step, process, killed)
        time.sleep(generator.uniform(0, 0.02))
        kill(process)
        assert_whole(killed)
    wait_for_end(start(killed), killed)

    assert Checkpoints(killed).steps()[-1] == Checkpoints(whole).steps()[-1] == STEPS
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (Checkpoints(run).path(STEPS) / name for run in (killed, whole))
        assert one.read_bytes() == other.read_bytes(), name
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (killed / "run.toml").read_bytes() == (whole / "run.toml").read_bytes()

    repeated = repeated_steps(log_of(killed))
    assert len(repeated) > KILLS - kills
    assert all(0 <= steps <= INTERVAL for steps in repeated)
    assert not [path for path in killed.rglob("*") if "partial" in path.name or "earlier" in path.name]


def test_repeated_steps_are_counted_from_the_log():
    steps = [("started", 0), (None, 3), (None, 14), ("resumed", 10), (None, 12), ("resumed", 10), (None, 20)]
    records = [{"step": step, "event": event} if event else {"step": step} for event, step in steps]
    assert repeated_steps(records) == [0, 4, 4]


def test_a_tokenizer_whose_training_is_killed_is_absent_or_whole(tmp_path):
    generator = random.Random(SEED)
    text = tmp_path / "text"
    text.write_text("".join(f"{generator.getrandbits(64):x} {generator.getrandbits(32):x}\n" for _ in range(3_000)))
    command = [sys.executable, "-m", "mt", "tokenizer", "train", str(text), "--vocab-size", "2000", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - began
    for _ in range(max(2, KILLS // 4)):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.3, 0.9) * seconds)
        process.kill()
        process.wait()
        if (tmp_path / "killed.model").exists():
            assert (tmp_path / "killed.model").read_bytes() == (tmp_path / "whole.model").read_bytes()
    subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=True, capture_output=True)
    assert (tmp_path / "killed.model").read_bytes() == (tmp_path / "whole.model").read_bytes()
