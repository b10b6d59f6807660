"""Going back to an earlier checkpoint when updates cannot be learned from, one after another."""

from dataclasses import replace

from mt.errors import ModelError
from mt.training.budget import Progress, limits_changed
from mt.training.checkpoint import Checkpoints, Learned, sound_steps

PATIENCE = 20  # updates skipped in a row after which training goes back
MOST = 3  # times that a run goes back


def roll_back(progress: Progress, checkpoints: Checkpoints, learned: Learned) -> None:
    """Return to the last checkpoint before updates were skipped, and halve the learning rate.

    A checkpoint that was returned to before is passed over, unless there is no other.  The new progress is saved in the
    chosen one before later ones are deleted, so that a crash at any moment leaves a run that goes back, or has gone
    back.  Raises `ModelError` when it has been tried often enough.
    """
    if len(progress.rollbacks) == MOST:
        raise diverged(progress)
    steps = checkpoints.steps()
    untried = [step for step in steps if step <= progress.sound_step and step not in progress.rollbacks]
    chosen = next(sound_steps(checkpoints, untried or steps[:1]), None)
    if chosen is None:
        raise diverged(progress)
    kept = {step for step in steps if step <= chosen}
    earlier = Progress.of(checkpoints.load(chosen, learned))
    if limits_changed((earlier.max_steps, earlier.max_minutes), (progress.max_steps, progress.max_minutes)):
        earlier.decay = None  # planned towards another limit, as a cosine is from its first step
    earlier = replace(
        earlier,
        rollbacks=[*progress.rollbacks, chosen],
        best=[(score, step) for score, step in earlier.best if step in kept],
        bleu_tokenizer=progress.bleu_tokenizer,
        published=progress.published,
        elapsed_seconds=progress.elapsed_seconds,
        max_steps=progress.max_steps,
        max_minutes=progress.max_minutes,
        validation_seconds=progress.validation_seconds,
    )
    vars(progress).update(vars(earlier))  # in place: log, budget and validation hold on to it
    checkpoints.save(chosen, learned, progress.record())
    checkpoints.keep(kept)


def diverged(progress: Progress) -> ModelError:
    tried = f"; returns to earlier weights that did not help: {len(progress.rollbacks)}" if progress.rollbacks else ""
    return ModelError(
        f"training diverged: the last {progress.guard.skipped_in_a_row:,} updates up to step {progress.step:,} "
        f"were skipped{tried}",
        "lower the learning rate: --set optimizer.peak_learning_rate=...",
    )
