"""What cannot be used is refused before it is read, in scikit-learn's words where it has some."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
import zarr

from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows, feature_names
from daskgmm.errors import DataError
from tests.compute.arrays import LABELS, RESP, VALUES, D, dask_array, joined, uneven, write

dd = pytest.importorskip("dask.dataframe")


# Refusals before anything is read


def in_kinds(values: Array, path: Path) -> Iterator[Any]:
    yield values
    yield dask_array(values, chunks=2)
    yield xr.DataArray(dask_array(values, chunks=2))
    if values.dtype.kind not in "OMmSU" and values.ndim:
        yield write(path, values, tuple(max(1, size) for size in values.shape))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(5), "Expected 2D array, got 1D array instead"),
        (np.array(5.0), "Expected 2D array, got scalar array instead"),
        (np.ones((4, 2), dtype=complex), "Complex data not supported"),
        (np.ones((4, 0)), r"0 feature\(s\) \(shape=\(4, 0\)\) while a minimum of 1 is required"),
        (np.ones((0, 2)), r"0 sample\(s\) \(shape=\(0, 2\)\) while a minimum of 1 is required"),
        (np.array([["a", "b"]]), "dtype='numeric' is not compatible with arrays of bytes/strings"),
        (np.array([[b"a"]]), "dtype='numeric' is not compatible with arrays of bytes/strings"),
        (np.zeros((2, 2), dtype="M8[s]"), "dtype='numeric' is not compatible .* datetime64"),
    ],
)
def test_refusals_in_scikit_learns_words(values: Array, message: str, tmp_path: Path) -> None:
    for X in in_kinds(values, tmp_path / "x.zarr"):
        with pytest.raises(ValueError, match=message):
            as_rows(X)


def test_three_dimensions_are_refused(tmp_path: Path) -> None:
    cube = np.ones((2, 3, 4))
    inputs = [cube, dask_array(cube), write(tmp_path / "x.zarr", cube, (2, 3, 4))]
    for X in inputs:
        with pytest.raises(ValueError, match=r"Found array with dim 3, while dim <= 2 is required"):
            as_rows(X)


def test_objects_and_sparse_arrays_are_refused() -> None:
    words = np.array([["a", 1.0], ["b", 2.0]], dtype=object)
    with pytest.raises(ValueError, match="could not convert string to float"):
        as_rows(words)
    with pytest.raises(DataError, match="not compatible with arrays of dtype object"):
        as_rows(dask_array(words, chunks=1))
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.eye(3))
    with pytest.raises(TypeError, match="Sparse data was passed"):
        as_rows(sparse)
    chunks = dask_array(np.eye(4), chunks=2).map_blocks(type(sparse), dtype="f8", meta=sparse[:0, :0])
    with pytest.raises(DataError, match="The chunks of X are csr_array objects"):
        as_rows(chunks)
    masked = dask_array(VALUES, chunks=5)[:, dask_array(np.ones(D, dtype=bool))]
    with pytest.raises(DataError, match="X has an unknown number of columns"):
        as_rows(masked)


def test_a_frame_of_text_is_refused() -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": ["x", "y"]}), npartitions=1)
    with pytest.raises(DataError, match="dtype='numeric' is not compatible"):
        as_rows(frame)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(19), r"sample_weight\.shape == \(19,\), expected \(20,\)!"),
        (
            np.ones((20, 2)),
            r"Sample weights must be 1D array or scalar, got 2D array\. Expected ei",
        ),
        (np.ones((20, 1, 1)), "must be 1D array or scalar, got 3D array.* length 20"),
        (np.ones(20, dtype=complex), "Complex data not supported"),
    ],
)
def test_misshapen_weights(weight: Array, message: str, tmp_path: Path) -> None:
    for given_as in in_kinds(weight, tmp_path / "w.zarr"):
        for X in (VALUES, uneven(VALUES)):
            with pytest.raises(ValueError, match=message):
                as_rows(X, given_as)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (LABELS[:19], r"labels_init\.shape == \(19,\), expected \(20,\)!"),
        (RESP[:19], r"responsibilities_init\.shape == \(19, 4\), expected \(20, 4\)!"),
        (np.ones((20, 1, 1)), "labels must be a 1D array and .* a 2D array, got 3D array"),
        (np.ones(20), "labels_init must be integers, got dtype float64"),
    ],
)
def test_misshapen_starts(start: Array, message: str, tmp_path: Path) -> None:
    for given_as in in_kinds(start, tmp_path / "s.zarr"):
        with pytest.raises(DataError, match=message):
            as_rows(VALUES, start=given_as)


@pytest.mark.parametrize("option", ["missing_chunks", "nan_policy"])
def test_unknown_options(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be one of .*, got 'ignore'"):
        as_rows(VALUES, **{option: "ignore"})


# Paths and xarray


@pytest.mark.parametrize("place", ["nothing.zarr", "file://{}/nothing.zarr", "memory://nothing"])
def test_an_unknown_path(place: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no Zarr array at .*nothing"):
        as_rows(place.format(tmp_path))


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no Zarr array at {tmp_path}"):
        as_rows(tmp_path)


def test_a_group_lists_its_arrays(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("rows", shape=(9, 2), dtype="f4")
    group.create_array("label", shape=(9,), dtype="i4")
    group.create_group("deep").create_array("more", shape=(5, 3), dtype="f8")
    for X in (tmp_path / "g.zarr", group):
        with pytest.raises(DataError) as caught:
            as_rows(X)
        message = str(caught.value)
        assert "g.zarr is a Zarr group, not an array" in message
        assert "  deep/more (5, 3) float64\n  rows (9, 2) float32\n" in message
        assert "label" not in message
        assert "Append the name of an array to the path" in message
    assert as_rows(f"{tmp_path}/g.zarr/deep/more").n_features == 3
    with pytest.raises(DataError, match="it holds no two-dimensional array"):
        as_rows(zarr.open_group(tmp_path / "empty.zarr", mode="w"))


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("sample", "x", "band")])
def test_the_xarray_recipe_works(dims: tuple[str, ...]) -> None:
    sizes = {"band": 2, "y": 4, "x": 3, "sample": 5}
    shape = [sizes[dim] for dim in dims]
    X = xr.DataArray(np.arange(math.prod(shape), dtype=float).reshape(shape), dims=dims)
    with pytest.raises(DataError, match="Expected 2D array, got 3D array instead") as caught:
        as_rows(X)
    recipe = str(caught.value).splitlines()[-1].strip()
    assert ".stack(" in recipe
    stacked = eval(recipe, {"X": X})
    rows = as_rows(stacked)
    assert (rows.n_rows, rows.n_features) == (X.size // 2, 2)
    pixels = X.transpose(*[dim for dim in dims if dim != "band"], "band").values.reshape(-1, 2)
    np.testing.assert_array_equal(joined(rows), pixels)


def test_an_xarray_vector_becomes_a_column() -> None:
    X = xr.DataArray(np.arange(5.0), dims="time")
    with pytest.raises(DataError, match="Expected 2D array, got 1D array instead") as caught:
        as_rows(X)
    recipe = str(caught.value).splitlines()[-1].split()[-2:]
    assert as_rows(eval(" ".join(recipe).split("column with ")[-1], {"X": X})).n_features == 1


def test_an_xarray_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="X is an xarray Dataset, expected a DataArray"):
        as_rows(xr.Dataset({"a": ("x", np.ones(3))}))


# Column names


def test_feature_names() -> None:
    frame = pd.DataFrame(VALUES, columns=["a", "b", "c"])
    for X in (frame, pl.DataFrame(VALUES, schema=["a", "b", "c"]), dd.from_pandas(frame)):
        names = feature_names(X)
        assert names is not None
        assert names.dtype == object
        assert names.tolist() == ["a", "b", "c"]
    for X in (VALUES, VALUES.tolist(), pd.DataFrame(VALUES), uneven(VALUES), xr.DataArray(VALUES)):
        assert feature_names(X) is None
    with pytest.raises(TypeError, match="Feature names are only supported if all input features"):
        feature_names(pd.DataFrame(VALUES, columns=["a", 1, 2]))
