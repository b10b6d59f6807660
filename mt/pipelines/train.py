"""`mt train`: two text files in, a run folder out; run again, it goes on where it stopped."""

import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from mt.corpus.batching import Batch, BatchSampler, make_batch, micro_batches
from mt.corpus.encoded import EncodedCorpus
from mt.corpus.parallel import CorpusFiles, language_of
from mt.corpus.tokenizer import Tokenizer
from mt.decoding.search import SearchConfig
from mt.decoding.translator import Translator
from mt.device import Compute, choose, usable_threads
from mt.errors import ConfigError, Interrupted, ModelError
from mt.evaluation.metrics import quick_scores
from mt.files import write_text
from mt.model.attention import MultiHeadAttention, explicit
from mt.model.transformer import Transformer
from mt.pipelines.prepare import (
    MAX_LENGTH_OFFSET,
    PreparedData,
    cache_key,
    check_text,
    corpus_checksums,
    encode_text,
    make_tokenizers,
    read_prepared,
)
from mt.pipelines.recipe import (
    CorpusFacts,
    DataConfig,
    RunConfig,
    Settings,
    corpus_files,
    differences,
    resolve,
    resolve_tokenizer,
)
from mt.pipelines.reporting import RunLog
from mt.pipelines.run_folder import LoadedModel, RunFolder, load_model, load_tokenizers, versions
from mt.settings import AUTO, Values, read_toml
from mt.training.checkpoint import Checkpoints, average, load_tensors, load_weights, save_tensors, weights
from mt.training.loop import Clock, Progress, Record, Trainer, batch_loss
from mt.training.optimizer import make_optimizer

logger = logging.getLogger(__name__)

