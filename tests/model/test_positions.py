"""The table of positions, cell by cell."""

import math

import pytest
import torch

from mt.model.positions import sinusoids


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
