"""Lines to translations: nothing lost, nothing twice, nothing that depends on its neighbours."""

import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from mt.corpus.tokenizer import LINE_BREAKS, Tokenizer, train_tokenizer
from mt.decoding import translator as module
from mt.decoding.search import Hypothesis, SearchConfig
from mt.decoding.shortlist import Shortlist
from mt.decoding.translator import ScoredText, Translation, Translator, default_batch_tokens
from mt.device import Compute
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer

LINES = ["the dog sees a cat", "a cat", "the small dog finds the big house", "who runs", "a dog and a cat and a house"]
MAX_POSITIONS = 24


@pytest.fixture(scope="module")
def tokenizer():
    model, _ = train_tokenizer(LINES, vocabulary_size=290)
    return Tokenizer(model)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Random, and wild enough to end some translations early; the first pieces, being bytes, come up often."""
    torch.manual_seed(1)
    config = ModelConfig(
        source_vocabulary=tokenizer.size,
        target_vocabulary=tokenizer.size,
        share_embeddings=True,
        width=8,
        heads=2,
        feed_forward=16,
        encoder_layers=1,
        decoder_layers=1,
        max_positions=MAX_POSITIONS,
    )
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.decoder.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    return model


@pytest.fixture
def translator(model, tokenizer):
    """What is under test, anew for each test, which may change its settings."""
    compute = Compute(torch.device("cpu"), "fp32")
    return Translator([model], (tokenizer, tokenizer), SearchConfig(beam=2), compute)


@pytest.fixture
def searched(monkeypatch):
    """The calls of `search`: the shapes of their sources, their limits and keywords."""
    calls = []
    search = module.search

    def counted(models, source, mask, limits, config, **settings):
        calls.append((tuple(source.shape), list(limits), settings))
        return search(models, source, mask, limits, config, **settings)

    monkeypatch.setattr(module, "search", counted)
    return calls


def assert_same(found, expected):
    """The same translations, other words only where two hypotheses are ranked within 1e-4."""
    for one, other in zip(found, expected, strict=True):
        assert one.source == other.source
        for ours, theirs in zip(one.hypotheses, other.hypotheses, strict=True):
            assert ours.text == theirs.text or abs(ours.normalized_score - theirs.normalized_score) < 1e-4
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)


def test_empty_and_white_lines_give_empty_translations_without_a_search(translator, searched):
    white = ["", " ", "\t  ", "\u3000", "\r", "\u2028", "\x0c"]
    found = translator.translate(white)
    assert [translation.source for translation in found] == white
    assert all(translation.hypotheses == [ScoredText("", 0.0, 0.0, 0)] for translation in found)
    assert [translation.text for translation in found] == [""] * len(white)
    assert searched == []


def test_no_lines_give_no_translations(translator):
    assert translator.translate([]) == []


def test_identical_lines_are_translated_once(translator, searched):
    found = translator.translate([LINES[0], "", LINES[1], LINES[0], LINES[1], LINES[0]])
    assert sum(shape[0] for shape, _, _ in searched) == 2
    assert found[0] == found[3] == found[5]
    assert found[2] == found[4]
    assert found[0].source != found[2].source


def test_lines_that_differ_in_a_space_are_different_lines(translator, searched):
    translator.translate(["a cat", "a  cat", " a cat"])
    assert sum(shape[0] for shape, _, _ in searched) == 3


def test_order_is_kept_and_each_line_translated_as_alone(translator):
    lines = [*LINES, "", *reversed(LINES)]
    assert_same(translator.translate(lines), [translator.translate([line])[0] for line in lines])
    assert len({translation.text for translation in translator.translate(LINES)}) > 1


def test_lines_in_capitals_are_read_in_lower_case_where_the_model_knows_no_others(translator):
    lines = [line for line in LINES if len(line) > 6]
    loud = [line.upper() for line in lines]
    shouted, spoken = translator.translate(loud), translator.translate(lines)
    assert [each.text for each in shouted] != [each.text for each in spoken]
    translator.knows_capitals = False
    found = translator.translate([*loud, *lines])
    assert [each.source for each in found] == [*loud, *lines]
    assert [each.text for each in found] == [each.text for each in spoken] * 2


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (2 * 448, 1),  # a layer's two keys and values of 8 bfloat16 numbers: 32 bytes, of 1 + 2 * 6.5 tokens
        (2 * 448 * 64 - 1, 32),
        (2 * 448 * 64, 64),
        (10, 1),
        (10**12, 65_536),
    ],
)
def test_on_cuda_a_batch_is_what_half_of_the_free_memory_remembers(model, monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**13))
    config = SearchConfig(beam=2, max_length_ratio=5.5)
    assert default_batch_tokens(Compute(torch.device("cuda"), "bf16"), [model], config) == expected


def test_on_the_cpu_a_batch_is_as_large_as_the_guide_says(model):
    compute = Compute(torch.device("cpu"), "fp32")
    alone, two, five = (default_batch_tokens(compute, [model], SearchConfig(beam=beam)) for beam in (1, 2, 5))
    assert two == five
    guide = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")
    assert f"`--batch-tokens` is {five:,} on the CPU, or {alone:,} with a beam of 1," in guide


@pytest.mark.parametrize("shortened", [False, True])
def test_few_sentences_are_searched_by_what_is_captured(model, tokenizer, device, searched, shortened):
    """Not where the vocabulary is shortened, which is so for every batch anew."""
    compute, config = Compute(device, "fp32"), SearchConfig(beam=2)
    shortlist = Shortlist(torch.full((tokenizer.size, 1), 7), torch.arange(tokenizer.size)) if shortened else None
    plain, capturing = (
        Translator(
            [deepcopy(model).to(device)], (tokenizer, tokenizer), config, compute, shortlist=shortlist, capture=capture
        )
        for capture in (False, True)
    )
    many = [f"{line} {word}" for line in LINES for word in ("now", "and then")]
    few = many[:6]
    expected = plain.translate(few)
    assert len(searched) == 1
    assert_same(capturing.translate(few), expected)
    assert len(searched) == (2 if shortened else 1)
    capturing.translate([f"{i} {LINES[0]}" for i in range(17)])
    assert searched[-1][0][0] == 17


@pytest.mark.parametrize("batch_tokens", [1, 25, 40])
def test_the_size_of_batches_changes_no_translation(translator, batch_tokens):
    lines = [f"{line} {word}" for line in LINES for word in ("now", "and then", "")]
    expected = translator.translate(lines)
    translator.batch_tokens = batch_tokens
    assert_same(translator.translate(lines), expected)


def test_a_batch_keeps_to_its_budget_or_is_one_sentence(translator):
    translator.config, translator.batch_tokens = SearchConfig(max_length_offset=1), 10
    sentences = [[4] * length for length in (3, 9, 1, 5, 2, 5, 30, 4)]
    batches = translator.batches(sentences)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    longest_first = [[len(sentences[i]) for i in batch] for batch in batches]
    assert longest_first == [[30], [9], [5, 5], [4, 3], [2, 1]]


def test_a_short_sentence_counts_as_what_its_translation_may_always_have(translator):
    assert translator.config.max_length_offset == 10
    translator.batch_tokens = 40
    for length in (1, 9, 10):
        assert [len(batch) for batch in translator.batches([[4] * length] * 8)] == [4, 4]


@pytest.mark.parametrize(
    ("batch_tokens", "workers", "sizes"),
    [
        (130, 1, [10] * 4),  # not 13, 13, 13, 1
        (130, 2, [10] * 4),
        (80, 2, [7, 7, 7, 7, 7, 5]),
        (10**30, 2, [20] * 2),
        (10**30, 1, [40]),
        (1, 3, [1] * 40),
    ],
)
def test_batches_are_as_many_as_the_budget_and_the_workers_ask_for_and_alike(translator, batch_tokens, workers, sizes):
    translator.batch_tokens = batch_tokens
    assert [len(batch) for batch in translator.batches([[4] * 10] * 40, workers)] == sizes


def test_batches_of_unlike_sentences_are_alike_in_tokens(translator):
    sentences = [[4] * length for length in range(10, 60)]
    tokens = [len(batch) * len(sentences[batch[0]]) for batch in translator.batches(sentences, workers=2)]
    assert len(tokens) == 2
    assert max(tokens) - min(tokens) < 60


def test_workers_translate_as_one_process_does(translator, model, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_TOKENS_A_WORKER", 20)
    lines = [f"{line} {word}" for line in LINES for word in ("now", "and then", "", "here")]
    expected = translator.translate(lines)
    with Translator([model], translator.tokenizers, translator.config, translator.compute, workers=2) as shared:
        assert_same(shared.translate(lines[:1]), expected[:1])
        assert not shared.workers.processes  # one line is not worth a process
        assert_same(shared.translate(lines), expected)
        assert shared.workers.processes
        assert_same(shared.translate(lines[::-1]), expected[::-1])
    assert not shared.workers.processes


def test_each_worker_has_its_share_of_a_window(model, tokenizer, translator, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_TOKENS_A_WORKER", 20)
    shared = Translator([model], translator.tokenizers, translator.config, translator.compute, workers=3)
    given = []
    monkeypatch.setattr(shared.workers, "map", lambda batches: given.extend(batches) or [[] for _ in batches])
    sentences = [[4] * 10] * 60
    list(shared.results(sentences))
    assert [len(batch) for batch in given] == [20] * 3


def test_fewer_sentences_than_workers_are_translated_by_one_process(model, tokenizer, translator, monkeypatch):
    shared = Translator([model], translator.tokenizers, translator.config, translator.compute, workers=3)
    monkeypatch.setattr(shared, "translate_batch", lambda batch: [[] for _ in batch])
    assert [batch for batch, _ in shared.results([[4] * 1000] * 2)] == [[0, 1]]
    assert not shared.workers.processes


def test_a_line_that_is_too_long_is_cut_with_a_warning_that_names_it(translator, tokenizer, caplog, searched):
    long = " ".join(["dog"] * 2000)
    count = len(tokenizer.encode([long])[0])
    with caplog.at_level(logging.WARNING):
        translator.translate(["a cat", "", long, long], first_number=1999)
    assert [record.getMessage() for record in caplog.records] == [
        f"line 2,001 of the input has {count:,} tokens;"
        f" the model reads {MAX_POSITIONS - 1}: the rest is left untranslated"
    ]
    assert max(shape[1] for shape, _, _ in searched) == MAX_POSITIONS


def test_a_cut_line_is_its_first_tokens_and_the_end(translator, tokenizer, caplog):
    eos = tokenizer.specials.eos
    fitting, long = list(range(4, 4 + MAX_POSITIONS - 1)), list(range(4, 4 + MAX_POSITIONS))
    assert translator.fit(fitting, 1) == [*fitting, eos]
    assert caplog.records == []
    assert translator.fit(long, 2) == [*fitting, eos]
    assert len(caplog.records) == 1


def test_limits_depend_on_the_sentence_and_on_the_positions(translator, tokenizer, searched):
    translator.config = SearchConfig(beam=1, max_length_ratio=1.5, max_length_offset=2)
    lines = ["a cat", "the small dog finds the big house and the small dog"]
    translator.translate(lines)
    tokens = sorted((len(ids) + 1 for ids in tokenizer.encode(lines)), reverse=True)
    assert searched[0][1] == [min(int(1.5 * count) + 2, MAX_POSITIONS) for count in tokens]
    assert min(int(1.5 * tokens[0]) + 2, MAX_POSITIONS) == MAX_POSITIONS  # the second bound was tested


def test_a_line_of_which_the_tokenizer_leaves_nothing_is_empty(translator, tokenizer, searched, monkeypatch):
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda lines, threads: encode([line.strip("\u200b") for line in lines]))
    translations = translator.translate(["a cat", "\u200b", "who runs"])
    assert [bool(translation.hypotheses[0].tokens) for translation in translations] == [True, False, True]
    assert translations[1].text == ""
    assert sum(shape[0] for shape, *_ in searched) == 2


def test_lines_without_numbers_are_not_warned_of(translator, tokenizer, caplog):
    long = "a cat " * MAX_POSITIONS
    [numbered], [unnumbered] = translator.translate([long]), translator.translate([long], first_number=None)
    assert numbered.text == unnumbered.text
    assert len(caplog.records) == 1


def test_special_ids_but_the_end_are_forbidden(translator, tokenizer, searched):
    translator.translate(["a cat"])
    specials = tokenizer.specials
    assert searched[0][2] == {
        "bos": specials.bos,
        "eos": specials.eos,
        "forbidden": sorted([specials.pad, specials.bos, specials.unk]),
        "candidates": None,
    }


def test_a_translation_never_contains_a_line_break(translator, tokenizer, monkeypatch):
    ids = tokenizer.encode(["a\nb\rc\u2028d\x85e"])[0]
    monkeypatch.setattr(module, "search", lambda *arguments, **settings: [[Hypothesis(ids, -2.0, -1.0)]])
    assert translator.translate(["a cat"])[0].hypotheses == [ScoredText("a b c d e", -2.0, -1.0, len(ids) + 1)]


def test_with_a_shortlist_of_all_pieces_translations_are_the_same(translator, tokenizer):
    expected = translator.translate(LINES)
    everything = torch.arange(tokenizer.size)
    translator.shortlist = Shortlist(torch.full((tokenizer.size, 1), tokenizer.specials.eos), everything)
    for one, other in zip(translator.translate(LINES), expected, strict=True):
        assert one.text == other.text
        assert one.hypotheses[0].score == pytest.approx(other.hypotheses[0].score, abs=1e-5)


def test_a_batch_has_the_candidates_of_its_own_sentences(translator, tokenizer, searched):
    eos = tokenizer.specials.eos
    translator.shortlist = Shortlist(torch.arange(tokenizer.size)[:, None], torch.tensor([eos]))  # each for itself
    translator.batch_tokens = 1  # a sentence a batch
    translator.config = SearchConfig(beam=2, nbest=2)
    short, long = LINES[1], LINES[0]
    found = translator.translate([short, long])
    pieces = [sorted({*ids, eos}) for ids in tokenizer.encode([long, short])]  # the longest is searched first
    assert [call[2]["candidates"].tolist() for call in searched] == pieces
    for translation in found:
        letters = {letter for hypothesis in translation.hypotheses for letter in hypothesis.text}
        assert letters
        assert letters <= set(translation.source)


WEIRD = {
    "a carriage return": "a\rcat",
    "a line separator": "a\u2028cat\u2029dog\x85house\x0c",
    "a null": "a \0 cat",
    "a null alone": "\0",
    "a byte-order mark": "\ufeffa cat",
    "a byte-order mark alone": "\ufeff",
    "emoji": "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "unseen scripts": "日本語 ไทย العربية",
    "a private character": "\ue000\U0010ffff",
    "the space of SentencePiece": "a▁cat ▁",
    "names of special pieces": "<s> </s> <pad> <unk> <0x0A>",
    "a word of 6,000 characters": "x" * 6000,
    "a line of 2,000 words": "cat " * 2000,
    "combining marks": "a" + "\u0301" * 500,
}


@pytest.mark.parametrize("line", WEIRD.values(), ids=WEIRD.keys())
def test_weird_lines_are_translated_to_one_line_each_as_alone(translator, line):
    found = translator.translate([LINES[0], line, LINES[1]])
    assert [translation.source for translation in found] == [LINES[0], line, LINES[1]]
    assert not any(LINE_BREAKS.search(translation.text) for translation in found)
    assert_same(found, [translator.translate([each])[0] for each in (LINES[0], line, LINES[1])])


def test_the_best_hypotheses_come_best_first(translator):
    translator.config = SearchConfig(beam=3, nbest=3)
    for translation in translator.translate(LINES):
        ranks = [hypothesis.normalized_score for hypothesis in translation.hypotheses]
        assert len(ranks) == 3
        assert ranks == sorted(ranks, reverse=True)
        assert translation.text == translation.hypotheses[0].text


def test_an_ensemble_reads_as_far_as_its_shortest_model(model, tokenizer):
    torch.manual_seed(2)
    short = Transformer(
        ModelConfig(
            source_vocabulary=tokenizer.size,
            target_vocabulary=tokenizer.size,
            share_embeddings=True,
            width=4,
            heads=1,
            feed_forward=8,
            encoder_layers=1,
            decoder_layers=1,
            max_positions=9,
        )
    ).eval()
    compute = Compute(torch.device("cpu"), "fp32")
    both = Translator([model, short], (tokenizer, tokenizer), SearchConfig(beam=2), compute)
    assert len(both.fit(list(range(4, 50)), 1)) == 9
    assert len(both.translate([LINES[4]])) == 1


def test_every_device_gives_the_same_translations(translator, model, tokenizer, device):
    expected = translator.translate(LINES)
    moved, compute = deepcopy(model).to(device), Compute(device, "fp32")
    there = Translator([moved], (tokenizer, tokenizer), SearchConfig(beam=2), compute)
    assert_same(there.translate(LINES), expected)


@pytest.mark.parametrize(("length_penalty", "text"), [(0.0, "short"), (1.0, "longer"), (2.0, "longest of all")])
def test_hypotheses_are_ranked_anew_by_score_over_length_to_the_penalty(length_penalty, text):
    """-2, -2.7, -5 with penalty 0; -1, -0.9, -1 with 1; -0.5, -0.3, -0.2 with 2."""
    hypotheses = [ScoredText("longer", -2.7, -0.9, 3), ScoredText("short", -2.0, -1.0, 2)]
    hypotheses.append(ScoredText("longest of all", -5.0, -1.0, 5))
    assert Translation("source", hypotheses).ranked_by(length_penalty).text == text


def test_an_empty_translation_is_ranked_first_where_there_is_no_other():
    assert Translation(" ", [ScoredText("", 0.0, 0.0, 0)]).ranked_by(1.4).text == ""
