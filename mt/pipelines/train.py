"""`mt train`: two text files in, a run folder out; run again, it goes on where it stopped."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from mt.corpus.batching import Batcher, BatchSampler
from mt.corpus.encoded import BothWays, Pairs
from mt.corpus.tokenizer import Tokenizer
from mt.corpus.variation import Variation
from mt.device import Compute, choose, keep_freed_memory, launch_number
from mt.errors import ConfigError, Interrupted, ModelError
from mt.files import claimed, write_text
from mt.model.attention import MultiHeadAttention, explicit_in_float32
from mt.model.transformer import Transformer
from mt.pipelines.prepare import PreparedData, PreparedRun, begin, prepare_again, prepare_new, shares, threads_of
from mt.pipelines.ranks import ALONE, Ranks, SharedCheckpoints, SharedClock, SharedUpdater
from mt.pipelines.recipe import CorpusFacts, RunConfig, Settings, corpus_files, resolve, resolve_tokenizer
from mt.pipelines.reporting import Log, RunLog, Silence, recipe_line
from mt.pipelines.resume import (
    check_checkpoints,
    check_output,
    check_started_from,
    check_unchanged,
    continued_settings,
    finished,
    remember_choices,
    restore,
    unused_origin,
    with_origin,
)
from mt.pipelines.run_folder import LoadedModel, RunFolder, load_model, versions
from mt.pipelines.tensorboard import Board, import_writer
from mt.pipelines.texts import Texts, cache_folder
from mt.pipelines.validation import Validation, choose_length_penalty, choose_weights, closing_validations
from mt.settings import AUTO, Values
from mt.training.budget import NO_GAIN, Budget, Clock, Progress
from mt.training.checkpoint import Learned, load_weights, save_tensors, weights
from mt.training.compiled import compile_layers, compiled_graphs
from mt.training.config import TrainingConfig
from mt.training.consistency import Consistency
from mt.training.loop import Trainer
from mt.training.memory import tokens_that_fit
from mt.training.moving_average import MovingAverage
from mt.training.optimizer import make_optimizer
from mt.training.update import Updater
from mt.workers import SIGNALS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What `mt train` was asked to do."""

    output: Path
    settings: Settings
    overwrite: bool = False
    start_from: Path | None = None  # a run whose weights, tokenizer and architecture are the start
    quiet: bool = False
    started: float  # time.monotonic() when the command began: its minutes are counted from there


def train(request: TrainRequest) -> None:
    """Train a new run, or go on with the one in the output folder.

    Configuration, device, run folder and data are checked in this order, before anything is written.
    """
    if request.overwrite and launch_number("TORCHELASTIC_MAX_RESTARTS"):
        raise ConfigError(
            "--overwrite would delete the run each time that torchrun restarts", "give torchrun --max-restarts 0"
        )
    run, ranks = RunFolder(request.output), Ranks.launched()
    with ranks.ending(), ExitStack() as stack:
        if ranks.first:
            ready = prepare(run, request)
            if ready:
                stack.enter_context(claimed(run.lock))
                if ready.provenance:
                    # Again: another process may have been faster.
                    check_output(run, cache_folder(run, request.settings), overwrite=request.overwrite)
                    begin(run, ready.prepared, ready.provenance)
                remember_choices(run, request.settings)
                write_text(run.recipe, origin_comment(run) + ready.prepared.config.as_toml())
            ranks.tell("train" if ready else "nothing to do")
        elif ranks.told() == "train":
            if not run.recipe.is_file():
                raise ModelError(
                    f"rank {ranks.rank} does not see {run.recipe}", "put the run where all machines see it"
                )
            ready = prepare(run, replace(request, overwrite=False))
        else:
            ready = None
        if ready:
            stack.enter_context(ranks.connected(ready.prepared.config.training.timeout_seconds))
            asked = stack.enter_context(stop_on_signals())
            fit(run, ready, ranks, request, asked)


@dataclass(frozen=True, slots=True)
class Ready:
    """All that training needs."""

    prepared: PreparedRun
    compute: Compute
    start: LoadedModel | None  # whose weights are the first
    provenance: Values | None  # of a run that is to begin; None: it has begun


