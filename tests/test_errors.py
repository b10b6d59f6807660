"""Exit codes as the guide has them, and which errors mean that memory did not suffice."""

import re
from pathlib import Path

import pytest
import torch

from mt.errors import ConfigError, DataError, DeviceError, ExitCode, Interrupted, ModelError, out_of_memory

GUIDE = Path(__file__).parents[1] / "docs" / "deployment.md"


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 2), (DataError, 3), (ModelError, 4), (DeviceError, 5), (Interrupted, 130)]
)
def test_each_kind_of_error_has_the_exit_code_that_scripts_know(error, code):
    assert error("what is wrong").exit_code == code


def test_the_guide_has_every_exit_code():
    codes = re.findall(r"^\| (\d+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert codes == [str(code) for code in sorted({1, *map(int, ExitCode)})]  # 1 is Python's own


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("of a kind that says nothing"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_lack_of_memory_is_known_by_its_type_or_its_words(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("memory")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    assert not out_of_memory(error)
