"""Noise by hand, and what it must never change."""

import random

import pytest

from mt.corpus.noise import capitals, lower_case, mistyped, noisy, slip, title_case

LINE = "zwei große Hunde laufen l'été über 3 Straßen"


def test_case_by_hand():
    generator = random.Random(1)
    assert capitals(LINE, generator) == "ZWEI GROSSE HUNDE LAUFEN L'ÉTÉ ÜBER 3 STRASSEN"
    assert lower_case(LINE, generator) == "zwei große hunde laufen l'été über 3 straßen"
    assert title_case(LINE, generator) == "Zwei Große Hunde Laufen L'été Über 3 Straßen"
    assert title_case("it's a cafe\u0301s’ day", generator) == "It's A Cafe\u0301s’ Day"


def test_what_is_no_word_stays_as_it_is():
    line = "Öffne {datei} mit <b>fett</b> , &amp; a_b %s /home/du in 20er bei a@b.de"
    for kind in (capitals, lower_case, title_case, mistyped):
        words, before = kind(line, random.Random(1)).split(), line.split()
        assert [word for word, old in zip(words, before, strict=True) if word != old]
        kept = {old for word, old in zip(words, before, strict=True) if word == old}
        assert kept >= {"{datei}", "<b>fett</b>", "&amp;", "a_b", "%s", "/home/du", "20er", "a@b.de"}


def test_scripts_without_spaces_are_not_mistyped():
    line = "他用手机给我发了一条消息 ฉันไม่รู้จักเขา これはペンです"
    assert all(mistyped(line, random.Random(seed)) == line for seed in range(20))
    assert any(mistyped(f"{line} Straße", random.Random(seed)) != f"{line} Straße" for seed in range(5))


def test_slips_of_a_word_are_these():
    generator = random.Random(1)
    made = {slip("abcd", generator) for _ in range(200)}
    assert made == {"acd", "abd", "abbcd", "abccd", "acbd", "abdc"}


@pytest.mark.parametrize("seed", range(20))
def test_a_mistyped_line_differs_in_one_long_word(seed):
    before, after = LINE.split(" "), mistyped(LINE, random.Random(seed)).split(" ")
    differ = [one for one, other in zip(before, after, strict=True) if one != other]
    assert len(differ) <= 1  # a doubled letter may have changed with its twin
    assert set(differ) <= {"zwei", "große", "Hunde", "laufen", "über", "Straßen"}


def test_more_long_words_have_more_slips():
    line = " ".join(["streng"] * 40)
    assert sum(word != "streng" for word in mistyped(line, random.Random(1)).split()) == 4


@pytest.mark.parametrize("line", ["", "a bc 12 345", "。。。", "日本"])
def test_what_has_no_long_word_cannot_be_mistyped(line):
    assert mistyped(line, random.Random(1)) == line


def test_each_kind_of_noise_is_as_likely():
    generator = random.Random(1)
    made = [noisy(LINE, generator) for _ in range(4000)]
    for kind in (capitals, title_case, lower_case):
        assert made.count(kind(LINE, generator)) == pytest.approx(1000, abs=150)
