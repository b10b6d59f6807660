"""Scoring of given hypothesis files: the JSON that scripts read, the table that people read, and the errors."""

import json

import pytest

from mt.errors import ConfigError, DataError
from mt.evaluation.metrics import evaluate
from mt.pipelines.evaluate import score_files

REFERENCES = ["A dog runs over the green grass.", "Two men sit on an old bench.", "A girl reads a book at home."] * 8
BASELINE = ["A dog runs the grass.", "Men sit bench.", "Girl reads book home."] * 8
SYSTEM = ["A dog runs over the green grass.", "Two men sit on a bench.", "A girl reads a book at home."] * 8


@pytest.fixture
def write(tmp_path):
    """Writes lines to a file of a given name and returns its path."""

    def write_lines(name, lines):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    return write_lines


def test_one_hypothesis_gives_the_metrics_and_the_number_of_lines(write):
    reference, hypothesis = write("reference.en", REFERENCES), write("hypothesis.en", BASELINE)
    record = score_files([hypothesis], reference).as_record()
    assert list(record) == ["metrics", "lines"]
    assert record["lines"] == 24
    assert [metric["name"] for metric in record["metrics"]] == ["BLEU", "chrF2", "TER"]
    for metric, score in zip(record["metrics"], evaluate(BASELINE, REFERENCES), strict=True):
        assert list(metric) == ["name", "score", "signature", "low", "high"]
        assert metric["score"] == round(score.score, 4)
        assert metric["signature"] == score.signature
        assert metric["low"] <= metric["score"] <= metric["high"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_two_hypotheses_give_both_systems_and_a_comparison(write):
    reference = write("reference.en", REFERENCES)
    baseline, system = write("baseline.en", BASELINE), write("system.en", SYSTEM)
    record = score_files([baseline, system], reference).as_record()
    assert list(record) == ["metrics", "lines", "systems", "comparison"]
    assert record["systems"][0] == {"hypothesis": str(baseline), "metrics": record["metrics"]}
    assert record["systems"][1]["hypothesis"] == str(system)
    assert list(record["comparison"]) == ["baseline", "system", "metrics"]
    assert (record["comparison"]["baseline"], record["comparison"]["system"]) == (str(baseline), str(system))
    for index, metric in enumerate(record["comparison"]["metrics"]):
        one, other = (system["metrics"][index] for system in record["systems"])
        assert list(metric) == ["name", "baseline", "system", "difference", "p_value"]
        assert (metric["name"], metric["baseline"], metric["system"]) == (one["name"], one["score"], other["score"])
        assert metric["difference"] == pytest.approx(other["score"] - one["score"], abs=1e-4)
        assert metric["p_value"] < 0.05
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_same_file_twice_shows_no_difference(write):
    reference, hypothesis = write("reference.en", REFERENCES), write("hypothesis.en", BASELINE)
    record = score_files([hypothesis, hypothesis], reference).as_record()
    assert [metric["p_value"] for metric in record["comparison"]["metrics"]] == [1, 1, 1]


def test_the_table_of_one_system_is_aligned(write):
    reference, hypothesis = write("reference.en", REFERENCES), write("hypothesis.en", SYSTEM)
    evaluation = score_files([hypothesis], reference)
    heading, *rows = evaluation.as_text().split("\n")[:4]
    assert heading == "metric  score  95% interval"
    for row, score in zip(rows, evaluation.scores, strict=True):
        assert row.split() == [score.name, f"{score.score:.2f}", f"[{score.low:.2f},", f"{score.high:.2f}]"]
        assert row.index("[") == heading.index("95%")
        assert f"{score.name}|{score.signature}" in evaluation.as_text().split("\n")
    assert "24 lines" in evaluation.as_text()


def test_the_table_of_two_systems_shows_difference_and_p_value(write):
    reference = write("reference.en", REFERENCES)
    baseline, system = write("baseline.en", BASELINE), write("system.en", SYSTEM)
    evaluation = score_files([baseline, system], reference)
    text = evaluation.as_text()
    assert text.split("\n")[0].split() == ["metric", "baseline", "system", "difference", "p-value"]
    for row, metric in zip(text.split("\n")[1:4], evaluation.as_record()["comparison"]["metrics"], strict=True):
        assert row.split()[-2:] == [f"{metric['difference']:+.2f}", f"{metric['p_value']:.3f}"]
    assert f"baseline: {baseline}" in text
    assert f"system: {system}" in text


@pytest.mark.parametrize(
    ("name", "options", "tokenizer"),
    [
        ("reference.zh", {}, "zh"),
        ("reference.de", {}, "13a"),
        ("reference.txt", {}, "13a"),
        ("reference.txt", {"target_language": "zh"}, "zh"),
        ("reference.zh", {"target_language": "de"}, "13a"),
        ("reference.zh", {"bleu_tokenize": "char"}, "char"),
    ],
)
def test_the_language_is_the_given_one_or_else_the_suffix(write, name, options, tokenizer):
    reference = write(name, ["我喜欢读书。"])
    evaluation = score_files([write("hypothesis", ["我喜欢看书。"])], reference, **options)
    assert f"|tok:{tokenizer}|" in evaluation.scores[0].signature


def test_lines_end_at_line_feeds_only_and_may_be_empty(write):
    lines = ["one\u2028two three four five", "", "six\rseven eight nine ten\r", "\u0085"]
    evaluation = score_files([write("hypothesis", lines)], write("reference", lines))
    assert evaluation.lines == 4
    assert evaluation.scores[0].score == pytest.approx(100)


def test_different_line_counts_name_both_files(write):
    reference, short = write("reference.en", ["a"] * 1200), write("short.en", ["a"] * 1199)
    whole = write("whole.en", ["a"] * 1200)
    for hypotheses in ([short], [whole, short]):
        with pytest.raises(DataError, match=r"short\.en has 1,199 lines, .*reference\.en has 1,200"):
            score_files(hypotheses, reference)


def test_an_empty_reference_is_an_error(write):
    with pytest.raises(DataError, match=r"reference\.en is empty"):
        score_files([write("hypothesis.en", [])], write("reference.en", []))


def test_a_missing_file_is_named(write, tmp_path):
    present = write("present.en", ["a"])
    with pytest.raises(DataError, match=r"cannot read .*absent\.en"):
        score_files([tmp_path / "absent.en"], present)
    with pytest.raises(DataError, match=r"cannot read .*absent\.en"):
        score_files([present], tmp_path / "absent.en")


def test_invalid_utf8_stops_with_the_line(write, tmp_path):
    (tmp_path / "latin1.de").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1\.de, line 2: not UTF-8"):
        score_files([tmp_path / "latin1.de"], write("reference.de", ["gut", "schön"]))


@pytest.mark.parametrize("count", [0, 3])
def test_only_one_or_two_hypotheses_can_be_scored(write, count):
    with pytest.raises(ConfigError, match=f"{count} hypothesis files"):
        score_files([write("hypothesis", ["a"])] * count, write("reference", ["a"]))


def test_an_unknown_tokenizer_is_refused(write):
    with pytest.raises(ConfigError, match="no tokenizer '13b'"):
        score_files([write("hypothesis", ["a"])], write("reference", ["a"]), bleu_tokenize="13b")
