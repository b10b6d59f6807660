"""`mt shortlist` and `--shortlist` as a user calls them."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from mt.decoding.shortlist import Shortlist
from mt.errors import ExitCode, Interrupted
from mt.files import checksum
from mt.pipelines import shortlist as pipeline
from mt.pipelines.run_folder import RunFolder, load_model, load_shortlist
from mt.pipelines.translate import SearchRequest, load_translator, work_record
from mt.workers import Workers

LINES = b"one two three\nfour five six seven\neight\n"
SEARCH = ["--beam", 2, "--threads", 1, "--device", "cpu"]


@pytest.fixture(scope="module")
def listed(mt, trained, tmp_path_factory):
    """A run with a shortlist, to look at only."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("listed") / "run")
    outcome = mt("shortlist", run)
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert re.fullmatch(
        rf"{run}/shortlist.safetensors: 50 target pieces for each source piece, learnt from \d+ pairs, "
        r"and \d+ for any sentence\n",
        outcome.err,
    )
    return run


@pytest.fixture
def narrow(mt, run, monkeypatch):
    """A run whose shortlist leaves most of the vocabulary out."""
    monkeypatch.setattr(pipeline, "FREQUENT", 0)
    assert mt("shortlist", run, "--pieces", 2).code == 0
    return run


@pytest.fixture
def candidates(monkeypatch):
    """How many candidates each batch has had."""
    counts, found = [], Shortlist.candidates

    def counted(self, source):
        ids = found(self, source)
        counts.append(len(ids))
        return ids

    monkeypatch.setattr(Shortlist, "candidates", counted)
    return counts


def refused(outcome, code, message, hint):
    return (outcome.code, outcome.out, outcome.err) == (code, "", f"error: {message}\nhint:  {hint}\n")


