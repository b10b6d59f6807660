"""What a Transformer costs: the matrix products of a batch, and from them its floating-point operations.

A product of (rows, inner) and (inner, columns) takes 2 * rows * inner * columns operations.  Training takes three of
that size for each: forward, for the gradient of the rows, for the gradient of the weight.  Norms, dropout, softmax and
the optimizer are not counted: they are not what limits a well-made step, but what it wastes.

Letters: E width, F feed-forward width, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from mt.model.config import ModelConfig

TRAINING_PRODUCTS = 3  # forward, gradient of the input, gradient of the weight


@dataclass(frozen=True, slots=True)
class Product:
    """`count` products of a matrix (rows, inner) with a weight (inner, columns)."""

    rows: int
    inner: int
    columns: int
    count: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns * self.count


def weight_products(config: ModelConfig, source_tokens: int, target_tokens: int) -> list[Product]:
    """The products with weights of a forward pass over so many tokens, padding not counted."""
    E, F = config.width, config.feed_forward
    encoder, decoder = config.encoder_layers, config.decoder_layers
    return [
        Product(source_tokens, E, E, 2 * encoder),  # queries and output
        Product(source_tokens, E, 2 * E, encoder + decoder),  # keys and values, those of cross-attention too
        Product(source_tokens, E, F, encoder),
        Product(source_tokens, F, E, encoder),
        Product(target_tokens, E, E, 4 * decoder),  # queries and output, twice
        Product(target_tokens, E, 2 * E, decoder),
        Product(target_tokens, E, F, decoder),
        Product(target_tokens, F, E, decoder),
        Product(target_tokens, E, config.target_vocabulary, 1),
    ]


def attention_flops(config: ModelConfig, source_lengths: np.ndarray, target_lengths: np.ndarray) -> int:
    """Q K^T and its product with V, of all layers in a forward pass; causal ones are counted whole."""
    source, target = source_lengths.astype(np.int64), target_lengths.astype(np.int64)
    pairs = config.encoder_layers * (source**2).sum() + config.decoder_layers * (target * (source + target)).sum()
    return int(4 * config.width * pairs)


def training_flops(config: ModelConfig, source_lengths: np.ndarray, target_lengths: np.ndarray) -> int:
    """Operations of an update on sentences of these lengths, `</s>` counted."""
    products = weight_products(config, int(source_lengths.sum()), int(target_lengths.sum()))
    forward = sum(product.flops for product in products) + attention_flops(config, source_lengths, target_lengths)
    return TRAINING_PRODUCTS * forward
