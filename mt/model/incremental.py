"""A decoder layer as search runs it on a CPU: one token of each row, in few calls.

For few rows a call costs more than its arithmetic, and a token of `DecoderLayer`, the slow twin of this one, takes half
as many calls again: here queries are scaled by the weights that make them, attention is written out for all heads and
beams of a batch at once, nothing is dropped, and no module is called where a function will do.

Shapes: B sentences, K beams, N = B*K rows, E width, H heads, D head size, S keys.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt.model.attention import KeysValues, MultiHeadAttention
from mt.model.cache import Past
from mt.model.layers import DecoderLayer, Residual
from mt.model.packing import Packing
from mt.model.positions import rotate

Operation: TypeAlias = Callable[[Tensor], Tensor]


class IncrementalDecoderLayer(nn.Module):
    """`DecoderLayer` for a state with a past, made of one whose queries are scaled and whose products are prepared."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        attention, self.cross_attention = layer.self_attention, layer.cross_attention  # which reads the source, too
        assert attention.query_key_value is not None
        self.heads = attention.heads
        # Bound methods: to call a module costs as much as a small operation.
        self.query_key_value = attention.query_key_value.forward
        self.self_output = attention.output.forward
        self.query = self.cross_attention.query.forward
        self.cross_output = self.cross_attention.output.forward
        self.inner, self.outer = layer.feed_forward.inner.forward, layer.feed_forward.outer.forward
        residuals = (layer.around_self_attention, layer.around_cross_attention, layer.around_feed_forward)
        norms: list[Operation] = [norm_of(each) for each in residuals]
        nothing: list[Operation] = [unchanged] * len(norms)
        self.before, self.after = (norms, nothing) if residuals[0].norm_first else (nothing, norms)

    def forward(
        self,
        x: Tensor,
        memory: KeysValues,
        memory_bias: Tensor | None,
        *,
        past: Past,
        past_bias: Tensor | None = None,
        packing: Packing | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """One token of each row (N, 1, E) -> (N, 1, E); see `DecoderLayer`.  `packing` is None."""
        B, H, D = len(memory[0]), self.heads, x.size(-1) // self.heads

        projected = self.query_key_value(self.before[0](x)).view(B, -1, 3 * H, D).transpose(1, 2)  # (B, 3*H, K, D)
        queries_keys, values = projected.split((2 * H, H), dim=1)
        if rotation is not None:
            queries_keys = rotate(queries_keys, rotation)
        queries, keys = queries_keys.chunk(2, dim=1)
        y = attended(queries, past.extend((keys, values)), past_bias)
        x = self.after[0](x + self.self_output(y.view_as(x)))

        queries = self.query(self.before[1](x)).view(B, -1, H, D).transpose(1, 2)  # (B, H, K, D)
        y = attended(queries, memory, memory_bias)
        x = self.after[1](x + self.cross_output(y.view_as(x)))

        return self.after[2](x + self.outer(self.inner(self.before[2](x)).relu_()))


def attended(queries: Tensor, keys_values: KeysValues, bias: Tensor | None) -> Tensor:
    """Attention from scaled queries (B, H, K, D) to two of (B, H, S, D), with bias (B, 1, 1 or K, S): (B, K, H, D)."""
    keys, values = (x.flatten(0, 1) for x in keys_values)
    scores = torch.bmm(queries.flatten(0, 1), keys.transpose(1, 2))  # (B*H, K, S)
    if bias is not None:
        scores.unflatten(0, queries.shape[:2]).add_(bias)
    y = torch.bmm(scores.softmax(-1), values)
    return y.view(queries.shape).transpose(1, 2).contiguous()


def norm_of(residual: Residual) -> Operation:
    norm = residual.norm
    return partial(
        F.layer_norm, normalized_shape=norm.normalized_shape, weight=norm.weight, bias=norm.bias, eps=norm.eps
    )


def unchanged(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def scale_queries(attention: MultiHeadAttention) -> None:
    """Divide the weights of queries by sqrt(D), so that their products with keys need no scale."""
    for parameter in attention.query.parameters():
        parameter.div_(attention.head_size**0.5)
