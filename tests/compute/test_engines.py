"""Which engine runs: threads unless Dask says otherwise, and the active client for chunked rows alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dask
import dask.array as da
import dask.multiprocessing
import dask.threaded
import numpy as np
import pytest
from dask.local import get_sync

from daskgmm import GaussianMixture
from daskgmm.compute.cluster import Cluster
from daskgmm.compute.engines import engine_for, on_threads
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.compute.threads import Plain, Threads
from daskgmm.errors import DataError

X = np.random.default_rng(0).normal(size=(407, 3))
WEIGHT = da.from_array(np.ones(len(X)), chunks=29)

ROWS: dict[str, Rows] = {
    "one block": as_rows(X),
    "many blocks": as_rows(X, block_size=1000),
    "chunked": as_rows(da.from_array(X, chunks=(29, 3))),
    "chunked weights": as_rows(X, weight=WEIGHT),
}
THREADS = Threads(get=dask.threaded.get)


@pytest.mark.parametrize("rows", ROWS)
def test_threads_unless_told_otherwise(rows: str) -> None:
    # One block in memory is not worth a scheduler.
    usual = Plain() if rows == "one block" else THREADS
    assert engine_for(ROWS[rows]) == usual
    with dask.config.set(scheduler="synchronous"):
        assert engine_for(ROWS[rows]) == Threads(get=get_sync)
    with dask.config.set(scheduler="threads"):
        assert engine_for(ROWS[rows]) == THREADS
    with dask.config.set(scheduler="processes"):  # what is in memory never leaves this process
        assert engine_for(ROWS[rows]) == (Threads(get=dask.multiprocessing.get) if "chunk" in rows else usual)
    own = partial(dask.threaded.get, num_workers=1)
    with dask.config.set(scheduler=own):
        assert engine_for(ROWS[rows]) == Threads(get=own)
    with ThreadPoolExecutor(1) as pool, dask.config.set(scheduler=pool):
        engine = engine_for(ROWS[rows])
        assert isinstance(engine, Threads)
        assert engine.get.args[0] == pool.submit  # type: ignore[attr-defined]


@pytest.mark.timeout(60)
def test_parts_of_one_of_many_tasks_are_done_in_its_thread() -> None:
    def task(number: int) -> tuple[bool, Any]:
        own = threading.get_ident()
        return own == here, {own} == {*on_threads(lambda _: threading.get_ident(), range(3))} and engine_for(rows)

    here, rows = threading.get_ident(), ROWS["many blocks"]
    assert on_threads(task, range(4)) == [(False, Plain())] * 4
    with ThreadPoolExecutor(2) as pool, dask.config.set(scheduler=pool):  # whose threads would wait for each other
        assert on_threads(task, range(4)) == [(False, Plain())] * 4
        assert isinstance(engine_for(rows), Threads)
    assert on_threads(lambda _: threading.get_ident(), range(1)) == [here]
    assert engine_for(rows) == THREADS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", [lambda: on_threads(abs, [1]), lambda: engine_for(ROWS["many blocks"])])
def test_tasks_that_nobody_waits_for_end_before_their_next_part(part: Any) -> None:
    """One that fails, or an interrupt of who waits, leaves no thread behind that goes on to its end."""
    begun, failed, parts = threading.Event(), threading.Event(), list[int]()
    ended = threading.Event()

    def task(fails: bool) -> None:
        if fails:
            begun.wait()
            raise KeyboardInterrupt
        try:
            for number in range(3):
                part()
                parts.append(number)
                begun.set()
                failed.wait()
        finally:
            ended.set()

    with ThreadPoolExecutor(2) as pool, dask.config.set(scheduler=pool):
        with pytest.raises(KeyboardInterrupt):
            on_threads(task, [True, False])
        failed.set()
        ended.wait()
    assert parts == [0]
    assert on_threads(abs, [-1, 2]) == [1, 2]


@pytest.mark.timeout(60)
def test_the_active_client_gets_chunked_rows_alone(clusters: Any) -> None:
    client = clusters(1, False)
    with client.as_current():
        assert engine_for(ROWS["one block"]) == Plain()
        assert engine_for(ROWS["many blocks"]) == THREADS
        for rows in (ROWS["chunked"], ROWS["chunked weights"]):
            assert engine_for(rows) == Cluster(client=client)
            assert engine_for(rows).client is client
            with dask.config.set(scheduler="synchronous"):
                assert engine_for(rows) == Threads(get=get_sync)
    assert engine_for(ROWS["chunked"]) == THREADS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_errors_of_a_cluster_name_block_and_rows(processes: bool, clusters: Any) -> None:
    x = X.copy()
    x[30, 1] = np.nan
    client = clusters(2, processes)
    with client.as_current(), pytest.raises(DataError, match=r"contains NaN: block 1, row\(s\) 30\."):
        GaussianMixture(2).fit(da.from_array(x, chunks=(29, 3)))


@pytest.mark.parametrize(
    ("get", "room"),
    [
        (dask.threaded.get, 1000.0),
        (get_sync, 1000.0),
        (dask.multiprocessing.get, 0.0),  # shares no memory with this process
        (partial(dask.threaded.get, num_workers=1), 0.0),
    ],
)
def test_room_is_what_the_configuration_says_where_memory_is_shared(get: Any, room: float) -> None:
    with dask.config.set({"daskgmm.memory-limit": "1 kB"}):
        assert Threads(get=get).room() == room
        assert Plain().room() == 0
    if room:
        assert Threads(get=get).room() > 2**20
