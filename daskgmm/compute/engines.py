"""Which engine runs the passes over some rows."""

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from threading import Event
from typing import Any

import dask
import dask.base
import dask.multiprocessing
import dask.threaded
import distributed
from dask.core import flatten
from dask.utils import ensure_dict

from daskgmm.compute.cluster import Cluster, asynchronous, check_fit, gather
from daskgmm.compute.engine import Engine, T
from daskgmm.compute.rows import Rows
from daskgmm.compute.threads import Plain, Threads


def engine_for(rows: Rows) -> Engine:
    """Threads for rows in memory, which never leave this process, else the scheduler that Dask would take.

    One block in memory is not worth a scheduler. Neither is a client even looked for there: inside a task of a
    cluster that would make one.

    Raises
    ------
    RuntimeError
        If chunked rows meet a client that is asynchronous.
    CancelledError
        In a task of `on_threads` that nobody waits for any more.
    """
    if not rows.x.local or rows.lazy:
        try:
            get = dask.base.get_scheduler()
        except RuntimeError as error:
            raise asynchronous() or error from error
        client = getattr(get, "__self__", None)
        if isinstance(client, distributed.Client):
            check_fit(client, rows)
            return Cluster(client=client)
        return Threads(get=get or dask.threaded.get)
    if _part_of():
        return Plain()
    if (get := _in_process(dask.config.get("scheduler", None))) is not None:
        return Threads(get=get)
    return Plain() if rows.n_blocks == 1 else Threads(get=dask.threaded.get)


# Set where this thread does one of several tasks: whether nobody waits for them any more.
_abandoned: ContextVar[Event | None] = ContextVar("abandoned", default=None)


def on_threads(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """What a function gives for each of its arguments, by the threads of this process, as for rows in memory.

    Where it is interrupted, or one of them fails, the others end before their next parts.
    """
    calls = [partial(function, *each) for each in zip(*arguments, strict=True)]
    if (abandoned := _abandoned.get()) is not None or len(calls) < 2:
        return [_by_itself(abandoned, call) for call in calls]
    abandoned = Event()
    tasks = {i: (_by_itself, abandoned, call) for i, call in enumerate(calls)}
    try:
        return list((_in_process(dask.config.get("scheduler", None)) or dask.threaded.get)(tasks, list(tasks)))
    except BaseException:
        abandoned.set()
        raise


def _by_itself(abandoned: Event | None, call: Callable[[], T]) -> T:
    """What a call gives, all of it in this thread."""
    before = _abandoned.set(abandoned)
    try:
        _part_of()
        return call()
    finally:
        _abandoned.reset(before)


def _part_of() -> bool:
    """Whether this thread does one of several tasks, so that no thread is free for parts of it.

    Raises `CancelledError` where nobody waits for it: Python would not end before all threads have.
    """
    abandoned = _abandoned.get()
    if abandoned is not None and abandoned.is_set():
        raise CancelledError
    return abandoned is not None


def compute(lazy: Any) -> None:
    """Have the tasks of a Dask collection done where chunked rows are read; on a client every wait has a limit."""
    graph, keys = ensure_dict(lazy.__dask_graph__()), list(flatten(lazy.__dask_keys__()))
    get = dask.base.get_scheduler(collections=[lazy])
    client = getattr(get, "__self__", None)
    if isinstance(client, distributed.Client):
        gather(client, graph, keys)
    else:
        get(graph, keys)


def _in_process(setting: Any) -> Callable[..., Any] | None:
    """The scheduler that the user has set, unless it takes rows out of this process."""
    if isinstance(setting, str):
        setting = dask.base.named_schedulers.get(setting.lower())
    if isinstance(setting, ThreadPoolExecutor):
        return dask.base.get_scheduler(scheduler=setting)  # type: ignore[no-any-return]
    apart = setting is dask.multiprocessing.get or isinstance(
        getattr(setting, "__self__", None), distributed.Client
    )
    return setting if callable(setting) and not apart else None
