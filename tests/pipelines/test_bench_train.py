"""`mt bench train`: on made-up sentences and on a run's text; what it reports, not how fast anything is."""

import json

import numpy as np
import pytest

from mt.corpus.encoded import EncodedCorpus
from mt.device import Compute
from mt.model.config import ModelConfig
from mt.model.cost import weight_products
from mt.pipelines.bench_train import MADE_UP_SPECIALS, matrix_rate, write_made_up

SHAPE = [
    word
    for setting in ("width=16", "heads=2", "feed_forward=24", "encoder_layers=1", "decoder_layers=1")
    for word in ("--set", f"model.{setting}")
]
SHORT = ["--updates", 2, "--repetitions", 2, "--threads", 1, "--device", "cpu", "--format", "json"]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr("mt.pipelines.measuring.CALL_SECONDS", 1e-3)


def test_made_up_sentences_are_trained_on_and_measured(mt):
    outcome = mt("bench", "train", *SHAPE, "--vocab-size", 50, "--set", "data.batch_tokens=300", *SHORT)
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["model"]["width"] == 16
    assert record["model"]["target_vocabulary"] == 50
    assert record["batch_tokens"] == 300
    assert len(record["repetitions"]) == 2
    for repetition in record["repetitions"]:
        assert 400 < repetition["target_tokens"] < 800  # two updates of about 300
    speed = record["target_tokens_per_second"]
    assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
    assert record["share_of_matrix_rate"] == pytest.approx(
        record["flops_per_second"] / record["matrix_flops_per_second"]
    )


def test_a_run_is_measured_on_its_own_text_and_left_as_it_was(mt, run):
    def contents():
        """All but its memory of the text files, which every command may add to."""
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "checksums.json"}

    before = contents()
    record = json.loads(mt("bench", "train", run, *SHORT).out)
    config = json.loads((run / "config.json").read_text())
    assert record["model"] == config["model"]
    assert contents() == before


def test_a_preset_replaces_the_shape_of_the_run(mt, run):
    record = json.loads(mt("bench", "train", run, "--preset", "tiny", *SHORT).out)
    assert (record["model"]["width"], record["model"]["encoder_layers"]) == (128, 4)


def test_the_machine_is_measured_whatever_the_run_had_of_another(mt, run):
    config = json.loads((run / "config.json").read_text())
    config["provenance"]["settings"]["training"] |= {"device": "cuda", "threads": 1000}
    (run / "config.json").write_text(json.dumps(config))
    recipe = (run / "run.toml").read_text()
    assert 'device = "cpu"' in recipe
    (run / "run.toml").write_text(recipe.replace('device = "cpu"', 'device = "cuda"'))
    outcome = mt("bench", "train", run, "--updates", 1, "--repetitions", 1, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["threads"] < 1000


def test_people_get_a_few_lines(mt, run):
    outcome = mt("bench", "train", run, *SHORT[:-2])
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert names == ["model", "device", "batch", "speed", "products", "memory"]


def test_made_up_sentences_have_a_natural_length(tmp_path):
    write_made_up(tmp_path, 5_000, vocabulary=100, max_tokens=60)
    corpus = EncodedCorpus(tmp_path)
    for side in (corpus.source, corpus.target):
        assert side.lengths.mean() == pytest.approx(25, abs=1.5)
        assert (side.lengths.min(), side.lengths.max()) == (pytest.approx(5, abs=3), 60)
        assert all(side[i][-1] == MADE_UP_SPECIALS.eos for i in range(100))
        assert side.ids.max() < 100
    assert np.corrcoef(corpus.source.lengths, corpus.target.lengths)[0, 1] > 0.8


def test_the_rate_of_products_is_operations_a_second(device, monkeypatch):
    """A machine on which every call takes one millisecond."""
    config = ModelConfig(
        source_vocabulary=9, target_vocabulary=9, share_embeddings=True, width=4, heads=2, feed_forward=6,
        encoder_layers=1, decoder_layers=1,
    )  # fmt: skip
    monkeypatch.setattr("mt.pipelines.bench_train.seconds_of", lambda call, compute: call() is None or 1e-3)
    products = weight_products(config, 10, 10)
    flops = 3 * sum(product.flops for product in products)
    calls = 3 * sum(product.count for product in products)
    assert matrix_rate(products, Compute(device, "fp32")) == pytest.approx(flops / (calls * 1e-3))
