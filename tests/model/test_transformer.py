"""The whole model: cached against teacher-forced, padding, causality, beams, parameters, recording."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mt.model.attention import fused, recording
from mt.model.cache import FixedState
from mt.model.config import DROPOUTS, PRESETS, ModelConfig
from mt.model.transformer import Transformer

B, K, S, T, H, D = 2, 3, 5, 4, 2, 8
E = H * D
SHARED = ModelConfig(
    source_vocabulary=11,
    target_vocabulary=11,
    share_embeddings=True,
    width=E,
    heads=H,
    feed_forward=24,
    encoder_layers=2,
    decoder_layers=3,
    max_positions=12,
)
VARIATIONS = {
    "pre-norm, shared": SHARED,
    "post-norm, shared": replace(SHARED, norm_first=False),
    "pre-norm, separate": replace(SHARED, share_embeddings=False, source_vocabulary=13),
    "rotary, shared": replace(SHARED, positions="rotary"),
    "post-norm, separate": replace(SHARED, norm_first=False, share_embeddings=False, source_vocabulary=13),
}
variations = pytest.mark.parametrize("config", VARIATIONS.values(), ids=VARIATIONS.keys())
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])  # (B, S)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def random_model(config=SHARED, device="cpu"):
    """A model without dropout, whose biases and norms are not at their initial zeros and ones."""
    torch.manual_seed(3)
    model = Transformer(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(device)


def random_ids(rows, length, device="cpu", seed=4):
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(seed)).to(device)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def token_by_token(model, ids, state):
    """Logits (N, T, V) of a state with a past, one token a call."""
    return torch.cat([model.decode(column[:, None], state) for column in ids.T], dim=1)


@variations
def test_shapes(config):
    model = random_model(config)
    state = model.encode(random_ids(B, S), MASK)
    assert len(state.memory) == config.decoder_layers
    assert {tensor.shape for layer in state.memory for tensor in layer} == {(B, H, S, D)}
    assert state.memory_bias.shape == (B, 1, 1, S)
    assert model.hidden(random_ids(B, T), state).shape == (B, T, E)
    assert model.decode(random_ids(B, T), state).shape == (B, T, 11)
    assert model.decode(random_ids(B * K, 1), state.with_past(K, T)).shape == (B * K, 1, 11)


@variations
def test_cached_decoding_equals_teacher_forced(device, config):
    model = random_model(config, device)
    source, mask, target = random_ids(B, S, device), MASK.to(device), random_ids(B, T, device, seed=5)
    state = model.encode(source, mask).with_past(1, T)
    close(token_by_token(model, target, state), model.decode(target, model.encode(source, mask)))
    assert state.position == T


@variations
def test_cached_beams_equal_teacher_forced_sentences(device, config):
    model = random_model(config, device)
    source, mask, target = random_ids(B, S, device), MASK.to(device), random_ids(B * K, T, device, seed=6)
    cached = token_by_token(model, target, model.encode(source, mask).with_past(K, T))
    repeated = model.encode(source.repeat_interleave(K, 0), mask.repeat_interleave(K, 0))
    close(cached, model.decode(target, repeated))


def test_teacher_forcing_leaves_a_state_as_it_is():
    model = random_model()
    state = model.encode(random_ids(B, S), MASK)
    first = model.decode(random_ids(B, T), state)
    assert (state.position, state.past) == (0, [])
    assert torch.equal(model.decode(random_ids(B, T), state), first)


def test_two_searches_from_one_encoding_do_not_disturb_each_other():
    model = random_model()
    state, ids = model.encode(random_ids(B, S), MASK), random_ids(B, T, seed=7)
    one, other = state.with_past(1, T), state.with_past(1, T)
    model.decode(ids[:, :1], one)
    model.decode(ids[:, 3:], other)
    close(model.decode(ids[:, 1:2], one)[:, 0], model.decode(ids[:, :2], state)[:, -1])


@variations
def test_a_padded_sentence_scores_as_alone(device, config):
    model = random_model(config, device)
    source, target = random_ids(B, S, device), random_ids(B, T, device, seed=8)
    together = model.decode(target, model.encode(source, MASK.to(device)))
    alone = model.decode(target[1:], model.encode(source[1:, :3]))
    close(together[1:], alone)
    assert not torch.allclose(together[1:], model.decode(target[1:], model.encode(source[1:])), atol=1e-3)


def test_a_mask_without_padding_is_no_mask():
    model, source, target = random_model(), random_ids(B, S), random_ids(B, T)
    close(model.decode(target, model.encode(source, torch.ones_like(MASK))), model.decode(target, model.encode(source)))


@pytest.mark.parametrize("changed", range(T))
def test_a_target_token_changes_no_earlier_logits(changed):
    model, source, target = random_model(), random_ids(B, S), random_ids(B, T)
    other = target.clone()
    other[:, changed] = (target[:, changed] + 1) % 11
    before, after = (model.decode(ids, model.encode(source)) for ids in (target, other))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert ((before - after)[:, changed:].abs().amax(-1) > 1e-4).all()


def test_reordered_rows_go_on_from_the_rows_they_copy(device):
    model, source, mask = random_model(device=device), random_ids(B, S, device), MASK.to(device)
    state, target = model.encode(source, mask).with_past(K, T), random_ids(B * K, T, device, seed=9)
    parents = torch.tensor([[2, 2, 0], [0, 2, 1]], device=device)
    rows = torch.tensor([2, 2, 0, 3, 5, 4], device=device)  # the same, numbered through
    token_by_token(model, target[:, :2], state)
    state.reorder(parents)
    first = model.decode(target[:, 2:3], state)
    state.reorder(parents)
    second = model.decode(target[:, 3:], state)
    read = torch.cat((target[rows, :2], target[:, 2:3]), dim=1)
    read = torch.cat((read[rows], target[:, 3:]), dim=1)  # (N, T): what each row has read in the end
    repeated = model.encode(source.repeat_interleave(K, 0), mask.repeat_interleave(K, 0))
    close(second, model.decode(read, repeated)[:, 3:])
    close(first, model.decode(torch.cat((target[rows, :2], target[:, 2:3]), dim=1), repeated)[:, 2:])


def test_beams_may_begin_as_one(device):
    model, source, mask = random_model(device=device), random_ids(B, S, device), MASK.to(device)
    state, target = model.encode(source, mask).with_past(K, T), random_ids(B * K, T, device, seed=9)
    target[:, 0] = 3  # what all beams have read at first
    model.decode(target[::K, :1], state)
    state.reorder(torch.zeros((B, K), dtype=torch.long, device=device))
    rest = token_by_token(model, target[:, 1:], state)
    repeated = model.encode(source.repeat_interleave(K, 0), mask.repeat_interleave(K, 0))
    close(rest, model.decode(target, repeated)[:, 1:])


@pytest.mark.parametrize("kept", [[1], [0], [2, 0], [2, 1, 0]])
def test_selected_sentences_go_on_as_if_they_had_been_alone(device, kept):
    model = random_model(device=device)
    source, target = random_ids(3, S, device), random_ids(3 * K, T, device, seed=10)
    mask = torch.arange(S, device=device) < torch.tensor([[5], [3], [4]], device=device)
    state = model.encode(source, mask).with_past(K, T)
    token_by_token(model, target[:, :2], state)
    sentences = torch.tensor(kept, device=device)
    state.select(sentences)
    rows = [sentence * K + beam for sentence in kept for beam in range(K)]
    rest = token_by_token(model, target[rows, 2:], state)
    expected = token_by_token(model, target[rows], model.encode(source[kept], mask[kept]).with_past(K, T))
    close(rest, expected[:, 2:])


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("source_length", [5, 16, 20])
def test_what_fills_up_short_rows_of_keys_changes_nothing(device, monkeypatch, source_length, beams, padded):
    """Sources and pasts below, at and above `SHORTEST_ROW`, in room that holds nothing to be read by mistake.

    The two sentences change places twice on the way.
    """
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, torch.nan))
    model = random_model(replace(SHARED, max_positions=20), device)
    source, target = random_ids(B, source_length, device), random_ids(B * beams, 18, device, seed=11)
    mask = torch.arange(source_length, device=device) < torch.tensor([[source_length], [3]], device=device)
    mask = mask if padded else None
    state = model.encode(source, mask).with_past(beams, 18)
    logits = []
    for turn, tokens in enumerate(target.unflatten(0, (B, beams)).split([2, 15, 1], dim=2)):
        found = token_by_token(model, (tokens.flip(0) if turn == 1 else tokens).flatten(0, 1), state)
        found = found.unflatten(0, (B, beams))
        logits.append((found.flip(0) if turn == 1 else found).flatten(0, 1))
        state.select(torch.tensor([1, 0], device=device))
    mask = None if mask is None else mask.repeat_interleave(beams, 0)
    expected = model.decode(target, model.encode(source.repeat_interleave(beams, 0), mask))
    close(torch.cat(logits, dim=1), expected)


def test_selection_from_a_state_without_a_past_keeps_the_memory_of_these_sentences():
    model, source, target = random_model(), random_ids(B, S), random_ids(1, T)
    state = model.encode(source, MASK)
    state.select(torch.tensor([1]))
    close(model.decode(target, state), model.decode(target, model.encode(source[1:], MASK[1:])))


def parameters_by_formula(config):
    """The published architecture, counted: biases everywhere, norms of 2E, a final norm a stack when pre-norm."""
    E, F = config.width, config.feed_forward
    attention, feed_forward, norm = 4 * (E * E + E), 2 * E * F + F + E, 2 * E
    encoder = config.encoder_layers * (attention + feed_forward + 2 * norm)
    decoder = config.decoder_layers * (2 * attention + feed_forward + 3 * norm)
    tables = config.target_vocabulary + (0 if config.share_embeddings else config.source_vocabulary)
    return tables * E + encoder + decoder + (2 * norm if config.norm_first else 0)


def count(config):
    with torch.device("meta"):  # shapes without memory
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_preset_has_as_many_parameters_as_the_formula_says(preset, norm_first):
    shared = ModelConfig(
        source_vocabulary=8000,
        target_vocabulary=8000,
        share_embeddings=True,
        norm_first=norm_first,
        **PRESETS[preset],
    )
    separate = replace(shared, share_embeddings=False, target_vocabulary=7000)
    assert count(shared) == parameters_by_formula(shared)
    assert count(separate) == parameters_by_formula(separate)


@pytest.mark.parametrize(("preset", "published"), [("base", 65e6), ("big", 213e6)])
def test_the_published_models_have_about_the_published_number_of_parameters(preset, published):
    config = ModelConfig(
        source_vocabulary=37_000, target_vocabulary=37_000, share_embeddings=True, norm_first=False, **PRESETS[preset]
    )
    assert count(config) == pytest.approx(published, rel=0.04)


def test_shared_embeddings_are_one_table_and_the_output_projection():
    shared, separate = random_model(), random_model(VARIATIONS["pre-norm, separate"])
    assert shared.source_embedding is shared.target_embedding
    assert shared.output_weight is shared.target_embedding.weight
    assert separate.source_embedding is not separate.target_embedding
    assert separate.source_embedding.weight.shape == (13, E)
    assert separate.output_weight is separate.target_embedding.weight


def test_logits_are_products_of_what_the_decoder_says_and_the_target_embedding():
    model, source, target = random_model(), random_ids(B, S), random_ids(B, T)
    hidden = model.hidden(target, model.encode(source))
    close(model.decode(target, model.encode(source)), torch.einsum("bte,ve->btv", hidden, model.output_weight))


def test_an_embedding_is_scaled_by_the_root_of_the_width_and_stands_on_its_position():
    model = random_model()
    x = model.embed(model.target_embedding, torch.tensor([[7, 2]]), place=slice(5, 7), packing=None)
    table = model.target_embedding.weight
    close(x, torch.stack((table[7] * 4 + model.positions[5], table[2] * 4 + model.positions[6]))[None])  # sqrt(16)


def test_initial_projections_are_xavier_and_embeddings_have_variance_one_over_the_width():
    torch.manual_seed(11)
    model = Transformer(replace(SHARED, width=64, target_vocabulary=500, source_vocabulary=500))
    attention = model.encoder[0].self_attention
    bound = (6 / (64 + 64)) ** 0.5
    for weight in (attention.query.weight, *attention.key_value.weight.chunk(2), attention.output.weight):
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert model.target_embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert all((module.bias == 0).all() for module in model.modules() if isinstance(module, nn.Linear))


def test_all_positions_can_be_used_and_no_more():
    model = random_model()
    longest = random_ids(B, 12)
    assert model.decode(longest, model.encode(longest)).shape == (B, 12, 11)
    with pytest.raises(RuntimeError):
        model.encode(random_ids(B, 13))
    with pytest.raises(RuntimeError):
        model.decode(random_ids(B, 13), model.encode(longest))


@variations
def test_positions_are_no_weights(config):
    assert not {"positions", "rotations"} & random_model(config).state_dict().keys()


@variations
def test_the_order_of_words_is_read(config):
    """Without positions a source said backwards had the same keys backwards, and earlier target words no order."""
    model, source = random_model(replace(config, decoder_layers=1)), random_ids(B, S)
    forwards, backwards = (model.encode(ids).memory[0][0] for ids in (source, source.flip(1)))  # keys (B, H, S, D)
    assert not torch.allclose(forwards, backwards.flip(2), atol=1e-2)
    state, swapped = model.encode(source), torch.tensor([[[4, 5, 6]], [[5, 4, 6]]])
    one, other = (model.decode(ids.expand(B, 3), state)[:, -1] for ids in swapped)
    assert not torch.allclose(one, other, atol=1e-2)


@variations
def test_recording_sees_every_attention_and_changes_no_logits(device, config):
    model = random_model(config, device)
    source, mask, target = random_ids(B, S, device), MASK.to(device), random_ids(B, T, device)
    plain = model.decode(target, model.encode(source, mask))
    with recording(model) as trace:
        recorded = model.decode(target, model.encode(source, mask))
    close(recorded, plain)
    assert {name: tuple(weights.shape) for name, weights in trace.items()} == {
        **{f"encoder.{layer}.self_attention": (B, H, S, S) for layer in range(2)},
        **{f"decoder.{layer}.self_attention": (B, H, T, T) for layer in range(3)},
        **{f"decoder.{layer}.cross_attention": (B, H, T, S) for layer in range(3)},
    }
    for name, weights in trace.items():
        close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        if "decoder" in name and "self" in name:
            assert (weights.triu(1) == 0).all()
        else:
            assert (weights[1, :, :, 3:] == 0).all()
    assert all(layer.self_attention.kernel is fused for layer in (*model.encoder, *model.decoder))


@pytest.mark.parametrize("kind", DROPOUTS)
def test_each_kind_of_dropout_acts_in_training_only(kind):
    model, source, target = random_model(replace(SHARED, **{kind: 0.5})), random_ids(B, S), random_ids(B, T)
    assert torch.equal(*(model.decode(target, model.encode(source)) for _ in range(2)))
    model.train()
    assert not torch.equal(*(model.decode(target, model.encode(source)) for _ in range(2)))


def test_bfloat16_products_stay_near_float32_ones(device):
    model, source, mask = random_model(device=device), random_ids(B, S, device), MASK.to(device)
    target = random_ids(B, T, device)
    exact = model.decode(target, model.encode(source, mask))
    with torch.autocast(device.type, torch.bfloat16):
        rounded = model.decode(target, model.encode(source, mask))
        cached = token_by_token(model, target, model.encode(source, mask).with_past(1, T))
    assert rounded.dtype == torch.bfloat16
    scale = exact.std().item()
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.1 * scale)
    torch.testing.assert_close(cached.float(), exact, rtol=0, atol=0.1 * scale)


@variations
def test_a_fixed_state_decodes_as_one_that_grows(device, config):
    """With room that is longer than what it holds, after other sentences, and with beams that change."""
    model = random_model(config, device)
    others, source, mask = random_ids(B, S + 2, device, seed=1), random_ids(B, S, device), MASK.to(device)
    target = random_ids(B * K, T, device, seed=9)
    parents = torch.tensor([[2, 2, 0], [0, 2, 1]], device=device)
    fixed = FixedState(model.encode(source, mask), K, source_length=S + 3, max_length=T + 2)
    places = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in fixed.past]
    for sentences, padding in ((others, None), (source, mask)):
        fixed.load(model.encode(sentences, padding))
        growing = model.encode(sentences, padding).with_past(K, T)
        for tokens in target.split(1, dim=1):
            close(model.decode(tokens, fixed), model.decode(tokens, growing))
            for state in (fixed, growing):
                state.reorder(parents)
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in fixed.past] == places
