"""From text files to encoded corpora: check, hold out, tokenize, encode, each once and kept in the cache.

The cache is keyed by the checksums of the texts and tokenizers and by the rules applied, so that a text that changed
is not mistaken for the one encoded; `mt.pipelines.checksums` says when a change is noticed.
"""

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mt.corpus.cleaning import CleaningRules, Report, check_files, hold_out, overlap, report_lines
from mt.corpus.encoded import EncodedCorpus, encode_corpus
from mt.corpus.noise import noisy
from mt.corpus.parallel import CorpusFiles, Pair, language_of, read_pairs, sampling_weights
from mt.corpus.tokenizer import Specials, Tokenizer, TokenizerConfig, script_of, train_tokenizer
from mt.decoding.search import SearchConfig
from mt.device import Compute, usable_threads
from mt.errors import ConfigError, DataError
from mt.files import alone_at, atomic_directory, can_be_read_only_once, read_json, read_lines, write_json, write_text
from mt.pipelines.checksums import Checksums
from mt.pipelines.recipe import (
    CorpusFacts,
    DataConfig,
    RunConfig,
    Settings,
    cleaning_rules,
    corpus_files,
    noise_rate_for,
    resolve,
    resolve_tokenizer,
)
from mt.pipelines.run_folder import LoadedModel, RunFolder, load_tokenizers, versions
from mt.settings import Values, build, defaults
from mt.training.config import TrainingConfig

logger = logging.getLogger(__name__)

MUCH_OVERLAP = 0.02  # of the validation sources in the training text, above which scores are no longer honest
SCRIPT_LINES = 1_000  # of each side decide which script it is written in


@dataclass(frozen=True, slots=True)
class Texts:
    """The text files of a run, and their checksums, training text first."""

    train: list[CorpusFiles]
    valid: list[CorpusFiles]
    checksums: list[Values]
    remembered: Checksums  # in the cache

    @classmethod
    def of(cls, run: RunFolder, settings: Settings) -> "Texts":
        """The files that the settings of a run name; raises `DataError` when one cannot be read, or only once."""
        data = settings.said()["data"]
        train, valid = (corpus_files(data.get(name, ()), name) for name in ("train", "valid"))
        paths = [path for corpus in [*train, *valid] for path in corpus.paths]
        for path in filter(can_be_read_only_once, paths):
            raise DataError(f"{path} is a pipe, and text is read several times", "write it to a file (.gz will do)")
        remembered = Checksums(cache_folder(run, settings))
        return cls(train, valid, [{"path": str(path), "sha256": remembered.of(path)} for path in paths], remembered)

    def languages(self) -> tuple[str, str]:
        """The languages that the first training files are named after; "" where they do not say."""
        first = self.train[0]
        return (language_of(first.source), language_of(first.target)) if first.source and first.target else ("", "")


def cache_folder(run: RunFolder, settings: Settings) -> Path:
    given = settings.said()["data"].get("cache")
    return Path(given) if given else run.cache


@dataclass(frozen=True, slots=True)
class CheckedText:
    """Corpora that have been read once: which lines of each are trained on, and the pairs to validate on."""

    corpora: list[CorpusFiles]
    rows: list[np.ndarray]  # a bool for each line of each corpus
    valid: list[Pair]
    characters: int  # of the pairs that are trained on, about
    report: list[str]

    @property
    def pairs(self) -> int:
        return sum(int(rows.sum()) for rows in self.rows)

    def training_pairs(self) -> Iterator[Pair]:
        """The pairs that are trained on, corpus after corpus."""
        for corpus, rows in zip(self.corpora, self.rows, strict=True):
            for pair, used in zip(read_pairs(corpus), rows, strict=True):
                if used:
                    yield pair

    def same_script(self) -> bool:
        sample = list(islice(self.training_pairs(), SCRIPT_LINES))
        return script_of(source for source, _ in sample) == script_of(target for _, target in sample)


def check_text(texts: Texts, rules: CleaningRules, *, seed: int) -> CheckedText:
    """Read every corpus once and judge it; without validation text, hold pairs out of the first training corpus."""
    train, valid = texts.train, texts.valid
    reports = [check_files(corpus, rules) for corpus in train]
    lines: list[str] = []
    for corpus, report in zip(train, reports, strict=True):
        lines += [f"training text {corpus.name}", *indented(report)]
        for warning in report.warnings:
            logger.warning("%s: %s", corpus.name, warning)
    rows = [report.kept.copy() for report in reports]
    if valid:
        pairs: list[Pair] = []
        for corpus in valid:
            report = check_files(corpus, rules)
            shared = overlap(reports, report)
            lines.append(
                f"validation text {corpus.name}: {report.pairs_read:,} pairs; {shared.sources:,} of the sources and "
                f"{shared.pairs:,} whole pairs stand in the training text too"
            )
            for warning in report.warnings:
                logger.warning("%s: %s", corpus.name, warning)
            if shared.sources > MUCH_OVERLAP * shared.of:
                logger.warning(
                    "%s: %s of its %s sources stand in the training text too: its scores flatter the model",
                    corpus.name, f"{shared.sources:,}", f"{shared.of:,}",
                )  # fmt: skip
            pairs += [pair for pair in read_pairs(corpus) if pair[0].strip() and pair[1].strip()]
    else:
        held = hold_out(reports[0], reports[1:], seed=seed)
        rows[0][held] = False
        chosen = set(held.tolist())
        pairs = [pair for number, pair in enumerate(read_pairs(train[0])) if number in chosen]
        lines.append(f"{len(pairs):,} pairs held out of {train[0].name} for validation")
    if not pairs or not any(row.any() for row in rows):
        raise DataError("no usable pairs are left to train and validate on", "the table above says what was dropped")
    return CheckedText(train, rows, pairs, sum(report.characters for report in reports), lines)