def prepare(run: RunFolder, request: TrainRequest) -> Ready | None:
    """Check everything and make ready what is needed; None when there is nothing left to train.

    Nothing but the cache is written.
    """
    begins = request.overwrite or not run.recipe.is_file()
    ready = prepare_to_begin(run, request) if begins else prepare_to_go_on(run, request)
    if ready:
        config, data = ready.prepared.config.data, ready.prepared.data
        for line in shares(corpus_files(config.train, "train"), data.facts.pairs_of_corpora, config.temperature):
            logger.info("%s", line)
    return ready


def prepare_to_begin(run: RunFolder, request: TrainRequest) -> Ready:
    if request.start_from and request.start_from.resolve() == run.path.resolve():
        raise ConfigError(f"--from {request.start_from} is the run to begin itself", "choose another --output")
    start = load_model(request.start_from) if request.start_from else None
    settings = with_origin(request.settings, start) if start else request.settings
    check_settings(settings)
    if not start:
        for path in settings.said()["tokenizer"].get("files", []):
            Tokenizer.load(Path(path))  # told before any text is read, too
    compute = choose_compute(settings)
    check_output(run, cache_folder(run, settings), overwrite=request.overwrite)
    texts = Texts.of(run, settings)
    prepared = prepare_new(run, settings, texts, compute, start)
    return Ready(prepared, compute, start, provenance(prepared, settings, texts, start))


def prepare_to_go_on(run: RunFolder, request: TrainRequest) -> Ready | None:
    if request.start_from:
        check_started_from(run, request.start_from)
    check_checkpoints(run)
    origin = unused_origin(run)
    start = load_model(origin) if origin else None
    settings = continued_settings(run, request.settings)
    check_settings(settings)
    compute = choose_compute(settings)
    texts = Texts.of(run, settings)
    check_unchanged(run, texts.checksums)
    if reason := finished(run, settings):
        texts.remembered.save()
        hint = "a higher --set validation.patience=N" if reason.startswith(NO_GAIN) else "a higher limit"
        logger.info("%s is finished (%s); to train on, give %s", run.path, reason, hint)
        return None
    prepared = prepare_again(run, settings, texts, compute)
    tell_of_intervals(run, request.settings, prepared.config.training)
    return Ready(prepared, compute, start, provenance=None)


def tell_of_intervals(run: RunFolder, said: Settings, training: TrainingConfig) -> None:
    """Say that validation comes more or less often from now on, where another limit has brought that about."""
    key = "validate_every_steps"
    before, now = run.read_recipe()["training"].get(key), training.validate_every_steps
    if before and before != now and key not in said.said()["training"]:
        logger.info("validation comes every %s steps now; before, every %s", f"{now:,}", f"{before:,}")


def origin_comment(run: RunFolder) -> str:
    """What a recipe cannot say: which run this one was begun from."""
    origin = run.read_provenance()["started_from"]
    return f"# Begun --from {origin!r}: to repeat it, give --from together with this file.\n\n" if origin else ""


def provenance(prepared: PreparedRun, settings: Settings, texts: Texts, start: LoadedModel | None) -> Values:
    """What config.json says of how a run was made."""
    return {
        **versions(),
        "seed": prepared.config.training.seed,
        "settings": settings.said(),
        "corpora": texts.checksums,
        "started_from": str(start.path) if start else "",
    }


def check_settings(settings: Settings) -> None:
    """Build the recipe for made-up facts, so that what cannot be done is refused before any text is read.

    The facts are those of a large corpus: choices meant for little text could clash with what was said.
    """
    facts = CorpusFacts(pairs=10**7, target_tokens=10**8, vocabularies=(8_000, 8_000), languages=("", ""))
    tokenizer = resolve_tokenizer(settings, facts.pairs, same_script=True)
    config = resolve(settings, tokenizer, facts, Compute(torch.device("cpu"), "fp32"), threads=1)
    if config.training.tensorboard:
        import_writer()


def choose_compute(settings: Settings) -> Compute:
    said = settings.said()["training"]
    return choose(said.get("device", AUTO), said.get("precision", AUTO), threads_of(settings), training=True)


