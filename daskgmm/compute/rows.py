"""Any input as Rows: numbered blocks of rows, each with what goes with them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import dask.array as da
import numpy as np
from dask.base import optimize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.utils import ensure_dict, parse_bytes
from numpy.typing import DTypeLike

from daskgmm._typing import Array
from daskgmm.compute.block import Block, check_shape
from daskgmm.compute.columns import COLUMNS
from daskgmm.compute.shelf import Shelf
from daskgmm.compute.sources import as_source
from daskgmm.compute.sources.base import Asked, Chunks, Source, read_at

__all__ = ["Block", "Rows", "as_rows"]


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Rows of any input in numbered blocks.

    The blocks depend on the shape, the dtype, the stored chunks and ``block_size`` alone. Nothing
    is read before a task of :meth:`task` is evaluated.

    Attributes
    ----------
    x : Source
        The rows.
    columns : mapping of Source
        What goes with them, by the names in `COLUMNS`, cut into the same blocks.
    omit_nan : bool
        Whether a row that holds NaN gets weight zero.
    shelf : Shelf or None
        Where blocks stay between passes, in this process.
    """

    x: Source
    columns: Mapping[str, Source] = field(default_factory=dict)
    omit_nan: bool = False
    shelf: Shelf | None = None

    @cached_property
    def sources(self) -> dict[str, Source]:
        """All sources, by what the user calls them."""
        return {"X": self.x, **{COLUMNS[name].title: source for name, source in self.columns.items()}}

    @property
    def n_features(self) -> int:
        """Number of columns of the rows."""
        return int(self.x.shape[1])

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.x.chunks)

    @cached_property
    def n_rows(self) -> int | None:
        """Number of rows, None where chunk sizes are unknown."""
        n = sum(self.x.chunks)
        return None if math.isnan(n) else int(n)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row as stored, with what goes with it."""
        return sum(source.row_bytes for source in self.sources.values())

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of the largest block as stored; 0 where sizes are unknown."""
        return int(max((n for n in self.x.chunks if not math.isnan(n)), default=0)) * self.row_bytes

    @property
    def total_bytes(self) -> float:
        """Bytes of all rows as stored; NaN where sizes are unknown."""
        return sum(self.x.chunks) * self.row_bytes

    @property
    def waits(self) -> bool:
        """Whether a task may wait for a store."""
        return not self._on_shelf and any(source.waits for source in self.sources.values())

    @property
    def held(self) -> bool:
        """Whether nothing has to be read: not promised of any rows."""
        return False

    @property
    def lazy(self) -> bool:
        """Whether rows come out of a Dask graph."""
        return bool(self._collections)

    @property
    def weighted(self) -> bool:
        """Whether the user gave weights."""
        return "weight" in self.columns

    def lasting(self) -> Rows:
        """Without the columns that only the first pass looks at."""
        columns = {name: source for name, source in self.columns.items() if not COLUMNS[name].once}
        return replace(self, columns=columns)

    def cut(self, chunks: Chunks) -> Rows:
        """The same rows in other blocks."""
        columns = {name: source.cut(chunks) for name, source in self.columns.items()}
        return replace(self, x=self.x.cut(chunks), columns=columns)

    def check_unchanged(self) -> None:
        """Raise `DataError` where a Zarr array was resized or replaced since it was opened."""
        for title, source in self.sources.items():
            source.check_unchanged(title)

    def layout(self) -> dict[str, Any]:
        """Shapes, types and block plan, as JSON: where they are alike, equal blocks hold the same rows."""
        plan: list[list[int | None]] = []
        for size in self.x.chunks:
            known = None if size != size else int(size)
            if plan and plan[-1][0] == known:
                plan[-1][1] += 1  # type: ignore[operator]
            else:
                plan.append([known, 1])
        told: dict[str, Any] = {}
        for title in ("X", *(column.title for column in COLUMNS.values())):
            source = self.sources.get(title)
            told[f"{title}'s columns"] = None if source is None else list(source.shape[1:])
            told[f"{title}'s dtype"] = None if source is None else source.dtype.str
        return {**told, "rows": self.n_rows, "blocks [rows, how many]": plan, "omit_nan": self.omit_nan}

    @cached_property
    def key(self) -> str:
        """Where the graph holds the reader."""
        return f"daskgmm-rows-{uuid.uuid4().hex}"

    @property
    def reader(self) -> Callable[..., Block]:
        """Maps the number of a block and its parts to the block; what all tasks share, once in the graph."""
        return _Reader(
            readers=(self.x.reader, *(source.reader for source in self.columns.values())),
            names=tuple(self.columns),
            chunks=self.x.chunks,
            offsets=None if self.n_rows is None else self.x.offsets,
            n_features=self.n_features,
            omit_nan=self.omit_nan,
            shelf=self.shelf,
        )

    @cached_property
    def graph(self) -> Mapping[Any, Any]:
        """What the tasks refer to: the reader, and the optimised graph of Dask arrays."""
        arrays = optimize(*self._collections)
        graph = ensure_dict(HighLevelGraph.merge(*(array.dask for array in arrays)))
        # Optimising drops chunks that lie on a cluster; tuple tasks need their keys to refer to.
        for array in self._collections:
            keys = flatten(array.__dask_keys__())
            lost = [key for key in keys if key not in graph]
            graph |= {key: array.dask[key] for key in lost}
        return {**graph, self.key: self.reader}

    def task(self, index: int) -> tuple[Any, ...]:
        """Build the Dask task that evaluates to block ``index``; it may be nested in others."""
        return (partial(read_at, index), self.key, *self.parts(index))

    def parts(self, index: int) -> tuple[Any, ...]:
        """What the reader needs for block ``index`` beside its number: keys, or rows in this process."""
        if self.shelf is not None and index in self.shelf.blocks:
            return ()
        parts = (self.x.part(index), *(source.part(index) for source in self.columns.values()))
        return () if all(part is None for part in parts) else parts

    def read(self, index: int) -> Block:
        """Evaluate that task in the calling thread (chunks persisted on a cluster stay there)."""
        if not self.lazy:
            return self.reader(index, *self.parts(index))
        key = f"block-{uuid.uuid4().hex}"
        block: Block = get_sync({**self.graph, key: self.task(index)}, key)
        return block

    def map(self, function: Callable[[Block], Array], *, dtype: DTypeLike, columns: int | None = None) -> da.Array:
        """Map a function over the blocks, lazily.

        Parameters
        ----------
        function : callable
            Maps a Block of n rows to an array of shape (n,), or (n, columns). The graph holds
            it once, however many blocks there are.
        dtype : dtype
            Type of the function's values.
        columns : int, optional
            Number of columns the function returns; without it, the function returns one value
            per row.

        Returns
        -------
        dask.array.Array
            Of shape (n_rows,) or (n_rows, columns), with one chunk per block.
        """
        # A fresh name each time: the content of a store may change under an unchanged address.
        name = f"daskgmm-{uuid.uuid4().hex}"
        embedded = f"function-{name}"
        column = () if columns is None else (0,)
        layer: dict[Any, Any] = {embedded: function, self.key: self.reader}
        for index in range(self.n_blocks):
            layer[(name, index, *column)] = (_apply, embedded, self.task(index))
        graph = HighLevelGraph.from_collections(name, layer, dependencies=self._collections)
        chunks = (self.x.chunks,) if columns is None else (self.x.chunks, (columns,))
        return da.Array(graph, name, chunks, dtype=np.dtype(dtype))

    @property
    def _on_shelf(self) -> bool:
        """Whether every block stays in this process."""
        return self.shelf is not None and len(self.shelf.blocks) == self.n_blocks

    @property
    def _collections(self) -> list[da.Array]:
        """Dask arrays that tasks refer to."""
        if self._on_shelf:
            return []
        return [source.collection for source in self.sources.values() if source.collection is not None]


