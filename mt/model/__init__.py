"""Ids become logits: the encoder-decoder Transformer."""
