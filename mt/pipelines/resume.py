"""Going on with a run, or from another one: what may change, what must not, and where training stood."""

import logging
from dataclasses import fields
from itertools import chain
from pathlib import Path

from mt.errors import ConfigError, ModelError
from mt.files import write_json
from mt.model.config import DROPOUTS, PRESETS, ModelConfig
from mt.pipelines.recipe import LANGUAGES, VOCABULARY_FIELDS, Settings, differences
from mt.pipelines.run_folder import PREPARATIONS, RESULTS, LoadedModel, RunFolder
from mt.settings import AUTO, Values
from mt.training.budget import MAX_STEPS, NO_GAIN, Progress, limits_changed
from mt.training.checkpoint import Checkpoints, Learned, sound_steps

logger = logging.getLogger(__name__)

# Settings that go by the machine or by the limits: left to the program, they are chosen anew when a run is continued.
CHOSEN_ANEW = (
    "device", "precision", "threads", "compile", "micro_batch_tokens", "validate_every_steps", "checkpoint_every_steps",
)  # fmt: skip


def left_to_the_program(now: Settings) -> list[str]:
    """Those of `CHOSEN_ANEW` that "auto" is said of; a precision that was chosen once stays, as it changes results."""
    return [key for key in CHOSEN_ANEW if key != "precision" and now.given["training"].get(key) == AUTO]


def limits(values: Values) -> tuple[int, float]:
    """The limits in a [training] section, or in a checkpoint's state."""
    return values.get("max_steps", 0), float(values.get("max_minutes", 0))


def continued_settings(run: RunFolder, now: Settings) -> Settings:
    """The saved recipe with what may change; raises `ConfigError` with the list of what may not."""
    saved = run.read_recipe()
    said_before = run.read_provenance()["settings"]
    now_auto = left_to_the_program(now)
    was_auto = [key for key in CHOSEN_ANEW if key not in said_before.get("training", {}) or key in now_auto]
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
    said = {name: values for name, values in now.said().items() if name != "model"}
    languages = {key: saved["data"][key] for key in LANGUAGES if key in saved["data"]}
    said["data"] = languages | said["data"]  # other paths lead to the same text
    settings.add(said, "command line")
    return settings


def remember_choices(run: RunFolder, now: Settings) -> None:
    """Note in config.json what is said of such settings, so that it holds for the sessions to come, too."""
    said = {key: value for key, value in now.said()["training"].items() if key in CHOSEN_ANEW}
    auto = left_to_the_program(now)
    if said or auto:
        record = run.read_config()
        training = record["provenance"]["settings"].setdefault("training", {}) | said
        record["provenance"]["settings"]["training"] = {k: value for k, value in training.items() if k not in auto}
        write_json(run.config, record)


