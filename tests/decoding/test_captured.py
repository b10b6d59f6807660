"""Search whose tensors stay where they are against search that grows; on CUDA captured, on the CPU step by step."""

import pytest
import torch

from mt.decoding import captured as module
from mt.decoding.captured import CapturedSearches
from mt.decoding.search import SearchConfig, search
from mt.device import Compute
from mt.model.products import prepare_to_translate
from tests.decoding.made_up import END, SPECIALS, assert_same, padded, random_model, random_sentences


def both(models, batches, device, **settings):
    """What each batch of sentences gets from one `CapturedSearches`, and from `search`."""
    config = SearchConfig(**settings)
    searches = CapturedSearches(models, config, **SPECIALS)
    found, expected = [], []
    for sentences in batches:
        source, mask = padded(sentences, device)
        limits = [2 * len(ids) + 5 for ids in sentences]
        found += searches.search(source, mask, limits)
        expected += search(models, source, mask, limits, config, **SPECIALS)
    return found, expected, searches


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_is_found(device, count, beam, positions):
    """Batches of two sizes that take turns, whose sentences are of different lengths: nothing is left of the last."""
    models = [random_model(seed, device, positions=positions) for seed in range(3, 3 + count)]
    batches = [random_sentences(3 + seed % 2, seed) for seed in range(6)]
    found, expected, searches = both(models, batches, device, beam=beam, nbest=beam)
    assert_same(found, expected)
    assert len(searches.kept) == 2
    assert len({len(hypotheses[0].ids) for hypotheses in expected}) > 3


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_in_bfloat16_hypotheses_as_good_are_found(device, positions):
    model = random_model(3, device, positions=positions)
    prepare_to_translate(model, "bf16")
    with Compute(device, "bf16").autocast():
        found, expected, _ = both([model], [random_sentences(4, seed) for seed in range(6)], device, beam=3)
    ranks = [each[0].normalized_score for each in expected]
    assert [each[0].normalized_score for each in found] == pytest.approx(ranks, abs=0.02)
    assert max(ranks) - min(ranks) > 0.2


def test_the_same_is_found_without_scores(device):
    models = [random_model(3, device)]
    found, expected, _ = both(models, [random_sentences(4, seed) for seed in range(3)], device, beam=1, scored=False)
    assert [each[0].ids for each in found] == [each[0].ids for each in expected]


def test_steps_end_soon_after_all_sentences_have_finished(monkeypatch):
    """Every second step is asked about; the translation is empty, and might have 32 tokens."""
    model = random_model(3)
    model.decoder_norm.weight.zero_()
    model.decoder_norm.bias.fill_(1.0)
    model.target_embedding.weight[END] = 1.0  # the end is likeliest, whatever has been read
    steps, advance = [], module.FixedSearch.advance
    monkeypatch.setattr(module.FixedSearch, "advance", lambda search: steps.append(1) or advance(search))
    searches = CapturedSearches([model], SearchConfig(beam=1), **SPECIALS)
    source, _ = padded([[4, 5, END]])
    assert searches.search(source, None, [32])[0][0].ids == []
    assert len(steps) == 2


def test_sentences_without_padding_need_no_mask(device):
    model, config = random_model(3, device), SearchConfig(beam=3)
    searches = CapturedSearches([model], config, **SPECIALS)
    longer, shorter = ([[5, 6, 7, 8, 4, 3]], [[4, 3]])
    for sentences in (longer, shorter):
        source, _ = padded(sentences, device)
        expected = search([model], source, None, [9], config, **SPECIALS)
        assert_same(searches.search(source, None, [9]), expected)


def test_searches_serve_lengths_up_to_a_multiple_and_go_together(device, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    searches = CapturedSearches([random_model(3, device)], SearchConfig(beam=2), **SPECIALS)

    def kept(sentences, length, limit):
        source = torch.full((sentences, length), 5, device=device)
        searches.search(source, None, [limit] * sentences)
        return list(searches.kept)

    assert kept(1, 16, 32) == [(1, 16, 32)]
    assert kept(1, 3, 2) == [(1, 16, 32)]
    assert kept(2, 17, 33) == [(1, 16, 32), (2, 32, 64)]
    assert kept(3, 9, 9) == [(3, 16, 32)]
    assert kept(1, 9, 9) == [(3, 16, 32), (1, 16, 32)]


@pytest.mark.parametrize(
    ("limits", "taken"),
    [([33] * 8, True), ([33] * 9, False), ([2, 65], True), ([2] * 5 + [65], False), ([512], True), ([513], False)],
)
def test_few_short_translations_are_captured(limits, taken):
    assert CapturedSearches([], SearchConfig(), **SPECIALS).takes(limits) == taken


def test_a_step_of_a_captured_search_is_one_launch():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    searches = CapturedSearches([random_model(3, "cuda")], SearchConfig(beam=2), **SPECIALS)
    source, mask = padded(random_sentences(2), "cuda")
    first = searches.search(source, mask, [9, 9])
    [captured] = searches.kept.values()
    assert captured.next.__name__ == "replay"
    assert searches.search(source, mask, [9, 9]) == first
