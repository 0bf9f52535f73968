"""Map a function over the blocks of some rows and add the results up a fixed tree; this file and ``cluster.py``
are the only ones that know the scheduler.

The tree is binary over block numbers, split at the largest power of two. It depends on nothing but the number
of blocks, so the same blocks give the same bits on any number of workers, on threads or processes, and
whatever ``span``, the number of consecutive blocks that one task works through.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import add
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

import dask
import dask.base
import dask.threaded
import distributed
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.local import get_sync
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT

from daskgmm.compute import cluster
from daskgmm.compute.rows import Block, Rows


class Monoid(Protocol):
    """Anything that adds up: ``a + b`` is the result of both sets of rows."""

    def __add__(self, other: Self) -> Self:
        """Merge with the result of later rows."""
        ...


KEEPS, CLUSTER_KEEPS = 0.25, 0.5  # of the memory: rows that stay between passes, here and on a cluster
AHEAD = 2  # more threads for each that computes, which read from a store meanwhile
READING = 3  # blocks' worth of memory that a thread needs for one
# What the size of a task follows from. A task costs its scheduler some time, whoever else works meanwhile, and a
# thread gets through a block no faster than this.
TASK_SECONDS = {False: 0.4e-3, True: 2e-3}  # on threads, on a client; with its sum
BLOCK_RATE = 500e6  # bytes a second and thread
SHARE = 0.05  # of a pass that may go to scheduling
TASKS_PER_THREAD = 4  # at least, where there are blocks enough: the last ones leave few threads idle

M = TypeVar("M", bound=Monoid)
T = TypeVar("T")


class Bundle(tuple[Any, ...]):
    """Several monoids side by side, added in pairs: what several runs want from one block."""

    def __add__(self, other: tuple[Any, ...]) -> Bundle:
        return Bundle(a + b for a, b in zip(self, other, strict=True))


class Blocks(Protocol):
    """Numbered blocks: `Rows`, or a mini-batch of them."""

    @property
    def graph(self) -> Mapping[Any, Any]:
        """What the tasks refer to: the reader under `key`, and whatever `parts` names."""

    @property
    def key(self) -> str:
        """Where the graph holds the reader, a function of the number of a block and its parts."""

    @property
    def lazy(self) -> bool:
        """Whether parts are keys of the graph."""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""

    def parts(self, index: int) -> tuple[Any, ...]:
        """What the reader needs for a block beside its number; nothing where it reads a store."""


def _add_up(
    first: int, last: int, function: Callable[[Any], M], read: Callable[..., Any], parts: Sequence[Any] = ()
) -> M:
    """``function`` of blocks ``first`` to ``last``, read in turn and added up as the tree above them is."""
    if last - first == 1:
        return function(read(first, *(parts[0] if parts else ())))
    middle = _middle(first, last)
    left = _add_up(first, middle, function, read, parts[: middle - first])
    return left + _add_up(middle, last, function, read, parts[middle - first :])


def _middle(first: int, last: int) -> int:
    """Where the tree splits: after the largest power of two."""
    return first + (1 << (last - first - 1).bit_length() - 1)


@dataclass(frozen=True)
class _InTurn:
    """A function that few threads at a time compute, while others read."""

    function: Callable[[Any], Any]
    permits: threading.Semaphore

    def __call__(self, block: Any) -> Any:
        with self.permits:
            return self.function(block)


@dataclass(frozen=True)
class _Names:
    """Fresh names for the keys of a pass, which the dashboard shows without their digits.

    A name each for the function, what works through blocks and what only adds: Dask shares tasks out evenly among
    workers, and learns how long they take, by the name.
    """

    function: str
    work: str
    total: str

    @classmethod
    def of(cls, function: Any) -> _Names:
        kind = getattr(function, "__name__", type(function).__name__).strip("<>").lower()
        tag = uuid4().hex
        return cls(f"daskgmm-map-{tag}", f"daskgmm-{kind}-{tag}", f"daskgmm-total-{tag}")


@dataclass(frozen=True)
class Engine:
    """Runs one pass.

    Parameters
    ----------
    get : callable
        A Dask scheduler's ``get(graph, key)``: `dask.threaded.get`, a client's, ...
    span : int, optional
        Blocks per task, a power of two; the blocks of one task are read in turn, never together. Without it,
        enough that scheduling costs little, and few enough that every thread has its share of the tasks. Rows
        whose blocks come out of a Dask graph have one block per task all the same: a task's inputs are all there
        before it begins.
    """

    get: Callable[..., Any]
    span: int | None = None

    def reduce(
        self,
        rows: Blocks,
        function: Callable[[Any], M],
        report: Callable[[int, int], None] | None = None,
        span: int | None = None,
    ) -> M:
        """``function`` of every block, added up. ``report`` is told blocks done and blocks in all."""
        names = _Names.of(function)
        if span is None:
            span = 1 if rows.lazy else self.span or self._span(rows)
        # Names are strings that no other key can equal; the function is in the graph once, and so is the reader.
        graph: dict[Hashable, Any] = {**rows.graph, names.function: function}
        root = _subtree(graph, rows, names, span, 0, rows.n_blocks)
        engine, ahead = self, self.ahead(rows) if isinstance(rows, Rows) else 0
        if ahead:
            engine = replace(self, get=partial(dask.threaded.get, num_workers=self.threads + ahead))
            graph[names.function] = _InTurn(function, threading.Semaphore(self.threads))
        with _Watch(names.work, rows.n_blocks, report):
            (result,) = engine._evaluate(graph, [root])
        return result  # type: ignore[no-any-return]

    def _evaluate(self, graph: Mapping[Hashable, Any], keys: list[Hashable]) -> list[Any]:
        """Values of some keys; on a client, with a limit to every wait."""
        client = self.client
        return list(self.get(graph, keys)) if client is None else cluster.gather(client, graph, keys)

    def _span(self, rows: Blocks) -> int:
        """Blocks per task for rows that tasks read."""
        threads = self.threads
        block_seconds = max(1, getattr(rows, "block_bytes", 0)) / BLOCK_RATE
        wanted = TASK_SECONDS[self.on_client] * threads / (SHARE * block_seconds)
        most = rows.n_blocks // (TASKS_PER_THREAD * threads)
        return 1 << int(max(1, min(wanted, most))).bit_length() - 1

    @property
    def threads(self) -> int:
        """How many threads compute; one at least, as a cluster may yet have to start its workers."""
        client = self.client
        return (
            max(1, cluster.threads(client)) if client else int(dask.config.get("num_workers", None) or CPU_COUNT)
        )

    def held_span(self, n_blocks: int) -> int:
        """Blocks per task where `hold` has them in this process: a task for each thread; one on a client."""
        if self.on_client:
            return 1
        return 1 << max(1, n_blocks // self.threads).bit_length() - 1

    @property
    def on_client(self) -> bool:
        """Whether a client's workers compute."""
        return self.client is not None

    @property
    def client(self) -> distributed.Client | None:
        """Whose workers compute."""
        owner = getattr(self.get, "__self__", None)
        return owner if isinstance(owner, distributed.Client) else None

    def ahead(self, rows: Rows) -> int:
        """How many more threads than compute at a time read from a store meanwhile, within the memory limit."""
        if self.get is not dask.threaded.get or not rows.waits:
            return 0
        return int(min(AHEAD * self.threads, self.room() // (READING * max(rows.block_bytes, 1))))

    def room(self) -> float:
        """Bytes of rows that may be in memory beside the blocks at work: read ahead, or kept between passes.

        ``daskgmm.memory-limit`` in Dask's configuration, else a quarter of the memory that this process may use;
        on a client at most half of the workers' memory, and none where a worker's limit is not known. None either
        on schedulers that neither share this process's memory nor hold values.
        """
        limit = dask.config.get("daskgmm.memory-limit", None)
        if self.client is not None:
            limits = [worker.get("memory_limit") or 0 for worker in cluster.workers(self.client).values()]
            most = CLUSTER_KEEPS * sum(limits) if all(limits) else 0
            return min(most, math.inf if limit is None else parse_bytes(limit))
        if self.get not in (dask.threaded.get, get_sync):
            return 0
        return KEEPS * MEMORY_LIMIT if limit is None else parse_bytes(limit)

    def hold(self, rows: Blocks, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate tasks that may refer to ``rows.graph``; what a graph must hold to refer to their values.

        The values stay where they were computed: in this process, or on a client's workers until the last
        reference to them goes.
        """
        graph = {**rows.graph, **tasks}
        parts = [Delayed(key, graph) for key in tasks]
        if self.client is not None:
            held = cluster.hold(self.client, parts)
        else:
            held = dask.base.persist(*parts, scheduler=self.get, optimize_graph=False)
        return {key: part.dask[key] for key, part in zip(tasks, held, strict=True)}

    def each(self, rows: Rows, function: Callable[[Block], T], blocks: Sequence[int]) -> list[T]:
        """``function`` of some blocks, each by itself."""
        names = _Names.of(function)
        graph: dict[Hashable, Any] = {**rows.graph, names.function: function}
        graph |= {(names.work, index): _work(rows, names, index, index + 1) for index in blocks}
        return self._evaluate(graph, [(names.work, index) for index in blocks])


def _subtree(
    graph: dict[Hashable, Any], rows: Blocks, names: _Names, span: int, first: int, last: int
) -> tuple[str, int, int]:
    """Put the task that adds up blocks ``first`` to ``last`` into ``graph``, with what it refers to; its key.

    A function, not a closure: one that calls itself would keep every pass's graph alive until the next
    collection of cycles.
    """
    if last - first <= max(span, 1):
        key = (names.work, first, last)
        graph[key] = _work(rows, names, first, last)
    else:
        key, middle = (names.total, first, last), _middle(first, last)
        halves = ((first, middle), (middle, last))
        graph[key] = (add, *(_subtree(graph, rows, names, span, lo, hi) for lo, hi in halves))
    return key


def _work(rows: Blocks, names: _Names, first: int, last: int) -> tuple[Any, ...]:
    """The task that works through blocks ``first`` to ``last`` in turn."""
    parts = [list(rows.parts(index)) for index in range(first, last)]
    # The numbers are no arguments: Dask would take them for keys, of which a user's graph may have such.
    return (partial(_add_up, first, last), names.function, rows.key, *([parts] if any(parts) else []))


class _Watch(Callback):
    """Reports blocks as Dask's local schedulers finish them; on a client, only whole passes."""

    def __init__(self, work: str, total: int, report: Callable[[int, int], None] | None) -> None:
        self.work, self.total, self.report = work, total, report
        self.done = 0
        super().__init__(posttask=self._finished)  # type: ignore[no-untyped-call]

    def _finished(self, key: Any, *_: Any) -> None:
        if self.report and isinstance(key, tuple) and key[0] == self.work:
            self.done += key[2] - key[1]
            self.report(self.done, self.total)

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        if self.report and failure == (None, None, None) and self.done < self.total:
            self.report(self.total, self.total)


def engine_for(rows: Rows) -> Engine:
    """Threads for rows in memory, else the scheduler that Dask would take; an explicit setting wins."""
    get = dask.base.get_scheduler()
    if get is None or (rows.in_memory and Engine(get).on_client and not rows.lazy):
        get = dask.threaded.get
    engine = Engine(get)
    if engine.client is not None:
        cluster.check_fit(engine.client, rows)
    return engine
