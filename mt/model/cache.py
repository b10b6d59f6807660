"""What a decoder carries from token to token: the projected source, and the keys and values of its own past.

Beams share their past as they share the source.  Each step adds a key for each beam to the keys of their sentence, and
a bias says which of these lie in a beam's own past: a beam that goes on from another copies nothing.  Keys are stored
in the order in which products read them, and padded where they are fewer than a CPU is fast with; a bias hides padding.

Past and state come in two kinds: one that grows, with as much work as there are keys, and a fixed one, whose tensors
keep their addresses, so that a CUDA graph can replay a step.

Shapes: B sentences, K beams, N = B*K rows, H heads, S source length, P keys of a sentence's past that
attention is given, with padding where they are few, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from mt.model.attention import KeysValues, aligned, hiding
from mt.model.packing import SHORTEST_ROW

Place: TypeAlias = slice | Tensor  # positions of tokens, as an index of tables of positions


class Past:
    """The self-attention keys and values of one layer, in preallocated room (B, H, P, D) that grows when it is full."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.used = 0

    def extend(self, keys_values: KeysValues) -> KeysValues:
        """Add those of one token of each row, two of (B, H, K, D); returns what is attended to, two of (B, H, P, D)."""
        end = self.used + keys_values[0].size(2)
        if end > self.keys.size(2):
            self.keys, self.values = (laid_out(room, end + end // 2) for room in (self.keys, self.values))
        for room, x in zip((self.keys, self.values), keys_values, strict=True):
            room[:, :, self.used : end] = x
        self.used = end
        return self.keys[:, :, : self.shown], self.values[:, :, : self.shown]

    @property
    def shown(self) -> int:
        """P: the keys that are used, and where these are few some that a bias hides."""
        return max(self.used, SHORTEST_ROW[self.keys.device.type])

    def select(self, sentences: int, destinations: Tensor, origins: Tensor) -> None:
        """Keep so many sentences, as `rows_of` does."""
        self.keys, self.values = (
            rows_of(room, sentences, destinations, origins, self.shown) for room in (self.keys, self.values)
        )


class FixedPast(Past):
    """The same in room that is never moved or cut: attention is given all of it, and a bias hides what is not used."""

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        """`places` (K,) say where the keys of the next token go; the state moves them on, for all layers at once."""
        super().__init__(keys, values)
        self.places = places

    def extend(self, keys_values: KeysValues) -> KeysValues:
        """See `Past`; P is the whole room."""
        for room, new in zip((self.keys, self.values), keys_values, strict=True):
            room.index_copy_(2, self.places, new)
        return self.keys, self.values


def by_sentence(x: Tensor, sentences: int) -> Tensor:
    """Keys or values of one token of each row (N, H, 1, D) -> (B, H, K, D)."""
    return x.squeeze(2).unflatten(0, (sentences, -1)).transpose(1, 2)


def rows_of(room: Tensor, sentences: int, destinations: Tensor, origins: Tensor, shown: int | None = None) -> Tensor:
    """The first rows of room (B, H, P, D), of so many sentences, after those at `origins` moved to `destinations`.

    Only these are copied, within the room, as far as keys are shown.
    """
    seen = room[:, :, :shown]
    seen.index_copy_(0, destinations, seen.index_select(0, origins))
    return room[:sentences]


def laid_out(x: Tensor, length: int = 0) -> Tensor:
    """x (B, H, S, D) in the order in which products read it, in room for `length` keys; shown but unused keys are 0."""
    B, H, S, D = x.shape
    shortest = SHORTEST_ROW[x.device.type]
    room = x.new_empty(B, H, max(S, length, shortest), D)
    room[:, :, :S] = x
    room[:, :, S:shortest] = 0
    return room


@dataclass
class DecoderState:
    """Where a decoder stands.  Without a past it reads whole target sentences; with one it goes token by token."""

    memory: list[KeysValues]  # a layer: two of (B, H, S, D)
    memory_bias: Tensor | None  # (B, 1, 1, S): 0 at words, -inf at padding; None when there is no padding
    past: list[Past] = field(default_factory=list)
    beams: int = 1  # K, at most, of a past
    past_bias: Tensor | None = None  # (B, 1, K, used keys): 0 at those of a beam's own past, -inf at others
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

    def place(self, tokens: int) -> Place:
        """Where the next so many tokens of each row stand."""
        return slice(self.position, self.position + tokens)

    def next_token(self, rows: int) -> Tensor | None:
        """Go on to the next token of so many rows; returns the bias (B or 1, 1, K, P), its own key included.

        None where nothing has to be hidden: a single beam attends to all keys, and they are not padded.
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
        destinations = (sentences != torch.arange(len(sentences), device=sentences.device)).nonzero().flatten()
        device = self.memory[0][0].device
        sentences, destinations, origins = (
            each.to(device, non_blocking=True) for each in (sentences, destinations, sentences[destinations])
        )

        def kept(room: Tensor) -> Tensor:
            return rows_of(room, len(sentences), destinations, origins)

        self.memory = [(kept(keys), kept(values)) for keys, values in self.memory]
        for past in self.past:
            past.select(len(sentences), destinations, origins)
        if self.memory_bias is not None:
            self.memory_bias = aligned(self.memory_bias.index_select(0, sentences))
        if self.past_bias is not None:
            self.past_bias = self.past_bias.index_select(0, sentences)


class FixedState(DecoderState):
    """A state with a past whose tensors keep their places and shapes from token to token and from text to text.

    It has room for B sentences of `source_length` tokens, and for `max_length` tokens of each of their K beams; all K
    are there from the first token on, and no sentence leaves.
    """

    memory_bias: Tensor
    past_bias: Tensor

    def __init__(self, encoded: DecoderState, beams: int, source_length: int, max_length: int) -> None:
        """For as many sentences as an encoder has read, which need not be those that it is `load`ed with."""
        keys = encoded.memory[0][0]
        B, K = len(keys), beams

        def room(x: Tensor, length: int) -> Tensor:
            return x.new_zeros(B, x.size(1), length, x.size(3))

        self.decoded = torch.zeros(1, dtype=torch.long, device=keys.device)  # tokens so far
        self.beam_numbers = torch.arange(K, device=keys.device)
        self.places = self.beam_numbers.clone()
        self.own = keys.new_full((K, K), -torch.inf).fill_diagonal_(0.0).expand(B, 1, K, K)
        super().__init__(
            memory=[(room(k, source_length), room(v, source_length)) for k, v in encoded.memory],
            memory_bias=keys.new_zeros(B, 1, 1, source_length),
            past=[FixedPast(room(k, K * max_length), room(v, K * max_length), self.places) for k, v in encoded.memory],
            beams=K,
            past_bias=keys.new_zeros(B, 1, K, K * max_length),
        )

    def load(self, encoded: DecoderState) -> None:
        """Begin anew, with B sentences that an encoder has read, of no more tokens than there is room for."""
        S = encoded.memory[0][0].size(2)
        for rooms, new in zip(self.memory, encoded.memory, strict=True):
            for room, x in zip(rooms, new, strict=True):
                room[:, :, :S] = x
        self.memory_bias.fill_(-torch.inf)
        self.memory_bias[..., :S] = 0.0 if encoded.memory_bias is None else encoded.memory_bias
        self.past_bias.fill_(-torch.inf)
        self.decoded.zero_()

    def place(self, tokens: int) -> Place:
        """See `DecoderState`; of one token."""
        return self.decoded

    def next_token(self, rows: int) -> Tensor:
        """See `DecoderState`."""
        torch.add(self.beam_numbers, self.decoded, alpha=self.beams, out=self.places)
        self.past_bias.index_copy_(-1, self.places, self.own)
        self.decoded += 1
        return self.past_bias

    def reorder(self, parents: Tensor) -> None:
        """See `DecoderState`."""
        index = parents[:, None, :, None].expand_as(self.past_bias)
        self.past_bias.copy_(self.past_bias.gather(2, index))