def test_a_small_vocabulary_is_frequent_as_a_whole_and_translations_stay_the_same(mt, listed, candidates):
    plain, short = (
        mt("translate", "--model", listed, "--format", "jsonl", *SEARCH, *flags, stdin=LINES).out.splitlines()
        for flags in ([], ["--shortlist"])
    )
    assert candidates == [load_model(listed).model.config.target_vocabulary]
    for one, other in zip(map(json.loads, short), map(json.loads, plain), strict=True):
        assert one["translation"] == other["translation"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_a_shortlist_is_learnt_from_text_as_the_run_has_learned_it(train, tmp_path):
    run = tmp_path / "run"
    assert train(run, "--set", "training.noise_rate=0.9", steps=1).code == 0
    source, target = tokenizers = load_model(run).tokenizers
    clean = [(ids, ids) for ids in (np.array([*each, source.specials.eos]) for each in source.encode(["one two"] * 50))]
    learned = pipeline.as_learned(RunFolder(run), tokenizers, clean)
    assert {source.decode(ids.tolist()) for ids, _ in learned} >= {"One Two", "one two"}
    assert {target.decode(ids.tolist()) for _, ids in learned} == {"one two"}


def test_a_shortlist_holds_what_the_text_says(narrow):
    tokenizers = [source, target] = load_model(narrow).tokenizers
    shortlist = load_shortlist(RunFolder(narrow), tokenizers)
    assert shortlist.translations.shape == (source.size, 2)
    assert len(target.bytes()) == 256
    assert shortlist.always.tolist() == sorted([*target.bytes(), target.specials.eos])
    assert source.specials.eos in shortlist.translations[source.specials.eos]
    unseen = source.bytes()[200]
    assert shortlist.translations[unseen].tolist() == [unseen] * 2  # in one vocabulary it stands for itself


def test_with_two_vocabularies_what_has_never_been_seen_has_no_translation(mt, train, tmp_path):
    assert train(tmp_path / "run", "--set", "tokenizer.joint=false", steps=1).code == 0
    assert mt("shortlist", tmp_path / "run").code == 0
    tokenizers = [source, target] = load_model(tmp_path / "run").tokenizers
    shortlist = load_shortlist(RunFolder(tmp_path / "run"), tokenizers)
    assert set(shortlist.translations[source.bytes()[200]].tolist()) == {target.specials.eos}


def test_the_same_is_learnt_from_text_that_is_encoded_again(mt, listed, tmp_path):
    again = shutil.copytree(listed, tmp_path / "run")
    (again / "shortlist.safetensors").unlink()
    shutil.rmtree(again / "cache")
    assert mt("shortlist", again).code == 0
    assert checksum(again / "shortlist.safetensors") == checksum(listed / "shortlist.safetensors")


def test_every_command_that_searches_can_use_it(mt, narrow, corpus, candidates, monkeypatch):
    monkeypatch.setattr("mt.pipelines.measuring.CALL_SECONDS", 1e-3)
    monkeypatch.setattr("mt.pipelines.measuring.COPIED_BYTES", {"cpu": 1 << 10})
    source, reference = corpus / "test.en", corpus / "test.de"
    for command in (
        ["translate", "--model", narrow, source],
        ["translate", "--model", narrow, "--model", narrow, source],
        ["evaluate", "--model", narrow, "--source", source, "--reference", reference],
        ["bench", "translate", "--model", narrow, source, "--repetitions", 1],
    ):
        assert mt(*command, *SEARCH, "--shortlist").code == 0
        assert candidates
        assert all(256 < count < load_model(narrow).model.config.target_vocabulary for count in candidates)
        candidates.clear()
        assert mt(*command, *SEARCH).code == 0
        assert not candidates


def test_workers_use_it(mt, narrow, corpus, monkeypatch):
    monkeypatch.setattr("mt.decoding.translator.FEWEST_TOKENS_A_WORKER", 1)
    started, start = [], Workers.start
    monkeypatch.setattr(Workers, "start", lambda workers: (started.append(workers.count), start(workers)))
    flags = ["--shortlist", "--beam", 2, "--batch-tokens", 30]  # batches, and so candidates, are the same

    def translated(threads):
        return mt("translate", "--model", narrow, corpus / "test.en", *flags, "--threads", threads).out

    one, two = translated(1), translated(2)
    assert started == [2]
    assert one == two
    assert len(one.splitlines()) == 20


def test_a_measurement_says_whether_a_shortlist_was_used(mt, narrow, corpus, monkeypatch):
    monkeypatch.setattr("mt.pipelines.measuring.CALL_SECONDS", 1e-3)
    monkeypatch.setattr("mt.pipelines.measuring.COPIED_BYTES", {"cpu": 1 << 10})
    flags = ["--model", narrow, corpus / "test.en", "--repetitions", 1, *SEARCH]
    outcome = mt("bench", "translate", *flags, "--shortlist")
    assert "tokens a batch, shortlist\n" in outcome.out
    short, plain = (
        json.loads(mt("bench", "translate", *flags, "--format", "json", *more).out) for more in (["--shortlist"], [])
    )
    assert (short["shortlist"], plain["shortlist"]) == (True, False)


def test_hypotheses_that_exist_need_no_shortlist(mt, corpus):
    files = ["--hypothesis", corpus / "test.de", "--reference", corpus / "test.de"]
    assert mt("evaluate", *files, "--shortlist").code == ExitCode.USAGE


def test_without_a_shortlist_the_error_says_how_to_make_one(mt, trained):
    outcome = mt("translate", "--model", trained, "--shortlist", stdin=LINES)
    message = f"{trained}/shortlist.safetensors does not exist"
    assert refused(outcome, ExitCode.MODEL, message, f"mt shortlist {trained}"), outcome.err


FOREIGN = {
    "fewer source pieces": lambda table: {"translations": table[1:], "always": table[0]},
    "a target piece too many": lambda table: {"translations": table, "always": torch.tensor([3, len(table)])},
    "a negative piece": lambda table: {"translations": table - 4, "always": table[0]},
    "no end": lambda table: {"translations": table, "always": torch.tensor([4])},
    "nothing": lambda table: {"translations": table[:, :0], "always": table[0, :0]},
    "weights": lambda table: {"encoder.weight": torch.ones(2)},
}


@pytest.mark.parametrize("tensors_for", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_shortlist_of_another_vocabulary_is_refused(mt, run, tensors_for):
    table = torch.full((load_model(run).model.config.source_vocabulary, 2), 3)
    tensors = {name: tensor.clone() for name, tensor in tensors_for(table).items()}
    safetensors.torch.save_file(tensors, run / "shortlist.safetensors")
    outcome = mt("translate", "--model", run, "--shortlist", stdin=LINES)
    message = f"{run}/shortlist.safetensors does not fit the vocabulary of {run}"
    assert refused(outcome, ExitCode.MODEL, message, f"mt shortlist {run}"), outcome.err


def test_a_truncated_shortlist_is_one_clear_error(mt, listed, tmp_path):
    run = shutil.copytree(listed, tmp_path / "run")
    (run / "shortlist.safetensors").write_bytes((listed / "shortlist.safetensors").read_bytes()[:100])
    outcome = mt("translate", "--model", run, "--shortlist", stdin=LINES)
    assert (outcome.code, outcome.out) == (ExitCode.MODEL, "")
    assert outcome.err.startswith(f"error: cannot read {run}/shortlist.safetensors: ")


@pytest.fixture
def own_text(mt, train, corpus, tmp_path):
    """A run and a text of its own, that may be changed."""
    for name in ("train.en", "train.de"):
        shutil.copyfile(corpus / name, tmp_path / name)
    run = tmp_path / "run"
    assert train(run, "--train", tmp_path / "train.en", tmp_path / "train.de", steps=1).code == 0
    return run, tmp_path / "train.de"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.unlink(), "cannot read {text}: No such file or directory"),
        (lambda text: text.write_text("eins\n"), "the text has changed since {run} was begun: {text}"),
    ],
)
def test_text_that_is_gone_or_changed_is_asked_for(mt, own_text, change, message):
    run, text = own_text
    change(text)
    outcome = mt("shortlist", run)
    hint = f"put the text back unchanged where {run}/run.toml says; relative paths start at the current folder"
    assert refused(outcome, ExitCode.DATA, message.format(run=run, text=text), hint), outcome.err
    assert not (run / "shortlist.safetensors").exists()


