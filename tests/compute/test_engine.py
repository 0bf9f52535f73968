"""Engines: one fixed tree, blocks read in turn, the same bits on every scheduler, and reports of what is done."""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import dask
import dask.array as da
import dask.multiprocessing
import dask.threaded
import numpy as np
import pytest
from dask.callbacks import Callback
from dask.local import get_sync
from dask.utils import key_split
from distributed import get_worker
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cluster import Cluster
from daskgmm.compute.cost import FREE, Bundle
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.compute.sources.base import Chunks, Source
from daskgmm.compute.threads import Plain, Threads
from daskgmm.compute.window import Selection, Window
from daskgmm.errors import DataError
from daskgmm.fit.survey import Threshold
from daskgmm.fit.tasks import Examine, Expect, Together
from daskgmm.model.structure import FULL
from tests.structures import KINDS, draw_mixture

SPANS = [1, 2, 4, 8, 64]
SCHEDULERS: dict[str, Callable[..., Engine]] = {
    "sync": partial(Threads, get=get_sync),
    "1 thread": partial(Threads, get=partial(dask.threaded.get, num_workers=1)),
    "2 threads": partial(Threads, get=partial(dask.threaded.get, num_workers=2)),
}
LOCAL = {"plain": Plain, **SCHEDULERS}


def rows_of(n_blocks: int) -> Rows:
    return as_rows(np.arange(2.0 * n_blocks).reshape(n_blocks, 2), block_size=16)


@dataclass(frozen=True)
class Expression:
    """A monoid that remembers how it was added up."""

    text: str

    def __add__(self, other: "Expression") -> "Expression":
        return Expression(f"({self.text}+{other.text})")


class Named:
    """Maps a block to its number."""

    def __call__(self, block: Block) -> Expression:
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
    engine=st.sampled_from(sorted(LOCAL)),
    graph=st.booleans(),
)
def test_one_tree_whatever_the_span(n_blocks: int, span: int, engine: str, graph: bool) -> None:
    rows = rows_of(n_blocks)
    if graph and engine in SCHEDULERS:  # without one there is nothing to compute a graph
        rows = as_rows(da.from_array(np.zeros((n_blocks, 2)), chunks=(1, 2)))
    assert LOCAL[engine](span=span).reduce(rows, Named()).text == expected(0, n_blocks)


def test_the_tree_by_example() -> None:
    assert Plain().reduce(rows_of(7), Named()).text == "(((0+1)+(2+3))+((4+5)+6))"
    # A later block never changes the subtrees of earlier ones, so a fit may go on where it stopped.
    assert Threads(get=get_sync, span=4).reduce(rows_of(5), Named()).text == "(((0+1)+(2+3))+4)"


def test_a_bundle_adds_in_pairs() -> None:
    total = Bundle((1.0, "a")) + Bundle((2.0, "b"))
    assert isinstance(total, Bundle)
    assert total == (3.0, "ab")
    with pytest.raises(ValueError, match="zip"):
        Bundle((1.0,)) + Bundle((1.0, 2.0))


def added(part: Array, *values: float) -> Array:
    assert values == tuple(number + 0.5 for number in range(7))
    return part.copy()


def test_numbers_that_are_keys_of_the_users_graph_stay_numbers() -> None:
    x = np.arange(12.0).reshape(6, 2)
    graph: dict[Any, Any] = {number: (float, number + 0.5) for number in range(7)}
    graph |= {("x", i, 0): (partial(added, x[2 * i : 2 * i + 2]), *range(7)) for i in range(3)}
    rows = as_rows(da.Array(graph, "x", chunks=((2, 2, 2), (2,)), dtype=float))
    assert set(range(7)) <= set(rows.graph)

    def look(block: Block) -> Bundle:
        return Bundle([[(block.index, block.first_row, block.x.tolist())]])

    wanted = [(i, 2 * i, x[2 * i : 2 * i + 2].tolist()) for i in range(3)]
    for engine in SCHEDULERS.values():
        assert engine().reduce(rows, look) == (wanted,)
        assert engine().each(rows, look, range(3)) == [([entry],) for entry in wanted]


# Blocks of a task are read in turn

# What the threads of this process did with blocks, in order, and the blocks that they read: (thread, verb, block).
# Tasks on a cluster's workers in this process find it by its name in this module.
SEEN: list[tuple[int, str, int]] = []
HELD: list[tuple[int, weakref.ref[Any]]] = []
TOGETHER: list[int] = []  # blocks that a thread still held when it read the next


