"""Kill -9 while a file is translated: the same command goes on, and the file is the same, byte for byte.

`MT_KILL_LINES=100000 MT_KILLS=5 pytest tests/faults/test_kill_translate.py` gives the long form.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mt.corpus.tokenizer import Tokenizer, train_tokenizer
from mt.decoding.search import SearchConfig
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.pipelines.run_folder import RunFolder
from mt.training.checkpoint import save_tensors, weights

ROOT = Path(__file__).parents[2]
LINES = int(os.environ.get("MT_KILL_LINES", "4000"))
KILLS = int(os.environ.get("MT_KILLS", "3"))
WINDOWS = 20
PATIENCE_SECONDS = 30 + LINES / 50
# The command as it is, but for smaller windows.
DRIVER = f"""
import mt.pipelines.translate, mt.cli
if __name__ == "__main__":
    mt.pipelines.translate.WINDOW = {LINES // WINDOWS}
    mt.cli.main()
"""
WORDS = [f"{first}{second}" for first in ("ba", "de", "ki", "lo", "mu") for second in ("na", "re", "si", "to")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run that has not learned anything, and a text."""
    folder = tmp_path_factory.mktemp("kill")
    generator = random.Random(1)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(2, 9))) for _ in range(LINES)]
    (folder / "text").write_text("".join(f"{line}\n" for line in lines))
    tokenizer = Tokenizer(train_tokenizer(lines[:500], vocabulary_size=310)[0])
    torch.manual_seed(1)
    config = ModelConfig(
        source_vocabulary=tokenizer.size, target_vocabulary=tokenizer.size, share_embeddings=True, width=16, heads=2,
        feed_forward=32, encoder_layers=1, decoder_layers=1, max_positions=64,
    )  # fmt: skip
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.write_tokenizers(tokenizer, tokenizer)
    decoding = SearchConfig(beam=2, max_length_ratio=1.0, max_length_offset=2)
    run.write_config(config, (tokenizer, tokenizer), ("", ""), decoding, {}, knows_capitals=True)
    save_tensors(run.model, weights(Transformer(config)))
    (folder / "driver.py").write_text(DRIVER)
    return folder


def start(folder: Path, output: str) -> subprocess.Popen:
    command = ["translate", "--model", "run", "text", "--output", output, "--device", "cpu", "--threads", "2"]
    return subprocess.Popen(
        [sys.executable, "driver.py", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def done(output: Path) -> int:
    """The bytes that stand in the unfinished file."""
    partial = output.with_name(output.name + ".partial")
    return partial.stat().st_size if partial.exists() else 0


def test_a_translation_that_is_killed_goes_on_and_ends_in_the_same_file(folder):
    whole = start(folder, "whole")
    assert whole.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    expected = (folder / "whole").read_bytes()
    assert expected.count(b"\n") == LINES
    generator = random.Random(2)
    for kill in range(KILLS):
        process = start(folder, "killed")
        wanted = len(expected) * (kill + generator.random()) / (KILLS + 1)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and done(folder / "killed") < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "it was done before it could be killed"
        process.kill()
        process.communicate()
    last = start(folder, "killed")
    messages = last.communicate(timeout=PATIENCE_SECONDS)[1]
    assert last.returncode == 0
    assert "going on after line" in messages
    assert (folder / "killed").read_bytes() == expected
    assert not list(folder.glob("killed.*"))
