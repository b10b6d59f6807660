"""Processes that share the calls of one function: several of one thread each are faster than one of several threads.

They are forked, so that they start at once and share the memory of a model; where the system has no safe fork, there
are none.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar, cast

from mt.errors import DeviceError

Item = TypeVar("Item")
Result = TypeVar("Result")

CAN_FORK = sys.platform == "linux"
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that are handled; not SIGHUP, which nohup has had ignored


class Workers(Generic[Item, Result]):
    """`count` processes that call `function`; they start with the first call and see the world as it then is."""

    def __init__(self, count: int, function: Callable[[Item], Result]) -> None:
        self.count = count
        self.function = function
        self.processes: dict[Connection, Any] = {}  # by the pipe to each

    def map(self, items: Sequence[Item]) -> Iterator[Result]:
        """The results in the order of the items; raises `DeviceError` when a process cannot start or is killed."""
        try:
            if not self.processes:
                self.start()
            yield from self.results(items)
        except BaseException:
            self.close()  # what they are at is of no use any more
            raise

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a child must not obey the parent's handlers
        try:
            context = get_context("fork")
            for _ in range(self.count):
                here, there = context.Pipe()
                process = context.Process(target=serve, args=(there, self.function, os.getpid()), daemon=True)
                process.start()
                there.close()  # so that the end of the process is the end of the pipe
                self.processes[here] = process
        except OSError as error:
            raise DeviceError(
                f"cannot start {self.count} processes: {error.strerror}", "use fewer --threads"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        waiting, busy, done = iter(enumerate(items)), dict[Connection, int](), dict[int, Result]()

        def give(connection: Connection) -> None:
            if item := next(waiting, None):
                busy[connection] = item[0]
                connection.send(item[1])

        try:
            for connection in self.processes:
                give(connection)
            for number in range(len(items)):
                while number not in done:
                    for connection in cast(list[Connection], wait(list(busy))):
                        result, error = received(connection)
                        if error:
                            raise error
                        done[busy.pop(connection)] = result
                        give(connection)
                yield done.pop(number)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise DeviceError(
                "a worker process has ended too early", "was it killed for lack of memory? --threads 1 needs the least"
            ) from error

    def close(self) -> None:
        """End the processes at once; they hold nothing that could be lost."""
        for connection, process in self.processes.items():
            process.kill()
            process.join()
            connection.close()
        self.processes = {}


def received(connection: Connection) -> Any:
    """What a worker has sent; raises `EOFError` where it ended before or meanwhile."""
    try:
        return connection.recv()
    except OSError as error:
        raise EOFError from error


def end_with_parent(number: int) -> None:
    """Have this process sent a signal when the thread that started it ends, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def serve(orders: Connection, function: Callable[[Any], Any], parent: int) -> None:
    """In a worker: answer items until the parent ends, computing with one thread; signals are the parent's business."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it has ended in between
        return
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):
        while True:
            item = orders.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = function(item), None
            except Exception as error:  # noqa: BLE001 (raised again by the parent)
                answer = None, error
            orders.send(answer)


PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
