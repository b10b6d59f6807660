"""Several processes train as one does: the same losses, scores and weights but for the order of sums."""

import json
import logging
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from mt.corpus.batching import Update
from mt.device import Compute
from mt.errors import ConfigError, DeviceError, Interrupted, ModelError
from mt.pipelines import launch
from mt.pipelines.launch import parse_devices, visible
from mt.pipelines.ranks import ALONE, Ranks, SharedUpdater
from mt.training.checkpoint import Checkpoints
from mt.training.update import DoesNotFit, Updater

EXACT = [
    "--set", "model.dropout=0.0",  # what is dropped out differs from process to process
    "--set", "training.ema_decay=0.9",
]  # fmt: skip


def records(run, kind):
    lines = (run / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(run, kind="train"):
    return {record["step"]: record["loss"] for record in records(run, kind)}


@pytest.fixture
def train_together(corpus, start_mt, tiny_flags):
    """Trains a tiny run by so many processes to its end: what it said is returned."""

    def train(processes, output, *extra):
        devices = ",".join(map(str, range(processes)))
        text = ["--train", corpus / "train.en", corpus / "train.de"]
        process = start_mt("train", *text, "--output", output, *tiny_flags, "--devices", devices, *extra)
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said.decode()
        return said.decode()

    return train


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="shares of like size"),
        pytest.param(["--set", "data.batch_tokens=12"], id="fewer sentences than processes"),
        pytest.param(["--set", "training.micro_batch_tokens=30"], id="micro-batches"),
    ],
)
def test_three_processes_learn_what_one_learns(train, train_together, tmp_path, settings):
    alone, together = tmp_path / "alone", tmp_path / "together"
    flags = [*EXACT, *settings]
    outcome = train(alone, *flags, steps=20)
    assert outcome.code == 0, outcome.err
    said = train_together(3, together, *flags, "--max-steps", 20)
    assert said.count("20 steps") == 1  # the first speaks for all
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    assert "3 processes" in said
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert losses(together, "valid") == pytest.approx(losses(alone, "valid"), abs=1e-4)
    assert [r["bleu"] for r in records(together, "valid")] == [r["bleu"] for r in records(alone, "valid")]
    (one,), (other,) = (
        [r for r in records(run, "event") if r["event"] == "moving_average"] for run in (alone, together)
    )
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    one, other = (Checkpoints(run).state(20) for run in (alone, together))
    assert [one[name] for name in ("epoch", "position", "target_tokens")] == [
        other[name] for name in ("epoch", "position", "target_tokens")
    ]


def test_what_several_processes_began_one_ends(train, train_together, tmp_path):
    constant = [*EXACT, "--set", "optimizer.schedule=constant"]
    train(tmp_path / "alone", *constant, steps=30)
    train_together(2, tmp_path / "run", *constant, "--max-steps", 20)
    outcome = train(tmp_path / "run", *constant, steps=30)
    assert outcome.code == 0, outcome.err
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)


def test_what_is_dropped_out_differs_between_ranks_and_steps(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    seeds = []

    class Learner:
        def __call__(self, batch):
            seeds.append(torch.initial_seed())
            return torch.zeros((), requires_grad=True), torch.zeros(())

    for step in range(20):
        for rank in range(20):
            torch.manual_seed(1_000_003 + step)  # as the training loop does in each process
            me = SimpleNamespace(ranks=Ranks(rank, 20), compute=Compute(torch.device("cpu"), "fp32"), learner=Learner())
            SharedUpdater.backward(me, Update(["a batch"], 1, 0, 0))
    assert len(set(seeds)) == 400


def test_a_rank_whose_memory_does_not_suffice_ends_the_job_with_its_number_and_a_way_out(monkeypatch):
    def short(updater, update):
        raise DoesNotFit(400)

    monkeypatch.setattr(Updater, "gradient", short)
    updater = SharedUpdater.__new__(SharedUpdater)
    updater.ranks = Ranks(3, 4)
    with pytest.raises(DeviceError, match="rank 3: out of memory with 400 target tokens at a time") as caught:
        updater.gradient(Update([], 1, 0, 0))
    assert not isinstance(caught.value, DoesNotFit)
    assert "--set training.micro_batch_tokens=200" in caught.value.hint


def test_a_mistake_is_told_once(corpus, start_mt, tmp_path):
    text = ["--train", corpus / "train.en", corpus / "test.de"]
    process = start_mt("train", *text, "--output", tmp_path / "run", "--device", "cpu", "--devices", "0,1")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 3
    assert said.decode().count("error:") == 1
    assert not (tmp_path / "run").exists()


def test_a_signal_to_the_launcher_saves_and_says_how_to_go_on(corpus, start_mt, tiny_flags, tmp_path):
    text, run = ["--train", corpus / "train.en", corpus / "train.de"], tmp_path / "run"
    process = start_mt("train", *text, "--output", run, *tiny_flags, "--devices", "0,1", "--max-steps", 100_000)
    for line in process.stderr:
        if b"step      20" in line:
            break
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read().decode()
    assert process.wait(timeout=60) == 130
    assert said.count("to go on: mt train") == 1
    assert not (run / ".lock").exists()
    assert Checkpoints(run).steps()[-1] >= 20


@pytest.mark.parametrize("text", ["", "0,", "0,0", "gpu", "-1"])
def test_devices_are_different_numbers(text):
    with pytest.raises(ConfigError, match="not a list of different numbers"):
        parse_devices(text)


def test_a_process_whose_launcher_has_ended_does_not_begin(monkeypatch):
    monkeypatch.setattr(launch, "end_with_parent", lambda number: None)  # the tests shall not
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"mt-{os.getppid()}")
    launch.end_with_launcher()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"mt-{os.getpid()}")  # no process is its own parent
    with pytest.raises(Interrupted, match="the command that started this process has ended"):
        launch.end_with_launcher()


