"""The commands in README.md and docs/ run as they stand there, one document after another, on a small corpus.

A stand-in for `mt` makes every training tiny; nothing else about a command is changed.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mt.pipelines.recipe import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

STAND_IN = f"""#!/bin/sh
if [ "$1" = train ]; then
  set -- "$@" --set training.max_steps=6 --set training.validate_every_steps=2 --set validation.max_sentences=5 \\
    --set data.batch_tokens=500 --set model.width=32 --set model.heads=2 --set model.feed_forward=64 \\
    --set model.encoder_layers=1 --set model.decoder_layers=1 --set tokenizer.vocabulary_size=400
fi
exec {sys.executable} -m mt "$@"
"""
TRAIN = "mt train --train train.de train.en --valid val.de val.en --output run"


def shell_blocks(document):
    return code_blocks(document, "sh")


def code_blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(script, folder):
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path):
    """A place with train, val and test in German and English, and `mt`."""
    for name, split, lines in (("train", "train", 400), ("val", "valid", 40), ("test", "test", 10)):
        for language in ("de", "en"):
            text = (ROOT / "data" / "demo" / f"{split}.{language}").read_text(encoding="utf-8").splitlines()[:lines]
            (tmp_path / f"{name}.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mt").write_text(STAND_IN)
    (tmp_path / "bin" / "mt").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_command_of_a_document_runs(document, folder):
    blocks = [block for block in shell_blocks(document) if "make " not in block]
    assert blocks, "no command in this document"
    if not any("mt train --train" in block for block in blocks):
        blocks = [f"{TRAIN}\nmt average run --last 2 --output averaged", *blocks]
    for block in blocks:
        done = run(block, folder)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def test_the_example_in_python_runs(folder):
    [example] = [block for block in code_blocks(ROOT / "docs" / "deployment.md", "python") if "from mt." in block]
    done = run(f"{TRAIN}\n{sys.executable} - <<'END'\n{example}END\n", folder)
    assert done.returncode == 0, done.stderr
    sources = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert sources == ["Zwei Hunde spielen.", "Ein Mann liest."]


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\bmake ([a-z-]+)", "".join(shell_blocks(ROOT / "README.md")))
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_every_setting_is_explained_with_its_default():
    """The tables of docs/settings.md, beside what `mt train --show-config` prints."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    explained = {}
    for section, table in re.findall(r"^## (\w+)\n\n\| key.*\n(?:\|-.*\n)((?:\|.*\n)+)", text, re.MULTILINE):
        explained[section] = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", table, re.MULTILINE))
    shown = tomllib.loads(Settings().as_text())
    assert explained == {
        section: {key: plain(value) for key, value in values.items()} for section, values in shown.items()
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_setting_that_is_named_exists(document):
    shown = tomllib.loads(Settings().as_text())
    named = re.findall(rf"`({'|'.join(shown)})\.(\w+)[`= ]", document.read_text(encoding="utf-8"))
    files = ("md", "png", "model", "safetensors", "py")
    assert [f"{section}.{key}" for section, key in named if key not in files and key not in shown[section]] == []


def plain(value):
    """As the tables have it: nothing for what is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in ("", []) else str(value)
