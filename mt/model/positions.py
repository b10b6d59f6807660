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
    """What `rotate` multiplies by: cosines, and sines with their signs, of the angles of each position.

    (positions, 2, D): a half for the first number of each point, a half for the second.
    """
    found = angles(positions, head_size)
    cosines, sines = found.cos(), found.sin()
    return torch.stack((torch.cat((cosines, cosines), dim=1), torch.cat((-sines, sines), dim=1)), dim=1).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate queries or keys (N, T, H, D) by (T, 2, D): numbers i and i + D/2 are a point, rotated by angle i.

    Of a single token, T = 1, all other axes may be in any order.

    The product of a query and a key then depends on how far apart they stand (Su et al. 2021, RoFormer, section 3.2).
    A complex `rotation` (T, D/2) rotates points whose two numbers are neighbours instead: see `as_neighbours`.
    """
    if rotation.is_complex():
        points = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (N, T, H, D/2)
        return torch.view_as_real(points * rotation.unsqueeze(1)).flatten(-2).to(x.dtype)
    cosines, sines = rotation.unsqueeze(2).unbind(1)  # each (T, 1, D)
    own = x.float()
    other = own.roll(x.size(-1) // 2, dims=-1)  # of each point the other number
    return torch.addcmul(own * cosines, other, sines).to(x.dtype)


def as_neighbours(rotation: Tensor) -> Tensor:
    """The same rotations as complex numbers, (positions, 2, D) -> (positions, D/2): one product rotates a point.

    Queries and keys must then be projected in the `order_of_neighbours`.
    """
    cosines, sines = rotation.unbind(1)
    half = rotation.size(-1) // 2
    return torch.complex(cosines[:, :half], sines[:, half:])


def order_of_neighbours(heads: int, head_size: int) -> Tensor:
    """Which number of all heads (E,) comes where, so that of each point the two numbers are neighbours."""
    return torch.arange(heads * head_size).view(heads, 2, -1).transpose(1, 2).flatten()
