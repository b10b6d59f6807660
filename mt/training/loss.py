"""Label-smoothed cross-entropy of a projection to the vocabulary, without the (tokens, V) matrix.

The vocabulary axis is where memory goes: 4,096 tokens times 32,000 pieces are half a gigabyte in float32, several times
over.  Here logits exist for one chunk of tokens at a time, and their gradient is taken at once, in the forward pass.

Shapes: M rows, of which the first are target tokens and the rest padding, E width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits that exist at a time: 16 MiB of float32 stay in a CPU's cache; a GPU wants large products, half a gigabyte.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}

Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # loss, unsmoothed, and of hidden (M, E), weight (V, E)


class ForwardGradients(torch.autograd.Function):
    """A loss of hidden (M, E) and weight (V, E) whose gradients are taken with it, in the forward pass.

    `compute` is given both, and the dtype in which matrix products are computed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, compute: Callable[[Tensor, Tensor, torch.dtype], Gradients]
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):  # enabled, it would compute the softmax in float32
            loss, unsmoothed, *gradients = compute(hidden, weight, product_type)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(unsmoothed)
        return loss, unsmoothed

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outputs[0], weight_gradient * outputs[0], None


def loss_and_gradients(
    hidden: Tensor, weight: Tensor, product_type: torch.dtype, *, targets: Tensor, smoothing: float
) -> Gradients:
    """See `label_smoothed_loss`.

    The gradient of the logits is softmax - (1 - smoothing) one-hot - smoothing / V.  Its last term is the same for all
    logits, so it is taken from the gradient's products, where it has rank one, and not from (tokens, V) numbers; so is
    the mean of the logits.
    """
    size = max(1, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
    factor = weight.to(product_type)
    log_norm_sum = hidden.new_zeros((), dtype=torch.float32)
    wanted_sum = log_norm_sum.clone()
    tokens = len(targets)
    hidden_sum, weight_sum = hidden[:tokens].sum(0), weight.sum(0)  # (E,)
    spread = smoothing / len(weight)
    hidden_gradient = (-spread * weight_sum).repeat(len(hidden), 1)
    hidden_gradient[tokens:] = 0
    weight_gradient = (-spread * hidden_sum).repeat(len(weight), 1)
    for start in range(0, len(hidden), size):
        chunk = hidden[start : start + size].to(product_type)
        chosen = targets[start : start + size]
        wanted = torch.arange(len(chosen), device=chosen.device), chosen
        logits = chunk @ factor.T  # (size, V)
        gradient = logits.softmax(-1)
        gradient[len(chosen) :] = 0  # of padding
        real = slice(len(chosen))
        log_norm_sum += log_norms(logits[real], gradient[real]).sum()
        wanted_sum += logits[wanted].sum(dtype=torch.float32)
        gradient[wanted] -= 1 - smoothing  # `scatter_add_` copies all of a bfloat16 matrix on a CPU
        # Cast before they are added: to add two types costs a CPU many times more.
        hidden_gradient[start : start + size] += (gradient @ factor).to(hidden.dtype)
        weight_gradient += (gradient.T @ chunk).to(weight.dtype)
    unsmoothed = log_norm_sum - wanted_sum
    mean_sum = (hidden_sum @ weight_sum) / len(weight)  # of the mean logit of every token
    loss = (1 - smoothing) * unsmoothed + smoothing * (log_norm_sum - mean_sum)
    return loss, unsmoothed, hidden_gradient, weight_gradient


def log_norms(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of the logits (tokens, V) that gave these probabilities: (tokens,) in float32.

    p = exp(logit - norm) says it for the largest logit, whose probability cannot underflow.
    """
    return logits.amax(-1).float() - probabilities.amax(-1).float().log()


def label_smoothed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, summed over tokens, against (1 - smoothing) of the target and smoothing / V of each piece.

    From hidden (M, E), weight (V, E) and targets, which may be fewer than M: the rest is padding.  The second value is
    the sum without smoothing, for the log and the guard; it has no gradient.
    Szegedy et al. 2016, section 7, as in Vaswani et al. 2017, section 5.4.
    """
    return ForwardGradients.apply(hidden, weight, partial(loss_and_gradients, targets=targets, smoothing=smoothing))


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What `label_smoothed_loss` returns as its second value, where no gradient is taken."""
    size = max(1, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), size):
        chosen = targets[start : start + size]
        logits = F.linear(hidden[start : start + len(chosen)], weight)  # (size, V)
        total += F.cross_entropy(logits.float(), chosen, reduction="sum")
    return total


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """What `label_smoothed_loss` computes, by PyTorch's own functions over the whole matrix: its slow twin."""
    logits = F.linear(hidden[: len(targets)], weight).float()  # (tokens, V)
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    return loss, F.cross_entropy(logits, targets, reduction="sum").detach()
