"""The engine: one fixed tree, the same bits on every scheduler, and reports of what is done."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import dask.multiprocessing
import dask.threaded
import numpy as np
import pytest
from dask.local import get_sync
from dask.utils import key_split
from hypothesis import given
from hypothesis import strategies as st

from daskgmm import GaussianMixture
from daskgmm.compute.engine import Bundle, Engine, engine_for
from daskgmm.compute.rows import Block, Rows, as_rows
from daskgmm.errors import DataError
from daskgmm.fit.em import Expectations
from daskgmm.fit.survey import Surveyor, Threshold
from daskgmm.model.covariance import STRUCTURES
from daskgmm.model.mixture import Mixture

SPANS = [1, 2, 4, 8, 64]
LOCAL = {
    "sync": get_sync,
    "1 thread": partial(dask.threaded.get, num_workers=1),
    "2 threads": partial(dask.threaded.get, num_workers=2),
}


def rows_of(n_blocks: int) -> Rows:
    return as_rows(np.arange(2.0 * n_blocks).reshape(n_blocks, 2), block_size=16)


@dataclass(frozen=True)
class Expression:
    """A monoid that remembers how it was added up."""

    text: str

    def __add__(self, other: Expression) -> Expression:
        return Expression(f"({self.text}+{other.text})")


def named(block: Block) -> Expression:
    return Expression(str(block.index))


def expected(lo: int, hi: int) -> str:
    """Binary over block numbers, split at the largest power of two below the count."""
    if hi - lo == 1:
        return str(lo)
    half = 1
    while 2 * half < hi - lo:
        half *= 2
    return f"({expected(lo, lo + half)}+{expected(lo + half, hi)})"


@given(
    n_blocks=st.integers(1, 80),
    span=st.sampled_from(SPANS),
    get=st.sampled_from(sorted(LOCAL)),
    graph=st.booleans(),
)
def test_one_tree_whatever_the_span(n_blocks: int, span: int, get: str, graph: bool) -> None:
    rows = rows_of(n_blocks)
    if graph:
        rows = as_rows(da.from_array(np.zeros((n_blocks, 2)), chunks=(1, 2)))
    assert Engine(LOCAL[get], span).reduce(rows, named).text == expected(0, n_blocks)


def test_the_tree_by_example() -> None:
    assert Engine(get_sync).reduce(rows_of(7), named).text == "(((0+1)+(2+3))+((4+5)+6))"
    # A later block never changes the subtrees of earlier ones, so a fit may go on where it stopped.
    assert Engine(get_sync, 4).reduce(rows_of(5), named).text == "(((0+1)+(2+3))+4)"


# The same bits

X = np.random.default_rng(0).normal(size=(37 * 11, 3)) + np.arange(37 * 11)[:, None] % 3


def mixture(kind: str) -> Mixture:
    one = {"full": np.stack([np.eye(3)] * 3), "tied": np.eye(3), "diag": np.ones((3, 3)), "spherical": np.ones(3)}
    means = np.arange(3.0)[:, None] + np.array([0.0, 0.1, -0.2])
    return Mixture(np.array([0.2, 0.3, 0.5]), means, STRUCTURES[kind].of(one[kind]))


def passes(get: Any, span: int | None, rows: Rows) -> list[Any]:
    """Every array that an EM step and a survey find."""
    found: list[Any] = []
    mixtures = tuple(mixture(kind) for kind in STRUCTURES)
    for s in Engine(get, span).reduce(rows, Expectations(mixtures)):
        found += [s.weight, s.shift, s.scatter, s.log_likelihood]
    surveyor = Surveyor(STRUCTURES["full"], 3, 5, Threshold(50))
    survey = Engine(get, span).reduce(rows, surveyor)
    found += [survey.overall.shift, survey.overall.scatter, *survey.sample.points()]
    return found


def assert_same_bits(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def many_rows(dask_array: bool = False) -> Rows:
    if dask_array:
        return as_rows(da.from_array(X, chunks=(11, 2)))
    return as_rows(X, block_size=11 * 24)


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    return passes(get_sync, 1, many_rows())


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("get", LOCAL)
def test_same_bits_on_threads(get: str, span: int, plain: list[Any]) -> None:
    assert many_rows().n_blocks == 37
    assert_same_bits(passes(LOCAL[get], span, many_rows()), plain)
    assert_same_bits(passes(LOCAL[get], span, many_rows(dask_array=True)), plain)


@pytest.mark.timeout(100)
def test_same_bits_in_processes(plain: list[Any]) -> None:
    get = partial(dask.multiprocessing.get, num_workers=2)
    assert_same_bits(passes(get, 8, many_rows()), plain)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("workers", [1, 2])
def test_same_bits_on_a_cluster(workers: int, processes: bool, plain: list[Any], clusters: Any) -> None:
    client = clusters(workers, processes)
    assert_same_bits(passes(client.get, 1, many_rows()), plain)
    assert_same_bits(passes(client.get, 4, many_rows()), plain)
    assert_same_bits(passes(client.get, None, many_rows()), plain)
    assert_same_bits(passes(client.get, 1, many_rows(dask_array=True)), plain)


def models(x: Any) -> list[Any]:
    """What a fit from the library's own seeds finds, by k-means and by the subsample."""
    found: list[Any] = []
    for init_params in ("kmeans", "subsample"):
        m = GaussianMixture(3, init_params=init_params, random_state=4, max_iter=3, tol=0, n_init=2)
        m.fit(x)
        found += [m.weights_, m.means_, m.covariances_, m.lower_bounds_]
    return found


