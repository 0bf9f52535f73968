"""The measured seconds of the cost model, taken on the machine at hand: see `costs.CostModel`."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import start
from costs import CostModel, Line
from distributed import Client, LocalCluster, get_task_stream

from daskgmm import GaussianMixture
from daskgmm.compute.cluster import Cluster
from daskgmm.compute.rows import as_rows
from daskgmm.model.mixture import Mixture
from daskgmm.model.update import Regularised

# Blocks, and blocks per task, of the empty passes.
GRAPHS = ((64, 1), (1024, 1), (1024, 16), (4096, 8), (4096, 64))


@contextmanager
def cluster_of(workers: int) -> Iterator[Client]:
    """A client of worker processes of one thread each; the scheduler is in this process."""
    local = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    with local as cluster, Client(cluster) as client:
        yield client


@dataclass(frozen=True)
class Observed:
    """Seconds of a pass: `begin` and `end` by the clock, `busy` in all tasks together."""

    begin: float
    end: float
    busy: float


def passes(client: Client, action: Callable[[], Any]) -> list[Observed]:
    """The passes that an action makes, in order, from first task to last."""
    found: dict[str, list[tuple[float, float]]] = {}
    with get_task_stream(client) as stream:
        action()
    for task in stream.data:
        key = task["key"]
        if isinstance(key, str):  # what the tasks share
            continue
        spans = [(s["start"], s["stop"]) for s in task["startstops"] if s["action"] == "compute"]
        found.setdefault(key[0].rpartition("-")[2], []).extend(spans)  # a fresh number for each pass
    observed = []
    for spans in found.values():
        starts, stops = np.array(spans).T
        observed.append(Observed(starts.min(), stops.max(), float((stops - starts).sum())))
    return sorted(observed, key=lambda p: p.begin)


class Blank(zarr.Array[Any]):
    """A Zarr array that reads nothing: its tasks weigh what those of the array do, and are done at once."""

    def get_basic_selection(self, *_: Any, out: Any = None, **__: Any) -> Any:
        """Leave the caller's buffer as it is."""
        return out


def one(_: Any) -> int:
    """A block's result where only the graph is of interest."""
    return 1


@dataclass(frozen=True)
class Empty:
    """Seconds of a pass whose blocks take no time.

    Attributes
    ----------
    driver, others : processor time of the driver's thread, and of its process's others: the scheduler's.
    before, after : until the first task began, and from then on until the last one ended.
    busy : in tasks.
    """

    driver: float
    others: float
    before: float
    after: float
    busy: float


def empty_pass(client: Client, action: Callable[[], Any]) -> Empty:
    """Watch one."""

    def now() -> Any:
        return np.array([time.time(), time.thread_time(), time.process_time()])

    begun = now()
    (seen,) = passes(client, action)
    _, driver, process = now() - begun
    return Empty(driver, process - driver, seen.begin - begun[0], seen.end - seen.begin, seen.busy)


def scheduling(folder: Path, repeats: int) -> tuple[Line, Line, float, float]:
    """Of `CostModel`: driver, scheduler, hand_seconds, idle_seconds, from passes that do nothing on one worker."""
    driver, scheduler, hand, idle = [], [], [], []
    with cluster_of(1) as client:
        for blocks, span in GRAPHS:
            shape, place = (2048 * blocks, 8), folder / f"{blocks}-{span}"
            store = zarr.create_array(place, shape=shape, chunks=(2048, 8), dtype="f8")
            rows = as_rows(Blank(store.async_array), block_size="128 KiB", missing_chunks="fill")
            action = partial(Cluster(client=client, span=span).reduce, rows, one)
            tasks = 2 * -(-blocks // span) - 1
            runs = [empty_pass(client, action) for _ in range(repeats + 1)]
            # The mean: every other run or so pays for collecting the garbage of the one before.
            mean = Empty(*np.mean([astuple(run) for run in runs[1:]], axis=0))
            intake = max(mean.before - mean.driver, 1e-6)
            driver.append((tasks, blocks, mean.driver))
            scheduler.append((tasks, blocks, intake))
            if tasks > 1000:  # else the ends of the pass count for more than its tasks
                idle.append((mean.after - mean.busy) / tasks)
                hand.append((mean.others - intake) / tasks)
    return Line.through(driver), Line.through(scheduler), float(np.mean(hand)), float(np.mean(idle))


def transfers(repeats: int) -> tuple[float, float]:
    """Of `CostModel`: hop_seconds, and network, both over this machine's own interface."""
    with cluster_of(2) as client:
        places = [*client.scheduler_info()["workers"]]

        def chain(first: Any, length: int) -> float:
            futures = [client.submit(np.zeros, first, workers=places[0], pure=False)]
            futures[0].result() if first < 1000 else client.gather(
                client.submit(len, futures[0], workers=places[0])
            )
            begun = time.perf_counter()
            for i in range(length):
                futures.append(client.submit(np.sum, futures[-1], workers=places[(i + 1) % 2], pure=False))
            futures[-1].result()
            return (time.perf_counter() - begun) / length

        hop = float(np.median([chain(1, 50) for _ in range(repeats)]))
        size = 2**25  # 256 MiB of float64
        sent = float(np.median([chain(size, 1) for _ in range(repeats)]))
    return hop, 8 * size / sent


def median_seconds(action: Callable[[], Any], repeats: int) -> float:
    """Of several runs, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[1:]))


def mixture_of(d: int, k: int) -> Mixture:
    """The benchmarks' start, full covariances."""
    mixture: Mixture = GaussianMixture.from_parameters(*start(d, k, "full").values()).mixture_
    return mixture


def numerics(store: Any, k: int, block_size: int, repeats: int) -> dict[str, Any]:
    """The fields of `CostModel` that say what one thread needs to read a block of a store and to work on it."""
    rows = as_rows(store, block_size=block_size)
    mixture, some = mixture_of(rows.n_features, k), range(min(rows.n_blocks, 8))
    block = rows.read(0)
    statistics = mixture.expectation(block.x)
    read = median_seconds(lambda: [rows.read(i).index for i in some], repeats) / len(some)
    step = median_seconds(lambda: mixture.expectation(block.x), repeats)
    return {
        "row_bytes": 8 * rows.n_features,
        "statistics_bytes": len(pickle.dumps(statistics, protocol=5)),
        "byte_seconds": read / block.x.nbytes,
        "row_seconds": step / len(block.x),
        "merge_seconds": median_seconds(lambda: statistics + statistics, 5 * repeats),
        "update_seconds": median_seconds(lambda: Regularised()(mixture, statistics), repeats),
    }


def model_of(
    numbers: dict[str, Any], graphs: tuple[Line, Line, float, float], links: tuple[float, float]
) -> CostModel:
    """The cost model of this machine for one shape of mixture."""
    driver, scheduler, hand, idle = graphs
    return CostModel(
        **numbers,
        driver=driver,
        scheduler=scheduler,
        hand_seconds=hand,
        idle_seconds=idle,
        hop_seconds=links[0],
        network=links[1],
    )
