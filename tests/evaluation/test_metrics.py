"""Laws of the scores (by hand, and by the `sacrebleu` command), of the paired test, and of the choice of tokenizer."""

import json
import logging
import math
import random
import subprocess
import sys
from dataclasses import asdict

import pytest
from sacrebleu.significance import PairedTest, Result

from mt.errors import ConfigError, DataError
from mt.evaluation import metrics
from mt.evaluation.metrics import choose_tokenizer, compare, evaluate, language_tokenizer, looks_tokenised, quick_scores

WORDS = "the a small big red dog cat house sees finds likes runs near behind under it , and was (old) isn't 3.5 Ünal"


def made_up_sentences(count, seed):
    generator = random.Random(seed)
    lines = (" ".join(generator.choices(WORDS.split(), k=generator.randint(3, 20))) for _ in range(count))
    return [line.replace(" , ", ", ").capitalize() + "." for line in lines]


def corrupted(lines, share, seed):
    """Lines as a weak system might translate them: words lost, doubled, swapped with the next, or cut short."""
    generator = random.Random(seed)

    def noisy(line):
        words: list[str] = []
        for word in line.split(" "):
            fate = generator.choice(["lose", "double", "swap", "cut"]) if generator.random() < share else "keep"
            position = max(0, len(words) - 1) if fate == "swap" else len(words)
            words[position:position] = {"lose": [], "double": [word, word], "cut": [word[:-1]]}.get(fate, [word])
        return " ".join(words)

    return [noisy(line) for line in lines]


@pytest.fixture(scope="module")
def references():
    return made_up_sentences(300, seed=1)


@pytest.fixture(scope="module")
def hypotheses(references):
    return ["", *corrupted(references, share=0.2, seed=2)[1:]]


@pytest.fixture
def cleared_choice():
    """The choice by language forgets what was importable before, and what a test pretended."""
    language_tokenizer.cache_clear()
    yield
    language_tokenizer.cache_clear()


def command_scores(folder, hypotheses, references, *flags):
    """What the `sacrebleu` command says of the same lines, by metric, to four digits."""
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "bleu", "chrf", "ter"]
    result = subprocess.run([*command, "-w", "4", *flags], cwd=folder, capture_output=True, text=True, check=True)
    return {record["name"]: record for record in json.loads(result.stdout)}


def assert_equal_to_the_command(scores, expected):
    for score in scores:
        printed = expected[score.name]
        assert f"{score.score:.4f}" == f"{printed['score']:.4f}"
        assert score.signature == printed["signature"]
        assert (score.low + score.high) / 2 == pytest.approx(printed["confidence_mean"], abs=1e-4)
        assert (score.high - score.low) / 2 == pytest.approx(printed["confidence_var"], abs=1e-4)


def test_identical_text_has_no_error_and_an_interval_of_no_width(references):
    found = {score.name: (score.low, score.score, score.high) for score in evaluate(references, references)}
    assert list(found) == ["BLEU", "chrF2", "TER"]
    assert found["BLEU"] == pytest.approx((100, 100, 100))
    assert found["chrF2"] == pytest.approx((100, 100, 100))
    assert found["TER"] == (0, 0, 0)


def test_bleu_is_the_geometric_mean_of_the_precisions_times_the_brevity_penalty():
    hypotheses = ["the cat sat on the mat", "a dog barked"]
    references = ["the cat sat on a mat", "a dog barked at me"]
    # Matches of all n-grams, with a count clipped to the reference's: the second "the" finds none left.
    precisions = [(5 + 3) / (6 + 3), (3 + 2) / (5 + 2), (2 + 1) / (4 + 1), (1 + 0) / (3 + 0)]
    brevity_penalty = math.exp(1 - (6 + 5) / (6 + 3))
    bleu = 100 * brevity_penalty * math.prod(precisions) ** (1 / 4)
    assert evaluate(hypotheses, references, confidence=False)[0].score == pytest.approx(bleu)


