"""Text through the tokenizer and back, what training does to the vocabulary, and foreign models."""

import io
import random
import unicodedata
from collections import Counter

import pytest
import sentencepiece

from mt.corpus.tokenizer import (
    LINE_BREAKS,
    Specials,
    Tokenizer,
    TokenizerConfig,
    sample_of,
    script_of,
    train_tokenizer,
    vocabulary_size_for,
)
from mt.errors import ConfigError, ModelError

WORDS = "the a small big red dog cat house sees finds likes runs near behind under it and was Ünal 3.5".split()
TYPES = ("unigram", "bpe")


def made_up_lines(count=200):
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randint(3, 12))).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module", params=TYPES)
def tokenizer(request):
    model, warning = train_tokenizer(made_up_lines(), type=request.param, vocabulary_size=330)
    assert warning == ""
    return Tokenizer(model)


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer.encode([text])[0])


@pytest.mark.parametrize(
    "text",
    [
        "The dog sees a cat.",
        "two  spaces,   three",
        " leading and trailing ",
        "  ",
        "tab\tand\t\ttabs",
        "no-break\u00a0space and\u3000wide one, zero\u200bwidth",
        "😀 👩‍👩‍👧‍👦 🏳️‍🌈",
        "a\0b",
        "日本語 ไทย العربية עברית ქართული",
        "e\u0301 is not é, ﬁ not fi, Å not Å, ½ not 1/2",
        "\ufeffmark",
        "<s> </s> <pad> <unk> <0x0A>",
        "x" * 5000,
        "1984 and 3,141.59",
    ],
)
def test_text_comes_back_as_it_went_in(tokenizer, text):
    assert round_trip(tokenizer, text) == text


def characters_of(codes):
    """Without line breaks, and without SentencePiece's own space."""
    return LINE_BREAKS.sub("", "".join(map(chr, codes))).replace("▁", "")


def test_random_unicode_comes_back_as_it_went_in(tokenizer):
    generator = random.Random(1)
    allowed = characters_of([*range(0xD800), *range(0xE000, 0x110000)])  # no surrogates
    narrow = characters_of(range(0x3000))
    for pool in (allowed, narrow, "ab \t\0é"):
        for _ in range(200):
            text = "".join(generator.choices(pool, k=generator.randint(1, 30)))
            assert round_trip(tokenizer, text) == text


@pytest.mark.parametrize(("type", "mild", "wild"), [("unigram", 0.9, 0.05), ("bpe", 0.05, 0.9)])
def test_alpha_says_how_far_drawn_pieces_are_from_the_best(type, mild, wild):
    """Of unigram it is the power of a likelihood, of BPE the share of merges that are left out."""
    lines = made_up_lines()
    tokenizer = Tokenizer(train_tokenizer(lines, type=type, vocabulary_size=330)[0])
    near, far = (sum(map(len, tokenizer.sample(lines, alpha, seed=1))) for alpha in (mild, wild))
    assert near < 0.9 * far


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Internal: somewhere\nno such thing", "cannot train a tokenizer of 300 pieces: no such thing"),
        ("Vocabulary size too high (300). Please set it to a value <= 200.", "no vocabulary size .*; 200 was the last"),
    ],
)
def test_what_sentencepiece_refuses_for_good_is_one_clear_error(monkeypatch, said, error):
    def refusing(**options):
        raise RuntimeError(said)

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", refusing)
    with pytest.raises(ConfigError, match=error):
        train_tokenizer(["a line"], vocabulary_size=300)


def test_line_breaks_decode_to_spaces(tokenizer):
    assert round_trip(tokenizer, "a\nb\rc\vd\fe\x1cf\x1dg\x1eh\x85i\u2028j\u2029k") == "a b c d e f g h i j k"
    assert round_trip(tokenizer, "a\r\nb") == "a  b"


def test_many_lines_are_encoded_as_each_alone_with_any_number_of_threads(tokenizer):
    lines = made_up_lines(150)  # more than take no thread
    alone = [tokenizer.encode([line])[0] for line in lines]
    assert tokenizer.encode(lines) == tokenizer.encode(lines, threads=3) == alone
    assert tokenizer.encode([]) == []


