"""Zarr arrays, formats 2 and 3, sharded too: whole chunks or shards are read at once."""

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from socket import gethostname
from typing import Any, ClassVar, TypeAlias

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.errors import NodeNotFoundError
from zarr.storage import MemoryStore, StorePath, ZipStore

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.sources import census, cf, chunks, codecs
from daskgmm.compute.sources.base import (
    Asked,
    Chunks,
    Facts,
    Source,
    check_layout,
    even_chunks,
    fitting,
)
from daskgmm.compute.sources.failures import RETRIES, attempt, memory_for, passes, retried, told
from daskgmm.compute.sources.groups import Group, Member
from daskgmm.errors import DataError, printable

AT_ONCE = 2**10  # chunks that are read together: Zarr holds some KiB for each
LARGE = 2**26  # bytes: before more than that is read, a look-up costs nothing
CLOSED = "{} at {} cannot be opened"
HUGE = 2**32  # bytes: more take long to plan and to read, and may be there in the metadata alone

Layout: TypeAlias = tuple[Any, ...]
"""Shape, chunks, shards and dtype."""


def opened(value: Any, asked: Asked) -> Source:
    """An array, not yet cut; `DataError` for a group, with its arrays, and for sizes that no array can have."""
    if isinstance(value, (Store, StorePath)):
        value = opened_store(value, asked)
    if isinstance(value, zarr.Group):
        return _of_group(value, asked)
    check_layout(value, asked.ensure_2d)
    begun, grid = _in_store(value, asked.name), (*value.chunks, *(value.shards or ()))
    if not all(0 <= size < 2**63 for size in value.shape) or not all(0 < size < 2**63 for size in grid):
        raise DataError(f"{asked.name} at {value.store_path} cannot have shape {value.shape} in chunks {grid}.")
    if begun not in (None, here := _layout(value)) and not _serves(begun, here):
        raise DataError(
            f"{asked.name} was opened as (shape, chunks, shards, dtype) = {here}, and the array at "
            f"{value.store_path} says {begun}. Open it anew; where its group has consolidated metadata, these are "
            "out of date: open the group with use_consolidated=False, or consolidate them again."
        )
    dims, attributes = _said_by(value)
    source = Stored(
        shape=value.shape,
        dtype=np.dtype(value.dtype),
        chunks=value.shape[:1],
        in_driver=isinstance(value.store, MemoryStore),
        chunk_bytes=math.prod(value.chunks) * value.dtype.itemsize,
        dims=dims,
        array=value,
        fill_missing=asked.fill_missing,
        begun=begun,
    )
    if begun is not None and not asked.fill_missing and source.row_bytes * value.shape[0] > HUGE:
        # The last chunk need not be there: a store that grows may be made for rows to come.
        attempt(CLOSED.format(asked.name, value.store_path), source.refuse_missing, [(0,) * value.ndim])
    return cf.decoded(source, attributes, asked, str(value.store_path))


