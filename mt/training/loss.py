"""Label-smoothed cross-entropy of a projection to the vocabulary, without the (tokens, V) matrix.

The vocabulary axis is where memory goes: 4,096 tokens times 32,000 pieces are half a gigabyte in float32, several times
over.  Here logits exist for one chunk of tokens at a time, and their gradient is taken at once, in the forward pass.

Shapes: M target tokens, E width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits that exist at a time: 16 MiB of float32 stay in a CPU's cache; a GPU wants large products, half a gigabyte.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}


class ChunkedCrossEntropy(torch.autograd.Function):
    """See `label_smoothed_loss`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        size = max(1, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
        loss = hidden.new_zeros((), dtype=torch.float32)
        unsmoothed = loss.clone()
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        product_type = torch.get_autocast_dtype(hidden.device.type) if is_autocast(hidden) else hidden.dtype
        weight = weight.to(product_type)
        for start in range(0, len(hidden), size):
            chunk = hidden[start : start + size].to(product_type)
            chosen = targets[start : start + size, None]
            logits = (chunk @ weight.T).float()  # (size, V)
            log_norms = logits.logsumexp(-1, keepdim=True)
            wanted = log_norms - logits.gather(1, chosen)  # (size, 1) nats
            unsmoothed += wanted.sum()
            loss += (1 - smoothing) * wanted.sum() + smoothing * (log_norms - logits.mean(-1, keepdim=True)).sum()
            gradient = logits.sub_(log_norms).exp_().sub_(smoothing / len(weight))
            gradient.scatter_add_(1, chosen, gradient.new_full(chosen.shape, smoothing - 1))
            gradient = gradient.to(product_type)
            hidden_gradient[start : start + size] = gradient @ weight
            weight_gradient += gradient.T @ chunk
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(unsmoothed)
        return loss, unsmoothed

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outputs[0], weight_gradient * outputs[0], None, None


def is_autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def label_smoothed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, summed over tokens, against (1 - smoothing) of the target and smoothing / V of each piece.

    From hidden (M, E), weight (V, E), targets (M,).  The second value is the sum without smoothing, for the eye only.
    Szegedy et al. 2016, section 7, as in Vaswani et al. 2017, section 5.4.
    """
    return ChunkedCrossEntropy.apply(hidden, weight, targets, smoothing)


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """What `label_smoothed_loss` computes, by PyTorch's own functions over the whole matrix: its slow twin."""
    logits = F.linear(hidden, weight).float()  # (M, V)
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    return loss, F.cross_entropy(logits, targets, reduction="sum").detach()
