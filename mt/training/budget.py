"""Where training stands, and how far its limits still reach."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from mt.training.config import TrainingConfig
from mt.training.guard import LossHistory
from mt.training.optimizer import Decay, OptimizerConfig

Record = dict[str, Any]

# What the reason for which a run has ended begins with.
MAX_STEPS, MAX_MINUTES, NO_GAIN = "max_steps", "max_minutes", "no gain"


@dataclass
class Progress:
    """Where training stands: all of state.json but checksums of files."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # updates done of this epoch
    target_tokens: int = 0
    elapsed_seconds: float = 0.0  # of the command, added up over resumes
    max_steps: int = 0  # the limits that this was reached under
    max_minutes: float = 0.0
    decay: Decay | None = None  # once the learning rate falls for good
    consistent: bool | None = None  # whether two passes are made from here on; None: not yet decided
    best: list[tuple[float, int]] = field(default_factory=list)  # (score, step), best first
    bleu_tokenizer: str = ""  # of all those scores, though another session might have a better one
    published: float | None = None  # the score of the weights to use, which only better ones replace
    validations_without_gain: int = 0
    validated_step: int = 0  # the last step that was judged
    validation_seconds: float = 0.0  # that the last validation took
    guard: LossHistory = field(default_factory=LossHistory)
    rollbacks: list[int] = field(default_factory=list)  # the steps that training went back to
    finished: str = ""  # why training ended; "" until all that ends a run is done

    @property
    def sound_step(self) -> int:
        """The last step whose update was not skipped."""
        return self.step - self.guard.skipped_in_a_row

    @property
    def learning_rate_scale(self) -> float:
        """What the learning rate of the recipe is multiplied by."""
        return 0.5 ** len(self.rollbacks)

    def record(self) -> Record:
        return asdict(self)

    @classmethod
    def of(cls, record: Record) -> "Progress":
        decay = Decay(**record["decay"]) if record["decay"] else None
        best = [tuple(entry) for entry in record["best"]]
        # What records of earlier versions lack: there the best weights were the ones to use.
        guard = LossHistory(**record.get("guard", {}))
        published = record.get("published", best[0][0] if best else None)
        return cls(**{**record, "decay": decay, "best": best, "guard": guard, "published": published})


def limits_changed(before: tuple[int, float], now: tuple[int, float]) -> bool:
    """Whether a limit of steps or minutes that there was is now another one, or gone."""
    return any(b and n != b for b, n in zip(before, now, strict=True))


class Clock:
    """Seconds of the whole command: those of earlier sessions, and those since this process started."""

    def __init__(self, started: float, before: float = 0.0) -> None:
        self.started = started
        self.before = before

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.started


MOST_CLOSING = 0.3  # of the minutes, for what comes after the last update; very few minutes are overrun by it


class Budget:
    """What is left of a run's steps and minutes, at the pace of this session, and when the learning rate must fall."""

    def __init__(
        self,
        config: TrainingConfig,
        optimizer: OptimizerConfig,
        progress: Progress,
        clock: Clock,
        closing_validations: float,
    ) -> None:
        """`closing_validations`: how many validations take as long as what comes after the last update."""
        self.config, self.optimizer, self.progress, self.clock = config, optimizer, progress, clock
        self.closing_validations = closing_validations
        self.restart_pace()

    def restart_pace(self) -> None:
        """Measure the pace anew, once the next update is done, for which an epoch is laid out and layers compiled."""
        self.paced_from: tuple[float, int] | None = None  # seconds, step

    def updated(self) -> None:
        """Take note of an update that is done."""
        if self.paced_from is None:
            self.paced_from = self.clock.elapsed(), self.progress.step

    def paced_steps(self) -> int:
        """How many steps the pace is that of."""
        return self.progress.step - self.paced_from[1] if self.paced_from else 0

    def time_limit(self) -> float:
        """Seconds of the command after which updates must end, so that it ends in time."""
        budget = self.config.max_minutes * 60
        known = self.progress.validation_seconds
        closing = self.closing_validations * known + 2.0 if known else 0.1 * budget
        return budget - min(closing, MOST_CLOSING * budget)

    def seconds_a_step(self) -> float:
        """The pace; asked once there are steps to tell it by."""
        assert self.paced_from
        return (self.clock.elapsed() - self.paced_from[0]) / self.paced_steps()

    def decay(self) -> Decay | None:
        """The decay that begins after the step done last, once that is known; None before."""
        schedule, step = self.optimizer.schedule, self.progress.step
        if schedule == "cosine":
            return Decay(0, max(1, self.config.max_steps))
        if schedule != "warmup_stable_decay":
            return None
        stable = 1 - self.optimizer.decay_fraction
        paced = self.paced_steps() >= 5  # enough to tell how fast this session is
        due, left = False, []  # by each limit that is known, and the steps to it
        if self.config.max_minutes:
            due = self.clock.elapsed() >= stable * self.time_limit()
            if due and not paced:  # how many steps are left cannot be told yet
                return None
        if self.config.max_steps:
            due = due or step >= round(stable * self.config.max_steps)
            left.append(self.config.max_steps - step)
        if self.config.max_minutes and paced:
            seconds = self.time_limit() - self.clock.elapsed()
            left.append(int(0.95 * seconds / self.seconds_a_step()))  # a little slower than so far
        return Decay(step, max(1, min(left))) if due else None

    def share_used(self) -> float:
        """The share of the nearer limit that is used up; 0 without a limit."""
        shares = [0.0]
        if self.config.max_steps:
            shares.append(self.progress.step / self.config.max_steps)
        if self.config.max_minutes:
            shares.append(self.clock.elapsed() / self.time_limit())
        return max(shares)

    def seconds_left(self) -> float | None:
        """Until the nearer limit; None without one."""
        left = []
        if self.config.max_minutes:
            left.append(max(0.0, self.time_limit() - self.clock.elapsed()))
        if self.config.max_steps and self.paced_steps():
            left.append((self.config.max_steps - self.progress.step) * self.seconds_a_step())
        return min(left, default=None)

    def used_up(self) -> str:
        """Which limit has been reached; "" while none is."""
        progress, config = self.progress, self.config
        if config.max_steps and progress.step >= config.max_steps:
            return f"{MAX_STEPS} {config.max_steps:,}"
        decayed = progress.decay is not None and progress.step >= progress.decay.start + progress.decay.steps
        if config.max_minutes and (decayed or self.clock.elapsed() >= self.time_limit()):
            return f"{MAX_MINUTES} {config.max_minutes:g}"
        return ""
