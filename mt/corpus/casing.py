"""Upper and lower case: lines rewritten in another case, and lines in capitals, which are read in lower case."""

import re
from unicodedata import category

WORDS = re.compile(r"(?<!\S)[^\s\d<>{}%&@/\\_]+(?!\S)")  # and no tags, names of variables, addresses or codes
LETTER_AT_START = re.compile("(?<![\\w'’\u0300-\u036f])\\w")  # an apostrophe and an accent are within a word
# Not prose, so that its case says nothing: tags, placeholders, entities, names with digits, addresses.
NO_TEXT = re.compile(r"(<[^<>]*>|\{[^{}]*\}|%\w+|&\w+;|(?<![^\s>};])[^\s>};]*(?:[\d_@\\]|://)\S*)")
FEWEST_CAPITALS = 6  # of a line in capitals: fewer may be "NATO", or "BMW AG"


def lower_case(line: str) -> str:
    return WORDS.sub(lambda word: word[0].lower(), line)


def title_case(line: str) -> str:
    return WORDS.sub(lambda word: LETTER_AT_START.sub(lambda letter: letter[0].title(), word[0]), line)


def lower_case_of_capitals(line: str) -> str:
    """The line in lower case, as it is read back from capitals: ß, which they spell SS, becomes ss."""
    return WORDS.sub(lambda word: word[0].upper().lower(), line)


def without_capitals(line: str) -> str:
    """A line of capitals in lower case, other lines as they are; tags, names with digits and the like do not count."""
    if sum(map(str.isupper, line)) < FEWEST_CAPITALS:  # as of most lines, and sooner known
        return line
    parts = NO_TEXT.split(line)
    text = "".join(parts[::2])
    if sum(map(str.isupper, text)) < FEWEST_CAPITALS or any(map(speaks_against_capitals, text)):
        return line
    parts[::2] = [part.lower() for part in parts[::2]]
    return "".join(parts)


def speaks_against_capitals(character: str) -> bool:
    """Whether it is a lower-case letter, or one of a script without case; ß and º, without a capital, do not count."""
    capital = character.upper()
    has_capital = len(capital) == 1 and capital != character
    return has_capital or (category(character) == "Lo" and not character.islower())
