"""The training loop: updates, validations, checkpoints, and when to stop.

The loop knows tensors and steps.  It is handed what it cannot know: updates one after another, `validate`, which
returns the scores of the model as it stands, and `log`, which takes one record at a time.

What happens at a step depends on the seed and the step alone, so a run that is resumed from a checkpoint ends with the
weights, bit for bit on the CPU, of one that was never interrupted.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mt.corpus.batching import Update
from mt.errors import Interrupted, ModelError
from mt.training.budget import Budget, Progress, Record
from mt.training.checkpoint import Checkpoints
from mt.training.config import TrainingConfig, ValidationConfig
from mt.training.optimizer import OptimizerConfig, learning_rate
from mt.training.update import Updater

Updates = Callable[[int, int], Iterator[Update]]  # from an epoch and a position on


@dataclass
class Meter:
    """Sums since the last line of the log; the loss stays on the device until it is read."""

    loss: Tensor
    target_tokens: int = 0
    since: float = field(default_factory=time.monotonic)


@dataclass
class Trainer:
    """One run's training; `run` goes on from where `budget.progress` stands until a limit, patience or a signal."""

    updater: Updater
    updates: Updates
    validate: Callable[[], Record]  # scores of the model as it stands: loss, bleu, chrf
    publish: Callable[[], None]  # make the model as it stands the one to use
    log: Callable[[Record], None]
    checkpoints: Checkpoints
    config: TrainingConfig
    optimizer_config: OptimizerConfig
    validation: ValidationConfig
    budget: Budget
    interrupted: Callable[[], bool] = lambda: False  # asked after each update: whether to stop here

    def __post_init__(self) -> None:
        self.progress: Progress = self.budget.progress
        self.model, self.compute = self.updater.model, self.updater.compute

    def run(self) -> str:
        """Train until there is a reason to stop, and return it.

        Raises `Interrupted` after saving when a signal asks, `ModelError` when the loss diverges.
        """
        progress, config = self.progress, self.config
        self.model.train()
        self.meter = self.new_meter()
        for update in self.updates(progress.epoch, progress.position):
            if reason := self.reason_to_stop():
                break
            self.plan_decay()
            progress.step += 1
            self.update(update)
            progress.epoch, progress.position = update.epoch, update.position
            if progress.step % config.log_every_steps == 0:
                self.log_interval()
            validating = progress.step % config.validate_every_steps == 0
            if validating:
                self.judge()
            if validating or progress.step % config.checkpoint_every_steps == 0:
                self.save()
            if self.interrupted():
                self.save()
                raise Interrupted(f"stopped at step {progress.step:,}; everything up to here is saved")
        if progress.validated_step != progress.step or not progress.best:
            self.judge()
            self.save()
        return reason

    def finish(self, reason: str) -> None:
        """Say in the last checkpoint that nothing is left to do."""
        self.progress.finished = reason
        self.save()
        self.log({"kind": "event", "event": "finished", "reason": reason})

    def update(self, update: Update) -> None:
        """One optimizer step, whose random numbers are those of this step, resumed or not."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.progress.step) % 2**63)
        rate = learning_rate(self.optimizer_config, self.progress.step, self.progress.decay)
        self.meter.loss += self.updater(update, rate)
        self.meter.target_tokens += update.target_tokens
        self.progress.target_tokens += update.target_tokens

    def new_meter(self) -> Meter:
        return Meter(torch.zeros((), device=self.compute.device))

    def log_interval(self) -> None:
        loss = self.meter.loss.item() / self.meter.target_tokens  # sync: once an interval
        if not math.isfinite(loss):
            raise ModelError(
                f"training diverged: the loss at step {self.progress.step:,} is {loss}",
                "lower the learning rate: --set optimizer.peak_learning_rate=...",
            )
        self.log(
            {
                "kind": "train",
                "loss": loss,
                "learning_rate": learning_rate(self.optimizer_config, self.progress.step, self.progress.decay),
                "target_tokens_per_second": self.meter.target_tokens / (time.monotonic() - self.meter.since),
                "memory_gib": self.compute.memory_gib(),
                "epoch": self.progress.epoch,
                "seconds_left": self.budget.seconds_left(),
            }
        )
        self.meter = self.new_meter()

    def judge(self) -> None:
        """Validate, and enter the score into the list of the best."""
        start = self.budget.clock.elapsed()
        self.model.eval()
        scores = self.validate()
        self.model.train()
        took = self.budget.clock.elapsed() - start
        self.meter.since += took  # the rate of training is not that of translating
        progress = self.progress
        progress.validation_seconds = max(progress.validation_seconds, took)
        score = -scores["loss"] if self.validation.metric == "loss" else scores[self.validation.metric]
        gained = not progress.best or score > progress.best[0][0]
        progress.validations_without_gain = 0 if gained else progress.validations_without_gain + 1
        ranked = sorted([*progress.best, (score, progress.step)], key=lambda entry: (-entry[0], entry[1]))
        progress.best = ranked[: self.config.keep_best]
        progress.validated_step = progress.step
        if gained:
            self.publish()
        self.log({"kind": "valid", **scores, "validation_seconds": took, "best": gained})

    def save(self) -> None:
        """Write a checkpoint; delete those that are neither recent, nor among the best, nor the last before decay."""
        progress = self.progress
        progress.elapsed_seconds = self.budget.clock.elapsed()
        self.checkpoints.save(progress.step, self.model, self.updater.optimizer, progress.record())
        keep = set(self.checkpoints.steps()[-self.config.keep_last :]) | {step for _, step in progress.best}
        if progress.decay:
            keep.add(progress.decay.start)
        self.checkpoints.keep(keep)

    def plan_decay(self) -> None:
        """Fix where the learning rate begins to fall, once that is known, and keep the state before it."""
        progress = self.progress
        if progress.decay or not (decay := self.budget.decay()):
            return
        if self.optimizer_config.schedule == "warmup_stable_decay":
            if progress.step not in self.checkpoints.steps():
                self.save()
            self.log({"kind": "event", "event": "decay", "steps": decay.steps})
        progress.decay = decay

    def reason_to_stop(self) -> str:
        """Why training is over; "" while it is not."""
        patience = self.validation.patience
        if patience and self.progress.validations_without_gain >= patience:
            return f"no gain in {patience} validations"
        return self.budget.used_up()
