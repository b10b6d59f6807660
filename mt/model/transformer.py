"""The encoder-decoder Transformer (Vaswani et al. 2017): ids in, logits out.

`encode` returns the state that a decoder starts from; `hidden` goes on from a state, over whole target sentences
(where a causal kernel needs no mask because padding stands on the right) or token by token (search), and `project`
makes logits of that, of some tokens at a time where these are many; `decode` is both.  Training lays whole sentences
end to end in one row: see `packing.py`.

Shapes: B sentences, K beams, N = B*K rows, S source length, T target length, M tokens of a packed row, E width,
V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mt.model.attention import MultiHeadAttention, aligned
from mt.model.cache import DecoderState, Place
from mt.model.config import ModelConfig
from mt.model.dropout import Dropout
from mt.model.layers import DecoderLayer, EncoderLayer, cast_for_products
from mt.model.packing import Packing
from mt.model.positions import rotations, sinusoids


class Transformer(nn.Module):
    """Encoder and decoder over embeddings tied to the output projection; see `ModelConfig` for its variations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.target_embedding = nn.Embedding(config.target_vocabulary, config.width)
        self.source_embedding = (
            self.target_embedding if config.share_embeddings else nn.Embedding(config.source_vocabulary, config.width)
        )
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        # A pre-norm stack adds up unnormalised sublayers, so it ends in a norm of its own.
        self.encoder_norm = nn.LayerNorm(config.width) if config.norm_first else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.width) if config.norm_first else nn.Identity()
        self.projection: nn.Module | None = None  # to the vocabulary; None: by `output_weight`
        self.dropout = Dropout(config.dropout)
        # Where a token stands is added to its embedding, or turns its queries and keys.
        rotary, head_size = config.positions == "rotary", config.width // config.heads
        added = None if rotary else sinusoids(config.max_positions, config.width)
        turned = rotations(config.max_positions, head_size) if rotary else None
        self.register_buffer("positions", added, persistent=False)
        self.register_buffer("rotations", turned, persistent=False)
        self.positions: Tensor | None
        self.rotations: Tensor | None
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier-uniform projections, embeddings of variance 1/E, so that scaled by sqrt(E) they have variance 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                for half in module.key_value.weight.chunk(2):  # keys and values are two projections in one matrix
                    nn.init.xavier_uniform_(half)

    def embed(self, table: nn.Embedding, ids: Tensor, place: Place, packing: Packing | None) -> Tensor:
        """ids (N, T) -> (N, T, E)."""
        x = table(ids) * self.config.width**0.5
        if packing and packing.seen is not None:
            x = x * packing.seen[..., None]
        return self.dropout(x if self.positions is None else x + self.positions[place])

    def rotation(self, place: Place) -> Tensor | None:
        """What turns queries and keys of tokens at these positions; None where positions are added."""
        return None if self.rotations is None else self.rotations[place]

    def encode(self, source: Tensor, mask: Tensor | None = None, packing: Packing | None = None) -> DecoderState:
        """Read source ids (B, S), where `mask` (B, S) is True at real tokens (None: all are), or packed (1, M)."""
        bias = None
        if packing:
            mask = packing.mask
        if mask is not None:
            bias = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)[:, None, None]
            bias = aligned(cast_for_products(bias))
        place = packing.positions if packing else slice(source.size(1))
        x = self.embed(self.source_embedding, source, place, packing)  # (B, S, E)
        rotation = self.rotation(place)
        for layer in self.encoder:
            x = layer(x, bias, packing, rotation)
        x = cast_for_products(self.encoder_norm(x))
        layers = cast(list[DecoderLayer], list(self.decoder))
        return DecoderState([layer.cross_attention.keys_values(x, packing) for layer in layers], bias)

    def hidden(self, ids: Tensor, state: DecoderState, packing: Packing | None = None) -> Tensor:
        """What the last decoder layer makes of target ids (N, T): (N, T, E).  A state with a past moves on by T = 1.

        Whole target sentences may be packed: (1, M) -> (1, M, E).
        """
        place = packing.positions if packing else state.place(ids.size(1))
        x = self.embed(self.target_embedding, ids, place, packing)  # (N, T, E)
        rotation = self.rotation(place)
        past_bias = state.next_token(len(ids)) if state.past else None
        whole, memory_bias = [None] * len(self.decoder), state.memory_bias
        for layer, memory, past in zip(self.decoder, state.memory, state.past or whole, strict=True):
            x = layer(x, memory, memory_bias, past=past, past_bias=past_bias, packing=packing, rotation=rotation)
        return self.decoder_norm(x)

    @property
    def output_weight(self) -> Tensor:
        """The projection to the vocabulary (V, E), which is the target embedding."""
        return self.target_embedding.weight

    def projection_to(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        """The projection to some ids (C,) of the vocabulary, computed as that to all of it; for a state to carry."""
        rows = cast_for_products(self.output_weight[candidates])  # once, and not at every token
        return type(self.projection)(rows, None) if self.projection else partial(nn.functional.linear, weight=rows)

    def decode(self, ids: Tensor, state: DecoderState) -> Tensor:
        """Logits of the token after each of target ids (N, T): (N, T, V), or of what the state projects to."""
        return self.project(self.hidden(ids, state), state)

    def project(self, hidden: Tensor, state: DecoderState) -> Tensor:
        """Logits (..., V) of what the last decoder layer has made of tokens (..., E)."""
        projection = state.projection or self.projection
        return projection(hidden) if projection else nn.functional.linear(hidden, self.output_weight)
