"""Small arrays of every kind, for the tests of what rows are made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr

from daskgmm._typing import Array
from daskgmm.compute.rows import Block, Rows

N, D = 20, 3
VALUES = np.random.default_rng(0).normal(size=(N, D))

WEIGHT = np.arange(N) + 0.5


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


def dask_array(values: Any, chunks: Any = "auto", **options: Any) -> Any:
    return da.from_array(values, chunks, **options)  # type: ignore[no-untyped-call]


def unknown(array: Any) -> Any:
    """Forget the row chunk sizes of a Dask array."""
    chunks = (tuple(math.nan for _ in array.chunks[0]), *array.chunks[1:])
    return da.Array(array.dask, array.name, chunks, dtype=array.dtype)  # type: ignore[no-untyped-call]


def uneven(values: Array, *, columns: int = 2) -> Any:
    chunks: tuple[Any, ...] = ((3, 0, 5, 12),)
    return dask_array(values, chunks=(*chunks, columns) if values.ndim == 2 else chunks)


def blocks(rows: Rows) -> list[Block]:
    return [rows.read(index) for index in range(rows.n_blocks)]


def joined(rows: Rows) -> Array:
    return np.concatenate([block.x for block in blocks(rows)])


LABELS = np.arange(N) % 4

RESP = np.random.default_rng(1).dirichlet(np.ones(4), size=N)
