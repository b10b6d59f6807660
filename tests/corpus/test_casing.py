"""Upper and lower case by hand, and what is never changed."""

import pytest

from mt.corpus.casing import lower_case, lower_case_of_capitals, title_case, without_capitals

LINE = "zwei große Hunde laufen l'été über 3 Straßen"
NO_WORDS = "{datei} <b>fett</b> &amp; a_b %s /home/du 20er a@b.de"


def test_case_by_hand():
    assert lower_case(LINE) == "zwei große hunde laufen l'été über 3 straßen"
    assert lower_case_of_capitals(LINE) == "zwei grosse hunde laufen l'été über 3 strassen"
    assert title_case(LINE) == "Zwei Große Hunde Laufen L'été Über 3 Straßen"
    assert title_case("it's a cafe\u0301s’ day") == "It's A Cafe\u0301s’ Day"
    assert title_case("ფული") == "ფული"  # Georgian has capitals, but no title case


def test_what_is_no_word_stays_as_it_is():
    for lower in (lower_case, lower_case_of_capitals):
        assert lower(f"Öffne {NO_WORDS.upper()} Nun") == f"öffne {NO_WORDS.upper()} nun"
    assert title_case(f"öffne {NO_WORDS} nun") == f"Öffne {NO_WORDS} Nun"


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("ZWEI GROSSE HUNDE!", "zwei grosse hunde!"),
        ("HALT, WER DA?", "halt, wer da?"),
        ("ACHTUNG", "achtung"),
        ("MORGEN", "morgen"),  # six letters are enough
        (" ALLE  <b>MANN AN</b> {Ort} 3X&nbsp;R2D2 ", " alle  <b>mann an</b> {Ort} 3X&nbsp;R2D2 "),
        ("ALLE MANN AN <b>A380</b>", "alle mann an <b>A380</b>"),
        ("HERREN/DAMEN TOILETTE", "herren/damen toilette"),
        ("MEHR BEI https://Mehr.de/A?b=C UND a@B.de", "mehr bei https://Mehr.de/A?b=C und a@B.de"),
        ("DIE STRAßE IST GESPERRT", "die straße ist gesperrt"),  # there is a capital ẞ, but hardly anybody types it
        ("CALLE MAYOR Nº 5", "calle mayor nº 5"),
        ("ΟΙ ΔΡΟΜΟΣ", "οι δρομος"),
        ("ПРИВЕТ, МИР", "привет, мир"),
        ("OʻZBEKISTON", "oʻzbekiston"),  # with a letter between that is neither great nor small
    ],
)
def test_lines_in_capitals_are_read_in_lower_case(line, read):
    assert without_capitals(line) == read


@pytest.mark.parametrize("line", ["", "Achtung", "USA", "I", "NATO", "BMW AG", "A. B. C.", "DAS HAUS IST das Haus"])
def test_other_lines_stay_as_they_are(line):
    assert without_capitals(line) == line


@pytest.mark.parametrize("line", ["AB12 CD34 EF56", "我用 NETFLIX", "ǅAMIJA IZ BIHAĆA", "مرحبا NETFLIX", "MAX_LENGTH"])
def test_what_is_not_written_in_capitals_for_loudness_stays_as_it_is(line):
    assert without_capitals(line) == line


@pytest.mark.parametrize("part", ["ABC", "ABC;", "ABC>", "<ABC", "{ABC", "&ABC"])
def test_a_line_without_spaces_takes_no_longer_than_others(part):
    """Sought from each `;` to the end of a line, names took 1.6 s of 16,000 of them, and 5.8 s of 32,000."""
    assert without_capitals(part * 50_000) == part.lower() * 50_000


@pytest.mark.parametrize("line", ["Import/Export HTML CSS", "WICHTIG: <b>Bitte lesen</b>"])
def test_a_small_letter_beside_a_slash_or_a_tag_counts(line):
    assert without_capitals(line) == line