def test_who_stops_it_is_not_told_that_text_is_missing(mt, own_text, monkeypatch):
    def stopped(path):
        raise Interrupted("stopped")

    monkeypatch.setattr("mt.pipelines.checksums.status_of", stopped)
    outcome = mt("shortlist", own_text[0])
    assert (outcome.code, outcome.err) == (ExitCode.INTERRUPTED, "stopped\n")


def test_an_averaged_model_uses_the_shortlist_of_its_run(mt, listed, tmp_path):
    averaged = tmp_path / "averaged"
    assert mt("average", listed, "--last", 2, "--output", averaged).code == 0
    outcome = mt("shortlist", averaged)
    hint = "mt shortlist the run that it was made from, and copy shortlist.safetensors here"
    message = f"{averaged} has no run.toml, which says what it was trained on"
    assert refused(outcome, ExitCode.MODEL, message, hint), outcome.err
    shutil.copy(listed / "shortlist.safetensors", averaged)
    assert mt("translate", "--model", averaged, "--shortlist", *SEARCH, stdin=LINES).code == 0


def test_a_run_begun_anew_has_none(mt, train, run):
    assert mt("shortlist", run).code == 0
    outcome = train(run, "--overwrite", steps=1)
    assert outcome.code == 0, outcome.err
    assert not (run / "shortlist.safetensors").exists()


def test_an_interrupted_file_goes_on_with_the_shortlist_it_began_with(listed):
    def recorded(shortlist):
        request = SearchRequest(models=[listed], device="cpu", threads=1, shortlist=shortlist)
        with load_translator(request) as translator:
            return work_record(request, translator, [], "text", None)["shortlist"]

    assert recorded(True) == checksum(listed / "shortlist.safetensors")
    assert recorded(False) is None
