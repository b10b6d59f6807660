"""What a decoder carries from token to token: the projected source, and the keys and values of its own past.

Beams share their past as they share the source.  Each step adds a key for each beam to the keys of their sentence, and
a bias says which of these lie in a beam's own past: a beam that goes on from another copies nothing.  Keys lie in the
order in which products read them, and where they are fewer than a CPU is fast with, a bias hides what fills them up.

Shapes: B sentences, K beams, N = B*K rows, H heads, S source length, P keys of a sentence's past, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mt.model.attention import KeysValues, hiding
from mt.model.packing import SHORTEST_ROW


class Past:
    """The self-attention keys and values of one layer, in room (B, H, P, D), of which more is made when it is full."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.used = 0

    def extend(self, keys_values: KeysValues) -> KeysValues:
        """Add those of one token of each row, two of (N, H, 1, D); returns all so far, two of (B, H, P, D)."""
        beams = len(keys_values[0]) // len(self.keys)
        end = self.used + beams
        if end > self.keys.size(2):
            self.keys, self.values = (laid_out(room, end + end // 2) for room in (self.keys, self.values))
        for room, new in zip((self.keys, self.values), keys_values, strict=True):
            room[:, :, self.used : end] = new.squeeze(2).unflatten(0, (-1, beams)).transpose(1, 2)
        self.used = end
        return self.keys[:, :, : self.shown], self.values[:, :, : self.shown]

    @property
    def shown(self) -> int:
        """How many keys attention is given: those used, and some that a bias hides where these are few."""
        return max(self.used, SHORTEST_ROW[self.keys.device.type])

    def select(self, sentences: Tensor, moved: Tensor) -> None:
        """See `rows_of`."""
        self.keys, self.values = (rows_of(room, sentences, moved, self.shown) for room in (self.keys, self.values))


def rows_of(room: Tensor, sentences: Tensor, moved: Tensor, shown: int | None = None) -> Tensor:
    """The rows of some sentences in room (B, H, P, D), in this order, as far as keys are shown.

    Only those are copied, within the room, that stand elsewhere than before: the `moved`, as numbers in the new order.
    """
    seen = room[:, :, :shown]
    seen.index_copy_(0, moved, seen.index_select(0, sentences[moved]))
    return room[: len(sentences)]


def laid_out(x: Tensor, length: int = 0) -> Tensor:
    """x (B, H, S, D) in the order in which products read it, in room for `length` keys; so many as are shown are 0."""
    B, H, S, D = x.shape
    shortest = SHORTEST_ROW[x.device.type]
    room = x.new_empty(B, H, max(S, length, shortest), D)
    room[:, :, :shortest] = 0
    room[:, :, :S] = x
    return room


@dataclass
class DecoderState:
    """Where a decoder stands.  Without a past it reads whole target sentences; with one it goes token by token."""

    memory: list[KeysValues]  # a layer: two of (B, H, S, D)
    memory_bias: Tensor | None  # (B, 1, 1, S): 0 at words, -inf at padding; None when there is no padding
    past: list[Past] = field(default_factory=list)
    beams: int = 1  # K, at most, of a past
    past_bias: Tensor | None = None  # (B, 1, K, P): 0 at keys in a beam's own past, -inf at others
    position: int = 0  # tokens decoded so far
    projection: Callable[[Tensor], Tensor] | None = None  # to some of the vocabulary; None: to all of it

    def with_past(self, beams: int, max_length: int) -> "DecoderState":
        """The state before the first of at most `max_length` tokens of `beams` rows a sentence."""
        memory = [(laid_out(keys), laid_out(values)) for keys, values in self.memory]
        # A CPU reads keys faster that lie close together: room for all of them is for where nothing should be copied.
        room = beams * max_length if self.memory[0][0].is_cuda else 0
        past = [Past(*(laid_out(x[:, :, :0], room) for x in keys_values)) for keys_values in self.memory]
        bias, keys = self.memory_bias, self.memory[0][0]
        if bias is None and keys.size(2) < memory[0][0].size(2):
            bias = keys.new_zeros(len(keys), 1, 1, keys.size(2))
        if bias is not None:
            bias = hiding(bias.to(keys.dtype))  # once, and not in every layer at every token
        return DecoderState(memory, bias, past, beams, projection=self.projection)

    def next_token(self, rows: int) -> Tensor | None:
        """Go on to the next token of so many rows; returns the bias (B, 1, K, P), its own key included.

        None where there is one beam only, whose past all keys are, and nothing fills up.
        """
        keys = self.memory[0][0]
        B = len(keys)
        K = rows // B
        self.position += 1
        if self.beams == 1:
            few = self.position < SHORTEST_ROW[keys.device.type]
            return hiding(keys.new_zeros(1, 1, 1, self.position)) if few else None
        own = keys.new_full((K, K), -torch.inf).fill_diagonal_(0.0)
        bias = own.expand(B, 1, K, K)
        if self.past_bias is not None:
            bias = torch.cat((self.past_bias, bias), dim=-1)
        self.past_bias = bias
        return hiding(bias)

    def reorder(self, parents: Tensor) -> None:
        """Let beam k of sentence b go on from what its beam parents[b, k] has decoded; there may be more now."""
        if self.past_bias is not None:
            keys = self.past_bias.size(-1)
            self.past_bias = self.past_bias.gather(2, parents[:, None, :, None].expand(-1, -1, -1, keys))

    def select(self, sentences: Tensor) -> None:
        """Keep these of the B sentences, in this order, and their beams; the fewer change places, the faster.

        Numbers that are on the CPU spare a GPU a sync.
        """
        moved = (sentences != torch.arange(len(sentences), device=sentences.device)).nonzero().flatten()
        device = self.memory[0][0].device
        sentences, moved = (numbers.to(device, non_blocking=True) for numbers in (sentences, moved))
        for past in self.past:
            past.select(sentences, moved)
        self.memory = [
            (rows_of(keys, sentences, moved), rows_of(values, sentences, moved)) for keys, values in self.memory
        ]
        if self.memory_bias is not None:
            self.memory_bias = self.memory_bias.index_select(0, sentences)
        if self.past_bias is not None:
            self.past_bias = self.past_bias.index_select(0, sentences)
