"""What goes with the rows: cut as they are, checked where it is read; a new column is one entry in a table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr

from daskgmm._typing import Array
from daskgmm.compute.cache import kept
from daskgmm.compute.columns import COLUMNS, Column
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.compute.threads import Threads
from daskgmm.errors import DataError
from tests.compute.arrays import (
    KINDS,
    LABELS,
    RESP,
    UNKNOWN,
    VALUES,
    WEIGHT,
    D,
    N,
    column,
    dask_array,
    in_kinds,
    read_all,
    uneven,
    unknown,
    write,
)

dd = pytest.importorskip("dask.dataframe")

HOLDERS: dict[str, Callable[[Array, Path], Any]] = {
    "numpy": lambda values, path: values,
    "list": lambda values, path: values.tolist(),
    "pandas": lambda values, path: pd.Series(values) if values.ndim == 1 else pd.DataFrame(values),
    "polars": lambda values, path: pl.Series(values) if values.ndim == 1 else pl.DataFrame(values),
    "dask": lambda values, path: dask_array(values, chunks=3),
    "zarr": lambda values, path: write(path, values, (7, 4)[: values.ndim]),
    "path": lambda values, path: str(write(path, values, (7, 4)[: values.ndim]).store.root),
    "xarray": lambda values, path: xr.DataArray(values),
    "xarray dask": lambda values, path: xr.DataArray(dask_array(values, chunks=3)),
}
GIVEN = {"weight": WEIGHT, "labels": LABELS, "responsibilities": RESP}
KNOWN = [kind for kind in KINDS if kind not in UNKNOWN | {"fortran", "list", "string", "url", "polars"}]


def assert_beside(rows: Rows, given: dict[str, Array]) -> None:
    """Every block has of each column the part that belongs to its rows, and nothing else."""
    first = 0
    for block in read_all(rows):
        part = slice(first, first + len(block.x))
        found = {"weight": block.weight, **block.columns}
        assert set(found) == {"weight", *given}
        for name, values in given.items():
            np.testing.assert_array_equal(found[name], values[part])
        first += len(block.x)
    assert first == N


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("kind", KNOWN)
def test_columns_are_cut_as_the_rows(kind: str, holder: str, tmp_path: Path) -> None:
    columns = {name: HOLDERS[holder](values, tmp_path / f"{name}.zarr") for name, values in GIVEN.items()}
    rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100, **columns)
    assert rows.n_blocks > 1
    assert_beside(rows, GIVEN)
    mapped = rows.map(lambda block: block.x[:, 0] * block.weight, dtype="f8").compute(scheduler="threads")
    np.testing.assert_allclose(mapped, VALUES[:, 0] * WEIGHT)


class Exposure(Column):
    """A made-up column: times, one for each feature, that must be positive and become float64."""

    def values(self, found: Any, block: Any) -> Array:
        values = super().values(np.asarray(found, dtype=np.float64), block)
        if not (values > 0).all():
            raise DataError(f"{self.title} is not positive: {block.where(~(values > 0).all(axis=1))}.")
        return values


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("holder", ["numpy", "dask", "zarr"])
@pytest.mark.parametrize("kind", ["numpy", "dask uneven", "zarr sharded"])
def test_a_new_column_is_one_entry(
    kind: str, holder: str, once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COLUMNS, "exposure", Exposure("exposure_time", ndim=2, once=once))
    exposure = np.arange(N * D, dtype=np.float32).reshape(N, D) + 1

    def open_with(values: Array, name: str) -> Rows:
        X, held = KINDS[kind](tmp_path / f"{name}-x.zarr"), HOLDERS[holder](values, tmp_path / f"{name}.zarr")
        return as_rows(X, weight=WEIGHT, exposure=held, block_size=100)

    rows = open_with(exposure, "sound")
    assert rows.n_blocks > 1
    assert_beside(rows, {"weight": WEIGHT, "exposure": exposure})
    assert column(rows, "exposure").dtype == np.float64
    # Its bytes count where blocks are planned, its layout where a checkpoint is compared.
    assert rows.row_bytes == D * 8 + 8 + D * 4
    assert rows.layout()["exposure_time's dtype"] == exposure.dtype.str
    # Later passes have it from memory, unless only the first looks at it.
    with kept(Threads(), rows) as near:
        read_all(near)
        if near.shelf is not None:
            assert all(("exposure" in block.columns) == (not once) for block in near.shelf.blocks.values())
        assert_beside(near.lasting(), {"weight": WEIGHT} if once else {"weight": WEIGHT, "exposure": exposure})
    spoilt = exposure.copy()
    spoilt[9, 1] = 0
    with pytest.raises(DataError, match=r"exposure_time is not positive: block .*, row\(s\) 9\."):
        read_all(open_with(spoilt, "spoilt"))
    with pytest.raises(DataError, match=r"exposure_time\.shape == \(19, 3\), expected \(20, 3\)!"):
        open_with(exposure[:19], "short")
    with pytest.raises(DataError, match=r"exposure_time should be 2-dimensional, got shape \(20,\)"):
        open_with(exposure[:, 0], "flat")


def test_a_column_that_nobody_entered_is_refused() -> None:
    with pytest.raises(KeyError, match="exposure"):
        as_rows(VALUES, exposure=VALUES)


def test_a_wide_column_makes_smaller_blocks() -> None:
    values, wide = np.zeros((4096, 2)), np.zeros((4096, 64))
    assert as_rows(values, block_size=2**16).x.chunks == (4096,)
    assert as_rows(values, responsibilities=wide, block_size=2**16).x.chunks == (128,) * 32


# Weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, 0.5, np.float32(3), np.array(4)])
def test_a_number_weighs_every_row_alike(kind: str, number: Any, tmp_path: Path) -> None:
    rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), weight=number, block_size=100)
    np.testing.assert_array_equal(column(rows, "weight"), np.full(N, float(number)))


@pytest.mark.parametrize("dtype", ["?", "i8", "u1", "f2", ">f4"])
def test_weights_of_any_real_dtype_become_float64(dtype: str) -> None:
    weight = np.arange(N).astype(dtype)
    found = as_rows(VALUES, weight=weight).read(0).weight
    assert found is not None
    assert found.dtype == np.dtype("=f8")
    np.testing.assert_array_equal(found, weight)


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
    rows = as_rows(uneven(VALUES), weight=weight)
    assert len(rows.read(2).x) == 5
    with pytest.raises(DataError, match=rf"{message}: block 3, row\(s\) 9, 11, 12, 13, 14 and 3 more\."):
        rows.read(3)
    rows = as_rows(unknown(uneven(VALUES)), weight=unknown(uneven(weight)))
    place = r"block 3, row\(s\) 1, 3, 4, 5, 6 and 3 more counted from the"
    with pytest.raises(DataError, match=f"{message}: {place}"):
        rows.read(3)
    with pytest.raises(DataError, match=message):
        as_rows(VALUES, weight=value).read(0)


# Shapes and types


def test_labels_that_miss_some_are_floats(tmp_path: Path) -> None:
    labels = np.where(LABELS == 1, np.nan, LABELS)
    for held in in_kinds(labels, tmp_path / "c.zarr"):
        rows = as_rows(VALUES, labels=held)
        found = np.concatenate([rows.read(i).columns["labels"] for i in range(rows.n_blocks)])
        np.testing.assert_array_equal(found, labels)
    with pytest.raises(DataError, match=r"labels_init must be integers: block 0, row\(s\) "):
        as_rows(VALUES, labels=labels + 0.5).read(0)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("weight", np.ones(19), r"sample_weight\.shape == \(19,\), expected \(20,\)!"),
        ("weight", np.ones((20, 2)), r"Sample weights must be 1D array or scalar, got 2D array\. Expected ei"),
        ("weight", np.ones((20, 1, 1)), "must be 1D array or scalar, got 3D array.* length 20"),
        ("weight", np.ones(20, dtype=complex), "Complex data not supported"),
        ("labels", LABELS[:19], r"labels_init\.shape == \(19,\), expected \(20,\)!"),
        ("labels", np.ones((20, 1)), r"labels_init should be 1-dimensional, got shape \(20, 1\)"),
        ("responsibilities", RESP[:19], r"responsibilities_init\.shape == \(19, 4\), expected \(20, 4\)!"),
        ("responsibilities", np.ones((20, 1, 1)), r"responsibilities_init should be 2-dimensional, got shape"),
        ("responsibilities", LABELS, r"responsibilities_init should be 2-dimensional, got shape \(20,\)"),
    ],
)
def test_misshapen_columns(name: str, values: Array, message: str, tmp_path: Path) -> None:
    for held in in_kinds(values, tmp_path / "c.zarr"):
        for X in (VALUES, uneven(VALUES)):
            with pytest.raises(ValueError, match=message):
                as_rows(X, **{name: held})


# Unknown sizes


def test_unknown_sizes_pair_block_by_block(tmp_path: Path) -> None:
    weight = write(tmp_path / "w.zarr", WEIGHT[:12], (5,))
    X = unknown(dask_array(VALUES[:12], chunks=((5, 5, 2), 3)))
    rows = as_rows(X, weight=weight, labels=unknown(dask_array(LABELS[:12], chunks=5)))
    np.testing.assert_array_equal(column(rows, "weight"), WEIGHT[:12])
    np.testing.assert_array_equal(column(rows, "labels"), LABELS[:12])
    # Known rows, weights of unknown sizes
    rows = as_rows(X.compute_chunk_sizes(), weight=unknown(dask_array(WEIGHT[:12], chunks=5)))
    assert rows.read(1).first_row == 5
    np.testing.assert_array_equal(rows.read(1).weight, WEIGHT[5:10])


def test_frame_and_series_pair() -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": VALUES[:, 0], "w": WEIGHT}), npartitions=3)
    np.testing.assert_array_equal(column(as_rows(frame[["a"]], weight=frame["w"]), "weight"), WEIGHT)


def test_unknown_sizes_that_do_not_pair_are_refused() -> None:
    X = unknown(uneven(VALUES))
    with pytest.raises(DataError, match=r"sample_weight has 2 block\(s\) and X has 4"):
        as_rows(X, weight=dask_array(WEIGHT, chunks=10))
    with pytest.raises(DataError, match=r"labels_init has 1 block\(s\) and rows has 4"):
        as_rows(X, labels=LABELS, name="rows")


@pytest.mark.parametrize(
    ("name", "title"),
    [("weight", "sample_weight"), ("labels", "labels_init"), ("responsibilities", "responsibilities_init")],
)
def test_lengths_of_unknown_blocks_are_compared_when_read(name: str, title: str) -> None:
    X, values = unknown(dask_array(VALUES, chunks=(10, 3))), GIVEN[name][:19]
    rows = as_rows(X, **{name: unknown(dask_array(values, chunks=(10, 4)[: values.ndim]))})
    assert len(rows.read(0).x) == 10
    with pytest.raises(DataError, match=f"{title} and the rows differ in length in block 1: 9 and 10"):
        rows.read(1)