def read_and_tell(index: int, _: None) -> Array:
    own = threading.get_ident()
    TOGETHER.append(sum(ref() is not None for thread, ref in HELD if thread == own))
    SEEN.append((own, "read", index))
    values = np.full((1, 2), float(index))
    HELD.append((own, weakref.ref(values)))
    return values


def map_and_tell(block: Block) -> Bundle:
    SEEN.append((threading.get_ident(), "map", block.index))
    return Bundle((1,))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Told(Source):
    """A store of one row a block, which tells whenever one is read."""

    waits: ClassVar[bool] = True

    @property
    def reader(self) -> Callable[[int, Any], Any]:
        return read_and_tell

    def plan(self, block_bytes: int) -> Chunks:
        return self.chunks


def told(n_blocks: int) -> Rows:
    for log in (SEEN, HELD, TOGETHER):
        log.clear()
    return as_rows(Told(shape=(n_blocks, 2), dtype=np.dtype(float), chunks=(1,) * n_blocks))


def assert_in_turn(n_blocks: int, span: int) -> None:
    """Every thread went read, map, read, map, through the consecutive blocks of one task after another."""
    assert len(SEEN) == 2 * n_blocks
    assert sorted(index for _, verb, index in SEEN if verb == "read") == list(range(n_blocks))
    for thread in {thread for thread, _, _ in SEEN}:
        own = [(verb, index) for by, verb, index in SEEN if by == thread]
        assert own[::2] == [("read", index) for _, index in own[1::2]]
        assert own[1::2] == [("map", index) for _, index in own[::2]]
        assert len(own[::2]) % span == 0
        for first in range(0, len(own[::2]), span):
            blocks = [index for _, index in own[::2][first : first + span]]
            assert blocks == list(range(blocks[0], blocks[0] + span))
            assert blocks[0] % span == 0
    assert set(TOGETHER) == {0}


@pytest.mark.parametrize("span", [8, 4, 1])
@pytest.mark.parametrize("engine", [*LOCAL, "ahead"])
def test_blocks_of_a_task_are_read_in_turn(engine: str, span: int) -> None:
    gc.collect()
    # Dask's own threads, of which more than compute read ahead.
    with dask.config.set(num_workers=2):
        runs: Engine = {"ahead": Threads, **LOCAL}[engine](span=span)
        assert (runs.ahead(told(32)) > 0) == (engine == "ahead")
        assert runs.reduce(told(32), map_and_tell) == (32,)
    assert_in_turn(32, span)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_of_a_clusters_task_are_read_in_turn(workers: int, clusters: Any) -> None:
    for span in (8, 4, 1):
        assert Cluster(client=clusters(workers, False), span=span).reduce(told(32), map_and_tell) == (32,)
        assert_in_turn(32, span)


# What a graph holds


def graph_of(blocks: Any, **options: Any) -> dict[Any, Any]:
    """The graph of a pass, which is not computed."""
    graphs: list[Any] = []

    def get(graph: Any, keys: Any) -> Any:
        graphs.append(graph)
        return [Bundle((None, FREE))]

    Threads(get=get, **options).reduce(blocks, Named())
    (graph,) = graphs
    return dict(graph)


def spans(graph: dict[Any, Any]) -> list[int]:
    """Blocks of each task that works through some."""
    work = [key for key in graph if isinstance(key, tuple) and key_split(key[0]) == "daskgmm-named"]
    return [last - first for _, first, last in work]


def test_the_function_and_the_reader_are_in_the_graph_once() -> None:
    graph = graph_of(rows_of(32), span=8)
    assert len(graph) == 4 + 3 + 2  # four tasks of eight blocks, three sums, the function and what reads the rows
    assert len(graph_of(rows_of(32), span=1)) == 32 + 31 + 2
    # A dashboard shows keys up to their digits.
    assert {key_split(key) for key in graph} == {"daskgmm-named", "daskgmm-total", "daskgmm-map", "daskgmm-rows"}


def test_blocks_out_of_a_graph_have_a_task_each() -> None:
    # A task's inputs are all there before it begins: several would be in memory together.
    chunked = as_rows(da.from_array(np.zeros((32, 2)), chunks=(1, 2)))
    assert spans(graph_of(chunked, span=8)) == [1] * 32


