"""One optimizer step: the gradient of an update over its micro-batches, clipped, and what the optimizer makes of it.

Shapes: M target tokens and the rest of their row, E width.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mt.corpus.batching import Batch, Update
from mt.device import Compute
from mt.errors import DeviceError, out_of_memory
from mt.model.packing import Packing
from mt.model.transformer import Transformer
from mt.training.consistency import Consistency, consistent_loss
from mt.training.guard import Guard
from mt.training.loss import label_smoothed_loss


def batch_loss(
    model: Transformer, batch: Batch, smoothing: float, consistency: Consistency | None = None
) -> tuple[Tensor, Tensor]:
    """The loss that is learned from and plain cross-entropy, in nats summed over a batch's real target tokens."""
    if consistency:
        hidden = last_hidden(model, consistency.twice(batch))
        return consistent_loss(hidden, model.output_weight, batch.target, smoothing, consistency)
    return label_smoothed_loss(last_hidden(model, batch), model.output_weight, batch.target, smoothing)


def last_hidden(model: Transformer, batch: Batch) -> Tensor:
    """What the last decoder layer makes of a batch's row of target tokens: (M, E)."""
    source, target = (
        Packing(side.lengths, longest=side.longest, tokens=side.tokens, row=side.ids.size(1), seen=side.seen)
        for side in (batch.source, batch.target_input)
    )
    state = model.encode(batch.source.ids, packing=source)
    return model.hidden(batch.target_input.ids, state, target).flatten(0, 1)


class Outcome(NamedTuple):
    """What an update came to.  All of it stays on the device."""

    loss: Tensor  # without smoothing, in nats summed over the target tokens
    gradient_norm: Tensor  # of the loss per token, before it is clipped
    faults: Tensor  # (3,) 1 at that of `mt.training.guard.FAULTS` for which the update was skipped, else 0


class DoesNotFit(DeviceError):
    """Memory did not suffice for so many target tokens at a time; for fewer it may."""

    def __init__(self, tokens: int) -> None:
        super().__init__(
            f"out of memory with {tokens:,} target tokens at a time",
            f"compute fewer at a time: --set training.micro_batch_tokens={tokens // 2}",
        )
        self.tokens = tokens


@dataclass
class Updater:
    """Takes one optimizer step each time it is called."""

    model: Transformer
    optimizer: torch.optim.Optimizer  # a fused one: others cannot skip a step unseen
    compute: Compute
    label_smoothing: float
    gradient_clip: float  # largest norm of the gradient of the loss per token; 0: no clipping
    consistency: Consistency | None = None
    consistent: bool = True  # whether it counts yet

    def __post_init__(self) -> None:
        self.guard = Guard(self.compute.device)

    def __call__(self, update: Update, learning_rate: float) -> Outcome:
        """Follow the gradient of the loss per target token of an update, unless the guard finds fault with it.

        A skipped update leaves weights and optimizer as they were, bit for bit.  Raises as `gradient` does.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self.gradient(update)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip or math.inf)
        faults = self.guard.judge(loss / update.target_tokens, norm)
        self.optimizer.found_inf = faults.sum()  # type: ignore[attr-defined]  # where it is 1, the step is not taken
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Outcome(loss, norm, faults)

    def gradient(self, update: Update) -> Tensor:
        """Leave the gradient of the loss per target token at the weights.

        Returns the loss without smoothing, in nats summed over the tokens.  Raises `DoesNotFit` when memory does not
        suffice, with no gradient left, and `DeviceError` when it does not even suffice for one sentence at a time.
        """
        try:
            return self.backward(update)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        # Here the exception is gone, and with it the frames that held on to tensors.
        self.optimizer.zero_grad()
        self.compute.release_memory()
        largest = max(update.parts, key=lambda part: part.target_tokens)
        if max(part.sentences for part in update.parts) > 1:
            raise DoesNotFit(largest.target_tokens)
        raise DeviceError(
            f"out of memory with a single pair of {largest.source.tokens:,} and {largest.target_tokens:,} tokens",
            "leave long pairs out: --set data.max_tokens=N, or train a smaller model: --preset",
        )

    def backward(self, update: Update) -> Tensor:
        """See `gradient`; errors are those of PyTorch."""
        total = torch.zeros((), device=self.compute.device)
        for part in update.parts:
            loss, unsmoothed = self.loss(part)
            (loss / update.target_tokens).backward()
            total += unsmoothed
        return total

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `batch_loss`."""
        consistency = self.consistency if self.consistent else None
        with self.compute.autocast():
            return batch_loss(self.model, batch, self.label_smoothing, consistency)
