"""What `training.tensorboard` writes, read back as TensorBoard reads it."""

import json
import sys

import pytest

from mt.errors import ExitCode
from mt.pipelines.tensorboard import Board

ON = ["--set", "training.tensorboard=true"]


@pytest.fixture
def shown():
    """The scalars of a folder: their values by tag, as (step, value)."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        board = reader.EventAccumulator(str(folder)).Reload()
        return {tag: [(each.step, each.value) for each in board.Scalars(tag)] for tag in board.Tags()["scalars"]}

    return read


def test_the_numbers_of_the_log_are_shown_over_the_step(train, shown, tmp_path):
    assert train(tmp_path / "run", *ON, steps=10).code == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scalars = shown(tmp_path / "run" / "tensorboard")
    for kind, names in {"train": ("loss", "learning_rate", "target_tokens_per_second"), "valid": ("bleu",)}.items():
        logged = [record for record in records if record["kind"] == kind]
        for name in names:
            assert scalars[f"{kind}/{name}"] == [(r["step"], pytest.approx(r[name])) for r in logged]
    assert {"train/step", "valid/best"}.isdisjoint(scalars)


def test_a_run_that_goes_on_from_an_earlier_step_shows_each_step_once(train, mt, shown, run):
    assert mt("train", "--output", run, "--max-steps", 60, *ON).code == 0  # from 24 on, before the decay
    assert [step for step, _ in shown(run / "tensorboard")["train/loss"]] == [25, 30, 35, 40, 45, 50, 55, 60]
    assert mt("train", "--output", run, "--max-steps", 70).code == 0  # from 36 on
    assert [step for step, _ in shown(run / "tensorboard")["train/loss"]] == [25, 30, 35, 40, 45, 50, 55, 60, 65, 70]
    assert train(run, "--overwrite", steps=1).code == 0
    assert not (run / "tensorboard").exists()


def test_what_is_undone_by_going_back_is_withdrawn(shown, tmp_path):
    board = Board(tmp_path, 0)
    for step, loss in ((10, 6.0), (20, 5.0), (30, 9.0)):
        board({"kind": "train", "step": step, "loss": loss})
    board({"kind": "event", "step": 10, "event": "rolled_back", "from_step": 35, "learning_rate_scale": 0.5})
    board({"kind": "event", "step": 20, "event": "out_of_memory", "micro_batch_tokens": 100})
    board({"kind": "train", "step": 30, "loss": 4.0})
    board.close()
    assert shown(tmp_path) == {"train/loss": [(10, 6.0), (30, 4.0)]}


def test_without_tensorboard_training_does_not_begin(train, tmp_path, monkeypatch):
    for module in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    outcome = train(tmp_path / "run", *ON)
    assert outcome.code == ExitCode.USAGE
    assert outcome.err == (
        "error: training.tensorboard is true, and TensorBoard is not installed\n"
        "hint:  pip install tensorboard, or --set training.tensorboard=false\n"
    )
    assert not (tmp_path / "run").exists()