@dataclass(frozen=True)
class _Reader:
    """What every task of some rows needs to put its block together."""

    readers: tuple[Callable[[int, Any], Any], ...]
    names: tuple[str, ...]
    chunks: Chunks
    offsets: Chunks | None
    n_features: int
    omit_nan: bool
    shelf: Shelf | None

    def __call__(self, index: int, *parts: Any) -> Block:
        if self.shelf is None:
            return self._read(index, parts)
        block = self.shelf.blocks.get(index)
        if block is None:
            block = self._read(index, parts)
            lasting = {name: values for name, values in block.columns.items() if not COLUMNS[name].once}
            self.shelf.put(replace(block, columns=lasting))
        return block

    def _read(self, index: int, parts: tuple[Any, ...]) -> Block:
        handed = parts or (None,) * len(self.readers)
        x, *found = (reader(index, part) for reader, part in zip(self.readers, handed, strict=True))
        block = Block(np.asarray(x), index, None if self.offsets is None else int(self.offsets[index]))
        check_shape(block, (self.chunks[index], self.n_features))
        columns = {
            name: COLUMNS[name].values(values, block) for name, values in zip(self.names, found, strict=True)
        }
        block = replace(block, columns=columns)
        return block.without_nan() if self.omit_nan else block


def _apply(function: Callable[[Block], Array], block: Block) -> Array:
    return function(block)


