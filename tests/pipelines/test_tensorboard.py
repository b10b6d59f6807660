"""What `training.tensorboard` writes, read back as TensorBoard reads it."""

import json
import sys

import pytest

from mt.errors import ExitCode

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


def test_without_tensorboard_training_does_not_begin(train, tmp_path, monkeypatch):
    for module in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    outcome = train(tmp_path / "run", *ON)
    assert outcome.code == ExitCode.USAGE
    assert outcome.err == (
        "error: training.tensorboard is true, and TensorBoard is not installed\n"
        "hint:  pip install 'mt-translate[tensorboard]', or --set training.tensorboard=false\n"
    )
    assert not (tmp_path / "run").exists()
