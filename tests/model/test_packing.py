"""Packed sentences against the same ones padded: positions, attention, whole models, gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from mt.model.attention import MultiHeadAttention
from mt.model.config import ModelConfig
from mt.model.packing import Packing, padded_length
from mt.model.transformer import Transformer

V, C = 11, 6
LENGTHS = {"source": (4, 2, 5), "target": (3, 7, 1)}


def packing(lengths, rest=3, device="cpu"):
    tokens = sum(lengths)
    return Packing(torch.tensor(lengths, device=device), longest=max(lengths), tokens=tokens, row=tokens + rest)


def sentences(lengths, device="cpu"):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, V, (length,), generator=generator).to(device) for length in lengths]


def packed(rows, rest=3):
    return F.pad(torch.cat(rows), (0, rest))[None]


def test_tokens_stand_at_their_positions():
    assert packing((2, 3), rest=2).positions.tolist() == [0, 1, 0, 1, 2, 0, 0]


def test_shapes():
    where = packing((4, 2, 18), rest=3)
    padded = where.pad(torch.randn(1, 27, C))
    assert padded.shape == (3, 18, C)
    assert where.unpad(padded).shape == (1, 27, C)
    assert where.mask.shape == (3, 18)


@pytest.mark.parametrize(("longest", "cpu", "cuda"), [(1, 16, 8), (8, 16, 8), (9, 16, 16), (16, 16, 16), (17, 17, 24)])
def test_short_rows_are_filled_up_on_the_cpu_and_aligned_on_cuda(longest, cpu, cuda):
    assert [padded_length(longest, torch.device(name)) for name in ("cpu", "cuda")] == [cpu, cuda]


def test_rows_are_as_long_as_attention_on_the_device_wants_them(device):
    assert packing((4, 2, 5), device=device).mask.shape == (3, padded_length(5, device))


@pytest.mark.parametrize("rest", [0, 3])
@pytest.mark.parametrize("lengths", [(4, 2, 5), (3, 3), (1,), (18, 2), (17, 17)])
def test_padding_and_packing_again_changes_nothing(device, lengths, rest):
    where, tokens = packing(lengths, rest, device), sum(lengths)
    x = torch.randn(1, tokens + rest, C, device=device)
    padded = where.pad(x)
    for sentence, row, length in zip(x[0, :tokens].split(lengths), padded, lengths, strict=True):
        assert torch.equal(row[:length], sentence)
    assert torch.equal(where.unpad(padded)[:, :tokens], x[:, :tokens])
    assert where.mask.sum(-1).tolist() == list(lengths)


@pytest.mark.parametrize("lengths", [(4, 2, 5), (4, 2, 17), (18, 18)])
def test_gradients_are_those_of_plain_indexing(device, lengths):
    """What the padding and the rest of the row receive is thrown away, as where nothing is padded."""
    where, tokens = packing(lengths, 2, device), sum(lengths)
    x = torch.randn(1, tokens + 2, C, device=device, requires_grad=True)
    longest, padded = max(lengths), padded_length(max(lengths), device)
    wanted = torch.randn(len(lengths), padded, C, device=device)
    plain = pad_sequence(x[0, :tokens].split(lengths), batch_first=True)  # to the longest
    (ours,) = torch.autograd.grad((where.pad(x) * wanted).sum(), x)
    (theirs,) = torch.autograd.grad((plain * wanted[:, :longest]).sum(), x)
    assert torch.equal(ours, theirs)

    y = torch.randn(len(lengths), padded, C, device=device, requires_grad=True)
    back = torch.randn(tokens + 2, C, device=device)
    (ours,) = torch.autograd.grad((where.unpad(y)[0] * back).sum(), y)
    flat = torch.cat([row[:length] for row, length in zip(y, lengths, strict=True)])
    (theirs,) = torch.autograd.grad((flat * back[:tokens]).sum(), y)
    assert torch.equal(ours, theirs)


@pytest.fixture(params=["sinusoidal", "rotary"])
def model(device, request):
    torch.manual_seed(3)
    config = ModelConfig(
        source_vocabulary=V, target_vocabulary=V, share_embeddings=True, width=8, heads=2, feed_forward=12,
        encoder_layers=2, decoder_layers=2, max_positions=16, dropout=0.0,
        positions=request.param,
    )  # fmt: skip
    return Transformer(config).to(device)


@pytest.mark.parametrize("rest", [0, 3])
def test_a_packed_batch_is_computed_as_a_padded_one(model, device, rest):
    source, target = (sentences(lengths, device) for lengths in LENGTHS.values())
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in source], batch_first=True)
    state = model.encode(pad_sequence(source, batch_first=True), mask)
    padded = model.hidden(pad_sequence(target, batch_first=True), state)
    padded = torch.cat([row[: len(ids)] for row, ids in zip(padded, target, strict=True)])

    where = [packing(lengths, rest, device) for lengths in LENGTHS.values()]
    state = model.encode(packed(source, rest), packing=where[0])
    ours = model.hidden(packed(target, rest), state, where[1])[0, : len(padded)]
    torch.testing.assert_close(ours, padded, rtol=0, atol=1e-5)

    wanted = torch.randn_like(padded)
    gradients = [torch.autograd.grad((each * wanted).sum(), list(model.parameters())) for each in (ours, padded)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_rest_of_a_row_is_finite_and_nobodys(model, device):
    """Whatever ids fill the row up, real tokens and all gradients stay the same."""
    source, target = (sentences(lengths, device) for lengths in LENGTHS.values())
    where = [packing(lengths, 3, device) for lengths in LENGTHS.values()]
    found = []
    for filling in (0, 5):
        rows = [
            torch.cat([packed(side, 0), torch.full((1, 3), filling, device=device)], 1) for side in (source, target)
        ]
        hidden = model.hidden(rows[1], model.encode(rows[0], packing=where[0]), where[1])[0]
        assert hidden.isfinite().all()
        tokens = hidden[: sum(LENGTHS["target"])]
        found.append((tokens, *torch.autograd.grad(tokens.square().sum(), list(model.parameters()))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_attention_modules_take_packed_rows(device):
    torch.manual_seed(5)
    attention = MultiHeadAttention(8, 2).to(device)
    rows = [torch.randn(length, 8, device=device) for length in (4, 2)]
    where = packing((4, 2), 1, device)
    x = F.pad(torch.cat(rows), (0, 0, 0, 1))[None]
    y = attention(x, attention.keys_values(x, where), causal=True, packing=where)
    for ours, row in zip(y[0, :6].split((4, 2)), rows, strict=True):
        alone = attention(row[None], attention.keys_values(row[None]), causal=True)[0]
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)
