"""The loop on a corpus of random ids: the order of events, what is kept, when it ends, and that nothing depends on how.

No text, no tokenizer, and validations that return what the test says.
"""

import math
import time
from functools import partial
from itertools import cycle, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mt.corpus.batching import Batcher, BatchSampler, Update
from mt.corpus.tokenizer import Specials
from mt.device import Compute
from mt.errors import ConfigError, DeviceError, Interrupted, ModelError
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.training import budget, loop, update
from mt.training.budget import Budget, Clock, Progress
from mt.training.checkpoint import Checkpoints, Learned, load_tensors, weights
from mt.training.config import TrainingConfig, ValidationConfig
from mt.training.consistency import Consistency
from mt.training.loop import Meter, Trainer
from mt.training.moving_average import MovingAverage
from mt.training.optimizer import Decay, OptimizerConfig, make_optimizer
from mt.training.rollback import roll_back
from mt.training.update import DoesNotFit, Outcome, Updater

V = 11
SPECIALS = Specials(pad=0, bos=2, eos=3, unk=1)
CPU = Compute(torch.device("cpu"), "fp32")
FUSED_SGD = partial(torch.optim.SGD, fused=True)


class Side:
    """Sentences of random ids, ended by `</s>`."""

    def __init__(self, lengths: np.ndarray, generator: np.random.Generator) -> None:
        self.lengths = lengths
        self.rows = [np.append(generator.integers(4, V, length - 1), SPECIALS.eos) for length in lengths]

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


class Corpus:
    def __init__(self, size: int = 40) -> None:
        generator = np.random.default_rng(5)
        self.source = Side(generator.integers(2, 9, size), generator)
        self.target = Side(generator.integers(2, 9, size), generator)


def make_trainer(
    folder, *, scores=(1.0,), dropout=0.3, micro_batch_tokens=0, progress=None, optimizer=None, validation=None, **given
) -> Trainer:
    """A trainer on the random corpus; `given` are fields of Trainer, TrainingConfig or OptimizerConfig."""
    torch.manual_seed(1)
    shape = {"width": 8, "heads": 2, "feed_forward": 12, "encoder_layers": 1, "decoder_layers": 1}
    model = Transformer(
        ModelConfig(
            source_vocabulary=V, target_vocabulary=V, share_embeddings=True, max_positions=20, dropout=dropout, **shape
        )
    )
    training = {
        "seed": 1, "device": "cpu", "precision": "fp32", "threads": 1, "compile": False,
        "micro_batch_tokens": micro_batch_tokens,
        "validate_every_steps": 5, "checkpoint_every_steps": 5, "log_every_steps": 1,
        "noise_rate": 0.0, "noise_from_epoch": 0, "consistency": "off", "consistency_from": 0.0,
        "consistency_epochs": 0, "consistency_alpha": 0.0, "cutoff": 0.0, "ema_decay": 0.9,
    }  # fmt: skip
    schedule = {"peak_learning_rate": 0.01, "schedule": "constant", "warmup_steps": 0}
    training |= {key: given.pop(key) for key in list(given) if key in TrainingConfig.__dataclass_fields__}
    schedule |= {key: given.pop(key) for key in list(given) if key in OptimizerConfig.__dataclass_fields__}
    optimizer_config = OptimizerConfig(**schedule)
    corpus = Corpus()
    upcoming = iter(cycle(scores))
    config = TrainingConfig(**training)
    updater = Updater(
        model,
        optimizer(model.parameters()) if optimizer else make_optimizer(model, optimizer_config),
        CPU,
        label_smoothing=config.label_smoothing,
        gradient_clip=optimizer_config.gradient_clip,
    )
    batcher = Batcher(corpus, (SPECIALS, SPECIALS), CPU.device)
    trainer = Trainer(
        updater=updater,
        learned=Learned(model, updater.optimizer, MovingAverage(weights(model), config.ema_decay)),
        updates=partial(batcher.updates, BatchSampler(corpus, batch_tokens=60, seed=1)),
        validate=lambda: {"loss": 1.0, "chrf": 1.0, "bleu": next(upcoming)},
        publish=lambda: None,
        log=lambda record: None,
        checkpoints=Checkpoints(folder),
        config=config,
        optimizer_config=optimizer_config,
        validation_config=validation or ValidationConfig(patience=0),
        budget=Budget(config, optimizer_config, progress or Progress(), Clock(time.monotonic()), 2.5),
        **given,
    )
    return trainer


def events_of(trainer: Trainer) -> list[dict]:
    """What the trainer logs from now on, with its steps."""
    records: list[dict] = []
    trainer.log = lambda record: records.append({"step": trainer.progress.step, **record})
    return records


def after_one_update(folder, **given) -> dict[str, torch.Tensor]:
    """Weights after one step of plain gradient descent, which unlike Adam does not blow up rounding errors."""
    trainer = make_trainer(folder, dropout=0.0, max_steps=1, optimizer=FUSED_SGD, **given)
    trainer.run()
    return weights(trainer.model)


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_an_update_in_parts_is_the_update_at_once(tmp_path, clip):
    rate = {"peak_learning_rate": 1.0, "gradient_clip": clip}
    start = weights(make_trainer(tmp_path / "start").model)
    whole = after_one_update(tmp_path / "whole", **rate)
    for tokens in (1, 17, 30):
        parts = after_one_update(tmp_path / f"parts-{tokens}", micro_batch_tokens=tokens, **rate)
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=0)
    assert any((whole[name] - tensor).abs().max() > 1e-3 for name, tensor in start.items())


