"""Device, precision and threads: chosen once, passed as a value.

`fp32` is true float32 everywhere; `tf32` lets CUDA round the factors of float32 products; `bf16` computes products and
attention in bfloat16 (attention in float32 when training on the CPU) while weights, sums over tokens and the optimizer
stay float32; `int8`, for translating on the CPU, rounds the factors of products with weights to 8 bits.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mt.errors import ConfigError, DeviceError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how tensors are computed."""

    device: torch.device
    precision: str  # fp32 | tf32 | bf16 | int8

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def product_type(self) -> torch.dtype:
        """What the factors of matrix products are."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def autocast(self) -> AbstractContextManager:
        """A block in which products run in this precision."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def release_memory(self) -> None:
        """Give back GPU memory that PyTorch keeps from freed tensors, in pieces that may be too small to use again."""
        if self.on_cuda:
            torch.cuda.empty_cache()

    def forget_peak_memory(self) -> None:
        """Reset the peak that `memory_gib` reports on the GPU; that of a process cannot be reset."""
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def free_memory(self) -> int:
        """Bytes of GPU memory not in use, including what this process has freed but still holds."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def share_of_free_memory(self, work: Callable[[], object]) -> float:
        """How much of the GPU's free memory some work takes at its peak; 0 on the CPU, where nobody can tell."""
        if not self.on_cuda:
            work()
            return 0.0
        self.release_memory()
        free = self.free_memory()
        before = torch.cuda.memory_allocated(self.device)
        self.forget_peak_memory()
        work()
        return (torch.cuda.max_memory_allocated(self.device) - before) / free

    def memory_gib(self) -> float:
        """The most memory held at once so far: on the GPU, or resident in the process."""
        if self.on_cuda:
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        import resource

        unit = 1 if sys.platform == "darwin" else 2**10  # bytes that ru_maxrss counts in
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX), so that it is faster than float32."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities.startswith("AVX512") and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def choose(device: str, precision: str, threads: int, *, training: bool) -> Compute:
    """Resolve `auto`, check that the choice can run here, and set the process up for it.

    Training defaults to bf16 where the hardware has it; translation to fp32 on the CPU, bf16 on CUDA.
    """
    if device not in DEVICES:
        raise ConfigError(f"--device {device} is none of {', '.join(DEVICES)}")
    precisions = [each for each in PRECISIONS if not (training and each == "int8")]
    if precision not in precisions:
        raise ConfigError(f"--precision {precision} is none of {', '.join(precisions)}")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise DeviceError("no CUDA device is available here", "use --device cpu, or --device auto")
    if device == "auto":
        device = "cuda" if available else "cpu"
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device == "cuda"
            else training and cpu_has_bfloat16()
        )
        precision = "bf16" if native else "fp32"
    if precision == "int8" and device == "cuda":
        raise DeviceError("int8 is a precision of the CPU", "add --device cpu, or use --precision bf16")
    if precision == "tf32" and device == "cpu":
        raise DeviceError("tf32 is a precision of CUDA devices", "use --precision fp32 on the CPU")
    place = own_cuda_device() if device == "cuda" else torch.device("cpu")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN plans anew for every shape, and hardly two batches share one
    if threads:
        torch.set_num_threads(threads)
    return Compute(place, precision)


def own_cuda_device() -> torch.device:
    """The CUDA device of this process: the first, or its own when torchrun has started a process for each."""
    rank = launch_number("LOCAL_RANK")
    if rank is None:
        return torch.device("cuda")
    if rank >= (count := torch.cuda.device_count()):
        raise DeviceError(
            f"process {rank + 1} of this machine has no CUDA device: there are {count}",
            "torchrun --nproc-per-node gpu starts one process a device",
        )
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)  # for what names no device
    return device


def launch_number(name: str) -> int | None:
    """What torchrun tells each process that it starts, such as its RANK; None where nothing is said."""
    said = os.environ.get(name, "")
    if said and not said.isdecimal():
        hint = f"torchrun sets it; without torchrun: unset {name}"
        raise ConfigError(f"{name}={said} in the environment is no number", hint)
    return int(said) if said else None


def keep_freed_memory() -> None:
    """Ask glibc to reuse the memory of large tensors, where it would return it to the system and fetch it anew.

    Ten thousand page faults an update are an eighth of the time that training takes on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library does what it does
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):  # the most in older releases
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
            mallopt(M_TOP_PAD, 1 << 26)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def usable_threads() -> int:
    """The processors that this process may use; several that torchrun has started on a machine share them."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processors = min(processors, allotted_processors(CONTROL_GROUPS, LIMITS_OF_GROUPS))
    return max(1, processors // (launch_number("LOCAL_WORLD_SIZE") or 1))


def allotted_processors(groups: Path, root: Path) -> int:
    """How many processors' time a container has, rounded up; `sys.maxsize` where Linux sets it no limit.

    A line of `groups` names the control group (version 2) of this process under `root`; groups around it count, too.
    """
    least = sys.maxsize
    with suppress(OSError, ValueError):
        [name] = [line.removeprefix("0::/") for line in groups.read_text().splitlines() if line.startswith("0::/")]
        for group in (root / name, *(root / name).parents):
            with suppress(OSError, ValueError):  # where it is "max", which is no number
                quota, period = (group / "cpu.max").read_text().split()
                least = min(least, -(-int(quota) // int(period)))
    return least


CONTROL_GROUPS, LIMITS_OF_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # where Linux shows them
