"""The tables of positions, cell by cell, and what is turned by them."""

import math

import pytest
import torch

from mt.model.positions import as_neighbours, order_of_neighbours, rotate, rotations, sinusoids


@pytest.mark.parametrize(
    ("position", "column", "expected"),
    [
        (0, 0, 0.0),
        (0, 1, 1.0),
        (1, 0, math.sin(1)),
        (1, 1, math.cos(1)),
        (3, 2, math.sin(3 / 10)),  # 10000^(2/8) = 10
        (3, 3, math.cos(3 / 10)),
        (7, 4, math.sin(7 / 100)),
        (9, 6, math.sin(9 / 1000)),
        (9, 7, math.cos(9 / 1000)),
    ],
)
def test_a_cell_is_the_sine_or_cosine_of_the_published_angle(position, column, expected):
    assert sinusoids(10, 8)[position, column].item() == pytest.approx(expected, abs=1e-7)


def test_the_table_has_a_row_a_position_and_a_column_a_number_in_float32():
    table = sinusoids(11, 6)
    assert table.shape == (11, 6)
    assert table.dtype == torch.float32


def test_far_positions_are_exact_too():
    assert sinusoids(5001, 4)[5000, 0].item() == pytest.approx(math.sin(5000), abs=1e-6)
    assert sinusoids(5001, 4)[5000, 3].item() == pytest.approx(math.cos(5000 / 100), abs=1e-6)


@pytest.mark.parametrize(
    ("position", "plane", "angle"),
    [(0, 0, 0.0), (0, 3, 0.0), (1, 0, 1.0), (3, 1, 3 / 10), (7, 2, 7 / 100), (9, 3, 9 / 1000)],
)
def test_a_position_is_an_angle_in_each_plane(position, plane, angle):
    first, second = rotations(10, 8)[position].unflatten(-1, (2, 4))[..., plane].T.tolist()
    assert first == pytest.approx((math.cos(angle), -math.sin(angle)), abs=1e-7)
    assert second == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-7)


def test_the_first_position_turns_nothing_and_a_point_goes_round_counterclockwise():
    x = torch.zeros(1, 3, 1, 4)
    x[..., 0] = 1.0  # with number 2 a point in the plane of angle 0
    turned = rotate(x, rotations(3, 4))[0, :, 0]
    expected = [[math.cos(p), 0.0, math.sin(p), 0.0] for p in range(3)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_turning_is_multiplying_complex_numbers(device):
    """Planes as complex numbers are the slow twin."""
    torch.manual_seed(1)
    N, T, H, D = 2, 5, 3, 8
    x, start = torch.randn(N, T, H, D, device=device), 4
    turned = rotate(x, rotations(start + T, D).to(device)[start:])
    for plane in range(D // 2):
        angles = torch.arange(start, start + T, device=device) / 10_000 ** (2 * plane / D)
        points = torch.complex(x[..., plane], x[..., plane + D // 2])
        expected = points * torch.polar(torch.ones_like(angles), angles)[:, None]
        torch.testing.assert_close(turned[..., plane], expected.real, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(turned[..., plane + D // 2], expected.imag, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_points_whose_numbers_are_neighbours_are_turned_alike(device, kind):
    torch.manual_seed(1)
    x, table = torch.randn(2, 5, 3, 8, device=device).to(kind), rotations(9, 8).to(device)[4:]
    order = order_of_neighbours(3, 8)
    assert order.tolist()[:10] == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12]
    turned = rotate(x.flatten(2)[..., order].unflatten(2, (3, 8)), as_neighbours(table))
    expected = rotate(x, table).flatten(2)[..., order]
    rtol = 1e-5 if kind == torch.float32 else 2**-7  # a digit of what is rounded to
    torch.testing.assert_close(turned.flatten(2), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_turned_query_and_key_know_only_how_far_apart_they_stand(kind):
    torch.manual_seed(1)
    query, key = torch.randn(2, 16).to(kind)
    table = rotations(60, 16)

    def product(at, other):
        places = torch.stack((table[at], table[other]))
        turned = rotate(torch.stack((query, key))[None, :, None], places)[0, :, 0]
        assert turned.dtype == kind
        return (turned[0] @ turned[1]).item()

    tolerance = 1e-4 if kind == torch.float32 else 0.1
    assert product(3, 7) == pytest.approx(product(43, 47), abs=tolerance)
    assert product(5, 5) == pytest.approx((query @ key).item(), abs=tolerance)
    assert abs(product(3, 7) - product(3, 8)) > 2 * tolerance