def _said_by(array: zarr.Array[Any]) -> tuple[tuple[str, ...] | None, Mapping[str, Any]]:
    """The names of its dimensions, None unless all have one, and its attributes; both as xarray writes them.

    It writes the attribute of missing values as the fill value, in format 2.
    """
    attributes = _told_by(array, "an array")
    dims: Any = getattr(array.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attributes and array.fill_value is not None:
        attributes["_FillValue"] = array.fill_value
    named = isinstance(dims, (list, tuple)) and all(isinstance(name, str) for name in dims)
    return tuple(dims) if named and len(dims) == array.ndim else None, attributes


def _told_by(node: zarr.Array[Any] | zarr.Group, what: str) -> dict[str, Any]:
    """The attributes of an array or a group; `DataError` where the store has other things in their place."""
    return attempt(f"The attributes of {what} at {node.store_path} cannot be read", node.attrs.asdict)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Stored(Source):
    """A Zarr array. A part is read when its task is evaluated."""

    array: zarr.Array[Any]
    fill_missing: bool
    begun: Layout | None  # what the store said as it was opened: consolidated metadata may say other things
    spare: Spare = field(default_factory=Spare)
    keepable: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    @cached_property
    def guarded(self) -> zarr.Array[Any]:
        """The array, as it is read."""
        return codecs.guarded(self.array)

    def __getstate__(self) -> dict[str, Any]:
        # Zarr pickles what is inside shards by its name.
        return {name: value for name, value in vars(self).items() if name != "guarded"}

    def plan(self, block_bytes: int) -> Chunks:
        n, size = self.array.shape[0], self.row_bytes
        fit = fitting(n, size, block_bytes)
        each, shard = self.array.chunks[0], self.array.shards[0] if self.array.shards else None
        if shard is not None and shard <= fit:
            each, shard = shard, None
        try:
            # A block never straddles two shards: each of them is opened, and its index read, anew.
            return even_chunks(n, each * max(1, fit // each), shard)
        except DataError as error:  # too many
            raise DataError(f"{self.array.store_path}: {error}") from error

    def as_stored(self) -> "Stored":
        return self.cut(even_chunks(self.array.shape[0], (self.array.shards or self.array.chunks)[0]))

    def reader(self, index: int, part: Any) -> Array:
        array, rows = self.guarded, self.bounds(index)
        where = f"block {index}, rows {rows.start} to {rows.stop - 1}"
        shape, what = (rows.stop - rows.start, *array.shape[1:]), f"{array.store_path} cannot be read"
        asks = f" ({where}): its shape {array.shape} and chunks {array.chunks} ask for"
        values = memory_for(self.spare, shape, self.dtype, what, asks, self.chunk_bytes)
        region = (rows, *(slice(0, size) for size in array.shape[1:]))
        # So many chunks as Zarr reads well together; whole shards, where these have few.
        inner = math.prod(array.shards or array.chunks) // math.prod(array.chunks)
        whole = array.shards if array.shards and inner <= AT_ONCE else None
        for part in chunks.pieces(region, whole or array.chunks, AT_ONCE // inner if whole else AT_ONCE):
            out = values[part[0].start - rows.start : part[0].stop - rows.start, *part[1:]]
            try:
                retried(self._fill, part, out)
            except DataError:
                raise
            except Exception as error:  # whatever a store or a codec raises
                raise _unreadable(array, part, where, error) from error
        return values

    def _fill(self, part: chunks.Region, out: Array) -> None:
        """Read a part of the array; raise where a chunk is not in the store, which Zarr reads as fill value."""
        array = self.guarded
        if not self.fill_missing and out.nbytes > LARGE:
            self.refuse_missing([tuple(numbers[0] for numbers in chunks.under(part, array.chunks))])
        array.get_basic_selection(part, out=default_buffer_prototype().nd_buffer.from_numpy_array(out))
        alike = chunks.alike(array, part, out)
        if not self.fill_missing:
            self.refuse_missing(alike)
        elif alike and not chunks.is_there(array):  # a store that is not there, or not any more, lacks all chunks
            raise _gone(array)

    def refuse_missing(self, suspects: list[chunks.Chunk]) -> None:
        """Raise where one of these chunks is not in the store: only such as read as fill value can be missing."""
        array = self.array
        if not suspects or (lost := chunks.first_missing(array, suspects)) is None:
            return
        if not chunks.is_there(array):
            raise _gone(array)
        raise DataError(
            f"{chunks.title(array, lost)} of {array.store_path} is not in the store. Either it was never "
            f"written, or it holds nothing but the fill value {array.fill_value or 0}, which Zarr does not "
            'store by default (write with config={"write_empty_chunks": True} to have it stored). '
            'Set missing_chunks="fill" to read it as the fill value.'
        )

    def facts(self) -> Facts:
        array = self.array
        kind = f"Zarr array (format {array.metadata.zarr_format})"
        if isinstance(array.store, ZipStore):
            kind += " in a zip file"
        names, checksums = codecs.told(array)
        return Facts(kind, names, array.chunks, *census.of(array), checksums)

    def check_unchanged(self, title: str) -> None:
        """Raise `DataError` where the store now holds an array of another layout than when it was opened."""
        there = _in_store(self.array, title)
        if there != self.begun:
            raise DataError(
                f"{title} at {self.array.store_path} was changed in the meantime: (shape, chunks, shards, dtype) "
                f"were {self.begun}, now {there}. Fit again once it stays as it is."
            )


def opened_store(value: Any, asked: Asked) -> Any:
    """The array or group at the root of a store, or of a mapper of fsspec; errors as of a path."""
    try:
        return zarr.open(value, mode="r")
    except (FileNotFoundError, NodeNotFoundError) as error:
        raise FileNotFoundError(f"There is no Zarr array in the store {asked.name}, {_name(value)}.") from error
    except Exception as error:  # whatever a store or damaged metadata may raise
        raise DataError(f"The store {asked.name}, {_name(value)}, cannot be opened: {told(error)}") from error


def _name(store: Any) -> str:
    return printable(str(getattr(store, "root", store)))


def _of_group(group: zarr.Group, asked: Asked) -> Source:
    """Arrays of a group, by their names."""

    def members() -> list[Member]:
        arrays = [(p, a) for p, a in group.members(max_depth=None) if isinstance(a, zarr.Array)]
        return sorted(Member(path, array.shape, array.dtype) for path, array in arrays)

    def one(name: str, asked: Asked) -> Source:
        return opened(group[name], asked)

    title, joint = str(group.store_path), "/"
    if isinstance(group.store, ZipStore):
        inside = f"::/{group.path}" if group.path else ""
        title, joint = f"{group.store.path}{inside}", "/" if inside else "::/"
    return Group(title, joint, "a Zarr group", _told_by(group, "a group"), members, one).source(asked)


def _layout(array: zarr.Array[Any]) -> Layout:
    return array.shape, array.chunks, array.shards, str(array.dtype)


def _in_store(array: zarr.Array[Any], title: str) -> Layout | None:
    """Layout of the array that the store itself has where this one was opened; None where it has none."""
    opening = partial(zarr.open_array, mode="r", zarr_format=array.metadata.zarr_format)
    try:
        return _layout(attempt(CLOSED.format(title, array.store_path), opening, array.store_path))
    except FileNotFoundError:
        return None


def _serves(there: Layout, here: Layout) -> bool:
    """Whether an array that the store has can be read as one of another layout: it may have more rows."""
    (shape, *rest), (rows, *others) = there, here
    return rest == others and shape[1:] == rows[1:] and shape[0] >= rows[0]


def _gone(array: zarr.Array[Any]) -> DataError:
    return DataError(
        f"{array.store_path} cannot be opened on {gethostname()}: no Zarr array is there, or not any "
        "more. Every worker needs the data under the same path or URL."
    )


def _unreadable(array: zarr.Array[Any], part: chunks.Region, where: str, error: Exception) -> DataError:
    """Say which chunk cannot be read, or that the store fails."""
    if passes(error):
        return DataError(f"{array.store_path} failed {len(RETRIES) + 1} times to be read ({where}): {told(error)}")
    traceback.clear_frames(error.__traceback__)  # they may hold all that was decoded
    chunk = chunks.first_unreadable(array, part)
    what = "A chunk" if chunk is None else chunks.title(array, chunk)
    return DataError(f"{what} of {array.store_path} cannot be read ({where}): {told(error)}")
