"""How a model does while it trains, which of its weights are worth keeping, and how it should translate."""

import logging
import math
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter

import torch
from torch import Tensor

from mt.corpus.batching import Batcher, BatchSampler
from mt.decoding.search import SearchConfig
from mt.decoding.translator import Translation, Translator
from mt.device import Compute
from mt.evaluation.metrics import bleu_metric, choose_tokenizer, quick_scores
from mt.files import append_text
from mt.model.transformer import Transformer
from mt.pipelines.prepare import PreparedRun
from mt.pipelines.ranks import Ranks, SharedClock
from mt.pipelines.recipe import RunConfig
from mt.pipelines.run_folder import RunFolder
from mt.training.budget import Progress, Record
from mt.training.checkpoint import average, load_tensors, load_weights, save_tensors, sound_steps
from mt.training.compiled import uncompiled
from mt.training.loop import Trainer
from mt.training.loss import cross_entropy
from mt.training.update import last_hidden

logger = logging.getLogger(__name__)

LENGTH_PENALTIES = tuple(tenths / 10 for tenths in range(0, 21, 2))
WORTH_A_CHANGE = 0.2  # points of BLEU or chrF; what gains less on some sentences often loses as much on others


class Validation:
    """Scores of the model as it stands: loss per token, BLEU and chrF of its translations; samples go to a file."""

    def __init__(
        self,
        run: RunFolder,
        prepared: PreparedRun,
        model: Transformer,
        compute: Compute,
        progress: Progress,
        clock: SharedClock,
        ranks: Ranks,
    ) -> None:
        self.run, self.prepared, self.model, self.compute, self.progress = run, prepared, model, compute, progress
        self.clock, self.ranks = clock, ranks
        config, data = prepared.config, prepared.data
        translated = evenly(len(data.valid_sources), config.validation.max_sentences)
        self.sources = [data.valid_sources[i] for i in translated]
        self.references = [data.valid_references[i] for i in translated]
        progress.bleu_tokenizer = ranks.by_first(self.choose_tokenizer)
        if len(translated) < len(data.valid_sources):
            logger.info(
                "each validation translates %s of the %s validation pairs, evenly spaced (validation.max_sentences)",
                f"{len(translated):,}", f"{len(data.valid_sources):,}",
            )  # fmt: skip
        at_a_time = min(config.data.batch_tokens, config.training.micro_batch_tokens or config.data.batch_tokens)
        sampler = BatchSampler(data.valid, batch_tokens=at_a_time, seed=0)
        self.batches = sampler.epoch(0)
        self.batcher = Batcher(data.valid, prepared.specials, compute.device)

    def choose_tokenizer(self) -> str:
        """That of the scores before, so that all can be compared; raises `ConfigError` where it is not there now."""
        before = self.progress.bleu_tokenizer
        tokenizer = before or choose_tokenizer(self.prepared.config.data.target_language, None)
        bleu_metric(self.references[:1], tokenizer)
        return tokenizer

    def __call__(self) -> Record:
        with uncompiled():
            beam = self.prepared.config.validation.beam
            own = self.translate(replace(self.prepared.decoding, beam=beam, scored=False))
            loss = self.loss()
        translations = self.ranks.gather([translation.text for translation in own])
        if self.ranks.first:
            self.write_samples(translations)
        record = {"loss": loss, **self.scores(translations, "bleu", "chrf")}
        self.clock.agree()  # on how long it took
        return record

    def translate(self, search: SearchConfig) -> list[Translation]:
        """This rank's share of the sources; on the CPU in float32, as `mt translate` does."""
        compute = self.compute if self.compute.on_cuda else Compute(self.compute.device, "fp32")
        threads = self.prepared.config.training.threads
        translator = Translator(
            [self.model],
            self.prepared.tokenizers,
            search,
            compute,
            knows_capitals=self.prepared.knows_capitals,
            threads=threads,
        )
        return translator.translate(self.ranks.share(self.sources), first_number=None)

    def scores(self, translations: list[str], *metrics: str) -> dict[str, float]:
        tokenizer = self.progress.bleu_tokenizer
        return self.ranks.by_first(lambda: quick_scores(translations, self.references, tokenizer, metrics))

    def scores_by_length_penalty(self, metric: str) -> dict[float, float]:
        """The scores of the run's own search, its n-best lists re-ranked by each of the penalties.

        The best hypothesis of a search with that penalty is nearly always among them.
        """
        search = self.prepared.decoding
        with uncompiled():
            own = self.translate(replace(search, nbest=search.beam))

        def ranked(penalty: float) -> list[str]:
            return self.ranks.gather([translation.ranked_by(penalty).text for translation in own])

        scores = {penalty: self.scores(ranked(penalty), metric)[metric] for penalty in LENGTH_PENALTIES}
        self.clock.agree()  # on how long it took
        return scores

    @torch.inference_mode()
    def loss(self) -> float:
        """Cross-entropy without smoothing, in nats per target token."""
        total, tokens = 0.0, 0.0
        for indices in self.ranks.share(self.batches):
            batch = self.batcher.batch(indices)
            with self.compute.autocast():
                hidden = last_hidden(self.model, batch)
                loss = cross_entropy(hidden, self.model.output_weight, batch.target)
            total += loss.item()  # sync: a validation may
            tokens += batch.target_tokens
        total, tokens = self.ranks.sum(total, tokens)
        return total / tokens

    def write_samples(self, translations: list[str]) -> None:
        samples = zip(self.sources, self.references, translations, strict=True)
        text = f"step {self.progress.step:,}\n"
        for source, reference, hypothesis in islice(samples, self.prepared.config.validation.samples):
            text += f"  source      {source}\n  reference   {reference}\n  hypothesis  {hypothesis}\n\n"
        append_text(self.run.samples, text)