def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path):
    start = weights(make_trainer(tmp_path / "start").model)
    clipped = after_one_update(tmp_path / "run", peak_learning_rate=1.0, gradient_clip=0.1)
    moved = torch.cat([(clipped[name] - tensor).flatten() for name, tensor in start.items()])
    assert moved.norm().item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("stop_at", [0, 1, 5, 7, 12])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop_at):
    schedule = {"schedule": "warmup_stable_decay", "warmup_steps": 3, "max_steps": 14, "scores": (1.0, 3.0, 2.0)}
    whole = make_trainer(tmp_path / "whole", **schedule)
    whole.run()

    calls = iter(range(100))
    first = make_trainer(tmp_path / "parts", interrupted=lambda: next(calls) == stop_at, **schedule)
    with pytest.raises(Interrupted, match=f"stopped at step {stop_at}; everything up to here is saved"):
        first.run()
    second = resumed(tmp_path / "parts", **schedule)
    assert second.progress.step == stop_at
    events = events_of(second)
    second.run()

    assert [event["step"] for event in events if event["kind"] == "train"] == list(range(stop_at + 1, 15))
    assert_same_end(whole, second)
    assert (second.progress.epoch, second.progress.position) == (whole.progress.epoch, whole.progress.position)
    assert second.progress.target_tokens == whole.progress.target_tokens
    assert second.progress.decay == whole.progress.decay


