"""Passes on the workers of a `distributed.Client`; every wait has a limit."""

import math
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, cast
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet

import dask
import distributed
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_bytes, parse_bytes, parse_timedelta
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from daskgmm.compute.engine import Blocks, Engine
from daskgmm.compute.rows import Rows
from daskgmm.errors import (
    BlockTooLargeError,
    ClusterLostError,
    DataError,
    UnfitWorkersError,
    WorkersKilledError,
    warn,
)

# Limits to waits, in the configuration under daskgmm.timeouts.
TIMEOUTS = {"no-workers": "5 minutes", "scheduler": "1 minute"}
POLL = 1.0  # seconds between looks at a cluster that has not answered yet
HOLDS = 0.8  # of its memory: from there on a worker pauses (distributed.worker.memory.pause)
PATIENCE = 10.0  # seconds for workers to say whether they can import this package
VERSION = "__import__('daskgmm').__version__"  # evaluated there: a function of ours could not be unpickled
KEEPS = 0.5  # of the workers' memory: rows that stay between passes


@dataclass(frozen=True, kw_only=True)
class Cluster(Engine):
    """The workers of a client, whether or not it is the default one."""

    client: distributed.Client  # type: ignore[misc]  # of each engine its own
    task_seconds: ClassVar[float] = 2e-3

    @property
    def get(self) -> Callable[..., Any]:
        return self.client.get

    @property
    def threads(self) -> int:
        """How many compute; one at least, as a cluster may yet have to start its workers."""
        return max(1, threads(self.client))

    @property
    def threads_each(self) -> int:
        return max((int(worker["nthreads"]) for worker in workers(self.client).values()), default=1)

    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
        graph = {**rows.graph, **tasks}
        # Not `dask.persist`: where the client is not the default one, it would wait for the values and fetch them.
        held = self.client.persist([Delayed(key, graph) for key in tasks], optimize_graph=False)
        return {key: part.dask[key] for key, part in zip(tasks, held, strict=True)}

    def room(self) -> float:
        """Half of the workers' memory, and ``daskgmm.memory-limit`` in Dask's configuration, if that is set.

        None where a worker's limit is not known.
        """
        limit = dask.config.get("daskgmm.memory-limit", None)
        limits = [worker.get("memory_limit") or 0 for worker in workers(self.client).values()]
        most = KEEPS * sum(limits) if all(limits) else 0
        return float(min(most, math.inf if limit is None else parse_bytes(limit)))

    def _evaluate(
        self, graph: dict[Hashable, Any], keys: list[Hashable], blocks: Blocks, names: tuple[str, str, str]
    ) -> list[Any]:
        values = gather(self.client, graph, keys)
        if self.report and names[1]:  # no blocks by themselves
            self.report(blocks.n_blocks, blocks.n_blocks)
        return values


def _seconds(timeout: str) -> float:
    return float(parse_timedelta(dask.config.get(f"daskgmm.timeouts.{timeout}", TIMEOUTS[timeout])))


