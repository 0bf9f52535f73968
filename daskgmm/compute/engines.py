"""Which engine runs the passes over some rows."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    if (get := _in_process(dask.config.get("scheduler", None))) is not None:
        return Threads(get=get)
    return Plain() if rows.n_blocks == 1 else Threads(get=dask.threaded.get)


def on_threads(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """What a function gives for each of its arguments, by the threads of this process, as for rows in memory."""
    tasks = {i: (partial(function, *each),) for i, each in enumerate(zip(*arguments, strict=True))}
    return list((_in_process(dask.config.get("scheduler", None)) or dask.threaded.get)(tasks, list(tasks)))


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