@pytest.mark.parametrize("address", [{}, {"MASTER_ADDR": "localhost", "MASTER_PORT": "far"}])
def test_a_process_that_is_not_told_where_the_others_are_is_refused(monkeypatch, address):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **address}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="cannot find the others of its training") as caught:
        Ranks.launched()
    assert "unset RANK WORLD_SIZE" in caught.value.hint


def test_one_process_alone_talks_to_itself():
    assert ALONE.first
    assert ALONE.share([1, 2, 3]) == ALONE.gather([1, 2, 3]) == [1, 2, 3]
    assert ALONE.maximum(1.5, True) == ALONE.sum(1.5, 1) == [1.5, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_the_first_rank_is_that_of_all_with_its_hint(monkeypatch, rank):
    """What the first broadcasts, the other has in place of its own."""
    error = ModelError("a checkpoint is damaged", "start anew")
    sent = [None, (ModelError, error.message, error.hint)]

    def broadcast(shared):
        assert rank or shared == sent
        shared[:] = sent

    def damaged():
        assert rank == 0
        raise error

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    with pytest.raises(ModelError) as caught:
        Ranks(rank, 2).by_first(damaged)
    assert (caught.value.message, caught.value.hint) == (error.message, error.hint)


@pytest.mark.parametrize(
    ("present", "found"),
    [
        ([0, 1, 2, 3], "the connection between ranks broke"),
        ([0, 1, 3], "rank 2 of 4 does not answer"),
        ([0, 3], "ranks 1, 2 of 4 do not answer"),
    ],
)
def test_a_roll_call_names_the_ranks_that_are_missing(monkeypatch, present, found):
    monkeypatch.setattr("mt.pipelines.ranks.ROLL_CALL_SECONDS", 0.3)
    store = torch.distributed.HashStore()
    for rank in present:
        store.set(f"here/{rank}", "")
    assert Ranks(0, 4, store).roll_call() == found


def test_every_item_is_one_ranks_own():
    parts = [Ranks(rank, 3).share(list(range(8))) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.parametrize("kind", ["cpu", "auto"])
def test_processes_on_the_cpu_need_no_gpus(monkeypatch, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    monkeypatch.setattr(launch.logging, "disable", lambda level: None)
    started = []
    monkeypatch.setattr(launch, "elastic_launch", lambda *given: lambda *command: started.append(command))
    if kind == "cpu":
        launch.launch(["0", "1"], kind, ["train"])
        assert [command[-1] for command in started] == ["train"]
    else:
        with pytest.raises(DeviceError, match="no CUDA device 1 here: there are 1"):
            launch.launch(["0", "1"], kind, ["train"])


def test_processes_see_the_devices_that_were_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    started = []

    def elastic_launch(config, program):
        started.append((config.nproc_per_node, os.environ["CUDA_VISIBLE_DEVICES"]))
        return lambda *command: started.append(command)

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    launch.launch(["3", "1"], "auto", ["train", "--output", "run"])
    assert started == [(2, "3,1"), ("-m", "mt", "train", "--output", "run")]


def test_where_there_is_no_gpu_none_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="no CUDA device is available here") as error:
        visible(["0", "1"])
    assert "--device cpu" in error.value.hint


def test_after_the_launcher_signals_and_warnings_go_where_they_went(monkeypatch):
    before = [signal.getsignal(number) for number in launch.SIGNALS]

    def elastic_launch(*given):
        for number in launch.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        return lambda *command: None

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    launch.launch(["0", "1"], "cpu", ["translate"])
    assert [signal.getsignal(number) for number in launch.SIGNALS] == before
    assert logging.getLogger("mt").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
    ("environment", "asked", "taken"), [("", ["0", "2"], ["0", "2"]), ("4,5,GPU-1f", ["2", "0"], ["GPU-1f", "4"])]
)
def test_devices_count_those_that_are_visible(monkeypatch, environment, asked, taken):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    assert visible(asked) == taken
    with pytest.raises(DeviceError, match="no CUDA device 3 here: there are 3"):
        visible(["1", "3"])


def test_several_machines_may_not_start_anew_with_the_store_of_before(monkeypatch):
    variables = {
        "RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_MAX_RESTARTS": 3,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("torch.distributed.rendezvous", lambda url: iter([(None, 0, 4)]))
    with pytest.raises(ConfigError, match="one store for all attempts"):
        Ranks.launched()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert (Ranks.launched().rank, Ranks.launched().count) == (0, 4)
