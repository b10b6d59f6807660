"""From checked text to encoded corpora and a complete recipe: what is encoded once is kept in the cache.

The cache is keyed by the checksums of the texts and tokenizers and by the rules applied, so that a text that changed
is not mistaken for the one encoded; `mt.pipelines.checksums` says when a change is noticed.
"""

import hashlib
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mt.corpus.encoded import EncodedCorpus, damaged, encode_corpus
from mt.corpus.noise import noisy
from mt.corpus.parallel import CorpusFiles, sampling_weights
from mt.corpus.tokenizer import Specials, Tokenizer, TokenizerConfig, train_tokenizer
from mt.decoding.search import SearchConfig
from mt.device import Compute, usable_threads
from mt.errors import DataError
from mt.files import alone_at, atomic_directory, read_json, read_lines, write_json, write_text
from mt.pipelines.recipe import (
    CorpusFacts,
    DataConfig,
    RunConfig,
    Settings,
    cleaning_rules,
    noise_rate_for,
    resolve,
    resolve_tokenizer,
)
from mt.pipelines.run_folder import LoadedModel, RunFolder, load_tokenizers
from mt.pipelines.texts import CheckedText, Texts, cache_folder, check_text
from mt.settings import Values, build, defaults

logger = logging.getLogger(__name__)

FACTS = "facts.json"  # in a folder of encoded text


def make_tokenizers(
    text: CheckedText, config: TokenizerConfig, *, seed: int, noise_rate: float
) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of source and target: given ones, else trained on a sample; the same object when joint.

    They are trained on noise as a model is, so that words in lower case have pieces of their own.
    """
    if config.files:
        given = {path: Tokenizer.load(Path(path)) for path in config.files}
        return given[config.files[0]], given[config.files[-1]]
    chosen = np.random.default_rng(seed).random(text.pairs) < sample_share(text, config)
    generator = random.Random(seed)
    sample = (
        (noisy(source, generator) if generator.random() < noise_rate else source, target)
        for (source, target), used in zip(text.training_pairs(), chosen, strict=True)
        if used
    )

    def trained(lines: Iterator[str], side: str) -> Tokenizer:
        model, warning = train_tokenizer(
            lines, type=config.type, vocabulary_size=config.vocabulary_size, normalization=config.normalization
        )
        if warning:
            logger.warning("%s: %s", side, warning)
        return Tokenizer(model)

    if config.joint:
        joint = trained(chain.from_iterable(sample), "tokenizer")
        return joint, joint
    pairs = list(sample)
    return (
        trained((source for source, _ in pairs), "source tokenizer"),
        trained((target for _, target in pairs), "target tokenizer"),
    )


def sample_share(text: CheckedText, config: TokenizerConfig) -> float:
    """How large a part of the pairs tokenizers are trained on."""
    by_lines = min(1.0, config.sample_lines / (2 * text.pairs))
    by_characters = config.sample_characters / max(1, text.characters)
    if by_characters < by_lines:
        logger.info(
            "the tokenizer is trained on about %s of %s characters (tokenizer.sample_characters)",
            f"{config.sample_characters:,}", f"{text.characters:,}",
        )  # fmt: skip
    return min(by_lines, by_characters)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedFacts:
    """What was found of the text while it was encoded."""

    pairs: int  # to train on
    pairs_of_corpora: list[int]
    over_long: int = 0  # left out; older caches do not say
    valid_over_long: int = 0
    target_tokens: int
    max_length_ratio: float  # of translations, in tokens


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Encoded corpora, and what is known of them."""

    train: EncodedCorpus
    valid: EncodedCorpus
    valid_sources: list[str]
    valid_references: list[str]
    facts: EncodedFacts
    weights: np.ndarray | None  # of each training sentence

    @property
    def epoch_target_tokens(self) -> int:
        """Of all training sentences, each as often as an epoch holds it on average."""
        if self.weights is None:
            return self.facts.target_tokens
        return int(self.train.target.lengths @ self.weights)


