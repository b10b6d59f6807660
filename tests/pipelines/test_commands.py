"""The other commands, and what all commands have in common: help, streams, exit codes, errors with hints."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from sacrebleu.metrics.bleu import BLEU

from mt import __version__, cli, files
from mt.decoding.translator import Translator
from mt.errors import ExitCode
from mt.pipelines import prepare
from mt.pipelines.pace import duration
from mt.pipelines.reporting import RunLog
from mt.training.budget import Progress
from mt.training.checkpoint import Checkpoints, load_tensors

FAST = ["--beam", 1, "--threads", 1]


def command_paths(group: typer.Typer = cli.app, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command as the words that call it."""
    names = [command.name or command.callback.__name__ for command in group.registered_commands]
    below = [path for sub in group.registered_groups for path in command_paths(sub.typer_instance, (*above, sub.name))]
    return [(*above, name) for name in names] + below


# mt tokenizer


@pytest.fixture(scope="session")
def tokenizer(mt, corpus, tmp_path_factory):
    """The prefix of a tokenizer trained on both sides of the corpus."""
    prefix = tmp_path_factory.mktemp("tokenizer") / "words"
    text = [corpus / "train.en", corpus / "train.de"]
    outcome = mt("tokenizer", "train", *text, "--vocab-size", 290, "--type", "bpe", "--output", prefix)
    assert outcome.code == 0, outcome.err
    return prefix


def test_a_tokenizer_is_a_model_and_a_readable_vocabulary(tokenizer):
    rows = [line.split("\t") for line in tokenizer.with_suffix(".vocab").read_text().split("\n")[:-1]]
    assert len(rows) == 290
    assert [piece for piece, score in rows[:4]] == ["<pad>", "<unk>", "<s>", "</s>"]
    assert all(float(score) <= 0 for piece, score in rows)


def test_what_is_encoded_is_decoded_to_itself(mt, tokenizer):
    model = ["--model", tokenizer.with_suffix(".model")]
    text = "seven eleven\n\nzwölf  Ä 🙂 \nsix".encode()
    encoded = mt("tokenizer", "encode", *model, stdin=text)
    assert encoded.code == 0, encoded.err
    assert encoded.out.split("\n")[0].split(" ")[0].startswith("▁s")
    decoded = mt("tokenizer", "decode", *model, stdin=encoded.out.encode())
    assert decoded.out.encode() == text + b"\n"


def test_a_piece_that_does_not_exist_is_named_with_its_line(mt, tokenizer):
    model = ["--model", tokenizer.with_suffix(".model")]
    outcome = mt("tokenizer", "decode", *model, stdin="▁s\n▁nonsense\n".encode())
    assert outcome.code == ExitCode.DATA
    assert "standard input, line 2:" in outcome.err
    assert "has no piece '▁nonsense'" in outcome.err


def test_a_vocabulary_that_cannot_be_is_changed_with_both_numbers(mt, corpus, tmp_path):
    for asked, verb in ((90_000, "lowered"), (20, "raised")):
        flags = ["--vocab-size", asked, "--output", tmp_path / "words"]
        outcome = mt("tokenizer", "train", corpus / "train.en", *flags)
        assert outcome.code == 0
        size = (tmp_path / "words.vocab").read_text().count("\n")
        assert f"warning: vocabulary size {verb} from {asked:,} to {size:,} pieces" in outcome.err


