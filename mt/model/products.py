"""Products with weights, made ready for translating: packed for oneDNN, in 8-bit integers, or rounded to bfloat16.

`prepare_to_translate` puts these modules in place of a model's linear layers.  Training knows nothing of them: they
have no gradient.

Shapes: any leading dimensions, I inputs, O outputs.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt.errors import DeviceError
from mt.model.incremental import IncrementalDecoderLayer, scale_queries
from mt.model.layers import DecoderLayer, EncoderLayer
from mt.model.positions import as_neighbours, order_of_neighbours
from mt.model.transformer import Transformer

ROWS = 256  # for which oneDNN lays out a packed weight; it multiplies any number of rows


class PackedLinear(nn.Module):
    """`nn.Linear` in float32 over a weight laid out for oneDNN: faster than what PyTorch calls for plain weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """A linear layer whose weight is 8-bit integers with a scale for each output.

    Its input is rounded to 8 bits too, by one scale for all rows of a call, and what it returns is float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, many_rows: bool = False) -> None:
        """`many_rows`: a call has hundreds, as one for all tokens of source sentences does."""
        super().__init__()
        weight = weight.detach()
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127  # (O,)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch means to move this function some day
            quantized = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        torch.backends.quantized.engine = engine_for(weight, many_rows)  # packs, and later multiplies by what it packed
        # Without these instructions sums of full 8-bit products do not fit into 16 bits: inputs get 7 bits there.
        self.reduce_range = not torch.cpu._is_vnni_supported()
        self.packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)


def engine_for(weight: Tensor, many_rows: bool = False) -> str:
    """The library for 8-bit products: FBGEMM starts a call sooner, oneDNN is faster with many rows or weights."""
    fbgemm = not many_rows and weight.numel() < SMALL_WEIGHT and "fbgemm" in torch.backends.quantized.supported_engines
    return "fbgemm" if fbgemm else "onednn"


SMALL_WEIGHT = 1 << 16  # all in the decoder of *tiny*; none of *small*, whose layers gained nothing by FBGEMM


class Bfloat16Linear(nn.Module):
    """A linear layer whose weight is rounded once, and not in every batch, as autocast would."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.detach().bfloat16()
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(x.bfloat16(), self.weight, self.bias)


Kind: TypeAlias = Callable[[Tensor, Tensor | None], nn.Module]  # makes a layer of a weight (O, I) and a bias (O,)


def prepare_to_translate(model: Transformer, precision: str) -> None:
    """Replace the model's linear layers by the fastest for its device and this precision; it cannot be trained then.

    On a CPU, but for bfloat16, its decoder then reads one token of each row at a time, and nothing else.
    Raises `DeviceError` where PyTorch cannot multiply 8-bit integers.
    """
    kind: type[nn.Module]
    if precision == "int8":
        if "onednn" not in torch.backends.quantized.supported_engines:
            raise DeviceError("this build of PyTorch has no int8 products (oneDNN)", "use --precision fp32")
        kind = Int8Linear
    elif precision == "bf16":
        kind = Bfloat16Linear
    elif precision == "fp32" and model.output_weight.is_cpu and torch.backends.mkldnn.is_available():
        kind = PackedLinear
    else:
        return
    incremental = kind is not Bfloat16Linear
    kind_for_source: Kind = partial(Int8Linear, many_rows=True) if kind is Int8Linear else kind
    order = order_of_projections(model)
    for encoder_layer in cast(list[EncoderLayer], list(model.encoder)):
        replace_products(encoder_layer, kind_for_source, order)
    layers = cast(list[DecoderLayer], list(model.decoder))
    for layer in layers:
        if incremental:
            scale_queries(layer.self_attention)
            scale_queries(layer.cross_attention)
        replace(layer.cross_attention, "key_value", kind_for_source)
        replace_products(layer, kind, order)
    if incremental:
        model.decoder = nn.ModuleList(map(IncrementalDecoderLayer, layers))
    if model.rotations is not None:
        model.rotations = as_neighbours(model.rotations)
    model.projection = kind(model.output_weight, None)


def order_of_projections(model: Transformer) -> Tensor:
    """Which numbers of queries, keys and values (3*E,) come where in one product, for queries and keys to rotate."""
    width, heads = model.config.width, model.config.heads
    order = torch.arange(3 * width)
    if model.rotations is not None:
        order[: 2 * width] = order_of_neighbours(2 * heads, width // heads)
    return order


@torch.no_grad()
def replace_products(layer: EncoderLayer | DecoderLayer, kind: Kind, order: Tensor) -> None:
    """Replace a layer's linear layers by such of a kind; self-attention gets one for queries, keys and values."""
    attention = layer.self_attention
    query, key_value = attention.query, attention.key_value
    weight, bias = torch.cat((query.weight, key_value.weight)), torch.cat((query.bias, key_value.bias))
    attention.query_key_value = kind(weight[order], bias[order])
    del attention.query, attention.key_value
    for module in list(layer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                replace(module, name, kind)


def replace(module: nn.Module, name: str, kind: Kind) -> None:
    linear = getattr(module, name)
    setattr(module, name, kind(linear.weight, linear.bias))