def cache_key(checksums: list[Values], tokenizers: tuple[Tokenizer, Tokenizer], **settings: Any) -> str:
    record = {
        "texts": [entry["sha256"] for entry in checksums],
        "tokenizers": [hashlib.sha256(tokenizer.model).hexdigest() for tokenizer in tokenizers],
        **settings,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def encode_text(
    texts: Texts,
    text: CheckedText,
    folder: Path,
    tokenizers: tuple[Tokenizer, Tokenizer],
    *,
    max_tokens: int,
    threads: int,
) -> None:
    """Write the encoded corpora of a run into `folder`, whole or not at all."""
    with atomic_directory(folder) as partial:
        (partial / "train").mkdir()
        (partial / "valid").mkdir()
        kept = encode_corpus(
            text.training_pairs(), partial / "train", tokenizers, max_tokens=max_tokens, threads=threads
        )
        scored = encode_corpus(text.valid, partial / "valid", tokenizers, max_tokens=max_tokens, threads=threads)
        for name, fitting in (("training", kept), ("validation", scored)):
            if not fitting.any():
                raise DataError(f"every {name} pair is longer than {max_tokens} tokens", "raise data.max_tokens")
        write_text(partial / "valid.source", "".join(f"{source}\n" for source, _ in text.valid))
        write_text(partial / "valid.target", "".join(f"{target}\n" for _, target in text.valid))
        ends = np.cumsum([int(rows.sum()) for rows in text.rows])
        pairs_of_corpora = [int(part.sum()) for part in np.split(kept, ends[:-1])]
        train = EncodedCorpus(partial / "train")
        facts = EncodedFacts(
            pairs=len(train),
            pairs_of_corpora=pairs_of_corpora,
            over_long=int((~kept).sum()),
            valid_over_long=int((~scored).sum()),
            target_tokens=int(train.target.offsets[-1]),
            max_length_ratio=longest_ratio(train.source.lengths, train.target.lengths),
        )
        write_json(partial / FACTS, asdict(facts))
        texts.check_untouched()


MAX_LENGTH_OFFSET = 10  # tokens that a translation may have beyond max_length_ratio times those of its source


def longest_ratio(source_lengths: np.ndarray, target_lengths: np.ndarray) -> float:
    """Target tokens per source token that all but one in a thousand training pairs keep to, beyond the offset."""
    ratios = (target_lengths - MAX_LENGTH_OFFSET) / source_lengths
    return round(max(1.0, float(np.quantile(ratios, 0.999))) + 0.1, 2)


def read_prepared(folder: Path, corpora: list[CorpusFiles], temperature: float) -> PreparedData:
    """Raises `DataError` where a part of it is damaged or absent."""
    known = {item.name for item in fields(EncodedFacts)}  # a later mt may have written more
    try:
        record = read_json(folder / FACTS)
        facts = EncodedFacts(**{key: value for key, value in record.items() if key in known})
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / FACTS) from error
    train, valid = EncodedCorpus(folder / "train"), EncodedCorpus(folder / "valid")
    sources, references = (list(read_lines(folder / name)) for name in ("valid.source", "valid.target"))
    if not len(valid) <= len(sources) == len(references):
        raise damaged(folder / "valid.*")
    weights = None
    of_corpora = sampling_weights(corpora, facts.pairs_of_corpora, temperature)
    if any(weight != 1 for weight in of_corpora):
        weights = np.repeat(of_corpora, facts.pairs_of_corpora)
    return PreparedData(
        train=train,
        valid=valid,
        valid_sources=sources,
        valid_references=references,
        facts=facts,
        weights=weights,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run ready to train: its complete recipe, tokenizers, encoded text, and how it will be decoded."""

    config: RunConfig
    tokenizers: tuple[Tokenizer, Tokenizer]
    data: PreparedData
    knows_capitals: bool  # whether lines in capitals are to be given to the model as they stand

    @property
    def specials(self) -> tuple[Specials, Specials]:
        return self.tokenizers[0].specials, self.tokenizers[1].specials

    @property
    def decoding(self) -> SearchConfig:
        return SearchConfig(max_length_ratio=self.data.facts.max_length_ratio, max_length_offset=MAX_LENGTH_OFFSET)


def prepare_new(
    run: RunFolder, settings: Settings, texts: Texts, compute: Compute, start: LoadedModel | None
) -> PreparedRun:
    """Check the text, make tokenizers, encode, complete the recipe.

    Of the run folder only the cache is written; an earlier run stays as it is.
    """
    seed = seed_of(settings)
    checked = check_text(texts, undecided_data(settings).rules, seed=seed)
    tokenizer_config = resolve_tokenizer(settings, checked.pairs, same_script=checked.same_script())
    # Decided once, for the tokenizer and the model: after encoding there may be fewer pairs.
    noise_rate = noise_rate_for(settings, checked.pairs)
    settings = Settings(settings.given | {"training": settings.given["training"] | {"noise_rate": noise_rate}})
    if start:
        tokenizers = start.tokenizers
    else:
        tokenizers = make_tokenizers(checked, tokenizer_config, seed=seed, noise_rate=noise_rate)
    if tokenizer_config.files:
        warn_of_unused(settings.said()["tokenizer"], tokenizers)
    if alpha := settings.said()["training"].get("sampling_alpha"):
        for tokenizer in tokenizers:
            tokenizer.sample(["a"], alpha, seed=1)  # refuses where it cannot
    data = read_or_encode(run, settings, texts, tokenizers, checked)
    source, target = texts.languages()
    if start:
        source, target = source or start.languages[0], target or start.languages[1]
    config = complete_recipe(settings, tokenizer_config, (source, target), tokenizers, data, compute)
    if start:
        warn_of_other_languages(config.data, start)
    if config.training.noise_rate:
        knows_capitals = checked.teaches_capitals()
    else:
        knows_capitals = start is None or start.knows_capitals
    return PreparedRun(config=config, tokenizers=tokenizers, data=data, knows_capitals=knows_capitals)


def prepare_again(run: RunFolder, settings: Settings, texts: Texts, compute: Compute) -> PreparedRun:
    """The same for a run that has begun, with its own tokenizers."""
    record = run.read_config()
    tokenizers = load_tokenizers(run, record)
    tokenizer_config = resolve_tokenizer(settings, 0, same_script=True)
    data = read_or_encode(run, settings, texts, tokenizers)
    config = complete_recipe(settings, tokenizer_config, texts.languages(), tokenizers, data, compute)
    return PreparedRun(config=config, tokenizers=tokenizers, data=data, knows_capitals=record["knows_capitals"])


def begin(run: RunFolder, prepared: PreparedRun, provenance: Values) -> None:
    """Write into the folder what a model needs besides its weights; what an earlier run left is deleted."""
    run.clear()
    run.write_tokenizers(*prepared.tokenizers)
    run.write_config(
        prepared.config.model,
        prepared.tokenizers,
        (prepared.config.data.source_language, prepared.config.data.target_language),
        prepared.decoding,
        provenance,
        knows_capitals=prepared.knows_capitals,
    )


def shares(corpora: list[CorpusFiles], pairs: list[int], temperature: float) -> Iterator[str]:
    """What weights and temperature come to, a line for each of several corpora."""
    if len(corpora) == 1:
        return
    weights = sampling_weights(corpora, pairs, temperature)
    total = sum(weight * count for weight, count in zip(weights, pairs, strict=True))
    for corpus, count, weight in zip(corpora, pairs, weights, strict=True):
        share = weight * count / total
        yield f"{corpus.name}: {count:,} pairs, each read {weight:.4g} times per epoch, make up {share:.1%} of it"


def warn_of_unused(said: Values, tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    """Warn of settings for training tokenizers, which have no effect on given ones."""
    untold = defaults(TokenizerConfig) | {"vocabulary_size": tokenizers[1].size}
    for key in ("vocabulary_size", "type", "normalization"):
        if said.get(key, untold[key]) != untold[key]:
            logger.warning("tokenizer.%s = %s has no effect: tokenizers are used as they are given", key, said[key])


def warn_of_other_languages(data: DataConfig, start: LoadedModel) -> None:
    now = (data.source_language, data.target_language)
    if any(one and other and one != other for one, other in zip(now, start.languages, strict=True)):
        before = "-".join(language or "?" for language in start.languages)
        logger.warning("the text is %s; the run that --from names translates %s", "-".join(now), before)


def seed_of(settings: Settings) -> int:
    return int(settings.section("training", {})["seed"])


def threads_of(settings: Settings) -> int:
    return settings.said()["training"].get("threads") or usable_threads()


def undecided_data(settings: Settings) -> DataConfig:
    """The settings by which text is read, before the recipe is complete; placeholders for the rest do not affect it."""
    resolved = {
        "max_length_ratio": cleaning_rules(settings).max_length_ratio,
        "source_language": "",
        "target_language": "",
        "batch_tokens": 1,
    }
    return build(DataConfig, settings.section("data", resolved), "data")


def read_or_encode(
    run: RunFolder,
    settings: Settings,
    texts: Texts,
    tokenizers: tuple[Tokenizer, Tokenizer],
    checked: CheckedText | None = None,
) -> PreparedData:
    """The encoded corpora from the cache, where they are put first if they are not there."""
    data, seed = undecided_data(settings), seed_of(settings)
    rules = {"rules": data.rules.as_key(), "max_tokens": data.max_tokens, "train": len(texts.train)}
    key = cache_key(texts.checksums, tokenizers, **rules, held_out=None if texts.valid else seed)
    folder = cache_folder(run, settings) / key
    written = folder / FACTS
    if not written.is_file():
        with alone_at(folder):
            if not written.is_file():  # nor has been written by another run meanwhile
                checked = checked or check_text(texts, data.rules, seed=seed)
                threads = threads_of(settings)
                encode_text(texts, checked, folder, tokenizers, max_tokens=data.max_tokens, threads=threads)
    texts.remembered.save()
    prepared = read_prepared(folder, texts.train, data.temperature)
    facts = prepared.facts
    for over_long, left_out in (
        (facts.over_long, "left out"), (facts.valid_over_long, "left out of the validation loss"),
    ):  # fmt: skip
        if over_long:
            logger.warning("%s %s pairs of more than %s tokens", left_out, f"{over_long:,}", f"{data.max_tokens:,}")
    return prepared


def complete_recipe(
    settings: Settings,
    tokenizer: TokenizerConfig,
    languages: tuple[str, str],
    tokenizers: tuple[Tokenizer, Tokenizer],
    data: PreparedData,
    compute: Compute,
) -> RunConfig:
    """The recipe with every "auto" resolved, once the text is encoded; `languages` are for where none are given."""
    facts = CorpusFacts(
        pairs=data.facts.pairs,
        target_tokens=data.epoch_target_tokens,
        vocabularies=(tokenizers[0].size, tokenizers[1].size),
        languages=languages,
    )
    tokenizer = replace(tokenizer, joint=tokenizers[0] is tokenizers[1])
    if tokenizer.files and "vocabulary_size" not in settings.said()["tokenizer"]:
        tokenizer = replace(tokenizer, vocabulary_size=tokenizers[1].size)  # the recipe says what they have
    return resolve(settings, tokenizer, facts, compute, threads_of(settings))
