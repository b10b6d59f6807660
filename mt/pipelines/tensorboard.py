"""The numbers of a run's log for TensorBoard, written only where `training.tensorboard` asks for it."""

from pathlib import Path
from typing import TYPE_CHECKING

from mt.errors import ConfigError
from mt.training.budget import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def import_writer() -> "type[SummaryWriter]":
    """torch's writer; raises `ConfigError` where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "training.tensorboard is true, and TensorBoard is not installed",
            "pip install tensorboard, or --set training.tensorboard=false",
        ) from error
    return SummaryWriter


class Board:
    """Takes the records of a log, from the step on at which this session begins.

    What has been shown of the steps after it is withdrawn, as it is when training goes back to an earlier step.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.writer = self.writer_after(step)

    def writer_after(self, step: int) -> "SummaryWriter":
        return import_writer()(str(self.folder), purge_step=step + 1)

    def __call__(self, record: Record) -> None:
        """Show the numbers of a record of kind train or valid, each as `KIND/NAME` over the step."""
        if record.get("event") == "rolled_back":
            self.writer.close()
            self.writer = self.writer_after(record["step"])
        if record["kind"] in ("train", "valid"):
            for name, value in record.items():
                if type(value) in (int, float) and name != "step":
                    self.writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
            self.writer.flush()

    def close(self) -> None:
        self.writer.close()
