"""Models of mt in CTranslate2: the same numbers, and with greedy search the same words."""

import pytest
import torch

from mt.corpus.tokenizer import Tokenizer, train_tokenizer
from mt.decoding.search import SearchConfig, search
from mt.interop.ctranslate2 import to_ctranslate2
from mt.model.config import ModelConfig
from mt.model.transformer import Transformer

ctranslate2 = pytest.importorskip("ctranslate2")

GERMAN = ["der hund sieht eine katze", "eine katze", "der kleine hund findet das große haus", "wer rennt"]
ENGLISH = ["the dog sees a cat", "a cat", "the small dog finds the big house", "who runs"]


def tokenizer_of(lines):
    model, _ = train_tokenizer(lines, vocabulary_size=290)
    return Tokenizer(model)


@pytest.fixture(params=["pre-norm, shared", "post-norm, apart", "pre-norm, shared, rotary"])
def original(request):
    """A random model and its tokenizers."""
    norm_first = request.param.startswith("pre-norm, shared")
    if norm_first:
        tokenizers = (tokenizer_of(GERMAN + ENGLISH),) * 2
    else:
        tokenizers = tokenizer_of(GERMAN), tokenizer_of(ENGLISH)
    torch.manual_seed(1)
    config = ModelConfig(
        source_vocabulary=tokenizers[0].size, target_vocabulary=tokenizers[1].size, share_embeddings=norm_first,
        width=16, heads=2, feed_forward=32, encoder_layers=2, decoder_layers=1, max_positions=64,
        norm_first=norm_first, positions="rotary" if "rotary" in request.param else "sinusoidal",
    )  # fmt: skip
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, tokenizers


def test_a_given_translation_has_the_same_score_token_by_token(original, tmp_path):
    model, (reader, writer) = original
    to_ctranslate2(model, (reader, writer), "float32").save(str(tmp_path))
    sources, targets = reader.encode(GERMAN), writer.encode(ENGLISH)
    scored = ctranslate2.Translator(str(tmp_path)).score_batch(
        [reader.pieces(ids) for ids in sources], [writer.pieces(ids) for ids in targets]
    )
    for source, target, theirs in zip(sources, targets, scored, strict=True):
        state = model.encode(torch.tensor([[*source, reader.specials.eos]]))
        log_probs = model.decode(torch.tensor([[writer.specials.bos, *target]]), state)[0].log_softmax(-1)
        ours = log_probs.gather(1, torch.tensor([*target, writer.specials.eos])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(theirs.log_probs), ours, atol=1e-3, rtol=0)


def test_greedy_search_finds_the_same_words(original, tmp_path):
    model, (reader, writer) = original
    to_ctranslate2(model, (reader, writer), "float32").save(str(tmp_path))
    translator, specials = ctranslate2.Translator(str(tmp_path)), writer.specials
    unwanted = [specials.pad, specials.bos, specials.unk]
    for sentence in reader.encode(GERMAN):
        source = torch.tensor([[*sentence, reader.specials.eos]])
        config = SearchConfig(beam=1)
        [[ours]] = search([model], source, None, [20], config, bos=specials.bos, eos=specials.eos, forbidden=unwanted)
        [theirs] = translator.translate_batch(
            [reader.pieces(sentence)],
            beam_size=1,
            max_decoding_length=19,
            suppress_sequences=[writer.pieces([each]) for each in unwanted],
        )
        assert theirs.hypotheses[0] == writer.pieces(ours.ids)


def test_weights_of_8_bits_make_a_smaller_file(original, tmp_path):
    sizes = []
    for weights in ("float32", "int8"):
        (tmp_path / weights).mkdir()
        to_ctranslate2(*original, weights).save(str(tmp_path / weights))
        sizes.append((tmp_path / weights / "model.bin").stat().st_size)
    assert sizes[1] < 0.75 * sizes[0]