# What a run folder may hold before it has a recipe: the remains of a run that was killed while it prepared its data.
PREPARATIONS = {"cache", "tokenizer.model", "source.model", "target.model", "config.json", "log.jsonl"}
# Settings that belong to the machine: left to the program, they are chosen anew when a run is continued.
OF_THE_MACHINE = ("device", "precision", "threads", "micro_batch_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What `mt train` was asked to do."""

    output: Path
    settings: Settings
    overwrite: bool = False
    start_from: Path | None = None  # a run whose weights, tokenizer and architecture are the start
    quiet: bool = False
    started: float  # time.monotonic() when the command began: its minutes are counted from there


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run ready to train: its complete recipe, tokenizers and encoded text."""

    config: RunConfig
    tokenizers: tuple[Tokenizer, Tokenizer]
    data: PreparedData
    decoding: SearchConfig


def train(request: TrainRequest) -> None:
    """Train a new run, or go on with the one in the output folder.

    Configuration, device, run folder and data are checked in this order, before anything is written.
    """
    run = RunFolder(request.output)
    saved = read_toml(run.recipe) if run.recipe.is_file() and not request.overwrite else None
    settings = request.settings if saved is None else continued_settings(run, saved, request.settings)
    check_settings(settings)
    compute = choose_compute(settings)
    if saved is None:
        check_output(run, overwrite=request.overwrite)
    elif request.start_from:
        raise ConfigError(f"{run.path} is already a run: --from starts a new one", "choose another --output")
    start = load_model(request.start_from) if request.start_from else None
    corpora = corpus_files(settings.given["data"].get("train", ()), "train")
    valid = corpus_files(settings.given["data"].get("valid", ()), "valid")
    checksums = corpus_checksums([*corpora, *valid])
    if saved is not None:
        check_unchanged(run, checksums)
        if reason := finished(run, settings):
            logger.info("%s is finished (%s); raise a limit to train on", run.path, reason)
            return
    elif request.overwrite:
        clear(run)
    prepared = prepare(run, settings, corpora, valid, checksums, compute, start, new=saved is None)
    fit(run, prepared, compute, start, request)


def limits(values: Values) -> tuple[int, float]:
    """The limits in a [training] section, or in a checkpoint's state."""
    return values.get("max_steps", 0), float(values.get("max_minutes", 0))


def continued_settings(run: RunFolder, saved: dict[str, Values], now: Settings) -> Settings:
    """The saved recipe with what may change; raises `ConfigError` with the list of what may not."""
    said_before = run.read_config()["provenance"]["settings"]
    was_auto = [key for key in OF_THE_MACHINE if key not in said_before.get("training", {})]
    allowed, refused = differences(saved, now, precision_was_auto="precision" in was_auto)
    if refused:
        raise ConfigError(
            f"{run.path} was trained with other settings:\n  " + "\n  ".join(refused),
            "give the old settings to go on, another --output or --overwrite to start anew, or --from to start from it",
        )
    if allowed:
        logger.info("changed for this continuation: %s", "; ".join(allowed))
    settings = Settings()
    settings.add(saved, str(run.recipe))
    for key in was_auto:
        settings.given["training"].pop(key, None)
    settings.add({name: values for name, values in now.said().items() if name != "model"}, "command line")
    return settings


def check_settings(settings: Settings) -> None:
    """Build the recipe for made-up facts, so that a mistaken setting is refused before any text is read."""
    facts = CorpusFacts(pairs=10_000, target_tokens=100_000, vocabularies=(8_000, 8_000), languages=("", ""))
    tokenizer = resolve_tokenizer(settings, facts.pairs, same_script=True)
    resolve(settings, tokenizer, facts, Compute(torch.device("cpu"), "fp32"), threads=1)


def choose_compute(settings: Settings) -> Compute:
    said = settings.said()["training"]
    threads = said.get("threads") or usable_threads()
    return choose(said.get("device", AUTO), said.get("precision", AUTO), threads, training=True)


def check_output(run: RunFolder, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a run, or its beginnings."""
    if run.path.exists() and not run.path.is_dir():
        raise ModelError(f"{run.path} is not a folder", "choose another --output")
    known = (
        PREPARATIONS | {"run.toml", "model.safetensors", "samples.txt", "checkpoints"} if overwrite else PREPARATIONS
    )
    found = {entry.name for entry in run.path.iterdir()} if run.path.is_dir() else set()
    foreign = sorted(name for name in found - known if not name.endswith(".partial"))
    if foreign:
        raise ModelError(
            f"{run.path} is no run folder and is not empty: it holds {foreign[0]}", "choose another --output"
        )


def clear(run: RunFolder) -> None:
    """Delete a run, the recipe first, so that a crash leaves nothing that looks like one; encoded text stays."""
    for name in ("run.toml", "config.json", "model.safetensors", "log.jsonl", "samples.txt"):
        (run.path / name).unlink(missing_ok=True)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def check_unchanged(run: RunFolder, checksums: list[Values]) -> None:
    """Raise `ConfigError` when a text is not the one that the run was begun with."""
    before = run.read_config()["provenance"]["corpora"]
    changed = [now["path"] for then, now in zip(before, checksums, strict=False) if then["sha256"] != now["sha256"]]
    if changed or len(before) != len(checksums):
        raise ConfigError(
            f"the text has changed since {run.path} was begun: {', '.join(changed) or 'other files are given'}",
            "restore the text to go on; --overwrite starts anew",
        )


def finished(run: RunFolder, settings: Settings) -> str:
    """Why the run has ended, unless its limits are now others."""
    checkpoints = Checkpoints(run.path)
    steps = checkpoints.steps()
    state = checkpoints.state(steps[-1]) if steps else {}
    return state["finished"] if state and limits(state) == limits(settings.said()["training"]) else ""


def prepare(
    run: RunFolder,
    settings: Settings,
    corpora: list[CorpusFiles],
    valid: list[CorpusFiles],
    checksums: list[Values],
    compute: Compute,
    start: LoadedModel | None,
    *,
    new: bool,
) -> Prepared:
    """Check and encode the text, unless the cache has it, and complete the recipe."""
    threads = settings.said()["training"].get("threads") or usable_threads()
    seed = settings.said()["training"].get("seed", 1)
    data_values = settings.section("data", {"source_language": "", "target_language": "", "batch_tokens": 1})
    data_config = DataConfig(**data_values)
    text = None
    if new:
        text = check_text(corpora, valid, data_config.rules, seed=seed)
        for line in text.report:
            logger.info("%s", line)
        tokenizer_config = resolve_tokenizer(settings, text.pairs, same_script=text.same_script())
        tokenizers = start.tokenizers if start else make_tokenizers(text, tokenizer_config, seed=seed)
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_tokenizers(*tokenizers)
    else:
        tokenizer_config = resolve_tokenizer(settings, 0, same_script=True)
        tokenizers = load_tokenizers(run, run.read_config())
    rules = {"characters": data_config.max_characters, "ratio": data_config.max_length_ratio}
    held_out = None if valid else seed
    key = cache_key(checksums, tokenizers, rules=rules, max_tokens=data_config.max_tokens, held_out=held_out)
    folder = (Path(data_config.cache) if data_config.cache else run.cache) / key
    if not (folder / "facts.json").is_file():
        text = text or check_text(corpora, valid, data_config.rules, seed=seed)
        over_long = encode_text(text, folder, tokenizers, max_tokens=data_config.max_tokens, threads=threads)
        if over_long:
            logger.warning("left out %s pairs of more than %s tokens", f"{over_long:,}", data_config.max_tokens)
    data = read_prepared(folder, corpora)
    tokenizer_config = replace(tokenizer_config, joint=tokenizers[0] is tokenizers[1])
    first = corpora[0]
    facts = CorpusFacts(
        pairs=data.facts["pairs"],
        target_tokens=data.facts["target_tokens"],
        vocabularies=(tokenizers[0].size, tokenizers[1].size),
        languages=(language_of(first.source), language_of(first.target)) if first.source and first.target else ("", ""),
    )
    config = resolve(with_architecture(settings, start), tokenizer_config, facts, compute, threads)
    decoding = SearchConfig(max_length_ratio=data.facts["max_length_ratio"], max_length_offset=MAX_LENGTH_OFFSET)
    if new:
        languages = (config.data.source_language, config.data.target_language)
        provenance = {**versions(), "seed": seed, "settings": settings.said(), "corpora": checksums}
        run.write_config(config.model, tokenizers, languages, decoding, provenance)
    write_text(run.recipe, config.as_toml())
    return Prepared(config=config, tokenizers=tokenizers, data=data, decoding=decoding)


def with_architecture(settings: Settings, start: LoadedModel | None) -> Settings:
    """The settings with the shape of the model that training starts from; raises `ConfigError` where they disagree."""
    if start is None:
        return settings
    own = {name: getattr(start.model.config, name) for name in SHAPE_FIELDS}
    for key, value in settings.said()["model"].items():
        if key in own and own[key] != value:
            raise ConfigError(f"model.{key} is {value}; the run that --from names has {own[key]}")
    merged = Settings()
    merged.add(settings.given, "settings")
    merged.given["model"] = own | {key: v for key, v in settings.said()["model"].items() if key == "dropout"}
    return merged


SHAPE_FIELDS = ("width", "heads", "feed_forward", "encoder_layers", "decoder_layers", "max_positions", "norm_first")


def fit(
    run: RunFolder,
    prepared: Prepared,
    compute: Compute,
    start: LoadedModel | None,
    request: TrainRequest,
) -> None:
    """Build the model, train it from the last checkpoint on, and leave the best weights in the run folder."""
    config = prepared.config
    torch.manual_seed(config.training.seed)
    model = Transformer(config.model)
    if start:
        load_weights(model, weights(start.model), str(request.start_from))
    model.to(compute.device)
    use_fastest_kernel(model, compute)
    optimizer = make_optimizer(model, config.optimizer)
    checkpoints = Checkpoints(run.path)
    progress = restore(checkpoints, model, optimizer, (config.training.max_steps, config.training.max_minutes))
    clock = Clock(request.started, progress.elapsed_seconds)
    log = RunLog(run.log, progress, clock.elapsed, quiet=request.quiet, total_steps=config.training.max_steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "training %s parameters on %s pairs (%s target tokens an epoch), %s %s, %s threads",
        f"{parameters:,}", f"{len(prepared.data.train):,}", f"{prepared.data.facts['target_tokens']:,}",
        compute.device, compute.precision, torch.get_num_threads(),
    )  # fmt: skip
    log({"kind": "event", "event": "resumed" if progress.step else "started", "parameters": parameters})

    def batches(indices: np.ndarray) -> list[Batch]:
        return update_batches(prepared, indices, compute, config.training.micro_batch_tokens)

    def publish() -> None:
        save_tensors(run.model, weights(model))

    with stop_on_signals() as interrupted:
        trainer = Trainer(
            model=model,
            optimizer=optimizer,
            sampler=BatchSampler(
                prepared.data.train,
                batch_tokens=config.data.batch_tokens,
                seed=config.training.seed,
                weights=prepared.data.weights,
            ),
            batches=batches,
            validate=Validation(run, prepared, model, compute, progress),
            publish=publish,
            log=log,
            checkpoints=checkpoints,
            compute=compute,
            config=config.training,
            optimizer_config=config.optimizer,
            validation=config.validation,
            clock=clock,
            progress=progress,
            interrupted=interrupted,
        )
        try:
            reason = trainer.run()
            choose_weights(trainer, run)
            trainer.finish(reason)
        except Interrupted:
            if not run.model.exists():
                publish()
            raise
        finally:
            log.close()
    best = progress.best[0][0]
    logger.info(
        "finished (%s) after %s steps; best %s on validation %.2f; the model is in %s",
        reason, f"{progress.step:,}", config.validation.metric, abs(best), run.path,
    )  # fmt: skip


def use_fastest_kernel(model: Transformer, compute: Compute) -> None:
    """Write attention out where PyTorch's fused kernel is the slower one: bfloat16 on the CPU.

    Measured on two AVX512-BF16 cores, training small at 1,024 target tokens a step: 1.27 times faster as a whole.
    """
    if compute.device.type == "cpu" and compute.precision == "bf16":
        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                module.kernel = explicit


def restore(
    checkpoints: Checkpoints, model: Transformer, optimizer: torch.optim.Optimizer, limits_now: tuple[int, float]
) -> Progress:
    """Where the run stopped; with other limits than before, where it stood before its learning rate fell."""
    steps = checkpoints.steps()
    progress = Progress()
    if steps and limits(checkpoints.state(steps[-1])) != limits_now:
        steps = [step for step in steps if checkpoints.state(step)["decay"] is None] or steps
    if steps:
        progress = Progress.of(checkpoints.load(steps[-1], model, optimizer))
        checkpoints.keep(set(steps))
        progress.best = [(score, step) for score, step in progress.best if step in steps]
        progress.finished = ""
    progress.max_steps, progress.max_minutes = limits_now
    return progress


def update_batches(prepared: Prepared, indices: np.ndarray, compute: Compute, micro_batch_tokens: int) -> list[Batch]:
    """The tensors of an update, on the device; CUDA's products like lengths that are multiples of 8."""
    corpus = prepared.data.train
    return [
        to_batch(corpus, part, prepared.tokenizers, compute)
        for part in micro_batches(corpus, indices, micro_batch_tokens)
    ]


def to_batch(
    corpus: EncodedCorpus, indices: np.ndarray, tokenizers: tuple[Tokenizer, Tokenizer], compute: Compute
) -> Batch:
    source, target = (tokenizer.specials for tokenizer in tokenizers)
    return make_batch(corpus, indices, source, target, multiple=8 if compute.on_cuda else 1).to(compute.device)


class Validation:
    """Scores of the model as it stands: loss per token, BLEU and chrF of its translations; samples go to a file."""

    def __init__(
        self, run: RunFolder, prepared: Prepared, model: Transformer, compute: Compute, progress: Progress
    ) -> None:
        self.run, self.prepared, self.model, self.compute, self.progress = run, prepared, model, compute, progress
        config, data = prepared.config, prepared.data
        self.sources = data.valid_sources[: config.validation.max_sentences]
        self.references = data.valid_references[: config.validation.max_sentences]
        sampler = BatchSampler(data.valid, batch_tokens=config.data.batch_tokens, seed=0)
        self.batches = sampler.epoch(0)
        # On the CPU translations are made in float32, as `mt translate` makes them.
        translating = compute if compute.on_cuda else Compute(compute.device, "fp32")
        self.translator = Translator(
            [model],
            prepared.tokenizers,
            replace(prepared.decoding, beam=config.validation.beam),
            translating,
            threads=config.training.threads,
        )

    def __call__(self) -> Record:
        translations = [translation.text for translation in self.translator.translate(self.sources)]
        self.write_samples(translations)
        language = self.prepared.config.data.target_language
        return {"loss": self.loss(), **quick_scores(translations, self.references, language)}

    @torch.inference_mode()
    def loss(self) -> float:
        """Cross-entropy without smoothing, in nats per target token."""
        total, tokens = 0.0, 0
        for indices in self.batches:
            batch = to_batch(self.prepared.data.valid, indices, self.prepared.tokenizers, self.compute)
            with self.compute.autocast():
                total += batch_loss(self.model, batch, 0.0)[1].item()  # sync: a validation may
            tokens += batch.target_tokens
        return total / tokens

    def write_samples(self, translations: list[str]) -> None:
        count = self.prepared.config.validation.samples
        blocks = [f"step {self.progress.step:,}"]
        for source, reference, hypothesis in list(zip(self.sources, self.references, translations))[:count]:  # noqa: B905
            blocks.append(f"  source      {source}\n  reference   {reference}\n  hypothesis  {hypothesis}\n")
        with open(self.run.samples, "a", encoding="utf-8") as stream:
            stream.write("\n".join(blocks) + "\n")


def choose_weights(trainer: Trainer, run: RunFolder) -> None:
    """Leave in the run folder the best weights, or the average of the best ones where that scores better."""
    best = trainer.progress.best
    paths = [trainer.checkpoints.path(step) / "model.safetensors" for _, step in best]
    chosen = load_tensors(paths[0])
    if len(best) > 1:
        averaged = average(paths)
        load_weights(trainer.model, averaged, "the average of the best checkpoints")
        trainer.model.eval()
        scores = trainer.validate()
        metric = trainer.validation.metric
        score = -scores["loss"] if metric == "loss" else scores[metric]
        better = score > best[0][0]
        if better:
            chosen = averaged
        trainer.log(
            {"kind": "event", "event": "averaged", "steps": [step for _, step in best], **scores, "chosen": better}
        )
        logger.info(
            "the average of the %s best checkpoints has %s %.2f on validation, the best one %.2f: %s is kept",
            len(best), metric, abs(score), abs(best[0][0]), "the average" if better else "the best one",
        )  # fmt: skip
        load_weights(
            trainer.model, load_tensors(trainer.checkpoints.path(trainer.progress.step) / "model.safetensors"), ""
        )
    save_tensors(run.model, chosen)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGINT and SIGTERM only ask to stop, the second time at once; yields whether they have."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise Interrupted("stopped before the checkpoint was written")
        asked = True
        logger.info("stopping after this step; a checkpoint is written")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
