"""Which updates the weights must not follow, judged on the device: nobody waits for the verdict.

An update is skipped when its loss or its gradient is not finite, and when its loss is a spike: above the running mean
of the updates before it by more than ten standard deviations, and by more than a nat.  The bounds are wide because
an update holds sentences of like length, and those of one length are harder than those of another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FAULTS = ("loss not finite", "gradient not finite", "loss spike")
WINDOW = 100  # updates that mean and variance look back on, about; before there are so many, nothing is a spike
SPIKE_DEVIATIONS = 10.0
SPIKE_NATS = 1.0  # per target token


@dataclass(frozen=True, slots=True)
class LossHistory:
    """What the guard knows of the updates so far."""

    accepted: int = 0
    mean: float = 0.0  # of the accepted updates' losses, in nats per target token
    variance: float = 0.0
    skipped_in_a_row: int = 0  # up to the last update


class Guard:
    """Judges updates one after another.  Its memory stays on the device until somebody asks for the `history`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restore(LossHistory())

    def restore(self, history: LossHistory) -> None:
        numbers = (history.accepted, history.mean, history.variance, history.skipped_in_a_row)
        self.memory = torch.tensor(numbers, dtype=torch.float64, device=self.device)

    def history(self) -> LossHistory:
        accepted, mean, variance, skipped_in_a_row = self.memory.tolist()  # sync: when it is saved or logged
        return LossHistory(int(accepted), mean, variance, int(skipped_in_a_row))

    def judge(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """(3,) 1 at the first of `FAULTS` that an update has, else 0, from its loss in nats per target token."""
        accepted, mean, variance, skipped_in_a_row = self.memory
        margin = (SPIKE_DEVIATIONS * variance.sqrt()).clamp(min=SPIKE_NATS)
        spike = (accepted >= WINDOW) & (loss > mean + margin)
        faults = torch.stack((~loss.isfinite(), ~gradient_norm.isfinite(), spike))
        faults &= faults.cumsum(0) == 1
        # Of the first updates the plain mean and variance, later exponential ones (Welford 1962, Finch 2009).
        count = (accepted + 1).clamp(max=WINDOW)
        deviation = loss - mean
        followed = torch.stack(
            (
                accepted + 1,
                mean + deviation / count,
                (1 - 1 / count) * (variance + deviation**2 / count),
                torch.zeros_like(accepted),
            )
        )
        skipped = torch.stack((accepted, mean, variance, skipped_in_a_row + 1))
        self.memory = torch.where(faults.any(), skipped, followed)
        return faults.float()
