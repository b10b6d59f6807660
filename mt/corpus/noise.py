"""What people do to a line before it is translated: title case, no capitals, slips of the keyboard."""

import random
import re

from mt.corpus.casing import WORDS, lower_case, lower_case_of_capitals, title_case

# Scripts without spaces have no words to be seen: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
LONG_WORD = re.compile(rf"(?:(?![{UNSPACED}])[^\W\d_]){{4,}}")  # of four letters and more
SLIPS = 0.1  # share of the long words with a slip


def noisy(line: str, generator: random.Random) -> str:
    """The line in title case, in lower case or with typing errors, each as likely."""
    match generator.randrange(6):
        case 0 | 1:
            return title_case(line)
        case 2:
            return lower_case(line)
        case 3:
            return lower_case_of_capitals(line)
    return mistyped(line, generator)


def mistyped(line: str, generator: random.Random) -> str:
    """One letter left out, doubled or swapped with the next, in some long words: in at least one if there are any."""
    words = [found for word in WORDS.finditer(line) for found in LONG_WORD.finditer(line, *word.span())]
    count = min(len(words), max(1, round(SLIPS * len(words))))
    for word in sorted(generator.sample(words, count), key=lambda word: -word.start()):
        line = line[: word.start()] + slip(word[0], generator) + line[word.end() :]
    return line


def slip(word: str, generator: random.Random) -> str:
    place = generator.randrange(1, len(word) - 1)  # the first letter is seldom wrong
    before, letter, neighbour, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    return before + generator.choice((neighbour, letter * 2 + neighbour, neighbour + letter)) + after
