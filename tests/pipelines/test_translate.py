"""`mt translate` as a whole: lines in, as many lines out, from files and streams; what it says of damaged models."""

import gzip
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mt.decoding import translator as translator_module
from mt.decoding.translator import ScoredText, Translation
from mt.errors import ExitCode, Interrupted
from mt.pipelines import pace
from mt.pipelines import translate as pipeline

LINES = b"one two three\nfour five six seven\neight\n"


def translations_of(outcome) -> list[str]:
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("\n") or not outcome.out
    return outcome.out.split("\n")[:-1]


@pytest.fixture
def translate(mt, trained):
    """Translates standard input with the finished run, greedily and in one thread."""

    def with_trained(stdin: bytes, *extra: object):
        return mt("translate", "--model", trained, "--beam", 1, "--threads", 1, *extra, stdin=stdin)

    return with_trained


def first_line(process, seconds: float = 60) -> bytes:
    """The next line of a process's output; fails when none comes in time."""
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    assert lines, "no translation came while the input was open"
    return lines[0]


# Lines


def test_a_translation_comes_while_input_is_still_open(start_mt, trained, translate):
    expected = translations_of(translate(b"one two three\nfour five\n"))
    process = start_mt("translate", "--model", trained, "--beam", 1, "--threads", 1)
    for line, translation in zip((b"one two three\n", b"four five\n"), expected, strict=True):
        process.stdin.write(line)
        process.stdin.flush()
        assert first_line(process).decode() == f"{translation}\n"
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"", 0),
        (b"\n", 1),
        (b"one two", 1),
        (b"one\n\n \t\ntwo", 4),
        (b"one\r\ntwo\r\n", 2),
        ("one\u2028two\u0085three\ffour\rfive\n".encode(), 1),
        (b"one\x00two\n", 1),
        ("🙂 🙃\n".encode(), 1),
        (b"x" * 6000 + b"\n", 1),
    ],
)
def test_there_is_one_line_out_for_each_line_in(translate, text, count):
    translated = translations_of(translate(text))
    assert len(translated) == count
    assert not any(set(line) & set("\r\v\f\u2028\u2029\u0085\x1c\x1d\x1e") for line in translated)


def test_a_carriage_return_is_told_once_for_each_input(mt, trained, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"one\r\ntwo\r\n")
    outcome = mt("translate", "--model", trained, tmp_path / "one", tmp_path / "two", "--threads", 1)
    told = [line for line in outcome.err.splitlines() if "carriage return" in line]
    assert [line.split(": ")[1] for line in told] == [f"{tmp_path / name}, line 1" for name in ("one", "two")]


@pytest.mark.parametrize("flags", [[], ["--shard", "1/2"]])
def test_what_is_read_is_not_written_over(mt, trained, tmp_path, flags):
    (tmp_path / "text").write_bytes(LINES)
    (tmp_path / "link").symlink_to(tmp_path / "text")
    outcome = mt("translate", "--model", trained, tmp_path / "text", *flags, "--output", tmp_path / "link")
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith(f"error: {tmp_path}/link is read, and would be written over\nhint:  ")
    assert (tmp_path / "text").read_bytes() == LINES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_text_is_not_written_under_the_name_of_compressed_text(translate, tmp_path, suffix):
    outcome = translate(LINES, "--output", tmp_path / f"out{suffix}")
    assert outcome.code == ExitCode.USAGE
    assert outcome.err == (
        f"error: {tmp_path}/out{suffix} would be plain text\nhint:  name it without {suffix}, and compress it then\n"
    )


@pytest.fixture
def told_always(monkeypatch):
    """Lets what is told twice a minute be told after each batch."""
    monkeypatch.setattr(pace, "TELL_EVERY_SECONDS", 0.0)


def counts(err: str) -> list[str]:
    return re.findall(r"translated (.*) lines │ [\d,.]+ lines/s", err)


def test_it_is_told_how_far_files_are_translated_and_how_long_the_rest_takes(
    mt, trained, corpus, told_always, monkeypatch, tmp_path
):
    monkeypatch.setattr(pipeline, "WINDOW", 6)
    files = [tmp_path / name for name in ("one", "other")]
    for path in files:
        path.write_text("a\na\nb\nc\nd\n")
    outcome = mt("translate", "--model", trained, "--beam", 1, "--threads", 1, *files)
    assert counts(outcome.err) == ["6 of 10", "10 of 10"]
    assert re.search(r"│ \d+ s left$", outcome.err, re.MULTILINE)


def test_how_far_an_interrupted_file_is_translated_counts_what_was_left(interrupted, told_always):
    _, again = interrupted()
    assert counts(again().err) == ["8 of 12", "12 of 12"]  # 8 of 20 are done


def test_of_standard_input_it_is_told_how_much_of_a_text_is_translated_and_nothing_of_single_lines(
    mt, trained, told_always, monkeypatch
):
    monkeypatch.setattr(pipeline, "WINDOW", 2)
    text = ["translate", "--model", trained, "--beam", 1, "--threads", 1]
    assert counts(mt(*text, stdin=b"a\n").err) == []
    assert counts(mt(*text, stdin=b"a\nb\n").err) == ["2"]


def test_a_pipe_is_not_read_to_be_counted(mt, trained, told_always, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(LINES,), daemon=True).start()
    outcome = mt("translate", "--model", trained, "--beam", 1, "--threads", 1, pipe)
    assert (len(translations_of(outcome)), counts(outcome.err)) == (3, ["3"])


