"""Dropout (Srivastava et al. 2014) that costs little on the CPU.

PyTorch draws a float for each element there, one after another: a quarter of a training step.  Here 64 random bits
decide over four elements, and the probability is exact to 2^-17: three to four times faster, gradient included.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16  # of the 16 bits that decide over an element


def sixteen_bits(count: int) -> Tensor:
    """`count` random numbers of type int16, uniform over all of its values; `torch.manual_seed` governs them."""
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # NumPy draws them twice as fast as PyTorch
    return torch.from_numpy(words.view(np.int16))[:count]


class SixteenBitDropout(torch.autograd.Function):
    """x times a mask of zeros and 1 / (1 - p)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        dropped = min(round(probability * LEVELS), LEVELS - 1)
        scale = LEVELS / (LEVELS - dropped)
        # In place the comparison leaves 0 and 1 as int16: bools would cost ten times as much.
        kept = sixteen_bits(x.numel()).ge_(dropped - LEVELS // 2).view(x.shape)
        if x.dtype == torch.bfloat16:  # as wide as the numbers drawn: 1 times the bits of `scale` is `scale`
            mask = kept.mul_(torch.tensor(scale, dtype=x.dtype).view(torch.int16)).view(x.dtype)
        else:
            mask = kept.to(x.dtype).mul_(scale)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None


def drop(x: Tensor, probability: float) -> Tensor:
    """Each element of x is 0 with this probability, and else 1 / (1 - probability) times itself."""
    if probability == 0:
        return x
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return SixteenBitDropout.apply(x, probability)
    return F.dropout(x, probability)


class Dropout(nn.Module):
    """`drop` in training, and nothing else."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.probability) if self.training else x
