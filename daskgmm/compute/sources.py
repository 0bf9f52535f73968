"""Arrays that can be cut into runs of rows: in memory, in a Zarr store, or in a Dask graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate, product
from socket import gethostname
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import dask.array as da
import numpy as np
import zarr
from zarr.codecs import ShardingCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import NodeNotFoundError
from zarr.storage import MemoryStore, StorePath

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.errors import DataError

Chunks: TypeAlias = tuple[float, ...]
"""Rows per chunk: integers, or NaN where a Dask array does not know them."""

T = TypeVar("T")

RETRIES = (0.1, 0.5, 2.0)  # seconds before each new try to read a block
_SMALL = 2**20  # bytes: below this, handling a block costs more than computing on it


class Source(Protocol):
    """An array cut into runs of rows, each of which one Dask task produces."""

    @property
    def shape(self) -> tuple[float, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def chunks(self) -> Chunks: ...

    @property
    def offsets(self) -> Chunks:
        """Number of the first row of each chunk; NaN from the first unknown size on."""

    @property
    def collection(self) -> da.Array | None:
        """The Dask array whose graph the parts refer to, if any."""

    @property
    def waits(self) -> bool:
        """Whether our own tasks read its parts from a store, and wait for them."""

    def plan(self, block_bytes: int) -> Chunks:
        """Chunks that suit the way the array is held; they depend on its layout alone."""

    def check_unchanged(self, title: str) -> None:
        """Raise `DataError` where the array is another than when it was opened."""

    def cut(self, chunks: Chunks) -> Source:
        """Cut the same rows elsewhere."""

    def part(self, index: int) -> Any:
        """What the graph hands to a task for chunk ``index``: a key, or rows; None where `reader` needs none."""

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        """Maps the number of a chunk and its part to the chunk; all tasks share it."""


class _Cut:
    """What every source can say from its chunks."""

    chunks: Chunks
    collection: da.Array | None = None
    waits: ClassVar[bool] = False

    def check_unchanged(self, title: str) -> None:
        """Nothing to look at."""

    @cached_property
    def offsets(self) -> Chunks:
        return (0, *accumulate(self.chunks))[: len(self.chunks)]

    def bounds(self, index: int) -> slice:
        first = int(self.offsets[index])
        return slice(first, first + int(self.chunks[index]))


@dataclass(frozen=True, eq=False, repr=False)
class InMemory(_Cut):
    """A NumPy array. A part is a view, so that a pickled task carries its own rows only."""

    array: Array
    chunks: Chunks

    @property
    def shape(self) -> tuple[float, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def plan(self, block_bytes: int) -> Chunks:
        n = len(self.array)
        size = row_bytes(self)
        # 64 blocks keep the threads busy to the end of a pass; fewer are of equal length, for threads to share.
        rows = min(max(math.ceil(n / 64), _SMALL // size), block_bytes // size)
        blocks = math.ceil(n / max(rows, 1))
        return even_chunks(n, math.ceil(n / max(blocks, 1)))

    def cut(self, chunks: Chunks) -> InMemory:
        return replace(self, chunks=chunks)

    def part(self, index: int) -> Array:
        return self.array[self.bounds(index)]

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return _joined


@dataclass(frozen=True, eq=False, repr=False)
class Constant(_Cut):
    """One number for every row; a part is that number."""

    value: Array  # of shape ()
    chunks: Chunks

    @property
    def shape(self) -> tuple[float, ...]:
        return (sum(self.chunks),)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    def plan(self, block_bytes: int) -> Chunks:
        return self.chunks

    def cut(self, chunks: Chunks) -> Constant:
        return replace(self, chunks=chunks)

    def part(self, index: int) -> None:
        """Nothing: the number goes along with the reader."""

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return partial(_always, self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Stored(_Cut):
    """A Zarr array. A part is read when its task is evaluated."""

    array: zarr.Array[Any]
    chunks: Chunks
    fill_missing: bool
    spare: Spare = field(default_factory=Spare)
    waits: ClassVar[bool] = True

    @property
    def in_driver(self) -> bool:
        """Whether the store lies in the memory of this process."""
        return isinstance(self.array.store, MemoryStore)

    @property
    def shape(self) -> tuple[float, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.array.dtype)

    def plan(self, block_bytes: int) -> Chunks:
        n, size = self.array.shape[0], row_bytes(self)
        # 16 blocks at least, while they are worth reading apart: threads need some each.
        fit = min(block_bytes // size, max(math.ceil(n / 16), _SMALL // size))
        unit = self.array.chunks[0]
        shard = self.array.shards[0] if self.array.shards else None
        if shard is None or shard <= fit:
            return even_chunks(n, _whole_units(fit, shard or unit))
        # A block never straddles two shards: each of them is opened, and its index read, anew.
        pattern = even_chunks(shard, _whole_units(fit, unit))
        return pattern * (n // shard) + even_chunks(n % shard, int(pattern[0]))

    def cut(self, chunks: Chunks) -> Stored:
        return replace(self, chunks=chunks)

    def part(self, index: int) -> None:
        """Nothing: the task reads the store."""

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return self._read

    def _read(self, index: int, _: None) -> Array:
        return _retried(_read, self.array, self.bounds(index), self.fill_missing, self.spare)

    def check_unchanged(self, title: str) -> None:
        """Raise `DataError` where the store now holds an array of another layout than when it was opened."""
        there = _retried(_layout, self.array.store_path, self.array.metadata.zarr_format)
        here = _layout_of(self.array)
        if there != here:
            raise DataError(
                f"{title} at {self.array.store_path} was changed in the meantime: (shape, chunks, shards, dtype) "
                f"were {here}, now {there}. Fit again once it stays as it is."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Delayed(_Cut):
    """A Dask array. A part refers to keys of its graph; several column chunks are joined."""

    array: da.Array

    @cached_property
    def chunks(self) -> Chunks:  # type: ignore[override]
        return tuple(size if math.isnan(size) else int(size) for size in self.array.chunks[0])

    @property
    def collection(self) -> da.Array:  # type: ignore[override]
        return self.array

    @property
    def shape(self) -> tuple[float, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def plan(self, block_bytes: int) -> Chunks:
        return self.chunks

    def cut(self, chunks: Chunks) -> Delayed:
        if chunks == self.chunks:
            return self
        return Delayed(self.array.rechunk({0: chunks}))

    def part(self, index: int) -> Any:
        name = self.array.name
        if self.array.ndim == 1:
            return (name, index)
        columns = [(name, index, column) for column in range(self.array.numblocks[1])]
        return columns[0] if len(columns) == 1 else columns

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return _joined


def even_chunks(n: int, rows: int) -> tuple[int, ...]:
    """Cut ``n`` rows into chunks of ``rows`` (at least one) and a shorter last one."""
    rows = max(rows, 1)
    whole, rest = divmod(n, rows)
    return (rows,) * whole + ((rest,) if rest else ())


def stored(array: zarr.Array[Any], fill_missing: bool) -> Stored:
    """Source of a Zarr array, cut as it is stored."""
    n, *_ = array.shape
    grid = array.shards or array.chunks
    return Stored(array, even_chunks(n, grid[0]), fill_missing)


def row_bytes(source: Source) -> int:
    """Bytes of one row."""
    return int(math.prod(source.shape[1:])) * source.dtype.itemsize


def _joined(_: int, part: Any) -> Any:
    """A chunk that the graph hands over; its columns in one."""
    return np.hstack(part) if isinstance(part, list) else part


def _always(value: Array, *_: Any) -> Array:
    return value


def _whole_units(fit: int, unit: int) -> int:
    """Rows of as many whole units as fit, and of one unit where none does."""
    return unit * max(1, fit // unit)


def _retried(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that reads a store, again where the system fails to."""
    for pause in RETRIES:
        try:
            return function(*arguments)
        except (FileNotFoundError, PermissionError):  # these do not pass
            raise
        except OSError:
            time.sleep(pause)
    return function(*arguments)