def test_one_file_is_open_at_a_time(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for path in files:
        path.write_bytes(LINES)
    streams = []
    for stream, name in pipeline.opened(files):
        assert all(earlier.closed for earlier in streams)
        assert (stream.read(), name) == (LINES, str(files[len(streams)]))
        streams.append(stream)


def test_a_line_of_white_space_is_an_empty_line_with_score_0(translate):
    assert translations_of(translate("one\n\n \t\u3000\ntwo\n".encode()))[1:3] == ["", ""]
    records = [json.loads(line) for line in translations_of(translate(b" \n", "--format", "jsonl"))]
    assert (records[0]["source"], records[0]["translation"], records[0]["score"]) == (" ", "", 0)


def test_files_follow_one_another_each_last_line_completed(mt, trained, translate, tmp_path):
    for name, text in {"a": b"one two\nthree", "b": b"", "c": b"\xef\xbb\xbffour\nfive"}.items():
        (tmp_path / name).write_bytes(text)
    files = [tmp_path / name for name in "abc"]
    outcome = mt("translate", "--model", trained, *files, "--beam", 1, "--threads", 1)
    assert outcome.out == translate(b"one two\nthree\nfour\nfive\n").out
    assert outcome.err == ""


def test_invalid_utf8_is_replaced_with_a_warning_that_names_the_line(mt, translate, trained, tmp_path):
    (tmp_path / "text").write_bytes(b"one\ntwo \xff\nthree\n")
    outcome = mt("translate", "--model", trained, tmp_path / "text", "--beam", 1, "--format", "jsonl")
    records = [json.loads(line) for line in translations_of(outcome)]
    assert [record["source"] for record in records] == ["one", "two \ufffd", "three"]
    assert re.fullmatch(rf"warning: {tmp_path}/text, line 2: not UTF-8.*U\+FFFD\n", outcome.err)
    assert "warning: standard input, line 1: not UTF-8" in translate(b"\xc3\n").err


def test_a_line_longer_than_the_model_reads_is_cut_with_a_warning(translate):
    outcome = translate(b"one\n" + b"one two " * 1000 + b"\n")
    assert len(translations_of(outcome)) == 2
    assert re.search(r"^warning: line 2 of the input has [\d,]+ tokens; the model reads 1,023", outcome.err)


# Results


def test_a_sentence_gets_the_same_translation_whatever_stands_beside_it(translate, corpus):
    sentences = (corpus / "test.en").read_bytes()
    together = [json.loads(line) for line in translations_of(translate(sentences, "--format", "jsonl", "--beam", 4))]
    for budget in (1, 40):
        parts = translations_of(translate(sentences, "--format", "jsonl", "--beam", 4, "--batch-tokens", budget))
        for one, other in zip(together, map(json.loads, parts), strict=True):
            assert one["translation"] == other["translation"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_jsonl_has_a_record_a_line_with_all_hypotheses_best_first(mt, trained):
    flags = ["--format", "jsonl", "--nbest", 3, "--beam", 4, "--threads", 1, "--length-penalty", 0.5]
    outcome = mt("translate", "--model", trained, *flags, stdin=LINES)
    records = [json.loads(line) for line in translations_of(outcome)]
    assert [record["source"] for record in records] == LINES.decode().splitlines()
    for record in records:
        assert list(record) == ["source", "translation", "score", "normalized_score", "hypotheses"]
        assert len(record["hypotheses"]) == 3
        best = record["hypotheses"][0]
        assert list(best) == ["translation", "score", "normalized_score"]
        assert best == {key: record[key] for key in best}
        scores = [hypothesis["normalized_score"] for hypothesis in record["hypotheses"]]
        assert scores == sorted(scores, reverse=True)
        for hypothesis in record["hypotheses"]:
            length = (hypothesis["score"] / hypothesis["normalized_score"]) ** 2  # tokens**0.5 is the divisor
            assert length == pytest.approx(round(length), abs=1e-2)
            assert hypothesis["score"] < 0


def test_several_hypotheses_need_jsonl(translate):
    outcome = translate(LINES, "--nbest", 2, "--beam", 2)
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert outcome.err.startswith("error: --nbest 2 needs --format jsonl\nhint:  ")


def test_more_hypotheses_than_beams_are_refused(translate):
    outcome = translate(LINES, "--nbest", 3, "--beam", 2, "--format", "jsonl")
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")


def test_the_beam_not_given_is_the_one_of_the_run(mt, run):
    config = json.loads((run / "config.json").read_text())
    config["decoding"]["beam"] = 2
    (run / "config.json").write_text(json.dumps(config))
    said, unsaid = (
        mt("translate", "--model", run, "--format", "jsonl", *flags, stdin=LINES) for flags in (["--beam", 2], [])
    )
    assert said.out == unsaid.out != ""
    assert "2 beams" in mt("translate", "--model", run, "--format", "jsonl", "--nbest", 3, stdin=LINES).err


# Where results go


def test_output_appears_whole_under_its_name(mt, trained, corpus, monkeypatch, tmp_path):
    output, partial = tmp_path / "test.de", tmp_path / "test.de.partial"
    output.write_text("earlier")
    seen = []
    translate_window = pipeline.Translator.translate

    def watched(self, lines, **more):
        seen.append((output.read_text(), partial.exists()))
        return translate_window(self, lines, **more)

    monkeypatch.setattr(pipeline, "WINDOW", 8)
    monkeypatch.setattr(pipeline.Translator, "translate", watched)
    flags = ["--beam", 1, "--threads", 1]
    outcome = mt("translate", "--model", trained, corpus / "test.en", "--output", output, *flags)
    assert (outcome.code, outcome.out) == (0, "")
    assert seen == [("earlier", True)] * 3
    assert not partial.exists()
    monkeypatch.undo()
    assert output.read_text() == mt("translate", "--model", trained, corpus / "test.en", *flags).out


@pytest.fixture
def interrupted(mt, trained, corpus, monkeypatch, tmp_path):
    """Translates test.en in windows of 8 lines, and is stopped in the second; what else is given are flags."""
    monkeypatch.setattr(pipeline, "WINDOW", 8)
    translate_window = pipeline.Translator.translate

    def stopping(self, lines, first_number, **more):
        if first_number == 9:
            raise Interrupted("stopped")
        return translate_window(self, lines, first_number, **more)

    def translated(*flags):
        arguments = ["translate", "--model", trained, corpus / "test.en", "--beam", 1, "--threads", 1, *flags]
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.Translator, "translate", stopping)
            stopped = mt(*arguments, "--output", tmp_path / "out")
        return stopped, lambda *more: mt(*arguments, *more, "--output", tmp_path / "out")

    return translated


def test_an_interrupted_file_goes_on_with_the_window_it_stopped_in(interrupted, mt, trained, corpus, tmp_path):
    stopped, again = interrupted()
    assert (stopped.code, stopped.out) == (ExitCode.INTERRUPTED, "")
    assert stopped.err.endswith("hint:  8 lines are done; the same command goes on from there\n")
    partial = (tmp_path / "out.partial").read_text()
    assert partial.count("\n") == 8
    (tmp_path / "out.partial").write_text(partial + "half a li")  # what a crash may leave
    outcome = again()
    assert (outcome.code, outcome.out) == (0, "")
    assert f"going on after line 8, where {tmp_path / 'out.partial'} ends" in outcome.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    whole = mt("translate", "--model", trained, corpus / "test.en", "--beam", 1, "--threads", 1).out
    assert (tmp_path / "out").read_text() == whole


def test_a_file_interrupted_before_anything_is_done_leaves_nothing(mt, trained, corpus, monkeypatch, tmp_path):
    def stop(translator, lines, first_number, **more):
        assert (tmp_path / "out.partial").exists()
        raise Interrupted("stopped")

    monkeypatch.setattr(pipeline.Translator, "translate", stop)
    outcome = mt("translate", "--model", trained, corpus / "test.en", "--threads", 1, "--output", tmp_path / "out")
    assert (outcome.code, outcome.err.count("hint:")) == (ExitCode.INTERRUPTED, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ("search", "8 lines in PARTIAL are dropped (other search): starting anew"),
        ("test.en", "8 lines in PARTIAL are dropped (other source): starting anew"),
        ("model.safetensors", "8 lines in PARTIAL are dropped (other model): starting anew"),
        ("tokenizer.model", "8 lines in PARTIAL are dropped (other model): starting anew"),
        ("config.json", "8 lines in PARTIAL are dropped (other model): starting anew"),
        ("record", "PARTIAL.json is damaged: starting anew"),
        ("partial", "8 lines in PARTIAL are dropped (lines are missing): starting anew"),
    ],
)
def test_what_was_begun_otherwise_is_begun_anew(interrupted, tmp_path, change, warning, monkeypatch):
    _, again = interrupted()
    flags = []
    if change == "search":
        flags = ["--length-penalty", 0.5]
    elif change == "record":
        (tmp_path / "out.partial.json").write_text("{")
    elif change == "partial":
        (tmp_path / "out.partial").write_text("short")
    else:
        checksum = pipeline.checksum
        monkeypatch.setattr(pipeline, "checksum", lambda path: "other" if path.name == change else checksum(path))
    outcome = again(*flags)
    assert outcome.code == 0, outcome.err
    assert "warning: " + warning.replace("PARTIAL", str(tmp_path / "out.partial")) in outcome.err
    assert (tmp_path / "out").read_text().count("\n") == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("precision", "warned"), [("fp32", False), ("int8", True)])
