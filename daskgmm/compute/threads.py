"""Passes in this process: on threads through one of Dask's local schedulers, or plainly in the calling thread."""

import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing.pool import Pool
from typing import Any, ClassVar

import dask
import dask.base
import dask.multiprocessing
import dask.threaded
import numpy as np
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.local import get_sync
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cost import Metered
from daskgmm.compute.engine import Blocks, Engine, M, T, add_up, tree
from daskgmm.compute.rows import Rows

KEEPS = 0.25  # of the memory that this process may use: rows that stay between passes
AHEAD = 2  # more threads for each that computes, which read from a store meanwhile
READING = 3  # blocks' worth of memory that a thread needs for one


@dataclass(frozen=True, kw_only=True)
class Threads(Engine):
    """One of Dask's local schedulers: threads, or what the user has set, such as processes."""

    get: Callable[..., Any] = dask.threaded.get

    @property
    def threads(self) -> int:
        return int(dask.config.get("num_workers", None) or CPU_COUNT)

    def reduce(self, blocks: Blocks, function: Callable[[Block], M]) -> M:
        """As any engine; blocks in this process go to threads by themselves, unless somebody watches Dask's tasks.

        A scheduler takes a millisecond or two for a handful of tasks, which is what many a mini-batch takes.
        """
        set_up = dask.config.get("pool", None) is not None or Callback.active
        if self.get is not dask.threaded.get or blocks.waits or blocks.lazy or set_up:
            return super().reduce(blocks, function)
        span, done = self.span or self._span(blocks), 0
        spans = tree(0, blocks.n_blocks, span, lambda *ends: [ends])

        def work(ends: tuple[int, int]) -> Any:
            return add_up(*ends, Metered(function), blocks.reader, [blocks.parts(index) for index in range(*ends)])

        parts = _pool(self.threads).map(work, spans) if len(spans) > 1 else map(work, spans)

        def part(first: int, last: int) -> Any:
            nonlocal done
            found, done = next(parts), done + last - first
            if self.report:
                self.report(done, blocks.n_blocks)
            return found

        found, cost = tree(0, blocks.n_blocks, span, part)
        if self.spend:
            self.spend(cost)
        return found  # type: ignore[no-any-return]

    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
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
        if self.get is not dask.threaded.get or not blocks.waits:
            return 0
        return int(min(AHEAD * self.threads, self.room() // (READING * max(blocks.block_bytes, 1))))

    def _evaluate(
        self, graph: dict[Hashable, Any], keys: list[Hashable], blocks: Blocks, names: tuple[str, str, str]
    ) -> list[Any]:
        # What is in memory stays in this process: processes would be started anew for every mini-batch.
        apart = blocks.held and self.get is dask.multiprocessing.get
        get: Callable[..., Any] = dask.threaded.get if apart else self.get
        done = 0
        if ahead := self.ahead(blocks):
            get = partial(get, num_workers=self.threads + ahead)
            if names[0] in graph:
                graph[names[0]] = replace(graph[names[0]], permits=threading.Semaphore(self.threads))

        def finished(key: Any, *_: Any) -> None:
            nonlocal done
            if self.report and isinstance(key, tuple) and key[0] == names[1]:
                done += key[2] - key[1]
                self.report(done, blocks.n_blocks)

        with Callback(posttask=finished):
            return list(get(graph, keys))


@dataclass(frozen=True, kw_only=True)
class Plain(Engine):
    """The calling thread, without a scheduler: for what is too small to share."""

    get: Callable[..., Any] = get_sync
    threads: ClassVar[int] = 1

    def reduce(self, blocks: Blocks, function: Callable[[Block], M]) -> M:
        parts = [blocks.parts(index) for index in range(blocks.n_blocks)]
        found, cost = add_up(0, blocks.n_blocks, Metered(function), blocks.reader, parts)
        if self.report:
            self.report(blocks.n_blocks, blocks.n_blocks)
        if self.spend:
            self.spend(cost)
        return found  # type: ignore[no-any-return]

    def each(self, rows: Rows, function: Callable[[Block], T], numbers: Sequence[int]) -> list[T]:
        return [function(rows.read(index)) for index in numbers]

    def answers(self, rows: Rows, function: Callable[[Block], Array], dtype: Any, columns: int | None) -> Array:
        return np.concatenate(self.each(rows, function, range(rows.n_blocks)))

    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(tasks, get_sync({**rows.graph, **tasks}, list(tasks)), strict=True))

    def room(self) -> float:
        """None: all rows are in memory as it is."""
        return 0.0

    def _evaluate(
        self, graph: dict[Hashable, Any], keys: list[Hashable], blocks: Blocks, names: tuple[str, str, str]
    ) -> list[Any]:
        return list(self.get(graph, keys))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "daskgmm")


def _forget_pools() -> None:
    """After a fork: the threads of all pools live on in the parent alone, and a task handed to them never ends."""
    _pool.cache_clear()
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()
    dask.threaded.pools_lock = threading.Lock()
    for name in ("pool", "scheduler"):
        if isinstance(dask.config.get(name, None), (Executor, Pool)):
            dask.config.config[name] = None  # not `set`, whose lock another thread may have held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
