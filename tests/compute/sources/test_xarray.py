"""xarray: a two-dimensional DataArray will do; of others a recipe says how to make them so."""

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from daskgmm.compute.rows import as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, joined, write


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("sample", "x", "band")])
def test_the_recipe_works(dims: tuple[str, ...]) -> None:
    sizes = {"band": 2, "y": 4, "x": 3, "sample": 5}
    shape = [sizes[dim] for dim in dims]
    X = xr.DataArray(np.arange(math.prod(shape), dtype=float).reshape(shape), dims=dims)
    with pytest.raises(DataError, match="Expected 2D array, got 3D array instead") as caught:
        as_rows(X)
    recipe = str(caught.value).splitlines()[-1].strip()
    assert ".stack(" in recipe
    rows = as_rows(eval(recipe, {"X": X}))
    assert (rows.n_rows, rows.n_features) == (X.size // 2, 2)
    pixels = X.transpose(*[dim for dim in dims if dim != "band"], "band").values.reshape(-1, 2)
    np.testing.assert_array_equal(joined(rows), pixels)


def test_a_vector_becomes_a_column() -> None:
    X = xr.DataArray(np.arange(5.0), dims="time")
    with pytest.raises(DataError, match="Expected 2D array, got 1D array instead") as caught:
        as_rows(X)
    recipe = str(caught.value).partition("column with ")[2]
    assert as_rows(eval(recipe, {"X": X})).n_features == 1


def test_a_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="X is an xarray Dataset, expected a DataArray"):
        as_rows(xr.Dataset({"a": ("x", np.ones(3))}))


def test_a_file_opened_without_chunks_stays_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", VALUES, (4, 3), dimension_names=("time", "band"))
    # One array of a group, as xarray reads it.
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    (tmp_path / "x.zarr").rename(tmp_path / "group.zarr" / "x")
    lazy = xr.open_dataset(tmp_path / "group.zarr", engine="zarr", consolidated=False)["x"]
    rows = as_rows(lazy)
    assert not rows.x.local
    np.testing.assert_array_equal(joined(rows), VALUES)
