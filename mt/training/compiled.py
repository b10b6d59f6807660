"""A model's layers compiled for training: few kernels between products, and the same ones for every batch.

The model stays what it is, with the same parameters; its layers are compiled when they first run.  Translations, whose
shapes change at every token, are made by the layers as they are written: in the block of `uncompiled`.
"""

import logging
import warnings
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mt.model.transformer import Transformer

logger = logging.getLogger(__name__)


def compile_layers(model: Transformer) -> None:
    """Let the layers be compiled: a graph for those of the encoder and one for those of the decoder.

    Batches of one sentence have one more each, since PyTorch takes a size of 1 for a fact.  A warning says where
    nothing can be compiled; then they run as they are written.  So does a layer that would need more graphs than
    PyTorch's `recompile_limit`, eight.
    """
    if not can_compile(model.output_weight.device):
        return
    from torch._inductor import config as inductor_config  # takes its time

    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # whoever asks for fp32 has that without them
    torch._dynamo.config.optimize_ddp = False  # DistributedDataParallel would have graphs cut where its buckets end
    # Sizes that are equal in the first batch, its sentences and a head's width, say, are not taken for one size.
    torch.fx.experimental._config.use_duck_shape = False
    # What cannot be compiled after all runs as it is written; so that this holds for what gradients are computed by,
    # too, that is compiled with the rest and not when it is first needed.
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._dynamo.config.specialize_float = True  # rates of dropout and the like never change
    # A norm's gradient summed over rows and over columns in one kernel asks for other graphs for other sizes, and such
    # sums have been found to be wrong (pytorch/pytorch#193061).
    if hasattr(inductor_config.triton, "mix_order_reduction"):
        inductor_config.triton.mix_order_reduction = False
    for layer in (*model.encoder, *model.decoder):
        layer.compile(dynamic=True)


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch finds what it compiles with, tried on the smallest function with a gradient."""

    def twice(x: Tensor) -> Tensor:
        return x.sin() * 2

    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            torch.compile(twice)(torch.ones(8, device=device, requires_grad=True)).sum().backward()
    except RuntimeError as error:  # of PyTorch's compiler, of Triton, or of a version of Python not yet known to them
        reason = str(error).strip().partition("\n")[0]
        logger.warning("layers are not compiled, which costs time and memory only: %s", reason)
        return False
    return True


def uncompiled() -> AbstractContextManager:
    """A block in which nothing that has been compiled is used, and nothing is compiled."""
    return torch.compiler.set_stance("force_eager")


def compiled_graphs() -> int:
    """How many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
