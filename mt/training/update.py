"""One optimizer step: the gradient of an update over its micro-batches, clipped, and what AdamW makes of it.

Shapes: M target tokens and the rest of their row, E width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mt.corpus.batching import Batch, Update
from mt.device import Compute
from mt.model.packing import Packing
from mt.model.transformer import Transformer
from mt.training.consistency import Consistency, consistent_loss
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


@dataclass
class Updater:
    """What makes a model a little better: called once an update."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    compute: Compute
    label_smoothing: float
    gradient_clip: float  # largest norm of the gradient of the loss per token; 0: no clipping
    consistency: Consistency | None = None

    def __call__(self, update: Update, learning_rate: float) -> Tensor:
        """Follow the gradient of the loss per target token of an update.

        Returns the loss without smoothing, in nats summed over the tokens; it stays on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        total = self.backward(update)
        if self.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def backward(self, update: Update) -> Tensor:
        """Leave the gradient of the loss per target token in the parameters; the loss itself is returned as above."""
        total = torch.zeros((), device=self.compute.device)
        for part in update.parts:
            loss, unsmoothed = self.loss(part)
            (loss / update.target_tokens).backward()
            total += unsmoothed
        return total

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `batch_loss`."""
        with self.compute.autocast():
            return batch_loss(self.model, batch, self.label_smoothing, self.consistency)
