"""How a model does while it trains, and which of its weights are worth keeping."""

import logging
from dataclasses import replace
from itertools import islice

import torch

from mt.corpus.batching import Batcher, BatchSampler
from mt.decoding.translator import Translator
from mt.device import Compute
from mt.evaluation.metrics import quick_scores
from mt.files import append_text
from mt.model.transformer import Transformer
from mt.pipelines.prepare import PreparedRun
from mt.pipelines.ranks import Ranks, SharedClock
from mt.pipelines.run_folder import RunFolder
from mt.training.budget import Progress, Record
from mt.training.checkpoint import average, load_tensors, load_weights, save_tensors, sound_steps
from mt.training.compiled import as_written
from mt.training.loop import Trainer
from mt.training.update import batch_loss

logger = logging.getLogger(__name__)


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
        self.sources = data.valid_sources[: config.validation.max_sentences]
        self.references = data.valid_references[: config.validation.max_sentences]
        sampler = BatchSampler(data.valid, batch_tokens=config.data.batch_tokens, seed=0)
        self.batches = sampler.epoch(0)
        self.batcher = Batcher(data.valid, prepared.specials, compute.device)
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
        with as_written():
            own = [translation.text for translation in self.translator.translate(self.ranks.own(self.sources))]
            loss = self.loss()
        translations = self.ranks.together(own)
        if self.ranks.first:
            self.write_samples(translations)
        language = self.prepared.config.data.target_language
        record = {"loss": loss, **quick_scores(translations, self.references, language)}
        self.clock.agree()  # on how long it took
        return record

    @torch.inference_mode()
    def loss(self) -> float:
        """Cross-entropy without smoothing, in nats per target token."""
        total, tokens = 0.0, 0.0
        for indices in self.ranks.own(self.batches):
            batch = self.batcher.batch(indices)
            with self.compute.autocast():
                total += batch_loss(self.model, batch, 0.0)[1].item()  # sync: a validation may
            tokens += batch.target_tokens
        total, tokens = self.ranks.total(total, tokens)
        return total / tokens

    def write_samples(self, translations: list[str]) -> None:
        samples = zip(self.sources, self.references, translations, strict=True)
        text = f"step {self.progress.step:,}\n"
        for source, reference, hypothesis in islice(samples, self.prepared.config.validation.samples):
            text += f"  source      {source}\n  reference   {reference}\n  hypothesis  {hypothesis}\n\n"
        append_text(self.run.samples, text)


def choose_weights(trainer: Trainer, run: RunFolder, ranks: Ranks) -> None:
    """Leave in the run folder the best weights, or the average of the best ones where that scores better."""
    sound = set(sound_steps(trainer.checkpoints, sorted(step for _, step in trainer.progress.best)))
    best = [(score, step) for score, step in trainer.progress.best if step in sound]
    if not best:
        return  # the best weights were written when they were found
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
    if ranks.first:
        save_tensors(run.model, chosen)
