"""Sentences laid end to end in one row, so that nothing is computed on padding.

All of a Transformer but attention treats tokens one by one.  Training therefore computes on a row of tokens that is
rounded up to few different lengths, for each of which kernels are made once, and only attention sees sentences apart.

Shapes: B sentences, T tokens that each is padded to, M tokens of the row, C numbers that stand for one token.
"""

from typing import Any

import torch
from torch import Tensor

# Keys of attention: a softmax over fewer than fill a vector register takes a CPU many times as long as over that many.
SHORTEST_ROW = {"cpu": 16, "cuda": 1}
# A bias whose rows are not aligned is copied by CUDA's kernels of attention, and refused by them in a compiled layer.
ROW_MULTIPLE = {"cpu": 1, "cuda": 8}


def padded_length(longest: int, device: torch.device) -> int:
    """How many tokens sentences are padded to for attention, when the longest has so many."""
    multiple = ROW_MULTIPLE[device.type]
    return -(-max(longest, SHORTEST_ROW[device.type]) // multiple) * multiple


class Packing:
    """Where B sentences lie in a row of M tokens; what is left at its end belongs to none of them."""

    def __init__(self, lengths: Tensor, *, longest: int, tokens: int, row: int, seen: Tensor | None = None) -> None:
        """`tokens` is the sum of `lengths` (B,) and `longest` their maximum: numbers that a GPU need not be asked.

        `seen` (1, M) is 0 where a token has no embedding but its position's, else 1.
        """
        B, device = len(lengths), lengths.device
        T = padded_length(longest, device)
        self.sentences, self.seen = B, seen
        starts = lengths.cumsum(0) - lengths
        steps = torch.arange(T, device=device)
        real = steps < lengths[:, None]  # (B, T)
        sentence = torch.arange(B, device=device).repeat_interleave(lengths, output_size=tokens)  # (tokens,)
        position = torch.arange(tokens, device=device) - starts[sentence]
        rest = lengths.new_zeros(row - tokens)
        self.positions = torch.cat((position, rest))  # (M,) of each token in its sentence
        self.in_sentences = torch.cat((sentence * T + position, rest))  # (M,) where each stands among B*T
        self.in_row = (starts[:, None] + steps).where(real, 0).flatten()  # (B*T,) the reverse
        # Made even where nothing is padding: were it None in some batches, layers would be compiled a second time.
        self.real_in_sentences = real.flatten()[:, None].float()  # (B*T, 1), 1 or 0
        self.real_in_row = (torch.arange(row, device=device) < tokens)[:, None].float()  # (M, 1)
        self.mask = real  # (B, T), True at real tokens

    def pad(self, x: Tensor) -> Tensor:
        """(1, M, C) -> (B, T, C); what stands in the padding is arbitrary, and finite."""
        return Gather.apply(x.flatten(0, 1), self.in_row, self.in_sentences, self.real_in_row).unflatten(
            0, (self.sentences, -1)
        )

    def unpad(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (1, M, C)."""
        return Gather.apply(x.flatten(0, 1), self.in_sentences, self.in_row, self.real_in_sentences)[None]


class Gather(torch.autograd.Function):
    """Rows of a matrix by number, whose gradient is gathered too: faster than PyTorch's, which adds rows up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, back: Tensor, used: Tensor) -> Tensor:
        """x (n, C) -> (m, C) by `rows` (m,); `back` (n,) says where each row of x went, where `used` (n, 1) is 1."""
        ctx.save_for_backward(back, used)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back, used = ctx.saved_tensors
        gradient = gradients[0].index_select(0, back)
        return gradient.mul_(used.to(gradient.dtype)), None, None, None
