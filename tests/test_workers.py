"""Work shared out to processes: in order, with its errors, and without orphans."""

import os
import signal
import struct
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest
import torch

from mt.errors import DataError, DeviceError
from mt.workers import CAN_FORK, Workers, received

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no workers here")


@pytest.fixture
def sharing():
    """Workers, which end with the test."""
    made = []

    def share(count, function):
        made.append(Workers(count, function))
        return made[-1]

    yield share
    for workers in made:
        workers.close()


def test_results_come_in_the_order_of_the_items(sharing):
    passed = get_context("fork").Event()

    def slow_at_first(number):
        if number == 0:
            assert passed.wait(60)  # for another item, which another process must do
        if number == 9:
            passed.set()
        return number, os.getpid()

    results = list(sharing(3, slow_at_first).map(range(20)))
    assert [number for number, _ in results] == list(range(20))
    assert 1 < len({process for _, process in results} - {os.getpid()}) <= 3


def test_results_that_nobody_waits_for_do_not_come_later(sharing):
    workers = sharing(2, lambda number: number)
    first = workers.map(range(10))
    assert next(first) == 0
    first.close()
    assert list(workers.map(range(100, 105))) == list(range(100, 105))


def test_no_items_are_no_results(sharing):
    assert list(sharing(2, lambda number: number).map([])) == []


def test_an_error_that_cannot_start_processes_says_so_and_leaves_none(sharing, monkeypatch):
    fork, children = os.fork, []

    def fork_once():
        if children:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        child = fork()
        if child:
            children.append(child)
        return child

    monkeypatch.setattr(os, "fork", fork_once)
    with pytest.raises(DeviceError, match="cannot start 2 processes: Resource temporarily unavailable"):
        list(sharing(2, lambda item: item).map([1]))
    assert not alive(children[0])


def test_a_worker_computes_with_one_thread_and_sees_what_was_there_before(sharing):
    torch.set_num_threads(2)
    shown = ["before"]
    workers = sharing(1, lambda item: (torch.get_num_threads(), shown, item))
    assert list(workers.map(["a"])) == [(1, ["before"], "a")]
    assert torch.get_num_threads() == 2


def test_an_error_in_a_worker_is_raised_here(sharing):
    def fail(item):
        raise DataError(f"{item} is bad", "mend it")

    with pytest.raises(DataError) as raised:
        list(sharing(2, fail).map(["this"]))
    assert (raised.value.message, raised.value.hint) == ("this is bad", "mend it")


def test_a_worker_that_is_killed_is_one_clear_error(sharing):
    with pytest.raises(DeviceError, match="ended too early"):
        list(sharing(2, lambda item: os.kill(os.getpid(), signal.SIGKILL)).map([1]))


def test_a_worker_that_is_killed_within_an_answer_has_ended_too_early_too():
    here, there = get_context("fork").Pipe()
    os.write(there.fileno(), struct.pack("!i", 1_000) + b"a part")
    there.close()
    with pytest.raises(EOFError):
        received(here)


def test_workers_ignore_the_interrupt_that_their_parent_handles(sharing):
    def interrupted(item):
        os.kill(os.getpid(), signal.SIGINT)
        return item

    assert list(sharing(1, interrupted).map([1, 2])) == [1, 2]


def test_closing_ends_the_processes_and_what_is_asked_next_starts_new_ones(sharing):
    workers = sharing(1, lambda item: os.getpid())
    first = next(workers.map([0]))
    workers.close()
    workers.close()
    assert not alive(first)
    assert next(workers.map([0])) != first


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


PARENT = """
import os, time
from mt.workers import Workers
def call(item):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece
    time.sleep(60)
list(Workers(2, call).map([1, 2]))
"""


def test_workers_end_with_their_parent_however_it_ends():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        processes = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, processes))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, processes))
