"""`mt demo` as a whole, on a slice of its corpus and for a few updates."""

import tomllib
from pathlib import Path

import pytest

from mt.errors import ExitCode, ModelError
from mt.pipelines import demo as pipeline


def test_the_demo_trains_translates_scores_and_says_what_to_do_next(mt, tmp_path, monkeypatch):
    corpus = pipeline.corpus_folder()
    small = tmp_path / "corpus"
    small.mkdir()
    for split, lines in (("train", 200), ("valid", 10), ("test", 10)):
        for language in ("en", "de"):
            text = (corpus / f"{split}.{language}").read_text(encoding="utf-8").splitlines()[:lines]
            (small / f"{split}.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")
    monkeypatch.setattr(pipeline, "corpus_folder", lambda: small)
    monkeypatch.setattr(
        pipeline, "RECIPE", pipeline.RECIPE | {"training": {**pipeline.RECIPE["training"], "max_steps": 4}}
    )
    run = tmp_path / "run"
    outcome = mt("--quiet", "demo", "--output", run)
    assert outcome.code == 0, outcome.err
    first = (small / "test.en").read_text(encoding="utf-8").splitlines()[0]
    assert f"English    {first}\n" in outcome.out
    assert "BLEU|nrefs:1" in outcome.out
    assert f"mt translate --model {run}" in outcome.out
    monkeypatch.setattr(pipeline, "RECIPE", pipeline.RECIPE | {"optimizer": {"peak_learning_rate": 1e-3}})
    outcome = mt("demo", "--output", run)
    assert outcome.code == ExitCode.USAGE
    assert f"hint:  delete {run} to run the demo anew, or choose another --output\n" in outcome.err


def test_what_is_wrong_with_the_surroundings_is_not_blamed_on_a_run(mt, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "x")
    outcome = mt("demo", "--output", tmp_path / "run")
    assert outcome.code == ExitCode.USAGE
    assert "delete" not in outcome.err


def test_the_corpus_is_found_in_the_package_before_the_repository(tmp_path, monkeypatch):
    (tmp_path / "mt" / "demo_corpus").mkdir(parents=True)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    monkeypatch.setattr(pipeline, "package_files", lambda name: tmp_path / name)
    assert pipeline.corpus_folder() == tmp_path / "mt" / "demo_corpus"


def test_the_wheel_carries_the_corpus():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "data/demo" in wheel["only-include"]
    assert wheel["sources"]["data/demo"] == "mt/demo_corpus"


def test_a_missing_corpus_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "package_files", lambda name: tmp_path / name)
    with pytest.raises(ModelError, match="not installed"):
        pipeline.corpus_folder()