def as_rows(
    X: Any,
    *,
    block_size: int | str = "64 MiB",
    missing_chunks: str = "raise",
    nan_policy: str = "raise",
    name: str = "X",
    answer_bytes: int = 0,
    **columns: Any,
) -> Rows:
    """Open any input as Rows, without reading chunked data.

    Parameters
    ----------
    X : array-like of shape (n, d)
        NumPy array, list, pandas, polars or Dask data frame, Dask array, ``zarr.Array``, path or
        URL of one, or two-dimensional ``xarray.DataArray``, of real numbers.
    block_size : int or str
        Bytes of X, of what goes with its rows and of the answers, each, per block, at most; a stored chunk is
        never split. Dask arrays keep their own row chunks.
    missing_chunks : {"raise", "fill"}
        What to do where a Zarr chunk is not in the store, or not in its shard.
    nan_policy : {"raise", "omit"}
        "omit" gives weight zero to each row that holds NaN; "raise" leaves the row as it is, for
        the caller to refuse.
    name : str
        What to call X in messages.
    answer_bytes : int
        Bytes that a query will answer for each row.
    **columns : array-likes of n rows, or None
        What goes with the rows, by the names in `COLUMNS`, of any of these kinds, cut as X is. Where a number of
        rows is unknown, both must have the same number of blocks, and their lengths are compared when a block is
        read.

    Raises
    ------
    DataError, ValueError, TypeError
        Where an input cannot be used: shape, dtype, or number of rows. Values are checked when a
        block is read.
    FileNotFoundError
        Where a path leads to no Zarr array.
    """
    block_bytes = _positive_bytes(block_size)
    _check_option("missing_chunks", missing_chunks, ("raise", "fill"))
    _check_option("nan_policy", nan_policy, ("raise", "omit"))
    fill = missing_chunks == "fill"
    x = as_source(X, Asked(name, fill, ensure_2d=True))
    given = {key: value for key, value in columns.items() if value is not None}
    opened = {key: COLUMNS[key].open(value, x, name, fill) for key, value in given.items()}
    # Whatever goes with a row fits the block too: weights, starts and answers may be wider than the row.
    widest = max(answer_bytes, *(source.row_bytes for source in (x, *opened.values())))
    x = x.cut(x.plan(block_bytes * x.row_bytes // widest))
    aligned = {key: COLUMNS[key].aligned(source, x, name) for key, source in opened.items()}
    return Rows(x, aligned, omit_nan=nan_policy == "omit")


def _positive_bytes(block_size: int | str) -> int:
    try:
        size = int(parse_bytes(block_size))
    except (AttributeError, TypeError, ValueError):
        size = 0
    if size < 1:
        raise ValueError(
            f"block_size must be a number of bytes, at least 1, or a string such as '64 MiB'; got {block_size!r}."
        )
    return size


def _check_option(title: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{title} must be one of {options}, got {value!r}.")
