"""`mt bench translate`: what it reports of a finished run, not how fast anything is."""

import json
import mmap
from multiprocessing import Value

import numpy as np
import pytest
import torch

from mt.device import Compute
from mt.errors import ExitCode
from mt.pipelines.bench_translate import MeteredModel
from mt.pipelines.measuring import PeakMemory
from mt.pipelines.run_folder import load_model


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr("mt.pipelines.measuring.CALL_SECONDS", 1e-3)
    monkeypatch.setattr("mt.pipelines.measuring.COPIED_BYTES", {"cpu": 1 << 10})


@pytest.fixture
def bench(mt, trained, corpus):
    """Measures the finished run on the test text; the record."""

    def with_trained(*flags):
        flags = ("--repetitions", 2, "--device", "cpu", "--format", "json", *flags)
        outcome = mt("bench", "translate", "--model", trained, corpus / "test.en", *flags)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return with_trained


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_is_measured(bench, mt, trained, corpus, threads):
    record = bench("--threads", threads, "--beam", 2)
    text = (corpus / "test.en").read_bytes()
    assert record["lines"] == text.count(b"\n")
    assert (record["search"]["beam"], record["threads"], record["precision"]) == (2, threads, "fp32")
    assert len(record["seconds"]) == 2
    speed = record["sentences_per_second"]
    assert speed["highest"] == pytest.approx(record["lines"] / min(record["seconds"]))
    translations = mt("translate", "--model", trained, "--beam", 2, "--format", "jsonl", stdin=text).out
    penalty = record["search"]["length_penalty"]
    found = map(json.loads, translations.splitlines())
    lengths = [(each["score"] / each["normalized_score"]) ** (1 / penalty) for each in found]
    tokens = record["target_tokens_per_second"]
    assert tokens["median"] / speed["median"] == pytest.approx(np.mean(lengths), rel=1e-6)
    assert 0 < record["latency_seconds"]["median"] <= record["latency_seconds"]["p95"]
    assert record["latency_seconds"]["lines"] == record["lines"]
    assert record["latency_seconds"]["made_ready"] >= 0
    assert 0.05 < record["memory_gib"] < 100
    assert record["share_of_copy_rate"] == pytest.approx(record["bytes_per_second"] / record["copied_bytes_per_second"])


def test_smaller_weights_are_less_to_move(bench):
    whole, small = (bench("--threads", 1, "--precision", precision) for precision in ("fp32", "int8"))
    moved = [each["bytes_per_second"] * np.median(each["seconds"]) for each in (whole, small)]
    assert moved[1] < 0.9 * moved[0]


def test_people_get_a_few_lines(mt, trained, corpus):
    outcome = mt("bench", "translate", "--model", trained, corpus / "test.en", "--repetitions", 1, "--device", "cpu")
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert names == ["device", "search", "speed", "latency", "traffic", "memory", "start"]


def test_a_text_without_words_is_refused(mt, trained, tmp_path):
    (tmp_path / "text").write_text("\n \n")
    outcome = mt("bench", "translate", "--model", trained, tmp_path / "text")
    assert (outcome.code, outcome.out) == (ExitCode.DATA, "")
    assert f"error: {tmp_path / 'text'} has no words" in outcome.err


def test_bytes_are_those_of_weights_keys_values_and_logits(trained):
    """Counted by hand for one sentence of three tokens and two beams; E = 32, F = 64, one layer, float32."""
    model = load_model(trained).model
    V = model.config.target_vocabulary
    metered = MeteredModel(model, "fp32", Value("d"))
    state = metered.encode(torch.tensor([[5, 6, 2]])).with_past(2, 9)
    E, F = 32, 64
    encoder = 4 * E * E + 2 * E * F + 2 * E * E  # with the keys and values that the decoder looks at
    assert metered.total.value == 4 * encoder
    metered.project(metered.hidden(torch.tensor([[1], [1]]), state), state)
    decoder = 4 * E * E + 2 * E * E + 2 * E * F + V * E
    memory, past, logits = 2 * 3 * E, 2 * 2 * E, 2 * 2 * V
    assert metered.total.value == 4 * (encoder + decoder + memory + past + logits)


def test_bytes_of_a_projection_to_candidates_are_those_of_making_it_and_of_its_rows(trained):
    model = load_model(trained).model
    V, E = model.config.target_vocabulary, 32
    totals = []
    for candidates in (None, torch.arange(10)):
        metered = MeteredModel(model, "fp32", Value("d"))
        state = metered.encode(torch.tensor([[5, 6, 2]])).with_past(1, 9)
        if candidates is not None:
            state.projection = metered.projection_to(candidates)
        logits = metered.project(metered.hidden(torch.tensor([[1]]), state), state)
        assert logits.size(-1) == (V if candidates is None else 10)
        totals.append(metered.total.value)
    whole, some = totals
    assert whole - some == 4 * ((V - 10) * (E + 2) - 2 * 10 * E)


def test_memory_is_that_of_the_highest_moment():
    with PeakMemory(Compute(torch.device("cpu"), "fp32")) as small:
        pass
    # New memory, whatever the process has kept of what it freed before.
    with PeakMemory(Compute(torch.device("cpu"), "fp32")) as large, mmap.mmap(-1, 1 << 27) as held:
        torch.frombuffer(held, dtype=torch.uint8).fill_(1)
        large.ended.wait(0.2)
    assert small.gib + 0.1 < large.gib < small.gib + 0.2
