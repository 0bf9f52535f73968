"""What engines say that passes cost: bytes that tasks got, those read for them, and those kept; seconds add up."""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import dask
import dask.array as da
import dask.threaded
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.local import get_sync
from hypothesis import given
from hypothesis import strategies as st

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cache import kept
from daskgmm.compute.cluster import Cluster
from daskgmm.compute.cost import FREE, Cost
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Plain, Threads
from daskgmm.compute.window import Selection, Window

N, D = 60, 3
X = np.random.default_rng(0).normal(size=(N, D))
WEIGHT = np.ones(N, np.float32)
ENGINES: dict[str, Callable[..., Engine]] = {
    "plain": Plain,
    "sync": partial(Threads, get=get_sync),
    "threads": partial(Threads, get=partial(dask.threaded.get, num_workers=2)),
    "ahead": Threads,
}
COSTS = st.builds(Cost, *[st.integers(0, 2**40).map(float)] * 5)


def count(block: Block) -> int:
    return len(block.x)


def store(folder: Path) -> str:
    zarr.create_array(folder / "x.zarr", data=X, chunks=(5, D))
    return str(folder / "x.zarr")


def packed(folder: Path) -> str:
    how = {"x": {"dtype": "i2", "scale_factor": 0.001, "_FillValue": -1, "chunks": (5, D)}}
    xr.Dataset({"x": (("row", "feature"), X)}).to_zarr(folder / "g.zarr", encoding=how, consolidated=False)
    return str(folder / "g.zarr/x")


# What it is, and the bytes that are read of each row.
INPUTS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "memory": (lambda folder: X, 0),
    "dask": (lambda folder: da.from_array(X, chunks=(5, D)), 8 * D),
    "zarr": (store, 8 * D),
    "packed": (packed, 2 * D),
}


def spent(engine: Callable[..., Engine], rows: Any, function: Any = count, **how: Any) -> Cost:
    costs: list[Cost] = []
    assert engine(spend=costs.append, **how).reduce(rows, function) == N
    (cost,) = costs
    return cost


@given(a=COSTS, b=COSTS, c=COSTS)
def test_costs_add_up(a: Cost, b: Cost, c: Cost) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + FREE == a
    assert astuple(a + b) == tuple(np.add(astuple(a), astuple(b)))


@pytest.mark.parametrize("span", [1, 4, 64])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", INPUTS)
def test_a_pass_costs_what_it_reads(kind: str, engine: str, span: int, tmp_path: Path) -> None:
    if (kind, engine) == ("dask", "plain"):
        return  # it has no scheduler
    make, each = INPUTS[kind]
    rows = as_rows(make(tmp_path), weight=WEIGHT, block_size=5 * 8 * D)
    assert rows.n_blocks == 12
    cost = spent(ENGINES[engine], rows, span=span)
    assert (cost.seen, cost.read, cost.kept) == (N * 8 * (D + 1), N * each, 0)  # weights are float64 by then
    assert cost.reading > 0 < cost.computing


def test_arrays_side_by_side_cost_what_they_have(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    for name, dtype in (("a", "f4"), ("b", "i2")):
        group.create_array(name, data=np.ones((6, 10), dtype))
    cost = spent(Plain, as_rows(group, variables=["a", "b"]))
    assert (cost.seen, cost.read) == (N * 2 * 4, N * (4 + 2))


def test_what_is_kept_is_not_read_again(tmp_path: Path) -> None:
    """Of twelve blocks there is room for five; responsibilities are not kept."""
    rows = as_rows(store(tmp_path), responsibilities=np.ones((N, 2)), block_size=5 * 8 * D)
    threads = partial(Threads, get=get_sync)
    with dask.config.set({"daskgmm.memory-limit": 5 * 5 * 8 * D}), kept(threads(), rows) as near:
        first, again = spent(threads, near), spent(threads, near.lasting())
    assert (first.seen, first.read, first.kept) == (N * 8 * (D + 2), N * 8 * D, 0)
    assert (again.seen, again.read, again.kept) == (N * 8 * D, 35 * 8 * D, 25 * 8 * D)


def test_a_window_costs_what_its_blocks_do(tmp_path: Path) -> None:
    costs: list[Cost] = []
    rows = as_rows(store(tmp_path), block_size=5 * 8 * D)
    engine = Threads(spend=costs.append)
    window = Window.load(engine, rows, range(12), Selection(last=N), 0)
    engine.reduce(window.batch(0, 30), count)
    engine.reduce(window.batch(30, N), count)
    assert [(cost.seen, cost.read) for cost in costs] == [(X.nbytes, X.nbytes), (0, 0), (0, 0)]
    assert costs[0].reading > 0


def test_those_who_wait_for_others_do_not_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three threads one computes at a time, by a clock that goes on by one meanwhile."""
    rows, clock = as_rows(store(tmp_path), block_size=5 * 8 * D), [0.0]

    def slow(block: Block) -> int:
        sleep(0.01)  # others come
        clock[0] += 1
        return len(block.x)

    monkeypatch.setattr("daskgmm.compute.cost.perf_counter", lambda: clock[0])
    with dask.config.set(num_workers=1):
        assert Threads(span=1).ahead(rows) == 2
        assert spent(Threads, rows, slow, span=1).computing == 12


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failed_pass_tells_no_cost(engine: str) -> None:
    def fail(block: Block) -> int:
        raise ValueError

    costs: list[Cost] = []
    with pytest.raises(ValueError):  # noqa: PT011
        ENGINES[engine](spend=costs.append).reduce(as_rows(X), fail)
    assert not costs


@pytest.mark.timeout(60)
def test_on_a_cluster_rows_are_read_once_and_kept(clusters: Any, tmp_path: Path) -> None:
    engine = partial(Cluster, client=clusters(2, False))
    costs: list[Cost] = []
    rows = as_rows(store(tmp_path), weight=WEIGHT, block_size=5 * 8 * D)
    cost = spent(engine, rows)
    assert (cost.seen, cost.read, cost.kept) == (N * 8 * (D + 1), X.nbytes, 0)
    assert cost.reading > 0 < cost.computing
    with kept(engine(spend=costs.append), rows) as near:
        for _ in range(2):
            engine(spend=costs.append).reduce(near, count)
    first, again = costs[0] + costs[1], costs[2]
    assert (first.read, again.read) == (X.nbytes, 0)
    assert again.kept == again.seen == first.seen == N * 8 * (D + 1)
    assert first.kept < again.kept


def test_bits_and_types_are_those_of_the_task() -> None:
    def sums(block: Block) -> Array:
        return np.asarray(block.x.sum(axis=0))

    rows = as_rows(X, block_size=5 * 8 * D)
    found = Threads().reduce(rows, sums)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, Plain().reduce(rows, sums))