def test_a_tokenizer_needs_text_and_a_known_type(mt, corpus, tmp_path):
    (tmp_path / "blank").write_text(" \n\n")
    flags = ["--vocab-size", 300, "--output", tmp_path / "none"]
    assert mt("tokenizer", "train", tmp_path / "blank", *flags).code == ExitCode.DATA
    outcome = mt("tokenizer", "train", corpus / "train.en", *flags, "--type", "word")
    assert (outcome.code, outcome.err) == (ExitCode.USAGE, "error: --type word is none of unigram, bpe\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["blank"]


def test_a_tokenizer_that_is_none_is_a_model_error(mt, corpus):
    outcome = mt("tokenizer", "encode", "--model", corpus / "train.en", stdin=b"one\n")
    assert outcome.code == ExitCode.MODEL
    assert f"{corpus / 'train.en'} is not a SentencePiece model" in outcome.err


# mt evaluate, mt info, mt average


def test_evaluating_a_model_is_evaluating_what_it_writes(mt, trained, corpus, tmp_path):
    files = ["--source", corpus / "test.en", "--reference", corpus / "test.de", "--output", tmp_path / "test.de"]
    whole = mt("evaluate", "--model", trained, *files, *FAST, "--format", "json")
    assert whole.code == 0, whole.err
    hypothesis = ["--hypothesis", tmp_path / "test.de", "--reference", corpus / "test.de"]
    assert mt("evaluate", *hypothesis, "--format", "json").out == whole.out
    record = json.loads(whole.out)
    assert list(record) == ["metrics", "lines"]
    assert record["lines"] == 20
    assert [metric["name"] for metric in record["metrics"]] == ["BLEU", "chrF2", "TER"]
    assert all(list(metric) == ["name", "score", "signature", "low", "high"] for metric in record["metrics"])
    assert (tmp_path / "test.de").read_text() == mt("translate", "--model", trained, corpus / "test.en", *FAST).out


def test_bleu_of_real_output_is_that_of_the_sacrebleu_command(mt, trained, corpus, tmp_path):
    text = ["--source", corpus / "test.en", "--reference", corpus / "test.de", "--output", tmp_path / "hypothesis"]
    scored = json.loads(mt("evaluate", "--model", trained, *text, "--format", "json").out)
    command = [sys.executable, "-m", "sacrebleu", str(corpus / "test.de"), "-i", str(tmp_path / "hypothesis")]
    printed = subprocess.run([*command, "-m", "bleu", "-b", "-w", "4"], capture_output=True, text=True, check=True)
    assert f"{scored['metrics'][0]['score']:.4f}" == printed.stdout.strip()


def test_evaluate_wants_a_model_with_its_source_or_a_hypothesis(mt, trained, corpus):
    model, source, hypothesis = (
        ["--model", trained], ["--source", corpus / "test.en"], ["--hypothesis", corpus / "test.de"],
    )  # fmt: skip
    for given in ([], model, source, [*model, *hypothesis], [*hypothesis, *source], [*model, *source, *hypothesis]):
        outcome = mt("evaluate", "--reference", corpus / "test.de", *given)
        assert outcome.code == ExitCode.USAGE
        assert outcome.err.startswith("error: give either --model with --source, or --hypothesis\nhint:  ")


def test_translations_that_exist_are_not_searched_for(mt, corpus):
    text = ["--hypothesis", corpus / "test.de", "--reference", corpus / "test.de"]
    searched = (["--beam", 2], ["--output", corpus / "out.de"], ["--length-penalty", 0.5], ["--batch-tokens", 9])
    run_on = (["--shortlist"], ["--device", "cuda"], ["--precision", "int8"], ["--threads", 1])
    for flags in (*searched, *run_on):
        outcome = mt("evaluate", *text, *flags)
        assert outcome.code == 2
        assert outcome.err.startswith("error: --output and search flags belong to --model\nhint:  ")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--output", "file/hypothesis"], "cannot write file/hypothesis"),
        (["--bleu-tokenize", "ja-mecab"], "BLEU's tokenizer ja-mecab cannot be used"),
    ],
    ids=["output", "tokenizer"],
)
def test_what_cannot_be_written_or_scored_is_said_before_translating(
    mt, trained, corpus, tmp_path, monkeypatch, flags, error
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr("mt.evaluation.metrics.BLEU", without("ja-mecab"))
    monkeypatch.setattr(Translator, "translate", None)
    text = ["--source", corpus / "test.en", "--reference", corpus / "test.de"]
    outcome = mt("evaluate", "--model", trained, *text, *flags)
    assert outcome.code != 0
    assert error in outcome.err


def without(tokenizer):
    """BLEU where the package of this tokenizer is not installed."""

    class Incomplete(BLEU):
        def __init__(self, tokenize, **options):
            if tokenize == tokenizer:
                raise ImportError(f"{tokenizer} is missing")
            super().__init__(tokenize=tokenize, **options)

    return Incomplete


def test_a_reference_is_not_written_over(mt, trained, corpus, tmp_path):
    reference = Path(shutil.copy(corpus / "test.de", tmp_path))
    text = ["--source", corpus / "test.en", "--reference", reference, "--output", reference]
    outcome = mt("evaluate", "--model", trained, *text)
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith(f"error: {reference} is read, and would be written over\nhint:  ")
    assert reference.read_text() == (corpus / "test.de").read_text()


def test_a_source_with_carriage_returns_is_told(mt, trained, corpus, tmp_path):
    (tmp_path / "test.en").write_text((corpus / "test.en").read_text().replace("\n", "\r\n"), newline="")
    outcome = mt("evaluate", "--model", trained, "--source", tmp_path / "test.en", "--reference", corpus / "test.de")
    assert outcome.code == 0
    assert outcome.err.count("carriage return") == 1
    assert f"{tmp_path}/test.en, line 1: ends in a carriage return" in outcome.err


def test_evaluate_names_both_line_counts(mt, trained, corpus):
    flags = ["--source", corpus / "test.en", "--reference", corpus / "train.de"]
    outcome = mt("evaluate", "--model", trained, *flags)
    assert outcome.code == ExitCode.DATA
    assert f"{corpus}/test.en has 20 lines, {corpus}/train.de has 300" in outcome.err


def test_info_says_what_a_run_holds(mt, trained):
    record = json.loads(mt("info", trained, "--format", "json").out)
    parameters = sum(tensor.numel() for tensor in load_tensors(trained / "model.safetensors").values())
    assert record["parameters"] == parameters
    assert record["languages"] == {"source": "en", "target": "de"}
    assert (record["training"]["step"], record["training"]["finished"]) == (40, "max_steps 40")
    assert record["training"]["checkpoints"] == Checkpoints(trained).steps()
    assert record["provenance"]["mt"] == __version__

    text = mt("info", trained).out
    rows = dict(re.split(r"\s+", line, maxsplit=1) for line in text.splitlines() if not line.startswith("made"))
    assert rows["languages"] == "en -> de"
    assert f"{parameters:,} parameters: 1+1 layers, 32 wide, 2 heads, 64 feed-forward, pre-norm" in rows["model"]
    assert rows["training"].startswith("40 steps, ")
    assert rows["training"].endswith("; max_steps 40")
    assert rows["capitals"] == "lines in capitals are read as they stand"
    assert rows["decoding"].startswith("beam 5, length penalty ")
    assert re.fullmatch(r"[\d,]+ pieces \(tokenizer\.model\)", rows["vocabulary"])


def test_info_on_a_run_that_is_not_finished_or_has_no_checkpoints(mt, run):
    state = Checkpoints(run).path(40) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"finished": ""}))
    assert f"not finished: mt train --output {run} goes on with it" in mt("info", run).out
    (run / "checkpoints").rename(run / "elsewhere")
    outcome = mt("info", run)
    assert (outcome.code, "training" in outcome.out) == (0, False)


