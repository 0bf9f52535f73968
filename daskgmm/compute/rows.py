"""Any input as Rows: numbered blocks of rows, each with its weights and starting values."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
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
from daskgmm.compute.block import Block, assemble, differ
from daskgmm.compute.inputs import as_source, feature_names
from daskgmm.compute.sources import Chunks, Constant, InMemory, Source, Stored, row_bytes
from daskgmm.errors import DataError

__all__ = ["Block", "Rows", "as_rows", "feature_names"]


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Rows of any input in numbered blocks.

    The blocks depend on the shape, the dtype, the stored chunks and ``block_size`` alone. Nothing
    is read before a task of :meth:`task` is evaluated.

    Attributes
    ----------
    x : Source
        The rows.
    weight, start : Source or None
        What belongs to them, cut into the same blocks.
    omit_nan : bool
        Whether a row that holds NaN gets weight zero.
    """

    x: Source
    weight: Source | None
    start: Source | None
    omit_nan: bool

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.x.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values as stored."""
        return self.x.dtype

    @property
    def chunks(self) -> Chunks:
        """Rows per block, NaN where unknown."""
        return self.x.chunks

    @property
    def in_memory(self) -> bool:
        """Whether the rows are a NumPy array, or were made into one."""
        return isinstance(self.x, InMemory)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.chunks)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of the largest block as stored, with what goes with its rows; 0 where sizes are unknown."""
        most = max((n for n in self.chunks if not math.isnan(n)), default=0)
        return int(most) * sum(row_bytes(s) for s in (self.x, self.weight, self.start) if s is not None)

    @property
    def total_bytes(self) -> float:
        """Bytes of all rows as stored, with what goes with them; NaN where sizes are unknown."""
        sources = (s for s in (self.x, self.weight, self.start) if s is not None)
        return sum(self.chunks) * sum(row_bytes(s) for s in sources)

    @property
    def waits(self) -> bool:
        """Whether a task may wait for a store."""
        return any(s is not None and s.waits for s in (self.x, self.weight, self.start))

    @property
    def in_driver(self) -> list[str]:
        """Which of the sources are Zarr arrays in the memory of this process."""
        return [name for name, source in self._named.items() if isinstance(source, Stored) and source.in_driver]

    def check_unchanged(self) -> None:
        """Raise `DataError` where a Zarr array was resized or replaced since it was opened."""
        for name, source in self._named.items():
            source.check_unchanged(name)

    @property
    def _named(self) -> dict[str, Source]:
        """The sources, by what the user calls them."""
        named = {"X": self.x, "sample_weight": self.weight, "the start": self.start}
        return {name: source for name, source in named.items() if source is not None}

    @cached_property
    def n_rows(self) -> int | None:
        """Number of rows, None where chunk sizes are unknown."""
        n = sum(self.chunks)
        return None if math.isnan(n) else int(n)

    @property
    def lazy(self) -> bool:
        """Whether rows come out of a Dask graph."""
        return bool(self._arrays)

    @cached_property
    def key(self) -> str:
        """Where the graph holds the reader."""
        return f"daskgmm-rows-{uuid.uuid4().hex}"

    @property
    def reader(self) -> Callable[..., Block]:
        """Maps the number of a block and its parts to the block; what all tasks share, once in the graph."""
        return _Reader(
            readers=tuple(None if s is None else s.reader for s in self._sources),
            chunks=self.chunks,
            offsets=None if self.n_rows is None else self.x.offsets,
            n_features=self.n_features,
            omit_nan=self.omit_nan,
        )

    @cached_property
    def graph(self) -> Mapping[Any, Any]:
        """What the tasks refer to: the reader, and the optimised graph of Dask arrays."""
        arrays = optimize(*self._arrays)
        graph = ensure_dict(HighLevelGraph.merge(*(array.dask for array in arrays)))
        # Optimising drops chunks that lie on a cluster; tuple tasks need their keys to refer to.
        for array in self._arrays:
            keys = flatten(array.__dask_keys__())
            lost = [key for key in keys if key not in graph]
            graph |= {key: array.dask[key] for key in lost}
        return {**graph, self.key: self.reader}

    def task(self, index: int) -> tuple[Any, ...]:
        """Build the Dask task that evaluates to block ``index``; it may be nested in others."""
        return (partial(read_at, index), self.key, *self.parts(index))

    def parts(self, index: int) -> tuple[Any, ...]:
        """What the reader needs for block ``index`` beside its number: keys, or rows in this process."""
        parts = tuple(None if s is None else s.part(index) for s in self._sources)
        return () if all(part is None for part in parts) else parts

    def read(self, index: int) -> Block:
        """Evaluate that task in the calling thread (chunks persisted on a cluster stay there)."""
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
        graph = HighLevelGraph.from_collections(name, layer, dependencies=self._arrays)
        chunks = (self.chunks,) if columns is None else (self.chunks, (columns,))
        return da.Array(graph, name, chunks, dtype=np.dtype(dtype))

    @property
    def _arrays(self) -> list[Any]:
        """Dask arrays among the sources."""
        return [s.collection for s in self._sources if s is not None and s.collection is not None]

    @property
    def _sources(self) -> tuple[Source | None, Source | None, Source | None]:
        return self.x, self.weight, self.start


