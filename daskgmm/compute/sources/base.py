"""A source: an array of any kind, cut into runs of rows, each of which one task produces."""

from __future__ import annotations

import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeAlias

import dask.array as da
import numpy as np

Chunks: TypeAlias = tuple[float, ...]
"""Rows per chunk: integers, or NaN where a Dask array does not know them."""

SMALL = 2**20  # bytes: below this, handling a block costs more than computing on it


class Asked(NamedTuple):
    """What is asked of an input."""

    name: str  # what to call it in messages
    fill_missing: bool  # whether a chunk that a store lacks is read as the fill value
    ensure_2d: bool  # whether it must be rows of features


class Opener(Protocol):
    """A kind of input, as a module: what it accepts, and how that is opened."""

    def accepts(self, value: Any) -> bool:
        """Whether this is such an input; nothing is read."""

    def opened(self, value: Any, asked: Asked) -> Any:
        """A `Source`, or what the input holds, to be opened in turn."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Source(ABC):
    """An array cut into runs of rows, each of which one task produces.

    Attributes
    ----------
    shape : tuple
        NaN where a number of rows is unknown.
    dtype : dtype
        As stored.
    chunks : tuple
        Rows in each run.
    collection : dask.array.Array or None
        Whose graph the parts refer to.
    in_driver : bool
        Whether it is a store in the memory of this process, which no other can read.
    """

    shape: tuple[float, ...]
    dtype: np.dtype[Any]
    chunks: Chunks
    collection: da.Array | None = None
    in_driver: bool = False

    local: ClassVar[bool] = False  # whether the rows are a NumPy array of this process
    keepable: ClassVar[bool] = False  # whether a run that is kept spares the next pass to read or compute it
    waits: ClassVar[bool] = False  # whether our own tasks read its parts from a store, and wait for them

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(math.prod(self.shape[1:])) * self.dtype.itemsize

    @cached_property
    def offsets(self) -> Chunks:
        """Number of the first row of each chunk; NaN from the first unknown size on."""
        return (0, *accumulate(self.chunks))[: len(self.chunks)]

    def bounds(self, index: int) -> slice:
        """The rows of a chunk."""
        first = int(self.offsets[index])
        return slice(first, first + int(self.chunks[index]))

    @abstractmethod
    def plan(self, block_bytes: int) -> Chunks:
        """Chunks that suit the way the array is held; they depend on its layout alone."""

    def cut(self, chunks: Chunks) -> Self:
        """The same rows, cut elsewhere."""
        return replace(self, chunks=chunks)

    def part(self, index: int) -> Any:
        """What the graph hands to a task for chunk ``index``: a key, or rows; None where `reader` needs none."""
        return None

    @property
    @abstractmethod
    def reader(self) -> Callable[[int, Any], Any]:
        """Maps the number of a chunk and its part to the chunk; all tasks share it."""

    def check_unchanged(self, title: str) -> None:
        """Raise `DataError` where the array is another than when it was opened."""

    def as_dask(self) -> da.Array:
        """A Dask array with one chunk for each part that the reader reads by itself."""
        name, reader = f"daskgmm-read-{uuid.uuid4().hex}", f"daskgmm-source-{uuid.uuid4().hex}"
        rest = (0,) * (len(self.shape) - 1)
        layer: dict[Any, Any] = {
            (name, i, *rest): (partial(read_at, i), reader, None) for i in range(len(self.chunks))
        }
        layer[reader] = self.reader
        chunks = (self.chunks, *((int(size),) for size in self.shape[1:]))
        return da.Array(layer, name, chunks, dtype=self.dtype)


def read_at(index: int, reader: Callable[..., Any], *parts: Any) -> Any:
    """Call a reader, which the graph holds under a key. The number is no argument: Dask would look it up, too."""
    return reader(index, *parts)


def joined(_: int, part: Any) -> Any:
    """A chunk that the graph hands over; its columns in one."""
    return np.hstack(part) if isinstance(part, list) else part


def even_chunks(n: int, rows: int) -> tuple[int, ...]:
    """Cut ``n`` rows into chunks of ``rows`` (at least one) and a shorter last one."""
    rows = max(rows, 1)
    whole, rest = divmod(n, rows)
    return (rows,) * whole + ((rest,) if rest else ())
