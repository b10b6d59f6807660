"""What a result says beside its figures: the machine, versions, commit, command and texts that it was measured with."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mt import __version__
from mt.files import checksum, write_json
from mt.model.config import PRESETS

ROOT = Path(__file__).resolve().parent.parent
IDLE_LOAD = 0.5  # a machine with more running processes than this, on average over a minute, is not idle


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """When, where, by which command and with which versions something is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *without_folders(sys.argv)]),
        "commit": commit(),
        "machine": machine(),
        "versions": {"mt": __version__, "python": platform.python_version()} | {name: found(name) for name in packages},
    }


def without_folders(words: Sequence[str]) -> list[str]:
    """A command's words with absolute paths reduced to names: where files lay concerns nobody else."""
    return [Path(word).name if word.startswith("/") else word for word in words]


def found(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> dict[str, Any]:
    """The commit of this checkout, and whether the package or the benchmarks differ from it."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    return {
        "id": git("rev-parse", "--verify", "--quiet", "HEAD") or None,
        "modified": bool(git("status", "--porcelain", "mt", "benchmarks")),
    }


def machine() -> dict[str, Any]:
    """The processor, memory and GPU here, and how busy the machine was a moment before."""
    import torch

    return {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_threads": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def cpu_model() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def machine_name(device: str) -> str:
    """A name for result files: `nvidia-h200`, or `amd-epyc-2-threads`."""
    here = machine()
    name = here["gpu"] if device == "cuda" else f"{here['cpu']} {here['cpu_threads']} threads"
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def warn_when_busy() -> None:
    """Speeds measured beside other work are worth little; the load is part of the result, but nobody looks there."""
    load = os.getloadavg()[0]
    if load > IDLE_LOAD:
        print(f"warning: this machine is not idle: a load of {load:.1f} in the last minute", file=sys.stderr)


def write_result(path: Path, record: dict[str, Any], summary: str) -> None:
    """Write a measurement to its file; stderr says where, stdout says in short what came out."""
    write_json(path, record)
    print(f"wrote {path}", file=sys.stderr)
    print(summary)


def text_record(path: Path, lines: Sequence[str]) -> dict[str, Any]:
    """Which text was used: a checksum says it, wherever the file lies."""
    return {"file": path.name, "sha256": checksum(path), "lines": len(lines), "different_lines": len(set(lines))}


def preset_of(model: dict[str, Any]) -> str:
    """The name of a model's shape."""
    names = [name for name, shape in PRESETS.items() if all(model[key] == value for key, value in shape.items())]
    return names[0] if names else "other"
