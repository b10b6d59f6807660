"""One engine in a process of its own, so that memory and load time are its own: loads, then translates when told to.

A line on standard input tells it to translate the whole source text once more; each answer is a JSON object a line on
standard output.  Time runs from text to text: every engine splits into pieces and joins them by the same tokenizer.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from workers import peak_memory, serve

if TYPE_CHECKING:
    from mt.corpus.tokenizer import Tokenizer

# Sentences in a batch, where the engine is not mt: see README
BATCH_SENTENCES = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What an engine loads and how it searches."""

    engine: str  # mt | mt-PRECISION | hf | ctranslate2-COMPUTE_TYPE
    run: str  # run folder
    converted: str  # folder of the model in the engine's own format; unused by mt
    source: str  # text file
    tokenizers: tuple[str, str]
    beam: int
    max_length_ratio: float  # a translation has at most ratio * source tokens + offset tokens
    max_length_offset: int
    max_positions: int
    device: str  # cpu | cuda
    precision: str  # fp32 | bf16
    threads: int
    batch: int  # sentences in a batch, which mt does not use

    def max_target_tokens(self, source_tokens: int) -> int:
        return min(int(self.max_length_ratio * source_tokens) + self.max_length_offset, self.max_positions)


@dataclass(frozen=True, slots=True)
class Output:
    """Translations of all lines, and their target tokens, `</s>` counted."""

    translations: list[str]
    target_tokens: int


class Mt:
    """This toolkit, by the class behind `mt translate`; it chooses batches by itself."""

    def __init__(self, job: Job) -> None:
        from mt.pipelines.translate import SearchRequest, load_translator

        self.translator = load_translator(
            SearchRequest(
                models=[Path(job.run)],
                beam=job.beam,
                length_penalty=1.0,
                device=job.device,
                precision=job.engine.partition("-")[2] or job.precision,
                threads=job.threads,
            )
        )

    def translate(self, lines: list[str]) -> Output:
        translations = self.translator.translate(lines)
        best = [translation.hypotheses[0] for translation in translations]
        return Output([each.text for each in best], sum(each.tokens for each in best))

    def details(self) -> dict[str, Any]:
        return {"batch_tokens": self.translator.batch_tokens, "precision": self.translator.compute.precision}


class Generation:
    """`generate` of a model in `transformers`, over sentences sorted by length, the longest first."""

    def __init__(
        self,
        model: Any,
        tokenizers: "tuple[Tokenizer, Tokenizer]",
        *,
        beam: int,
        early_stopping: bool,
        batch: int,
        threads: int,
        max_target_tokens: Callable[[int], int],
        length_penalty: float = 1.0,
    ) -> None:
        self.model, self.beam, self.early_stopping, self.batch = model, beam, early_stopping, batch
        self.reader, self.writer = tokenizers
        self.threads, self.max_target_tokens, self.length_penalty = threads, max_target_tokens, length_penalty

    def translate(self, lines: list[str]) -> Output:
        eos = self.writer.specials.eos
        sentences = [[*ids, self.reader.specials.eos] for ids in self.reader.encode(lines, self.threads)]
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        texts, tokens = [""] * len(lines), 0
        for start in range(0, len(order), self.batch):
            batch = order[start : start + self.batch]
            for i, ids in zip(batch, self.generate([sentences[i] for i in batch]), strict=True):
                ids = ids[: ids.index(eos)] if eos in ids else ids
                texts[i] = self.writer.decode(ids)
                tokens += len(ids) + 1
        return Output(texts, tokens)

    def generate(self, sentences: list[list[int]]) -> list[list[int]]:
        """Target ids without `<s>`, padded behind `</s>`."""
        import torch

        longest, pad = len(sentences[0]), self.reader.specials.pad
        source = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sentences], device=self.model.device)
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=source,
                attention_mask=(source != pad).long(),
                num_beams=self.beam,
                do_sample=False,
                length_penalty=self.length_penalty,
                early_stopping=self.early_stopping,
                max_new_tokens=self.max_target_tokens(longest),
            )
        return found[:, 1:].tolist()


class HuggingFace(Generation):
    """The run's weights as `M2M100ForConditionalGeneration`."""

    def __init__(self, job: Job) -> None:
        import torch
        from peers import set_positions
        from transformers import M2M100ForConditionalGeneration
        from transformers.utils.logging import disable_progress_bar

        from mt.corpus.tokenizer import Tokenizer
        from mt.model.positions import sinusoids

        disable_progress_bar()
        torch.set_num_threads(job.threads)
        torch.set_float32_matmul_precision("highest")
        model = M2M100ForConditionalGeneration.from_pretrained(job.converted, dtype=torch.float32).eval()
        set_positions(model, sinusoids(job.max_positions, model.config.d_model))
        self.dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
        tokenizer = Tokenizer.load(Path(job.tokenizers[0]))
        super().__init__(
            model.to(device=job.device, dtype=self.dtype),
            (tokenizer, tokenizer),
            beam=job.beam,
            early_stopping=job.beam > 1,  # as mt does: no more is looked for when all beams have ended
            batch=job.batch,
            threads=job.threads,
            max_target_tokens=job.max_target_tokens,
        )

    def details(self) -> dict[str, Any]:
        return {"batch_sentences": self.batch, "precision": str(self.dtype).removeprefix("torch.")}


class CTranslate2:
    """`ctranslate2.Translator`, which sorts by length itself; on the CPU a thread is a worker with its own batches."""

    def __init__(self, job: Job) -> None:
        import ctranslate2

        from mt.corpus.tokenizer import Tokenizer

        self.job = job
        self.reader, self.writer = (Tokenizer.load(Path(path)) for path in job.tokenizers)
        self.translator = ctranslate2.Translator(
            job.converted,
            device=job.device,
            compute_type=job.engine.partition("-")[2],
            inter_threads=job.threads if job.device == "cpu" else 1,
            intra_threads=1,
        )

    def translate(self, lines: list[str]) -> Output:
        pieces = self.reader.processor.encode(lines, out_type=str, num_threads=self.job.threads)
        results = self.translator.translate_batch(
            pieces,
            beam_size=self.job.beam,
            length_penalty=1.0,
            max_batch_size=self.job.batch,
            max_decoding_length=self.job.max_target_tokens(max(len(sentence) + 1 for sentence in pieces)),
        )
        found = [result.hypotheses[0] for result in results]
        texts = [self.writer.decode(self.writer.processor.piece_to_id(sentence)) for sentence in found]
        return Output(texts, sum(len(sentence) + 1 for sentence in found))

    def details(self) -> dict[str, Any]:
        return {"batch_sentences": self.job.batch, "precision": self.translator.compute_type}


def load(job: Job) -> Mt | HuggingFace | CTranslate2:
    kinds: dict[str, type[Mt | HuggingFace | CTranslate2]] = {
        "mt": Mt,
        "hf": HuggingFace,
        "ctranslate2": CTranslate2,
    }
    return kinds[job.engine.partition("-")[0]](job)


def work(job: Job, orders: TextIO) -> Iterator[dict[str, Any]]:
    """An answer when loaded, and one for each order."""
    started = time.perf_counter()
    engine = load(job)
    yield {"load_seconds": time.perf_counter() - started, **engine.details()}
    lines = Path(job.source).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for _ in orders:
        started = time.perf_counter()
        output = engine.translate(lines)
        yield {"seconds": time.perf_counter() - started, **asdict(output), **peak_memory()}


if __name__ == "__main__":
    serve(work(Job(**json.loads(sys.argv[1])), sys.stdin))
