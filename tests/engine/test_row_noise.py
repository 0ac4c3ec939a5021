"""Noise: its distribution, and that it belongs to rows."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growkit.engine.row_noise import FINE, UNIT, _table, draw
from growkit.planning.formula import Noise


def noise(shape=(200, 500), seed=0, step=1, tensor="w"):
    """A description of noise with std 1."""
    return Noise(seed=seed, step=step, tensor=tensor, shape=shape, std=1.0)


def test_looks_normal():
    """Mean, variance, skewness and kurtosis of a normal distribution, within sampling error."""
    x = draw(noise((1000, 1000)), 0, 1000).astype(np.float64) * UNIT
    assert abs(x.mean()) < 5e-3
    assert abs(x.var() - 1) < 5e-3
    assert abs((x**3).mean()) < 1e-2
    assert abs((x**4).mean() - 3) < 3e-2
    assert np.abs(x).max() < 4.33


def test_the_table_is_the_same_everywhere():
    """No entry is near to being rounded the other way, all differ, and the variance is 1."""
    middle = NormalDist().inv_cdf
    exact = np.array([FINE * middle((i + 0.5) / 65536) for i in range(65536)])
    assert np.abs(exact % 1 - 0.5).min() > 1e-6
    table = _table().astype(np.float64)
    np.testing.assert_array_equal(table, np.round(exact))
    assert len(np.unique(table)) == 65536
    assert (table**2).mean() * UNIT**2 == pytest.approx(1, abs=1e-15)


def test_neighbours_are_independent():
    """No correlation along a row, along a column, or between two seeds, steps or tensors."""
    x = draw(noise(), 0, 200) * UNIT
    others = [
        x[:, 1:],
        x[1:],
        *(draw(n, 0, 200) * UNIT for n in (noise(seed=1), noise(step=2), noise(tensor="v"))),
    ]
    for y in others:
        part = x[: y.shape[0], : y.shape[1]]
        assert abs((part * y).mean()) < 5 / np.sqrt(y.size)
        assert not np.array_equal(part, y)


@pytest.mark.parametrize("shape", [(50, 7), (50,), (50, 3, 5), (50, 1), (3, 70_000)])
def test_rows_are_keyed_by_their_number(shape):
    """A row is the same alone, in a block, and in the whole."""
    whole = draw(noise(shape), 0, shape[0])
    assert whole.shape == shape

    @given(st.integers(0, shape[0] - 1), st.integers(1, 50))
    def any_block(start, count):
        stop = min(start + count, shape[0])
        np.testing.assert_array_equal(draw(noise(shape), start, stop), whole[start:stop])

    any_block()


def test_a_tensor_without_dims_is_one_row():
    """One number, as a row of its own."""
    assert draw(noise(()), 0, 1).shape == (1,)


def test_numbers_never_change():
    """A golden row: another numpy, machine or version of growkit must give the same."""
    found = draw(noise((9, 6), seed=7, step=2, tensor="model.w"), 8, 9)
    assert found.tolist() == [[-30366, -93854, 121296, 2825, 8275, -37096]]
