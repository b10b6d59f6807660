"""What people do to a line before it is translated: capitals, title case, no capitals, slips of the keyboard."""

import random
import re

WORDS = re.compile(r"(?<!\S)[^\s\d<>{}%&@/\\_]+(?!\S)")  # and no tags, names of variables, addresses or codes
LETTER_AT_START = re.compile("(?<![\\w'’\u0300-\u036f])\\w")  # an apostrophe and an accent are within a word
# Scripts without spaces have no words to be seen: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
LONG_WORD = re.compile(rf"(?:(?![{UNSPACED}])[^\W\d_]){{4,}}")  # of four letters and more
SLIPS = 0.1  # share of the long words with a slip


def noisy(line: str, generator: random.Random) -> str:
    """The line in capitals, in title case, in lower case or with typing errors, each as likely."""
    return generator.choice((capitals, title_case, lower_case, mistyped))(line, generator)


def capitals(line: str, generator: random.Random) -> str:
    return WORDS.sub(lambda word: word[0].upper(), line)


def title_case(line: str, generator: random.Random) -> str:
    return WORDS.sub(lambda word: LETTER_AT_START.sub(lambda letter: letter[0].upper(), word[0]), line)


def lower_case(line: str, generator: random.Random) -> str:
    return WORDS.sub(lambda word: word[0].lower(), line)


def mistyped(line: str, generator: random.Random) -> str:
    """One letter left out, doubled, or changed with its neighbour, in some of the long words, in one at the least."""
    words = [found for word in WORDS.finditer(line) for found in LONG_WORD.finditer(line, *word.span())]
    count = min(len(words), max(1, round(SLIPS * len(words))))
    for word in sorted(generator.sample(words, count), key=lambda word: -word.start()):
        line = line[: word.start()] + slip(word[0], generator) + line[word.end() :]
    return line


def slip(word: str, generator: random.Random) -> str:
    place = generator.randrange(1, len(word) - 1)  # the first letter is seldom wrong
    before, letter, neighbour, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    return before + generator.choice((neighbour, letter * 2 + neighbour, neighbour + letter)) + after
