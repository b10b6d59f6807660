"""`mt plot` as a user calls it."""

import json
import sys

import pytest

from mt.errors import ExitCode, ModelError
from mt.pipelines.plot import named, read_log
from mt.pipelines.run_folder import RunFolder

pytest.importorskip("matplotlib")

MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def test_a_run_is_drawn_into_its_folder_and_the_file_named_on_stdout(mt, run):
    outcome = mt("plot", run)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{run}/plots/training.png\n", "")
    assert (run / "plots" / "training.png").read_bytes().startswith(MAGIC[".png"])
    assert [path.name for path in (run / "plots").iterdir()] == ["training.png"]


def test_several_runs_are_drawn_into_files_of_each_kind(mt, trained, other, tmp_path):
    paths = [tmp_path / f"runs{suffix}" for suffix in (*MAGIC, ".PNG")]
    outcome = mt("plot", trained, other, *[word for path in paths for word in ("--output", path)])
    assert (outcome.code, outcome.out) == (0, "".join(f"{path}\n" for path in paths)), outcome.err
    for path in paths:
        assert path.read_bytes().startswith(MAGIC[path.suffix.lower()])
    assert not (trained / "plots").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--output", "runs.jpeg"], "--output runs.jpeg ends in none of .png, .svg, .pdf"),
        ([], "--output must say where the plot of several runs goes"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused(mt, trained, other, flags, problem):
    outcome = mt("plot", trained, other, *flags)
    assert (outcome.code, outcome.out) == (ExitCode.USAGE, "")
    assert problem in outcome.err


def test_runs_are_named_by_their_folders_or_where_these_are_alike_by_their_paths(tmp_path):
    one, two, three = tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "long"
    assert named([one, three]) == {"run": one, "long": three}
    assert named([one, two]) == {str(one): one, str(two): two}


def test_half_written_lines_are_passed_over_with_a_warning(run, caplog):
    whole = read_log(RunFolder(run))
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == whole
    (run / "log.jsonl").write_text("".join(lines[:3]) + lines[3][:20] + "".join(lines[4:]) + '{"step": 4')
    assert read_log(RunFolder(run)) == [*whole[:3], *whole[5:]]  # the half line has taken the next one with it
    assert [message.split(" is ")[0] for message in caplog.messages] == [
        f"{run}/log.jsonl, line 4", f"{run}/log.jsonl, line {len(lines)}",
    ]  # fmt: skip


def test_a_run_without_a_log_or_with_nothing_in_it_is_a_model_error(mt, run, tmp_path):
    started = '{"step": 0, "seconds": 1.0, "kind": "event", "event": "started"}\n'
    undone = '{"step": 50, "seconds": 9.0, "kind": "train", "loss": 6.0}\n'
    for log in (started, started + undone + started):
        (run / "log.jsonl").write_text(log)
        with pytest.raises(ModelError, match="log.jsonl says nothing of training yet"):
            read_log(RunFolder(run))
    (run / "log.jsonl").unlink()
    outcome = mt("plot", run)
    assert (outcome.code, outcome.out) == (ExitCode.MODEL, "")
    assert f"{run} has no log.jsonl" in outcome.err
    assert f"{tmp_path / 'none'} does not exist" in mt("plot", tmp_path / "none").err
    assert not (run / "plots").exists()


def test_plots_do_not_keep_a_run_from_being_continued_and_go_when_it_is_overwritten(mt, train, run):
    assert mt("plot", run).code == 0
    assert "is finished" in train(run).err
    assert (run / "plots").is_dir()
    assert train(run, "--overwrite", steps=1).code == 0
    assert not (run / "plots").exists()


def test_without_matplotlib_the_error_says_how_to_install_it(mt, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = mt("plot", trained, "--output", tmp_path / "training.svg")
    assert outcome.code == ExitCode.USAGE
    assert "pip install matplotlib" in outcome.err
    assert list(tmp_path.iterdir()) == []
