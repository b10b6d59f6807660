"""Letters great and small: a line in capitals is read in lower case, of which a model learns more."""

import re
from collections import Counter
from unicodedata import category

WORDS = re.compile(r"(?<!\S)[^\s\d<>{}%&@/\\_]+(?!\S)")  # and no tags, names of variables, addresses or codes
LETTER_AT_START = re.compile("(?<![\\w'’\u0300-\u036f])\\w")  # an apostrophe and an accent are within a word
FEWEST_CAPITALS = 4  # of a line in capitals: "USA" and "OK" are written so in any line


def lower_case(line: str) -> str:
    """The line as it would be read if it were in capitals: ß is ss, which is all that SS can be read as."""
    return WORDS.sub(lambda word: word[0].upper().lower(), line)


def title_case(line: str) -> str:
    return WORDS.sub(lambda word: LETTER_AT_START.sub(lambda letter: letter[0].title(), word[0]), line)


def without_capitals(line: str) -> str:
    """The line in lower case if every letter of its words is a capital, else as it is."""
    kinds = Counter(map(category, "".join(WORDS.findall(line))))
    others = kinds["Ll"] + kinds["Lt"] + kinds["Lo"]  # Lo: of scripts that have no capitals
    return lower_case(line) if kinds["Lu"] >= FEWEST_CAPITALS and not others else line
