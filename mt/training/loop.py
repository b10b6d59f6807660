"""The training loop: updates, validations, checkpoints, and when to stop.

The loop knows tensors and steps.  It is handed what it cannot know: batches by number, `validate`, which returns the
scores of the model as it stands, and `log`, which takes one record at a time.

What happens at a step depends on the seed and the step alone, so a run that is resumed from a checkpoint ends with the
weights, bit for bit on the CPU, of one that was never interrupted.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mt.corpus.batching import Batch, BatchSampler
from mt.device import Compute
from mt.errors import ConfigError, Interrupted, ModelError
from mt.model.transformer import Transformer
from mt.settings import auto
from mt.training.checkpoint import Checkpoints
from mt.training.loss import label_smoothed_loss
from mt.training.optimizer import Decay, OptimizerConfig, learning_rate

METRICS = ("bleu", "chrf", "loss")
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long to train, on what, and what to keep."""

    max_steps: int = 0  # updates; 0: no limit
    max_minutes: float = 0.0  # of the whole command, added up over resumes; 0: no limit
    seed: int = 1
    device: str = auto()  # cpu | cuda
    precision: str = auto()  # fp32 | tf32 | bf16
    threads: int = auto()  # of the CPU
    label_smoothing: float = 0.1  # share of the target's probability spread over the vocabulary
    micro_batch_tokens: int = auto()  # target tokens computed at a time; 0: a whole update
    log_every_steps: int = 50
    validate_every_steps: int = auto()
    checkpoint_every_steps: int = auto()
    keep_last: int = 5  # checkpoints
    keep_best: int = 3  # checkpoints, and how many of the best are averaged at the end

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_minutes", "micro_batch_tokens", "seed", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is negative")
        for name in ("log_every_steps", "validate_every_steps", "checkpoint_every_steps", "keep_last", "keep_best"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"training.label_smoothing {self.label_smoothing} is not at least 0 and below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """How a model is judged while it trains."""

    metric: str = "bleu"  # bleu | chrf | loss: what "best" means, and what patience waits for
    patience: int = auto()  # validations without a gain before training stops; 0: never; auto: 10 without a limit
    beam: int = 1  # of the translations that are scored
    max_sentences: int = 2_000  # of the validation set that are translated
    samples: int = 5  # translations shown in samples.txt

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"validation.metric {self.metric} is none of {', '.join(METRICS)}")
        for name in ("patience", "samples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"validation.{name} is negative")
        for name in ("beam", "max_sentences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"validation.{name} is below 1")


@dataclass
class Progress:
    """Where training stands: all of state.json."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # updates done of this epoch
    target_tokens: int = 0
    elapsed_seconds: float = 0.0  # of the command, added up over resumes
    max_steps: int = 0  # the limits that this was reached under
    max_minutes: float = 0.0
    decay: Decay | None = None  # once the learning rate falls for good
    best: list[tuple[float, int]] = field(default_factory=list)  # (score, step), best first
    validations_without_gain: int = 0
    validated_step: int = 0  # the last step that was judged
    validation_seconds: float = 0.0  # the longest validation so far
    finished: str = ""  # why training ended; "" until all that ends a run is done

    def record(self) -> Record:
        return asdict(self)

    @classmethod
    def of(cls, record: Record) -> "Progress":
        decay = Decay(**record["decay"]) if record["decay"] else None
        return cls(**{**record, "decay": decay, "best": [tuple(entry) for entry in record["best"]]})


class Clock:
    """Seconds of the whole command: those of earlier sessions, and those since this process started."""

    def __init__(self, started: float, before: float = 0.0) -> None:
        self.started = started
        self.before = before

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.started


@dataclass
class Meter:
    """Sums since the last line of the log; they stay on the device until they are read."""

    loss: torch.Tensor
    target_tokens: int = 0
    since: float = field(default_factory=time.monotonic)


@dataclass
class Trainer:
    """One run's training; `run` goes on from `progress` until a limit, patience or a signal ends it."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    sampler: BatchSampler
    batches: Callable[[np.ndarray], list[Batch]]  # an update as micro-batches on the device
    validate: Callable[[], Record]  # scores of the model as it stands: loss, bleu, chrf
    publish: Callable[[], None]  # make the model as it stands the one to use
    log: Callable[[Record], None]
    checkpoints: Checkpoints
    compute: Compute
    config: TrainingConfig
    optimizer_config: OptimizerConfig
    validation: ValidationConfig
    clock: Clock
    progress: Progress
    interrupted: Callable[[], bool] = lambda: False  # a signal asks to stop

    def run(self) -> str:
        """Train until there is a reason to stop, and return it.

        Raises `Interrupted` after saving when a signal asks, `ModelError` when the loss diverges.
        """
        progress, config = self.progress, self.config
        self.model.train()
        self.session_start, self.session_step = time.monotonic(), progress.step
        self.meter = self.new_meter()
        for indices, epoch, position in self.sampler.updates(progress.epoch, progress.position):
            if reason := self.reason_to_stop():
                break
            self.plan_decay()
            progress.step += 1
            self.update(indices)
            progress.epoch, progress.position = epoch, position
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

    def update(self, indices: np.ndarray) -> None:
        """One optimizer step on the sentences `indices`."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.progress.step) % 2**63)  # of this step, resumed or not
        rate = learning_rate(self.optimizer_config, self.progress.step, self.progress.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self.batches(indices)
        tokens = sum(part.target_tokens for part in parts)
        for part in parts:
            with self.compute.autocast():
                loss, unsmoothed = batch_loss(self.model, part, self.config.label_smoothing)
            (loss / tokens).backward()
            self.meter.loss += unsmoothed
        if self.optimizer_config.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.meter.target_tokens += tokens
        self.progress.target_tokens += tokens

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
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "target_tokens_per_second": self.meter.target_tokens / (time.monotonic() - self.meter.since),
                "memory_gib": self.compute.memory_gib(),
                "epoch": self.progress.epoch,
                "seconds_left": self.seconds_left(),
            }
        )
        self.meter = self.new_meter()

    def judge(self) -> None:
        """Validate, and enter the score into the list of the best."""
        start = time.monotonic()
        self.model.eval()
        scores = self.validate()
        self.model.train()
        took = time.monotonic() - start
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
        progress.elapsed_seconds = self.clock.elapsed()
        self.checkpoints.save(progress.step, self.model, self.optimizer, progress.record())
        keep = set(self.checkpoints.steps()[-self.config.keep_last :]) | {step for _, step in progress.best}
        if progress.decay:
            keep.add(progress.decay.start)
        self.checkpoints.keep(keep)

    def plan_decay(self) -> None:
        """Fix where the learning rate begins to fall, once that is known, and keep the state before it."""
        progress, config = self.progress, self.config
        if progress.decay or self.optimizer_config.schedule not in ("warmup_stable_decay", "cosine"):
            return
        if self.optimizer_config.schedule == "cosine":
            progress.decay = Decay(0, max(1, config.max_steps))
            return
        stable = 1 - self.optimizer_config.decay_fraction
        if config.max_steps and progress.step >= round(stable * config.max_steps):
            steps = config.max_steps - progress.step
        elif config.max_minutes and self.paced() and self.clock.elapsed() >= stable * self.time_limit():
            steps = self.steps_left()
        else:
            return
        if progress.step not in self.checkpoints.steps():
            self.save()
        progress.decay = Decay(progress.step, max(1, steps))
        self.log({"kind": "event", "event": "decay", "steps": progress.decay.steps})

    def time_limit(self) -> float:
        """Seconds of the command after which updates must end, so that it ends in time.

        What comes after: the last validation, that of the averaged weights, and writing them.
        """
        budget = self.config.max_minutes * 60
        known = self.progress.validation_seconds
        return budget - (2.5 * known + 2.0 if known else 0.1 * budget)

    def paced(self) -> bool:
        """Whether this session has made enough steps to tell how fast it is."""
        return self.progress.step >= self.session_step + 5

    def steps_left(self) -> int:
        """Steps that fit into the time left at this session's pace, and a little slower."""
        seconds_per_step = (time.monotonic() - self.session_start) / (self.progress.step - self.session_step)
        return int(0.95 * (self.time_limit() - self.clock.elapsed()) / seconds_per_step)

    def seconds_left(self) -> float | None:
        """Until the nearer limit; None without one."""
        left = []
        if self.config.max_minutes:
            left.append(max(0.0, self.time_limit() - self.clock.elapsed()))
        done = self.progress.step - self.session_step
        if self.config.max_steps and done:
            pace = (time.monotonic() - self.session_start) / done
            left.append((self.config.max_steps - self.progress.step) * pace)
        return min(left, default=None)

    def reason_to_stop(self) -> str:
        """Why training is over; "" while it is not."""
        progress, config = self.progress, self.config
        if config.max_steps and progress.step >= config.max_steps:
            return f"max_steps {config.max_steps:,}"
        decayed = progress.decay is not None and progress.step >= progress.decay.start + progress.decay.steps
        if config.max_minutes and (decayed or self.clock.elapsed() >= self.time_limit()):
            return f"max_minutes {config.max_minutes:g}"
        if self.validation.patience and progress.validations_without_gain >= self.validation.patience:
            return f"no gain in {self.validation.patience} validations"
        return ""


def batch_loss(model: Transformer, batch: Batch, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Label-smoothed and plain cross-entropy of a batch, in nats summed over its real target tokens."""
    hidden = model.hidden(batch.target_input, model.encode(batch.source, batch.source_mask))  # (B, T, E)
    real = batch.target_mask
    return label_smoothed_loss(hidden[real], model.output_weight, batch.target[real], smoothing)
