"""Logits become ids, ids become text."""
