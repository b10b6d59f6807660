"""Muon (Jordan et al. 2024): the matrices of hidden layers follow their momentum, made orthogonal.

Otherwise a gradient's few large singular values would be nearly all of an update.  The orthogonal matrix nearest
to the momentum gives every direction the same weight; a Newton-Schulz iteration comes close to it in products alone.
Its entries are scaled to the size that AdamW's have (Liu et al. 2025, equation 4), so that both learn at one rate.
Embeddings, norms and biases are left to AdamW.

Shapes: n matrices of r rows and c columns.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mt.device import cpu_has_bfloat16
from mt.model.attention import MultiHeadAttention

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: they take singular values to about 1 the fastest
AS_ADAMW = 0.2  # root mean square of AdamW's updates, in learning rates


class Muon(torch.optim.AdamW):
    """AdamW for all parameters but the hidden matrices.

    `matrices` maps each of those to the number of projections stacked in it: keys and values are two.
    """

    def __init__(self, matrices: dict[Tensor, int], others: list[dict[str, Any]], **settings: Any) -> None:
        self.matrices = matrices
        super().__init__([{"params": list(matrices)}, *others], **settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Follow the gradients; where `found_inf` is 1, nothing changes."""
        device = next(iter(self.matrices)).device
        taken = 1 - getattr(self, "found_inf", torch.zeros((), device=device))
        directions: dict[torch.Size, list[Tensor]] = {}
        for parameter, count in self.matrices.items():
            for direction in self.follow(parameter, taken).chunk(count):
                directions.setdefault(direction.shape, []).append(direction)
        made = {shape: iter(orthogonal(torch.stack(some))) for shape, some in directions.items()}
        group = self.param_groups[0]
        rate, decay = group["lr"] * taken, group["lr"] * group["weight_decay"] * taken
        for parameter, count in self.matrices.items():
            shape = parameter.chunk(count)[0].shape
            update = torch.cat([next(made[shape]) for _ in range(count)])
            parameter.mul_(1 - decay).sub_(update * (rate * AS_ADAMW * max(shape) ** 0.5))
            parameter.grad = None  # which AdamW passes over
        super().step()

    def follow(self, parameter: Tensor, taken: Tensor) -> Tensor:
        """The direction of Nesterov's momentum."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = torch.where(taken > 0, parameter.grad, 0.0)  # type: ignore[arg-type]
        state["momentum"].lerp_(gradient, (1 - MOMENTUM) * taken)
        return gradient.lerp(state["momentum"], MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, r, c) with the singular vectors of each matrix, and singular values of about 1: 0.7 to 1.2."""
    if matrices.size(1) > matrices.size(2):
        return orthogonal(matrices.mT).mT
    x = matrices.bfloat16() if matrices.is_cuda or cpu_has_bfloat16() else matrices
    a, b, c = COEFFICIENTS
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value above 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def hidden_matrices(model: nn.Module) -> dict[Tensor, int]:
    """The weights of a model's projections, each with how many of them are stacked in it."""
    stacked = {module.key_value.weight for module in model.modules() if isinstance(module, MultiHeadAttention)}
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return {weight: 2 if weight in stacked else 1 for weight in weights}
