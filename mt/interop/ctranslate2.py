"""An mt model in the format of CTranslate2, a C++ engine for translating, written through its own Python specs."""

from typing import Any

import torch
from torch import Tensor, nn

from mt.corpus.tokenizer import Tokenizer
from mt.errors import ConfigError
from mt.model.layers import DecoderLayer, EncoderLayer
from mt.model.transformer import Transformer

TYPES = ("float32", "float16", "bfloat16", "int16", "int8", "int8_float32", "int8_float16", "int8_bfloat16")


def to_ctranslate2(model: Transformer, tokenizers: tuple[Tokenizer, Tokenizer], weights: str) -> Any:
    """The model as CTranslate2's `TransformerSpec`, its weights in one of `TYPES`; `save` writes it into a folder.

    CTranslate2 reads and writes pieces.  It ends each source sentence by `</s>` itself, as mt does.  Raises
    `ConfigError` where CTranslate2 is not installed.
    """
    try:
        from ctranslate2.specs.common_spec import Activation
        from ctranslate2.specs.transformer_spec import TransformerDecoderSpec, TransformerEncoderSpec, TransformerSpec
    except ImportError as error:
        raise ConfigError("CTranslate2 is not installed", "pip install ctranslate2") from error
    config = model.config
    shape: dict[str, Any] = {"num_heads": config.heads, "pre_norm": config.norm_first, "activation": Activation.RELU}
    if model.rotations is not None:
        shape |= {"rotary_dim": 0, "rotary_interleave": False}  # all of a head, turned as halves
    spec = TransformerSpec(
        TransformerEncoderSpec(config.encoder_layers, **shape), TransformerDecoderSpec(config.decoder_layers, **shape)
    )
    fill_stack(spec.encoder, model.positions, model.encoder, model.encoder_norm)
    fill_stack(spec.decoder, model.positions, model.decoder, model.decoder_norm)
    spec.encoder.embeddings[0].weight = model.source_embedding.weight.detach().numpy()
    spec.decoder.embeddings.weight = model.target_embedding.weight.detach().numpy()
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    source, target = (tokenizer.pieces(range(tokenizer.size)) for tokenizer in tokenizers)
    spec.register_source_vocabulary(source)
    spec.register_target_vocabulary(target)
    specials = tokenizers[1].specials
    for name, number in (("bos", specials.bos), ("eos", specials.eos), ("unk", specials.unk)):
        setattr(spec.config, f"{name}_token", target[number])
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization=weights)
    return spec


def fill_stack(spec: Any, positions: Tensor | None, layers: nn.ModuleList, norm: nn.Module) -> None:
    if positions is not None:
        spec.position_encodings.encodings = positions.numpy()
    if isinstance(norm, nn.LayerNorm):
        fill_norm(spec.layer_norm, norm)
    for layer_spec, layer in zip(spec.layer, layers, strict=True):
        fill_layer(layer_spec, layer)


def fill_layer(spec: Any, layer: nn.Module) -> None:
    assert isinstance(layer, EncoderLayer | DecoderLayer)
    attention, feed_forward = layer.self_attention, layer.feed_forward
    fill_linear(spec.self_attention.linear[0], attention.query, attention.key_value)
    fill_linear(spec.self_attention.linear[1], attention.output)
    fill_norm(spec.self_attention.layer_norm, layer.around_self_attention.norm)
    if isinstance(layer, DecoderLayer):
        for linear, ours in zip(
            spec.attention.linear,
            (layer.cross_attention.query, layer.cross_attention.key_value, layer.cross_attention.output),
            strict=True,
        ):
            fill_linear(linear, ours)
        fill_norm(spec.attention.layer_norm, layer.around_cross_attention.norm)
    fill_linear(spec.ffn.linear_0, feed_forward.inner)
    fill_linear(spec.ffn.linear_1, feed_forward.outer)
    fill_norm(spec.ffn.layer_norm, layer.around_feed_forward.norm)


def fill_linear(spec: Any, *projections: nn.Linear) -> None:
    """One projection, or several of the same input laid one after another."""
    spec.weight = torch.cat([each.weight for each in projections]).detach().numpy()
    spec.bias = torch.cat([each.bias for each in projections]).detach().numpy()


def fill_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = norm.weight.detach().numpy(), norm.bias.detach().numpy()