def indented(report: Report) -> list[str]:
    return [f"  {line}" for line in report_lines(report)]


def make_tokenizers(
    text: CheckedText, config: TokenizerConfig, *, seed: int, noise_rate: float = 0.0
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


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Encoded corpora, and what is known of them."""

    train: EncodedCorpus
    valid: EncodedCorpus
    valid_sources: list[str]
    valid_references: list[str]
    facts: dict[str, Any]  # pairs, target_tokens, max_length_ratio
    weights: np.ndarray | None  # of each training sentence

    @property
    def epoch_target_tokens(self) -> int:
        """Of all training sentences, each as often as an epoch holds it on average."""
        if self.weights is None:
            return self.facts["target_tokens"]
        return int(self.train.target.lengths @ self.weights)


def cache_key(checksums: list[Values], tokenizers: tuple[Tokenizer, Tokenizer], **settings: Any) -> str:
    record = {
        "texts": [entry["sha256"] for entry in checksums],
        "tokenizers": [hashlib.sha256(tokenizer.model).hexdigest() for tokenizer in tokenizers],
        **settings,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def encode_text(
    text: CheckedText, folder: Path, tokenizers: tuple[Tokenizer, Tokenizer], *, max_tokens: int, threads: int
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
        write_json(
            partial / "facts.json",
            {
                "pairs": len(train),
                "pairs_of_corpora": pairs_of_corpora,
                "over_long": int((~kept).sum()),
                "target_tokens": int(train.target.offsets[-1]),
                "max_length_ratio": longest_ratio(train.source.lengths, train.target.lengths),
                "report": text.report,
            },
        )
        if not kept.all():
            logger.warning("left out %s pairs of more than %s tokens", f"{int((~kept).sum()):,}", f"{max_tokens:,}")


MAX_LENGTH_OFFSET = 10  # tokens that a translation may be longer than its share of the source


def longest_ratio(source_lengths: np.ndarray, target_lengths: np.ndarray) -> float:
    """Target tokens per source token that all but one in a thousand training pairs keep to, beyond the offset."""
    ratios = (target_lengths - MAX_LENGTH_OFFSET) / source_lengths
    return round(max(1.0, float(np.quantile(ratios, 0.999))) + 0.1, 2)


def read_prepared(folder: Path, corpora: list[CorpusFiles], temperature: float) -> PreparedData:
    facts = read_json(folder / "facts.json")
    weights = None
    of_corpora = sampling_weights(corpora, facts["pairs_of_corpora"], temperature)
    if any(weight != 1 for weight in of_corpora):
        weights = np.repeat(of_corpora, facts["pairs_of_corpora"])
    return PreparedData(
        train=EncodedCorpus(folder / "train"),
        valid=EncodedCorpus(folder / "valid"),
        valid_sources=list(read_lines(folder / "valid.source")),
        valid_references=list(read_lines(folder / "valid.target")),
        facts=facts,
        weights=weights,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run ready to train: its complete recipe, tokenizers, encoded text, and how it will be decoded."""

    config: RunConfig
    tokenizers: tuple[Tokenizer, Tokenizer]
    data: PreparedData
    decoding: SearchConfig
    capitals: bool  # whether the model learns them; with noise it learns lower case

    @property
    def specials(self) -> tuple[Specials, Specials]:
        return self.tokenizers[0].specials, self.tokenizers[1].specials


def prepare_run(
    run: RunFolder, settings: Settings, texts: Texts, compute: Compute, start: LoadedModel | None, *, new: bool
) -> PreparedRun:
    """Check the text, make tokenizers, encode, complete the recipe; what the run folder has already is not done again.

    Nothing is written before the text has been checked, and an earlier run stays until all else is ready.
    """
    seed, _ = seed_and_threads(settings)
    checked = None
    if new:
        checked = check_text(texts, undecided_data(settings).rules, seed=seed)
        for line in checked.report:
            logger.info("%s", line)
        tokenizer_config = resolve_tokenizer(settings, checked.pairs, same_script=checked.same_script())
        noise_rate = noise_rate_for(settings, checked.pairs)
        tokenizers = (
            start.tokenizers if start else make_tokenizers(checked, tokenizer_config, seed=seed, noise_rate=noise_rate)
        )
        check_directions(settings, tokenizers)
    else:
        tokenizers = load_tokenizers(run, run.read_config())
        tokenizer_config = resolve_tokenizer(settings, 0, same_script=True)
        capitals = run.read_config().get("capitals", True)
    data = read_or_encode(run, settings, texts, tokenizers, checked)
    config = complete_recipe(settings, tokenizer_config, texts, tokenizers, data, compute)
    decoding = SearchConfig(max_length_ratio=data.facts["max_length_ratio"], max_length_offset=MAX_LENGTH_OFFSET)
    if new:
        capitals = not config.training.noise_rate and (start is None or start.capitals)
        clear(run)
        run.write_tokenizers(*tokenizers)
        languages = (config.data.source_language, config.data.target_language)
        provenance = {
            **versions(),
            "seed": seed,
            "settings": settings.said(),
            "corpora": texts.checksums,
            "started_from": str(start.path) if start else "",
        }
        run.write_config(config.model, tokenizers, languages, decoding, provenance, capitals=capitals)
    for line in shares(texts.train, data.facts["pairs_of_corpora"], config.data.temperature):
        logger.info("%s", line)
    return PreparedRun(config=config, tokenizers=tokenizers, data=data, decoding=decoding, capitals=capitals)


def shares(corpora: list[CorpusFiles], pairs: list[int], temperature: float) -> Iterator[str]:
    """What weights and temperature come to, a line for each of several corpora."""
    if len(corpora) == 1:
        return
    weights = sampling_weights(corpora, pairs, temperature)
    total = sum(weight * count for weight, count in zip(weights, pairs, strict=True))
    for corpus, count, weight in zip(corpora, pairs, weights, strict=True):
        share = weight * count / total
        yield f"{corpus.name}: {count:,} pairs, each {weight:.4g} times an epoch, are {share:.1%} of it"


def check_directions(settings: Settings, tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    """Raise `ConfigError` where both directions are to be learned and each side has a tokenizer of its own."""
    if settings.said()["training"].get("bidirectional_epochs") and tokenizers[0] is not tokenizers[1]:
        raise ConfigError(
            "training.bidirectional_epochs needs one tokenizer for both sides; here each side has its own",
            "leave it out, or train with one: --set tokenizer.joint=true",
        )


def seed_and_threads(settings: Settings) -> tuple[int, int]:
    said = settings.said()["training"]
    return (defaults(TrainingConfig) | said)["seed"], said.get("threads") or usable_threads()


def undecided_data(settings: Settings) -> DataConfig:
    """What the text is read with, before the recipe is complete: what is not known yet does not bear on it."""
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
    data, (seed, threads) = undecided_data(settings), seed_and_threads(settings)
    rules = {"rules": data.rules.as_key(), "max_tokens": data.max_tokens, "train": len(texts.train)}
    key = cache_key(texts.checksums, tokenizers, **rules, held_out=None if texts.valid else seed)
    folder = cache_folder(run, settings) / key
    facts = folder / "facts.json"
    if not facts.is_file():
        with alone_at(folder):
            if not facts.is_file():  # nor has been written by another run meanwhile
                checked = checked or check_text(texts, data.rules, seed=seed)
                encode_text(checked, folder, tokenizers, max_tokens=data.max_tokens, threads=threads)
    texts.remembered.save()
    return read_prepared(folder, texts.train, data.temperature)


def complete_recipe(
    settings: Settings,
    tokenizer: TokenizerConfig,
    texts: Texts,
    tokenizers: tuple[Tokenizer, Tokenizer],
    data: PreparedData,
    compute: Compute,
) -> RunConfig:
    """The recipe with every "auto" resolved, once the text is encoded."""
    facts = CorpusFacts(
        pairs=data.facts["pairs"],
        target_tokens=data.epoch_target_tokens,
        vocabularies=(tokenizers[0].size, tokenizers[1].size),
        languages=texts.languages(),
    )
    joint = replace(tokenizer, joint=tokenizers[0] is tokenizers[1])
    return resolve(settings, joint, facts, compute, seed_and_threads(settings)[1])


def clear(run: RunFolder) -> None:
    """Delete what an earlier run left, the recipe first, so that a crash leaves nothing that looks like a run.

    Encoded text stays: the cache is keyed by what it was made from.
    """
    tokenizers = ("tokenizer.model", "source.model", "target.model")
    results = ("model.safetensors", "shortlist.safetensors", "log.jsonl", "samples.txt")
    for name in ("run.toml", "config.json", *tokenizers, *results):
        (run.path / name).unlink(missing_ok=True)
    for name in ("checkpoints", "plots", "tensorboard"):
        shutil.rmtree(run.path / name, ignore_errors=True)
