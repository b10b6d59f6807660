"""Processes that train one model together, on one machine or on many: torchrun starts them, each with a rank.

All ranks go through the same steps over the same updates, each computing its share of the sentences; their gradients
are summed by PyTorch's DistributedDataParallel.  The first rank alone prepares the text and writes.  Whatever a
decision depends on, the time, a signal, the scores of a validation, is agreed on before, so that all decide alike.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mt.corpus.batching import Batch, Update
from mt.device import launch_number
from mt.errors import ConfigError, DeviceError, ExitCode, Interrupted, MTError
from mt.training.budget import Clock
from mt.training.checkpoint import Checkpoints
from mt.training.update import DoesNotFit, Updater

logger = logging.getLogger(__name__)

ROLL_CALL_SECONDS = 5.0

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process of those that train together, and what it can tell the others; alone it talks to itself."""

    rank: int = 0
    count: int = 1
    store: Any = None  # a `torch.distributed.Store`: words that need no answer

    @classmethod
    def launched(cls) -> "Ranks":
        """This process among those that torchrun started with it; raises `ConfigError` where it cannot find them."""
        if launch_number("RANK") is None or (launch_number("WORLD_SIZE") or 1) == 1:
            return cls()
        try:
            store, rank, count = next(distributed.rendezvous("env://"))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"this process cannot find the others of its training: {error}",
                "torchrun says where they are; without torchrun: unset RANK WORLD_SIZE",
            ) from error
        # torchrun keeps its store when it starts processes anew, but what the ended ones said in it is void.
        if launch_number("LOCAL_WORLD_SIZE") == count:
            store = distributed.PrefixStore(f"attempt {launch_number('TORCHELASTIC_RESTART_COUNT') or 0}", store)
        elif launch_number("TORCHELASTIC_MAX_RESTARTS") and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            raise ConfigError(  # machines count their restarts apart
                "torchrun may start processes anew, on several machines and with one store for all attempts",
                "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, or add --max-restarts 0",
            )
        if rank:
            logging.getLogger("mt").setLevel(logging.ERROR)  # the first rank speaks for all
        return cls(rank, count, store)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, word: str) -> None:
        """As the first rank, let the others go on that wait in `told`."""
        if self.store:
            self.store.set("word", word)

    def told(self) -> str:
        """Wait for the first rank's word; where the first rank fails, torchrun ends the others."""
        try:
            while not self.store.check(["word"]):  # and not `wait`, in which no signal is heeded
                time.sleep(0.1)
            return self.store.get("word").decode()
        except RuntimeError as error:
            raise DeviceError("rank 0 is gone") from error

    @contextmanager
    def connected(self, timeout_seconds: float) -> Iterator[None]:
        """A block in which ranks exchange tensors; one that keeps the others waiting for longer ends the training.

        Raises `DeviceError` with the ranks that do not answer.
        """
        if self.count == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        timeout = timedelta(seconds=timeout_seconds)
        try:
            self.store.set_timeout(timeout)
            distributed.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.count, timeout=timeout
            )
            yield
        except Interrupted:  # in all ranks
            distributed.destroy_process_group()
            raise
        except RuntimeError as error:
            if not lost_connection(error):
                raise
            raise DeviceError(
                self.roll_call(), "run the same command again: it goes on from its last checkpoint"
            ) from error
        distributed.destroy_process_group()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """A block at whose end one of several processes exits.

        Nothing runs after it, except that the first rank raises `Interrupted` when all were stopped.
        """
        code = ExitCode.DONE
        try:
            yield
        except Interrupted as stopped:
            if self.first:
                raise
            code = stopped.exit_code
        if self.count > 1:
            leave(code)

    def roll_call(self) -> str:
        """Which ranks are not there, said by one that waited for them in vain."""
        until = time.monotonic() + ROLL_CALL_SECONDS
        missing = set(range(self.count))
        try:
            self.store.set(f"here/{self.rank}", "")
            while missing and time.monotonic() < until:
                missing = {rank for rank in missing if not self.store.check([f"here/{rank}"])}
                time.sleep(0.1)
        except RuntimeError:  # the machine that holds the store is gone
            return "the connection between ranks broke"
        names = ", ".join(str(rank) for rank in sorted(missing))
        if len(missing) == 1:
            return f"rank {names} of {self.count} does not answer"
        return f"ranks {names} of {self.count} do not answer" if missing else "the connection between ranks broke"

    def maximum(self, *values: float) -> list[float]:
        """Of each value the greatest that a rank has."""
        return self.reduced(values, distributed.ReduceOp.MAX)

    def sum(self, *values: float) -> list[float]:
        """Of each value the sum over the ranks."""
        return self.reduced(values, distributed.ReduceOp.SUM)

    def reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.count == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(shared, operation)
        return shared.tolist()

    def share(self, items: list[Value]) -> list[Value]:
        """This rank's items: every `count`-th one, from its own number on."""
        return items[self.rank :: self.count]

    def gather(self, items: list[Value]) -> list[Value]:
        """What all ranks made of their own items, in the order of all."""
        if self.count == 1:
            return items
        parts: list[list[Value]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(parts, items)
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.count] = part
        return whole

    def meet(self) -> None:
        """Wait until every rank has come here."""
        if self.count > 1:
            distributed.barrier()

    def by_first(self, call: Callable[[], Value]) -> Value:
        """What a call returns to the first rank, or the `MTError` that it raises there, for all."""
        if self.count == 1:
            return call()
        shared: list[Any] = [None, None]
        if self.first:
            try:
                shared[0] = call()
            except MTError as error:
                shared[1] = (type(error), error.message, error.hint)
        distributed.broadcast_object_list(shared)
        value, problem = shared
        if problem:
            kind, message, hint = problem
            raise kind(message, hint)
        return value


