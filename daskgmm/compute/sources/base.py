"""A source: an array of any kind, cut into runs of rows, each of which one task produces."""

import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import dask.array as da
import numpy as np

from daskgmm.errors import DataError

Chunks: TypeAlias = tuple[float, ...]
"""Rows per chunk: integers, or NaN where a Dask array does not know them."""

_RESHAPE = (
    "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
    "or array.reshape(1, -1) if it contains a single sample."
)

DENSIFY = "Sparse blocks: X.map_blocks(lambda block: block.toarray(), dtype=X.dtype, meta=numpy.empty((0, 0)))"

MOST_BLOCKS = 2**20  # a task, and some hundred bytes of this process, for each
SMALL = 2**20  # bytes: below this, handling a block costs more than computing on it


class Asked(NamedTuple):
    """What is asked of an input."""

    name: str  # what to call it in messages
    fill_missing: bool  # whether a chunk that a store lacks is read as the fill value
    ensure_2d: bool  # whether it must be rows of features
    variables: tuple[str, ...] | None = None  # which arrays of a group are the features
    storage_options: Mapping[str, Any] | None = None  # for the file systems behind URLs
    decode_cf: bool = True  # whether attributes that say what numbers stand for are heeded
    feature_dim: str | None = None  # the features' dimension in a DataArray
    features: tuple[str, ...] | int | None = None  # their names, or how many are expected, where that is known
    few_rows: bool = False  # whether rows may well be fewer than features, as of a batch


class Facts(NamedTuple):
    """What an input says of itself, before a row of it is read; None where it does not say."""

    kind: str  # such as "Zarr array, format 3"
    codecs: tuple[str, ...] = ()  # that its chunks go through
    chunk_shape: tuple[int, ...] | None = None  # of what is stored, and decoded, as one
    n_chunks: int | None = None
    n_looked_up: int = 0  # of them, to see whether they are there
    n_missing: int = 0  # of those
    stored_bytes: float | None = None  # of all chunks, as they lie there
    checksums: bool | None = None  # whether all of what is stored has some, by which damage is seen
    masked: str = ""  # what of it is masked, and so missing
    one_reader: bool = False  # whether the threads of a process read in turn


Opener: TypeAlias = Callable[[Any, Asked], Any]
"""Opens one kind of input: a `Source`, or what the input holds, to be opened in turn."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Source(ABC):
    """An array cut into runs of rows, each of which one task produces."""

    shape: tuple[float, ...]  # NaN where a number of rows is unknown
    dtype: np.dtype[Any]  # as stored
    chunks: Chunks  # rows in each run
    collection: da.Array | None = None  # whose graph the parts refer to
    in_driver: bool = False  # whether it lies in the memory of this process, which no other can read
    names: tuple[str, ...] | None = None  # of the features, where the input has some
    dims: tuple[str, ...] | None = None  # names of the axes, where the input has some
    chunk_bytes: int = 0  # that are decoded at a time, whatever is wanted of them
    decoded: str = ""  # how the values follow from what is stored, where they are not that
    kept: bool = False  # whether its parts stay in the memory of workers between passes
    row_bytes: int = field(init=False)  # of one row
    offsets: Chunks = field(init=False)  # first row of each chunk; NaN from the first unknown size on

    # What the graph hands to a task for a chunk of some number: a key, or rows; None where the reader needs none.
    part: ClassVar[Any] = None
    local: ClassVar[bool] = False  # whether the rows are a NumPy array of this process
    keepable: ClassVar[bool] = False  # whether a run that is kept spares the next pass to read or compute it
    waits: ClassVar[bool] = False  # whether our own tasks read its parts from a store, and wait for them

    def __post_init__(self) -> None:
        bytes_each = int(math.prod(self.shape[1:])) * self.dtype.itemsize
        vars(self).update(row_bytes=bytes_each, offsets=(0, *accumulate(self.chunks))[: len(self.chunks)])

    @property
    def read_bytes(self) -> float:
        """Bytes that have to be read for a row, as they are stored."""
        return 0 if self.local or self.kept else self.row_bytes

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

    def as_stored(self) -> Self:
        """The same rows, cut as they are held, to be paired with blocks of unknown sizes."""
        return self

    @abstractmethod
    def reader(self, index: int, part: Any) -> Any:
        """The chunk of a number, of its part; the bound method is what all tasks share."""

    def facts(self) -> Facts:
        """What it says of itself: of many chunks, only some are looked up."""
        return Facts(type(self).__name__)

    def check_unchanged(self, title: str) -> None:
        """Raise `DataError` where the array that our tasks read is another than when it was opened."""
        raise NotImplementedError

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


def even_chunks(n: int, rows: int, unit: int | None = None) -> tuple[int, ...]:
    """Cut ``n`` rows into chunks of ``rows`` (at least one) and a shorter last one; so each ``unit`` of them.

    Raises
    ------
    DataError
        For more chunks than can be planned.
    """
    rows, unit = max(rows, 1), max(min(n, unit or n), 1)
    whole, rest = divmod(n, unit)
    n_blocks = whole * -(-unit // rows) + -(-rest // rows)
    if n_blocks > MOST_BLOCKS:
        raise DataError(
            f"The rows would be cut into {n_blocks:,} blocks, and at most {MOST_BLOCKS:,} can be planned. "
            "Use a larger block_size."
        )
    cut = [(rows,) * (size // rows) + (size % rows,) * (size % rows > 0) for size in (unit, rest)]
    return cut[0] * whole + cut[1]


def fitting(n: int, row_bytes: int, block_bytes: int) -> int:
    """Rows of a block that is read from a store: 16 blocks at least, while they are worth reading apart.

    Threads need some each.
    """
    return min(block_bytes // row_bytes, max(-(-n // 16), SMALL // row_bytes))


def grid(shape: Sequence[int], each: Sequence[int]) -> list[int]:
    """How many pieces of a shape there are along each axis."""
    return [-(-size // step) for size, step in zip(shape, each, strict=True)]


def library(value: Any, known: Collection[str | None]) -> str | None:
    """Which of some libraries a value comes from, subclasses included, without importing it."""
    roots = (kind.__module__.partition(".")[0] for kind in type(value).__mro__)
    return next((root for root in roots if root in known), None)


def check_layout(array: Any, ensure_2d: bool) -> None:
    """Refuse a chunked array in the words scikit-learn has for the same array in memory."""
    shape, dtype = array.shape, np.dtype(array.dtype)
    if dtype.kind == "c":
        raise DataError(f"Complex data not supported\n{array}\n")
    if dtype.kind not in "biuf":
        kind = "bytes/strings." if dtype.kind in "USV" else f"dtype {dtype}. "
        raise DataError(
            f"dtype='numeric' is not compatible with arrays of {kind}"
            "Convert your data to numeric values explicitly instead."
        )
    if not shape or (ensure_2d and len(shape) == 1):
        rank = "1D" if shape else "scalar"
        raise DataError(f"Expected 2D array, got {rank} array instead:\narray={array}.\n{_RESHAPE}")
    if not ensure_2d:
        return
    if len(shape) > 2:
        raise DataError(
            f"Found array with dim {len(shape)}, while dim <= 2 is required: its shape is {shape}. One axis has "
            "to be the features, and all others the rows: reshape it, or stack them with xarray. Arrays of a "
            'group that are a feature each may stay as they are: give the group, and variables=["name", ...] '
            "(--variables name,...)."
        )
    for size, axis in ((shape[0], "sample"), (shape[1], "feature")):
        if size == 0:
            raise DataError(f"Found array with 0 {axis}(s) (shape={shape}) while a minimum of 1 is required.")
