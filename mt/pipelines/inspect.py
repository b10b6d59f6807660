"""`mt info` and `mt average`: look at a run folder, and make another from its checkpoints."""

import logging
import shutil
from pathlib import Path
from typing import Any

from mt.errors import ModelError
from mt.files import atomic_directory, write_json
from mt.pipelines.run_folder import RunFolder, load_model, load_tokenizers
from mt.training.checkpoint import Checkpoints, average, save_tensors

logger = logging.getLogger(__name__)


def describe(path: Path) -> dict[str, Any]:
    """What a run folder holds: architecture, parameters, languages, tokenizers, training so far, provenance."""
    run = RunFolder(path)
    record = run.read_config()
    checkpoints = Checkpoints(path)
    steps = checkpoints.steps()
    state = last_state(checkpoints)
    model = load_model(path, trained=run.model.exists()).model
    return {
        "run": str(path),
        "architecture": record["architecture"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "languages": record["languages"],
        "model": record["model"],
        "tokenizer": record["tokenizer"],
        "knows_capitals": record["knows_capitals"],
        "decoding": record["decoding"],
        "training": {
            "step": state.get("step"),
            "target_tokens": state.get("target_tokens"),
            "elapsed_seconds": state.get("elapsed_seconds"),
            "finished": state.get("finished"),
            "best": state.get("best"),
            "checkpoints": steps,
        },
        "provenance": record["provenance"],
    }


def last_state(checkpoints: Checkpoints) -> dict[str, Any]:
    """That of the last checkpoint that can be read; those after it are warned of."""
    for step in reversed(checkpoints.steps()):
        try:
            return checkpoints.state(step)
        except ModelError as error:
            logger.warning("%s", error.message)
    return {}


def describe_as_text(record: dict[str, Any]) -> str:
    """The same as aligned lines for people."""
    model, training = record["model"], record["training"]
    languages = " -> ".join(record["languages"][side] or "?" for side in ("source", "target"))
    shape = (
        f"{model['encoder_layers']}+{model['decoder_layers']} layers, {model['width']} wide, {model['heads']} heads, "
        f"{model['feed_forward']} feed-forward, {'pre' if model['norm_first'] else 'post'}-norm"
    )
    rows = {
        "run": record["run"],
        "languages": languages,
        "model": f"{record['architecture']}, {record['parameters']:,} parameters: {shape}",
        "vocabulary": " and ".join(
            dict.fromkeys(f"{side['size']:,} pieces ({side['file']})" for side in record["tokenizer"].values())
        ),
        "capitals": "lines in capitals are read " + ("as they stand" if record["knows_capitals"] else "in lower case"),
        "decoding": ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in record["decoding"].items()),
    }
    if training["step"] is not None:
        state = training["finished"] or f"not finished: mt train --output {record['run']} goes on with it"
        rows["training"] = (
            f"{training['step']:,} steps, {training['target_tokens']:,} target tokens, "
            f"{training['elapsed_seconds'] / 60:.1f} min; {state}"
        )
        rows["best"] = ", ".join(f"{abs(score):.2f} at step {step:,}" for score, step in training["best"] or [])
    provenance = record["provenance"]
    if provenance:
        rows["made with"] = ", ".join(f"{name} {provenance.get(name, '?')}" for name in ("mt", "torch", "seed"))
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


def average_last(path: Path, last: int, output: Path) -> list[int]:
    """Write a run folder with the mean of the last checkpoints' weights; returns the steps that were averaged."""
    run = RunFolder(path)
    record = run.read_config()
    load_tokenizers(run, record)  # to be copied
    checkpoints = Checkpoints(path)
    steps = checkpoints.steps()[-last:]
    recent = run.recipe_of_weights()["training"].get("keep_last", last)  # others are kept for their scores
    if min(len(steps), recent) < last:
        raise ModelError(
            f"{path} keeps its last {min(len(steps), recent)} checkpoints; {last} were asked for",
            "training.keep_last says how many a run keeps",
        )
    if output.exists():
        raise ModelError(f"{output} is already there", "choose another --output")
    for step in steps:
        checkpoints.check(step)
    tensors = average([checkpoints.path(step) / "model.safetensors" for step in steps])
    with atomic_directory(output) as folder:
        save_tensors(folder / "model.safetensors", tensors)
        for name in {entry["file"] for entry in record["tokenizer"].values()}:
            shutil.copyfile(path / name, folder / name)
        record["provenance"]["average_of"] = {"run": str(path), "steps": steps}
        record["provenance"]["recipe"] = run.recipe_of_weights()
        write_json(folder / "config.json", record)
    return steps
