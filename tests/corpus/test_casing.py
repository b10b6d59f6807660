"""Great letters and small ones by hand, and what is never changed."""

import pytest

from mt.corpus.casing import lower_case, title_case, without_capitals

LINE = "zwei große Hunde laufen l'été über 3 Straßen"
NO_WORDS = "{datei} <b>fett</b> &amp; a_b %s /home/du 20er a@b.de"


def test_case_by_hand():
    assert lower_case(LINE) == "zwei grosse hunde laufen l'été über 3 strassen"
    assert title_case(LINE) == "Zwei Große Hunde Laufen L'été Über 3 Straßen"
    assert title_case("it's a cafe\u0301s’ day") == "It's A Cafe\u0301s’ Day"
    assert title_case("ფული") == "ფული"  # Georgian has capitals, but no title case


def test_what_is_no_word_stays_as_it_is():
    assert lower_case(f"Öffne {NO_WORDS.upper()} Nun") == f"öffne {NO_WORDS.upper()} nun"
    assert title_case(f"öffne {NO_WORDS} nun") == f"Öffne {NO_WORDS} Nun"


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("ZWEI GROSSE HUNDE!", "zwei grosse hunde!"),
        ("HALT", "halt"),
        (" ALLE  <B>NR. 7</B> 3X ", " alle  <B>NR. 7</B> 3X "),
        ("ΟΙ ΔΡΟΜΟΣ", "οι δρομος"),
        ("ПРИВЕТ, МИР", "привет, мир"),
        ("OʻZBEKISTON", "oʻzbekiston"),  # with a letter between that is neither great nor small
    ],
)
def test_lines_in_capitals_are_read_in_lower_case(line, read):
    assert without_capitals(line) == read


@pytest.mark.parametrize(
    "line", ["", "Halt", "USA", "I", "A. B. C.", "DAS IST das", "AB12 CD34 EF56", "我用 NETFLIX", "ǅAMIJA BIH", "مرحبا"]
)
def test_other_lines_stay_as_they_are(line):
    assert without_capitals(line) == line
