"""The numbers that fix a Transformer's shape, and the sizes that ship with names.

The presets base and big are those of Vaswani et al. 2017, table 3; tiny is that of
Wu et al. 2021 ("Good for misconceived reasons") for 29,000 pairs.
"""

from dataclasses import dataclass

from mt.errors import ConfigError

POSITIONS = ("sinusoidal", "rotary")
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What a Transformer is built from, and all that a run folder says of its shape."""

    source_vocabulary: int  # rows of the source embedding, padding included
    target_vocabulary: int  # rows of the target embedding, which is the output projection too
    share_embeddings: bool  # one table for source and target, which then share a vocabulary
    width: int  # E, size of the vector of a token between layers
    heads: int  # H, of width / heads numbers each
    feed_forward: int  # F, width of the hidden layer of the position-wise network
    encoder_layers: int
    decoder_layers: int
    max_positions: int = 1024  # longest sentence in tokens, `</s>` included
    positions: str = "sinusoidal"  # added to embeddings; rotary: rotates queries and keys of self-attention
    norm_first: bool = True  # layer norm before each sublayer; false: after the residual, as published
    dropout: float = 0.1  # share of the numbers dropped in training from embeddings and from what each sublayer adds
    attention_dropout: float = 0.0  # from the weights of attention
    activation_dropout: float = 0.0  # inside the feed-forward network

    def __post_init__(self) -> None:
        for name in ("source_vocabulary", "target_vocabulary", "width", "heads", "feed_forward", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.encoder_layers < 1 or self.decoder_layers < 1:
            raise ConfigError("model.encoder_layers and model.decoder_layers must be at least 1")
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"model.width is {self.width}; it must be even and a multiple of model.heads {self.heads}",
                "choose a width divisible by 2 and by the number of heads",
            )
        if self.positions not in POSITIONS:
            raise ConfigError(f"model.positions {self.positions} is none of {', '.join(POSITIONS)}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ConfigError(
                f"rotary positions need heads of an even size, and {self.width} / {self.heads} is odd",
                "choose another model.heads, or model.positions=sinusoidal",
            )
        for name in DROPOUTS:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.share_embeddings and self.source_vocabulary != self.target_vocabulary:
            raise ConfigError("model.share_embeddings needs one vocabulary for both sides")


def shape(width: int, heads: int, feed_forward: int, layers: int) -> dict[str, int]:
    return {
        "width": width,
        "heads": heads,
        "feed_forward": feed_forward,
        "encoder_layers": layers,
        "decoder_layers": layers,
    }


PRESETS = {
    "tiny": shape(width=128, heads=4, feed_forward=256, layers=4),
    "small": shape(width=256, heads=4, feed_forward=1024, layers=3),
    "base": shape(width=512, heads=8, feed_forward=2048, layers=6),
    "big": shape(width=1024, heads=16, feed_forward=4096, layers=6),
}
