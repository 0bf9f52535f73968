"""Zarr arrays, formats 2 and 3, sharded too: whole chunks or shards are read at once."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from socket import gethostname
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np
import zarr
from zarr.codecs import ShardingCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import NodeNotFoundError
from zarr.storage import MemoryStore

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.sources.base import SMALL, Asked, Chunks, Source, check_layout, even_chunks
from daskgmm.errors import DataError, printable

T = TypeVar("T")

RETRIES = (0.1, 0.5, 2.0)  # seconds before each new try to read a block


def opened(value: Any, asked: Asked) -> Source:
    """An array, cut as it is stored; `DataError` for a group, with its arrays."""
    if isinstance(value, zarr.Group):
        refuse_group(value)
    check_layout(value, asked.ensure_2d)
    n, *_ = value.shape
    grid = value.shards or value.chunks
    return Stored(
        shape=value.shape,
        dtype=np.dtype(value.dtype),
        chunks=even_chunks(n, grid[0]),
        in_driver=isinstance(value.store, MemoryStore),
        array=value,
        fill_missing=asked.fill_missing,
    )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Stored(Source):
    """A Zarr array. A part is read when its task is evaluated."""

    array: zarr.Array[Any]
    fill_missing: bool
    spare: Spare = field(default_factory=Spare)
    keepable: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def plan(self, block_bytes: int) -> Chunks:
        n, size = self.array.shape[0], self.row_bytes
        # 16 blocks at least, while they are worth reading apart: threads need some each.
        fit = min(block_bytes // size, max(math.ceil(n / 16), SMALL // size))
        unit = self.array.chunks[0]
        shard = self.array.shards[0] if self.array.shards else None
        if shard is None or shard <= fit:
            unit = shard or unit
            return even_chunks(n, unit * max(1, fit // unit))
        # A block never straddles two shards: each of them is opened, and its index read, anew.
        pattern = even_chunks(shard, unit * max(1, fit // unit))
        return pattern * (n // shard) + even_chunks(n % shard, int(pattern[0]))

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return partial(_retried, self._read)

    def _read(self, index: int, _: None) -> Array:
        array, rows = self.array, self.bounds(index)
        values = self.spare.array((rows.stop - rows.start, *array.shape[1:]), self.dtype)
        everything = (slice(None),) * (array.ndim - 1)
        array.get_basic_selection(
            (rows, *everything), out=default_buffer_prototype().nd_buffer.from_numpy_array(values)
        )
        if not self.fill_missing:
            _refuse_missing(array, rows, values)
        return values

    def check_unchanged(self, title: str) -> None:
        """Raise `DataError` where the store now holds an array of another layout than when it was opened."""
        place, zarr_format = self.array.store_path, self.array.metadata.zarr_format
        try:
            found = _retried(zarr.open_array, place, mode="r", zarr_format=zarr_format)
        except (FileNotFoundError, NodeNotFoundError):
            found = None
        here, there = (
            None if a is None else (a.shape, a.chunks, a.shards, str(a.dtype)) for a in (self.array, found)
        )
        if there != here:
            raise DataError(
                f"{title} at {place} was changed in the meantime: (shape, chunks, shards, dtype) "
                f"were {here}, now {there}. Fit again once it stays as it is."
            )


def refuse_group(group: zarr.Group) -> NoReturn:
    """Say which arrays the group holds and how to name one."""
    arrays = [
        f"{printable(path)} {member.shape} {member.dtype}"
        for path, member in sorted(group.members(max_depth=None))
        if isinstance(member, zarr.Array) and member.ndim == 2
    ]
    listing = "its two-dimensional arrays are:\n  " + "\n  ".join(arrays)
    raise DataError(
        f"{group.store_path} is a Zarr group, not an array; "
        + (listing if arrays else "it holds no two-dimensional array.")
        + "\nAppend the name of an array to the path."
    )


def _retried(function: Callable[..., T], *arguments: Any, **how: Any) -> T:
    """Call a function that reads a store, again where the system fails to."""
    for pause in RETRIES:
        try:
            return function(*arguments, **how)
        except (FileNotFoundError, PermissionError):  # these do not pass
            raise
        except OSError:
            time.sleep(pause)
    return function(*arguments, **how)


def _refuse_missing(array: zarr.Array[Any], rows: slice, values: Array) -> None:
    """Raise where a chunk under these rows is not in the store, which Zarr reads as fill value."""
    fill = 0 if array.fill_value is None else array.fill_value
    edges = [(rows.start, rows.stop), *((0, size) for size in array.shape[1:])]
    grid = list(zip(array.chunks, edges, strict=True))
    for chunk in product(*(range(first // step, -(-last // step)) for step, (first, last) in grid)):
        place = tuple(
            slice(max(number * step, first) - first, min((number + 1) * step, last) - first)
            for number, (step, (first, last)) in zip(chunk, grid, strict=True)
        )
        # Only a chunk that reads as fill value throughout can be missing: others need no look-up.
        found = values[place]
        # NaN is the only fill value that differs from itself.
        if not all(np.all(np.isnan(part) if fill != fill else part == fill) for part in (found[:1], found)):
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
