"""IBM Model 1 by hand, on a toy corpus, and against a plain twin that follows the paper."""

from collections import defaultdict

import numpy as np
import pytest

from mt.corpus import lexicon as module
from mt.corpus.lexicon import Lexicon, learn_lexicon, sample_pairs

END = 0
DAS, HAUS, BUCH, EIN, KLEIN = range(1, 6)
THE, HOUSE, BOOK, A, SMALL = range(1, 6)
TOY = [
    ([DAS, HAUS], [THE, HOUSE]),
    ([DAS, BUCH], [THE, BOOK]),
    ([EIN, BUCH], [A, BOOK]),
    ([DAS, KLEIN, HAUS], [THE, SMALL, HOUSE]),
    ([EIN, KLEIN, KLEIN, BUCH], [A, SMALL, SMALL, BOOK]),
]


def pairs_of(sentences, end=()):
    return [tuple(np.array([*side, *end], dtype=np.uint16) for side in pair) for pair in sentences]


def random_pairs(count, vocabulary, seed=1):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, (count, 2))
    return pairs_of([[generator.integers(1, vocabulary, length) for length in pair] for pair in lengths], end=[END])


def as_dictionary(lexicon):
    entries = zip(lexicon.source.tolist(), lexicon.target.tolist(), strict=True)
    return dict(zip(entries, lexicon.probability.tolist(), strict=True))


def plain_lexicon(pairs, iterations):
    """Brown et al. 1993, section 4.1, with a loop for each sum."""
    probability = defaultdict(lambda: 1.0)
    for _ in range(iterations):
        counts, totals = defaultdict(float), defaultdict(float)
        for source, target in pairs:
            for e in target.tolist():
                total = sum(probability[f, e] for f in source.tolist())
                for f in source.tolist():
                    counts[f, e] += probability[f, e] / total
        for (f, _), count in counts.items():
            totals[f] += count
        probability = defaultdict(float, {(f, e): count / totals[f] for (f, e), count in counts.items()})
    return probability


def test_one_iteration_by_hand():
    """`1 2 | 1 2` gives every entry a half, `1 | 1` the first a whole."""
    lexicon = learn_lexicon(pairs_of([([1, 2], [1, 2]), ([1], [1])]), target_vocabulary=3, iterations=1)
    assert as_dictionary(lexicon) == {(1, 1): 0.75, (1, 2): 0.25, (2, 1): 0.5, (2, 2): 0.5}


def test_words_find_their_translations():
    lexicon = learn_lexicon(pairs_of(TOY, end=[END]), target_vocabulary=6, iterations=20)
    best = lexicon.best(1, np.full(6, -1))
    assert best[:, 0].tolist() == [END, THE, HOUSE, BOOK, A, SMALL]
    assert all(as_dictionary(lexicon)[word, word] > 0.6 for word in range(6))


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("pairs", [pairs_of(TOY, end=[END]), random_pairs(200, 40)], ids=["toy", "random"])
def test_the_lexicon_is_that_of_plain_loops(pairs, iterations):
    expected = plain_lexicon(pairs, iterations)
    found = as_dictionary(learn_lexicon(pairs, target_vocabulary=40, iterations=iterations))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("links", [1, 100])
def test_links_taken_a_few_at_a_time_teach_the_same(monkeypatch, links):
    pairs = random_pairs(50, 20)
    whole = learn_lexicon(pairs, target_vocabulary=20)
    monkeypatch.setattr(module, "LINKS_AT_A_TIME", links)
    parts = learn_lexicon(pairs, target_vocabulary=20)
    assert np.array_equal(parts.source, whole.source)
    assert np.array_equal(parts.target, whole.target)
    np.testing.assert_allclose(parts.probability, whole.probability, rtol=1e-12)


def test_entries_are_sorted_and_probabilities_of_a_piece_add_up_to_one():
    lexicon = learn_lexicon(random_pairs(100, 30), target_vocabulary=30)
    assert (np.diff(lexicon.source * 30 + lexicon.target) > 0).all()
    sums = np.bincount(lexicon.source, lexicon.probability)
    np.testing.assert_allclose(sums[np.unique(lexicon.source)], 1)


def test_the_likeliest_come_first_and_what_is_missing_is_filled():
    lexicon = Lexicon(np.array([1, 1, 1, 3]), np.array([2, 5, 7, 4]), np.array([0.2, 0.5, 0.3, 1.0]))
    table = lexicon.best(2, fill=np.array([9, 8, 7, 6]))
    assert table.tolist() == [[9, 9], [5, 7], [7, 7], [4, 6]]


class FakeSide:
    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __getitem__(self, index):
        return np.full(self.lengths[index], index)


class FakeCorpus:
    """Pair n is made of the token n, twice as often in the target."""

    def __init__(self, lengths):
        self.source, self.target = FakeSide(lengths), FakeSide(2 * np.array(lengths))

    def __len__(self):
        return len(self.source.lengths)


def test_a_sample_keeps_to_its_links_and_its_pairs_together():
    corpus = FakeCorpus([3] * 100)  # 18 links each
    chosen = sample_pairs(corpus, 18 * 20, seed=1)
    numbers = [int(source[0]) for source, _ in chosen]
    assert len(chosen) == 20
    assert numbers == sorted(set(numbers))
    assert all((target == source[0]).all() and len(target) == 2 * len(source) for source, target in chosen)
    again, other = (sample_pairs(corpus, 18 * 20, seed=seed) for seed in (1, 2))
    assert [int(source[0]) for source, _ in again] == numbers != [int(source[0]) for source, _ in other]


def test_a_small_corpus_is_taken_whole_and_a_long_pair_by_itself():
    assert len(sample_pairs(FakeCorpus([3] * 10), 1_000, seed=1)) == 10
    assert len(sample_pairs(FakeCorpus([300] * 10), 1_000, seed=1)) == 1
