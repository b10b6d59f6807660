"""Where a token stands, as numbers added to its embedding (Vaswani et al. 2017, section 3.5)."""

import torch
from torch import Tensor


def sinusoids(positions: int, width: int) -> Tensor:
    """The published table (positions, E): sin(p / 10000^(2i/E)) in column 2i, the cosine in column 2i + 1."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (E/2,)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies  # (positions, E/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()
