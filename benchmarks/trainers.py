"""One way to train in a process of its own: mt, or a peer's model in a plain loop over the same batches.

Peers get what a careful user writes by hand: sentences of like length, fused Adam, gradient clipping, PyTorch's
own cross-entropy with label smoothing, autocast for bf16.  Dropout is 0.1 everywhere.

Shapes: B sentences, S source length, T target length, E width, V vocabulary.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from peers import huggingface_shape
from torch import Tensor, nn
from workers import peak_memory, serve

from mt.corpus.batching import BatchSampler, pad_rows
from mt.corpus.encoded import Pairs
from mt.corpus.tokenizer import Specials
from mt.device import Compute
from mt.model.config import ModelConfig
from mt.model.positions import sinusoids
from mt.pipelines.bench_train import Work, run_work, training_of
from mt.pipelines.recipe import Settings

DROPOUT = 0.1
LEARNING_RATE = 1e-4  # of the peers; small enough that no warm-up is needed
LABEL_SMOOTHING = 0.1
GRADIENT_CLIP = 1.0
IGNORED = -100  # PyTorch's own mark for targets that do not count

PaddedBatch = tuple[Tensor, Tensor, Tensor]  # source (B, S), target input and targets (B, T)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is trained, and how."""

    engine: str  # mt | hf | hf-compiled | torch
    precision: str  # fp32 | bf16
    run: str  # run folder whose text is used
    preset: str
    batch_tokens: int
    updates: int  # of an order
    device: str
    threads: int


def work_of(job: Job) -> Work:
    settings = Settings()
    machine = {"device": job.device, "precision": job.precision, "threads": job.threads}
    training = {**machine, "consistency": "off", "noise_rate": 0}  # which would be mt's alone
    data = {"batch_tokens": job.batch_tokens}
    dropout = {"dropout": DROPOUT, "attention_dropout": DROPOUT, "activation_dropout": 0.0}
    model = {"preset": job.preset, "positions": "sinusoidal", **dropout}
    settings.add({"model": model, "data": data, "training": training}, "benchmark")
    return run_work(settings, Path(job.run))


class Marian(nn.Module):
    """`MarianMTModel`, called as its documentation shows."""

    def __init__(self, config: ModelConfig, specials: Specials, *, attention_dropout: float = DROPOUT) -> None:
        super().__init__()
        from transformers import MarianConfig, MarianMTModel

        self.pad = specials.pad
        self.model = MarianMTModel(
            MarianConfig(
                **huggingface_shape(config),
                dropout=config.dropout,
                attention_dropout=attention_dropout,
                max_position_embeddings=config.max_positions,
                pad_token_id=specials.pad,
                eos_token_id=specials.eos,
                forced_eos_token_id=specials.eos,
                decoder_start_token_id=specials.bos,
                share_encoder_decoder_embeddings=True,
            )
        )

    def forward(self, source: Tensor, target_input: Tensor) -> Tensor:
        """(B, S) and (B, T) -> (B, T, V)."""
        mask = (source != self.pad).long()
        return self.model(input_ids=source, attention_mask=mask, decoder_input_ids=target_input, use_cache=False).logits


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` between tied embeddings."""

    def __init__(self, config: ModelConfig, specials: Specials) -> None:
        super().__init__()
        self.pad, self.scale = specials.pad, math.sqrt(config.width)
        self.embedding = nn.Embedding(config.target_vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.transformer = nn.Transformer(
            config.width,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.feed_forward,
            config.dropout,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(config.max_positions, config.width))
        self.positions: Tensor

    def embed(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids) * self.scale + self.positions[: ids.size(1)])

    def forward(self, source: Tensor, target_input: Tensor) -> Tensor:
        """(B, S) and (B, T) -> (B, T, V)."""
        later = torch.ones(2 * target_input.shape[1:], dtype=torch.bool, device=source.device).triu(1)
        hidden = self.transformer(
            self.embed(source),
            self.embed(target_input),
            tgt_mask=later,
            src_key_padding_mask=source == self.pad,
            memory_key_padding_mask=source == self.pad,
        )
        return F.linear(hidden, self.embedding.weight)


def compiled_marian(config: ModelConfig, specials: Specials) -> nn.Module:
    """`MarianMTModel` as PyTorch compiles it whole, for batches of any shape."""
    return torch.compile(Marian(config, specials), dynamic=True)  # type: ignore[return-value]


PEERS: dict[str, Callable[[ModelConfig, Specials], nn.Module]] = {
    "hf": Marian,
    "hf-compiled": compiled_marian,
    "torch": TorchTransformer,
}


def peer_training(job: Job, work: Work) -> Iterator[dict[str, Any]]:
    """Train without end; an item for each order's updates."""
    model = PEERS[job.engine](work.config.model, work.specials[1]).to(work.compute.device).train()
    optimizer = make_adam(model, LEARNING_RATE)
    sampler = BatchSampler(work.corpus, batch_tokens=job.batch_tokens, seed=work.config.training.seed)
    updates = sampler.updates(0, 0)
    while True:
        started, tokens = time.perf_counter(), 0
        for indices, *_ in islice(updates, job.updates):
            peer_update(model, optimizer, work.compute, padded(work.corpus, work.specials, indices))
            tokens += int(work.corpus.target.lengths[indices].sum())
        work.compute.synchronize()
        yield {"seconds": time.perf_counter() - started, "target_tokens": tokens}


def make_adam(model: nn.Module, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


def peer_update(model: nn.Module, optimizer: torch.optim.Adam, compute: Compute, batch: PaddedBatch) -> None:
    loss = peer_loss(model, compute, batch, LABEL_SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
    optimizer.step()


def peer_loss(model: nn.Module, compute: Compute, batch: PaddedBatch, label_smoothing: float) -> Tensor:
    """The mean over target tokens, in nats."""
    source, target_input, targets = (ids.to(compute.device) for ids in batch)
    with compute.autocast():
        logits = model(source, target_input)  # (B, T, V)
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing, ignore_index=IGNORED
        )


def padded(corpus: Pairs, specials: tuple[Specials, Specials], indices: np.ndarray) -> PaddedBatch:
    """Source (B, S), target input and targets (B, T) of these sentences."""
    source, target = specials
    targets = [corpus.target[i] for i in indices]
    shifted = [np.append(target.bos, ids[:-1].astype(np.int64)) for ids in targets]
    return (
        pad_rows([corpus.source[i] for i in indices], source.pad),
        pad_rows(shifted, target.pad),
        pad_rows(targets, IGNORED),
    )


def mt_training(job: Job, work: Work) -> Iterator[dict[str, Any]]:
    for repetition in training_of(work, job.updates):
        yield {
            "seconds": repetition.seconds,
            "target_tokens": repetition.target_tokens,
            "flops": repetition.flops,
            "parts": repetition.parts,
        }


def answers(job: Job, orders: TextIO) -> Iterator[dict[str, Any]]:
    """An answer when all is read, and one for each order."""
    work = work_of(job)
    training = mt_training(job, work) if job.engine == "mt" else peer_training(job, work)
    yield {"micro_batch_tokens": work.config.training.micro_batch_tokens if job.engine == "mt" else None}
    for _ in orders:
        yield {**next(training), **peak_memory()}


if __name__ == "__main__":
    serve(answers(Job(**json.loads(sys.argv[1])), sys.stdin))
