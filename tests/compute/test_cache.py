"""Rows that fit are read once, others once a pass; the bits are the same."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.multiprocessing
import numpy as np
import pytest
import zarr
from dask.local import get_sync
from distributed import Client, LocalCluster
from zarr.storage import MemoryStore

from daskgmm import GaussianMixture, watching
from daskgmm.compute.block import Block
from daskgmm.compute.cache import kept
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import READING, Threads
from daskgmm.errors import DataError
from daskgmm.fit.events import Event, Reached
from tests.drivers import bits

X = np.random.default_rng(0).normal(size=(1600, 4)) + 3 * (np.arange(1600) % 2)[:, None]
CHUNK, PASSES = 100, 5
BLOCK = CHUNK * 32  # bytes
N_BLOCKS = len(X) // CHUNK
LIMITS = {"all": math.inf, "none": 0, "half": X.nbytes // 2}
SYNC = Threads(get=get_sync)

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


class Counting(MemoryStore):
    """Counts the chunks that are read."""

    reads = 0

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        self.reads += key.startswith("c/")
        return await super().get(key, *arguments, **options)


def counting(values: Any = X) -> Any:
    chunks = (CHUNK, *values.shape[1:])
    return zarr.create_array(Counting(), data=values, chunks=chunks)


def fit(x: Any, limit: float | None, *listeners: Callable[[Event], None], **settings: Any) -> GaussianMixture:
    model = GaussianMixture(2, random_state=0, tol=0, max_iter=PASSES - 1, block_size=BLOCK, **settings)
    size = int(min(limit, 2**40)) if limit is not None else None
    with dask.config.set({"daskgmm.memory-limit": size}), watching(*listeners):
        model.fit(x)
    return model


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
@pytest.mark.parametrize(
    ("limit", "reads"),
    [("all", N_BLOCKS), ("none", PASSES * N_BLOCKS), ("half", (1 + PASSES) * N_BLOCKS // 2)],
)
def test_how_often_a_store_is_read(limit: str, reads: int, scheduler: str) -> None:
    array = counting()
    # On threads two more than the one that computes read ahead, within the same limit.
    ahead = 2 * READING * BLOCK if scheduler == "threads" and limit == "half" else 0
    with dask.config.set(scheduler=scheduler, num_workers=1):
        model = fit(array, LIMITS[limit] + ahead)
        assert bits(model) == bits(fit(counting(), 0))
    assert model.n_passes_ == PASSES
    assert array.store.reads == reads


@pytest.mark.parametrize(("limit", "times"), [("all", 1), ("none", PASSES)])
def test_how_often_a_dask_graph_is_computed(limit: str, times: int) -> None:
    computed: list[int] = []

    def count(block: Any) -> Any:
        computed.append(len(block))
        return block + 0

    for columns in (4, 2):
        lazy = da.from_array(X, chunks=(CHUNK, columns)).map_blocks(count, meta=X[:0])
        computed.clear()
        assert bits(fit(lazy, LIMITS[limit])) == bits(fit(counting(), 0))
        assert len(computed) == times * N_BLOCKS * 4 // columns


def test_what_goes_with_the_rows_shares_the_limit_and_rows_are_kept_as_stored() -> None:
    given = {"weight": counting(np.ones(len(X))), "labels": counting(np.ones(len(X), dtype=np.int8))}
    rows = as_rows(counting(X.astype(np.float32)), block_size=BLOCK, **given)
    lasting = rows.lasting().total_bytes
    assert lasting == rows.total_bytes - len(X)
    limit = (
        lasting // 2 + int(rows.x.chunks[0]) * 16
    )  # room for the rows of one more block, but not for their weights
    with dask.config.set({"daskgmm.memory-limit": limit}), kept(SYNC, rows) as held:
        for _ in range(2):
            SYNC.reduce(held, lambda block: len(block.x))
        shelf = held.shelf
        assert shelf is not None
        blocks = list(shelf.blocks.values())
        assert {block.x.dtype for block in blocks} == {np.dtype(np.float32)}
        assert all(block.weight is not None and not block.columns for block in blocks)  # labels are looked at once
        size = sum(block.x.nbytes + 8 * len(block.x) for block in blocks)
        assert limit - rows.block_bytes <= size <= limit


def test_nothing_is_kept_after_the_end() -> None:
    rows = as_rows(counting(), block_size=BLOCK)
    with dask.config.set({"daskgmm.memory-limit": "1 GB"}), kept(SYNC, rows) as held:
        SYNC.reduce(held, lambda block: len(block.x))
        shelf = held.shelf
        assert shelf is not None
        assert len(shelf.blocks) == N_BLOCKS
    assert not shelf.blocks
    SYNC.reduce(held, lambda block: len(block.x))  # as a task may that an interrupt left running
    assert not shelf.blocks


def test_rows_in_memory_are_not_copied_and_other_processes_keep_nothing() -> None:
    rows = as_rows(X)
    with kept(engine_for(rows), rows) as held:
        assert held is rows
    stored = as_rows(counting(), block_size=BLOCK)
    with kept(Threads(get=dask.multiprocessing.get), stored) as held:
        assert held is stored
    with kept(SYNC, stored, wanted=False) as held:
        assert held is stored


def test_dropped_after_an_error() -> None:
    rows = as_rows(counting(), block_size=BLOCK)

    def fail(block: Block) -> int:
        if block.index == 9:
            raise DataError("bad")
        return 0

    shelves: list[Any] = []

    def work() -> None:
        with kept(SYNC, rows) as held:
            shelves.append(held.shelf)
            try:
                SYNC.reduce(held, fail)
            finally:
                assert len(held.shelf.blocks) > 0  # type: ignore[union-attr]

    with pytest.raises(DataError, match="bad"):
        work()
    assert not shelves[0].blocks


def test_reading_overlaps_and_few_compute_at_a_time() -> None:
    lock, state = threading.Lock(), {"computing": 0, "most": 0}
    gate = threading.Event()

    class Gated(Counting):
        """Lets blocks that compute go on once all threads have read: two for those, and four more."""

        async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
            found = await super().get(key, *arguments, **options)
            if self.reads >= 6:
                gate.set()
            return found

    @dataclass(frozen=True)
    class Look:
        waits: list[bool] = field(default_factory=list)

        def __call__(self, block: Block) -> int:
            with lock:
                state["computing"] += 1
                state["most"] = max(state["most"], state["computing"])
            self.waits.append(gate.wait(30))  # with two threads that read and compute in turn, never
            if len(self.waits) <= 2:
                time.sleep(0.3)  # for the others to come in, if they may
            with lock:
                state["computing"] -= 1
            return 1

    rows = as_rows(zarr.create_array(Gated(), data=X, chunks=(CHUNK, 4)), block_size=BLOCK)
    look = Look()
    with dask.config.set(num_workers=2):
        assert Threads().reduce(rows, look) == N_BLOCKS
    assert all(look.waits)
    assert state["most"] <= 2


# On a cluster


@pytest.fixture
def client() -> Iterator[Any]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit="1 GB", dashboard_address=":0"
        ) as cluster,
        Client(cluster, timeout=30, set_as_default=False) as client,
        client.as_current(),
    ):
        yield client


def every_iteration(what: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that calls something after every iteration."""

    def listen(event: Event) -> None:
        if isinstance(event, Reached) and event.state.n_iter:
            what()

    return listen


def lying(client: Any) -> int:
    """Blocks that lie on the workers."""
    found: int = client.run_on_scheduler(
        lambda dask_scheduler: sum(
            "daskgmm-read" in str(key) and task.state == "memory" for key, task in dask_scheduler.tasks.items()
        )
    )
    return found


@pytest.mark.timeout(120)
def test_a_cluster_keeps_what_fits_even_if_a_worker_dies(client: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "x.zarr")
    zarr.create_array(place, data=X, chunks=(CHUNK, 4))
    with dask.config.set(scheduler="synchronous"):
        expected = bits(fit(place, 0))
    counts: list[int] = []
    count = every_iteration(lambda: counts.append(lying(client)))

    assert bits(fit(place, None, count)) == expected
    assert counts == [N_BLOCKS] * (PASSES - 1)

    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(next(iter(client.cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    assert bits(fit(place, None, every_iteration(kill))) == expected
    assert killed

    counts.clear()
    assert bits(fit(place, X.nbytes - 1, count)) == expected
    assert counts == [0] * (PASSES - 1)
