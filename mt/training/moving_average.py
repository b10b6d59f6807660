"""An exponential moving average of the weights: what they were of late, without the noise of the last updates.

It often translates better than the weights themselves (Polyak and Juditsky 1992; Morales-Brotons et al. 2024), and
training does not depend on it.
"""

import torch
from torch import Tensor

EVERY = 5  # updates from one move of the average to the next, which counts for all of them: cheap even on a CPU


class MovingAverage:
    """Follows parameters, given by name, from where they stand; `weights` has their average under the same names.

    An update that left the parameters as they were needs no exception: the average moves on towards them.
    """

    def __init__(self, parameters: dict[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in where the parameters stand after this update, when it is one of those at which the average moves."""
        if step % EVERY == 0:
            kept = decay_at(step, self.decay) ** EVERY
            torch._foreach_lerp_(list(self.weights.values()), list(self.parameters.values()), 1 - kept)


def decay_at(step: int, decay: float) -> float:
    """What is kept of the average at an update: less in the first ones, so that early weights are soon forgotten.

    The warm-up is that of TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + step) / (10 + step))