def test_other_batches_lose_nothing_and_are_told_where_translations_are_rounded(
    interrupted, tmp_path, precision, warned
):
    """As when memory did not suffice for those of before."""
    _, again = interrupted("--precision", precision, "--device", "cpu")
    outcome = again("--batch-tokens", 100)
    assert ("warning: the rest is in other batches than what is done" in outcome.err) == warned
    assert "going on after line 8" in outcome.err
    assert (tmp_path / "out").read_text().count("\n") == 20


def test_where_memory_does_not_suffice_what_is_done_stays(mt, trained, corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "WINDOW", 8)
    translate_window = pipeline.Translator.translate

    def starved(self, lines, first_number, **more):
        if first_number == 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return translate_window(self, lines, first_number, **more)

    monkeypatch.setattr(pipeline.Translator, "translate", starved)
    flags = ["--beam", 1, "--threads", 1, "--output", tmp_path / "out"]
    outcome = mt("translate", "--model", trained, corpus / "test.en", *flags)
    assert outcome.code == ExitCode.DEVICE
    assert "hint:  use smaller batches: --batch-tokens N; 8 lines are done; the same command goes on" in outcome.err


def test_a_text_that_changes_while_it_is_translated_is_refused(mt, trained, monkeypatch, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(LINES)
    translate_window = pipeline.Translator.translate

    def meanwhile(self, lines, **more):
        text.write_bytes(LINES + b"one more\n")
        return translate_window(self, lines, **more)

    monkeypatch.setattr(pipeline.Translator, "translate", meanwhile)
    outcome = mt("translate", "--model", trained, text, "--beam", 1, "--threads", 1, "--output", tmp_path / "out")
    assert outcome.code == ExitCode.DATA
    assert f"error: {text} has changed while it was translated" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", [[], ["--shard", "1/2"]])
def test_a_text_that_grows_while_the_model_is_loaded_is_whole_or_refused(mt, trained, monkeypatch, tmp_path, shard):
    """Lines that were not there when a part was measured would be in no part."""
    text, load_translator = tmp_path / "text", pipeline.load_translator
    text.write_bytes(LINES)

    def meanwhile(request):
        with open(text, "ab") as stream:
            stream.write(b"one more\n")
        return load_translator(request)

    monkeypatch.setattr(pipeline, "load_translator", meanwhile)
    flags = ["--beam", 1, "--threads", 1, "--output", tmp_path / "out", *shard]
    outcome = mt("translate", "--model", trained, text, *flags)
    assert outcome.code == ExitCode.DATA
    assert f"error: {text} has changed while it was translated" in outcome.err


def test_lines_of_a_part_are_not_counted_again(tmp_path):
    assert pipeline.lines_in([tmp_path / "gone"], range(7, 12)) == 5


def test_lines_that_can_no_longer_be_counted_are_no_error(tmp_path):
    assert pipeline.lines_in([tmp_path / "gone"], pipeline.EVERY_LINE) is None


def test_batches_left_out_stay_as_they_were(interrupted, mt, trained, corpus, tmp_path, monkeypatch):
    """As where on CUDA the memory that is free decides, which is less now."""
    flags = ["--precision", "int8", "--device", "cpu"]
    monkeypatch.setattr(translator_module, "default_batch_tokens", lambda *about: 100)
    _, again = interrupted(*flags)
    whole = mt("translate", "--model", trained, corpus / "test.en", "--beam", 1, "--threads", 1, *flags).out
    monkeypatch.setattr(translator_module, "default_batch_tokens", lambda *about: 5_000)
    outcome = again()
    assert "going on after line 8" in outcome.err
    assert (tmp_path / "out").read_text() == whole


def test_batches_of_another_work_are_not_taken_over(interrupted, tmp_path, monkeypatch):
    flags = ["--precision", "int8", "--device", "cpu"]
    monkeypatch.setattr(translator_module, "default_batch_tokens", lambda *about: 100)
    _, again = interrupted(*flags)
    used = []
    monkeypatch.setattr(translator_module, "default_batch_tokens", lambda *about: 5_000)
    translate_window = pipeline.Translator.translate

    def watched(self, lines, first_number, **more):
        used.append(self.batch_tokens)
        return translate_window(self, lines, first_number, **more)

    monkeypatch.setattr(pipeline.Translator, "translate", watched)
    assert "are dropped (other search, batches)" in again("--length-penalty", 0.5).err
    assert set(used) == {5_000}


def test_of_a_text_that_cannot_be_read_to_its_end_nothing_is_promised(mt, trained, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "WINDOW", 100)
    damaged = tmp_path / "test.en.gz"
    lines = [str(number * number) for number in range(5_000)]
    damaged.write_bytes(gzip.compress("\n".join(lines).encode())[:-1_000])

    def unchanged(self, lines, first_number, **more):
        return [Translation(line, [ScoredText(line, 0.0, 0.0, 1)]) for line in lines]

    monkeypatch.setattr(pipeline.Translator, "translate", unchanged)
    outcome = mt("translate", "--model", trained, damaged, "--output", tmp_path / "out")
    assert outcome.code == ExitCode.DATA
    assert f"error: cannot read {damaged} after line" in outcome.err
    assert (tmp_path / "out.partial.json").is_file()
    assert "lines are done" not in outcome.err


def test_an_output_that_cannot_be_gone_on_with_voids_what_was_noted_of_an_earlier_one(
    interrupted, mt, trained, tmp_path
):
    interrupted()
    flags = ["--model", trained, "--beam", 1, "--threads", 1, "--output", tmp_path / "out"]
    assert mt("translate", *flags, stdin=LINES).code == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_pipe_is_read_once_however_many_windows_it_holds(mt, trained, corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "WINDOW", 400)
    text = (corpus / "test.en").read_bytes() * 400  # more than a pipe holds
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(text,))
    writer.start()
    flags = ["--model", trained, "--beam", 1, "--threads", 1, "--output", tmp_path / "out"]
    outcome = mt("translate", *flags, pipe)
    writer.join()
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out").read_bytes().count(b"\n") == text.count(b"\n")


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_ends_workers_at_once(start_mt, trained, corpus, tmp_path, signals):
    (tmp_path / "text").write_bytes((corpus / "train.en").read_bytes() * 200)
    flags = ["--threads", 2, "--output", tmp_path / "out"]
    process = start_mt("translate", "--model", trained, tmp_path / "text", *flags)
    wait_until(lambda: len(children_of(process.pid)) == 2)
    workers = children_of(process.pid)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    assert b"Traceback" not in process.stderr.read()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return once `condition` holds: other processes start, end and are reaped when the system gets round to it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} seconds"
        time.sleep(0.02)


