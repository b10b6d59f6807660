"""The measurements for CUDA machines: that all of them run, tried on the CPU with a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mt.training.compiled import can_compile

PATIENT = ("--seconds", 3_600, "--part-seconds", 1_200)  # the machine may be busy
ROOT = Path(__file__).parents[1]
DEMO = ROOT / "data" / "demo"
ON_CPU = ("--device", "cpu", "--smoke", "--machine", "here")


def run(what, *flags):
    command = [sys.executable, ROOT / "benchmarks" / f"gpu_{what}.py", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("en", "de"):
        lines = (DEMO / f"train.{language}").read_text(encoding="utf-8").split("\n")[:300]
        (folder / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def smoke(corpus, tmp_path_factory):
    """What all of training prints and writes."""
    folder = tmp_path_factory.mktemp("smoke")
    outcome = run("train", "--output", folder, "--corpus", corpus, *ON_CPU, *PATIENT)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout, json.loads((folder / "train-gpu-here.json").read_text())


@pytest.mark.slow
def test_every_part_is_tried_and_what_was_measured_is_written(smoke):
    printed, record = smoke
    assert "passed" in record["tests"]
    assert record["run"]["code"] == 0
    assert [each["step"] for each in record["run"]["log"] if each["kind"] == "train"] == [2, 4]
    assert record["not_reached"] == []
    rungs = [(each["engine"], each["precision"], each["compiled"]) for each in record["results"]]
    assert rungs[:3] == [("mt", "fp32", False), ("mt", "bf16", False), ("mt", "fp32", True)]
    for each in record["results"]:
        assert each["target_tokens_per_second"]["median"] > 0
        assert each["idle"] is None  # there is no GPU that could be
    assert len(printed.splitlines()) >= 4


@pytest.mark.slow
def test_what_is_compiled_is_compiled_in_the_warm_up_alone(smoke):
    _, record = smoke
    if not can_compile(torch.device("cpu")):
        pytest.skip("nothing can be compiled here")
    assert record["failed"] == {}  # without a compiler the peer would
    for each in record["results"]:
        assert (each["graphs"] > 0) == each["compiled"]
        assert each["recompilations"] == 0


@pytest.mark.slow
def test_what_is_not_reached_in_time_is_named(tmp_path):
    outcome = run("train", "--output", tmp_path, *ON_CPU, "--seconds", 1)
    assert outcome.returncode == 0, outcome.stderr
    record = json.loads((tmp_path / "train-gpu-here.json").read_text())
    assert record["results"] == []
    assert record["not_reached"][:2] == ["mt smoke fp32", "mt smoke bf16"]


@pytest.mark.slow
def test_translating_is_measured_with_a_model_trained_for_it(corpus, tmp_path):
    outcome = run("translate", "--output", tmp_path, "--corpus", corpus, *ON_CPU, *PATIENT)
    assert outcome.returncode == 0, outcome.stderr
    record = json.loads((tmp_path / "translate-gpu-here.json").read_text())
    assert "passed" in record["tests"]
    assert (record["failed"], record["not_reached"]) == ({}, [])
    for beam in (4, 5):
        alone = record["results"][f"base, beam {beam}"]
        assert (alone["lines"], alone["search"]["beam"]) == (30, beam)
    beside = [result for name, result in record["results"].items() if "beside" in name]
    for result in beside:  # of the peers that are installed here
        engines = {each["engine"].partition("-")[0] for each in result["results"]}
        assert len(engines) == 2
    for name in record["results"]:
        assert name in outcome.stdout


@pytest.mark.slow
def test_a_model_that_is_not_ready_in_time_is_not_translated_with(corpus, tmp_path):
    outcome = run("translate", "--output", tmp_path, "--corpus", corpus, *ON_CPU, "--seconds", 1)
    assert outcome.returncode == 0, outcome.stderr
    record = json.loads((tmp_path / "translate-gpu-here.json").read_text())
    assert (record["results"], record["not_reached"]) == ({}, ["mt train, base"])


@pytest.mark.parametrize("what", ["train", "translate"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_one_line_says_so(what, tmp_path):
    outcome = run(what, "--output", tmp_path, "--corpus", DEMO)
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == ["error: no CUDA device is available here"]