def test_ids_are_those_of_words_without_special_ones(tokenizer):
    specials = tokenizer.specials
    assert specials == Specials(pad=0, unk=1, bos=2, eos=3)
    ids = {i for line in tokenizer.encode([*made_up_lines(), "日本語 <s> </s> <unk>"]) for i in line}
    assert ids.isdisjoint({0, 1, 2, 3})
    assert max(ids) < tokenizer.size == 330


def test_special_ids_decode_to_nothing(tokenizer):
    ids = tokenizer.encode(["a cat"])[0]
    assert tokenizer.decode([2, *ids, 3, 0, 0]) == "a cat"
    assert tokenizer.decode([]) == tokenizer.decode([2, 3]) == ""


@pytest.mark.parametrize("type", TYPES)
def test_a_number_is_spelt_digit_by_digit_however_often_it_was_seen(type):
    model, _ = train_tokenizer([*made_up_lines(), *["in 1984"] * 100], type=type, vocabulary_size=330)
    tokenizer = Tokenizer(model)
    assert tokenizer.pieces(tokenizer.encode(["in 1984"])[0])[-4:] == ["1", "9", "8", "4"]


@pytest.mark.parametrize("type", TYPES)
def test_training_twice_gives_the_same_bytes(type):
    lines = made_up_lines()
    first, _ = train_tokenizer(lines, type=type, vocabulary_size=320)
    assert train_tokenizer(iter(lines), type=type, vocabulary_size=320)[0] == first


@pytest.mark.parametrize("type", TYPES)
def test_a_vocabulary_that_the_text_cannot_fill_is_lowered_and_both_numbers_said(type):
    model, warning = train_tokenizer(made_up_lines(), type=type, vocabulary_size=8000)
    size = Tokenizer(model).size
    assert 260 < size < 1000
    assert warning == f"vocabulary size lowered from 8,000 to {size} pieces: the text yields no more"


@pytest.mark.parametrize("type", TYPES)
def test_a_vocabulary_below_what_the_text_needs_is_raised_and_both_numbers_said(type):
    model, warning = train_tokenizer(made_up_lines(), type=type, vocabulary_size=50)
    size = Tokenizer(model).size
    characters = set("".join(made_up_lines())) - {" "}
    assert 256 + 4 < size <= 256 + 4 + len(characters) + 1  # bytes, special pieces, characters, the space
    assert warning == f"vocabulary size raised from 50 to {size} pieces: the text needs it"


@pytest.mark.parametrize("type", TYPES)
def test_one_letter_is_text_enough(type):
    model, warning = train_tokenizer(["a"], type=type, vocabulary_size=8000)
    assert "lowered" in warning
    assert round_trip(Tokenizer(model), "a b") == "a b"


def test_a_line_is_learned_from_however_long_it_is():
    lines = made_up_lines()
    model, _ = train_tokenizer([" ".join(lines * 20)], vocabulary_size=330)
    assert len(" ".join(lines * 20)) > 1 << 16
    tokenizer = Tokenizer(model)
    assert len(tokenizer.encode(lines[:1])[0]) < len(lines[0]) / 2


@pytest.mark.parametrize("lines", [[], ["", "  ", "\t"]])
def test_no_text_trains_no_tokenizer(lines):
    with pytest.raises(ConfigError, match="there is no text to train a tokenizer on"):
        train_tokenizer(lines, vocabulary_size=300)


@pytest.fixture(scope="module", params=["nfc", "nfkc"])
def normalizing(request):
    """The name of a normalisation, and text through a tokenizer that applies it."""
    model, _ = train_tokenizer(made_up_lines(), vocabulary_size=330, normalization=request.param)
    tokenizer = Tokenizer(model)
    return request.param.upper(), lambda text: round_trip(tokenizer, text)


def test_normalisation_composes_decomposed_text(normalizing):
    form, through = normalizing
    text = "é ü å ç ñ ệ ộ ǘ ﬁ ① ½ Å Ω 한글 が ﷺ ё й"
    assert through(unicodedata.normalize("NFD", text)) == unicodedata.normalize(form, text)
    assert through(text) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("normalizing", ["nfc"], indirect=True)  # the rules of NFKC are SentencePiece's own