ALONE = Ranks()


def leave(code: int) -> NoReturn:
    """End the process at once: a thread of gloo's that asks for Python while Python ends would abort it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_connection(error: RuntimeError) -> bool:
    """Whether an exchange failed: gloo says so in words, NCCL by type."""
    words = ("Timed out", "timed out", "Connection closed", "Connection reset", "Broken pipe", "gloo")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)


class BatchLoss(nn.Module):
    """The loss of a batch as a module, for DistributedDataParallel to see when its gradients are there."""

    def __init__(self, updater: Updater) -> None:
        super().__init__()
        self.weights = nn.ParameterList(updater.model.parameters())  # and not the buffers, which are constants
        self.loss = updater.loss

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.loss(batch)


@dataclass(kw_only=True)
class SharedUpdater(Updater):
    """Updates that ranks compute together: each leaves with the same gradient, that of the whole update.

    All take the first rank's weights at first.
    """

    ranks: Ranks

    def __post_init__(self) -> None:
        super().__post_init__()
        self.learner = DistributedDataParallel(BatchLoss(self), gradient_as_bucket_view=True)

    def gradient(self, update: Update) -> Tensor:
        try:
            return super().gradient(update)
        except DoesNotFit as error:  # which one rank alone cannot mend: the others wait for this gradient
            raise DeviceError(f"rank {self.ranks.rank}: {error.message}", error.hint) from error

    def backward(self, update: Update) -> Tensor:
        # The step's seed is the same in all ranks; what is dropped out shall not be, here or at another step.
        torch.manual_seed((torch.initial_seed() + (self.ranks.rank << 40)) % 2**63)
        total = torch.zeros((), device=self.compute.device)
        last = update.parts[-1]
        for part in update.parts:
            with nullcontext() if part is last else self.learner.no_sync():
                loss, unsmoothed = self.learner(part)
                # Gradients are averaged over the ranks, where a sum is wanted.
                (loss * (self.ranks.count / update.target_tokens)).backward()
            total += unsmoothed
        distributed.all_reduce(total)
        return total


class SharedCheckpoints(Checkpoints):
    """Checkpoints that the first rank writes and judges; all read the tensors of those that it chose."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        super().__init__(run)
        self.ranks, self.own = ranks, Checkpoints(run)

    def steps(self) -> list[int]:
        return self.ranks.by_first(self.own.steps)

    def read_state(self, step: int) -> dict[str, Any]:
        return self.ranks.by_first(partial(self.own.read_state, step))

    def check(self, step: int) -> None:
        self.ranks.by_first(partial(self.own.check, step))

    def save(self, *arguments: Any) -> None:
        if self.ranks.first:
            self.own.save(*arguments)

    def keep(self, steps: set[int]) -> None:
        self.ranks.meet()  # another may still be reading what goes
        if self.ranks.first:
            self.own.keep(steps)


class SharedClock(Clock):
    """The time as the ranks agreed on it last."""

    def __init__(self, started: float, before: float, ranks: Ranks) -> None:
        super().__init__(started, before)
        self.ranks = ranks
        self.agree()

    def agree(self, stop: bool = False) -> bool:
        """Agree on the time, and on whether to stop: all do when one of them would."""
        self.agreed, stopping = self.ranks.maximum(super().elapsed(), stop)
        return bool(stopping)

    def elapsed(self) -> float:
        return self.agreed
