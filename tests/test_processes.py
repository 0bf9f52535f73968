"""What surrounds a fit: tasks of a cluster, forked processes, clients that are asynchronous, other threads.

Everything here once waited for ever.
"""

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_info

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.errors import ClusterLostError
from tests.compute.arrays import write

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

X = np.random.default_rng(0).normal(size=(2000, 3)) + 9 * np.random.default_rng(1).integers(2, size=(2000, 1))
SETTINGS: dict[str, Any] = {"random_state": 0, "max_iter": 3, "block_size": 4096}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "x.zarr"
    write(path, X, (170, 3))
    return str(path)


def everything(x: Any) -> list[Any]:
    """What a model of each kind makes of rows."""
    batch = GaussianMixture(2, **SETTINGS).fit(x)
    stream = MiniBatchGaussianMixture(2, **{**SETTINGS, "max_iter": 1}).fit(x).partial_fit(x)
    return [batch.means_, stream.means_, np.asarray(batch.predict(x)), batch.score(x)]


@pytest.fixture(scope="module")
def expected(store: str) -> dict[str, list[Any]]:
    return {"memory": everything(X), "zarr": everything(store)}


def same(found: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


# Inside tasks


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker of one thread in a process of its own."""
    local = LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0")
    with local, Client(local, timeout=30, set_as_default=False) as found:
        yield found


def clients_of_the_worker() -> int:
    return len(Client._instances)


@pytest.mark.parametrize("kind", ["memory", "zarr"])
def test_a_fit_on_the_only_thread_of_a_cluster(
    kind: str, client: Client, store: str, expected: dict[str, list[Any]]
) -> None:
    x = X if kind == "memory" else store
    before = client.submit(clients_of_the_worker, pure=False).result(30)
    tasks = [client.submit(everything, x, pure=False) for _ in range(2)]
    for task in tasks:  # two at once: each gives its thread away while it waits
        same(task.result(60), expected[kind])
    after = client.submit(clients_of_the_worker, pure=False).result(30)
    assert (after == before) == (kind == "memory")  # rows in memory need no client


def test_a_search_whose_fits_are_tasks(client: Client) -> None:
    search = GridSearchCV(GaussianMixture(**SETTINGS), {"n_components": [1, 2]}, cv=2)
    with client.as_current(), joblib.parallel_config("dask"):
        assert search.fit(X).best_params_ == {"n_components": 2}


# Asynchronous clients


def test_an_asynchronous_client_leaves_rows_in_memory_to_threads(
    store: str, expected: dict[str, list[Any]]
) -> None:
    async def run() -> None:
        local: Any = Client(processes=False, n_workers=1, dashboard_address=None, asynchronous=True)
        async with local as client:
            same(everything(X), expected["memory"])
            model = GaussianMixture(2, **SETTINGS).fit(X)
            calls: list[Callable[[], Any]] = [lambda: model.fit(store), lambda: model.score(da.from_array(X))]
            for call in calls:
                with pytest.raises(RuntimeError, match=r"client is asynchronous.*asyncio\.to_thread"):
                    call()
            with dask.config.set(scheduler=client), pytest.raises(RuntimeError, match="client is asynchronous"):
                model.fit(store)
            lazy = model.predict(da.from_array(X, chunks=(500, 3)))  # nothing is computed yet
            assert np.array_equal(await client.compute(lazy), model.predict(X))
            same(await asyncio.to_thread(everything, store), expected["zarr"])

    asyncio.run(run())


# Other threads


def test_eight_readers_beside_a_learner_and_two_fits() -> None:
    """A reader sees one model, before a batch or after it, and waits for nobody; BLAS is left as it was."""
    before = threadpool_info()
    model = MiniBatchGaussianMixture(2, random_state=0, block_size=4096).partial_fit(X[:500])
    whole, seen, ended = {model.mixture_}, set(), threading.Event()

    def read() -> int:
        count = 0
        while not ended.is_set():
            mixture = model.mixture_
            assert len(model.predict(X)) == len(X)
            assert np.isfinite(model.score_samples(X)).all()
            seen.add(mixture)
            count += 1
        return count

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read) for _ in range(8)]
        fits = [pool.submit(GaussianMixture(2, **SETTINGS).fit, X) for _ in range(2)]
        for first in range(500, 2000, 50):
            whole.add(model.partial_fit(X[first : first + 50]).mixture_)
        one, other = (fit.result(60).means_ for fit in fits)
        ended.set()
        assert all(reader.result(30) > 0 for reader in readers)
    assert np.array_equal(one, other)
    assert seen <= whole
    assert model.n_samples_seen_ == 2000
    assert threadpool_info() == before


# Other processes


def test_what_is_in_memory_stays_in_the_process(
    store: str, expected: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an online fit, only what reads blocks starts processes: no mini-batch does, nor a start on a sample."""
    pools: list[Any] = []

    class Counted(ThreadPoolExecutor):  # as processes take seconds to start
        def __init__(self, workers: int, *, mp_context: Any, **how: Any) -> None:
            pools.append(mp_context)
            super().__init__(workers, **how)

    monkeypatch.setattr("dask.multiprocessing.ProcessPoolExecutor", Counted)
    with dask.config.set({"scheduler": "processes", "num_workers": 1}):
        same(everything(X), expected["memory"])
        assert not pools
        model = MiniBatchGaussianMixture(2, **{**SETTINGS, "block_size": 2**20}).fit(store)
    assert model.n_batches_seen_ > 10
    assert len(pools) == model.n_passes_  # what held-out rows score is found here


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def _put(queue: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        queue.put(function(*arguments))
    except Exception as error:
        queue.put(error)


def in_a_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, or raises, in a forked child, which has not for ever."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_put, args=(queue, function, arguments))
    child.start()
    try:
        return queue.get(timeout=30)
    finally:
        child.kill()
        child.join(30)


@needs_fork
@forks
@pytest.mark.parametrize("kind", ["memory", "zarr"])
def test_a_fork_fits_and_answers(kind: str, store: str, expected: dict[str, list[Any]]) -> None:
    x = X if kind == "memory" else store
    everything(x)  # threads of all kinds run, and stay in this process
    same(in_a_fork(everything, x), expected[kind])
    with dask.config.set(num_workers=2):
        everything(x)
        same(in_a_fork(everything, x), expected[kind])


def query(x: Any) -> Any:
    return GaussianMixture(2, **SETTINGS).fit(x).predict(x)


@needs_fork
@forks
def test_a_fork_of_joblib(expected: dict[str, list[Any]]) -> None:
    query(X)
    with joblib.parallel_config("multiprocessing", n_jobs=2):
        for found in joblib.Parallel()(joblib.delayed(query)(X) for _ in range(2)):
            np.testing.assert_array_equal(found, expected["memory"][2])


@needs_fork
@forks
def test_a_fork_does_not_wait_for_a_client_of_its_parent(
    client: Client, store: str, expected: dict[str, list[Any]]
) -> None:
    with client.as_current():
        query(store)
        same(in_a_fork(everything, X), expected["memory"])
        found = in_a_fork(query, store)
    assert isinstance(found, ClusterLostError)
    assert "before this process was forked" in str(found)
