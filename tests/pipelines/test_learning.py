"""Models learn: a task that needs attention to every position, solved in half a minute on one core."""

import json
import random

import pytest


@pytest.mark.slow
def test_sentences_are_learned_to_be_said_backwards(mt, tmp_path):
    generator = random.Random(7)
    words = "ash bay elm fir gum haw ivy jay kea lark moa nene".split()
    sentences = list({" ".join(generator.choices(words, k=generator.randint(3, 8))): None for _ in range(6_000)})
    parts = {"train": sentences[:5_000], "valid": sentences[5_000:5_100], "test": sentences[5_100:5_300]}
    for name, lines in parts.items():
        (tmp_path / f"{name}.en").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / f"{name}.de").write_text("".join(f"{' '.join(reversed(line.split()))}\n" for line in lines))

    text = [
        flag for name in ("train", "valid") for flag in (f"--{name}", tmp_path / f"{name}.en", tmp_path / f"{name}.de")
    ]
    shape = {"width": 64, "heads": 4, "feed_forward": 128, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    settings = {f"model.{name}": value for name, value in shape.items()} | {
        "data.batch_tokens": 1_000,
        "optimizer.peak_learning_rate": 3e-3,
        "optimizer.warmup_steps": 100,
        "training.validate_every_steps": 300,
        "training.noise_rate": 0,  # so few updates have no time for it
    }
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    flags += ["--vocab-size", 300, "--max-steps", 500, "--threads", 1, "--precision", "fp32"]
    outcome = mt("train", *text, "--output", tmp_path / "run", *flags)
    assert outcome.code == 0, outcome.err

    files = ["--source", tmp_path / "test.en", "--reference", tmp_path / "test.de"]
    outcome = mt("evaluate", "--model", tmp_path / "run", *files, "--format", "json", "--threads", 1)
    scores = {metric["name"]: metric["score"] for metric in json.loads(outcome.out)["metrics"]}
    assert scores["BLEU"] > 95