def test_info_on_a_run_before_its_first_validation(mt, run):
    said = mt("info", run).out
    (run / "model.safetensors").unlink()
    assert mt("info", run).out == said
    outcome = mt("translate", "--model", run, stdin=b"one\n")
    assert outcome.code == ExitCode.MODEL
    assert f"{run / 'model.safetensors'} does not exist yet\nhint:  mt train writes it after the first" in outcome.err


def test_info_passes_over_a_checkpoint_that_cannot_be_read(mt, run):
    steps = Checkpoints(run).steps()
    (Checkpoints(run).path(steps[-1]) / "state.json").write_text("{")
    outcome = mt("info", run, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert f"warning: cannot read {Checkpoints(run).path(steps[-1]) / 'state.json'}" in outcome.err
    assert json.loads(outcome.out)["training"]["step"] == steps[-2]


def test_a_name_that_is_not_utf8_is_told(mt, corpus, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/test\xe9.de")
    shutil.copyfile(corpus / "test.de", name)
    scored = ["--hypothesis", name, "--hypothesis", corpus / "test.en", "--reference", corpus / "test.de"]
    outcome = mt("evaluate", *scored)
    assert outcome.code == ExitCode.USAGE
    assert "error: a name is not UTF-8: " in outcome.err
    assert "test\\udce9.de" in outcome.err


def test_an_average_of_damaged_checkpoints_or_without_the_tokenizer_is_refused(mt, run, tmp_path):
    weights = Checkpoints(run).path(30) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    outcome = mt("average", run, "--last", 3, "--output", tmp_path / "mean")
    assert (outcome.code, f"error: {weights} is damaged" in outcome.err) == (ExitCode.MODEL, True)
    assert mt("average", run, "--last", 1, "--output", tmp_path / "mean").code == 0
    (run / "tokenizer.model").unlink()
    outcome = mt("average", run, "--last", 1, "--output", tmp_path / "other")
    assert f"error: cannot read the tokenizer {run / 'tokenizer.model'}" in outcome.err
    assert not (tmp_path / "other").exists()


def test_checkpoints_that_are_kept_for_their_scores_are_none_of_the_last(mt, run, tmp_path):
    recipe = (run / "run.toml").read_text()
    (run / "run.toml").write_text(recipe.replace("keep_last = 5", "keep_last = 2"))
    assert len(Checkpoints(run).steps()) > 2
    outcome = mt("average", run, "--last", 3, "--output", tmp_path / "mean")
    assert outcome.code == ExitCode.MODEL
    assert f"{run} keeps its last 2 checkpoints; 3 were asked for" in outcome.err
    assert mt("average", run, "--last", 2, "--output", tmp_path / "mean").code == 0


def test_an_average_is_the_mean_of_the_last_checkpoints(mt, trained, tmp_path):
    steps = Checkpoints(trained).steps()[-3:]
    outcome = mt("average", trained, "--last", 3, "--output", tmp_path / "mean")
    assert outcome.code == 0, outcome.err
    files = [load_tensors(Checkpoints(trained).path(step) / "model.safetensors") for step in steps]
    averaged = load_tensors(tmp_path / "mean" / "model.safetensors")
    assert averaged.keys() == files[0].keys()
    for name, tensor in averaged.items():
        one, two, three = (file[name] for file in files)
        torch.testing.assert_close(tensor, (one + two + three) / 3, atol=1e-6, rtol=0)
    assert json.loads(mt("info", tmp_path / "mean", "--format", "json").out)["provenance"]["average_of"] == {
        "run": str(trained),
        "steps": steps,
    }
    assert mt("translate", "--model", tmp_path / "mean", *FAST, stdin=b"one\n").out.count("\n") == 1


def test_an_average_of_more_than_there_are_or_onto_something_is_refused(mt, trained, tmp_path):
    kept = len(Checkpoints(trained).steps())
    outcome = mt("average", trained, "--last", 99, "--output", tmp_path / "mean")
    assert outcome.code == ExitCode.MODEL
    assert f"{trained} keeps its last {kept} checkpoints; 99 were asked for" in outcome.err
    outcome = mt("average", trained, "--last", 2, "--output", tmp_path)
    assert (outcome.code, f"{tmp_path} is already there" in outcome.err) == (ExitCode.MODEL, True)
    assert list(tmp_path.iterdir()) == []


# What all commands have in common


def test_the_version_goes_to_standard_output(mt):
    outcome = mt("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"mt {__version__}\n", "")


@pytest.mark.parametrize("path", [(), ("tokenizer",), *command_paths()], ids=" ".join)
def test_every_command_has_help_and_so_has_each_of_its_options(mt, path):
    outcome = mt(*path, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.match(rf"Usage: .*{' '.join(path)} \[OPTIONS\]", outcome.out)
    described = outcome.out.split("Options:")[1]
    options = re.findall(r"^  (--[a-z-]+)(.*(?:\n {4,}.*)*)", described, re.MULTILINE)
    assert options
    for option, rest in options:
        words = re.sub(r"\[[^]]*\]", "", rest)  # [required], [default: 5; x>=1]
        assert re.search(r"\s{2,}\S", words), f"{option} has no help"


def test_a_mistake_in_the_flags_is_a_usage_error(mt, tmp_path):
    for flags in (["translate"], ["translate", "--beam", 0], ["nonsense"], ["train", "--output"], ["info", "--nope"]):
        outcome = mt(*flags)
        assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
        assert "Traceback" not in outcome.err


def test_every_setting_is_shown_as_toml(mt):
    outcome = mt("train", "--output", "none", "--show-config")
    assert (outcome.code, outcome.err) == (0, "")
    shown = tomllib.loads(outcome.out)
    assert list(shown) == ["tokenizer", "data", "model", "optimizer", "training", "validation"]
    for section, values in shown.items():
        for key, value in values.items():
            if isinstance(value, list):
                continue
            text = value if isinstance(value, str) and value else json.dumps(value)
            again = mt("train", "--output", "none", "--set", f"{section}.{key}={text}", "--show-config")
            assert again.out == outcome.out, f"{section}.{key}"


def test_the_settings_shown_are_a_recipe(mt, trained, tmp_path):
    shown = mt("train", "--output", "none", "--config", trained / "run.toml", "--show-config").out
    (tmp_path / "recipe.toml").write_text(shown)
    again = mt("train", "--output", "none", "--config", tmp_path / "recipe.toml", "--show-config").out
    assert tomllib.loads(again) == tomllib.loads(shown)
    assert tomllib.loads(shown)["model"]["width"] == 32


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (["--set", "optimizer.warmup=5"], "--set: optimizer.warmup is not a setting", "did you mean warmup_steps?"),
        (["--set", "optimiser.beta1=0.5"], "--set: [optimiser] is not a setting", "did you mean optimizer?"),
        (["--set", "model.heads=3"], "model.width is 256; it must be even and a multiple of", "choose a width"),
        (["--set", "model.heads=two"], "model.heads = 'two' is not a whole number", ""),
        (["--set", "max_steps=5"], "--set 'max_steps=5' is not section.key=value", "for instance: --set "),
        (["--set", "training.max_steps=-1"], "training.max_steps is negative", ""),
        (["--set", "optimizer.schedule=cosine"], "the schedule cosine needs --max-steps", ""),
        (["--set", "optimizer.schedule=warmup_stable_decay"], "the schedule warmup_stable_decay", "add --max-steps"),
        (["--preset", "huge"], "command line: the preset huge is not a setting", "did you mean "),
        (["--seed", 2**63], "training.seed is not below 2^63", ""),
        (["--set", "data.max_length_ratio=0.9"], "data.max_length_ratio is 0.9", "a ratio is above 1"),
        (["--set", 'data.valid=["a", "b"]'], "data.valid must be tables", ""),
        (["--set", "tokenizer.files=[3]"], "tokenizer.files: an element = 3 is not text", ""),
        (["--set", 'tokenizer.files=[["a.model"]]'], "tokenizer.files: an element = ['a.model'] is not text", ""),
        (["--precision", "fp8"], "--precision fp8 is none of auto, fp32, tf32, bf16", ""),
        (["--device", "tpu"], "--device tpu is none of auto, cpu, cuda", ""),
        (["--config", "/absent.toml"], "cannot read /absent.toml: No such file or directory", ""),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_written(mt, corpus, tmp_path, flags, error, hint):
    text = ["--train", corpus / "train.en", corpus / "train.de"]
    outcome = mt("train", *text, "--output", tmp_path / "run", *flags)
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert outcome.err.startswith(f"error: {error}")
    assert f"\nhint:  {hint}" in outcome.err if hint else "hint" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_recipe_names_the_file_and_the_nearest_key(mt, tmp_path):
    (tmp_path / "recipe.toml").write_text("[training]\nmax_step = 5\n")
    outcome = mt("train", "--config", tmp_path / "recipe.toml", "--output", tmp_path / "run")
    assert outcome.code == ExitCode.USAGE
    assert outcome.err == (
        f"error: {tmp_path}/recipe.toml: training.max_step is not a setting\nhint:  did you mean max_steps?\n"
    )


def test_training_without_text_says_how_to_give_it(mt, tmp_path):
    outcome = mt("train", "--output", tmp_path / "run")
    assert outcome.code == ExitCode.USAGE
    assert outcome.err == ("error: no training text is given\nhint:  mt train --train SOURCE TARGET --output RUN\n")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (b"", "{path} is empty"),
        (b"one\n" * 299, "{source} has 300 lines, {path} has 299"),
        (b"one\n" * 1_300, "{source} has 300 lines, {path} has 1,300"),
        (b"one\n" * 10 + b"tw\xf6\n" + b"three\n" * 289, "{path}, line 11: not UTF-8"),
    ],
)
def test_training_text_that_cannot_be_used_is_a_data_error_and_nothing_is_written(mt, corpus, tmp_path, content, error):
    path, source = tmp_path / "train.de", corpus / "train.en"
    if content is not None:
        path.write_bytes(content)
    outcome = mt("train", "--train", source, path, "--output", tmp_path / "run", "--max-steps", 1)
    assert (outcome.code, outcome.out) == (ExitCode.DATA, "")
    assert outcome.err.startswith(f"error: {error.format(path=path, source=source)}")
    assert not (tmp_path / "run").exists()


def test_training_on_an_absent_device_is_a_device_error(train, tmp_path):
    outcome = train(tmp_path / "run", "--device", "cuda")
    assert outcome.code == ExitCode.DEVICE
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_a_device_error(train, monkeypatch, tmp_path, error):
    def exhausted(request):
        raise error

    monkeypatch.setattr("mt.pipelines.train.train", exhausted)
    outcome = train(tmp_path / "run")
    assert outcome.code == ExitCode.DEVICE
    assert outcome.err.startswith("error: out of memory\nhint:  ")


def test_a_mistake_of_mt_itself_is_not_taken_for_a_lack_of_memory(train, monkeypatch, tmp_path):
    def broken(request):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("mt.pipelines.train.train", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tmp_path / "run")


def test_languages_that_are_said_stand_before_those_of_file_names(train, tmp_path):
    outcome = train(tmp_path / "run", "--source-lang", "fr", "--target-lang", "cs", steps=1)
    assert outcome.code == 0, outcome.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["languages"] == {"source": "fr", "target": "cs"}


@pytest.mark.parametrize(
    ("flags", "tokenizer"), [([], "13a"), (["--target-lang", "zh"], "zh"), (["--bleu-tokenize", "char"], "char")]
)
def test_flags_choose_the_tokenizer_of_bleu(mt, trained, corpus, flags, tokenizer):
    for scored in (["--hypothesis", corpus / "test.de"], ["--model", trained, "--source", corpus / "test.en", *FAST]):
        outcome = mt("evaluate", *scored, "--reference", corpus / "test.de", "--format", "json", *flags)
        assert f"|tok:{tokenizer}|" in json.loads(outcome.out)["metrics"][0]["signature"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(89, "89 s"), (90, "2 min"), (5_399, "90 min"), (5_400, "1.5 h"), (12_240, "3.4 h")]
)
def test_a_time_is_said_in_a_unit_that_fits_a_column(seconds, said):
    assert duration(seconds) == said


def test_on_a_terminal_training_is_a_bar_with_lines_above_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    log = RunLog(tmp_path / "log.jsonl", Progress(step=7), lambda: 1.0, quiet=False, total_steps=10)
    numbers = {"loss": 3.4, "learning_rate": 1e-3, "target_tokens_per_second": 9.0, "memory_gib": 1.0}
    log({"kind": "train", **numbers, "seconds_left": 45.0})
    [task] = log.bar.tasks
    assert (task.completed, task.total) == (7, 10)
    assert (
        task.description == "step       7 │ loss  3.400 nats │ lr 1.0e-03 │       9 target tok/s │ 1.0 GiB │ 45 s left"
    )
    log({"kind": "event", "event": "decay", "steps": 3})
    log.close()
    assert "the learning rate falls to 0 over 3 steps" in capsys.readouterr().err


def test_of_several_mistakes_configuration_comes_first_then_device_folder_and_data(mt, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-grandmother.txt").write_text("Dear")
    text = ["--train", tmp_path / "absent.en", tmp_path / "absent.de"]
    mistakes = [["--set", "training.max_steps=-1"], ["--device", "cuda"], ["--output", tmp_path / "letters"], text]
    right = [["--max-steps", 1], ["--device", "cpu"], ["--output", tmp_path / "run"]]
    for count, code in enumerate((ExitCode.USAGE, ExitCode.DEVICE, ExitCode.MODEL, ExitCode.DATA)):
        flags = [flag for part in (*right[:count], *mistakes[count:]) for flag in part]
        assert mt("train", *flags).code == code


def test_quiet_says_nothing_but_warnings(mt, corpus, tiny_flags, tmp_path):
    text = ["--train", corpus / "train.en", corpus / "train.de", "--output", tmp_path / "run"]
    outcome = mt("--quiet", "train", *text, *tiny_flags, "--max-steps", 8)
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == "".join(
        line + "\n" for line in outcome.err.splitlines() if line.startswith("warning: tokenizer: vocabulary size")
    )
    outcome = mt("--quiet", "train", "--output", tmp_path / "run")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert mt("--quiet", "info", tmp_path / "absent").err.startswith("error: ")


@pytest.mark.parametrize("quiet", [True, False])
def test_what_went_wrong_in_training_is_told_however_quietly(tmp_path, capsys, quiet):
    log = RunLog(tmp_path / "log.jsonl", Progress(step=7), lambda: 1.0, quiet=quiet, total_steps=10)
    event = {"kind": "event"}
    log({**event, "event": "decay", "steps": 3})
    log({**event, "event": "rolled_back", "from_step": 9, "learning_rate_scale": 0.5})
    log({**event, "event": "skipped", "updates": 2, "reasons": {"norm": 2}})
    log({**event, "event": "out_of_memory", "micro_batch_tokens": 100})
    said = capsys.readouterr().err.splitlines()
    assert sum("warning: " in line for line in said) == 3
    assert len(said) == (3 if quiet else 4)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_training_says_all_it_has_to_say_on_standard_error(train, tmp_path):
    outcome = train(tmp_path / "run", steps=10)
    assert outcome.out == ""
    assert "300 pairs read" in outcome.err
    assert re.search(r"^step +5 │ loss +\d\.\d+ nats │ lr 1\.9e-03 │ +[\d,]+ target tok/s │", outcome.err, re.MULTILINE)
    assert re.search(r"^step +10 │ validation loss \d\.\d+ nats │ bleu ", outcome.err, re.MULTILINE)
    assert f"the model is in {tmp_path / 'run'}" in outcome.err


def test_the_traceback_is_shown_for_debugging_only(mt, tmp_path):
    plain, debugged = (mt(*flags, "info", tmp_path / "absent") for flags in ([], ["--debug"]))
    assert plain.code == debugged.code == ExitCode.MODEL
    assert "Traceback" not in plain.err
    assert "Traceback (most recent call last)" in debugged.err
    assert debugged.err.endswith(plain.err)


def test_a_signal_before_training_stops_in_order(train, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(prepare, "make_tokenizers", interrupted)
    outcome = train(tmp_path / "run")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (ExitCode.INTERRUPTED, "stopped")
    monkeypatch.undo()
    assert train(tmp_path / "run", steps=1).code == 0


def test_a_result_for_which_nobody_waits_ends_silently(start_mt, trained):
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start_mt("info", trained, stdout=write_end)
    os.close(write_end)
    process.wait(timeout=60)
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("stream", "command"),
    [
        ("input", ["translate", "--model", "RUN"]),
        ("input", ["tokenizer", "encode", "--model", "RUN/tokenizer.model"]),
        ("input", ["tokenizer", "decode", "--model", "RUN/tokenizer.model"]),
        ("output", ["info", "RUN"]),
        ("output", ["translate", "--model", "RUN", "TEXT"]),
    ],
)
def test_a_closed_stream_is_an_error_that_says_so(mt, trained, corpus, monkeypatch, stream, command):
    streams = {"stdin": sys.stdin, "stdout": sys.stdout, f"std{stream[:-3]}": None}
    monkeypatch.setattr(files, "sys", SimpleNamespace(**streams))
    words = [word.replace("RUN", str(trained)).replace("TEXT", str(corpus / "test.en")) for word in command]
    outcome = mt(*words)
    assert outcome.code == ExitCode.DATA
    assert f"error: standard {stream} is closed\nhint:  " in outcome.err
