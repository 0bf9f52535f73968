"""Arrays in files, of which a library reads some rows at a time."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.sources import cf
from daskgmm.compute.sources.base import Asked, Chunks, Facts, Source, check_layout, even_chunks, fitting
from daskgmm.compute.sources.failures import attempt, check_memory
from daskgmm.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """What a file says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: int = 1  # rows that are stored together, and cost as much to read as one of them
    chunk_bytes: int = 0  # of what is decoded at a time
    attributes: Mapping[str, Any] = field(default_factory=dict)  # that say what it holds
    runs: tuple[int, ...] = ()  # rows that are stored together, where these are no units
    dims: tuple[str, ...] | None = None  # names of the axes, where it has some

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


class Handle(ABC):
    """An array in a file: what it is and its rows, in any process and from any thread."""

    in_driver: ClassVar[bool] = False

    @abstractmethod
    def look(self) -> Layout:
        """What the file says now."""

    @abstractmethod
    def facts(self, layout: Layout) -> Facts:
        """What the file says of what was found before."""

    @abstractmethod
    def read(self, layout: Layout, rows: slice, out: Array) -> None:
        """Fill an array, C-contiguous, with some rows of what was found before."""


def source_of(handle: Handle, asked: Asked) -> "Filed":
    """An array in a file, not yet cut; `DataError` where it cannot be opened or used."""
    layout = reading(handle, asked.name, handle.look)
    check_layout(layout, asked.ensure_2d)
    return Filed(
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=layout.shape[:1],
        in_driver=handle.in_driver,
        chunk_bytes=layout.chunk_bytes,
        dims=layout.dims,
        handle=handle,
        layout=layout,
    )


def values_of(handle: Handle, asked: Asked) -> Source:
    """What the numbers of such an array stand for, by its attributes."""
    source = source_of(handle, asked)
    return cf.decoded(source, source.layout.attributes, asked, str(handle))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Filed(Source):
    """An array in a file, whose rows are read when a task is evaluated."""

    handle: Handle
    layout: Layout
    spare: Spare = field(default_factory=Spare)
    keepable: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def plan(self, block_bytes: int) -> Chunks:
        n, unit = self.layout.shape[0], self.layout.unit
        fit = fitting(n, self.row_bytes, block_bytes)
        try:
            return _merged(self.layout.runs, fit) or even_chunks(n, unit * max(1, fit // unit))
        except DataError as error:  # too many
            raise DataError(f"{self.handle}: {error}") from error

    def as_stored(self) -> "Filed":
        return self.cut(self.layout.runs or even_chunks(self.layout.shape[0], self.layout.unit))

    def reader(self, index: int, part: Any) -> Array:
        rows = self.bounds(index)
        n_bytes = max((rows.stop - rows.start) * self.row_bytes, self.chunk_bytes)
        where = f"block {index}, rows {rows.start} to {rows.stop - 1}"
        check_memory(f"{self.handle} cannot be read", f" ({where}): it asks for", n_bytes)
        shape = (rows.stop - rows.start, *self.layout.shape[1:])
        values: Array = reading(self.handle, where, self.spare.array, shape, self.dtype)
        reading(self.handle, where, self.handle.read, self.layout, rows, values)
        return values

    def facts(self) -> Facts:
        return reading(self.handle, "what it says", self.handle.facts, self.layout)

    def check_unchanged(self, title: str) -> None:
        now = reading(self.handle, title, self.handle.look)
        if repr(now) != repr(self.layout):  # attributes may hold arrays
            raise DataError(
                f"{title} at {self.handle} was changed in the meantime: it was {self.layout}, now {now}. Fit "
                "again once it stays as it is."
            )


def _merged(runs: tuple[int, ...], rows: int) -> Chunks:
    """Neighbouring runs together, up to so many rows."""
    chunks = [0] if runs else []
    for run in runs:
        if chunks[-1] and chunks[-1] + run > rows:
            chunks.append(0)
        chunks[-1] += run
    even_chunks(len(chunks), 1)  # refuses too many
    return tuple(chunks)


def reading(place: Any, where: str, function: Callable[..., T], *arguments: Any) -> T:
    """What a function reads at a place, again where its store fails; `DataError` where it cannot."""
    return attempt(f"{place} cannot be read ({where})", function, *arguments)


def needed(library: str, extra: str, place: Any) -> Any:
    """A library that an extra brings; `DataError` that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise DataError(f'To read {place}, {library} is needed: pip install "daskgmm[{extra}]"') from error
