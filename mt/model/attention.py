"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

The module owns projections; keys and values come from its caller, fresh, cached or made from the source, so that it
knows nothing of caches.  The arithmetic is a function, the module's `kernel`, which `recording` replaces for a moment.

Shapes: B sentences, K beams, N = B*K rows, T queries, S keys, M tokens of a packed row, E width, H heads, D = E/H.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt.model.dropout import drop
from mt.model.packing import ROW_MULTIPLE, SHORTEST_ROW, Packing
from mt.model.positions import rotate

KeysValues: TypeAlias = tuple[Tensor, Tensor]  # two of (B, H, S, D)
Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Tensor]


def fused(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Attention by PyTorch's fused kernels: (B, H, T, D) from that, twice (B, H, S, D) and bias (B, 1, 1 or T, S).

    `dropout` is the share of weights dropped.
    """
    if not causal and (missing := SHORTEST_ROW[keys.device.type] - keys.size(2)) > 0:
        if bias is None:
            bias = keys.new_zeros(1, 1, 1, keys.size(2))
        keys, values, bias = *(F.pad(x, (0, 0, 0, missing)) for x in (keys, values)), hiding(bias)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout, is_causal=causal)


def hiding(bias: Tensor) -> Tensor:
    """The bias (..., keys), `aligned`; where keys are fewer than `SHORTEST_ROW`, widened by -inf over their padding."""
    missing = SHORTEST_ROW[bias.device.type] - bias.size(-1)
    return aligned(F.pad(bias, (0, missing), value=-torch.inf) if missing > 0 else bias)


def aligned(bias: Tensor) -> Tensor:
    """The same bias (..., keys), its rows so far apart that CUDA's kernels need not copy it in every layer."""
    keys = bias.size(-1)
    missing = -keys % ROW_MULTIPLE[bias.device.type]
    return F.pad(bias, (0, missing))[..., :keys] if missing else bias


def attention_weights(queries: Tensor, keys: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(D) + bias): probabilities (B, H, T, S)."""
    scores = queries @ keys.transpose(-2, -1) / queries.size(-1) ** 0.5  # (B, H, T, S)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if causal:
        scores = scores + scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    return scores.softmax(-1)


def explicit(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, causal: bool, dropout: float = 0.0
) -> Tensor:
    """What `fused` computes, written out: its slow twin."""
    return drop(attention_weights(queries, keys, bias, causal), dropout) @ values


def explicit_in_float32(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, causal: bool, dropout: float = 0.0
) -> Tensor:
    """`explicit` on its arguments in float32, for training on the CPU.

    Sentences are too short there for PyTorch's fused kernel to pay, and for every new length bfloat16 products have
    machine code made and kept, which costs more time and memory than the products themselves.
    """

    def cast(x: Tensor) -> Tensor:
        return x.to(torch.float32, memory_format=torch.contiguous_format)  # in one pass

    with torch.autocast(queries.device.type, enabled=False):
        return explicit(cast(queries), cast(keys), cast(values), bias, causal, dropout).to(queries.dtype)


class MultiHeadAttention(nn.Module):
    """H heads of size D.  Callers project queries apart from keys and values, so that these can be cached."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.dropout = dropout  # share of the weights, in training
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.query_key_value: nn.Module | None = None  # both projections in one, where they were fused
        self.kernel: Kernel = fused

    def split(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(N, T, E), or sentences packed in (1, M, E), -> (N, H, T, D)."""
        return (packing.pad(x) if packing else x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def turned(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """(N, T, E) or (N, T, 2*E), turned head by head by a `rotation` where there is one."""
        return x if rotation is None else rotate(x.unflatten(-1, (-1, self.head_size)), rotation).flatten(-2)

    def queries(self, x: Tensor, packing: Packing | None = None, rotation: Tensor | None = None) -> Tensor:
        """What attends: (N, T, E), or sentences packed in (1, M, E), -> (N, H, T, D).

        Queries and keys are turned by a `rotation` (T or M, 2, D) where there is one.
        """
        return self.split(self.turned(self.query(x), rotation), packing)

    def keys_values(self, x: Tensor, packing: Packing | None = None, rotation: Tensor | None = None) -> KeysValues:
        """What is attended to: (B, S, E), or sentences packed in (1, M, E), -> two of (B, H, S, D)."""
        keys, values = self.key_value(x).chunk(2, dim=-1)
        return self.split(self.turned(keys, rotation), packing), self.split(values, packing)

    def queries_keys_values(
        self, x: Tensor, packing: Packing | None = None, rotation: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """The queries of x, and its keys and values."""
        if self.query_key_value is None:
            return self.queries(x, packing, rotation), self.keys_values(x, packing, rotation)
        width = x.size(-1)
        queries_keys, values = self.query_key_value(x).split((2 * width, width), dim=-1)
        queries, keys = self.turned(queries_keys, rotation).chunk(2, dim=-1)
        return self.split(queries, packing), (self.split(keys, packing), self.split(values, packing))

    def attend(
        self,
        queries: Tensor,
        keys_values: KeysValues,
        bias: Tensor | None = None,
        causal: bool = False,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend from queries (N, H, T, D) to two of (B, H, S, D): (N, T, E), or (1, M, E) of packed sentences.

        Where N = B*K, the K rows of a sentence attend to the same keys: they are laid side by side as queries, so that
        keys and values are never copied per beam.
        """
        keys, values = keys_values
        N, T, B = queries.size(0), queries.size(2), keys.size(0)
        if N != B:
            queries = queries.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)  # (B, H, K*T, D)
        y = self.kernel(queries, keys, values, bias, causal, self.dropout if self.training else 0.0)
        if N != B:
            y = y.unflatten(2, (-1, T)).transpose(1, 2).flatten(0, 1)  # (N, H, T, D)
        y = y.transpose(1, 2).flatten(2)  # (N, T, E)
        return self.output(packing.unpad(y) if packing else y)

    def forward(
        self,
        x: Tensor,
        keys_values: KeysValues,
        bias: Tensor | None = None,
        causal: bool = False,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend from x (N, T, E), or sentences packed in (1, M, E), to another sequence; shaped like x."""
        return self.attend(self.queries(x, packing), keys_values, bias, causal, packing)


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect attention probabilities (B, H, T, S) by module name; of several passes, those of the last."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, MultiHeadAttention)}
    kernels = {name: module.kernel for name, module in modules.items()}
    trace: dict[str, Tensor] = {}

    def recorder(name: str) -> Kernel:
        def kernel(
            queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, causal: bool, dropout: float
        ) -> Tensor:
            trace[name] = attention_weights(queries, keys, bias, causal)
            return drop(trace[name], dropout) @ values

        return kernel

    try:
        for name, module in modules.items():
            module.kernel = recorder(name)
        yield trace
    finally:
        for name, module in modules.items():
            module.kernel = kernels[name]