@dataclass(frozen=True)
class _Reader:
    """What every task of some rows needs to put its block together."""

    readers: tuple[Callable[[int, Any], Any] | None, ...]
    chunks: Chunks
    offsets: Chunks | None
    n_features: int
    omit_nan: bool

    def __call__(self, index: int, *parts: Any) -> Block:
        handed = parts or (None,) * len(self.readers)
        found = (None if r is None else r(index, part) for r, part in zip(self.readers, handed, strict=True))
        return assemble(
            *found,
            index=index,
            first_row=None if self.offsets is None else int(self.offsets[index]),
            shape=(self.chunks[index], self.n_features),
            omit_nan=self.omit_nan,
        )


def read_at(index: int, reader: Callable[..., Any], *parts: Any) -> Any:
    """Call a reader, which the graph holds under a key. The number is no argument: Dask would look it up, too."""
    return reader(index, *parts)


def _apply(function: Callable[[Block], Array], block: Block) -> Array:
    return function(block)


def as_rows(
    X: Any,
    sample_weight: Any = None,
    start: Any = None,
    *,
    block_size: int | str = "64 MiB",
    missing_chunks: str = "raise",
    nan_policy: str = "raise",
    name: str = "X",
    answer_bytes: int = 0,
) -> Rows:
    """Open any input as Rows, without reading chunked data.

    Parameters
    ----------
    X : array-like of shape (n, d)
        NumPy array, list, pandas, polars or Dask data frame, Dask array, ``zarr.Array``, path or
        URL of one, or two-dimensional ``xarray.DataArray``, of real numbers.
    sample_weight : number or array-like of shape (n,), optional
        Weights of any of these kinds, cut as X is. Where a number of rows is unknown, both must
        have the same number of blocks, and their lengths are compared when a block is read.
    start : array-like of shape (n,) or (n, k), optional
        Starting labels (integers) or responsibilities, likewise.
    block_size : int or str
        Bytes of X, of what goes with its rows and of the answers, each, per block, at most; a stored chunk is
        never split. Dask arrays keep their
        own row chunks.
    missing_chunks : {"raise", "fill"}
        What to do where a Zarr chunk is not in the store, or not in its shard.
    nan_policy : {"raise", "omit"}
        "omit" gives weight zero to each row that holds NaN; "raise" leaves the row as it is, for
        the caller to refuse.
    name : str
        What to call X in messages.
    answer_bytes : int
        Bytes that a query will answer for each row.

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
    x = as_source(X, name=name, fill_missing=fill, ensure_2d=True)
    weight = None if sample_weight is None else _weights(sample_weight, x, name, fill)
    given = None if start is None else _starts(start, x, name, fill)
    # Whatever goes with a row fits the block too: weights, starts and answers may be wider than the row.
    widest = max([answer_bytes, *(row_bytes(source) for source in (x, weight, given) if source is not None)])
    x = x.cut(x.plan(block_bytes * row_bytes(x) // widest))
    return Rows(
        x=x,
        weight=None if weight is None else _aligned(weight, x, "sample_weight", name),
        start=None if given is None else _aligned(given, x, _title(given), name),
        omit_nan=nan_policy == "omit",
    )


def _weights(value: Any, x: Source, name: str, fill: bool) -> Source:
    """Open weights and cut them as ``x`` is."""
    n = x.shape[0]
    if isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return Constant(np.asarray(value), x.chunks)
    source = as_source(value, name="sample_weight", fill_missing=fill, ensure_2d=False)
    if len(source.shape) != 1:
        raise DataError(
            f"Sample weights must be 1D array or scalar, got {len(source.shape)}D array. Expected "
            f"either a scalar value or a 1D array of length {n}."
        )
    if differ(source.shape[0], n):
        raise DataError(f"sample_weight.shape == {source.shape}, expected {(n,)}!")
    return source


def _starts(value: Any, x: Source, name: str, fill: bool) -> Source:
    """Open starting labels or responsibilities and cut them as ``x`` is."""
    source = as_source(value, name="start", fill_missing=fill, ensure_2d=False)
    if len(source.shape) not in (1, 2):
        raise DataError(
            "Starting labels must be a 1D array and starting responsibilities a 2D array, got "
            f"{len(source.shape)}D array."
        )
    title = _title(source)
    n = x.shape[0]
    if differ(source.shape[0], n):
        raise DataError(f"{title}.shape == {source.shape}, expected {(n, *source.shape[1:])}!")
    if title == "labels_init" and source.dtype.kind not in "biu":
        raise DataError(f"labels_init must be integers, got dtype {source.dtype}.")
    return source


def _title(start: Source) -> str:
    """What the user calls a start of this shape."""
    return "labels_init" if len(start.shape) == 1 else "responsibilities_init"


def _aligned(source: Source, x: Source, title: str, name: str) -> Source:
    """Cut a source as ``x`` is, or pair their blocks where a size is unknown."""
    if not math.isnan(source.shape[0] + x.shape[0]):
        return source.cut(x.chunks)
    if len(source.chunks) != len(x.chunks):
        raise DataError(
            f"{title} has {len(source.chunks)} block(s) and {name} has {len(x.chunks)}, and not "
            "all their sizes are known. Give both the same chunks, or call compute_chunk_sizes() "
            "on those that are unknown."
        )
    return source


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