@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_seed_same_blocks_same_model(clusters: Any) -> None:
    x = da.from_array(X, chunks=(29, 3))
    with dask.config.set(scheduler="synchronous"):
        first = models(x)
    for setting in ({"scheduler": "threads", "num_workers": 1}, {"scheduler": "threads", "num_workers": 2}):
        with dask.config.set(**setting):
            assert_same_bits(models(x), first)
    for workers in (1, 2):
        client = clusters(workers, True)
        with client.as_current():
            assert engine_for(as_rows(x)).get == client.get
            assert_same_bits(models(x), first)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_callers_blas_threads_do_not_matter() -> None:
    from threadpoolctl import threadpool_limits

    found = []
    for limit in (1, 2):
        with threadpool_limits(limit):
            found.append(models(X))
    assert_same_bits(*found)


# Reports


@given(n_blocks=st.integers(1, 40), span=st.sampled_from(SPANS), get=st.sampled_from(sorted(LOCAL)))
def test_reports_count_up_to_all_blocks(n_blocks: int, span: int, get: str) -> None:
    told: list[tuple[int, int]] = []
    Engine(LOCAL[get], span).reduce(rows_of(n_blocks), named, lambda *a: told.append(a))
    done = [d for d, _ in told]
    assert done == sorted(set(done))
    assert told[-1] == (n_blocks, n_blocks)
    assert {total for _, total in told} == {n_blocks}
    if span == 1:
        assert done == list(range(1, n_blocks + 1))


def test_a_failed_pass_is_never_reported_done() -> None:
    told: list[tuple[int, int]] = []

    def fail(block: Block) -> Expression:
        if block.index == 3:
            raise DataError("block 3 is bad")
        return named(block)

    with pytest.raises(DataError, match="block 3 is bad"):
        Engine(get_sync).reduce(rows_of(8), fail, lambda *a: told.append(a))
    assert (8, 8) not in told


def test_a_report_that_fails_ends_the_pass() -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(get_sync).reduce(rows_of(8), named, interrupted)


def test_blocks_of_a_task_are_read_in_turn() -> None:
    held, most, lock = set(), 0, threading.Lock()

    @dataclass(frozen=True)
    class Sum:
        index: int

        def __add__(self, other: Sum) -> Sum:
            return self

    def look(block: Block) -> Sum:
        nonlocal most
        with lock:
            held.add(block.index)
            most = max(most, len(held))
        held.discard(block.index)
        return Sum(block.index)

    rows = rows_of(32)
    graphs: list[Any] = []

    def get(graph: Any, key: Any) -> Any:
        graphs.append(graph)
        return get_sync(graph, key)

    Engine(get, 8).reduce(rows, look)
    assert most == 1
    # Four tasks of eight blocks, three sums, and the function and what reads the rows, once.
    assert len(graphs[0]) == 4 + 3 + 2
    Engine(get, 1).reduce(rows, look)
    assert len(graphs[1]) == 32 + 31 + 2
    # A dashboard shows keys up to their digits.
    assert {key_split(key) for key in graphs[0]} == {
        "daskgmm-look",
        "daskgmm-total",
        "daskgmm-map",
        "daskgmm-rows",
    }


