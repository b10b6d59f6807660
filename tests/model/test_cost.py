"""The operations of a step as PyTorch's own counter sees them."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mt.model.attention import MultiHeadAttention, explicit
from mt.model.config import ModelConfig
from mt.model.cost import Product, attention_flops, training_flops, weight_products
from mt.model.transformer import Transformer
from mt.training.loss import plain_loss

V, B, S, T = 50, 3, 7, 5


@pytest.fixture
def config():
    return ModelConfig(
        source_vocabulary=V,
        target_vocabulary=V,
        share_embeddings=True,
        width=16,
        heads=2,
        feed_forward=24,
        encoder_layers=3,
        decoder_layers=2,
        dropout=0.0,
    )


def test_the_operations_of_an_update_are_those_that_pytorch_counts(config):
    model = Transformer(config)
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.kernel = explicit  # whose products are all visible
    source, target = torch.randint(V, (B, S)), torch.randint(V, (B, T))
    with FlopCounterMode(display=False) as counter:
        hidden = model.hidden(target, model.encode(source))
        plain_loss(hidden.flatten(0, 1), model.output_weight, target.flatten(), 0.1)[0].backward()
    assert training_flops(config, np.full(B, S), np.full(B, T)) == counter.get_total_flops()


def test_a_product_is_two_operations_for_each_pair_of_numbers():
    assert Product(rows=2, inner=3, columns=5, count=7).flops == 2 * 2 * 3 * 5 * 7


def test_padding_is_not_counted(config):
    lengths = np.array([7, 3, 1])
    one_by_one = sum(training_flops(config, lengths[i : i + 1], lengths[i : i + 1]) for i in range(3))
    assert training_flops(config, lengths, lengths) == one_by_one


def test_long_sentences_cost_more_attention_for_each_token(config):
    one, two = np.array([600]), np.array([300, 300])
    assert attention_flops(config, one, one) == 2 * attention_flops(config, two, two)
    assert weight_products(config, 600, 600) == weight_products(config, int(two.sum()), int(two.sum()))


def test_lengths_of_small_types_do_not_overflow(config):
    lengths = np.full(10, 5_000, dtype=np.uint16)
    assert attention_flops(config, lengths, lengths) == 10 * attention_flops(
        config, np.array([5_000]), np.array([5_000])
    )