def test_another_seed_trains_another_model(tmp_path):
    ends = []
    for seed in (1, 1, 2):
        trainer = make_trainer(tmp_path / str(len(ends)), seed=seed, max_steps=2)
        trainer.run()
        ends.append(weights(trainer.model)["target_embedding.weight"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_patience_ends_training_after_so_many_validations_without_a_gain(tmp_path):
    validation = ValidationConfig(patience=3)
    trainer = make_trainer(tmp_path, scores=(1.0, 3.0, 2.0, 3.0, 2.0, 9.0), validation=validation, keep_best=3)
    published = []
    trainer.publish = lambda: published.append(trainer.progress.step)
    assert trainer.run() == "no gain in 3 validations"
    assert trainer.progress.step == 25
    assert published == [5, 10, 20]  # of equals the latest
    assert trainer.progress.published == 3.0
    assert trainer.progress.best == [(3.0, 20), (3.0, 10), (2.0, 25)]


def test_a_smaller_loss_is_better(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=15, validation=ValidationConfig(patience=0, metric="loss"))
    losses = iter([3.0, 1.0, 2.0])
    trainer.validate = lambda: {"loss": next(losses), "bleu": 0.0, "chrf": 0.0}
    trainer.run()
    assert trainer.progress.best == [(-1.0, 10), (-2.0, 15), (-3.0, 5)]


def test_the_last_the_best_and_the_one_before_the_decay_are_kept(tmp_path):
    trainer = make_trainer(
        tmp_path, schedule="warmup_stable_decay", decay_fraction=0.5, max_steps=60, keep_last=2, keep_best=2,
        scores=(1.0, 9.0, 2.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    reached = []
    save = trainer.save
    trainer.save = lambda: (save(), reached.append(trainer.checkpoints.steps()))
    trainer.run()
    assert trainer.checkpoints.steps() == [10, 20, 30, 55, 60]
    assert max(map(len, reached)) == 5
    assert trainer.checkpoints.state(30)["decay"] is None
    assert trainer.checkpoints.state(55)["decay"] == {"start": 30, "steps": 30}


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        pytest.param({}, "2222222222", id="from the start"),
        pytest.param({"consistency_from": 0.5}, "1111122222", id="from a share of the budget on"),
        pytest.param(
            {"consistency_from": 0.3, "consistency_epochs": 1}, "1112222222", id="after an epoch of 3 updates"
        ),
        pytest.param({"consistency_from": 0.2, "consistency_epochs": 1}, "1111111111", id="never, decided within one"),
        pytest.param({"consistency": "off"}, "1111111111", id="never"),
    ],
)
def test_two_passes_are_made_once_their_time_has_come(tmp_path, monkeypatch, given, passes):
    schedule = {"schedule": "warmup_stable_decay", "max_steps": 10, "decay_fraction": 0.4}
    trainer = make_trainer(tmp_path, **schedule, **{"consistency": "r-drop"} | given)
    events, made, plain = events_of(trainer), [], update.batch_loss
    if trainer.config.consistency != "off":
        trainer.updater.consistency = Consistency(method="r-drop", alpha=5.0, cutoff=0.0)

    def counted(model, batch, smoothing, consistency=None):
        made.append("2" if consistency else "1")
        return plain(model, batch, smoothing, consistency)

    monkeypatch.setattr(update, "batch_loss", counted)
    trainer.run()
    assert "".join(made) == passes
    later = given.get("consistency_from", 0) > 0  # and not from the start
    decided = [event for event in events if event.get("event") == "consistency"]
    assert len(decided) == later
    for event in decided:
        assert event["step"] == 10 * given["consistency_from"]
        assert trainer.progress.consistent == event["begun"] == ("2" in passes)


@pytest.mark.parametrize("epochs", [0, 100])
def test_what_the_clock_has_decided_is_kept_at_once(tmp_path, epochs):
    """Of 53 seconds an update takes three; at 30% of them two passes begin or do not, and later sessions agree."""
    given = {"consistency": "r-drop", "consistency_from": 0.3, "consistency_epochs": epochs}
    progress = Progress(validation_seconds=2.0)
    trainer = make_trainer(tmp_path, max_minutes=1.0, schedule="warmup_stable_decay", progress=progress, **given)
    trainer.updater.consistency = Consistency(method="r-drop", alpha=5.0, cutoff=0.0)
    trainer.budget.clock = SimpleNamespace(elapsed=lambda: 3.0 * progress.step)
    kept, save = {}, trainer.save

    def watched():
        save()
        kept[progress.step] = trainer.checkpoints.state(progress.step)["consistent"]

    trainer.save = watched
    trainer.run()
    assert (kept[6], progress.consistent) == (epochs == 0,) * 2


def test_of_minutes_as_of_steps_a_share_is_used(tmp_path):
    """Of 60 seconds 2.5 validations of 2 and 2 more are kept for the end: 26.5 are half of what is left."""
    trainer = make_trainer(tmp_path, max_minutes=1.0, max_steps=100, progress=Progress(validation_seconds=2.0))
    trainer.budget.clock = SimpleNamespace(elapsed=lambda: 26.5)
    assert trainer.budget.share_used() == 0.5
    trainer.progress.step = 60
    assert trainer.budget.share_used() == 0.6


def test_the_learning_rate_falls_to_zero_with_the_last_step(tmp_path):
    trainer = make_trainer(tmp_path, schedule="warmup_stable_decay", warmup_steps=2, max_steps=10, decay_fraction=0.4)
    events = events_of(trainer)
    assert trainer.run() == "max_steps 10"
    rates = [event["learning_rate"] for event in events if event["kind"] == "train"]
    decaying = [0.01 * (1 - math.sqrt(done / 4)) for done in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.005, *[0.01] * 5, *decaying], abs=1e-12)
    assert [(e["step"], e["steps"]) for e in events if e.get("event") == "decay"] == [(6, 4)]


def test_each_record_says_what_it_is_and_the_loss_is_that_of_the_update(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=5, dropout=0.0)
    with torch.no_grad():
        trainer.model.target_embedding.weight.zero_()
    events = events_of(trainer)
    trainer.run()
    assert [event["kind"] for event in events] == ["train"] * 5 + ["valid"]
    assert events[0]["loss"] == pytest.approx(math.log(V), abs=1e-5)
    assert events[-1] | {"bleu": 1.0, "chrf": 1.0, "loss": 1.0, "best": True} == events[-1]


# Updates that cannot be learned from


def spoil(trainer: Trainer, spoilt) -> None:
    """Put a NaN into the gradient of the steps for which `spoilt(step)` holds."""
    backward = trainer.updater.backward

    def spoiling(parts):
        loss = backward(parts)
        if spoilt(trainer.progress.step + 1):
            next(trainer.model.parameters()).grad[0, 0] = math.nan
        return loss

    trainer.updater.backward = spoiling


def events_called(name: str, events: list[dict]) -> list[dict]:
    return [event for event in events if event.get("event") == name]


def resumed(folder, **given) -> Trainer:
    """A trainer that goes on from the last checkpoint."""
    checkpoints = Checkpoints(folder)
    step = checkpoints.steps()[-1]
    trainer = make_trainer(folder, progress=Progress.of(checkpoints.state(step)), **given)
    checkpoints.load(step, trainer.learned)
    return trainer


def assert_same_end(one: Trainer, other: Trainer) -> None:
    for name in ("model.safetensors", "optimizer.safetensors", "average.safetensors"):
        files = [trainer.checkpoints.path(trainer.progress.step) / name for trainer in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    assert one.progress.guard == other.progress.guard
    assert one.progress.rollbacks == other.progress.rollbacks


def test_an_update_with_a_gradient_that_is_no_number_is_skipped_and_said(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=12, log_every_steps=4)
    spoil(trainer, {3, 6, 7}.__contains__)
    events = events_of(trainer)
    assert trainer.run() == "max_steps 12"
    assert [(event["step"], event["reasons"]) for event in events_called("skipped", events)] == [
        (4, {"gradient not finite": 1}),
        (8, {"gradient not finite": 2}),
    ]
    assert all(tensor.isfinite().all() for tensor in weights(trainer.model).values())
    taken = load_tensors(trainer.checkpoints.path(12) / "optimizer.safetensors")["target_embedding.weight/step"]
    assert taken == 9
    lines = [event for event in events if event["kind"] == "train"]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all(math.isfinite(line["loss"]) and 0 < line["gradient_norm"] < 100 for line in lines)


def test_a_skipped_update_leaves_everything_as_it_was(tmp_path):
    spoilt, clean = (make_trainer(tmp_path / name, max_steps=steps) for name, steps in (("a", 5), ("b", 4)))
    spoil(spoilt, {5}.__contains__)
    spoilt.run()
    clean.run()
    for name, tensor in weights(clean.model).items():
        assert torch.equal(weights(spoilt.model)[name], tensor), name
    for parameter, other in zip(spoilt.model.parameters(), clean.model.parameters(), strict=True):
        for key, value in clean.updater.optimizer.state[other].items():
            assert torch.equal(spoilt.updater.optimizer.state[parameter][key], value), key


def test_the_loss_and_the_norm_of_an_interval_are_those_of_the_updates_that_counted(tmp_path):
    meter = Meter(CPU.device)
    for loss, norm, fault, tokens in [
        (20.0, 1.0, None, 10),
        (math.nan, 7.0, 0, 5),
        (90.0, 2.0, None, 30),
        (1e9, 9.0, 2, 4),
    ]:
        faults = torch.zeros(3)
        if fault is not None:
            faults[fault] = 1
        meter.add(Outcome(torch.tensor(loss), torch.tensor(norm), faults), tokens)
    trainer = make_trainer(tmp_path, progress=Progress(step=4))
    trainer.meter = meter
    events = events_of(trainer)
    trainer.log_interval()
    skipped, line = events
    assert skipped["reasons"] == {"loss not finite": 1, "loss spike": 1}
    assert (line["loss"], line["gradient_norm"]) == (110 / 40, 1.5)


@pytest.mark.parametrize("stop_at", [4, 6, 9, 14])
def test_a_run_with_skipped_updates_ends_as_if_uninterrupted(tmp_path, stop_at):
    given = {"max_steps": 16, "log_every_steps": 4}
    spoilt = {3, 5, 6, 7, 14}.__contains__
    whole = make_trainer(tmp_path / "whole", **given)
    spoil(whole, spoilt)
    whole.run()
    calls = iter(range(100))
    first = make_trainer(tmp_path / "parts", interrupted=lambda: next(calls) == stop_at, **given)
    spoil(first, spoilt)
    with pytest.raises(Interrupted):
        first.run()
    second = resumed(tmp_path / "parts", **given)
    spoil(second, spoilt)
    second.run()
    assert_same_end(whole, second)


# Updates are spoilt from step 23 on, as long as the learning rate has not been halved so often.  The line of the log at
# step 45 is the first to see 20 in a row; checkpoints 20 and, of the best, 5, 10 and 15 are from before.
FAILING = {"max_steps": 60, "log_every_steps": 5, "schedule": "warmup_stable_decay", "warmup_steps": 2}


def spoil_until(trainer: Trainer, rollbacks: int) -> None:
    spoil(trainer, lambda step: step >= 23 and len(trainer.progress.rollbacks) < rollbacks)


def test_training_goes_back_when_updates_fail_one_after_another_each_time_further(tmp_path):
    trainer = make_trainer(tmp_path, scores=(*range(99, 0, -1),), **FAILING)
    spoil_until(trainer, 2)
    events = events_of(trainer)
    assert trainer.run() == "max_steps 60"
    returns = [(e["from_step"], e["step"], e["learning_rate_scale"]) for e in events_called("rolled_back", events)]
    assert returns == [(45, 20, 0.5), (45, 15, 0.25)]
    rates = {event["step"]: event["learning_rate"] for event in events if event["kind"] == "train"}
    assert (rates[10], rates[30]) == (0.01, 0.0025)
    assert all(tensor.isfinite().all() for tensor in weights(trainer.model).values())
    assert trainer.checkpoints.state(60)["rollbacks"] == [20, 15]


def test_what_training_goes_back_to_is_the_checkpoint_and_nothing_later_is_left(tmp_path):
    plain = make_trainer(tmp_path / "plain", **FAILING | {"max_steps": 20, "schedule": "constant"})
    plain.run()
    trainer = make_trainer(tmp_path / "run", scores=(*range(1, 100),), **FAILING | {"schedule": "constant"})
    spoil_until(trainer, 1)
    at_return = []

    def log(record):
        if record.get("event") == "rolled_back":
            at_return.append((trainer.progress.record(), trainer.checkpoints.steps()))
            assert not trainer.updater.optimizer.state[trainer.model.target_embedding.weight]["step"] - 20
            for name, tensor in weights(plain.model).items():
                assert torch.equal(weights(trainer.model)[name], tensor), name
            for name, tensor in plain.learned.moving_average.weights.items():
                assert torch.equal(trainer.learned.moving_average.weights[name], tensor), name

    trainer.log = log
    trainer.run()
    ((record, steps),) = at_return
    assert (record["step"], record["epoch"], record["position"]) == (20, plain.progress.epoch, plain.progress.position)
    assert steps[-1] == 20
    assert {step for _, step in record["best"]} <= set(steps)
    assert record["best"][0][1] == 20
    assert record["guard"] == plain.progress.record()["guard"]
    assert record["published"] == 8  # the score at step 40, whose weights stay the ones to use


@pytest.mark.parametrize(("limit_now", "decay"), [(10, Decay(0, 10)), (20, None)])
def test_a_decay_towards_a_limit_of_before_is_not_gone_back_to(tmp_path, limit_now, decay):
    trainer = make_trainer(tmp_path, max_steps=10, schedule="cosine", progress=Progress(max_steps=10))
    trainer.run()
    trainer.progress.max_steps = limit_now
    roll_back(trainer.progress, trainer.checkpoints, trainer.learned)
    assert trainer.progress.rollbacks == [10]
    assert trainer.progress.decay == decay


def test_a_limit_that_is_added_does_not_end_a_decay_that_is_gone_back_to(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=10, schedule="cosine", progress=Progress(max_steps=10))
    trainer.run()
    trainer.progress.max_minutes = 5.0
    roll_back(trainer.progress, trainer.checkpoints, trainer.learned)
    assert trainer.progress.decay == Decay(0, 10)


@pytest.mark.parametrize("crash", ["before later checkpoints are deleted", "right after"])
def test_a_crash_while_training_goes_back_is_forgotten_and_the_return_is_not(tmp_path, monkeypatch, crash):
    whole = make_trainer(tmp_path / "whole", **FAILING)
    spoil_until(whole, 1)
    whole.run()

    first = make_trainer(tmp_path / "parts", **FAILING)
    spoil_until(first, 1)

    def dying(*arguments):
        if first.progress.rollbacks:
            raise KeyboardInterrupt

    if crash == "right after":
        first.log = dying
    else:
        keep = Checkpoints.keep
        monkeypatch.setattr(Checkpoints, "keep", lambda *arguments: (dying(), keep(*arguments)))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    monkeypatch.undo()
    second = resumed(tmp_path / "parts", **FAILING)
    assert second.progress.step == (20 if crash == "right after" else 40)
    spoil_until(second, 1)
    second.run()
    assert_same_end(whole, second)


def test_training_that_fails_again_and_again_ends_with_an_error(tmp_path):
    trainer = make_trainer(tmp_path, **FAILING)
    spoil_until(trainer, 100)
    events = events_of(trainer)
    with pytest.raises(
        ModelError, match=r"training diverged: the last \d+ updates up to step 45 .* did not help: 3$"
    ) as caught:
        trainer.run()
    assert "optimizer.peak_learning_rate" in caught.value.hint
    assert [event["learning_rate_scale"] for event in events_called("rolled_back", events)] == [0.5, 0.25, 0.125]
    again = resumed(tmp_path, **FAILING)
    spoil_until(again, 100)
    with pytest.raises(ModelError, match="training diverged"):
        again.run()


@pytest.mark.parametrize(("max_steps", "returns"), [(5, 0), (19, 0), (200, 3)])
def test_weights_that_are_no_numbers_from_the_start_are_never_a_success(tmp_path, max_steps, returns):
    trainer = make_trainer(tmp_path, max_steps=max_steps)
    with torch.no_grad():
        trainer.model.target_embedding.weight.fill_(math.nan)
    events = events_of(trainer)
    with pytest.raises(ModelError, match="training diverged"):
        trainer.run()
    assert [event["step"] for event in events_called("rolled_back", events)] == [0] * returns
    assert not [event for event in events if event["kind"] == "train"]


def test_a_run_whose_last_updates_all_fail_between_two_lines_of_the_log_is_no_success(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=49, log_every_steps=50)
    spoil(trainer, lambda step: step >= 30)
    with pytest.raises(ModelError, match="the last 20 updates up to step 49 were skipped"):
        trainer.run()


def test_to_go_back_when_the_minutes_are_over_is_no_success(tmp_path):
    trainer = make_trainer(tmp_path, max_minutes=5.0, schedule="constant")
    spoil(trainer, lambda step: True)

    def log(record):
        if trainer.progress.step == 20:
            trainer.budget.clock.before = 3600.0

    trainer.log = log
    with pytest.raises(ModelError, match="the last 20 updates up to step 20 were skipped"):
        trainer.run()
    assert trainer.checkpoints.steps() == [0]


def test_updates_that_fail_first_are_tried_again_from_the_start(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=30, checkpoint_every_steps=50, validate_every_steps=50)
    spoil(trainer, lambda step: not trainer.progress.rollbacks)
    events = events_of(trainer)
    assert trainer.run() == "max_steps 30"
    (event,) = events_called("rolled_back", events)
    assert (event["from_step"], event["step"]) == (20, 0)
    assert trainer.checkpoints.steps() == [30]  # the start is kept only until there is something better


def test_the_pace_is_that_since_training_went_back(tmp_path):
    trainer, starts = make_trainer(tmp_path, **FAILING), []
    spoil_until(trainer, 1)
    trainer.log = lambda record: starts.append(trainer.budget.paced_from) if "from_step" in record else None
    trainer.run()
    assert starts == [None]  # and so that of the next updates


def test_the_pace_is_that_since_two_passes_began(tmp_path):
    """Of 53 seconds 16 are over after as many updates; from then on each takes two."""
    given = {"consistency": "r-drop", "consistency_from": 0.3, "progress": Progress(validation_seconds=2.0)}
    trainer = make_trainer(tmp_path, max_minutes=1.0, schedule="warmup_stable_decay", **given)
    trainer.updater.consistency = Consistency(method="r-drop", alpha=5.0, cutoff=0.0)
    for step, seconds in ((15, 15.0), (16, 16.0), (17, 18.0), (20, 24.0)):
        trainer.progress.step = step
        trainer.budget.clock = SimpleNamespace(elapsed=lambda seconds=seconds: seconds)
        trainer.budget.updated()
        trainer.plan_consistency()
    assert trainer.updater.consistent
    assert trainer.budget.seconds_a_step() == 2.0


@pytest.mark.parametrize(
    ("max_steps", "max_minutes", "elapsed", "left"),
    [
        (100, 0.0, 20.0, 180.0),
        (100, 1.0, 20.0, 33.0),
        (15, 1.0, 20.0, 10.0),
        (100, 1.0, 60.0, 0.0),
        (0, 1.0, 20.0, 33.0),
        (0, 0.0, 20.0, None),
    ],
)
def test_the_time_that_is_left_is_that_to_the_nearer_limit(tmp_path, max_steps, max_minutes, elapsed, left):
    """After eleven updates, of which the first says nothing of the pace; of a minute 53 seconds are for updates."""
    trainer, now = make_trainer(tmp_path, max_steps=max_steps, max_minutes=max_minutes), [0.0]
    progress, clock = Progress(validation_seconds=2.0), SimpleNamespace(elapsed=lambda: now[0])
    limits = Budget(trainer.config, trainer.optimizer_config, progress, clock, 2.5)
    limits.updated()
    progress.step, now[0] = 10, elapsed
    assert limits.seconds_left() == left


def test_the_speed_is_that_of_updates_without_validations(tmp_path, monkeypatch):
    """An update takes two seconds, a validation a hundred, of which two come within an interval."""
    now, lines = [0.0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    trainer = make_trainer(tmp_path, max_steps=12, log_every_steps=3)
    trainer.budget.clock = SimpleNamespace(elapsed=lambda: now[0])

    def taking(seconds, call):
        def timed(*arguments):
            now[0] += seconds
            return call(*arguments)

        return timed

    def log(record):
        if record["kind"] == "train":
            lines.append((trainer.progress.target_tokens, record["target_tokens_per_second"]))

    trainer.update, trainer.validate = taking(2, trainer.update), taking(100, trainer.validate)
    trainer.log = log
    trainer.run()
    totals = [0, *(total for total, _ in lines)]
    assert [speed for _, speed in lines] == [(after - before) / 6 for before, after in pairwise(totals)]


def test_every_step_of_every_seed_draws_numbers_of_its_own(tmp_path, monkeypatch):
    seeds, backward = [], Updater.backward

    def watched(updater, given):
        seeds.append(torch.initial_seed())
        return backward(updater, given)

    monkeypatch.setattr(Updater, "backward", watched)
    for seed in (1, 2):
        make_trainer(tmp_path / str(seed), seed=seed, max_steps=4).run()
    assert len(set(seeds)) == len(seeds) == 8


def test_the_moving_average_follows_the_weights_of_each_fifth_update(tmp_path):
    """What is kept of it is 0.4^5 at step 5, where (1 + 5) / (10 + 5) is below the decay, and 0.5^5 at step 10."""
    trainer = make_trainer(tmp_path, max_steps=12, ema_decay=0.5)
    expected = {name: tensor.detach().clone() for name, tensor in weights(trainer.model).items()}
    trainer.run()
    for step, kept in ((5, 0.4**5), (10, 0.5**5)):
        now = load_tensors(trainer.checkpoints.path(step) / "model.safetensors")
        expected = {name: kept * tensor + (1 - kept) * now[name] for name, tensor in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(trainer.learned.moving_average.weights[name], tensor)


def test_a_cosine_with_minutes_too_begins_with_an_update_and_not_with_a_validation(tmp_path):
    trainer = make_trainer(tmp_path, schedule="cosine", max_steps=7, max_minutes=30.0)
    events = events_of(trainer)
    trainer.run()
    assert [event["step"] for event in events if event["kind"] == "valid"] == [5, 7]


def test_a_record_of_a_version_without_guard_is_read():
    record = Progress(step=7).record()
    del record["guard"], record["rollbacks"]
    assert Progress.of(record) == Progress(step=7)


def test_of_a_record_without_it_the_best_score_is_that_of_the_weights_to_use():
    for best, published in (([(3.0, 10), (2.0, 5)], 3.0), ([], None)):
        record = Progress(best=best).record()
        del record["published"]
        assert Progress.of(record).published == published


def test_graphs_that_were_compiled_are_said_at_the_next_line(tmp_path, monkeypatch):
    """Two at the first step, one more at the fourth."""
    made = 0
    monkeypatch.setattr(loop, "compiled_graphs", lambda: made)
    trainer = make_trainer(tmp_path, max_steps=6, log_every_steps=2)
    update_model = trainer.update

    def update_and_compile(given):
        nonlocal made
        update_model(given)
        made += {1: 2, 4: 1}.get(trainer.progress.step + 1, 0)

    trainer.update = update_and_compile
    events = events_of(trainer)
    trainer.run()
    assert [(event["step"], event["graphs"]) for event in events_called("compiled", events)] == [(2, 2), (4, 1)]


# Memory that does not suffice


TORCH_SAYS = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


@pytest.fixture
def scarce(monkeypatch):
    """Lets no batch of more than so many target tokens be computed, and lists the sizes of those that were."""
    plain = update.batch_loss

    def arrange(tokens: int, error: Exception) -> list[int]:
        computed: list[int] = []

        def limited(model, batch, *arguments):
            if batch.target_tokens > tokens:
                raise error
            computed.append(batch.target_tokens)
            return plain(model, batch, *arguments)

        monkeypatch.setattr(update, "batch_loss", limited)
        return computed

    return arrange


@pytest.mark.parametrize(
    "error", [RuntimeError(TORCH_SAYS), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
)
@pytest.mark.parametrize("micro_batch_tokens", [0, 45])
def test_an_update_that_does_not_fit_is_computed_in_smaller_parts(tmp_path, scarce, error, micro_batch_tokens):
    rate = {"peak_learning_rate": 1.0, "micro_batch_tokens": micro_batch_tokens}
    whole = make_trainer(tmp_path / "whole", dropout=0.0, max_steps=1, optimizer=FUSED_SGD, **rate)
    whole.run()
    scarce(20, error)
    parts = make_trainer(tmp_path / "parts", dropout=0.0, max_steps=1, optimizer=FUSED_SGD, **rate)
    events = events_of(parts)
    parts.run()
    for name, tensor in weights(whole.model).items():
        torch.testing.assert_close(weights(parts.model)[name], tensor, atol=1e-5, rtol=0)
    assert parts.progress.target_tokens == whole.progress.target_tokens
    assert (parts.progress.epoch, parts.progress.position) == (whole.progress.epoch, whole.progress.position)
    assert parts.progress.guard.mean == pytest.approx(whole.progress.guard.mean, rel=1e-5)
    sizes = [event["micro_batch_tokens"] for event in events_called("out_of_memory", events)]
    assert sizes
    assert all(after <= before // 2 for before, after in pairwise(sizes))


def test_what_was_computed_before_memory_ran_out_counts_once(tmp_path, scarce):
    """The first part of 20 tokens fits, the second of 33 does not."""
    trainer = make_trainer(tmp_path, dropout=0.0)
    batcher = Batcher(Corpus(), (SPECIALS, SPECIALS), CPU.device)
    indices = np.arange(10)
    tokens = Corpus().target.lengths[:10].cumsum()
    cut = int(np.searchsorted(tokens, 20))
    parts = [batcher.batch(indices[:cut]), batcher.batch(indices[cut:])]
    assert parts[0].target_tokens < parts[1].target_tokens
    scarce(parts[0].target_tokens, MemoryError())
    with pytest.raises(DoesNotFit) as caught:
        trainer.updater.gradient(Update(parts, sum(part.target_tokens for part in parts), 0, 0))
    assert caught.value.tokens == parts[1].target_tokens
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_smaller_size_stays_and_every_sentence_is_learned_once(tmp_path, scarce):
    computed = scarce(30, MemoryError())
    trainer = make_trainer(tmp_path, max_steps=20)
    events = events_of(trainer)
    trainer.run()
    corpus = Corpus()
    epoch = BatchSampler(corpus, batch_tokens=60, seed=1)
    updates = [indices for number in range(20) for indices in epoch.epoch(number)][:20]
    assert trainer.progress.target_tokens == sum(int(corpus.target.lengths[indices].sum()) for indices in updates)
    assert sum(computed) >= trainer.progress.target_tokens
    assert 1 <= len(events_called("out_of_memory", events)) <= 3
    assert max(computed) <= 30
    assert [event["step"] for event in events if event["kind"] == "train"] == list(range(1, 21))


def test_a_pair_that_does_not_fit_alone_is_an_error_of_the_device(tmp_path, scarce):
    scarce(5, MemoryError())
    trainer = make_trainer(tmp_path, max_steps=20)
    with pytest.raises(DeviceError, match=r"out of memory with a single pair of \d and \d tokens") as caught:
        trainer.run()
    assert not isinstance(caught.value, DoesNotFit)
    assert "data.max_tokens" in caught.value.hint


def test_another_error_is_not_mistaken_for_a_lack_of_memory(tmp_path, scarce):
    scarce(5, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        make_trainer(tmp_path, max_steps=20).run()


# When training ends


@pytest.mark.parametrize("elapsed", [0.0, 3600.0])
def test_minutes_end_training_with_a_validation_even_when_none_are_left(tmp_path, elapsed):
    trainer = make_trainer(tmp_path, max_minutes=0.01, schedule="warmup_stable_decay")
    trainer.budget.clock.before = elapsed
    assert trainer.run() == "max_minutes 0.01"
    progress = trainer.progress
    assert progress.best
    assert progress.validated_step == trainer.checkpoints.steps()[-1] == progress.step
    assert (progress.step > 0) == (elapsed == 0)


@pytest.mark.parametrize(
    ("every", "decay", "validations"),
    [
        # 0.7 * 53 = 37.1 seconds are over after 28 updates and 5 validations; 0.95 of the 15 left fit 10 of 37 / 27.
        (5, Decay(28, 10), 8),
        # 0.7 of the first guess, 60 - 6, after 38 updates.  A validation is made then; 0.95 of 13 fit 11 of 39 / 37.
        (1000, Decay(38, 11), 2),
    ],
)
def test_with_minutes_the_decay_begins_in_time_and_ends_the_run(tmp_path, monkeypatch, every, decay, validations):
    """Of 60 seconds an update takes 1 and a validation 2; 2.5 validations and 2 seconds are kept for the end: 53."""
    flags = {"schedule": "warmup_stable_decay", "decay_fraction": 0.3, "validate_every_steps": every}
    trainer = make_trainer(tmp_path, max_minutes=1.0, ema_decay=0.0, **flags)
    now = 0.0

    def taking(seconds, call):
        def timed(*arguments):
            nonlocal now
            now += seconds
            return call(*arguments)

        return timed

    for module in (budget, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    trainer.budget.clock = Clock(started=0.0)
    monkeypatch.setattr(Updater, "__call__", taking(1, Updater.__call__))
    trainer.validate = taking(2, trainer.validate)
    events = events_of(trainer)
    assert trainer.run() == "max_minutes 1"
    assert trainer.progress.decay == decay
    end = decay.start + decay.steps
    assert trainer.progress.step == end
    assert now == end + validations * 2
    assert [event["learning_rate"] for event in events if event["kind"] == "train"][-1] == 0
    assert trainer.checkpoints.state(decay.start)["decay"] is None
    last = trainer.checkpoints.state(end)
    assert (last["decay"], last["elapsed_seconds"]) == ({"start": decay.start, "steps": decay.steps}, now)


@pytest.mark.parametrize(
    ("max_steps", "max_minutes", "step", "decay"),
    [
        (40, 0.0, 27, None),  # of 40
        (40, 0.0, 28, Decay(28, 12)),
        (40, 1.0, 28, Decay(28, 12)),  # not the 0.95 * (60 - 7 - 28) that would fit
        (40, 0.7, 28, Decay(28, 6)),  # 0.95 * (42 - 7 - 28) fit, not 12
        (1000, 0.7, 25, Decay(25, 9)),  # by the minutes: 0.7 * 35 seconds are over
    ],
)
def test_the_rate_falls_to_0_at_the_limit_that_is_nearer(tmp_path, max_steps, max_minutes, step, decay):
    """An update takes a second, a validation 2."""
    limits = {"max_steps": max_steps, "max_minutes": max_minutes}
    trainer = make_trainer(tmp_path, schedule="warmup_stable_decay", decay_fraction=0.3, **limits)
    now = [0.0]
    clock, progress = SimpleNamespace(elapsed=lambda: now[0]), Progress(validation_seconds=2.0)
    limits_now = Budget(trainer.config, trainer.optimizer_config, progress, clock, 2.5)
    limits_now.updated()
    now[0] = progress.step = step
    assert limits_now.decay() == decay


def test_where_time_is_nearly_over_the_rate_falls_by_the_pace_of_this_session(tmp_path):
    """By its steps it would fall at once and for 12 more; in the 7 seconds that are left 6 more can be made.

    The first update takes half a minute, in which layers are compiled.
    """
    limits = {"max_steps": 40, "max_minutes": 1.0}
    trainer = make_trainer(tmp_path, schedule="warmup_stable_decay", decay_fraction=0.3, **limits)
    now = [11.0]
    clock, progress = SimpleNamespace(elapsed=lambda: now[0]), Progress(step=27, validation_seconds=2.0)
    resumed = Budget(trainer.config, trainer.optimizer_config, progress, clock, 2.5)
    progress.step, now[0] = 28, 41.0
    resumed.updated()
    assert resumed.decay() is None
    progress.step, now[0] = 33, 46.0
    resumed.updated()
    assert resumed.decay() == Decay(33, 6)


def test_time_is_kept_for_what_comes_after_the_last_update(tmp_path):
    trainer = make_trainer(tmp_path, max_minutes=1.0)
    progress, clock = Progress(validation_seconds=2.0), Clock(0.0)
    limits_now = Budget(trainer.config, trainer.optimizer_config, progress, clock, closing_validations=3.5)
    assert limits_now.time_limit() == 60 - 3.5 * 2 - 2


@pytest.mark.parametrize("took", [10.0, 100.0])
def test_what_is_kept_for_the_end_leaves_most_of_the_time_for_training(tmp_path, took):
    trainer = make_trainer(tmp_path, max_minutes=1.0)
    limits_now = Budget(trainer.config, trainer.optimizer_config, Progress(validation_seconds=took), Clock(0.0), 2.5)
    assert limits_now.time_limit() == 60 - 0.3 * 60


def test_of_validations_the_last_one_says_how_long_they_take(tmp_path):
    """The first ones take longer: what an untrained model says has no end."""
    trainer = make_trainer(tmp_path, max_steps=10)
    times = iter([0.0, 9.0, 20.0, 22.0])  # before and after each
    trainer.budget.clock = SimpleNamespace(elapsed=lambda: 0.0)
    judge = trainer.judge

    def timed():
        trainer.budget.clock = SimpleNamespace(elapsed=lambda: next(times))
        judge()
        trainer.budget.clock = SimpleNamespace(elapsed=lambda: 0.0)

    trainer.judge = timed
    trainer.run()
    assert trainer.progress.validation_seconds == 2.0


@pytest.mark.parametrize("stopped_by", ["a signal", "an error"])
def test_a_validation_that_training_was_stopped_at_is_made_up_for(tmp_path, stopped_by):
    """What was learned up to there is saved before, and goes on as if nothing had been."""
    whole = make_trainer(tmp_path / "whole", max_steps=12)
    expected = events_of(whole)
    whole.run()
    first = make_trainer(tmp_path / "stopped", max_steps=12)
    if stopped_by == "a signal":
        first.interrupted = lambda: first.progress.step == 5
        error = Interrupted
    else:
        first.validate, error = lambda: {}["killed"], KeyError
    with pytest.raises(error):
        first.run()
    assert first.checkpoints.state(5)["validated_step"] == 0
    second = resumed(tmp_path / "stopped", max_steps=12)
    events = events_of(second)
    second.run()
    validations = [[event["step"] for event in each if event["kind"] == "valid"] for each in (expected, events)]
    assert validations == [[5, 10, 12]] * 2
    assert_same_end(whole, second)


def test_minutes_add_up_over_sessions(tmp_path):
    assert Clock(time.monotonic() - 5, before=60).elapsed() == pytest.approx(65, abs=1)


def test_the_last_checkpoint_says_why_training_ended(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3)
    events = events_of(trainer)
    trainer.finish(trainer.run())
    assert trainer.checkpoints.state(3)["finished"] == "max_steps 3"
    assert events[-1] == {"step": 3, "kind": "event", "event": "finished", "reason": "max_steps 3"}
    assert load_tensors(trainer.checkpoints.path(3) / "model.safetensors").keys() == weights(trainer.model).keys()


def test_where_training_stands_survives_the_journey_through_json():
    record = {**Progress(step=3).record(), "decay": {"start": 2, "steps": 4}, "best": [[1.5, 3], [1.0, 2]]}
    progress = Progress.of(record)
    assert progress.best == [(1.5, 3), (1.0, 2)]
    assert progress.decay.start == 2
    assert Progress.of(progress.record()) == progress


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": -1}, "training.max_steps is negative"),
        ({"keep_last": 0}, "training.keep_last is below 1"),
        ({"label_smoothing": 1.0}, "training.label_smoothing 1.0 is not at least 0 and below 1"),
        ({"ema_decay": 1.0}, "training.ema_decay 1.0 is not at least 0 and below 1"),
        ({"ema_decay": -0.1}, "training.ema_decay -0.1 is not at least 0 and below 1"),
    ],
)
def test_an_impossible_training_setting_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **change)


@pytest.mark.parametrize("change", [{"metric": "ter"}, {"patience": -1}, {"beam": 0}])
def test_an_impossible_validation_setting_is_refused(change):
    with pytest.raises(ConfigError, match=f"validation.{next(iter(change))}"):
        ValidationConfig(**{"patience": 0} | change)
