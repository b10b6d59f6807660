"""Files that slipped against each other are noticed, and files that did not are left in peace."""

import random
from itertools import permutations

import numpy as np
import pytest

from mt.corpus.alignment import find_misalignment, longest_run
from mt.files import read_lines


def lengths(lines):
    return np.log1p([len(line) for line in lines])


def made_up_text(count, seed=1):
    """Lines of 10 to 100 characters and "translations" about a fifth longer or shorter."""
    generator = random.Random(seed)
    sources = ["s" * generator.randint(10, 100) for _ in range(count)]
    return sources, ["t" * round(len(source) * generator.uniform(0.8, 1.2)) for source in sources]


@pytest.fixture(params=["made up", "multi30k"])
def text(request):
    if request.param == "made up":
        return made_up_text(29_000)
    folder = request.getfixturevalue("multi30k")
    return list(read_lines(folder / "train.en")), list(read_lines(folder / "train.de"))


def shuffled(lines):
    return random.Random(1).sample(lines, len(lines))


def misalignment(sources, targets):
    return find_misalignment(lengths(sources), lengths(targets))


def test_aligned_text_is_left_in_peace(text):
    sources, targets = text
    for count in (0, 1, 200, 500, 900, 1_700, len(sources)):
        assert misalignment(sources[:count], targets[:count]) is None
    assert misalignment(targets, sources) is None


def test_every_language_pair_of_multi30k_is_left_in_peace(multi30k):
    texts = {language: lengths(read_lines(multi30k / f"train.{language}")) for language in ("en", "de", "fr", "cs")}
    for source, target in permutations(texts, 2):
        assert find_misalignment(texts[source], texts[target]) is None


@pytest.mark.parametrize("row", [10, 10_000, 10_499, 26_000])
@pytest.mark.parametrize("lost", [1, 3, 40])
def test_lost_target_lines_are_found_to_within_a_few_lines(text, row, lost):
    sources, targets = text
    found = misalignment(sources, [*targets[:row], *targets[row + lost :], *["…"] * lost])
    assert abs(found.first - row) <= lost + 5
    assert (found.last, found.shift) == (29_000, -lost)
    assert found.inside < 0.5 < 0.7 < found.restored


def test_a_gained_target_line_shifts_the_other_way(text):
    sources, targets = text
    found = misalignment(sources, [*targets[:10_000], "dummy", *targets[10_000:-1]])
    assert abs(found.first - 10_000) <= 5
    assert found.shift == 1


def test_a_stretch_ends_where_the_sides_meet_again():
    sources, targets = made_up_text(10_000)
    found = misalignment(sources, [*targets[:2_000], *targets[2_001:5_000], "dummy", *targets[5_000:]])
    assert (found.last, found.shift) == (5_000, -1)
    assert " to 5,000 the lengths" in str(found)


def test_shuffled_targets_are_found(text):
    sources, targets = text
    found = misalignment(sources, shuffled(targets))
    assert (found.first, found.last, found.shift, found.elsewhere) == (0, 29_000, 0, None)
    half = misalignment(sources, [*targets[:14_500], *shuffled(targets[14_500:])])
    assert (half.first, half.last, half.shift) == (14_500, 29_000, 0)
    assert half.inside < 0.1 < 0.7 < half.elsewhere


def test_lengths_that_tell_nothing_are_not_judged():
    generator = random.Random(1)
    digits = ["".join(generator.choices("0123456789", k=generator.randint(3, 9))) for _ in range(2_000)]
    assert misalignment(digits, [line[::-1] for line in digits]) is None
    assert misalignment(["abcdef"] * 2_000, ["ghijkl"] * 2_000) is None
    assert misalignment(digits, ["always"] * 2_000) is None
    assert misalignment([""] * 2_000, [""] * 2_000) is None


def test_empty_lines_are_passed_over():
    sources, targets = made_up_text(3_000)
    targets[::3] = [""] * 1_000
    assert misalignment(sources, targets) is None


def test_the_message_says_where_and_what_to_do():
    sources, targets = made_up_text(3_000)
    found = misalignment(sources, [*targets[:1_500], *targets[1_501:], ""])
    assert str(found) == (
        f"from about line {found.first + 1:,} on the lengths of the two sides do not agree"
        f" (correlation {found.inside:z.2f}, elsewhere {found.elsewhere:.2f}); with the target moved down by 1 line"
        f" they do ({found.restored:.2f}): the target has lost 1 line there, or the source has gained one"
    )
    assert "(correlation 0.0" in str(misalignment(sources, shuffled(targets))).replace("-", "")


@pytest.mark.parametrize(("mask", "run"), [("", (0, 0)), ("000", (0, 0)), ("0110111", (4, 7)), ("1101", (0, 2))])
def test_the_longest_run(mask, run):
    assert longest_run(np.array([value == "1" for value in mask], dtype=bool)) == run
