"""What people do to a line before it is translated: capitals, title case, no capitals, slips of the keyboard."""

import random
import re

LETTER_AT_START = re.compile("(?<![\\w'’\u0300-\u036f])\\w")  # an apostrophe and an accent are within a word
LONG_WORD = re.compile(r"[^\W\d_]{4,}")  # of four letters and more
SLIPS = 0.1  # share of the long words with a slip


def noisy(line: str, generator: random.Random) -> str:
    """The line in capitals, in title case, in lower case or with typing errors, each as likely."""
    return generator.choice((capitals, title_case, lower_case, mistyped))(line, generator)


def capitals(line: str, generator: random.Random) -> str:
    return line.upper()


def title_case(line: str, generator: random.Random) -> str:
    return LETTER_AT_START.sub(lambda found: found[0].upper(), line)


def lower_case(line: str, generator: random.Random) -> str:
    return line.lower()


def mistyped(line: str, generator: random.Random) -> str:
    """One letter left out, doubled, or changed with its neighbour, in some of the long words, in one at the least."""
    words = list(LONG_WORD.finditer(line))
    count = min(len(words), max(1, round(SLIPS * len(words))))
    for word in sorted(generator.sample(words, count), key=lambda word: -word.start()):
        line = line[: word.start()] + slip(word[0], generator) + line[word.end() :]
    return line


def slip(word: str, generator: random.Random) -> str:
    place = generator.randrange(1, len(word) - 1)  # the first letter is seldom wrong
    before, letter, neighbour, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    return before + generator.choice((neighbour, letter * 2 + neighbour, neighbour + letter)) + after
