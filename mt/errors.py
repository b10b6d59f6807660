"""The mistakes a user can make, each with the exit code a script can test.

Raised where the fact is known, printed as `error:` and `hint:` in one place, `mt.cli`.
"""

import sys
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells the shell."""

    DONE = 0
    USAGE = 2
    DATA = 3
    MODEL = 4
    DEVICE = 5
    INTERRUPTED = 130


class MTError(Exception):
    """Something that the user can mend: `message` says what and where, `hint` what to do next."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MTError):
    """A flag, a configuration file or a combination of settings that cannot be run."""


class DataError(MTError):
    """A text that is missing, unreadable, empty, or does not match its partner, or a place that cannot be written."""

    exit_code = ExitCode.DATA


class UnreadableText(DataError):
    """A text that cannot be read to its end, or has changed meanwhile: what is done of it is of no use."""


class ModelError(MTError):
    """A run folder, checkpoint or tokenizer that is missing, damaged or foreign."""

    exit_code = ExitCode.MODEL


class DeviceError(MTError):
    """A device that is absent or out of memory, or a process that ended or does not answer."""

    exit_code = ExitCode.DEVICE


class Interrupted(MTError):
    """The user (Ctrl-C) or the system (SIGTERM) asked the program to stop."""

    exit_code = ExitCode.INTERRUPTED


# In RuntimeErrors of, in this order: torch's allocator on the CPU, cuBLAS, CUDA and Triton.
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


def out_of_memory(error: Exception) -> bool:
    """Whether memory, of the machine or of the GPU, did not suffice; torch is asked only where it is loaded."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY)
