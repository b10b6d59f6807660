"""The training loop: updates, validations, checkpoints, and when to stop.

The loop knows tensors and steps.  It is handed what it cannot know: updates one after another, `validate`, which
returns the scores of the model as it stands, and `log`, which takes one record at a time.

What happens at a step depends on the seed and the step alone, so a run that is resumed from a checkpoint ends with the
weights, bit for bit on the CPU, of one that was never interrupted.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mt.corpus.batching import Update
from mt.errors import Interrupted
from mt.training.budget import NO_GAIN, Budget, Progress, Record
from mt.training.checkpoint import Checkpoints, Learned
from mt.training.compiled import compiled_graphs
from mt.training.config import TrainingConfig, ValidationConfig
from mt.training.guard import FAULTS
from mt.training.optimizer import OptimizerConfig, learning_rate
from mt.training.rollback import PATIENCE, diverged, roll_back
from mt.training.update import DoesNotFit, Outcome, Updater

Updates = Callable[[int, int, int], Iterator[Update]]  # from micro-batch tokens, an epoch and a position on


class Diverging(Exception):
    """So many updates in a row have been skipped that training must go back."""


class Meter:
    """Sums since the last line of the log; those of tensors stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        # Of the updates that the weights followed: their number, target tokens, loss and gradient norm.
        self.followed = torch.zeros(4, dtype=torch.float64, device=device)
        self.faults = torch.zeros(len(FAULTS), device=device)  # how many were skipped for each
        self.target_tokens = 0
        self.graphs = compiled_graphs()  # compiled before this interval
        self.since = time.monotonic()

    def add(self, outcome: Outcome, target_tokens: int) -> None:
        one, tokens = torch.ones_like(outcome.loss), torch.full_like(outcome.loss, target_tokens)
        followed = torch.stack((one, tokens, outcome.loss, outcome.gradient_norm))
        self.followed += torch.where(outcome.faults.any(), 0.0, followed)
        self.faults += outcome.faults
        self.target_tokens += target_tokens


