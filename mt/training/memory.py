"""How many target tokens at a time the memory of a GPU holds, found by trying before the first step."""

import logging
from collections.abc import Callable
from functools import partial

import torch

from mt.corpus.batching import Batch
from mt.errors import out_of_memory
from mt.training.update import Updater

logger = logging.getLogger(__name__)

MARGIN = 0.85  # of the free memory is all that a try may take: later batches have other shapes
MOMENTS = 2  # numbers that an optimizer comes to keep for each weight


def tokens_that_fit(updater: Updater, parts: Callable[[int], list[Batch]], tokens: int) -> int:
    """Halve the target tokens at a time, from `tokens` on, until what has to be computed fits; returns the number.

    `parts` makes the largest batches for a number.  Weights and random numbers stay as they are, and no gradient is
    left.  Sentences are not parted: where one alone leaves no margin, a warning says so.
    """
    compute = updater.compute
    updater.model.train()
    with torch.random.fork_rng([compute.device] if compute.on_cuda else []):
        room = [
            torch.empty_like(weight)
            for weight in updater.model.parameters()
            if weight not in updater.optimizer.state
            for _ in range(MOMENTS)
        ]
        while not fits(updater, batches := parts(tokens)):
            if max(batch.sentences for batch in batches) == 1:
                logger.warning(
                    "beside the weights there is hardly memory for one long pair at a time: training is slow and may "
                    "fail; take a smaller --preset, or leave long pairs out: --set data.max_tokens=N"
                )
                break
            tokens //= 2
        del room, batches
    compute.release_memory()
    compute.forget_peak_memory()
    return tokens


def fits(updater: Updater, batches: list[Batch]) -> bool:
    """Whether forward and backward passes of these batches, one after another, leave the margin of memory."""
    try:
        share = updater.compute.share_of_free_memory(partial(pass_through, updater, batches))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        share = 1.0
    # Here the exception is gone, and with it the frames that held on to tensors.
    updater.optimizer.zero_grad()
    return share <= MARGIN


def pass_through(updater: Updater, batches: list[Batch]) -> None:
    """Leave the sum of the batches' gradients at the weights, in this process alone."""
    for batch in batches:
        updater.loss(batch)[0].backward()
