"""Attention: shapes, its slow twin, torch.nn's own module as the original, folded beams, and recording."""

import pytest
import torch
from torch import nn

from mt.model.attention import (
    MultiHeadAttention,
    attention_weights,
    explicit,
    explicit_in_float32,
    fused,
    recording,
)
from mt.model.positions import rotate, rotations

B, K, S, T, H, D = 2, 3, 5, 4, 2, 8
E = H * D


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def random_module(device):
    """An attention module whose biases are not zero, so that a forgotten one is seen."""
    module = MultiHeadAttention(E, H).to(device)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def padding_bias(device):
    """(B, 1, 1, S): the second sentence has two words, and three keys of padding."""
    bias = torch.zeros(B, 1, 1, S, device=device)
    bias[1, :, :, 2:] = -torch.inf
    return bias


def originals(module):
    """torch.nn's attention with the same weights."""
    twin = nn.MultiheadAttention(E, H, batch_first=True, device=module.query.weight.device)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat((module.query.weight, module.key_value.weight)))
        twin.in_proj_bias.copy_(torch.cat((module.query.bias, module.key_value.bias)))
    twin.out_proj.load_state_dict(module.output.state_dict())
    return twin


def test_shapes(device):
    module = random_module(device)
    keys, values = module.keys_values(torch.randn(B, S, E, device=device))
    assert keys.shape == values.shape == (B, H, S, D)
    queries = module.split(torch.randn(B, T, E, device=device))
    assert queries.shape == (B, H, T, D)
    bias = padding_bias(device)
    assert attention_weights(queries, keys, bias, False).shape == (B, H, T, S)
    assert fused(queries, keys, values, bias, False).shape == (B, H, T, D)
    assert explicit(queries, keys, values, bias, False).shape == (B, H, T, D)
    assert module(torch.randn(B, T, E, device=device), (keys, values), bias).shape == (B, T, E)
    assert module(torch.randn(B * K, T, E, device=device), (keys, values), bias).shape == (B * K, T, E)


def test_attention_on_two_keys_by_hand():
    queries = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    keys = torch.tensor([[3.0, 9.0, 9.0, 9.0], [0.0, 9.0, 9.0, 9.0]]).view(1, 1, 2, 4)
    values = torch.tensor([[1.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 5.0]]).view(1, 1, 2, 4)
    share = torch.tensor(6 / 4**0.5).sigmoid()  # scores 6 and 0, over the square root of four numbers
    expected = torch.tensor([share, 1 - share, 0, 5]).view(1, 1, 1, 4)
    torch.testing.assert_close(explicit(queries, keys, values, None, False), expected)
    torch.testing.assert_close(fused(queries, keys, values, None, False), expected)


@pytest.mark.parametrize("kernel", [fused, explicit_in_float32])
@pytest.mark.parametrize(("biased", "causal"), [(False, False), (True, False), (False, True)])
def test_kernels_equal_explicit_attention(device, biased, causal, kernel):
    queries, keys, values = torch.randn(B, H, T, D), torch.randn(B, H, S, D), torch.randn(B, H, S, D)
    if causal:
        keys, values = keys[:, :, :T], values[:, :, :T]
    inputs = [tensor.to(device) for tensor in (queries, keys, values)]
    bias = padding_bias(device) if biased else None
    torch.testing.assert_close(kernel(*inputs, bias, causal), explicit(*inputs, bias, causal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_weights_of_a_query_sum_to_one(causal):
    weights = attention_weights(torch.randn(B, H, S, D), torch.randn(B, H, S, D), padding_bias("cpu"), causal)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, S))
    assert (weights >= 0).all()


def test_masked_and_later_keys_get_no_weight_and_all_others_some():
    weights = attention_weights(torch.randn(B, H, S, D), torch.randn(B, H, S, D), padding_bias("cpu"), True)
    real = torch.tensor([[True] * S, [True, True, False, False, False]])[:, None, None]
    earlier = torch.ones(S, S, dtype=torch.bool).tril()
    assert torch.equal(weights > 0, (real & earlier).expand(B, H, S, S))


def test_what_stands_under_the_mask_changes_nothing(device):
    module, bias = random_module(device), padding_bias(device)
    x, memory = torch.randn(B, T, E, device=device), torch.randn(B, S, E, device=device)
    other = memory.clone()
    other[1, 2:] = 100.0
    torch.testing.assert_close(
        module(x, module.keys_values(memory), bias), module(x, module.keys_values(other), bias), rtol=0, atol=1e-6
    )


