"""`mt bench train`: how fast this machine trains, and how near that is to what its matrix products reach."""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mt.corpus.batching import Batch, Batcher, BatchSampler
from mt.corpus.encoded import EncodedCorpus
from mt.corpus.tokenizer import Specials
from mt.device import Compute
from mt.model.cost import TRAINING_PRODUCTS, Product, training_flops, weight_products
from mt.pipelines.measuring import device_name, seconds_of, spread
from mt.pipelines.prepare import complete_recipe, read_or_encode
from mt.pipelines.recipe import CorpusFacts, RunConfig, Settings, resolve, resolve_tokenizer
from mt.pipelines.resume import CHOSEN_ANEW
from mt.pipelines.run_folder import RunFolder, load_tokenizers, versions
from mt.pipelines.texts import Texts
from mt.pipelines.train import batches_of, choose_compute, make_updater, micro_batch_tokens
from mt.training.optimizer import learning_rate

logger = logging.getLogger(__name__)

# Made-up sentences are as long as those of news: a log-normal length of 25 tokens on average, the sides alike.
MEAN_TOKENS, LENGTH_SPREAD, SIDE_SPREAD = 25, 0.5, 0.15
MADE_UP_SPECIALS = Specials(pad=0, bos=1, eos=2, unk=3)
PAIRS = {"cpu": 100_000, "cuda": 1_000_000}  # that "auto" believes the made-up corpus to have
UPDATES = {"cpu": 4, "cuda": 20}  # of a repetition, when nothing is said


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBench:
    """What `mt bench train` was asked to do."""

    settings: Settings
    run: Path | None = None  # a run folder whose recipe, tokenizers and text are used; None: made-up sentences
    vocabulary: int = 32_000  # of made-up sentences
    updates: int = 0  # of a repetition; 0: as many as take a moment
    repetitions: int = 5  # after one to warm up


@dataclass(frozen=True, slots=True)
class Work:
    """Sentences to train on, and how."""

    config: RunConfig
    corpus: EncodedCorpus
    batcher: Batcher
    sampler: BatchSampler
    specials: tuple[Specials, Specials]
    compute: Compute


def bench_train(request: TrainBench) -> dict[str, Any]:
    """Train for some updates without saving anything; returns what `as_text` shows, and every repetition."""
    with tempfile.TemporaryDirectory() as folder:
        work = run_work(request.settings, request.run) if request.run else made_up_work(request, Path(folder))
        return measure(work, request)


def run_work(given: Settings, path: Path) -> Work:
    """The text of a run with its recipe, over which the settings given now are laid; a preset replaces its shape."""
    run = RunFolder(path)
    tokenizers = load_tokenizers(run, run.read_config())
    saved, said = run.read_recipe(), run.read_provenance()["settings"].get("training", {})
    for key in CHOSEN_ANEW:
        if key not in said or key in ("device", "threads"):  # those of this machine are meant
            saved["training"].pop(key, None)  # older recipes lack some
    settings = Settings()
    settings.add(saved, str(run.recipe))
    settings.add(given.said(), "command line")
    compute = choose_compute(settings)
    texts = Texts.of(run, settings)
    data = read_or_encode(run, settings, texts, tokenizers)
    tokenizer_config = resolve_tokenizer(settings, 0, same_script=True)
    config = complete_recipe(settings, tokenizer_config, texts.languages(), tokenizers, data, compute)
    batches = batches_of(config, data, tokenizers, compute)
    return Work(config, data.train, *batches, (tokenizers[0].specials, tokenizers[1].specials), compute)


def made_up_work(request: TrainBench, folder: Path) -> Work:
    """Random ids in sentences of a natural length."""
    settings = Settings()
    settings.add({"data": {"train": [{"source": "made up", "target": "made up"}]}}, "")
    settings.add(request.settings.said(), "command line")
    compute = choose_compute(settings)
    pairs = PAIRS[compute.device.type]
    facts = CorpusFacts(
        pairs=pairs, target_tokens=pairs * MEAN_TOKENS, vocabularies=(request.vocabulary,) * 2, languages=("", "")
    )
    tokenizer_config = resolve_tokenizer(settings, pairs, same_script=True)
    config = resolve(settings, tokenizer_config, facts, compute, torch.get_num_threads())
    updates = request.updates or UPDATES[compute.device.type]
    sentences = updates * (request.repetitions + 1) * config.data.batch_tokens // MEAN_TOKENS + 1
    write_made_up(folder, sentences, request.vocabulary, config.data.max_tokens)
    corpus, specials = EncodedCorpus(folder), (MADE_UP_SPECIALS, MADE_UP_SPECIALS)
    sampler = BatchSampler(corpus, batch_tokens=config.data.batch_tokens, seed=config.training.seed)
    return Work(config, corpus, Batcher(corpus, specials, compute.device), sampler, specials, compute)