def children_of(process: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except FileNotFoundError:
        return []


def test_a_file_that_cannot_be_read_leaves_the_earlier_output(mt, trained, tmp_path):
    (tmp_path / "output").write_text("earlier")
    outcome = mt("translate", "--model", trained, tmp_path / "absent", "--output", tmp_path / "output")
    assert (outcome.code, outcome.out) == (ExitCode.DATA, "")
    assert outcome.err.startswith(f"error: cannot read {tmp_path / 'absent'}: No such file or directory\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["output"]
    assert (tmp_path / "output").read_text() == "earlier"


def test_a_closed_pipe_ends_silently(start_mt, trained, tmp_path):
    (tmp_path / "text").write_bytes(b"one two three four five six seven\n" * 30_000)
    process = start_mt("translate", "--model", trained, tmp_path / "text", "--beam", 1, "--threads", 1)
    first_line(process)
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == b""
    assert process.returncode == 0


# Parts


@pytest.fixture
def inputs(corpus, monkeypatch, tmp_path):
    """Three files of 20 lines in all, the second without a last line feed, the third packed; windows of 3 lines."""
    monkeypatch.setattr(pipeline, "WINDOW", 3)
    lines = (corpus / "test.en").read_bytes().splitlines(keepends=True)
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "first").write_bytes(b"".join(lines[:4]))
    (folder / "second").write_bytes(b"".join(lines[4:11]).removesuffix(b"\n"))
    (folder / "third.gz").write_bytes(gzip.compress(b"".join(lines[11:])))
    return [folder / name for name in ("first", "second", "third.gz")]


@pytest.fixture
def translate_files(mt, trained, inputs):
    """Translates the three files, greedily and in one thread; what else is given are flags."""
    return lambda *flags: mt("translate", "--model", trained, "--beam", 1, "--threads", 1, *inputs, *flags)


@pytest.mark.parametrize("count", [2, 7, 9])
def test_parts_one_after_another_are_the_whole(translate_files, tmp_path, count):
    whole = translate_files("--format", "jsonl").out
    assert whole.count("\n") == 20
    printed, written = "", ""
    for number in range(1, count + 1):
        flags = ["--format", "jsonl", "--shard", f"{number}/{count}"]
        printed += translate_files(*flags).out
        assert translate_files(*flags, "--output", tmp_path / "out").code == 0
        written += (tmp_path / "out").read_text()
    assert printed == written == whole


def test_a_part_says_which_lines_it_is(translate_files):
    assert translate_files("--shard", "2/3").err == "part 2/3: lines 7 to 12 of 20\n"
    assert translate_files("--shard", "1/8").err == "part 1/8: no line of 20\n"


def test_warnings_of_a_part_name_lines_of_the_whole_and_no_others(mt, trained, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "WINDOW", 2)
    long = b"one two " * 1000
    (tmp_path / "a").write_bytes(b"one\nbad \xff\n" + long + b"\nfour\nfive\n")
    (tmp_path / "b").write_bytes(b"six\nbad \xff\n" + long + b"\n")
    said = [
        mt("translate", "--model", trained, "--shard", f"{n}/2", tmp_path / "a", tmp_path / "b").err for n in (1, 2)
    ]
    warned = [re.findall(r"^warning: (.*?line \d+)", each, re.MULTILINE) for each in said]
    assert warned == [[f"{tmp_path}/a, line 2", "line 3"], [f"{tmp_path}/b, line 2", "line 8"]]


@pytest.fixture
def stopped_part(translate_files, monkeypatch, tmp_path):
    """The second half of the three files, stopped in its second window: lines 10 to 12 of 20 are done."""
    translate_window = pipeline.Translator.translate

    def stopping(self, lines, first_number, **more):
        if first_number == 13:
            raise Interrupted("stopped")
        return translate_window(self, lines, first_number, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Translator, "translate", stopping)
        stopped = translate_files("--shard", "2/2", "--output", tmp_path / "out")
    assert stopped.code == ExitCode.INTERRUPTED
    assert (tmp_path / "out.partial").read_bytes().count(b"\n") == 3


def test_an_interrupted_part_goes_on_where_it_stopped(stopped_part, translate_files, monkeypatch, tmp_path):
    numbers = []
    translate_window = pipeline.Translator.translate

    def watched(self, lines, first_number, **more):
        numbers.append(first_number)
        return translate_window(self, lines, first_number, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Translator, "translate", watched)
        again = translate_files("--shard", "2/2", "--output", tmp_path / "out")
    assert f"going on after line 3, where {tmp_path / 'out.partial'} ends" in again.err
    assert numbers == [13, 16, 19]
    assert (tmp_path / "out").read_text() == translate_files("--shard", "2/2").out


@pytest.mark.parametrize("flags", [["--shard", "1/2"], ["--shard", "2/3"], []])
def test_what_is_there_of_another_part_is_dropped(stopped_part, translate_files, tmp_path, flags):
    outcome = translate_files(*flags, "--output", tmp_path / "out")
    warning = f"warning: 3 lines in {tmp_path / 'out.partial'} are dropped (other shard): starting anew"
    assert warning in outcome.err
    assert (tmp_path / "out").read_text() == translate_files(*flags).out


@pytest.mark.parametrize(("files", "name"), [([], b"standard input"), (["/dev/stdin"], b"/dev/stdin")])
def test_what_passes_only_once_has_no_parts(start_mt, trained, files, name):
    process = start_mt("translate", "--model", trained, *files, "--shard", "1/2")  # from a pipe that stays open
    assert process.wait(timeout=60) == ExitCode.USAGE
    error = process.stderr.read()
    assert error.startswith(b"error: " + name + b" cannot be cut into parts")
    assert b"\nhint:  write the text to a file" in error


def test_devices_do_not_take_a_pipe_and_leave_it_unread(start_mt, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to: who opens it waits
    flags = ["--devices", "0,1", "--output", tmp_path / "out"]
    process = start_mt("translate", "--model", trained, tmp_path / "pipe", *flags)
    assert process.wait(timeout=60) == ExitCode.USAGE
    assert b"pipe cannot be cut into parts" in process.stderr.read()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x", "1/0", ""])
def test_a_part_that_there_is_not_is_named(translate_files, shard):
    outcome = translate_files("--shard", shard)
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert re.match(rf"error: .*{shard}.*\nhint:  ", outcome.err)


def test_a_file_of_a_part_that_cannot_be_read_is_a_data_error(translate_files, inputs):
    inputs[2].write_bytes(inputs[2].read_bytes()[:-9])
    outcome = translate_files("--shard", "1/2")
    assert (outcome.code, outcome.out) == (ExitCode.DATA, "")
    assert f"error: cannot read {inputs[2]} after line" in outcome.err


@pytest.fixture
def launched(monkeypatch):
    """Sets what torchrun tells one of several processes of a machine."""
    monkeypatch.setattr("mt.pipelines.launch.end_with_parent", lambda number: None)  # the tests shall not

    def launch(rank: int, processes: int) -> None:
        for name, number in {"RANK": rank, "WORLD_SIZE": processes}.items():
            monkeypatch.setenv(name, str(number))
            monkeypatch.setenv(f"LOCAL_{name}", str(number))

    return launch


def test_each_process_of_torchrun_writes_its_part(translate_files, launched, tmp_path):
    whole = translate_files().out
    for rank in range(10):
        launched(rank, 10)
        outcome = translate_files("--output", tmp_path / "out")
        assert (outcome.code, outcome.out) == (0, "")
        assert outcome.err.startswith(f"part {rank + 1}/10: ")
    outputs = sorted(tmp_path.glob("out*"))
    assert [output.name for output in outputs] == [f"out.{number:02}-of-10" for number in range(1, 11)]
    assert "".join(output.read_text() for output in outputs) == whole


def test_one_part_for_all_processes_is_refused(translate_files, launched, tmp_path):
    launched(0, 2)
    outcome = translate_files("--shard", "3/3", "--output", tmp_path / "out")
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert outcome.err.startswith("error: --shard 3/3 would apply to every process\n")


def test_processes_of_torchrun_need_files_to_read_and_to_write(translate_files, mt, trained, launched, tmp_path):
    launched(1, 2)
    outcome = translate_files()
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert outcome.err.startswith("error: this is process 2 of 2, and --output is missing\nhint:  ")
    outcome = mt("translate", "--model", trained, "--output", tmp_path / "out", stdin=LINES)
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith("error: standard input cannot be cut into parts")


def test_processes_side_by_side_share_the_lines(start_mt, mt, trained, launched, tmp_path):
    lines = [f"{first} {second}" for first in ("one", "two", "three") for second in ("four", "five", "six")]
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines) * 1200)  # 10,800: a window and a bit
    flags = ["--model", trained, "--beam", 1, tmp_path / "text", "--output", tmp_path / "out"]
    assert mt("translate", "--threads", 1, *flags).code == 0
    processes = []
    for rank in range(2):
        launched(rank, 2)
        processes.append(start_mt("translate", *flags))
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert [process.stderr.read() for process in processes] == [
        b"part 1/2: lines 1 to 10,000 of 10,800\n",
        b"part 2/2: lines 10,001 to 10,800 of 10,800\n",
    ]
    together = [(tmp_path / f"out.{number}-of-2").read_text() for number in (1, 2)]
    assert "".join(together) == (tmp_path / "out").read_text()


