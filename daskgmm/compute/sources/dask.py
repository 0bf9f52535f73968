"""Dask arrays and Dask data frames: their own chunks are the blocks."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph

from daskgmm.compute.sources import frames, memory
from daskgmm.compute.sources.base import DENSIFY, Asked, Chunks, Facts, Source, check_layout
from daskgmm.compute.sources.plain import joined, numbers
from daskgmm.errors import DataError


def opened(value: Any, asked: Asked) -> Source:
    """An array or data frame as it is chunked; `DataError` where its blocks cannot be used as NumPy arrays."""
    if not (isinstance(value, da.Array) or hasattr(value, "to_dask_array")):
        return memory.opened(value, asked)
    names = None
    if isinstance(value, da.Array):
        array = value
    else:
        frame, names = frames.chosen(value, asked)
        array = _partitions(frame, asked.name)
    check_layout(array, asked.ensure_2d)
    if not isinstance(array._meta, np.ndarray):
        raise DataError(
            f"The chunks of {asked.name} are {type(array._meta).__name__} objects, expected NumPy arrays: convert "
            f"them with map_blocks. {DENSIFY}"
        )
    if any(math.isnan(size) for size in array.shape[1:]):
        raise DataError(
            f"{asked.name} has an unknown number of columns: shape={array.shape}. "
            "Call compute_chunk_sizes() on it first."
        )
    return replace(Delayed.of(array), names=names)


def _partitions(frame: Any, name: str) -> da.Array:
    """The partitions of a frame or series, as they are, for the chunks of an array: tasks compare their labels."""
    frame = frame.simplify()  # not optimize(), which may join partitions that come from files
    sample = numbers(frame._meta_nonempty, name)
    rows, rest = frame.npartitions, sample.shape[1:]
    keys = frame.__dask_keys__()
    own = f"daskgmm-{keys[0][0]}"
    layer: dict[Any, Any] = {(own, i, *(0,) * len(rest)): key for i, key in enumerate(keys)}
    graph = HighLevelGraph.from_collections(own, layer | dict(frame.__dask_graph__()), dependencies=())
    chunks = ((math.nan,) * rows, *((size,) for size in rest))
    return da.Array(graph, own, chunks, dtype=sample.dtype)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Delayed(Source):
    """A Dask array. A part refers to keys of its graph; several column chunks are joined."""

    collection: da.Array
    keepable: ClassVar[bool] = True
    reader: ClassVar[Any] = staticmethod(joined)

    @classmethod
    def of(cls, array: da.Array) -> "Delayed":
        """An array as it is chunked."""
        chunks = tuple(size if math.isnan(size) else int(size) for size in array.chunks[0])
        array = array.rechunk(dict.fromkeys(range(1, array.ndim), -1)) if array.ndim > 2 else array
        return cls(shape=tuple(array.shape), dtype=array.dtype, chunks=chunks, collection=array)

    def plan(self, block_bytes: int) -> Chunks:
        return self.chunks

    def cut(self, chunks: Chunks) -> "Delayed":
        return self if chunks == self.chunks else Delayed.of(self.collection.rechunk({0: chunks}))

    def part(self, index: int) -> Any:
        name = self.collection.name
        if self.collection.ndim == 1:
            return (name, index)
        rest = (0,) * (self.collection.ndim - 2)
        columns = [(name, index, column, *rest) for column in range(self.collection.numblocks[1])]
        return columns[0] if len(columns) == 1 else columns

    def as_dask(self) -> da.Array:
        return self.collection

    def facts(self) -> Facts:
        array = self.collection
        shape = tuple(-1 if math.isnan(size) else int(size) for size in array.chunksize)
        masked = "what is masked in its blocks" if isinstance(array._meta, np.ma.MaskedArray) else ""
        return Facts("Dask array", chunk_shape=shape, n_chunks=math.prod(array.numblocks), masked=masked)
