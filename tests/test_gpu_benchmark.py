"""The measurement for CUDA machines: that all of it runs, tried on the CPU with a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mt.training.compiled import can_compile

PATIENT = ("--seconds", 3_600, "--part-seconds", 1_200)  # the machine may be busy
ROOT = Path(__file__).parents[1]
GPU, DEMO = ROOT / "benchmarks" / "gpu.py", ROOT / "data" / "demo"


def run(*flags):
    return subprocess.run([sys.executable, GPU, *map(str, flags)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """What all of it prints and writes."""
    folder = tmp_path_factory.mktemp("smoke")
    for language in ("en", "de"):
        lines = (DEMO / f"train.{language}").read_text(encoding="utf-8").split("\n")[:300]
        (folder / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = ("--corpus", folder)
    outcome = run("--output", folder, *corpus, "--device", "cpu", "--smoke", "--machine", "here", *PATIENT)
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
    outcome = run("--output", tmp_path, "--device", "cpu", "--smoke", "--machine", "here", "--seconds", 1)
    assert outcome.returncode == 0, outcome.stderr
    record = json.loads((tmp_path / "train-gpu-here.json").read_text())
    assert record["results"] == []
    assert record["not_reached"][:2] == ["mt smoke fp32", "mt smoke bf16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_one_line_says_so(tmp_path):
    outcome = run("--output", tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == ["error: no CUDA device is available here"]