def check_output(run: RunFolder, cache: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a run, or its beginnings, and the cache where that is inside."""
    if run.path.exists() and not run.path.is_dir():
        raise ModelError(f"{run.path} is not a folder", "choose another --output")
    folder, cache = run.path.resolve(), cache.resolve()
    if run.recipe.is_file() and not overwrite:
        raise ModelError(f"another process has begun a run in {run.path}", "run the command again to go on with it")
    known = PREPARATIONS | RESULTS if overwrite else PREPARATIONS
    if cache.is_relative_to(folder):
        known = known | {cache.relative_to(folder).parts[0]}
    found = {entry.name for entry in run.path.iterdir()} if run.path.is_dir() else set()
    foreign = sorted(name for name in found - known if not name.endswith(".partial"))
    if foreign:
        remains = "--overwrite clears away what is left of an earlier run, or " if set(foreign) <= RESULTS else ""
        raise ModelError(
            f"{run.path} is not a run folder, and not empty: it holds {foreign[0]}", f"{remains}choose another --output"
        )


def check_started_from(run: RunFolder, start_from: Path) -> None:
    """Raise `ConfigError` when a run is there that did not start from this one: `--from` begins, it does not go on."""
    origin = run.read_provenance()["started_from"]
    if not origin or Path(origin).resolve() != start_from.resolve():
        raise ConfigError(
            f"{run.path} is already a run, and not one begun --from {start_from}",
            "leave --from out to go on with it, or choose another --output",
        )


def check_checkpoints(run: RunFolder) -> None:
    """Raise `ModelError` where a trained run has lost its checkpoints: to begin at step 0 would replace its model."""
    if run.model.is_file() and not Checkpoints(run.path).steps():
        raise ModelError(
            f"{run.path} has a model and no checkpoints to go on from",
            "to train on from its weights give --from and another --output; --overwrite starts anew",
        )


def unused_origin(run: RunFolder) -> Path | None:
    """The run that this one was begun from, as long as no checkpoint holds its weights."""
    path = run.read_provenance()["started_from"]
    return Path(path) if path and not Checkpoints(run.path).steps() else None


def with_origin(settings: Settings, start: LoadedModel) -> Settings:
    """The settings with the tokenizer, the shape and the noise of the run that training starts from.

    Raises `ConfigError` where something else is said of them.
    """
    run, own = RunFolder(start.path), Settings()
    recipe = run.recipe_of_weights()
    own.add({"model": {name: getattr(start.model.config, name) for name in SHAPE_FIELDS}}, str(run.config))
    own.add({"tokenizer": recipe["tokenizer"]}, str(run.path))
    noise = {key: recipe["training"][key] for key in ("noise_rate", "noise_from_epoch")}
    said = settings.said()
    dropouts = {key: said["model"].pop(key) for key in DROPOUTS if key in said["model"]}
    said["model"] = PRESETS.get(said["model"].pop("preset", ""), {}) | said["model"]
    for section in ("tokenizer", "model"):
        has = own.said()[section]
        for key, value in said[section].items():
            if has.get(key) != value:
                raise ConfigError(
                    f"{section}.{key} is {value}; the run that --from names has {has.get(key, 'a tokenizer')}",
                    "leave it out: --from brings the tokenizer and the shape of its run",
                )
    given = settings.given | {
        "tokenizer": own.given["tokenizer"],
        "model": own.given["model"] | dropouts,
        "training": said["training"] if "noise_rate" in said["training"] else noise | said["training"],
    }
    return Settings({name: dict(values) for name, values in given.items()})


SHAPE_FIELDS = [item.name for item in fields(ModelConfig) if item.name not in (*VOCABULARY_FIELDS, *DROPOUTS)]


def check_unchanged(run: RunFolder, checksums: list[Values]) -> None:
    """Raise `ConfigError` when a text is not the one that the run was begun with."""
    before = run.read_provenance()["corpora"]
    changed = [now["path"] for then, now in zip(before, checksums, strict=False) if then["sha256"] != now["sha256"]]
    if changed or len(before) != len(checksums):
        raise ConfigError(
            f"the text has changed since {run.path} was begun: {', '.join(changed) or 'other files are given'}",
            "restore the text to go on; --overwrite starts anew",
        )


def raised(before: tuple[float, ...], now: tuple[float, ...]) -> bool:
    """Whether a limit of steps or minutes is now higher, or gone."""
    return any(b and (not n or n > b) for b, n in zip(before, now, strict=True))


def finished(run: RunFolder, settings: Settings) -> str:
    """Why the run has ended; "" when it has not, or when the limit or the patience that ended it has been raised."""
    checkpoints = Checkpoints(run.path)
    steps = checkpoints.steps()
    try:
        state = checkpoints.state(steps[-1]) if steps else {}
    except ModelError:
        return ""  # `restore` looks for an earlier one
    reason = state.get("finished", "")
    if not reason:
        return ""
    if reason.startswith(NO_GAIN):
        patience = settings.said()["validation"].get("patience", 0)
        goes_on = not patience or patience > state["validations_without_gain"]
    else:
        before, now = limits(state), limits(settings.said()["training"])
        ended_it = 0 if reason.startswith(MAX_STEPS) else 1
        goes_on = raised(before[ended_it : ended_it + 1], now[ended_it : ended_it + 1])
    return "" if goes_on else reason


def restore(checkpoints: Checkpoints, learned: Learned, limits_now: tuple[int, float]) -> Progress:
    """Where the run stopped; where its limit is another one now, how it stood before its learning rate fell.

    A damaged checkpoint is passed over for the one before, with a warning; raises `ModelError` when all are damaged.
    Checkpoints after the one that training goes on from are deleted.
    """
    steps = checkpoints.steps()
    progress = Progress(max_steps=limits_now[0], max_minutes=limits_now[1])
    if steps:
        sound = sound_steps(checkpoints, steps)
        last = next(sound, None)
        if last is None:
            raise ModelError(
                f"every checkpoint in {checkpoints.folder} is damaged", "start anew: --overwrite, or another --output"
            )
        stopped = checkpoints.state(last)
        chosen, changed = last, limits_changed(limits(stopped), limits_now)
        if changed:
            before_decay = (step for step in chain([last], sound) if checkpoints.state(step)["decay"] is None)
            chosen = next(before_decay, last)
        progress = Progress.of(checkpoints.load(chosen, learned))
        progress.max_steps, progress.max_minutes = limits_now
        if changed:  # what was planned towards the limits of before, as a cosine is from its first step
            progress.decay = None
            progress.published = Progress.of(stopped).published
            progress.consistent = progress.consistent or None
        steps = [step for step in steps if step <= chosen]
        progress.best = [(score, step) for score, step in progress.best if step in steps]
        progress.finished = ""
        if changed:  # written down before the later ones are gone, so that a crash does not forget what is published
            checkpoints.save(chosen, learned, progress.record())
        checkpoints.keep(set(steps))
    return progress
