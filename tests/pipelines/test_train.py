"""`mt train` as a whole: what a run folder holds, and what the second command on the same folder does."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
import torch

from mt.corpus.encoded import EncodedCorpus
from mt.corpus.parallel import CorpusFiles
from mt.corpus.tokenizer import Tokenizer, TokenizerConfig
from mt.corpus.variation import Variation
from mt.device import Compute
from mt.errors import ConfigError, DataError, ExitCode, Interrupted
from mt.files import claim, claimed, read_json, write_json
from mt.pipelines import checksums, prepare, texts, validation
from mt.pipelines import train as pipeline
from mt.pipelines.prepare import read_prepared
from mt.pipelines.ranks import Ranks
from mt.pipelines.recipe import CorpusFacts, Settings, resolve, resolve_tokenizer
from mt.pipelines.reporting import RunLog, event_line
from mt.pipelines.run_folder import load_model
from mt.training import update
from mt.training.checkpoint import Checkpoints, load_tensors
from mt.training.consistency import Consistency
from mt.training.update import Updater
from tests.corpus.test_variation import tokenizer_of_characters
from tests.made_up import SPECIALS, Corpus


def contents(folder: Path) -> dict[str, str]:
    """The checksum of every file in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def contents_but_checksums(run: Path) -> dict[str, str]:
    """Those of a run without its memory of the text files, which every command may add to."""
    return {name: sha256 for name, sha256 in contents(run).items() if name != "cache/checksums.json"}


