"""`mt shortlist`: learn from a run's text which target pieces its translations may be made of."""

import logging
from pathlib import Path

import numpy as np
import torch

from mt.corpus.encoded import EncodedCorpus
from mt.corpus.lexicon import SentencePair, learn_lexicon, sample_pairs
from mt.corpus.tokenizer import Tokenizer
from mt.corpus.variation import SentencePairs, Sentences, Variation
from mt.errors import ConfigError, DataError, ModelError
from mt.pipelines.prepare import read_or_encode
from mt.pipelines.recipe import Settings
from mt.pipelines.resume import check_unchanged
from mt.pipelines.run_folder import RunFolder, load_tokenizers
from mt.pipelines.texts import Texts
from mt.settings import read_toml
from mt.training.checkpoint import save_tensors

logger = logging.getLogger(__name__)

LINKS = 30_000_000  # of the pairs learnt from: 48,000 with 25 tokens a side; a gigabyte of memory at the most
FREQUENT = 500  # pieces of the target text that may come up in any translation


def make_shortlist(path: Path, pieces: int) -> None:
    """Write `shortlist.safetensors` into a run folder, with so many target pieces for each source piece.

    Raises `DataError` when the text that the run was trained on is not there, or not as it was.
    """
    run = RunFolder(path)
    source, target = tokenizers = load_tokenizers(run, run.read_config())
    pairs = as_learned(run, tokenizers, sample_pairs(training_text(run, tokenizers), LINKS, seed=1))
    lexicon = learn_lexicon(pairs, target.size)
    # What has few translations is rare: with one vocabulary for both sides it is kept as it stands, as names are.
    fill = np.arange(source.size) if source is target else np.full(source.size, target.specials.eos)
    counts = np.bincount(np.concatenate([ids for _, ids in pairs]), minlength=target.size)
    frequent = np.argsort(-counts, kind="stable")[:FREQUENT].tolist()
    always = sorted({*frequent, *target.bytes(), target.specials.eos})
    tensors = {"translations": torch.from_numpy(lexicon.best(pieces, fill)), "always": torch.tensor(always)}
    save_tensors(run.shortlist, {name: tensor.int() for name, tensor in tensors.items()})
    logger.info(
        "%s: %s target pieces for each source piece, learnt from %s pairs, and %s for any sentence",
        run.shortlist, f"{pieces:,}", f"{len(pairs):,}", f"{len(always):,}",
    )  # fmt: skip


def as_learned(
    run: RunFolder, tokenizers: tuple[Tokenizer, Tokenizer], pairs: list[SentencePair]
) -> list[SentencePair]:
    """The pairs with the noise that a run has learned them with: words in lower case need translations, too."""
    recipe = run.read_recipe()
    variation = Variation(
        tokenizers=tokenizers,
        sampling_alpha=0.0,
        noise_rate=recipe["training"]["noise_rate"],
        max_tokens=recipe["data"]["max_tokens"],
        seed=1,
    )
    source, target = (Sentences(side) for side in zip(*pairs, strict=True))
    noisy = variation(SentencePairs(source, target), np.arange(len(pairs)), epoch=0, number=0)
    return list(zip(noisy.source.sentences, noisy.target.sentences, strict=True))


def training_text(run: RunFolder, tokenizers: tuple[Tokenizer, Tokenizer]) -> EncodedCorpus:
    """The text that a run was trained on, from its cache, or encoded anew.

    Raises `DataError` where the run's text, also that which it is validated on, is not what it was.
    """
    if not run.recipe.is_file():
        raise ModelError(
            f"{run.path} has no run.toml, which says what it was trained on",
            f"mt shortlist the run that it was made from, and copy {run.shortlist.name} here",
        )
    settings = Settings()
    settings.add(read_toml(run.recipe), str(run.recipe))
    try:
        texts = Texts.of(run, settings)
        check_unchanged(run, texts.checksums)
    except (ConfigError, DataError) as error:
        hint = f"put the text back unchanged where {run.recipe} says; relative paths start at the current folder"
        raise DataError(error.message, hint) from error
    return read_or_encode(run, settings, texts, tokenizers).train