def test_devices_share_the_lines_of_one_file(start_mt, mt, trained, tmp_path):
    lines = [f"{first} {second}" for first in ("one", "two", "three") for second in ("four", "five", "six")]
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines) * 1200)  # 10,800: a window and a bit
    flags = ["--model", trained, "--beam", 1, tmp_path / "text", "--device", "cpu", "--output"]
    assert mt("translate", "--threads", 1, *flags, tmp_path / "alone").code == 0
    process = start_mt("translate", "--devices", "0,1,2", *flags, tmp_path / "out")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert said.count(b"part ") == 3
    assert (tmp_path / "out").read_text() == (tmp_path / "alone").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out", "text"]


def test_what_devices_have_begun_is_not_forgotten_when_there_are_others(translate_files, monkeypatch, tmp_path):
    monkeypatch.setattr("mt.pipelines.launch.launch", lambda *arguments: 1 / 0)
    for record in (tmp_path / "out.1-of-3.partial.json", tmp_path / "out.partial.json"):
        record.write_text("{}")
        outcome = translate_files("--devices", "0,1", "--output", tmp_path / "out")
        assert outcome.code == ExitCode.USAGE
        assert f"error: {record} belongs to a command that has not ended" in outcome.err
        record.unlink()


@pytest.fixture
def translate_on_devices(translate_files, launched, monkeypatch, tmp_path):
    """Translates by two processes of `--devices`, here one after another: outcomes of the whole, and of each."""

    def launch(devices, kind, arguments):
        for rank in range(2):
            with monkeypatch.context() as patch:
                patch.setenv("TORCHELASTIC_RUN_ID", f"mt-{os.getppid()}")
                launched(rank, 2)
                outcomes.append(translate_files("--devices", "0,1", "--output", tmp_path / "out"))
            if outcomes[-1].code:
                sys.exit(outcomes[-1].code)

    outcomes = []
    monkeypatch.setattr("mt.pipelines.launch.launch", launch)

    def translate():
        outcomes.clear()
        return translate_files("--devices", "0,1", "--output", tmp_path / "out"), outcomes

    return translate


