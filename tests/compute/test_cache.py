"""Rows that fit are read once, others once a pass; the bits are the same."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.multiprocessing
import dask.threaded
import numpy as np
import pytest
import zarr
from dask.local import get_sync
from distributed import Client, LocalCluster
from zarr.storage import MemoryStore

from daskgmm import GaussianMixture
from daskgmm.compute.cache import kept
from daskgmm.compute.engine import READING, Engine, engine_for
from daskgmm.compute.rows import Block, as_rows
from daskgmm.errors import DataError
from daskgmm.fit.progress import Silent

X = np.random.default_rng(0).normal(size=(1600, 4)) + 3 * (np.arange(1600) % 2)[:, None]
CHUNK, PASSES = 100, 5
BLOCK = CHUNK * 32  # bytes
N_BLOCKS = len(X) // CHUNK
LIMITS = {"all": math.inf, "none": 0, "half": X.nbytes // 2}

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


def fit(x: Any, limit: float | None, progress: Any = None, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(2, random_state=0, tol=0, max_iter=PASSES - 1, block_size=BLOCK, **settings)
    size = int(min(limit, 2**40)) if limit is not None else None
    with dask.config.set({"daskgmm.memory-limit": size}):
        return model._fit(x, None, progress or Silent())


def bits(model: GaussianMixture) -> tuple[Any, ...]:
    return (model.means_.tobytes(), model.covariances_.tobytes(), model.lower_bounds_, model.n_passes_)


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


def test_weights_share_the_limit_and_rows_are_kept_as_stored() -> None:
    x, weight = counting(X.astype(np.float32)), counting(np.ones(len(X)))
    rows = as_rows(x, weight, block_size=BLOCK)
    engine = Engine(get_sync)
    with dask.config.set({"daskgmm.memory-limit": rows.total_bytes // 2}), kept(engine, rows) as held:
        for _ in range(2):
            engine.reduce(held, lambda block: len(block.x))
        parts: list[Any] = [p for s in (held.x, held.weight) for p in s.parts.values()]  # type: ignore[union-attr]
        assert {p.dtype for p in parts} == {np.dtype(np.float32), np.dtype(np.float64)}
        size = sum(p.nbytes for p in parts)
        assert rows.total_bytes // 2 - rows.block_bytes <= size <= rows.total_bytes // 2
    assert not held.x.parts  # type: ignore[attr-defined]  # dropped at the end


def test_rows_in_memory_are_not_copied_and_other_processes_keep_nothing() -> None:
    rows = as_rows(X)
    with kept(engine_for(rows), rows) as held:
        assert held is rows
    stored = as_rows(counting(), block_size=BLOCK)
    with kept(Engine(dask.multiprocessing.get), stored) as held:
        assert held is stored


def test_dropped_after_an_error() -> None:
    rows = as_rows(counting(), block_size=BLOCK)

    def fail(block: Block) -> int:
        if block.index == 9:
            raise DataError("bad")
        return 0

    seen: list[Any] = []

    def work() -> None:
        with kept(Engine(get_sync), rows) as held:
            seen.append(held.x)
            Engine(get_sync).reduce(held, fail)

    with pytest.raises(DataError, match="bad"):
        work()
    assert not seen[0].parts


def test_reading_overlaps_and_few_compute_at_a_time() -> None:
    lock, state = threading.Lock(), {"computing": 0, "most": 0}
    gate = threading.Event()

    class Gated(Counting):
        """Its fourth read lets the blocks computed meanwhile go on."""

        async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
            found = await super().get(key, *arguments, **options)
            if self.reads >= 4:
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
            with lock:
                state["computing"] -= 1
            return 1

    rows = as_rows(zarr.create_array(Gated(), data=X, chunks=(CHUNK, 4)), block_size=BLOCK)
    look = Look()
    with dask.config.set(num_workers=2):
        assert Engine(dask.threaded.get).reduce(rows, look) == N_BLOCKS
    assert all(look.waits)
    assert state["most"] <= 2


# On a cluster


@pytest.fixture
def client() -> Iterator[Any]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit="500 MB", dashboard_address=":0"
        ) as cluster,
        Client(cluster, timeout=30, set_as_default=False) as client,
        client.as_current(),
    ):
        yield client


class At(Silent):
    """Calls something at every iteration."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def iteration(self, runs: Any) -> None:
        self.what()


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

    assert bits(fit(place, None, At(lambda: counts.append(lying(client))))) == expected
    assert set(counts) == {N_BLOCKS}

    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(next(iter(client.cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    assert bits(fit(place, None, At(kill))) == expected
    assert killed

    counts.clear()
    assert bits(fit(place, X.nbytes - 1, At(lambda: counts.append(lying(client))))) == expected
    assert set(counts) == {0}