def test_tasks_are_as_large_as_their_scheduling_asks_for() -> None:
    def span(n_blocks: int, block_bytes: int, threads: int) -> int:
        with dask.config.set(num_workers=threads):
            x = np.broadcast_to(0.0, (n_blocks * block_bytes // 8, 1))
            return Engine(get_sync)._span(as_rows(x, block_size=block_bytes))

    assert span(4096, 8, 1) == 1024  # four tasks for the thread, and no more
    assert span(4096, 8, 64) == 16
    assert span(3, 8, 2) == 1
    assert span(64, 2**26, 2) == 1  # such a block takes long enough
    # Less work in a block, more blocks in a task; more threads to serve from one scheduler, likewise.
    assert span(4096, 2**19, 2) > span(4096, 2**21, 2)
    assert span(2**16, 2**21, 64) > span(2**16, 2**21, 2)


@pytest.mark.timeout(60)
def test_tasks_of_a_cluster_follow_its_threads(clusters: Any) -> None:
    one, two = (Engine(clusters(workers, True).get) for workers in (1, 2))
    assert (one.threads, two.threads) == (1, 2)
    assert one._span(rows_of(64)) == 2 * two._span(rows_of(64)) == 16


def test_a_bundle_adds_in_pairs() -> None:
    total = Bundle((1.0, "a")) + Bundle((2.0, "b"))
    assert isinstance(total, Bundle)
    assert total == (3.0, "ab")
    with pytest.raises(ValueError, match="zip"):
        Bundle((1.0,)) + Bundle((1.0, 2.0))


# Which scheduler


def test_threads_unless_told_otherwise() -> None:
    memory, chunked = as_rows(X), as_rows(da.from_array(X, chunks=(29, 3)))
    assert engine_for(memory).get is dask.threaded.get
    assert engine_for(chunked).get is dask.threaded.get
    with dask.config.set(scheduler="synchronous"):
        assert engine_for(memory).get is get_sync
        assert engine_for(chunked).get is get_sync


@pytest.mark.timeout(60)
def test_the_active_client_gets_chunked_rows_alone(clusters: Any) -> None:
    memory, chunked = as_rows(X), as_rows(da.from_array(X, chunks=(29, 3)))
    client = clusters(1, False)
    with client.as_current():
        assert engine_for(memory).get is dask.threaded.get
        assert engine_for(chunked).get == client.get
        with dask.config.set(scheduler="synchronous"):
            assert engine_for(chunked).get is get_sync
    assert engine_for(chunked).get is dask.threaded.get


@pytest.mark.timeout(60)
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_errors_of_a_cluster_name_block_and_rows(processes: bool, clusters: Any) -> None:
    x = X.copy()
    x[30, 1] = np.nan
    client = clusters(2, processes)
    with client.as_current(), pytest.raises(DataError, match=r"contains NaN: block 1, row\(s\) 30\."):
        GaussianMixture(2).fit(da.from_array(x, chunks=(29, 3)))


def test_numbers_that_are_keys_of_the_users_graph_stay_numbers() -> None:
    x = np.arange(12.0).reshape(6, 2)
    graph: dict[Any, Any] = {**dict.fromkeys(range(7), "no number")}
    graph |= {("x", i, 0): (partial(np.copy, x[2 * i : 2 * i + 2]),) for i in range(3)}
    rows = as_rows(da.Array(graph, "x", chunks=((2, 2, 2), (2,)), dtype=float))
    found = Engine(get_sync).reduce(
        rows, lambda block: Bundle([[(block.index, block.first_row, block.x.tolist())]])
    )
    assert found == ([(i, 2 * i, x[2 * i : 2 * i + 2].tolist()) for i in range(3)],)
