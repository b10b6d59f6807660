"""Weights and training states on disk: safetensors and JSON, nothing executable, whole or absent.

A checkpoint is a folder `step-00012000` with model.safetensors, optimizer.safetensors, average.safetensors where the
run has a moving average, and, written last, state.json, which holds the checksums of the others: a folder without
state.json is no checkpoint.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mt.errors import DataError, ModelError
from mt.files import atomic_directory, atomic_file, checksum, read_json, write_json
from mt.training.moving_average import MovingAverage

logger = logging.getLogger(__name__)

FORMAT_VERSION = "1"
CHECKSUMS = "sha256"  # the key of state.json for those of the files beside it


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors so that equal tensors make equal files."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with atomic_file(path, "wb") as stream:
        stream.write(safetensors.torch.save(contiguous, metadata={"format_version": FORMAT_VERSION}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors; raises `ModelError` for a file that is missing, truncated, foreign or of a later format."""
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            version = (stream.metadata() or {}).get("format_version")
            if version not in (None, FORMAT_VERSION):
                raise ModelError(f"{path} has format {version}; this mt reads format {FORMAT_VERSION}", "update mt")
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", "name a run folder made by mt train") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}", "the file is damaged or not safetensors") from error


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, a shared one once."""
    return dict(model.named_parameters())


def load_weights(model: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Copy tensors into the model; raises `ModelError` unless names and shapes fit exactly."""
    copy_tensors(weights(model), tensors, name)


def copy_tensors(own: dict[str, Tensor], tensors: dict[str, Tensor], name: str) -> None:
    """Copy tensors over those of the same names; raises `ModelError` unless names and shapes fit exactly."""
    problems = [f"no {key}" for key in own.keys() - tensors.keys()]
    problems += [f"unknown {key}" for key in tensors.keys() - own.keys()]
    problems += [
        f"{key} is {list(tensors[key].shape)}, not {list(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3]) + (f"; {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ModelError(f"{name} does not fit its config.json: {shown}", "the two files must come from one run")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


def average(weight_files: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights in several files, summed in float64 so that their order hardly matters."""
    first, *others = weight_files
    total = {name: tensor.double() for name, tensor in load_tensors(first).items()}
    for path in others:
        tensors = load_tensors(path)
        if tensors.keys() != total.keys():
            raise ModelError(f"{path} and {first} hold different models")
        for name, tensor in tensors.items():
            total[name] += tensor
    return {name: (tensor / len(weight_files)).float() for name, tensor in total.items()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, such as AdamW's `NAME/exp_avg`, `NAME/exp_avg_sq`, `NAME/step`."""
    return {
        f"{name}/{key}": value
        for name, parameter in weights(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the optimizer where `optimizer_tensors` found it; before the first step it has no state."""
    optimizer.state.clear()
    own = weights(model)
    for key, tensor in tensors.items():
        name, _, number = key.rpartition("/")
        optimizer.state[own[name]][number] = tensor.to(own[name].device)


@dataclass(frozen=True, slots=True)
class Learned:
    """What training changes: the tensors of a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    moving_average: MovingAverage | None = None  # of the model's weights

    def save(self, folder: Path) -> None:
        save_tensors(folder / "model.safetensors", weights(self.model))
        save_tensors(folder / "optimizer.safetensors", optimizer_tensors(self.model, self.optimizer))
        if self.moving_average:
            save_tensors(folder / "average.safetensors", self.moving_average.weights)

    def load(self, folder: Path) -> None:
        """Put everything where it stood when it was saved; raises `ModelError` for files that do not fit."""
        path = folder / "model.safetensors"
        load_weights(self.model, load_tensors(path), str(path))
        load_optimizer(self.model, self.optimizer, load_tensors(folder / "optimizer.safetensors"))
        if self.moving_average:
            path = folder / "average.safetensors"
            copy_tensors(self.moving_average.weights, load_tensors(path), str(path))


class Checkpoints:
    """The checkpoints of a run, by step."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        found = [re.fullmatch(r"step-(\d{8,})", path.parent.name) for path in self.folder.glob("step-*/state.json")]
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, learned: Learned, state: dict[str, Any]) -> None:
        """Write a checkpoint; where this step has one, whose tensors are the same, replace its state only."""
        if (self.path(step) / "state.json").is_file():
            written = self.read_state(step).get(CHECKSUMS, {})
            write_json(self.path(step) / "state.json", {**state, CHECKSUMS: written})
            return
        with atomic_directory(self.path(step)) as folder:
            learned.save(folder)
            written = {path.name: checksum(path) for path in sorted(folder.iterdir())}
            write_json(folder / "state.json", {**state, CHECKSUMS: written})

    def state(self, step: int) -> dict[str, Any]:
        """What was saved beside the tensors."""
        return {key: value for key, value in self.read_state(step).items() if key != CHECKSUMS}

    def read_state(self, step: int) -> dict[str, Any]:
        path = self.path(step) / "state.json"
        try:
            return read_json(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {path}: {error}", "the file is damaged") from error

    def check(self, step: int) -> None:
        """Raise `ModelError` unless the files of a checkpoint are those that were written."""
        for name, written in self.read_state(step).get(CHECKSUMS, {}).items():  # older checkpoints have none
            path = self.path(step) / name
            try:
                same = checksum(path) == written
            except DataError as error:
                raise ModelError(error.message) from error
            if not same:
                raise ModelError(f"{path} is damaged: it is not what was written there")

    def load(self, step: int, learned: Learned) -> dict[str, Any]:
        """Put everything learned where it stood at this step, and return the state saved beside it."""
        learned.load(self.path(step))
        return self.state(step)

    def keep(self, steps: set[int]) -> None:
        """Delete all checkpoints but these, and what a crash left half-written."""
        for step in self.steps():
            if step not in steps:
                (self.path(step) / "state.json").unlink()  # first, so that a crash leaves no half checkpoint
                shutil.rmtree(self.path(step))
        for remains in [*self.folder.glob(".step-*"), *self.folder.glob("step-*")]:
            if remains.name.startswith(".") or not (remains / "state.json").is_file():
                shutil.rmtree(remains, ignore_errors=True)


def sound_steps(checkpoints: Checkpoints, steps: list[int]) -> Iterator[int]:
    """Those of the steps, last ones first, whose checkpoints are as they were written; of others a warning tells."""
    for step in reversed(steps):
        try:
            checkpoints.check(step)
        except ModelError as damaged:
            logger.warning("%s; passing over the checkpoint of step %s", damaged.message, f"{step:,}")
        else:
            yield step
