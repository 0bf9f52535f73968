"""Rows with NaN that are to be omitted get weight zero; a block's digest tells any of its values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.block import Block, digest
from daskgmm.compute.rows import as_rows
from tests.compute.arrays import VALUES, WEIGHT, D, N, column, joined, read_all, uneven, write


@pytest.mark.parametrize("kind", ["numpy", "dask uneven", "zarr v3"])
def test_omit_gives_weight_zero_to_rows_with_nan(kind: str, tmp_path: Path) -> None:
    values = VALUES.copy()
    values[4, 2] = values[9, 0] = values[10, 1] = np.nan
    values[4, 0] = values[5, 0] = np.inf
    open_as: dict[str, Callable[[], Any]] = {
        "numpy": lambda: values,
        "dask uneven": lambda: uneven(values),
        "zarr v3": lambda: write(tmp_path / "x.zarr", values, (4, 2)),
    }
    X = open_as[kind]()
    expected = np.where(np.isin(np.arange(N), [4, 9, 10]), 0.0, WEIGHT)
    rows = as_rows(X, weight=WEIGHT, nan_policy="omit", block_size=100)
    np.testing.assert_array_equal(column(rows, "weight"), expected)
    np.testing.assert_array_equal(joined(rows), values)
    # Without weights, only blocks that hold NaN get some.
    for block in read_all(as_rows(X, nan_policy="omit", block_size=100)):
        assert (block.weight is not None) == bool(np.isnan(block.x).any())
        if block.weight is not None:
            np.testing.assert_array_equal(block.weight, 1.0 - np.isnan(block.x).any(axis=1))
    left = as_rows(X, weight=WEIGHT, block_size=100)
    np.testing.assert_array_equal(column(left, "weight"), WEIGHT)


def test_omit_leaves_the_users_weights_alone() -> None:
    values, weight = np.full((N, D), np.nan), WEIGHT.copy()
    np.testing.assert_array_equal(as_rows(values, weight=weight, nan_policy="omit").read(0).weight, 0)
    np.testing.assert_array_equal(weight, WEIGHT)


def test_omit_takes_integers_and_float16() -> None:
    integers = np.arange(60).reshape(N, D)
    assert as_rows(integers, nan_policy="omit").read(0).weight is None
    halves = integers.astype(">f2")
    halves[3, 1] = np.nan
    weight = as_rows(halves, nan_policy="omit").read(0).weight
    np.testing.assert_array_equal(weight, np.arange(N) != 3)


def test_a_digest_tells_values_types_shapes_and_columns_but_not_layout() -> None:
    labels = np.arange(N)
    blocks = [
        Block(VALUES, weight=WEIGHT, columns={"labels": labels}),
        Block(VALUES, weight=WEIGHT),
        Block(VALUES, weight=WEIGHT + np.eye(1, N)[0] * 1e-12),
        Block(VALUES),
        Block(VALUES.astype("f4")),
        Block(VALUES.reshape(D, N)),
        Block(-VALUES),
    ]
    assert len({digest(block) for block in blocks}) == len(blocks)
    assert digest(Block(np.asfortranarray(VALUES), 3, 60)) == digest(Block(VALUES))
