"""The optimizer, and the learning rate of each step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mt.errors import ConfigError
from mt.settings import auto
from mt.training.muon import Muon, hidden_matrices

METHODS = ("adamw", "muon")
SCHEDULES = ("warmup_stable_decay", "inverse_sqrt", "cosine", "constant")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How weights follow gradients."""

    method: str = "adamw"  # adamw | muon
    peak_learning_rate: float = auto()  # reached at the end of the warm-up
    schedule: str = auto()  # auto: warmup_stable_decay with a limit of steps or minutes, inverse_sqrt without
    warmup_steps: int = auto()  # steps of linear growth from 0
    decay_fraction: float = 0.4  # of the budget, at its end, in which warmup_stable_decay falls to 0
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.01  # on matrices; biases and norms have none
    gradient_clip: float = 1.0  # largest norm of the gradient of the loss per token; 0: no clipping

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"optimizer.method {self.method} is none of {', '.join(METHODS)}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"optimizer.schedule {self.schedule} is none of {', '.join(SCHEDULES)}")
        if not 0 < self.peak_learning_rate < math.inf:
            raise ConfigError(f"optimizer.peak_learning_rate {self.peak_learning_rate} is not above 0")
        if not 0 < self.epsilon < math.inf:
            raise ConfigError(f"optimizer.epsilon {self.epsilon} is not above 0")
        for name in ("weight_decay", "gradient_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optimizer.{name} {getattr(self, name)} is not a number from 0 on")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name} {getattr(self, name)} is not at least 0 and below 1")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps {self.warmup_steps} is negative")
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"optimizer.decay_fraction {self.decay_fraction} is not between 0 and 1")


@dataclass(frozen=True, slots=True)
class Decay:
    """When the learning rate falls from its peak to 0, in steps; known late where the budget is in minutes."""

    start: int
    steps: int


def learning_rate(config: OptimizerConfig, step: int, decay: Decay | None) -> float:
    """The learning rate of step 1, 2, ...  `decay` is needed by cosine, and by warmup_stable_decay once it decays.

    inverse_sqrt: Vaswani et al. 2017, equation 3, with its peak given.  warmup_stable_decay falls by 1 - sqrt of the
    share of the decay done (Hägele et al. 2024).  Where they fall before the warm-up has ended, the lower rate counts.
    """
    warmup = max(1, config.warmup_steps)
    done = min(1.0, max(0.0, (step - decay.start) / decay.steps)) if decay else 0.0
    falling = 1.0
    if config.schedule == "inverse_sqrt":
        falling = math.sqrt(warmup / step)
    elif config.schedule == "cosine":
        falling = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "warmup_stable_decay":
        falling = 1 - math.sqrt(done)
    return config.peak_learning_rate * min(step / warmup, falling)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) in PyTorch's fused form, or Muon; its learning rate is set at every step."""
    settings: dict[str, Any] = {
        "lr": config.peak_learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    hidden = hidden_matrices(model) if config.method == "muon" else {}
    others = [p for p in model.parameters() if p not in hidden]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1]},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Muon(hidden, groups, **settings) if hidden else torch.optim.AdamW(groups, **settings)
