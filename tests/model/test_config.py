"""What a model may be made of: every refusal, and the sizes that ship with names."""

from dataclasses import FrozenInstanceError

import pytest

from mt.errors import ConfigError
from mt.model.config import PRESETS, ModelConfig

GOOD = {
    "source_vocabulary": 100,
    "target_vocabulary": 100,
    "share_embeddings": True,
    "width": 16,
    "heads": 2,
    "feed_forward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_vocabulary": 0}, r"model\.source_vocabulary is 0; it must be at least 1"),
        ({"target_vocabulary": 0}, r"model\.target_vocabulary is 0; it must be at least 1"),
        ({"width": 0}, r"model\.width is 0; it must be at least 1"),
        ({"heads": -1}, r"model\.heads is -1; it must be at least 1"),
        ({"feed_forward": 0}, r"model\.feed_forward is 0; it must be at least 1"),
        ({"max_positions": 0}, r"model\.max_positions is 0; it must be at least 1"),
        ({"encoder_layers": 0}, r"model\.encoder_layers and model\.decoder_layers must be at least 1"),
        ({"decoder_layers": 0}, r"model\.encoder_layers and model\.decoder_layers must be at least 1"),
        ({"heads": 3}, r"model\.width is 16; it must be even and a multiple of model\.heads 3"),
        ({"width": 15, "heads": 3}, r"model\.width is 15; it must be even and a multiple of model\.heads 3"),
        ({"positions": "none"}, r"model\.positions none is none of sinusoidal, rotary"),
        ({"positions": "rotary", "heads": 16}, r"rotary positions need heads of an even size, and 16 / 16 is odd"),
        ({"dropout": 1.0}, r"model\.dropout is 1\.0; it must be at least 0 and below 1"),
        ({"dropout": -0.1}, r"model\.dropout is -0\.1; it must be at least 0 and below 1"),
        ({"attention_dropout": 1.0}, r"model\.attention_dropout is 1\.0; it must be at least 0 and below 1"),
        ({"activation_dropout": 2.0}, r"model\.activation_dropout is 2\.0; it must be at least 0 and below 1"),
        ({"target_vocabulary": 101}, r"model\.share_embeddings needs one vocabulary for both sides"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{**GOOD, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.0}, {"share_embeddings": False, "target_vocabulary": 101}, {"heads": 16}]
)
def test_a_model_that_can_be_built_is_not_refused(changes):
    assert ModelConfig(**{**GOOD, **changes}).width == 16


def test_a_configuration_does_not_change():
    with pytest.raises(FrozenInstanceError):
        ModelConfig(**GOOD).width = 32


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "feed_forward"),
    [("tiny", 4, 128, 4, 256), ("small", 3, 256, 4, 1024), ("base", 6, 512, 8, 2048), ("big", 6, 1024, 16, 4096)],
)
def test_a_preset_has_the_sizes_it_is_known_by(name, layers, width, heads, feed_forward):
    config = ModelConfig(source_vocabulary=8, target_vocabulary=8, share_embeddings=True, **PRESETS[name])
    assert (config.encoder_layers, config.decoder_layers) == (layers, layers)
    assert (config.width, config.heads, config.feed_forward) == (width, heads, feed_forward)


def test_there_are_four_presets():
    assert set(PRESETS) == {"tiny", "small", "base", "big"}
