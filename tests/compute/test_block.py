"""A block checks its values when it is read, and says where the bad ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.rows import as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, WEIGHT, D, N, blocks, dask_array, joined, uneven, unknown, write

# Values checked when a block is read


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "Input sample_weight contains NaN"),
        (np.inf, "Input sample_weight contains infinity"),
        (-np.inf, "Input sample_weight contains infinity"),
        (-1.0, "Negative values in data passed to sample_weight"),
    ],
)
def test_bad_weights_name_block_and_rows(value: float, message: str) -> None:
    weight = WEIGHT.copy()
    weight[[9, 11, 12, 13, 14, 15, 16, 19]] = value
    rows = as_rows(uneven(VALUES), weight)
    assert len(rows.read(2).x) == 5
    with pytest.raises(DataError, match=rf"{message}: block 3, row\(s\) 9, 11, 12, 13, 14 and 3 more\."):
        rows.read(3)
    rows = as_rows(unknown(uneven(VALUES)), unknown(uneven(weight)))
    with pytest.raises(
        DataError, match=rf"{message}: block 3, row\(s\) 1, 3, 4, 5, 6 and 3 more counted from the"
    ):
        rows.read(3)
    with pytest.raises(DataError, match=message):
        as_rows(VALUES, value).read(0)


@pytest.mark.parametrize("kind", ["numpy", "dask uneven", "zarr v3"])
def test_omit_gives_weight_zero_to_rows_with_nan(kind: str, tmp_path: Path) -> None:
    values = VALUES.copy()
    values[4, 2] = values[9, 0] = values[10, 1] = np.nan
    values[4, 0] = values[5, 0] = np.inf
    open_as: dict[str, Any] = {
        "numpy": lambda: values,
        "dask uneven": lambda: uneven(values),
        "zarr v3": lambda: write(tmp_path / "x.zarr", values, (4, 2)),
    }
    X: Any = open_as[kind]()
    expected = np.where(np.isin(np.arange(N), [4, 9, 10]), 0.0, WEIGHT)
    rows = as_rows(X, WEIGHT, nan_policy="omit", block_size=100)
    read = blocks(rows)
    np.testing.assert_array_equal(np.concatenate([block.weight for block in read]), expected)
    np.testing.assert_array_equal(joined(rows), values)
    # Without weights, only blocks that hold NaN get some.
    bare = blocks(as_rows(X, nan_policy="omit", block_size=100))
    for block in bare:
        has_nan = bool(np.isnan(block.x).any())
        assert (block.weight is not None) == has_nan
        if block.weight is not None:
            np.testing.assert_array_equal(block.weight, 1.0 - np.isnan(block.x).any(axis=1))
    left = blocks(as_rows(X, WEIGHT, block_size=100))
    np.testing.assert_array_equal(np.concatenate([block.weight for block in left]), WEIGHT)


def test_omit_leaves_the_users_weights_alone() -> None:
    values, weight = np.full((N, D), np.nan), WEIGHT.copy()
    np.testing.assert_array_equal(as_rows(values, weight, nan_policy="omit").read(0).weight, 0)
    np.testing.assert_array_equal(weight, WEIGHT)


def test_omit_takes_integers_and_float16() -> None:
    integers = np.arange(60).reshape(N, D)
    assert as_rows(integers, nan_policy="omit").read(0).weight is None
    halves = integers.astype(">f2")
    halves[3, 1] = np.nan
    weight = as_rows(halves, nan_policy="omit").read(0).weight
    np.testing.assert_array_equal(weight, np.arange(N) != 3)


def test_a_dask_array_that_breaks_its_word_is_refused() -> None:
    X = dask_array(VALUES, chunks=(5, 3))
    wide = X.map_blocks(lambda x: np.c_[x, x], dtype="f8", meta=np.empty((0, 0)))
    with pytest.raises(DataError, match=r"Block 2 has shape \(5, 6\), expected \(5, 3\)"):
        as_rows(wide).read(2)
    short = X.map_blocks(lambda x: x[:-1], dtype="f8", meta=np.empty((0, 0)))
    with pytest.raises(DataError, match=r"Block 1 has shape \(4, 3\), expected \(5, 3\)"):
        as_rows(short).read(1)
