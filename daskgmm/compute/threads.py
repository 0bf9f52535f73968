"""Passes in this process: on threads through one of Dask's local schedulers, or plainly in the calling thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import dask
import dask.base
import dask.threaded
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.local import get_sync
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.engine import Blocks, M, Report, Scheduled, add_up
from daskgmm.compute.rows import Rows

KEEPS = 0.25  # of the memory that this process may use: rows that stay between passes
AHEAD = 2  # more threads for each that computes, which read from a store meanwhile
READING = 3  # blocks' worth of memory that a thread needs for one

T = TypeVar("T")


@dataclass(frozen=True)
class _InTurn:
    """A function that few threads at a time compute, while others read."""

    function: Callable[[Any], Any]
    permits: threading.Semaphore

    def __call__(self, block: Any) -> Any:
        with self.permits:
            return self.function(block)


@dataclass(frozen=True)
class Threads(Scheduled):
    """One of Dask's local schedulers: threads, or what the user has set, such as processes.

    Parameters
    ----------
    get : callable
        The scheduler's ``get(graph, keys)``.
    """

    get: Callable[..., Any] = dask.threaded.get
    client: ClassVar[None] = None
    task_seconds: ClassVar[float] = 0.4e-3

    @property
    def threads(self) -> int:
        return int(dask.config.get("num_workers", None) or CPU_COUNT)

    def watched(self, report: Report) -> Threads:
        """The same, which tells of the blocks that are done."""
        return replace(self, report=report)

    def answers(self, rows: Rows, function: Callable[[Block], Array], dtype: Any, columns: int | None) -> Array:
        """One answer for each row, of all blocks."""
        values: Array = rows.map(function, dtype=dtype, columns=columns).compute(scheduler=self.get)
        return values

    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Values of tasks, in this process."""
        graph = {**rows.graph, **tasks}
        held = dask.base.persist(*(Delayed(key, graph) for key in tasks), scheduler=self.get, optimize_graph=False)
        return {key: part.dask[key] for key, part in zip(tasks, held, strict=True)}

    def room(self) -> float:
        """``daskgmm.memory-limit`` in Dask's configuration, else a quarter of the memory of this process.

        None on schedulers that do not share this process's memory.
        """
        limit = dask.config.get("daskgmm.memory-limit", None)
        if self.get not in (dask.threaded.get, get_sync):
            return 0
        return float(KEEPS * MEMORY_LIMIT if limit is None else parse_bytes(limit))

    def ahead(self, blocks: Blocks) -> int:
        """Threads that read from a store while others compute, within the memory limit."""
        if self.get is not dask.threaded.get or not blocks.waits:
            return 0
        return int(min(AHEAD * self.threads, self.room() // (READING * max(blocks.block_bytes, 1))))

    def _shared(self, function: Callable[[Block], M], blocks: Blocks) -> Callable[[Block], M]:
        return _InTurn(function, threading.Semaphore(self.threads)) if self.ahead(blocks) else function

    def _evaluate(
        self, graph: Mapping[Hashable, Any], keys: list[Hashable], blocks: Blocks, work: str
    ) -> list[Any]:
        ahead = self.ahead(blocks)
        get = partial(self.get, num_workers=self.threads + ahead) if ahead else self.get
        with _Watch(work, blocks.n_blocks, self.report):
            return list(get(graph, keys))


class _Watch(Callback):
    """Reports blocks as Dask's local schedulers finish them."""

    def __init__(self, work: str, total: int, report: Report) -> None:
        self.work, self.total, self.report = work, total, report
        self.done = 0
        super().__init__(posttask=self._finished)  # type: ignore[no-untyped-call]

    def _finished(self, key: Any, *_: Any) -> None:
        if self.report and isinstance(key, tuple) and key[0] == self.work:
            self.done += key[2] - key[1]
            self.report(self.done, self.total)


@dataclass(frozen=True)
class Plain:
    """The calling thread, without a scheduler: for what is too small to share."""

    report: Report = None
    threads: ClassVar[int] = 1
    client: ClassVar[None] = None

    def reduce(self, blocks: Blocks, function: Callable[[Block], M]) -> M:
        """``function`` of every block, added up the tree."""
        parts = [blocks.parts(index) for index in range(blocks.n_blocks)]
        found = add_up(0, blocks.n_blocks, function, blocks.reader, parts)
        if self.report:
            self.report(blocks.n_blocks, blocks.n_blocks)
        return found

    def each(self, rows: Rows, function: Callable[[Block], T], numbers: Sequence[int]) -> list[T]:
        """``function`` of some blocks, each by itself."""
        return [function(rows.read(index)) for index in numbers]

    def answers(self, rows: Rows, function: Callable[[Block], Array], dtype: Any, columns: int | None) -> Array:
        """One answer for each row."""
        (found,) = self.each(rows, function, range(rows.n_blocks))
        return found

    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Values of tasks."""
        return dict(zip(tasks, get_sync({**rows.graph, **tasks}, list(tasks)), strict=True))

    def room(self) -> float:
        """None: all rows are in memory as it is."""
        return 0.0

    def ahead(self, blocks: Blocks) -> int:
        """None."""
        return 0

    def watched(self, report: Report) -> Plain:
        """The same, which tells of the blocks that are done."""
        return replace(self, report=report)
