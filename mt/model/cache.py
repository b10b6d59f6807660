"""What a decoder carries from token to token: the projected source, and the keys and values of its own past.

Only `decode` and `reorder` change a state in place; how the past is stored is known here alone.

Shapes: B sentences, K beams, N = B*K rows, H heads, S source length, D head size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mt.model.attention import KeysValues


class Past:
    """The self-attention keys and values of one layer, in room for `max_length` tokens.

    Stored as (N, max_length, H, D): a row's tokens lie side by side, and reordering copies whole blocks from one buffer
    into another that then takes its place.
    """

    def __init__(self, rows: int, max_length: int, like: Tensor) -> None:
        _, heads, _, size = like.shape
        self.keys, self.values, self.spare_keys, self.spare_values = (
            like.new_empty(rows, max_length, heads, size) for _ in range(4)
        )

    def extend(self, keys_values: KeysValues, position: int) -> KeysValues:
        """Write the keys and values of tokens from `position` on; return those of all tokens so far, (N, H, T, D)."""
        end = position + keys_values[0].size(2)
        self.keys[:, position:end] = keys_values[0].transpose(1, 2)
        self.values[:, position:end] = keys_values[1].transpose(1, 2)
        return self.keys[:, :end].transpose(1, 2), self.values[:, :end].transpose(1, 2)

    def reorder(self, rows: Tensor, length: int) -> None:
        """Row n becomes what row rows[n] was, for the first `length` tokens; fewer rows than before are a selection."""
        N = len(rows)
        torch.index_select(self.keys[:, :length], 0, rows, out=self.spare_keys[:N, :length])
        torch.index_select(self.values[:, :length], 0, rows, out=self.spare_values[:N, :length])
        self.keys, self.spare_keys = self.spare_keys[:N], self.keys[:N]
        self.values, self.spare_values = self.spare_values[:N], self.values[:N]


@dataclass
class DecoderState:
    """Where a decoder stands.  Without a past it reads whole target sentences; with one it goes token by token."""

    memory: list[KeysValues]  # a layer: two of (B, H, S, D)
    memory_bias: Tensor | None  # (B, 1, 1, S): 0 at words, -inf at padding; None when there is no padding
    past: list[Past] = field(default_factory=list)
    position: int = 0  # tokens decoded so far

    def with_past(self, beams: int, max_length: int) -> "DecoderState":
        """The state before the first token of `beams` rows a sentence, with room for `max_length` tokens."""
        like = self.memory[0][0]
        past = [Past(len(like) * beams, max_length, like) for _ in self.memory]
        return DecoderState(self.memory, self.memory_bias, past)

    def reorder(self, rows: Tensor) -> None:
        """Let row n go on from what row rows[n] (of the same sentence) has decoded."""
        for past in self.past:
            past.reorder(rows, self.position)

    def select(self, sentences: Tensor) -> None:
        """Keep these of the B sentences, in this order, and their rows."""
        if self.past:
            beams = len(self.past[0].keys) // len(self.memory[0][0])
            rows = (sentences[:, None] * beams + torch.arange(beams, device=sentences.device)).flatten()
            self.reorder(rows)
        self.memory = [(keys[sentences], values[sentences]) for keys, values in self.memory]
        if self.memory_bias is not None:
            self.memory_bias = self.memory_bias[sentences]
