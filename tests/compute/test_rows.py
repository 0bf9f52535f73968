"""Rows: every kind of input gives the same blocks, lazily, with weights and starts beside them."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
import zarr
from dask.base import optimize
from dask.local import get_sync
from numpy.typing import DTypeLike

from daskgmm._typing import Array
from daskgmm.compute.rows import Block, Rows, as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import (
    LABELS,
    RESP,
    VALUES,
    WEIGHT,
    D,
    N,
    blocks,
    dask_array,
    joined,
    uneven,
    unknown,
    write,
)

dd = pytest.importorskip("dask.dataframe")


def compute(array: da.Array) -> Any:
    return array.compute(scheduler="threads")  # type: ignore[no-untyped-call]


def sizes(rows: Rows) -> list[int]:
    return [len(block.x) for block in blocks(rows)]


KINDS: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda path: VALUES,
    "fortran": lambda path: np.asfortranarray(VALUES),
    "list": lambda path: VALUES.tolist(),
    "pandas": lambda path: pd.DataFrame(VALUES, columns=["a", "b", "c"]),
    "polars": lambda path: pl.DataFrame(VALUES, schema=["a", "b", "c"]),
    "dask": lambda path: dask_array(VALUES, chunks=(6, D)),
    "dask uneven": lambda path: uneven(VALUES),
    "dask computed": lambda path: (dask_array(VALUES, chunks=(6, 2)) - 1.0) + 1.0,
    "dask unknown": lambda path: unknown(uneven(VALUES)),
    "dask persisted": lambda path: uneven(VALUES).persist(scheduler="sync"),
    "zarr v2": lambda path: write(path, VALUES, (4, 2), zarr_format=2),
    "zarr v3": lambda path: write(path, VALUES, (4, 2)),
    "zarr sharded": lambda path: write(path, VALUES, (2, 1), shards=(6, 3)),
    "path": lambda path: Path(write(path, VALUES, (4, 3)).store.root),
    "string": lambda path: str(write(path, VALUES, (4, 3)).store.root),
    "url": lambda path: f"file://{write(path, VALUES, (4, 3)).store.root}",
    "xarray": lambda path: xr.DataArray(VALUES, dims=("time", "band")),
    "xarray dask": lambda path: xr.DataArray(uneven(VALUES), dims=("time", "band")),
    "dask frame": lambda path: dd.from_pandas(pd.DataFrame(VALUES), npartitions=3),
}
IN_MEMORY = {"numpy", "fortran", "list", "pandas", "polars", "xarray"}
UNKNOWN = {"dask unknown", "dask frame"}


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    def test_blocks_hold_the_rows_in_order(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
        assert rows.n_features == D
        assert rows.dtype == np.float64
        assert rows.in_memory == (kind in IN_MEMORY)
        assert rows.n_rows == (None if kind in UNKNOWN else N)
        assert rows.n_blocks == len(rows.chunks) > 1
        np.testing.assert_allclose(joined(rows), VALUES, rtol=0, atol=1e-15)

    def test_blocks_know_their_place(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
        read = blocks(rows)
        assert [block.index for block in read] == list(range(rows.n_blocks))
        first = list(itertools.accumulate([len(block.x) for block in read], initial=0))[:-1]
        if kind in UNKNOWN:
            assert all(math.isnan(size) for size in rows.chunks)
            assert [block.first_row for block in read] == [None] * len(read)
        else:
            assert list(rows.chunks) == [len(block.x) for block in read]
            assert all(isinstance(size, int) for size in rows.chunks)
            assert [block.first_row for block in read] == first
        assert all(block.weight is None and block.start is None for block in read)

    def test_only_dask_arrays_have_a_graph(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"))
        assert rows.lazy == ("dask" in kind)
        assert (set(rows.graph) == {rows.key}) == ("dask" not in kind)

    def test_tasks_nest_and_read_in_turn(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
        total: Any = (_sum, rows.task(0))
        for index in range(1, rows.n_blocks):
            total = (np.add, total, (_sum, rows.task(index)))
        result = get_sync({**rows.graph, "total": total}, "total")
        np.testing.assert_allclose(result, VALUES.sum(0), rtol=1e-13)

    def test_map_has_the_rows_own_chunks(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
        one = rows.map(lambda block: block.x[:, 0] + 1, dtype=np.float64)
        two = rows.map(lambda block: block.x[:, 1:], dtype=np.float64, columns=2)
        np.testing.assert_equal(one.chunks, (rows.chunks,))
        np.testing.assert_equal(two.chunks, (rows.chunks, (2,)))
        assert one.dtype == two.dtype == np.float64
        np.testing.assert_allclose(compute(one), VALUES[:, 0] + 1, rtol=0, atol=1e-15)
        np.testing.assert_allclose(compute(two), VALUES[:, 1:], rtol=0, atol=1e-15)


def _sum(block: Block) -> Any:
    return block.x.sum(0)


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "<i8", ">i4", "f2", "f4", ">f4", ">f8", np.longdouble])
def test_dtypes_are_kept(dtype: DTypeLike, tmp_path: Path) -> None:
    values = np.arange(60).reshape(N, D).astype(dtype)
    inputs: list[Any] = [values, np.asfortranarray(values), dask_array(values, chunks=(7, D))]
    if dtype is not np.longdouble:  # Zarr has none
        inputs.append(write(tmp_path / "x.zarr", values, (4, 2), zarr_format=2))
    for X in inputs:
        rows = as_rows(X)
        assert rows.dtype == values.dtype
        assert rows.read(0).x.dtype == values.dtype
        np.testing.assert_array_equal(joined(rows), values)


def test_numpy_blocks_are_views() -> None:
    rows = as_rows(VALUES, block_size=100)
    assert all(np.shares_memory(block.x, VALUES) for block in blocks(rows))


@pytest.mark.parametrize("kind", ["numpy", "zarr v2", "zarr v3", "zarr sharded", "path"])
def test_rows_pickle(kind: str, tmp_path: Path) -> None:
    rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), 2.0, LABELS, block_size=100)
    again = pickle.loads(pickle.dumps(rows))
    assert again.chunks == rows.chunks
    np.testing.assert_array_equal(joined(again), VALUES)


def test_a_pickled_numpy_task_carries_its_own_rows_only() -> None:
    values = np.zeros((100_000, 2))
    rows = as_rows(values, np.ones(len(values)), block_size=values.nbytes // 8)
    assert len(pickle.dumps(rows.task(0))) < values.nbytes // 4


def test_a_relative_path_holds_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.zarr", VALUES, (4, 2))
    monkeypatch.chdir(tmp_path)
    rows = as_rows("x.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(joined(rows), VALUES)


def test_a_file_opened_by_xarray_without_chunks_stays_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", VALUES, (4, 3), dimension_names=("time", "band"))
    # One array of a group, as xarray reads it.
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    (tmp_path / "x.zarr").rename(tmp_path / "group.zarr" / "x")
    lazy = xr.open_dataset(tmp_path / "group.zarr", engine="zarr", consolidated=False)["x"]
    rows = as_rows(lazy)
    assert not rows.in_memory
    np.testing.assert_array_equal(joined(rows), VALUES)


def test_optional_libraries_are_not_needed() -> None:
    code = (
        "import sys\n"
        "for name in ('xarray', 'pandas', 'polars', 'dask.dataframe'):\n"
        "    sys.modules[name] = None  # importing it raises ImportError\n"
        "import dask.array as da, numpy as np\n"
        "from daskgmm.compute.rows import as_rows, feature_names\n"
        "X = np.ones((5, 2))\n"
        "for rows in (X, X.tolist(), da.from_array(X, chunks=2)):\n"
        "    as_rows(rows, np.ones(5)).map(lambda block: block.weight, dtype='f8').compute()\n"
        "    assert feature_names(rows) is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Weights and starts


COMPANIONS: dict[str, Callable[[Array, Path], Any]] = {
    "numpy": lambda values, path: values,
    "list": lambda values, path: values.tolist(),
    "pandas": lambda values, path: pd.Series(values) if values.ndim == 1 else pd.DataFrame(values),
    "polars": lambda values, path: pl.Series(values) if values.ndim == 1 else pl.DataFrame(values),
    "dask": lambda values, path: dask_array(values, chunks=3),
    "zarr": lambda values, path: write(path, values, (7, 4)[: values.ndim]),
    "path": lambda values, path: str(write(path, values, (7, 4)[: values.ndim]).store.root),
    "xarray": lambda values, path: xr.DataArray(values),
    "xarray dask": lambda values, path: xr.DataArray(dask_array(values, chunks=3)),
}
KNOWN = [kind for kind in KINDS if kind not in UNKNOWN | {"fortran", "list", "string", "url", "polars"}]


@pytest.mark.parametrize("companion", COMPANIONS)
@pytest.mark.parametrize("kind", KNOWN)
def test_weights_and_starts_are_cut_as_the_rows(kind: str, companion: str, tmp_path: Path) -> None:
    X = KINDS[kind](tmp_path / "x.zarr")
    open_as = COMPANIONS[companion]
    for name, start in (("labels", LABELS), ("resp", RESP)):
        rows = as_rows(
            X,
            open_as(WEIGHT, tmp_path / f"{name}_weight.zarr"),
            open_as(start, tmp_path / f"{name}.zarr"),
            block_size=100,
        )
        read = blocks(rows)
        assert sizes(rows) == [np.asarray(block.weight).size for block in read]
        np.testing.assert_array_equal(np.concatenate([block.weight for block in read]), WEIGHT)
        np.testing.assert_array_equal(np.concatenate([block.start for block in read]), start)
        mapped = rows.map(lambda block: block.x[:, 0] * block.weight, dtype="f8")
        np.testing.assert_allclose(compute(mapped), VALUES[:, 0] * WEIGHT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, 0.5, np.float32(3), np.array(4)])
def test_a_number_weighs_every_row_alike(kind: str, number: Any, tmp_path: Path) -> None:
    rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), number, block_size=100)
    for block in blocks(rows):
        np.testing.assert_array_equal(block.weight, np.full(len(block.x), float(number)))


@pytest.mark.parametrize("dtype", ["?", "i8", "u1", "f2", ">f4"])
def test_weights_of_any_real_dtype_become_float64(dtype: str) -> None:
    weight = np.arange(N).astype(dtype)
    block = as_rows(VALUES, weight).read(0)
    assert block.weight is not None
    assert block.weight.dtype == np.dtype("=f8")
    np.testing.assert_array_equal(block.weight, weight)


def test_unknown_sizes_pair_block_by_block(tmp_path: Path) -> None:
    weight = write(tmp_path / "w.zarr", WEIGHT[:12], (5,))
    X = unknown(dask_array(VALUES[:12], chunks=((5, 5, 2), 3)))
    rows = as_rows(X, weight, unknown(dask_array(LABELS[:12], chunks=5)))
    read = blocks(rows)
    np.testing.assert_array_equal(np.concatenate([block.weight for block in read]), WEIGHT[:12])
    np.testing.assert_array_equal(np.concatenate([block.start for block in read]), LABELS[:12])
    # Known rows, weights of unknown sizes
    rows = as_rows(X.compute_chunk_sizes(), unknown(dask_array(WEIGHT[:12], chunks=5)))
    assert rows.read(1).first_row == 5
    np.testing.assert_array_equal(rows.read(1).weight, WEIGHT[5:10])


def test_frame_and_series_pair(tmp_path: Path) -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": VALUES[:, 0], "w": WEIGHT}), npartitions=3)
    read = blocks(as_rows(frame[["a"]], frame["w"]))
    np.testing.assert_array_equal(np.concatenate([block.weight for block in read]), WEIGHT)


def test_unknown_sizes_that_do_not_pair_are_refused() -> None:
    X = unknown(uneven(VALUES))
    with pytest.raises(DataError, match=r"sample_weight has 2 block\(s\) and X has 4"):
        as_rows(X, dask_array(WEIGHT, chunks=10))
    with pytest.raises(DataError, match=r"labels_init has 1 block\(s\) and rows has 4"):
        as_rows(X, start=LABELS, name="rows")


def test_lengths_of_unknown_blocks_are_compared_when_read() -> None:
    X = unknown(dask_array(VALUES, chunks=(10, 3)))
    rows = as_rows(X, unknown(dask_array(WEIGHT[:19], chunks=10)))
    assert len(rows.read(0).x) == 10
    with pytest.raises(DataError, match="sample_weight and the rows differ in length in block 1"):
        rows.read(1)
    rows = as_rows(X, start=unknown(dask_array(RESP[:19], chunks=(10, 4))))
    with pytest.raises(DataError, match=r"starting values and the rows .* block 1: 9 and 10"):
        rows.read(1)


# Laziness


class Counted:
    """An array that counts how often it is sliced."""

    def __init__(self, values: Array) -> None:
        self.values, self.reads = values, 0
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return self.values[index]


class CountedStore(zarr.storage.MemoryStore):
    """A store that counts how often a chunk is fetched."""

    reads = 0

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        if "c/" in key:
            CountedStore.reads += 1
        return await super().get(key, *args, **options)


def test_dask_input_is_read_when_asked_block_by_block() -> None:
    source = Counted(VALUES)
    X = dask_array(source, chunks=(5, 3), meta=np.empty((0, 0)))
    rows = as_rows(X, dask_array(WEIGHT, chunks=10), LABELS, nan_policy="omit")
    mapped = rows.map(lambda block: block.x[:, 0], dtype="f8")
    tasks = [rows.task(index) for index in range(rows.n_blocks)]
    assert (len(tasks), source.reads) == (4, 0)
    rows.read(2)
    assert source.reads == 1
    compute(mapped[:5])
    assert source.reads == 2
    compute(mapped)
    assert source.reads == 6


def test_zarr_input_is_read_when_asked_block_by_block() -> None:
    array = zarr.create_array(CountedStore(), shape=(N, D), chunks=(5, 3), dtype="f8")
    array[...] = VALUES
    weight = zarr.create_array(CountedStore(), shape=(N,), chunks=(10,), dtype="f8")
    weight[...] = WEIGHT
    CountedStore.reads = 0
    rows = as_rows(array, weight, block_size=5 * D * 8)
    mapped = rows.map(lambda block: block.x[:, 0], dtype="f8")
    tasks = [rows.task(index) for index in range(rows.n_blocks)]
    assert (len(tasks), CountedStore.reads) == (4, 0)
    rows.read(2)
    assert CountedStore.reads == 2
    compute(mapped)
    assert CountedStore.reads == 10


def test_dask_work_before_the_rows_is_fused_into_the_reads() -> None:
    X = (dask_array(VALUES, chunks=(5, 3)) + 1.0) * 2.0
    rows = as_rows(X)
    assert set(itertools.chain(*X.__dask_keys__())) < set(rows.graph)
    assert len(rows.graph) < len(dict(X.dask))
    np.testing.assert_allclose(joined(rows), (VALUES + 1) * 2)


class Heavy:
    """A function as large as a mixture of many components."""

    def __init__(self) -> None:
        self.parameters = np.random.default_rng(2).normal(size=50_000)

    def __call__(self, block: Block) -> Any:
        return block.x[:, 0] + self.parameters[0]


@pytest.mark.parametrize("kind", ["dask", "dask uneven", "zarr v3", "numpy"])
def test_map_embeds_the_function_once(kind: str, tmp_path: Path) -> None:
    function = Heavy()
    rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
    mapped = rows.map(function, dtype="f8")
    (optimised,) = optimize(mapped)  # type: ignore[no-untyped-call]
    for array in (mapped, optimised):
        # Each task is pickled on its own on its way to a worker.
        tasks = dict(array.dask).values()
        assert sum(len(pickle.dumps(task)) for task in tasks) < 1.5 * function.parameters.nbytes
    np.testing.assert_allclose(compute(mapped), VALUES[:, 0] + function.parameters[0])


def test_maps_of_one_store_have_names_of_their_own(tmp_path: Path) -> None:
    rows = as_rows(write(tmp_path / "x.zarr", VALUES, (5, 3)))
    # Dask takes arrays of one name to be equal; the store may have changed in between.
    one, two = (rows.map(lambda block: block.x[:, 0], dtype="f8") for _ in range(2))
    assert one.name != two.name


@pytest.mark.timeout(120)
def test_map_on_a_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    array = write(tmp_path / "x.zarr", VALUES, (5, 3))
    with distributed.Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as client:
        X = dask_array(VALUES, chunks=(5, 2)).persist()
        for rows in (as_rows(X, WEIGHT), as_rows(array, WEIGHT, block_size=5 * D * 8)):
            mapped = rows.map(Heavy(), dtype="f8")
            np.testing.assert_allclose(
                mapped.compute(),  # type: ignore[no-untyped-call]
                VALUES[:, 0] + Heavy().parameters[0],
            )
            total = client.get({**rows.graph, "total": (_weigh, rows.task(1))}, "total")
            np.testing.assert_allclose(total, (VALUES * WEIGHT[:, None])[5:10].sum(0))


def _weigh(block: Block) -> Any:
    assert block.weight is not None
    return block.weight @ block.x
