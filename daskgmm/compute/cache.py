"""Rows kept in memory between the passes of a fit: read and decoded once, where they fit."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.engine import READING, Engine
from daskgmm.compute.rows import Rows, read_at
from daskgmm.compute.sources import Chunks, Delayed, Source, Stored, _Cut


@dataclass(eq=False)
class Room:
    """Bytes that are left; the parts of several sources may share them, on any thread."""

    left: float
    lock: Lock = field(default_factory=Lock)

    def take(self, size: int) -> bool:
        """Whether there was room for so many bytes, which are now taken."""
        with self.lock:
            fits = size <= self.left
            self.left -= size * fits
        return fits


@dataclass(frozen=True, eq=False, repr=False)
class Kept(_Cut):
    """A source whose parts stay in this process, as they were read: the first ones that there is room for."""

    source: Source
    room: Room
    parts: dict[int, Array] = field(default_factory=dict)

    @property
    def chunks(self) -> Chunks:  # type: ignore[override]
        return self.source.chunks

    @property
    def collection(self) -> da.Array | None:  # type: ignore[override]
        return None if self.whole else self.source.collection

    @property
    def whole(self) -> bool:
        """Whether every part is kept."""
        return len(self.parts) == len(self.chunks)

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a task may wait for a store."""
        return not self.whole and self.source.waits

    @property
    def shape(self) -> tuple[float, ...]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    def plan(self, block_bytes: int) -> Chunks:
        return self.source.plan(block_bytes)

    def cut(self, chunks: Chunks) -> Source:
        return self.source.cut(chunks)

    def check_unchanged(self, title: str) -> None:
        self.source.check_unchanged(title)

    def part(self, index: int) -> Any:
        return None if index in self.parts else self.source.part(index)

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return self._read

    def _read(self, index: int, part: Any) -> Any:
        value = self.parts.get(index)
        if value is None:
            value = self.source.reader(index, part)
            if self.room.take(value.nbytes):
                self.parts[index] = value
        return value


@contextmanager
def kept(engine: Engine, rows: Rows, wanted: bool = True) -> Iterator[Rows]:
    """The same rows, such that their blocks stay in memory once read; dropped at the end, after errors too.

    On threads the first blocks that fit in `Engine.room` beside those that are read ahead stay; on a client all
    rows, or none, lie on its workers.
    What belongs to the start is looked at once and not kept.
    """
    room = engine.room() - READING * rows.block_bytes * engine.ahead(rows) if wanted else 0
    if room <= 0 or not isinstance(rows.x, Stored | Delayed):
        yield rows
    elif engine.client is None:
        shared = Room(room)
        x: Any = Kept(rows.x, shared)
        weight: Any = Kept(rows.weight, shared) if isinstance(rows.weight, Stored | Delayed) else rows.weight
        try:
            yield replace(rows, x=x, weight=weight)
        finally:
            shared.left = 0  # a task that an interrupt left running keeps nothing
            for source in (x, weight):
                if isinstance(source, Kept):
                    source.parts.clear()
    elif rows.n_rows is not None and replace(rows, start=None).total_bytes <= room:
        futures: list[Any] = []
        try:
            x, weight = (_persisted(engine.client, s, futures) for s in (rows.x, rows.weight))
            yield replace(rows, x=x, weight=weight)
        finally:
            for future in futures:
                future.release()
    else:
        yield rows


def _persisted(client: Any, source: Any, futures: list[Any]) -> Any:
    """A source on the workers of a client, which computes a part anew should its worker die."""
    if not isinstance(source, Stored | Delayed):
        return source
    lazy = source.array if isinstance(source, Delayed) else _as_dask(source)
    own = {id(future) for future in client.futures_of(lazy)}  # persisted by the user: not ours to release
    held = client.persist(lazy)
    futures += [future for future in client.futures_of(held) if id(future) not in own]
    return Delayed(held)


def _as_dask(source: Stored) -> da.Array:
    """A Dask array with one chunk for each part."""
    name = f"daskgmm-read-{uuid.uuid4().hex}"
    rest = (0,) * (len(source.shape) - 1)
    reader = f"daskgmm-source-{uuid.uuid4().hex}"
    layer: dict[Any, Any] = {
        (name, i, *rest): (partial(read_at, i), reader, None) for i in range(len(source.chunks))
    }
    layer[reader] = source.reader
    chunks = (source.chunks, *((int(size),) for size in source.shape[1:]))
    return da.Array(layer, name, chunks, dtype=source.dtype)