def test_a_part_that_is_done_is_not_done_anew_when_another_was_stopped(
    translate_on_devices, translate_files, monkeypatch, tmp_path
):
    whole, numbers = translate_files().out, []
    translate_window = pipeline.Translator.translate

    def stopping(self, lines, first_number, **more):
        numbers.append(first_number)
        if first_number == stop_at:
            raise Interrupted("stopped")
        return translate_window(self, lines, first_number, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Translator, "translate", stopping)
        stop_at = 16
        outcome, outcomes = translate_on_devices()
        assert outcome.code == ExitCode.INTERRUPTED
        assert [each.code for each in outcomes] == [0, ExitCode.INTERRUPTED]
        assert "6 lines are done; the same command goes on from there" in outcomes[1].err
        assert not (tmp_path / "out").exists()
        assert numbers == [1, 4, 7, 10, 13, 16]
        stop_at = 0
        numbers.clear()
        assert translate_on_devices()[0].code == 0
        assert numbers == [16, 19]
    assert (tmp_path / "out").read_text() == whole
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_what_is_wrong_with_flags_is_told_by_no_process_of_a_device(translate_files, monkeypatch, inputs, tmp_path):
    monkeypatch.setattr("mt.pipelines.launch.launch", lambda *arguments: pytest.fail("started"))
    outcome = translate_files("--devices", "0,1", "--nbest", 2, "--output", tmp_path / "out")
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith("error: --nbest 2 needs --format jsonl")
    outcome = translate_files("--devices", "0,1", "--output", inputs[0])
    assert outcome.err.startswith(f"error: {inputs[0]} is read, and would be written over")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--output", "/dev/null"], "--devices needs FILES to read and a file to write as --output"),
        ([], "--devices needs FILES to read and a file to write as --output"),
        (["--output", "out", "--shard", "1/2"], "--devices and --shard both divide the text"),
    ],
)
def test_devices_need_files_that_they_can_divide(translate_files, flags, error):
    outcome = translate_files("--devices", "0,1", *flags)
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith(f"error: {error}\nhint:  ")