def write_made_up(folder: Path, sentences: int, vocabulary: int, max_tokens: int) -> None:
    """An encoded corpus of random ids, in the files that `EncodedCorpus` reads."""
    generator = np.random.default_rng(1)
    meaning = generator.normal(np.log(MEAN_TOKENS) - LENGTH_SPREAD**2 / 2, LENGTH_SPREAD, sentences)
    for name in ("source", "target"):
        lengths = np.exp(meaning + generator.normal(0, SIDE_SPREAD, sentences))
        offsets = np.append(0, lengths.round().clip(2, max_tokens).astype(np.int64).cumsum())
        ids = generator.integers(4, vocabulary, offsets[-1])  # 4 are special
        ids[offsets[1:] - 1] = MADE_UP_SPECIALS.eos
        ids.astype(np.uint16 if vocabulary <= 1 << 16 else np.uint32).tofile(folder / f"{name}.ids")
        offsets.tofile(folder / f"{name}.offsets")


def measure(work: Work, request: TrainBench) -> dict[str, Any]:
    """Train through `repetitions` of `updates` each, after one to warm up, and compare with the machine's products."""
    config, compute = work.config, work.compute
    updates = request.updates or UPDATES[compute.device.type]
    repetitions = []
    for number, each in enumerate(islice(training_of(work, updates), request.repetitions + 1)):
        logger.info("%s: %s updates in %.1f s", f"repetition {number}" if number else "warm-up", updates, each.seconds)
        repetitions += [each] if number else []
    rates = [each.target_tokens / each.seconds for each in repetitions]
    flops = statistics.median(each.flops / each.seconds for each in repetitions)
    memory = compute.memory_gib()
    parts = sum(each.parts for each in repetitions)
    source_tokens, target_tokens = (
        round(config.training.passes * sum(tokens) / parts)
        for tokens in zip(*((each.source_tokens, each.target_tokens) for each in repetitions), strict=True)
    )
    ceiling = matrix_rate(weight_products(config.model, source_tokens, target_tokens), compute)
    return {
        "what": "bench train",
        "model": asdict(config.model),
        "device": device_name(compute),
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "batch_tokens": config.data.batch_tokens,
        "micro_batch_tokens": round(sum(each.target_tokens for each in repetitions) / parts),
        "target_tokens_per_second": spread(rates),
        "flops_per_second": flops,
        "matrix_flops_per_second": ceiling,
        "share_of_matrix_rate": flops / ceiling,
        "memory_gib": memory,
        "repetitions": [asdict(each) for each in repetitions],
        "versions": versions(),
    }


@dataclass(frozen=True, slots=True)
class Repetition:
    """What some updates took, and what they did."""

    seconds: float
    source_tokens: int
    target_tokens: int
    flops: int
    parts: int  # micro-batches


def training_of(work: Work, updates: int) -> Iterator[Repetition]:
    """Train without end; yields a repetition per `updates` updates, timed until the device has done all of them."""
    config, compute = work.config, work.compute
    torch.manual_seed(config.training.seed)
    updater = make_updater(config, compute)
    updater.model.train()
    at_a_time = micro_batch_tokens(config, updater, work.batcher, work.sampler)
    epoch = config.training.noise_from_epoch  # with noise, if there is any, as most of training is
    steps = enumerate(work.batcher.updates(work.sampler, at_a_time, epoch, 0), 1)
    while True:
        done: list[Batch] = []
        started = time.perf_counter()
        for step, update in islice(steps, updates):
            updater(update, learning_rate(config.optimizer, step, None))
            done += update.parts
        compute.synchronize()
        seconds = time.perf_counter() - started
        source, target = (
            torch.cat([side.lengths for side in sides]).numpy(force=True)
            for sides in zip(*((batch.source, batch.target_input) for batch in done), strict=True)
        )
        flops = config.training.passes * training_flops(config.model, source, target)
        yield Repetition(seconds, int(source.sum()), int(target.sum()), flops, len(done))


def matrix_rate(products: list[Product], compute: Compute) -> float:
    """Floating-point operations a second of these products alone, each with those of its two gradients."""
    flops = seconds = 0.0
    for product in products:
        rows, weight, gradient = (
            torch.randn(shape, device=compute.device, dtype=compute.product_type)
            for shape in (
                (product.rows, product.inner),
                (product.columns, product.inner),
                (product.rows, product.columns),
            )
        )
        for multiply in (
            lambda: rows @ weight.T,  # noqa: B023 (called before the loop goes on)
            lambda: gradient @ weight,  # noqa: B023
            lambda: gradient.T @ rows,  # noqa: B023
        ):
            seconds += product.count * seconds_of(multiply, compute)
        flops += TRAINING_PRODUCTS * product.flops
    return flops / seconds


def as_text(record: dict[str, Any]) -> str:
    """The result in a few aligned lines."""
    model, speed = record["model"], record["target_tokens_per_second"]
    share = f"{record['share_of_matrix_rate']:.0%} of the {record['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s"
    rows = {
        "model": f"{model['encoder_layers']}+{model['decoder_layers']} layers, {model['width']} wide, "
        f"{model['heads']} heads, {model['feed_forward']} feed-forward, {model['target_vocabulary']:,} pieces",
        "device": f"{record['device']}, {record['precision']}, {record['threads']} threads",
        "batch": f"{record['batch_tokens']:,} target tokens, {record['micro_batch_tokens']:,} at a time",
        "speed": f"{speed['median']:,.0f} target tok/s ({speed['lowest']:,.0f} to {speed['highest']:,.0f})",
        "products": f"{record['flops_per_second'] / 1e9:,.0f} GFLOP/s, {share} that these products reach alone",
        "memory": f"{record['memory_gib']:.2f} GiB",
    }
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())
