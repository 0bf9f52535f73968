"""Data, clusters and the extended-precision reference that several tests share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from sklearn.datasets import load_iris, load_wine
from threadpoolctl import threadpool_limits

from tests import forks, structures

# The same examples on every machine and every run; no deadline, as the first call may compile.
settings.register_profile(
    "daskgmm",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("daskgmm")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reads a golden file."""
    return lambda name: json.loads((DATA / name).read_text())


@pytest.fixture(scope="session")
def datasets() -> dict[str, Any]:
    return {
        "faithful": np.loadtxt(DATA / "faithful.csv", delimiter=",", skiprows=1),
        "iris": load_iris().data,
        "wine": load_wine().data,
    }


@pytest.fixture(scope="session")
def reference() -> Any:
    """`tests.structures`, where extended precision makes an oracle of it."""
    if np.finfo(structures.L).eps > 1e-18:
        pytest.skip("long double has no more digits than float64 on this platform")
    return structures


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nobody pulls the plug on a test; thousands of files would wait for the disk."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """For what fits are compared with: two processes on two cores would wait for each other's threads, at work."""
    with threadpool_limits(1):
        yield


class Reads:
    """Counts how often each block of some rows is read, through a lazy Dask array."""

    def __init__(self, values: Any, chunks: Any) -> None:
        self.counts: dict[int, int] = {}
        self.array = da.from_array(values, chunks=chunks).map_blocks(
            self._seen, dtype=values.dtype, meta=np.empty((0, 0), values.dtype)
        )

    def _seen(self, block: Any, block_info: Any = None) -> Any:
        number = block_info[0]["chunk-location"][0]
        self.counts[number] = self.counts.get(number, 0) + 1
        return block

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@pytest.fixture
def reads() -> Iterator[type[Reads]]:
    """`Reads`, where nothing stays in memory between passes: each of them reads."""
    with dask.config.set({"daskgmm.memory-limit": 0}):
        yield Reads


@pytest.fixture(scope="module")
def clusters() -> Iterator[Callable[[int, bool], Any]]:
    """Clients of small local clusters by (workers, processes), each started once; idle ones take time, too."""
    from distributed import Client, LocalCluster

    running: dict[tuple[int, bool], Any] = {}

    def start(workers: int, processes: bool) -> Any:
        if (workers, processes) not in running:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=processes,
                dashboard_address=":0",
            )
            running[workers, processes] = Client(cluster, set_as_default=False, timeout=30)
        return running[workers, processes]

    yield start
    for client in running.values():
        client.close(timeout=10)
        client.cluster.close(timeout=10)


@cache
def starts_processes(path: Path) -> bool:
    """Whether the tests of a file do."""
    return any(
        word in path.read_text("utf-8")
        for word in ("clusters:", "LocalCluster", "subprocess", "Popen", "Fork(", "METHOD", "serving")
    )


def pytest_configure(config: pytest.Config) -> None:
    """Files of tests lie in memory, where there is room: a disk takes 5 ms to put one in the place of another."""
    memory = Path("/dev/shm")
    if config.option.markexpr == "not slow" and memory.is_dir() and shutil.disk_usage(memory).free > 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if starts_processes(item.path):
        forks.prepare()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``-n``: a file stays in one process; all that start more of them in the same, as two would starve."""
    for item in items:
        group = "processes" if starts_processes(item.path) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