def _read(array: zarr.Array[Any], rows: slice, fill_missing: bool, spare: Spare) -> Array:
    """Read rows of a Zarr array."""
    values = spare.array((rows.stop - rows.start, *array.shape[1:]), np.dtype(array.dtype))
    everything = (slice(None),) * (array.ndim - 1)
    array.get_basic_selection(
        (rows, *everything), out=default_buffer_prototype().nd_buffer.from_numpy_array(values)
    )
    if not fill_missing:
        _refuse_missing(array, rows, values)
    return values


def _layout(place: StorePath, zarr_format: Literal[2, 3]) -> tuple[Any, ...] | None:
    """Layout of the array that a store holds now; None where there is none."""
    try:
        return _layout_of(zarr.open_array(place, mode="r", zarr_format=zarr_format))
    except (FileNotFoundError, NodeNotFoundError):
        return None


def _layout_of(array: zarr.Array[Any]) -> tuple[Any, ...]:
    return (array.shape, array.chunks, array.shards, str(array.dtype))


def _refuse_missing(array: zarr.Array[Any], rows: slice, values: Array) -> None:
    """Raise where a chunk under these rows is not in the store, which Zarr reads as fill value."""
    fill = 0 if array.fill_value is None else array.fill_value
    for chunk, place in _chunks_under(array, rows):
        # Only a chunk that reads as fill value throughout can be missing: others need no look-up.
        if not (_is_fill(values[place][:1], fill) and _is_fill(values[place], fill)):
            continue
        key, stored = _look_up(array, chunk)
        if not stored and not sync(_is_there(array)):
            raise DataError(
                f"{array.store_path} cannot be opened on {gethostname()}: no Zarr array is there, or not any "
                "more. Every worker needs the data under the same path or URL."
            )
        if not stored:
            raise DataError(
                f"Chunk {key} of {array.store_path} is not in the store. Either it was never "
                f"written, or it holds nothing but the fill value {fill}, which Zarr does not "
                'store by default (write with config={"write_empty_chunks": True} to have it stored). '
                'Set missing_chunks="fill" to read it as the fill value.'
            )


