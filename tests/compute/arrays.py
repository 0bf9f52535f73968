"""Small arrays of every kind, for the tests of what rows are made of."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
import zarr

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.rows import Rows

dd = pytest.importorskip("dask.dataframe")

N, D = 20, 3
VALUES = np.random.default_rng(0).normal(size=(N, D))
WEIGHT = np.arange(N) + 0.5
LABELS = np.arange(N) % 4
RESP = np.random.default_rng(1).dirichlet(np.ones(4), size=N)


def write(path: Path | str, values: Array, chunks: tuple[int, ...], **options: Any) -> Any:
    """Write values to a Zarr array, storing every chunk."""
    array = zarr.create_array(
        str(path),
        shape=values.shape,
        chunks=chunks,
        dtype=values.dtype,
        config={"write_empty_chunks": True},
        **options,
    )
    array[...] = values
    return array


def in_kinds(values: Array, path: Path) -> Iterator[Any]:
    """The same values as NumPy, Dask and xarray hold them, and as Zarr does where it can."""
    yield values
    yield dask_array(values, chunks=2)
    yield xr.DataArray(dask_array(values, chunks=2))
    if values.dtype.kind not in "OMmSU" and values.ndim:
        yield write(path, values, tuple(max(1, size) for size in values.shape))


def dask_array(values: Any, chunks: Any = "auto", **options: Any) -> Any:
    return da.from_array(values, chunks, **options)


def unknown(array: Any) -> Any:
    """Forget the row chunk sizes of a Dask array."""
    chunks = (tuple(math.nan for _ in array.chunks[0]), *array.chunks[1:])
    return da.Array(array.dask, array.name, chunks, dtype=array.dtype)


def uneven(values: Array, *, columns: int = 2) -> Any:
    chunks: tuple[Any, ...] = ((3, 0, 5, 12),)
    return dask_array(values, chunks=(*chunks, columns) if values.ndim == 2 else chunks)


KINDS: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda path: VALUES,
    "fortran": lambda path: np.asfortranarray(VALUES),
    "list": lambda path: VALUES.tolist(),
    "pandas": lambda path: pd.DataFrame(VALUES, columns=["a", "b", "c"]),
    "polars": lambda path: pl.DataFrame(VALUES, schema=["a", "b", "c"]),
    "dask": lambda path: dask_array(VALUES, chunks=(6, D)),
    "dask uneven": lambda path: uneven(VALUES),
    "dask computed": lambda path: (dask_array(VALUES, chunks=(6, 2)) - 1.0) + 1.0,
    "dask unknown": lambda path: unknown(uneven(VALUES)),
    "dask persisted": lambda path: uneven(VALUES).persist(scheduler="sync"),
    "zarr v2": lambda path: write(path, VALUES, (4, 2), zarr_format=2),
    "zarr v3": lambda path: write(path, VALUES, (4, 2)),
    "zarr sharded": lambda path: write(path, VALUES, (2, 1), shards=(6, 3)),
    "path": lambda path: Path(write(path, VALUES, (4, 3)).store.root),
    "string": lambda path: str(write(path, VALUES, (4, 3)).store.root),
    "url": lambda path: f"file://{write(path, VALUES, (4, 3)).store.root}",
    "xarray": lambda path: xr.DataArray(VALUES, dims=("time", "band")),
    "xarray dask": lambda path: xr.DataArray(uneven(VALUES), dims=("time", "band")),
    "dask frame": lambda path: dd.from_pandas(pd.DataFrame(VALUES), npartitions=3),
}
IN_MEMORY = {"numpy", "fortran", "list", "pandas", "polars", "xarray"}
UNKNOWN = {"dask unknown", "dask frame"}


def read_all(rows: Rows) -> list[Block]:
    """Every block, in the calling thread."""
    return [rows.read(index) for index in range(rows.n_blocks)]


def joined(rows: Rows) -> Array:
    """All rows."""
    return np.concatenate([block.x for block in read_all(rows)])


def column(rows: Rows, name: str) -> Array:
    """All values of what goes with the rows: their weights, or a column by its name."""
    read = read_all(rows)
    return np.concatenate([block.weight if name == "weight" else block.columns[name] for block in read])
