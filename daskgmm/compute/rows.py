"""Any input as Rows: numbered blocks of rows, each with what goes with them."""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from numbers import Integral
from time import perf_counter
from typing import Any, ClassVar

import dask.array as da
import numpy as np
from dask.base import optimize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.utils import ensure_dict, parse_bytes
from numpy.typing import DTypeLike

from daskgmm._typing import Array
from daskgmm.compute.block import Block, Shelf
from daskgmm.compute.columns import COLUMNS, Weights
from daskgmm.compute.cost import Cost
from daskgmm.compute.sources import as_source, xarray
from daskgmm.compute.sources.base import DENSIFY, Asked, Chunks, Source, read_at
from daskgmm.compute.sources.labels import beside, check_part, distinct, feature_names
from daskgmm.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Rows of any input in numbered blocks.

    The blocks depend on the shape, the dtype, the stored chunks and ``block_size`` alone. Nothing
    is read before a task of :meth:`task` is evaluated.
    """

    x: Source
    columns: Mapping[str, Source] = field(default_factory=dict)  # what goes with the rows, cut alike
    omit_nan: bool = False  # whether a row that holds NaN gets weight zero
    missing_nan: bool = False  # whether NaN stands for a missing value
    shelf: Shelf | None = None  # where blocks stay between passes, in this process
    feature_names: Array | None = None  # of str objects
    table: xarray.Table | None = None  # what xarray holds of them

    sources: dict[str, Source] = field(init=False)  # all of them, by what the user calls them
    n_features: int = field(init=False)
    n_blocks: int = field(init=False)
    n_rows: int | None = field(init=False)  # None where chunk sizes are unknown
    row_bytes: int = field(init=False)  # of one row as stored, with what goes with it
    block_bytes: int = field(init=False)  # of the largest block as stored; 0 where sizes are unknown
    mean_bytes: float = field(init=False)  # of X in a block, on average; NaN where sizes are unknown
    total_bytes: float = field(init=False)  # of all rows as stored; NaN where sizes are unknown
    key: str = field(init=False)  # where the graph holds the reader
    held: ClassVar[bool] = False

    def __post_init__(self) -> None:
        titles = {COLUMNS[name].title: source for name, source in self.columns.items()}
        sources, chunks = {"X": self.x, **titles}, self.x.chunks
        row_bytes, n = sum(source.row_bytes for source in sources.values()), sum(chunks)
        largest = max((size for size in chunks if not math.isnan(size)), default=0)
        vars(self).update(
            sources=sources,
            n_features=int(self.x.shape[1]),
            n_blocks=len(chunks),
            n_rows=None if math.isnan(n) else int(n),
            row_bytes=row_bytes,
            block_bytes=int(largest) * row_bytes,
            mean_bytes=n / max(1, len(chunks)) * self.x.row_bytes,
            total_bytes=n * row_bytes,
            key=f"daskgmm-rows-{uuid.uuid4().hex}",
        )

    @property
    def waits(self) -> bool:
        """Whether a task may wait for a store."""
        kept = self.shelf is not None and len(self.shelf.blocks) == self.n_blocks
        return not kept and any(source.waits for source in self.sources.values())

    @property
    def lazy(self) -> list[Any]:
        """Dask arrays whose graphs tasks refer to."""
        if self.shelf is not None and len(self.shelf.blocks) == self.n_blocks:
            return []
        return [source.collection for source in self.sources.values() if source.collection is not None]

    @property
    def beside(self) -> tuple[str, ...]:
        """What goes with the rows in every pass, by what the user calls it."""
        return tuple(COLUMNS[name].title for name in self.columns if not COLUMNS[name].once)

    def lasting(self) -> "Rows":
        """Without the columns that only the first pass looks at."""
        columns = {name: source for name, source in self.columns.items() if not COLUMNS[name].once}
        return replace(self, columns=columns)

    def cut(self, chunks: Chunks) -> "Rows":
        """The same rows in other blocks."""
        columns = {name: source.cut(chunks) for name, source in self.columns.items()}
        return replace(self, x=self.x.cut(chunks), columns=columns)

    def check_unchanged(self) -> None:
        """Raise `DataError` where a Zarr array was resized or replaced since it was opened."""
        for title, source in self.sources.items():
            if source.waits:
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
            decoded = f" {source.decoded}" if source is not None and source.decoded else ""
            told[f"{title}'s dtype"] = None if source is None else source.dtype.str + decoded
        if self.feature_names is not None:
            told["X's features"] = list(self.feature_names)
        nan = "missing" if self.missing_nan else self.omit_nan
        return {**told, "rows": self.n_rows, "blocks [rows, how many]": plan, "omit_nan": nan}

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
            missing_nan=self.missing_nan,
            shelf=self.shelf,
            decoded=self.x.decoded,
            read_bytes=sum(source.read_bytes for source in self.sources.values()),
            kept=self.x.kept,
        )

    @property
    def graph(self) -> Mapping[Any, Any]:
        """What the tasks refer to: the reader, and the optimised graph of Dask arrays."""
        return {**(self._optimised if self.lazy else {}), self.key: self.reader}

    @cached_property
    def _optimised(self) -> Mapping[Any, Any]:
        arrays = optimize(*self.lazy)
        graph = ensure_dict(HighLevelGraph.merge(*(array.dask for array in arrays)))
        # Optimising drops chunks that lie on a cluster; tuple tasks need their keys to refer to.
        for array in self.lazy:
            lost = [key for key in flatten(array.__dask_keys__()) if key not in graph]
            graph |= {key: array.dask[key] for key in lost}
        return graph

    def task(self, index: int) -> tuple[Any, ...]:
        """Build the Dask task that evaluates to block ``index``; it may be nested in others."""
        return (partial(read_at, index), self.key, *self.parts(index))

    def parts(self, index: int) -> tuple[Any, ...]:
        """What the reader needs for block ``index`` beside its number: keys, or rows in this process."""
        if self.shelf is not None and index in self.shelf.blocks:
            return ()
        sources = (self.x, *self.columns.values())
        if all(source.part is None for source in sources):
            return ()
        return tuple(None if source.part is None else source.part(index) for source in sources)

    def read(self, index: int) -> Block:
        """Evaluate that task in the calling thread (chunks persisted on a cluster stay there)."""
        if not self.lazy:
            return self.reader(index, *self.parts(index))
        key = f"block-{uuid.uuid4().hex}"
        block: Block = get_sync({**self.graph, key: self.task(index)}, key)
        return block

    def map(self, function: Callable[[Block], Array], *, dtype: DTypeLike, columns: int | None = None) -> da.Array:
        """Map a function over the blocks, lazily: an array (n_rows,), or (n_rows, columns), with a chunk for each.

        The function maps a Block of n rows to an array (n,), or (n, columns). The graph holds it once.
        """
        # A fresh name each time: the content of a store may change under an unchanged address.
        name = f"daskgmm-{uuid.uuid4().hex}"
        embedded = f"function-{name}"
        column = () if columns is None else (0,)
        layer: dict[Any, Any] = {embedded: function, self.key: self.reader}
        for index in range(self.n_blocks):
            layer[(name, index, *column)] = (_apply, embedded, self.task(index))
        graph = HighLevelGraph.from_collections(name, layer, dependencies=self.lazy)
        chunks = (self.x.chunks,) if columns is None else (self.x.chunks, (columns,))
        return da.Array(graph, name, chunks, dtype=np.dtype(dtype))


@dataclass(frozen=True)
class _Reader:
    """What every task of some rows needs to put its block together."""

    readers: tuple[Callable[[int, Any], Any], ...]
    names: tuple[str, ...]
    chunks: Chunks
    offsets: Chunks | None
    n_features: int
    omit_nan: bool
    missing_nan: bool
    shelf: Shelf | None
    decoded: str
    read_bytes: float  # of a row
    kept: bool  # whether it is in memory since an earlier pass

    def __call__(self, index: int, *parts: Any) -> Block:
        if self.shelf is not None and (kept := self.shelf.blocks.get(index)) is not None:
            return kept
        began = perf_counter()
        handed = parts or (None,) * len(self.readers)
        for name, part in zip(self.names, parts[1:], strict=False):
            check_part(parts[0], part, COLUMNS[name].title, index)
        x, *found = (reader(index, part) for reader, part in zip(self.readers, handed, strict=True))
        block = Block(np.asarray(x), index, None if self.offsets is None else int(self.offsets[index]))
        # A Dask array only promises its shape and chunks.
        n = self.chunks[index]
        if block.x.shape != (len(block.x) if math.isnan(n) else n, self.n_features):
            raise _unfit(block, (n, self.n_features))
        columns = {
            name: COLUMNS[name].values(values, block) for name, values in zip(self.names, found, strict=True)
        }
        block = replace(block, weight=columns.pop("weight", None), columns=columns, decoded=self.decoded)
        for name in columns:
            block = COLUMNS[name].settled(block, self.omit_nan, self.missing_nan)
        if self.omit_nan:
            block = block.without_nan()
        elif block.weight is not None:
            Weights.refuse_nan(block, block.weight)
        if self.missing_nan:
            block = block.with_gaps()
        if self.shelf is not None:
            lasting = {name: values for name, values in columns.items() if not COLUMNS[name].once}
            self.shelf.put(replace(block, columns=lasting))
        seen, read = block.nbytes, self.read_bytes * len(block.x)
        return replace(block, cost=Cost(seen, read, seen if self.kept else 0, perf_counter() - began))


def _unfit(block: Block, expected: tuple[float, int]) -> DataError:
    """What to raise for a block of another shape than was promised, or of another kind."""
    if block.x.ndim == 0 and not isinstance(held := block.x.item(), (int, float)):
        return DataError(
            f"Block {block.index} is of type {type(held).__module__}.{type(held).__qualname__}, expected a NumPy "
            f"array. {DENSIFY}"
        )
    return DataError(f"Block {block.index} has shape {block.x.shape}, expected {expected}.")


def _apply(function: Callable[[Block], Array], block: Block) -> Array:
    return function(block)


def bytes_of(size: Any) -> int:
    """Bytes, told as an integer of any kind or in words, such as "64 MiB"."""
    return int(size) if isinstance(size, Integral) else int(parse_bytes(size))


def as_rows(
    X: Any,
    *,
    block_size: int | str = "64 MiB",
    missing_chunks: str = "raise",
    nan_policy: str = "raise",
    variables: Sequence[str] | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    decode_cf: bool = True,
    feature_dim: str | None = None,
    features: tuple[str, ...] | int | None = None,
    few_rows: bool = False,
    name: str = "X",
    answer_bytes: int = 0,
    **columns: Any,
) -> Rows:
    """Open any input as Rows, without reading chunked data.

    ``X`` (n, d), called ``name`` in messages, is of any kind that the estimators document, and so are the
    ``columns``: what goes with the rows, by the names in `COLUMNS`, cut as X is. Where a number of rows is
    unknown, both must have as many blocks, and their lengths are compared when a block is read. Values are
    checked then, too. ``block_size`` limits the bytes of X, of each column and of the answers (``answer_bytes`` a
    row) in a block; a stored chunk is never split, and Dask arrays keep their own. ``nan_policy="omit"`` gives
    weight zero to each row that holds NaN, and "missing"
    to each that has no value. ``variables`` are the arrays of a group that are the features, and
    ``storage_options`` are for the file systems behind URLs. With ``decode_cf``, an array whose attributes say
    what its numbers stand for is decoded, as `cf.decoded` tells. An input whose shape, dtype or number of rows
    cannot be used is a DataError, ValueError or TypeError, a path that leads to nothing a FileNotFoundError.
    """
    try:
        block_bytes = bytes_of(block_size)
    except (AttributeError, TypeError, ValueError):
        block_bytes = 0
    if block_bytes < 1:
        raise ValueError(
            f"block_size must be a number of bytes, at least 1, or a string such as '64 MiB'; got {block_size!r}."
        )
    options = {"missing_chunks": (missing_chunks, ["fill"]), "nan_policy": (nan_policy, ["omit", "missing"])}
    for title, (value, others) in options.items():
        if value not in ("raise", *others):
            raise ValueError(f"{title} must be 'raise' or {' or '.join(map(repr, others))}, got {value!r}.")
    chosen = None if variables is None else (variables,) if isinstance(variables, str) else tuple(variables)
    how = (storage_options, decode_cf, feature_dim, features, few_rows)
    asked = Asked(name, missing_chunks == "fill", True, chosen, *how)
    given = {key: value for key, value in columns.items() if value is not None}
    if (table := xarray.table(X, asked) if hasattr(X, "isel") else None) is None:
        x, labelled = as_source(X, asked), X
        names = feature_names(X) if x.names is None else np.array(x.names, dtype=object)
    else:
        x, labelled = replace(as_source(table.stacked(), asked), decoded=table.decoded), table.rows
        names = table.names
        given = {key: table.beside(value, COLUMNS[key].title) for key, value in given.items()}
    given = {key: beside(value, COLUMNS[key].title, labelled, name) for key, value in given.items()}
    opened = {key: COLUMNS[key].open(value, x, asked) for key, value in given.items()}
    if chosen is not None and names is None and not hasattr(X, "data_vars"):  # a Dataset has chosen by them
        if len(chosen) != (d := x.shape[1]):
            raise DataError(f"{name} has no names: variables names {len(chosen)} features, and it has {d}.")
        names = np.array(distinct(chosen, "variables"), dtype=object)
    # Whatever goes with a row fits the block too: weights, starts and answers may be wider than the row.
    widest = max(answer_bytes, *(source.row_bytes for source in (x, *opened.values())))
    x = x.cut(x.plan(block_bytes * x.row_bytes // widest))
    aligned = {key: COLUMNS[key].aligned(source, x, name) for key, source in opened.items()}
    return Rows(x, aligned, nan_policy == "omit", nan_policy == "missing", feature_names=names, table=table)
