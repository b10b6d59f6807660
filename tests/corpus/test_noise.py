"""Noise by hand, and what it must never change."""

import random

import pytest

from mt.corpus.casing import lower_case, lower_case_of_capitals, title_case
from mt.corpus.noise import mistyped, noisy, slip

LINE = "zwei große Hunde laufen l'été über 3 Straßen"


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
    assert len(differ) == 1
    assert set(differ) <= {"zwei", "große", "Hunde", "laufen", "über", "Straßen"}


def test_more_long_words_have_more_slips():
    line = " ".join(["streng"] * 40)
    assert sum(word != "streng" for word in mistyped(line, random.Random(1)).split()) == 4


def test_what_is_no_word_is_not_mistyped():
    line = "Öffne {datei} mit <b>fett</b> a_bcde %stelle /home/du in 20000er bei anna@bern.de"
    words = [mistyped(line, random.Random(seed)).split() for seed in range(20)]
    assert {word for made in words for word in made[1:]} == set(line.split()[1:])


@pytest.mark.parametrize("line", ["", "a bc 12 345", "。。。", "日本"])
def test_what_has_no_long_word_cannot_be_mistyped(line):
    assert mistyped(line, random.Random(1)) == line


def test_each_kind_of_noise_is_as_likely():
    generator = random.Random(1)
    made = [noisy(LINE, generator) for _ in range(4000)]
    assert made.count(title_case(LINE)) == pytest.approx(4000 / 3, abs=170)
    for half in (lower_case, lower_case_of_capitals):
        assert made.count(half(LINE)) == pytest.approx(4000 / 6, abs=120)
    assert LINE not in made  # and a third is mistyped