def test_ter_counts_edits_a_moved_phrase_being_one():
    hypotheses = ["on the mat the cat sat", "one two"]
    references = ["the cat sat on the mat", "one two three four"]
    assert evaluate(hypotheses, references, confidence=False)[2].score == pytest.approx(100 * (1 + 2) / (6 + 4))


def test_scores_signatures_and_intervals_are_those_of_the_sacrebleu_command(tmp_path, hypotheses, references):
    expected = command_scores(tmp_path, hypotheses, references, "--confidence")
    assert_equal_to_the_command(evaluate(hypotheses, references), expected)


def test_real_text_scores_as_by_the_sacrebleu_command(tmp_path, multi30k):
    references = (multi30k / "test_2016_flickr.de").read_text(encoding="utf-8").split("\n")[:-1]
    hypotheses = corrupted(references, share=0.3, seed=3)
    expected = command_scores(tmp_path, hypotheses, references, "--confidence")
    assert_equal_to_the_command(evaluate(hypotheses, references, target_language="de"), expected)


def test_chinese_scores_as_by_the_sacrebleu_command(tmp_path):
    references = ["我喜欢读书。", "今天天气很好,我们去公园吧。"] * 5
    hypotheses = ["我喜欢看书。", "今天天气好,我们去公园。"] * 5
    expected = command_scores(tmp_path, hypotheses, references, "--confidence", "--tokenize", "zh")
    assert_equal_to_the_command(evaluate(hypotheses, references, target_language="zh"), expected)


def test_without_confidence_scores_are_the_same_and_the_signature_names_no_resamples(hypotheses, references):
    plain = evaluate(hypotheses, references, confidence=False)
    assert [score.score for score in plain] == [score.score for score in evaluate(hypotheses, references)]
    assert {(score.low, score.high) for score in plain} == {(None, None)}
    assert not any("bs:" in score.signature for score in plain)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 300])
def test_intervals_hold_the_score_and_only_possible_values(hypotheses, references, count):
    for score in map(asdict, evaluate(hypotheses[-count:], references[-count:])):
        assert 0 <= score["low"] <= score["score"] <= score["high"]
        assert score["high"] <= 100 or score["name"] == "TER"


def test_a_very_large_text_is_resampled_less_often_and_says_so(monkeypatch, hypotheses, references):
    monkeypatch.setattr(metrics, "MAX_RESAMPLED_LINES", 200 * len(references))
    assert "|bs:200|" in evaluate(hypotheses, references)[0].signature
    monkeypatch.setattr(metrics, "MAX_RESAMPLED_LINES", 0)
    assert "|bs:100|" in evaluate(hypotheses, references)[0].signature


def test_quick_scores_are_the_full_ones(hypotheses, references):
    bleu, chrf, _ = evaluate(hypotheses, references, target_language="zh")
    assert quick_scores(hypotheses, references, "zh") == {"bleu": bleu.score, "chrf": chrf.score}


def test_quick_scores_tell_short_texts_apart():
    """Where all are of two words there are no 4-grams, of which BLEU is 0 whatever stands there."""
    references = ["a cat", "two dogs"]
    assert evaluate(references, references, confidence=False)[0].score == 0
    assert quick_scores(references, references, "13a")["bleu"] == pytest.approx(100)
    assert 0 < quick_scores(["a cat", "a dogs"], references, "13a")["bleu"] < 100


@pytest.mark.parametrize("separator", ["\u2028", "\r", "\u0085", "\f"])
def test_what_other_programs_take_for_a_line_break_breaks_nothing(separator):
    lines = [f"one two{separator}three four five", "six seven eight nine ten"]
    assert [score.score for score in evaluate(lines, lines)] == pytest.approx([100, 100, 0])


def test_text_without_any_word_scores_nothing():
    assert [score.score for score in evaluate(["", ""], ["", ""])] == [0, 0, 0]


def test_identical_systems_do_not_differ(hypotheses, references):
    for metric in compare(hypotheses, list(hypotheses), references).metrics:
        assert (metric.difference, metric.p_value) == (0, 1)


