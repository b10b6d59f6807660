"""The sublayers of a Transformer and the two kinds of layer made of them (Vaswani et al. 2017, section 3.1).

Shapes: B sentences, K beams, N = B*K rows, T target length, S source length, P keys of the past, M tokens of a
packed row, E width, F feed-forward width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mt.model.attention import KeysValues, MultiHeadAttention
from mt.model.cache import Past, by_sentence
from mt.model.config import ModelConfig
from mt.model.dropout import Dropout
from mt.model.packing import Packing


def cast_for_products(x: Tensor) -> Tensor:
    """x in the type that products take under autocast: cast once for all products that it enters."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2, at every position alike (section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.width)
        self.dropout = Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, E) -> (N, T, E)."""
        return self.outer(self.dropout(self.inner(x).relu_()))


class Residual(nn.Module):
    """Input plus output of a sublayer, with layer norm before it (pre-norm) or after the sum (as published)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.norm_first = config.norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, T, E) -> (N, T, E)."""
        # The output is cast before it is added: adding tensors of two types costs a CPU many times more.
        if self.norm_first:
            return x + self.dropout(sublayer(cast_for_products(self.norm(x)))).to(x.dtype)
        return self.norm(x + self.dropout(sublayer(x)).to(x.dtype))


class EncoderLayer(nn.Module):
    """Self-attention over the source, then the feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.width, config.heads, config.attention_dropout)
        self.feed_forward = FeedForward(config)
        self.around_self_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(
        self, x: Tensor, bias: Tensor | None, packing: Packing | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """(B, S, E) -> (B, S, E), or packed (1, M, E) -> (1, M, E), with bias (B, 1, 1, S) or None."""

        def self_attend(y: Tensor) -> Tensor:
            queries, keys_values = self.self_attention.queries_keys_values(y, packing, rotation)
            return self.self_attention.attend(queries, keys_values, bias, packing=packing)

        x = self.around_self_attention(x, self_attend)
        return self.around_feed_forward(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Masked self-attention over the target so far, cross-attention to the source, the feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.width, config.heads, config.attention_dropout)
        self.cross_attention = MultiHeadAttention(config.width, config.heads, config.attention_dropout)
        self.feed_forward = FeedForward(config)
        self.around_self_attention = Residual(config)
        self.around_cross_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(
        self,
        x: Tensor,
        memory: KeysValues,
        memory_bias: Tensor | None,
        *,
        past: Past | None = None,
        past_bias: Tensor | None = None,
        packing: Packing | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """(N, T, E) -> (N, T, E): whole sentences, or one token after those in `past` with its bias (B, 1, K, P).

        Or whole sentences packed: (1, M, E) -> (1, M, E).
        """

        def masked_self_attend(y: Tensor) -> Tensor:
            queries, keys_values = self.self_attention.queries_keys_values(y, packing, rotation)
            if past is not None:
                keys, values = (by_sentence(z, len(memory[0])) for z in keys_values)
                return self.self_attention.attend(queries, past.extend((keys, values)), past_bias)
            return self.self_attention.attend(queries, keys_values, causal=True, packing=packing)

        def cross_attend(y: Tensor) -> Tensor:
            return self.cross_attention(y, memory, memory_bias, packing=packing)

        x = self.around_self_attention(x, masked_self_attend)
        x = self.around_cross_attention(x, cross_attend)
        return self.around_feed_forward(x, self.feed_forward)