def fit(run: RunFolder, ready: Ready, ranks: Ranks, request: TrainRequest, asked: Callable[[], bool]) -> None:
    """Build the model, train it from the last checkpoint on, and leave the best weights in the run folder.

    Stops early, when all is saved, once `asked` says that it is to.
    """
    prepared, compute, config = ready.prepared, ready.compute, ready.prepared.config
    torch.manual_seed(config.training.seed)
    updater = make_updater(config, compute, ready.start, ranks)
    model = updater.model
    ema_decay = config.training.ema_decay
    learned = Learned(model, updater.optimizer, MovingAverage(weights(model), ema_decay) if ema_decay else None)
    checkpoints = SharedCheckpoints(run.path, ranks)
    progress = restore(checkpoints, learned, (config.training.max_steps, config.training.max_minutes))
    clock = SharedClock(request.started, progress.elapsed_seconds, ranks)
    log = open_log(run, config.training, progress, clock, quiet=request.quiet) if ranks.first else Silence()
    with closing(log):
        announce(model, prepared, compute, log, progress, ranks)
        batcher, sampler = batches_of(config, prepared.data, prepared.tokenizers, compute, ranks)
        config = within_memory(config, updater, batcher, sampler, ranks, clock, log)
        prepared = replace(prepared, config=config)

        def publish() -> None:
            if ranks.first:
                save_tensors(run.model, weights(model))

        validation = Validation(run, prepared, model, compute, progress, clock, ranks)
        trainer = Trainer(
            updater=updater,
            learned=learned,
            updates=partial(batcher.updates, sampler),
            validate=validation,
            publish=publish,
            log=log,
            checkpoints=checkpoints,
            config=config.training,
            optimizer_config=config.optimizer,
            validation_config=config.validation,
            budget=Budget(config.training, config.optimizer, progress, clock, closing_validations(config)),
            interrupted=lambda: clock.agree(asked()),
        )
        try:
            reason = train_to_the_end(trainer, validation, run, ranks)
        except Interrupted as stopped:
            if not run.model.exists():
                publish()
            raise Interrupted(stopped.message, f"to go on: mt train --output {run.path}") from stopped
    warn_of_few_steps(progress.step, config.optimizer.warmup_steps)
    logger.info(
        "finished (%s) after %s steps; %s on validation %.2f; the model is in %s",
        reason, f"{progress.step:,}", config.validation.metric, abs(progress.published or 0.0), run.path,
    )  # fmt: skip


def train_to_the_end(trainer: Trainer, validation: Validation, run: RunFolder, ranks: Ranks) -> str:
    """Train, and choose what translates best; returns why training ended, or raises `Interrupted` in between."""
    reason = trainer.run()
    trainer.stop_if_asked()
    choose_weights(trainer, run, ranks)
    trainer.stop_if_asked()
    if trainer.validation_config.tune_length_penalty:
        choose_length_penalty(trainer, validation, run, ranks)
    trainer.finish(reason)
    return reason


def warn_of_few_steps(steps: int, warmup: int) -> None:
    """Say that a model has not learned much where training ended before its learning rate had risen."""
    if not steps:
        logger.warning("the time ran out before the first update: the model is untrained; raise --max-minutes")
    elif steps < warmup:
        logger.warning(
            "training ended in its warm-up, at step %s of %s: give it more time", f"{steps:,}", f"{warmup:,}"
        )


def open_log(run: RunFolder, training: TrainingConfig, progress: Progress, clock: Clock, *, quiet: bool) -> RunLog:
    """Where training says what it does, from this step on."""
    board = Board(run.tensorboard, progress.step) if training.tensorboard else None
    return RunLog(run.log, progress, clock.elapsed, quiet=quiet, total_steps=training.max_steps, board=board)


def batches_of(
    config: RunConfig,
    data: PreparedData,
    tokenizers: tuple[Tokenizer, Tokenizer],
    compute: Compute,
    ranks: Ranks = ALONE,
) -> tuple[Batcher, BatchSampler]:
    """What makes the updates of the training text, or this rank's share of them, as the recipe cuts and varies them."""
    training = config.training
    corpus: Pairs = BothWays(data.train) if training.bidirectional_epochs else data.train
    sampler = BatchSampler(
        corpus,
        batch_tokens=config.data.batch_tokens,
        seed=training.seed,
        weights=data.weights,
        bidirectional_epochs=training.bidirectional_epochs,
    )
    variation = None
    if training.sampling_alpha or training.noise_rate:
        variation = Variation(
            tokenizers=tokenizers,
            sampling_alpha=training.sampling_alpha,
            noise_rate=training.noise_rate,
            noise_from_epoch=training.noise_from_epoch,
            max_tokens=config.data.max_tokens,
            seed=training.seed,
        )
    specials = tokenizers[0].specials, tokenizers[1].specials
    return Batcher(corpus, specials, compute.device, variation, ranks.rank, ranks.count), sampler


