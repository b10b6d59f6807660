"""Products made ready for translating against PyTorch's plain ones."""

import platform
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mt.device import Compute
from mt.errors import DeviceError
from mt.model.config import ModelConfig
from mt.model.products import Int8Linear, PackedLinear, engine_for, prepare_to_translate
from mt.model.transformer import Transformer


@pytest.fixture(params=["rotary", "sinusoidal", "norm_last"])
def model(request):
    torch.manual_seed(1)
    config = ModelConfig(
        source_vocabulary=90, target_vocabulary=90, share_embeddings=True, width=32, heads=4, feed_forward=48,
        encoder_layers=2, decoder_layers=2, max_positions=20,
        positions="rotary" if request.param == "rotary" else "sinusoidal", norm_first=request.param != "norm_last",
    )  # fmt: skip
    return Transformer(config).eval().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 5, 3), (700, 3)])
def test_packed_products_are_the_plain_ones(shape, bias):
    plain = nn.Linear(3, 130, bias=bias)
    packed = PackedLinear(plain.weight, plain.bias)
    x = torch.randn(shape)
    torch.testing.assert_close(packed(x), plain(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 16), (2, 5, 16)])
@pytest.mark.parametrize("outputs", [10, 5_000])
def test_products_of_8_bits_are_exact_where_8_bits_are_enough(outputs, shape):
    """Weights that are multiples of an output's largest / 127, and inputs that are multiples of a range / 255."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randint(-127, 128, (outputs, 16), generator=generator).float()
    weight[:, 0] = 127
    weight *= (torch.arange(outputs) % 10 + 1)[:, None] / 100  # a scale for each output
    bias = torch.randn(outputs, generator=generator)
    assert engine_for(weight) == ("fbgemm" if outputs == 10 and platform.machine() == "x86_64" else "onednn")
    assert engine_for(weight, many_rows=True) == "onednn"
    x = torch.randint(-63, 65, shape, generator=generator).float()
    x[..., 0], x[..., 1] = -127, 128
    for made in (Int8Linear(weight, bias), Int8Linear(weight, bias, many_rows=True)):
        torch.testing.assert_close(made(x), x @ weight.T + bias, atol=2e-2, rtol=1e-5)


@pytest.mark.parametrize("vnni", [True, False])
def test_products_of_8_bits_are_about_right_and_without_vnni_their_inputs_have_7(monkeypatch, vnni):
    """What is chosen without VNNI is computed on this processor too."""
    if vnni and not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    torch.manual_seed(3)
    plain, x = nn.Linear(256, 300), torch.randn(40, 256)
    made = Int8Linear(plain.weight, plain.bias)
    assert made.reduce_range != vnni
    assert (made(x) - plain(x)).norm() < 0.02 * plain(x).norm()


def test_where_pytorch_has_no_products_of_8_bits_the_error_says_what_to_use(model, monkeypatch):
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(supported_engines=["none"]))
    with pytest.raises(DeviceError, match="no int8 products") as caught:
        prepare_to_translate(model, "int8")
    assert caught.value.hint == "use --precision fp32"


def test_a_row_of_zeros_has_a_scale():
    assert Int8Linear(torch.zeros(4, 8), None)(torch.ones(2, 8)).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(
    ("device", "precision", "error"),
    [("cpu", "fp32", 1e-4), ("cpu", "int8", 0.3), ("cpu", "bf16", 0.02), ("cuda", "bf16", 0.02)],
    indirect=["device"],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_prepared_model_computes_what_it_did(model, device, precision, error, beams):
    """Token by token, of beams that go on from one another; in bfloat16, what it computes under autocast."""
    model.to(device)
    source = torch.randint(4, 90, (3, 9), device=device)
    mask = torch.arange(9, device=device) < torch.tensor([9, 4, 7], device=device)[:, None]
    tokens = torch.randint(4, 90, (20, 3, beams), device=device)
    parents = torch.randint(0, beams, (20, 3, beams), device=device)
    ready = deepcopy(model)
    prepare_to_translate(ready, precision)

    def logits_of(some):
        state, found = some.encode(source, mask).with_past(beams, 20), []
        for now, before in zip(tokens, parents, strict=True):  # more than are shown where keys are few
            found.append(some.decode(now.view(-1, 1), state))
            state.reorder(before)
        return torch.stack(found)

    with Compute(device, precision).autocast():
        expected, logits = logits_of(model), logits_of(ready)
    assert logits.dtype == expected.dtype
    torch.testing.assert_close(logits, expected, atol=error * float(expected.std()), rtol=0)
    assert not [name for name, module in ready.named_modules() if isinstance(module, nn.Linear)]


def test_products_in_float32_are_left_to_cuda(model):
    ready = deepcopy(model).to("meta")
    prepare_to_translate(ready, "fp32")
    assert [type(module) for module in ready.modules()] == [type(module) for module in model.modules()]


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "fp32"), ("cpu", "int8"), ("cpu", "bf16"), ("cuda", "bf16")], indirect=["device"]
)
def test_a_projection_to_some_of_the_vocabulary_computes_these_logits(model, device, precision):
    source, target = torch.randint(4, 90, (3, 9), device=device), torch.randint(4, 90, (3, 1), device=device)
    candidates = torch.tensor([2, 5, 77], device=device)
    prepare_to_translate(model.to(device), precision)
    with Compute(device, precision).autocast():
        state = model.encode(source)
        whole = model.decode(target, state.with_past(1, 7))
        state.projection = model.projection_to(candidates)
        some = model.decode(target, state.with_past(1, 7))
    torch.testing.assert_close(some, whole[..., candidates], atol=0.05 if precision == "bf16" else 1e-5, rtol=0)
