"""The check counts what a person would count, keeps what is good, and holds out what was never seen."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from mt.corpus.cleaning import (
    CLIPPED_CHARACTERS,
    PRESETS,
    CleaningRules,
    Example,
    Overlap,
    check_files,
    check_pairs,
    digits_of,
    has_few_letters,
    hold_out,
    overlap,
    report_lines,
    with_texts,
)
from mt.corpus.parallel import CorpusFiles
from mt.errors import ConfigError, DataError

TEN_PAIRS = [
    ("ein Hund", "a dog"),
    ("", "nothing before"),
    ("nichts danach", " \u3000\t"),
    ("ein Hund", "a dog"),  # repeats line 1
    ("Ein Hund", "a dog"),  # another case is another line
    ("Berlin", "Berlin"),
    ("x" * 101, "y" * 100),
    ("z" * 100, "no"),
    ("", "nothing before"),  # counted as empty, not as a repetition
    ("a dog", "ein Hund"),  # the other way round
]
RULES = CleaningRules(max_characters=100)


def counts(report):
    return {finding.rule: finding.count for finding in report.findings}


def numbered_pairs(count, start=0):
    return [(f"Satz Nummer {number}", f"sentence number {number}") for number in range(start, start + count)]


def test_every_pair_is_counted_under_the_first_rule_it_breaks():
    report = check_pairs(TEN_PAIRS, RULES)
    assert counts(report) == {"empty": 3, "over-long": 1, "odd ratio": 1, "duplicate": 1, "identical": 1}
    assert [finding.rule for finding in report.findings if not finding.dropped] == ["identical"]
    assert np.flatnonzero(report.kept).tolist() == [0, 4, 5, 9]
    assert (report.pairs_read, report.pairs_kept) == (10, 4)
    assert [example.line for example in report.findings[0].examples] == [2, 3, 9]


DOUBTFUL_PAIRS = [
    *[("ein Hund", f"dog {word}") for word in ("a", "b", "c", "d")],
    ("Berlin", "Berlin"),
    ("Tabelle 3", "12 | 14 | 17"),
    ("12 | 14 | 17", "table 3"),
    ("ein Dreijähriger", "a 3-year-old"),  # digits on one side alone are no contradiction
    ("um 17 Uhr", "at 5 pm"),
    ("im Jahr 2015", "in the year 2051"),  # the same digits in another order may be a date
    ("ein 3-Jähriger", "a boy of three"),
    ("1.000 Hunde", "1,000 dogs"),
    ("ein Hund", "dog a"),
    ("Hund", "a dog that is somewhat longer"),
]


@pytest.mark.parametrize(
    ("preset", "dropped"),
    [
        ("off", {}),
        ("safe", {"duplicate": 1}),
        ("strict", {"odd ratio": 1, "duplicate": 1, "identical": 1, "few letters": 2, "other digits": 1}),
    ],
)
def test_presets_drop_what_they_say(preset, dropped):
    report = check_pairs(DOUBTFUL_PAIRS, PRESETS[preset])
    assert {finding.rule: finding.count for finding in report.findings if finding.dropped and finding.count} == dropped
    assert report.pairs_kept == len(DOUBTFUL_PAIRS) - sum(dropped.values())
    assert counts(report)["identical"] == 1


def test_letters_and_digits_by_hand():
    assert [has_few_letters(line) for line in ("ab 12", "a 123", "", "हिन्दी में", "日本語", "---", "ကြွက်")] == [
        False, True, False, False, False, True, False
    ]  # fmt: skip
    assert digits_of("1,020") == digits_of("2.100") == digits_of("१,०२०") == 2 + (1 << 6) + (1 << 12)
    assert digits_of("no digit") == 0


def test_words_are_those_of_the_kept_pairs():
    report = check_pairs(TEN_PAIRS, RULES)
    assert (report.source_words, report.target_words) == (2 + 2 + 1 + 2, 2 + 2 + 1 + 2)


@pytest.mark.parametrize(("source", "target", "dropped"), [(20, 20, 0), (21, 20, 1), (20, 21, 1)])
def test_a_side_over_the_limit_is_too_long(source, target, dropped):
    assert counts(check_pairs([("é" * source, "ü" * target)], CleaningRules(max_characters=20)))["over-long"] == dropped


def test_lengths_are_compared_as_is_usual_in_the_corpus():
    usual = [("汉" * number, "e" * 4 * number) for number in range(10, 60)]
    assert counts(check_pairs(usual, CleaningRules()))["odd ratio"] == 0
    # As long as its source in characters, which here means a quarter of the usual: (200·2 + 15) / (200/2 + 15) = 3.6.
    assert counts(check_pairs([*usual, ("汉" * 200, "e" * 200)], CleaningRules()))["odd ratio"] == 0
    assert counts(check_pairs([*usual, ("汉" * 200, "e" * 150)], CleaningRules()))["odd ratio"] == 1


def test_the_ratio_is_the_same_in_both_directions_and_mild_to_short_lines():
    usual = [("a" * number, "b" * number) for number in range(10, 60)]
    # (x + 15) / (5 + 15) = 4 for x = 65
    for length, dropped in ((65, 0), (66, 1)):
        for odd in (("a" * length, "b" * 5), ("a" * 5, "b" * length)):
            assert counts(check_pairs([*usual, odd], CleaningRules()))["odd ratio"] == dropped
    assert counts(check_pairs([*usual, ("ok", "in Ordnung, machen wir")], CleaningRules()))["odd ratio"] == 0


def test_many_identical_pairs_are_kept_with_a_warning():
    pairs = [(f"Name {number}", f"Name {number}") for number in range(21)]
    others = numbered_pairs(79)
    report = check_pairs([*pairs, *others], RULES)
    assert report.pairs_kept == 100
    assert [warning.split(" have")[0] for warning in report.warnings] == ["21 of 100 pairs"]
    assert check_pairs([*pairs[:20], *others, ("noch", "one")], RULES).warnings == ()


@pytest.mark.parametrize("side", [0, 1])
def test_lines_that_end_in_carriage_returns_are_told(side):
    def ends(count):
        lines = [[f"eins {number}", f"one {number}"] for number in range(200)]
        for line in lines[:count]:
            line[side] += "\r"
        return [tuple(line) for line in lines]

    name = ("source", "target")[side]
    (warning,) = check_pairs(ends(3), RULES).warnings
    assert warning.startswith(f"3 of 200 {name} lines end in a carriage return")
    assert check_pairs(ends(2), RULES).warnings == ()  # as some do that were taken from elsewhere


def test_chunks_leave_no_trace(monkeypatch):
    whole = check_pairs(TEN_PAIRS, RULES)
    monkeypatch.setattr("mt.corpus.cleaning.CHUNK_PAIRS", 3)
    parts = check_pairs(iter(TEN_PAIRS), RULES)
    assert parts.findings == whole.findings
    assert parts.source_hashes.tolist() == whole.source_hashes.tolist()


def test_blocks_of_ratios_leave_no_trace(monkeypatch):
    pairs = [("a" * number, "b" * (number if number % 3 else 9 * number)) for number in range(10, 60)]
    whole = check_pairs(pairs, CleaningRules())
    assert counts(whole)["odd ratio"] > 0
    monkeypatch.setattr("mt.corpus.cleaning.BLOCK_PAIRS", 7)
    assert check_pairs(pairs, CleaningRules()).kept.tolist() == whole.kept.tolist()


def traced_peak(call):
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_the_check_and_what_follows_from_it_keep_few_bytes_for_each_pair(monkeypatch):
    """20 million pairs at 80 bytes are 1.5 GiB; their lines would take 160 bytes and more."""
    monkeypatch.setattr("mt.corpus.cleaning.CHUNK_PAIRS", 100)
    monkeypatch.setattr("mt.corpus.cleaning.BLOCK_PAIRS", 100)
    count = 50_000
    pairs = ((f"Satz Nummer {number}", f"sentence number {number}") for number in range(count))
    assert traced_peak(lambda: check_pairs(pairs, RULES)) < 80 * count
    report = check_pairs(numbered_pairs(count), RULES)
    some = check_pairs(numbered_pairs(1_000, start=500), RULES)
    assert traced_peak(lambda: hold_out(report, seed=1)) < 60 * count
    assert traced_peak(lambda: overlap([report], some)) < 60 * count


def test_hashes_are_the_same_in_every_process():
    code = (
        "from mt.corpus.cleaning import *\n"
        "print(*check_pairs([('ä', 'b'), ('', 'c')], CleaningRules()).source_hashes.tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_no_pairs_make_an_empty_report():
    report = check_pairs([], RULES)
    assert (report.pairs_read, report.pairs_kept, report.warnings) == (0, 0, ())


def test_examples_are_quoted_clipped_and_printable():
    pairs = [("gut", "good"), ("", "\x1b[31mred\t" + "r" * 50), ("zu", "late")]
    report = with_texts(check_pairs(pairs, RULES), iter(pairs))
    (example,) = report.findings[0].examples
    assert example == Example(2, "", "\ufffd[31mred\ufffd" + "r" * 18 + "…")
    assert len(example.target) == CLIPPED_CHARACTERS


def test_files_are_checked_with_their_examples_quoted(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("eins\tone\n\ttwo\n", encoding="utf-8")
    assert check_files(CorpusFiles(tsv=path), RULES).findings[0].examples == (Example(2, "", "two"),)


def test_rules_that_no_text_can_meet_are_refused():
    for ratio in (1.0, -2.0, float("nan")):
        with pytest.raises(ConfigError):
            CleaningRules(max_length_ratio=ratio)
    with pytest.raises(ConfigError):
        CleaningRules(max_characters=0)


def test_overlap_counts_validation_pairs_and_sources_seen_in_training():
    train = [check_pairs(pairs, RULES) for pairs in (numbered_pairs(20), [("neu", "new"), ("", "lost")])]
    seen = numbered_pairs(2, start=5)
    same_source = [("Satz Nummer 3", "phrase number 3")]
    valid = check_pairs([*seen, *same_source, ("neu", "new"), ("", "lost"), *numbered_pairs(3, start=50)], RULES)
    assert overlap(train, valid) == Overlap(pairs=3, sources=4, of=7)
    assert overlap([], valid) == Overlap(pairs=0, sources=0, of=7)


@pytest.mark.parametrize(("pairs", "held_out"), [(10, 1), (49, 1), (200, 4), (1_000, 20)])
def test_two_percent_are_held_out_but_at_least_one_pair(pairs, held_out):
    report = check_pairs(numbered_pairs(pairs), RULES)
    rows = hold_out(report, seed=1)
    assert len(set(rows.tolist())) == len(rows) == held_out
    assert rows.tolist() == sorted(rows.tolist())
    assert len(hold_out(report, seed=1, fraction=0.5, most=3)) == 3


def test_no_more_than_two_thousand_pairs_are_held_out():
    assert len(hold_out(check_pairs(numbered_pairs(2_500), RULES), seed=1, fraction=1.0)) == 2_000


def test_the_seed_chooses_the_held_out_pairs():
    report = check_pairs(numbered_pairs(500), RULES)
    assert hold_out(report, seed=1).tolist() == hold_out(report, seed=1).tolist() != hold_out(report, seed=2).tolist()


def test_a_pair_that_shares_a_side_with_one_of_another_corpus_is_not_held_out():
    report = check_pairs(numbered_pairs(20), RULES)
    same_source = check_pairs([(source, "something else") for source, _ in numbered_pairs(9)], RULES)
    same_target = check_pairs([("etwas anderes", target) for _, target in numbered_pairs(8, start=10)], RULES)
    rows = hold_out(report, [same_source, same_target], seed=1, fraction=1.0)
    assert rows.tolist() == [9, 18, 19]


def test_a_pair_that_shares_a_side_with_another_is_not_held_out():
    shared = [("gleich", "same"), ("gleich", "equal"), ("identisch", "equal"), ("", "empty")]
    report = check_pairs([*shared, *numbered_pairs(8), *numbered_pairs(1)], RULES)
    # Row 3 is empty; row 12 repeats row 4, which therefore stands alone among the kept.
    assert hold_out(report, seed=1, fraction=1.0).tolist() == list(range(4, 12))


def test_a_corpus_that_cannot_be_split_is_an_error():
    with pytest.raises(DataError, match="9 usable pairs are too few") as caught:
        hold_out(check_pairs([*numbered_pairs(9), ("", "x")], RULES), seed=1)
    assert "--valid" in caught.value.hint
    with pytest.raises(DataError, match="shares its source or its target"):
        hold_out(check_pairs([("gleich", f"target {number}") for number in range(20)], RULES), seed=1)


def test_the_report_is_one_aligned_screen():
    report = with_texts(check_pairs(TEN_PAIRS, RULES), TEN_PAIRS)
    assert report_lines(report) == [
        "10 pairs read",
        "  empty       3  dropped  lines 2, 3, 9:  │ nothing before",
        "  over-long   1  dropped  line 7: " + "x" * 27 + "… │ " + "y" * 27 + "…",
        "  odd ratio   1  dropped  line 8: " + "z" * 27 + "… │ no",
        "  duplicate   1  dropped  line 4: ein Hund │ a dog",
        "  identical   1  kept     line 6: Berlin │ Berlin",
        "4 pairs kept: 7 source words, 7 target words",
    ]


def test_multi30k_is_nearly_clean(multi30k):
    report = check_files(CorpusFiles(source=multi30k / "train.de", target=multi30k / "train.en"), CleaningRules())
    assert (report.pairs_read, report.warnings) == (29_000, ())
    assert report.pairs_kept > 28_980
    valid = check_files(CorpusFiles(source=multi30k / "val.de", target=multi30k / "val.en"), CleaningRules())
    assert overlap([report], valid).pairs < 10
    assert len(hold_out(report, seed=1)) == 580
