"""Sentences of random ids and a model small enough for them, for tests of training."""

import numpy as np
import torch

from mt.corpus.tokenizer import Specials
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer

V = 60
SPECIALS = Specials(pad=0, bos=2, eos=3, unk=1)


class Side:
    """Sentences of random ids, ended by `</s>`."""

    def __init__(self, count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(2, 12, count)
        self.rows = [np.append(generator.integers(4, V, length - 1), SPECIALS.eos) for length in self.lengths]

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


class Corpus:
    def __init__(self, count: int) -> None:
        self.source, self.target = Side(count, 1), Side(count, 2)


def small_transformer(device: torch.device, dropout: float = 0.0, positions: str = "sinusoidal") -> Transformer:
    torch.manual_seed(4)
    config = ModelConfig(
        source_vocabulary=V, target_vocabulary=V, share_embeddings=True, width=32, heads=4, feed_forward=48,
        encoder_layers=2, decoder_layers=2, max_positions=16, dropout=dropout,
        positions=positions,
    )  # fmt: skip
    return Transformer(config).to(device)