def test_equally_noisy_systems_do_not_differ_significantly(references):
    one, other = (corrupted(references, share=0.2, seed=seed) for seed in (5, 6))
    assert all(metric.p_value > 0.05 for metric in compare(one, other, references).metrics)


def test_a_clearly_better_system_is_significantly_better(references):
    bad, good = (corrupted(references, share=share, seed=7) for share in (0.4, 0.1))
    bleu, chrf, ter = compare(bad, good, references).metrics
    assert bleu.difference > 0
    assert chrf.difference > 0
    assert ter.difference < 0
    assert max(bleu.p_value, chrf.p_value, ter.p_value) < 0.05


def test_a_comparison_holds_what_evaluating_each_system_gives(hypotheses, references):
    other = corrupted(references, share=0.3, seed=8)
    comparison = compare(hypotheses, other, references)
    assert comparison.baseline == evaluate(hypotheses, references)
    for mine, alone in zip(comparison.system, evaluate(other, references), strict=True):
        assert (mine.name, mine.score, mine.signature) == (alone.name, alone.score, alone.signature)
        assert (mine.low, mine.high) == pytest.approx((alone.low, alone.high), abs=1e-4)


def test_p_values_are_those_of_sacrebleus_paired_test(hypotheses, references):
    other = corrupted(references, share=0.21, seed=9)
    named = [("baseline", hypotheses), ("system", other)]
    _, columns = PairedTest(named, metrics.all_metrics(references, "13a"), None, test_type="bs")()
    for metric in compare(hypotheses, other, references).metrics:
        expected = columns[metric.name][1]
        assert isinstance(expected, Result)
        assert metric.p_value == expected.p_value


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("", "13a"),
        ("de", "13a"),
        ("zh", "zh"),
        ("zh-TW", "zh"),
        ("ZH_cn", "zh"),
        ("zho_Hans", "zh"),
        ("cmn", "zh"),
        ("yue", "zh"),
        ("xx", "13a"),
    ],
)
def test_the_language_chooses_the_tokenizer(language, tokenizer):
    assert choose_tokenizer(language, None) == tokenizer


@pytest.mark.parametrize(
    ("language", "tokenizer"), [("ja", "ja-mecab"), ("jpn", "ja-mecab"), ("ko", "ko-mecab"), ("kor", "ko-mecab")]
)
def test_mecab_is_chosen_where_it_is_installed(monkeypatch, caplog, cleared_choice, language, tokenizer):
    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    assert choose_tokenizer(language, None) == tokenizer
    assert caplog.text == ""


@pytest.mark.parametrize("missing", ["MeCab", "ipadic"])
def test_without_mecab_characters_are_scored_with_one_warning(monkeypatch, caplog, cleared_choice, missing):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == missing else object())
    for _ in range(3):
        quick_scores(["猫がいる"], ["犬がいる"], choose_tokenizer("ja", None))
    assert "tok:char" in evaluate(["猫がいる"], ["犬がいる"], target_language="ja")[0].signature
    warning = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warning) == 1
    assert "ja-mecab" in warning[0]
    assert "sacrebleu[ja]" in warning[0]


def test_the_requested_tokenizer_wins_over_the_language():
    assert "tok:char" in evaluate(["a b"], ["a b"], target_language="zh", bleu_tokenize="char")[0].signature


def test_an_unknown_tokenizer_is_refused_with_the_known_and_the_nearest():
    with pytest.raises(ConfigError, match=r"'mecab'.*13a, intl, char, ja-mecab") as refusal:
        evaluate(["a"], ["a"], bleu_tokenize="mecab")
    assert refusal.value.hint in ("did you mean ja-mecab?", "did you mean ko-mecab?")
    with pytest.raises(ConfigError) as refusal:
        choose_tokenizer("de", "13b")
    assert refusal.value.hint == "did you mean 13a?"


