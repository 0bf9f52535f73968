"""What every layout does with a tile."""

from typing import Any

import numba
import numpy as np
import pytest

from daskgmm.model.kernels.compiling import OPTIONS, TILE
from daskgmm.model.kernels.tiles import load

# Helpers have no door to Python: they live in their callers.
_load: Any = numba.njit(**OPTIONS)(lambda x, weight, first, tile: load(x, weight, first, tile))


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("d", [1, 3, 4, 5, 8, 11, 16])
@pytest.mark.parametrize("first", [0, 3, TILE - 1, TILE + 6])
def test_rows_become_columns(dtype: str, d: int, first: int) -> None:
    """Zeros where the weight is zero, beyond the last row, and beyond the features."""
    x = np.random.default_rng(0).normal(size=(TILE + 7, d)).astype(dtype)
    tile = np.full((d + 1, TILE), np.nan, dtype)
    weight = np.arange(len(x)) % 5.0
    rows = _load(x, weight, first, tile)
    assert rows == min(TILE, len(x) - first)
    part = slice(first, first + rows)
    np.testing.assert_array_equal(tile[:d, :rows], np.where(weight[part, None] == 0, 0, x[part]).T)
    assert not tile[:d, rows:].any()
    assert not tile[d].any()
