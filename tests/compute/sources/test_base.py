"""What holds for inputs of every kind: what cannot be used is refused before it is read, names are told."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources.base import even_chunks
from daskgmm.compute.sources.labels import feature_names
from tests.compute.arrays import VALUES, dask_array, in_kinds, uneven, write

dd = pytest.importorskip("dask.dataframe")


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
    for X in (cube, dask_array(cube), write(tmp_path / "x.zarr", cube, (2, 3, 4))):
        with pytest.raises(ValueError, match=r"Found array with dim 3, while dim <= 2 is required"):
            as_rows(X)


def test_objects_and_sparse_arrays_in_memory_are_scikit_learns_to_refuse() -> None:
    with pytest.raises(ValueError, match="could not convert string to float"):
        as_rows(np.array([["a", 1.0], ["b", 2.0]], dtype=object))
    with pytest.raises(TypeError, match="Sparse data was passed"):
        as_rows(pytest.importorskip("scipy.sparse").csr_array(np.eye(3)))


@given(n=st.integers(0, 1000), rows=st.integers(-1, 100))
def test_even_chunks(n: int, rows: int) -> None:
    chunks = even_chunks(n, rows)
    assert sum(chunks) == n
    assert all(chunks)
    assert len(chunks) == -(-n // max(rows, 1))


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
