"""The loop on a corpus of random ids: the order of events, what is kept, when it ends, and that nothing depends on how.

Shapes as in `mt.training.loop`; no text, no tokenizer, and validations that return what the test says.
"""

import math
import time
from functools import partial
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mt.corpus.batching import Batcher, BatchSampler
from mt.corpus.tokenizer import Specials
from mt.device import Compute
from mt.errors import ConfigError, Interrupted, ModelError
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.training import budget, loop
from mt.training.budget import Budget, Clock, Progress
from mt.training.checkpoint import Checkpoints, load_tensors, weights
from mt.training.config import TrainingConfig, ValidationConfig
from mt.training.loop import Trainer
from mt.training.optimizer import Decay, OptimizerConfig, make_optimizer
from mt.training.update import Updater

V = 11
SPECIALS = Specials(pad=0, bos=2, eos=3, unk=1)
CPU = Compute(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors as small as these are not worth sharing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
        "seed": 1, "device": "cpu", "precision": "fp32", "threads": 1, "micro_batch_tokens": micro_batch_tokens,
        "validate_every_steps": 5, "checkpoint_every_steps": 5, "log_every_steps": 1,
        "consistency_alpha": 0.0, "cutoff": 0.0,
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
        updates=partial(batcher.updates, BatchSampler(corpus, batch_tokens=60, seed=1)),
        validate=lambda: {"loss": 1.0, "chrf": 1.0, "bleu": next(upcoming)},
        publish=lambda: None,
        log=lambda record: None,
        checkpoints=Checkpoints(folder),
        config=config,
        optimizer_config=optimizer_config,
        validation=validation or ValidationConfig(patience=0),
        budget=Budget(config, optimizer_config, progress or Progress(), Clock(time.monotonic())),
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
    trainer = make_trainer(folder, dropout=0.0, max_steps=1, optimizer=partial(torch.optim.SGD, fused=True), **given)
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


@pytest.mark.parametrize("stop_at", [1, 5, 7, 12])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop_at):
    schedule = {"schedule": "warmup_stable_decay", "warmup_steps": 3, "max_steps": 14, "scores": (1.0, 3.0, 2.0)}
    whole = make_trainer(tmp_path / "whole", **schedule)
    whole.run()

    calls = iter(range(1, 100))
    first = make_trainer(tmp_path / "parts", interrupted=lambda: next(calls) == stop_at, **schedule)
    with pytest.raises(Interrupted, match=f"stopped at step {stop_at}; everything up to here is saved"):
        first.run()
    fresh = make_trainer(tmp_path / "parts", **schedule)
    progress = Progress.of(fresh.checkpoints.load(stop_at, fresh.model, fresh.updater.optimizer))
    second = make_trainer(tmp_path / "parts", progress=progress, **schedule)
    second.checkpoints.load(stop_at, second.model, second.updater.optimizer)
    events = events_of(second)
    second.run()

    assert [event["step"] for event in events if event["kind"] == "train"] == list(range(stop_at + 1, 15))
    for name, tensor in weights(whole.model).items():
        assert torch.equal(weights(second.model)[name], tensor), name
    optimizers = [trainer.checkpoints.path(14) / "optimizer.safetensors" for trainer in (whole, second)]
    assert optimizers[0].read_bytes() == optimizers[1].read_bytes()
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
    assert published == [5, 10]
    assert trainer.progress.best == [(3.0, 10), (3.0, 20), (2.0, 15)]


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


def test_without_asking_otherwise_five_last_and_three_best_are_kept():
    config = TrainingConfig(
        device="cpu",
        precision="fp32",
        threads=1,
        consistency_alpha=0.0,
        cutoff=0.0,
        micro_batch_tokens=0,
        validate_every_steps=1,
        checkpoint_every_steps=1,
    )
    assert (config.keep_last, config.keep_best) == (5, 3)


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


def test_a_loss_that_is_no_number_ends_training_with_its_step(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=5)
    with torch.no_grad():
        trainer.model.target_embedding.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="training diverged: the loss at step 1 is nan") as caught:
        trainer.run()
    assert "optimizer.peak_learning_rate" in caught.value.hint
    assert trainer.checkpoints.steps() == []


@pytest.mark.parametrize("elapsed", [0.0, 3600.0])
def test_minutes_end_training_with_a_validation_even_when_none_are_left(tmp_path, elapsed):
    trainer = make_trainer(tmp_path, max_minutes=0.01, schedule="warmup_stable_decay")
    trainer.budget.clock.before = elapsed
    assert trainer.run() == "max_minutes 0.01"
    assert trainer.progress.best == [(1.0, trainer.progress.step)]
    assert trainer.checkpoints.steps()[-1] == trainer.progress.step
    assert (trainer.progress.step > 0) == (elapsed == 0)


def test_with_minutes_the_decay_begins_in_time_and_ends_the_run(tmp_path, monkeypatch):
    """Of 60 seconds an update takes 1 and a validation 2; 2.5 validations and 2 seconds are kept for the end: 53."""
    trainer = make_trainer(tmp_path, max_minutes=1.0, schedule="warmup_stable_decay", decay_fraction=0.3)
    now = 0.0

    def taking(seconds, call):
        def timed(*arguments):
            nonlocal now
            now += seconds
            return call(*arguments)

        return timed

    for module in (budget, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    trainer.budget.clock, trainer.budget.session_start = Clock(started=0.0), 0.0
    monkeypatch.setattr(Updater, "__call__", taking(1, Updater.__call__))
    trainer.validate = taking(2, trainer.validate)
    events = events_of(trainer)
    assert trainer.run() == "max_minutes 1"
    # 0.7 * 53 = 37.1 seconds are over after 28 updates and 5 validations; 0.95 of the 15 left fit 10 of 38 / 28.
    assert trainer.progress.decay == Decay(28, 10)
    assert trainer.progress.step == 38
    assert now == 38 + 8 * 2
    assert [event["learning_rate"] for event in events if event["kind"] == "train"][-1] == 0
    assert trainer.checkpoints.state(28)["decay"] is None
    last = trainer.checkpoints.state(38)
    assert (last["decay"], last["elapsed_seconds"]) == ({"start": 28, "steps": 10}, now)


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
    ],
)
def test_an_impossible_training_setting_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **change)


@pytest.mark.parametrize("change", [{"metric": "ter"}, {"patience": -1}, {"beam": 0}])
def test_an_impossible_validation_setting_is_refused(change):
    with pytest.raises(ConfigError, match=f"validation.{next(iter(change))}"):
        ValidationConfig(**{"patience": 0} | change)
