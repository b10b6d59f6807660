"""Weights and training states on disk: whole or absent, equal where equal, refused where damaged."""

import errno
import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from itertools import count

import pytest
import safetensors.torch
import torch
from torch import nn

from mt.errors import DataError, ModelError
from mt.training import checkpoint
from mt.training.checkpoint import Checkpoints, Learned, average, load_tensors, load_weights, save_tensors, weights
from mt.training.moving_average import EVERY, MovingAverage
from mt.training.optimizer import OptimizerConfig, make_optimizer

CONFIG = OptimizerConfig(peak_learning_rate=0.1, schedule="constant", warmup_steps=0)
TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1.5, -2.0])}


class Tied(nn.Module):
    """Two layers that share a matrix."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def trained(steps: int, seed: int = 0) -> Learned:
    model = Tied(seed)
    learned = Learned(model, make_optimizer(model, CONFIG), MovingAverage(weights(model), decay=0.5))
    for step in range(steps):
        step_once(learned, step)
    return learned


def step_once(learned: Learned, step: int) -> None:
    x = torch.arange(3.0) + step
    learned.model.second(learned.model.first(x)).square().sum().backward()
    learned.optimizer.step()
    learned.optimizer.zero_grad()
    learned.moving_average.follow((step + 1) * EVERY)


def assert_equal(ones: dict, others: dict) -> None:
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor, others[name]), name


def test_tensors_come_back_as_they_were(tmp_path):
    mixed = TENSORS | {"half": torch.tensor([0.1], dtype=torch.bfloat16), "transposed": TENSORS["b"].T}
    save_tensors(tmp_path / "file", mixed)
    assert_equal(load_tensors(tmp_path / "file"), mixed)


def test_equal_weights_are_equal_files(tmp_path):
    save_tensors(tmp_path / "one", TENSORS)
    save_tensors(tmp_path / "other", dict(reversed([(name, tensor.clone()) for name, tensor in TENSORS.items()])))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    length = struct.unpack("<Q", (tmp_path / "one").read_bytes()[:8])[0]
    header = json.loads((tmp_path / "one").read_bytes()[8 : 8 + length])
    assert header["__metadata__"] == {"format_version": "1"}


def test_a_shared_weight_is_saved_once(tmp_path):
    model = Tied()
    assert list(weights(model)) == ["first.weight", "first.bias", "second.bias"]
    save_tensors(tmp_path / "file", weights(model))
    other = Tied(seed=1)
    load_weights(other, load_tensors(tmp_path / "file"), "file")
    assert other.second.weight is other.first.weight
    assert_equal(weights(other), weights(model))


@pytest.mark.parametrize("damage", ["empty", "header cut", "data cut", "foreign", "folder"])
def test_a_damaged_or_foreign_file_is_a_model_error_that_names_it(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_tensors(path, TENSORS)
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        content = {"empty": b"", "header cut": whole[:40], "data cut": whole[:-4], "foreign": b"{'a': 1}\n" * 99}
        path.write_bytes(content[damage])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors") as caught:
        load_tensors(path)
    assert caught.value.hint


def test_a_missing_file_is_a_model_error_that_names_it(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.safetensors does not exist"):
        load_tensors(tmp_path / "absent.safetensors")


def test_a_later_format_is_refused_by_name_and_a_file_without_one_is_read(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "later", metadata={"format_version": "2"})
    with pytest.raises(ModelError, match="later has format 2; this mt reads format 1"):
        load_tensors(tmp_path / "later")
    safetensors.torch.save_file(TENSORS, tmp_path / "plain")
    assert_equal(load_tensors(tmp_path / "plain"), TENSORS)


def test_weights_that_do_not_fit_are_listed_and_change_nothing():
    model = Tied()
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    wrong = {"first.weight": torch.zeros(3, 4), "first.bias": torch.zeros(3), "third.bias": torch.zeros(3)}
    with pytest.raises(ModelError) as caught:
        load_weights(model, wrong, "run/model.safetensors")
    assert caught.value.message == (
        "run/model.safetensors does not fit its config.json: first.weight is [3, 4], not [3, 3]; no second.bias; "
        "unknown third.bias"
    )
    assert_equal(weights(model), before)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    learned = trained(steps=2)
    Checkpoints(tmp_path).save(2, learned, {"step": 2})
    step_once(learned, 2)

    other = trained(steps=0, seed=1)
    assert Checkpoints(tmp_path).load(2, other) == {"step": 2}
    step_once(other, 2)
    assert_equal(weights(other.model), weights(learned.model))
    assert_equal(other.moving_average.weights, learned.moving_average.weights)


def test_a_checkpoint_from_before_the_first_step_makes_an_optimizer_forget(tmp_path):
    learned = trained(steps=0)
    Checkpoints(tmp_path).save(0, learned, {"step": 0})
    step_once(learned, 0)
    Checkpoints(tmp_path).load(0, learned)
    assert not learned.optimizer.state
    step_once(learned, 0)
    assert_equal(weights(learned.model), weights(trained(steps=1).model))


def test_a_checkpoint_holds_a_moving_average_and_its_checksum_only_where_there_is_one(tmp_path):
    checkpoints, learned = Checkpoints(tmp_path), trained(steps=1)
    checkpoints.save(1, learned, {})
    assert_equal(load_tensors(checkpoints.path(1) / "average.safetensors"), learned.moving_average.weights)
    plain = replace(learned, moving_average=None)
    checkpoints.save(2, plain, {})
    names = {"model.safetensors", "optimizer.safetensors"}
    assert checkpoints.read_state(1)["sha256"].keys() == names | {"average.safetensors"}
    assert checkpoints.read_state(2)["sha256"].keys() == names
    checkpoints.load(2, plain)
    (checkpoints.path(1) / "average.safetensors").unlink()
    with pytest.raises(ModelError, match=r"step-00000001/average\.safetensors"):
        checkpoints.check(1)


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path):
    learned = trained(steps=1)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == []
    for step in (20, 100_000_000, 3):
        checkpoints.save(step, learned, {})
    assert checkpoints.steps() == [3, 20, 100_000_000]
    (checkpoints.path(20) / "state.json").unlink()
    assert checkpoints.steps() == [3, 100_000_000]


def test_a_damaged_state_is_a_model_error(tmp_path):
    learned = trained(steps=1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, learned, {})
    (checkpoints.path(1) / "state.json").write_text('{"step": ')
    with pytest.raises(ModelError, match=r"cannot read .*step-00000001/state\.json") as caught:
        checkpoints.load(1, learned)
    assert "the file is damaged" in caught.value.hint


@pytest.mark.parametrize("writer", ["save_tensors", "write_json"])
def test_a_crash_in_the_middle_of_a_save_leaves_the_checkpoint_before(tmp_path, monkeypatch, writer):
    checkpoints = Checkpoints(tmp_path)
    learned = trained(steps=1)
    before = {name: tensor.clone() for name, tensor in weights(learned.model).items()}
    checkpoints.save(1, learned, {"step": 1})
    step_once(learned, 1)

    def crash(path, content):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, writer, crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, learned, {"step": 2})
    monkeypatch.undo()

    assert checkpoints.steps() == [1]
    assert checkpoints.load(1, trained(steps=0)) == {"step": 1}
    assert_equal(load_tensors(checkpoints.path(1) / "model.safetensors"), before)
    checkpoints.save(2, learned, {"step": 2})
    checkpoints.keep({1, 2})
    assert sorted(entry.name for entry in checkpoints.folder.iterdir()) == ["step-00000001", "step-00000002"]


class PowerCut(BaseException):
    """The machine stops here: nothing that comes after is done, no handler either."""


CALLS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir")


def fail_at(monkeypatch, moment, error):
    """Let this one of the calls that change a disk, or open what is on it, fail; with the power all that come after.

    Returns a function that says whether there was such a call.
    """
    calls = 0

    def counted(call):
        def instead(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == moment or (calls > moment and isinstance(error, PowerCut)):
                raise error
            return call(*arguments, **named)

        return instead

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return lambda: calls >= moment


@pytest.mark.parametrize("error", [PowerCut(), OSError(errno.ENOSPC, "No space left on device")])
def test_power_or_space_that_fails_at_any_call_loses_no_checkpoint(tmp_path, monkeypatch, error):
    """Of saving one, and deleting the one before."""
    learned = trained(steps=1)
    later = trained(steps=2)
    expected = {1: weights(trained(steps=1).model), 2: weights(later.model)}
    for moment in count(1):
        checkpoints = Checkpoints(tmp_path / str(moment))
        checkpoints.save(1, learned, {"step": 1})
        with monkeypatch.context() as patch:
            failed = fail_at(patch, moment, error)
            try:
                checkpoints.save(2, later, {"step": 2})
                checkpoints.keep({2})
            except (PowerCut, OSError, DataError):
                pass
        last = checkpoints.steps()[-1]
        checkpoints.check(last)
        restored = trained(steps=0)
        assert checkpoints.load(last, restored) == {"step": last}
        assert_equal(weights(restored.model), expected[last])
        checkpoints.save(2, later, {"step": 2})
        checkpoints.keep({2})
        assert [entry.name for entry in checkpoints.folder.iterdir()] == ["step-00000002"]
        if not failed():
            break
    assert moment > 10


def test_keep_deletes_the_other_checkpoints_and_what_a_crash_left(tmp_path):
    learned = trained(steps=1)
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30, 40):
        checkpoints.save(step, learned, {})
    (checkpoints.path(40) / "state.json").unlink()
    for remains in (".step-00000050.partial", ".step-00000030.earlier"):
        shutil.copytree(checkpoints.path(30), checkpoints.folder / remains)
    checkpoints.keep({10, 30, 99})
    assert sorted(entry.name for entry in checkpoints.folder.iterdir()) == ["step-00000010", "step-00000030"]


def test_the_average_is_the_mean_of_each_number(tmp_path):
    for name, values in {"one": [1.0, -4.0], "two": [2.0, 0.0], "three": [6.0, 1.0]}.items():
        save_tensors(tmp_path / name, {"w": torch.tensor(values)})
    averaged = average([tmp_path / "one", tmp_path / "two", tmp_path / "three"])
    assert_equal(averaged, {"w": torch.tensor([3.0, -1.0])})
    save_tensors(tmp_path / "other", {"v": torch.tensor([0.0])})
    with pytest.raises(ModelError, match="hold different models"):
        average([tmp_path / "one", tmp_path / "other"])


def test_a_disk_that_is_full_while_flushing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    learned = trained(steps=1)
    checkpoints.save(1, learned, {"step": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device") as caught:
        checkpoints.save(2, learned, {"step": 2})
    assert "free some space" in caught.value.hint
    monkeypatch.undo()
    assert checkpoints.steps() == [1]
    assert checkpoints.load(1, trained(steps=0)) == {"step": 1}
    checkpoints.keep({1})
    assert [entry.name for entry in checkpoints.folder.iterdir()] == ["step-00000001"]


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 64 KiB; skips where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(tiny_disk):
    checkpoints = Checkpoints(tiny_disk)
    learned = trained(steps=1)
    checkpoints.save(1, learned, {"step": 1})
    with pytest.raises(DataError, match="No space left on device"):
        checkpoints.save(2, learned, {"step": 2, "filling": "x" * 100_000})
    assert checkpoints.steps() == [1]
    assert checkpoints.load(1, trained(steps=0)) == {"step": 1}