def test_tasks_are_as_large_as_their_scheduling_asks_for() -> None:
    def span(n_blocks: int, block_bytes: int, threads: int) -> int:
        with dask.config.set(num_workers=threads):
            x = np.broadcast_to(0.0, (n_blocks * block_bytes // 8, 1))
            return max(spans(graph_of(as_rows(x, block_size=block_bytes))))

    assert span(4096, 8, 1) == 1024  # four tasks for the thread, and no more
    assert span(4096, 8, 64) == 16
    assert span(3, 8, 2) == 1
    assert span(64, 2**26, 2) == 1  # such a block takes long enough
    # Less work in a block, more blocks in a task; more threads to serve from one scheduler, likewise.
    assert span(4096, 2**19, 2) > span(4096, 2**21, 2)
    assert span(2**16, 2**21, 64) > span(2**16, 2**21, 2)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_hands_that_are_held_are_one_task_for_each_thread(threads: int) -> None:
    rows = rows_of(8)
    window = Window.load(Threads(get=get_sync), rows, range(8), Selection(), 0)
    with dask.config.set(num_workers=threads):
        found = spans(graph_of(window.batch(0, 8)))
    assert found == [len(window.hands) // threads] * threads


def own_task(block: Block) -> Bundle:
    """The keys of the tasks that work through blocks."""
    return Bundle(([get_worker().get_current_task()],))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("workers", "tasks"), [(1, 4), (2, 8)])
def test_tasks_of_a_cluster_follow_its_threads(workers: int, tasks: int, clusters: Any) -> None:
    engine = Cluster(client=clusters(workers, False))
    assert engine.threads == workers
    (keys,) = engine.reduce(rows_of(64), own_task)
    assert (len(keys), len(set(keys))) == (64, tasks)


# Each block by itself, and answers for rows


@pytest.mark.timeout(60)
def test_each_and_answers_are_in_order_on_every_engine(clusters: Any) -> None:
    rows, chunked = rows_of(7), as_rows(da.from_array(np.arange(14.0).reshape(7, 2), chunks=(2, 1)))
    for engine in (*(kind() for kind in LOCAL.values()), Cluster(client=clusters(2, False))):
        inputs = [rows] if isinstance(engine, Plain) else [rows, chunked]
        assert engine.each(rows, lambda block: (block.index, block.x.tolist()), [5, 0, 2]) == [
            (i, [[2.0 * i, 2.0 * i + 1]]) for i in (5, 0, 2)
        ]
        assert engine.each(rows, lambda block: block.index, []) == []
        for some in inputs:
            values = engine.answers(some, lambda block: block.x[:, 0], float, None)
            np.testing.assert_array_equal(values, np.arange(0.0, 14, 2))
            values = engine.answers(some, lambda block: block.x + 1, float, 2)
            np.testing.assert_array_equal(values, np.arange(14.0).reshape(7, 2) + 1)


# The same bits

X = np.random.default_rng(0).normal(size=(37 * 11, 3)) + np.arange(37 * 11)[:, None] % 3


def passes(engine: Engine, rows: Rows) -> list[Any]:
    """Every array that an EM step and a survey find."""
    found: list[Any] = []
    for s in engine.reduce(rows, Together(tuple(Expect(draw_mixture(kind, 3, 3)) for kind in KINDS))):
        found += [s.weight, s.shift, s.scatter, s.log_likelihood]
    survey = engine.reduce(rows, Examine(FULL, 3, 5, Threshold(50)))
    return [*found, survey.overall.shift, survey.overall.scatter, *survey.sample.points()]


def assert_same_bits(a: Sequence[Any], b: Sequence[Any]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def many_rows(dask_array: bool = False) -> Rows:
    if dask_array:
        return as_rows(da.from_array(X, chunks=(11, 2)))
    return as_rows(X, block_size=11 * 24)


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    return passes(Plain(), many_rows())


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("engine", SCHEDULERS)
def test_same_bits_on_threads(engine: str, span: int, plain: list[Any]) -> None:
    assert many_rows().n_blocks == 37
    for dask_array in (False, True):
        assert_same_bits(passes(SCHEDULERS[engine](span=span), many_rows(dask_array)), plain)


@pytest.mark.timeout(100)
def test_same_bits_in_processes(plain: list[Any]) -> None:
    get = partial(dask.multiprocessing.get, num_workers=2)
    assert_same_bits(passes(Threads(get=get, span=8), many_rows()), plain)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("workers", [1, 2])
def test_same_bits_on_a_cluster(workers: int, processes: bool, plain: list[Any], clusters: Any) -> None:
    client = clusters(workers, processes)
    for span in (1, 4, None):
        assert_same_bits(passes(Cluster(client=client, span=span), many_rows()), plain)
    assert_same_bits(passes(Cluster(client=client), many_rows(dask_array=True)), plain)


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
    for threads in (1, 2):
        with dask.config.set(scheduler="threads", num_workers=threads):
            assert_same_bits(models(x), first)
    for workers in (1, 2):
        with clusters(workers, True).as_current():
            assert_same_bits(models(x), first)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_callers_blas_threads_do_not_matter() -> None:
    found = []
    for limit in (1, 2):
        with threadpool_limits(limit):
            found.append(models(X))
    assert_same_bits(*found)


# Reports


@given(n_blocks=st.integers(1, 40), span=st.sampled_from(SPANS), engine=st.sampled_from(sorted(LOCAL)))
def test_reports_count_up_to_all_blocks(n_blocks: int, span: int, engine: str) -> None:
    told: list[tuple[int, int]] = []
    LOCAL[engine](span=span, report=lambda *a: told.append(a)).reduce(rows_of(n_blocks), Named())
    done = [d for d, _ in told]
    assert done == sorted(set(done))
    assert told[-1] == (n_blocks, n_blocks)
    assert {total for _, total in told} == {n_blocks}
    if span == 1 and engine in SCHEDULERS:
        assert done == list(range(1, n_blocks + 1))


@pytest.mark.timeout(60)
def test_a_cluster_reports_whole_passes(clusters: Any) -> None:
    told: list[tuple[int, int]] = []
    Cluster(client=clusters(1, False), report=lambda *a: told.append(a)).reduce(rows_of(8), Named())
    assert told == [(8, 8)]


def fail(block: Block) -> Expression:
    if block.index == 3:
        raise DataError("block 3 is bad")
    return Named()(block)


@pytest.mark.timeout(60)
def test_single_blocks_are_no_pass(clusters: Any) -> None:
    told: list[tuple[int, int]] = []
    engines: list[Any] = [partial(Cluster, client=clusters(1, False)), *LOCAL.values()]
    for engine in engines:
        engine(report=lambda *a: told.append(a)).each(rows_of(8), Named(), [0, 7])
    assert told == []


def test_a_failed_pass_is_never_reported_done(clusters: Any) -> None:
    engines: dict[str, Callable[..., Engine]] = {**LOCAL, "cluster": partial(Cluster, client=clusters(1, False))}
    for engine in engines.values():
        told: list[tuple[int, int]] = []
        with pytest.raises(DataError, match="block 3 is bad"):
            engine(report=lambda *a, told=told: told.append(a)).reduce(rows_of(8), fail)
        assert (8, 8) not in told


@pytest.mark.parametrize("engine", LOCAL)
def test_a_report_that_fails_ends_the_pass(engine: str) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LOCAL[engine](report=interrupted).reduce(rows_of(8), Named())


@pytest.mark.parametrize("n_blocks", [1, 5, 13])
def test_blocks_in_memory_go_to_threads_unless_somebody_watches_tasks_or_brings_a_pool(n_blocks: int) -> None:
    seen: list[object] = []
    told: list[tuple[int, int]] = []
    engine = Threads(get=dask.threaded.get, span=2, report=lambda done, total: told.append((done, total)))

    def names() -> set[str]:
        """Of the threads that work, once the tree is right."""
        threads = set()

        def function(block: Block) -> Expression:
            threads.add(threading.current_thread().name)
            return Expression(str(block.index))

        assert engine.reduce(rows_of(n_blocks), function).text == expected(0, n_blocks)
        return threads

    own = names()
    assert all(name.startswith("daskgmm") for name in own) if n_blocks > 2 else len(own) == 1
    assert told[-1] == (n_blocks, n_blocks)
    assert not seen
    with Callback(posttask=lambda key, *_: seen.append(key)):
        assert not any(name.startswith("daskgmm") for name in names())
        assert seen
    with ThreadPoolExecutor(1, "brought") as pool, dask.config.set(pool=pool):
        assert {name.split("_")[0] for name in names()} == {"brought"}
