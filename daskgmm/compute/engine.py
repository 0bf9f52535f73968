"""Map a function over the blocks of some rows and add the results up a fixed tree; the only file that knows
the scheduler.

The tree is binary over block numbers, split at the largest power of two. It depends on nothing but the number
of blocks, so the same blocks give the same bits on any number of workers, on threads or processes, and
whatever ``span``, the number of consecutive blocks that one task works through.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

import dask
import dask.base
import dask.threaded
import distributed
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from daskgmm.compute.rows import Block, Rows


class Monoid(Protocol):
    """Anything that adds up: ``a + b`` is the result of both sets of rows."""

    def __add__(self, other: Self) -> Self:
        """Merge with the result of later rows."""
        ...


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
        """Dask graph that the tasks refer to."""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""

    def task(self, index: int) -> tuple[Any, ...]:
        """Dask task that evaluates to block ``index``."""


def _apply(function: Callable[[Block], T], block: Block) -> T:
    return function(block)


@dataclass(frozen=True)
class Engine:
    """Runs one pass.

    Parameters
    ----------
    get : callable
        A Dask scheduler's ``get(graph, key)``: `dask.threaded.get`, a client's, ...
    span : int
        Blocks per task, a power of two; the blocks of one task are read in turn, never together. Rows whose
        blocks come out of a Dask graph have one block per task all the same.
    """

    get: Callable[..., Any]
    span: int = 1

    def reduce(
        self,
        rows: Blocks,
        function: Callable[[Block], M],
        report: Callable[[int, int], None] | None = None,
        span: int | None = None,
    ) -> M:
        """``function`` of every block, added up. ``report`` is told blocks done and blocks in all."""
        name = f"daskgmm-{uuid4().hex}"
        if span is None:
            span = 1 if rows.graph else self.span
        # Names are strings that no other key can equal; the function is in the graph once.
        graph: dict[Hashable, Any] = {**rows.graph, name: function}
        root = (name, 0, rows.n_blocks)
        graph[root] = _subtree(graph, rows, name, span, 0, rows.n_blocks)
        with _Watch(name, span, rows.n_blocks, report):
            result: M = self.get(graph, root)
        return result

    def held_span(self, n_blocks: int) -> int:
        """Blocks per task where `hold` has them in this process: two tasks for each thread; one on a client."""
        if self.on_client:
            return 1
        threads = dask.config.get("num_workers", None) or CPU_COUNT
        return 1 << max(1, n_blocks // (2 * threads)).bit_length() - 1

    @property
    def on_client(self) -> bool:
        """Whether a client's workers compute."""
        return isinstance(getattr(self.get, "__self__", None), distributed.Client)

    def hold(self, rows: Blocks, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate tasks that may refer to ``rows.graph``; what a graph must hold to refer to their values.

        The values stay where they were computed: in this process, or on a client's workers until the last
        reference to them goes.
        """
        graph = {**rows.graph, **tasks}
        parts = [Delayed(key, graph) for key in tasks]
        held = dask.base.persist(*parts, scheduler=self.get, optimize_graph=False)
        return {key: part.dask[key] for key, part in zip(tasks, held, strict=True)}

    def each(self, rows: Rows, function: Callable[[Block], T], blocks: Sequence[int]) -> list[T]:
        """``function`` of some blocks, each by itself."""
        name = f"daskgmm-{uuid4().hex}"
        graph: dict[Hashable, Any] = {**rows.graph, name: function}
        graph |= {(name, index): (_apply, name, rows.task(index)) for index in blocks}
        return list(self.get(graph, [(name, index) for index in blocks]))


def _subtree(
    graph: dict[Hashable, Any], rows: Blocks, name: str, span: int, first: int, last: int
) -> tuple[Any, ...]:
    """The task that adds up blocks ``first`` to ``last``; the tasks that it refers to go into ``graph``.

    A function, not a closure: one that calls itself would keep every pass's graph alive until the next
    collection of cycles.
    """
    if last - first == 1:
        return (_apply, name, rows.task(first))
    middle = first + (1 << (last - first - 1).bit_length() - 1)
    halves = []
    for lo, hi in ((first, middle), (middle, last)):
        task = _subtree(graph, rows, name, span, lo, hi)
        if last - first > span:  # else part of this task, which works through its blocks in turn
            graph[name, lo, hi] = task
            task = (name, lo, hi)
        halves.append(task)
    return (add, *halves)


class _Watch(Callback):
    """Reports blocks as Dask's local schedulers finish them; on a client, only whole passes."""

    def __init__(self, name: str, span: int, total: int, report: Callable[[int, int], None] | None) -> None:
        self.name, self.span, self.total, self.report = name, span, total, report
        self.done = 0
        super().__init__(posttask=self._finished)  # type: ignore[no-untyped-call]

    def _finished(self, key: Any, *_: Any) -> None:
        if self.report and isinstance(key, tuple) and key[0] == self.name and len(key) == 3:
            blocks = key[2] - key[1]
            if blocks <= self.span:  # larger subtrees only add
                self.done += blocks
                self.report(self.done, self.total)

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        if self.report and failure == (None, None, None) and self.done < self.total:
            self.report(self.total, self.total)


def engine_for(rows: Rows) -> Engine:
    """Threads for rows in memory, else the scheduler that Dask would take; an explicit setting wins."""
    get = dask.base.get_scheduler()
    if get is None or (rows.in_memory and Engine(get).on_client and not rows.graph):
        get = dask.threaded.get
    return Engine(get)
