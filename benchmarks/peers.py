"""A model of `mt` as other toolkits hold it, so that speeds are compared with the same weights.

M2M-100 in `transformers` is an `mt` model with layer norm first and one vocabulary: names differ, keys and values are
two projections, and the table of positions is `mt`'s own, put where theirs begins.  CTranslate2 takes either norm order
and two vocabularies.  `check_*` raise `Disagreement` unless the copy computes what the original does.

Shapes: B sentences, S source length, T target length, V vocabulary.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt.corpus.batching import pad_rows, padding_mask
from mt.corpus.tokenizer import Tokenizer
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.pipelines.run_folder import LoadedModel

TOLERANCE = 1e-4  # largest difference between two logits, or two log-probabilities in nats

M2M100_NAMES = {  # replaced in this order
    "around_self_attention.norm": "self_attn_layer_norm",
    "around_cross_attention.norm": "encoder_attn_layer_norm",
    "around_feed_forward.norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.inner": "fc1",
    "feed_forward.outer": "fc2",
    ".query.": ".q_proj.",
    ".output.": ".out_proj.",
    "encoder_norm": "encoder.layer_norm",
    "decoder_norm": "decoder.layer_norm",
}


class Disagreement(Exception):
    """A converted model does not compute what the original does, or cannot be made."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A padded batch of sentences with their references, through which two models are compared."""

    source: Tensor  # (B, S), each sentence ended by </s>
    source_mask: Tensor | None  # (B, S)
    target_input: Tensor  # (B, T), <s> and the reference
    target: Tensor  # (B, T), the reference and </s>
    target_mask: Tensor  # (B, T)

    @classmethod
    def of(cls, sources: list[str], references: list[str], tokenizers: tuple[Tokenizer, Tokenizer]) -> "Sample":
        reader, writer = tokenizers
        source = [np.array([*ids, reader.specials.eos]) for ids in reader.encode(sources)]
        target = [np.array([*ids, writer.specials.eos]) for ids in writer.encode(references)]
        shifted = [np.array([writer.specials.bos, *ids[:-1]]) for ids in target]
        lengths = np.array([len(ids) for ids in target])
        source_ids, target_ids = pad_rows(source, reader.specials.pad), pad_rows(target, writer.specials.pad)
        return cls(
            source_ids,
            padding_mask(np.array([len(ids) for ids in source]), source_ids.size(1)),
            pad_rows(shifted, writer.specials.pad),
            target_ids,
            torch.from_numpy(np.arange(target_ids.size(1)) < lengths[:, None]),
        )


@torch.inference_mode()
def original_logits(model: Transformer, sample: Sample) -> Tensor:
    """What `mt` computes: (B, T, V)."""
    return model.decode(sample.target_input, model.encode(sample.source, sample.source_mask))


def m2m100_weights(model: Transformer) -> dict[str, Tensor]:
    """The weights under M2M-100's names."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^(encoder|decoder)\.", r"\1.layers.", name)
        for ours, theirs in M2M100_NAMES.items():
            name = name.replace(ours, theirs)
        if ".key_value." in name:
            for theirs, half in zip((".k_proj.", ".v_proj."), tensor.chunk(2), strict=True):
                weights["model." + name.replace(".key_value.", theirs)] = half
        elif not name.endswith("_embedding.weight"):
            weights["model." + name] = tensor
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        weights[f"{name}.weight"] = model.target_embedding.weight
    return weights


def huggingface_shape(config: ModelConfig) -> dict[str, Any]:
    """What the configurations of M2M-100 and Marian call the shape of a model."""
    return {
        "vocab_size": config.target_vocabulary,
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.feed_forward,
        "decoder_ffn_dim": config.feed_forward,
        "activation_function": "relu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
    }


def to_m2m100(loaded: LoadedModel) -> Any:
    """An `M2M100ForConditionalGeneration` with these weights; raises `Disagreement` where its shape does not allow."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config, specials = loaded.model.config, loaded.tokenizers[1].specials
    table = loaded.model.positions
    if not config.norm_first or not config.share_embeddings or table is None:
        raise Disagreement(
            "M2M-100 has layer norm first, one vocabulary and sinusoidal positions: leave hf out of --engines for this"
            " model, or train one with --set model.positions=sinusoidal"
        )
    peer = M2M100ForConditionalGeneration(
        M2M100Config(
            max_position_embeddings=config.max_positions + specials.pad,  # rows are numbered from `<pad>` on
            **huggingface_shape(config),
            pad_token_id=specials.pad,
            bos_token_id=specials.bos,
            eos_token_id=specials.eos,
            decoder_start_token_id=specials.bos,
        )
    )
    peer.load_state_dict(m2m100_weights(loaded.model), strict=True)
    set_positions(peer, table)
    return peer.eval()


def set_positions(peer: Any, table: Tensor) -> None:
    """Give an M2M-100 model a table of positions (positions, E); its first token takes row `pad_token_id + 1`.

    The rows are no weights and are not saved: this is needed after every load.
    """
    rows = torch.cat((table.new_zeros(peer.config.pad_token_id + 1, table.size(1)), table))
    for stack in (peer.model.encoder, peer.model.decoder):
        stack.embed_positions.weights = rows


@torch.inference_mode()
def check_m2m100(loaded: LoadedModel, peer: Any, sample: Sample) -> float:
    """The largest difference between two logits of the sample."""
    mask = torch.ones_like(sample.source) if sample.source_mask is None else sample.source_mask.long()
    theirs = peer(input_ids=sample.source, attention_mask=mask, decoder_input_ids=sample.target_input).logits
    difference = (theirs - original_logits(loaded.model, sample))[sample.target_mask].abs().max().item()
    return within_tolerance("logits of M2M-100", difference)


def within_tolerance(what: str, difference: float) -> float:
    if not difference <= TOLERANCE:
        raise Disagreement(f"{what} differ from mt's by {difference:.2g}; at most {TOLERANCE:g} is expected")
    return difference


def check_ctranslate2(loaded: LoadedModel, folder: Path, sample: Sample) -> float:
    """The largest difference between two log-probabilities of the references' tokens, in nats."""
    import ctranslate2

    reader, writer = loaded.tokenizers
    source_mask = torch.ones_like(sample.source, dtype=torch.bool) if sample.source_mask is None else sample.source_mask
    scored = ctranslate2.Translator(str(folder), compute_type="float32").score_batch(
        [reader.pieces(ids[mask].tolist()[:-1]) for ids, mask in zip(sample.source, source_mask, strict=True)],
        [writer.pieces(ids[mask].tolist()[:-1]) for ids, mask in zip(sample.target, sample.target_mask, strict=True)],
    )
    theirs = torch.tensor([log_prob for result in scored for log_prob in result.log_probs])
    log_probs = original_logits(loaded.model, sample).log_softmax(-1)
    ours = log_probs.gather(-1, sample.target[..., None])[..., 0][sample.target_mask]
    return within_tolerance("log-probabilities of CTranslate2", (theirs - ours).abs().max().item())