def test_a_mistake_is_told_once_and_one_device_writes_all(start_mt, mt, trained, corpus, tmp_path):
    def on(devices, model):
        flags = ["--model", model, "--beam", 1, corpus / "test.en", "--output", tmp_path / "out", "--device", "cpu"]
        process = start_mt("translate", *flags, "--devices", devices)
        return process.communicate(timeout=100)[1].decode(), process.returncode

    said, code = on("0,1", tmp_path)
    assert (code, said.count("error:")) == (ExitCode.MODEL, 1), said
    said, code = on("0", trained)
    assert code == 0, said
    alone = mt("translate", "--model", trained, "--beam", 1, "--threads", 1, corpus / "test.en")
    assert (tmp_path / "out").read_text() == alone.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_devices_that_are_not_there_are_a_device_error(translate_files, tmp_path):
    outcome = translate_files("--device", "auto", "--devices", "0,1", "--output", tmp_path / "out")
    assert outcome.code == ExitCode.DEVICE
    assert outcome.err.startswith("error: no CUDA device is available here\nhint:  leave --devices out, or")


def test_devices_are_not_for_a_process_of_torchrun(translate_files, launched, monkeypatch, tmp_path):
    launched(0, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    outcome = translate_files("--devices", "0,1", "--output", tmp_path / "out")
    assert outcome.code == ExitCode.USAGE
    assert outcome.err.startswith(
        "error: --devices does not go with torchrun: each of its processes would start more\nhint:"
    )


# Several models


def test_a_model_twice_translates_as_it_does_alone(mt, trained, translate):
    alone = [json.loads(line) for line in translations_of(translate(LINES, "--format", "jsonl"))]
    twice = mt("translate", "--model", trained, "--model", trained, "--beam", 1, "--format", "jsonl", stdin=LINES)
    for one, other in zip(alone, map(json.loads, translations_of(twice)), strict=True):
        assert one["translation"] == other["translation"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_an_ensemble_is_neither_of_its_models_and_has_no_order(mt, trained, other):
    scores = []
    for models in ([trained], [other], [trained, other], [other, trained]):
        flags = [flag for model in models for flag in ("--model", model)]
        outcome = mt("translate", *flags, "--beam", 1, "--format", "jsonl", "--threads", 1, stdin=LINES)
        scores.append([json.loads(line)["score"] for line in translations_of(outcome)])
    assert scores[2] == pytest.approx(scores[3], abs=1e-3)
    assert scores[2] != pytest.approx(scores[0], abs=1e-3)
    assert scores[2] != pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize(("languages", "warned"), [(("de", "en"), True), (("en", "de"), False), (("", ""), False)])
def test_models_of_other_languages_are_an_ensemble_with_a_warning(mt, trained, tmp_path, languages, warned):
    for name, pair in {"one": ("en", "de"), "other": languages}.items():
        shutil.copytree(trained, tmp_path / name)
        change_config(tmp_path / name, languages=dict(zip(("source", "target"), pair, strict=True)))
    models = ["--model", tmp_path / "one", "--model", tmp_path / "other"]
    outcome = mt("translate", *models, "--beam", 1, "--threads", 1, stdin=LINES)
    assert outcome.code == 0, outcome.err
    assert ("translate from and to other languages" in outcome.err) == warned


def test_no_devices_are_refused_and_not_passed_over(translate_files, tmp_path):
    outcome = translate_files("--devices", "", "--output", tmp_path / "out")
    assert outcome.code == ExitCode.USAGE
    assert "is not a list of different numbers" in outcome.err


def test_models_with_different_tokenizers_are_no_ensemble(mt, trained, train, tmp_path):
    assert train(tmp_path / "bpe", "--set", "tokenizer.type=bpe", steps=1).code == 0
    outcome = mt("translate", "--model", trained, "--model", tmp_path / "bpe", stdin=LINES)
    assert (outcome.code, outcome.out) == (ExitCode.MODEL, "")
    assert outcome.err.startswith(f"error: {tmp_path / 'bpe'} and {trained} have different tokenizers\nhint:  ")


# What is damaged, foreign or absent


def change_config(run: Path, **changes) -> None:
    """Replaces entries of config.json, `section__key` for one within a section; ... deletes an entry."""
    record = json.loads((run / "config.json").read_text())
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = record
        for each in sections:
            section = section[each]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    (run / "config.json").write_text(json.dumps(record))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def later_format(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"format_version": "2"})


DAMAGE = {
    "no weights": ("model.safetensors", lambda run: (run / "model.safetensors").unlink()),
    "empty weights": ("model.safetensors", lambda run: (run / "model.safetensors").write_bytes(b"")),
    "truncated weights": ("model.safetensors", lambda run: truncate(run / "model.safetensors")),
    "pickled weights": ("model.safetensors", lambda run: torch.save({"w": torch.ones(9)}, run / "model.safetensors")),
    "foreign weights": (
        "model.safetensors",
        lambda run: safetensors.torch.save_file({"encoder.weight": torch.ones(2)}, run / "model.safetensors"),
    ),
    "weights of a later format": ("model.safetensors", lambda run: later_format(run / "model.safetensors")),
    "weights of another shape": ("model.safetensors", lambda run: change_config(run, model__feed_forward=32)),
    "no config": ("config.json", lambda run: (run / "config.json").unlink()),
    "empty config": ("config.json", lambda run: (run / "config.json").write_text("")),
    "truncated config": ("config.json", lambda run: truncate(run / "config.json")),
    "binary config": ("config.json", lambda run: (run / "config.json").write_bytes(b"\xff\xfe")),
    "a list for a config": ("config.json", lambda run: (run / "config.json").write_text("[]")),
    "a foreign config": ("config.json", lambda run: (run / "config.json").write_text('{"model_type": "marian"}')),
    "a config of a later format": ("config.json", lambda run: change_config(run, format_version="2")),
    "an unknown architecture": ("config.json", lambda run: change_config(run, architecture="mamba")),
    "an unknown model key": ("config.json", lambda run: change_config(run, model__experts=8)),
    "a missing model key": ("config.json", lambda run: change_config(run, model__width=...)),
    "a model key of another type": ("config.json", lambda run: change_config(run, model__width="32")),
    "an impossible width": ("config.json", lambda run: change_config(run, model__width=33)),
    "no model section": ("config.json", lambda run: change_config(run, model=...)),
    "an empty list for a model": ("config.json", lambda run: change_config(run, model=[])),
    "no decoding section": ("config.json", lambda run: change_config(run, decoding=...)),
    "no languages": ("config.json", lambda run: change_config(run, languages=...)),
    "no tokenizer": ("tokenizer.model", lambda run: (run / "tokenizer.model").unlink()),
    "an empty tokenizer": ("tokenizer.model", lambda run: (run / "tokenizer.model").write_bytes(b"")),
    "a truncated tokenizer": ("tokenizer.model", lambda run: truncate(run / "tokenizer.model")),
    "text for a tokenizer": ("tokenizer.model", lambda run: (run / "tokenizer.model").write_text("one two\n" * 99)),
    "a tokenizer of another size": (
        "tokenizer.model", lambda run: change_config(run, tokenizer__source__size=8_000)
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_one_clear_error(mt, run, damage):
    file, inflict = DAMAGE[damage]
    inflict(run)
    outcome = mt("translate", "--model", run, "--threads", 1, stdin=LINES)
    assert (outcome.code, outcome.out) == (ExitCode.MODEL, "")
    assert re.fullmatch(r"error: .+\n(hint:  .+\n)?", outcome.err), outcome.err
    assert file in outcome.err


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["shortlist"],
        ["average", "--last", 1, "--output", "mean"],
        ["evaluate", "--source", "text", "--reference", "text", "--model"],
        ["train", "--output"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("section", ["languages", "tokenizer", "architecture", "provenance"])
def test_no_command_reads_half_a_config(mt, run, command, section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("one two\n")
    change_config(run, **{section: ...})
    name, *flags = command
    outcome = mt(name, *flags, run) if flags[-1:] in (["--model"], ["--output"]) else mt(name, run, *flags)
    assert outcome.code == ExitCode.MODEL
    assert outcome.err.splitlines()[-2:] == [
        f"error: {run / 'config.json'} is incomplete", "hint:  the file is damaged or not written by mt",
    ]  # fmt: skip


def test_a_model_needs_no_provenance_to_translate_and_does_to_be_trained_on(mt, run):
    change_config(run, provenance={})
    assert mt("translate", "--model", run, "--threads", 1, stdin=b"one\n").code == 0
    assert mt("info", run).code == 0
    outcome = mt("train", "--output", run, "--max-steps", 50)
    assert (outcome.code, "no longer says how the run was made" in outcome.err) == (ExitCode.MODEL, True)


@pytest.mark.parametrize(("name", "problem"), [("absent", "does not exist"), ("file", "is not a folder")])
def test_what_is_no_run_folder_is_a_model_error(mt, tmp_path, name, problem):
    (tmp_path / "file").write_text("")
    outcome = mt("translate", "--model", tmp_path / name, stdin=LINES)
    assert (outcome.code, outcome.out) == (ExitCode.MODEL, "")
    assert outcome.err == f"error: {tmp_path / name} {problem}\nhint:  name a run folder made by mt train\n"


def test_an_absent_device_is_a_device_error(translate):
    outcome = translate(LINES, "--device", "cuda")
    assert (outcome.code, outcome.out) == (ExitCode.DEVICE, "")
    assert outcome.err.startswith("error: no CUDA device is available here\nhint:  ")


def test_tf32_is_not_a_precision_of_the_cpu(translate):
    outcome = translate(LINES, "--device", "cpu", "--precision", "tf32")
    assert outcome.code == ExitCode.DEVICE


def test_int8_translates_about_as_float32_does(mt, trained, corpus):
    exact, rounded = (
        mt("translate", "--model", trained, corpus / "train.en", "--device", "cpu", "--precision", precision)
        for precision in ("fp32", "int8")
    )
    assert rounded.code == 0, rounded.err
    lines, others = translations_of(exact), translations_of(rounded)
    assert len(others) == len(lines) == 300
    assert sum(one == other for one, other in zip(lines, others, strict=True)) > 200


def test_int8_is_not_a_precision_to_train_in(mt, corpus, tmp_path):
    files = (corpus / "train.en", corpus / "train.de")
    outcome = mt("train", "--train", *files, "--output", tmp_path / "run", "--device", "cpu", "--precision", "int8")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--precision int8 is none of auto, fp32, tf32, bf16\n" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_can_be_moved(mt, run, trained, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    for name in ("cache", "checkpoints"):
        (moved / name).rename(tmp_path / name)
    flags = ["--beam", 1, "--threads", 1]
    one, other = (mt("translate", "--model", path, *flags, stdin=LINES) for path in (moved, trained))
    assert one == other


@pytest.mark.parametrize("asking", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_translation_that_waits_for_input(start_mt, trained, asking):
    process = start_mt("translate", "--model", trained, "--threads", 1, "--beam", 1)
    process.stdin.write(b"one two\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(asking)
    assert process.wait(timeout=60) == ExitCode.INTERRUPTED  # with standard input still open
    assert process.stderr.read() == b"stopped\n"
