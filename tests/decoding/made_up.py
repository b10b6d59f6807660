"""Random Transformers and sentences, for tests of search."""

import pytest
import torch

from mt.model.config import ModelConfig
from mt.model.transformer import Transformer

PAD, UNK, START, END = 0, 1, 2, 3
WORDS = range(4, 9)
SPECIALS = {"bos": START, "eos": END, "forbidden": (PAD, UNK, START)}


def random_model(seed, device="cpu", **shape):
    """A Transformer whose decoder is wild enough to prefer different tokens at different times, `</s>` among them."""
    torch.manual_seed(seed)
    config = ModelConfig(
        source_vocabulary=9,
        target_vocabulary=9,
        share_embeddings=True,
        width=8,
        heads=2,
        feed_forward=16,
        encoder_layers=1,
        decoder_layers=2,
        max_positions=40,
        **shape,
    )
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.decoder.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    return model.to(device)


def random_sentences(count, seed=0):
    """Source ids ended by `</s>`, of 1 to 8 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [[*torch.randint(4, 9, (length,), generator=generator).tolist(), END] for length in lengths]


def padded(sentences, device="cpu"):
    """Source ids (B, S) and their mask."""
    longest = max(map(len, sentences))
    source = torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in sentences], device=device)
    mask = torch.tensor([[i < len(ids) for i in range(longest)] for ids in sentences], device=device)
    return source, mask


def assert_same(found, expected):
    """Equal to the tolerance that the design allows: scores to 1e-3, other words only on a tie to 1e-4."""
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.ids == other.ids or abs(one.normalized_score - other.normalized_score) < 1e-4
            assert one.score == pytest.approx(other.score, abs=1e-3)