@pytest.mark.parametrize("text", ["e\u0302\u0323", "ê\u0323", "ẹ\u0302", "가\u11a8"])
def test_normalisation_to_nfc_composes_every_spelling_of_a_character(normalizing, text):
    """Vietnamese from code page 1258 spells ệ as ê and a dot below; Hangul may come as 가 and a final consonant."""
    _, through = normalizing
    assert through(text) == unicodedata.normalize("NFC", text)


def test_normalisation_keeps_double_and_leading_spaces(normalizing):
    _, through = normalizing
    assert through(" two  spaces ") == " two  spaces "


def test_scripts_are_told_by_most_letters():
    assert script_of(["Das ist ein Hund.", "Ünal"]) == "LATIN"
    assert script_of(["Это собака", "ok"]) == "CYRILLIC"
    assert script_of(["日本"]) == "CJK"
    assert script_of(["한국어"]) == "HANGUL"
    assert script_of(["كلب 123 OK"]) == "ARABIC"
    assert script_of(["123 ...", ""]) == script_of([]) == ""


def trained_elsewhere(**options):
    """A SentencePiece model with SentencePiece's defaults, which have no `<pad>`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(made_up_lines()), model_writer=model, vocab_size=60, minloglevel=2, **options
    )
    return model.getvalue()


def test_a_model_without_padding_gets_one_row_more():
    tokenizer = Tokenizer(trained_elsewhere())
    assert tokenizer.size == 61
    assert tokenizer.specials == Specials(pad=60, bos=1, eos=2, unk=0)
    ids = tokenizer.encode(["a cat"])[0]
    assert tokenizer.decode([*ids, 2, 60]) == "a cat"
    assert tokenizer.pieces([60]) == ["<pad>"]


def test_a_model_without_a_beginning_starts_from_its_end():
    tokenizer = Tokenizer(trained_elsewhere(bos_id=-1, eos_id=1))
    assert (tokenizer.specials.bos, tokenizer.specials.eos) == (1, 1)


def test_a_model_without_an_end_is_refused():
    with pytest.raises(ModelError, match="theirs has no end-of-sentence piece"):
        Tokenizer(trained_elsewhere(eos_id=-1), "theirs")


@pytest.mark.parametrize("content", [b"plain text\n", b"\0" * 100, b"", bytes(range(256))])
def test_a_foreign_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "foreign.model"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"foreign\.model is (not a SentencePiece model|empty)"):
        Tokenizer.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read the tokenizer .*absent\.model: No such file"):
        Tokenizer.load(tmp_path / "absent.model")


def test_a_saved_model_is_the_same_tokenizer(tmp_path, tokenizer):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert (loaded.size, loaded.specials) == (tokenizer.size, tokenizer.specials)
    assert loaded.encode(made_up_lines(5)) == tokenizer.encode(made_up_lines(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "word"}, r"tokenizer\.type word is none of unigram, bpe"),
        ({"normalization": "nfd"}, r"tokenizer\.normalization nfd is none of none, nfc, nfkc"),
        ({"files": ("a", "b", "c")}, r"tokenizer\.files has more than two entries"),
        ({"sample_lines": 0}, r"tokenizer\.sample_lines is 0"),
        ({"sample_characters": -1}, r"tokenizer\.sample_characters is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(vocabulary_size=100, joint=True, **changes)


@pytest.mark.parametrize(("pairs", "size"), [(29_000, 8_000), (4_500_000, 32_000), (10**9, 32_000), (1, 1_000)])
def test_the_vocabulary_grows_with_the_corpus_between_two_bounds(pairs, size):
    assert vocabulary_size_for(pairs) == size


def test_the_vocabulary_is_one_that_products_like():
    assert {vocabulary_size_for(pairs) % 8 for pairs in range(1_000, 6_000_000, 9_973)} == {0}


def test_a_sample_is_all_lines_or_so_many_of_them_each_equally_likely():
    lines = [str(number) for number in range(10)]
    assert sample_of(lines, 10) == sample_of(iter(lines), 99) == lines
    counts = Counter(line for seed in range(2_000) for line in sample_of(lines, 3, seed))
    assert sum(counts.values()) == 3 * 2_000
    assert all(abs(counts[line] - 600) < 5 * (2_000 * 0.3 * 0.7) ** 0.5 for line in lines)  # five standard deviations
