"""What is said of translations beside the scores of `mt evaluate`: BLEU as papers have it, and what capitals cost.

Papers on Multi30k mostly report BLEU of text that was tokenised by Moses and lower-cased, which is higher than that of
text as it is and cannot be compared with it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from measured import found
from sacrebleu.metrics.bleu import BLEU

from mt.evaluation.metrics import bootstrap
from mt.pipelines.evaluate import score_records

LITERATURE = "BLEU, tokenised and lower-cased"

Record = dict[str, Any]


def literature_scores(hypotheses: Sequence[str], references: Sequence[str], language: str) -> list[Record]:
    """BLEU over the lower-cased tokens of Moses, as a list of one metric; none where sacremoses is not installed."""
    if not find_spec("sacremoses"):
        return []
    metric = BLEU(tokenize="none", lowercase=True, force=True, references=[moses_tokens(references, language)])
    [([score], _)] = bootstrap([moses_tokens(hypotheses, language)], {"BLEU": metric})
    [record] = score_records([score])
    signature = f"{record['signature']}|moses:{language}-sacremoses-{found('sacremoses')}"
    return [record | {"name": LITERATURE, "signature": signature}]


def moses_tokens(lines: Sequence[str], language: str) -> list[str]:
    """Lines with a space between tokens; no character is escaped, no word cut at its dashes."""
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang=language)
    return [tokenizer.tokenize(line, aggressive_dash_splits=False, escape=False, return_str=True) for line in lines]


def score_of(metrics: Sequence[Record], name: str) -> float | None:
    """The score of a metric, where there is one."""
    return next((metric["score"] for metric in metrics if metric["name"] == name), None)


def upper_cased_record(metrics: Sequence[Record], upper_cased: list[Record]) -> Record:
    """Scores of the same sources in capitals, and by how much BLEU is lower there."""
    lost = score_of(metrics, "BLEU") - score_of(upper_cased, "BLEU")  # type: ignore[operator]
    return {"metrics": upper_cased, "bleu_lost": round(lost, 4)}
