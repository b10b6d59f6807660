"""Which weights a finished run keeps: of a model of one weight, whose score is how near that is to a wanted one."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mt.decoding.search import SearchConfig
from mt.decoding.translator import Translator
from mt.pipelines.ranks import ALONE
from mt.pipelines.run_folder import RunFolder, load_model
from mt.pipelines.validation import choose_length_penalty, choose_weights, closing_validations, evenly, judged
from mt.training.checkpoint import Checkpoints, Learned, load_tensors, weights
from mt.training.config import ValidationConfig
from mt.training.moving_average import MovingAverage


@pytest.fixture
def choose(tmp_path):
    """Chooses after checkpoints at 0, 2 and 4, the moving average at 9; returns the weight kept and the log."""

    def choose(wanted: float, *, steps=(1, 2, 3), metric: str = "bleu", moving: bool = True, published=None):
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
            model=model, learned=learned, checkpoints=checkpoints, validation_config=validation, validate=validate,
            log=records.append, save=lambda: None,
            progress=SimpleNamespace(best=sorted(best, reverse=True), published=published),
        )  # fmt: skip
        run = RunFolder(tmp_path)
        choose_weights(trainer, run, ALONE)
        return load_tensors(run.model)["weight"].item() if run.model.is_file() else None, records

    return choose


def test_sentences_that_are_translated_come_from_all_over_the_text():
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(4001, 2000)[-1] == 3998


def test_validation_translates_as_many_sentences_with_as_many_beams_as_it_is_told(train, corpus, monkeypatch, tmp_path):
    searches, translate = [], Translator.translate

    def watched(self, lines, **more):
        searches.append((self.config.beam, len(lines)))
        return translate(self, lines, **more)

    monkeypatch.setattr(Translator, "translate", watched)
    said = {"max_sentences": 8, "beam": 2, "samples": 3, "tune_length_penalty": "false"}
    flags = [word for key, value in said.items() for word in ("--set", f"validation.{key}={value}")]
    outcome = train(tmp_path / "run", "--valid", corpus / "valid.en", corpus / "valid.de", *flags, steps=10)
    assert "each validation translates 8 of the 20 validation pairs, evenly spaced" in outcome.err
    assert searches == [(2, 8)]
    sources = (corpus / "valid.en").read_text().splitlines()
    shown = re.findall("^  source      (.*)", (tmp_path / "run" / "samples.txt").read_text(), re.MULTILINE)
    assert shown == [sources[i] for i in (0, 2, 5)]


def test_weights_that_may_be_kept_are_judged_without_dropout():
    model, modes = nn.Linear(1, 1, bias=False).train(), []
    trainer = SimpleNamespace(
        model=model,
        validation_config=ValidationConfig(patience=0),
        validate=lambda: modes.append(model.training) or {"bleu": 1.0},
    )
    assert judged(trainer, "some", {"weight": torch.ones(1, 1)}, {"event": "averaged"}).score == 1.0
    assert (modes, model.weight.item()) == ([False], 1.0)


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


def test_nothing_is_kept_that_is_worse_than_what_was_kept_before(choose, caplog):
    caplog.set_level(logging.INFO)
    weight, records = choose(2.5, published=49.6)
    assert (weight, [record["chosen"] for record in records]) == (None, [False, False])
    assert caplog.messages[-1].endswith("what was kept before stays: it had 49.60")
    assert choose(2.5, published=49.5)[0] == 2.0


def test_without_a_moving_average_and_with_one_checkpoint_there_is_nothing_to_try(choose, caplog):
    caplog.set_level(logging.INFO)
    assert choose(8.0, steps=(2,), moving=False) == (2.0, [])
    assert caplog.messages == []
    weight, records = choose(8.0, moving=False)
    assert weight == 4.0
    assert [record["event"] for record in records] == ["averaged"]


@pytest.mark.parametrize(
    ("ema_decay", "tuned", "validations"), [(0.0, False, 2.5), (0.9, False, 3.5), (0.0, True, 7.5)]
)
def test_time_is_kept_for_all_that_comes_after_the_last_update(ema_decay, tuned, validations):
    training, validation = SimpleNamespace(ema_decay=ema_decay), SimpleNamespace(tune_length_penalty=tuned)
    assert closing_validations(SimpleNamespace(training=training, validation=validation)) == validations


@pytest.mark.parametrize(
    ("metric", "chosen"),
    [
        pytest.param("bleu", 1.4, id="bleu"),
        pytest.param("chrf", 2.0, id="chrf"),
        pytest.param("loss", 1.4, id="the loss of references says nothing of penalties"),
    ],
)
def test_a_length_penalty_under_which_translations_score_best_or_nearly_is_written_down(run, metric, chosen):
    """Of those about as good the nearest to what was there before: 1.4 has nearly as much BLEU as 0.4."""
    scores = {0.4: (31.1, 50.0), 1.0: (30.0, 51.0), 1.4: (31.0, 52.0), 2.0: (29.0, 53.0)}
    validation = SimpleNamespace(
        prepared=SimpleNamespace(decoding=SearchConfig(beam=7)),
        scores_by_length_penalty=lambda metric: {at: both[metric == "chrf"] for at, both in scores.items()},
    )
    model, records = load_model(run).model.train(), []
    trainer = SimpleNamespace(
        model=model, validation_config=ValidationConfig(patience=0, metric=metric), log=records.append
    )
    choose_length_penalty(trainer, validation, RunFolder(run), ALONE)
    assert load_model(run).decoding.length_penalty == chosen
    assert not model.training
    (record,) = records
    assert (record["length_penalty"], record["before"], record["beam"]) == (chosen, 1.0, 7)
    assert (record["score"], record["score_before"]) == ((53.0, 51.0) if metric == "chrf" else (31.0, 30.0))


def test_for_little_gain_the_length_penalty_stays(run):
    validation = SimpleNamespace(
        prepared=SimpleNamespace(decoding=SearchConfig()),
        scores_by_length_penalty=lambda metric: {0.8: 30.0, 1.0: 31.0, 1.8: 31.15},
    )
    trainer = SimpleNamespace(
        model=load_model(run).model, validation_config=ValidationConfig(patience=0), log=lambda _: None
    )
    choose_length_penalty(trainer, validation, RunFolder(run), ALONE)
    assert load_model(run).decoding.length_penalty == 1.0


def test_a_search_with_the_chosen_length_penalty_scores_what_the_log_says(train, mt, corpus, tmp_path):
    run, text = tmp_path / "run", {"--source": corpus / "valid.en", "--reference": corpus / "valid.de"}
    outcome = train(run, "--valid", *text.values(), "--set", "validation.metric=chrf")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (record,) = [record for record in log if record.get("event") == "length_penalty"]
    chosen = f"length penalty {record['length_penalty']:g} is chosen: with beam 5 chrf {record['score']:.2f}"
    assert chosen in outcome.err
    flags = [word for pair in text.items() for word in pair]
    for more, expected in (([], record["score"]), (["--length-penalty", 1], record["score_before"])):
        evaluated = mt("evaluate", "--model", run, *flags, "--format", "json", *more)
        assert json.loads(evaluated.out)["metrics"][1]["score"] == pytest.approx(expected, abs=1e-4)


def test_the_length_penalty_is_left_alone_when_asked(train, tmp_path):
    outcome = train(tmp_path / "run", "--set", "validation.tune_length_penalty=false")
    assert "length penalty" not in outcome.err
    assert load_model(tmp_path / "run").decoding.length_penalty == 1.0
