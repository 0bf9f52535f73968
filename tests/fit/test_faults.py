"""What can go wrong on a cluster: the fit ends with the same bits, or with a typed error within its time."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster, get_worker, worker_client
from distributed.chaos import KillWorker
from threadpoolctl import threadpool_info
from zarr.storage import LocalStore

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.errors import BlockTooLargeError, ClusterLostError, DataError, WorkersKilledError
from daskgmm.fit.events import Listener
from tests.drivers import bits
from tests.listeners import SEEDED, At, stop

RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.normal(size=(2000, 4)), RANDOM.normal(3.0, size=(2000, 4))])
SETTINGS: dict[str, Any] = {"n_components": 3, "random_state": 0, "tol": 0.0, "max_iter": 15}
SHORT = {"daskgmm.timeouts.no-workers": "2s", "daskgmm.timeouts.scheduler": "2s"}

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:Best performing initialization"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("faults") / "x.zarr")
    array = zarr.create_array(place, shape=X.shape, chunks=(250, 4), dtype=X.dtype)
    array[...] = X
    return place


@pytest.fixture(scope="module")
def expected(data: str) -> tuple[Any, ...]:
    return bits(fit(data))


def fit(x: Any, *listeners: Listener, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(**(SETTINGS | {"block_size": 8000} | settings))
    with watching(*listeners):
        model.fit(x)
    return model


def after(iteration: int, what: Callable[[], Any]) -> At:
    """Calls something once, after one iteration."""
    return At(SEEDED + iteration, what)


@contextmanager
def cluster(workers: int = 2, current: bool = True, **settings: Any) -> Iterator[Any]:
    """A cluster of processes under nannies, and its client as the current one."""
    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"} | settings
    with (
        ExitStack() as stack,
        LocalCluster(n_workers=workers, **settings) as local,
        Client(local, timeout=30, set_as_default=False) as client,
    ):
        if current:
            stack.enter_context(client.as_current())
        yield client


def kill(client: Any, many: int = 1) -> None:
    """SIGKILL worker processes; their nannies start new ones."""
    pids = [w.pid for w in client.cluster.workers.values()]
    for pid in pids[:many]:
        if pid:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    # As Dask starts them unless told otherwise: for BLAS, with the environment of the nanny.
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        started = cluster(current=False)  # other tests are to run on threads meanwhile
        client = started.__enter__()
    yield client
    started.__exit__(None, None, None)


@pytest.fixture
def two(running: Any) -> Iterator[Any]:
    """The client of two workers, as the current one."""
    with running.as_current():
        yield running


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(1500)
def test_a_killed_worker_changes_no_bit(times: int, data: str, expected: Any) -> None:
    moments = random.Random(0)
    for _ in range(times):
        # A new cluster: a nanny whose worker dies as it starts may give up.
        with cluster() as client:
            # In the middle of some iteration: a timer, started by one.
            timer = threading.Timer(moments.uniform(0, 0.15), kill, (client,))
            assert bits(fit(data, after(moments.randint(1, 12), timer.start))) == expected
            timer.join()  # it may come after the fit


@pytest.mark.slow
def test_all_workers_killed_under_nannies(two: Any, data: str, expected: Any) -> None:
    two.wait_for_workers(2, timeout=60)
    assert bits(fit(data, after(4, lambda: kill(two, 2)))) == expected


@pytest.mark.slow
def test_a_worker_that_joins_late_changes_no_bit(data: str, expected: Any) -> None:
    with cluster(1) as client:
        assert bits(fit(data, after(3, lambda: client.cluster.scale(2)))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["segfault", "graceful"])
@pytest.mark.timeout(600)
def test_the_chaos_plugin_of_distributed_changes_no_bit(mode: Any, data: str, expected: Any) -> None:
    """Workers that end themselves at random moments, five seconds after they start on average.

    One that ends while it starts can leave its nanny waiting for it; with both gone the fit says so. Then another
    cluster is tried.
    """
    # To import the library takes a worker about half as long: by chance one task may lose many.
    settings = {"distributed.scheduler.allowed-failures": 100, "daskgmm.timeouts.no-workers": "30s"}
    for _ in range(5):
        with dask.config.set(settings), cluster() as client, suppress(ClusterLostError):
            client.register_plugin(KillWorker(delay="5 s", mode=mode))
            ended = 0
            while ended < 3:
                assert bits(fit(data)) == expected
                ended = sum(event["action"] == "remove-worker" for _, event in client.get_events("all"))
            return
    pytest.fail("five clusters in turn lost all their workers for good")


@pytest.mark.slow
def test_the_chaos_plugin_that_ends_nannies_too_is_an_error(data: str) -> None:
    with cluster() as client, dask.config.set(SHORT):
        client.register_plugin(KillWorker(delay="1 s", mode="sys.exit"))
        with pytest.raises(ClusterLostError, match="no worker for 2 s"):
            fit(data, max_iter=10**6)


@pytest.mark.slow
@pytest.mark.parametrize("saturation", [1.1, float("inf")])
@pytest.mark.timeout(600)
def test_a_straggler_changes_no_bit(saturation: float, data: str, expected: Any) -> None:
    """One of two workers is slow: tasks wait on the scheduler, or are dealt out at once and stolen from it."""

    def slow(block: Any) -> Any:
        if len(block) and get_worker().name == 0:  # not while Dask guesses the result
            time.sleep(0.1)
        return block

    x = da.from_zarr(data).map_blocks(slow, dtype=X.dtype, meta=X[:0])
    # In every pass: rows that stay in memory are slow once.
    settings = {"distributed.scheduler.worker-saturation": saturation, "daskgmm.memory-limit": 0}
    for _ in range(5):  # the scheduler need not steal in each fit, and on a busy machine hardly does
        with dask.config.set(settings), cluster() as client:
            requests = client.cluster.scheduler.extensions["stealing"].metrics["request_count_total"]
            for _ in range(5):
                assert bits(fit(x)) == expected
                if saturation < 2 or sum(requests.values()):
                    return
    pytest.fail("nothing was stolen in 25 fits")


def test_workers_gone_for_good_are_an_error_and_the_fit_goes_on_later(
    data: str, expected: Any, tmp_path: Path
) -> None:
    place = tmp_path / "c"
    with cluster() as client, dask.config.set(SHORT):

        def gone() -> None:
            client.cluster.scale(0)

        with pytest.raises(ClusterLostError, match=r"no worker for 2 s \(daskgmm.timeouts.no-workers\)"):
            fit(data, after(4, gone), checkpoint=place)
    assert bits(fit(data, checkpoint=place)) == expected


def test_no_workers_from_the_start(data: str) -> None:
    with cluster(0), dask.config.set(SHORT), pytest.raises(ClusterLostError, match="has had no worker for 2 s"):
        fit(data)


def test_a_scheduler_that_goes_is_an_error_and_the_fit_goes_on_later(
    data: str, expected: Any, tmp_path: Path
) -> None:
    place = tmp_path / "c"
    # The client, as it closes, tries for so long to connect again.
    connect = {"distributed.comm.timeouts.connect": "3s"}
    with dask.config.set(SHORT | connect), cluster(2, processes=False, protocol="tcp") as client:

        def gone() -> None:
            client.cluster.sync(client.cluster.scheduler.close)

        with pytest.raises(ClusterLostError, match="scheduler"):
            fit(data, after(4, gone), checkpoint=place)
    assert bits(fit(data, checkpoint=place)) == expected


def test_workers_that_die_on_every_try_are_an_error() -> None:
    def deadly(block: Any) -> Any:
        if len(block):  # not while Dask guesses the result
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    x = da.from_array(X, chunks=(2000, 4)).map_blocks(deadly, dtype=X.dtype, meta=X[:0])
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster(1),
        pytest.raises(WorkersKilledError, match="smaller block_size"),
    ):
        fit(x)


def test_a_block_larger_than_a_worker_is_refused_before_it_is_read() -> None:
    x = da.zeros((10**6, 100), chunks=(10**6, 100))
    with cluster(1, memory_limit="500 MB"), pytest.raises(BlockTooLargeError, match=r"762\.94 MiB.*block_size"):
        fit(x)


def test_a_store_in_the_memory_of_the_driver_is_refused() -> None:
    array = zarr.create_array({}, shape=X.shape, chunks=(1000, 4), dtype=X.dtype)
    array[...] = X
    with cluster(1), pytest.raises(DataError, match="X lies in the memory of this process"):
        fit(array)


def test_a_path_that_workers_cannot_open_is_an_error(data: str, tmp_path: Path) -> None:
    place = tmp_path / "gone.zarr"
    shutil.copytree(data, place)
    array = zarr.open_array(place, mode="r")
    shutil.rmtree(place)  # as on a machine that does not share the file system
    with cluster(1), pytest.raises(DataError, match=r"gone.zarr cannot be opened on .*same path or URL"):
        fit(array)


@pytest.mark.parametrize("fill", ["raise", "fill"])
@pytest.mark.parametrize("n", [2000, 5000])
def test_a_store_that_changes_its_shape_is_an_error(n: int, fill: Any, data: str, tmp_path: Path) -> None:
    place, kept = tmp_path / "x.zarr", tmp_path / "c"
    shutil.copytree(data, place)
    model = GaussianMixture(**SETTINGS, block_size=8000, missing_chunks=fill, checkpoint=kept)

    def resized() -> None:
        zarr.open_array(place, mode="r+").resize((n, 4))

    told = r"is not in the store|X at .*x.zarr was changed .* were \(\(4000, 4\)"
    with pytest.raises(DataError, match=told), watching(after(4, resized)):
        model.fit(place)
    assert not hasattr(model, "means_")
    with pytest.raises(DataError, match=f"of another fit:\n  rows: 4000 there, {n} now"):
        model.fit(place)


def test_a_store_that_changes_its_shape_changes_no_online_model(data: str, tmp_path: Path) -> None:
    place = tmp_path / "x.zarr"
    shutil.copytree(data, place)
    model = MiniBatchGaussianMixture(3, random_state=0, max_iter=3, tol=0.0)

    def resized() -> None:
        zarr.open_array(place, mode="r+").resize((3900, 4))

    with pytest.raises(DataError, match=r"X at .*x.zarr was changed"), watching(after(1, resized)):
        model.fit(place)
    assert not hasattr(model, "means_")


class Flaky(LocalStore):
    """A store that fails one read in twenty."""

    reads = 0

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        if key.startswith("c/"):
            Flaky.reads += 1
            if Flaky.reads % 20 == 0:
                raise OSError("the network is not there")
        return await super().get(key, *arguments, **options)


def test_reads_that_fail_now_and_then_change_no_bit(data: str, expected: Any) -> None:
    Flaky.reads = 0
    with dask.config.set({"daskgmm.memory-limit": 0}):  # every pass reads
        assert bits(fit(zarr.open_array(Flaky(data), mode="r"))) == expected
    assert Flaky.reads > 16 * 16  # some were tried again


def test_bad_data_is_not_tried_again(tmp_path: Path) -> None:
    place = str(tmp_path / "bad.zarr")
    array = zarr.create_array(place, shape=X.shape, chunks=X.shape, dtype=X.dtype)
    array[...] = np.where(np.arange(len(X))[:, None] == 3, np.nan, X)
    Flaky.reads = 0
    with pytest.raises(DataError, match=r"NaN: block 0, row\(s\) 3"):
        fit(zarr.open_array(Flaky(place), mode="r"))
    assert Flaky.reads == 1


@pytest.mark.slow
def test_a_fit_inside_a_task(two: Any, data: str, expected: Any) -> None:
    def job() -> Any:
        with worker_client():
            return bits(fit(data))

    assert two.submit(job).result(timeout=100) == expected


def test_a_client_that_is_nobodys_default(data: str, expected: Any) -> None:
    with cluster(current=False) as client:
        with client.as_current():
            assert bits(fit(data)) == expected
        names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert {name for name in names if name.startswith("daskgmm-")} >= {"daskgmm-together", "daskgmm-examine"}


@pytest.mark.slow
def test_an_adaptive_cluster_that_begins_with_no_worker(data: str, expected: Any) -> None:
    with cluster(workers=0) as client:
        client.cluster.adapt(minimum=0, maximum=2, interval="100ms")
        assert bits(fit(data)) == expected


def test_workers_compute_on_one_blas_thread(two: Any) -> None:
    def threads() -> int:
        return max(int(pool["num_threads"]) for pool in threadpool_info())

    assert set(two.run(threads).values()) == {1}


# In a process of its own: the scheduler of a local cluster keeps a log of its last transitions.
DRIVER = """
import sys, tracemalloc
from operator import attrgetter
import numpy as np
from distributed import Client
from daskgmm.compute.cluster import Cluster
from daskgmm.compute.rows import as_rows

with Client(sys.argv[1], timeout=30) as client:
    engine, rows = Cluster(client=client, span=1), as_rows(np.zeros((128, 1)), block_size=8)
    tracemalloc.start()
    for _ in range(int(sys.argv[2])):
        engine.reduce(rows, attrgetter("index"))
        print(tracemalloc.get_traced_memory()[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_passes", [20, 100])
@pytest.mark.timeout(700)
def test_the_drivers_memory_does_not_grow_with_passes(two: Any, n_passes: int) -> None:
    command = [sys.executable, "-c", DRIVER, two.scheduler.address, str(n_passes)]
    held = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.split()
    early, late = (min(map(int, part)) for part in (held[5:10], held[-5:]))
    assert late - early < 200_000  # less than one of the graphs


def test_an_interrupt_frees_the_cluster(two: Any, data: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(data, stop(SEEDED + 3))
    assert two.submit(sum, [1, 2]).result(timeout=30) == 3
