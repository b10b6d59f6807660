"""Where a token stands: as numbers added to its embedding, or as angles by which queries and keys are turned."""

import torch
from torch import Tensor


def angles(positions: int, size: int) -> Tensor:
    """p / 10000^(2i/size) for each position p and i < size/2: (positions, size/2), in float64."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)  # (size/2,)
    return torch.arange(positions, dtype=torch.float64)[:, None] * frequencies


def sinusoids(positions: int, width: int) -> Tensor:
    """The table (positions, E) of Vaswani et al. 2017, section 3.5: sines in even columns, cosines in odd ones."""
    found = angles(positions, width)
    return torch.stack((found.sin(), found.cos()), dim=-1).flatten(1).float()


def rotations(positions: int, head_size: int) -> Tensor:
    """What `rotate` turns by: cosines and sines of the angles of each position, (positions, 2, D/2)."""
    found = angles(positions, head_size)
    return torch.stack((found.cos(), found.sin()), dim=1).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries or keys (N, T, H, D) by (T, 2, D/2): numbers i and i + D/2 are a point, which goes round by angle i.

    The product of a query and a key then depends on how far apart they stand (Su et al. 2021, RoFormer, section 3.2).
    """
    cosines, sines = rotation.unsqueeze(2).unbind(1)  # each (T, 1, D/2)
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat(turned, dim=-1).to(x.dtype)
