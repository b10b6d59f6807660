"""`mt export` as a user calls it."""

import json
import shutil
import sys

import pytest


def test_what_ctranslate2_is_given_translates(mt, trained, corpus, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    outcome = mt("export", trained, "--to", "ctranslate2", "--output", tmp_path / "out", "--weights", "int8")
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    tokenizer = mt("tokenizer", "encode", "--model", tmp_path / "out" / "tokenizer.model", stdin=b"one two three\n")
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    assert translator.translate_batch([tokenizer.out.split()])[0].hypotheses[0]


def test_what_is_left_to_the_user_is_said(mt, trained, tmp_path):
    pytest.importorskip("ctranslate2")
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"knows_capitals": False}))
    outcome = mt("export", run, "--to", "ctranslate2", "--output", tmp_path / "out")
    assert "lines in capitals must be lower-cased before this model reads them; ctranslate2 will not" in outcome.err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--to", "onnx"], "--to onnx is none of ctranslate2"),
        (["--to", "ctranslate2", "--weights", "int4"], "--weights int4 is none of float32"),
    ],
)
def test_a_format_that_does_not_exist_is_refused(mt, trained, tmp_path, flags, problem):
    outcome = mt("export", trained, "--output", tmp_path / "out", *flags)
    assert outcome.code == 2
    assert problem in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_overwritten(mt, trained, tmp_path):
    outcome = mt("export", trained, "--to", "ctranslate2", "--output", tmp_path)
    assert outcome.code == 4
    assert "is already there" in outcome.err


def test_without_ctranslate2_the_error_says_how_to_install_it(mt, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setitem(sys.modules, "ctranslate2.specs.common_spec", None)
    outcome = mt("export", trained, "--to", "ctranslate2", "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "hint:  pip install ctranslate2\n" in outcome.err
    assert list(tmp_path.iterdir()) == []
