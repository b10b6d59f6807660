"""Which weights a finished run keeps: of a model of one weight, whose score is how near that is to a wanted one."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mt.pipelines.ranks import ALONE
from mt.pipelines.run_folder import RunFolder
from mt.pipelines.validation import choose_weights
from mt.training.checkpoint import Checkpoints, Learned, load_tensors, weights
from mt.training.config import ValidationConfig
from mt.training.moving_average import MovingAverage


@pytest.fixture
def choose(tmp_path):
    """Chooses after checkpoints at 0, 2 and 4, the moving average at 9; returns the weight kept and the log."""

    def choose(wanted: float, *, steps=(1, 2, 3), metric: str = "bleu", moving: bool = True):
        model = nn.Linear(1, 1, bias=False)
        moving_average = MovingAverage(weights(model), 0.9)
        moving_average.weights["weight"].fill_(9.0)
        learned = Learned(model, torch.optim.SGD(model.parameters()), moving_average if moving else None)
        checkpoints, validation, records = Checkpoints(tmp_path), ValidationConfig(patience=0, metric=metric), []

        def validate():
            far = abs(model.weight.item() - wanted)
            return {"bleu": 50 - far, "chrf": 70 - far, "loss": 1 + far}

        best = []
        for step in steps:
            nn.init.constant_(model.weight, 2.0 * (step - 1))
            checkpoints.save(step, learned, {})
            best.append((validation.score(validate()), step))
        trainer = SimpleNamespace(
            model=model, learned=learned, checkpoints=checkpoints, validation=validation, validate=validate,
            log=records.append, progress=SimpleNamespace(best=sorted(best, reverse=True)),
        )  # fmt: skip
        run = RunFolder(tmp_path)
        choose_weights(trainer, run, ALONE)
        return load_tensors(run.model)["weight"].item(), records

    return choose


@pytest.mark.parametrize("metric", ["bleu", "loss"])
@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        pytest.param(-1.0, 0.0, id="best checkpoint"),
        pytest.param(2.5, 2.0, id="of equals the checkpoint"),
        pytest.param(8.0, 9.0, id="moving average"),
    ],
)
def test_the_weights_with_the_best_score_are_kept(choose, metric, wanted, kept):
    weight, records = choose(wanted, metric=metric)
    assert weight == kept
    assert [(record["event"], record["chosen"]) for record in records] == [
        ("averaged", False),
        ("moving_average", kept == 9.0),
    ]


def test_the_average_of_the_best_is_kept_where_it_is_better(choose, caplog):
    """The mean of 0 and 4 is 2, nearer to 1.9 than either."""
    caplog.set_level(logging.INFO)
    weight, (averaged, moving_average) = choose(1.9, steps=(1, 3))
    assert weight == 2.0
    assert averaged["steps"] == [1, 3]
    assert averaged["bleu"] == pytest.approx(49.9)
    assert averaged["chosen"]
    assert (moving_average["decay"], moving_average["bleu"]) == (0.9, pytest.approx(42.9))
    assert not moving_average["chosen"]
    assert caplog.messages == [
        "bleu on validation: the best checkpoint 48.10, the average of the 2 best 49.90, the moving average 42.90; "
        "the average of the 2 best is kept"
    ]


def test_without_a_moving_average_and_with_one_checkpoint_there_is_nothing_to_try(choose, caplog):
    caplog.set_level(logging.INFO)
    assert choose(8.0, steps=(2,), moving=False) == (2.0, [])
    assert caplog.messages == []
    weight, records = choose(8.0, moving=False)
    assert weight == 4.0
    assert [record["event"] for record in records] == ["averaged"]