def log_of(run: Path) -> list[dict]:
    """The records whose lines are complete: it may be read while it is written."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().split("\n")[:-1]]


def last_checkpoint(run: Path) -> Path:
    checkpoints = Checkpoints(run)
    return checkpoints.path(checkpoints.steps()[-1])


def prepared_folder(run: Path) -> Path:
    (facts,) = (run / "cache").glob("*/facts.json")
    return facts.parent


def assert_same_training(one: Path, other: Path) -> None:
    """Both runs came to the same weights, optimizer, moving average and published model, bit for bit."""
    assert last_checkpoint(one).name == last_checkpoint(other).name
    files = [contents(last_checkpoint(run)) for run in (one, other)]
    for sums in files:
        sums.pop("state.json")  # which holds seconds
    assert files[0] == files[1]
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture
def stop_after(monkeypatch):
    """Lets the next training in this process be asked to stop after so many of its updates, as by Ctrl-C."""

    def arrange(updates: int) -> None:
        @contextmanager
        def asked():
            calls = count()  # the first comes before any update
            yield lambda: next(calls) == updates

        monkeypatch.setattr(pipeline, "stop_on_signals", asked)

    return arrange


# What a run folder holds


def test_a_run_folder_holds_what_the_guide_promises_and_nothing_else(trained):
    assert {entry.name for entry in trained.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.model", "run.toml", "log.jsonl", "samples.txt", "cache",
        "checkpoints",
    }  # fmt: skip
    for checkpoint in (trained / "checkpoints").iterdir():
        assert re.fullmatch(r"step-\d{8}", checkpoint.name)
        names = {entry.name for entry in checkpoint.iterdir()}
        assert names == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert [step for step in Checkpoints(trained).steps() if step % 10 == 0] == [10, 20, 30, 40]


def test_config_json_says_what_the_model_is_and_where_it_comes_from(trained, corpus):
    record = json.loads((trained / "config.json").read_text())
    assert (record["format_version"], record["architecture"]) == ("1", "transformer")
    assert record["languages"] == {"source": "en", "target": "de"}
    assert (record["model"]["width"], record["model"]["encoder_layers"]) == (32, 1)
    assert record["decoding"]["beam"] == 5
    tokenizer = Tokenizer.load(trained / "tokenizer.model")
    assert record["tokenizer"]["source"]["size"] == record["model"]["target_vocabulary"] == tokenizer.size
    provenance = record["provenance"]
    assert provenance["seed"] == 1
    assert {"mt", "python", "torch", "cuda", "command"} <= provenance.keys()
    digest = hashlib.sha256((corpus / "train.en").read_bytes()).hexdigest()
    assert provenance["corpora"][0] == {"path": str(corpus / "train.en"), "sha256": digest}


def test_a_validation_says_what_the_weights_are_worth_without_dropout(mt, run):
    """Its loss by PyTorch's own function, a sentence at a time; its chrF by `mt evaluate`."""
    prepared = prepared_folder(run)
    [record] = [record for record in log_of(run) if (record["kind"], record["step"]) == ("valid", 40)]
    shutil.copyfile(Checkpoints(run).path(40) / "model.safetensors", run / "model.safetensors")
    loaded, valid, losses = load_model(run), EncodedCorpus(prepared / "valid"), []
    assert loaded.model.config.dropout > 0
    for i in range(len(valid)):
        source, target = (torch.from_numpy(side[i].astype(np.int64)) for side in (valid.source, valid.target))
        shifted = torch.cat((torch.tensor([loaded.tokenizers[1].specials.bos]), target[:-1]))
        with torch.inference_mode():
            logits = loaded.model.decode(shifted[None], loaded.model.encode(source[None]))[0]
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    assert record["loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)
    text = ["--source", prepared / "valid.source", "--reference", prepared / "valid.target"]
    scored = mt("evaluate", "--model", run, *text, "--beam", 1, "--threads", 1, "--format", "json")
    assert json.loads(scored.out)["metrics"][1]["score"] == pytest.approx(record["chrf"], abs=1e-4)


def test_run_toml_holds_every_setting_and_no_auto(trained):
    recipe = tomllib.loads((trained / "run.toml").read_text())
    every = tomllib.loads(Settings().as_text())
    del every["model"]["preset"]  # whose numbers are there instead
    assert {name: set(values) for name, values in recipe.items()} == {
        name: set(values) for name, values in every.items()
    }
    assert list(recipe) == ["tokenizer", "data", "model", "optimizer", "training", "validation"]
    values = [value for section in recipe.values() for value in section.values()]
    assert "auto" not in values
    assert recipe["training"]["max_steps"] == 40
    assert recipe["tokenizer"]["joint"] is True
    assert recipe["data"]["source_language"] == "en"


def test_the_log_has_a_record_a_line_with_kind_step_and_seconds(trained):
    records = log_of(trained)
    assert {record["kind"] for record in records} == {"train", "valid", "event"}
    for before, after in pairwise(records):
        assert before["step"] <= after["step"]
        assert before["seconds"] <= after["seconds"]
    steps = {kind: [r["step"] for r in records if r["kind"] == kind] for kind in ("train", "valid")}
    assert steps == {"train": list(range(5, 41, 5)), "valid": [10, 20, 30, 40]}
    events = [r["event"] for r in records if r["kind"] == "event"]
    assert events == ["started", "consistency", "decay", "averaged", "length_penalty", "finished"]
    for record in records:
        if record["kind"] == "train":
            assert {"loss", "learning_rate", "target_tokens_per_second", "memory_gib", "epoch"} <= record.keys()
        if record["kind"] == "valid":
            assert {"loss", "bleu", "chrf"} <= record.keys()


def test_samples_have_a_block_a_validation_with_source_reference_and_hypothesis(trained):
    text = (trained / "samples.txt").read_text()
    blocks = re.split(r"^step ", text, flags=re.MULTILINE)[1:]
    assert [block.split("\n")[0] for block in blocks[:4]] == ["10", "20", "30", "40"]
    sources = (prepared_folder(trained) / "valid.source").read_text().splitlines()
    references = (prepared_folder(trained) / "valid.target").read_text().splitlines()
    for block in blocks:
        assert re.findall("^  source      (.*)", block, re.MULTILINE) == sources[:5]
        assert re.findall("^  reference   (.*)", block, re.MULTILINE) == references[:5]
        assert len(re.findall("^  hypothesis  ", block, re.MULTILINE)) == 5


def test_checkpoints_on_disk_are_bounded(train, tmp_path):
    often = ["--set", "training.checkpoint_every_steps=1", "--set", "training.validate_every_steps=4"]
    assert train(tmp_path / "run", *often, steps=30).code == 0
    steps = Checkpoints(tmp_path / "run").steps()
    assert steps[-5:] == [26, 27, 28, 29, 30]
    assert len(steps) <= 5 + 3 + 1
    best = [step for _, step in Checkpoints(tmp_path / "run").state(30)["best"]]
    assert set(best) | {18} <= set(steps)  # the learning rate falls over the last 0.4 of 30 steps


# Text and tokenizers


def test_without_validation_text_pairs_are_held_out_that_training_never_sees(trained, corpus):
    sources = (corpus / "train.en").read_text().splitlines()
    held_out = (prepared_folder(trained) / "valid.source").read_text().splitlines()
    assert len(held_out) == 6
    assert set(held_out) <= set(sources)
    tokenizer = Tokenizer.load(trained / "tokenizer.model")
    encoded = EncodedCorpus(prepared_folder(trained) / "train")
    learned = {tokenizer.decode(encoded.source[i].tolist()) for i in range(len(encoded))}
    assert learned == set(sources) - set(held_out)


def test_given_validation_text_is_validated_on_and_everything_else_learned(train, corpus, tmp_path):
    outcome = train(tmp_path / "run", "--valid", corpus / "valid.en", corpus / "valid.de", steps=2)
    assert outcome.code == 0
    assert "held out" not in outcome.err
    prepared = prepared_folder(tmp_path / "run")
    assert (prepared / "valid.source").read_bytes() == (corpus / "valid.en").read_bytes()
    assert (prepared / "valid.target").read_bytes() == (corpus / "valid.de").read_bytes()
    assert len(EncodedCorpus(prepared / "train")) == 300


@pytest.mark.parametrize(("preset", "ratio", "verdict"), [("off", 0, "kept"), ("strict", 2.5, "dropped")])
def test_what_is_left_out_is_chosen_by_a_preset(train, corpus, tmp_path, preset, ratio, verdict):
    for language in ("en", "de"):
        (tmp_path / f"more.{language}").write_text((corpus / f"train.{language}").read_text() + "same\n")
    text = ["--train", tmp_path / "more.en", tmp_path / "more.de", "--valid", corpus / "valid.en", corpus / "valid.de"]
    outcome = train(tmp_path / "run", *text, "--clean", preset, steps=2)
    assert outcome.code == 0, outcome.err
    assert re.search(rf"identical +[1-9]\d* +{verdict} ", outcome.err)
    assert tomllib.loads((tmp_path / "run" / "run.toml").read_text())["data"]["max_length_ratio"] == ratio


def test_where_nothing_is_left_the_table_says_what_was_dropped(mt, tiny_flags, tmp_path):
    for name in ("en", "de"):
        (tmp_path / f"text.{name}").write_text("\n" * 20)
    text = ["--train", tmp_path / "text.en", tmp_path / "text.de", "--output", tmp_path / "run", "--max-steps", 2]
    outcome = mt("train", *text, *tiny_flags)
    assert outcome.code == ExitCode.DATA
    assert outcome.err.index(f"training text {tmp_path / 'text.en'}") < outcome.err.index("error: ")


def test_validation_text_of_which_nothing_is_left_is_told_from_training_text(train, tmp_path):
    (tmp_path / "valid.en").write_text("one\n\n")
    (tmp_path / "valid.de").write_text("\neins\n")
    outcome = train(tmp_path / "run", "--valid", tmp_path / "valid.en", tmp_path / "valid.de", steps=2)
    assert outcome.code == ExitCode.DATA
    assert "error: no pairs are left to validate on" in outcome.err


def test_pairs_that_are_too_long_are_told_whoever_encoded_them(train, tmp_path):
    long = ["--cache", tmp_path / "cache", "--set", "data.max_tokens=6"]
    said = [train(tmp_path / name, *long, steps=2).err for name in ("one", "two")]
    found = [re.findall("left out (.*) pairs of more than 6 tokens", err) for err in said]
    assert found[0] == found[1] != []


def test_a_cleaning_that_does_not_exist_is_refused(train, tmp_path):
    outcome = train(tmp_path / "run", "--clean", "mild", steps=2)
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert "error: --clean mild is none of off, safe, strict" in outcome.err


def test_validation_text_that_is_learned_too_is_warned_of(train, corpus, tmp_path):
    outcome = train(tmp_path / "run", "--valid", corpus / "train.en", corpus / "train.de", steps=2)
    assert "300 of its 300 sources stand in the training text too" in outcome.err


def test_all_that_is_validated_on_is_looked_for_in_the_training_text(train, corpus, tmp_path):
    for side in ("en", "de"):
        known = (corpus / f"train.{side}").read_text().splitlines()[:1] * 3
        new = (corpus / f"valid.{side}").read_text().splitlines()
        (tmp_path / f"valid.{side}").write_text("\n".join(known + new + [""]) + "\n")
    outcome = train(tmp_path / "run", "--valid", tmp_path / "valid.en", tmp_path / "valid.de", steps=2)
    assert "valid.de: 23 pairs; 3 of the sources and 3 whole pairs stand in the training text too" in outcome.err
    assert "3 of its 23 sources stand in the training text too" in outcome.err


def test_tab_separated_corpora_and_weights_come_from_the_recipe(mt, corpus, tmp_path):
    tsv = tmp_path / "more.tsv"
    pairs = zip(*[(corpus / f"valid.{side}").read_text().splitlines() for side in ("en", "de")], strict=True)
    tsv.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    (tmp_path / "recipe.toml").write_text(
        f"""
        [tokenizer]
        vocabulary_size = 300
        [[data.train]]
        source = "{corpus / "train.en"}"
        target = "{corpus / "train.de"}"
        [[data.train]]
        tsv = "{tsv}"
        weight = 2.5
        [[data.valid]]
        source = "{corpus / "test.en"}"
        target = "{corpus / "test.de"}"
        [model]
        preset = "tiny"
        encoder_layers = 1
        [training]
        max_steps = 2
        threads = 1
        """
    )
    outcome = mt("train", "--config", tmp_path / "recipe.toml", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    prepared = prepared_folder(tmp_path / "run")
    assert json.loads((prepared / "facts.json").read_text())["pairs_of_corpora"] == [300, 20]
    corpora = [CorpusFiles(source=corpus / "train.en", target=corpus / "train.de"), CorpusFiles(tsv=tsv, weight=2.5)]
    assert read_prepared(prepared, corpora, 1.0).weights.tolist() == [1.0] * 300 + [2.5] * 20
    assert f"{tsv}: 20 pairs, each read 2.5 times per epoch, make up 14.3% of it" in outcome.err  # 50 of 350
    model = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (model["width"], model["encoder_layers"], model["decoder_layers"]) == (128, 1, 4)
    outcome = mt("train", "--output", tmp_path / "run", "--set", "data.temperature=2")
    assert (outcome.code, "data.temperature: 1.0 -> 2" in outcome.err) == (ExitCode.USAGE, True)
    warmer = ["--config", tmp_path / "recipe.toml", "--set", "data.temperature=2"]
    outcome = mt("train", *warmer, "--output", tmp_path / "warmer")
    # 2.5 times the root of 300 / 20 is 9.682; 20 pairs so often are 193.6 of 493.6.
    assert f"{tsv}: 20 pairs, each read 9.682 times per epoch, make up 39.2% of it" in outcome.err


def test_what_is_chosen_by_the_length_of_an_epoch_counts_its_weights(mt, corpus, tmp_path):
    """A pair that an epoch holds a thousand times is as many targets to learn from as a thousand pairs."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        [tokenizer]
        vocabulary_size = 300
        [[data.train]]
        source = "{corpus / "train.en"}"
        target = "{corpus / "train.de"}"
        weight = 800.0
        [model]
        preset = "tiny"
        [training]
        max_steps = 1
        threads = 1
        noise_rate = 0
        """
    )
    text = ["--valid", corpus / "valid.en", corpus / "valid.de"]
    outcome = mt("train", "--config", recipe, *text, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    tokens = 800 * int(EncodedCorpus(prepared_folder(tmp_path / "run") / "train").target.lengths.sum())
    assert f"on 300 pairs ({tokens:,} target tokens an epoch)" in outcome.err
    batch_tokens = tomllib.loads((tmp_path / "run" / "run.toml").read_text())["data"]["batch_tokens"]
    assert tokens / 400 - 256 < batch_tokens <= tokens / 400  # in steps of 256; without weights 1,024, the fewest


def test_training_begins_by_saying_what_was_chosen(mt, corpus, tmp_path):
    text = ["--train", corpus / "train.en", corpus / "train.de", "--valid", corpus / "valid.en", corpus / "valid.de"]
    flags = ["--vocab-size", 300, "--threads", 1, "--max-steps", 2, "--output", tmp_path / "run"]
    outcome = mt(
        "train", *text, *flags, "--set", "model.encoder_layers=2", "--set", "optimizer.peak_learning_rate=3e-3"
    )
    assert outcome.code == 0, outcome.err
    assert (
        "2+4 layers of width 128, dropout 0.2, 300 pieces, updates of 1,024 target tokens, learning rate up to 0.003,"
        " r-drop from 30% of the limit on, if the text has been read 10 times by then; run.toml has the rest"
    ) in " ".join(outcome.err.split())


@pytest.mark.parametrize("joint", [True, False])
def test_words_that_are_learned_in_title_case_have_pieces_in_title_case(corpus, joint):
    files = [CorpusFiles(source=corpus / "train.en", target=corpus / "train.de")]
    text = texts.CheckedText(files, [np.ones(300, bool)], valid=[], characters=10_000)
    config = TokenizerConfig(vocabulary_size=330, joint=joint)

    def pieces(noise_rate, side, line):
        return len(prepare.make_tokenizers(text, config, seed=1, noise_rate=noise_rate)[side].encode([line])[0])

    assert pieces(0.5, 0, "Seven Eleven") < pieces(0.0, 0, "Seven Eleven")
    assert pieces(0.5, 0, "seven eleven") == pieces(0.0, 0, "seven eleven")
    if not joint:  # what is written is not noisy
        assert pieces(0.5, 1, "Seven Eleven") == pieces(0.0, 1, "Seven Eleven")


@pytest.mark.parametrize(
    ("lines", "characters", "share", "cut_for_characters"),
    [(10**6, 3_000, 0.25, True), (60, 3_000, 0.1, False), (10**6, 10**6, 1.0, False)],
)
def test_a_sample_that_is_cut_for_its_characters_is_said(caplog, lines, characters, share, cut_for_characters):
    text = texts.CheckedText(corpora=[], rows=[np.ones(300, bool)], valid=[], characters=12_000)
    config = TokenizerConfig(vocabulary_size=300, joint=True, sample_lines=lines, sample_characters=characters)
    with caplog.at_level("INFO", prepare.__name__):
        assert prepare.sample_share(text, config) == share
    line = "the tokenizer is trained on about 3,000 of 12,000 characters (tokenizer.sample_characters)"
    assert caplog.messages == [line] * cut_for_characters


@pytest.mark.parametrize(
    ("temperature", "said"),
    [("0.9", "is 0.9"), ("-1", "is -1"), ("nan", "= 'nan' is no"), ("inf", "= 'inf' is no")],
)
def test_a_temperature_below_one_or_without_end_is_refused(train, tmp_path, temperature, said):
    outcome = train(tmp_path / "run", "--set", f"data.temperature={temperature}", steps=2)
    assert outcome.code == ExitCode.USAGE
    assert f"error: data.temperature {said}" in outcome.err


def test_flags_win_over_the_recipe_and_set_over_flags(mt, trained):
    given = ["--config", trained / "run.toml", "--seed", 5, "--max-steps", 7, "--set", "training.max_steps=9"]
    shown = tomllib.loads(mt("train", "--output", "none", *given, "--show-config").out)
    assert (shown["training"]["seed"], shown["training"]["max_steps"]) == (5, 9)
    assert (shown["model"]["width"], shown["validation"]["beam"]) == (32, 1)


def test_different_scripts_get_tokenizers_of_their_own(mt, corpus, tmp_path):
    letters = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмнопрстуфхцчшщ")
    target = tmp_path / "train.ru"
    target.write_text((corpus / "train.de").read_text().translate(letters))
    flags = ["--vocab-size", 300, "--preset", "tiny", "--max-steps", 2, "--threads", 1, "--set", "data.batch_tokens=50"]
    outcome = mt("train", "--train", corpus / "train.en", target, "--output", tmp_path / "run", *flags)
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "run" / "tokenizer.model").exists()
    for side, word in {"source": "seven", "target": "seven".translate(letters)}.items():
        pieces = Tokenizer.load(tmp_path / "run" / f"{side}.model")
        assert "<0x" not in "".join(pieces.pieces(pieces.encode([word])[0]))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["languages"]["target"] == "ru"
    assert not config["model"]["share_embeddings"]
    assert mt("translate", "--model", tmp_path / "run", stdin=b"one two\n").out.count("\n") == 1


def test_given_tokenizers_are_used_as_they_are(train, mt, tiny_flags, corpus, trained, tmp_path):
    shared = trained / "tokenizer.model"
    mt("tokenizer", "train", corpus / "train.de", "--vocab-size", 290, "--type", "bpe", "--output", tmp_path / "de")
    assert train(tmp_path / "one", "--tokenizer", shared, steps=2).code == 0
    assert (tmp_path / "one" / "tokenizer.model").read_bytes() == shared.read_bytes()
    twice = train(tmp_path / "twice", "--tokenizer", shared, "--tokenizer", shared, steps=2)
    assert twice.code == 0, twice.err
    assert json.loads((tmp_path / "twice" / "config.json").read_text())["model"]["share_embeddings"]
    assert mt("train", "--output", tmp_path / "twice", "--max-steps", 3).code == 0
    said = train(tmp_path / "said", "--tokenizer", shared, "--vocab-size", 9, "--set", "tokenizer.type=bpe", steps=1)
    for setting in ("vocabulary_size = 9", "type = bpe"):
        assert f"warning: tokenizer.{setting} has no effect: tokenizers are used as they are given" in said.err
    text = ["--train", corpus / "train.en", corpus / "train.de"]
    assert tiny_flags[0] == "--vocab-size"
    silent = mt(
        "train", *text, "--output", tmp_path / "silent", "--tokenizer", shared, *tiny_flags[2:], "--max-steps", 1
    )
    again = mt("train", "--config", tmp_path / "silent" / "run.toml", "--output", tmp_path / "again")
    assert (silent.code, again.code) == (0, 0)
    assert "has no effect" not in silent.err + again.err
    both = ["--tokenizer", shared, "--tokenizer", tmp_path / "de.model"]
    assert train(tmp_path / "two", *both, steps=2).code == 0
    assert (tmp_path / "two" / "source.model").read_bytes() == shared.read_bytes()
    assert (tmp_path / "two" / "target.model").read_bytes() == (tmp_path / "de.model").read_bytes()


def test_text_is_encoded_anew_for_each_choice_of_what_is_learned(train, trained, tmp_path):
    shared = ["--cache", tmp_path / "cache", "--tokenizer", trained / "tokenizer.model"]
    choices = [[], ["--seed", 2], ["--clean", "strict"], ["--set", "data.max_tokens=200"]]
    for number, choice in enumerate(choices, 1):
        outcome = train(tmp_path / str(number), *shared, *choice, steps=1)
        assert outcome.code == 0, outcome.err
        assert len(list((tmp_path / "cache").glob("*/facts.json"))) == number


@pytest.mark.parametrize(
    ("targets", "ratio"),
    [
        pytest.param([40] * 3000, 3.1, id="beyond ten tokens, and a tenth more"),
        pytest.param([15] * 3000, 1.1, id="as long as the source at least"),
        pytest.param([40] * 2999 + [1000], 3.1, id="one of so many may be longer"),
        pytest.param([40] * 2970 + [1000] * 30, 99.1, id="a hundredth may not"),
    ],
)
def test_how_long_translations_may_be_is_learned_from_the_text(targets, ratio):
    assert prepare.longest_ratio(np.full(3000, 10), np.array(targets)) == ratio


@pytest.mark.parametrize(("normalization", "same"), [("none", False), ("nfkc", True)])
def test_a_tokenizer_normalises_as_it_is_told(corpus, normalization, same):
    files = [CorpusFiles(source=corpus / "train.en", target=corpus / "train.de")]
    text = texts.CheckedText(files, [np.ones(300, bool)], valid=[], characters=10_000)
    config = TokenizerConfig(vocabulary_size=300, joint=True, normalization=normalization)
    tokenizer, _ = prepare.make_tokenizers(text, config, seed=1, noise_rate=0.0)
    assert (tokenizer.encode(["ﬁve"]) == tokenizer.encode(["five"])) == same


def test_a_cache_can_be_shared_and_is_then_written_once(train, trained, tmp_path):
    shared = ["--cache", tmp_path / "cache"]
    assert train(tmp_path / "one", *shared).code == 0
    prepared = prepared_folder(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert train(tmp_path / "two", *shared).code == 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == times
    assert not (tmp_path / "two" / "cache").exists()
    assert_same_training(tmp_path / "two", trained)


def test_a_cache_may_be_a_folder_of_the_run_and_not_the_run_itself(train, mt, tmp_path):
    run, inside = tmp_path / "run", ["--cache", tmp_path / "run" / "encoded" / "text"]
    outcome = train(run, *inside, steps=1)
    assert outcome.code == 0, outcome.err
    assert mt("train", "--output", run, "--max-steps", 2).code == 0
    assert train(run, *inside, "--overwrite", steps=1).code == 0
    outcome = train(tmp_path / "new", "--cache", tmp_path / "new", steps=1)
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith(f"error: the cache would be the run folder itself, {tmp_path}/new\nhint:  ")
    before = contents(run)
    assert mt("train", "--output", run, "--cache", run, "--max-steps", 3).code == ExitCode.USAGE
    assert contents(run) == before
    assert not (tmp_path / "new").exists()


def test_text_that_changes_while_it_is_read_is_a_data_error(train, corpus, monkeypatch, tmp_path):
    for name in ("train.en", "train.de"):
        shutil.copyfile(corpus / name, tmp_path / name)
    encode_corpus, text = prepare.encode_corpus, tmp_path / "train.de"

    def writing_meanwhile(*given, **more):
        kept = encode_corpus(*given, **more)
        text.write_text(text.read_text().replace("one", "two"))
        return kept

    monkeypatch.setattr(prepare, "encode_corpus", writing_meanwhile)
    outcome = train(tmp_path / "run", "--train", tmp_path / "train.en", text, steps=1)
    assert outcome.code == ExitCode.DATA
    assert f"error: {text} has changed while it was read\nhint:  " in outcome.err
    assert not list(tmp_path.rglob("facts.json"))


def test_a_name_that_is_not_utf8_is_refused_before_any_work(train, corpus, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/train_\xe9.de")
    shutil.copyfile(corpus / "train.de", name)
    outcome = train(tmp_path / "run", "--train", corpus / "train.en", name, steps=1)
    assert outcome.code == ExitCode.DATA
    assert "is not UTF-8" in outcome.err
    assert not (tmp_path / "run").exists()


def test_no_other_run_is_at_a_folder_that_text_is_encoded_into(train, monkeypatch, tmp_path):
    encode_text, folders = prepare.encode_text, []

    def watched(texts, text, folder, *arguments, **settings):
        folders.append(folder)
        with pytest.raises(DataError):
            claim(folder.with_name(f".{folder.name}.lock"))
        encode_text(texts, text, folder, *arguments, **settings)

    monkeypatch.setattr(prepare, "encode_text", watched)
    assert train(tmp_path / "run", steps=2).code == 0
    assert folders == [prepared_folder(tmp_path / "run")]


def test_what_another_run_has_encoded_meanwhile_is_not_encoded_again(train, monkeypatch, tmp_path):
    """The other run is through while this one waits."""
    shared, alone_at, encode_text, encoded = ["--cache", tmp_path / "cache"], prepare.alone_at, prepare.encode_text, []
    monkeypatch.setattr(prepare, "encode_text", lambda *given, **more: encoded.append(encode_text(*given, **more)))

    @contextmanager
    def waiting(folder):
        monkeypatch.setattr(prepare, "alone_at", alone_at)
        assert train(tmp_path / "other", *shared, steps=2).code == 0
        yield

    monkeypatch.setattr(prepare, "alone_at", waiting)
    assert train(tmp_path / "run", *shared, steps=2).code == 0
    assert len(encoded) == 1


def test_a_deleted_cache_is_made_again(train, mt, trained, stop_after, monkeypatch, tmp_path):
    stop_after(15)
    assert train(tmp_path / "run").code == ExitCode.INTERRUPTED
    monkeypatch.undo()
    prepared = prepared_folder(tmp_path / "run")
    before = contents(prepared)
    for path in sorted((tmp_path / "run" / "cache").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert mt("train", "--output", tmp_path / "run").code == 0
    assert contents(prepared) == before
    assert_same_training(tmp_path / "run", trained)


def test_a_model_whose_checkpoints_were_deleted_is_not_replaced_by_one_of_no_training(mt, run):
    shutil.rmtree(run / "checkpoints")
    before = contents_but_checksums(run)
    outcome = mt("train", "--output", run, "--max-steps", 50)
    assert outcome.code == ExitCode.MODEL
    assert f"error: {run} has a model and no checkpoints to go on from\nhint:  to train on" in outcome.err
    assert contents_but_checksums(run) == before


@pytest.mark.parametrize("damage", ["facts.json", "valid.source", "valid.target", "train"])
def test_encoded_text_that_is_damaged_is_told_and_not_trained_on(mt, run, damage):
    folder = prepared_folder(run)
    if (path := folder / damage).is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2].rpartition(b"\n")[0] + b"\n")
    outcome = mt("train", "--output", run, "--max-steps", 1000)
    assert outcome.code == ExitCode.DATA
    assert re.search(f"error: the encoded text in {folder}/.* is damaged", outcome.err)
    assert f"hint:  delete {folder}: it is made again from the text" in outcome.err


def test_encoded_text_of_a_later_mt_may_have_more_facts(train, mt, tmp_path):
    assert train(tmp_path / "run", steps=1).code == 0
    facts = prepared_folder(tmp_path / "run") / "facts.json"
    write_json(facts, {**read_json(facts), "of a later mt": 1})
    outcome = mt("train", "--output", tmp_path / "run", "--max-steps", 2)
    assert outcome.code == 0, outcome.err


# The same model again


def test_the_same_seed_trains_the_same_model_and_another_another(train, trained, other, tmp_path):
    assert train(tmp_path / "again").code == 0
    assert_same_training(tmp_path / "again", trained)
    assert (other / "model.safetensors").read_bytes() != (trained / "model.safetensors").read_bytes()


def test_run_toml_repeats_the_run(mt, trained, tmp_path):
    outcome = mt("train", "--config", trained / "run.toml", "--output", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert_same_training(tmp_path / "again", trained)
    assert (tmp_path / "again" / "run.toml").read_bytes() == (trained / "run.toml").read_bytes()


@pytest.mark.parametrize(("stops", "command"), [([3], "whole"), ([20, 5], "output alone"), ([17, 15], "whole")])
def test_a_resumed_run_equals_an_uninterrupted_one(
    train, mt, trained, stop_after, monkeypatch, tmp_path, stops, command
):
    run = tmp_path / "run"
    for updates in stops:
        stop_after(updates)
        stopped = train(run)
        assert stopped.code == ExitCode.INTERRUPTED
        assert f"to go on: mt train --output {run}" in stopped.err
        assert (run / "model.safetensors").is_file()  # before the first validation, too
    monkeypatch.undo()
    outcome = train(run) if command == "whole" else mt("train", "--output", run)
    assert outcome.code == 0, outcome.err
    assert_same_training(run, trained)
    resumed = [record["step"] for record in log_of(run) if record.get("event") == "resumed"]
    assert resumed == [sum(stops[: n + 1]) for n in range(len(stops))]
    assert (run / "run.toml").read_bytes() == (trained / "run.toml").read_bytes()


def test_two_passes_both_directions_variations_and_a_moving_average_are_resumed_exactly_too(
    train, mt, stop_after, monkeypatch, tmp_path
):
    changes = ("consistency=simcut", "bidirectional_epochs=1", "sampling_alpha=0.3", "noise_rate=0.1", "ema_decay=0.9")
    changes += ("noise_from_epoch=0",)
    recipe = [word for change in changes for word in ("--set", f"training.{change}")]
    outcome = train(tmp_path / "whole", *recipe, steps=20)
    assert outcome.code == 0
    assert "\n10% of the source sentences are learned in lower or title case" in outcome.err
    stop_after(7)
    assert train(tmp_path / "stopped", *recipe, steps=20).code == ExitCode.INTERRUPTED
    monkeypatch.undo()
    assert mt("train", "--output", tmp_path / "stopped").code == 0
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")
    assert (last_checkpoint(tmp_path / "whole") / "average.safetensors").is_file()
    events = [record for record in log_of(tmp_path / "whole") if record["kind"] == "event"]
    names = ["started", "consistency", "decay", "averaged", "moving_average", "length_penalty", "finished"]
    assert [record["event"] for record in events] == names
    assert sum(record.get("chosen", False) for record in events) <= 1
    settings = tomllib.loads((tmp_path / "whole" / "run.toml").read_text())["training"]
    assert (settings["consistency_alpha"], settings["cutoff"]) == (3.0, 0.05)


def test_little_text_is_learned_with_noise_once_it_has_been_read_some_times(train, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(pipeline, "Variation", lambda **settings: made.append(settings) or Variation(**settings))
    rates, plain = [], prepare.make_tokenizers

    def make(*arguments, noise_rate, **more):
        rates.append(noise_rate)
        return plain(*arguments, noise_rate=noise_rate, **more)

    monkeypatch.setattr(prepare, "make_tokenizers", make)
    run, flags = tmp_path / "run", ["--set", "training.noise_rate=auto", "--set", "training.noise_from_epoch=2"]
    assert train(run, *flags).code == 0
    training = tomllib.loads((run / "run.toml").read_text())["training"]
    assert (training["noise_rate"], training["noise_from_epoch"]) == (0.3, 2)
    assert [(each["noise_rate"], each["noise_from_epoch"]) for each in made] == [(0.3, 2)]
    assert json.loads((run / "config.json").read_text())["knows_capitals"] is False  # it learns lower case instead
    assert rates == [0.3]  # so that there are pieces for words in lower case
    [begun] = [record["step"] for record in log_of(run) if record.get("event") == "noise"]
    assert [Checkpoints(run).state(step)["epoch"] for step in (begun - begun % 10, begun - begun % 10 + 10)] == [1, 2]


def test_learning_both_directions_needs_one_tokenizer_and_else_nothing_changes(train, run, monkeypatch):
    monkeypatch.setattr(texts, "Checksums", lambda *arguments: 1 / 0)  # told before text is read
    before = contents(run)
    flags = ["--set", "training.bidirectional_epochs=1", "--set", "tokenizer.joint=false", "--overwrite"]
    outcome = train(run, *flags, steps=2)
    assert outcome.code == ExitCode.USAGE
    assert "error: training.bidirectional_epochs needs one tokenizer for both sides" in outcome.err
    assert contents(run) == before


def test_another_choice_brings_its_own_numbers_over_a_complete_recipe(mt, trained, tmp_path):
    flags = ["--config", trained / "run.toml", "--show-config", "--output", tmp_path / "run"]
    choices = ["--set", "training.consistency=simcut", "--set", "training.noise_rate=0.2", "--clean", "strict"]
    shown = mt("train", *flags, *choices).out
    settings = tomllib.loads(shown)
    assert (settings["training"]["consistency_alpha"], settings["training"]["cutoff"]) == ("auto", "auto")
    assert settings["training"]["noise_from_epoch"] == "auto"
    assert settings["data"]["max_length_ratio"] == "auto"
    assert settings["model"]["width"] == 32
    model = tomllib.loads(mt("train", *flags, "--preset", "base", "--set", "model.heads=2").out)["model"]
    assert [model[key] for key in ("width", "heads", "encoder_layers")] == [512, 2, 6]
    both = ["--set", "training.cutoff=0.2", "--set", "training.consistency=r-drop"]  # in whichever order
    assert tomllib.loads(mt("train", *flags, *both).out)["training"]["cutoff"] == 0.2


@pytest.mark.parametrize(
    ("own", "choice"),
    [
        ("[data]\nmax_length_ratio = 3.0", ["--clean", "safe"]),
        ("[training]\nconsistency_from = 0.5", ["--set", "training.consistency=r-drop"]),
        ("[training]\nnoise_from_epoch = 0", ["--set", "training.noise_rate=0.3"]),
    ],
)
def test_a_choice_leaves_the_numbers_of_a_recipe_that_makes_none(mt, tmp_path, own, choice):
    (tmp_path / "own.toml").write_text(own)
    [[(section, values)]] = [tomllib.loads(own).items()]
    flags = [
        "--config",
        tmp_path / "own.toml",
        "--show-config",
        "--train",
        "a.en",
        "a.de",
        "--output",
        tmp_path / "run",
    ]
    shown = tomllib.loads(mt("train", *flags, *choice).out)[section]
    assert {key: shown[key] for key in values} == values


def test_a_choice_said_again_leaves_its_numbers_as_they_are(train, mt, tmp_path):
    run, choices = tmp_path / "run", ["--clean", "strict", "--set", "training.consistency=r-drop"]
    numbers = ["data.max_length_ratio=3", "training.consistency_alpha=2", "training.consistency_from=0.1"]
    outcome = train(run, *choices, *(word for number in numbers for word in ("--set", number)), steps=2)
    assert outcome.code == 0, outcome.err
    before = tomllib.loads((run / "run.toml").read_text())
    assert (before["data"]["max_length_ratio"], before["training"]["consistency_alpha"]) == (3.0, 2.0)
    assert mt("train", "--output", run, *choices, "--max-steps", 3).code == 0
    after = tomllib.loads((run / "run.toml").read_text())
    assert after == {**before, "training": {**before["training"], "max_steps": 3}}


def test_what_is_no_table_of_texts_is_refused_for_a_run_that_is_there_too(mt, run):
    outcome = mt("train", "--output", run, "--set", 'data.train=["a", "b"]')
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith("error: data.train must be tables")


def test_another_size_has_its_own_learning_rate(mt, tmp_path):
    """Whether the one before was told by the preset, the width or a complete recipe."""
    own, flags = tmp_path / "own.toml", ["--show-config", "--train", "a.en", "a.de", "--output", tmp_path / "run"]
    for shape in ("width = 128", 'preset = "tiny"'):
        own.write_text(f"[model]\n{shape}\n[optimizer]\npeak_learning_rate = 0.0028\n")

        def rate(*more):
            shown = mt("train", "--config", own, *flags, *more).out
            return tomllib.loads(shown)["optimizer"]["peak_learning_rate"]

        assert rate() == 0.0028
        assert rate("--preset", "base") == "auto"
        assert rate("--preset", "base", "--set", "optimizer.peak_learning_rate=0.002") == 0.002
        assert rate("--set", "model.dropout=0.3") == 0.0028


KNOWN_LATER = ("consistency = ", "clean = ", "ema_decay", "noise_")


def test_what_an_older_recipe_does_not_know_may_be_said_as_it_was(mt, run):
    recipe = (run / "run.toml").read_text()
    known = [line for line in recipe.splitlines() if not line.startswith(KNOWN_LATER)]
    (run / "run.toml").write_text("\n".join(known))
    said = ["--set", "training.consistency=off", "--set", "training.ema_decay=0"]
    outcome = mt("train", "--output", run, "--clean", "safe", *said)
    assert outcome.code == 0, outcome.err
    assert mt("train", "--output", run, "--clean", "strict").code == ExitCode.USAGE
    assert mt("train", "--output", run, "--max-steps", 42).code == 0
    after = tomllib.loads((run / "run.toml").read_text())["training"]
    assert (after["consistency"], after["noise_rate"], after["noise_from_epoch"]) == ("off", 0.0, 0)
    outcome = mt("train", "--output", run, "--set", "training.ema_decay=0.9")
    assert (outcome.code, "training.ema_decay: 0.0 -> 0.9" in outcome.err) == (ExitCode.USAGE, True)


def test_a_signal_saves_the_step_it_came_in_and_says_how_to_go_on(start_mt, mt, corpus, tiny_flags, tmp_path):
    run = tmp_path / "run"
    text = ["--train", corpus / "train.en", corpus / "train.de", "--output", run, "--max-steps", 100_000]
    process = start_mt("train", *text, *tiny_flags, "--set", "training.log_every_steps=1")
    deadline = time.monotonic() + 60
    while not (run / "log.jsonl").is_file() or not any(record["step"] >= 3 for record in log_of(run)):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    step = log_of(run)[-1]["step"]
    assert re.search(rf"^stopped at step {step}; everything up to here is saved$", err.decode(), re.MULTILINE)
    assert f"hint:  to go on: mt train --output {run}\n" in err.decode()
    assert "Traceback" not in err.decode()
    assert Checkpoints(run).steps()[-1] == step
    assert mt("translate", "--model", run, "--beam", 1, stdin=b"one two\n").code == 0


@pytest.mark.parametrize("name", ["log.jsonl", "samples.txt", "model.safetensors"])
def test_a_file_that_cannot_be_written_ends_training_with_an_error_and_it_can_go_on(
    train, trained, stop_after, monkeypatch, tmp_path, name
):
    run = tmp_path / "run"
    stop_after(15)
    train(run)
    monkeypatch.undo()
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to("/dev/full")
    outcome = train(run)
    assert outcome.code == ExitCode.DATA
    assert f"error: cannot write {run / name}: No space left on device\nhint:  free some space" in outcome.err
    (run / name).unlink()
    (tmp_path / name).rename(run / name)
    assert train(run).code == 0
    assert_same_training(run, trained)


# When training goes wrong


@pytest.fixture
def spoil(monkeypatch):
    """Puts a NaN into the gradient of those updates of this process for which `spoilt(number)` holds."""

    def arrange(spoilt) -> None:
        backward, numbers = Updater.backward, count(1)

        def spoiling(updater, parts):
            loss = backward(updater, parts)
            if spoilt(next(numbers)):
                next(updater.model.parameters()).grad[0, 0] = float("nan")
            return loss

        monkeypatch.setattr(Updater, "backward", spoiling)

    return arrange


def test_an_update_with_a_gradient_that_is_no_number_is_skipped_with_a_warning(train, spoil, tmp_path):
    run = tmp_path / "run"
    spoil({13}.__contains__)
    outcome = train(run)
    assert outcome.code == 0
    warning = "step      15 │ warning: updates skipped since the last line: 1 (gradient not finite 1)\n"
    assert outcome.err.count("skipped") == outcome.err.count(warning) == 1
    assert "finished (max_steps 40)" in outcome.err
    (event,) = [record for record in log_of(run) if record.get("event") == "skipped"]
    assert (event["step"], event["updates"], event["reasons"]) == (15, 1, {"gradient not finite": 1})
    assert [r["step"] for r in log_of(run) if r["kind"] == "train"] == list(range(5, 41, 5))
    for checkpoint in (run / "checkpoints").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_tensors(checkpoint / "model.safetensors").values())


def test_a_run_that_has_gone_back_is_stopped_and_resumed_as_if_it_had_not_been_stopped(
    train, spoil, stop_after, monkeypatch, tmp_path
):
    """From step 13 on nothing can be learned; the line of the log at step 35 is the first to see twenty in a row."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    spoil(lambda number: 13 <= number <= 35)
    outcome = train(whole)
    assert outcome.code == 0
    returned = "warning: training diverged at step 35 and goes on from here at 0.5 times the learning rate\n"
    assert f"step      10 │ {returned}" in outcome.err
    monkeypatch.undo()
    spoil(lambda number: 13 <= number <= 35)
    stop_after(38)
    assert train(parts).code == ExitCode.INTERRUPTED
    assert '"event": "rolled_back"' in (parts / "log.jsonl").read_text()
    monkeypatch.undo()
    assert train(parts).code == 0
    assert_same_training(parts, whole)


def test_a_training_that_fails_however_often_it_goes_back_is_no_success(train, spoil, tmp_path):
    run = tmp_path / "run"
    spoil(lambda number: number > 12)
    outcome = train(run)
    assert outcome.code == ExitCode.MODEL
    assert re.search(
        r"^error: training diverged: the last \d+ updates up to step \d+ .* did not help: 3$", outcome.err, re.M
    )
    assert "hint:  lower the learning rate: --set optimizer.peak_learning_rate" in outcome.err
    assert "finished" not in outcome.err
    events = [record["event"] for record in log_of(run) if record["kind"] == "event"]
    assert events.count("rolled_back") == 3
    assert "finished" not in events
    assert train(run).code == ExitCode.MODEL  # trying once more is no way around


@pytest.fixture
def scarce(monkeypatch):
    """Lets no batch of more than so many target tokens be computed, as if memory were short."""

    def arrange(tokens: int) -> None:
        plain = update.batch_loss

        def limited(model, batch, *arguments):
            if batch.target_tokens > tokens:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
            return plain(model, batch, *arguments)

        monkeypatch.setattr(update, "batch_loss", limited)

    return arrange


def test_an_update_that_does_not_fit_into_memory_is_computed_in_parts_and_nothing_is_left_out(
    train, trained, scarce, tmp_path
):
    scarce(120)
    outcome = train(tmp_path / "run")
    assert outcome.code == 0
    assert outcome.err.count("warning: out of memory: 100 target tokens at a time from now on\n") == 1
    events = [record for record in log_of(tmp_path / "run") if record.get("event") == "out_of_memory"]
    assert len(events) == 1
    states = [Checkpoints(run).state(40) for run in (tmp_path / "run", trained)]
    assert states[0]["target_tokens"] == states[1]["target_tokens"]
    assert (states[0]["epoch"], states[0]["position"]) == (states[1]["epoch"], states[1]["position"])


def test_the_log_says_what_a_gpu_holds_and_what_was_compiled():
    found = {"event": "micro_batches", "micro_batch_tokens": 16_384}
    assert event_line(found) == "micro-batches of 16,384 target tokens, which fit into the GPU's memory"
    assert event_line({"event": "compiled", "graphs": 2}) == "compiled: 2 graphs"


def test_the_log_says_whether_two_passes_are_made_and_why_not():
    decided = {"event": "consistency", "method": "r-drop", "epochs": 5}
    assert event_line({**decided, "begun": True}) == "two passes over each sentence from now on (r-drop)"
    assert event_line({**decided, "begun": False}).startswith(
        "one pass over each sentence to the end: the text has been"
    )


def resolved(device="cpu", **training):
    settings = Settings()
    settings.add({"data": {"train": [{"tsv": "text"}]}, "training": training}, "test")
    facts = CorpusFacts(pairs=9, target_tokens=90, vocabularies=(9, 9), languages=("", ""))
    tokenizer = resolve_tokenizer(settings, facts.pairs, same_script=True)
    return resolve(settings, tokenizer, facts, Compute(torch.device(device), "fp32"), threads=1)


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 0), (0.2, 10)])
def test_two_passes_wait_for_epochs_only_where_they_wait(share, epochs):
    training = resolved(max_steps=100, consistency_from=share).training
    assert (training.consistency, training.consistency_from, training.consistency_epochs) == ("r-drop", share, epochs)


def test_a_decay_longer_than_training_is_what_is_refused():
    settings = Settings()
    text, training = {"train": [{"tsv": "text"}]}, {"consistency": "r-drop", "max_steps": 100}
    settings.add({"data": text, "training": training, "optimizer": {"decay_fraction": 1.5}}, "test")
    with pytest.raises(ConfigError, match=r"optimizer.decay_fraction 1.5 is not between 0 and 1"):
        pipeline.check_settings(settings)


def test_an_epoch_holds_pairs_as_weights_and_directions_say_and_variations_are_those_of_the_recipe():
    pairs, cpu = Corpus(40), Compute(torch.device("cpu"), "fp32")
    data = SimpleNamespace(train=pairs, weights=np.repeat([1.0, 3.0], 20))
    tokenizers = (SimpleNamespace(specials=SPECIALS),) * 2
    recipe = resolved(bidirectional_epochs=1, noise_rate=0.0)
    batcher, sampler = pipeline.batches_of(recipe, data, tokenizers, cpu)
    both, later = (np.bincount(np.concatenate(sampler.epoch(n)), minlength=80).tolist() for n in (0, 1))
    assert both == ([1] * 20 + [3] * 20) * 2
    assert later == [1] * 20 + [3] * 20 + [0] * 40
    source = batcher.batch(np.array([47])).source  # the eighth pair, the other way round
    assert source.ids[0, : source.tokens].tolist() == pairs.target[7].tolist()
    assert batcher.variation is None

    recipe = resolved(sampling_alpha=0.3, noise_rate=0.1, seed=7)
    variation = pipeline.batches_of(recipe, data, tokenizers, cpu)[0].variation
    assert (variation.sampling_alpha, variation.noise_rate, variation.noise_from_epoch) == (0.3, 0.1, 5)
    assert (variation.max_tokens, variation.seed) == (256, 7)


def test_what_a_recipe_says_of_loss_and_gradient_reaches_what_trains():
    cpu = Compute(torch.device("cpu"), "fp32")
    recipe = resolved(label_smoothing=0.3, consistency="simcut", consistency_alpha=2.0, cutoff=0.2)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, gradient_clip=0.5))
    updater = pipeline.make_updater(recipe, cpu)
    assert (updater.label_smoothing, updater.gradient_clip) == (0.3, 0.5)
    assert updater.consistency == Consistency(method="simcut", alpha=2.0, cutoff=0.2)
    assert pipeline.make_updater(resolved(), cpu).consistency is None


@pytest.mark.parametrize(
    ("device", "consistency", "at_a_time", "compiled"),
    [("cpu", "off", 4_096, False), ("cpu", "simcut", 2_048, False), ("cuda", "off", 0, True)],
)
def test_what_is_computed_at_a_time_and_compiling_depend_on_the_device(device, consistency, at_a_time, compiled):
    training = resolved(device, consistency=consistency).training
    assert (training.micro_batch_tokens, training.compile) == (at_a_time, compiled)


@pytest.mark.parametrize(
    ("device", "said", "used"),
    [
        pytest.param("cuda", 0, 75, id="the least that a rank can hold"),
        pytest.param("cuda", 200, 200, id="as the recipe says"),
        pytest.param("cpu", 0, 0, id="a whole update on the CPU"),
    ],
)
def test_a_trial_decides_on_cuda_what_is_computed_at_a_time(monkeypatch, device, said, used):
    """This rank finds room for 300 tokens, another one for 75."""
    tried = []
    monkeypatch.setattr(pipeline, "tokens_that_fit", lambda *arguments: tried.append(arguments) or 300)
    monkeypatch.setattr(Ranks, "maximum", lambda ranks, *values: [max(*values, -75)])
    config = SimpleNamespace(training=SimpleNamespace(micro_batch_tokens=said), data=SimpleNamespace(batch_tokens=600))
    updater = SimpleNamespace(compute=Compute(torch.device(device), "fp32"))
    batcher, sampler = SimpleNamespace(parts_of=lambda *updates: []), SimpleNamespace(extremes=list)
    assert pipeline.micro_batch_tokens(config, updater, batcher, sampler, Ranks(0, 2)) == used
    assert [tokens for _, _, tokens in tried] == ([300] if used == 75 else [])  # a rank's half of an update


TRIED = {"kind": "event", "event": "micro_batches", "micro_batch_tokens": 300}
COMPILED = {"kind": "event", "event": "compiled", "graphs": 2}


@pytest.mark.parametrize(
    ("said", "found", "graphs", "logged"),
    [
        pytest.param(0, 300, (5, 7), [TRIED, COMPILED], id="tried with compiled layers"),
        pytest.param(0, 300, (5, 5), [TRIED], id="tried"),
        pytest.param(400, 400, (5, 5), [], id="as the recipe says"),
    ],
)
def test_a_session_trains_with_what_a_trial_found_and_logs_it_after_agreeing_on_the_time(
    monkeypatch, said, found, graphs, logged
):
    monkeypatch.setattr(pipeline, "micro_batch_tokens", lambda *arguments: found)
    monkeypatch.setattr(pipeline, "compiled_graphs", iter(graphs).__next__)
    agreed, log = [], []
    clock = SimpleNamespace(agree=lambda: agreed.append(len(log)))
    session = pipeline.within_memory(resolved(micro_batch_tokens=said), None, None, None, None, clock, log.append)
    assert session == resolved(micro_batch_tokens=found)
    assert log == logged
    assert agreed == ([0] if logged else [])


def test_a_pair_that_does_not_fit_into_memory_is_an_error_with_a_way_out(train, scarce, tmp_path):
    scarce(2)
    outcome = train(tmp_path / "run")
    assert outcome.code == ExitCode.DEVICE
    assert re.search(r"^error: out of memory with a single pair of \d+ and \d+ tokens$", outcome.err, re.MULTILINE)
    assert "hint:  leave long pairs out: --set data.max_tokens=N" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a few checkpoints of a tiny run, and a function that makes room for all; else skips."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small disk")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # encoded text is still mapped


def test_a_disk_that_is_full_at_a_checkpoint_loses_nothing(train, mt, trained, small_disk):
    folder, enlarge = small_disk
    run = folder / "run"
    outcome = train(run)
    assert outcome.code == ExitCode.DATA
    assert re.search(
        rf"^error: cannot write {run}/checkpoints/\S+: No space left on device$", outcome.err, re.MULTILINE
    )
    assert 10 <= Checkpoints(run).steps()[-1] < 40
    assert mt("translate", "--model", run, "--beam", 1, stdin=b"one two\n").code == 0
    enlarge()
    assert train(run).code == 0
    assert_same_training(run, trained)


def test_a_run_is_trained_resumed_and_used_on_each_device(mt, corpus, device, tmp_path):
    text = ["--train", corpus / "train.en", corpus / "train.de", "--output", tmp_path / "run"]
    flags = ["--preset", "tiny", "--vocab-size", 300, "--threads", 1, "--device", device.type]
    flags += ["--set", "data.batch_tokens=200", "--set", "training.validate_every_steps=10"]
    for steps in (10, 20):
        outcome = mt("train", *text, *flags, "--max-steps", steps, with_cuda=True)
        assert outcome.code == 0, outcome.err
    assert tomllib.loads((tmp_path / "run" / "run.toml").read_text())["training"]["device"] == device.type
    outcome = mt("translate", "--model", tmp_path / "run", "--device", device.type, stdin=b"one\n", with_cuda=True)
    assert (outcome.code, outcome.out.count("\n")) == (0, 1)


# When training ends


def test_training_ends_when_patience_does(train, tmp_path):
    still = ["--set", "optimizer.peak_learning_rate=1e-12", "--set", "validation.patience=2"]
    outcome = train(tmp_path / "run", *still, steps=60)
    assert outcome.code == 0
    assert "finished (no gain in 2 validations) after 30 steps" in outcome.err
    assert "is finished (no gain in 2 validations)" in train(tmp_path / "run", *still, steps=60).err


def test_without_a_limit_ten_validations_without_a_gain_are_enough(train, tmp_path):
    still = ["--set", "optimizer.peak_learning_rate=1e-12", "--set", "training.validate_every_steps=1"]
    outcome = train(tmp_path / "run", *still, steps=None)
    assert "finished (no gain in 10 validations) after 11 steps" in outcome.err
    recipe = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert (recipe["validation"]["patience"], recipe["optimizer"]["schedule"]) == (10, "inverse_sqrt")


def test_minutes_end_the_command_in_time_with_a_model_to_use(train, mt, tmp_path):
    outcome = train(tmp_path / "run", "--max-minutes", 0.06, steps=None)
    assert outcome.code == 0, outcome.err
    assert "finished (max_minutes 0.06)" in outcome.err
    assert mt("translate", "--model", tmp_path / "run", stdin=b"one two\n").code == 0
    again = train(tmp_path / "run", "--max-minutes", 0.06, steps=None)
    assert (again.code, "is finished (max_minutes 0.06)" in again.err) == (0, True)


def test_the_minutes_of_all_sessions_count_together(train, mt, stop_after, tmp_path):
    run = tmp_path / "run"
    stop_after(12)
    assert train(run, "--max-minutes", 30, steps=None).code == ExitCode.INTERRUPTED
    state = Checkpoints(run).path(12) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"elapsed_seconds": 30 * 60.0}))
    stop_after(1 << 40)
    outcome = mt("train", "--output", run)
    assert "finished (max_minutes 30) after 12 steps" in outcome.err
    assert log_of(run)[-1]["seconds"] > 30 * 60


@pytest.mark.parametrize(
    ("steps", "warning"), [(0, "the model is untrained"), (7, "in its warm-up, at step 7 of 8"), (8, "")]
)
def test_a_model_that_can_have_learned_little_is_warned_of(caplog, steps, warning):
    pipeline.warn_of_few_steps(steps, 8)
    assert bool(caplog.messages) == bool(warning)
    assert warning in caplog.text


@pytest.mark.parametrize("call", [41, 42])
def test_a_signal_is_heeded_while_the_best_weights_are_chosen_too(train, mt, trained, stop_after, tmp_path, call):
    """It is asked for before the 40 updates and after each, before weights are averaged and penalties are tried."""
    stop_after(call)
    outcome = train(tmp_path / "run")
    assert outcome.code == ExitCode.INTERRUPTED
    assert "stopped at step 40; everything up to here is saved" in outcome.err
    stop_after(1 << 40)
    assert "finished (max_steps 40) after 40 steps" in mt("train", "--output", tmp_path / "run").err
    assert_same_training(tmp_path / "run", trained)


def test_a_crash_in_the_last_validation_loses_no_updates(train, mt, monkeypatch, tmp_path):
    validate = validation.Validation.__call__

    def crash_at_the_end(self):
        return 1 / 0 if self.progress.step == 25 else validate(self)

    monkeypatch.setattr(validation.Validation, "__call__", crash_at_the_end)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", steps=25)
    assert Checkpoints(tmp_path / "run").steps()[-1] == 25
    monkeypatch.undo()
    assert "finished (max_steps 25) after 25 steps" in mt("train", "--output", tmp_path / "run").err


def test_scores_of_a_run_are_of_one_tokenizer_whatever_is_installed_later(train, mt, monkeypatch, tmp_path):
    monkeypatch.setattr(validation, "choose_tokenizer", lambda language, requested: "char")
    assert train(tmp_path / "run", steps=10).code == 0
    monkeypatch.undo()
    asked, score = [], validation.quick_scores
    monkeypatch.setattr(validation, "quick_scores", lambda *words: asked.append(words[2]) or score(*words))
    assert mt("train", "--output", tmp_path / "run", "--max-steps", 20).code == 0
    assert set(asked) == {"char"}


def test_a_run_is_not_scored_by_another_tokenizer_than_before(mt, run, monkeypatch):
    for state in (run / "checkpoints").glob("*/state.json"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"bleu_tokenizer": "ja-mecab"}))
    monkeypatch.setitem(sys.modules, "MeCab", None)  # as where it is not installed
    outcome = mt("train", "--output", run, "--max-steps", 60)
    assert outcome.code == ExitCode.USAGE
    assert "BLEU's tokenizer ja-mecab cannot be used" in outcome.err
    assert "pip install 'sacrebleu[ja]'" in outcome.err


def test_a_crash_does_not_forget_how_good_the_average_is_that_was_written(train, mt, monkeypatch, tmp_path):
    def judged(trainer, name, tensors, event):
        scores = {"loss": 1.0, "bleu": 99.0, "chrf": 99.0}
        return validation.Candidate(name, tensors, 99.0, {"kind": "event", **event, **scores})

    def crash(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(validation, "judged", judged)
    monkeypatch.setattr(pipeline, "choose_length_penalty", crash)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run")
    assert Checkpoints(tmp_path / "run").state(40)["published"] == 99.0
    monkeypatch.undo()
    outcome = mt("train", "--output", tmp_path / "run")
    assert "what was kept before stays: it had 99.00" in outcome.err
    assert "after 40 steps; bleu on validation 99.00; the model is in" in outcome.err


def test_the_log_is_closed_however_training_ends(train, monkeypatch, tmp_path):
    """It may hold a terminal's cursor."""
    closed = []
    monkeypatch.setattr(RunLog, "close", lambda log: closed.append(log))
    monkeypatch.setattr(pipeline, "announce", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", steps=2)
    assert len(closed) == 1


def test_a_later_signal_ends_training_at_once_and_then_signals_do_what_they_did(monkeypatch):
    """One that comes twice, from a supervisor and from the launcher, is one."""
    now = [100.0]
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: now[0]))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pipeline.stop_on_signals() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        now[0] += 1.0
        with pytest.raises(Interrupted, match="stopped before everything was saved"):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_minutes_too_few_for_one_update_still_leave_a_model(train, mt, tmp_path):
    outcome = train(tmp_path / "run", "--max-minutes", 1e-4, steps=None)
    assert outcome.code == 0, outcome.err
    assert "warning: the time ran out before the first update: the model is untrained" in outcome.err
    assert mt("translate", "--model", tmp_path / "run", "--beam", 1, stdin=b"one two\n").code == 0


def test_the_published_model_is_the_best_or_the_average_of_the_best(trained):
    best = [step for _, step in Checkpoints(trained).state(40)["best"]]
    (event,) = [record for record in log_of(trained) if record.get("event") == "averaged"]
    assert event["steps"] == best
    files = [Checkpoints(trained).path(step) / "model.safetensors" for step in best]
    published = load_tensors(trained / "model.safetensors")
    for name, tensor in published.items():
        mean = torch.stack([load_tensors(file)[name] for file in files]).double().mean(0)
        wanted = mean.float() if event["chosen"] else load_tensors(files[0])[name]
        torch.testing.assert_close(tensor, wanted, atol=1e-7, rtol=0)


# The second command on a folder


def test_a_finished_run_says_so_and_stays_as_it_is(train, mt, run):
    before = contents_but_checksums(run)
    for outcome in (train(run), mt("train", "--output", run)):
        assert outcome.code == 0
        assert outcome.err == f"{run} is finished (max_steps 40); to train on, give a higher limit\n"
    assert contents_but_checksums(run) == before


def test_a_raised_limit_goes_on_from_before_the_decay(train, mt, run, tmp_path):
    outcome = mt("train", "--output", run, "--max-steps", 60)
    assert outcome.code == 0, outcome.err
    assert "changed for this continuation: training.max_steps: 40 -> 60" in outcome.err
    assert [record["step"] for record in log_of(run) if record.get("event") == "resumed"] == [24]
    assert train(tmp_path / "long", steps=60).code == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (Checkpoints(path).path(60) / name for path in (run, tmp_path / "long"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("epochs", [4, 5])
def test_where_a_limit_is_raised_two_passes_are_thought_of_anew(train, mt, tmp_path, epochs):
    """Of the shorter budget too little was left to read the text often enough first; an epoch has seven updates."""
    run = tmp_path / "run"
    shares = {"consistency_from": 0.5, "consistency_epochs": epochs}
    flags = [word for key, value in shares.items() for word in ("--set", f"training.{key}={value}")]
    assert train(run, *flags, "--set", "training.consistency=r-drop", steps=40).code == 0
    assert mt("train", "--output", run, "--max-steps", 80).code == 0
    decided = [(each["step"], each["begun"]) for each in log_of(run) if each.get("event") == "consistency"]
    assert decided == [(20, False), (40, epochs == 4)]


@pytest.mark.parametrize("schedule", ["warmup_stable_decay", "cosine"])
@pytest.mark.parametrize("lower", [35, 30])
def test_where_a_limit_is_lowered_the_rate_still_falls_to_0(train, mt, stop_after, tmp_path, schedule, lower):
    """It has been falling towards step 40, from step 24 or from the first, when training stops at step 32."""
    run = tmp_path / "run"
    stop_after(32)
    assert train(run, "--set", f"optimizer.schedule={schedule}").code == ExitCode.INTERRUPTED
    stop_after(1 << 40)
    outcome = mt("train", "--output", run, "--max-steps", lower)
    assert outcome.code == 0, outcome.err
    steps = [record for record in log_of(run) if record["kind"] == "train"]
    end = max(lower, 32) if schedule == "cosine" else lower  # which has no checkpoint of before
    assert f"finished (max_steps {lower}) after {end} steps" in outcome.err
    if end == lower:
        assert (steps[-1]["step"], steps[-1]["learning_rate"]) == (lower, 0)
    if schedule == "warmup_stable_decay":
        assert json.loads((last_checkpoint(run) / "state.json").read_text())["decay"] == {
            "start": 24, "steps": lower - 24,
        }  # fmt: skip


def test_a_limit_that_is_added_to_another_leaves_the_rate_falling(train, mt, stop_after, tmp_path):
    run = tmp_path / "run"
    stop_after(32)
    assert train(run).code == ExitCode.INTERRUPTED
    stop_after(1 << 40)
    assert mt("train", "--output", run, "--max-minutes", 30).code == 0
    assert [record["step"] for record in log_of(run) if record.get("event") == "resumed"] == [32]


def test_a_limit_added_to_a_run_without_one_leaves_its_schedule(train, mt, stop_after, tmp_path):
    run = tmp_path / "run"
    stop_after(12)
    assert train(run, steps=None).code == ExitCode.INTERRUPTED
    stop_after(1 << 40)
    outcome = mt("train", "--output", run, "--max-steps", 20)
    assert "finished (max_steps 20) after 20 steps" in outcome.err
    recipe = tomllib.loads((run / "run.toml").read_text())
    assert (recipe["optimizer"]["schedule"], recipe["validation"]["patience"]) == ("inverse_sqrt", 10)
    last = [record for record in log_of(run) if record["kind"] == "train"][-1]
    assert last["learning_rate"] == pytest.approx(0.003 * (8 / 20) ** 0.5)


def test_the_last_limit_of_a_run_cannot_be_taken_away(mt, run):
    outcome = mt("train", "--output", run, "--set", "training.max_steps=0")
    assert outcome.code == ExitCode.USAGE
    assert "error: the schedule warmup_stable_decay decays towards a limit, and none is given" in outcome.err


def test_the_intervals_of_a_trial_are_not_those_of_the_run_that_it_becomes(train, mt, tmp_path):
    run = tmp_path / "run"

    def intervals():
        training = tomllib.loads((run / "run.toml").read_text())["training"]
        return training["validate_every_steps"], training["checkpoint_every_steps"]

    left = [word for key in ("validate", "checkpoint") for word in ("--set", f"training.{key}_every_steps=auto")]
    assert train(run, *left, steps=20).code == 0
    assert intervals() == (2, 2)
    assert mt("train", "--output", run, "--max-steps", 30, "--set", "training.checkpoint_every_steps=15").code == 0
    assert intervals() == (3, 15)
    outcome = mt("train", "--output", run, "--max-steps", 40)
    assert intervals() == (4, 15)
    assert "validation comes every 4 steps now; before, every 3" in outcome.err


def test_a_lowered_limit_leaves_a_finished_run_as_it_is(mt, run):
    before = contents_but_checksums(run)
    outcome = mt("train", "--output", run, "--max-steps", 20)
    assert (outcome.code, f"{run} is finished (max_steps 40)" in outcome.err) == (0, True)
    assert contents_but_checksums(run) == before


def test_a_raised_limit_that_ended_nothing_leaves_a_finished_run_as_it_is(train, mt, tmp_path):
    run = tmp_path / "run"
    assert train(run, "--max-minutes", 30, steps=10).code == 0
    before = contents_but_checksums(run)
    outcome = mt("train", "--output", run, "--max-minutes", 60)
    assert f"{run} is finished (max_steps 10); to train on, give a higher limit" in outcome.err
    assert contents_but_checksums(run) == before


def test_weights_are_replaced_by_better_ones_only_where_a_limit_is_raised(mt, run):
    state = json.loads((last_checkpoint(run) / "state.json").read_text())
    (last_checkpoint(run) / "state.json").write_text(json.dumps(state | {"published": 99.0}))
    before = (run / "model.safetensors").read_bytes()
    outcome = mt("train", "--output", run, "--max-steps", 60)
    assert (outcome.code, "what was kept before stays: it had 99.00" in outcome.err) == (0, True)
    assert (run / "model.safetensors").read_bytes() == before
    assert json.loads((last_checkpoint(run) / "state.json").read_text())["published"] == 99.0


def test_a_crash_after_a_limit_is_raised_does_not_forget_how_good_the_weights_are(mt, run, monkeypatch):
    state = json.loads((last_checkpoint(run) / "state.json").read_text())
    (last_checkpoint(run) / "state.json").write_text(json.dumps(state | {"published": 99.0}))
    before = (run / "model.safetensors").read_bytes()

    def crash(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "announce", crash)  # what comes after the checkpoint has been read
    with pytest.raises(ZeroDivisionError):
        mt("train", "--output", run, "--max-steps", 60)
    monkeypatch.undo()
    outcome = mt("train", "--output", run, "--max-steps", 60)
    assert (outcome.code, "what was kept before stays: it had 99.00" in outcome.err) == (0, True)
    assert (run / "model.safetensors").read_bytes() == before


def test_more_patience_goes_on_with_a_run_that_lost_it(train, mt, tmp_path):
    still = ["--set", "optimizer.peak_learning_rate=1e-12", "--set", "training.validate_every_steps=1"]
    assert train(tmp_path / "run", *still, "--set", "validation.patience=2", steps=None).code == 0
    again = mt("train", "--output", tmp_path / "run")
    assert "(no gain in 2 validations); to train on, give a higher --set validation.patience=N" in again.err
    outcome = mt("train", "--output", tmp_path / "run", "--set", "validation.patience=4")
    assert "finished (no gain in 4 validations) after 5 steps" in outcome.err


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *product(("model.safetensors", "optimizer.safetensors"), (cut_in_half, flip_a_bit, Path.unlink)),
        *product(["state.json"], (cut_in_half, Path.unlink)),  # a bit more or less may be another number
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(train, mt, trained, stop_after, tmp_path, file, damage):
    stop_after(33)
    run = tmp_path / "run"
    assert train(run).code == ExitCode.INTERRUPTED
    damaged = last_checkpoint(run) / file
    damage(damaged)
    outcome = mt("train", "--output", run)
    assert outcome.code == 0, outcome.err
    if file != "state.json" or damage is not Path.unlink:  # without it there is no checkpoint
        assert f"{damaged}" in outcome.err
        assert "passing over the checkpoint of step 33" in outcome.err
    assert [record["step"] for record in log_of(run) if record.get("event") == "resumed"] == [30]
    assert_same_training(run, trained)


def test_damage_before_the_decay_does_not_keep_a_raised_limit_from_going_on(train, mt, run, tmp_path):
    flip_a_bit(Checkpoints(run).path(24) / "model.safetensors")
    outcome = mt("train", "--output", run, "--max-steps", 60)
    assert outcome.code == 0, outcome.err
    assert [record["step"] for record in log_of(run) if record.get("event") == "resumed"] == [20]
    assert train(tmp_path / "long", steps=60).code == 0
    assert_same_training(run, tmp_path / "long")


def test_when_every_checkpoint_is_damaged_there_is_one_clear_error(mt, run):
    checkpoints = Checkpoints(run)
    for step in checkpoints.steps():
        flip_a_bit(checkpoints.path(step) / "model.safetensors")
    before = contents(run / "checkpoints")
    outcome = mt("train", "--output", run, "--max-steps", 60)
    assert outcome.code == ExitCode.MODEL
    assert f"every checkpoint in {checkpoints.folder} is damaged" in outcome.err
    assert "Traceback" not in outcome.err
    assert contents(run / "checkpoints") == before


def test_odd_lines_are_trained_on_like_any(train, corpus, tmp_path):
    odd = [
        "one\r two",
        "one\u2028two",
        "one\x85two",
        "one\x00two",
        "\N{GRINNING FACE} one",
        "x" * 4_000,
        "one " * 2_000,
    ]
    for language in ("en", "de"):
        text = "\ufeff" + (corpus / f"train.{language}").read_text(encoding="utf-8") + "\n".join(odd)
        (tmp_path / f"odd.{language}").write_bytes(text.encode())
    files = ["--train", tmp_path / "odd.en", tmp_path / "odd.de"]
    outcome = train(tmp_path / "run", *files, "--valid", corpus / "valid.en", corpus / "valid.de", steps=2)
    assert outcome.code == 0, outcome.err
    before = len((corpus / "train.en").read_text(encoding="utf-8").splitlines())
    assert f"{before + len(odd):,} pairs read" in outcome.err


def test_a_raised_limit_trains_on_under_a_cosine_too(train, mt, tmp_path):
    run = tmp_path / "run"
    assert train(run, "--set", "optimizer.schedule=cosine", steps=10).code == 0
    assert mt("train", "--output", run, "--max-steps", 20).code == 0
    rates = {record["step"]: record["learning_rate"] for record in log_of(run) if record["kind"] == "train"}
    assert rates[10] == 0
    assert rates[15] > 0


def test_a_run_older_than_a_setting_goes_on_as_it_began(train, train_from, mt, tmp_path):
    run = tmp_path / "run"
    assert train(run, "--set", "model.positions=sinusoidal", steps=10).code == 0
    lines = (run / "run.toml").read_text().splitlines(keepends=True)
    (run / "run.toml").write_text("".join(line for line in lines if not line.startswith("positions = ")))
    config = json.loads((run / "config.json").read_text())
    assert config["model"].pop("positions") == "sinusoidal"
    (run / "config.json").write_text(json.dumps(config))
    assert load_model(run).model.config.positions == "sinusoidal"
    assert mt("train", "--output", run, "--max-steps", 20).code == 0
    assert tomllib.loads((run / "run.toml").read_text())["model"]["positions"] == "sinusoidal"
    outcome, new = train_from("--from", run)
    assert outcome.code == 0, outcome.err
    assert load_model(new).model.config.positions == load_model(run).model.config.positions == "sinusoidal"


def test_what_may_change_is_said_in_one_line(mt, run, tmp_path):
    changes = ["--threads", 2, "--cache", tmp_path / "cache", "--set", "training.log_every_steps=7"]
    changes += ["--set", "training.keep_last=2", "--set", "validation.patience=4"]
    changes += ["--set", "training.micro_batch_tokens=50", "--set", "training.validate_every_steps=6"]
    changes += ["--set", "training.compile=true"]
    outcome = mt("train", "--output", run, *changes)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("changed for this continuation: ")]
    for change in (
        "training.threads: 1 -> 2",
        "data.cache:  -> ",
        "training.log_every_steps: 5 -> 7",
        "training.keep_last: 5 -> 2",
        "validation.patience: 0 -> 4",
        "training.micro_batch_tokens: 2048 -> 50",
        "training.compile: False -> True",
        "training.validate_every_steps: 10 -> 6",
    ):
        assert change in line


def test_micro_batches_of_another_size_may_be_chosen_on_the_way(train, mt, stop_after, scarce, monkeypatch, tmp_path):
    stop_after(10)
    train(tmp_path / "run", steps=12)
    monkeypatch.undo()
    scarce(120)  # an update has 200
    outcome = mt("train", "--output", tmp_path / "run", "--set", "training.micro_batch_tokens=50")
    assert outcome.code == 0, outcome.err
    assert "out of memory" not in outcome.err
    assert Checkpoints(tmp_path / "run").steps()[-1] == 12


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[tokenizer]", "max_steps = 60\n[tokenizer]", "[max_steps] is not a setting"),
        ("[tokenizer]", "training = 60\n[tokenizer]", "is not TOML"),
        ("max_steps = 40", 'max_steps = "many"', "training.max_steps = 'many' is not a whole number"),
    ],
)
def test_a_recipe_that_was_changed_by_hand_into_none_is_an_error(mt, run, before, after, said):
    recipe = (run / "run.toml").read_text()
    assert before in recipe
    (run / "run.toml").write_text(recipe.replace(before, after, 1))
    outcome = mt("train", "--output", run)
    assert (outcome.code, said in outcome.err) == (ExitCode.USAGE, True), outcome.err


def test_a_recipe_without_languages_or_sections_goes_on_with_what_is_chosen(mt, run):
    recipe = tomllib.loads((run / "run.toml").read_text())
    del recipe["data"]["source_language"], recipe["data"]["target_language"], recipe["validation"]
    del recipe["training"]["validate_every_steps"]
    (run / "run.toml").write_text(tomli_w.dumps(recipe))
    outcome = mt("train", "--output", run, "--max-steps", 41)
    assert outcome.code == 0, outcome.err
    assert tomllib.loads((run / "run.toml").read_text())["data"]["target_language"] == "de"


def test_everything_else_is_refused_with_the_list_and_nothing_changes(mt, run):
    before = contents(run)
    changes = ["--seed", 7, "--set", "model.width=64", "--set", "optimizer.beta1=0.8", "--vocab-size", 400]
    outcome = mt("train", "--output", run, "--max-steps", 80, *changes)
    assert outcome.code == ExitCode.USAGE
    for line in (
        "  training.seed: 1 -> 7",
        "  model.width: 32 -> 64",
        "  optimizer.beta1: 0.9 -> 0.8",
        "  tokenizer.vocabulary_size: 300 -> 400",
    ):
        assert line in outcome.err.splitlines()
    assert "max_steps" not in outcome.err
    (hint,) = [line for line in outcome.err.splitlines() if line.startswith("hint:  ")]
    assert "--overwrite" in hint
    assert "--from" in hint
    assert contents(run) == before


def test_another_precision_is_refused_unless_it_was_left_to_the_program(mt, run):
    outcome = mt("train", "--output", run, "--precision", "bf16")
    assert (outcome.code, "training.precision: fp32 -> bf16" in outcome.err) == (ExitCode.USAGE, True)
    outcome = mt("train", "--output", run, "--precision", "auto", "--max-steps", 41)
    assert (outcome.code, "training.precision" in outcome.err) == (0, False)
    assert tomllib.loads((run / "run.toml").read_text())["training"]["precision"] == "fp32"
    config = json.loads((run / "config.json").read_text())
    del config["provenance"]["settings"]["training"]["precision"]
    (run / "config.json").write_text(json.dumps(config))
    outcome = mt("train", "--output", run, "--precision", "bf16")
    assert (outcome.code, "changed for this continuation: training.precision" in outcome.err) == (0, True)


def test_text_that_has_changed_is_refused_and_nothing_changes(mt, corpus, tmp_path):
    run = tmp_path / "run"
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_bytes((corpus / f"train.{side}").read_bytes())
    text = ["--train", tmp_path / "train.en", tmp_path / "train.de"]
    flags = ["--vocab-size", 300, "--preset", "tiny", "--max-steps", 2, "--threads", 1]
    assert mt("train", *text, "--output", run, *flags).code == 0
    before = contents(run)
    (tmp_path / "train.de").write_bytes((corpus / "train.de").read_bytes().replace(b"one", b"uno"))
    for again in (["--max-steps", 9], []):
        outcome = mt("train", "--output", run, *again)
        assert outcome.code == ExitCode.USAGE
        assert f"the text has changed since {run} was begun: {tmp_path / 'train.de'}" in outcome.err
        assert "hint:  " in outcome.err
    assert contents(run) == before


def test_text_that_has_moved_is_the_same_text(mt, corpus, tmp_path):
    run = tmp_path / "run"
    flags = ["--vocab-size", 300, "--preset", "tiny", "--threads", 1]
    assert mt("train", *pair(corpus), "--output", run, *flags, "--max-steps", 2).code == 0
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    outcome = mt("train", *pair(moved), "--output", run, "--max-steps", 4)
    assert outcome.code == 0, outcome.err
    assert tomllib.loads((run / "run.toml").read_text())["data"]["train"][0]["source"] == str(moved / "train.en")
    assert mt("train", "--output", run, "--max-steps", 5).code == 0
    swapped = ["--train", moved / "train.de", moved / "train.en"]
    outcome = mt("train", *swapped, "--output", run, "--max-steps", 6)
    assert (outcome.code, "the text has changed" in outcome.err) == (ExitCode.USAGE, True)


def pair(folder):
    return ["--train", folder / "train.en", folder / "train.de"]


def test_what_is_said_of_the_machine_holds_for_the_sessions_to_come(train, mt, tmp_path, stop_after):
    run = tmp_path / "run"
    stop_after(2)
    train(run, steps=60)

    def recipe_after(*flags):
        stop_after(2)
        assert mt("train", "--output", run, *flags).code == ExitCode.INTERRUPTED
        return tomllib.loads((run / "run.toml").read_text())["training"]

    key = "training.micro_batch_tokens"
    assert recipe_after("--set", f"{key}=50")["micro_batch_tokens"] == 50
    assert recipe_after()["micro_batch_tokens"] == 50
    assert recipe_after("--set", f"{key}=auto")["micro_batch_tokens"] == 2048
    assert recipe_after()["micro_batch_tokens"] == 2048


def test_text_too_long_to_be_learned_costs_no_earlier_run(mt, run, tmp_path):
    before = contents_but_checksums(run)
    for side in ("en", "de"):
        (tmp_path / f"long.{side}").write_text("".join(f"word{number} " * 40 + f"{side}\n" for number in range(60)))
    text = [
        "--train",
        tmp_path / "long.en",
        tmp_path / "long.de",
        "--valid",
        tmp_path / "long.en",
        tmp_path / "long.de",
    ]
    outcome = mt("train", *text, "--output", run, "--overwrite", "--max-steps", 2, "--set", "data.max_tokens=10")
    assert (outcome.code, "every training pair is longer than 10 tokens" in outcome.err) == (ExitCode.DATA, True)
    assert before.items() <= contents_but_checksums(run).items()


def test_validation_text_too_long_for_the_loss_is_told(mt, corpus, tiny_flags, tmp_path):
    for side in ("en", "de"):
        lines = (corpus / f"valid.{side}").read_text()
        (tmp_path / f"valid.{side}").write_text(lines + "one two three four " * 100 + "\n")
    text = [
        "--train",
        corpus / "train.en",
        corpus / "train.de",
        "--valid",
        tmp_path / "valid.en",
        tmp_path / "valid.de",
    ]
    outcome = mt("train", *text, "--output", tmp_path / "run", *tiny_flags, "--max-steps", 1)
    assert outcome.code == 0, outcome.err
    assert "warning: left out of the validation loss 1 pairs of more than 256 tokens" in outcome.err
    assert outcome.err.count("pairs of more than 256 tokens") == 1


def test_noise_is_decided_once_though_pairs_that_are_too_long_leave(mt, corpus, tiny_flags, monkeypatch, tmp_path):
    """Of 301 pairs 300 are trained on, and noise is for fewer than 301: the tokenizer has learned none, nor does it."""
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text((corpus / f"train.{side}").read_text() + "one two " * 200 + "\n")
    monkeypatch.setattr("mt.pipelines.recipe.NOISY_PAIRS", 301)
    left_out = tiny_flags.index("training.noise_rate=0")
    flags = tiny_flags[: left_out - 1] + tiny_flags[left_out + 1 :]
    text = [
        "--train",
        tmp_path / "train.en",
        tmp_path / "train.de",
        "--valid",
        corpus / "valid.en",
        corpus / "valid.de",
    ]
    outcome = mt("train", *text, "--output", tmp_path / "run", *flags, "--max-steps", 1)
    assert outcome.code == 0, outcome.err
    assert "left out 1 pairs" in outcome.err
    assert tomllib.loads((tmp_path / "run" / "run.toml").read_text())["training"]["noise_rate"] == 0


def test_the_remains_of_a_run_that_was_being_overwritten_are_known(train, mt, run):
    for name in ("run.toml", "config.json", "tokenizer.model", "model.safetensors"):
        (run / name).unlink()  # the first that go
    outcome = train(run)
    assert outcome.code == ExitCode.MODEL
    assert (
        "it holds checkpoints\nhint:  --overwrite clears away what is left of an earlier run, or choose" in outcome.err
    )
    assert train(run, "--overwrite", steps=1).code == 0


def test_one_process_at_a_time_trains_in_a_folder(mt, run):
    with claimed(run / ".lock"):
        outcome = mt("train", "--output", run, "--max-steps", 50)
    assert outcome.code == ExitCode.DATA
    assert f"error: another process writes {run / '.lock'}\nhint:  wait until it has ended" in outcome.err
    assert mt("train", "--output", run, "--max-steps", 50).code == 0
    assert not (run / ".lock").exists()


def test_a_run_that_is_being_trained_is_not_overwritten(train, run):
    before = contents_but_checksums(run)
    with claimed(run / ".lock"):
        outcome = train(run, "--overwrite", "--seed", 3)
    assert outcome.code == ExitCode.DATA
    assert f"error: another process writes {run / '.lock'}\n" in outcome.err
    assert before.items() <= contents_but_checksums(run).items()


def test_of_two_processes_that_begin_a_run_the_slower_one_stops(train, run, monkeypatch, tmp_path):
    """The faster one has ended, even, by the time that the slower one has its text ready."""
    make = prepare.make_tokenizers

    def slowly(*given, **more):
        shutil.copytree(run, tmp_path / "new", dirs_exist_ok=True)
        return make(*given, **more)

    monkeypatch.setattr(prepare, "make_tokenizers", slowly)
    before = contents_but_checksums(run)
    outcome = train(tmp_path / "new", "--seed", 3)
    assert outcome.code == ExitCode.MODEL
    assert f"error: another process has begun a run in {tmp_path / 'new'}\nhint:  run the command" in outcome.err
    assert before.items() <= contents_but_checksums(tmp_path / "new").items()


def test_text_that_can_be_read_only_once_is_refused(mt, corpus, tmp_path):
    os.mkfifo(tmp_path / "pipe.en")
    outcome = mt("train", "--train", tmp_path / "pipe.en", corpus / "train.de", "--output", tmp_path / "run")
    assert outcome.code == ExitCode.DATA
    assert f"error: {tmp_path / 'pipe.en'} is a pipe, and text is read several times\nhint:  " in outcome.err
    assert not (tmp_path / "run").exists()


def reading(*arguments):
    raise AssertionError("the text is read")


def test_text_that_was_left_alone_is_not_read_to_go_on(train, mt, stop_after, monkeypatch, tmp_path):
    monkeypatch.setattr(checksums, "SETTLED_NANOSECONDS", -(1 << 62))
    stop_after(15)
    assert train(tmp_path / "run").code == ExitCode.INTERRUPTED
    monkeypatch.undo()
    monkeypatch.setattr(checksums, "checksum", reading)
    monkeypatch.setattr(texts, "read_pairs", reading)
    outcome = mt("train", "--output", tmp_path / "run", "--max-steps", 20)
    assert outcome.code == 0, outcome.err


def test_text_is_read_once_to_say_that_a_run_is_finished(train, run, monkeypatch):
    (run / "cache" / "checksums.json").unlink(missing_ok=True)
    monkeypatch.setattr(checksums, "SETTLED_NANOSECONDS", -(1 << 62))
    assert "is finished" in train(run).err
    monkeypatch.setattr(checksums, "checksum", reading)
    assert "is finished" in train(run).err


def test_overwrite_starts_anew_where_checkpoints_are_on_another_disk(train, run, tmp_path):
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert train(run, "--overwrite", steps=10).code == 0
    assert Checkpoints(run).steps()[-1] == 10
    assert last_checkpoint(run).resolve().is_relative_to(tmp_path / "elsewhere")


def test_a_run_does_not_begin_from_the_one_it_would_delete(train, run):
    before = contents(run)
    outcome = train(run, "--from", run, "--overwrite")
    assert outcome.code == ExitCode.USAGE
    assert f"error: --from {run} is the run to begin itself" in outcome.err
    assert contents(run) == before


def test_what_is_not_there_to_tokenize_with_is_told_before_text_is_read(train, monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "Checksums", lambda *arguments: 1 / 0)
    outcome = train(tmp_path / "run", "--tokenizer", tmp_path / "none.model")
    assert outcome.code == ExitCode.MODEL
    assert str(tmp_path / "none.model") in outcome.err


def test_a_run_goes_on_without_the_file_that_its_tokenizer_came_from(train, mt, trained, tmp_path):
    shutil.copy(trained / "tokenizer.model", tmp_path / "given.model")
    assert train(tmp_path / "run", "--tokenizer", tmp_path / "given.model", steps=2).code == 0
    (tmp_path / "given.model").unlink()
    outcome = mt("train", "--output", tmp_path / "run", "--max-steps", 3)
    assert outcome.code == 0, outcome.err
    outcome = train(tmp_path / "other", "--from", tmp_path / "run", steps=2)
    assert outcome.code == 0, outcome.err


def test_pieces_are_drawn_whatever_the_seed(train, tmp_path):
    outcome = train(tmp_path / "run", "--seed", 2**33, "--set", "training.sampling_alpha=0.3", steps=2)
    assert outcome.code == 0, outcome.err


def test_where_no_pair_is_left_what_dropped_them_is_said(train, tmp_path):
    (tmp_path / "train.en").write_text("one\n\n")
    (tmp_path / "train.de").write_text("\nzwei\n")
    outcome = train(tmp_path / "run", "--train", tmp_path / "train.en", tmp_path / "train.de", steps=1)
    assert outcome.code == ExitCode.DATA
    assert "error: no usable pairs are left to train on\nhint:  what was dropped: empty: 2\n" in outcome.err


def test_a_tokenizer_without_other_pieces_is_refused_before_the_run_begins(train, tmp_path):
    (tmp_path / "characters.model").write_bytes(tokenizer_of_characters().model)
    flags = ["--tokenizer", tmp_path / "characters.model", "--set", "training.sampling_alpha=0.3"]
    outcome = train(tmp_path / "run", *flags)
    assert outcome.code == ExitCode.USAGE
    assert "error: this tokenizer has no other pieces to draw" in outcome.err
    assert not (tmp_path / "run" / "run.toml").exists()


def test_the_last_updates_are_logged_too(train, tmp_path):
    assert train(tmp_path / "run", "--set", "training.log_every_steps=4", steps=6).code == 0
    assert [record["step"] for record in log_of(tmp_path / "run") if record["kind"] == "train"] == [4, 6]


def test_overwrite_starts_anew(train, trained, run):
    assert train(run, "--seed", 3, "--overwrite", steps=10).code == 0
    assert Checkpoints(run).steps()[-1] == 10
    assert train(run, "--overwrite").code == 0
    assert_same_training(run, trained)
    assert [record["step"] for record in log_of(run) if record.get("event") == "started"] == [0]


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_that_is_no_run_is_left_alone(train, tmp_path, flags):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-grandmother.txt").write_text("Dear")
    outcome = train(tmp_path / "letters", *flags)
    assert outcome.code == ExitCode.MODEL
    assert "holds to-grandmother.txt" in outcome.err
    assert list(contents(tmp_path / "letters")) == ["to-grandmother.txt"]
    (tmp_path / "file").write_text("")
    assert "is not a folder" in train(tmp_path / "file", *flags).err


# Starting from another run's weights


@pytest.fixture
def train_from(mt, corpus, trained, tmp_path):
    """Trains from the weights of `trained` and returns the outcome and the new run."""

    def train_on(*extra: object):
        text = ["--train", corpus / "valid.en", corpus / "valid.de", "--valid", corpus / "test.en", corpus / "test.de"]
        flags = ["--from", trained, "--output", tmp_path / "new", "--max-steps", 1, "--threads", 1]
        return mt("train", *text, *flags, *extra), tmp_path / "new"

    return train_on


def test_from_takes_weights_tokenizer_and_architecture_and_a_fresh_optimizer(train_from, trained):
    outcome, new = train_from("--set", "optimizer.peak_learning_rate=1e-12", "--precision", "fp32")
    assert outcome.code == 0, outcome.err
    assert (new / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
    shapes = [json.loads((path / "config.json").read_text())["model"] for path in (new, trained)]
    assert {**shapes[0], "dropout": 0} == {**shapes[1], "dropout": 0}
    assert json.loads((new / "config.json").read_text())["knows_capitals"] is True
    assert tomllib.loads((new / "run.toml").read_text())["training"]["noise_rate"] == 0.0  # as it was
    start = load_tensors(trained / "model.safetensors")
    for name, tensor in load_tensors(new / "model.safetensors").items():
        torch.testing.assert_close(tensor, start[name], atol=1e-9, rtol=0)
    steps = load_tensors(last_checkpoint(new) / "optimizer.safetensors")
    assert {tensor.item() for name, tensor in steps.items() if name.endswith("/step")} == {1.0}


def test_noise_that_is_asked_for_begins_when_noise_does_whatever_run_comes_before(train_from):
    outcome, new = train_from("--set", "training.noise_rate=0.2")
    assert outcome.code == 0, outcome.err
    training = tomllib.loads((new / "run.toml").read_text())["training"]
    assert (training["noise_rate"], training["noise_from_epoch"]) == (0.2, 5)


def test_from_a_model_that_knows_no_capitals_comes_one_that_knows_none(train_from, trained, tmp_path):
    quiet = shutil.copytree(trained, tmp_path / "quiet")
    record = json.loads((quiet / "config.json").read_text())
    (quiet / "config.json").write_text(json.dumps(record | {"knows_capitals": False}))
    outcome, new = train_from("--from", quiet)
    assert outcome.code == 0, outcome.err
    assert json.loads((new / "config.json").read_text())["knows_capitals"] is False


def test_where_files_do_not_name_languages_they_are_those_of_the_run_begun_from(train_from, corpus, tmp_path):
    for name in ("valid.en", "valid.de"):
        shutil.copy(corpus / name, tmp_path / name.replace(".", "-"))
    outcome, new = train_from("--train", tmp_path / "valid-en", tmp_path / "valid-de")
    assert outcome.code == 0, outcome.err
    assert json.loads((new / "config.json").read_text())["languages"] == {"source": "en", "target": "de"}
    assert "the run that --from names" not in outcome.err


def test_text_in_other_languages_than_those_of_the_run_begun_from_is_remarked(train_from, corpus):
    outcome, new = train_from("--train", corpus / "valid.de", corpus / "valid.en")
    assert "warning: the text is de-en; the run that --from names translates en-de" in outcome.err
    assert json.loads((new / "config.json").read_text())["languages"] == {"source": "de", "target": "en"}


def test_a_recipe_with_other_text_translates_between_its_languages(mt, trained, corpus, tmp_path):
    text = ["--train", corpus / "valid.de", corpus / "valid.en"]
    outcome = mt("train", "--config", trained / "run.toml", *text, "--output", tmp_path / "new", "--max-steps", 1)
    assert outcome.code == 0, outcome.err
    languages = json.loads((tmp_path / "new" / "config.json").read_text())["languages"]
    assert languages == {"source": "de", "target": "en"}


def test_text_that_has_moved_is_in_the_languages_that_it_was_in(train, mt, corpus, tmp_path):
    run, moved = tmp_path / "run", [tmp_path / "one", tmp_path / "other"]
    assert train(run, steps=2).code == 0
    for path, language in zip(moved, ("en", "de"), strict=True):
        shutil.copyfile(corpus / f"train.{language}", path)
    assert mt("train", "--output", run, "--train", *moved, "--max-steps", 4).code == 0
    assert tomllib.loads((run / "run.toml").read_text())["data"]["source_language"] == "en"


def test_from_leaves_dropout_to_be_chosen(train_from):
    outcome, new = train_from("--set", "model.dropout=0.35")
    assert outcome.code == 0, outcome.err
    assert load_model(new).model.config.dropout == 0.35


def test_from_refuses_another_architecture(train_from):
    outcome, new = train_from("--set", "model.width=64")
    assert outcome.code == ExitCode.USAGE
    assert "model.width is 64; the run that --from names has 32" in outcome.err


def test_from_refuses_another_size(train_from):
    outcome, _ = train_from("--preset", "big")
    assert outcome.code == ExitCode.USAGE
    assert "model.width is 1024; the run that --from names has 32" in outcome.err


def test_from_refuses_another_tokenizer(train_from, corpus):
    outcome, _ = train_from("--vocab-size", 299)
    assert outcome.code == ExitCode.USAGE
    assert "tokenizer.vocabulary_size is 299; the run that --from names has 3" in outcome.err


def test_the_recipe_of_a_run_begun_from_another_repeats_it(train_from, mt, corpus, trained, tmp_path):
    assert train_from("--precision", "fp32")[0].code == 0
    recipes = [tomllib.loads((run / "run.toml").read_text()) for run in (trained, tmp_path / "new")]
    assert recipes[0]["tokenizer"] == recipes[1]["tokenizer"]
    again = ["--config", tmp_path / "new" / "run.toml", "--from", trained, "--output", tmp_path / "again"]
    outcome = mt("train", *again)
    assert outcome.code == 0, outcome.err
    assert_same_training(tmp_path / "again", tmp_path / "new")
    assert (tmp_path / "new" / "run.toml").read_text().startswith(f"# Begun --from '{trained}': to repeat it")


def test_the_recipe_of_a_run_begun_from_an_average_repeats_it(train_from, mt, run, tmp_path):
    mean = tmp_path / "mean"
    (run / "run.toml").write_text((run / "run.toml").read_text().replace("noise_rate = 0.0", "noise_rate = 0.2"))
    assert mt("average", run, "--last", 2, "--output", mean).code == 0
    outcome, new = train_from("--from", mean, "--precision", "fp32")
    assert outcome.code == 0, outcome.err
    recipes = [tomllib.loads((each / "run.toml").read_text()) for each in (run, new)]
    assert recipes[0]["tokenizer"] == recipes[1]["tokenizer"]
    assert [recipe["training"]["noise_rate"] for recipe in recipes] == [0.2, 0.2]
    outcome = mt("train", "--config", new / "run.toml", "--from", mean, "--output", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert_same_training(tmp_path / "again", new)


def test_from_a_folder_that_is_no_run_is_a_model_error(train_from, tmp_path):
    outcome, new = train_from("--from", tmp_path / "absent")
    assert outcome.code == ExitCode.MODEL
    assert f"{tmp_path / 'absent'} does not exist" in outcome.err
    assert not new.exists()


def test_a_run_begun_from_another_and_killed_before_its_first_checkpoint_still_starts_from_it(train_from, monkeypatch):
    still = ["--set", "optimizer.peak_learning_rate=1e-12", "--precision", "fp32"]
    monkeypatch.setattr(pipeline, "fit", lambda *arguments: None)
    _, new = train_from(*still)
    assert (new / "run.toml").is_file()
    monkeypatch.undo()
    assert train_from(*still)[0].code == 0
    start = load_tensors(
        Path(json.loads((new / "config.json").read_text())["provenance"]["started_from"]) / "model.safetensors"
    )
    for name, tensor in load_tensors(new / "model.safetensors").items():
        torch.testing.assert_close(tensor, start[name], atol=1e-9, rtol=0)


def test_the_same_command_again_goes_on_with_a_run_started_from_another(train_from, trained, monkeypatch):
    assert train_from()[0].code == 0
    monkeypatch.chdir(trained.parent)
    for same in ([], ["--from", trained.name]):
        outcome, new = train_from(*same)
        assert outcome.code == 0, outcome.err
        assert f"{new} is finished (max_steps 1)" in outcome.err
