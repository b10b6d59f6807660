"""The measurement for CUDA machines: that all of it runs, tried on the CPU with a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PATIENT = ("--seconds", 3_600, "--part-seconds", 1_200)  # the machine may be busy
ROOT = Path(__file__).parents[1]
GPU, DEMO = ROOT / "benchmarks" / "gpu.py", ROOT / "data" / "demo"


def run(*flags):
    return subprocess.run([sys.executable, GPU, *map(str, flags)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_part_is_tried_and_what_was_measured_is_written(tmp_path):
    for language in ("en", "de"):
        lines = (DEMO / f"train.{language}").read_text(encoding="utf-8").split("\n")[:300]
        (tmp_path / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = ("--corpus", tmp_path)
    outcome = run("--output", tmp_path, *corpus, "--device", "cpu", "--smoke", "--machine", "here", *PATIENT)
    assert outcome.returncode == 0, outcome.stderr
    record = json.loads((tmp_path / "train-gpu-here.json").read_text())
    assert "passed" in record["tests"]
    assert record["run"]["code"] == 0
    assert [each["step"] for each in record["run"]["log"] if each["kind"] == "train"] == [2, 4]
    assert (record["failed"], record["not_reached"]) == ({}, [])
    assert [(each["engine"], each["precision"]) for each in record["results"]][:2] == [("mt", "fp32"), ("mt", "bf16")]
    for each in record["results"]:
        assert each["target_tokens_per_second"]["median"] > 0
        assert each["recompilations"] == 0
        assert each["idle"] is None  # there is no GPU that could be
    assert len(outcome.stdout.splitlines()) >= 4


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
