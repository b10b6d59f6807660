"""`mt evaluate`: what translations are worth against their references, for people and for scripts."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mt.corpus.parallel import language_of
from mt.errors import ConfigError, DataError
from mt.evaluation.metrics import Comparison, Score, bleu_metric, choose_tokenizer, compare, evaluate
from mt.files import atomic_file, check_output_text, read_lines
from mt.pipelines.pace import Pace
from mt.pipelines.run_folder import RunFolder
from mt.pipelines.translate import SearchRequest, chunks, load_translator, translated, warn_of_return

# What `sacrebleu -w 4` prints; digits beyond it are noise even on a large test set.
RECORD_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedFiles:
    """A comparison, and the two hypothesis files that it is about."""

    baseline: Path
    system: Path
    comparison: Comparison

    def as_record(self) -> dict[str, Any]:
        metrics = [
            {
                "name": metric.name,
                "baseline": round(metric.baseline.score, RECORD_DIGITS),
                "system": round(metric.system.score, RECORD_DIGITS),
                "difference": round(metric.difference, RECORD_DIGITS),
                "p_value": round(metric.p_value, RECORD_DIGITS),
            }
            for metric in self.comparison.metrics
        ]
        return {"baseline": str(self.baseline), "system": str(self.system), "metrics": metrics}

    def systems_record(self) -> list[dict[str, Any]]:
        return [
            {"hypothesis": str(self.baseline), "metrics": score_records(self.comparison.baseline)},
            {"hypothesis": str(self.system), "metrics": score_records(self.comparison.system)},
        ]

    def as_rows(self) -> list[list[str]]:
        heading = ["metric", "baseline", "system", "difference", "p-value"]
        return [heading] + [
            [
                metric.name,
                f"{metric.baseline.score:.2f} {interval(metric.baseline)}",
                f"{metric.system.score:.2f} {interval(metric.system)}",
                f"{metric.difference:+.2f}",
                f"{metric.p_value:.3f}",
            ]
            for metric in self.comparison.metrics
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores of a system on `lines` lines; where a second system was scored too, how the two compare."""

    lines: int
    scores: list[Score]
    compared: ComparedFiles | None = None

    def as_record(self) -> dict[str, Any]:
        """What `--format json` prints: `metrics` and `lines`.

        With a second hypothesis also `systems`, the same metrics for each of the two, and `comparison`, a difference
        (system minus baseline) and a p-value by metric; `metrics` is then the baseline's, the hypothesis given first.
        """
        record: dict[str, Any] = {"metrics": score_records(self.scores), "lines": self.lines}
        if self.compared:
            record["systems"] = self.compared.systems_record()
            record["comparison"] = self.compared.as_record()
        return record

    def as_text(self) -> str:
        """The same as a table with the 95% intervals in brackets; the signatures stand below it."""
        if self.compared:
            rows = self.compared.as_rows()
            names = [f"baseline: {self.compared.baseline}", f"system: {self.compared.system}"]
        else:
            rows = [["metric", "score", "95% interval"]]
            rows += [[score.name, f"{score.score:.2f}", interval(score)] for score in self.scores]
            names = []
        signatures = [f"{score.name}|{score.signature}" for score in self.scores]
        count = f"{self.lines:,} {'line' if self.lines == 1 else 'lines'}; TER counts edits: lower is better"
        return "\n".join([*aligned(rows), "", *names, count, *signatures])


def score_files(
    hypotheses: list[Path], reference: Path, *, target_language: str = "", bleu_tokenize: str | None = None
) -> Evaluation:
    """Score one hypothesis file, or a baseline and a system, against a reference file line by line.

    Without a target language, the reference's suffix tells it (`test.de`).  Raises `ConfigError` for more than two
    hypotheses or an unknown tokenizer, `DataError` for a file that cannot be read or differs in its number of lines.
    """
    if not 1 <= len(hypotheses) <= 2:
        raise ConfigError(
            f"{len(hypotheses)} hypothesis files were given",
            "give one to score it, or two to compare the second with the first",
        )
    references = list(read_lines(reference))
    if not references:
        raise DataError(f"{reference} is empty", "a reference file has one sentence per line")
    systems = [matching_lines(path, reference, len(references)) for path in hypotheses]
    language = target_language or language_of(reference)
    if len(systems) == 1:
        scores = evaluate(systems[0], references, target_language=language, bleu_tokenize=bleu_tokenize)
        return Evaluation(lines=len(references), scores=scores)
    baseline, system = systems
    comparison = compare(baseline, system, references, target_language=language, bleu_tokenize=bleu_tokenize)
    compared = ComparedFiles(baseline=hypotheses[0], system=hypotheses[1], comparison=comparison)
    return Evaluation(lines=len(references), scores=comparison.baseline, compared=compared)


def evaluate_model(
    request: SearchRequest,
    source: Path,
    reference: Path,
    output: Path | None,
    *,
    target_language: str,
    bleu_tokenize: str | None,
) -> Evaluation:
    """Translate a source file and score the translations, which go to `output` when that is given.

    The language is the given one, else the run's own, else the reference's suffix; raises as `score_files` does.
    """
    if output:
        check_output_text(output, (source, reference))
    sources, references = list(read_lines(source)), list(read_lines(reference))
    if number := next((number for number, line in enumerate(sources, 1) if line.endswith("\r")), 0):
        warn_of_return(str(source), number)
    if len(sources) != len(references) or not references:
        raise DataError(
            f"{source} has {len(sources):,} lines, {reference} has {len(references):,}",
            "source and reference are matched line by line, and need at least one",
        )
    own_language = RunFolder(request.models[0]).read_config()["languages"]["target"]
    language = target_language or own_language or language_of(reference)
    bleu_metric(references[:1], choose_tokenizer(language, bleu_tokenize))  # what is missing is told before the work
    with load_translator(request) as translator, atomic_file(output) if output else nullcontext() as stream:
        windows = translated(translator, chunks(sources), 0, "text", Pace(lambda: len(sources)))
        translations = [text for window in windows for text in window]
        if stream:
            stream.writelines(f"{text}\n" for text in translations)
    scores = evaluate(translations, references, target_language=language, bleu_tokenize=bleu_tokenize)
    return Evaluation(lines=len(references), scores=scores)


def matching_lines(hypothesis: Path, reference: Path, expected: int) -> list[str]:
    lines = list(read_lines(hypothesis))
    if len(lines) != expected:
        raise DataError(
            f"{hypothesis} has {len(lines):,} lines, {reference} has {expected:,}",
            "hypotheses and references are matched line by line; an empty translation is an empty line",
        )
    return lines


def score_records(scores: list[Score]) -> list[dict[str, Any]]:
    return [
        {
            key: round(value, RECORD_DIGITS) if isinstance(value, float) else value
            for key, value in asdict(score).items()
        }
        for score in scores
    ]


def interval(score: Score) -> str:
    return "" if score.low is None else f"[{score.low:.2f}, {score.high:.2f}]"


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of text with the cells of each column one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