async def _is_there(array: zarr.Array[Any]) -> bool:
    """Whether the store holds the array's metadata."""
    return await (array.store_path / ("zarr.json" if array.metadata.zarr_format == 3 else ".zarray")).exists()


def _look_up(array: zarr.Array[Any], chunk: tuple[int, ...]) -> tuple[str, bool]:
    """Name of a chunk, and whether it is in the store: in its shard's index, where there are shards."""
    metadata = array.metadata
    if array.shards is None or metadata.zarr_format == 2:
        key = array.metadata.encode_chunk_key(chunk)
        return repr(key), sync((array.store_path / key).exists())
    each = tuple(shard // inner for shard, inner in zip(array.shards, array.chunks, strict=True))
    key = array.metadata.encode_chunk_key(tuple(c // n for c, n in zip(chunk, each, strict=True)))
    codec = next(c for c in metadata.codecs if isinstance(c, ShardingCodec))
    index = sync(codec._load_shard_index_maybe(array.store_path / key, each))
    return f"{chunk} in shard {key!r}", index is not None and index.get_chunk_slice(chunk) is not None


def _chunks_under(array: zarr.Array[Any], rows: slice) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Coordinates of each chunk under the rows, and its place among them."""
    grid = array.chunks
    edges = [(rows.start, rows.stop), *((0, size) for size in array.shape[1:])]
    spans = [range(first // step, -(-last // step)) for (first, last), step in zip(edges, grid, strict=True)]
    for chunk in product(*spans):
        yield (
            chunk,
            tuple(
                slice(max(number * step, first) - first, min((number + 1) * step, last) - first)
                for number, step, (first, last) in zip(chunk, grid, edges, strict=True)
            ),
        )


def _is_fill(values: Array, fill: Any) -> bool:
    # NaN is the only fill value that differs from itself.
    same = np.isnan(values) if fill != fill else values == fill
    return bool(np.all(same))
