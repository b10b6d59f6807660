"""Write the demo corpus: 20,000 English-German sentence pairs for training, 500 for validation, 500 for testing.

A small grammar writes both sides of a pair at once: articles, adjectives and nouns declined by gender, number and
case; strong, separable and modal verbs; verb-second, verb-first and verb-final clauses; relative clauses, negation,
comparison, dates, clock times and prices.

Every English sentence has one German translation, because wherever German draws a distinction that English does not,
the English sentence settles it:

* an English noun, verb or adjective has one German word; where it has two, its company decides (people essen, animals
  fressen; what lies is put with legen, what stands with stellen);
* `you` is one friend (du), `they` are people, a profession has the grammatical gender of its German word, and `it`
  stands only where its antecedent does, or for the weather;
* past is Präteritum, perfect is Perfekt, progressive is Präsens with gerade, `when` is als in the past and else wenn;
* an English adverbial before the subject stands before the German verb, and no other constituent is ever fronted;
* a form that English shares by present and past (they read, they put) is not used;
* `every` and `all` stand beside no negation, whose scope would be open, and `must` is never negated (darf nicht).

Validation and test measure recombination.  One in `HELD_OUT` of all combinations (verb and object, adjective and noun,
verb and place, ...) never occurs in training; each validation or test sentence contains at least one of those, and
only words that training has at least `FAMILIAR` times.
"""

import argparse
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from demo_grammar.clauses import Pair
from demo_grammar.inflection import NAMES
from demo_grammar.patterns import PATTERNS, Combination, Draw

SIZES = {"train": 20_000, "valid": 500, "test": 500}
HELD_OUT = 20  # one combination in so many is kept from training
LONGEST = 16  # words on either side
FAMILIAR = 10  # a word of the test occurs at least so often in training


def held_out(combination: Combination, seed: int) -> bool:
    return zlib.crc32(f"{seed} {combination[0]} + {combination[1]}".encode()) % HELD_OUT == 0


def tokens(line: str) -> list[str]:
    """Words without the marks at their ends; 3,50 and 8:30 are words."""
    return re.findall(r"\w+(?:[.,:'-]\w+)*", line)


def clear(source: str) -> bool:
    """Whether no name occurs twice (which Anna?), and nothing is said not to hold of every or all."""
    words = [word.removesuffix("'s") for word in tokens(source)]
    names = [word for word in words if word in NAMES["m"] + NAMES["f"]]
    forms = {word.lower() for word in words}
    negated_universal = forms & {"every", "all"} and forms & {"not", "cannot", "no", "never"}
    return len(names) == len(set(names)) and not negated_universal


def generate(seed: int) -> Iterator[tuple[Pair, frozenset[Combination]]]:
    """Distinct, clear pairs without end, and the combinations of words in each."""
    draw = Draw(seed)
    seen: set[str] = set()
    patterns, weights = list(PATTERNS), list(PATTERNS.values())
    while True:
        draw.combinations.clear()
        pair = draw.choices(patterns, weights)[0](draw)
        if max(len(side.split()) for side in pair) > LONGEST or seen & set(pair) or not clear(pair[0]):
            continue
        seen.update(pair)
        yield pair, frozenset(draw.combinations)


def corpus(seed: int) -> dict[str, list[Pair]]:
    """The three splits."""
    splits: dict[str, list[Pair]] = {"train": []}
    fresh: list[Pair] = []
    for pair, combinations in generate(seed):
        if any(held_out(combination, seed) for combination in combinations):
            fresh.append(pair)
        else:
            splits["train"].append(pair)
        if len(splits["train"]) == SIZES["train"]:
            break
    counts = [Counter(word for pair in splits["train"] for word in tokens(pair[side])) for side in (0, 1)]
    known = [p for p in fresh if all(counts[side][word] >= FAMILIAR for side in (0, 1) for word in tokens(p[side]))]
    splits["valid"] = known[: SIZES["valid"]]
    splits["test"] = known[SIZES["valid"] : SIZES["valid"] + SIZES["test"]]
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the English-German demo corpus.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "demo")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split, pairs in corpus(arguments.seed).items():
        for side, language in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (arguments.output / f"{split}.{language}").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
