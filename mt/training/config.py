"""How long to train, what to keep, and how a model is judged meanwhile."""

from dataclasses import dataclass

from mt.errors import ConfigError
from mt.settings import auto
from mt.training.consistency import SHARES

METRICS = ("bleu", "chrf", "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long to train, on what, and what to keep."""

    max_steps: int = 0  # updates; 0: no limit
    max_minutes: float = 0.0  # of the whole command, added up over resumes; 0: no limit
    seed: int = 1
    device: str = auto()  # cpu | cuda
    precision: str = auto()  # fp32 | tf32 | bf16
    threads: int = auto()  # of the CPU
    compile: bool = auto()  # the layers, at the start of each session; auto: on CUDA
    bidirectional_epochs: int = 0  # first ones, with all pairs in both directions; needs one tokenizer for both sides
    sampling_alpha: float = 0.0  # pieces drawn anew each epoch: unigram 0.3, say; bpe 0.1; 0: always the best ones
    noise_rate: float = auto()  # share of sources in lower or title case, or mistyped, anew each epoch
    noise_from_epoch: int = auto()  # the epochs before it, counted from 0, have no noise
    label_smoothing: float = 0.1  # share of the target's probability spread over the vocabulary
    consistency: str = auto()  # off | r-drop | simcut: two passes over each sentence are made to predict alike
    consistency_from: float = auto()  # share of the budget before which there is one pass; auto: 0.3 with a limit
    consistency_epochs: int = auto()  # needed by then, else one pass to the end; auto: 10, or 0 with a given method
    consistency_alpha: float = auto()  # how much their agreement counts; auto: as published
    cutoff: float = auto()  # share of embeddings that the second pass does not see; auto: as published
    micro_batch_tokens: int = auto()  # target tokens computed at a time; 0: an update, or what of it a GPU holds
    log_every_steps: int = 50
    tensorboard: bool = False  # also write the log's numbers for TensorBoard, to RUN/tensorboard
    validate_every_steps: int = auto()
    checkpoint_every_steps: int = auto()
    keep_last: int = 5  # checkpoints
    keep_best: int = 3  # checkpoints, and how many of the best are averaged at the end
    ema_decay: float = 0.0  # per update, of a moving average of the weights, such as 0.999; 0: no average
    timeout_seconds: float = 600.0  # for which one of several processes may keep the others waiting

    def __post_init__(self) -> None:
        for name in (
            "max_steps", "max_minutes", "bidirectional_epochs", "noise_from_epoch", "consistency_alpha",
            "consistency_epochs", "micro_batch_tokens", "seed", "threads",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is negative")
        if self.seed >= 1 << 63:
            raise ConfigError("training.seed is not below 2^63")
        for name in ("log_every_steps", "validate_every_steps", "checkpoint_every_steps", "keep_last", "keep_best"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is below 1")
        if self.timeout_seconds <= 0:
            raise ConfigError("training.timeout_seconds is not above 0")
        for name in ("sampling_alpha", "noise_rate", "ema_decay", "label_smoothing", "cutoff", "consistency_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"training.{name} {getattr(self, name)} is not at least 0 and below 1")
        if self.consistency != "off" and self.consistency not in SHARES:
            raise ConfigError(f"training.consistency {self.consistency} is none of off, {', '.join(SHARES)}")

    @property
    def passes(self) -> int:
        """How often an update reads each of its sentences."""
        return 1 if self.consistency == "off" else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """How a model is judged while it trains."""

    metric: str = "bleu"  # bleu | chrf | loss: what "best" means, and what patience waits for
    patience: int = auto()  # validations without a gain before training stops; 0: never; auto: 10 without a limit
    beam: int = 1  # of the translations that are scored
    max_sentences: int = 2_000  # of the validation set that are translated
    samples: int = 5  # translations shown in samples.txt
    tune_length_penalty: bool = True  # at the end: that of the run's translations, by a beam search

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"validation.metric {self.metric} is none of {', '.join(METRICS)}")
        for name in ("patience", "samples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"validation.{name} is negative")
        for name in ("beam", "max_sentences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"validation.{name} is below 1")

    def score(self, scores: dict[str, float]) -> float:
        """What of a validation's scores says which weights are best: the larger, the better."""
        return -scores["loss"] if self.metric == "loss" else scores[self.metric]
