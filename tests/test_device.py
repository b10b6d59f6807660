"""What is chosen where nothing is said; what torchrun and containers tell the processes of a machine."""

import os
import sys

import pytest
import torch

from mt import device
from mt.device import allotted_processors, choose, usable_threads
from mt.errors import ConfigError, DeviceError

NAMES = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def launched(monkeypatch):
    """Sets what a launcher tells; nothing else is told."""

    def launch(**numbers: object) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, number in numbers.items():
            monkeypatch.setenv(name, str(number))

    launch()
    return launch


@pytest.mark.parametrize(("processes", "threads"), [(None, 8), (0, 8), (1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_processes_of_a_machine_share_its_processors(monkeypatch, launched, processes, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(device, "allotted_processors", lambda groups, root: 100)
    if processes is not None:
        launched(LOCAL_WORLD_SIZE=processes)
    assert usable_threads() == threads


@pytest.mark.parametrize(
    ("limits", "processors"),
    [
        ({}, sys.maxsize),
        ({"": "max 100000"}, sys.maxsize),
        ({"": "200000 100000"}, 2),
        ({"": "150000 100000"}, 2),
        ({"": "400000 100000", "pods/one": "50000 100000"}, 1),
        ({"": "300000 100000", "pods": "max 100000", "pods/one": "800000 100000"}, 3),
        ({"": "nonsense"}, sys.maxsize),
    ],
)
def test_a_container_has_the_time_of_so_many_processors(tmp_path, limits, processors):
    groups = tmp_path / "cgroup"
    groups.write_text("1:cpu:/other\n0::/pods/one\n")
    (tmp_path / "root" / "pods" / "one").mkdir(parents=True)
    for group, limit in limits.items():
        (tmp_path / "root" / group / "cpu.max").write_text(f"{limit}\n")
    assert allotted_processors(groups, tmp_path / "root") == processors


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path):
    assert allotted_processors(tmp_path / "absent", tmp_path) == sys.maxsize


def test_no_more_threads_are_used_than_a_container_has_time_for(monkeypatch, launched):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(device, "allotted_processors", lambda groups, root: 2)
    assert usable_threads() == 2


def test_what_is_no_number_of_processes_is_named(launched):
    launched(LOCAL_WORLD_SIZE="-2")
    with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE=-2 in the environment is no number"):
        usable_threads()


@pytest.fixture
def chosen_devices(monkeypatch):
    """As if there were two CUDA devices: those that were made the current one, in order."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_process_alone_computes_on_the_current_device(launched, chosen_devices):
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert choose("auto", "fp32", 0, training=False).device == torch.device("cuda")
    assert chosen_devices == []
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("name", "training", "native", "precision"),
    [
        ("cpu", True, True, "bf16"),
        ("cpu", True, False, "fp32"),
        ("cpu", False, True, "fp32"),
        ("cuda", True, True, "bf16"),
        ("cuda", False, True, "bf16"),
        ("cuda", True, False, "fp32"),
        ("cuda", False, False, "fp32"),
    ],
)
def test_a_precision_left_open_is_bfloat16_where_the_hardware_has_it_and_on_the_cpu_for_training_only(
    launched, chosen_devices, monkeypatch, name, training, native, precision
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and name == "cuda")
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: native and name == "cpu")
    assert choose(name, "auto", 0, training=training).precision == precision


@pytest.mark.parametrize(("precision", "factors"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_only_tf32_rounds_the_factors_of_float32_products(launched, chosen_devices, monkeypatch, precision, factors):
    said = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    choose("cuda", precision, 0, training=True)
    assert said == [factors]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_a_machine_computes_on_its_own_device(launched, chosen_devices, rank):
    launched(LOCAL_RANK=rank)
    compute = choose("auto", "fp32", 0, training=False)
    assert compute.device == torch.device("cuda", rank)
    assert compute.on_cuda
    assert chosen_devices == [torch.device("cuda", rank)]
    assert choose("cpu", "fp32", 0, training=False).device == torch.device("cpu")


def test_more_processes_than_devices_are_a_device_error(launched, chosen_devices):
    launched(LOCAL_RANK=2)
    with pytest.raises(DeviceError, match="process 3 of this machine has no CUDA device: there are 2") as caught:
        choose("cuda", "fp32", 0, training=False)
    assert "--nproc-per-node gpu" in caught.value.hint
