"""`--devices 0,1`: a process for each device of this machine, by PyTorch's own launcher."""

import logging
import os
import signal
import sys
from glob import escape
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mt.errors import ConfigError, DataError, DeviceError, Interrupted
from mt.files import can_be_replaced, open_binary, unfinished
from mt.pipelines.resumable import earlier_work, join
from mt.pipelines.run_folder import RunFolder
from mt.pipelines.shards import Shard, check_divisible
from mt.pipelines.translate import SearchRequest, check
from mt.workers import SIGNALS, end_with_parent

RUN_ID = "TORCHELASTIC_RUN_ID"  # what the launcher tells each process
OWN = "mt-"  # its prefix where `launch` has set it; the number of the launcher's process follows


def parse_devices(text: str) -> list[str]:
    """What `--devices` says: numbers of CUDA devices."""
    devices = text.split(",")
    if not all(device.isdecimal() for device in devices) or len(set(devices)) < len(devices):
        raise ConfigError(f"--devices {text} is not a list of different numbers", "for instance: --devices 0,1,2,3")
    return devices


def visible(devices: list[str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls these devices, counted among those visible now; raises `DeviceError`."""
    count = torch.cuda.device_count()
    if not count:
        raise DeviceError("no CUDA device is available here", "leave --devices out, or add --device cpu")
    if absent := [device for device in devices if int(device) >= count]:
        raise DeviceError(f"there is no CUDA device {absent[0]} here: there are {count}", "they count from 0")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [names.split(",")[int(device)] for device in devices] if names else devices


def is_launched() -> bool:
    """Whether `launch` started this process; raises `ConfigError` where torchrun did."""
    run_id = os.environ.get(RUN_ID, "")
    if run_id and not run_id.startswith(OWN):
        raise ConfigError(
            "--devices does not go with torchrun: each of its processes would start more",
            "leave it out: each process of torchrun takes the device of its rank",
        )
    return bool(run_id)


def end_with_launcher() -> None:
    """Stop this process, which `launch` started, when the launcher ends, or now if it has ended.

    Else it would go on with the work, and hold the files, of one that was killed.
    """
    end_with_parent(signal.SIGTERM)
    if os.getppid() != int(os.environ[RUN_ID].removeprefix(OWN)):
        raise Interrupted("stopped: the command that started this process has ended")


def launch(devices: list[str], kind: str, arguments: list[str]) -> None:
    """Run `mt ARGUMENTS` in a process for each device, of a kind auto, cpu or cuda; each finds its own by its rank.

    Ends the program with the code of the process that failed first, which has said why; raises `DeviceError` where one
    was killed.
    """
    if kind != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible(devices))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds in which a stopped process may save
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=len(devices),
        run_id=f"{OWN}{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in SIGNALS),
    )
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    logging.disable(logging.ERROR)  # the launcher's own: a process that failed has said why
    try:
        elastic_launch(config, sys.executable)("-m", "mt", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise DeviceError(
            f"rank {rank} of {len(devices)} was killed by {name}",
            "run the same command again: it goes on where it stopped",
        ) from error
    except (KeyboardInterrupt, SignalException) as error:  # handed on to all, who have saved
        raise Interrupted("stopped") from error
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def translate_in_parts(
    devices: list[str],
    request: SearchRequest,
    files: list[Path],
    output: Path | None,
    form: str,
    arguments: list[str],
) -> None:
    """Run `mt ARGUMENTS`, which translates files, in a process for each device, and join what they write.

    Stopped and given again, each process goes on where it stopped.  A text that cannot be read or divided is told here,
    and not by every process.
    """
    if output is None or not files or not can_be_replaced(output):
        raise ConfigError(
            "--devices needs FILES to read and a file to write as --output",
            "each device translates a part of the lines, and the parts are joined",
        )
    check(request, files, output, form)
    for model in request.models:
        RunFolder(model).read_config()
    check_divisible(files)
    for file in files:
        open_binary(file).close()
    # One alone writes the output itself.
    parts = [Shard(number, len(devices)).own_file(output) for number in range(1, len(devices) + 1)]
    check_division(output, parts if len(devices) > 1 else [output])
    launch(devices, request.device, arguments)
    if len(devices) > 1:
        if any(earlier_work(part).get("source") != earlier_work(parts[0]).get("source") for part in parts):
            raise DataError(
                "the text has changed while it was translated", "run the command again when nothing writes to it"
            )
        join(parts, output)


def check_division(output: Path, parts: list[Path]) -> None:
    """Raise `ConfigError` where an interrupted command has done a part of the work that is none of these parts."""
    records = [*output.parent.glob(f"{escape(output.name)}.*-of-*.partial.json"), unfinished(output)[1]]
    mine = {unfinished(part)[1] for part in parts}
    if other := [record for record in records if record.is_file() and record not in mine]:
        raise ConfigError(
            f"{other[0]} belongs to a command that has not ended, and divided the lines otherwise",
            "to go on with its work give --devices as it had; to start anew delete that file",
        )