def test_cross_attention_under_a_mask_equals_that_of_torch(device):
    module = random_module(device)
    x, memory, bias = torch.randn(B, T, E, device=device), torch.randn(B, S, E, device=device), padding_bias(device)
    expected, expected_weights = originals(module)(
        x, memory, memory, key_padding_mask=(bias == -torch.inf)[:, 0, 0], average_attn_weights=False
    )
    keys_values = module.keys_values(memory)
    torch.testing.assert_close(module(x, keys_values, bias), expected, rtol=1e-5, atol=1e-5)
    weights = attention_weights(module.split(module.query(x)), keys_values[0], bias, False)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5)


def test_causal_self_attention_equals_that_of_torch(device):
    module, x = random_module(device), torch.randn(B, T, E, device=device)
    later = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)
    expected, _ = originals(module)(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(module(x, module.keys_values(x), causal=True), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, T])
def test_beams_folded_into_queries_equal_repeated_keys(device, tokens):
    module, bias = random_module(device), padding_bias(device)
    x, memory = torch.randn(B * K, tokens, E, device=device), torch.randn(B, S, E, device=device)
    repeated = module.keys_values(memory.repeat_interleave(K, 0))
    torch.testing.assert_close(
        module(x, module.keys_values(memory), bias),
        module(x, repeated, bias.repeat_interleave(K, 0)),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("kernel", [fused, explicit, explicit_in_float32])
def test_dropout_takes_whole_weights_and_keeps_the_mean(device, kernel):
    """With values of one, an output is the sum of its weights: 1 without dropout; each weight is 0 or doubled."""
    torch.manual_seed(2)
    queries, keys = torch.zeros(B, H, 500, D, device=device), torch.zeros(B, H, S, D, device=device)
    sums = kernel(queries, keys, torch.ones_like(keys), None, False, 0.5)[..., 0]
    fifths = sums * S / 2  # of S equal weights so many are left
    torch.testing.assert_close(fifths, fifths.round(), rtol=0, atol=1e-3)
    assert fifths.unique().numel() > 2
    assert sums.mean().item() == pytest.approx(1, abs=5 * (1 / S / sums.numel()) ** 0.5)


def test_attention_in_float32_rounds_nothing_but_its_result():
    queries, keys, values = (torch.randn(B, H, length, D).bfloat16() for length in (T, S, S))
    bias = padding_bias("cpu").bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = explicit_in_float32(queries, keys, values, bias, False)
    expected = explicit(queries.float(), keys.float(), values.float(), bias.float(), False)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_a_rotation_turns_queries_and_keys_and_no_values(device):
    module, x = random_module(device), torch.randn(B, T, E, device=device)
    rotation = rotations(3 + T, D).to(device)[3:]
    queries, (keys, values) = module.queries_keys_values(x, rotation=rotation)
    plain_keys, plain_values = module.keys_values(x)
    for turned, plain in ((queries, module.queries(x)), (keys, plain_keys)):
        torch.testing.assert_close(turned, rotate(plain.transpose(1, 2), rotation).transpose(1, 2))
        assert not torch.allclose(turned, plain, atol=1e-2)
    assert torch.equal(values, plain_values)


def test_recording_gives_the_weights_and_leaves_the_result_as_it_is(device):
    model = nn.ModuleDict({"one": random_module(device), "two": random_module(device)})
    x, memory, bias = torch.randn(B, T, E, device=device), torch.randn(B, S, E, device=device), padding_bias(device)

    def run():
        y = model["one"](x, model["one"].keys_values(x), causal=True)
        return model["two"](y, model["two"].keys_values(memory), bias)

    plain = run()
    with recording(model) as trace:
        recorded = run()
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-5)
    assert {name: tuple(weights.shape) for name, weights in trace.items()} == {
        "one": (B, H, T, T),
        "two": (B, H, T, S),
    }
    keys, _ = model["one"].keys_values(x)
    expected = attention_weights(model["one"].split(model["one"].query(x)), keys, None, True)
    torch.testing.assert_close(trace["one"], expected)
    assert (trace["two"][1, :, :, 2:] == 0).all()


def test_kernels_are_restored_after_recording_and_after_an_exception():
    model = nn.ModuleDict({"one": random_module("cpu"), "two": random_module("cpu")})
    model["two"].kernel = explicit  # a kernel of one's own comes back too
    with recording(model):
        assert model["one"].kernel is not fused
    assert (model["one"].kernel, model["two"].kernel) == (fused, explicit)
    with pytest.raises(KeyError), recording(model):
        raise KeyError
    assert (model["one"].kernel, model["two"].kernel) == (fused, explicit)
