"""The text of a run, judged: which pairs are trained on, which are held out to validate on."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from mt.corpus.casing import without_capitals
from mt.corpus.cleaning import CleaningRules, check_files, hold_out, overlap, report_lines
from mt.corpus.parallel import CorpusFiles, Pair, language_of, read_pairs
from mt.corpus.tokenizer import script_of
from mt.errors import ConfigError, DataError
from mt.files import can_be_read_only_once
from mt.pipelines.checksums import Checksums
from mt.pipelines.recipe import Settings, corpus_files
from mt.pipelines.run_folder import RunFolder
from mt.settings import Values

logger = logging.getLogger(__name__)

MUCH_OVERLAP = 0.02  # of the validation sources in the training text, above which scores are no longer honest
# Validation leaves out nothing but pairs of which a side is empty.
EVERY_PAIR = CleaningRules(max_characters=sys.maxsize, max_length_ratio=0, drop_duplicates=False)
SCRIPT_LINES = 1_000  # of each side decide which script it is written in
MANY_IN_CAPITALS = 0.01  # of the sources: from here on they teach a model what capitals mean


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
        for name in (*(str(path.resolve()) for path in paths), *sys.argv):
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"the name {name!r}, to be kept in config.json, is not UTF-8", "rename it") from error
        for path in filter(can_be_read_only_once, paths):
            raise DataError(f"{path} is a pipe, and text is read several times", "write it to a file (.gz will do)")
        remembered = Checksums(cache_folder(run, settings))
        return cls(train, valid, [{"path": str(path), "sha256": remembered.of(path)} for path in paths], remembered)

    def check_untouched(self) -> None:
        """Raise `DataError` where a file is no longer what it was when its checksum was taken."""
        for entry in self.checksums:
            if self.remembered.of(Path(entry["path"])) != entry["sha256"]:
                raise changed(entry["path"])

    def languages(self) -> tuple[str, str]:
        """The languages that the first training files are named after; "" where they do not say."""
        first = self.train[0]
        return (language_of(first.source), language_of(first.target)) if first.source and first.target else ("", "")


def changed(name: str) -> DataError:
    return DataError(f"{name} has changed while it was read", "run the command again when nothing writes to it")


def cache_folder(run: RunFolder, settings: Settings) -> Path:
    """Where encoded text is kept; raises `ConfigError` for the run folder itself, which holds other things."""
    given = settings.said()["data"].get("cache")
    if given and Path(given).resolve() == run.path.resolve():
        raise ConfigError(f"the cache would be the run folder itself, {run.path}", "leave --cache out: it has its own")
    return Path(given) if given else run.cache


@dataclass(frozen=True, slots=True)
class CheckedText:
    """Corpora that have been judged: which lines of each are trained on, and the pairs to validate on."""

    corpora: list[CorpusFiles]
    rows: list[np.ndarray]  # a bool for each line of each corpus
    valid: list[Pair]
    characters: int  # of the pairs that are trained on, about

    @property
    def pairs(self) -> int:
        return sum(int(rows.sum()) for rows in self.rows)

    def training_pairs(self) -> Iterator[Pair]:
        """The pairs that are trained on, corpus after corpus."""
        for corpus, rows in zip(self.corpora, self.rows, strict=True):
            for pair, used in zip_longest(read_pairs(corpus), rows):
                if pair is None or used is None:
                    raise changed(corpus.name)
                if used:
                    yield pair

    def same_script(self) -> bool:
        sample = list(islice(self.training_pairs(), SCRIPT_LINES))
        return script_of(source for source, _ in sample) == script_of(target for _, target in sample)

    def teaches_capitals(self) -> bool:
        loud = sum(source != without_capitals(source) for source, _ in self.training_pairs())
        return loud >= MANY_IN_CAPITALS * self.pairs


def check_text(texts: Texts, rules: CleaningRules, *, seed: int) -> CheckedText:
    """Judge every corpus, and say so; without validation text, hold pairs out of the first training corpus."""
    train, valid = texts.train, texts.valid
    reports = []
    for corpus in train:
        reports.append(check_files(corpus, rules))
        logger.info("training text %s", corpus.name)
        for line in report_lines(reports[-1]):
            logger.info("  %s", line)
        for warning in reports[-1].warnings:
            logger.warning("%s: %s", corpus.name, warning)
    if not any(report.kept.any() for report in reports):
        findings = [finding for report in reports for finding in report.findings if finding.dropped and finding.count]
        dropped = ", ".join(f"{finding.rule}: {finding.count:,}" for finding in findings)
        raise DataError("no usable pairs are left to train on", f"what was dropped: {dropped}" if dropped else "")
    rows = [report.kept.copy() for report in reports]
    if valid:
        pairs: list[Pair] = []
        for corpus in valid:
            report = check_files(corpus, EVERY_PAIR)
            shared = overlap(reports, report)
            logger.info(
                "validation text %s: %s pairs; %s of the sources and %s whole pairs stand in the training text too",
                corpus.name, f"{shared.of:,}", f"{shared.sources:,}", f"{shared.pairs:,}",
            )  # fmt: skip
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
        logger.info("%s pairs held out of %s for validation", f"{len(pairs):,}", train[0].name)
    if not pairs:
        raise DataError("no pairs are left to validate on", "in each of the validation text one side is empty")
    return CheckedText(train, rows, pairs, sum(report.characters for report in reports))