@pytest.mark.parametrize("error", [RuntimeError("\nJapanese needs\n  more\n"), OSError("no route to host")])
def test_a_tokenizer_that_cannot_start_is_a_mistake_with_a_hint(monkeypatch, error):
    def failing(self, **options):
        raise error

    monkeypatch.setattr(metrics.BLEU, "__init__", failing)
    with pytest.raises(
        ConfigError, match=r"ja-mecab cannot be used: (Japanese needs more|no route to host)$"
    ) as refusal:
        evaluate(["a"], ["a"], bleu_tokenize="ja-mecab")
    assert "sacrebleu[ja]" in refusal.value.hint


@pytest.mark.parametrize(
    ("lines", "evidence"),
    [
        (["A dog .", "A cat ."], "2 of 2 lines end in ' .'"),
        (["A dog .  ", "Yes."], "1 of 2 lines end in ' .'"),
        (["Well , no!"] * 1200, "1,200 of 1,200 lines contain ' ,'"),
        (["It &apos;s me"], "1 of 1 lines contain escapes such as '&apos;'"),
        (["dog@@ s"], "1 of 1 lines contain the subword mark '@@'"),
        (["▁A ▁dog", "▁A"], "2 of 2 lines contain the subword mark '▁'"),
    ],
)
def test_tokenised_text_is_recognised_by_its_marks(lines, evidence):
    assert looks_tokenised(lines) == evidence


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["A dog, a cat.", "Vraiment ? Oui !", "3,5 .5 a@b.c @home R&D", "wait ..."],
        ["A dog ."] + ["A dog."] * 9,
    ],
)
def test_plain_text_with_the_odd_slip_is_not_taken_for_tokenised(lines):
    assert looks_tokenised(lines) == ""


@pytest.mark.parametrize("language", ["en", "de", "fr", "cs"])
def test_real_text_is_not_taken_for_tokenised(multi30k, language):
    assert looks_tokenised((multi30k / f"val.{language}").read_text(encoding="utf-8").split("\n")) == ""


def test_tokenised_text_is_warned_of_once_for_each_side_and_not_by_sacrebleu_too(caplog):
    tokenised = ["a dog ."] * 200
    evaluate(tokenised, ["a dog."] * 200, confidence=False)
    assert [record.name for record in caplog.records] == ["mt.evaluation.metrics"]
    assert "text of the hypotheses looks tokenised: 200 of 200 lines end in ' .'" in caplog.text
    caplog.clear()
    evaluate(tokenised, tokenised, confidence=False)
    assert len(caplog.records) == 2


def test_an_evaluation_of_plain_text_warns_of_nothing(caplog, hypotheses, references):
    evaluate(hypotheses, references, confidence=False)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "score",
    [
        lambda hypotheses, references: evaluate(hypotheses, references),
        lambda hypotheses, references: quick_scores(hypotheses, references, "13a"),
        lambda hypotheses, references: compare(hypotheses, references, references),
        lambda hypotheses, references: compare(references, hypotheses, references),
    ],
    ids=["evaluate", "quick_scores", "compare-baseline", "compare-system"],
)
def test_counts_that_differ_are_an_error_that_names_both(score):
    with pytest.raises(DataError, match="1,001 hypotheses and 1 references"):
        score(["a"] * 1001, ["a"])


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="0 hypotheses and 0 references"):
        evaluate([], [])


def test_of_too_many_lines_there_are_scores_without_intervals_and_no_comparison(monkeypatch, caplog):
    references = made_up_sentences(40, 1)
    hypotheses = corrupted(references, 0.2, 2)
    expected = evaluate(hypotheses, references, confidence=False)
    assert all(score.low is not None for score in evaluate(hypotheses, references))
    monkeypatch.setattr(metrics, "MAX_LINES", 39)
    assert evaluate(hypotheses, references) == expected
    assert "no intervals: 40 lines are too many to resample (at most 39)" in caplog.text
    with pytest.raises(DataError, match="40 lines are too many to compare by resampling, which takes 39 at most"):
        compare(hypotheses, references, references)