@dataclass
class Trainer:
    """One run's training; `run` goes on from where `budget.progress` stands until a limit, patience or a signal."""

    updater: Updater
    learned: Learned  # what the updater changes, and what follows its weights
    updates: Updates
    validate: Callable[[], Record]  # scores of the model as it stands: loss, bleu, chrf
    publish: Callable[[], None]  # make the model as it stands the one to use
    log: Callable[[Record], None]
    checkpoints: Checkpoints
    config: TrainingConfig
    optimizer_config: OptimizerConfig
    validation_config: ValidationConfig
    budget: Budget
    interrupted: Callable[[], bool] = lambda: False  # asked after each update: whether to stop here

    def __post_init__(self) -> None:
        self.progress: Progress = self.budget.progress
        self.model, self.compute = self.updater.model, self.updater.compute
        self.updater.guard.restore(self.progress.guard)
        self.micro_batch_tokens = self.config.micro_batch_tokens

    def run(self) -> str:
        """Train until there is a reason to stop, and return it.

        Raises `Interrupted` after saving when a signal asks, `ModelError` when training diverges and going back does
        not help, `DeviceError` when memory does not suffice for a single pair.
        """
        progress = self.progress
        self.model.train()
        self.meter = Meter(self.compute.device)
        if not self.checkpoints.steps():
            self.save()  # where to go back to, should the first updates fail
        elif self.has_to_be_judged():  # and was not, because training was stopped just then
            self.judge()
            self.save()
        self.stop_if_asked()
        reason = ""
        while not reason:
            try:
                reason = self.train()
            except Diverging:
                self.go_back()
            except DoesNotFit as error:
                self.compute_fewer_at_a_time(error.tokens)
        if progress.step % self.config.log_every_steps:
            self.log_interval()
        self.check_last_updates()
        if progress.validated_step != progress.step or not progress.best:
            self.save()
            self.judge()
            self.save()
        return reason

    def stop_if_asked(self) -> None:
        """Raise `Interrupted` where a signal has asked to stop; everything is to be saved before."""
        if self.interrupted():
            raise self.interruption()

    def interruption(self) -> Interrupted:
        return Interrupted(f"stopped at step {self.progress.step:,}; everything up to here is saved")

    def train(self) -> str:
        """Train from where progress stands until there is a reason to stop, and return it."""
        progress, config = self.progress, self.config
        for update in self.updates(self.micro_batch_tokens, progress.epoch, progress.position):
            if reason := self.reason_to_stop():
                break
            self.plan_consistency()
            self.plan_decay()
            self.tell_of_noise()
            self.update(update)
            progress.step += 1
            progress.epoch, progress.position = update.epoch, update.position
            interrupted = self.interrupted()
            self.budget.updated()
            if progress.step % config.log_every_steps == 0:
                self.log_interval()
                if progress.guard.skipped_in_a_row >= PATIENCE:
                    raise Diverging
            validating = self.has_to_be_judged()
            if validating or interrupted or progress.step % config.checkpoint_every_steps == 0:
                self.save()
            if interrupted:
                raise self.interruption()
            if validating:
                self.judge()
                self.save()
        return reason

    def has_to_be_judged(self) -> bool:
        """Whether this is a step to validate at, and that has not been done."""
        progress = self.progress
        return progress.step % self.config.validate_every_steps == 0 and progress.step != progress.validated_step

    def go_back(self) -> None:
        """Go on from an earlier checkpoint with a lower learning rate.

        Raises `ModelError` when that has been tried often enough, or when no time is left for it.
        """
        progress, failed_step, failure = self.progress, self.progress.step, diverged(self.progress)
        progress.elapsed_seconds = self.budget.clock.elapsed()
        roll_back(progress, self.checkpoints, self.learned)
        self.updater.guard.restore(progress.guard)
        self.budget.restart_pace()
        self.meter = Meter(self.compute.device)
        scale = progress.learning_rate_scale
        self.log({"kind": "event", "event": "rolled_back", "from_step": failed_step, "learning_rate_scale": scale})
        if self.reason_to_stop():
            raise failure

    def compute_fewer_at_a_time(self, tokens: int) -> None:
        """Halve the micro-batches, of which one of so many target tokens did not fit into memory."""
        self.micro_batch_tokens = min(tokens, self.micro_batch_tokens or tokens) // 2
        self.log({"kind": "event", "event": "out_of_memory", "micro_batch_tokens": self.micro_batch_tokens})

    def check_last_updates(self) -> None:
        """Raise `ModelError` when the last updates, or all there were, have been skipped: that is no success."""
        self.progress.guard = self.updater.guard.history()
        if self.progress.guard.skipped_in_a_row >= min(PATIENCE, self.progress.step) > 0:
            raise diverged(self.progress)

    def finish(self, reason: str) -> None:
        """Say in the last checkpoint that nothing is left to do."""
        self.progress.finished = reason
        self.save()
        self.log({"kind": "event", "event": "finished", "reason": reason})

    def update(self, update: Update) -> None:
        """The next optimizer step, whose random numbers are those of this step, resumed or not."""
        step = self.progress.step + 1
        torch.manual_seed((self.config.seed * 1_000_003 + step) % 2**63)
        outcome = self.updater(update, self.learning_rate(step))
        if self.learned.moving_average:
            self.learned.moving_average.follow(step)
        self.meter.add(outcome, update.target_tokens)
        self.progress.target_tokens += update.target_tokens

    def learning_rate(self, step: int) -> float:
        return self.progress.learning_rate_scale * learning_rate(self.optimizer_config, step, self.progress.decay)

    def log_interval(self) -> None:
        """Say what the updates since the last time came to, and which of them were skipped."""
        updates, tokens, loss, gradient_norm = self.meter.followed.tolist()  # sync: once an interval
        skipped = {fault: int(count) for fault, count in zip(FAULTS, self.meter.faults.tolist(), strict=True) if count}
        self.progress.guard = self.updater.guard.history()
        if graphs := compiled_graphs() - self.meter.graphs:
            self.log({"kind": "event", "event": "compiled", "graphs": graphs})
        if skipped:
            self.log({"kind": "event", "event": "skipped", "updates": sum(skipped.values()), "reasons": skipped})
        if updates:
            self.log(
                {
                    "kind": "train",
                    "loss": loss / tokens,
                    "gradient_norm": gradient_norm / updates,
                    "learning_rate": self.learning_rate(self.progress.step),
                    "target_tokens_per_second": self.meter.target_tokens / (time.monotonic() - self.meter.since),
                    "memory_gib": self.compute.memory_gib(),
                    "epoch": self.progress.epoch,
                    "seconds_left": self.budget.seconds_left(),
                }
            )
        self.meter = Meter(self.compute.device)

    def judge(self) -> None:
        """Validate, rank the step among the best, and publish its weights unless those in use scored better."""
        start = self.budget.clock.elapsed()
        self.model.eval()
        scores = self.validate()
        self.model.train()
        took = self.budget.clock.elapsed() - start
        self.meter.since += took  # the rate of training is not that of translating
        progress = self.progress
        progress.validation_seconds = took
        score = self.validation_config.score(scores)
        gained = not progress.best or score > progress.best[0][0]
        progress.validations_without_gain = 0 if gained else progress.validations_without_gain + 1
        ranked = sorted([*progress.best, (score, progress.step)], reverse=True)  # of equals the latest first
        progress.best = ranked[: self.config.keep_best]
        progress.validated_step = progress.step
        if progress.published is None or score >= progress.published:
            self.publish()
            progress.published = score
        self.log({"kind": "valid", **scores, "validation_seconds": took, "best": gained})

    def save(self) -> None:
        """Write a checkpoint; delete those that are neither recent nor among the best, nor needed to go back to."""
        progress = self.progress
        progress.elapsed_seconds = self.budget.clock.elapsed()
        progress.guard = self.updater.guard.history()
        self.checkpoints.save(progress.step, self.learned, progress.record())
        steps = self.checkpoints.steps()
        sound = [step for step in steps if step <= progress.sound_step][-1:]
        recent = {step for step in steps[-self.config.keep_last :] if step}  # the start only as long as it is `sound`
        keep = recent | {step for _, step in progress.best} | set(sound)
        if progress.decay and self.optimizer_config.schedule == "warmup_stable_decay":
            keep.add(progress.decay.start)
        self.checkpoints.keep(keep)

    def plan_consistency(self) -> None:
        """Decide, once its time has come, whether two passes are made of each update from here on."""
        progress, config = self.progress, self.config
        due = self.updater.consistency is not None and self.budget.share_used() >= config.consistency_from
        if due and progress.consistent is None:
            progress.consistent = progress.epoch >= config.consistency_epochs
            if config.consistency_from:
                if progress.step and config.max_minutes:
                    self.save()  # so that what follows repeats exactly, whatever the clock says then
                begun = {"method": config.consistency, "begun": progress.consistent, "epochs": progress.epoch}
                self.log({"kind": "event", "event": "consistency", **begun})
            if progress.consistent:
                self.budget.restart_pace()  # which is another one from here on
        self.updater.consistent = bool(progress.consistent)

    def tell_of_noise(self) -> None:
        """Say in the log that the next update is the first with noise, where there have been some without."""
        config, place = self.config, (self.progress.epoch, self.progress.position)
        if config.noise_rate and config.noise_from_epoch and place == (config.noise_from_epoch, 0):
            self.log({"kind": "event", "event": "noise", "rate": config.noise_rate})

    def plan_decay(self) -> None:
        """Fix where the learning rate begins to fall, once that is known, and keep the state before it."""
        progress, stable = self.progress, self.optimizer_config.schedule == "warmup_stable_decay"
        if progress.decay or not self.budget.decay():
            return
        if stable and self.config.max_minutes and not progress.validation_seconds:
            self.judge()  # to know how much of the time is left for updates
            self.save()
        if not (decay := self.budget.decay()):
            return
        if stable:
            if progress.step not in self.checkpoints.steps():
                self.save()
            self.log({"kind": "event", "event": "decay", "steps": decay.steps})
        progress.decay = decay

    def reason_to_stop(self) -> str:
        """Why training is over; "" while it is not."""
        patience = self.validation_config.patience
        if patience and self.progress.validations_without_gain >= patience:
            return f"{NO_GAIN} in {patience} validations"
        return self.budget.used_up()
