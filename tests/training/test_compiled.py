"""Compiled layers against the same ones as they are written."""

import shutil
from itertools import accumulate

import numpy as np
import pytest
import torch

from mt.corpus.batching import Batcher, Update
from mt.device import Compute
from mt.model.dropout import Dropout
from mt.training.compiled import compile_layers, compiled_graphs, uncompiled
from mt.training.update import Updater
from tests.made_up import SPECIALS, Corpus, small_transformer

SIZES = (8, 31, 13, 1)  # sentences of each update: of the first as many as a head is wide


@pytest.fixture
def compiler(device):
    """What PyTorch compiles with; graphs of other tests are forgotten before and after."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    torch.compiler.reset()
    with (  # what `compile_layers` sets is put back after the test
        torch._dynamo.config.patch(suppress_errors=False, optimize_ddp=True, specialize_float=False),
        torch._inductor.config.patch({"triton.mix_order_reduction": True}),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=False),
        torch.fx.experimental._config.patch(use_duck_shape=True),
    ):
        yield
    torch.compiler.reset()


def new_updater(device, precision="fp32"):
    model = small_transformer(device, 0.0, positions="rotary")  # what layers have more to do with
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    return Updater(model, optimizer, Compute(device, precision), label_smoothing=0.1, gradient_clip=0.0)


def updates(device):
    batcher, ends = Batcher(Corpus(sum(SIZES)), (SPECIALS, SPECIALS), device), accumulate(SIZES)
    batches = [batcher.batch(np.arange(end - size, end)) for size, end in zip(SIZES, ends, strict=True)]
    return [Update([batch], batch.target_tokens, 0, 0) for batch in batches]


@pytest.mark.parametrize(("precision", "tolerance", "count"), [("fp32", 1e-4, 4), ("bf16", 0.1, 2)])
def test_compiled_layers_learn_what_those_as_written_learn_and_two_graphs_are_enough(
    device, compiler, precision, tolerance, count
):
    """What differs is a small share of the gradient of each weight."""
    plain, fast = (new_updater(device, precision) for _ in range(2))
    compile_layers(fast.model)
    before = compiled_graphs()
    for update in updates(device)[:count]:
        losses = [updater.gradient(update).item() for updater in (plain, fast)]
        assert losses[1] == pytest.approx(losses[0], rel=tolerance)
        for (name, weight), other in zip(plain.model.named_parameters(), fast.model.parameters(), strict=True):
            assert (other.grad - weight.grad).norm() <= tolerance * weight.grad.norm(), name
        for updater in (plain, fast):
            updater.optimizer.step()
            updater.optimizer.zero_grad()
        assert compiled_graphs() - before == (4 if update.parts[0].sentences == 1 else 2)  # for all other shapes
    assert not torch._dynamo.utils.counters["graph_break"]
    fast.model.eval()
    with uncompiled(), torch.inference_mode():
        fast.loss(updates(device)[0].parts[0])
    assert compiled_graphs() - before == count


def test_compiled_dropout_drops_the_same_in_both_directions_and_something_else_in_each_row(device, compiler):
    dropout = Dropout(0.5)
    y = torch.randn(300, 65, device=device, requires_grad=True)
    found = torch.compile(lambda x, y: x + dropout(y), dynamic=True)(torch.zeros_like(y), y)
    found.sum().backward()
    kept = found != 0
    torch.testing.assert_close(found, 2 * y * kept)
    torch.testing.assert_close(y.grad, 2.0 * kept)
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert len(kept.unique(dim=0)) == len(kept)


@pytest.mark.slow
def test_layers_whose_gradient_cannot_be_compiled_run_as_they_are_written(device, compiler, monkeypatch):
    plain, without = new_updater(device), new_updater(device)
    compile_layers(without.model)
    tried = []

    def fail(graph, *arguments, **options):
        tried.append(graph)
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_backward", fail)
    with torch._functorch.config.patch(enable_autograd_cache=False):  # whose gradients were compiled before
        for update in updates(device):
            torch.testing.assert_close(without.gradient(update), plain.gradient(update))
    for weight, other in zip(plain.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad)
    assert tried


def test_without_a_compiler_layers_run_as_they_are_written_and_one_warning_says_so(monkeypatch, tmp_path, caplog):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    cpu = torch.device("cpu")
    plain, without = new_updater(cpu), new_updater(cpu)
    compile_layers(without.model)
    assert [record.levelname for record in caplog.records if record.name.startswith("mt")] == ["WARNING"]
    assert "layers are not compiled" in caplog.text
    before = compiled_graphs()
    update = updates(cpu)[0]
    assert torch.equal(without.gradient(update), plain.gradient(update))
    assert compiled_graphs() == before
