"""Rows: every kind of input gives the same blocks, lazily, and tasks that are small and alike."""

import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dask.base import optimize
from dask.local import get_sync
from numpy.typing import DTypeLike

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.rows import as_rows
from tests.compute.arrays import (
    IN_MEMORY,
    KINDS,
    LABELS,
    UNKNOWN,
    VALUES,
    WEIGHT,
    D,
    N,
    column,
    dask_array,
    joined,
    read_all,
    uneven,
    write,
)


def compute(array: Any) -> Any:
    return array.compute(scheduler="threads")


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    def test_blocks_hold_the_rows_in_order(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
        assert rows.n_features == D
        assert rows.x.dtype == np.float64
        assert rows.x.local == (kind in IN_MEMORY)
        assert rows.n_rows == (None if kind in UNKNOWN else N)
        assert rows.n_blocks == len(rows.x.chunks) > 1
        np.testing.assert_allclose(joined(rows), VALUES, rtol=0, atol=1e-15)

    def test_blocks_know_their_place(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), block_size=100)
        read, chunks = read_all(rows), rows.x.chunks
        assert [block.index for block in read] == list(range(rows.n_blocks))
        first = list(itertools.accumulate([len(block.x) for block in read], initial=0))[:-1]
        if kind in UNKNOWN:
            assert all(math.isnan(size) for size in chunks)
            assert [block.first_row for block in read] == [None] * len(read)
        else:
            assert list(chunks) == [len(block.x) for block in read]
            assert all(isinstance(size, int) for size in chunks)
            assert [block.first_row for block in read] == first
        assert all(block.weight is None and not block.columns for block in read)

    def test_only_dask_arrays_have_a_graph(self, kind: str, tmp_path: Path) -> None:
        rows = as_rows(KINDS[kind](tmp_path / "x.zarr"))
        assert bool(rows.lazy) == ("dask" in kind)
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
        np.testing.assert_equal(one.chunks, (rows.x.chunks,))
        np.testing.assert_equal(two.chunks, (rows.x.chunks, (2,)))
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
        assert rows.x.dtype == values.dtype
        assert rows.read(0).x.dtype == values.dtype
        np.testing.assert_array_equal(joined(rows), values)


@pytest.mark.parametrize("kind", ["numpy", "zarr v2", "zarr v3", "zarr sharded", "path"])
def test_rows_pickle(kind: str, tmp_path: Path) -> None:
    rows = as_rows(KINDS[kind](tmp_path / "x.zarr"), weight=2.0, labels=LABELS, block_size=100)
    again = pickle.loads(pickle.dumps(rows))
    assert again.x.chunks == rows.x.chunks
    np.testing.assert_array_equal(joined(again), VALUES)
    np.testing.assert_array_equal(column(again, "weight"), np.full(N, 2.0))
    np.testing.assert_array_equal(column(again, "labels"), LABELS)


@pytest.mark.parametrize("block_size", [0, -5, "0 B", "many", None, float("nan"), [1]])
def test_block_size_must_be_bytes(block_size: Any) -> None:
    with pytest.raises(ValueError, match="block_size must be a number of bytes"):
        as_rows(VALUES, block_size=block_size)


@pytest.mark.parametrize("option", ["missing_chunks", "nan_policy"])
def test_options_must_be_known(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be 'raise' or .*, got 'fil'"):
        as_rows(np.zeros((3, 2)), **dict.fromkeys((option,), "fil"))  # type: ignore[arg-type]


def test_block_size_as_text_and_number_agree() -> None:
    values = np.zeros((5000, 64))
    text, number = (as_rows(values, block_size=size).x.chunks for size in ("50 kiB", 50 * 1024))
    assert text == number == (100,) * 50


def test_optional_libraries_are_not_needed() -> None:
    code = (
        "import sys\n"
        "for name in ('xarray', 'pandas', 'polars', 'dask.dataframe'):\n"
        "    sys.modules[name] = None  # importing it raises ImportError\n"
        "import dask.array as da, numpy as np\n"
        "from daskgmm.compute.rows import as_rows\n"
        "X = np.ones((5, 2))\n"
        "for values in (X, X.tolist(), da.from_array(X, chunks=2)):\n"
        "    rows = as_rows(values, weight=np.ones(5))\n"
        "    rows.map(lambda block: block.weight, dtype='f8').compute()\n"
        "    assert rows.feature_names is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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
    rows = as_rows(X, weight=dask_array(WEIGHT, chunks=10), labels=LABELS, nan_policy="omit")
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
    rows = as_rows(array, weight=weight, block_size=5 * D * 8)
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
    (optimised,) = optimize(mapped)
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
        for rows in (as_rows(X, weight=WEIGHT), as_rows(array, weight=WEIGHT, block_size=5 * D * 8)):
            mapped: Any = rows.map(Heavy(), dtype="f8")
            np.testing.assert_allclose(mapped.compute(), VALUES[:, 0] + Heavy().parameters[0])
            total = client.get({**rows.graph, "total": (_weigh, rows.task(1))}, "total")
            np.testing.assert_allclose(total, (VALUES * WEIGHT[:, None])[5:10].sum(0))


def _weigh(block: Block) -> Any:
    assert block.weight is not None
    return block.weight @ block.x


# Layout


def test_a_layout_tells_shapes_types_and_plan() -> None:
    def told(X: Any = VALUES, **options: Any) -> Any:
        return as_rows(X, **options).layout()

    assert told(uneven(VALUES))["blocks [rows, how many]"] == [[3, 1], [0, 1], [5, 1], [12, 1]]
    assert told(block_size=5 * D * 8)["blocks [rows, how many]"] == [[5, 4]]
    others = [
        told(VALUES.astype("f4")),
        told(VALUES[:, :2]),
        told(VALUES[:19]),
        told(block_size=100),
        told(nan_policy="omit"),
        told(weight=WEIGHT),
        told(weight=WEIGHT.astype("f4")),
        told(labels=LABELS),
    ]
    assert all(other != told() for other in others)
    assert len({str(other) for other in others}) == len(others)
    assert told() == told(np.zeros_like(VALUES))