def gather(client: distributed.Client, graph: Mapping[Hashable, Any], keys: list[Hashable]) -> list[Any]:
    """Compute keys of a graph on a client; what a cluster can do to it is a `ClusterLostError`."""
    # An adaptive cluster starts its workers for tasks: only what is gone for good keeps them from being sent.
    _last_seen(client, time.monotonic())
    # A plain dictionary would be tokenised, parameters and all, which takes as long as half of the pass.
    layered = HighLevelGraph.from_collections(f"daskgmm-{uuid4().hex}", cast(Mapping[Any, Any], graph))
    try:
        futures = client.get(layered, keys, sync=False)
        try:
            values = None
            with seceded():
                while values is None:
                    _wait(client, futures)
                    values = _collect(client, futures)
        finally:
            for future in futures:  # after an error or an interrupt the workers are not to go on
                future.release()
            # The client's log of its last 1000 messages, for its developers, would keep the graph of every pass.
            if client.scheduler_comm is not None:
                client.scheduler_comm.recent_message_log.clear()
        return list(values)
    except KilledWorker as error:
        _able.pop(client, None)
        check_package(client)
        raise WorkersKilledError(
            f"{error.allowed_failures + 1} workers in turn died on the task {error.task}; the last was "
            f"{error.last_worker.address}. Most often a block needs more memory than the worker has: use a "
            "smaller block_size, fewer threads per worker or workers with more memory, and read the worker's log."
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterLostError(
            f"The scheduler {_address(client)} is gone, or has lost the work of this fit."
        ) from error


@contextmanager
def seceded() -> Iterator[None]:
    """In a task of a worker, leave its thread to the tasks that are waited for, as `Client.get` does."""
    try:
        distributed.secede()
        left = True
    except Exception:  # no task, or one that has left for good
        left = False
    try:
        yield
    finally:
        if left:
            distributed.rejoin()


def _collect(client: distributed.Client, futures: list[Any]) -> Any:
    """Values of futures that are done; raises what a failed one did. None where one has to be computed again."""
    limit = _seconds("no-workers")  # the values are small, but their worker may be gone meanwhile, and all others

    async def collect() -> Any:
        try:
            return await client.gather(futures, asynchronous=True), None
        except Exception as error:  # its own TimeoutError is not ours
            return None, error

    try:
        values, failure = client.sync(collect, callback_timeout=limit)
    except TimeoutError as error:
        if any(future.status in ("pending", "lost") for future in futures):
            return None  # its worker died before it was fetched
        raise ClusterLostError(
            f"The scheduler {_address(client)} has not handed over a result for {limit:g} s "
            "(daskgmm.timeouts.no-workers)."
        ) from error
    if failure is not None:
        raise failure
    return values


def _wait(client: distributed.Client, futures: list[Any]) -> None:
    """Return when all are finished or one has failed; raise once the cluster has been gone for too long."""
    seen = time.monotonic()
    while True:
        with suppress(TimeoutError), client.as_current():  # it may be nobody's default
            distributed.wait(futures, timeout=POLL)
            return
        if any(future.status in ("error", "cancelled") for future in futures):
            return
        seen = _last_seen(client, seen)


def threads(client: distributed.Client) -> int:
    """Threads of the workers that are there."""
    if client.scheduler is None:
        return 0
    try:
        return sum(client.sync(client.scheduler.ncores, callback_timeout=_seconds("scheduler")).values())
    except (OSError, TimeoutError) as error:
        raise _silent(client, error) from error


def _last_seen(client: distributed.Client, seen: float) -> float:
    """Now, if a worker is there; `ClusterLostError` where none has been for as long as the timeouts allow."""
    limit, silent = _seconds("no-workers"), _seconds("scheduler")
    try:
        if client.status in ("closing", "closed") or client.scheduler is None:
            raise ClusterLostError("The client is closed, or has lost its scheduler.")
        there = client.sync(client.scheduler.ncores, callback_timeout=max(POLL, silent))
    except (OSError, TimeoutError) as error:
        if client.status in ("closing", "closed") or time.monotonic() - seen > silent:
            raise _silent(client, error) from error
        return seen
    if there:
        return time.monotonic()
    if time.monotonic() - seen > limit:
        raise ClusterLostError(
            f"The scheduler {_address(client)} has had no worker for {limit:g} s (daskgmm.timeouts.no-workers). "
            "Start some, and fit again. Where those that were there have ended by themselves, see their log: they "
            "may lack daskgmm."
        )
    return seen


def _silent(client: distributed.Client, error: Exception) -> ClusterLostError:
    limit = _seconds("scheduler")
    return ClusterLostError(
        f"The scheduler {_address(client)} has not answered for {limit:g} s "
        f"(daskgmm.timeouts.scheduler): {str(error).rstrip('.')}."
    )


def _address(client: distributed.Client) -> str:
    return str(client.scheduler.address) if client.scheduler else "?"


def check_package(client: distributed.Client) -> None:
    """Refuse workers and schedulers that cannot import this package, and warn of other versions.

    Such a worker would end at its first task, without a word to us. One that does not answer is left to its tasks.
    """

    async def ask() -> dict[str, Any]:
        found = await client.run(eval, VERSION, on_error="return")
        try:
            return {**found, "the scheduler": await client.run_on_scheduler(eval, VERSION)}
        except Exception as error:
            return {**found, "the scheduler": error}

    here = set(workers(client))
    if here and here <= _able.get(client, set()):
        return
    found: dict[str, Any] = {}
    with suppress(OSError, TimeoutError):
        found = client.sync(ask, callback_timeout=PATIENCE)
    own = eval(VERSION)
    if lacking := {who: error for who, error in found.items() if isinstance(error, ImportError)}:
        first, why = next(iter(lacking.items()))
        raise UnfitWorkersError(
            f"daskgmm cannot be imported on {_listed(lacking)}. {first} says: {type(why).__name__}: {why}.\n"
            f"Install daskgmm {own} wherever the cluster runs, with the libraries that it has here."
        )
    if others := {who: version for who, version in found.items() if isinstance(version, str) and version != own}:
        told = ", ".join(sorted(set(others.values())))
        warn(
            f"daskgmm is {own} here, and {told} on {_listed(others)}. What differs may end the fit, or "
            "alter its result."
        )
    _able[client] = here & found.keys()


# Workers that have been asked: not once for each batch of a stream.
_able: WeakKeyDictionary[distributed.Client, set[str]] = WeakKeyDictionary()


def _listed(names: Mapping[str, Any]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - 3
    return ", ".join([*names][:3]) + (f" and {more} more" if more > 0 else "")


def asynchronous() -> RuntimeError | None:
    """What to raise where the current client is asynchronous: a fit waits for its passes."""
    setting = dask.config.get("scheduler", None)
    try:
        client = setting if isinstance(setting, distributed.Client) else distributed.Client.current()
    except ValueError:
        return None
    if not client.asynchronous:
        return None
    return RuntimeError(
        "The current Dask client is asynchronous, and chunked rows are computed on it at once. Call from another "
        "thread, as in `await asyncio.to_thread(model.fit, X)`, or make the client with asynchronous=False."
    )


# Those of the process that this one was forked from: their threads, and so their connections, stayed there.
_inherited: WeakSet[distributed.Client] = WeakSet()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _inherited.update(distributed.Client._instances))


def check_fit(client: distributed.Client, rows: Rows) -> None:
    """Refuse what can never work: a client cut off by a fork, blocks that workers can neither read nor hold."""
    if client in _inherited:
        raise ClusterLostError(
            "The Dask client was made before this process was forked from another, and works in that one alone. "
            'Make a client here, or start processes with "spawn" or "forkserver".'
        )
    check_package(client)
    if not _address(client).startswith("inproc"):
        for title in [title for title, source in rows.sources.items() if source.in_driver]:
            raise DataError(
                f"{title} lies in the memory of this process, or in a file that it writes, which workers cannot "
                "read. Write it to a store that they can, or open the file read-only, or fit without a client."
            )
    if not rows.block_bytes:
        return
    for address, worker in workers(client).items():
        limit = worker.get("memory_limit") or 0
        if limit and rows.block_bytes > HOLDS * limit:
            raise BlockTooLargeError(
                f"The largest block takes {format_bytes(rows.block_bytes)}, and the worker {address} has "
                f"{format_bytes(limit)}. Use a smaller block_size or smaller chunks, or workers with more memory."
            )


def workers(client: distributed.Client) -> dict[str, Any]:
    """What the scheduler knows of its workers, by address."""
    if client.scheduler is None:
        return {}
    try:
        found = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=_seconds("scheduler"))
    except (OSError, TimeoutError) as error:
        raise _silent(client, error) from error
    return dict(found["workers"])
