"""Encoder and decoder layers against those of torch.nn with the same weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mt.model.config import ModelConfig
from mt.model.layers import DecoderLayer, EncoderLayer, FeedForward, Residual

B, K, S, T, H, D = 2, 3, 5, 4, 2, 8
E, F = H * D, 24


def config(norm_first=True, dropout=0.1):
    return ModelConfig(
        source_vocabulary=11,
        target_vocabulary=11,
        share_embeddings=True,
        width=E,
        heads=H,
        feed_forward=F,
        encoder_layers=1,
        decoder_layers=1,
        norm_first=norm_first,
        dropout=dropout,
    )


def randomised(layer, device):
    """A layer with no weight left at its initial zero or one, without dropout."""
    torch.manual_seed(2)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.eval().to(device)


@torch.no_grad()
def copy_attention(ours, theirs):
    theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key_value.weight)))
    theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.key_value.bias)))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_rest(ours, theirs, residuals):
    theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())
    for number, residual in enumerate(residuals, 1):
        getattr(theirs, f"norm{number}").load_state_dict(residual.norm.state_dict())


def padding(device):
    """(B, S), True at the last three tokens of the second sentence, and the bias that says the same."""
    padded = torch.zeros(B, S, dtype=torch.bool, device=device)
    padded[1, 2:] = True
    return padded, torch.zeros(B, S, device=device).masked_fill(padded, -torch.inf)[:, None, None]


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_layer_equals_that_of_torch(device, norm_first):
    layer = randomised(EncoderLayer(config(norm_first)), device)
    original = nn.TransformerEncoderLayer(E, H, F, activation="relu", batch_first=True, norm_first=norm_first)
    copy_attention(layer.self_attention, original.self_attn)
    copy_rest(layer, original, [layer.around_self_attention, layer.around_feed_forward])
    original.eval().to(device)
    x = torch.randn(B, S, E).to(device)
    padded, bias = padding(device)
    torch.testing.assert_close(layer(x, None), original(x), rtol=1e-5, atol=1e-5)
    expected = original(x, src_key_padding_mask=padded)
    torch.testing.assert_close(layer(x, bias)[~padded], expected[~padded], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_decoder_layer_equals_that_of_torch(device, norm_first):
    layer = randomised(DecoderLayer(config(norm_first)), device)
    original = nn.TransformerDecoderLayer(E, H, F, activation="relu", batch_first=True, norm_first=norm_first)
    copy_attention(layer.self_attention, original.self_attn)
    copy_attention(layer.cross_attention, original.multihead_attn)
    copy_rest(layer, original, [layer.around_self_attention, layer.around_cross_attention, layer.around_feed_forward])
    original.eval().to(device)
    x, memory = torch.randn(B, T, E).to(device), torch.randn(B, S, E).to(device)
    padded, bias = padding(device)
    later = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)
    expected = original(x, memory, tgt_mask=later, memory_key_padding_mask=padded)
    ours = layer(x, layer.cross_attention.keys_values(memory), bias)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_shapes():
    encoder, decoder = EncoderLayer(config()), DecoderLayer(config())
    _, bias = padding("cpu")
    y = encoder(torch.randn(B, S, E), bias)
    assert y.shape == (B, S, E)
    memory = decoder.cross_attention.keys_values(y)
    assert decoder(torch.randn(B * K, T, E), memory, bias).shape == (B * K, T, E)


def test_a_feed_forward_network_by_hand():
    network = FeedForward(config()).eval()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        network.inner.weight[:3, 0] = torch.tensor([2.0, -1.0, 1.0])  # hidden numbers of x0: 2 x0, -x0, x0 - 5
        network.inner.bias[2] = -5.0
        network.outer.weight[0, :3] = torch.tensor([1.0, 10.0, 100.0])
        network.outer.bias[1] = 7.0
    x = torch.zeros(B, T, E)
    x[..., 0] = torch.tensor([3.0, -3.0, 6.0, 0.0])
    y = network(x)
    assert y[0, :, 0].tolist() == [6.0, 30.0, 12.0 + 100.0, 0.0]
    assert (y[..., 1] == 7.0).all()
    assert (y[..., 2:] == 0.0).all()


def test_a_residual_adds_what_the_sublayer_makes_and_normalises_before_or_after():
    x = torch.randn(B, T, E)

    def normalised(y):
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    before, after = Residual(config(norm_first=True)).eval(), Residual(config(norm_first=False)).eval()
    torch.testing.assert_close(before(x, lambda y: 3 * y), x + 3 * normalised(x))
    torch.testing.assert_close(after(x, lambda y: 3 * y), normalised(4 * x))


def test_dropout_is_on_what_the_sublayer_adds_and_not_on_the_residual():
    torch.manual_seed(4)
    residual = Residual(config(dropout=0.5)).train()
    x = torch.randn(B, T, E)
    added = residual(x, lambda y: torch.full_like(y, 3.0)) - x
    dropped = added.abs() < 1e-5
    torch.testing.assert_close(added[~dropped], torch.full_like(added[~dropped], 6.0))
    assert 0.2 < dropped.float().mean() < 0.8


def test_activation_dropout_is_on_the_inner_layer():
    torch.manual_seed(5)
    network = FeedForward(replace(config(), activation_dropout=0.5)).train()
    with torch.no_grad():
        network.inner.weight.zero_()
        network.inner.bias.fill_(1.0)  # so that every inner number is 1, and 0 or 2 when some are dropped
        network.outer.weight.fill_(1.0)
        network.outer.bias.zero_()
    sums = network(torch.zeros(1, 1000, E))[0, :, 0]
    assert set(sums.tolist()) <= {2.0 * kept for kept in range(F + 1)}
    assert sums.mean().item() == pytest.approx(F, abs=5 * (F / 1000) ** 0.5)  # each number has variance 1