def within_memory(
    config: RunConfig,
    updater: Updater,
    batcher: Batcher,
    sampler: BatchSampler,
    ranks: Ranks,
    clock: SharedClock,
    log: Log,
) -> RunConfig:
    """The recipe of this session: with as much computed at a time as memory was found to hold."""
    compiled_before = compiled_graphs()
    at_a_time = micro_batch_tokens(config, updater, batcher, sampler, ranks)
    if at_a_time != config.training.micro_batch_tokens:
        clock.agree()  # on how long that took: it says nothing of the pace of training
        log({"kind": "event", "event": "micro_batches", "micro_batch_tokens": at_a_time})
    if graphs := compiled_graphs() - compiled_before:
        log({"kind": "event", "event": "compiled", "graphs": graphs})
    return replace(config, training=replace(config.training, micro_batch_tokens=at_a_time))


def micro_batch_tokens(
    config: RunConfig, updater: Updater, batcher: Batcher, sampler: BatchSampler, ranks: Ranks = ALONE
) -> int:
    """Target tokens computed at a time: those of the recipe, or what of an update fits into every rank's GPU."""
    said = config.training.micro_batch_tokens
    if said or not updater.compute.on_cuda:
        return said
    share = -(-config.data.batch_tokens // ranks.count)
    found = tokens_that_fit(updater, partial(batcher.parts_of, sampler.extremes()), share)
    return -int(ranks.maximum(-found)[0])


def make_updater(
    config: RunConfig, compute: Compute, start: LoadedModel | None = None, ranks: Ranks = ALONE
) -> Updater:
    """A model of this recipe on the device, with the weights of `start` if given, and what trains it."""
    model = Transformer(config.model)
    if start:
        load_weights(model, weights(start.model), str(start.path))
    model.to(compute.device)
    use_fastest_kernel(model, compute)
    if config.training.compile:
        compile_layers(model)
    if not compute.on_cuda:
        keep_freed_memory()
    training = config.training
    consistency = None
    if training.consistency != "off":
        consistency = Consistency(method=training.consistency, alpha=training.consistency_alpha, cutoff=training.cutoff)
    make = Updater if ranks.count == 1 else partial(SharedUpdater, ranks=ranks)
    return make(
        model,
        make_optimizer(model, config.optimizer),
        compute,
        label_smoothing=training.label_smoothing,
        gradient_clip=config.optimizer.gradient_clip,
        consistency=consistency,
    )


def announce(
    model: Transformer, prepared: PreparedRun, compute: Compute, log: Log, progress: Progress, ranks: Ranks
) -> None:
    """Say what is trained on what, and from where on."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "training %s parameters on %s pairs (%s target tokens an epoch), %s%s %s, %s threads%s",
        f"{parameters:,}", f"{prepared.data.facts.pairs:,}", f"{prepared.data.epoch_target_tokens:,}",
        f"{ranks.count} processes, each " if ranks.count > 1 else "",
        compute.device, compute.precision, torch.get_num_threads(),
        f"; going on from step {progress.step:,}" if progress.step else "",
    )  # fmt: skip
    logger.info("%s; run.toml has the rest", recipe_line(prepared.config))
    training = prepared.config.training
    if training.noise_rate:
        logger.info(
            "%s%.0f%% of the source sentences are learned in lower or title case, or mistyped%s;"
            " --set training.noise_rate=0 leaves all as they are",
            f"after {training.noise_from_epoch} epochs " if training.noise_from_epoch else "",
            100 * training.noise_rate,
            "" if prepared.knows_capitals else ", and lines in capitals will be read in lower case",
        )
    event = "resumed" if progress.step else "started"
    log({"kind": "event", "event": event, "parameters": parameters, "processes": ranks.count})


def use_fastest_kernel(model: Transformer, compute: Compute) -> None:
    """Attend by what trains fastest on the device."""
    if not compute.on_cuda:
        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                module.kernel = explicit_in_float32


ONE_REQUEST_SECONDS = 1.0  # in which a supervisor's signal may come twice: from itself, and handed on by the launcher


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside the block a first SIGINT or SIGTERM only asks to stop, a later one stops at once; yields `asked`."""
    asked = False
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked, first
        if not asked:
            asked, first = True, time.monotonic()
            logger.info("stopping as soon as everything is saved; once more, and it stops at once")
        elif time.monotonic() - first > ONE_REQUEST_SECONDS:
            raise Interrupted("stopped before everything was saved")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: asked  # whether a signal has come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
