"""Consistency training: a model reads each sentence twice, a little differently, and learns to predict alike.

R-Drop (Wu et al. 2021): two passes that differ by dropout.  Half of

    CE(p) + CE(q) + alpha / 2 * (KL(p | q) + KL(q | p)),

where p and q are what the passes predict.  SimCut (Gao et al. 2022): in the second pass some embeddings of source and
target are cut off besides, that is zero, and it is there to agree only:

    CE(p) + alpha * KL(p | q).

Gradients flow through both passes, which are one forward pass over a row that holds each sentence twice.

Shapes: M rows, of which the first are target tokens, then the same once more, the rest padding; E width, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mt.corpus.batching import ROW_TOKENS, Batch, PackedSentences
from mt.training.loss import ForwardGradients, Gradients, log_norms

# Logits of either pass that exist at a time; there are some ten tensors of this size.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}


class Shares(NamedTuple):
    """How much each term counts: the cross-entropies of both passes, and the divergences of both."""

    first: float
    second: float
    second_from_first: float  # KL(p | q), per alpha
    first_from_second: float  # KL(q | p), per alpha


SHARES = {"r-drop": Shares(1 / 2, 1 / 2, 1 / 4, 1 / 4), "simcut": Shares(1, 0, 1, 0)}
ALPHA = {"r-drop": 5.0, "simcut": 3.0}  # of the papers
CUTOFF = {"r-drop": 0.0, "simcut": 0.05}


@dataclass(frozen=True, kw_only=True, slots=True)
class Consistency:
    """Which method, how much agreement counts, and the share of embeddings that the second pass does not see."""

    method: str  # r-drop | simcut
    alpha: float
    cutoff: float

    @property
    def shares(self) -> Shares:
        first, second, forward, backward = SHARES[self.method]
        return Shares(first, second, self.alpha * forward, self.alpha * backward)

    def twice(self, batch: Batch) -> Batch:
        """Each sentence twice; the second time some of its embeddings are cut off.  Targets stay as they are."""
        return replace(
            batch,
            source=laid_twice(batch.source, self.cutoff),
            target_input=laid_twice(batch.target_input, self.cutoff),
        )


def laid_twice(side: PackedSentences, cutoff: float) -> PackedSentences:
    ids, tokens = side.ids[:, : side.tokens], side.tokens
    ids = F.pad(torch.cat((ids, ids), dim=1), (0, -2 * tokens % ROW_TOKENS))
    seen = None
    if cutoff:
        seen = torch.ones(ids.shape, device=ids.device)
        seen[:, tokens : 2 * tokens] = torch.rand(tokens, device=ids.device) >= cutoff
    return PackedSentences(ids, torch.cat((side.lengths, side.lengths)), 2 * tokens, side.longest, seen)


def consistent_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, consistency: Consistency
) -> tuple[Tensor, Tensor]:
    """The loss of this module in nats, summed over tokens; its cross-entropies are label-smoothed.

    From hidden (M, E), weight (V, E) and targets of one pass.  The second value is the cross-entropy of the first pass
    without smoothing, for the log and the guard; it has no gradient.
    """
    compute = partial(loss_and_gradients, targets=targets, smoothing=smoothing, shares=consistency.shares)
    return ForwardGradients.apply(hidden, weight, compute)


def loss_and_gradients(
    hidden: Tensor, weight: Tensor, product_type: torch.dtype, *, targets: Tensor, smoothing: float, shares: Shares
) -> Gradients:
    """See `consistent_loss`; products in one type, all else in float32.

    What smoothing takes from all logits alike has rank one, and is taken from the sums, as in `loss.py`.
    """
    tokens, size = len(targets), max(1, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
    factor = weight.to(product_type)
    unsmoothed = hidden.new_zeros((), dtype=torch.float32)
    share = torch.zeros_like(hidden[:, 0])  # of each row's cross-entropy in the loss: (M,)
    share[:tokens], share[tokens : 2 * tokens] = shares.first, shares.second
    spread = smoothing / len(weight)
    hidden_sum, weight_sum = share @ hidden, weight.sum(0)  # (E,)
    loss = -spread * (hidden_sum @ weight_sum)
    hidden_gradient = -spread * share[:, None] * weight_sum
    weight_gradient = (-spread * hidden_sum).repeat(len(weight), 1)
    for start in range(0, tokens, size):
        chosen = targets[start : start + size]
        places = [slice(offset + start, offset + start + len(chosen)) for offset in (0, tokens)]
        chunk = torch.cat([hidden[place] for place in places]).to(product_type)  # of the first pass, then the second
        logits = (chunk @ factor.T).float()
        some_loss, some_unsmoothed, gradient = token_losses(logits, chosen, smoothing, shares)
        loss += some_loss
        unsmoothed += some_unsmoothed
        gradient = gradient.to(product_type)
        for place, part in zip(places, (gradient @ factor).chunk(2), strict=True):
            hidden_gradient[place] += part.to(hidden.dtype)
        weight_gradient += (gradient.T @ chunk).to(weight.dtype)
    return loss, unsmoothed, hidden_gradient, weight_gradient


def token_losses(logits: Tensor, targets: Tensor, smoothing: float, shares: Shares) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (without smoothing's uniform part) and first cross-entropy, summed; the gradient of the logits.

    The logits (2 * tokens, V) are those of p, then of q.  With r = log p - log q the gradient of KL(p | q) is
    p (r - KL(p | q)) in the logits of p, and q - p in those of q.  What is the same for all logits of a token is kept
    as one number per token, so that the (tokens, V) matrices are read as rarely as possible.
    """
    forward, backward = shares.second_from_first, shares.first_from_second
    wanted = torch.arange(len(targets), device=targets.device), targets
    p_logits, q_logits = logits.chunk(2)
    p_wanted, q_wanted = p_logits[wanted], q_logits[wanted]
    probabilities = logits.softmax(-1)
    p, q = probabilities.chunk(2)
    p_norm, q_norm = log_norms(logits, probabilities).chunk(2)
    norm, ratio = p_norm - q_norm, p_logits - q_logits  # r = ratio - norm
    from_p = torch.linalg.vecdot(p, ratio) - norm  # KL(p | q)
    from_q = norm - torch.linalg.vecdot(q, ratio)  # KL(q | p)
    loss = (
        forward * from_p + backward * from_q + shares.first * p_norm + shares.second * q_norm
        - (1 - smoothing) * (shares.first * p_wanted + shares.second * q_wanted)
    ).sum()  # fmt: skip
    p_factor = shares.first + backward - forward * (norm + from_p)
    q_factor = shares.second + forward + backward * (norm - from_q)
    gradient = torch.empty_like(logits)
    p_gradient, q_gradient = gradient.chunk(2)
    torch.add(p_factor[:, None], ratio, alpha=forward, out=p_gradient).mul_(p).sub_(q, alpha=backward)
    torch.add(q_factor[:, None], ratio, alpha=-backward, out=q_gradient).mul_(q).sub_(p, alpha=forward)
    p_gradient[wanted] -= shares.first * (1 - smoothing)
    q_gradient[wanted] -= shares.second * (1 - smoothing)
    return loss, (p_norm - p_wanted).sum(), gradient


def plain_consistent_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, consistency: Consistency
) -> tuple[Tensor, Tensor]:
    """What `consistent_loss` computes, by PyTorch's own functions over the whole matrix: its slow twin."""
    logits = F.linear(hidden[: 2 * len(targets)], weight).float()
    p, q = logits.log_softmax(-1).chunk(2)  # (tokens, V)
    shares = consistency.shares
    first, second = (
        F.cross_entropy(each, targets, label_smoothing=smoothing, reduction="sum") for each in logits.chunk(2)
    )
    loss = shares.first * first + shares.second * second
    loss = loss + shares.second_from_first * F.kl_div(q, p, log_target=True, reduction="sum")
    loss = loss + shares.first_from_second * F.kl_div(p, q, log_target=True, reduction="sum")
    return loss, F.nll_loss(p, targets, reduction="sum").detach()