def evenly(count: int, most: int) -> list[int]:
    """All of so many numbers, or as many of them as there may be at most, evenly from the first on."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that may become those to use."""

    name: str
    tensors: dict[str, Tensor]
    score: float
    event: Record = field(default_factory=dict)  # what the log says of them


def judged(trainer: Trainer, name: str, tensors: dict[str, Tensor], event: Record) -> Candidate:
    """Validate weights, which the model then has."""
    load_weights(trainer.model, tensors, name)
    trainer.model.eval()
    scores = trainer.validate()
    return Candidate(name, tensors, trainer.validation_config.score(scores), {"kind": "event", **event, **scores})


def choose_weights(trainer: Trainer, run: RunFolder, ranks: Ranks) -> None:
    """Leave in the run folder the best weights, or the average of the best ones or over time where it scores better."""
    sound = set(sound_steps(trainer.checkpoints, sorted(step for _, step in trainer.progress.best)))
    best = [(score, step) for score, step in trainer.progress.best if step in sound]
    if not best:
        return  # the best weights were written when they were found
    paths = [trainer.checkpoints.path(step) / "model.safetensors" for _, step in best]
    candidates = [Candidate("the best checkpoint", load_tensors(paths[0]), best[0][0])]
    if len(best) > 1:
        event: Record = {"event": "averaged", "steps": [step for _, step in best]}
        candidates.append(judged(trainer, f"the average of the {len(best)} best", average(paths), event))
    if moving_average := trainer.learned.moving_average:
        event = {"event": "moving_average", "decay": moving_average.decay}
        candidates.append(judged(trainer, "the moving average", moving_average.weights, event))
    chosen, published = max(candidates, key=attrgetter("score")), trainer.progress.published  # of equals the first
    kept = -math.inf if published is None else published
    better = chosen.score >= kept
    for candidate in candidates[1:]:
        trainer.log({**candidate.event, "chosen": better and candidate is chosen})
    if len(candidates) > 1 or not better:
        scores = ", ".join(f"{candidate.name} {abs(candidate.score):.2f}" for candidate in candidates)
        verdict = f"{chosen.name} is kept" if better else f"what was kept before stays: it had {abs(kept):.2f}"
        logger.info("%s on validation: %s; %s", trainer.validation_config.metric, scores, verdict)
    if better:
        trainer.progress.published = chosen.score
        if ranks.first:
            save_tensors(run.model, chosen.tensors)
        trainer.save()  # what is published, should the rest of this be cut short


def closing_validations(config: RunConfig) -> float:
    """What comes after the last update, in validations: the last one, those of averages, a search with more beams."""
    last, averages, reserve = 1.0, 1.0 + bool(config.training.ema_decay), 0.5
    wider_search = 5.0 * config.validation.tune_length_penalty
    return last + averages + reserve + wider_search


def choose_length_penalty(trainer: Trainer, validation: Validation, run: RunFolder, ranks: Ranks) -> None:
    """Set the run's length penalty: of those that score best on validation, or nearly, the nearest to the old one."""
    ranks.meet()  # and not read before the first has written
    load_weights(trainer.model, load_tensors(run.model), str(run.model))
    trainer.model.eval()
    metric = "chrf" if trainer.validation_config.metric == "chrf" else "bleu"
    scores = validation.scores_by_length_penalty(metric)
    search = validation.prepared.decoding
    before = search.length_penalty
    good = [penalty for penalty in scores if scores[penalty] >= max(scores.values()) - WORTH_A_CHANGE]
    chosen = min(good, key=lambda penalty: (abs(penalty - before), -scores[penalty]))
    if ranks.first:
        run.set_length_penalty(chosen)
    found = {"length_penalty": chosen, "score": scores[chosen], "before": before, "score_before": scores[before]}
    trainer.log({"kind": "event", "event": "length_penalty", "metric": metric, "beam": search.beam, **found})
