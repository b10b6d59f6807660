"""Trains `MarianMTModel` for some minutes as a careful user does by hand, and keeps the weights that validate best.

The loop is that of `trainers.py`, around it a learning rate that warms up and falls with the inverse square root of the
update, and validation by loss and by BLEU of greedy translations.
"""

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from engines import BATCH_SENTENCES, Generation
from peers import huggingface_shape
from trainers import GRADIENT_CLIP, LABEL_SMOOTHING, Marian, make_adam, padded, peer_loss, peer_update

from mt.corpus.batching import BatchSampler
from mt.device import Compute
from mt.evaluation.metrics import choose_tokenizer, quick_scores
from mt.pipelines.prepare import PreparedRun
from mt.training.budget import Clock

LOG_EVERY_UPDATES = 50
LENGTH_PENALTIES = (0.6, 1.0, 1.4, 1.8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast to learn."""

    minutes: float  # of the whole command
    seed: int
    attention_dropout: float
    peak_learning_rate: float
    warmup_updates: int
    validate_every_updates: int

    def learning_rate(self, update: int) -> float:
        """Of an update, the first being 1: up in a line to the peak, then down with the inverse square root."""
        return self.peak_learning_rate * min(update / self.warmup_updates, (self.warmup_updates / update) ** 0.5)


class MarianTraining:
    """A model on the text of a run, from random weights to those that scored best on the validation text."""

    def __init__(self, prepared: PreparedRun, compute: Compute, schedule: Schedule, clock: Clock) -> None:
        self.prepared, self.compute, self.schedule, self.clock = prepared, compute, schedule, clock
        torch.manual_seed(schedule.seed)
        model = Marian(prepared.config.model, prepared.specials[1], attention_dropout=schedule.attention_dropout)
        self.model = model.to(compute.device)
        self.optimizer = make_adam(self.model, schedule.peak_learning_rate)
        self.update = 0
        self.validations: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.length_penalty = 1.0  # of beam search
        self.rates: list[float] = []  # target tokens a second, validation left out
        self.restart_pace()

    def restart_pace(self) -> None:
        self.compute.synchronize()
        self.interval_started, self.interval_tokens = time.perf_counter(), 0

    def fit(self) -> None:
        """Train until the minutes are used up, and load the best weights."""
        data, config = self.prepared.data, self.prepared.config
        sampler = BatchSampler(
            data.train, batch_tokens=config.data.batch_tokens, seed=self.schedule.seed, weights=data.weights
        )
        for indices, *_ in sampler.updates(0, 0):
            self.update += 1
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(self.update)
            self.model.train()
            peer_update(self.model, self.optimizer, self.compute, padded(data.train, self.prepared.specials, indices))
            self.interval_tokens += int(data.train.target.lengths[indices].sum())
            ended = self.clock.elapsed() >= self.time_limit()
            if ended or self.update % LOG_EVERY_UPDATES == 0:
                self.log_pace()
            if ended or self.update % self.schedule.validate_every_updates == 0:
                self.validate()
                self.restart_pace()
            if ended:
                break
        self.seconds = self.clock.elapsed()
        self.model.load_state_dict(self.best)

    def time_limit(self) -> float:
        """Seconds of the command after which updates must end, so that the last validation ends in time."""
        budget = self.schedule.minutes * 60
        return budget - max((each["validation_seconds"] for each in self.validations), default=0.1 * budget)

    def log_pace(self) -> None:
        self.compute.synchronize()
        self.rates.append(self.interval_tokens / (time.perf_counter() - self.interval_started))
        self.restart_pace()
        print(f"update {self.update:,}: {self.rates[-1]:,.0f} target tok/s", file=sys.stderr)

    def validate(self) -> None:
        started = self.clock.elapsed()
        scores = {"loss": self.loss(), **self.validation_scores(beam=1)}
        if scores["bleu"] >= max((each["bleu"] for each in self.validations), default=0.0):
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        ended = self.clock.elapsed()
        self.validations.append(
            {"step": self.update, "seconds": ended, **scores, "validation_seconds": ended - started}
        )
        print(f"update {self.update:,}: loss {scores['loss']:.3f}, BLEU {scores['bleu']:.1f}", file=sys.stderr)

    def validation_scores(self, *, beam: int) -> dict[str, float]:
        most = self.prepared.config.validation.max_sentences
        data, language = self.prepared.data, self.prepared.config.data.target_language
        translations = self.translate(data.valid_sources[:most], beam=beam)
        return quick_scores(translations, data.valid_references[:most], choose_tokenizer(language, None))

    def choose_length_penalty(self, *, beam: int) -> None:
        """Keep the penalty of the highest validation BLEU; mt takes the one nearest to 1 within 0.2 points of that."""
        scores = {}
        for self.length_penalty in LENGTH_PENALTIES:
            scores[self.length_penalty] = self.validation_scores(beam=beam)["bleu"]
            print(f"length penalty {self.length_penalty}: BLEU {scores[self.length_penalty]:.2f}", file=sys.stderr)
        self.length_penalty = max(scores, key=lambda penalty: scores[penalty])

    @torch.inference_mode()
    def loss(self) -> float:
        """Cross-entropy of the validation text without smoothing, in nats per target token."""
        self.model.eval()
        valid, total = self.prepared.data.valid, 0.0
        sampler = BatchSampler(valid, batch_tokens=self.prepared.config.data.batch_tokens, seed=0)
        for indices in sampler.epoch(0):
            batch = padded(valid, self.prepared.specials, indices)
            mean = peer_loss(self.model, self.compute, batch, label_smoothing=0.0)
            total += mean.item() * int(valid.target.lengths[indices].sum())
        return total / int(valid.target.lengths.sum())

    def translate(self, lines: list[str], *, beam: int) -> list[str]:
        """In float32, as `mt` validates on a CPU."""
        self.model.eval()
        generation = Generation(
            self.model.model,
            self.prepared.tokenizers,
            beam=beam,
            early_stopping=False,  # the default of `generate`
            batch=BATCH_SENTENCES[self.compute.device.type],
            threads=torch.get_num_threads(),
            max_target_tokens=self.max_target_tokens,
            length_penalty=self.length_penalty,
        )
        return generation.translate(lines).translations

    def max_target_tokens(self, source_tokens: int) -> int:
        """That of mt's search."""
        limits, positions = self.prepared.decoding, self.prepared.config.model.max_positions
        return min(int(limits.max_length_ratio * source_tokens) + limits.max_length_offset, positions)

    def settings(self) -> dict[str, Any]:
        config = self.prepared.config
        return {
            **asdict(self.schedule),
            "length_penalty": self.length_penalty,
            "batch_tokens": config.data.batch_tokens,
            "label_smoothing": LABEL_SMOOTHING,
            "gradient_clip": GRADIENT_CLIP,
            "precision": self.compute.precision,
            "threads": config.training.threads,
            "model": {**huggingface_shape(config.model), "dropout": config.model.dropout},
        }

    def figures(self) -> dict[str, Any]:
        """What `train.py` says of a run of mt, under the same names."""
        return {
            "steps": self.update,
            "minutes": round(self.seconds / 60, 2),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad),
            "target_tokens_per_second_median": statistics.median(self.rates),
            "peak_memory_gib": self.compute.memory_gib(),
            "validation": self.validations,
        }
